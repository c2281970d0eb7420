//! Locks that operators break: the mark, and how the holder's client heeds it.
//!
//! A mark lies beside the session's key, in a hash by owner, until its owner is released. Each refresh reads the marks after it
//! has moved the session's time on, so no refresh misses a mark that was there when it was sent; a message only makes the next
//! one come at once. A session whose refreshes don't reach the server any more is over by its own clock when the time has passed
//! that `break.lua` answers.

use std::{sync::Arc, time::Duration};

use portalock_core::{BackendError, Holder, LockName, Loss, OwnerId, Released, session};
use redis::aio::MultiplexedConnection;

use crate::{
    connection::Call,
    error::{failed, unexpected},
    keys::Named,
    part::Part,
    record::text,
    scripts::{BREAK, RELEASE},
    session::Session,
};

const BREAKING: &str = "break a lock in Redis";
const EVICTING: &str = "end a hold in Redis";
const HEEDING: &str = "remove the mark on a lock that was broken in Redis";

/// A mark as it is read: the owner, and who breaks its lock.
pub(crate) type Mark = (String, String);

impl Part {
    pub(crate) async fn mark(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        let state = self.lock_keys(name).state;
        // It is for people: the lock is broken all the same.
        let by = serde_json::to_string(by).unwrap_or_default();
        let (owner, arguments) = (owner.to_string(), self.prefix());
        let call = Call::Script(&BREAK, &[&state], &[arguments, &owner, &by]);
        let answered = self.ask_plainly(BREAKING, call).await?;
        match text(&answered.value).map(str::parse) {
            Some(Ok(millis)) => Ok(Some(Duration::from_millis(millis))),
            Some(Err(_)) => Ok(None),
            None => Err(unexpected(BREAKING)),
        }
    }

    pub(crate) async fn end_hold(
        &self,
        name: &LockName,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let keys = self.lock_keys(name);
        let call = Call::Script(
            &RELEASE,
            &[&keys.state, &keys.queue, &keys.waiters],
            &[self.prefix(), &owner.to_string()],
        );
        let answered = self.ask_plainly(EVICTING, call).await?;
        match text(&answered.value) {
            Some("1") => Ok(Released::Freed),
            // The first of the two may have freed it.
            Some("0") if answered.repeated => Ok(Released::Freed),
            Some("0") => Ok(Released::NotHeld),
            _ => Err(unexpected(EVICTING)),
        }
    }
}

impl Session {
    /// The hash of the marks on what this session holds.
    pub(crate) fn marks_key(&self) -> String {
        format!("{}/broken", self.key())
    }

    /// Tells the guards whose locks were broken, and gives those locks back.
    pub(crate) fn heed(self: &Arc<Self>, connection: &MultiplexedConnection, marks: Vec<Mark>) {
        let mut leaving = Vec::new();
        for (owner, by) in marks {
            let loss = Loss::broken_by(serde_json::from_str(&by).ok());
            let named = owner
                .parse()
                .ok()
                .and_then(|owner| self.claims().broken(owner, &loss));
            leaving.push((owner, named));
        }
        if leaving.is_empty() {
            return;
        }
        let (session, mut connection) = (self.clone(), connection.clone());
        // Whatever fails here is done again by the next refresh, which finds the mark again.
        let giving_back = session::spawn(async move {
            for (owner, named) in leaving {
                let given_back = session.give_back(&mut connection, &owner, named).await;
                if let Err(error) = given_back {
                    tracing::debug!(owner, %error, "a lock that was broken is not given back yet");
                }
            }
        });
        if let Ok(giving_back) = giving_back {
            giving_back.detach();
        }
    }

    /// Releases, and then removes the mark.
    async fn give_back(
        &self,
        connection: &mut MultiplexedConnection,
        owner: &str,
        named: Option<Named>,
    ) -> Result<(), BackendError> {
        if let Some(named) = named {
            self.free(connection, owner, &named).await?;
        }
        redis::cmd("HDEL")
            .arg(self.marks_key())
            .arg(owner)
            .query_async(connection)
            .await
            .map_err(|error| failed(HEEDING, error))
    }
}
