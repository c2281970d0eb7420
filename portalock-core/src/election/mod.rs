//! Leader election: one of several candidates leads, until it resigns, crashes or loses its term.

mod observe;

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};

pub use self::observe::{Observer, Term};
use crate::{
    BackendError, BackendErrorKind, FencingToken, Guard, Holder, InvalidName, Lock, LockBackend,
    LockError, LockName, LostSignal, Policy,
    clock::Instant,
    engine::{deadline::Deadline, timer},
};

/// The default pause between two campaigns of [`Election::lead`].
const PAUSE: Duration = Duration::from_secs(1);

/// An election: of all candidates with the same name in the same backend, at most one leads.
///
/// A term is an exclusive hold of the lock of that name, and its token is the lock's fencing token. So an election
/// guarantees what the backend guarantees for a lock, and no more. Send the token with every write of the leader, so
/// that the resource can refuse a former leader.
///
/// ```
/// use portalock_core::{Election, LockError, MemoryBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
/// let election = Election::new(MemoryBackend::new(), "scheduler")?.with_label("host-1");
/// let leadership = election.campaign().await?;
/// let leader = election.leader().await?.expect("somebody leads");
/// assert_eq!(leader.token, leadership.token());
/// leadership.resign().await?;
/// assert!(election.leader().await?.is_none());
/// # Ok(()) }
/// ```
pub struct Election<B> {
    lock: Lock<B>,
    pause: Duration,
}

impl<B: LockBackend> Election<B> {
    /// The election called `name` in `backend`. No I/O is done.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] as [`Lock::new`].
    pub fn new(backend: B, name: impl AsRef<str>) -> Result<Self, InvalidName> {
        let lock = Lock::new(backend, name)?.with_policy(Policy::forever());
        Ok(Self { lock, pause: PAUSE })
    }

