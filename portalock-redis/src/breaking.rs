//! Locks that operators break: the mark, and how the holder's client handles it.
//!
//! A mark is stored in a hash next to the session's key, by place, until the holder's client has handled it. Each
//! refresh first extends the session's time and then reads the marks, so no refresh misses a mark that existed when the
//! refresh was sent. A message only makes the next refresh come at once. If a session's refreshes no longer reach the
//! server, the session ends by its own clock within the time that `break.lua` returns.
//!
//! The mark also has this time, because a failover or a restart can lose the mark while the session lives on. Then the
//! next mark has a later time, and `evict.lua` ends the hold only after that.

use std::{pin::pin, time::Duration};

use portalock_core::{
    BackendError, Holder, LockName, Loss, Marked, OwnerId, Released,
    session::{Answered, in_its_runtime},
};
use redis::{RedisError, Value, aio::MultiplexedConnection};

use crate::{
    client::Server,
    connection::Call,
    error::unexpected,
    keys::{Kind, Place},
    record::text,
    scripts::{BREAK, EVICT},
    session::{Session, SessionKey},
};

const BREAKING: &str = "break a lock in Redis";
const EVICTING: &str = "end a hold in Redis";

/// The name of a place, and the mark: when its client no longer relies on the hold, and who breaks its lock.
pub(crate) type Mark = (String, String);

impl Server {
    /// Marks the hold of `owner`. Returns the number of its place, and for how long its client may rely on the hold if the
    /// client does not learn of the mark.
    pub(crate) async fn mark(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        let state = self.keys.state(&Kind::Lock.named(name));
        // The record is for people: if it can't be encoded, the lock is broken nevertheless.
        let by = serde_json::to_string(by).unwrap_or_default();
        let arguments = [&*owner.to_string(), &by];
        let call = Call::Script(&BREAK, &[&state], &arguments);
        let Answered { value, repeated } = self.send_to_primary(BREAKING, call).await?;
        let answer = text(&value).ok_or_else(|| unexpected(BREAKING))?;
        if answer == "-" {
            // An earlier try without an answer may have marked it.
            return Ok(repeated.then(Marked::has_ended));
        }
        let marked = answer.split_once('|').and_then(|(millis, number)| {
            let relies_for = Duration::from_millis(millis.parse().ok()?);
            Some(Marked::new(relies_for, number.parse().ok()?))
        });
        marked.map(Some).ok_or_else(|| unexpected(BREAKING))
    }

    /// Deletes the claim of `owner` at the place with this number, when its client no longer relies on it. Waits for that if
    /// the first mark was lost.
    pub(crate) async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        number: u64,
    ) -> Result<Released, BackendError> {
        let state = self.keys.state(&Kind::Lock.named(name));
        let place = format!("{owner}.{number}");
        loop {
            let call = Call::Script(&EVICT, &[&state], &[&place]);
            let Answered { value, repeated } = self.send_to_primary(EVICTING, call).await?;
            let answer = text(&value).ok_or_else(|| unexpected(EVICTING))?;
            if let Some(left) = answer.strip_prefix("wait|") {
                let left = left.parse().map_err(|_| unexpected(EVICTING))?;
                let pause = async {
                    tokio::time::sleep(Duration::from_millis(left)).await;
                    Ok(())
                };
                in_its_runtime(pin!(pause)).await?;
                continue;
            }
            return match answer {
                "1" => Ok(Released::Freed),
                // An earlier try without an answer may have freed the hold, and then the last try did not find it.
                "0" if repeated => Ok(Released::Freed),
                "0" => Ok(Released::NotHeld),
                _ => Err(unexpected(EVICTING)),
            };
        }
    }

    /// Sends a call about a hold of another client, which may have followed a switch already. A former primary would say that the
    /// hold was ended, although it goes on.
    async fn send_to_primary(
        &self,
        what: &'static str,
        call: Call<'_>,
    ) -> Result<Answered<Value>, BackendError> {
        self.route.look_first().await;
        self.send(what, call).await
    }
}

/// The key of the hash of marks on a session's locks.
pub(crate) fn marks_key(session: &SessionKey) -> String {
    format!("{}/broken", session.key)
}

/// Tells the guards whose locks were broken, and schedules the release of their places. Removes the marks of places
/// that were released.
pub(crate) async fn heed(
    session: &Session,
    connection: &mut MultiplexedConnection,
    marks: Vec<Mark>,
) {
    let mut heeded = Vec::new();
    for (name, mark) in marks {
        let by = mark.split_once('|').map(|(_, by)| by);
        let loss = Loss::broken_by(by.and_then(|by| serde_json::from_str(by).ok()));
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
        // The next refresh finds these marks again.
        tracing::debug!(%error, "the marks on locks that were broken are not removed yet");
    }
}
