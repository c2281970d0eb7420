//! Held locks whose keys are watched: should somebody delete one by hand, its holder is told.
//!
//! etcd itself deletes a key only with its lease, which the session watches over. So this is about people and their tools,
//! and a lock that is held briefly is not worth a watch: only one that has been held for [`WORTH_WATCHING`] gets it. It
//! begins *now*, like all watches here, and once it has begun the key is read: so nothing falls between.
//!
//! A lock that was granted by an event, without a look at its own key, is read once within [`UNSEEN`], should it be held
//! still: whoever deletes a whole queue by hand deletes the waiters with the holder, and a waiter hears of the holder only.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{EventType, WatchResponse};
use portalock_core::{Lease, Loss, LostSignal, OwnerId, clock::Instant};
use tokio::sync::Notify;

use crate::{blockers::Watched, watch::Order};

/// From when on a hold is watched, and how often that is looked after.
pub(crate) const WORTH_WATCHING: Duration = Duration::from_secs(1);

/// How long a hold may go unread that was granted by an event. Most are over by then.
pub(crate) const UNSEEN: Duration = Duration::from_millis(5);

/// All holds of a session.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
    /// Notified when there are new orders for the stream.
    pub(crate) ordered: Notify,
    /// Notified when there are keys to be read that were not seen when they were granted.
    pub(crate) unseen: Notify,
}

#[derive(Debug, Default)]
struct State {
    holds: HashMap<OwnerId, Hold>,
    owners_by_id: HashMap<i64, OwnerId>,
    orders: Vec<Order>,
    /// Who was granted by an event, and whose keys have not been read since.
    unseen: Vec<OwnerId>,
    last_id: i64,
}

#[derive(Debug)]
struct Hold {
    key: String,
    revision: i64,
    since: Instant,
    lease: Lease,
    watch: Watch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Not worth it yet.
    None,
    /// Asked for, on the present stream.
    Begun(i64),
    /// The server watches. Whether the key was still there then is not known yet.
    Confirmed(i64),
    /// It was.
    Sure(i64),
}

impl Hold {
    fn check(&self, owner: OwnerId) -> Check {
        Check {
            owner,
            key: self.key.clone(),
            revision: self.revision,
            watch: match self.watch {
                Watch::Confirmed(id) => Some(id),
                _ => None,
            },
        }
    }
}

impl Watch {
    const fn id(self) -> Option<i64> {
        match self {
            Self::None => None,
            Self::Begun(id) | Self::Confirmed(id) | Self::Sure(id) => Some(id),
        }
    }
}

/// A hold whose key is to be read.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    pub(crate) owner: OwnerId,
    pub(crate) key: String,
    pub(crate) revision: i64,
    /// The watch that had begun when it was to be read, if one had.
    watch: Option<i64>,
}

impl Holds {
    /// Where the numbers of these watches begin: far from the waiters'.
    const FIRST_ID: i64 = 1 << 48;

    /// Whether a message of the server is for these watches.
    pub(crate) const fn is_mine(id: i64) -> bool {
        id >= Self::FIRST_ID
    }

    /// `owner` holds by `key`, created at `revision`. The signal fires should the key be deleted; a repeated call gives the
    /// same. If the key was not `seen_now` it is read soon.
    pub(crate) fn hold(
        &self,
        owner: OwnerId,
        key: &str,
        revision: i64,
        seen_now: bool,
    ) -> LostSignal {
        let mut state = self.lock();
        if !seen_now {
            state.unseen.push(owner);
            self.unseen.notify_one();
        }
        let hold = state.holds.entry(owner).or_insert_with(|| Hold {
            key: key.to_owned(),
            revision,
            since: Instant::now(),
            lease: Lease::unbounded(),
            watch: Watch::None,
        });
        hold.lease.signal()
    }

    /// `owner` is about to release: what becomes of its key is no loss.
    pub(crate) fn let_go(&self, owner: OwnerId) {
        let mut state = self.lock();
        let watched = state.remove(owner);
        if let Some(id) = watched.and_then(|hold| hold.watch.id()) {
            state.orders.push(Order::Cancel(id));
            drop(state);
            self.ordered.notify_one();
        }
    }

    /// Begins to watch what has been held for long, and tells what is to be read.
    pub(crate) fn look_after(&self) -> Vec<Check> {
        let mut state = self.lock();
        let mut worth = Vec::new();
        let mut checks = Vec::new();
        for (owner, hold) in &state.holds {
            match hold.watch {
                Watch::None if hold.since.elapsed() >= WORTH_WATCHING => worth.push(*owner),
                Watch::Confirmed(_) => checks.push(hold.check(*owner)),
                _ => {}
            }
        }
        if !state.unseen.is_empty() {
            self.unseen.notify_one();
        }
        let ordered = !worth.is_empty();
        for owner in worth {
            state.begin(owner);
        }
        drop(state);
        if ordered {
            self.ordered.notify_one();
        }
        checks
    }

    /// The holds by keys that were not seen when they were granted. Those that have ended since need no look: a release says
    /// what it found.
    pub(crate) fn take_unseen(&self) -> Vec<Check> {
        let mut state = self.lock();
        let unseen = std::mem::take(&mut state.unseen);
        unseen
            .into_iter()
            .filter_map(|owner| {
                let hold = state.holds.get(&owner)?;
                Some(hold.check(owner))
            })
            .collect()
    }

