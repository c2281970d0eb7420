//! One stream on which the server reports deleted keys, and the waiters of each key.
//!
//! A waiter watches only what it waits for: the key ahead of it in a lock's queue, or a semaphore's queue. So a
//! hand-over costs the same few events, for any number of waiters.
//!
//! No watch asks for past events. A watch that begins at a past revision joins etcd's catch-up loop, which runs every
//! 100 ms, and it fails if that revision has been compacted. Instead each watch begins *now*. The server's answer
//! contains the revision at which the watch began, and a waiter that read the queue at an earlier revision reads it
//! again. So the first read shows what happened before it, the second read shows what happened before the watch, and
//! the watch reports everything later. The same holds when a watch, a stream or a member is lost: the watch begins
//! again, and its waiters read the queue again. Nothing depends on past events, so losing them does no harm.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use etcd_client::{EventType, ResponseHeader, WatchResponse};
use portalock_core::OwnerId;
use tokio::sync::Notify;

use crate::blockers::{Waiting, Watched};

/// How many watches without a waiter are kept. If the same clients queue again in the same order, a client waits for
/// the same key again, and an existing watch saves it a read of the queue. A lock needs two.
const MOST_IDLE: usize = 4;

/// All waiters and watches of a session.
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
    /// Watches without a waiter, in the order in which their last waiter left.
    idle: Vec<Watched>,
    last_id: i64,
}

/// A waiter, or an owner that was told of a change and has not yet read the queue.
#[derive(Debug, Default)]
struct Waiter {
    /// What it waits for. None once it has been told of a change.
    waiting: Option<Waiting>,
    /// What is watched for it.
    watches: Option<Watched>,
}

#[derive(Debug, Default)]
struct Watch {
    id: i64,
    /// The latest revision that the server reported on the current stream: that of the watch's start, or of a deletion.
    /// None until the watch has started.
    told: Option<i64>,
    waiters: HashSet<OwnerId>,
}

/// A request to send on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    Begin(i64, Watched),
    Cancel(i64),
}

/// What a message of the server means for the stream as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The stream continues. These owners must read the queue.
    GoOn(Vec<OwnerId>),
    /// A lock of the session was marked as broken.
    Marked,
    /// The session's own key is gone.
    SessionGone,
    /// The server ended or refused a watch: a new stream may work.
    Refused,
}

impl Watches {
    /// The id of the watch on the session's own key; the ids of the waiters' watches are larger.
    pub(crate) const SESSION_ID: i64 = 1;

    /// Records what `owner` waits for, in place of what it waited for before. Returns true if something may have
    /// changed meanwhile: then the owner must read the queue again.
    pub(crate) fn wait(&self, owner: OwnerId, waiting: Waiting) -> bool {
        let mut state = self.lock();
        let (watched, seen) = (waiting.blockers.watched(), waiting.seen);
        state.waiters.entry(owner).or_default().waiting = Some(waiting);
        state.watch(owner, Some(&watched));
        self.pass_on(&state);
        state.watches.get(&watched).and_then(|watch| watch.told) > Some(seen)
    }

    /// What `owner` waits for, if known. None if it must read the queue.
    pub(crate) fn waiting(&self, owner: OwnerId) -> Option<Waiting> {
        self.lock().waiters.get(&owner)?.waiting.clone()
    }

    /// Records that `owner` no longer waits.
    pub(crate) fn leave(&self, owner: OwnerId) {
        let mut state = self.lock();
        state.watch(owner, None);
        state.waiters.remove(&owner);
        self.pass_on(&state);
    }

    /// Ends the watches without a waiter.
    pub(crate) fn forget_idle(&self) {
        let mut state = self.lock();
        for watched in std::mem::take(&mut state.idle) {
            state.end(&watched);
        }
        self.pass_on(&state);
    }

    /// Records the start of a new stream: all watches start again, and their waiters must then read the queue again.
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

    /// The requests to send on the stream.
    pub(crate) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.lock().orders)
    }

    /// Processes a message of the server. `own` is the session's key.
    pub(crate) fn hear(&self, response: &WatchResponse, own: &str) -> Verdict {
        let mut state = self.lock();
        let watched = state.watched_by_id.get(&response.watch_id()).cloned();
        let is_sessions = response.watch_id() == Self::SESSION_ID;
        // The server answers a refused watch with id -1, so the message doesn't tell which watch it was; an expired
        // token is one reason. A watch that this client has ended is no longer known here.
        if response.canceled() && (is_sessions || watched.is_some() || response.created()) {
            return Verdict::Refused;
        }
        if is_sessions {
            return Self::hear_of_session(response, own);
        }
        let mut woken = Vec::new();
        if let Some(watched) = watched {
            if response.created() {
                // Waiters that read the queue at an earlier revision may have missed a change.
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

    /// Handles changes of the session's own key and of the marks below it.
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

    /// Notifies the stream's sender if there are orders.
    fn pass_on(&self, state: &State) {
        if !state.orders.is_empty() {
            self.ordered.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while the lock is held.
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

    /// Records that this key was deleted at this revision. Returns the owners that must read the queue.
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

    /// Records that the server has reported this revision. Returns the waiters that read the queue at an earlier one.
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
