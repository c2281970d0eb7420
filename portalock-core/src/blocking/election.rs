//! Leader election, without async.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::drive::call;
use crate::{
    FencingToken, Holder, InvalidName, LockBackend, LockError, LockName, LostSignal, Policy, Term,
};

/// An election; see [`crate::Election`].
///
/// ```
/// use portalock_core::{LockError, MemoryBackend, blocking::Election};
///
/// let election = Election::new(MemoryBackend::new(), "scheduler")?;
/// let leadership = election.campaign()?;
/// leadership.ensure_held()?;
/// leadership.resign()?;
/// # Ok::<(), LockError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Election<B> {
    election: crate::Election<B>,
}

impl<B: LockBackend> Election<B> {
    /// The election called `name` in `backend`. No I/O is done.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if `name` is empty, longer than 255 bytes or has a NUL.
    pub fn new(backend: B, name: impl AsRef<str>) -> Result<Self, InvalidName> {
        crate::Election::new(backend, name).map(Self::from)
    }

    /// Sets how [`campaign`](Self::campaign) waits. Default: without a timeout.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.election = self.election.with_policy(policy);
        self
    }

    /// Sets a label, which [`leader`](Self::leader) shows. Default: none.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.election = self.election.with_label(label);
        self
    }

    /// The election's name.
    pub fn name(&self) -> &LockName {
        self.election.name()
    }

    /// Waits until this candidate leads, according to the policy.
    ///
    /// # Errors
    ///
    /// As [`Election::campaign`](crate::Election::campaign).
    pub fn campaign(&self) -> Result<Leadership<B>, LockError> {
        let leadership = self.run(|election| async move { election.campaign().await })?;
        Ok(Leadership { leadership })
    }

    /// Becomes the leader if there is none, and doesn't wait.
    ///
    /// # Errors
    ///
    /// As [`Election::try_campaign`](crate::Election::try_campaign).
    pub fn try_campaign(&self) -> Result<Leadership<B>, LockError> {
        let leadership = self.run(|election| async move { election.try_campaign().await })?;
        Ok(Leadership { leadership })
    }

    /// Returns the leader. The answer may be out of date when it arrives.
    ///
    /// # Errors
    ///
    /// As [`Election::leader`](crate::Election::leader).
    pub fn leader(&self) -> Result<Option<Term>, LockError> {
        self.run(|election| async move { election.leader().await })
    }

    /// Returns an observer of the leader. Its first term is the current one.
    pub fn observe(&self) -> Observer<B> {
        Observer {
            election: self.election.clone(),
            observer: Arc::new(Mutex::new(self.election.observe())),
        }
    }

    /// Asks the current leader to step down, and waits until that term has ended.
    ///
    /// # Errors
    ///
    /// As [`Election::step_down`](crate::Election::step_down).
    pub fn step_down(&self, policy: &Policy) -> Result<(), LockError> {
        let policy = policy.clone();
        self.run(move |election| async move { election.step_down(&policy).await })
    }

    fn run<T: Send + 'static, F>(
        &self,
        act: impl FnOnce(crate::Election<B>) -> F,
    ) -> Result<T, LockError>
    where
        F: Future<Output = Result<T, LockError>> + Send + 'static,
    {
        let act = act(self.election.clone());
        call(self.name(), needs_runtime(&self.election), act)
    }
}

impl<B> From<crate::Election<B>> for Election<B> {
    fn from(election: crate::Election<B>) -> Self {
        Self { election }
    }
}

/// The term of this candidate, as the leader; see [`crate::Leadership`].
///
/// # On drop
///
/// The leader resigns.
#[derive(Debug)]
#[must_use = "the leader resigns as soon as it is dropped"]
pub struct Leadership<B: LockBackend> {
    leadership: crate::Leadership<B>,
}

impl<B: LockBackend> Leadership<B> {
    /// The term's token, to send with every write; `None` if the backend has no tokens.
    pub fn token(&self) -> Option<FencingToken> {
        self.leadership.token()
    }

    /// Whether the term is lost.
    pub fn is_lost(&self) -> bool {
        self.leadership.is_lost()
    }

    /// A signal that fires if the term is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.leadership.lost_signal()
    }

    /// Returns an error if the term is lost. Call it before an action of the leader.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] with the reason.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.leadership.ensure_held()
    }

    /// Waits until somebody asks this leader to step down. Call it on a thread of its own.
    ///
    /// # Errors
    ///
    /// As [`Leading::step_down_asked`](crate::Leading::step_down_asked).
    pub fn step_down_asked(&self) -> Result<Holder, LockError> {
        let leading = self.leadership.leading();
        let election = self.leadership.election();
        call(election.name(), needs_runtime(election), async move {
            leading.step_down_asked().await
        })
    }

    /// Ends the term: a standby takes over at once.
    ///
    /// # Errors
    ///
    /// As [`Leadership::resign`](crate::Leadership::resign).
    pub fn resign(self) -> Result<(), LockError> {
        let election = self.leadership.election().clone();
        let resign = self.leadership.resign();
        call(election.name(), needs_runtime(&election), resign)
    }
}

/// The same term, for async code.
impl<B: LockBackend> From<Leadership<B>> for crate::Leadership<B> {
    fn from(leadership: Leadership<B>) -> Self {
        leadership.leadership
    }
}

/// Watches an election; see [`crate::Observer`].
#[derive(Debug)]
pub struct Observer<B> {
    election: crate::Election<B>,
    observer: Arc<Mutex<crate::Observer<B>>>,
}

impl<B: LockBackend> Observer<B> {
    /// Waits for the next change: the new term, or `None` if nobody leads. The first call returns the current state.
    ///
    /// # Errors
    ///
    /// As [`Observer::next`](crate::Observer::next).
    #[allow(
        clippy::should_implement_trait,
        reason = "the same verb as the async form, and it never ends"
    )]
    pub fn next(&mut self) -> Result<Option<Term>, LockError> {
        let observer = self.observer.clone();
        let name = self.election.name();
        call(name, needs_runtime(&self.election), async move {
            observer.lock().await.next().await
        })
    }
}

fn needs_runtime<B: LockBackend>(election: &crate::Election<B>) -> bool {
    election.backend().capabilities().needs_runtime
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBackend;
    use std::thread;

    #[test]
    fn a_thread_leads_is_asked_and_hands_over() {
        let election = Election::new(MemoryBackend::new(), "scheduler").unwrap();
        let mut observer = election.observe();
        assert_eq!(observer.next().unwrap(), None);
        let first = election.campaign().unwrap();
        let token = first.token();
        assert!(election.try_campaign().is_err());
        assert_eq!(observer.next().unwrap().unwrap().token, token);
        let leads = thread::spawn(move || {
            first.step_down_asked().unwrap();
            first.ensure_held().unwrap();
            first.resign()
        });
        election.step_down(&Policy::forever()).unwrap();
        leads.join().unwrap().unwrap();
        assert_eq!(observer.next().unwrap(), None);
        let second = election.campaign().unwrap();
        assert!(second.token() > token);
        assert_eq!(election.leader().unwrap().unwrap().token, second.token());
        second.resign().unwrap();
    }
}
