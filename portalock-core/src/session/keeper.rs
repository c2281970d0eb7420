//! Keeps a lease alive: renews it in the background, until it ends or the keeper is dropped.

use std::{future::Future, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::select};
use tokio::sync::Notify;

use super::{Task, spawn};
use crate::{
    BackendError, BackendErrorKind, Lease, Loss,
    clock::Instant,
    engine::{deadline::bound, measure::renewed},
    settings::LONGEST,
};

/// The longest pause after a failed renewal, for any lease. So the session notices soon that a service is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) const PANICKED: &str = "the backend panicked";

/// The service's answer to a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// The lease continues for this long, counted from when the renewal was sent.
    Renewed(Duration),
    /// The service no longer knows the lease: it has ended.
    Gone(Loss),
}

/// How one renewal ended, for metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RenewalOutcome {
    Renewed,
    Failed,
    Late,
    Gone,
}

#[cfg(feature = "metrics")]
impl RenewalOutcome {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Gone => "gone",
        }
    }
}

/// Renews a [`Lease`] on the session thread. Dropping the keeper stops the renewals; the lease then ends at its
/// deadline.
///
/// The outcome of a renewal that fails or hangs is *unknown*: it neither extends nor ends the lease. The lease lasts
/// until its own deadline, on this machine's clock, even while a call is in flight.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::{clock::Instant, Keeper, Lease, Renewal};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), portalock_core::BackendError> {
/// let time = Duration::from_secs(10);
/// let lease = Lease::until(Instant::now() + time);
/// let first = lease.deadline();
/// let keeper = Keeper::spawn(lease.clone(), Duration::from_millis(10), move || async move {
///     // Ask your service to renew here, over a connection that was opened on the session thread.
///     Ok(Renewal::Renewed(time))
/// })?;
/// // It goes on whatever this thread computes.
/// while lease.deadline() == first {}
/// # drop(keeper); Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping a keeper lets the lease run out"]
pub struct Keeper {
    _task: Task,
    now: Arc<Notify>,
}

impl Keeper {
    /// Renews `lease` every `interval` by calling `renew`, until the lease has ended or the keeper is dropped.
    ///
    /// A call without an answer within `interval` is dropped and repeated, so `renew` must be safe to cancel. After a
    /// failure the next call follows soon, and later after each further failure, up to a tenth of the interval or a second,
    /// whichever is shorter. A panic in the future is a failure.
    ///
    /// # Errors
    ///
    /// [`Exhausted`](crate::BackendErrorKind::Exhausted) if the system gives no thread.
    pub fn spawn<F, R>(lease: Lease, interval: Duration, mut renew: F) -> Result<Self, BackendError>
    where
        F: FnMut() -> R + Send + 'static,
        R: Future<Output = Result<Renewal, BackendError>> + Send,
    {
        let now = Arc::new(Notify::new());
        let asked = now.clone();
        let task = spawn(async move {
            let ended = lease.signal();
            select(
                pin!(ended.lost()),
                pin!(keep(&lease, interval, &asked, || caught(renew()))),
            )
            .await;
        })?;
        Ok(Self { _task: task, now })
    }

    /// Renews at once instead of at the end of the interval, for example when a connection was reset.
    pub fn renew_now(&self) {
        self.now.notify_one();
    }
}

/// Renews until the lease has ended: every `interval`, or at once when `now` is notified.
pub(super) async fn keep<F, R>(lease: &Lease, interval: Duration, now: &Notify, mut renew: F)
where
    F: FnMut() -> R,
    R: Future<Output = Result<Renewal, BackendError>>,
{
    let mut pause = interval;
    let mut failures = 0;
    loop {
        let _ = tokio::time::timeout(pause, now.notified()).await;
        let sent = Instant::now();
        pause = match bound(sent.checked_add(interval), renew()).await {
            Some(Ok(Renewal::Renewed(time))) => {
                failures = 0;
                renewed(RenewalOutcome::Renewed);
                // The clock can't count the longest times.
                if !lease.extend(sent + time.min(LONGEST)) {
                    return;
                }
                interval.saturating_sub(sent.elapsed())
            }
            Some(Ok(Renewal::Gone(loss))) => {
                renewed(RenewalOutcome::Gone);
                return lease.end(loss);
            }
            Some(Err(error)) => {
                renewed(RenewalOutcome::Failed);
                tracing::debug!(%error, "a renewal failed: the lease lasts until its deadline");
                failures += 1;
                after_failure(interval, failures)
            }
            None => {
                renewed(RenewalOutcome::Late);
                tracing::debug!("a renewal was not answered: the lease lasts until its deadline");
                Duration::ZERO
            }
        };
    }
}