    /// These could not be read: later.
    pub(crate) fn still_unseen(&self, checks: &[Check]) {
        self.lock()
            .unseen
            .extend(checks.iter().map(|check| check.owner));
    }

    /// What was read.
    pub(crate) fn checked(&self, check: &Check, is_there: bool) {
        let mut state = self.lock();
        if !is_there {
            state.lose(check.owner);
        } else if let Some(hold) = state.holds.get_mut(&check.owner)
            // If the watch was lost meanwhile, or has begun since, the key is to be read again.
            && let Watch::Confirmed(id) = hold.watch
            && check.watch == Some(id)
        {
            hold.watch = Watch::Sure(id);
        }
    }

    /// A new stream begins: what was watched is watched anew.
    pub(crate) fn start_over(&self) {
        let mut state = self.lock();
        state.orders.clear();
        state.owners_by_id.clear();
        let watched: Vec<OwnerId> = state
            .holds
            .iter()
            .filter(|(_, hold)| hold.watch != Watch::None)
            .map(|(owner, _)| *owner)
            .collect();
        for owner in watched {
            state.begin(owner);
        }
        drop(state);
        self.ordered.notify_one();
    }

    /// What is to be sent on the stream.
    pub(crate) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.lock().orders)
    }

    /// Takes in what the server said. False if it refused a watch.
    pub(crate) fn hear(&self, response: &WatchResponse) -> bool {
        let mut state = self.lock();
        let Some(owner) = state.owners_by_id.get(&response.watch_id()).copied() else {
            // Already cancelled from here.
            return true;
        };
        if response.canceled() {
            if response.created() {
                return false;
            }
            state.owners_by_id.remove(&response.watch_id());
            state.begin(owner);
            drop(state);
            self.ordered.notify_one();
            return true;
        }
        if response.created()
            && let Some(hold) = state.holds.get_mut(&owner)
            && let Watch::Begun(id) = hold.watch
        {
            hold.watch = Watch::Confirmed(id);
        }
        for event in response.events() {
            if let (EventType::Delete, Some(kv)) = (event.event_type(), event.kv()) {
                state.deleted(owner, kv.mod_revision());
            }
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, owner: OwnerId) {
        self.last_id = self.last_id.max(Holds::FIRST_ID) + 1;
        let id = self.last_id;
        if let Some(hold) = self.holds.get_mut(&owner) {
            hold.watch = Watch::Begun(id);
            self.owners_by_id.insert(id, owner);
            let watched = Watched::Key(hold.key.clone());
            self.orders.push(Order::Begin(id, watched));
        }
    }

    fn remove(&mut self, owner: OwnerId) -> Option<Hold> {
        let hold = self.holds.remove(&owner)?;
        if let Some(id) = hold.watch.id() {
            self.owners_by_id.remove(&id);
        }
        Some(hold)
    }

    /// The key was deleted at `revision`. A member that lags behind may begin a watch in its past, and tell how the key's
    /// former use ended.
    fn deleted(&mut self, owner: OwnerId, revision: i64) {
        let is_this_use = |hold: &Hold| revision > hold.revision;
        if self.holds.get(&owner).is_some_and(is_this_use) {
            self.lose(owner);
        }
    }

    fn lose(&mut self, owner: OwnerId) {
        if let Some(hold) = self.remove(owner) {
            tracing::warn!(key = hold.key, "the key of a held lock was deleted");
            hold.lease
                .end(Loss::Removed("its key was deleted by somebody".into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_not_seen_is_read_once() {
        let holds = Holds::default();
        let [seen, unseen, over] = [(); 3].map(|()| OwnerId::mint());
        drop(holds.hold(seen, "seen", 1, true));
        let lost = holds.hold(unseen, "unseen", 2, false);
        drop(holds.hold(over, "over", 3, false));
        holds.let_go(over);
        let checks = holds.take_unseen();
        let keys: Vec<_> = checks.iter().map(|check| check.key.as_str()).collect();
        assert_eq!(keys, ["unseen"]);
        holds.still_unseen(&checks);
        assert_eq!(holds.take_unseen().len(), 1);
        assert!(holds.take_unseen().is_empty());
        holds.checked(&checks[0], true);
        assert!(lost.loss().is_none());
        holds.checked(&checks[0], false);
        assert!(lost.loss().is_some());
    }

    #[test]
    fn how_a_keys_former_use_ended_is_no_loss() {
        let (holds, owner) = (Holds::default(), OwnerId::mint());
        let lost = holds.hold(owner, "again", 9, true);
        holds.lock().deleted(owner, 7);
        assert!(lost.loss().is_none(), "deleted before it was taken");
        holds.lock().deleted(owner, 10);
        assert!(lost.loss().is_some());
    }

    #[test]
    fn what_was_read_before_a_watch_began_says_nothing_of_the_time_between() {
        let (holds, owner) = (Holds::default(), OwnerId::mint());
        drop(holds.hold(owner, "key", 1, false));
        let early = holds.take_unseen();
        holds.lock().begin(owner);
        let id = holds.lock().last_id;
        if let Some(hold) = holds.lock().holds.get_mut(&owner) {
            hold.watch = Watch::Confirmed(id);
        }
        holds.checked(&early[0], true);
        let checks = holds.look_after();
        assert_eq!(checks.len(), 1, "it is still to be read");
        holds.checked(&checks[0], true);
        assert!(holds.look_after().is_empty());
    }
}