    /// Sets how [`campaign`](Self::campaign) waits, and how often an observer polls if the backend can't watch.
    /// Default: [`Policy::forever`].
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.lock = self.lock.with_policy(policy);
        self
    }

    /// Sets a label, which observers see beside this candidate's host and process id. Default: none.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.lock = self.lock.with_label(label);
        self
    }

    /// Sets how long [`lead`](Self::lead) pauses after a term before it campaigns again. Default 1 s. In the pause
    /// another candidate can take over, and work that fails at once doesn't restart in a tight loop.
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// The election's name.
    pub fn name(&self) -> &LockName {
        self.lock.name()
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        self.lock.backend()
    }

    /// Waits until this candidate leads, according to the policy.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`].
    ///
    /// # Cancel safety
    ///
    /// Safe to drop at any point: the candidate withdraws, and loses its place in the queue.
    ///
    /// # Fairness
    ///
    /// As [`Lock::acquire`].
    pub async fn campaign(&self) -> Result<Leadership<B>, LockError> {
        let guard = self.lock.acquire().await?;
        Ok(Leadership::new(guard, self.clone()))
    }

    /// Becomes the leader if there is none, and doesn't wait.
    ///
    /// # Errors
    ///
    /// As [`Lock::try_acquire`]: [`LockError::AlreadyLocked`] names the leader if the backend knows it.
    ///
    /// # Cancel safety
    ///
    /// As [`Lock::try_acquire`].
    pub async fn try_campaign(&self) -> Result<Leadership<B>, LockError> {
        let guard = self.lock.try_acquire().await?;
        Ok(Leadership::new(guard, self.clone()))
    }

    /// Campaigns, runs `work` while leading, and starts again after a pause, until `stop` is ready.
    ///
    /// `work` is called once for each term. If the term is lost, the future of `work` is dropped at its current await
    /// point. If the future ends, the leader resigns; this is how work responds to [`Leading::step_down_asked`]. When
    /// `stop` is ready, the future is dropped and the leader resigns. The call returns when the leader has resigned, also
    /// if `stop` becomes ready meanwhile: after 5 s at the latest, if the service doesn't answer. Dropping the future
    /// doesn't end tasks that it has spawned, so `work` must end them.
    ///
    /// # Errors
    ///
    /// The error of a campaign, if a retry can't fix it; see [`LockError::is_retryable`]. After other errors it tries
    /// again after the pause.
    ///
    /// # Cancel safety
    ///
    /// Safe: `work` is dropped, and the leader resigns in the background.
    pub async fn lead<W, F>(
        &self,
        stop: impl Future<Output = ()>,
        mut work: W,
    ) -> Result<(), LockError>
    where
        W: FnMut(Leading<B>) -> F,
        F: Future<Output = ()>,
    {
        let mut stop = pin!(stop);
        loop {
            let campaign = match select(stop.as_mut(), pin!(self.campaign())).await {
                Either::Left(_) => return Ok(()),
                Either::Right((campaign, _)) => campaign,
            };
            match campaign {
                Ok(leadership) => {
                    let work = work(leadership.leading());
                    // Drop the work before the leader resigns.
                    let stopped = match select(stop.as_mut(), pin!(leadership.run(work))).await {
                        Either::Left(_) => true,
                        Either::Right((Ok(()), _)) => false,
                        Either::Right((Err(lost), _)) => {
                            tracing::warn!(error = %lost, "the term was lost: its work was stopped");
                            false
                        }
                    };
                    if let Err(error) = leadership.resign().await {
                        tracing::debug!(%error, "a term did not end in good order");
                    }
                    if stopped {
                        return Ok(());
                    }
                }
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, "a campaign failed");
                }
                Err(error) => return Err(error),
            }
            let Some(until) = Instant::now().checked_add(self.pause) else {
                stop.await;
                return Ok(());
            };
            if let Either::Left(_) = select(stop.as_mut(), timer::at(until)).await {
                return Ok(());
            }
        }
    }

    /// Returns the leader. The answer may be out of date when it arrives, so use it for people and for routing. A write
    /// needs the token of the leader itself.
    ///
    /// # Errors
    ///
    /// As [`Lock::inspect`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it changes nothing.
    pub async fn leader(&self) -> Result<Option<Term>, LockError> {
        Ok(Term::of(self.lock.inspect().await?))
    }

    /// Returns an observer of the leader. Its first term is the current one.
    pub fn observe(&self) -> Observer<B> {
        Observer::new(self.lock.clone())
    }

    /// Asks the current leader to step down, and waits until its term has ended. If there is no leader, the call
    /// succeeds.
    ///
    /// The request is a hold of the lock `name#step-down-token`, with the token of the term. So it affects this term
    /// only, and it ends with this call. The leader learns of it through [`Leading::step_down_asked`], and can finish
    /// its work first. It is not forced.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`] if the term had not ended within the timeout of `policy`; [`LockError::Unsupported`] if
    /// the backend has no tokens or can't report the holder; [`LockError::InvalidName`] if the election's name has more
    /// than 224 bytes; [`LockError::Backend`] if the service failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: the request is withdrawn, but the leader may have seen it.
    pub async fn step_down(&self, policy: &Policy) -> Result<(), LockError> {
        let start = Instant::now();
        let deadline = Deadline::after(start, policy.timeout());
        let mut leader = None;
        let asked = async {
            let Some(term) = self.leader().await? else {
                return Ok(());
            };
            let request = self.request_for(term.token)?;
            leader = Some(term.leader.clone());
            let asking = async {
                let _request = request.acquire_with(&Policy::forever()).await?;
                std::future::pending().await
            };
            let ended = self.observe().until_over(&term);
            match select(pin!(asking), pin!(ended)).await {
                Either::Left((outcome, _)) | Either::Right((outcome, _)) => outcome,
            }
        };
        let outcome = deadline.bound(asked).await;
        outcome.unwrap_or_else(|| {
            Err(LockError::Timeout {
                name: self.name().clone(),
                waited: start.elapsed(),
                attempts: 1,
                last_error: leader.is_none().then(|| {
                    let silence = "the lock service did not say who leads before the deadline";
                    BackendError::new(BackendErrorKind::Unavailable, silence)
                }),
                holder: leader.map(Box::new),
            })
        })
    }

    /// The lock that asks the term with this token to end.
    fn request_for(&self, token: Option<FencingToken>) -> Result<Lock<B>, LockError> {
        let token = token.ok_or(LockError::Unsupported {
            what: "tokens of terms",
            instead: "choose a backend whose capabilities have `tokens`",
        })?;
        let name = LockName::new(format!("{}#step-down-{}", self.name(), token.get()))?;
        Ok(self.lock.beside(name))
    }
}

