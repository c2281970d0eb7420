//! A forked child, as in programs that ignore locks when they fork.

use std::time::Duration;

#[cfg(unix)]
pub(crate) use unix::forked_child;
#[cfg(unix)]
pub use unix::refuses_in_a_child;

#[cfg(unix)]
mod unix {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        process::abort,
        time::Duration,
    };

    use portalock_core::{
        BackendError, BackendErrorKind, Holder, LockBackend, LockName, OwnerId, Semaphore,
        clock::Instant,
    };
    use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

    use crate::verdict::SOON;

    // A child ends by a signal that it sends to itself, which says how it went. `exit` would run the clean-up of the
    // standard library, which can wait for ever for a mutex that a thread of the parent held during the fork.
    const GOOD: Signal = Signal::USR1;
    const WRONG: Signal = Signal::USR2;
    const PANICKED: Signal = Signal::ABORT;

    /// Has a forked child look at locks with the copy of a backend that it inherits, and break one. It must be refused all this at
    /// once, with [`Misconfigured`](BackendErrorKind::Misconfigured): a thread of its parent may have held a mutex during the fork.
    ///
    /// Call it on a thread without a runtime. It returns when the child has ended.
    ///
    /// # Errors
    ///
    /// What was wrong.
    pub fn refuses_in_a_child<B: LockBackend + Semaphore>(backend: &B) -> Result<(), String> {
        forked_child(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let (Ok(runtime), Ok(name)) = (runtime, LockName::new("inherited")) else {
                return false;
            };
            let (owner, by) = (OwnerId::mint(), Holder::this_process(None));
            let answers = runtime.block_on(async {
                [
                    LockBackend::inspect(backend, &name).await.map(drop),
                    Semaphore::inspect(backend, &name).await.map(drop),
                    backend.names().await.map(drop),
                    backend.watch(&name).await.map(drop),
                    backend.mark_broken(&name, owner, &by).await.map(drop),
                    backend.evict(&name, owner, 1).await.map(drop),
                ]
            });
            let is_refused = |error: BackendError| error.kind() == BackendErrorKind::Misconfigured;
            answers
                .into_iter()
                .all(|answer| answer.is_err_and(is_refused))
        })
    }

    /// Runs `work` in a forked child, which has a copy of the memory and no other thread. `work` returns whether
    /// everything was right; the text says what was not.
    ///
    /// Call it on a thread without a runtime. It returns when the child has ended.
    pub(crate) fn forked_child(work: impl FnOnce() -> bool) -> Result<(), String> {
        match fork::fork() {
            Err(error) => Err(format!("a child could not be forked: {error}")),
            Ok(fork::Fork::Parent(pid)) => ended(pid),
            Ok(fork::Fork::Child) => {
                let end = match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(true) => GOOD,
                    Ok(false) => WRONG,
                    Err(_) => PANICKED,
                };
                let _ = kill_process(getpid(), end);
                abort()
            }
        }
    }

    fn ended(pid: i32) -> Result<(), String> {
        let pid = Pid::from_raw(pid).ok_or("the child has no process id")?;
        let limit = Instant::now() + SOON;
        let status = loop {
            match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => break status,
                Ok(None) if Instant::now() < limit => super::pause(Duration::from_millis(2)),
                Ok(None) => {
                    let _ = kill_process(pid, Signal::KILL);
                    let _ = waitpid(Some(pid), WaitOptions::empty());
                    return Err("the child hangs".to_owned());
                }
                Err(error) => return Err(format!("waiting for the child: {error}")),
            }
        };
        let ended_by = |signal: Signal| status.terminating_signal() == Some(signal.as_raw());
        if ended_by(GOOD) {
            Ok(())
        } else if ended_by(WRONG) {
            Err("a child was not refused what belongs to its parent".to_owned())
        } else if ended_by(PANICKED) {
            Err("the child panicked".to_owned())
        } else {
            Err(format!("the child ended with {status:?}"))
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "for a thread without a runtime, while another process works"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Systems without `fork`.
#[cfg(not(unix))]
pub(crate) fn forked_child(_work: impl FnOnce() -> bool) -> Result<(), String> {
    Err("this system can't fork a process".to_owned())
}
