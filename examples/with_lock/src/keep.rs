//! `--keep`: the command runs on one host at a time, until this program is asked to end.

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
/// After a run of at least this time, the next pause is the first one again.
const LONG_RUN: Duration = Duration::from_secs(60);

/// Acquires, runs the command, and starts again after a pause.
pub(crate) async fn keep(
    args: &RunArgs,
    wanted: &Wanted,
    backend: &AnyBackend,
    signals: &mut Signals,
) -> Result<Ending, Failure> {
    let mut pauses = Pauses::new(args.pause);
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
                    // On Linux a new process tries to run the command and reports a failure by its exit code, like
                    // shells.
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
        let pause = pauses.after(began.elapsed());
        service::status(&format!("pausing for {}", in_millis(pause)));
        let sleep = tokio::time::sleep(pause);
        if let Err(Signalled(signal)) = waiting::unless_signalled(signals, sleep).await {
            break Ending::Signal(signal);
        }
    };
    service::stopping();
    Ok(ending)
}

/// How long to pause after each run.
struct Pauses {
    first: Duration,
    next: Duration,
}

impl Pauses {
    fn new(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// The pause after a run of this length: twice the last pause, or the first one again after a long run.
    fn after(&mut self, run: Duration) -> Duration {
        if run >= LONG_RUN {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(LONGEST_PAUSE).max(self.first);
        pause
    }
}

/// One lock's fencing token, as text to append.
fn token(hold: &Hold) -> String {
    match hold.tokens().as_slice() {
        [(_, Some(token))] => format!(" with token {}", u64::from(*token)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_long_run() {
        let seconds = Duration::from_secs;
        let mut pauses = Pauses::new(seconds(1));
        let short = seconds(59);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(pauses.after(short), seconds(pause));
        }
        for (run, pause) in [(seconds(60), 1), (short, 2), (seconds(61), 1)] {
            assert_eq!(pauses.after(run), seconds(pause));
        }
    }

    #[test]
    fn a_first_pause_longer_than_the_longest_stays() {
        let mut pauses = Pauses::new(Duration::from_secs(300));
        for _ in 0..3 {
            assert_eq!(pauses.after(Duration::ZERO), Duration::from_secs(300));
        }
    }
}
