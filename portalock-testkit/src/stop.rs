//! Stopping a child process where it stands.

use std::io;

use rustix::{
    io::{Errno, retry_on_intr},
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
};

/// Stops a child with SIGSTOP, and returns when it stands still. `kill` returns before that: on a busy machine, threads of the child
/// go on until one of them has got to the signal.
pub(crate) fn stop(child: Pid) -> io::Result<()> {
    kill_process(child, Signal::STOP)?;
    // It stays reported: a child can be stopped twice, and the status of one that has ended is its owner's.
    let changed = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    match retry_on_intr(|| waitid(WaitId::Pid(child), changed))? {
        Some(status) if status.stopped() => Ok(()),
        _ => Err(Errno::SRCH.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_stands_still_also_if_it_is_stopped_twice() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let is_stopped = || waitid(WaitId::Pid(pid), stopped).unwrap().is_some();
        for _ in 0..100 {
            stop(pid).unwrap();
            assert!(is_stopped());
            stop(pid).unwrap();
            kill_process(pid, Signal::CONT).unwrap();
            assert!(!is_stopped());
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_child_that_has_ended_can_not_be_stopped() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), ended).unwrap();
        assert!(stop(pid).is_err());
        assert!(child.wait().unwrap().success(), "its status is still there");
    }
}
