//! A server, its clients, and an independent view of what they do at the server.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use portalock_core::{BackendErrorKind, Guard, Lock, LockBackend, LockError, Policy};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    Fixture, Suite, cases,
    servers::{RedisOptions, RedisServer},
};
use redis::{FromRedisValue, aio::MultiplexedConnection};
use tokio::task::JoinHandle;

/// A timeout that is never reached in a good run.
pub(crate) const ENOUGH: Duration = Duration::from_secs(60);

pub(crate) fn patient() -> Policy {
    Policy::new().with_timeout(ENOUGH)
}

/// The defaults, without the wait after a start: no server here was used before.
pub(crate) fn settings(server: &RedisServer) -> RedisSettings {
    settings_at(&server.url())
}

pub(crate) fn settings_at(url: &str) -> RedisSettings {
    RedisSettings::new(url)
        .unwrap()
        .with_restart_wait(Duration::ZERO)
}

pub(crate) async fn client(server: &RedisServer) -> RedisBackend {
    RedisBackend::with_settings(settings(server)).await.unwrap()
}

/// A client with these settings. If replicas must confirm its session, it tries again: on a busy machine they may be late.
pub(crate) async fn connected(settings: RedisSettings) -> RedisBackend {
    let begun = Instant::now();
    loop {
        let may_be_late = settings.wait_replicas() > 0 && begun.elapsed() < ENOUGH;
        match RedisBackend::with_settings(settings.clone()).await {
            Err(error) if may_be_late && error.kind() == BackendErrorKind::Unavailable => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            connected => return connected.unwrap(),
        }
    }
}

/// A client in the form whose locks end with its connection.
pub(crate) async fn without_notice(server: &RedisServer) -> RedisBackend {
    let settings = settings(server).with_release_without_notice(true);
    RedisBackend::with_settings(settings).await.unwrap()
}

pub(crate) fn lock(backend: &RedisBackend, name: &str) -> Lock<RedisBackend> {
    Lock::new(backend.clone(), name)
        .unwrap()
        .with_policy(patient())
}

/// Starts a waiter for the exclusive lock; returns when it is in the queue.
pub(crate) async fn waiting(
    backend: &RedisBackend,
    name: &str,
) -> JoinHandle<Result<Guard<RedisBackend>, LockError>> {
    let before = waiters(backend, name).await;
    let lock = lock(backend, name);
    let task = tokio::spawn(async move { lock.acquire().await });
    eventually(async || waiters(backend, name).await > before).await;
    task
}

/// Waits for the waiter's guard.
pub(crate) async fn granted(
    waiter: JoinHandle<Result<Guard<RedisBackend>, LockError>>,
) -> Guard<RedisBackend> {
    tokio::time::timeout(ENOUGH, waiter)
        .await
        .expect("the waiter should have been granted by now")
        .unwrap()
        .unwrap()
}

pub(crate) async fn waiters(backend: &RedisBackend, name: &str) -> usize {
    LockBackend::inspect(backend, &name.parse().unwrap())
        .await
        .unwrap()
        .waiters
        .len()
}

/// Waits until `condition` is true, for conditions that send no event.
pub(crate) async fn eventually(condition: impl AsyncFn() -> bool) {
    let seen = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(ENOUGH, seen)
        .await
        .expect("it should have become so by now");
}

/// A replica of `server` that confirms what is written.
pub(crate) async fn replica_of(server: &RedisServer) -> RedisServer {
    let primary = format!("127.0.0.1 {}", server.port());
    let replica = RedisOptions::new().setting("replicaof", primary).start();
    eventually(async || {
        let mut admin = Admin::of(server).await;
        admin.ask::<()>("SET written 1 PX 1000").await;
        admin.ask::<u32>("WAIT 1 100").await == 1
    })
    .await;
    replica.unwrap()
}

/// Plays the cases whose ids `which` returns. Each has its own keys, below the prefix that `fixture` gets.
pub(crate) fn play<F: Fixture>(
    fixture: impl Fn(String) -> F + Send + Sync + 'static,
    which: impl Fn(&str) -> bool,
) {
    let number = AtomicU32::new(0);
    let suite = Suite::new(move || {
        let prefix = format!("case{}", number.fetch_add(1, Ordering::Relaxed));
        let fixture = fixture(prefix);
        async move { fixture }
    });
    let mut failures = Vec::new();
    for case in cases::all().filter(|case| which(&case.id())) {
        let report = suite.run_case(case);
        println!("{report}");
        if report.is_failure() {
            failures.push(report.to_string());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The identity of a server on this host, with a self-signed certificate.
#[cfg(feature = "tls")]
pub(crate) fn identity(dir: &std::path::Path) -> portalock_testkit::servers::ServerIdentity {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, signed.cert.pem()).unwrap();
    std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    portalock_testkit::servers::ServerIdentity {
        authority: certificate.clone(),
        certificate,
        key,
    }
}

/// A connection for independent checks and admin commands.
pub(crate) struct Admin(MultiplexedConnection);

impl Admin {
    pub(crate) async fn of(server: &RedisServer) -> Self {
        Self::at(&server.url()).await
    }

    pub(crate) async fn at(url: &str) -> Self {
        // A loaded machine may be slow, and no fault of a test is meant for this connection.
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ENOUGH))
            .set_response_timeout(Some(ENOUGH));
        let connection = redis::Client::open(url)
            .unwrap()
            .get_multiplexed_async_connection_with_config(&patient)
            .await
            .unwrap();
        Self(connection)
    }

    /// Sends a command, its words separated by spaces.
    pub(crate) async fn ask<T: FromRedisValue>(&mut self, command: &str) -> T {
        let words: Vec<_> = command.split(' ').collect();
        self.ask_words(&words).await
    }

    /// How often a command was called, by clients and by scripts, as `INFO` spells it.
    pub(crate) async fn calls(&mut self, command: &str) -> usize {
        let stats: String = self.ask("INFO commandstats").await;
        let line = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|text| text.strip_prefix(&line));
        let calls = calls.and_then(|calls| calls.split(',').next());
        calls.map_or(0, |calls| calls.parse().unwrap())
    }

    /// Sends a command whose words may have spaces in them.
    pub(crate) async fn ask_words<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        redis::cmd(words[0])
            .arg(&words[1..])
            .query_async(&mut self.0)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Closes every connection with a subscription: the sessions.
    pub(crate) async fn kill_sessions(&mut self) {
        let killed: u32 = self.ask("CLIENT KILL TYPE pubsub").await;
        assert!(killed > 0, "there was no session to kill");
    }

    pub(crate) async fn keys(&mut self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask("KEYS *").await;
        keys.sort();
        keys
    }
}

/// Whether this field of a state is the name of a place, with the claim of a holder.
pub(crate) fn is_place(field: &str) -> bool {
    field.contains('.')
}
