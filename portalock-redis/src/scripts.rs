//! The scripts. Each is atomic, and takes one round trip.
//!
//! An attempt and a release have two scripts: one for the request alone, and one for several requests, `batch.lua`, which is
//! made of the same files. What is said here of a script holds for each request of a batch: they run one after the other, and
//! each finds what the ones before it have written.
//!
//! # Invariants
//!
//! Every script preserves these invariants, whatever it finds. `grant.lua` says which sessions are *live*.
//!
//! 1. **Exclusion.** The weights of the claims in a state never exceed the smallest capacity among them. A claim is
//!    removed only when its own owner releases, or when its session is not live. No owner is granted next to a live
//!    claim unless both fit. (A write to the key from outside, an eviction or `FLUSHALL` is not a script.) If the last
//!    token has a shape, every claim in the state has this shape, so the number of claims is enough to decide.
//! 2. **A grant needs a live session**, checked in the script that grants. **A grant in answer to an attempt also needs
//!    the session's current stamp.** So a command that arrives late from a dead session, or after its place was
//!    withdrawn, is refused: see `session.rs`.
//! 3. **Order.** An owner is granted only when no live waiter is ahead of it. It never loses its place when it asks
//!    again.
//! 4. **One claim for each owner**, in the state or in the queue, never in both: when the owner asks again, the script
//!    finds the claim.
//! 5. **Tokens grow.** Each token is larger than the last, and at least the server's clock in microseconds. The state
//!    that stores the last token exists until an hour after the clock has passed this token. A waiter that has a token is
//!    exclusive, and all owners ahead of it are so too, are of its session, and have smaller tokens: so they are granted
//!    in the order of their tokens. The last token is at least that of the last such waiter.
//! 6. **Nothing stays forever.** Every key has a time to live of an hour or two, which its users extend. The next
//!    client that finds the leftovers of a crashed client removes them, or they expire. Holders that share are looked for
//!    in each hour.
//! 7. **Dead sessions stay dead.** A session's key is set once, after its subscription. Later its time is only
//!    extended, or it gets a later stamp. A key that is gone is never set again. A client deletes the key of its former
//!    session when it opens a new one.
//! 8. **No waiter is forgotten.** A script that frees something serves the queue, unless others hold and the first waiter
//!    wants all. A waiter that is granted the lock gets a message, and asks the server when it may have missed the
//!    message. While there are waiters, the state has the flag `waits`, without which a release serves nobody. The last
//!    waiter has always been told that it is the last, by an answer or a message, and it checks often whether the holders
//!    are alive. The other waiters check from time to time, also whether the last waiter is alive. They check the holders too,
//!    unless another waiter has just done so: a failover can bring back a last place for which no client checks, and a client
//!    whose runtime is blocked does not check.
//!
//! # In a cluster
//!
//! All keys and channels of a script are in one slot, because of their hash tag. This includes the keys of sessions in
//! claims, which no client knows beforehand, and those of the queue, which the script makes from the name of the state.
//! While the slot moves from one node to another, each node has some of its keys, and a session whose key is missing at a
//! node may still be alive. So each script that reads such keys declares a key that is never set. While the slot moves, this key counts as moved, and the source node refuses the
//! whole script before it has done anything (`ASK`, or `TRYAGAIN` if other keys are still there). The target node
//! refuses the script too, unless it gets `ASKING`, which is never sent for these scripts. Scripts that use only the
//! keys that they declare run at the node that has all of these keys.

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};
use sha1_smol::Sha1;
use std::sync::LazyLock;

use crate::cluster::Tag;

/// A script, in its form for a single server and its form for a slot of a cluster.
#[derive(Debug)]
pub(crate) struct Script {
    server: Form,
    slot: Form,
    /// The script reads keys that it doesn't declare: those of sessions.
    meets_sessions: bool,
}

/// The source, and its hash, by which the server finds the script.
#[derive(Debug)]
struct Form {
    source: String,
    hash: String,
}

macro_rules! source {
    ($($file:literal)+) => {
        concat!($("\n", include_str!(concat!("scripts/", $file)),)+)
    };
}

