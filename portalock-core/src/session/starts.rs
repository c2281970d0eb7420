//! The current session of a backend, and the start of the next one.

use std::{
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;

use super::single_flight::{SingleFlight, aborted};
use crate::{BackendError, Lease, Loss, clock::Instant, own::OwnArc};

/// The pause before the next start after a failed one. It doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A client's liveness at a service. When it ends, everything that the client holds there ends.
pub trait Session: fmt::Debug + Send + Sync + 'static {
    /// Until when the session is certain.
    fn lease(&self) -> &Lease;
}

/// The sessions of one backend object. At most one is alive.
///
/// A session is started when it is first needed, on the session thread, once for all waiting callers. When it has
/// ended, the next caller starts another. After a failure the start waits for a pause, which grows from 50 ms to 2 s.
///
/// Dropping this ends the latest session's lease, even if that session is still being started.
///
/// A forked child has a copy without a session, and can't start one: the session belongs to its parent.
#[derive(Debug)]
pub(super) struct Sessions<S: Session> {
    /// It keeps the last session too.
    starts: OwnArc<SingleFlight<Arc<S>>>,
    state: OwnArc<Mutex<State<S>>>,
}

#[derive(Debug)]
struct State<S: Session> {
    /// The latest session, which may have ended.
    latest: Option<Arc<S>>,
    failures_in_a_row: u32,
    not_before: Option<Instant>,
}

impl<S: Session> Sessions<S> {
    /// No session yet.
    pub(super) fn new() -> Self {
        Self {
            starts: OwnArc::new(SingleFlight::new()),
            state: OwnArc::new(Mutex::new(State {
                latest: None,
                failures_in_a_row: 0,
                not_before: None,
            })),
        }
    }

    /// The live session, if there is one.
    pub(super) fn live(&self) -> Option<Arc<S>> {
        self.own()?.live()
    }

    /// The latest session, alive or not.
    pub(super) fn latest(&self) -> Option<Arc<S>> {
        self.own()?.latest.clone()
    }

    /// Removes the latest session and returns it, so that the caller can end it. The next call of [`get`](Self::get)
    /// starts another.
    pub(super) fn take(&self) -> Option<Arc<S>> {
        self.own()?.latest.take()
    }

    /// The state, except in a forked child: a thread of the parent may have held the lock during the fork.
    fn own(&self) -> Option<MutexGuard<'_, State<S>>> {
        (!self.is_inherited()).then(|| lock(&self.state))
    }

    /// As in a child that was forked since.
    #[cfg(test)]
    pub(super) fn inherit(&mut self) {
        self.starts.inherit();
        self.state.inherit();
    }

    pub(super) fn is_inherited(&self) -> bool {
        self.state.is_inherited()
    }

    /// Returns the live session. If there is none, `start` starts one. It gets the former session, which may still be
    /// alive at the service.
    ///
    /// # Errors
    ///
    /// The failure of the start that this call waited for, which an earlier caller may have begun;
    /// [`Exhausted`](crate::BackendErrorKind::Exhausted) if the system gives no thread;
    /// [`Misconfigured`](crate::BackendErrorKind::Misconfigured) in a forked child.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call doesn't stop a start: the next caller gets the session. If the backend was dropped meanwhile,
    /// the session's lease is ended.
    pub(super) async fn get<R>(
        &self,
        start: impl FnOnce(Option<Arc<S>>) -> R + Send + 'static,
    ) -> Result<Arc<S>, BackendError>
    where
        R: Future<Output = Result<Arc<S>, BackendError>> + Send,
    {
        if self.is_inherited() {
            return Err(BackendError::forked());
        }
        if let Some(session) = self.live() {
            return Ok(session);
        }
        // Weak, so that a start does not keep a dropped backend alive.
        let state = Arc::downgrade(&self.state);
        let make = || async move {
            let Some((former, not_before)) = state.upgrade().map(|state| {
                let state = lock(&state);
                (state.latest.clone(), state.not_before)
            }) else {
                return Err(gone());
            };
            if let Some(not_before) = not_before {
                tokio::time::sleep_until(not_before).await;
            }
            // A start that panics is followed by a pause too.
            let outcome = AssertUnwindSafe(start(former)).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Err(aborted()));
            let Some(state) = state.upgrade() else {
                // Its tasks keep it alive until its lease ends.
                outcome.inspect(end)?;
                return Err(gone());
            };
            lock(&state).started(&outcome);
            outcome
        };
        self.starts.run(|| self.live(), make).await
    }
}

impl<S: Session> State<S> {
    fn live(&self) -> Option<Arc<S>> {
        self.latest
            .as_ref()
            .filter(|session| session.lease().loss().is_none())
            .cloned()
    }

    fn started(&mut self, outcome: &Result<Arc<S>, BackendError>) {
        if let Ok(session) = outcome {
            self.latest = Some(session.clone());
            self.failures_in_a_row = 0;
            self.not_before = None;
            return;
        }
        let pause = FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(self.failures_in_a_row))
            .min(LONGEST_PAUSE);
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        // Random, so that not all clients start at once when a service comes back.
        self.not_before = Instant::now().checked_add(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
    }
}