impl<B> Clone for Election<B> {
    fn clone(&self) -> Self {
        Self {
            lock: self.lock.clone(),
            pause: self.pause,
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for Election<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election")
            .field("lock", &self.lock)
            .field("pause", &self.pause)
            .finish()
    }
}

/// The term of this candidate, as the leader.
///
/// # On drop
///
/// The leader resigns, in the same way as a dropped [`Guard`] is released.
#[derive(Debug)]
#[must_use = "the leader resigns as soon as it is dropped"]
pub struct Leadership<B: LockBackend> {
    guard: Guard<B>,
    election: Election<B>,
}

impl<B: LockBackend> Leadership<B> {
    fn new(guard: Guard<B>, election: Election<B>) -> Self {
        Self { guard, election }
    }

    /// The term's token, to send with every write; `None` if the backend has no tokens.
    pub fn token(&self) -> Option<FencingToken> {
        self.guard.token()
    }

    pub(crate) fn election(&self) -> &Election<B> {
        &self.election
    }

    /// Whether the term is lost.
    pub fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// A signal that fires if the term is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.guard.lost_signal()
    }

    /// Returns an error if the term is lost.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] with the reason.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.guard.ensure_held()
    }

    /// A handle for the work of this term. It can be cloned and moved anywhere, and does not keep the term alive.
    pub fn leading(&self) -> Leading<B> {
        Leading {
            election: self.election.clone(),
            token: self.guard.token(),
            lost: self.guard.lost_signal(),
        }
    }

    /// Runs `work` while leading; see [`Guard::run`].
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if the term was lost before `work` had ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future drops `work`; the term continues.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LockError> {
        self.guard.run(work).await
    }

    /// Ends the term: a standby takes over at once.
    ///
    /// # Errors
    ///
    /// As [`Guard::release`].
    ///
    /// # Cancel safety
    ///
    /// Safe: if the future is dropped, the release continues in the background.
    pub async fn resign(self) -> Result<(), LockError> {
        self.guard.release().await
    }
}

/// The current term, for its work. Cheap to clone; it does not keep the term alive.
pub struct Leading<B> {
    election: Election<B>,
    token: Option<FencingToken>,
    lost: LostSignal,
}

impl<B: LockBackend> Leading<B> {
    /// The term's token, to send with every write; `None` if the backend has no tokens.
    pub fn token(&self) -> Option<FencingToken> {
        self.token
    }

    /// A signal that fires if the term is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.lost.clone()
    }

    /// Waits until somebody asks this leader to step down, and returns who. Then finish, and end the work or resign.
    ///
    /// Temporary failures of the service are retried.
    ///
    /// # Errors
    ///
    /// As [`Election::step_down`], without the timeout.
    ///
    /// # Cancel safety
    ///
    /// Safe: the next call finds a request that is still there.
    pub async fn step_down_asked(&self) -> Result<Holder, LockError> {
        let request = self.election.request_for(self.token)?;
        let mut observer = Observer::new(request);
        loop {
            match observer.next().await {
                Ok(Some(asked)) => return Ok(asked.leader),
                Ok(None) => {}
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl<B> Clone for Leading<B> {
    fn clone(&self) -> Self {
        Self {
            election: self.election.clone(),
            token: self.token,
            lost: self.lost.clone(),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for Leading<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leading")
            .field("election", &self.election)
            .field("token", &self.token)
            .field("lost", &self.lost)
            .finish()
    }
}
