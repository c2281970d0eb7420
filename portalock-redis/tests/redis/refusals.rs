//! Refusals by the server, each with its own typed error: password, permissions, memory, replicas, protocols, keys of
//! other programs.

use std::time::Duration;

use portalock_core::{BackendError, BackendErrorKind, Broken, LockBackend, LockError};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::servers::{RedisOptions, RedisServer};

use crate::fixture::{
    Admin, ENOUGH, client, connected, granted, lock, replica_of, settings, waiting,
};

const SECRET: &str = "hunter2";

async fn connect(url: &str) -> Result<RedisBackend, BackendError> {
    let settings = RedisSettings::new(url)
        .map_err(|error| BackendError::new(BackendErrorKind::Misconfigured, error.to_string()))?;
    RedisBackend::with_settings(settings.with_restart_wait(Duration::from_millis(1))).await
}

async fn refused(url: &str) -> BackendError {
    connect(url)
        .await
        .expect_err("the server should have refused")
}

fn backend_error(error: LockError) -> BackendError {
    match error {
        LockError::Backend { source, .. } => source,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_missing_or_wrong_password_is_permission_denied_and_never_shown() {
    let server = RedisOptions::new()
        .setting("requirepass", SECRET)
        .start()
        .unwrap();
    for url in [
        server.url(),
        format!("redis://:not-{SECRET}@{}", server.addr()),
        format!("redis://nobody:{SECRET}@{}", server.addr()),
    ] {
        let error = refused(&url).await;
        assert_eq!(
            error.kind(),
            BackendErrorKind::PermissionDenied,
            "{error:?}"
        );
        assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
    }
    let url = format!("redis://:{SECRET}@{}", server.addr());
    let backend = connect(&url).await.unwrap();
    assert!(!format!("{backend:?}").contains(SECRET));
    let held = lock(&backend, "a").acquire().await.unwrap();
    assert!(!format!("{held:?}").contains(SECRET));
}

/// The server may be one of several, and its address may come from a sentinel.
#[tokio::test]
async fn a_server_that_is_not_there_is_named_without_the_password() {
    // A port that no server of a test takes.
    let address = "127.0.0.1:1";
    let error = refused(&format!("redis://user:{SECRET}@{address}/3")).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
    assert_eq!(
        error.to_string(),
        format!("can't connect to Redis at {address}")
    );
    assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
}

#[tokio::test]
async fn a_user_without_permission_is_permission_denied() {
    let server = RedisServer::start().unwrap();
    let mut admin = Admin::of(&server).await;
    for (user, rules) in [
        ("channels", "~* resetchannels +@all"),
        ("keys", "~other* &* +@all"),
        ("scripts", "~* &* +@all -@scripting"),
        ("inside", "~* &* +@all -pubsub"),
    ] {
        admin
            .ask::<()>(&format!("ACL SETUSER {user} on >{SECRET} {rules}"))
            .await;
        let url = format!("redis://{user}:{SECRET}@{}", server.addr());
        let error = match connect(&url).await {
            Err(error) => error,
            Ok(backend) => backend_error(lock(&backend, "a").try_acquire().await.unwrap_err()),
        };
        assert_eq!(
            error.kind(),
            BackendErrorKind::PermissionDenied,
            "{user}: {error:?}"
        );
    }
    // The permissions on the crate's front page are enough. The session needs most of them.
    let others = "+eval +ping +scan +wait +unsubscribe +select";
    let needed = "+evalsha +subscribe +publish +pubsub|numsub +info +time +get +mget +exists +set +del +pexpire \
        +pexpireat +pttl +hget +hmget +hset +hsetnx +hdel +hgetall +hlen +zadd +zrem +zrange +zrevrank";
    let url = format!("redis://least:{SECRET}@{}", server.addr());
    let least =
        format!("ACL SETUSER least on >{SECRET} ~portalock/* &portalock/* -@all {needed} {others}");
    for right in needed.split(' ') {
        admin
            .ask::<()>(&least.replace(&format!("{right} "), ""))
            .await;
        let error = refused(&url).await;
        assert_eq!(
            error.kind(),
            BackendErrorKind::PermissionDenied,
            "{right}: {error:?}"
        );
    }
    admin.ask::<()>(&least).await;
    let backend = connect(&url).await.unwrap();
    let held = lock(&backend, "a").acquire().await.unwrap();
    assert!(
        lock(&backend, "a")
            .try_acquire()
            .await
            .unwrap_err()
            .is_contention()
    );
    let broken = lock(&backend, "a").break_holder(held.owner()).await;
    assert_eq!(broken.unwrap(), Broken::Released);
    // A session that the server does not end lives on there.
    admin.ask::<()>("ACL SETUSER least -del").await;
    let error = backend.close().await.unwrap_err();
    assert_eq!(
        error.kind(),
        BackendErrorKind::PermissionDenied,
        "{error:?}"
    );
}

#[tokio::test]
async fn a_full_server_is_out_of_space_and_still_releases() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let mut admin = Admin::of(&server).await;
    admin.ask::<()>("CONFIG SET maxmemory 1").await;
    let error = backend_error(lock(&backend, "b").try_acquire().await.unwrap_err());
    assert_eq!(error.kind(), BackendErrorKind::OutOfSpace, "{error:?}");
    held.ensure_held().unwrap();
    held.release().await.unwrap();
    admin.ask::<()>("CONFIG SET maxmemory 0").await;
    let _again = lock(&backend, "a").try_acquire().await.unwrap();
}

#[tokio::test]
async fn a_lock_is_released_over_a_new_connection_although_the_memory_is_full() {
    let server = RedisServer::start().unwrap();
    let backend = connect(&server.url()).await.unwrap();
    let held = lock(&backend, "a").acquire().await.unwrap();
    let mut admin = Admin::of(&server).await;
    admin.ask::<()>("CONFIG SET maxmemory 1").await;
    admin.ask::<u32>("CLIENT KILL TYPE normal SKIPME yes").await;
    held.release().await.unwrap();
}

/// Only the session repeats the release, because the clean-up gives up after a refusal.
#[tokio::test]
async fn a_release_that_was_refused_is_made_up_for_by_the_session() {
    let server = RedisServer::start().unwrap();
    let mut admin = Admin::of(&server).await;
    let holder = client(&server).await;
    let session = admin.keys().await;
    let mut held = Vec::new();
    for name in ["a", "broken"] {
        held.push(lock(&holder, name).acquire().await.unwrap());
    }
    admin.ask::<()>("ACL SETUSER default -evalsha -eval").await;
    for held in held {
        let error = backend_error(held.release().await.unwrap_err());
        assert_eq!(
            error.kind(),
            BackendErrorKind::PermissionDenied,
            "{error:?}"
        );
    }
    // The result is ignored: other tests may have something to clean up.
    let _ = portalock_core::shutdown(Duration::from_secs(5)).await;
    // A lock that can't be released does not keep another one from being released.
    admin.ask::<()>("SET portalock/lock/broken x").await;
    admin.ask::<()>("ACL SETUSER default +evalsha +eval").await;
    let next = lock(&client(&server).await, "a").acquire().await.unwrap();
    next.release().await.unwrap();
    assert!(admin.keys().await.contains(&session[0]), "it lives on");
}

#[tokio::test]
async fn a_replica_is_read_only() {
    let server = RedisServer::start().unwrap();
    let primary = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let mut admin = Admin::of(&server).await;
    admin
        .ask::<()>(&format!("REPLICAOF 127.0.0.1 {}", primary.port()))
        .await;
    let error = backend_error(lock(&backend, "a").try_acquire().await.unwrap_err());
    assert_eq!(error.kind(), BackendErrorKind::ReadOnly, "{error:?}");
    let error = refused(&server.url()).await;
    assert_eq!(error.kind(), BackendErrorKind::ReadOnly, "{error:?}");
}

#[tokio::test]
async fn something_else_at_our_keys_is_corrupt() {
    let server = RedisServer::start().unwrap();
    let backend = client(&server).await;
    let mut admin = Admin::of(&server).await;
    for (name, spoil) in [
        ("a", "SET portalock/lock/a x"),
        ("b", "SET portalock/lock-queue/b x"),
        ("c", "HSET portalock/lock/c 1-1-1 nonsense"),
    ] {
        admin.ask::<redis::Value>(spoil).await;
        let error = backend_error(lock(&backend, name).try_acquire().await.unwrap_err());
        assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{name}: {error:?}");
    }
    let error = LockBackend::watch(&backend, &"a".parse().unwrap()).await;
    assert_eq!(error.unwrap_err().kind(), BackendErrorKind::Corrupt);
    let held = lock(&backend, "d").acquire().await.unwrap();
    admin
        .ask::<redis::Value>("SET portalock/lock-waiters/d x")
        .await;
    let error = backend_error(lock(&backend, "d").acquire().await.unwrap_err());
    assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{error:?}");
    held.ensure_held().unwrap();
}

#[tokio::test]
async fn a_server_without_resp3_is_unsupported() {
    let server = RedisOptions::new()
        .setting("rename-command", r#"HELLO """#)
        .start()
        .unwrap();
    let error = refused(&server.url()).await;
    assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error:?}");
}

#[tokio::test]
async fn a_cluster_is_unsupported() {
    let server = RedisOptions::new()
        .setting("cluster-enabled", "yes")
        .start()
        .unwrap();
    let error = refused(&server.url()).await;
    assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("cluster"), "{error}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_misconfigured() {
    let server = RedisServer::start().unwrap();
    let error = refused(&format!("{}/99", server.url())).await;
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error:?}");
    let error = RedisBackend::connect("http://localhost").await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error:?}");
}

