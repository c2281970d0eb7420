//! A cluster: names in several slots, users with permission, and refusals.

use std::time::Duration;

use portalock_core::{
    BackendError, BackendErrorKind, Broken, Election, Lock, LockBackend, LockName, LockSet,
    LossNotice, Pool, clock::Instant,
};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::servers::{RedisCluster, RedisClusterOptions, RedisServer};
use tokio::task::spawn_blocking;

use crate::fixture::{
    Admin, ENOUGH, connected, granted, lock, patient, settings_at, waiters, waiting,
};

const SECRET: &str = "hunter2";

pub(crate) async fn start(options: RedisClusterOptions) -> RedisCluster {
    spawn_blocking(move || options.start())
        .await
        .unwrap()
        .unwrap()
}

/// Runs a blocking operation on the cluster.
pub(crate) async fn on<T: Send + 'static>(
    cluster: RedisCluster,
    action: impl FnOnce(&mut RedisCluster) -> std::io::Result<T> + Send + 'static,
) -> (RedisCluster, T) {
    let action = move || {
        let mut cluster = cluster;
        action(&mut cluster).map(|done| (cluster, done))
    };
    spawn_blocking(action).await.unwrap().unwrap()
}

async fn refused(settings: RedisSettings) -> BackendError {
    RedisBackend::with_settings(settings).await.unwrap_err()
}

/// The keys of all nodes.
pub(crate) async fn keys(cluster: &RedisCluster) -> Vec<String> {
    let mut keys = Vec::new();
    for node in 0..3 {
        keys.extend(keys_at(cluster.node(node)).await);
    }
    keys.sort();
    keys
}

async fn keys_at(node: &RedisServer) -> Vec<String> {
    Admin::of(node).await.keys().await
}

/// The slot of a lock that has a key in the cluster.
pub(crate) async fn slot_of(cluster: &RedisCluster, name: &str) -> u16 {
    let keys = keys(cluster).await;
    let key = keys
        .iter()
        .find(|key| key.ends_with(&format!("/lock/{name}")));
    cluster.slot_of(key.unwrap()).unwrap()
}

/// Each of its sessions there has as long for its end as one request has for its answer: five seconds.
#[tokio::test]
async fn a_client_is_closed_as_fast_with_many_sessions_at_a_node_that_hangs_as_with_one() {
    let options = RedisClusterOptions::new().node_timeout(ENOUGH * 10);
    let cluster = start(options).await;
    let settings = settings_at(&cluster.url()).with_session_ttl(ENOUGH);
    let settings = settings.unwrap().with_cluster_tags(32).unwrap();
    let backend = connected(settings).await;
    let names: Vec<String> = (0..80).map(|number| format!("job {number}")).collect();
    let set = LockSet::new(backend.clone(), &names).unwrap();
    let _held = set.with_policy(patient()).acquire().await.unwrap();
    cluster.node(0).stall().unwrap();
    let start = Instant::now();
    let closed = LockBackend::close(&backend).await;
    let took = start.elapsed();
    cluster.node(0).resume().unwrap();
    assert_eq!(closed.unwrap_err().kind(), BackendErrorKind::Unavailable);
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test]
async fn names_lie_in_several_slots_and_all_that_one_server_does_is_done() {
    let cluster = start(RedisClusterOptions::new()).await;
    // One node is enough to find all nodes.
    let one = connected(settings_at(&cluster.url_by(&[cluster.node(4).port()]))).await;
    let other = connected(settings_at(&cluster.url())).await;
    assert_eq!(
        LockBackend::capabilities(&one).loss,
        LossNotice::BeforeSuccessor
    );
    assert_eq!(keys(&cluster).await, ["{portalock}/tags"]);

    let names: Vec<String> = (0..24).map(|number| format!("job {number}")).collect();
    let set = LockSet::new(one.clone(), &names).unwrap();
    let held = set.with_policy(patient()).acquire().await.unwrap();
    let mut listed: Vec<_> = LockBackend::names(&other).await.unwrap();
    listed.sort_by_key(|name| names.iter().position(|one| one == name.as_str()));
    assert_eq!(
        listed.iter().map(LockName::as_str).collect::<Vec<_>>(),
        names
    );
    for node in 0..3 {
        let keys = keys_at(cluster.node(node)).await;
        assert!(keys.iter().any(|key| key.contains("/lock/")), "{keys:?}");
    }

    let waiter = waiting(&other, "job 3").await;
    assert_eq!(waiters(&one, "job 3").await, 1);
    assert!(
        lock(&other, "job 4")
            .try_acquire()
            .await
            .unwrap_err()
            .is_contention()
    );
    held.release().await.unwrap();
    let held = granted(waiter).await;

    let election = Election::new(one.clone(), "job 3").unwrap();
    let mut observer = election.observe();
    let seen = observer.next().await.unwrap().unwrap();
    assert_eq!(seen.token, held.token());
    let broken = lock(&one, "job 3").break_holder(held.owner()).await;
    assert_eq!(broken.unwrap(), Broken::Released);
    tokio::time::timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(observer.next().await.unwrap().is_none());

    let pool = Pool::new(one.clone(), "pool", 2).unwrap();
    let permits = pool.acquire(2).await.unwrap();
    let theirs = Pool::new(other.clone(), "pool", 2).unwrap();
    assert!(theirs.try_acquire(1).await.unwrap_err().is_contention());
    permits.release().await.unwrap();
    theirs
        .try_acquire(1)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();

    // Each tag has a session, and `close` ends them all.
    one.ping().await.unwrap();
    for backend in [&one, &other] {
        LockBackend::close(backend).await.unwrap();
    }
    let left = keys(&cluster).await;
    let is_session = |key: &&String| key.contains("/session/") && !key.ends_with("/broken");
    assert_eq!(left.iter().find(is_session), None);
}

