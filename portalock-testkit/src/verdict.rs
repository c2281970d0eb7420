//! Failures of a case, and the times for which a case waits.

use std::{error::Error, fmt, future::Future, time::Duration};

use portalock_core::{BackendError, InvalidName, InvalidPermits, LockError, clock::Instant};
use tokio::{task::JoinError, time::timeout};

use crate::{FixtureError, run::panic_text};

/// How long a case waits for an event that must happen. The time is generous: it only limits a failing case.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// How long a case watches for an event that must not happen. A short time can miss a failure, but can't cause a false
/// one.
pub(crate) const A_WHILE: Duration = Duration::from_millis(200);

/// The timeout of a wait that must fail: a slow machine must have enough time to answer.
pub(crate) const IN_VAIN: Duration = Duration::from_secs(1);

/// How much a slow machine may add to a time that a backend declares.
pub(crate) const SLACK: Duration = Duration::from_secs(5);

/// How long those who take turns begin new rounds: with a slow store or machine, fewer rounds must do.
const ROUNDS_WITHIN: Duration = Duration::from_secs(8);

/// The rounds of one who takes turns with others: `most`, or fewer if they take long, and at least one.
pub(crate) fn rounds(most: u32) -> impl Iterator<Item = u32> {
    let started = Instant::now();
    rounds_by(most, move || started.elapsed())
}

fn rounds_by(most: u32, lasted: impl Fn() -> Duration) -> impl Iterator<Item = u32> {
    (0..most).take_while(move |round| *round == 0 || lasted() < ROUNDS_WITHIN)
}

/// How a case ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something that the case needs is not claimed or not provided.
    Skipped(String),
    /// The promise is broken.
    Failed(String),
}

pub(crate) type CaseResult<T = ()> = Result<T, Stop>;

/// Ends the case as failed unless `condition` is true. The text says what the case saw.
macro_rules! ensure {
    ($condition:expr, $($seen:tt)+) => {
        if !$condition {
            return Err($crate::verdict::Stop::Failed(format!($($seen)+)));
        }
    };
}
pub(crate) use ensure;

/// Waits for an event that must happen soon. The limit is longer than any timeout of a case, because the error of such
/// a timeout says more.
pub(crate) async fn soon<F: Future>(what: impl fmt::Display, future: F) -> CaseResult<F::Output> {
    within(SOON + SLACK, what, future).await
}

/// Waits for an event that must happen within `limit`.
pub(crate) async fn within<F: Future>(
    limit: Duration,
    what: impl fmt::Display,
    future: F,
) -> CaseResult<F::Output> {
    timeout(limit, future)
        .await
        .map_err(|_| Stop::Failed(format!("{what} did not happen within {limit:?}")))
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl Stop {
    pub(crate) fn failed(seen: impl Into<String>) -> Self {
        Self::Failed(seen.into())
    }
}

impl From<FixtureError> for Stop {
    fn from(error: FixtureError) -> Self {
        match error {
            FixtureError::NotProvided(_) => Self::Skipped(error.to_string()),
            FixtureError::Failed(_) => Self::Failed(chain(&error)),
        }
    }
}

impl From<JoinError> for Stop {
    fn from(ended: JoinError) -> Self {
        Self::Failed(match ended.try_into_panic() {
            Ok(panic) => format!("panicked: {}", panic_text(&*panic)),
            Err(cancelled) => cancelled.to_string(),
        })
    }
}

macro_rules! failed_by {
    ($($error:ty),+) => {$(
        impl From<$error> for Stop {
            fn from(error: $error) -> Self {
                Self::Failed(chain(&error))
            }
        }
    )+};
}

failed_by!(BackendError, InvalidName, InvalidPermits, LockError);

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped(reason) | Self::Failed(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn who_takes_turns_at_a_slow_store_ends_in_time() {
        for (seconds, expected) in [(0, 12), (3, 3), (30, 1)] {
            let lasted = Cell::new(Duration::ZERO);
            let taken = rounds_by(12, || lasted.get()).inspect(|_| {
                lasted.set(lasted.get() + Duration::from_secs(seconds));
            });
            assert_eq!(taken.count(), expected);
        }
    }
}
