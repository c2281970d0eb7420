//! Stopping a child process where it stands.

use std::io;

use rustix::{
    io::retry_on_intr,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
};

/// Stops a child with SIGSTOP, and returns when it stands still. `kill` returns before that: on a busy machine, threads of the child
/// go on until one of them has got to the signal.
pub(crate) fn stop(child: Pid) -> io::Result<()> {
    kill_process(child, Signal::STOP)?;
    // It stays reported, so that a child can be stopped twice.
    let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
    retry_on_intr(|| waitid(WaitId::Pid(child), stopped))?;
    Ok(())
}
