//! Waits until replicas have a grant or a refresh, before it counts.

use std::{
    convert::Infallible,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use portalock_core::{BackendError, BackendErrorKind, FencingToken, OwnerId};
use redis::{Value, aio::MultiplexedConnection};
use tokio::sync::Notify;

use crate::{
    config::RedisSettings,
    error::failed,
    keys::Place,
    session::{Session, SessionKey, Source},
};

const CONFIRMING: &str = "confirm a write to Redis at its replicas";
/// The longest wait for replicas.
const WITHIN: Duration = Duration::from_secs(1);

/// Waits until enough replicas have a grant, if the settings require it.
///
/// `WAIT` covers the writes of its own connection only, so this writes first: a grant by message was written on another
/// connection.
pub(crate) async fn confirm(
    connection: &mut MultiplexedConnection,
    session: &SessionKey,
) -> Result<(), BackendError> {
    let _: Value = redis::cmd("PEXPIRE")
        .arg(&session.key)
        .arg(&session.lifetime)
        .query_async(connection)
        .await
        .map_err(|error| failed(CONFIRMING, error))?;
    replicated(connection, session.settings()).await
}

/// Waits until enough replicas have the earlier writes on this connection, if the settings require it.
pub(crate) async fn replicated(
    connection: &mut MultiplexedConnection,
    settings: &RedisSettings,
) -> Result<(), BackendError> {
    wait(connection, settings, settings.session_ttl() / 4).await
}

/// The same for a refresh, with the shorter timeout of a refresh.
pub(crate) async fn renewed_at_replicas(
    connection: &mut MultiplexedConnection,
    settings: &RedisSettings,
) -> Result<(), BackendError> {
    wait(connection, settings, settings.session_ttl() / 8).await
}

async fn wait(
    connection: &mut MultiplexedConnection,
    settings: &RedisSettings,
    within: Duration,
) -> Result<(), BackendError> {
    let replicas = settings.wait_replicas();
    if replicas == 0 {
        return Ok(());
    }
    let confirmed: u32 = redis::cmd("WAIT")
        .arg(replicas)
        .arg(u64::try_from(within.min(WITHIN).as_millis()).unwrap_or(u64::MAX))
        .query_async(connection)
        .await
        .map_err(|error| failed(CONFIRMING, error))?;
    if confirmed < replicas {
        return Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("can't {CONFIRMING}: {confirmed} of {replicas} answered in time"),
        ));
    }
    Ok(())
}

type Heard = (OwnerId, Box<str>, FencingToken, Source);

/// Grants that came by message, and whose waiters are not told yet.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed {
    grants: Mutex<Vec<Heard>>,
    came: Notify,
}

impl Unconfirmed {
    /// Adds a grant of the place with this name, and the connection over which it came.
    pub(crate) fn add(&self, owner: OwnerId, name: &str, token: FencingToken, source: &Source) {
        // No code panics while it holds the lock.
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.push((owner, name.into(), token, source.clone()));
        self.came.notify_one();
    }

    /// Passes grants on when replicas have them. Grants that have come meanwhile are confirmed together.
    pub(crate) async fn confirm(&self, session: &Session) -> Infallible {
        loop {
            self.came.notified().await;
            let grants =
                std::mem::take(&mut *self.grants.lock().unwrap_or_else(PoisonError::into_inner));
            let confirmed = match session.connection() {
                Some(mut line) => {
                    let confirmed = confirm(&mut line.connection, session.service()).await;
                    line.ensure_open(CONFIRMING).and(confirmed)
                }
                None => Err(unconfirmed("there is no connection")),
            };
            let route = &session.service().server.route;
            for (owner, name, token, source) in grants {
                let is_of = |place: &Place| *place.name == *name;
                // A present connection may lead to another primary, which confirms only what it has itself.
                let confirmed = match &confirmed {
                    Ok(()) if !source.counts(route) => {
                        Err(unconfirmed("the connection over which it came has ended"))
                    }
                    confirmed => confirmed.clone(),
                };
                match confirmed {
                    Ok(()) => session.places().granted(owner, token, is_of),
                    // The waiter asks again, or releases the grant.
                    Err(error) => session.places().failed(owner, error, is_of),
                }
            }
        }
    }
}

fn unconfirmed(why: &str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("can't {CONFIRMING}: {why}"),
    )
}

#[cfg(all(test, unix))]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpStream,
    };

    use portalock_testkit::servers::RedisServer;

    use super::*;

    /// The server has no replicas, so each wait lasts as long as it may.
    #[tokio::test]
    async fn replicas_get_a_part_of_the_sessions_time_and_no_more_than_a_second() {
        let server = RedisServer::start().unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connecting.await.unwrap();
        let mut monitor = TcpStream::connect(server.addr()).unwrap();
        monitor.write_all(b"MONITOR\r\n").unwrap();
        let mut seen = BufReader::new(monitor).lines();
        assert_eq!(seen.next().unwrap().unwrap(), "+OK");
        for (millis, at_first, at_a_refresh) in [(800, 200, 100), (600_000, 1000, 1000)] {
            let settings = RedisSettings::new(&server.url()).unwrap();
            let settings = settings.with_session_ttl(Duration::from_millis(millis));
            let settings = settings.unwrap().with_wait_replicas(2);
            replicated(&mut connection, &settings).await.unwrap_err();
            let refresh = renewed_at_replicas(&mut connection, &settings).await;
            refresh.unwrap_err();
            for wait in [at_first, at_a_refresh] {
                let seen = seen.next().unwrap().unwrap();
                let expected = format!(r#""WAIT" "2" "{wait}""#);
                assert!(seen.ends_with(&expected), "{seen}");
            }
        }
    }
}
