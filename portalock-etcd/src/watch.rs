//! One stream on which the server tells of deleted keys, and who waits for which.
//!
//! A waiter watches what it waits for and nothing else: the key before it in a lock's queue, or a semaphore's queue. So a
//! hand-over costs the same few events, however many wait.
//!
//! No event is ever asked for after the fact. A watch that begins at a past revision joins etcd's catch-up loop, which
//! runs every 100 ms, and fails if that revision has been compacted. Instead each watch begins *now*; the server says at
//! which revision that was, and a waiter that looked at an earlier one looks again. What happened before its look it has
//! seen, what happened between is found by looking again, what happens later is told. The same holds when a watch, a
//! stream or a member is lost: the watch begins anew, and whoever waits on it looks again. Nothing depends on history, so
//! nothing is lost with it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use etcd_client::{EventType, ResponseHeader, WatchResponse};
use portalock_core::OwnerId;
use tokio::sync::Notify;

use crate::blockers::{Waiting, Watched};

/// How many watches are kept at most that nobody waits for now. In a queue that comes round in the same order, a client
/// waits for the same key again, and a watch that is there already saves it a look. A lock takes two.
const MOST_IDLE: usize = 4;

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
    watches: HashMap<Watched, Watch>,
    watched_by_id: HashMap<i64, Watched>,
    orders: Vec<Order>,
    /// Watches that nobody waits for now, in the order in which the last one left.
    idle: Vec<Watched>,
    last_id: i64,
}

/// One who waits, or has been told of a change and not yet looked.
#[derive(Debug, Default)]
struct Waiter {
    /// How it waits. None once it has been told of a change.
    waiting: Option<Waiting>,
    /// What is watched for it.
    watches: Option<Watched>,
}

#[derive(Debug, Default)]
struct Watch {
    id: i64,
    /// The latest revision that the server told on the present stream: when the watch began, or a deletion. None until it
    /// has begun.
    told: Option<i64>,
    waiters: HashSet<OwnerId>,
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
    /// The stream goes on. These are to look.
    GoOn(Vec<OwnerId>),
    /// Somebody has marked a lock of the session as broken.
    Marked,
    /// The session's own key is gone.
    SessionGone,
    /// The server ended a watch, or refused one: a new stream may do better.
    Refused,
}

impl Watches {
    /// The number of the watch over the session's own key; the waiters' watches have larger ones.
    pub(crate) const SESSION_ID: i64 = 1;

    /// `owner` waits so. Replaces how it waited before. True if something may have changed meanwhile: it is to look again.
    pub(crate) fn wait(&self, owner: OwnerId, waiting: Waiting) -> bool {
        let mut state = self.lock();
        let (watched, seen) = (waiting.blockers.watched(), waiting.seen);
        state.waiters.entry(owner).or_default().waiting = Some(waiting);
        state.watch(owner, Some(&watched));
        self.pass_on(&state);
        state.watches.get(&watched).and_then(|watch| watch.told) > Some(seen)
    }

    /// How `owner` waits, as far as it is known. None if it is to look at the queue.
    pub(crate) fn waiting(&self, owner: OwnerId) -> Option<Waiting> {
        self.lock().waiters.get(&owner)?.waiting.clone()
    }

    /// `owner` waits no more.
    pub(crate) fn leave(&self, owner: OwnerId) {
        let mut state = self.lock();
        state.watch(owner, None);
        state.waiters.remove(&owner);
        self.pass_on(&state);
    }

    /// Ends the watches that nobody waits for.
    pub(crate) fn forget_idle(&self) {
        let mut state = self.lock();
        for watched in std::mem::take(&mut state.idle) {
            state.end(&watched);
        }
        self.pass_on(&state);
    }

    /// A new stream begins: everything is to be watched anew, and whoever waits must look again once it is.
    pub(crate) fn start_over(&self) {
        let mut state = self.lock();
        state.orders.clear();
        state.watched_by_id.clear();
        state.idle.clear();
        for waiter in state.waiters.values_mut() {
            if let Some(waiting) = &mut waiter.waiting {
                waiting.seen = i64::MIN;
            }
        }
        for (watched, watch) in std::mem::take(&mut state.watches) {
            if !watch.waiters.is_empty() {
                state.begin(watched, watch.waiters);
            }
        }
        self.pass_on(&state);
    }

