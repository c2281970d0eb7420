//! What this client knows of its own requests: in which session each has its place, and how sure that is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portalock_core::OwnerId;

use crate::{keys::Spot, session::Session};

/// The places of all owners of a backend, from the first attempt until the release.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<OwnerId, Place>>);

/// One owner's place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) session: Arc<Session>,
    /// Its key in that session.
    pub(crate) key: String,
    /// When it was taken, once etcd has said so.
    pub(crate) revision: Option<i64>,
    pub(crate) granted: bool,
    /// Whether a request for it may still be on its way: its answer never came.
    pub(crate) unsure: bool,
}

impl Places {
    /// What is known of `owner`.
    pub(crate) fn get(&self, owner: OwnerId) -> Option<Place> {
        self.lock().get(&owner).cloned()
    }

    /// `owner` is about to ask for a place in `session`. Until [`answered`](Self::answered) nobody can tell whether it
    /// got one: also if the asking future is dropped.
    pub(crate) fn asking(&self, owner: OwnerId, session: &Arc<Session>, spot: &Spot) {
        self.lock()
            .entry(owner)
            .and_modify(|place| place.unsure = true)
            .or_insert_with(|| Place {
                session: session.clone(),
                key: spot.key(session.lease_id),
                revision: None,
                granted: false,
                unsure: true,
            });
    }

    /// What came of it.
    pub(crate) fn answered(&self, owner: OwnerId, change: impl FnOnce(&mut Place)) {
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
