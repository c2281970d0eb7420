//! Watches that nobody needs now and that may be needed again soon.

use portalock_core::OwnerId;

use super::{Order, State, Watches};
use crate::blockers::Watched;

/// How many keys are watched at most that nobody waits for now. A lock takes two. More would not help a client that waits for
/// few locks at a time, and where the order changes with every round each of them costs a message that nobody needs.
pub(super) const MOST_IDLE: usize = 4;

impl Watches {
    /// Called once in a while: what has been idle since the previous call is watched no longer.
    pub(crate) fn forget_idle(&self) {
        let mut state = self.lock();
        while state
            .idle
            .front()
            .is_some_and(|(_, since)| *since <= state.idle_until)
        {
            state.forget_oldest_idle();
        }
        state.idle_until = state.idle_stamp;
        let ordered = !state.orders.is_empty();
        drop(state);
        if ordered {
            self.ordered.notify_one();
        }
    }
}

impl State {
    /// `owner` no longer needs this watch. If nobody does, it is kept for a while: in a queue that comes round in the same
    /// order, the same one will wait for the same key again.
    pub(super) fn unwatch(&mut self, owner: OwnerId, watched: &Watched) {
        let Some(watch) = self.watches.get_mut(watched) else {
            return;
        };
        watch.waiters.remove(&owner);
        if !watch.waiters.is_empty() {
            return;
        }
        if matches!(watched, Watched::Queue(_)) || watch.since.is_none() {
            self.end(watched);
            return;
        }
        self.idle_stamp += 1;
        watch.idle_since = Some(self.idle_stamp);
        self.idle.push_back((watched.clone(), self.idle_stamp));
        if self.idle.len() > MOST_IDLE {
            self.forget_oldest_idle();
        }
    }

    /// Ends the watch that has been idle for longest, unless it is needed again.
    pub(super) fn forget_oldest_idle(&mut self) {
        if let Some((watched, since)) = self.idle.pop_front()
            && self
                .watches
                .get(&watched)
                .is_some_and(|watch| watch.idle_since == Some(since))
        {
            self.end(&watched);
        }
    }

    pub(super) fn end(&mut self, watched: &Watched) {
        let Some(watch) = self.watches.remove(watched) else {
            return;
        };
        let id = watch.id;
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
