//! Repeated faults, while processes lock, share and stop waiting: no lock is lost, holds don't overlap, and places are
//! kept.
//!
//! `PORTALOCK_RESETS_SECONDS` sets the duration. The guarantees were measured with a minute.

use std::{
    fs::{File, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use portalock_core::{Guard, LockError, Policy, clock::Instant};
use portalock_redis::RedisBackend;
use portalock_testkit::servers::{RedisOptions, RedisServer};
use tokio::task::JoinSet;

use crate::fixture::{Admin, eventually, granted, lock, patient, settings_at, waiters};

const PROCESSES: usize = 6;
const TASKS: usize = 3;
const NAMES: usize = 2;
/// The number of waiters in the queue whose order is checked.
const LINE: usize = 4;

/// Longer than the default: the test is about faults, and the load of the machine must not end a session.
const SESSION: Duration = Duration::from_secs(10);

const URL: &str = "PORTALOCK_RESETS_URL";
const DIR: &str = "PORTALOCK_RESETS_DIR";
const SECONDS: &str = "PORTALOCK_RESETS_SECONDS";

fn time() -> Duration {
    let seconds = std::env::var(SECONDS).ok();
    Duration::from_secs(seconds.map_or(4, |seconds| seconds.parse().unwrap()))
}

/// A client that connects at first use, so that calls handle a fault at that moment.
fn client(url: &str) -> RedisBackend {
    RedisBackend::new(settings_at(url).with_session_ttl(SESSION).unwrap())
}

/// Another process that works: this test program again, as [`be_at_work`].
struct Worker(Child);

impl Worker {
    fn start(server: &RedisServer, dir: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "resets::be_at_work", "--nocapture"])
            .env(URL, server.url())
            .env(DIR, dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn has_succeeded(mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `fault` again and again, at intervals of about `every`, next to working processes and a queue of waiters.
async fn nothing_is_lost(
    mut server: RedisServer,
    every: Duration,
    mut fault: impl AsyncFnMut(&mut RedisServer),
) {
    let dir = tempfile::tempdir().unwrap();
    let (holder, others) = (client(&server.url()), client(&server.url()));
    let held = lock(&holder, "line").acquire().await.unwrap();
    let mut line = Vec::new();
    for place in 0..LINE {
        let backend = if place % 2 == 0 { &others } else { &holder };
        let lock = lock(backend, "line").with_policy(Policy::forever());
        line.push(tokio::spawn(async move { lock.acquire().await }));
        eventually(async || waiters(&holder, "line").await == place + 1).await;
    }
    let workers: Vec<_> = (0..PROCESSES)
        .map(|_| Worker::start(&server, dir.path()))
        .collect();
    let begun = Instant::now();
    let mut faults = 0;
    while begun.elapsed() < time() {
        tokio::time::sleep(every.mul_f64(0.5 + fastrand::f64())).await;
        fault(&mut server).await;
        faults += 1;
    }
    held.ensure_held().unwrap();
    let successes = tokio::task::spawn_blocking(move || {
        let ended = workers.into_iter().map(Worker::has_succeeded);
        ended.filter(|success| *success).count()
    });
    assert_eq!(successes.await.unwrap(), PROCESSES, "a worker found fault");
    let mut last = held.token();
    held.release().await.unwrap();
    for waiter in line {
        let guard = granted(waiter).await;
        assert!(guard.token() > last, "a waiter has lost its place");
        last = guard.token();
        guard.release().await.unwrap();
    }
    println!("{faults} faults in {:?}", begun.elapsed());
}

#[tokio::test]
async fn sessions_that_are_killed_twice_a_second_lose_nothing() {
    let server = RedisServer::start().unwrap();
    let mut admin = Admin::of(&server).await;
    nothing_is_lost(server, Duration::from_millis(500), async |_| {
        admin.ask::<u32>("CLIENT KILL TYPE pubsub").await;
    })
    .await;
}

#[tokio::test]
async fn connections_of_calls_that_are_killed_lose_nothing() {
    let server = RedisServer::start().unwrap();
    let mut admin = Admin::of(&server).await;
    nothing_is_lost(server, Duration::from_millis(500), async |_| {
        admin.ask::<u32>("CLIENT KILL TYPE normal SKIPME yes").await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_stands_still_again_and_again_loses_nothing() {
    let server = RedisServer::start().unwrap();
    nothing_is_lost(server, Duration::from_secs(2), async |server| {
        server.stall().unwrap();
        tokio::time::sleep(SESSION / 5).await;
        server.resume().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_server_that_restarts_with_its_data_loses_nothing() {
    let server = RedisOptions::new().persistent(true).start().unwrap();
    nothing_is_lost(server, Duration::from_secs(2), async |server| {
        server.restart().unwrap();
    })
    .await;
}

#[tokio::test]
async fn be_at_work() {
    let (Ok(url), Ok(dir)) = (std::env::var(URL), std::env::var(DIR)) else {
        return;
    };
    let backend = client(&url);
    let until = Instant::now() + time();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (backend, dir) = (backend.clone(), PathBuf::from(&dir));
        tasks.spawn(async move {
            while Instant::now() < until {
                work(&backend, &dir).await;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

/// Acquires and holds one lock, exclusive or shared, with long or short patience.
async fn work(backend: &RedisBackend, dir: &Path) {
    let name = format!("work-{}", fastrand::usize(..NAMES));
    let policy = if fastrand::u8(..3) == 0 {
        Policy::new().with_timeout(Duration::from_millis(fastrand::u64(..40)))
    } else {
        patient()
    };
    let gives_up = policy != patient();
    let wanted = lock(backend, &name).with_policy(policy);
    let shared = fastrand::u8(..3) == 0;
    let held = if shared {
        wanted.acquire_shared().await
    } else {
        wanted.acquire().await
    };
    match held {
        Ok(guard) => hold(guard, &dir.join(name), shared).await,
        Err(LockError::Timeout { .. }) if gives_up => {}
        // A call with less patience than a fault lasts may get an error from the fault.
        Err(error) if gives_up && error.is_retryable() => {}
        Err(error) => panic!("{error:?}"),
    }
}

/// A file lock of the system shows whether two processes hold the lock; tokens grow with each exclusive hold.
async fn hold(guard: Guard<RedisBackend>, path: &Path, shared: bool) {
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let witnessed = if shared {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    if let Err(TryLockError::WouldBlock) = witnessed {
        panic!("two hold {}", path.display());
    }
    witnessed.unwrap();
    if !shared {
        let mut last = String::new();
        file.read_to_string(&mut last).unwrap();
        let token = u64::from(guard.token().unwrap());
        assert!(last.parse().unwrap_or(0) < token, "{last}, then {token}");
        file.rewind().unwrap();
        file.write_all(token.to_string().as_bytes()).unwrap();
    }
    tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
    guard.ensure_held().unwrap();
    file.unlock().unwrap();
    drop(file);
    guard.release().await.unwrap();
}
