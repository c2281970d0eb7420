//! One start for many callers.

use std::{
    future::Future,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::runtime::Handle;

use super::task::session_runtime;
use crate::{BackendError, BackendErrorKind, wakeups::Listeners};

/// Runs one start at a time, for example of a session. Callers that come meanwhile wait for it, and share its success or failure.
///
/// The start is a task of its own, so a dropped caller doesn't stop it.
#[derive(Debug)]
pub struct SingleFlight<T>(Mutex<Option<Arc<Start<T>>>>);

#[derive(Debug)]
struct Start<T> {
    outcome: OnceLock<Result<T, BackendError>>,
    ended: Listeners,
}

/// Ends a start when its task ends, whatever the reason.
struct Running<T>(Arc<Start<T>>);

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    /// No start yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Returns the value that `ready` has, or the outcome of the present start. If none is under way, `make` makes one, which runs
    /// on the session thread. It has to keep the value where `ready` finds it before it ends.
    ///
    /// # Errors
    ///
    /// The failure of the start that this call waited for; [`Exhausted`](BackendErrorKind::Exhausted) if the system gives no
    /// thread, [`Unavailable`](BackendErrorKind::Unavailable) if the start panicked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call doesn't stop the start: the next caller gets its value.
    pub async fn run<R>(
        &self,
        ready: impl FnOnce() -> Option<T>,
        make: impl FnOnce() -> R,
    ) -> Result<T, BackendError>
    where
        R: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        self.get(&session_runtime()?, ready, make).await
    }

    /// As [`run`](Self::run), but on `runtime`.
    pub(super) async fn get<R>(
        &self,
        runtime: &Handle,
        ready: impl FnOnce() -> Option<T>,
        make: impl FnOnce() -> R,
    ) -> Result<T, BackendError>
    where
        R: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        let start = {
            // Declared first, so that it is dropped after the lock: a value's own destructor may call this type again.
            let _former;
            let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // This is checked under the lock, because a start that has just ended has kept its value.
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(start) = present.as_ref().filter(|start| start.is_under_way()) {
                start.clone()
            } else {
                let start = Arc::new(Start {
                    outcome: OnceLock::new(),
                    ended: Listeners::default(),
                });
                let (running, making) = (Running(start.clone()), make());
                runtime.spawn(async move {
                    let outcome = making.await;
                    let _ = running.0.outcome.set(outcome);
                });
                _former = present.replace(start.clone());
                start
            }
        };
        loop {
            let listener = start.ended.add();
            if let Some(outcome) = start.outcome.get() {
                return outcome.clone();
            }
            listener.notified().await;
        }
    }

    /// Drops the outcome of a start that has ended, which would keep its value alive.
    pub(super) fn forget(&self) {
        let _ended;
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !present.as_ref().is_some_and(|start| start.is_under_way()) {
            _ended = present.take();
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Default for SingleFlight<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Start<T> {
    fn is_under_way(&self) -> bool {
        self.outcome.get().is_none()
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        // The task was dropped, because it panicked or its runtime has ended.
        self.0.outcome.get_or_init(|| Err(aborted()));
        self.0.ended.wake_all();
    }
}

pub(super) fn aborted() -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        "the start of a connection or session was aborted",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wakeups::tests::Panics;
    use std::{
        sync::{
            Arc, Weak,
            atomic::{AtomicU32, Ordering},
            mpsc,
        },
        task::{Context, Wake},
        time::Duration,
    };
    use tokio::sync::Notify;

    #[tokio::test]
    async fn many_callers_share_one_start_and_its_failure() {
        let flight = Arc::new(SingleFlight::<u32>::new());
        let (starts, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let mut callers = Vec::new();
        for _ in 0..10 {
            let (flight, starts, go) = (flight.clone(), starts.clone(), go.clone());
            callers.push(tokio::spawn(async move {
                let make = || async move {
                    starts.fetch_add(1, Ordering::Relaxed);
                    go.notified().await;
                    Err(BackendError::new(BackendErrorKind::Unavailable, "down"))
                };
                flight.get(&Handle::current(), || None, make).await
            }));
        }
        tokio::task::yield_now().await;
        go.notify_one();
        for caller in callers {
            assert!(caller.await.unwrap().is_err());
        }
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        let next = flight
            .get(&Handle::current(), || None, || async { Ok(7) })
            .await;
        assert_eq!(next.unwrap(), 7, "a failure isn't kept");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_does_not_stop_the_start() {
        let flight = Arc::new(SingleFlight::<u32>::new());
        let (go, kept) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
        let start = {
            let (go, kept) = (go.clone(), kept.clone());
            || async move {
                go.notified().await;
                kept.store(7, Ordering::Release);
                Ok(7)
            }
        };
        let first = {
            let flight = flight.clone();
            tokio::spawn(async move { flight.get(&Handle::current(), || None, start).await })
        };
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        go.notify_one();
        let unused = || async { Err(BackendError::new(BackendErrorKind::Other, "a second start")) };
        let ready = || Some(kept.load(Ordering::Acquire)).filter(|kept| *kept > 0);
        let second = flight.get(&Handle::current(), ready, unused).await;
        assert_eq!(second.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_start_that_panics_fails_its_callers_and_not_the_next() {
        let flight = SingleFlight::<u32>::new();
        let told_to = true;
        let panics = || async move {
            assert!(!told_to, "told to panic");
            Ok(1)
        };
        let error = flight.get(&Handle::current(), || None, panics).await;
        assert_eq!(error.unwrap_err().kind(), BackendErrorKind::Unavailable);
        let next = flight
            .get(&Handle::current(), || None, || async { Ok(2) })
            .await;
        assert_eq!(next.unwrap(), 2);
    }

    /// As a connection that tells its backend of its end.
    struct Calls(Weak<SingleFlight<Arc<Calls>>>);

    impl Drop for Calls {
        fn drop(&mut self) {
            if let Some(flight) = self.0.upgrade() {
                flight.forget();
            }
        }
    }

    #[test]
    fn a_value_that_calls_it_when_it_is_dropped_does_not_wait_for_itself() {
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async {
                let flight = Arc::new(SingleFlight::new());
                for _ in 0..2 {
                    let value = Arc::new(Calls(Arc::downgrade(&flight)));
                    let make = || async { Ok(value) };
                    flight.get(&Handle::current(), || None, make).await.unwrap();
                }
                done.send("replaced").unwrap();
                flight.forget();
                done.send("forgotten").unwrap();
            });
        });
        for end in ["replaced", "forgotten"] {
            let told = is_done.recv_timeout(Duration::from_secs(60));
            assert_eq!(told, Ok(end), "it waits for itself");
        }
    }

    #[tokio::test]
    async fn a_callers_waker_that_panics_costs_no_other_the_outcome() {
        struct Counts(AtomicU32);
        impl Wake for Counts {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (flight, go) = (SingleFlight::<u32>::new(), Arc::new(Notify::new()));
        let (panics, counts) = (Arc::new(Panics), Arc::new(Counts(AtomicU32::new(0))));
        let runtime = Handle::current();
        let mut callers = Vec::new();
        for at in 0..100 {
            let go = go.clone();
            let make = || async move {
                go.notified().await;
                Ok(7)
            };
            let mut caller = Box::pin(flight.get(&runtime, || None, make));
            let waker = if at % 2 == 0 {
                panics.clone().into()
            } else {
                counts.clone().into()
            };
            let polled = caller.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            callers.push(caller);
        }
        go.notify_one();
        while flight
            .0
            .lock()
            .unwrap()
            .as_ref()
            .is_some_and(|start| start.is_under_way())
        {
            tokio::task::yield_now().await;
        }
        assert_eq!(counts.0.load(Ordering::Relaxed), 50);
        for caller in callers {
            assert_eq!(caller.await.unwrap(), 7);
        }
    }
}
