//! Many switches under contention, in which double grants and falling tokens are counted. `PORTALOCK_SWITCHES` sets the
//! number of switches; `docs/guarantees.md` has the figures of fifty.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use portalock_core::{Guard, LostSignal, clock::Instant};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::servers::{RedisServer, SentinelGroup, SentinelOptions};
use tokio::{runtime::Handle, task::spawn_blocking};

use crate::fixture::{Admin, lock};

const CLIENTS: usize = 6;
const TASKS: usize = 3;
pub(crate) const NAMES: [&str; 2] = ["a", "b"];

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) grants: AtomicU32,
    pub(crate) losses: AtomicU32,
    pub(crate) doubles: AtomicU32,
    pub(crate) falls: AtomicU32,
}

/// The holders that have not been told of a loss.
#[derive(Default)]
pub(crate) struct Witness {
    held: Mutex<HashMap<&'static str, Vec<(u64, LostSignal)>>>,
    last: Mutex<HashMap<&'static str, u64>>,
    pub(crate) counts: Counts,
}

impl Witness {
    fn granted(&self, name: &'static str, guard: &Guard<RedisBackend>) {
        let token = u64::from(guard.token().unwrap());
        let mut held = self.held.lock().unwrap();
        if guard.is_lost() {
            return;
        }
        self.counts.grants.fetch_add(1, Ordering::Relaxed);
        let held = held.entry(name).or_default();
        if held.iter().any(|(_, lost)| !lost.is_lost()) {
            self.counts.doubles.fetch_add(1, Ordering::Relaxed);
        }
        held.push((token, guard.lost_signal()));
        let last = self.last.lock().unwrap().insert(name, token);
        if last.is_some_and(|last| last >= token) {
            self.counts.falls.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn releases(&self, name: &'static str, guard: &Guard<RedisBackend>) {
        let token = u64::from(guard.token().unwrap());
        if guard.is_lost() {
            self.counts.losses.fetch_add(1, Ordering::Relaxed);
        }
        let mut held = self.held.lock().unwrap();
        held.entry(name)
            .or_default()
            .retain(|(one, _)| *one != token);
    }
}

/// Locks, holds and releases until `ends` is set, and retries after each retryable error.
pub(crate) async fn work(backend: RedisBackend, witness: Arc<Witness>, ends: Arc<AtomicBool>) {
    while !ends.load(Ordering::Relaxed) {
        let name = NAMES[fastrand::usize(..NAMES.len())];
        let guard = match lock(&backend, name).acquire().await {
            Ok(guard) => guard,
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        witness.granted(name, &guard);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..20))).await;
        witness.releases(name, &guard);
        // If a switch interrupts the release, the engine completes it.
        drop(guard);
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    Stopped,
    Demoted,
    /// Replicas and sentinels can't reach the primary, but it continues, and so do the clients' connections to it.
    Parted,
}

const FAULTS: [Fault; 4] = [Fault::Parted, Fault::Demoted, Fault::Killed, Fault::Stopped];

/// Sends commands as the clients' user, which is never shut out.
fn admin(server: &RedisServer, runtime: &Handle, commands: &[&str]) {
    runtime.block_on(async {
        let mut admin = Admin::at(&format!("redis://client:c@{}", server.addr())).await;
        for command in commands {
            admin.ask::<redis::Value>(command).await;
        }
    });
}

fn switch(group: &mut SentinelGroup, fault: Fault, runtime: &Handle) {
    group.until_whole().unwrap();
    let former = group.primary().unwrap();
    match fault {
        Fault::Killed => group.servers()[former].stop(),
        Fault::Stopped => group.servers()[former].stall().unwrap(),
        Fault::Demoted => {
            group.fail_over().unwrap();
            return;
        }
        Fault::Parted => {
            let commands = ["ACL SETUSER default off", "CLIENT KILL USER default"];
            admin(&group.servers()[former], runtime, &commands);
        }
    }
    group.until_moved_from(former).unwrap();
    let server = &mut group.servers()[former];
    match fault {
        Fault::Killed => server.restart().unwrap(),
        Fault::Stopped => server.resume().unwrap(),
        Fault::Demoted => {}
        Fault::Parted => {
            // Long enough for the other clients to notice the new primary.
            runtime.block_on(tokio::time::sleep(Duration::from_secs(2)));
            admin(server, runtime, &["ACL SETUSER default on"]);
        }
    }
}

async fn count(
    options: SentinelOptions,
    settings: impl Fn(RedisSettings) -> RedisSettings,
) -> Arc<Witness> {
    let switches = std::env::var("PORTALOCK_SWITCHES").map_or(4, |count| count.parse().unwrap());
    let options = options.setting("user", "client on >c ~* &* +@all");
    let mut group = spawn_blocking(move || options.start())
        .await
        .unwrap()
        .unwrap();
    let url = group.url().replace("://", "://client:c@");
    let (witness, ends) = (Arc::<Witness>::default(), Arc::<AtomicBool>::default());
    let mut tasks = Vec::new();
    for _ in 0..CLIENTS {
        let settings = settings(RedisSettings::new(&url).unwrap());
        let backend = RedisBackend::with_settings(settings).await.unwrap();
        for _ in 0..TASKS {
            tasks.push(tokio::spawn(work(
                backend.clone(),
                witness.clone(),
                ends.clone(),
            )));
        }
    }
    let begun = Instant::now();
    for number in 0..switches {
        let runtime = Handle::current();
        let before = witness.counts.grants.load(Ordering::Relaxed);
        let fault = FAULTS[number % FAULTS.len()];
        println!(
            "{:?}: {fault:?} after {:?}",
            begun.elapsed(),
            witness.counts
        );
        group = spawn_blocking(move || {
            switch(&mut group, fault, &runtime);
            group
        })
        .await
        .unwrap();
        // Waiters are granted locks again.
        crate::fixture::eventually(async || {
            witness.counts.grants.load(Ordering::Relaxed) > before + 50
        })
        .await;
    }
    ends.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    println!(
        "{switches} switches in {:?}: {:?}",
        begun.elapsed(),
        witness.counts
    );
    witness
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: PORTALOCK_SWITCHES=50"]
async fn where_replicas_confirm_nobody_holds_twice_and_no_token_falls() {
    let options = SentinelOptions::new()
        .replicas(2)
        .setting("min-replicas-to-write", "1");
    let witness = count(options, |settings| settings.with_wait_replicas(1)).await;
    assert_eq!(witness.counts.doubles.load(Ordering::Relaxed), 0);
    assert_eq!(witness.counts.falls.load(Ordering::Relaxed), 0);
}

/// No client is cut off from the sentinels here, so the wait alone is enough.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: PORTALOCK_SWITCHES=50"]
async fn where_a_new_primary_waits_nobody_holds_twice_and_no_token_falls() {
    let witness = count(SentinelOptions::new().replicas(2), |settings| settings).await;
    assert_eq!(witness.counts.doubles.load(Ordering::Relaxed), 0);
    assert_eq!(witness.counts.falls.load(Ordering::Relaxed), 0);
}

/// Counts what happens without the wait.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and only counts: PORTALOCK_SWITCHES=50"]
async fn without_the_wait() {
    let no_wait = |settings: RedisSettings| settings.with_restart_wait(Duration::ZERO);
    count(SentinelOptions::new().replicas(2), no_wait).await;
}
