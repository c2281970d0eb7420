//! Processes and signals: one interface, one module per platform.
//!
//! Each platform has `Signals` (what is sent to this program), `Child` (the command that runs), and `die_by` and `stop`,
//! which do to this program what a signal does.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::become_command_if_asked;
#[cfg(unix)]
pub(crate) use unix::{Child, Signals, die_by, stop};
#[cfg(windows)]
pub(crate) use windows::{Child, Signals, die_by, stop};

/// What somebody sent to this program, to be passed on to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// What ends a program that doesn't care, by its number.
    Ends(i32),
    /// Stop until further notice, as Ctrl-Z asks.
    #[cfg_attr(windows, allow(dead_code, reason = "nobody sends it on Windows"))]
    Stop,
    /// Go on.
    #[cfg_attr(windows, allow(dead_code, reason = "nobody sends it on Windows"))]
    Continue,
}

/// What happens to the command if this program is killed and can't do anything about it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphaned {
    /// It gets SIGTERM.
    Terminated,
    /// It gets SIGKILL.
    Killed,
    /// It runs on.
    RunsOn,
}
