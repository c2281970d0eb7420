//! What this client knows of its own requests: in which session each has its place, and how sure that is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portalock_core::OwnerId;

use crate::{session::Session, slots::Slot};

/// The places of all owners of a backend, from the first attempt until the release.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<OwnerId, Place>>);

/// One owner's place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) session: Arc<Session>,
    pub(crate) seat: Seat,
    /// When it was taken, once etcd has said so.
    pub(crate) revision: Option<i64>,
    pub(crate) granted: bool,
    /// Whether a request for it may still be on its way: its answer never came.
    pub(crate) unsure: bool,
    /// Whether it was to be released, and etcd could not be told: its key may be another's any time.
    pub(crate) owed: bool,
}

/// Where a place is: one use of a key.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    pub(crate) slot: Slot,
    pub(crate) key: Arc<str>,
    /// What the key holds then, which tells this use of it from all others.
    pub(crate) value: Arc<[u8]>,
}

impl Places {
    /// What is known of `owner`.
    pub(crate) fn get(&self, owner: OwnerId) -> Option<Place> {
        self.lock().get(&owner).cloned()
    }

    /// `owner` has a place from now on.
    pub(crate) fn insert(&self, owner: OwnerId, place: Place) {
        self.lock().insert(owner, place);
    }

    /// Takes note of what is known now.
    pub(crate) fn note(&self, owner: OwnerId, change: impl FnOnce(&mut Place)) {
        if let Some(place) = self.lock().get_mut(&owner) {
            change(place);
        }
    }

    /// Forgets who held in a session that has ended.
    pub(crate) fn forget_grants(&self, session: &Arc<Session>) {
        self.lock()
            .retain(|_, place| !(place.granted && Arc::ptr_eq(&place.session, session)));
    }

    /// Nothing is left of `owner`.
    pub(crate) fn remove(&self, owner: OwnerId) {
        self.lock().remove(&owner);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnerId, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
