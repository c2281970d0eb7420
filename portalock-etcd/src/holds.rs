//! Held locks whose keys are looked for: if somebody deletes one by hand, its holder is told.
//!
//! etcd itself deletes a key only with its lease, whose end the session notices by itself. So this is about people and their
//! tools. Every [`LOOK_EVERY`] the session asks for the keys of its lease, all in one call, if it holds anything. A lock that
//! is held for less costs nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use portalock_core::{Lease, Loss, LostSignal, OwnerId};

/// How often the session looks for the keys of what it holds.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All holds of a session.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<HashMap<OwnerId, Hold>>);

#[derive(Debug)]
struct Hold {
    key: String,
    lease: Lease,
}

impl Holds {
    /// `owner` holds by `key`. The signal fires if the key is deleted; a repeated call gives the same.
    pub(crate) fn hold(&self, owner: OwnerId, key: &str) -> LostSignal {
        let mut holds = self.lock();
        let hold = holds.entry(owner).or_insert_with(|| Hold {
            key: key.to_owned(),
            lease: Lease::unbounded(),
        });
        hold.lease.signal()
    }

    /// `owner` is about to release: what becomes of its key is no loss.
    pub(crate) fn let_go(&self, owner: OwnerId) {
        self.lock().remove(&owner);
    }

    /// Who holds now: those whose keys must be found by a look that begins after this call.
    pub(crate) fn owners(&self) -> Vec<OwnerId> {
        self.lock().keys().copied().collect()
    }

    /// Of these owners, those who still hold and whose key is not among `found` have lost it.
    pub(crate) fn found(&self, owners: &[OwnerId], found: &[Vec<u8>]) {
        let found: HashSet<&[u8]> = found.iter().map(Vec::as_slice).collect();
        let mut holds = self.lock();
        for owner in owners {
            if holds
                .get(owner)
                .is_some_and(|hold| !found.contains(hold.key.as_bytes()))
                && let Some(hold) = holds.remove(owner)
            {
                tracing::warn!(key = hold.key, "the key of a held lock was deleted");
                hold.lease
                    .end(Loss::Removed("its key was deleted by somebody".into()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnerId, Hold>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_held_before_the_look_and_holds_still_is_told() {
        let holds = Holds::default();
        let [kept, deleted, released, late] = [(); 4].map(|()| OwnerId::mint());
        let kept_lost = holds.hold(kept, "kept");
        let deleted_lost = holds.hold(deleted, "deleted");
        let released_lost = holds.hold(released, "released");
        let owners = holds.owners();
        holds.let_go(released);
        let late_lost = holds.hold(late, "late");
        holds.found(&owners, &[b"kept".to_vec()]);
        assert!(deleted_lost.is_lost());
        for lost in [kept_lost, released_lost, late_lost] {
            assert!(!lost.is_lost());
        }
    }
}
