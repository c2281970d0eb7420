//! One stream on which the server tells of deleted keys, and who waits for which.
//!
//! A waiter watches what it waits for and nothing else: the key of the one before it in a lock's queue, or a
//! semaphore's queue. So a hand-over costs one event to one client, however many wait.
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
use portalock_core::{BackendError, OwnerId, WakeSender};
use tokio::sync::Notify;

use crate::blockers::{Blockers, Watched};

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
    last_id: i64,
    failed: Option<BackendError>,
}

/// One who waits, or has stopped waiting and not yet looked.
#[derive(Debug, Default)]
struct Waiter {
    /// Whom it waits for, and the revision at which it saw them. None once it has been told to look.
    waits_for: Option<(Blockers, i64)>,
    mailbox: Option<WakeSender>,
    /// Told to look before it had a mailbox.
    unheard: bool,
}

#[derive(Debug)]
struct Watch {
    id: i64,
    /// The revision up to which everything has been told on the present stream. None until the server has confirmed.
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

    /// `owner` waits for `blockers`, which it saw at `revision`. Replaces what it waited for before. Fails if the session
    /// has ended.
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
        state.stop(owner);
        let watched = blockers.watched();
        let waiter = state.waiters.entry(owner).or_default();
        waiter.waits_for = Some((blockers, revision));
        waiter.unheard = false;
        if let Some(watch) = state.watches.get_mut(&watched) {
            watch.waiters.insert(owner);
            // The watch has moved past the revision that was looked at: what happened between was told to nobody here.
            if watch.told.is_some_and(|told| told > revision) {
                state.wake(owner);
            }
        } else {
            let id = state.next_id();
            state.begin(id, watched.clone());
            state.watches.insert(
                watched,
                Watch {
                    id,
                    told: None,
                    waiters: HashSet::from([owner]),
                },
            );
        }
        drop(state);
        self.ordered.notify_one();
        Ok(())
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
        if std::mem::take(&mut waiter.unheard) || waiter.waits_for.is_none() {
            mailbox.wake();
        }
        waiter.mailbox = Some(mailbox);
    }

    /// `owner` waits no more.
    pub(crate) fn leave(&self, owner: OwnerId) {
        let mut state = self.lock();
        state.stop(owner);
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
        state.watches.clear();
        state.watched_by_id.clear();
        state.orders.clear();
    }

    /// A new stream begins: everything is to be watched anew.
    pub(crate) fn start_over(&self) {
        let mut state = self.lock();
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
            if response.created() {
                return Verdict::Refused;
            }
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
        watch.id = id;
        watch.told = None;
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
        watch.told = Some(revision);
        let late: Vec<OwnerId> = watch
            .waiters
            .iter()
            .filter(|owner| {
                self.waiters
                    .get(owner)
                    .and_then(|waiter| waiter.waits_for.as_ref())
                    .is_some_and(|(_, seen)| *seen < revision)
            })
            .copied()
            .collect();
        for owner in late {
            self.wake(owner);
        }
    }

    fn deleted(&mut self, watched: &Watched, key: &[u8], revision: i64) {
        let Some(watch) = self.watches.get_mut(watched) else {
            return;
        };
        watch.told = watch.told.max(Some(revision));
        let free: Vec<OwnerId> = watch
            .waiters
            .iter()
            .filter(|owner| {
                self.waiters
                    .get_mut(owner)
                    .and_then(|waiter| waiter.waits_for.as_mut())
                    .is_some_and(|(blockers, seen)| *seen < revision && blockers.gone(key))
            })
            .copied()
            .collect();
        for owner in free {
            self.wake(owner);
        }
    }

    fn wake(&mut self, owner: OwnerId) {
        self.stop(owner);
        if let Some(waiter) = self.waiters.get_mut(&owner) {
            match &waiter.mailbox {
                Some(mailbox) => {
                    mailbox.wake();
                }
                None => waiter.unheard = true,
            }
        }
    }

    /// `owner` waits for nobody; what nobody else waits for is watched no longer.
    fn stop(&mut self, owner: OwnerId) {
        let Some((blockers, _)) = self
            .waiters
            .get_mut(&owner)
            .and_then(|waiter| waiter.waits_for.take())
        else {
            return;
        };
        let watched = blockers.watched();
        let Some(watch) = self.watches.get_mut(&watched) else {
            return;
        };
        watch.waiters.remove(&owner);
        if watch.waiters.is_empty() {
            let id = watch.id;
            self.watches.remove(&watched);
            self.watched_by_id.remove(&id);
            let begun = self
                .orders
                .iter()
                .position(|order| matches!(order, Order::Begin(begun, _) if *begun == id));
            match begun {
                Some(unsent) => drop(self.orders.remove(unsent)),
                None => self.orders.push(Order::Cancel(id)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portalock_core::{Wake, wakeups};

    #[tokio::test]
    async fn a_waiter_whose_session_has_ended_is_told_so_however_late_it_listens() {
        let watches = Watches::default();
        let owner = OwnerId::mint();
        watches
            .wait(owner, Blockers::Key("a".to_owned()), 1)
            .unwrap();
        watches.fail(&crate::error::session_ended("a test"));
        let (sender, mut wakeups) = wakeups();
        watches.listen(owner, sender);
        assert!(matches!(wakeups.next().await, Wake::Failed(_)));
        assert!(
            watches
                .wait(owner, Blockers::Key("a".to_owned()), 1)
                .is_err()
        );
    }

    #[test]
    fn a_watch_lasts_as_long_as_somebody_waits() {
        let watches = Watches::default();
        let (one, two) = (OwnerId::mint(), OwnerId::mint());
        let wait = |owner, key: &str| watches.wait(owner, Blockers::Key(key.to_owned()), 1);
        wait(one, "a").unwrap();
        wait(two, "a").unwrap();
        let begun = watches.take_orders();
        assert!(
            matches!(begun[..], [Order::Begin(_, Watched::Key(_))]),
            "{begun:?}"
        );
        watches.leave(one);
        assert_eq!(watches.take_orders(), []);
        watches.leave(two);
        assert!(matches!(watches.take_orders()[..], [Order::Cancel(_)]));
        // What was not sent yet need not be taken back.
        wait(one, "b").unwrap();
        wait(one, "c").unwrap();
        watches.leave(one);
        assert_eq!(watches.take_orders(), []);
    }
}
