//! `--keep`: the command runs on one host at a time, for as long as nobody asks this program to end.

use std::time::Duration;

use portalock::{AnyBackend, clock::Instant};

use crate::{
    args::RunArgs,
    exit::Ending,
    hold::{Hold, Wanted},
    report::{Failure, chain, in_millis, say},
    run::{Outcome, run_holding},
    service,
    sys::Signals,
    waiting::{self, Signalled},
};

const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After a run as long as this the next pause is the first one again.
const LONG_RUN: Duration = Duration::from_secs(60);

/// Acquires, runs the command, and begins again after a pause.
pub(crate) async fn keep(
    args: &RunArgs,
    wanted: &Wanted,
    backend: &AnyBackend,
    signals: &mut Signals,
) -> Result<Ending, Failure> {
    let mut pause = args.pause;
    service::ready();
    let ending = loop {
        let names = wanted.names();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        service::status(&format!("waiting for {names}"));
        let began = match waiting::acquire(wanted, backend, signals).await {
            Err(Signalled(signal)) => break Ending::Signal(signal),
            Ok(Ok(hold)) => {
                service::status(&format!("holding {names}{}", token(&hold)));
                let began = Instant::now();
                match run_holding(args, hold, signals).await? {
                    Outcome::NotStarted(code) => break code.into(),
                    Outcome::Ended {
                        how,
                        asked_to_end: true,
                    } => break how,
                    // On Linux it is tried in the process that would become it, and told by its code, as shells do.
                    Outcome::Ended { how, .. } if how.is_cannot_run() => break how,
                    Outcome::Ended { how, .. } => say(&format!("the command {how}")),
                }
                began
            }
            Ok(Err(error)) if error.is_retryable() => {
                say(&chain(&error));
                Instant::now()
            }
            Ok(Err(error)) => return Err(error.into()),
        };
        if began.elapsed() >= LONG_RUN {
            pause = args.pause;
        }
        service::status(&format!("pausing for {}", in_millis(pause)));
        let paused = waiting::unless_signalled(signals, tokio::time::sleep(pause)).await;
        if let Err(Signalled(signal)) = paused {
            break Ending::Signal(signal);
        }
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE).max(args.pause);
    };
    service::stopping();
    Ok(ending)
}

/// One lock's fencing token, as text to append.
fn token(hold: &Hold) -> String {
    match hold.tokens().as_slice() {
        [(_, Some(token))] => format!(" with token {}", u64::from(*token)),
        _ => String::new(),
    }
}
