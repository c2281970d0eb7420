//! A release in flight.

use super::{
    Leaving, Places,
    place::{Phase, Place},
};
use crate::OwnerId;

/// A release in flight. If this is dropped without [`done`](Self::done), the release is due again.
#[derive(Debug)]
#[must_use = "dropping it leaves the release to the session"]
pub struct Releasing<'a, P: Clone> {
    pub(super) places: &'a Places<P>,
    pub(super) owner: OwnerId,
    pub(super) version: u64,
    /// How many times the session had reconnected when the release began.
    pub(super) reconnects: u64,
    pub(super) leaving: Leaving<P>,
}

impl<P: Clone> Releasing<'_, P> {
    /// What is released.
    pub fn leaving(&self) -> &Leaving<P> {
        &self.leaving
    }

    /// Ends the release: the service has nothing of the place, and no request for it is in flight. If the session has
    /// reconnected meanwhile, the release is due again: perhaps the server that answered was replaced by one without it.
    pub fn done(self) {
        // Declared first, so that it is dropped after the book is unlocked: this wakes a waiter.
        let _removed;
        let mut book = self.places.lock();
        if self.places.reconnects() == self.reconnects
            && let Some(places) = book.as_mut()
            && places.get(&self.owner).is_some_and(|at| self.is_of(at))
        {
            let place = places.remove(&self.owner);
            _removed = place.map(|place| self.places.removed(place));
        }
    }

    /// Whether the place still belongs to this release. The owner may have taken a new place, or a later release may have
    /// taken over this one.
    fn is_of(&self, place: &Place<P>) -> bool {
        place.version == self.version
    }
}

impl<P: Clone> Drop for Releasing<'_, P> {
    fn drop(&mut self) {
        // A place that was released for good is no longer recorded.
        let due = self.places.change(self.owner, |place| {
            let is_of = self.is_of(place);
            if is_of {
                place.enter(Phase::Due);
            }
            is_of
        });
        if due == Some(true) {
            self.places.owed.notify_one();
        }
    }
}
