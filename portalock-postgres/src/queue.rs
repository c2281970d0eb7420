//! The queue of a name at the server, in this crate's types: attempts, releases and inspections, one statement each.

use std::{sync::Arc, time::Duration};

use portalock_core::{
    BackendError, Claim, FencingToken, Holder, Inspection, LockName, OwnerId,
    session::{Answered, Leaving},
};
use tokio_postgres::{Error, Row, types::Type};

use crate::{
    answer::{Left, Standing},
    client::Server,
    connection::{Connection, Connections, in_task},
    error::failed,
    keys::{Kind, Place, Wanted},
    record::decode,
};

const ACQUIRING: &str = "acquire";
const RELEASING: &str = "release";
const INSPECTING: &str = "look at a lock";
const LISTING: &str = "list the locks";

/// A request, as arguments of the functions.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) session: &'a str,
    pub(crate) epoch: i64,
    pub(crate) place: &'a Place,
    pub(crate) queues: bool,
    pub(crate) who: String,
}

impl Server {
    /// The holders and the waiters.
    pub(crate) async fn inspect(
        self: &Arc<Self>,
        kind: Kind,
        name: &LockName,
    ) -> Result<Inspection, BackendError> {
        let (server, name) = (self.clone(), name.clone());
        in_task(async move { server.connections.inspect(kind, &name).await }).await
    }

    /// The names of the locks that have holders or waiters.
    pub(crate) async fn names(self: &Arc<Self>) -> Result<Vec<LockName>, BackendError> {
        let server = self.clone();
        in_task(async move { server.connections.names().await }).await
    }
}

impl Connections {
    /// Makes one attempt.
    pub(crate) async fn acquire(
        &self,
        entry: &Entry<'_>,
    ) -> Result<Answered<Standing>, BackendError> {
        self.call(ACQUIRING, |connection| async move {
            let Entry {
                session,
                epoch,
                place: Place { name, wanted },
                queues,
                who,
            } = entry;
            connection
                .acquire(&[
                    session,
                    epoch,
                    &wanted.kind.as_str(),
                    &wanted.name.as_str(),
                    &&**name,
                    &wanted.weight,
                    &wanted.capacity,
                    queues,
                    who,
                ])
                .await
        })
        .await
    }

    /// Releases an owner.
    pub(crate) async fn release(
        &self,
        session: &str,
        leaving: &Leaving<Place>,
    ) -> Result<Answered<Left>, BackendError> {
        self.call(RELEASING, |connection| async move {
            connection.leave(session, leaving).await
        })
        .await
    }

