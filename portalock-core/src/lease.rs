//! Until when ownership is certain, and the signal that it was lost.
//!
//! The code that keeps ownership alive has a [`Lease`]: a session that renews it, or a watch on a lock file. The code
//! that relies on ownership has a [`LostSignal`]. One lease may have thousands of signals.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError::WouldBlock},
};

use futures_util::future::{select, select_all};

use crate::{Holder, OwnerId, clock::Instant, engine::timer, holder::Doer, wakeups::Listeners};

/// Why a lock was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// No renewal was confirmed before the lease's deadline on this machine's monotonic clock.
    #[error("the lease ran out before a renewal was confirmed")]
    Expired,
    /// The backend's session ended, and with it all of its locks.
    #[error("the session ended: {0}")]
    SessionEnded(Arc<str>),
    /// The lock's record in the store was removed or replaced.
    #[error("the lock was removed from its store: {0}")]
    Removed(Arc<str>),
    /// This operator took the lock away with [`Lock::break_holder`](crate::Lock::break_holder), at this time.
    #[error("the lock was broken by {}", Doer(.0))]
    Broken(Arc<Holder>),
}

impl Loss {
    /// The loss that a mark of a broken lock describes: broken by `by`, or by somebody unknown if the mark can't be
    /// read.
    pub fn broken_by(who: Option<Holder>) -> Self {
        match who {
            Some(who) => Self::Broken(who.into()),
            None => Self::Removed("somebody broke it".into()),
        }
    }
}

/// The keeper's side: it says until when ownership is certain, or that it has ended.
///
/// Cheap to clone: all clones are the same lease. Dropping a lease does not end it, but its deadline still passes.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::{clock::Instant, Lease, Loss};
///
/// let lease = Lease::until(Instant::now() + Duration::from_secs(10));
/// let signal = lease.signal();
/// assert!(!signal.is_lost());
/// lease.end(Loss::SessionEnded("connection closed".into()));
/// assert!(signal.is_lost());
/// ```
#[derive(Debug, Clone)]
pub struct Lease(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Listeners,
}

#[derive(Debug, Default)]
struct State {
    deadline: Option<Instant>,
    loss: Option<Loss>,
    /// Released: the signal can no longer fire.
    settled: bool,
}

impl Lease {
    /// A lease without a deadline, which lasts until [`end`](Self::end).
    pub fn unbounded() -> Self {
        Self::from_state(State::default())
    }

    /// A lease until `deadline`. Count the deadline from the moment when the request was *sent*.
    pub fn until(deadline: Instant) -> Self {
        Self::from_state(State {
            deadline: Some(deadline),
            ..State::default()
        })
    }

    fn from_state(state: State) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Listeners::default(),
        }))
    }

    /// Moves the deadline to `deadline`, counted from the moment when the confirmed renewal was *sent*. A deadline
    /// before the current one has no effect.
    ///
    /// Returns false if the lease had already ended or its deadline had passed. Such a lease can't be renewed, because
    /// another owner may already hold the lock.
    pub fn extend(&self, deadline: Instant) -> bool {
        let mut state = self.0.lock();
        if state.observe().is_some() {
            drop(state);
            self.tell();
            return false;
        }
        if state.deadline.is_none_or(|present| present < deadline) {
            state.deadline = Some(deadline);
            drop(state);
            self.tell();
        }
        true
    }

    /// Ends the lease: every signal fires with `loss`. Later calls have no effect, and the first reason stays.
    pub fn end(&self, loss: Loss) {
        if self.record(loss) {
            self.tell();
        }
    }

    /// As [`end`](Self::end), but wakes nobody until [`tell`](Self::tell) is called. False if it had ended already.
    pub(crate) fn record(&self, loss: Loss) -> bool {
        let mut state = self.0.lock();
        let ends = !state.settled && state.observe().is_none();
        if ends {
            state.loss = Some(loss);
        }
        ends
    }

    /// Wakes everybody who waits for the end.
    pub(crate) fn tell(&self) {
        self.0.changed.wake_all();
    }

    /// Until when ownership is certain; `None` if there is no deadline.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.lock().deadline
    }

    /// Why the lease has ended, if it has. It also compares the deadline with the clock.
    pub fn loss(&self) -> Option<Loss> {
        self.0.lock().observe()
    }

    /// A signal that fires when this lease ends.
    pub fn signal(&self) -> LostSignal {
        LostSignal {
            sources: Sources::One(self.0.clone()),
            tenure: None,
        }
    }

    /// Records that the lock was released: signals that have not fired will never fire.
    pub(crate) fn settle(&self) {
        self.0.lock().settled = true;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, and each update is one assignment, so a poisoned state is still
        // consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ended(&self) -> Loss {
        loop {
            // From now on it hears of each change, although it is polled later.
            let listener = self.changed.add();
            let changed = pin!(listener.notified());
            let deadline = {
                let mut state = self.lock();
                if let Some(loss) = state.observe() {
                    return loss;
                }
                if state.settled { None } else { state.deadline }
            };
            match deadline {
                Some(deadline) => {
                    select(changed, timer::at(deadline)).await;
                }
                None => changed.await,
            }
        }
    }
}

