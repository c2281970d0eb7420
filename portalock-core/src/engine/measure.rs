//! Metrics for operators: how long calls wait, how long locks are held, and how both end.
//!
//! Without the feature `metrics` everything here is empty and costs nothing.

use crate::{LockError, LockName, clock::Instant, session::RenewalOutcome};

#[cfg(feature = "metrics")]
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(feature = "metrics")]
use crate::metrics::{HOLD, RENEWALS, WAIT, WAITERS, gauge, histogram, key};

/// A call that began at `since` has ended, with a lock or without.
pub(crate) fn waited<T>(
    backend: &'static str,
    name: &LockName,
    since: Instant,
    result: &Result<T, LockError>,
) {
    #[cfg(feature = "metrics")]
    {
        let outcome = match result {
            Ok(_) => "granted",
            Err(LockError::Timeout { .. }) => "timeout",
            Err(LockError::AlreadyLocked { .. }) => "locked",
            Err(_) => "failed",
        };
        let key = key(WAIT, backend, name, Some(outcome));
        histogram(&key).record(since.elapsed());
    }
    #[cfg(not(feature = "metrics"))]
    let _ = (backend, name, since, result);
}

/// A renewal has ended.
pub(crate) fn renewed(outcome: RenewalOutcome) {
    #[cfg(feature = "metrics")]
    metrics::counter!(RENEWALS, "outcome" => outcome.as_str()).increment(1);
    #[cfg(not(feature = "metrics"))]
    let _ = outcome;
}

/// One call that waits for others. It stops waiting when this is dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    #[cfg(feature = "metrics")]
    gauge: metrics::Gauge,
}

impl Waiter {
    pub(crate) fn new(backend: &'static str, name: &LockName) -> Self {
        #[cfg(feature = "metrics")]
        {
            let gauge = gauge(&key(WAITERS, backend, name, None));
            gauge.increment(1.0);
            Self { gauge }
        }
        #[cfg(not(feature = "metrics"))]
        {
            let _ = (backend, name);
            Self {}
        }
    }
}

#[cfg(feature = "metrics")]
impl Drop for Waiter {
    fn drop(&mut self) {
        // Caught, because the program's recorder may panic: during unwinding, that would abort the process.
        let _ = catch_unwind(AssertUnwindSafe(|| self.gauge.decrement(1.0)));
    }
}

/// One hold of a lock, which [`ended`](Self::ended) records.
#[derive(Debug)]
pub(crate) struct Hold {
    #[cfg(feature = "metrics")]
    since: Instant,
    #[cfg(feature = "metrics")]
    lost: bool,
}

impl Hold {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(feature = "metrics")]
            since: Instant::now(),
            #[cfg(feature = "metrics")]
            lost: false,
        }
    }

    /// It was lost before it was released.
    #[cfg_attr(
        not(feature = "metrics"),
        allow(clippy::unused_self, reason = "there is nothing to note")
    )]
    pub(crate) fn lost(&mut self) {
        #[cfg(feature = "metrics")]
        {
            self.lost = true;
        }
    }

    /// It has ended.
    #[cfg_attr(
        not(feature = "metrics"),
        allow(clippy::unused_self, reason = "there is nothing to record")
    )]
    pub(crate) fn ended(&self, backend: &'static str, name: &LockName) {
        #[cfg(feature = "metrics")]
        {
            let outcome = if self.lost { "lost" } else { "released" };
            let key = key(HOLD, backend, name, Some(outcome));
            histogram(&key).record(self.since.elapsed());
        }
        #[cfg(not(feature = "metrics"))]
        let _ = (backend, name);
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;

    #[test]
    fn renewals_are_counted_by_their_outcome() {
        let recorder = DebuggingRecorder::new();
        metrics::with_local_recorder(&recorder, || {
            renewed(RenewalOutcome::Renewed);
            renewed(RenewalOutcome::Late);
            renewed(RenewalOutcome::Late);
        });
        let mut counts: Vec<_> = recorder
            .snapshotter()
            .snapshot()
            .into_vec()
            .into_iter()
            .map(|(key, _, _, value)| {
                let outcome = key
                    .key()
                    .labels()
                    .next()
                    .map(|label| label.value().to_owned());
                (outcome, value)
            })
            .collect();
        counts.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(
            counts,
            [
                (Some("late".to_owned()), DebugValue::Counter(2)),
                (Some("renewed".to_owned()), DebugValue::Counter(1)),
            ]
        );
    }
}