impl<S: Session> Drop for State<S> {
    fn drop(&mut self) {
        self.latest.iter().for_each(end);
    }
}

fn end<S: Session>(session: &Arc<S>) {
    session
        .lease()
        .end(Loss::SessionEnded("the backend was dropped".into()));
}

fn lock<S: Session>(state: &Mutex<State<S>>) -> MutexGuard<'_, State<S>> {
    // No code panics while it holds the lock.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gone() -> BackendError {
    BackendError::new(
        crate::BackendErrorKind::SessionEnded,
        "the backend was dropped while its session started",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BackendErrorKind;
    use std::future::{Ready, ready};

    #[derive(Debug)]
    struct Plain(u32, Lease);

    impl Session for Plain {
        fn lease(&self) -> &Lease {
            &self.1
        }
    }

    fn start(number: u32) -> Ready<Result<Arc<Plain>, BackendError>> {
        ready(Ok(Arc::new(Plain(number, Lease::unbounded()))))
    }

    #[tokio::test]
    async fn a_session_serves_until_it_ends_and_the_next_start_is_told_of_it() {
        let sessions = Sessions::<Plain>::new();
        let first = sessions.get(|_| start(1)).await.unwrap();
        assert_eq!(sessions.get(|_| start(2)).await.unwrap().0, 1);
        first.lease().end(Loss::Expired);
        assert!(sessions.live().is_none());
        assert_eq!(sessions.latest().unwrap().0, 1);
        let third = sessions.get(|former| start(former.map_or(0, |former| former.0) + 2));
        assert_eq!(third.await.unwrap().0, 3);
        assert_eq!(sessions.take().unwrap().0, 3);
        assert!(sessions.latest().is_none());
    }

    #[tokio::test]
    async fn a_failed_start_keeps_the_former_session_and_delays_the_next() {
        for panics in [false, true] {
            let sessions = Sessions::<Plain>::new();
            let first = sessions.get(|_| start(1)).await.unwrap();
            first.lease().end(Loss::Expired);
            let fails = move |_| async move {
                assert!(!panics, "the test's own panic");
                Err(BackendError::new(BackendErrorKind::Unavailable, "down"))
            };
            let error = sessions.get(fails).await.unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Unavailable);
            let not_before = lock(&sessions.state).not_before.unwrap();
            let next = sessions.get(move |former| {
                assert!(Instant::now() >= not_before);
                start(former.map_or(0, |former| former.0) + 1)
            });
            assert_eq!(next.await.unwrap().0, 2);
            let state = lock(&sessions.state);
            assert!(state.not_before.is_none());
            assert_eq!(state.failures_in_a_row, 0);
        }
    }

    #[test]
    fn a_session_outlives_the_runtime_that_asked_for_it() {
        let sessions = Sessions::<Plain>::new();
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let session = runtime.block_on(sessions.get(|former| {
                assert!(former.is_none());
                start(1)
            }));
            assert_eq!(session.unwrap().0, 1);
        }
    }

    #[tokio::test]
    async fn the_session_of_a_backend_that_is_dropped_ends_also_if_it_was_still_starting() {
        let sessions = Sessions::<Plain>::new();
        let session = sessions.get(|_| start(1)).await.unwrap();
        drop(sessions);
        assert!(session.lease().loss().is_some());

        let sessions = Sessions::<Plain>::new();
        let lease = Lease::unbounded();
        let (begins, begun) = tokio::sync::oneshot::channel();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let signal = lease.signal();
        let starting = sessions.get(move |_| async move {
            let _ = begins.send(());
            let _ = gone.await;
            Ok(Arc::new(Plain(2, lease)))
        });
        tokio::select! {
            _ = starting => panic!("it can't have started"),
            begun = begun => begun.unwrap(),
        }
        drop(sessions);
        go.send(()).unwrap();
        assert!(matches!(signal.lost().await, Loss::SessionEnded(_)));
    }

    #[tokio::test]
    async fn a_forked_childs_copy_neither_uses_nor_replaces_its_parents_session() {
        let mut sessions = Sessions::<Plain>::new();
        let parents = sessions.get(|_| start(1)).await.unwrap();
        sessions.inherit();
        assert!(sessions.live().is_none() && sessions.latest().is_none());
        assert!(sessions.take().is_none());
        let error = sessions.get(|_| start(2)).await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
        drop(sessions);
        assert!(parents.lease().loss().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_their_longest() {
        let mut state = State::<Plain> {
            latest: None,
            failures_in_a_row: 0,
            not_before: None,
        };
        let mut longest = Duration::ZERO;
        for _ in 0..100 {
            let now = Instant::now();
            state.started(&Err(gone()));
            longest = longest.max(state.not_before.unwrap() - now);
        }
        assert!(longest > LONGEST_PAUSE / 2 && longest <= LONGEST_PAUSE);
    }
}
