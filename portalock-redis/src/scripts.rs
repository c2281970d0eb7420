//! The scripts: each atomic, each one round trip.
//!
//! # Invariants
//!
//! What every script keeps true, whatever it finds, with *live* as `lives` in `grant.lua` decides it:
//!
//! 1. **Exclusion.** The weights of the claims in a state never exceed the smallest capacity among them. A claim leaves
//!    only by its own owner's release or because its session is not live; nobody is granted beside a live claim that it
//!    doesn't fit with. (A write over the key from outside, an eviction or `FLUSHALL` is not a script.)
//!    Where the last token comes with a shape, every claim in the state has it, so that their number is enough to tell.
//! 2. **A grant needs a live session**, checked in the script that grants, **and its present stamp** where it is asked for. So a
//!    command that comes late out of a dead session, or after its place was withdrawn, is refused: see `session.rs`.
//! 3. **Order.** An owner is granted only when nobody live stands before it, and never loses its place by asking again.
//! 4. **One claim an owner**, in the state or in the queue, never in both: asking again finds it.
//! 5. **Tokens grow.** Each is more than the last and at least the server's clock in microseconds; a state that holds
//!    the last one lives until an hour after the clock has passed it.
//! 6. **Nothing lasts.** Every key has a time to live of an hour or two, moved on by those who use it: what a crashed client
//!    left is taken out by the next one who meets it, or goes by itself.
//! 7. **Dead sessions stay dead.** A session's key is set once, after its subscription, and only ever moved on or given a later
//!    stamp, never set again when it is gone; a client deletes the key of its former session when it begins a new one.
//! 8. **No waiter is forgotten.** Whoever frees something serves the queue; whoever is granted its turn is told by a message, and
//!    looks when it can have missed one. The last in the queue always has been told that it is, by an answer or a message, and
//!    looks often whether the holders live; the others look from time to time, also whether the last one does.

//!
//! # In a cluster
//!
//! All keys and channels of a script lie in one slot, by their hash tag: those of the sessions that it meets in claims too, which
//! nobody can name beforehand. While the slot moves from one node to another, some of its keys are at either, and a session whose
//! key isn't here may well live. So each script that meets sessions names a key that is never set. As long as the slot moves that one
//! counts as moved, and the node refuses the script as a whole, before it has done anything (`ASK`, or `TRYAGAIN` if other keys are
//! still there). The node to which the slot moves refuses it as well, unless it is told `ASKING`: that is never said for these
//! scripts. Those that touch nothing but the keys that they name run wherever all of these are.

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};
use sha1_smol::Sha1;
use std::sync::LazyLock;

use crate::cluster::Tag;

/// A script, as it runs on a server of its own and in a slot of a cluster.
#[derive(Debug)]
pub(crate) struct Script {
    server: Form,
    slot: Form,
    /// It reads keys that it doesn't name: those of sessions.
    meets_sessions: bool,
}

/// What is sent, and its hash, by which the server knows it.
#[derive(Debug)]
struct Form {
    source: String,
    hash: String,
}

macro_rules! script {
    ($name:ident: $($file:literal)+) => {
        script!($name, false: $($file)+);
    };
    ($name:ident meets sessions: $($file:literal)+) => {
        script!($name, true: $($file)+);
    };
    ($name:ident, $meets_sessions:literal: $($file:literal)+) => {
        pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new($meets_sessions, concat!($("\n", include_str!(concat!("scripts/", $file)),)+))
        });
    };
}

script!(ACQUIRE meets sessions: "grant.lua" "acquire_usual.lua" "prelude.lua" "acquire.lua");
script!(RELEASE meets sessions: "grant.lua" "release_usual.lua" "prelude.lua" "release.lua");
script!(BREAK meets sessions: "place.lua" "break.lua");
script!(EVICT meets sessions: "place.lua" "grant.lua" "release_usual.lua" "prelude.lua" "release.lua");
script!(INSPECT meets sessions: "grant.lua" "prelude.lua" "inspect.lua");
script!(OPEN: "open.lua");
script!(RAISE: "raise.lua");
script!(LOOK: "look.lua");
script!(PRIMARY: "primary.lua");

impl Script {
    fn new(meets_sessions: bool, source: &str) -> Self {
        Self {
            server: Form::new(include_str!("scripts/server.lua"), source),
            slot: Form::new(include_str!("scripts/slot.lua"), source),
            meets_sessions,
        }
    }

    /// Runs the script, on a server of its own or in the slot of `tag`. One round trip, or two if the server doesn't have it: after a
    /// start or a `SCRIPT FLUSH`.
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
