//! The command: started, watched, and stopped if the lock is lost.

use std::{ffi::OsStr, io, process::Command, time::Duration};

use portalock::{Loss, LostSignal, clock::Instant};

use crate::{
    args::OnLost,
    exit::{self, Ending},
    hold::Hold,
    report::{chain, in_millis, say},
    sys::{Child, Orphaned, Signals},
};

/// What happens to the command if the lock is lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LossPlan {
    pub(crate) action: OnLost,
    pub(crate) grace: Duration,
}

impl LossPlan {
    /// If this program is killed, the lock is lost too.
    pub(crate) fn orphaned(self) -> Orphaned {
        match self.action {
            OnLost::Term => Orphaned::Terminated,
            OnLost::Kill => Orphaned::Killed,
            OnLost::Ignore => Orphaned::RunsOn,
        }
    }

    fn describe(self) -> String {
        match self.action {
            OnLost::Term => format!(
                "the command gets SIGTERM, and SIGKILL after {}",
                in_millis(self.grace)
            ),
            OnLost::Kill => "the command gets SIGKILL".to_owned(),
            OnLost::Ignore => "the command runs on without it".to_owned(),
        }
    }
}

/// How a command ended, and what happened meanwhile.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) how: Ending,
    pub(crate) loss: Option<Loss>,
    /// Whether this program, and so the command, was asked to end.
    pub(crate) asked_to_end: bool,
}

/// The command with its unchanged arguments, and the environment variables of the lock.
pub(crate) fn command(line: &[std::ffi::OsString], hold: &Hold) -> Command {
    let (program, arguments) = match line.split_first() {
        Some((program, arguments)) => (program.as_os_str(), arguments),
        None => (OsStr::new(""), [].as_slice()),
    };
    let tokens = hold.tokens();
    let names: Vec<_> = tokens.iter().map(|(name, _)| name.as_str()).collect();
    let tokens: Option<Vec<_>> = tokens
        .iter()
        .map(|(_, token)| token.map(|token| u64::from(token).to_string()))
        .collect();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PORTALOCK_NAME", names.join("\n"));
    match tokens {
        Some(tokens) => command.env("PORTALOCK_TOKEN", tokens.join("\n")),
        // An inherited variable belongs to another lock.
        None => command.env_remove("PORTALOCK_TOKEN"),
    };
    command
}

/// The message and the exit code if `program` can't be started, like `env` and shells.
pub(crate) fn cannot_run(program: &OsStr, error: &io::Error) -> (u8, String) {
    let program = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        let text = format!("can't run {program}: it was not found: check its spelling and PATH");
        (exit::NOT_FOUND, text)
    } else {
        let text = format!("can't run {program}: {}", chain(error));
        (exit::NOT_EXECUTABLE, text)
    }
}

/// Watches the command until it has ended.
pub(crate) async fn watch(
    mut child: Child,
    signals: &mut Signals,
    tenure: &LostSignal,
    plan: LossPlan,
) -> io::Result<Ended> {
    let mut loss = None;
    let mut asked_to_end = false;
    let mut kill_at = None;
    loop {
        tokio::select! {
            biased;
            () = child.ended() => break,
            received = signals.next() => {
                asked_to_end |= received.asks_to_end();
                child.pass_on(received);
            }
            found = tenure.lost(), if loss.is_none() => {
                say(&format!("the lock was lost: {}: {}", chain(&found), plan.describe()));
                loss = Some(found);
                match plan.action {
                    OnLost::Term => {
                        child.terminate();
                        kill_at = Instant::now().checked_add(plan.grace);
                    }
                    OnLost::Kill => child.kill(),
                    OnLost::Ignore => {}
                }
            }
            () = until(kill_at), if kill_at.is_some() => {
                kill_at = None;
                child.kill();
            }
        }
    }
    if loss.is_some() && plan.action != OnLost::Ignore {
        // Its children may still run.
        child.kill();
    }
    Ok(Ended {
        how: child.finish()?,
        loss,
        asked_to_end,
    })
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