/// The sources of an attempt and of a release, for two scripts each.
macro_rules! acquire {
    () => {
        source!("acquire_free.lua" "acquire_behind.lua" "grant.lua" "acquire_usual.lua" "prelude.lua" "acquire.lua")
    };
}
macro_rules! release {
    () => {
        source!("release_free.lua" "release_next.lua" "grant.lua" "prelude.lua" "release.lua")
    };
}

macro_rules! script {
    ($name:ident: $source:expr) => {
        script!($name, false: $source);
    };
    ($name:ident meets sessions: $source:expr) => {
        script!($name, true: $source);
    };
    ($name:ident, $meets_sessions:literal: $source:expr) => {
        pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| Script::new($meets_sessions, $source));
    };
}

script!(ACQUIRE meets sessions: acquire!());
script!(RELEASE meets sessions: release!());
script!(BATCH meets sessions: concat!(
    "\nlocal function acquire(KEYS, ARGV)", acquire!(), "\nend",
    "\nlocal function release(KEYS, ARGV)", release!(), "\nend",
    source!("batch.lua"),
));
script!(BREAK meets sessions: source!("place.lua" "break.lua"));
script!(EVICT meets sessions: concat!(source!("evict.lua"), release!()));
script!(INSPECT meets sessions: source!("grant.lua" "prelude.lua" "inspect.lua"));
script!(OPEN: source!("rights.lua" "open.lua"));
script!(RAISE: source!("raise.lua"));
script!(LOOK: source!("look.lua"));
script!(PRIMARY: source!("rights.lua" "primary.lua"));

impl Script {
    fn new(meets_sessions: bool, source: &str) -> Self {
        Self {
            server: Form::new(include_str!("scripts/server.lua"), source),
            slot: Form::new(include_str!("scripts/slot.lua"), source),
            meets_sessions,
        }
    }

    /// Runs the script, on a single server or in the slot of `tag`. This takes one round trip, or two if the server
    /// doesn't have the script: after a start or a `SCRIPT FLUSH`.
    pub(crate) async fn run_in(
        &self,
        tag: Option<&Tag>,
        connection: &mut MultiplexedConnection,
        keys: &[&str],
        arguments: &[&str],
    ) -> Result<Value, RedisError> {
        match tag {
            None => self.server.run(connection, keys, arguments).await,
            Some(tag) if self.meets_sessions => {
                let keys = [keys, &[tag.never_set()]].concat();
                self.slot.run(connection, &keys, arguments).await
            }
            Some(_) => self.slot.run(connection, keys, arguments).await,
        }
    }

    #[cfg(all(test, unix))]
    async fn run(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &[&str],
        arguments: &[&str],
    ) -> Result<Value, RedisError> {
        self.run_in(None, connection, keys, arguments).await
    }
}

impl Form {
    fn new(head: &str, source: &str) -> Self {
        let source = [head, source].concat();
        Self {
            hash: Sha1::from(&source).digest().to_string(),
            source,
        }
    }

    async fn run(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &[&str],
        arguments: &[&str],
    ) -> Result<Value, RedisError> {
        let answer = command("EVALSHA", &self.hash, keys, arguments)
            .query_async(connection)
            .await;
        match answer {
            // `EVAL` also loads the script, so it can't be flushed between loading and calling.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let command = command("EVAL", &self.source, keys, arguments);
                // Boxed: the future is large, and each call would reserve space for it.
                Box::pin(command.query_async(connection)).await
            }
            answer => answer,
        }
    }
}

fn command(verb: &str, script: &str, keys: &[&str], arguments: &[&str]) -> Cmd {
    const DIGITS: usize = 20;
    let words = keys.iter().chain(arguments);
    let bytes: usize = words.clone().map(|word| word.len()).sum();
    let mut command = Cmd::with_capacity(
        3 + keys.len() + arguments.len(),
        verb.len() + script.len() + DIGITS + bytes,
    );
    command.arg(verb).arg(script).arg(keys.len());
    for word in words {
        command.arg(*word);
    }
    command
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
