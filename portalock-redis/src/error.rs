//! Maps errors of Redis to portalock's errors: by kind and code, never by the text of a message.

use portalock_core::{BackendError, BackendErrorKind};
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Maps an error of Redis. The source is kept: it names addresses and keys, never a password.
pub(crate) fn failed(what: &str, error: RedisError) -> BackendError {
    let (kind, advice) = classify(&error);
    let message = match advice {
        "" => format!("can't {what}"),
        advice => format!("can't {what}: {advice}"),
    };
    BackendError::new(kind, message).with_source(error)
}

/// The error for an answer that the scripts never give.
pub(crate) fn unexpected(what: &'static str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Other,
        format!("can't {what}: the answer is none that portalock's scripts give"),
    )
}

/// Whether the connection must be dropped: it has ended, it doesn't answer, or it leads to a server that no longer
/// serves the locks.
pub(crate) fn breaks(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::ClusterDown
        ),
        _ => {
            error.is_io_error() || error.is_unrecoverable_error() || error.code() == Some(UNBLOCKED)
        }
    }
}

/// The answer to a `WAIT` when the server has become a replica meanwhile.
const UNBLOCKED: &str = "UNBLOCKED";

fn classify(error: &RedisError) -> (BackendErrorKind, &'static str) {
    use BackendErrorKind as Ours;
    match error.kind() {
        // A script can be flushed between loading and calling.
        ErrorKind::Io | ErrorKind::Server(ServerErrorKind::NoScript) => (Ours::Unavailable, ""),
        ErrorKind::Parse => (
            Ours::Unavailable,
            "the answer ended too early, or the server is no Redis",
        ),
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => DENIED,
        ErrorKind::InvalidClientConfig => (Ours::Misconfigured, ""),
        ErrorKind::RESP3NotSupported => NO_RESP3,
        ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown) => {
            (Ours::Unavailable, "the server is not ready")
        }
        ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::Ask) => {
            (Ours::Unavailable, MOVING)
        }
        // The server was no replica when the connection was opened. The next connection looks up the current primary.
        ErrorKind::Server(ServerErrorKind::ReadOnly) => {
            (Ours::Unavailable, "the server has become a replica")
        }
        // The next connection looks up the current node of the slot.
        ErrorKind::Server(ServerErrorKind::Moved) => (
            Ours::Unavailable,
            "another node of the cluster has its slot",
        ),
        ErrorKind::Server(ServerErrorKind::ClusterDown) => (
            Ours::Unavailable,
            "the node serves nothing, as it believes the cluster to be down",
        ),
        ErrorKind::Server(ServerErrorKind::CrossSlot) => CLUSTER,
        _ => by_code(error.code()),
    }
}

fn by_code(code: Option<&str>) -> (BackendErrorKind, &'static str) {
    use BackendErrorKind as Ours;
    match code {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => DENIED,
        Some("NOPROTO") => NO_RESP3,
        Some("OOM") => (
            Ours::OutOfSpace,
            "the server's memory is full: raise `maxmemory`",
        ),
        Some("WRONGTYPE" | "CORRUPT") => (
            Ours::Corrupt,
            "something else lies at a key of this lock: remove it, or use another prefix",
        ),
        Some("MISCONF") => (
            Ours::ReadOnly,
            "the server refuses writes because it can't save its data",
        ),
        Some(UNBLOCKED) => (Ours::Unavailable, "the server has become a replica"),
        Some("NOREPLICAS") => (Ours::Unavailable, "the server lacks replicas"),
        Some("BUSY") => (Ours::Exhausted, "the server runs a long script"),
        _ => (Ours::Other, ""),
    }
}

const DENIED: (BackendErrorKind, &str) = (
    BackendErrorKind::PermissionDenied,
    "the server refused the user: check the password and the ACL, see the crate's front page for what is needed",
);
const NO_RESP3: (BackendErrorKind, &str) = (
    BackendErrorKind::Unsupported,
    "the server does not speak RESP3: Redis 6.2 or later, or Valkey, is needed",
);
const CLUSTER: (BackendErrorKind, &str) = (
    BackendErrorKind::Unsupported,
    "the server is a node of a Redis cluster: write redis+cluster://host,host",
);
/// The slot moves from one node to another. Nothing in it is granted until the move has ended.
const MOVING: &str = "its slot moves to another node of the cluster";

/// Whether the command was refused because its slot is moving to another node.
pub(crate) fn is_moving(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::Ask | ServerErrorKind::TryAgain)
    )
}

/// The error for a server that is a node of a cluster.
pub(crate) fn cluster() -> BackendError {
    BackendError::new(CLUSTER.0, CLUSTER.1)
}

/// The error for a server that doesn't support RESP3.
pub(crate) fn no_resp3(source: RedisError) -> BackendError {
    BackendError::new(NO_RESP3.0, NO_RESP3.1).with_source(source)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Otherwise a call would not be sent again.
    #[tokio::test]
    async fn a_connection_that_ends_in_the_middle_of_an_answer_has_ended() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}/?protocol=resp3", server.local_addr().unwrap());
        let client = redis::Client::open(url).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_connection_timeout(None);
        let half_an_answer = async {
            let (mut connection, _) = server.accept().await.unwrap();
            assert!(connection.read(&mut [0; 1024]).await.unwrap() > 0);
            connection.write_all(b"$7\r\ngran").await.unwrap();
        };
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let (connected, ()) = tokio::join!(connecting, half_an_answer);
        let error = connected.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parse, "{error:?}");
        assert!(breaks(&error));
        let failed = failed("ask", error);
        assert_eq!(failed.kind(), BackendErrorKind::Unavailable);
        assert!(failed.to_string().contains("the server is no Redis"));
    }

    #[test]
    fn codes_decide() {
        for (code, kind) in [
            ("OOM", BackendErrorKind::OutOfSpace),
            ("WRONGTYPE", BackendErrorKind::Corrupt),
            ("NOAUTH", BackendErrorKind::PermissionDenied),
            ("NOPROTO", BackendErrorKind::Unsupported),
            ("BUSY", BackendErrorKind::Exhausted),
            ("ERR", BackendErrorKind::Other),
        ] {
            assert_eq!(by_code(Some(code)).0, kind, "{code}");
        }
    }
}
