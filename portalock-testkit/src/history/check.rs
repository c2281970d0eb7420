//! The checker: one pass over the events, with the holders and waiters of each name.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use portalock_core::{
    Capabilities, CrashRelease, Fairness, FencingToken, LockName, LossNotice, Mode, Permits, Tokens,
};

use super::{Event, Happened, History, Violation};
use crate::verdict::SLACK;

/// If a lock is free for longer than this while somebody waits, its waiter was forgotten.
const FORGOTTEN_AFTER: Duration = SLACK;

impl History {
    /// Compares the events with the claims of a backend. If there is no violation, the events show none; there may
    /// still be one.
    pub fn check(&self, claims: &Capabilities) -> Vec<Violation> {
        let mut checker = Checker::new(claims, &self.events);
        for (index, event) in self.events.iter().enumerate() {
            checker.see(index, event);
        }
        checker.finish()
    }
}

#[derive(Clone, Copy)]
enum Demand {
    Lock(Mode),
    Permits(Permits),
}

impl Demand {
    /// Whether they can't hold at once. For permits that depends on all holders.
    fn excludes(self, other: Self) -> bool {
        match (self, other) {
            (Self::Lock(one), Self::Lock(other)) => [one, other].contains(&Mode::Exclusive),
            _ => false,
        }
    }

    /// Whether one has to wait behind the other if it comes later.
    fn waits_behind(self, other: Self) -> bool {
        matches!(self, Self::Permits(_)) || self.excludes(other)
    }

    fn permits(self) -> Option<Permits> {
        match self {
            Self::Lock(_) => None,
            Self::Permits(permits) => Some(permits),
        }
    }
}

/// A lock, or a semaphore: these may have the same name.
type Key = (bool, LockName);

struct Acquisition {
    client: usize,
    name: LockName,
    demand: Demand,
    asked: usize,
    asked_at: Duration,
    /// The largest token of the name at its request: its own must be larger.
    floor: Option<FencingToken>,
    answered: bool,
}

impl Acquisition {
    fn key(&self) -> Key {
        (self.demand.permits().is_some(), self.name.clone())
    }
}

#[derive(Default)]
struct Name {
    /// The certain holders: granted, not lost, and not releasing.
    holders: Vec<u64>,
    /// The waiters with a certain place: the acquisition, and since when.
    queue: Vec<(u64, usize)>,
    /// Until when an uncertain holder may hold.
    busy: HashMap<u64, Option<Duration>>,
    highest: Option<FencingToken>,
    highest_exclusive: Option<FencingToken>,
    tokens: HashSet<FencingToken>,
}

impl Name {
    fn hold(&mut self, id: u64) {
        self.holders.push(id);
        // Of the earlier releases, only the latest matters for the remaining waiters.
        let last_end = self.busy.values().filter_map(|end| *end).max();
        self.busy.retain(|_, end| end.is_none() || *end == last_end);
        self.busy.insert(id, None);
    }
}

/// Facts about the acquisitions from the whole history, including later events.
#[derive(Default)]
struct Foreknown {
    granted: HashSet<u64>,
    /// When each learnt of its loss.
    told_at: HashMap<u64, Duration>,
    /// When each stopped relying on its lock, for any reason.
    ended_at: HashMap<u64, Duration>,
    /// The acquisitions whose locks were taken away, or may have been.
    robbed: HashSet<u64>,
}

impl Foreknown {
    fn of(events: &[Event]) -> Self {
        let mut known = Self::default();
        for event in events {
            let id = event.acquisition;
            match event.what {
                Happened::Granted { .. } => {
                    known.granted.insert(id);
                }
                Happened::TakenAway => {
                    known.robbed.insert(id);
                }
                Happened::Lost => {
                    known.told_at.entry(id).or_insert(event.at);
                    known.ended_at.entry(id).or_insert(event.at);
                }
                Happened::Releasing | Happened::Crashed => {
                    known.ended_at.entry(id).or_insert(event.at);
                }
                _ => {}
            }
        }
        known
    }

