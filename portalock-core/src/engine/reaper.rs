//! Cleans up in the background: attempts whose caller was dropped, and locks whose release failed.
//!
//! It doesn't use the caller's deadline. It has its own limited retries, and stops when the lease has ended, because
//! nothing is left to release then.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::FutureExt;

use super::{
    deadline::bound,
    service::{Demand, Service},
    timer,
};
use crate::{Attempt, BackendError, Loss, LostSignal, Request, background::CALLS, clock::Instant};

/// An attempt without an answer yet. If it panics, its result is that panic.
pub(crate) type InFlight =
    Pin<Box<dyn Future<Output = thread::Result<Result<Attempt, BackendError>>> + Send>>;

/// Wraps an attempt so that it can be completed on another runtime: the timers of a runtime that has ended panic.
pub(crate) fn in_flight(
    attempt: impl Future<Output = Result<Attempt, BackendError>> + Send + 'static,
) -> InFlight {
    Box::pin(AssertUnwindSafe(attempt).catch_unwind())
}

/// How long the reaper waits for an abandoned attempt before it releases the owner nevertheless. It is the time of the
/// longest call by default: connecting and getting an answer, twice. It only matters if the attempt's runtime, and with
/// it its timers, does not run.
const SEE_OUT: Duration = Duration::from_secs(20);
/// How long one call of `release` may take.
const ONE_RELEASE: Duration = Duration::from_secs(10);
/// How long a release is retried in all. After this time a session's lock is free in any case.
const ALL_RELEASES: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often [`shutdown`] looks whether all has ended.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The clean-ups that have not ended. A lock that another thread holds during a fork would stay locked in the child, so
/// this is an atomic number.
static PENDING: AtomicU64 = AtomicU64::new(0);

/// Changes and returns the number of clean-ups of this process that have not ended.
fn pending(change: impl Fn(u32) -> u32) -> u32 {
    let process = std::process::id();
    let changed = |packed| {
        let count = change(count_in(packed, process));
        (u64::from(process) << 32) + u64::from(count)
    };
    let mut packed = PENDING.load(Ordering::Acquire);
    loop {
        let new = changed(packed);
        match PENDING.compare_exchange_weak(packed, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return count_in(new, process),
            Err(found) => packed = found,
        }
    }
}

/// The number in `packed`, which has a process id in its upper half: a forked child inherits the number of its parent, but
/// not the clean-ups.
fn count_in(packed: u64, process: u32) -> u32 {
    let [of, count] =
        [packed >> 32, packed & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(0));
    if of == process { count } else { 0 }
}

/// Some clean-up had not ended at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{pending} released or abandoned locks had not been cleaned up by the deadline: they end with their session or lease"
)]
pub struct Unfinished {
    /// The number of acquisitions that are still being cleaned up.
    pub pending: usize,
}

/// Waits for at most `timeout` until the clean-up of all dropped guards and calls of this process has ended.
///
/// Call it before a program ends its runtime. Otherwise locks that were dropped last may stay held until their lease
/// ends. File locks and in-memory locks don't need it, because `drop` releases them at once.
///
/// # Errors
///
/// [`Unfinished`] if clean-up is still running after `timeout`.
///
/// # Cancel safety
///
/// Safe: the clean-up continues.
pub async fn shutdown(timeout: Duration) -> Result<(), Unfinished> {
    // There is no wake-up, because its lock could stay locked in a forked child.
    let all_done = async {
        while pending(|count| count) > 0 {
            timer::at(Instant::now() + LOOK_EVERY).await;
        }
    };
    match bound(Instant::now().checked_add(timeout), all_done).await {
        Some(()) => Ok(()),
        None => Err(Unfinished {
            pending: pending(|count| count) as usize,
        }),
    }
}

/// Releases the owner of `request`, in the background if it can't be done at once.
pub(crate) fn release<S: Service<D>, D: Demand>(
    service: S,
    request: Arc<Request<D>>,
    lost: LostSignal,
) {
    if !release_now(&service, &request) {
        Cleanup::new(service, request, None, lost).start();
    }
}