#[tokio::test]
async fn a_ping_needs_the_node_of_each_tag_that_is_used() {
    let mut cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let backend = connected(settings_at(&cluster.url())).await;
    backend.ping().await.unwrap();
    let _held = lock(&backend, "a").acquire().await.unwrap();
    backend.ping().await.unwrap();
    let slot = slot_of(&cluster, "a").await;
    let owner = cluster.owner(slot).unwrap();
    cluster.node_mut(owner).stop();
    let error = backend.ping().await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn what_is_no_cluster_and_who_does_not_fit_in_is_refused() {
    let cluster = start(RedisClusterOptions::new().replicas(0)).await;
    let error = refused(settings_at(&cluster.node(0).url())).await;
    assert_eq!(error.kind(), BackendErrorKind::Unsupported);
    assert!(error.to_string().contains("redis+cluster://"), "{error}");

    let server = RedisServer::start().unwrap();
    let url = server.url().replace("redis://", "redis+cluster://");
    let error = refused(settings_at(&url)).await;
    assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("redis://"), "{error}");

    // No server is running.
    drop(server);
    let error = refused(settings_at(&url)).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");

    let with_tags = |tags: u16| settings_at(&cluster.url()).with_cluster_tags(tags);
    let one = connected(with_tags(16).unwrap()).await;
    let error = refused(with_tags(8).unwrap()).await;
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error:?}");
    assert!(error.to_string().contains("{portalock}/tags"), "{error}");
    // The same if the backend connects at first use.
    let late = || RedisBackend::new(with_tags(8).unwrap());
    let error = Lock::new(late(), "a").unwrap().try_acquire().await;
    let error = format!("{:?}", error.unwrap_err());
    assert!(error.contains("Misconfigured"), "{error}");
    let (names, ping) = (late().names().await, late().ping().await);
    for error in [names.unwrap_err(), ping.unwrap_err()] {
        assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error:?}");
    }
    // Another prefix has its own number of tags.
    connected(with_tags(8).unwrap().with_prefix("b").unwrap()).await;
    let held = lock(&one, "a").acquire().await.unwrap();
    held.release().await.unwrap();
}

#[tokio::test]
async fn the_user_needs_no_more_than_the_front_page_says() {
    let least = format!(
        "least on >{SECRET} ~{{portalock}}/* ~{{portalock-*}}/* resetchannels &{{portalock-*}}/* -@all +eval +evalsha +ssubscribe \
         +sunsubscribe +spublish +pubsub|shardnumsub +ping +info +scan +wait +time +get +mget +exists +set +del +pexpire +pexpireat \
         +pttl +hget +hmget +hset +hsetnx +hdel +hgetall +hlen +zadd +zrem +zrange +zrevrank +cluster|nodes +asking"
    );
    let cluster = start(
        RedisClusterOptions::new()
            .setting("user", least)
            .setting("user", format!("none on >{SECRET} ~* &* -@all +ping")),
    )
    .await;
    let url = |user: &str| {
        cluster
            .url()
            .replace("://", &format!("://{user}:{SECRET}@"))
    };
    let error = refused(settings_at(&url("none"))).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::PermissionDenied,
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains(SECRET));

    let settings = RedisSettings::new(&url("least")).unwrap();
    let backend = connected(settings.with_wait_replicas(1)).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let waiter = waiting(&backend, "a").await;
    assert_eq!(LockBackend::names(&backend).await.unwrap().len(), 1);
    // The permissions are enough in a moving slot too.
    let slot = slot_of(&cluster, "a").await;
    let (cluster, moving) = on(cluster, move |cluster| {
        let from = cluster.owner(slot).unwrap();
        let moving = cluster.begin_move(slot, (from + 1) % 3)?;
        for key in cluster.keys_left(moving)? {
            if key.contains("/session/") {
                cluster.move_key(moving, &key)?;
            }
        }
        Ok(moving)
    })
    .await;
    tokio::time::sleep(RedisSettings::DEFAULT_SESSION_TTL * 2).await;
    held.ensure_held().unwrap();
    let (_cluster, ()) = on(cluster, move |cluster| cluster.finish_move(moving)).await;
    let owner = held.owner();
    let broken = lock(&backend, "a").break_holder(owner).await.unwrap();
    assert_eq!(broken, Broken::Released);
    granted(waiter).await.release().await.unwrap();
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_holds_for_every_node_and_after_a_failover() {
    let dir = tempfile::tempdir().unwrap();
    let identity = crate::fixture::identity(dir.path());
    let authority = identity.authority.clone();
    let cluster = start(RedisClusterOptions::new().tls(identity)).await;
    let settings = settings_at(&cluster.url())
        .with_session_ttl(Duration::from_secs(30))
        .unwrap();
    let backend = connected(settings.clone().with_authority(authority)).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let slot = slot_of(&cluster, "a").await;
    let (cluster, _) = on(cluster, move |cluster| cluster.fail_over(slot)).await;
    let next = lock(&backend, "b").acquire().await.unwrap();
    next.release().await.unwrap();
    held.release().await.unwrap();

    // The certificates are not trusted.
    assert!(RedisBackend::with_settings(settings).await.is_err());
    drop(cluster);
}
