//! Slots that move while there are holders and waiters, and nodes that fail.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portalock_core::Policy;
use portalock_redis::RedisSettings;
use portalock_testkit::servers::{RedisCluster, RedisClusterOptions};

use crate::{
    cluster::{on, slot_of, start},
    fixture::{Admin, ENOUGH, connected, eventually, granted, lock, settings_at, waiting},
    switches::{Witness, work},
};

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

/// Waits until each node has an epoch of its own, and knows of the latest. The nodes of a new cluster begin with the same.
async fn have_epochs(cluster: &RedisCluster) {
    eventually(async || {
        let (mut own, mut latest) = (HashSet::new(), HashSet::new());
        for node in 0..3 {
            let info: String = Admin::of(cluster.node(node))
                .await
                .ask("CLUSTER INFO")
                .await;
            for line in info.lines() {
                match line.split_once(':') {
                    Some(("cluster_my_epoch", epoch)) => own.insert(epoch.to_owned()),
                    Some(("cluster_current_epoch", epoch)) => latest.insert(epoch.to_owned()),
                    _ => false,
                };
            }
        }
        (own.len(), latest.len()) == (3, 1)
    })
    .await;
}

/// The client has asked all nodes for its other session just before the move.
#[tokio::test]
async fn a_session_begins_at_once_where_its_slot_has_moved() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    have_epochs(&cluster).await;
    let client = connected(settings_at(&cluster.url())).await;
    let _held = lock(&client, "a").acquire().await.unwrap();
    let other = connected(settings_at(&cluster.url())).await;
    drop(lock(&other, "b").acquire().await.unwrap());
    let slot = slot_of(&cluster, "b").await;
    let to = (cluster.owner(slot).unwrap() + 1) % 3;
    let (_cluster, ()) = on(cluster, move |cluster| cluster.move_slot(slot, to)).await;
    let policy = Policy::new().with_timeout(ENOUGH).with_max_failures(0);
    let _next = lock(&client, "b").acquire_with(&policy).await.unwrap();
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