/// A panic in a request is a failure like any other, and the lease decides: tokio panics if the lookup of a name, or the reading of
/// a file, needs a thread and the system gives none at the moment.
pub(super) async fn caught<T>(
    request: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let answer = AssertUnwindSafe(request).catch_unwind().await;
    answer.unwrap_or_else(|_| Err(BackendError::new(BackendErrorKind::Other, PANICKED)))
}

/// The pause before the next call, after this number of failures in a row. It is random, so that not all clients call
/// at once when a service comes back.
fn after_failure(interval: Duration, failures: u32) -> Duration {
    let longest = LONGEST_PAUSE.min(interval / 10);
    let pause = (longest / 16).saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    pause.min(longest).mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    /// Runs on the test's own runtime, whose time is paused.
    fn keeper<F, R>(lease: Lease, interval: Duration, renew: F) -> Arc<Notify>
    where
        F: FnMut() -> R + Send + 'static,
        R: Future<Output = Result<Renewal, BackendError>> + Send,
    {
        let now = Arc::new(Notify::new());
        let asked = now.clone();
        tokio::spawn(async move { keep(&lease, interval, &asked, renew).await });
        now
    }

    fn unavailable() -> BackendError {
        BackendError::new(BackendErrorKind::Unavailable, "no answer")
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_hangs_does_not_hold_back_the_loss() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let _keeper = keeper(lease.clone(), TIME / 3, std::future::pending);
        assert_eq!(lease.signal().lost().await, Loss::Expired);
        assert_eq!(start.elapsed(), TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_ends_nothing_before_the_deadline() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let mut calls = 0;
        let _keeper = keeper(lease.clone(), TIME / 3, move || {
            calls += 1;
            async move {
                if calls < 4 {
                    Err(unavailable())
                } else {
                    Ok(Renewal::Renewed(TIME))
                }
            }
        });
        tokio::time::sleep(TIME * 3).await;
        assert_eq!(lease.loss(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_never_ends_at_the_service_is_kept() {
        let lease = Lease::until(Instant::now() + TIME);
        let renew = || async { Ok(Renewal::Renewed(Duration::MAX)) };
        let _keeper = keeper(lease.clone(), TIME / 3, renew);
        tokio::time::sleep(TIME * 2).await;
        assert_eq!(lease.loss(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_stays_away_is_asked_less_and_less_often() {
        let (asked, mut calls) = tokio::sync::mpsc::unbounded_channel();
        let interval = TIME;
        let _keeper = keeper(Lease::unbounded(), interval, move || {
            let _ = asked.send(Instant::now());
            async { Err(unavailable()) }
        });
        let mut times = Vec::new();
        for _ in 0..10 {
            times.push(calls.recv().await.unwrap());
        }
        let last = times[9] - times[8];
        assert!(last >= interval / 20 && last <= interval / 10, "{last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_succeeds_ends_a_row_of_failures() {
        let (asked, mut calls) = tokio::sync::mpsc::unbounded_channel();
        let mut count = 0;
        let _keeper = keeper(Lease::unbounded(), TIME, move || {
            let _ = asked.send(Instant::now());
            count += 1;
            let fails = count != 10;
            async move {
                if fails {
                    Err(unavailable())
                } else {
                    Ok(Renewal::Renewed(TIME))
                }
            }
        });
        let mut times = Vec::new();
        for _ in 0..12 {
            times.push(calls.recv().await.unwrap());
        }
        assert!(times[11] - times[10] <= TIME / 100);
    }

    #[test]
    fn the_pause_grows_with_failures_and_stays_short() {
        let longest = TIME / 10;
        assert!(after_failure(TIME, 1) <= longest / 16);
        for failures in 1..100 {
            let pause = after_failure(TIME, failures);
            assert!(
                !pause.is_zero() && pause <= longest,
                "{failures}: {pause:?}"
            );
        }
        assert!(after_failure(TIME, 9) >= longest / 2);
        // The same for a lease of an hour: when the service is back, the session must notice it soon.
        assert!(after_failure(Duration::from_secs(3600), 99) <= LONGEST_PAUSE);
        // A short lease leaves less time.
        assert!(after_failure(LONGEST_PAUSE, 99) <= LONGEST_PAUSE / 10);
    }

    #[tokio::test(start_paused = true)]
    async fn the_new_deadline_counts_from_when_the_renewal_was_sent() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let mut calls = 0;
        let _keeper = keeper(lease.clone(), TIME / 2, move || {
            calls += 1;
            async move {
                if calls > 1 {
                    return std::future::pending().await;
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok(Renewal::Renewed(TIME))
            }
        });
        lease.signal().lost().await;
        assert_eq!(start.elapsed(), TIME / 2 + TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_the_service_forgot_ends_at_once() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let gone = Loss::SessionEnded("revoked".into());
        let answer = gone.clone();
        let _keeper = keeper(lease.clone(), TIME / 10, move || {
            let answer = answer.clone();
            async move { Ok(Renewal::Gone(answer)) }
        });
        assert_eq!(lease.signal().lost().await, gone);
        assert_eq!(start.elapsed(), TIME / 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_is_asked_for_comes_at_once() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let (renewed, mut renewals) = tokio::sync::mpsc::unbounded_channel();
        let now = keeper(lease, TIME / 3, move || {
            let _ = renewed.send(());
            async { Ok(Renewal::Renewed(TIME)) }
        });
        tokio::task::yield_now().await;
        now.notify_one();
        renewals.recv().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        renewals.recv().await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 3);
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn renewals_are_counted_by_their_outcome() {
        let recorder = metrics_util::debugging::DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let mut calls = 0;
        let renew = || {
            calls += 1;
            let call = calls;
            async move {
                match call {
                    1 => Ok(Renewal::Renewed(TIME)),
                    2 => Err(unavailable()),
                    3 => std::future::pending().await,
                    _ => Ok(Renewal::Gone(Loss::Expired)),
                }
            }
        };
        let work = async { keep(&Lease::unbounded(), TIME, &Notify::new(), renew).await };
        metrics::with_local_recorder(&recorder, || runtime.block_on(work));
        let mut outcomes: Vec<_> = snapshotter
            .snapshot()
            .into_vec()
            .iter()
            .flat_map(|(key, ..)| key.key().labels().map(|label| label.value().to_owned()))
            .collect();
        outcomes.sort_unstable();
        assert_eq!(outcomes, ["failed", "gone", "late", "renewed"]);
    }

    #[test]
    fn it_renews_early_if_it_is_told_to() {
        let (renewed, renewals) = std::sync::mpsc::channel();
        let keeper = Keeper::spawn(Lease::unbounded(), TIME * 1_000, move || {
            let renewed = renewed.clone();
            async move {
                let _ = renewed.send(());
                Ok(Renewal::Renewed(TIME))
            }
        });
        let keeper = keeper.unwrap();
        keeper.renew_now();
        renewals.recv_timeout(TIME * 6).unwrap();
        drop(keeper);
    }

    #[test]
    fn a_renewal_that_panics_is_a_failure_like_any_other() {
        let (renewed, renewals) = std::sync::mpsc::channel();
        let mut calls = 0;
        let keeper = Keeper::spawn(Lease::unbounded(), Duration::from_millis(1), move || {
            calls += 1;
            let renewed = renewed.clone();
            async move {
                assert!(calls % 2 == 0, "the test's own panic");
                let _ = renewed.send(());
                Ok(Renewal::Renewed(TIME))
            }
        });
        for _ in 0..2 {
            renewals.recv_timeout(TIME * 6).unwrap();
        }
        drop(keeper);
    }

    #[test]
    fn it_renews_without_the_callers_runtime_until_it_is_dropped() {
        let lease = Lease::until(Instant::now() + TIME);
        let (renewed, renewals) = std::sync::mpsc::channel();
        let keeper = Keeper::spawn(lease, Duration::from_millis(1), move || {
            let renewed = renewed.clone();
            async move {
                let _ = renewed.send(());
                Ok(Renewal::Renewed(TIME))
            }
        });
        renewals.recv_timeout(TIME).unwrap();
        renewals.recv_timeout(TIME).unwrap();
        drop(keeper);
        // The closure is dropped with its task, and the sender with the closure.
        while renewals.recv_timeout(TIME).is_ok() {}
        assert!(renewals.try_recv().is_err());
    }
}