/// Called by a dropped guard. A backend must not panic here. If it does, this must not abort the process, as a panic in
/// a destructor does during unwinding.
fn release_now<S: Service<D>, D: Demand>(service: &S, request: &Request<D>) -> bool {
    let is_released = catch_unwind(AssertUnwindSafe(|| service.release_now(request)));
    is_released.unwrap_or_else(|_| {
        // The log may have been what panicked.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            tracing::error!(name = %request.name, owner = %request.owner, "the backend panicked in `release_now`");
        }));
        false
    })
}

/// Releases the owner of a dropped call, perhaps after an attempt in flight.
pub(crate) fn withdraw<S: Service<D>, D: Demand>(
    service: S,
    request: Arc<Request<D>>,
    in_flight: Option<InFlight>,
) {
    if in_flight.is_none() {
        return release(service, request, LostSignal::never());
    }
    Cleanup::new(service, request, in_flight, LostSignal::never()).start();
}

struct Cleanup<S: Service<D>, D: Demand> {
    service: S,
    request: Arc<Request<D>>,
    in_flight: Option<InFlight>,
    lost: LostSignal,
}

impl<S: Service<D>, D: Demand> Cleanup<S, D> {
    fn new(
        service: S,
        request: Arc<Request<D>>,
        in_flight: Option<InFlight>,
        lost: LostSignal,
    ) -> Self {
        pending(|count| count.saturating_add(1));
        Self {
            service,
            request,
            in_flight,
            lost,
        }
    }

    /// Runs on the background runtime, because the caller's runtime may block, or end before the clean-up does.
    fn start(mut self) {
        // In a forked child this is a copy of the parent's hold or queue place, which the child must not release.
        if self.request.owner.is_inherited() {
            // Not dropped: what it consists of may wait for a thread of the parent.
            std::mem::forget(self.in_flight.take());
            return;
        }
        CALLS.spawn(self.run());
    }

    async fn run(mut self) {
        let mut is_answered = true;
        if let Some(attempt) = self.in_flight.take() {
            let attempt = bound(Instant::now().checked_add(SEE_OUT), attempt);
            // It may also panic when it is dropped.
            match AssertUnwindSafe(attempt).catch_unwind().await {
                Ok(Some(Ok(Ok(Attempt::Granted(grant))))) => self.lost = grant.lost,
                Ok(Some(Ok(_))) => {}
                _ => is_answered = false,
            }
        }
        self.release().await;
        // Last, because the program's log may panic, and the lock would stay held.
        if !is_answered {
            tracing::warn!(name = %self.request.name, owner = %self.request.owner,
                "an abandoned attempt never ended, or panicked: its owner was released all the same");
        }
    }

    fn lease_has_ended(&self) -> bool {
        let loss = self.lost.loss();
        matches!(loss, Some(Loss::Expired | Loss::SessionEnded(_)))
    }

    async fn release(&mut self) {
        if release_now(&self.service, &self.request) {
            return;
        }
        let give_up = Instant::now().checked_add(ALL_RELEASES);
        let mut pause = FIRST_PAUSE;
        loop {
            // In a block, because a backend can panic before it returns a future.
            let release = async { self.service.release(&self.request).await };
            let release = bound(Instant::now().checked_add(ONE_RELEASE), release);
            // A panic is no answer, also one when the call is dropped: tokio panics if a release needs a thread and the system gives
            // none at the moment.
            let answer = AssertUnwindSafe(release).catch_unwind().await;
            let answer = answer.ok().flatten();
            let error = match answer {
                Some(Ok(_)) => return,
                // Release at least once, because the backend itself may have a record of the owner. If its lease goes on, something may be
                // left: one slot of several was lost.
                _ if self.lease_has_ended() => return,
                Some(Err(error)) if !error.is_retryable() => Some(error),
                _ if give_up.is_none_or(|at| Instant::now() < at) => {
                    timer::at(Instant::now() + pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
                answer => answer.and_then(Result::err),
            };
            let error = error.as_ref().map(tracing::field::display);
            tracing::warn!(name = %self.request.name, owner = %self.request.owner, error,
                "gave up releasing a lock: it ends with its session or lease");
            return;
        }
    }
}

impl<S: Service<D>, D: Demand> Drop for Cleanup<S, D> {
    fn drop(&mut self) {
        // A child may drop a clean-up that its parent has counted.
        pending(|count| count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
