//! Opening a connection, and making sure that a server at the other end can keep our locks.

use std::{sync::Arc, time::Duration};

use portalock_core::{BackendError, BackendErrorKind};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, ProtocolVersion, PushInfo, RedisError,
    ServerErrorKind, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
};

use crate::{
    config::RedisSettings,
    error::{cluster, failed, no_resp3, unexpected},
};

const CONNECT: &str = "connect to Redis";

/// A connection on which `push` gets what the server sends unasked.
///
/// Every connection is opened here, a session's next one and each runtime's own too: where the server is now is looked up
/// anew each time.
pub(crate) async fn connect(
    settings: &RedisSettings,
    push: impl AsyncPushSender,
) -> Result<MultiplexedConnection, BackendError> {
    let client = client(settings)?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.connect_timeout()))
        .set_response_timeout(Some(settings.patience()))
        .set_push_sender(push);
    let mut connection = match client
        .get_multiplexed_async_connection_with_config(&config)
        .await
    {
        Ok(connection) => connection,
        Err(error) => return Err(diagnose(settings, error).await),
    };
    // The handshake said this already, but the client library keeps nothing of it.
    let hello: Value = redis::cmd("HELLO")
        .arg(3)
        .query_async(&mut connection)
        .await
        .map_err(|error| failed(CONNECT, error))?;
    check(&Greeting::of(hello))?;
    Ok(connection)
}

fn client(settings: &RedisSettings) -> Result<Client, BackendError> {
    let server = settings.server().clone();
    // All tasks share the connection: else what one of them sends is held back until the server has confirmed what another
    // sent before it, which takes a round trip, or 40 ms if the server has nothing to answer yet.
    let tcp = server.tcp_settings().clone().set_nodelay(true);
    let server = server.set_tcp_settings(tcp);
    #[cfg(feature = "tls")]
    if let Some(file) = settings.authority() {
        let root_cert = std::fs::read(file).map_err(|error| {
            BackendError::new(
                BackendErrorKind::Misconfigured,
                format!(
                    "`authority`: can't read the certificates in {}",
                    file.display()
                ),
            )
            .with_source(error)
        })?;
        let certificates = redis::TlsCertificates {
            client_tls: None,
            root_cert: Some(root_cert),
        };
        return Client::build_with_tls(server, certificates)
            .map_err(|error| failed(CONNECT, error));
    }
    Client::open(server).map_err(|error| failed(CONNECT, error))
}

/// A server without RESP3 refuses the handshake with the same bare `ERR` as a wrong database number. Whether it takes
/// the older protocol with the same settings tells the two apart.
async fn diagnose(settings: &RedisSettings, error: RedisError) -> BackendError {
    if error.kind() != ErrorKind::Server(ServerErrorKind::ResponseError) {
        return failed(CONNECT, error);
    }
    let server = settings.server().clone();
    let handshake = server
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP2);
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(settings.connect_timeout()));
    let speaks_resp2 = match Client::open(server.set_redis_settings(handshake)) {
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

/// What the server says of itself.
#[derive(Debug, Default)]
struct Greeting {
    version: Arc<str>,
    mode: Arc<str>,
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
                _ => {}
            }
        }
        greeting
    }
}

fn check(greeting: &Greeting) -> Result<(), BackendError> {
    match &*greeting.mode {
        "cluster" => return Err(cluster()),
        "sentinel" => {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "this is the address of a sentinel: give that of the primary",
            ));
        }
        _ => {}
    }
    let mut numbers = greeting.version.split('.').map(str::parse::<u32>);
    if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next())
        && (major, minor) < (6, 2)
    {
        return Err(BackendError::new(
            BackendErrorKind::Unsupported,
            format!(
                "the server's version is {}: Redis 6.2 or later, or Valkey, is needed",
                greeting.version
            ),
        ));
    }
    Ok(())
}

/// How long the server has been up at the least. It counts whole seconds.
pub(crate) async fn uptime(
    connection: &mut MultiplexedConnection,
) -> Result<Duration, BackendError> {
    const WHAT: &str = "ask Redis when it started";
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(connection)
        .await
        .map_err(|error| failed(WHAT, error))?;
    let seconds: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("uptime_in_seconds:"))
        .and_then(|seconds| seconds.trim().parse().ok())
        .ok_or_else(|| unexpected(WHAT))?;
    Ok(Duration::from_secs(seconds.saturating_sub(1)))
}

/// Reads a message that came to a channel. `None` for anything else.
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
            let error = check(&greeting(version, mode)).unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error}");
        }
    }

    #[test]
    fn servers_that_can_are_not() {
        for version in ["6.2.0", "7.0.15", "8.2.1", "255.255.255", "10.0"] {
            check(&greeting(version, "standalone")).unwrap();
        }
    }
}
