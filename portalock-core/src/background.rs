//! The library's own threads, each with a runtime: one for sessions, and one for futures that may run code of users.
//!
//! There are two threads, because sessions must be renewed in time. A future of a blocking call, or of a user's backend
//! that is cleaned up, may compute for longer than a lease.

use std::{
    future::Future,
    io, iter,
    sync::{OnceLock, mpsc},
    thread::{self, ThreadId},
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

/// Blocking calls and clean-up: futures that may run a user's code.
pub(crate) static CALLS: Background = Background::new("portalock");

/// Sessions, and listeners for grants and losses: code of the library, which never computes for long.
pub(crate) static SESSIONS: Background = Background::new("portalock-session");

/// A runtime on a thread of its own, started at first use. It lasts as long as the process.
///
/// There is no mutex: if another thread held it during a fork, it would stay locked in the child.
pub(crate) struct Background {
    name: &'static str,
    first: OnceLock<Box<Started>>,
}

struct Started {
    /// A forked child inherits the handle but not the thread, so it starts its own.
    process: u32,
    thread: ThreadId,
    handle: Handle,
    /// That of a forked child.
    next: OnceLock<Box<Started>>,
    /// Dropped if another thread was first, which ends this one.
    _used: oneshot::Sender<()>,
}

impl Background {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            first: OnceLock::new(),
        }
    }

    /// The runtime's handle.
    ///
    /// # Errors
    ///
    /// The system's error if it can't give a thread or the resources of a runtime.
    pub(crate) fn handle(&self) -> io::Result<Handle> {
        let process = std::process::id();
        let mut place = &self.first;
        loop {
            match place.get() {
                // The last one: an ancestor that has ended may have had the same process id.
                Some(last) if last.process == process && last.next.get().is_none() => {
                    return Ok(last.handle.clone());
                }
                Some(parents) => place = &parents.next,
                // Fails if another thread was first.
                None => drop(place.set(Box::new(Started::new(self.name, process)?))),
            }
        }
    }

    /// Whether the caller runs on this thread: it can't wait for another future on the same thread.
    pub(crate) fn is_current(&self) -> bool {
        let current = thread::current().id();
        iter::successors(self.first.get(), |started| started.next.get())
            .any(|started| started.thread == current)
    }

    /// Runs `future`, or drops it if the system gives no thread.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        match self.handle() {
            Ok(handle) => drop(handle.spawn(future)),
            Err(error) => tracing::error!(%error, "no thread for the clean-up of a lock"),
        }
    }
}

impl Started {
    fn new(name: &str, process: u32) -> io::Result<Self> {
        // Start the thread first: if the system has none, a runtime would be dropped here, and that panics inside
        // another runtime.
        let (send, receive) = mpsc::channel::<Runtime>();
        let (used, unused) = oneshot::channel();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            if let Ok(runtime) = receive.recv() {
                let _ = runtime.block_on(unused);
            }
        })?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        // It is waited for.
        let _ = send.send(runtime);
        Ok(Self {
            process,
            thread: thread.thread().id(),
            handle,
            next: OnceLock::new(),
            _used: used,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_runs_on_a_thread_of_its_own_name() {
        for (background, name) in [(&CALLS, "portalock"), (&SESSIONS, "portalock-session")] {
            let (sender, receiver) = mpsc::channel();
            background.spawn(async move {
                sender
                    .send(thread::current().name().map(str::to_owned))
                    .unwrap();
            });
            assert_eq!(receiver.recv().unwrap().as_deref(), Some(name));
        }
    }

    #[test]
    fn threads_that_use_it_first_at_the_same_time_share_it() {
        let background = Background::new("shared");
        let start = std::sync::Barrier::new(8);
        let uses = || {
            start.wait();
            background.handle().unwrap().id()
        };
        let ids = thread::scope(|scope| {
            let threads = [(); 8].map(|()| scope.spawn(uses));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
    }
}
