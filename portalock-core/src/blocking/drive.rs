//! Drives a future from synchronous code.

use std::{future::Future, io, sync::mpsc};

use crate::{
    BackendError, BackendErrorKind, LockError, LockName,
    background::{CALLS, SESSIONS},
    engine::driver,
};

/// Runs `future` on the background runtime and waits for it: for opening a backend that keeps a session, such as
/// `wait(RedisBackend::connect(url))`.
///
/// # Errors
///
/// The system's error if it gives no thread, or [`io::ErrorKind::Other`] if `future` panicked.
///
/// [`io::ErrorKind::Deadlock`] if the caller itself runs on a thread of the library: inside a future that `wait` drives, in a
/// backend that the background clean-up calls, or on the session thread. The call would wait for itself. Await the future there
/// instead.
///
/// ```
/// let answer = portalock_core::blocking::wait(async { 6 * 7 })?;
/// assert_eq!(answer, 42);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn wait<F>(future: F) -> io::Result<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    ensure_may_wait()?;
    let (sender, receiver) = mpsc::sync_channel(1);
    CALLS.handle()?.spawn(async move {
        // If the caller's thread was unwound, nobody receives the output.
        let _ = sender.send(future.await);
    });
    receiver
        .recv()
        .map_err(|_| io::Error::other("the future panicked"))
}

/// Waits for one of the engine's calls.
pub(super) fn call<T: Send + 'static>(
    name: &LockName,
    needs_runtime: bool,
    future: impl Future<Output = Result<T, LockError>> + Send + 'static,
) -> Result<T, LockError> {
    drive(needs_runtime, future).unwrap_or_else(|error| {
        let kind = match error.kind() {
            io::ErrorKind::Deadlock => BackendErrorKind::Unsupported,
            // It panicked.
            io::ErrorKind::Other => BackendErrorKind::Other,
            _ => BackendErrorKind::Exhausted,
        };
        let source = BackendError::new(kind, "a blocking call could not be run").with_source(error);
        Err(LockError::Backend {
            name: name.clone(),
            source,
        })
    })
}

/// Waits for a call on several names; an error shows the first of them. A set without names does no I/O.
pub(super) fn drive_set<T: Send + 'static>(
    first: Option<&LockName>,
    needs_runtime: bool,
    future: impl Future<Output = Result<T, LockError>> + Send + 'static,
) -> Result<T, LockError> {
    match first {
        Some(name) => call(name, needs_runtime, future),
        None => {
            futures_util::FutureExt::now_or_never(future).unwrap_or(Err(LockError::Unsupported {
                what: "names to wait for",
                instead: "give the set at least one",
            }))
        }
    }
}

fn drive<F>(needs_runtime: bool, future: F) -> io::Result<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    if needs_runtime {
        return wait(future);
    }
    driver::drive(future, ensure_may_wait)
}

/// Fails on the library's own threads: a wait would keep everything else there waiting too.
fn ensure_may_wait() -> io::Result<()> {
    if CALLS.is_current() || SESSIONS.is_current() {
        let told = "a blocking call on one of portalock's own threads would wait for itself: await it instead";
        return Err(io::Error::new(io::ErrorKind::Deadlock, told));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryBackend, Policy, blocking::Lock};
    use std::{thread, time::Duration};

    #[test]
    fn a_thread_waits_without_a_runtime_until_the_lock_is_free() {
        let backend = MemoryBackend::new();
        let lock = Lock::new(backend.clone(), "b")
            .unwrap()
            .with_policy(Policy::forever());
        let held = lock.acquire().unwrap();
        let waiter = thread::spawn({
            let lock = lock.clone();
            move || lock.acquire().unwrap().release()
        });
        while futures_util::FutureExt::now_or_never(crate::LockBackend::inspect(
            &backend,
            lock.name(),
        ))
        .is_some_and(|inspection| inspection.unwrap().waiters.is_empty())
        {
            thread::yield_now();
        }
        drop(held);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_blocking_wait_times_out() {
        let lock = Lock::new(MemoryBackend::new(), "b").unwrap();
        let _held = lock.acquire().unwrap();
        let soon = Policy::new().with_timeout(Duration::from_millis(20));
        assert!(lock.acquire_with(&soon).unwrap_err().is_contention());
    }

    #[tokio::test]
    async fn a_blocking_wait_works_on_a_thread_for_blocking_work() {
        let lock = Lock::new(MemoryBackend::new(), "b").unwrap();
        let held = lock.acquire().unwrap();
        let waiter = tokio::task::spawn_blocking({
            let lock = lock.clone();
            move || lock.acquire().map(drop)
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        held.release().unwrap();
        waiter.await.unwrap().unwrap();
    }

    #[test]
    fn waiting_within_a_wait_is_an_error() {
        let inner = wait(async { wait(async { 1 }) }).unwrap();
        assert_eq!(inner.unwrap_err().kind(), io::ErrorKind::Deadlock);
    }

    #[test]
    fn waiting_on_the_session_thread_is_an_error() {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let there = crate::session::run(async {
                let lock = Lock::new(MemoryBackend::new(), "b").unwrap();
                let _held = lock.acquire().unwrap();
                let contended = lock.acquire().unwrap_err();
                (wait(crate::session::run(async { 1 })), contended)
            });
            let _ = sender.send(wait(there));
        });
        let told = receiver.recv_timeout(Duration::from_secs(60));
        let (waited, contended) = told.expect("it waits for itself").unwrap().unwrap();
        assert_eq!(waited.unwrap_err().kind(), io::ErrorKind::Deadlock);
        assert!(!contended.is_contention(), "{contended}");
    }

    #[test]
    fn a_blocking_call_within_a_wait_works_or_says_why_not() {
        let lock = Lock::new(MemoryBackend::new(), "b").unwrap();
        let held = wait({
            let lock = lock.clone();
            async move { lock.acquire() }
        });
        let held = held.unwrap().unwrap();
        let contended = wait(async move { lock.acquire() }).unwrap();
        let error = contended.unwrap_err();
        assert!(
            !error.is_contention() && !error.is_retryable(),
            "it can't wait there: {error}"
        );
        drop(held);
    }

    #[test]
    fn a_panic_on_the_background_runtime_is_an_error_here() {
        let told_to = true;
        let panics = move || async move { assert!(!told_to, "told to panic") };
        assert!(wait(panics()).is_err());
        let name = LockName::new("b").unwrap();
        let called = call(&name, true, async move {
            panics().await;
            Ok(())
        });
        let error = called.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
    }
}
