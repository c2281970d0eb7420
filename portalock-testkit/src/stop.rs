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
