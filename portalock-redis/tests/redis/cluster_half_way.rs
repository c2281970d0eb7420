//! A slot that is moving, with a part of its keys at each node, or that goes and comes back at once.

use std::time::Duration;

use portalock_core::{BackendErrorKind, Broken, LockBackend, LockError, Policy, clock::Instant};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::servers::{RedisCluster, RedisClusterOptions, SlotMove};

use crate::{
    cluster::{keys, on, slot_of, start},
    fixture::{
        Admin, ENOUGH, connected, eventually, granted, is_place, lock, patient, settings_at,
        waiters, waiting,
    },
};

/// Short enough that many sessions' times fit into a test.
pub(crate) const SHORT: Duration = Duration::from_secs(4);

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

/// Its `ASK` errors name only a port.
#[tokio::test]
async fn a_session_whose_key_has_moved_lives_on_if_nodes_do_not_tell_their_addresses() {
    let options = RedisClusterOptions::new().replicas(0);
    let tells_nothing = ("cluster-preferred-endpoint-type", "unknown-endpoint");
    let cluster = start(options.setting(tells_nothing.0, tells_nothing.1)).await;
    let holder = connected(short(&cluster)).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let slot = slot_of(&cluster, "a").await;
    let (cluster, moving) = half_way(cluster, slot, |key| key.contains("/session/")).await;
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

/// An operator may have cancelled the move, and may be moving keys back. So this is known when the move has ended.
#[tokio::test]
async fn a_hold_whose_key_is_at_neither_node_is_not_taken_for_lost_in_a_move() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let lasting = short(&cluster).with_session_ttl(ENOUGH).unwrap();
    let holder = connected(lasting).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let slot = slot_of(&cluster, "a").await;
    let key = keys(&cluster).await;
    let key = key
        .into_iter()
        .find(|key| key.ends_with("/lock/a"))
        .unwrap();
    let (cluster, moving) = half_way(cluster, slot, |key| !key.contains("/session/")).await;
    let mut to = Admin::of(cluster.node(moving.to())).await;
    to.ask::<()>("ASKING").await;
    let fields: Vec<String> = to.ask(&format!("HGETALL {key}")).await;
    to.ask::<()>("ASKING").await;
    to.ask::<u32>(&format!("DEL {key}")).await;
    // The check after the reset looks for the holder, and for the waiter that it could be.
    let before = to.calls("hget").await;
    Admin::of(cluster.node(moving.from()))
        .await
        .kill_sessions()
        .await;
    eventually(async || {
        let mut node = Admin::of(cluster.node(moving.to())).await;
        node.calls("hget").await >= before + 2
    })
    .await;
    to.ask::<()>("ASKING").await;
    let mut back = vec!["HSET", &key];
    back.extend(fields.iter().map(String::as_str));
    to.ask_words::<u32>(&back).await;
    let (_cluster, ()) = on(cluster, move |cluster| cluster.finish_move(moving)).await;
    held.ensure_held().unwrap();
    held.release().await.unwrap();
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

/// Its locks are in other slots.
#[tokio::test]
async fn a_client_starts_while_the_number_of_tags_moves() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    // Patient with a machine that is busy.
    let patient = settings_at(&cluster.url())
        .with_session_ttl(ENOUGH)
        .unwrap();
    connected(patient.clone()).await;
    let slot = cluster.slot_of("{portalock}/tags").unwrap();
    let (_cluster, _) = half_way(cluster, slot, |_| true).await;
    let backend = connected(patient.clone()).await;
    let _held = lock(&backend, "a").acquire().await.unwrap();
    let fewer = patient.with_cluster_tags(8).unwrap();
    let error = RedisBackend::with_settings(fewer).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error:?}");
}
