//! A session's periodic work: it checks that its claims exist, and removes rows that nobody needs any more.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use portalock_core::session::{Asked, Looked, Service, Stand};
use tokio::time::timeout;
use tokio_postgres::{Error, types::Type};

use crate::{
    connection::Connection,
    keys::Place,
    queue::{millis, token},
    session::Session,
};

/// How often a session removes rows that nobody needs any more. Sessions that end before that do it at one start in
/// `CLEAN_ONE_START_IN`.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
const CLEAN_ONE_START_IN: u32 = 50;

/// Reads the state of these places, and makes the server grant those that wait behind dead owners.
pub(crate) const LOOK: &str = "SELECT * FROM portalock.look($1, $2, $3, $4)";
/// Only reads the state of these places.
pub(crate) const READ: &str =
    "SELECT *, NULL::bigint AS again_in FROM portalock.claims_of($1, $2, $3, $4)";

/// Runs [`LOOK`] or [`READ`] for these places.
pub(crate) async fn look(
    line: &Connection,
    statement: &str,
    session: &str,
    asked: &[Asked<Place>],
) -> Result<Looked, Error> {
    let names: Vec<&str> = asked.iter().map(|asked| &*asked.at.name).collect();
    let wanted = || asked.iter().map(|asked| &asked.at.wanted);
    let kinds: Vec<&str> = wanted().map(|wanted| wanted.kind.as_str()).collect();
    let of: Vec<&str> = wanted().map(|wanted| wanted.name.as_str()).collect();
    let rows = line
        .query(
            statement,
            &[
                (&session, Type::TEXT),
                (&names, Type::TEXT_ARRAY),
                (&kinds, Type::TEXT_ARRAY),
                (&of, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Looked::default());
    };
    let owners: Option<Vec<&str>> = row.try_get("owners")?;
    let tokens: Option<Vec<Option<i64>>> = row.try_get("tokens")?;
    let again_in: Option<i64> = row.try_get("again_in")?;
    let known: HashMap<&str, Option<i64>> = owners
        .unwrap_or_default()
        .into_iter()
        .zip(tokens.unwrap_or_default())
        .collect();
    let stand = |name: &&str| match known.get(name) {
        Some(Some(number)) => Stand::Held(token(*number)),
        Some(None) => Stand::Waits,
        None => Stand::Gone,
    };
    Ok(Looked::new(
        names.iter().map(stand).collect(),
        again_in.map(millis),
    ))
}

/// Removes rows that nobody needs any more: those of the former session at once, others from time to time.
pub(crate) async fn clean_up(session: &Session, former: Option<Arc<Session>>) -> Infallible {
    if let Some(former) = former {
        over(session, async |line| {
            line.bury(&former.service().id, former.places().left())
                .await
        })
        .await;
    }
    if fastrand::u32(..CLEAN_ONE_START_IN) > 0 {
        tokio::time::sleep(CLEAN_EVERY).await;
    }
    loop {
        let mut is_more = true;
        while is_more {
            is_more = false;
            over(session, async |line| {
                is_more = line.clean().await?;
                Ok(())
            })
            .await;
        }
        tokio::time::sleep(CLEAN_EVERY).await;
    }
}

/// Releases claims that the session has released before, and that are back: a promoted standby may lack the release. A claim
/// can be back only if the session has reconnected.
pub(crate) async fn release_again(session: &Session) -> Infallible {
    let mut done = 0;
    loop {
        tokio::time::sleep(session.service().lease_time() / 3).await;
        let reconnects = session.places().reconnects();
        if done == reconnects {
            continue;
        }
        over(session, async |line| {
            if let Some(claims) = line.all_claims(&session.service().id).await? {
                for (owner, place) in claims {
                    session.places().found_unknown(owner, place);
                }
                done = reconnects;
            }
            Ok(())
        })
        .await;
    }
}

/// Does this work over the session's connection, if there is one. Returns whether it succeeded. Work that fails is left
/// for the next time, or for the next session.
pub(crate) async fn over(
    session: &Session,
    work: impl AsyncFnOnce(&Connection) -> Result<(), Error>,
) -> bool {
    let Some(line) = session.connection() else {
        return false;
    };
    let within = session.service().settings().request_timeout;
    match timeout(within, work(&line.connection)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::debug!(%error, "could not do what a session has to in Postgres"),
        Err(_) => tracing::debug!("Postgres did not answer to what its session had to do"),
    }
    false
}
