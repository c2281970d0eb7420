//! The scripts: each atomic, each one round trip.
//!
//! # Invariants
//!
//! What every script keeps true, whatever it finds, with *live* as `look` in `prelude.lua` decides it:
//!
//! 1. **Exclusion.** The weights of the claims in a state never exceed the smallest capacity among them. A claim leaves
//!    only by its own owner's release or because its session is not live; nobody is granted beside a live claim that it
//!    doesn't fit with. (A write over the key from outside, an eviction or `FLUSHALL` is not a script.)
//! 2. **A grant needs a live session**, checked in the script that grants. So a command that comes late out of a dead
//!    connection is refused, and a grant by message always has a connection to travel on: if that breaks, the session is
//!    dead, and the grant void.
//! 3. **Order.** An owner is granted only when nobody live stands before it, and never loses its place by asking again.
//! 4. **One claim an owner**, in the state or in the queue, never in both: asking again finds it.
//! 5. **Tokens grow.** Each is more than the last and at least the server's clock in microseconds; a state that holds
//!    the last one lives until an hour after the clock has passed it.
//! 6. **Nothing lasts.** Every key has a time to live of an hour or two, moved on by those who use it: what a crashed client
//!    left is taken out by the next one who meets it, or goes by itself.
//! 7. **Dead sessions stay dead.** A session's key is set once, after its subscription, and only ever moved on, never
//!    set again; a client deletes the keys of its former sessions when it opens a new one.
//! 8. **No waiter is forgotten.** Whoever frees something serves the queue; the last in the queue always has been told
//!    that it is, by an answer or a message, and looks often whether the holders live; the others look from time to time,
//!    also whether the last one does.

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};
use sha1_smol::Sha1;
use std::sync::LazyLock;

/// A script and its hash, by which the server knows it.
#[derive(Debug)]
pub(crate) struct Script {
    source: String,
    hash: String,
}

macro_rules! script {
    ($(#[$doc:meta])* $name:ident: $($file:literal)+) => {
        $(#[$doc])*
        pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!($(include_str!(concat!("scripts/", $file)), "\n",)+)));
    };
}

script!(ACQUIRE: "acquire_free.lua" "prelude.lua" "acquire.lua");
script!(RELEASE: "release_free.lua" "prelude.lua" "release.lua");
script!(INSPECT: "prelude.lua" "inspect.lua");
script!(OPEN: "open.lua");
script!(REFRESH: "refresh.lua");

impl Script {
    fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            hash: Sha1::from(source).digest().to_string(),
        }
    }

    /// Runs the script. One round trip, or two if the server doesn't have it: after a start or a `SCRIPT FLUSH`.
    pub(crate) async fn run<K: AsRef<str>>(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &[K],
        arguments: &[&str],
    ) -> Result<Value, RedisError> {
        let answer = command("EVALSHA", &self.hash, keys, arguments)
            .query_async(connection)
            .await;
        match answer {
            // By its source, which also loads it: so nothing can flush it between loading and calling.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                command("EVAL", &self.source, keys, arguments)
                    .query_async(connection)
                    .await
            }
            answer => answer,
        }
    }
}

fn command<K: AsRef<str>>(verb: &str, script: &str, keys: &[K], arguments: &[&str]) -> Cmd {
    let mut command = redis::cmd(verb);
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(key.as_ref());
    }
    for argument in arguments {
        command.arg(*argument);
    }
    command
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use portalock_testkit::servers::RedisServer;

    /// A client that subscribes to nothing, so none of its sessions lives.
    async fn connection(server: &RedisServer) -> MultiplexedConnection {
        let url = format!("{}?protocol=resp3", server.url());
        let client = redis::Client::open(url).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    async fn attempt(connection: &mut MultiplexedConnection, session: &str) -> Vec<String> {
        let own = format!("s/{session}");
        let answer = ACQUIRE
            .run(
                connection,
                &["state", "queue", "waiters", &own],
                &["s/", session, "1-1-1", "1", "1", "1", "{}"],
            )
            .await
            .unwrap();
        redis::from_redis_value(answer).unwrap()
    }

    #[tokio::test]
    async fn a_dead_session_is_granted_nothing_and_leaves_nothing() {
        let server = RedisServer::start().unwrap();
        let mut client = connection(&server).await;
        // Neither key nor subscription; a subscription alone; a key alone, in both forms.
        assert_eq!(attempt(&mut client, "a").await, ["ended"]);
        client.subscribe("s/b").await.unwrap();
        assert_eq!(attempt(&mut client, "b").await, ["ended"]);
        for (session, form) in [("c", "live"), ("d", "strict")] {
            let key = format!("s/{session}");
            redis::cmd("SET")
                .arg(key)
                .arg(form)
                .query_async::<()>(&mut client)
                .await
                .unwrap();
            assert_eq!(attempt(&mut client, session).await, ["ended"], "{form}");
        }
        for key in ["state", "queue", "waiters"] {
            let exists: bool = redis::cmd("EXISTS")
                .arg(key)
                .query_async(&mut client)
                .await
                .unwrap();
            assert!(!exists, "{key}");
        }
    }

    #[tokio::test]
    async fn a_live_session_is_granted_and_finds_its_grant_again() {
        let server = RedisServer::start().unwrap();
        let mut client = connection(&server).await;
        client.subscribe("s/a").await.unwrap();
        OPEN.run(&mut client, &["s/a"], &["live", "60000"])
            .await
            .unwrap();
        let first = attempt(&mut client, "a").await;
        assert_eq!(first[0], "granted");
        assert_eq!(attempt(&mut client, "a").await, first);
    }
}
