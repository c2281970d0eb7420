//! Linux: this program as the first process of a container, which has two extra duties.
//!
//! The first process must reap all orphans, and the kernel ignores signals to it that it doesn't handle. So this
//! program is started once more to do the work, and the first process only reaps and passes signals on.

use std::{
    env,
    process::{Command, ExitCode},
    thread,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, kill_process, wait},
};
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2},
    iterator::Signals,
};

use super::unix::{has_terminal, keep_how_children_end};
use crate::{
    exit::{self, Ending},
    report::Failure,
};

const THIS_PROGRAM: &str = "/proc/self/exe";

/// Acts as the first process until the work is done. `None` if this process is not the first one.
pub(crate) fn serve_as_first_process() -> Option<ExitCode> {
    if getpid() != Pid::INIT {
        return None;
    }
    let ending = serve().unwrap_or_else(|failure| {
        failure.say();
        exit::FAILED.into()
    });
    Some(match ending {
        Ending::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(exit::FAILED)),
        // A signal can't end the first process, so it returns the exit code that shells use.
        Ending::Signal(signal) => {
            ExitCode::from(u8::try_from(128 + signal).unwrap_or(exit::FAILED))
        }
    })
}

fn serve() -> Result<Ending, Failure> {
    keep_how_children_end()?;
    let mut passed_on = vec![SIGHUP, SIGTERM, SIGUSR1, SIGUSR2];
    if !has_terminal() {
        // A terminal sends its keyboard signals to the worker directly.
        passed_on.extend([SIGINT, SIGQUIT, SIGTSTP, SIGCONT]);
    }
    let mut signals = Signals::new(passed_on)?;
    let worker = Command::new(THIS_PROGRAM)
        .args(env::args_os().skip(1))
        .spawn()?;
    let worker = Pid::from_child(&worker);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    // This thread ends with the process, which ends with the worker.
                    let _ = kill_process(worker, signal);
                }
            }
        })?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == worker => {
                return Ok(match status.terminating_signal() {
                    Some(signal) => Ending::Signal(signal),
                    None => Ending::Code(status.exit_status().unwrap_or(exit::FAILED.into())),
                });
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