    /// Whether the history has any loss: waiters that lost their place may be overtaken.
    fn any_loss(&self) -> bool {
        !self.told_at.is_empty() || !self.robbed.is_empty()
    }

    /// Whether an acquisition that lost its lock was told, or had let go by itself, by `limit`.
    fn gone_by(&self, id: u64, limit: Duration) -> bool {
        let ended = if self.robbed.contains(&id) {
            self.ended_at.get(&id)
        } else {
            self.told_at.get(&id)
        };
        ended.is_some_and(|at| *at <= limit)
    }
}

struct Checker<'h> {
    claims: &'h Capabilities,
    known: Foreknown,
    acquisitions: HashMap<u64, Acquisition>,
    names: HashMap<Key, Name>,
    violations: Vec<Violation>,
}

impl<'h> Checker<'h> {
    fn new(claims: &'h Capabilities, events: &[Event]) -> Self {
        Self {
            claims,
            known: Foreknown::of(events),
            acquisitions: HashMap::new(),
            names: HashMap::new(),
            violations: Vec::new(),
        }
    }

    fn see(&mut self, index: usize, event: &Event) {
        let id = event.acquisition;
        match &event.what {
            Happened::Asked { client, name, mode } => {
                self.ask(index, event, *client, name, Demand::Lock(*mode));
            }
            Happened::AskedPermits {
                client,
                name,
                permits,
            } => self.ask(index, event, *client, name, Demand::Permits(*permits)),
            Happened::Queued => self.with(id, |_, state| state.queue.push((id, index))),
            Happened::Granted { token } => self.grant(id, event.at, *token),
            Happened::Lost | Happened::Releasing => self.with(id, |_, state| {
                state.holders.retain(|holder| *holder != id);
            }),
            Happened::TakenAway => {}
            Happened::Released => self.with(id, |_, state| {
                state.busy.insert(id, Some(event.at));
            }),
            Happened::GaveUp => self.answered(id),
            Happened::TimedOut => {
                self.forgotten(id, event.at);
                self.answered(id);
            }
            Happened::Crashed => {
                let free_by = match self.claims.crash_release {
                    CrashRelease::Within(bound) => Some(event.at + bound),
                    _ => None,
                };
                self.with(id, |_, state| {
                    state.holders.retain(|holder| *holder != id);
                    if state.busy.contains_key(&id) {
                        state.busy.insert(id, free_by);
                    }
                });
                self.answered(id);
            }
        }
    }

    fn ask(&mut self, index: usize, event: &Event, client: usize, name: &LockName, demand: Demand) {
        let mut acquisition = Acquisition {
            client,
            name: name.clone(),
            demand,
            asked: index,
            asked_at: event.at,
            floor: None,
            answered: false,
        };
        acquisition.floor = self.names.entry(acquisition.key()).or_default().highest;
        self.acquisitions.insert(event.acquisition, acquisition);
    }

    fn with(&mut self, id: u64, change: impl FnOnce(&mut Acquisition, &mut Name)) {
        if let Some(acquisition) = self.acquisitions.get_mut(&id)
            && let Some(state) = self.names.get_mut(&acquisition.key())
        {
            change(acquisition, state);
        }
    }

    fn answered(&mut self, id: u64) {
        self.with(id, |acquisition, state| {
            acquisition.answered = true;
            state.queue.retain(|(waiter, _)| *waiter != id);
        });
    }

