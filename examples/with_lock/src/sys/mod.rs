//! Processes and signals: one interface, one module per platform.
//!
//! Each platform has `Signals` (signals to this program), `Child` (the running command), and `die_by` and `stop`, which
//! end and stop this program like a signal.

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

/// A signal to this program, to be passed on to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// A signal that ends a program by default, by its number.
    Ends(i32),
    /// Stop, as by Ctrl-Z.
    #[cfg_attr(windows, allow(dead_code, reason = "nobody sends it on Windows"))]
    Stop,
    /// Continue.
    #[cfg_attr(windows, allow(dead_code, reason = "nobody sends it on Windows"))]
    Continue,
}

impl Received {
    /// Whether it asks a program to end. SIGUSR1 and SIGUSR2 don't: the command decides what they mean, although they
    /// end a program by default.
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

/// What happens to the command if this program is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphaned {
    /// It gets SIGTERM.
    Terminated,
    /// It gets SIGKILL.
    Killed,
    /// It continues to run.
    RunsOn,
}
