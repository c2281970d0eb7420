//! A session's own connection: its subscription, and what comes on it unasked.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use portalock_core::{BackendError, FencingToken, Loss};
use redis::{PushInfo, PushKind, aio::MultiplexedConnection};

use crate::{
    connect::{connect, is_end, is_message, message, subscribe},
    error::failed,
    session::Session,
};

/// One connection of a session, subscribed to its channel. It ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    connection: MultiplexedConnection,
    health: Arc<Health>,
    /// The number of the place where it leads to.
    place: u64,
}

#[derive(Debug, Default)]
struct Health {
    has_ended: AtomicBool,
    /// The last renewal over it had no answer, or a bad one.
    is_doubtful: AtomicBool,
}

impl Link {
    /// Connects and subscribes. Runs on the session thread, where the connection is driven.
    pub(crate) async fn open(session: &Arc<Session>) -> Result<Self, BackendError> {
        let place = session.route().find().await?;
        let health = Arc::new(Health::default());
        let line = Line {
            session: Arc::downgrade(session),
            health: health.clone(),
            place: place.number,
        };
        let push = move |push| -> Result<(), ()> {
            line.hear(&push);
            Ok(())
        };
        let mut connection = connect(session.route(), &place, push).await?;
        subscribe(session.route(), &mut connection, session.key())
            .await
            .map_err(|error| failed("subscribe to the session's channel in Redis", error))?;
        Ok(Self {
            connection,
            health,
            place: place.number,
        })
    }

    pub(crate) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    pub(crate) fn place(&self) -> u64 {
        self.place
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.health.has_ended.load(Ordering::Acquire)
    }

    /// Whether to give it up for another one.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.has_ended() || self.health.is_doubtful.load(Ordering::Acquire)
    }

    /// What is asked over it now may stay without an answer.
    pub(crate) fn doubt(&self, doubtful: bool) {
        self.health.is_doubtful.store(doubtful, Ordering::Release);
    }
}

/// What comes on the connection unasked.
struct Line {
    session: Weak<Session>,
    health: Arc<Health>,
    place: u64,
}

impl Line {
    /// Called by the connection's reader, in the order in which the server wrote. It must not wait.
    fn hear(&self, push: &PushInfo) {
        let Some(session) = self.session.upgrade() else {
            return;
        };
        match &push.kind {
            // What the primary before says counts for nothing.
            kind if is_message(kind) && self.place == session.route().number() => {
                if let Some(text) = message(push) {
                    hear_message(&session, text);
                }
            }
            PushKind::Disconnection => self.ended(&session, "the connection was closed"),
            kind if is_end(kind) => self.ended(&session, "its subscription was ended"),
            _ => {}
        }
    }

    fn ended(&self, session: &Session, why: &'static str) {
        self.health.has_ended.store(true, Ordering::Release);
        if session.is_connected_form() {
            session.end(Loss::SessionEnded(why.into()));
        } else {
            tracing::debug!(session = %session.id(), why, "the session with Redis is taken up again");
            session.renew_now();
        }
    }
}

fn hear_message(session: &Arc<Session>, text: &str) {
    // The last part may have any character in it.
    let mut parts = text.splitn(3, '|');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("grant"), Some(owner), Some(token)) => {
            if let (Ok(owner), Ok(token)) = (owner.parse(), token.parse().map(FencingToken::new)) {
                session.granted(owner, token);
            }
        }
        // The refresh finds what.
        (Some("broken"), None, None) => session.renew_now(),
        (Some("last"), Some(owner), None) => {
            // It looks after one tick: of many that give up at once, few become the last for so long.
            let Ok(owner) = owner.parse() else {
                return;
            };
            let session = session.clone();
            tokio::spawn(async move {
                tokio::time::sleep(session.settings().tick_interval()).await;
                session.claims().last(owner);
            });
        }
        (Some("asked"), Some(owner), Some(state)) => {
            let named = session.keys().named(state);
            if let (Ok(owner), Some(named)) = (owner.parse(), named)
                && !session.claims().knows(owner)
            {
                tokio::spawn(session.clone().disown(owner, named));
            }
        }
        _ => {}
    }
}
