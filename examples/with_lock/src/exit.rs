//! How the program ends.

use std::{fmt, process::ExitCode};

use crate::sys;

/// `break`: the owner did not hold the lock.
pub(crate) const NOT_HELD: u8 = 1;
/// The lock was lost while the command ran.
pub(crate) const LOST: u8 = 123;
/// The lock was not granted.
pub(crate) const CONFLICT: u8 = 124;
/// `with_lock` itself failed.
pub(crate) const FAILED: u8 = 125;
/// The command could not be run.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub(crate) const NOT_FOUND: u8 = 127;

/// How the program ends. An error was printed to stderr before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ending {
    /// Whether the command could not be run.
    pub(crate) fn is_cannot_run(self) -> bool {
        self == NOT_FOUND.into() || self == NOT_EXECUTABLE.into()
    }

    /// Ends the program.
    ///
    /// If a signal ended the command, the program ends by the same signal, so that the caller sees the same as without
    /// `with_lock`: a shell stops its loop at Ctrl-C, and `$?` is 128 + N.
    pub(crate) fn end(self) -> ExitCode {
        match self {
            Self::Signal(signal) => {
                sys::die_by(signal);
                ExitCode::from(u8::try_from(128 + signal).unwrap_or(FAILED))
            }
            // Windows has codes of 32 bits.
            Self::Code(code) => match u8::try_from(code) {
                Ok(code) => ExitCode::from(code),
                Err(_) => std::process::exit(code),
            },
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

impl From<u8> for Ending {
    fn from(code: u8) -> Self {
        Self::Code(code.into())
    }
}
