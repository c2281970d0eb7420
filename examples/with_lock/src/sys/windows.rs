//! Windows: the console's events, which reach the command by themselves, and no signal but the end.

use std::{io, process::Command};

use tokio::{
    process,
    signal::windows::{CtrlBreak, CtrlC, ctrl_break, ctrl_c},
};

use super::{Orphaned, Received};
use crate::exit::Ending;

/// What a console program reports when Ctrl-C ends it, as Unix has it.
const INTERRUPT: i32 = 2;

/// What is sent to this program from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    ctrl_c: CtrlC,
    ctrl_break: CtrlBreak,
}

impl Signals {
    /// Begins to listen.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            ctrl_c: ctrl_c()?,
            ctrl_break: ctrl_break()?,
        })
    }

    /// The next one. Nothing is lost by dropping the future.
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

    /// Waits until the command has ended. Nothing is lost by dropping the future.
    pub(crate) async fn ended(&mut self) {
        let _ = self.0.wait().await;
    }

    /// The console has told the command what it told us.
    #[allow(clippy::unused_self, reason = "other platforms need it")]
    pub(crate) fn pass_on(&self, _received: Received) {}

    /// There is no way to ask.
    pub(crate) fn terminate(&mut self) {
        self.kill();
    }

    /// Ends it.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.start_kill();
    }

    /// How it ended. To be called after [`ended`](Self::ended).
    pub(crate) fn finish(mut self) -> io::Result<Ending> {
        let status = self.0.try_wait()?;
        let code = status.and_then(|status| status.code());
        Ok(Ending::Code(code.unwrap_or(crate::exit::FAILED.into())))
    }
}

/// There are no signals to die by.
pub(crate) fn die_by(_signal: i32) {}

/// There is no stopping.
pub(crate) fn stop() {}