    async fn inspect(&self, kind: Kind, name: &LockName) -> Result<Inspection, BackendError> {
        let answer = self
            .call(INSPECTING, |connection| async move {
                connection
                    .query(
                        "SELECT * FROM portalock.inspect($1, $2)",
                        &[(&kind.as_str(), Type::TEXT), (&name.as_str(), Type::TEXT)],
                    )
                    .await
            })
            .await?;
        inspection(kind, &answer.value).map_err(|error| failed(INSPECTING, error))
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let answer = self
            .call(LISTING, |connection| async move {
                connection.query("SELECT portalock.names()", &[]).await
            })
            .await?;
        let mut names = Vec::new();
        for row in &answer.value {
            let name: &str = row.try_get(0).map_err(|error| failed(LISTING, error))?;
            names.extend(LockName::new(name));
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// From how many names one statement removes the claims of dead sessions.
const AT_ONCE: u8 = 100;

impl Connection {
    /// Releases an owner.
    pub(crate) async fn leave(
        &self,
        session: &str,
        leaving: &Leaving<Place>,
    ) -> Result<Left, Error> {
        let owner = &*leaving.at.name;
        let (kind, name) = (
            leaving.at.wanted.kind.as_str(),
            leaving.at.wanted.name.as_str(),
        );
        if !leaving.unsure {
            return Ok(Left {
                freed: self.release(&[&session, &kind, &name, &owner]).await?,
                epoch: None,
            });
        }
        let rows = self
            .query(
                "SELECT * FROM portalock.release_for_good($1, $2, $3, $4)",
                &[
                    (&session, Type::TEXT),
                    (&kind, Type::TEXT),
                    (&name, Type::TEXT),
                    (&owner, Type::TEXT),
                ],
            )
            .await?;
        let row = rows.first();
        Ok(Left {
            freed: row.map_or(Ok(false), |row| row.try_get("freed"))?,
            epoch: row.map_or(Ok(None), |row| row.try_get("epoch"))?,
        })
    }

    pub(crate) async fn end_session(&self, session: &str) -> Result<(), Error> {
        self.query(
            "SELECT portalock.end_session($1)",
            &[(&session, Type::TEXT)],
        )
        .await
        .map(drop)
    }

    /// Removes the claims that a dead session has left, and serves the queues.
    pub(crate) async fn bury(&self, session: &str, left: &[Place]) -> Result<(), Error> {
        for places in left.chunks(AT_ONCE.into()) {
            let wanted = || places.iter().map(|place| &place.wanted);
            let kinds: Vec<&str> = wanted().map(|wanted| wanted.kind.as_str()).collect();
            let names: Vec<&str> = wanted().map(|wanted| wanted.name.as_str()).collect();
            self.query(
                "SELECT portalock.bury($1, $2, $3)",
                &[
                    (&session, Type::TEXT),
                    (&kinds, Type::TEXT_ARRAY),
                    (&names, Type::TEXT_ARRAY),
                ],
            )
            .await?;
        }
        Ok(())
    }

    /// All claims of a session, with their owners. `None` if another session is reading its own.
    pub(crate) async fn all_claims(
        &self,
        session: &str,
    ) -> Result<Option<Vec<(OwnerId, Place)>>, Error> {
        let statement = "SELECT * FROM portalock.all_claims_of($1)";
        let rows = self.query(statement, &[(&session, Type::TEXT)]).await?;
        let mut claims = Vec::new();
        for row in &rows {
            let Some(name) = row.try_get::<_, Option<&str>>("owner")? else {
                return Ok(None);
            };
            if let Some(owner) = Place::owner(name)
                && let Some(kind) = Kind::named(row.try_get("kind")?)
                && let Ok(wanted) = LockName::new(row.try_get::<_, &str>("name")?)
            {
                let wanted = Wanted {
                    kind,
                    name: wanted,
                    weight: row.try_get("weight")?,
                    capacity: row.try_get("capacity")?,
                };
                let name = name.into();
                claims.push((owner, Place { name, wanted }));
            }
        }
        Ok(Some(claims))
    }

    /// Removes rows that nobody needs any more. Returns true if there may be more.
    pub(crate) async fn clean(&self) -> Result<bool, Error> {
        let most = i32::from(AT_ONCE);
        let rows = self
            .query("SELECT portalock.clean($1)", &[(&most, Type::INT4)])
            .await?;
        let cleaned: i32 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        Ok(cleaned >= most)
    }
}

fn holder(row: &Row) -> Result<Option<Holder>, Error> {
    let who: Option<&str> = row.try_get("who")?;
    let since: Option<i64> = row.try_get("since")?;
    Ok(who.and_then(|who| decode(who, since?)))
}

fn inspection(kind: Kind, rows: &[Row]) -> Result<Inspection, Error> {
    let (mut holders, mut waiters, mut last) = (Vec::new(), Vec::new(), None);
    for row in rows {
        let number: Option<i64> = row.try_get("token")?;
        let number = number.map(token);
        let state: &str = row.try_get("state")?;
        if state == "last" {
            last = number;
            continue;
        }
        let Some(holder) = holder(row)? else {
            continue;
        };
        let owner: &str = row.try_get("owner")?;
        let mut claim = Claim::new(holder, kind.claim(row.try_get("weight")?));
        claim.owner = owner.parse().ok();
        match number {
            Some(number) => holders.push(claim.with_token(number)),
            None => waiters.push(claim),
        }
    }
    Ok(Inspection::new(holders, waiters).with_last_token(last))
}

pub(crate) fn token(number: i64) -> FencingToken {
    FencingToken::new(number.cast_unsigned())
}

pub(crate) fn millis(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}
