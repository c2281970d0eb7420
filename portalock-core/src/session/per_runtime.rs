//! One connection for each runtime that uses a backend.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use foldhash::fast::RandomState;
use tokio::{
    runtime::{Handle, Id},
    sync::oneshot,
};

use super::single_flight::SingleFlight;
use crate::{BackendError, BackendErrorKind, own::OwnArc};

/// The connections of one backend object: one for each runtime that uses it.
///
/// A task on the runtime that opened a connection drives it, so the connection stops when that runtime blocks or ends.
/// A backend that several runtimes and the session thread share needs a connection for each. A connection is opened
/// when a runtime first needs it, and dropped when that runtime ends.
///
/// A forked child drops none of its parent's connections: to drop one wakes its task, which may wait for a lock that a thread of the
/// parent held during the fork.
pub struct PerRuntime<C>(OwnArc<Mutex<Entries<C>>>);

type Entries<C> = HashMap<Id, Arc<Entry<C>>, RandomState>;

struct Entry<C> {
    opening: SingleFlight<C>,
    connection: Mutex<Option<C>>,
    /// Dropped with the entry, which ends the task that waits for the runtime's end.
    _watched: oneshot::Sender<()>,
}

impl<C: Clone + Send + Sync + 'static> PerRuntime<C> {
    /// No connection yet.
    pub fn new() -> Self {
        Self(OwnArc::new(Mutex::default()))
    }

    /// Returns the current runtime's connection. If there is none, `open` opens one, once for all waiting callers,
    /// which also share a failure.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](BackendErrorKind::Misconfigured) outside a tokio runtime, or what `open` failed with.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call doesn't stop the opening; the next caller gets the connection.
    pub async fn get<R>(&self, open: impl FnOnce() -> R) -> Result<C, BackendError>
    where
        R: Future<Output = Result<C, BackendError>> + Send + 'static,
    {
        let runtime = Handle::try_current().map_err(|_| no_runtime())?;
        if let Some(connection) = self.present() {
            return Ok(connection);
        }
        let entry = self.entry(&runtime);
        let opened = Arc::downgrade(&entry);
        let open = || {
            let opening = open();
            async move {
                let connection = opening.await?;
                if let Some(entry) = opened.upgrade() {
                    *entry.connection() = Some(connection.clone());
                }
                Ok(connection)
            }
        };
        entry
            .opening
            .get(&runtime, || entry.connection().clone(), open)
            .await
    }

    /// The current runtime's connection, if it has one.
    pub fn present(&self) -> Option<C> {
        let runtime = Handle::try_current().ok()?;
        let entries = self.lock();
        let entry = entries.get(&runtime.id())?;
        entry.connection().clone()
    }

    /// Drops the current runtime's connection if `which` accepts it. The next call opens another.
    pub fn forget(&self, which: impl FnOnce(&C) -> bool) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let entry = self.lock().get(&runtime.id()).cloned();
        if let Some(entry) = entry {
            // Only until here under the connection's lock: `get` has the lock of `opening` when it takes that one.
            let forgotten = entry.connection().take_if(|connection| which(connection));
            if forgotten.is_some() {
                entry.opening.forget();
            }
            // A connection's own destructor may call this type again.
            drop(forgotten);
        }
    }

    /// Drops all connections.
    pub fn clear(&self) {
        // Dropped after the lock: a connection's own destructor may call this type again.
        let _all = std::mem::take(&mut *self.lock());
    }

    fn entry(&self, runtime: &Handle) -> Arc<Entry<C>> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&runtime.id()) {
            return entry.clone();
        }
        let (watched, unneeded) = oneshot::channel();
        let entry = Arc::new(Entry {
            opening: SingleFlight::new(),
            connection: Mutex::new(None),
            _watched: watched,
        });
        entries.insert(runtime.id(), entry.clone());
        let end = RuntimeEnd {
            entries: Arc::downgrade(&self.0),
            runtime: runtime.id(),
            entry: Arc::downgrade(&entry),
        };
        // A runtime that is shutting down drops the task at once, and `end` takes the lock.
        drop(entries);
        runtime.spawn(async move {
            let _end = end;
            let _ = unneeded.await;
        });
        entry
    }

    fn lock(&self) -> MutexGuard<'_, Entries<C>> {
        lock(&self.0)
    }
}

impl<C: Clone + Send + Sync + 'static> Default for PerRuntime<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Entry<C> {
    fn connection(&self) -> MutexGuard<'_, Option<C>> {
        lock(&self.connection)
    }
}

/// Removes a runtime's entry when the runtime drops its tasks. Another runtime may have the same id by then.
struct RuntimeEnd<C> {
    entries: Weak<Mutex<Entries<C>>>,
    runtime: Id,
    entry: Weak<Entry<C>>,
}

impl<C> Drop for RuntimeEnd<C> {
    fn drop(&mut self) {
        let Some(entries) = self.entries.upgrade() else {
            return;
        };
        let mut entries = lock(&entries);
        let is_mine = |entry: &Arc<Entry<C>>| Weak::ptr_eq(&Arc::downgrade(entry), &self.entry);
        if entries.get(&self.runtime).is_some_and(is_mine) {
            let entry = entries.remove(&self.runtime);
            // A connection's own destructor may call this type again.
            drop(entries);
            drop(entry);
        }
    }
}

