//! Waiters that take over from the owner right ahead of them, without a message of the service.
//!
//! If two owners of one session are right behind each other in a queue, nobody of another session can come between them.
//! So when the first one releases, the second one can hold at once, with a token that the service gave it while it
//! waited. Until the service has the release, the second owner's hold rests on the same thing as every hold: the
//! session's lease. At the service the first owner still holds, and the second one still waits right behind it.
//!
//! The service says who is right ahead. The answer is a fact of its queue, which it may have lost if it was replaced by
//! one without its last writes. So a reconnect ends all turns: the session then checks every place, and a waiter waits
//! for the service's message.

use std::sync::atomic::Ordering;

use super::{
    Book, Places,
    place::{News, Phase},
};
use crate::{FencingToken, OwnerId};

/// A waiter's turn: it holds with this token when the owner right ahead releases.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    ahead: OwnerId,
    token: FencingToken,
    /// How many times the session had reconnected before the service was asked.
    reconnects: u64,
}

impl<P: Clone> Places<P> {
    /// Records that the waiter `owner` is right behind `ahead`, which is of this session too, and that the service gave it
    /// `token`. When `ahead` releases its hold, `owner` holds, with this token. `is_of` says whether a place is one of the
    /// two that are meant, and not an earlier or later place of the same owner. `reconnects` is the number of
    /// [`reconnects`](Self::reconnects) before the service was asked: if there was another one since, `owner` waits for
    /// the service's message.
    ///
    /// Call this only if nobody can come between the two at the service, and if no other owner is ever given this token.
    pub fn follow(
        &self,
        owner: OwnerId,
        token: FencingToken,
        ahead: OwnerId,
        is_of: impl Fn(&P) -> bool,
        reconnects: u64,
    ) {
        // Declared first, so that it is dropped after the book is unlocked.
        let _news;
        let mut book = self.lock();
        let Some(places) = book.as_mut() else {
            return;
        };
        let Some(place) = places.get_mut(&owner).filter(|place| is_of(&place.at)) else {
            return;
        };
        place.waiting().turn = Some(Turn {
            ahead,
            token,
            reconnects,
        });
        let Some(first) = places.get_mut(&ahead).filter(|place| is_of(&place.at)) else {
            return;
        };
        first.waiting().next = Some(owner);
        // Its release may not have reached the service yet.
        if matches!(first.phase, Phase::Releasing { passes_on: true }) {
            _news = self.pass_on(places, ahead);
        }
    }

    /// Records that the waiter `owner` must wait for the service's message.
    pub fn follow_nobody(&self, owner: OwnerId) {
        self.change(owner, |place| {
            if let Some(waiting) = &mut place.waiting {
                waiting.turn = None;
            }
        });
    }

    /// The waiter right behind `owner`, which releases, holds from now on. Returns its place.
    pub(super) fn pass_on(
        &self,
        places: &mut Book<P>,
        owner: OwnerId,
    ) -> Option<(P, Option<News>)> {
        let next = places.get(&owner)?.waiting.as_ref()?.next?;
        let waiter = places.get_mut(&next)?;
        let turn = waiter.waiting.as_ref()?.turn?;
        let is_its_turn = turn.ahead == owner
            && turn.reconnects == self.reconnects.load(Ordering::Acquire)
            && waiter.waits();
        // After the session's end no hold is certain.
        if !is_its_turn || self.session.is_lost() {
            return None;
        }
        let news = waiter.granted(turn.token, &self.session);
        let at = waiter.at.clone();
        if let Some(place) = places.get_mut(&owner) {
            place.phase = Phase::Releasing { passes_on: false };
        }
        Some((at, news))
    }
}

#[cfg(test)]
mod tests;
