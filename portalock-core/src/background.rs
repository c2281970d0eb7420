//! The library's own threads, each with a runtime: one for sessions, one for everything that runs code of users.
//!
//! They are two, because a session must be renewed in time whatever a user's future does: a blocking call on a network
//! backend and the clean-up of a user's backend may compute for longer than a lease lasts.

use std::{
    future::Future,
    io,
    sync::{Mutex, PoisonError, mpsc},
    thread::{self, ThreadId},
};

use tokio::runtime::{Builder, Handle, Runtime};

/// Blocking calls and clean-up: futures that may run a user's code.
pub(crate) static CALLS: Background = Background::new("portalock");

/// What keeps sessions alive and hears of grants and losses: the library's own code, which never computes for long.
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
    /// What the system said when it gave neither a thread nor what a runtime needs.
    pub(crate) fn handle(&self) -> io::Result<Handle> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if let Some(started) = started
            .as_ref()
            .filter(|started| started.process == process)
        {
            return Ok(started.handle.clone());
        }
        // The thread comes first: where there is none for it, a runtime would be dropped here, which panics within another one.
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

    /// Whether the caller is on this very thread, which can't wait for what runs on it.
    pub(crate) fn is_current(&self) -> bool {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started
            .as_ref()
            .is_some_and(|started| started.thread == thread::current().id())
    }

    /// Runs `future`; if there can be no thread, it is dropped.
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
