//! Releases that etcd could not be told of: they are owed for as long as the session lives.
//!
//! The engine tries a failed release again for two minutes. A session with a long lease may outlive an outage that lasts
//! longer, and what was not released would then stay locked until the process ends. So the session pays what is owed once
//! etcd answers again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use portalock_core::OwnerId;

use crate::{keys::Spot, places::Seat};

/// The releases that a session owes.
#[derive(Debug, Default)]
pub(crate) struct Debts(Mutex<HashMap<OwnerId, (Spot, Seat)>>);

impl Debts {
    /// The release of `owner` failed.
    pub(crate) fn owe(&self, owner: OwnerId, spot: &Spot, seat: &Seat) {
        self.lock().insert(owner, (spot.clone(), seat.clone()));
    }

    /// `owner` has been released.
    pub(crate) fn pay(&self, owner: OwnerId) {
        self.lock().remove(&owner);
    }

    /// What is owed.
    pub(crate) fn all(&self) -> Vec<(OwnerId, Spot, Seat)> {
        self.lock()
            .iter()
            .map(|(owner, (spot, seat))| (*owner, spot.clone(), seat.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnerId, (Spot, Seat)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
