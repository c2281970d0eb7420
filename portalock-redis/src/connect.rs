//! Opens a connection, and checks that the server can keep locks.

use std::{path::Path, sync::Arc};

use portalock_core::{BackendError, BackendErrorKind};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, ProtocolVersion, PushInfo, PushKind,
    RedisError, ServerErrorKind, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
};

use crate::{
    config::RedisSettings,
    error::{cluster, failed, no_resp3},
    route::{Location, Route},
};

/// The operation, for errors. The server is named, as its address can come from a sentinel or a cluster.
fn connecting(server: &ConnectionInfo) -> String {
    format!("connect to Redis at {}", server.addr())
}

/// Opens a connection to the primary at `location`. `push` gets the messages that the server sends on its own.
///
/// Every connection is opened here, also when a session reconnects, and for each runtime. The current address of the
/// server is looked up each time.
pub(crate) async fn connect(
    route: &Route,
    location: &Location,
    push: impl AsyncPushSender,
) -> Result<MultiplexedConnection, BackendError> {
    let settings = route.settings();
    let client = client(&location.server, settings.authority()).await?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.connect_timeout()))
        .set_response_timeout(Some(settings.patience()))
        .set_push_sender(push);
    let mut connection = match client
        .get_multiplexed_async_connection_with_config(&config)
        .await
    {
        Ok(connection) => connection,
        Err(error) => return Err(diagnose(settings, &location.server, error).await),
    };
    // The handshake had the same answer, but the client library does not keep it.
    let hello: Value = redis::cmd("HELLO")
        .arg(3)
        .query_async(&mut connection)
        .await
        .map_err(|error| failed(&connecting(&location.server), error))?;
    let greeting = Greeting::of(hello);
    check(&greeting, settings.address().is_cluster())?;
    if greeting.is_replica() {
        route.leave(location.number);
        return Err(replica(route));
    }
    Ok(connection)
}

/// Creates the client that opens connections to `server`. It trusts the certificates in `authority`, if a file is
/// given.
pub(crate) async fn client(
    server: &ConnectionInfo,
    authority: Option<&Path>,
) -> Result<Client, BackendError> {
    let failed = |error| failed(&connecting(server), error);
    #[cfg(feature = "tls")]
    if let Some(file) = authority {
        let certificates = redis::TlsCertificates {
            client_tls: None,
            root_cert: Some(read(file).await?),
        };
        return Client::build_with_tls(server.clone(), certificates).map_err(failed);
    }
    #[cfg(not(feature = "tls"))]
    let _ = authority;
    Client::open(server.clone()).map_err(failed)
}

/// Read for each connection, because the file can be replaced while the program runs.
#[cfg(feature = "tls")]
async fn read(file: &Path) -> Result<Vec<u8>, BackendError> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
    read.unwrap_or_else(|error| Err(error.into()))
        .map_err(|error| {
            BackendError::new(
                BackendErrorKind::Misconfigured,
                format!(
                    "`authority`: can't read the certificates in {}",
                    file.display()
                ),
            )
            .with_source(error)
        })
}

fn replica(route: &Route) -> BackendError {
    if route.is_followed() {
        // A switch is in progress, or the sentinels or nodes that were asked don't know of it yet.
        return BackendError::new(
            BackendErrorKind::Unavailable,
            "can't connect to Redis: the server that is said to be the primary is a replica",
        );
    }
    BackendError::new(
        BackendErrorKind::ReadOnly,
        "can't connect to Redis: the server is a replica: connect to the primary",
    )
}

/// A server without RESP3 refuses the handshake with the same bare `ERR` as for a wrong database number. To distinguish
/// the two cases, this tries the older protocol with the same settings.
async fn diagnose(
    settings: &RedisSettings,
    server: &ConnectionInfo,
    error: RedisError,
) -> BackendError {
    if error.kind() != ErrorKind::Server(ServerErrorKind::ResponseError) {
        return failed(&connecting(server), error);
    }
    let server = server.clone();
    let handshake = server
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP2);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.connect_timeout()))
        .set_response_timeout(Some(settings.patience()));
    let server = server.set_redis_settings(handshake);
    let speaks_resp2 = match client(&server, settings.authority()).await {
        Ok(client) => client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .is_ok(),
        Err(_) => false,
    };
    if speaks_resp2 {
        return no_resp3(error);
    }
    BackendError::new(
        BackendErrorKind::Misconfigured,
        "can't connect to Redis: the server refuses the URL's database number or user",
    )
    .with_source(error)
}

