//! What the server sends to a session on its own: grants, and what concerns its places.

use std::sync::{Arc, Weak, atomic::Ordering};

use portalock_core::{FencingToken, OwnerId};
use redis::PushInfo;

use super::{Session, Source};
use crate::{
    connect::{is_end, is_message, message},
    keys::Place,
    neighbours,
};

/// Receives the messages that the server sends on its own.
pub(super) struct Hearer {
    pub(super) session: Weak<Session>,
    pub(super) source: Source,
}

impl Hearer {
    /// The connection's reader calls this, in the order in which the server wrote the messages. It must not wait.
    pub(super) fn hear(&self, push: &PushInfo) {
        let Some(session) = self.session.upgrade() else {
            return;
        };
        match &push.kind {
            kind if is_message(kind) && self.source.counts(&session.service().server.route) => {
                if let Some(text) = message(push) {
                    hear_message(&session, text, &self.source);
                }
            }
            kind if is_end(kind) => {
                self.source.is_open.store(false, Ordering::Release);
                session.connection_ended();
            }
            _ => {}
        }
    }
}

pub(super) fn hear_message(session: &Arc<Session>, text: &str, source: &Source) {
    // The last part may contain any character.
    let mut parts = text.splitn(3, '|');
    let (Some(what), Some(name)) = (parts.next(), parts.next()) else {
        return;
    };
    let Some(owner) = Place::owner(name) else {
        return;
    };
    let key = session.service();
    match (what, parts.next()) {
        ("grant", Some(token)) => {
            // Maybe with the waiters right behind.
            let (token, others) = token.split_once('|').unwrap_or((token, ""));
            if let Ok(token) = token.parse().map(FencingToken::new) {
                granted(session, owner, name, token, source);
                neighbours::listed(session, name, others);
            }
        }
        ("last", None) => {
            // It checks after one tick: if many waiters give up at once, most of them are the last for a shorter time.
            let session = session.clone();
            tokio::spawn(async move {
                tokio::time::sleep(session.service().settings().tick_interval()).await;
                session.places().wake(owner);
            });
        }
        ("asked" | "broken", Some(state)) => {
            if let Some(wanted) = key.server.keys.named(state) {
                let name = name.into();
                let place = Place { name, wanted };
                session.places().found_unknown(owner, place);
            }
            if what == "broken" {
                // The refresh reads the marks.
                session.renew_now();
            }
        }
        _ => {}
    }
}

fn granted(session: &Session, owner: OwnerId, name: &str, token: FencingToken, source: &Source) {
    let key = session.service();
    if key.settings().wait_replicas() > 0 {
        return key.unconfirmed.add(owner, name, token, source);
    }
    let is_of = |place: &Place| *place.name == *name;
    session.places().granted(owner, token, is_of);
}
