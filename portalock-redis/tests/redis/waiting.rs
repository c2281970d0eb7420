//! Waiting: in order, cheap when idle, and quick to notice a crash.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt;
use portalock_core::{
    Attempt, BackendErrorKind, Guard, LockBackend, LockError, Mode, Patience, Policy, Request,
    Wake, clock::Instant,
};
use portalock_redis::RedisBackend;
use portalock_testkit::servers::{RedisOptions, RedisServer};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use crate::fixture::{
    Admin, ENOUGH, client, connected, eventually, granted, lock, patient, replica_of, settings,
    settings_at, waiters, waiting, without_notice,
};

/// The number of clients in the issue about idle waiting.
const MANY: usize = 64;

#[tokio::test]
async fn waiters_are_served_in_the_order_they_came() {
    let server = RedisServer::start().unwrap();
    let holder = client(&server).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let clients = [client(&server).await, client(&server).await];
    let mut line = Vec::new();
    for place in 0..8 {
        line.push(waiting(&clients[place % 2], "a").await);
    }
    let mut last = held.token();
    held.release().await.unwrap();
    for waiter in line {
        let guard = granted(waiter).await;
        assert!(guard.token() > last);
        last = guard.token();
        guard.release().await.unwrap();
    }
}

/// A client whose waiters check so rarely, and wait so long, that only a message can be in time.
async fn listening(server: &RedisServer) -> RedisBackend {
    let settings = settings(server).with_tick_interval(ENOUGH * 10).unwrap();
    RedisBackend::with_settings(settings).await.unwrap()
}

type Waiter = JoinHandle<Result<Guard<RedisBackend>, LockError>>;

async fn waiting_forever(backend: &RedisBackend, shared: bool) -> Waiter {
    let before = waiters(backend, "a").await;
    let lock = lock(backend, "a").with_policy(Policy::forever());
    let waiter = tokio::spawn(async move {
        if shared {
            lock.acquire_shared().await
        } else {
            lock.acquire().await
        }
    });
    eventually(async || waiters(backend, "a").await > before).await;
    waiter
}

