//! Keeps a lease alive: renews it in the background until it ends or nobody needs it any more.

use std::{future::Future, pin::pin, time::Duration};

use futures_util::future::select;
use tokio::task::AbortHandle;

use super::deadline::bound;
use crate::{BackendError, Lease, Loss, clock::Instant};

/// What the service said to a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// The lease goes on, for this long from when the renewal was sent.
    Renewed(Duration),
    /// The service no longer knows the lease: it is over.
    Gone(Loss),
}

/// A task that renews a [`Lease`]. Dropping the keeper stops the task; the lease then runs out at its deadline.
///
/// A renewal that fails or hangs is *unknown*: it extends nothing and ends nothing. The lease lasts until its own
/// deadline, on this machine's clock, whatever the call in flight does.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::{clock::Instant, Keeper, Lease, Renewal};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let time = Duration::from_secs(10);
/// let lease = Lease::until(Instant::now() + time);
/// let keeper = Keeper::spawn(lease.clone(), time / 3, move || async move {
///     // Ask your service to renew here.
///     Ok(Renewal::Renewed(time))
/// });
/// tokio::time::sleep(time * 10).await;
/// assert_eq!(lease.loss(), None);
///
/// drop(keeper);
/// tokio::time::sleep(time * 2).await;
/// assert!(lease.loss().is_some());
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping a keeper lets the lease run out"]
pub struct Keeper(AbortHandle);

impl Keeper {
    /// Renews `lease` every `interval` by calling `renew`, until the lease has ended or the keeper is dropped.
    ///
    /// A call that has not answered within `interval` is dropped and made anew: `renew` must be safe to cancel. After a
    /// failure the next call comes after a tenth of the interval.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime, as [`tokio::spawn`] does.
    pub fn spawn<F, R>(lease: Lease, interval: Duration, renew: F) -> Self
    where
        F: FnMut() -> R + Send + 'static,
        R: Future<Output = Result<Renewal, BackendError>> + Send,
    {
        let task = tokio::spawn(async move {
            let ended = lease.signal();
            select(pin!(ended.lost()), pin!(keep(&lease, interval, renew))).await;
        });
        Self(task.abort_handle())
    }
}

async fn keep<F, R>(lease: &Lease, interval: Duration, mut renew: F)
where
    F: FnMut() -> R,
    R: Future<Output = Result<Renewal, BackendError>>,
{
    let mut pause = interval;
    loop {
        tokio::time::sleep(pause).await;
        let sent = Instant::now();
        pause = match bound(sent.checked_add(interval), renew()).await {
            Some(Ok(Renewal::Renewed(time))) => {
                if !sent
                    .checked_add(time)
                    .is_some_and(|deadline| lease.extend(deadline))
                {
                    return;
                }
                interval.saturating_sub(sent.elapsed())
            }
            Some(Ok(Renewal::Gone(loss))) => return lease.end(loss),
            Some(Err(error)) => {
                tracing::debug!(%error, "a renewal failed: the lease lasts until its deadline");
                interval / 10
            }
            None => {
                tracing::debug!("a renewal was not answered: the lease lasts until its deadline");
                Duration::ZERO
            }
        };
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BackendErrorKind;

    const TIME: Duration = Duration::from_secs(10);

    fn unavailable() -> BackendError {
        BackendError::new(BackendErrorKind::Unavailable, "no answer")
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_hangs_does_not_hold_back_the_loss() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let _keeper = Keeper::spawn(lease.clone(), TIME / 3, std::future::pending);
        assert_eq!(lease.signal().lost().await, Loss::Expired);
        assert_eq!(start.elapsed(), TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_ends_nothing_before_the_deadline() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let mut calls = 0;
        let _keeper = Keeper::spawn(lease.clone(), TIME / 3, move || {
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
    async fn the_new_deadline_counts_from_when_the_renewal_was_sent() {
        let start = Instant::now();
        let lease = Lease::until(start + TIME);
        let mut calls = 0;
        let _keeper = Keeper::spawn(lease.clone(), TIME / 2, move || {
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
        let _keeper = Keeper::spawn(lease.clone(), TIME / 10, move || {
            let answer = answer.clone();
            async move { Ok(Renewal::Gone(answer)) }
        });
        assert_eq!(lease.signal().lost().await, gone);
        assert_eq!(start.elapsed(), TIME / 10);
    }
}