#[tokio::test]
async fn databases_have_their_own_locks() {
    let server = RedisServer::start().unwrap();
    let one = client(&server).await;
    let other = connect(&format!("{}/5", server.url())).await.unwrap();
    let _one = lock(&one, "a").try_acquire().await.unwrap();
    let _other = lock(&other, "a").try_acquire().await.unwrap();
    let mut admin = Admin::at(&format!("{}/5", server.url())).await;
    assert!(admin.keys().await.contains(&"portalock/lock/a".to_owned()));
}

/// Their channels are those of the whole server.
#[tokio::test]
async fn an_observer_hears_nothing_of_another_database() {
    let server = RedisServer::start().unwrap();
    let one = client(&server).await;
    let other = connect(&format!("{}/5", server.url())).await.unwrap();
    let name = lock(&one, "a").name().clone();
    let mut watch = one.watch(&name).await.unwrap().unwrap();
    let _others_watch = other.watch(&name).await.unwrap().unwrap();
    let mut seen = async || {
        let change = tokio::time::timeout(ENOUGH, watch.next()).await;
        change.unwrap().unwrap()
    };
    assert_eq!(seen().await, None);
    let _other = lock(&other, "a").acquire().await.unwrap();
    let held = lock(&one, "a").acquire().await.unwrap();
    assert_eq!(seen().await.unwrap().token, held.token());
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let server = RedisServer::start().unwrap();
    let url = format!("unix://{}?db=2", server.socket().display());
    let backend = connect(&url).await.unwrap();
    let _held = lock(&backend, "a").acquire().await.unwrap();
    let error = refused("unix:///nowhere/redis.sock").await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_unavailable() {
    let mut server = RedisServer::start().unwrap();
    server.stop();
    let error = refused(&server.url()).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn missing_replicas_give_the_grant_back_and_end_the_session() {
    let server = RedisOptions::new()
        .setting("repl-diskless-sync-delay", "0")
        .start()
        .unwrap();
    let asking = || settings(&server).with_wait_replicas(1);
    let error = RedisBackend::with_settings(asking()).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");

    let mut replica = replica_of(&server).await;
    let demanding = connected(asking()).await;
    let one = lock(&demanding, "b").acquire().await.unwrap();
    let next = waiting(&demanding, "b").await;
    one.release().await.unwrap();
    let next = granted(next).await;

    replica.stop();
    let error = backend_error(lock(&demanding, "a").try_acquire().await.unwrap_err());
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
    let other = client(&server).await;
    let _free = lock(&other, "a").acquire().await.unwrap();
    // No replica confirms the session's refreshes, so they extend nothing.
    tokio::time::timeout(ENOUGH, next.lost()).await.unwrap();
    replica.restart().unwrap();
    let _again = lock(&demanding, "b").acquire().await.unwrap();
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_trusts_the_authority_it_is_given_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let identity = crate::fixture::identity(dir.path());
    let certificate = identity.certificate.clone();
    let server = RedisOptions::new().tls(identity).start().unwrap();
    let url = format!("rediss://127.0.0.1:{}", server.tls_port().unwrap());

    let trusting = crate::fixture::settings_at(&url).with_authority(&certificate);
    let backend = RedisBackend::with_settings(trusting).await.unwrap();
    let _held = lock(&backend, "a").acquire().await.unwrap();

    let error = refused(&url).await;
    assert!(!error.to_string().is_empty(), "{error:?}");
    let missing = RedisSettings::new(&url)
        .unwrap()
        .with_authority(dir.path().join("missing.pem"));
    let error = RedisBackend::with_settings(missing).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error:?}");
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_server_without_resp3_is_unsupported_with_an_authority_too() {
    let dir = tempfile::tempdir().unwrap();
    let identity = crate::fixture::identity(dir.path());
    let certificate = identity.certificate.clone();
    let options = RedisOptions::new().setting("rename-command", r#"HELLO """#);
    let server = options.tls(identity).start().unwrap();
    let url = format!("rediss://127.0.0.1:{}", server.tls_port().unwrap());
    let trusting = crate::fixture::settings_at(&url).with_authority(certificate);
    let patient = trusting.with_connect_timeout(ENOUGH).unwrap();
    let error = RedisBackend::with_settings(patient).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error:?}");
}

#[test]
fn settings_without_tls_say_what_to_build() {
    if cfg!(not(feature = "tls")) {
        let error = RedisSettings::new("rediss://localhost").unwrap_err();
        assert!(error.to_string().contains("`tls`"), "{error}");
    }
}