#[tokio::test]
async fn a_release_grants_without_anybody_looking() {
    let server = RedisServer::start().unwrap();
    let backend = listening(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let first = waiting_forever(&backend, false).await;
    let second = waiting_forever(&backend, false).await;
    let third = waiting_forever(&backend, false).await;
    second.abort();
    eventually(async || waiters(&backend, "a").await == 2).await;
    held.release().await.unwrap();
    granted(first).await.release().await.unwrap();
    let _third = granted(third).await;
    let confirmations = Admin::of(&server).await.calls("wait").await;
    assert_eq!(confirmations, 0, "it needs no replica");
}

#[tokio::test]
async fn a_grant_is_told_once_a_replica_has_it() {
    let server = RedisOptions::new()
        .setting("repl-diskless-sync-delay", "0")
        .start()
        .unwrap();
    let mut replica = replica_of(&server).await;
    let settings = settings(&server).with_wait_replicas(1);
    let settings = settings.with_tick_interval(ENOUGH * 10).unwrap();
    let demanding = connected(settings).await;
    let held = lock(&demanding, "a").acquire().await.unwrap();
    let next = waiting_forever(&demanding, false).await;
    held.release().await.unwrap();
    let held = granted(next).await;

    let name = "a".parse().unwrap();
    let request = Request::new(name, Mode::Exclusive, Patience::Queue);
    let attempt = demanding.try_acquire(&request).await.unwrap();
    assert!(matches!(attempt, Attempt::Contended(_)), "{attempt:?}");
    let mut line = demanding.subscribe(&request).await.unwrap().unwrap();
    replica.stop();
    held.release().await.unwrap();
    let told = tokio::time::timeout(ENOUGH, line.next()).await.unwrap();
    let Wake::Failed(error) = told else {
        panic!("{told:?}");
    };
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn a_waiter_that_goes_away_lets_in_those_it_kept_out() {
    let server = RedisServer::start().unwrap();
    let backend = listening(&server).await;
    let _reader = lock(&backend, "a").acquire_shared().await.unwrap();
    let writer = waiting_forever(&backend, false).await;
    let readers = [
        waiting_forever(&backend, true).await,
        waiting_forever(&backend, true).await,
    ];
    writer.abort();
    for reader in readers {
        let _reader = granted(reader).await;
    }
}

#[tokio::test]
async fn who_becomes_the_last_in_line_is_told() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let (mut sink, mut messages) = redis::Client::open(server.url())
        .unwrap()
        .get_async_pubsub()
        .await
        .unwrap()
        .split();
    sink.psubscribe("portalock/session/*").await.unwrap();
    // Another session: the waiters need a message for their grant.
    let other = client(&server).await;
    let held = lock(&other, "a").acquire().await.unwrap();
    let first = waiting(&backend, "a").await;
    let second = waiting(&backend, "a").await;
    second.abort();
    eventually(async || waiters(&backend, "a").await == 1).await;
    held.release().await.unwrap();
    let _first = granted(first).await;
    for expected in ["last|", "grant|"] {
        let message = timeout(ENOUGH, messages.next()).await.unwrap().unwrap();
        let text: String = message.get_payload().unwrap();
        assert!(text.starts_with(expected), "{text}");
    }
}

#[tokio::test]
async fn a_crash_of_the_holder_is_noticed_though_the_last_in_line_died_before() {
    let server = RedisServer::start().unwrap();
    let survivor = without_notice(&server).await;
    let mut holder = Process::holding(&server, "a").await;
    let first = waiting(&survivor, "a").await;
    let mut doomed = Vec::new();
    for place in 1..4 {
        doomed.push(Process::asking(&server, "a"));
        eventually(async || waiters(&survivor, "a").await == place + 1).await;
    }
    doomed.iter_mut().for_each(Process::kill);
    // Its check removes the dead waiters behind it, so it becomes the last.
    eventually(async || {
        let mut admin = Admin::of(&server).await;
        admin.ask::<usize>("ZCARD portalock/lock-queue/a").await == 1
    })
    .await;
    holder.kill();
    granted(first).await.release().await.unwrap();
}

#[tokio::test]
async fn many_waiters_cost_the_server_little() {
    let server = RedisServer::start().unwrap();
    let holder = client(&server).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let mut clients = Vec::new();
    let mut line = JoinSet::new();
    for _ in 0..MANY {
        let backend = client(&server).await;
        let lock = lock(&backend, "a");
        line.spawn(async move { lock.acquire().await });
        clients.push(backend);
    }
    eventually(async || waiters(&holder, "a").await == MANY).await;
    let mut admin = Admin::of(&server).await;
    let (calls, time) = timeout(3 * ENOUGH, async {
        loop {
            let subscribed = admin.calls("subscribe").await;
            let started = Instant::now();
            let before = calls(&mut admin).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            let calls = calls(&mut admin).await - before;
            let time = started.elapsed();
            // A busy machine may keep sessions from their answers for so long that they reconnect, and then they ask anew.
            if admin.calls("subscribe").await == subscribed {
                break (calls, time);
            }
        }
    })
    .await
    .unwrap();
    println!("{MANY} waiters for {time:?}: {calls} commands besides refreshes");
    // 25 in a second. Sleeping and asking take longer on a busy machine.
    let allowed = time.as_millis() / 40;
    assert!((calls as u128) < allowed, "{calls} commands in {time:?}");
    line.abort_all();
    held.release().await.unwrap();
}

/// The number of commands that clients have sent, without session refreshes.
async fn calls(admin: &mut Admin) -> usize {
    let mut sum = 0;
    for command in ["eval", "evalsha", "subscribe", "hello", "client|setinfo"] {
        sum += admin.calls(command).await;
    }
    sum
}

#[tokio::test]
async fn a_killed_holder_is_noticed_within_a_tick() {
    let server = RedisServer::start().unwrap();
    let onlooker = client(&server).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(client(&server).await);
    }
    let mut times = Vec::new();
    for round in 0..15 {
        let mut doomed = Process::holding(&server, "a").await;
        let mut line = Vec::new();
        for backend in &clients {
            line.push(waiting(backend, "a").await);
        }
        // A varying pause, so that kills are not in step with ticks.
        tokio::time::sleep(Duration::from_millis(13 * round)).await;
        let killed = Instant::now();
        doomed.kill();
        let mut line = line.into_iter();
        let next = granted(line.next().unwrap()).await;
        times.push(killed.elapsed());
        line.for_each(|waiter| waiter.abort());
        next.release().await.unwrap();
        eventually(async || waiters(&onlooker, "a").await == 0).await;
    }
    times.sort();
    println!(
        "noticed after {:?} at the median, {:?} at the most",
        times[7], times[14]
    );
    // The median is 100 ms on an idle machine. This bound only distinguishes a tick from the end of a session.
    assert!(times[7] < Duration::from_secs(2), "{times:?}");
}

