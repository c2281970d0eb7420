//! One acquisition, from the first attempt to the grant: try, subscribe, try again, sleep until woken.

use std::{future::poll_fn, panic::resume_unwind, pin::pin, sync::Arc, time::Duration};

use futures_util::{future::lazy, pending};
use tracing::debug;

use super::{
    backoff::Backoff,
    deadline::{Deadline, bound},
    held::Held,
    measure,
    reaper::{self, InFlight},
    service::{Demand, Service},
};
use crate::{
    Attempt, BackendError, BackendErrorKind, Contention, CrashRelease, Grant, LockError, Patience,
    Policy, Request, Wake, Wakeups, clock::Instant,
};

/// How long the attempt of a call that does not wait may take, if its policy sets no time.
const ONE_ATTEMPT: Duration = Policy::DEFAULT_TIMEOUT;
/// If an attempt has been in flight for less than this at the deadline, the service may be healthy.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// What a call does if the lock is contended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolve {
    /// Return at once.
    Try,
    /// Wait, according to the policy.
    Wait,
}

/// Acquires the lock or the permits of `request`, and sets its patience.
///
/// The deadline counts from `since`, the start of the caller's call: a set acquires several names with one deadline.
pub(crate) async fn acquire<S: Service<D>, D: Demand>(
    service: &S,
    mut request: Request<D>,
    policy: &Policy,
    resolve: Resolve,
    since: Option<Instant>,
) -> Result<Held<S, D>, LockError> {
    let fails_at_once = resolve == Resolve::Try || policy.fail_when_locked();
    let waits = !fails_at_once && policy.timeout() != Some(Duration::ZERO);
    request.patience = if waits {
        Patience::Queue
    } else {
        Patience::Once
    };
    let timeout = match policy.timeout() {
        Some(Duration::ZERO) => Some(ONE_ATTEMPT),
        None if resolve == Resolve::Try => Some(ONE_ATTEMPT),
        timeout => timeout,
    };
    let now = Instant::now();
    let since = since.unwrap_or(now);
    let span = tracing::debug_span!("acquire", backend = %service.kind(), name = %request.name, want = %request.demand, owner = %request.owner);
    let wait = Wait {
        policy,
        since,
        first_sent: now,
        deadline: Deadline::after(since, timeout),
        fails_at_once,
        waits,
        backoff: Backoff::new(policy),
        after_failure: Backoff::after_failure(policy),
        attempts: 0,
        failures: 0,
        failing_since: None,
        has_failed: false,
        seen: None,
        last_error: None,
        round_trip: Duration::ZERO,
    };
    let name = request.name.clone();
    // Outside the wait: if a destructor there panics, the owner is released.
    let mut place = Place::new(service.clone(), request);
    let granted = {
        let mut waiting = pin!(wait.run(&mut place));
        // Dropped outside the span: the program's log may panic when a span is entered, during unwinding too.
        poll_fn(|context| span.in_scope(|| waiting.as_mut().poll(context))).await
    };
    let result = granted.map(|grant| place.into_held(grant));
    measure::waited(service.kind(), &name, since, &result);
    result
}

/// A request that may have left something at the service. Its owner is released when this is dropped.
struct Place<S: Service<D>, D: Demand> {
    service: S,
    request: Arc<Request<D>>,
    in_flight: Option<InFlight>,
    armed: bool,
}

impl<S: Service<D>, D: Demand> Place<S, D> {
    fn new(service: S, request: Request<D>) -> Self {
        Self {
            service,
            request: Arc::new(request),
            in_flight: None,
            armed: false,
        }
    }

    /// Sends an attempt, and waits for its answer until `deadline`. Without an answer it stays in flight.
    async fn attempt(
        &mut self,
        deadline: Option<Instant>,
    ) -> Option<Result<Attempt, BackendError>> {
        let (service, request) = (self.service.clone(), self.request.clone());
        let attempt = reaper::in_flight(async move { service.try_acquire(&request).await });
        let attempt = self.in_flight.insert(attempt);
        self.armed = true;
        let answer = bound(deadline, attempt.as_mut()).await?;
        self.in_flight = None;
        Some(answer.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// From now on the guard releases the grant.
    fn into_held(mut self, grant: Grant) -> Held<S, D> {
        self.armed = false;
        Held::new(self.service.clone(), self.request.clone(), grant)
    }

    /// The backend has answered that it keeps nothing of this request.
    fn disarm(&mut self) {
        self.armed = false;
    }
}

impl<S: Service<D>, D: Demand> Drop for Place<S, D> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        reaper::withdraw(
            self.service.clone(),
            self.request.clone(),
            self.in_flight.take(),
        );
    }
}

