//! The library's own threads, each with a runtime: one for sessions, and one for futures that may run code of users.
//!
//! There are two threads, because sessions must be renewed in time. A future of a blocking call, or of a user's backend
//! that is cleaned up, may compute for longer than a lease.

use std::{
    future::Future,
    io,
    sync::{Mutex, PoisonError, mpsc},
    thread::{self, ThreadId},
};

use tokio::runtime::{Builder, Handle, Runtime};

/// Blocking calls and clean-up: futures that may run a user's code.
pub(crate) static CALLS: Background = Background::new("portalock");

/// Sessions, and listeners for grants and losses: code of the library, which never computes for long.
pub(crate) static SESSIONS: Background = Background::new("portalock-session");

/// A runtime on a thread of its own, started at first use. It lasts as long as the process.
pub(crate) struct Background {
    name: &'static str,
    started: Mutex<Option<Started>>,
}

struct Started {
    /// A forked child inherits the handle but not the thread, so it starts its own.
    process: u32,
    thread: ThreadId,
    handle: Handle,
}

impl Background {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            started: Mutex::new(None),
        }
    }

    /// The runtime's handle.
    ///
    /// # Errors
    ///
    /// The system's error if it can't give a thread or the resources of a runtime.
    pub(crate) fn handle(&self) -> io::Result<Handle> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if let Some(started) = started
            .as_ref()
            .filter(|started| started.process == process)
        {
            return Ok(started.handle.clone());
        }
        // Start the thread first: if the system has none, a runtime would be dropped here, and that panics inside
        // another runtime.
        let (send, receive) = mpsc::channel::<Runtime>();
        let thread = thread::Builder::new()
            .name(self.name.into())
            .spawn(move || {
                if let Ok(runtime) = receive.recv() {
                    runtime.block_on(std::future::pending::<()>());
                }
            })?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        // It is waited for.
        let _ = send.send(runtime);
        *started = Some(Started {
            process,
            thread: thread.thread().id(),
            handle: handle.clone(),
        });
        Ok(handle)
    }

    /// Whether the caller runs on this thread: it can't wait for another future on the same thread.
    pub(crate) fn is_current(&self) -> bool {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started
            .as_ref()
            .is_some_and(|started| started.thread == thread::current().id())
    }

    /// Runs `future`, or drops it if the system gives no thread.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        match self.handle() {
            Ok(handle) => drop(handle.spawn(future)),
            Err(error) => tracing::error!(%error, "no thread for the clean-up of a lock"),
        }
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
}
