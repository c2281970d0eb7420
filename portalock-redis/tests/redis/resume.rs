//! A resumed session: holds stay, and the client learns what it missed.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use portalock_core::{LockBackend, Policy};
use portalock_redis::RedisBackend;
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::RedisServer,
};
use tokio::{task::JoinHandle, time::timeout};

use crate::fixture::{
    Admin, ENOUGH, client, eventually, granted, is_place, lock, settings, settings_at, waiters,
    waiting,
};

/// A client with its own proxy. It checks so rarely that only a message, or a resumed session, can be in time.
async fn listening_on_a_line(server: &RedisServer) -> (RedisBackend, FaultProxy) {
    let line = FaultProxy::start(server.addr()).unwrap();
    let settings = settings_at(&format!("redis://{}", line.addr()))
        .with_tick_interval(ENOUGH * 10)
        .unwrap();
    (RedisBackend::with_settings(settings).await.unwrap(), line)
}

/// A client whose session lasts longer than any test, without a refresh.
async fn lasting(server: &RedisServer) -> RedisBackend {
    let settings = settings(server).with_session_ttl(ENOUGH * 10).unwrap();
    RedisBackend::with_settings(settings).await.unwrap()
}

/// Waits until this number of sessions are subscribed.
async fn subscribed(server: &RedisServer, sessions: usize) {
    let mut admin = Admin::of(server).await;
    let deadline = tokio::time::Instant::now() + ENOUGH;
    loop {
        let channels: Vec<String> = admin.ask("PUBSUB CHANNELS portalock/session/*").await;
        if channels.len() == sessions {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{channels:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn holders_keep_their_locks_and_waiters_their_places() {
    let server = RedisServer::start().unwrap();
    let clients = [
        client(&server).await,
        client(&server).await,
        client(&server).await,
    ];
    let held = lock(&clients[0], "a").acquire().await.unwrap();
    let mut line = Vec::new();
    for place in 0..6 {
        line.push(waiting(&clients[place % 3], "a").await);
    }
    let mut admin = Admin::of(&server).await;
    let job = held.run(async {
        for _ in 0..3 {
            admin.kill_sessions().await;
            subscribed(&server, 3).await;
        }
    });
    job.await.unwrap();
    assert_eq!(waiters(&clients[0], "a").await, 6);
    let mut last = held.token();
    held.release().await.unwrap();
    for waiter in line {
        let guard = granted(waiter).await;
        assert!(guard.token() > last);
        last = guard.token();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_ends_is_replaced_before_the_next_refresh_is_due() {
    let server = RedisServer::start().unwrap();
    let backend = lasting(&server).await;
    Admin::of(&server).await.kill_sessions().await;
    subscribed(&server, 1).await;
    let _held = lock(&backend, "a").try_acquire().await.unwrap();
}

#[tokio::test]
async fn a_backend_that_is_dropped_takes_its_session_along() {
    let server = RedisServer::start().unwrap();
    let backend = lasting(&server).await;
    let keys = async || Admin::of(&server).await.keys().await;
    assert_eq!(keys().await.len(), 1);
    drop(backend);
    eventually(async || keys().await.is_empty()).await;
}

#[tokio::test]
async fn a_grant_that_was_told_to_nobody_is_learnt() {
    let server = RedisServer::start().unwrap();
    let (waits, line) = listening_on_a_line(&server).await;
    let holder = client(&server).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = {
        let lock = lock(&waits, "a").with_policy(Policy::forever());
        tokio::spawn(async move { lock.acquire().await })
    };
    eventually(async || waiters(&holder, "a").await == 1).await;
    line.refuse(true);
    line.cut();
    subscribed(&server, 1).await;
    held.release().await.unwrap();
    // The waiter was granted the lock nevertheless, and its place in the queue is gone.
    let mut admin = Admin::of(&server).await;
    let mut holders: Vec<String> = admin.ask("HKEYS portalock/lock/a").await;
    holders.retain(|field| is_place(field));
    assert_eq!(holders.len(), 1, "{holders:?}");
    line.heal();
    granted(waiter).await.release().await.unwrap();
}

#[tokio::test]
async fn a_claim_that_is_gone_when_its_session_comes_back_is_lost_alone() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let removed = lock(&backend, "a").acquire().await.unwrap();
    let kept = lock(&backend, "b").acquire().await.unwrap();
    let mut admin = Admin::of(&server).await;
    admin.ask::<u32>("DEL portalock/lock/a").await;
    admin.kill_sessions().await;
    timeout(ENOUGH, removed.lost()).await.unwrap();
    kept.ensure_held().unwrap();
}

#[tokio::test]
async fn a_reset_while_the_servers_memory_is_full_loses_nothing() {
    const SESSION: Duration = Duration::from_secs(2);
    let server = RedisServer::start().unwrap();
    let short = settings(&server).with_session_ttl(SESSION).unwrap();
    let backend = RedisBackend::with_settings(short).await.unwrap();
    let held = lock(&backend, "a").acquire().await.unwrap();
    let mut admin = Admin::of(&server).await;
    admin.ask::<()>("CONFIG SET maxmemory 1").await;
    admin.kill_sessions().await;
    tokio::time::sleep(SESSION * 3 / 2).await;
    held.ensure_held().unwrap();
}

/// Another call has withdrawn a place meanwhile.
#[tokio::test]
async fn an_attempt_with_an_earlier_stamp_is_made_again_with_the_present_one() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let mut admin = Admin::of(&server).await;
    let session = admin.keys().await.remove(0);
    for stamp in ["kept|9", "kept|10"] {
        admin
            .ask::<()>(&format!("SET {session} {stamp} KEEPTTL"))
            .await;
        let held = lock(&backend, "a").try_acquire().await.unwrap();
        held.release().await.unwrap();
    }
}

/// This is the state after a failover to a replica that lacked the release.
#[tokio::test]
async fn a_release_that_the_server_has_lost_is_made_again_when_somebody_waits() {
    let server = RedisServer::start().unwrap();
    let (holder, other) = (client(&server).await, client(&server).await);
    let mut admin = Admin::of(&server).await;
    for shared in [false, true] {
        let lock = lock(&holder, "a");
        let held = if shared {
            lock.acquire_shared().await.unwrap()
        } else {
            lock.acquire().await.unwrap()
        };
        let fields: Vec<String> = admin.ask("HGETALL portalock/lock/a").await;
        held.release().await.unwrap();
        for field in fields.chunks(2) {
            let words = ["HSET", "portalock/lock/a", &field[0], &field[1]];
            admin.ask_words::<u32>(&words).await;
        }
        assert!(is_held(&other, "a").await);
        if shared {
            // The lost release does not block owners that don't wait either.
            eventually(async || self::lock(&other, "a").try_acquire().await.is_ok()).await;
        } else {
            self::lock(&other, "a")
                .acquire()
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
        }
    }
}

/// The same for owners that waited, while another one holds.
#[tokio::test]
async fn withdrawals_that_the_server_has_lost_are_made_again_when_somebody_waits() {
    let server = RedisServer::start().unwrap();
    let (holder, gone, other) = (
        client(&server).await,
        client(&server).await,
        client(&server).await,
    );
    let mut admin = Admin::of(&server).await;
    let _held = lock(&holder, "a").acquire_shared().await.unwrap();
    let mut line = Vec::new();
    for _ in 0..3 {
        line.push(waiting(&gone, "a").await);
    }
    let places: Vec<String> = admin
        .ask("ZRANGE portalock/lock-queue/a 0 -1 WITHSCORES")
        .await;
    let claims: Vec<String> = admin.ask("HGETALL portalock/lock-waiters/a").await;
    line.iter().for_each(JoinHandle::abort);
    eventually(async || waiters(&other, "a").await == 0).await;
    for field in claims.chunks(2) {
        let words = ["HSET", "portalock/lock-waiters/a", &field[0], &field[1]];
        admin.ask_words::<u32>(&words).await;
    }
    for place in places.chunks(2) {
        let words = ["ZADD", "portalock/lock-queue/a", &place[1], &place[0]];
        admin.ask_words::<u32>(&words).await;
    }
    admin.ask::<u32>("HSET portalock/lock/a waits 1").await;
    assert_eq!(waiters(&other, "a").await, 3);
    let wait = Policy::new().with_timeout(ENOUGH);
    let second = lock(&other, "a").acquire_shared_with(&wait).await.unwrap();
    assert_eq!(waiters(&other, "a").await, 0);
    second.release().await.unwrap();
}

#[tokio::test]
async fn a_line_that_is_silent_for_longer_than_a_refresh_loses_nothing() {
    let server = RedisServer::start().unwrap();
    let (backend, line) = listening_on_a_line(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let refresh = settings(&server).session_ttl() / 3;
    line.black_hole(Direction::Both);
    tokio::time::sleep(refresh).await;
    let asks = tokio::spawn({
        let lock = lock(&backend, "b");
        async move { lock.acquire().await }
    });
    tokio::time::sleep(refresh / 2).await;
    line.heal();
    let _other = granted(asks).await;
    held.ensure_held().unwrap();
}

/// The commands of a client from now on, as `MONITOR` shows them.
struct Monitor(BufReader<TcpStream>);

impl Monitor {
    fn of(server: &RedisServer) -> Self {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut monitor = Self(BufReader::new(stream));
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Returns the sender of the next script with this number of keys, and the words of the command.
    fn script_with(&mut self, keys: &str) -> (String, Vec<String>) {
        loop {
            let line = self.line();
            let Some((sender, words)) = line.split_once("] ") else {
                continue;
            };
            let words: Vec<String> = words
                .trim_matches('"')
                .split("\" \"")
                .map(|word| word.replace("\\\"", "\""))
                .collect();
            if words[0] == "EVALSHA" && words[2] == keys {
                let sender = sender.rsplit(' ').next().unwrap();
                return (sender.to_owned(), words);
            }
        }
    }
}

async fn is_held(backend: &RedisBackend, name: &str) -> bool {
    LockBackend::inspect(backend, &name.parse().unwrap())
        .await
        .unwrap()
        .held
}

/// An attempt arrives at the worst time: after its owner was withdrawn.
#[tokio::test]
async fn an_attempt_that_arrives_after_its_withdrawal_takes_no_effect() {
    let server = RedisServer::start().unwrap();
    let (backend, line) = listening_on_a_line(&server).await;
    // The server now knows the script, so it is sent by its hash.
    drop(lock(&backend, "b").acquire().await.unwrap());
    let mut monitor = Monitor::of(&server);
    line.drop_bytes(Direction::ToClient);
    let error = lock(&backend, "a")
        .acquire_with(&Policy::new().with_timeout(Duration::from_millis(100)))
        .await
        .unwrap_err();
    assert!(!error.is_contention(), "{error}");
    let sent = tokio::task::spawn_blocking(move || monitor.script_with("2"));
    let (sender, sent) = sent.await.unwrap();
    // The answer is lost, and only this connection ends.
    let mut admin = Admin::of(&server).await;
    let killed: u32 = admin.ask(&format!("CLIENT KILL ADDR {sender}")).await;
    assert_eq!(killed, 1);
    line.heal();
    // Waits until the attempt is withdrawn.
    eventually(async || !is_held(&backend, "a").await).await;

    let late: Vec<_> = sent.iter().map(String::as_str).collect();
    let _: redis::Value = admin.ask_words(&late).await;
    assert!(!is_held(&backend, "a").await, "it was granted to nobody");
    let _free = lock(&backend, "a").try_acquire().await.unwrap();
}

/// A client whose session needs no refresh in a test, and the proxy that it connects through.
async fn lasting_on_a_line(server: &RedisServer) -> (RedisBackend, FaultProxy) {
    let line = FaultProxy::start(server.addr()).unwrap();
    let settings = settings_at(&format!("redis://{}", line.addr()));
    let settings = settings.with_session_ttl(ENOUGH * 10).unwrap();
    let backend = RedisBackend::with_settings(settings).await.unwrap();
    // It opens the connection for the calls. And the server now knows the scripts, so they are sent by their hash.
    let opening = lock(&backend, "b").acquire().await.unwrap();
    opening.release().await.unwrap();
    (backend, line)
}

/// Ends the connections, with all that is under way over them.
async fn reset(line: &FaultProxy) {
    line.refuse(true);
    line.cut();
    eventually(async || line.connections() == 0).await;
    line.heal();
}

/// As far as its client knows, the first of the two may still be under way.
#[tokio::test]
async fn an_attempt_that_was_sent_twice_is_withdrawn_with_a_new_stamp() {
    let server = RedisServer::start().unwrap();
    let other = client(&server).await;
    let (backend, line) = lasting_on_a_line(&server).await;
    line.black_hole(Direction::ToClient);
    let asks = lock(&backend, "a");
    let asking = tokio::spawn(async move { asks.acquire().await });
    eventually(async || is_held(&other, "a").await).await;
    reset(&line).await;
    granted(asking).await.release().await.unwrap();
    let mut admin = Admin::of(&server).await;
    let sessions: Vec<String> = admin.ask("KEYS portalock/session/*").await;
    let stamps: Vec<String> = admin.ask(&format!("MGET {}", sessions.join(" "))).await;
    // The other client's stamp is the first one still. This one's is raised again if the first answer came while the session connected.
    let first = stamps.iter().filter(|stamp| *stamp == "kept|1");
    assert_eq!(first.count(), 1, "{stamps:?}");
}

/// The second of the two finds nothing.
#[tokio::test]
async fn a_release_that_was_sent_twice_has_released_the_lock() {
    let server = RedisServer::start().unwrap();
    let other = client(&server).await;
    let (backend, line) = lasting_on_a_line(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    line.black_hole(Direction::ToClient);
    let releasing = tokio::spawn(async move { held.release().await });
    eventually(async || !is_held(&other, "a").await).await;
    reset(&line).await;
    let released = timeout(ENOUGH, releasing).await.unwrap().unwrap();
    released.unwrap();
}
