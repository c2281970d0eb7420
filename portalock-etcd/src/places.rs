//! What this client knows of its own requests: in which session each has its place, and what is not known of it.
//!
//! One rule covers every call that failed, was dropped, or may have been carried out without an answer: what it may have
//! done is unknown until the place has been withdrawn for good. Until then the place stays in this book, and the session
//! withdraws it once etcd answers again, as long as the session lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portalock_core::OwnerId;

use crate::{keys::Spot, session::Session, slots::Slot};

/// The places of all owners of a backend, from the first attempt until nothing can be left of them.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<OwnerId, Place>>);

/// One owner's place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) session: Arc<Session>,
    pub(crate) spot: Arc<Spot>,
    pub(crate) seat: Seat,
    /// When it was taken, once etcd has said so.
    pub(crate) revision: Option<i64>,
    pub(crate) granted: bool,
    /// Whether a request for it may still be on its way: its answer never came.
    pub(crate) unsure: bool,
    pub(crate) debt: Debt,
}

/// Whether a place is to be withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debt {
    /// It is in use.
    None,
    /// A release is under way.
    Paying,
    /// A release failed or was dropped: the session tries again.
    Due,
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

    /// A release of `owner` begins. It is due again when the returned value is dropped.
    pub(crate) fn paying<'a>(&'a self, owner: OwnerId, session: &'a Session) -> Paying<'a> {
        self.note(owner, |place| place.debt = Debt::Paying);
        Paying {
            places: self,
            session,
            owner,
        }
    }

    /// Who of this session is to be withdrawn.
    pub(crate) fn due(&self, session: &Session) -> Vec<OwnerId> {
        self.lock()
            .iter()
            .filter(|(_, place)| {
                place.debt == Debt::Due && std::ptr::eq(Arc::as_ptr(&place.session), session)
            })
            .map(|(owner, _)| *owner)
            .collect()
    }

    /// Forgets who held in a session that has ended.
    pub(crate) fn forget_grants(&self, session: &Arc<Session>) {
        self.lock()
            .retain(|_, place| !(place.granted && Arc::ptr_eq(&place.session, session)));
    }

    /// Forgets everyone of a session that has been revoked or has run out.
    pub(crate) fn forget_all(&self, session: &Arc<Session>) {
        self.lock()
            .retain(|_, place| !Arc::ptr_eq(&place.session, session));
    }

    /// Nothing is left of `owner`, nor can anything come.
    pub(crate) fn remove(&self, owner: OwnerId) {
        self.lock().remove(&owner);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnerId, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A release under way.
#[derive(Debug)]
pub(crate) struct Paying<'a> {
    places: &'a Places,
    session: &'a Session,
    owner: OwnerId,
}

impl Drop for Paying<'_> {
    fn drop(&mut self) {
        // Whoever follows it in a crowd looks for itself when its key goes: also if this call failed or was dropped.
        self.session.watches.leave(self.owner);
        // A place that was withdrawn for good is no longer in the book.
        self.places.note(self.owner, |place| place.debt = Debt::Due);
    }
}