    /// What is to be sent on the stream.
    pub(crate) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.lock().orders)
    }

    /// Takes in what the server said. `own` is the session's key.
    pub(crate) fn hear(&self, response: &WatchResponse, own: &str) -> Verdict {
        let mut state = self.lock();
        let watched = state.watched_by_id.get(&response.watch_id()).cloned();
        let is_sessions = response.watch_id() == Self::SESSION_ID;
        // A refused watch is answered with id -1, so it isn't known which it was: a token that expired is one reason. One that was
        // ended from here is no longer known.
        if response.canceled() && (is_sessions || watched.is_some() || response.created()) {
            return Verdict::Refused;
        }
        if is_sessions {
            return Self::hear_of_session(response, own);
        }
        let mut woken = Vec::new();
        if let Some(watched) = watched {
            if response.created() {
                // Whoever looked at an earlier revision may have missed something.
                let since = response.header().map_or(0, ResponseHeader::revision);
                woken = state.tell(&watched, since);
            }
            for event in response.events() {
                if let (EventType::Delete, Some(key)) = (event.event_type(), event.kv()) {
                    woken.extend(state.deleted(&watched, key.key(), key.mod_revision()));
                }
            }
        }
        Verdict::GoOn(woken)
    }

    /// What happened to the session's own key and to those below it, which are marks.
    fn hear_of_session(response: &WatchResponse, own: &str) -> Verdict {
        let mut verdict = Verdict::GoOn(Vec::new());
        for event in response.events() {
            let is_own = event.kv().is_some_and(|key| key.key() == own.as_bytes());
            match (event.event_type(), is_own) {
                (EventType::Delete, true) => return Verdict::SessionGone,
                (EventType::Put, false) => verdict = Verdict::Marked,
                _ => {}
            }
        }
        verdict
    }

    /// Sees to it that the orders are sent.
    fn pass_on(&self, state: &State) {
        if !state.orders.is_empty() {
            self.ordered.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, watched: Watched, waiters: HashSet<OwnerId>) {
        self.last_id = self.last_id.max(Watches::SESSION_ID) + 1;
        let watch = Watch {
            id: self.last_id,
            told: None,
            waiters,
        };
        self.watched_by_id.insert(watch.id, watched.clone());
        self.orders.push(Order::Begin(watch.id, watched.clone()));
        self.watches.insert(watched, watch);
    }

    fn end(&mut self, watched: &Watched) {
        if let Some(watch) = self.watches.remove(watched) {
            self.watched_by_id.remove(&watch.id);
            self.orders.push(Order::Cancel(watch.id));
        }
    }

    /// This key was deleted at this revision. Answers who is to look.
    fn deleted(&mut self, watched: &Watched, key: &[u8], revision: i64) -> Vec<OwnerId> {
        let mut woken = self.tell(watched, revision);
        woken.retain(|owner| {
            let waiter = self.waiters.get_mut(owner);
            waiter.is_some_and(|waiter| {
                let gone = |waiting: &mut Waiting| waiting.blockers.gone(key);
                let looks = waiter.waiting.as_mut().is_some_and(gone);
                if looks {
                    waiter.waiting = None;
                }
                looks
            })
        });
        woken
    }

    /// The server has told something of `revision`: who waits there and looked at an earlier one.
    fn tell(&mut self, watched: &Watched, revision: i64) -> Vec<OwnerId> {
        let Some(watch) = self.watches.get_mut(watched) else {
            return Vec::new();
        };
        watch.told = watch.told.max(Some(revision));
        let saw_before = |owner: &&OwnerId| {
            let waiter = self.waiters.get(*owner);
            let waiting = waiter.and_then(|waiter| waiter.waiting.as_ref());
            waiting.is_some_and(|waiting| waiting.seen < revision)
        };
        watch.waiters.iter().filter(saw_before).copied().collect()
    }

    /// Watches this for `owner`, and nothing else.
    fn watch(&mut self, owner: OwnerId, watched: Option<&Watched>) {
        let Some(waiter) = self.waiters.get_mut(&owner) else {
            return;
        };
        if waiter.watches.as_ref() == watched {
            return;
        }
        let former = std::mem::replace(&mut waiter.watches, watched.cloned());
        if let Some(watched) = watched {
            if let Some(watch) = self.watches.get_mut(watched) {
                watch.waiters.insert(owner);
                self.idle.retain(|idle| idle != watched);
            } else {
                self.begin(watched.clone(), HashSet::from([owner]));
            }
        }
        if let Some(former) = former
            && let Some(watch) = self.watches.get_mut(&former)
            && watch.waiters.remove(&owner)
            && watch.waiters.is_empty()
        {
            self.idle.push(former);
            if self.idle.len() > MOST_IDLE {
                let oldest = self.idle.remove(0);
                self.end(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
