//! Many who wait for one lock in one session.
//!
//! Who knows of another of its session before it has nothing to look for until that one has its turn: it is told here, and
//! looks then. A look at a queue costs etcd time with the queue's length; a thousand who looked by themselves would cost it
//! a thousand times that.

use std::collections::BTreeMap;

use portalock_core::{BackendError, Holder, OwnerId};

use super::{Advice, State, Watches};

/// From how many waiters on a crowd of one session is led.
pub(super) const CROWD: usize = 8;

/// Those of a session who wait for one lock exclusively.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// In the order of their places.
    places: BTreeMap<i64, OwnerId>,
    /// Who held the lock when one of them looked last.
    holder: Option<Holder>,
}

impl Watches {
    /// `owner` waits in the place taken at `place`, among the keys that begin with `directory`: for everyone before it. True if
    /// it need not look whom for: it is in a crowd, and will be told when the one before it no longer waits. Fails if the
    /// session has ended.
    pub(crate) fn follow(
        &self,
        owner: OwnerId,
        directory: &str,
        place: i64,
    ) -> Result<bool, BackendError> {
        let mut state = self.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let row = state.rows.entry(directory.to_owned()).or_default();
        let before = row.places.range(..place).next_back();
        let before = before.map(|(_, before)| *before);
        row.places.insert(place, owner);
        let crowd = row.places.len() > CROWD;
        let waiter = state.waiters.entry(owner).or_default();
        waiter.row = Some((directory.to_owned(), place));
        waiter.advice = Advice::Look;
        waiter.unheard = false;
        if let Some(before) = before.filter(|_| crowd)
            && let Some(leader) = state.waiters.get_mut(&before)
        {
            leader.followers.push(owner);
            if let Some(waiter) = state.waiters.get_mut(&owner) {
                waiter.follows = Some(before);
                waiter.advice = Advice::Stay;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Whoever looked at the queue of `directory` saw that `holder` has the lock. Kept for those who don't look.
    pub(crate) fn note_holder(&self, directory: &str, holder: &Holder) {
        if let Some(row) = self.lock().rows.get_mut(directory) {
            row.holder = Some(holder.clone());
        }
    }

    /// Who held the lock when one of this session who waits for it looked last.
    pub(crate) fn holder(&self, directory: &str) -> Option<Holder> {
        self.lock().rows.get(directory)?.holder.clone()
    }
}

impl State {
    /// `owner` no longer waits in its place: who follows it is to look.
    pub(super) fn step_out(&mut self, owner: OwnerId) {
        let Some(waiter) = self.waiters.get_mut(&owner) else {
            return;
        };
        let followers = std::mem::take(&mut waiter.followers);
        if let Some((directory, place)) = waiter.row.take()
            && let Some(row) = self.rows.get_mut(&directory)
        {
            row.places.remove(&place);
            if row.places.is_empty() {
                self.rows.remove(&directory);
            }
        }
        for follower in followers {
            if let Some(follower) = self.waiters.get_mut(&follower)
                && follower.follows == Some(owner)
            {
                follower.follows = None;
                follower.wake(Advice::LookAhead);
            }
        }
    }
}
