//! One stream on which the server tells of deleted keys, and who waits for which.
//!
//! A waiter watches what it waits for and nothing else: one key before it in a lock's queue, or a semaphore's queue. So a
//! hand-over costs the same few events, however many wait.
//!
//! No event is ever asked for after the fact. A watch that begins at a past revision joins etcd's catch-up loop, which
//! runs every 100 ms, and fails if that revision has been compacted. Instead each watch begins *now*; the server says at
//! which revision that was, and a waiter that looked at an earlier one looks again. What happened before its look it has
//! seen, what happened between is found by looking again, what happens later is told. The same holds when a watch, a
//! stream or a member is lost: the watch begins anew, and whoever waits on it looks again. Nothing depends on history, so
//! nothing is lost with it. What an event tells is true whatever else was missed, and may be all that a waiter needs: see
//! [`blockers`](crate::blockers).

mod crowd;
mod idle;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use etcd_client::{EventType, ResponseHeader, WatchResponse};
use portalock_core::{BackendError, OwnerId, WakeSender};
use tokio::sync::Notify;

use self::crowd::Row;
use crate::blockers::{Blockers, Watched, Way};

/// All waits of a session.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    state: Mutex<State>,
    /// Notified when there are new orders for the stream.
    pub(crate) ordered: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiters: HashMap<OwnerId, Waiter>,
    /// The exclusive waiters, by what their keys begin with.
    rows: HashMap<String, Row>,
    watches: HashMap<Watched, Watch>,
    watched_by_id: HashMap<i64, Watched>,
    orders: Vec<Order>,
    /// Watches over keys that nobody waits for now, in the order in which the last one left, and when that was.
    idle: VecDeque<(Watched, u64)>,
    /// Counts when a watch became idle.
    idle_stamp: u64,
    /// What was idle by this stamp is not kept for longer.
    idle_until: u64,
    last_id: i64,
    failed: Option<BackendError>,
}

/// One who waits, or has stopped waiting and not yet looked.
#[derive(Debug, Default)]
struct Waiter {
    /// Whom it waits for, and the revision at which it saw them. None once it has been told something.
    waits_for: Option<(Blockers, i64)>,
    /// What is watched for it: also while it looks, so that what happens meanwhile is known.
    watches: Option<Watched>,
    advice: Advice,
    /// Its place among its session's.
    row: Option<(String, i64)>,
    /// Who is before it and waits too, if that is all it knows.
    follows: Option<OwnerId>,
    followers: Vec<OwnerId>,
    mailbox: Option<WakeSender>,
    /// Told something before it had a mailbox.
    unheard: bool,
}

/// What one who has been woken is to do.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Look at the queue.
    #[default]
    Look,
    /// Look whether there is one before it or more: the second nearest has gone.
    LookAhead,
    /// Look whether they are still there: one may have gone unseen.
    Confirm(Blockers),
    /// Look whether the own key is still there: the way is free.
    Hold,
    /// Nothing: one before it waits too.
    Stay,
}

#[derive(Debug)]
struct Watch {
    id: i64,
    /// The revision since which the server watches, on the present stream. None until it has confirmed.
    since: Option<i64>,
    /// The revision of the latest deletion that was told of, or 0.
    heard: i64,
    waiters: HashSet<OwnerId>,
    /// When the last waiter left, if there is none.
    idle_since: Option<u64>,
}

/// What is to be sent on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    Begin(i64, Watched),
    Cancel(i64),
}

/// What a message of the server means for the stream as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The stream goes on.
    GoOn,
    /// The session's own key is gone.
    SessionGone,
    /// The server refused a watch: a new stream may do better.
    Refused,
}

impl Watches {
    /// The number of the watch over the session's own key; the waiters' watches have larger ones.
    pub(crate) const SESSION_ID: i64 = 1;

    /// `owner` waits for `blockers`, which it saw at `revision`. Replaces what it waited for before. If they have
    /// gone meanwhile it is told at once. Fails if the session has ended.
    pub(crate) fn wait(
        &self,
        owner: OwnerId,
        blockers: Blockers,
        revision: i64,
    ) -> Result<(), BackendError> {
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let watched = blockers.watched();
        let waiter = state.waiters.entry(owner).or_default();
        waiter.waits_for = Some((blockers, revision));
        waiter.advice = Advice::Look;
        waiter.unheard = false;
        state.watch(owner, Some(watched.clone()));
        state.catch_up(owner, &watched, revision);
        drop(state);
        self.ordered.notify_one();
        Ok(())
    }

    /// What `owner`, who has been woken or looks by itself, is to do.
    pub(crate) fn advice(&self, owner: OwnerId) -> Advice {
        self.lock().advice(owner)
    }

