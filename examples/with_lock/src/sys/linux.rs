//! Linux: a command that ends with this program, and the signals that were ignored from the start.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use super::Orphaned;
use crate::child::cannot_run;

/// The name with which this program is started to become the command.
const STEP: &str = "with_lock: starting";
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The same command, which gets a signal when this thread ends, even by SIGKILL.
///
/// Only the new process itself can request that signal, before it becomes the command. So this program is started once
/// more, and then [becomes](become_command_if_asked) the command.
pub(crate) fn tie_to_parent(command: Command, orphaned: Orphaned) -> Command {
    let signal = match orphaned {
        Orphaned::Terminated => Signal::TERM,
        Orphaned::Killed => Signal::KILL,
        Orphaned::RunsOn => return command,
    };
    if !Path::new(THIS_PROGRAM).exists() {
        return command;
    }
    let mut step = Command::new(THIS_PROGRAM);
    step.arg0(STEP)
        .arg(signal.as_raw().to_string())
        .arg(getpid().as_raw_nonzero().to_string())
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => step.env(name, value),
            None => step.env_remove(name),
        };
    }
    step
}

/// Becomes the command if [`tie_to_parent`] started this program. Returns an exit code if that failed, and `None` if
/// another program started it.
pub(crate) fn become_command_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args_os();
    if arguments.next()? != STEP {
        return None;
    }
    let signal = number(arguments.next()?).and_then(Signal::from_named_raw);
    let parent = number(arguments.next()?).and_then(Pid::from_raw);
    let program = arguments.next()?;
    let _ = set_parent_process_death_signal(signal);
    // The parent may have ended before the request.
    if getppid() != parent {
        return Some(ExitCode::from(crate::exit::LOST));
    }
    let error = Command::new(&program).args(arguments).exec();
    let (code, text) = cannot_run(&program, &error);
    crate::report::say(&text);
    Some(ExitCode::from(code))
}

fn number(text: OsString) -> Option<i32> {
    text.into_string().ok()?.parse().ok()
}

/// Whether this program was started with `signal` ignored.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
