//! `with_lock NAME -- COMMAND`: acquire, run, release.

use std::{path::Path, time::Duration};

use portalock::AnyBackend;
use portalock::{LockError, Policy};

use crate::{
    args::{OnLost, RunArgs, backend_and_name},
    backends,
    child::{self, Ended, LossPlan},
    exit::{self, Ending},
    hold::{Hold, Wanted},
    keep::keep,
    patience::Patience,
    report::{Failure, chain, say},
    service,
    sys::{Child, Signals},
    waiting::{self, Signalled},
};

/// How long telling the service at the end may take. After that the session ends when its time is over.
const FAREWELL: Duration = Duration::from_secs(5);
/// The same after a loss, when the service probably can't be reached.
const SHORT_FAREWELL: Duration = Duration::from_millis(500);

/// Runs the command under its lock.
pub(crate) async fn run(args: &RunArgs, config: Option<&Path>) -> Result<Ending, Failure> {
    let patience = Patience::of(args);
    let mut signals = Signals::listen()?;
    let (backend, _) = backend_and_name(&args.target);
    let opening = patience.bound(backends::open(backend, config));
    let backend = match waiting::unless_signalled(&mut signals, opening).await {
        Ok(opened) => opened?,
        Err(Signalled(signal)) => return Ok(Ending::Signal(signal)),
    };
    let ending = run_with(args, &backend, patience.policy(), &mut signals).await;
    let is_lost = matches!(ending, Ok(ending) if ending == Ending::from(exit::LOST));
    let time = if is_lost { SHORT_FAREWELL } else { FAREWELL };
    farewell(&backend, time).await;
    ending
}

async fn run_with(
    args: &RunArgs,
    backend: &AnyBackend,
    policy: Policy,
    signals: &mut Signals,
) -> Result<Ending, Failure> {
    let wanted = Wanted::new(args, backend, policy)?;
    if args.keep {
        return keep(args, &wanted, backend, signals).await;
    }
    match waiting::acquire(&wanted, backend, signals).await {
        Ok(Ok(hold)) => Ok(match run_holding(args, hold, signals).await? {
            Outcome::NotStarted(code) => code.into(),
            Outcome::Ended { how, .. } => how,
        }),
        Ok(Err(error)) if error.is_contention() => {
            if !args.quiet {
                say(&chain(&error));
            }
            Ok(args.conflict_exit_code.into())
        }
        // One of several names, while another was waited for.
        Ok(Err(error @ LockError::Lost { .. })) => {
            say(&format!("{}: the command was not run", chain(&error)));
            Ok(exit::LOST.into())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(Signalled(signal)) => Ok(Ending::Signal(signal)),
    }
}

/// The result of one hold.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The command could not be run; the exit code gives the reason.
    NotStarted(u8),
    /// It ran.
    Ended {
        /// How it ended, or that the lock was lost.
        how: Ending,
        /// Whether this program was asked to end meanwhile.
        asked_to_end: bool,
    },
}

/// Runs the command once, and releases.
pub(crate) async fn run_holding(
    args: &RunArgs,
    hold: Hold,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let plan = LossPlan {
        action: args.on_lost,
        grace: args.grace,
    };
    if let Err(error) = hold.ensure_held() {
        say(&format!("{}: the command was not run", chain(&error)));
        return Ok(Outcome::Ended {
            how: exit::LOST.into(),
            asked_to_end: false,
        });
    }
    let mut command = child::command(&args.command, &hold);
    if args.keep {
        command.env_remove(service::VARIABLE);
    }
    let program = command.get_program().to_owned();
    let child = match Child::spawn(command, plan.orphaned()) {
        Ok(child) => child,
        Err(error) => {
            let (code, text) = child::cannot_run(&program, &error);
            say(&text);
            release(hold).await;
            return Ok(Outcome::NotStarted(code));
        }
    };
    child.pass_on_earlier(signals);
    let lost = hold.lost_signal();
    let Ended {
        how,
        loss,
        asked_to_end,
    } = child::watch(child, signals, &lost, plan).await?;
    let held_to_the_end = match loss {
        // There is nothing to release, and the service probably can't be reached.
        Some(_) => {
            drop(hold);
            false
        }
        None => release(hold).await,
    };
    let how = if !held_to_the_end && plan.action != OnLost::Ignore {
        exit::LOST.into()
    } else {
        how
    };
    Ok(Outcome::Ended { how, asked_to_end })
}

/// Releases, and returns whether the lock was held until the end.
async fn release(hold: Hold) -> bool {
    match hold.release().await {
        Ok(()) => true,
        Err(error @ (LockError::Lost { .. } | LockError::NotHeld { .. })) => {
            say(&format!(
                "{}: another command may have run at the same time",
                chain(&error)
            ));
            false
        }
        // The command has ended, and the lock ends with the session.
        Err(error) => {
            say(&format!("could not release: {}", chain(&error)));
            true
        }
    }
}

/// Makes sure that nothing of this program is left at the service.
async fn farewell(backend: &AnyBackend, time: Duration) {
    let _ = portalock::shutdown(time).await;
    let _ = tokio::time::timeout(time, backend.close()).await;
}
