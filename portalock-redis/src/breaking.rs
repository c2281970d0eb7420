//! Locks that operators break: the mark, and how the holder's client heeds it.
//!
//! A mark lies beside the session's key, in a hash by place, until its holder has heeded it. Each refresh reads the marks after it
//! has moved the session's time on, so no refresh misses a mark that was there when it was sent; a message only makes the next
//! one come at once. A session whose refreshes don't reach the server any more is over by its own clock when the time has passed
//! that `break.lua` answers.

use std::time::Duration;

use portalock_core::{BackendError, Holder, LockName, Loss, OwnerId, Released, session::Answered};
use redis::{RedisError, aio::MultiplexedConnection};

use crate::{
    client::Server,
    connection::Call,
    error::unexpected,
    keys::Kind,
    place::Place,
    record::text,
    scripts::{BREAK, EVICT},
    session::{Session, SessionKey},
};

const BREAKING: &str = "break a lock in Redis";
const EVICTING: &str = "end a hold in Redis";

/// A mark as it is read: the name of a place, and who breaks its lock.
pub(crate) type Mark = (String, String);

impl Server {
    /// Marks what `owner` holds: for how long its client may go on relying on it without having heard of that.
    pub(crate) async fn mark(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        let state = self.keys.of(&Kind::Lock.named(name)).state;
        // It is for people: the lock is broken all the same.
        let by = serde_json::to_string(by).unwrap_or_default();
        let arguments = [self.keys.sessions(), &owner.to_string(), &by];
        let answer = self
            .send(BREAKING, Call::Script(&BREAK, &[&state], &arguments))
            .await?;
        match text(&answer.value).map(str::parse) {
            Some(Ok(millis)) => Ok(Some(Duration::from_millis(millis))),
            Some(Err(_)) => Ok(None),
            None => Err(unexpected(BREAKING)),
        }
    }

    /// Deletes the claim by which `owner` holds.
    pub(crate) async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let keys = self.keys.of(&Kind::Lock.named(name));
        let keys = [&*keys.state, &*keys.queue, &*keys.waiters];
        let Answered { value, repeated } = self
            .free(EVICTING, &EVICT, keys, &owner.to_string())
            .await?;
        // A try without an answer may have freed what the next one no longer found.
        Ok(if value || repeated {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }
}

/// The hash of the marks on what a session holds.
pub(crate) fn marks_key(session: &SessionKey) -> String {
    format!("{}/broken", session.key)
}

/// Tells the guards whose locks were broken. Their places are due to be released; the marks of those that were are removed.
pub(crate) async fn heed(
    session: &Session,
    connection: &mut MultiplexedConnection,
    marks: Vec<Mark>,
) {
    let mut heeded = Vec::new();
    for (name, by) in marks {
        let loss = Loss::broken_by(serde_json::from_str(&by).ok());
        let is_of = |place: &Place| *place.name == *name;
        let is_here =
            Place::owner(&name).is_some_and(|owner| session.places().broken(owner, &loss, is_of));
        if is_here {
            session.look_within(Duration::ZERO);
        } else {
            heeded.push(name);
        }
    }
    if heeded.is_empty() {
        return;
    }
    let removed: Result<(), RedisError> = redis::cmd("HDEL")
        .arg(marks_key(session.service()))
        .arg(heeded)
        .query_async(connection)
        .await;
    if let Err(error) = removed {
        // The next refresh finds them again.
        tracing::debug!(%error, "the marks on locks that were broken are not removed yet");
    }
}