struct Wait<'p> {
    policy: &'p Policy,
    /// When the caller's call began.
    since: Instant,
    first_sent: Instant,
    deadline: Deadline,
    fails_at_once: bool,
    waits: bool,
    backoff: Backoff,
    after_failure: Backoff,
    attempts: u32,
    /// Consecutive failures.
    failures: u32,
    /// When the first of them happened.
    failing_since: Option<Instant>,
    has_failed: bool,
    /// The last contended answer.
    seen: Option<Contention>,
    /// The last failure, if there was no answer after it.
    last_error: Option<BackendError>,
    round_trip: Duration,
}

/// How a waiter learns of its turn.
enum Line {
    /// It has not subscribed yet, could not, or its place in the queue is gone.
    NotAsked,
    /// The backend has no wake-ups.
    Unwoken,
    Open(Wakeups),
    /// No wake-up will come any more, so `recheck_after`, which relies on wake-ups, is ignored.
    Silent,
}

/// How a pause ended.
enum Pause {
    Look,
    Granted(Grant),
    Failed(BackendError),
    Deadline,
}

impl Wait<'_> {
    async fn run<S: Service<D>, D: Demand>(
        mut self,
        place: &mut Place<S, D>,
    ) -> Result<Grant, LockError> {
        let mut line = Line::NotAsked;
        let mut waiter = None;
        loop {
            match self.attempt(place, &line).await? {
                Some(Attempt::Granted(grant)) => return Ok(self.granted(grant)),
                Some(Attempt::Contended(contention)) => {
                    self.contended(place, contention)?;
                    waiter.get_or_insert_with(|| {
                        measure::Waiter::new(place.service.kind(), &place.request.name)
                    });
                    if matches!(line, Line::NotAsked) {
                        debug!("waiting");
                        line = self.subscribe(place).await?;
                        let queued = self.seen.as_ref().is_some_and(|seen| seen.queued);
                        if matches!(line, Line::Open(_)) && !queued {
                            continue;
                        }
                    }
                }
                None => {}
            }
            match self.pause(&mut line).await {
                Pause::Look => {}
                Pause::Granted(grant) => return Ok(self.granted(grant)),
                Pause::Failed(error) => {
                    // The place in the queue ended with its session: take a new one, and subscribe again.
                    line = Line::NotAsked;
                    self.backoff.restart();
                    self.failed(place, &line, error)?;
                }
                Pause::Deadline => return Err(self.timed_out(place)),
            }
        }
    }

    /// Makes one attempt. `None` if it failed and a retry may help.
    async fn attempt<S: Service<D>, D: Demand>(
        &mut self,
        place: &mut Place<S, D>,
        line: &Line,
    ) -> Result<Option<Attempt>, LockError> {
        // An attempt may be answered without waiting, and a pause may be over at once: a task that acquires a free lock
        // in a loop, or tries a held one with the shortest check interval, would never let other tasks run.
        tokio::task::coop::consume_budget().await;
        self.attempts = self.attempts.saturating_add(1);
        let sent = match self.attempts {
            1 => self.first_sent,
            _ => Instant::now(),
        };
        match place.attempt(self.deadline.instant()).await {
            Some(Ok(attempt)) => {
                if matches!(attempt, Attempt::Contended(_)) {
                    self.round_trip = sent.elapsed();
                }
                self.failures = 0;
                self.failing_since = None;
                self.after_failure.restart();
                self.last_error = None;
                Ok(Some(attempt))
            }
            Some(Err(error)) => self.failed(place, line, error).map(|()| None),
            None => {
                if self.last_error.is_none()
                    && (self.seen.is_none() || sent.elapsed() >= SUSPICIOUS)
                {
                    let silence = "the lock service gave no answer before the deadline";
                    self.last_error =
                        Some(BackendError::new(BackendErrorKind::Unavailable, silence));
                }
                Err(self.timed_out(place))
            }
        }
    }

    fn granted(&self, grant: Grant) -> Grant {
        debug!(waited = ?self.since.elapsed(), attempts = self.attempts, token = grant.token.map(u64::from), "acquired");
        grant
    }

    fn contended<S: Service<D>, D: Demand>(
        &mut self,
        place: &mut Place<S, D>,
        contention: Contention,
    ) -> Result<(), LockError> {
        if self.seen.is_none() {
            let holder = contention.holder.as_ref().map(tracing::field::display);
            debug!(holder, waits = self.waits, "contended");
        }
        self.seen = Some(contention);
        if self.waits {
            return Ok(());
        }
        // A failed attempt may still be in flight at the service: then its owner must be released.
        if !self.has_failed {
            place.disarm();
        }
        if self.fails_at_once {
            return Err(LockError::AlreadyLocked {
                name: place.request.name.clone(),
                permits: place.request.demand.permits(),
                holder: self.holder(),
            });
        }
        Err(self.timed_out(place))
    }

    /// Counts a failure. Returns an error if there are too many, or if a retry can't help.
    ///
    /// A subscribed waiter keeps its place in the queue, and is told if the place is lost. So its wait goes on, whatever the
    /// number of failures, for as long as the service keeps the places of a crashed client: a restart of the service costs no
    /// waiter its place.
    fn failed<S: Service<D>, D: Demand>(
        &mut self,
        place: &Place<S, D>,
        line: &Line,
        error: BackendError,
    ) -> Result<(), LockError> {
        let now = Instant::now();
        self.failures = self.failures.saturating_add(1);
        self.has_failed = true;
        let since = *self.failing_since.get_or_insert(now);
        let queued = self.seen.as_ref().is_some_and(|seen| seen.queued);
        let kept = match place.service.capabilities().crash_release {
            CrashRelease::Within(time) if queued && matches!(line, Line::Open(_)) => time,
            _ => Duration::ZERO,
        };
        let gives_up =
            self.failures > self.policy.max_failures() && now.duration_since(since) >= kept;
        debug!(%error, failures = self.failures, "the lock service failed");
        if !error.is_retryable() || gives_up {
            return Err(LockError::Backend {
                name: place.request.name.clone(),
                source: error,
            });
        }
        self.last_error = Some(error);
        Ok(())
    }

    async fn subscribe<S: Service<D>, D: Demand>(
        &mut self,
        place: &mut Place<S, D>,
    ) -> Result<Line, LockError> {
        let subscription = self
            .deadline
            .bound(place.service.subscribe(&place.request))
            .await;
        match subscription {
            Some(Ok(Some(wakeups))) => {
                self.backoff.slow_down();
                Ok(Line::Open(wakeups))
            }
            Some(Ok(None)) => Ok(Line::Unwoken),
            // The session may have been closed since the attempt. The next attempt may get a place with `recheck_after`, which relies
            // on wake-ups, so it subscribes again.
            Some(Err(error)) => {
                self.failed(place, &Line::NotAsked, error)?;
                // The attempt had an answer: the lock is held.
                self.last_error = None;
                Ok(Line::NotAsked)
            }
            None => Err(self.timed_out(place)),
        }
    }

    /// Sleeps until the next attempt is due, or a wake-up comes.
    async fn pause(&mut self, line: &mut Line) -> Pause {
        loop {
            if let Some(pause) = self.sleep(line).await {
                return pause;
            }
            // From now on it polls. So far it has paused as one that a wake-up tells.
            self.backoff.restart();
            *line = Line::Silent;
        }
    }

    /// One pause; `None` if no further wake-up will come.
    async fn sleep(&mut self, line: &mut Line) -> Option<Pause> {
        let advice = self.seen.as_ref().and_then(|seen| seen.recheck_after);
        let pause = match (&self.last_error, advice) {
            (Some(_), _) => self.after_failure.pause(),
            (None, Some(advice)) if !matches!(line, Line::NotAsked | Line::Silent) => advice,
            (None, _) => self.backoff.pause(),
        };
        let look_at = Instant::now().checked_add(pause);
        let until = self
            .last_look()
            .into_iter()
            .chain(look_at)
            .min()
            .or(self.deadline.instant());
        let listen = async {
            match line {
                Line::Open(wakeups) => wakeups.next().await,
                _ => std::future::pending().await,
            }
        };
        Some(match bound(until, listen).await {
            Some(Wake::Granted(grant)) => Pause::Granted(grant),
            Some(Wake::Failed(error)) => Pause::Failed(error),
            Some(Wake::TryNow) => {
                self.backoff.restart();
                Pause::Look
            }
            Some(Wake::Silent) => return None,
            None if self.deadline.has_passed() => Pause::Deadline,
            None => {
                // The pause may have been over at once, and other executors than tokio have no budget that ends.
                lazy(|context| context.waker().wake_by_ref()).await;
                pending!();
                Pause::Look
            }
        })
    }

    /// The latest end of the pause. First it is early enough before the deadline for the answer to one more attempt, so
    /// that a lock freed between two attempts is not missed. After that attempt it is the deadline, or there is one more if this
    /// one was quicker than the one before.
    fn last_look(&self) -> Option<Instant> {
        let deadline = self.deadline.instant()?;
        let margin = self
            .round_trip
            .saturating_mul(2)
            .max(Duration::from_millis(2));
        let last_look = deadline.checked_sub(margin)?;
        Some(if last_look > Instant::now() {
            last_look
        } else {
            deadline
        })
    }

    fn holder(&self) -> Option<Box<crate::Holder>> {
        self.seen
            .as_ref()
            .and_then(|seen| seen.holder.clone())
            .map(Box::new)
    }

    fn timed_out<S: Service<D>, D: Demand>(&self, place: &Place<S, D>) -> LockError {
        let waited = self.since.elapsed();
        debug!(?waited, attempts = self.attempts, "timed out");
        LockError::Timeout {
            name: place.request.name.clone(),
            waited,
            attempts: self.attempts,
            holder: self.holder(),
            last_error: self.last_error.clone(),
        }
    }
}
