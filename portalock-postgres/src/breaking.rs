//! Breaking a lock: the mark, and how the holder's client responds to it.
//!
//! A mark is stored in the claim's row until the claim is released. Each renewal reads the marks on the session's
//! claims after it has extended the session's time. A renewal that misses a mark was therefore sent before the server
//! confirmed the mark, and the lease that it extends has ended once a whole lease time has passed since. A notification
//! makes the session send the next renewal at once.

use std::time::Duration;

use portalock_core::{BackendError, Holder, LockName, Loss, Marked, OwnerId, Released};
use tokio_postgres::{
    Error, Row,
    types::{FromSql, Type},
};

use crate::{
    connection::Connections,
    error::failed,
    keys::{Kind, Place},
    queue::millis,
    session::Session,
};

const BREAKING: &str = "break a lock";
const EVICTING: &str = "end a hold";

/// A broken claim: the name of its place, and who broke it.
pub(crate) type Mark = (String, String);

impl Connections {
    /// Marks the hold of `owner` as broken. Returns its token, and how long its client may still rely on the lock without
    /// knowing of the mark.
    pub(crate) async fn mark(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        // The value is for people, so the lock is broken even if it can't be encoded.
        let by = serde_json::to_string(by).unwrap_or_default();
        let (kind, owner) = (Kind::Lock.as_str(), owner.to_string());
        let (owner, by) = (&*owner, &*by);
        let answer = self
            .call(BREAKING, |connection| async move {
                let answer = connection
                    .query(
                        "SELECT portalock.break_claim($1, $2, $3, $4), portalock.hold_of($1, $2, $3)",
                        &[
                            (&kind, Type::TEXT),
                            (&name.as_str(), Type::TEXT),
                            (&owner, Type::TEXT),
                            (&by, Type::TEXT),
                        ],
                    )
                    .await?;
                // A break that is repeated at a former primary would find a hold there, and end that.
                if value_in::<i64>(&answer, 0)?.is_some() {
                    self.confirmed_call(&connection);
                }
                Ok(answer)
            })
            .await?;
        let read =
            |column| value_in(&answer.value, column).map_err(|error| failed(BREAKING, error));
        let (lasts, token): (Option<i64>, Option<i64>) = (read(0)?, read(1)?);
        let token = token.and_then(|token| u64::try_from(token).ok());
        let marked = lasts.zip(token);
        let marked = marked.map(|(lasts, token)| Marked::new(millis(lasts), token));
        // An earlier try without an answer may have marked a claim that this one did not find.
        Ok(marked.or_else(|| answer.repeated.then(Marked::has_ended)))
    }

    /// Deletes the claim by which `owner` holds with this token.
    pub(crate) async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        token: u64,
    ) -> Result<Released, BackendError> {
        let (kind, owner) = (Kind::Lock.as_str(), owner.to_string());
        let (owner, token) = (&*owner, i64::try_from(token).ok());
        let answer = self
            .call(EVICTING, |connection| async move {
                let answer = connection
                    .query(
                        "SELECT CASE portalock.hold_of($1, $2, $3) WHEN $4 THEN portalock.evict($1, $2, $3) END",
                        &[
                            (&kind, Type::TEXT),
                            (&name.as_str(), Type::TEXT),
                            (&owner, Type::TEXT),
                            (&token, Type::INT8),
                        ],
                    )
                    .await?;
                if value_in::<bool>(&answer, 0)? == Some(true) {
                    self.confirmed_call(&connection);
                }
                Ok(answer)
            })
            .await?;
        let freed = value_in(&answer.value, 0).map_err(|error| failed(EVICTING, error))?;
        // An earlier try without an answer may have freed the claim, so that this one did not find it.
        Ok(if freed == Some(true) || answer.repeated {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }
}

/// The value in this column of the only row.
fn value_in<'r, T: FromSql<'r>>(rows: &'r [Row], column: usize) -> Result<Option<T>, Error> {
    rows.first().map_or(Ok(None), |row| row.try_get(column))
}

/// Tells the guards whose locks these marks break. Their places are due for release.
pub(crate) fn heed(session: &Session, marks: Vec<Mark>) {
    if marks.is_empty() {
        return;
    }
    for (name, by) in marks {
        let loss = Loss::broken_by(serde_json::from_str(&by).ok());
        if let Some(owner) = Place::owner(&name) {
            let is_of = |place: &Place| *place.name == *name;
            session.places().broken(owner, &loss, is_of);
        }
    }
    session.look_within(Duration::ZERO);
}