    fn grant(&mut self, id: u64, at: Duration, token: Option<FencingToken>) {
        self.answered(id);
        let Some(this) = self.acquisitions.get(&id) else {
            return;
        };
        let Some(state) = self.names.get_mut(&this.key()) else {
            return;
        };
        let demand_of = |other: &u64| self.acquisitions.get(other).map(|other| other.demand);
        let certain = |holder: &u64| !excused(self.claims, &self.known, [*holder, id], at);
        let others = || state.holders.iter().filter(|holder| certain(holder));
        let overlaps = others()
            .filter(|holder| demand_of(holder).is_some_and(|demand| demand.excludes(this.demand)));
        self.violations
            .extend(overlaps.map(|holder| Violation::Overlap {
                name: this.name.clone(),
                earlier: *holder,
                later: id,
                at,
            }));
        let permits = others()
            .chain([&id])
            .filter_map(demand_of)
            .filter_map(Demand::permits);
        let (held, capacity) = permits.fold((0, u32::MAX), |(held, capacity), one| {
            (held + u64::from(one.count()), capacity.min(one.capacity()))
        });
        if held > u64::from(capacity) {
            self.violations.push(Violation::Crowded {
                name: this.name.clone(),
                acquisition: id,
                held,
                capacity,
                at,
            });
        }
        if self.claims.fairness != Fairness::None && !self.known.any_loss() {
            let overtaken = state.queue.iter().filter(|(waiter, placed)| {
                let in_line = self.acquisitions.get(waiter).is_some_and(|waiter| {
                    this.demand.waits_behind(waiter.demand)
                        && (self.claims.fairness == Fairness::FirstCome
                            || waiter.client == this.client)
                });
                in_line && *placed < this.asked && self.known.granted.contains(waiter)
            });
            self.violations
                .extend(overtaken.map(|(waiter, _)| Violation::Overtaken {
                    name: this.name.clone(),
                    earlier: *waiter,
                    later: id,
                }));
        }
        if self.claims.tokens != Tokens::None {
            let alone = matches!(this.demand, Demand::Lock(Mode::Exclusive));
            let before = if alone {
                state.highest
            } else {
                // Several that were granted at the same time may be recorded in either order.
                this.floor.max(state.highest_exclusive)
            };
            let fresh = token.is_some_and(|token| state.tokens.insert(token));
            // A grant that was taken away at once may be recorded after its successor's.
            let grows = token > before || self.known.robbed.contains(&id);
            if !fresh || !grows {
                self.violations.push(Violation::Token {
                    name: this.name.clone(),
                    acquisition: id,
                    token,
                    before: if fresh { before } else { token },
                });
            }
            state.highest = state.highest.max(token);
            if alone {
                state.highest_exclusive = state.highest_exclusive.max(token);
            }
        }
        state.hold(id);
    }

    /// A long wait timed out: checks that the lock was held meanwhile.
    fn forgotten(&mut self, id: u64, at: Duration) {
        let Some(this) = self.acquisitions.get(&id) else {
            return;
        };
        let Some(state) = self.names.get(&this.key()) else {
            return;
        };
        let mut free_since = this.asked_at;
        for end in state.busy.values() {
            match end {
                None => return,
                Some(end) => free_since = free_since.max(*end),
            }
        }
        let idle = at.saturating_sub(free_since);
        if idle >= FORGOTTEN_AFTER {
            self.violations.push(Violation::Forgotten {
                name: this.name.clone(),
                acquisition: id,
                idle,
            });
        }
    }

    fn finish(mut self) -> Vec<Violation> {
        let mut unanswered: Vec<_> = self
            .acquisitions
            .iter()
            .filter(|(_, acquisition)| !acquisition.answered)
            .collect();
        unanswered.sort_by_key(|(_, acquisition)| acquisition.asked);
        self.violations
            .extend(
                unanswered
                    .into_iter()
                    .map(|(id, acquisition)| Violation::Unanswered {
                        name: acquisition.name.clone(),
                        acquisition: *id,
                    }),
            );
        self.violations
    }
}

/// Whether two may have held at once, because one of them had lost its lock and the backend declares a late notice.
fn excused(claims: &Capabilities, known: &Foreknown, both: [u64; 2], granted: Duration) -> bool {
    let LossNotice::Within(window) = claims.loss else {
        return false;
    };
    both.iter()
        .any(|one| known.gone_by(*one, granted + window + SLACK))
}
