//! Windows: console events, which the command gets too, and no signals.

use std::{io, process::Command};

use tokio::{
    process,
    signal::windows::{CtrlBreak, CtrlC, ctrl_break, ctrl_c},
};

use super::{Orphaned, Received};
use crate::exit::Ending;

/// The exit code of a console program that Ctrl-C has ended.
const INTERRUPT: i32 = 2;

/// Events of the console.
#[derive(Debug)]
pub(crate) struct Signals {
    ctrl_c: CtrlC,
    ctrl_break: CtrlBreak,
}

impl Signals {
    /// Starts to listen.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            ctrl_c: ctrl_c()?,
            ctrl_break: ctrl_break()?,
        })
    }

    /// The next event. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Received {
        let more = tokio::select! {
            more = self.ctrl_c.recv() => more,
            more = self.ctrl_break.recv() => more,
        };
        match more {
            Some(()) => Received::Ends(INTERRUPT),
            None => std::future::pending().await,
        }
    }
}

/// The command that runs.
#[derive(Debug)]
pub(crate) struct Child(process::Child);

impl Child {
    /// Starts it, on the same console.
    pub(crate) fn spawn(command: Command, _orphaned: Orphaned) -> io::Result<Self> {
        process::Command::from(command).spawn().map(Self)
    }

    /// Waits until the command has ended. Dropping the future loses nothing.
    pub(crate) async fn ended(&mut self) {
        let _ = self.0.wait().await;
    }

    /// An event before the command was there is lost, as it is without this program.
    #[allow(clippy::unused_self, reason = "other platforms need it")]
    pub(crate) fn pass_on_earlier(&self, _signals: &Signals) {}

    /// The console sends the same event to the command.
    #[allow(clippy::unused_self, reason = "other platforms need it")]
    pub(crate) fn pass_on(&self, _received: Received) {}

    /// Windows can't ask a process to end.
    pub(crate) fn terminate(&mut self) {
        self.kill();
    }

    /// Terminates the command.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.start_kill();
    }

    /// How the command ended. Call it after [`ended`](Self::ended).
    pub(crate) fn finish(mut self) -> io::Result<Ending> {
        let status = self.0.try_wait()?;
        let code = status.and_then(|status| status.code());
        Ok(Ending::Code(code.unwrap_or(crate::exit::FAILED.into())))
    }
}

/// Windows has no signals.
pub(crate) fn die_by(_signal: i32) {}

/// Windows can't stop a process.
pub(crate) fn stop() {}