    /// `owner` has lost its place: what it knew of those before it says nothing of its next one.
    pub(crate) fn misplaced(&self, owner: OwnerId) {
        let mut state = self.lock();
        state.watch(owner, None);
        state.step_out(owner);
        if let Some(waiter) = state.waiters.get_mut(&owner) {
            waiter.waits_for = None;
            waiter.follows = None;
            waiter.advice = Advice::Look;
        }
        drop(state);
        self.ordered.notify_one();
    }

    /// Whoever `owner` waits for, it is told through `mailbox` when to look.
    pub(crate) fn listen(&self, owner: OwnerId, mailbox: WakeSender) {
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            mailbox.fail(error.clone());
            return;
        }
        let waiter = state.waiters.entry(owner).or_default();
        // No longer waiting, and nobody told: the place was lost between the attempt and this call.
        let waits = waiter.waits_for.is_some() || waiter.follows.is_some();
        if std::mem::take(&mut waiter.unheard) || !waits {
            mailbox.wake();
        }
        waiter.mailbox = Some(mailbox);
    }

    /// `owner` waits no more.
    pub(crate) fn leave(&self, owner: OwnerId) {
        let mut state = self.lock();
        state.watch(owner, None);
        state.step_out(owner);
        state.waiters.remove(&owner);
        let ordered = !state.orders.is_empty();
        drop(state);
        if ordered {
            self.ordered.notify_one();
        }
    }

    /// Tells everyone, now and later, that their places are gone.
    pub(crate) fn fail(&self, error: &BackendError) {
        let mut state = self.lock();
        state.failed = Some(error.clone());
        for waiter in state.waiters.values() {
            if let Some(mailbox) = &waiter.mailbox {
                mailbox.fail(error.clone());
            }
        }
        state.waiters.clear();
        state.rows.clear();
        state.watches.clear();
        state.watched_by_id.clear();
        state.orders.clear();
        state.idle.clear();
    }

    /// A new stream begins: everything is to be watched anew.
    pub(crate) fn start_over(&self) {
        let mut state = self.lock();
        while !state.idle.is_empty() {
            state.forget_oldest_idle();
        }
        state.orders.clear();
        state.watched_by_id.clear();
        let watched: Vec<Watched> = state.watches.keys().cloned().collect();
        for watched in watched {
            state.begin_anew(watched);
        }
        drop(state);
        self.ordered.notify_one();
    }

    /// What is to be sent on the stream.
    pub(crate) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.lock().orders)
    }

    /// Takes in what the server said.
    pub(crate) fn hear(&self, response: &WatchResponse) -> Verdict {
        let id = response.watch_id();
        if response.created() && response.canceled() {
            // The answer to a refused watch doesn't say which it was: its id is -1. A token that expired is one reason.
            return Verdict::Refused;
        }
        let revision = response.header().map_or(0, ResponseHeader::revision);
        if id == Self::SESSION_ID {
            let gone = response
                .events()
                .iter()
                .any(|event| event.event_type() == EventType::Delete);
            return if gone {
                Verdict::SessionGone
            } else if response.canceled() {
                Verdict::Refused
            } else {
                Verdict::GoOn
            };
        }
        let mut state = self.lock();
        let Some(watched) = state.watched_by_id.get(&id).cloned() else {
            // Already cancelled from here.
            return Verdict::GoOn;
        };
        if response.canceled() {
            // Too slow for a compaction, most likely.
            state.watched_by_id.remove(&id);
            state.begin_anew(watched);
            drop(state);
            self.ordered.notify_one();
            return Verdict::GoOn;
        }
        if response.created() {
            state.confirmed(&watched, revision);
        }
        for event in response.events() {
            if let (EventType::Delete, Some(kv)) = (event.event_type(), event.kv()) {
                state.deleted(&watched, kv.key(), kv.mod_revision());
            }
        }
        let ordered = !state.orders.is_empty();
        drop(state);
        if ordered {
            self.ordered.notify_one();
        }
        Verdict::GoOn
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_id(&mut self) -> i64 {
        self.last_id = self.last_id.max(Watches::SESSION_ID) + 1;
        self.last_id
    }

    fn begin(&mut self, id: i64, watched: Watched) {
        self.watched_by_id.insert(id, watched.clone());
        self.orders.push(Order::Begin(id, watched));
    }

    /// The watch was lost and begins again: whoever waits on it must look again once it has.
    fn begin_anew(&mut self, watched: Watched) {
        let id = self.next_id();
        let Some(watch) = self.watches.get_mut(&watched) else {
            return;
        };
        if watch.waiters.is_empty() {
            self.watches.remove(&watched);
            return;
        }
        watch.id = id;
        watch.since = None;
        // Revisions may have gone back meanwhile, by a restore from a snapshot.
        watch.heard = 0;
        for owner in &watch.waiters {
            if let Some((_, seen)) = self
                .waiters
                .get_mut(owner)
                .and_then(|waiter| waiter.waits_for.as_mut())
            {
                *seen = i64::MIN;
            }
        }
        self.begin(id, watched);
    }

    /// The server watches since `revision`. Whoever looked at an earlier one may have missed something.
    fn confirmed(&mut self, watched: &Watched, revision: i64) {
        let Some(watch) = self.watches.get_mut(watched) else {
            return;
        };
        watch.since = Some(revision);
        for owner in self.who_saw_before(watched, revision) {
            self.missed(owner);
        }
    }

    fn deleted(&mut self, watched: &Watched, key: &[u8], revision: i64) {
        let Some(watch) = self.watches.get_mut(watched) else {
            return;
        };
        watch.heard = watch.heard.max(revision);
        for owner in self.who_saw_before(watched, revision) {
            self.gone(owner, key);
        }
    }

    fn who_saw_before(&self, watched: &Watched, revision: i64) -> Vec<OwnerId> {
        let waiters = self.watches.get(watched).map(|watch| &watch.waiters);
        waiters
            .into_iter()
            .flatten()
            .filter(|owner| {
                self.waiters
                    .get(owner)
                    .and_then(|waiter| waiter.waits_for.as_ref())
                    .is_some_and(|(_, seen)| *seen < revision)
            })
            .copied()
            .collect()
    }

    /// Tells `owner`, who has looked at `seen`, what this watch has told since then.
    fn catch_up(&mut self, owner: OwnerId, watched: &Watched, seen: i64) {
        let Some(watch) = self.watches.get(watched) else {
            return;
        };
        match watched {
            // It existed when it was seen: the deletion was its own.
            Watched::Key(key) if watch.heard > seen => self.gone(owner, key.as_bytes()),
            _ if watch.heard > seen || watch.since.is_some_and(|since| since > seen) => {
                self.missed(owner);
            }
            _ => {}
        }
    }

    /// `owner` waits for what may have gone without its being told.
    fn missed(&mut self, owner: OwnerId) {
        if let Some(waiter) = self.waiters.get_mut(&owner)
            && let Some((blockers, _)) = waiter.waits_for.take()
        {
            waiter.wake(match blockers {
                Blockers::Permits(_) => Advice::Look,
                Blockers::Last(_) | Blockers::Far { .. } => Advice::Confirm(blockers),
            });
        }
    }

    /// A key has gone, which `owner` may have waited for.
    fn gone(&mut self, owner: OwnerId, key: &[u8]) {
        let Some(waiter) = self.waiters.get_mut(&owner) else {
            return;
        };
        let Some((blockers, _)) = waiter.waits_for.as_mut() else {
            return;
        };
        match blockers.gone(key) {
            Way::Same => {}
            Way::Near(nearest) => {
                waiter.waits_for = None;
                waiter.wake(Advice::LookAhead);
                self.watch(owner, Some(Watched::Key(nearest)));
            }
            Way::Free => {
                waiter.waits_for = None;
                waiter.wake(Advice::Hold);
                self.watch(owner, None);
            }
        }
    }

    fn advice(&self, owner: OwnerId) -> Advice {
        self.waiters
            .get(&owner)
            .map(|waiter| waiter.advice.clone())
            .unwrap_or_default()
    }

    /// Watches this for `owner`, and nothing else.
    fn watch(&mut self, owner: OwnerId, watched: Option<Watched>) {
        let Some(waiter) = self.waiters.get_mut(&owner) else {
            return;
        };
        if waiter.watches == watched {
            return;
        }
        let former = std::mem::replace(&mut waiter.watches, watched.clone());
        if let Some(watched) = watched {
            if let Some(watch) = self.watches.get_mut(&watched) {
                watch.waiters.insert(owner);
                watch.idle_since = None;
            } else {
                let id = self.next_id();
                self.begin(id, watched.clone());
                let watch = Watch {
                    id,
                    since: None,
                    heard: 0,
                    waiters: HashSet::from([owner]),
                    idle_since: None,
                };
                self.watches.insert(watched, watch);
            }
        }
        if let Some(former) = former {
            self.unwatch(owner, &former);
        }
    }
}

impl Waiter {
    fn wake(&mut self, advice: Advice) {
        self.advice = advice;
        match &self.mailbox {
            Some(mailbox) => {
                mailbox.wake();
            }
            None => self.unheard = true,
        }
    }
}

#[cfg(test)]
mod tests;