/// What the server reports about itself.
#[derive(Debug, Default)]
struct Greeting {
    version: Arc<str>,
    mode: Arc<str>,
    role: Arc<str>,
}

impl Greeting {
    fn of(hello: Value) -> Self {
        let mut greeting = Self::default();
        let Value::Map(fields) = hello else {
            return greeting;
        };
        for (key, value) in fields {
            let (Value::BulkString(key), Value::BulkString(value)) = (key, value) else {
                continue;
            };
            let value = String::from_utf8_lossy(&value).into();
            match key.as_slice() {
                b"version" => greeting.version = value,
                b"mode" => greeting.mode = value,
                b"role" => greeting.role = value,
                _ => {}
            }
        }
        greeting
    }

    fn is_replica(&self) -> bool {
        *self.role == *"replica"
    }
}

fn check(greeting: &Greeting, wants_cluster: bool) -> Result<(), BackendError> {
    match &*greeting.mode {
        "cluster" if wants_cluster => {}
        _ if wants_cluster => {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "the server is no node of a cluster: write redis:// for it",
            ));
        }
        "cluster" => return Err(cluster()),
        "sentinel" => {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "this is the address of a sentinel: write redis+sentinel://host,host/master-name",
            ));
        }
        _ => {}
    }
    // In a cluster, the server must support sharded channels.
    let (least, needed) = if wants_cluster {
        ((7, 0), "7.0")
    } else {
        ((6, 2), "6.2")
    };
    let mut numbers = greeting.version.split('.').map(str::parse::<u32>);
    if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next())
        && (major, minor) < least
    {
        return Err(BackendError::new(
            BackendErrorKind::Unsupported,
            format!(
                "the server's version is {}: Redis {needed} or later, or Valkey, is needed",
                greeting.version
            ),
        ));
    }
    Ok(())
}

/// Subscribes to a channel of the server, or of the slot that `route` leads to.
pub(crate) async fn subscribe(
    route: &Route,
    connection: &mut MultiplexedConnection,
    channel: &str,
) -> Result<(), RedisError> {
    if route.tag().is_none() {
        return connection.subscribe(channel).await;
    }
    // The client library has no call for this command here, and takes the confirmation as the command's answer, as it
    // should.
    redis::cmd("SSUBSCRIBE")
        .arg(channel)
        .query_async(connection)
        .await
}

/// Whether this is a message on a channel.
pub(crate) fn is_message(kind: &PushKind) -> bool {
    matches!(kind, PushKind::Message | PushKind::SMessage)
}

/// Whether this is the end of a subscription: a node ends it when it no longer serves the slot.
pub(crate) fn is_end(kind: &PushKind) -> bool {
    matches!(
        kind,
        PushKind::Disconnection | PushKind::Unsubscribe | PushKind::SUnsubscribe
    )
}

/// Reads a message on a channel. `None` for anything else.
pub(crate) fn message(push: &PushInfo) -> Option<&str> {
    match push.data.as_slice() {
        [_, Value::BulkString(text)] => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(version: &str, mode: &str) -> Greeting {
        Greeting {
            version: version.into(),
            mode: mode.into(),
            role: "master".into(),
        }
    }

    #[test]
    fn servers_that_can_not_keep_locks_are_refused() {
        for (version, mode) in [
            ("6.0.16", "standalone"),
            ("5.9.9", "standalone"),
            ("7.2.4", "cluster"),
            ("7.2.4", "sentinel"),
        ] {
            let error = check(&greeting(version, mode), false).unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error}");
        }
        for (version, mode) in [("6.2.14", "cluster"), ("7.2.4", "standalone")] {
            let error = check(&greeting(version, mode), true).unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error}");
        }
    }

    #[test]
    fn servers_that_can_are_not() {
        for version in ["6.2.0", "7.0.15", "8.2.1", "255.255.255", "10.0"] {
            check(&greeting(version, "standalone"), false).unwrap();
        }
        check(&greeting("7.0.0", "cluster"), true).unwrap();
    }
}
