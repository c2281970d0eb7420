//! Processes and signals: one interface, one module per platform.
//!
//! Each platform has `Signals` (what is sent to this program), `Child` (the command that runs), and `die_by` and `stop`,
//! which do to this program what a signal does.

#[cfg(target_os = "linux")]
mod init;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use init::serve_as_first_process;
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

impl Received {
    /// Whether it asks a program to end. SIGUSR1 and SIGUSR2 are the command's own affair, though they end one that does not
    /// care.
    pub(crate) fn asks_to_end(self) -> bool {
        match self {
            #[cfg(unix)]
            Self::Ends(signal) => !unix::is_user_signal(signal),
            #[cfg(windows)]
            Self::Ends(_) => true,
            Self::Stop | Self::Continue => false,
        }
    }
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
