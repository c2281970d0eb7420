//! The library's own threads, each with a runtime: one for sessions, and one for futures that may run code of users.
//!
//! There are two threads, because sessions must be renewed in time. A future of a blocking call, or of a user's backend
//! that is cleaned up, may compute for longer than a lease.

use std::{
    future::Future,
    io,
    sync::{OnceLock, mpsc},
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
    /// Not a mutex: one that a thread of the parent has during a fork is never free in the child.
    started: OnceLock<Started>,
}

struct Started {
    process: u32,
    thread: ThreadId,
    handle: Handle,
    /// A forked child inherits the handle but not the thread, so it starts its own.
    in_child: Box<Background>,
}

impl Background {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            started: OnceLock::new(),
        }
    }

    /// What this process has started, or the place for it.
    fn own(&self) -> Result<&Started, &Self> {
        let started = self.started.get().ok_or(self)?;
        // Only the last one can be this process's: the id of a process that has ended is used again.
        let is_last = started.in_child.started.get().is_none();
        if is_last && started.process == std::process::id() {
            Ok(started)
        } else {
            started.in_child.own()
        }
    }

    /// The runtime's handle.
    ///
    /// # Errors
    ///
    /// The system's error if it can't give a thread or the resources of a runtime.
    pub(crate) fn handle(&self) -> io::Result<Handle> {
        loop {
            match self.own() {
                Ok(started) => return Ok(started.handle.clone()),
                Err(place) => place.start()?,
            }
        }
    }

    /// Starts it, unless another thread has just done so.
    fn start(&self) -> io::Result<()> {
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
        let started = Started {
            process: std::process::id(),
            thread: thread.thread().id(),
            handle: runtime.handle().clone(),
            in_child: Box::new(Self::new(self.name)),
        };
        if self.started.set(started).is_ok() {
            // It is waited for.
            let _ = send.send(runtime);
        } else {
            runtime.shutdown_background();
        }
        Ok(())
    }

    /// Whether the caller runs on this thread, or in a child that was forked there: it can't wait for another future on the
    /// same thread.
    pub(crate) fn is_current(&self) -> bool {
        self.started.get().is_some_and(|started| {
            started.thread == thread::current().id() || started.in_child.is_current()
        })
    }

    /// Runs `future`. If the system gives no thread, it runs on that of the sessions, if there is one: the lock of a session that
    /// goes on would stay held. Otherwise it runs on the caller's runtime, or is dropped if there is none.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let handle = self.handle().or_else(|_| SESSIONS.handle());
        match handle.or_else(|error| Handle::try_current().map_err(|_| error)) {
            Ok(handle) => drop(handle.spawn(future)),
            Err(error) => tracing::error!(%error, "no thread for the clean-up of a lock"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `test` again in a process that gets no threads. True in that process.
    pub(crate) fn without_threads(test: &str) -> bool {
        const CHILD: &str = "PORTALOCK_TEST_WITHOUT_THREADS";
        if std::env::var_os(CHILD).is_some() {
            return true;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact"])
            .env(CHILD, "1")
            // More than the address space of a process.
            .env("RUST_MIN_STACK", (1_u64 << 47).to_string())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(std::io::read_to_string(&mut output)));
        let told = receiver.recv_timeout(std::time::Duration::from_secs(60));
        // It has ended, or hangs.
        child.kill().unwrap();
        child.wait().unwrap();
        let told = told.expect("it hangs").unwrap();
        assert!(told.contains("1 passed"), "{told}");
        false
    }

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
    #[cfg_attr(not(target_os = "linux"), ignore = "the system may give the thread")]
    fn without_a_thread_that_of_the_sessions_is_used() {
        static NONE: Background = Background::new("none");
        if !without_threads("background::tests::without_a_thread_that_of_the_sessions_is_used") {
            return;
        }
        // The last one that the system gives.
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let thread = thread::Builder::new().stack_size(1 << 20);
        let thread = thread.spawn(move || runtime.block_on(std::future::pending::<()>()));
        let started = Started {
            process: std::process::id(),
            thread: thread.unwrap().thread().id(),
            handle,
            in_child: Box::new(Background::new("none")),
        };
        assert!(SESSIONS.started.set(started).is_ok());
        let (sender, receiver) = mpsc::channel();
        // As where a guard is dropped on a plain thread.
        NONE.spawn(async move { sender.send(SESSIONS.is_current()).unwrap() });
        assert_eq!(receiver.recv(), Ok(true));
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "the system may give the thread")]
    fn without_a_thread_the_callers_runtime_is_used() {
        static NONE: Background = Background::new("none");
        if !without_threads("background::tests::without_a_thread_the_callers_runtime_is_used") {
            return;
        }
        let runtime = Builder::new_current_thread().build().unwrap();
        let ran_on = runtime.block_on(async {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            assert!(NONE.handle().is_err());
            NONE.spawn(async move { sender.send(thread::current().id()).unwrap() });
            receiver.await.unwrap()
        });
        assert_eq!(ran_on, thread::current().id());
    }

    /// As in a child that has the id of a process that has ended, in which its parent began.
    #[tokio::test]
    async fn the_last_one_is_this_processs_and_each_is_its_own_thread() {
        static PARENTS: Background = Background::new("parent's");
        PARENTS.start().unwrap();
        // Another thread may start it at the same time: this runtime is ended at once.
        PARENTS.start().unwrap();
        let parents = PARENTS.started.get().unwrap();
        parents.in_child.start().unwrap();
        let own = parents.in_child.started.get().unwrap();
        assert_eq!(PARENTS.own().ok().unwrap().thread, own.thread);
        assert!(!PARENTS.is_current());
        for started in [parents, own] {
            let is_current = started.handle.spawn(async { PARENTS.is_current() });
            assert!(is_current.await.unwrap());
        }
    }
}