impl State {
    fn observe(&mut self) -> Option<Loss> {
        if self.loss.is_none()
            && !self.settled
            && self
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline)
        {
            self.loss = Some(Loss::Expired);
        }
        self.loss.clone()
    }
}

/// The holder's side: fires once, when the lock is lost, and can be read at any time after that.
///
/// Cheap to clone. If the lock is released first, the signal never fires.
#[derive(Clone)]
pub struct LostSignal {
    sources: Sources,
    /// The guard's own record: released, or the loss that was already seen.
    tenure: Option<Arc<Shared>>,
}

#[derive(Clone)]
enum Sources {
    Never,
    One(Arc<Shared>),
    Any(Arc<[LostSignal]>),
}

impl LostSignal {
    /// A signal that never fires, for a lock that can't be lost.
    pub const fn never() -> Self {
        Self {
            sources: Sources::Never,
            tenure: None,
        }
    }

    /// A signal that fires when the first of `signals` fires.
    pub fn any(signals: impl IntoIterator<Item = LostSignal>) -> Self {
        let mut all: Vec<_> = signals
            .into_iter()
            .filter(|signal| !matches!(signal.sources, Sources::Never))
            .collect();
        match all.len() {
            0 => Self::never(),
            1 => all.remove(0),
            _ => Self {
                sources: Sources::Any(all.into()),
                tenure: None,
            },
        }
    }

    /// The same signal, which can no longer fire when `tenure` is settled.
    pub(crate) fn during(&self, tenure: &Lease) -> Self {
        Self {
            sources: self.sources.clone(),
            tenure: Some(tenure.0.clone()),
        }
    }

    /// Whether the signal has fired. It also compares the deadline with the clock, so the answer is right even if no
    /// task has run since the deadline.
    pub fn is_lost(&self) -> bool {
        self.loss().is_some()
    }

    /// Why the signal fired, if it has.
    pub fn loss(&self) -> Option<Loss> {
        let Some(tenure) = &self.tenure else {
            return self.sources.loss();
        };
        let mut tenure = tenure.lock();
        if tenure.loss.is_none() && !tenure.settled {
            tenure.loss = self.sources.loss();
        }
        tenure.loss.clone()
    }

    /// As [`loss`](Self::loss), for the guard of `owner`. None in a forked child if a thread of its parent was here during the fork:
    /// it never leaves.
    pub(crate) fn loss_of(&self, owner: OwnerId) -> Option<Loss> {
        if !self.is_free() && owner.is_inherited() {
            return None;
        }
        self.loss()
    }

    /// Whether no thread is here at the moment.
    fn is_free(&self) -> bool {
        let is_free = |shared: &Arc<Shared>| !matches!(shared.state.try_lock(), Err(WouldBlock));
        let are_free = match &self.sources {
            Sources::Never => true,
            Sources::One(one) => is_free(one),
            Sources::Any(some) => some.iter().all(Self::is_free),
        };
        are_free && self.tenure.as_ref().is_none_or(is_free)
    }

    /// Until when ownership is certain without a further renewal; `None` if no deadline is set.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.sources {
            Sources::Never => None,
            Sources::One(one) => one.lock().deadline,
            Sources::Any(some) => some.iter().filter_map(Self::deadline).min(),
        }
    }

    /// Waits until the signal fires, and returns the reason. Returns at once if it has already fired; never returns if
    /// the lock is released first.
    ///
    /// It works on any executor. Outside tokio, and in a tokio runtime without timers, a thread of the library does the
    /// timing; a runtime without timers logs the panic of its failed timer.
    ///
    /// # Cancel safety
    ///
    /// Safe: the signal can be awaited again, by any number of tasks.
    pub async fn lost(&self) -> Loss {
        match &self.sources {
            Sources::Never => std::future::pending().await,
            Sources::One(source) => drop(source.ended().await),
            Sources::Any(signals) => {
                select_all(signals.iter().map(|signal| Box::pin(signal.lost()))).await;
            }
        }
        match self.loss() {
            Some(loss) => loss,
            // Released before the source ended.
            None => std::future::pending().await,
        }
    }
}

impl Sources {
    fn loss(&self) -> Option<Loss> {
        match self {
            Self::Never => None,
            Self::One(one) => one.lock().observe(),
            Self::Any(some) => some.iter().find_map(LostSignal::loss),
        }
    }
}

impl Default for LostSignal {
    fn default() -> Self {
        Self::never()
    }
}

impl fmt::Debug for LostSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LostSignal")
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