#[tokio::test]
async fn a_crash_of_the_holder_and_of_those_next_in_line_is_noticed() {
    let server = RedisServer::start().unwrap();
    let survivor = client(&server).await;
    let mut doomed = vec![Process::holding(&server, "a").await];
    for place in 0..3 {
        doomed.push(Process::asking(&server, "a"));
        eventually(async || waiters(&survivor, "a").await == place + 1).await;
    }
    let last = waiting(&survivor, "a").await;
    doomed.iter_mut().for_each(Process::kill);
    let guard = granted(last).await;
    guard.release().await.unwrap();
    let keys = Admin::of(&server).await.keys().await;
    assert!(
        !keys.contains(&"portalock/lock-queue/a".to_owned()),
        "{keys:?}"
    );
    assert!(
        !keys.contains(&"portalock/lock-waiters/a".to_owned()),
        "{keys:?}"
    );
}

#[tokio::test]
async fn what_a_crashed_client_left_goes_by_itself() {
    let server = RedisServer::start().unwrap();
    let onlooker = client(&server).await;
    let mut doomed = Process::holding(&server, "a").await;
    let mut queued = Process::asking(&server, "a");
    eventually(async || waiters(&onlooker, "a").await == 1).await;
    doomed.kill();
    queued.kill();
    let mut admin = Admin::of(&server).await;
    for key in admin.keys().await {
        let left: i64 = admin.ask(&format!("PTTL {key}")).await;
        assert!((1..=7_200_000).contains(&left), "{key}: {left} ms");
    }
    eventually(async || {
        let found = LockBackend::inspect(&onlooker, &"a".parse().unwrap())
            .await
            .unwrap();
        !found.held && found.waiters.is_empty()
    })
    .await;
    assert!(LockBackend::names(&onlooker).await.unwrap().is_empty());
}

#[tokio::test]
async fn names_are_those_in_use() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let _one = lock(&backend, "b/c").acquire().await.unwrap();
    let _two = lock(&backend, "a").acquire().await.unwrap();
    lock(&backend, "free")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let names = LockBackend::names(&backend).await.unwrap();
    assert_eq!(names, ["a".parse().unwrap(), "b/c".parse().unwrap()]);
}

/// Another process with its own lock, which ends with its connection: this test program again, as
/// [`be_the_other_process`].
struct Process(Child);

const URL: &str = "PORTALOCK_REDIS_TEST_URL";
const NAME: &str = "PORTALOCK_REDIS_TEST_NAME";

impl Process {
    fn asking(server: &RedisServer, name: &str) -> Self {
        Self(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "waiting::be_the_other_process", "--nocapture"])
                .env(URL, server.url())
                .env(NAME, name)
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    async fn holding(server: &RedisServer, name: &str) -> Self {
        let process = Self::asking(server, name);
        let onlooker = client(server).await;
        eventually(async || {
            let found = LockBackend::inspect(&onlooker, &name.parse().unwrap())
                .await
                .unwrap();
            found
                .holders
                .iter()
                .any(|claim| claim.holder.pid == process.0.id())
        })
        .await;
        process
    }

    /// Sends SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn be_the_other_process() {
    let (Ok(url), Ok(name)) = (std::env::var(URL), std::env::var(NAME)) else {
        return;
    };
    let settings = settings_at(&url).with_release_without_notice(true);
    let backend = RedisBackend::with_settings(settings).await.unwrap();
    let lock = portalock_core::Lock::new(backend, name).unwrap();
    let _held = lock.acquire_with(&patient()).await.unwrap();
    // Waits until it is killed; or until its parent process has ended long ago.
    tokio::time::sleep(ENOUGH * 2).await;
}