impl<C> fmt::Debug for PerRuntime<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerRuntime")
            .field("runtimes", &lock(&self.0).len())
            .finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn no_runtime() -> BackendError {
    BackendError::new(
        BackendErrorKind::Misconfigured,
        "a network backend needs a tokio runtime: call from within one, or use the `blocking` module",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
    }

    #[test]
    fn each_runtime_has_its_own_until_it_ends() {
        let (connections, opened) = (PerRuntime::<u32>::new(), Arc::new(AtomicU32::new(0)));
        let get = || {
            let opened = opened.clone();
            connections.get(move || async move { Ok(opened.fetch_add(1, Ordering::Relaxed)) })
        };
        let (one, two) = (runtime(), runtime());
        assert_eq!(one.block_on(get()).unwrap(), 0);
        assert_eq!(two.block_on(get()).unwrap(), 1);
        assert_eq!(one.block_on(get()).unwrap(), 0);
        drop(one);
        assert_eq!(connections.lock().len(), 1);
        assert_eq!(two.block_on(get()).unwrap(), 1);
        assert_eq!(runtime().block_on(get()).unwrap(), 2);
        assert_eq!(connections.lock().len(), 1);
    }

    /// Runs `work` on a thread, which stays if `work` waits for itself.
    fn ends(work: impl FnOnce() + Send + 'static) {
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            work();
            let _ = done.send(());
        });
        let ended = is_done.recv_timeout(std::time::Duration::from_secs(60));
        ended.expect("it waits for itself, or it panicked");
    }

    #[test]
    fn a_runtime_that_has_ended_has_none() {
        ends(|| {
            let connections = PerRuntime::<u32>::new();
            let ended = runtime();
            let handle = ended.handle().clone();
            drop(ended);
            let error = handle.block_on(connections.get(|| async { Ok(1) }));
            assert_eq!(error.unwrap_err().kind(), BackendErrorKind::Unavailable);
            assert_eq!(connections.lock().len(), 0);
            let other = runtime().block_on(connections.get(|| async { Ok(2) }));
            assert_eq!(other.unwrap(), 2);
        });
    }

    #[test]
    fn a_connection_may_call_it_when_it_is_dropped() {
        struct Calls(Arc<PerRuntime<Arc<Self>>>);

        impl Drop for Calls {
            fn drop(&mut self) {
                assert!(self.0.present().is_none());
                self.0.forget(|_| true);
            }
        }

        ends(|| {
            let connections = Arc::new(PerRuntime::new());
            let connect = || {
                let opened = Arc::new(Calls(connections.clone()));
                connections.get(|| async { Ok(opened) })
            };
            let runtime = runtime();
            let _inside = runtime.enter();
            drop(runtime.block_on(connect()).unwrap());
            connections.forget(|_| true);
            drop(runtime.block_on(connect()).unwrap());
            connections.clear();
        });
    }

    /// As after a reset: some calls give up a connection while others open the next one.
    #[test]
    fn calls_that_open_and_forget_do_not_wait_for_each_other() {
        ends(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
            let connections = Arc::new(PerRuntime::new());
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    let connections = connections.clone();
                    runtime.spawn(async move {
                        for _ in 0..10_000 {
                            connections.get(|| async { Ok(1) }).await.unwrap();
                            connections.forget(|_| true);
                        }
                    })
                })
                .collect();
            for call in calls {
                runtime.block_on(call).unwrap();
            }
        });
    }

    #[tokio::test]
    async fn a_forgotten_connection_is_opened_anew() {
        let connections = PerRuntime::<u32>::new();
        assert_eq!(connections.get(|| async { Ok(1) }).await.unwrap(), 1);
        connections.forget(|connection| *connection == 9);
        assert_eq!(connections.get(|| async { Ok(2) }).await.unwrap(), 1);
        assert_eq!(connections.present(), Some(1));
        assert_eq!(format!("{connections:?}"), "PerRuntime { runtimes: 1 }");
        connections.forget(|connection| *connection == 1);
        assert_eq!(connections.present(), None);
        assert_eq!(connections.get(|| async { Ok(2) }).await.unwrap(), 2);
        connections.clear();
        assert_eq!(connections.get(|| async { Ok(3) }).await.unwrap(), 3);
        // Meanwhile the first entry's task ends.
        tokio::task::yield_now().await;
        assert_eq!(connections.present(), Some(3));
    }

    #[tokio::test]
    async fn nothing_keeps_a_forgotten_connection() {
        let connections = PerRuntime::<Arc<u32>>::new();
        let opened = connections.get(|| async { Ok(Arc::new(1)) }).await.unwrap();
        let kept = Arc::downgrade(&opened);
        drop(opened);
        connections.forget(|_| true);
        assert!(kept.upgrade().is_none());
    }

    #[tokio::test]
    async fn a_forked_child_drops_no_connection() {
        let mut connections = PerRuntime::<Arc<u32>>::new();
        let opened = connections.get(|| async { Ok(Arc::new(1)) }).await.unwrap();
        let kept = Arc::downgrade(&opened);
        drop(opened);
        connections.0.inherit();
        drop(connections);
        // The task that waits for the runtime's end would have heard of the drop.
        tokio::task::yield_now().await;
        assert!(kept.upgrade().is_some());
    }

    #[test]
    fn outside_a_runtime_it_says_what_to_do() {
        let connections = PerRuntime::<u32>::new();
        let call = connections.get(|| async { Ok(1) });
        let error = futures_util::FutureExt::now_or_never(call).unwrap();
        assert_eq!(error.unwrap_err().kind(), BackendErrorKind::Misconfigured);
    }
}
