//! Slots that move while there are holders and waiters, and nodes that fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portalock_core::{BackendErrorKind, Broken, LockBackend, LockError, Policy, clock::Instant};
use portalock_redis::RedisSettings;
use portalock_testkit::servers::{RedisCluster, RedisClusterOptions, SlotMove};

use crate::{
    cluster::{connected, keys, on, slot_of, start},
    fixture::{
        Admin, ENOUGH, eventually, granted, is_place, lock, patient, settings_at, waiters, waiting,
    },
    switches::{Witness, work},
};

/// Short enough that many sessions' times fit into a test.
pub(crate) const SHORT: Duration = Duration::from_secs(3);

pub(crate) fn short(cluster: &RedisCluster) -> RedisSettings {
    settings_at(&cluster.url()).with_session_ttl(SHORT).unwrap()
}

/// Starts to move the slot, and moves the keys for which `which` returns true.
pub(crate) async fn half_way(
    cluster: RedisCluster,
    slot: u16,
    which: impl Fn(&str) -> bool + Send + 'static,
) -> (RedisCluster, SlotMove) {
    on(cluster, move |cluster| {
        let to = (cluster.owner(slot).unwrap() + 1) % 3;
        let moving = cluster.begin_move(slot, to)?;
        let keys = cluster.keys_left(moving)?;
        keys.iter()
            .filter(|key| which(key))
            .try_for_each(|key| cluster.move_key(moving, key))?;
        Ok(moving)
    })
    .await
}

/// The session's key is at the source node or at the target node. In both cases it is refreshed, and no client takes
/// the session for dead.
async fn sessions_outlast_a_move_that_stands_still(moved: fn(&str) -> bool) {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let (holder, other) = (
        connected(short(&cluster)).await,
        connected(short(&cluster)).await,
    );
    let held = lock(&holder, "a").acquire().await.unwrap();
    // A waiter, so that every key that a script declares exists. Its wait continues after each refusal, because its
    // policy sets no limit.
    let waits = lock(&other, "a").with_policy(patient().with_max_failures(u32::MAX));
    let waiter = tokio::spawn(async move { waits.acquire().await });
    eventually(async || waiters(&other, "a").await == 1).await;
    let slot = slot_of(&cluster, "a").await;
    let (cluster, moving) = half_way(cluster, slot, moved).await;

    // A reset during the move.
    let mut admin = Admin::of(cluster.node(moving.from())).await;
    admin.kill_sessions().await;
    let newcomer = connected(short(&cluster)).await;
    let begun = Instant::now();
    while begun.elapsed() < SHORT * 2 {
        // No client is granted a lock, and each may try again.
        let error = lock(&other, "a").try_acquire().await.unwrap_err();
        assert_moving(&error);
        let error = lock(&newcomer, "a").try_acquire().await.unwrap_err();
        assert_moving(&error);
        held.ensure_held().unwrap();
    }
    assert!(!waiter.is_finished());
    // The list fails instead of leaving out names of the slot.
    let error = LockBackend::names(&newcomer).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");

    let (_cluster, ()) = on(cluster, move |cluster| cluster.finish_move(moving)).await;
    held.ensure_held().unwrap();
    assert_eq!(LockBackend::names(&newcomer).await.unwrap().len(), 1);
    let token = held.token();
    held.release().await.unwrap();
    assert!(granted(waiter).await.token() > token);
}

