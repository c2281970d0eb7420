//! Hand-overs among neighbours: waiters of one session that are right behind each other in a queue.
//!
//! A waiter for an exclusive lock gets a token while it waits if the owner right ahead, a holder or a waiter, is of the
//! same session, is exclusive too, and has a token. So all owners ahead of a waiter with a token are of its session, and
//! nobody can come between them: places in a queue only grow. The script answers with the token and the owner ahead.
//! When a release grants a lock to a waiter, the waiters of its session right behind it get tokens too, in the same
//! script, and the message to the holder lists them.
//!
//! The client uses this in [`Places::follow`](portalock_core::session::Places::follow): when the owner ahead releases,
//! its neighbour holds at once, while the release is on its way. The release names the neighbour, so that the server
//! sends it no message. What the server grants later is the same hold, with the same token.
//!
//! - A token that was given to a waiter is the last token of the state, so it is never given again: not if the waiter
//!   gives up, not if its session ends, and not if the server's clock is set back.
//! - A release may overtake that of the owner ahead, over another runtime's connection. It then finds the owner among
//!   the waiters.
//! - If the owner ahead gives up, or loses its lock, its neighbour waits for the server's message.
//! - With [`wait_replicas`](crate::RedisSettings::with_wait_replicas) a grant counts when replicas have it, so every
//!   waiter waits for the message.

use portalock_core::FencingToken;

use crate::{keys::Place, session::Session};

/// The owner right ahead of a waiter, and the waiter's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) place: String,
    pub(crate) token: FencingToken,
}

/// Records the answer to an attempt that waits: who is right ahead, if the waiter has a token. `reconnects` is the
/// session's number before the attempt was sent.
pub(crate) fn answered(session: &Session, place: &Place, ahead: Option<&Ahead>, reconnects: u64) {
    match (ahead, Place::owner(&place.name)) {
        (Some(ahead), _) => follow(session, &place.name, ahead, reconnects),
        (None, Some(owner)) => session.places().follow_nobody(owner),
        (None, None) => {}
    }
}

/// Records the waiters that a grant's message lists, each right behind the one before it.
pub(crate) fn listed(session: &Session, holder: &str, listed: &str) {
    let reconnects = session.places().reconnects();
    let mut ahead = holder;
    let mut rest = listed.split('|');
    while let (Some(place), Some(token)) = (rest.next(), rest.next()) {
        let Ok(token) = token.parse().map(FencingToken::new) else {
            return;
        };
        let its = Ahead {
            place: ahead.to_owned(),
            token,
        };
        follow(session, place, &its, reconnects);
        ahead = place;
    }
}

fn follow(session: &Session, name: &str, ahead: &Ahead, reconnects: u64) {
    if session.service().settings().wait_replicas() > 0 {
        return;
    }
    if let (Some(owner), Some(first)) = (Place::owner(name), Place::owner(&ahead.place)) {
        let is_of = |place: &Place| *place.name == *name || *place.name == *ahead.place;
        let places = session.places();
        places.follow(owner, ahead.token, first, is_of, reconnects);
    }
}
