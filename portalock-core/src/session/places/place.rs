//! The state of one owner's place, and its waiter.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Asked, neighbours::Turn};
use crate::{
    BackendError, FencingToken, Grant, Lease, Loss, LostSignal, OwnerId, Wake, WakeSender,
};

#[derive(Debug)]
pub(super) struct Place<P> {
    pub(super) at: P,
    pub(super) phase: Phase,
    /// Whether a request without an answer may still be in flight.
    pub(super) unsure: bool,
    /// Whether a request that failed may have been executed nevertheless.
    pub(super) left: bool,
    /// The loss, if the lock was broken. The session may not know yet that the owner holds it.
    pub(super) broken: Option<Box<Loss>>,
    /// Changes with the phase. No two places have the same version.
    pub(super) version: u64,
    pub(super) waiting: Option<Box<Waiting>>,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Requested, without an answer yet.
    Asked,
    /// In the queue, as the service has answered.
    Queued,
    /// Granted. The lease ends if somebody removes the place from the service.
    Held(FencingToken, Lease),
    /// A release is in flight. If the place is missing at the service, this is no loss. `passes_on`: the owner held, and
    /// the waiter right behind it may hold now.
    Releasing { passes_on: bool },
    /// A release failed or was dropped: the session repeats it.
    Due,
}

/// The data that only waiters need. It is separate because a session can hold many locks.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The waiter's subscription, if it has one.
    pub(super) line: Option<WakeSender>,
    /// A grant that came while no waiter was subscribed.
    pub(super) unheard: Option<Grant>,
    /// The owner was told to repeat its attempt while no waiter was subscribed.
    pub(super) unheard_wake: bool,
    /// When this waiter holds without a message of the service.
    pub(super) turn: Option<Turn>,
    /// The waiter right behind this owner.
    pub(super) next: Option<OwnerId>,
}

/// Wakes somebody when it is dropped, after the book was unlocked: a wake-up may run any code, which may need the book.
#[derive(Debug)]
#[must_use = "dropping it wakes at once"]
pub(super) enum News {
    /// The waiter has a message.
    Waiter(WakeSender),
    /// The hold's lease has ended.
    Holder(Lease),
}

impl Drop for News {
    fn drop(&mut self) {
        match self {
            Self::Waiter(line) => line.ring(),
            Self::Holder(lease) => lease.tell(),
        }
    }
}

fn next_version() -> u64 {
    static LATEST: AtomicU64 = AtomicU64::new(0);
    LATEST.fetch_add(1, Ordering::Relaxed)
}

impl<P> Place<P> {
    pub(super) fn new(at: P, phase: Phase) -> Self {
        Self {
            at,
            phase,
            unsure: false,
            left: false,
            broken: None,
            version: next_version(),
            waiting: None,
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Releasing { .. } | Phase::Due)
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Asked | Phase::Queued)
    }

    /// Whether its owner holds, and no loss of the hold is known.
    pub(super) fn holds_for_certain(&self) -> bool {
        matches!(&self.phase, Phase::Held(_, lease) if lease.loss().is_none())
    }

    pub(super) fn asked(&self, owner: OwnerId, waiters: bool) -> Option<Asked<P>>
    where
        P: Clone,
    {
        let held = matches!(self.phase, Phase::Held(..));
        let stands = held || (waiters && matches!(self.phase, Phase::Queued));
        stands.then(|| Asked {
            owner,
            at: self.at.clone(),
            held,
            version: self.version,
        })
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.version = next_version();
    }

    pub(super) fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    pub(super) fn line(&self) -> Option<&WakeSender> {
        self.waiting.as_ref()?.line.as_ref()
    }

    fn post(&self, message: Wake) -> Option<News> {
        let line = self.line().filter(|line| line.post(message))?;
        Some(News::Waiter(line.clone()))
    }

    pub(super) fn wake(&mut self) -> Option<News> {
        let woken = self.post(Wake::TryNow);
        if woken.is_none() {
            self.waiting().unheard_wake = true;
        }
        woken
    }

    /// Ends its hold, if it has one.
    pub(super) fn end(&self, loss: Loss) -> Option<News> {
        match &self.phase {
            Phase::Held(_, lease) if lease.record(loss) => Some(News::Holder(lease.clone())),
            _ => None,
        }
    }

    /// Ends its hold, because the service has lost it.
    pub(super) fn lose(&self, service: &str) -> Option<News> {
        self.end(Loss::Removed(
            format!("what stood for it in {service} is gone").into(),
        ))
    }

    pub(super) fn fail(&self, error: BackendError) -> Option<News> {
        self.post(Wake::Failed(error))
    }

    pub(super) fn granted(&mut self, token: FencingToken, session: &LostSignal) -> Option<News> {
        if !self.waits() {
            return None;
        }
        let grant = self.hold(token, session);
        let heard = self.post(Wake::Granted(grant.clone()));
        if heard.is_none() {
            // Also if the waiter was told of a failure, and has not yet subscribed again.
            self.waiting().unheard = Some(grant);
        }
        heard
    }

    pub(super) fn hold(&mut self, token: FencingToken, session: &LostSignal) -> Grant {
        let lease = match &self.phase {
            Phase::Held(_, lease) => lease.clone(),
            _ => Lease::unbounded(),
        };
        if let Some(loss) = &self.broken {
            lease.end((**loss).clone());
        }
        let lost = LostSignal::any([session.clone(), lease.signal()]);
        if self.waits() {
            self.enter(Phase::Held(token, lease));
        }
        Grant::new().with_token(token).with_lost(lost)
    }
}