fn assert_moving(error: &LockError) {
    let LockError::Backend { source, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(source.kind(), BackendErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn a_session_whose_key_has_moved_lives_on() {
    sessions_outlast_a_move_that_stands_still(|key| key.contains("/session/")).await;
}

#[tokio::test]
async fn a_session_whose_key_has_not_moved_lives_on() {
    sessions_outlast_a_move_that_stands_still(|key| !key.contains("/session/")).await;
}

/// Without a waiter one of the keys that a check declares does not exist, so the node answers `TRYAGAIN`.
#[tokio::test]
async fn a_hold_that_nobody_waits_for_is_kept_after_a_reset_in_a_move() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let holder = connected(short(&cluster)).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let slot = slot_of(&cluster, "a").await;
    let (cluster, moving) = half_way(cluster, slot, |_| false).await;
    let mut admin = Admin::of(cluster.node(moving.from())).await;
    admin.kill_sessions().await;
    tokio::time::sleep(SHORT * 2).await;
    held.ensure_held().unwrap();
    let (_cluster, ()) = on(cluster, move |cluster| cluster.finish_move(moving)).await;
    held.release().await.unwrap();
}

#[tokio::test]
async fn a_release_is_done_whole_once_the_slot_has_arrived() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let (holder, other) = (
        connected(short(&cluster)).await,
        connected(short(&cluster)).await,
    );
    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = waiting(&other, "a").await;
    let slot = slot_of(&cluster, "a").await;
    // All keys that the script declares are at the source node, and the session keys that it reads are not.
    let (cluster, moving) = half_way(cluster, slot, |key| key.contains("/session/")).await;
    let error = held.release().await.unwrap_err();
    assert_moving(&error);
    assert!(!waiter.is_finished());
    let (_cluster, ()) = on(cluster, move |cluster| cluster.finish_move(moving)).await;
    // The engine repeats the release.
    granted(waiter).await.release().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_was_broken_before_a_move_is_told_in_it() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let (holder, other) = (
        connected(short(&cluster)).await,
        connected(short(&cluster)).await,
    );
    let held = lock(&holder, "a").acquire().await.unwrap();
    let lost = held.lost_signal();
    let slot = slot_of(&cluster, "a").await;
    let mut place = Vec::new();
    for key in keys(&cluster).await {
        if key.ends_with("/lock/a") {
            let mut admin = Admin::of(cluster.node(cluster.owner(slot).unwrap())).await;
            place = admin.ask::<Vec<String>>(&format!("HKEYS {key}")).await;
        }
    }
    let place = place.into_iter().find(|field| is_place(field)).unwrap();
    let (cluster, moving) = half_way(cluster, slot, |key| key.contains("/session/")).await;
    // A mark that was set before the move, and moved after the session's key.
    let keys = keys(&cluster).await;
    let session = keys.iter().find(|key| key.contains("/session/")).unwrap();
    let mut admin = Admin::of(cluster.node(moving.to())).await;
    admin.ask::<()>("ASKING").await;
    admin
        .ask::<()>(&format!("HSET {session}/broken {place} 0|{{}}"))
        .await;
    tokio::time::timeout(ENOUGH, lost.lost()).await.unwrap();
    let (_cluster, ()) = on(cluster, move |cluster| cluster.finish_move(moving)).await;
    let next = lock(&other, "a").acquire().await.unwrap();
    assert!(next.token() > held.token());
    assert_eq!(
        lock(&other, "a").break_holder(held.owner()).await.unwrap(),
        Broken::NotHeld
    );
}

pub(crate) fn contender(cluster: &RedisCluster) -> RedisSettings {
    RedisSettings::new(&cluster.url()).unwrap()
}

/// Four clients lock, hold and release while `fault` happens again and again. Returns what was counted.
pub(crate) async fn under_load(
    cluster: RedisCluster,
    settings: impl Fn(&RedisCluster) -> RedisSettings,
    times: usize,
    fault: impl Fn(&mut RedisCluster, [u16; 2], usize) -> std::io::Result<()> + Send + Copy + 'static,
) -> Arc<Witness> {
    let (witness, ends) = (Arc::<Witness>::default(), Arc::<AtomicBool>::default());
    let mut tasks = Vec::new();
    let first = connected(settings(&cluster)).await;
    // Each lock gets a key, so that its slot can be found.
    let [a, b] = crate::switches::NAMES;
    for name in [a, b] {
        drop(lock(&first, name).acquire().await.unwrap());
    }
    let slots = [slot_of(&cluster, a).await, slot_of(&cluster, b).await];
    for _ in 0..4 {
        let backend = connected(settings(&cluster)).await;
        for _ in 0..2 {
            tasks.push(tokio::spawn(work(
                backend.clone(),
                witness.clone(),
                ends.clone(),
            )));
        }
    }
    let mut cluster = cluster;
    for number in 0..times {
        let before = witness.counts.grants.load(Ordering::Relaxed);
        cluster = on(cluster, move |cluster| fault(cluster, slots, number))
            .await
            .0;
        // Waiters are granted locks again.
        eventually(async || witness.counts.grants.load(Ordering::Relaxed) > before + 30).await;
        println!("{number}: {:?}", witness.counts);
    }
    ends.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    println!("{:?}", witness.counts);
    witness
}

pub(crate) fn assert_no_overlap(witness: &Witness) {
    assert_eq!(witness.counts.doubles.load(Ordering::Relaxed), 0);
    assert_eq!(witness.counts.falls.load(Ordering::Relaxed), 0);
}

/// How often slots move or nodes fail: set by `PORTALOCK_SWITCHES`.
fn rounds() -> usize {
    std::env::var("PORTALOCK_SWITCHES").map_or(6, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_back_and_forth_under_load_and_no_lock_is_lost() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    // The session is so long that no test waits for its end.
    let lasting = |cluster: &RedisCluster| {
        let settings = contender(cluster).with_restart_wait(Duration::ZERO);
        settings.with_session_ttl(Duration::from_secs(10)).unwrap()
    };
    let witness = under_load(cluster, lasting, rounds(), |cluster, slots, _| {
        for slot in slots {
            let owner = cluster.owner(slot).unwrap();
            cluster.move_slot(slot, (owner + 1) % 3)?;
        }
        Ok(())
    })
    .await;
    assert_no_overlap(&witness);
    assert_eq!(witness.counts.losses.load(Ordering::Relaxed), 0);
}

fn kill(cluster: &mut RedisCluster, slots: [u16; 2], number: usize) -> std::io::Result<()> {
    cluster.until_whole()?;
    let slot = slots[number % 2];
    let owner = cluster.owner(slot).unwrap();
    cluster.node_mut(owner).stop();
    cluster.until_moved_from(slot, owner)?;
    cluster.node_mut(owner).restart().unwrap();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_replicas_confirm_nobody_holds_twice_when_nodes_fail() {
    let cluster = start(RedisClusterOptions::new()).await;
    let confirmed = |cluster: &RedisCluster| contender(cluster).with_wait_replicas(1);
    let witness = under_load(cluster, confirmed, 2, kill).await;
    assert_no_overlap(&witness);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and is like the one with replicas that confirm: PORTALOCK_SWITCHES=10"]
async fn where_a_promoted_node_waits_nobody_holds_twice_when_nodes_fail() {
    let cluster = start(RedisClusterOptions::new()).await;
    let witness = under_load(cluster, contender, rounds(), kill).await;
    assert_no_overlap(&witness);
}

/// Counts what happens without the wait.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and only counts: PORTALOCK_SWITCHES=10"]
async fn without_the_wait() {
    let cluster = start(RedisClusterOptions::new()).await;
    let no_wait = |cluster: &RedisCluster| contender(cluster).with_restart_wait(Duration::ZERO);
    under_load(cluster, no_wait, rounds(), kill).await;
}

#[tokio::test]
async fn a_failover_by_hand_loses_nothing() {
    let cluster = start(RedisClusterOptions::new()).await;
    let settings = settings_at(&cluster.url())
        .with_session_ttl(Duration::from_secs(30))
        .unwrap();
    let (holder, other) = (connected(settings.clone()).await, connected(settings).await);
    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = waiting(&other, "a").await;
    let slot = slot_of(&cluster, "a").await;
    let (cluster, _) = on(cluster, move |cluster| cluster.fail_over(slot)).await;
    held.ensure_held().unwrap();
    // A call during the switch finds the new node itself.
    let few = Policy::new().with_timeout(ENOUGH);
    let error = lock(&holder, "a").with_policy(few).try_acquire().await;
    assert!(error.unwrap_err().is_contention());
    let token = held.token();
    held.release().await.unwrap();
    assert!(granted(waiter).await.token() > token);
    drop(cluster);
}

#[tokio::test]
async fn without_notice_a_lock_goes_with_its_connection_and_with_its_slot() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let lasting = settings_at(&cluster.url())
        .with_session_ttl(Duration::from_secs(30))
        .unwrap();
    let holder = connected(lasting.clone().with_release_without_notice(true)).await;
    let other = connected(lasting).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = waiting(&other, "a").await;
    let slot = slot_of(&cluster, "a").await;
    let owner = cluster.owner(slot).unwrap();
    Admin::of(cluster.node(owner)).await.kill_sessions().await;
    tokio::time::timeout(ENOUGH, held.lost()).await.unwrap();
    // This is long before the session's key expires.
    granted(waiter).await.release().await.unwrap();

    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = waiting(&other, "a").await;
    let move_it = move |cluster: &mut RedisCluster| cluster.move_slot(slot, (owner + 1) % 3);
    let (_cluster, ()) = on(cluster, move_it).await;
    tokio::time::timeout(ENOUGH, held.lost()).await.unwrap();
    granted(waiter).await.release().await.unwrap();
}

/// Its slot goes and comes back before the client looks, so only a message tells that the subscription has ended.
#[tokio::test]
async fn a_subscription_that_ended_is_made_anew_and_gets_the_grants() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let long = ENOUGH * 10;
    let rarely = settings_at(&cluster.url()).with_session_ttl(long).unwrap();
    let rarely = rarely.with_tick_interval(long).unwrap();
    let (holder, other) = (connected(rarely.clone()).await, connected(rarely).await);
    let mut held = lock(&holder, "a").acquire().await.unwrap();
    let slot = slot_of(&cluster, "a").await;
    let mut admin = Admin::of(cluster.node(cluster.owner(slot).unwrap())).await;
    for ended in [false, true] {
        // At the end of its time it would ask again.
        let waits = lock(&other, "a").with_policy(Policy::forever());
        let waiter = tokio::spawn(async move { waits.acquire().await });
        eventually(async || waiters(&holder, "a").await == 1).await;
        if ended {
            for command in ["MULTI", "CLUSTER DELSLOTS", "CLUSTER ADDSLOTS", "EXEC"] {
                let command = match command.strip_prefix("CLUSTER") {
                    Some(_) => format!("{command} {slot}"),
                    None => command.to_owned(),
                };
                admin.ask::<redis::Value>(&command).await;
            }
        }
        held.release().await.unwrap();
        held = granted(waiter).await;
    }
}
