//! Logins whose token expires, and proxies between the client and the members.

use std::{
    io::Write,
    net::{Ipv4Addr, TcpListener},
    pin::pin,
    process::{Command, Stdio},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use portalock_core::{BackendErrorKind, Lock, LockBackend, LockName};
use portalock_etcd::{EtcdBackend, EtcdSettings};
use portalock_testkit::proxy::Direction;

use crate::support::{Server, patient, until, with_users};

/// How long a token of [`expiring`]'s server is valid.
const TOKEN: Duration = Duration::from_secs(2);

/// A server whose tokens expire, and settings for it.
async fn expiring() -> (Server, tempfile::NamedTempFile, EtcdSettings) {
    let mut key = tempfile::NamedTempFile::new().unwrap();
    key.write_all(b"a secret of the server's own").unwrap();
    let server = Server::with(&format!(
        "--auth-token=jwt,priv-key={},sign-method=HS256,ttl={}s",
        key.path().display(),
        TOKEN.as_secs()
    ));
    with_users(&server).await;
    let settings = server
        .settings()
        .with_user("billing", "hunter2")
        .with_prefix("billing")
        .unwrap();
    (server, key, settings)
}

#[tokio::test]
async fn a_hand_over_is_told_though_the_streams_token_has_expired() {
    let (_server, _key, settings) = expiring().await;
    let holder = EtcdBackend::with_settings(settings.clone()).await.unwrap();
    let waiter = EtcdBackend::with_settings(settings.clone()).await.unwrap();
    tokio::time::sleep(TOKEN * 2).await;
    let name = LockName::new("a").unwrap();
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let guard = Lock::new(holder.clone(), "a").unwrap();
        let guard = guard.acquire_with(&patient()).await.unwrap();
        let lock = Lock::new(waiter.clone(), "a").unwrap();
        let waiting = tokio::spawn(async move {
            let guard = lock.acquire_with(&patient()).await.unwrap();
            let granted = Instant::now();
            guard.release().await.unwrap();
            granted
        });
        until("it waits", async || {
            let found = LockBackend::inspect(&holder, &name).await.unwrap();
            found.waiters.len() == 1
        })
        .await;
        // Its watch is refused, and starts again.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let released = Instant::now();
        guard.release().await.unwrap();
        best = best.min(waiting.await.unwrap().duration_since(released));
    }
    // A waiter without an event reads again after a minute.
    assert!(best < Duration::from_secs(2), "{best:?}");
}

#[tokio::test]
async fn a_lock_is_kept_for_longer_than_tokens_and_leases_last() {
    let (_server, _key, settings) = expiring().await;
    let settings = settings.with_lease_time(TOKEN * 4).unwrap();
    let holder = EtcdBackend::with_settings(settings).await.unwrap();
    let lock = Lock::new(holder, "a").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    let lost = tokio::time::timeout(TOKEN * 8, guard.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_deleted_key_is_told_though_the_token_has_expired() {
    let (server, _key, settings) = expiring().await;
    let holder = EtcdBackend::with_settings(settings).await.unwrap();
    tokio::time::sleep(TOKEN * 2).await;
    let lock = Lock::new(holder.clone(), "a").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    let options = portalock_etcd::etcd_client::ConnectOptions::new().with_user("root", "hunter2");
    let root = portalock_etcd::etcd_client::Client::connect(server.etcd.endpoints(), Some(options))
        .await
        .unwrap();
    let key = holder.fence(guard.owner()).unwrap().key;
    root.kv_client().delete(key, None).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), guard.lost())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lock_can_be_observed_though_the_token_has_expired() {
    let (_server, _key, settings) = expiring().await;
    // No renewal logs in again for minutes.
    let settings = settings.with_lease_time(Duration::from_secs(600)).unwrap();
    let observer = EtcdBackend::with_settings(settings).await.unwrap();
    tokio::time::sleep(TOKEN * 2).await;
    let name = LockName::new("a").unwrap();
    until("a watch lasts", async || {
        let mut watch = observer.watch(&name).await.unwrap().unwrap();
        assert_eq!(watch.next().await, Some(None));
        let ended = tokio::time::timeout(Duration::from_secs(1), watch.next()).await;
        ended.is_err()
    })
    .await;
}

#[tokio::test]
async fn a_call_that_nobody_polls_while_it_logs_in_keeps_no_other_waiting() {
    let (server, _key, _) = expiring().await;
    let line = server.line(0);
    let client = server
        .client_through(&[&line], |settings| {
            let settings = settings.with_user("billing", "hunter2");
            let settings = settings.with_prefix("billing").unwrap();
            // No renewal logs in for minutes.
            settings.with_lease_time(Duration::from_secs(600)).unwrap()
        })
        .await;
    let lock = Lock::new(client, "a").unwrap();
    lock.inspect().await.unwrap();
    tokio::time::sleep(TOKEN * 2).await;
    let logins = server.begun("Authenticate").await;
    // Longer than it takes until the test knows of the login.
    line.delay(Direction::ToClient, Duration::from_secs(1));
    let mut looks = pin!(lock.inspect());
    let mut context = Context::from_waker(Waker::noop());
    until("it logs in", async || {
        looks.as_mut().poll(&mut context).is_ready() || server.begun("Authenticate").await > logins
    })
    .await;
    line.heal();
    // From here on nobody polls it.
    drop(lock.acquire().await.unwrap());
}

#[tokio::test]
async fn a_renewal_whose_token_has_expired_keeps_its_connection() {
    let (server, _key, settings) = expiring().await;
    let settings = settings.with_lease_time(TOKEN * 3).unwrap();
    let client = EtcdBackend::with_settings(settings).await.unwrap();
    let before = server.begun("Authenticate").await;
    until("it has logged in several times", async || {
        server.begun("Authenticate").await >= before + 3
    })
    .await;
    // Each new connection of the session would have opened one.
    assert_eq!(server.begun("Watch").await, 1);
    drop(client);
}

#[tokio::test]
async fn a_proxy_that_spreads_requests_over_the_members_is_refused() {
    let server = Server::cluster();
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let endpoints = server.etcd.endpoints().join(",").replace("http://", "");
    let mut proxy = Command::new("etcd")
        .args(["grpc-proxy", "start"])
        .arg(format!("--endpoints={endpoints}"))
        .arg(format!("--listen-addr=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let settings = EtcdSettings::new([format!("127.0.0.1:{port}")]).unwrap();
    let mut refused = None;
    until(
        "the proxy answers",
        async || match EtcdBackend::with_settings(settings.clone()).await {
            Err(error) if error.kind() == BackendErrorKind::Unavailable => false,
            outcome => {
                refused = Some(outcome.map(drop));
                true
            }
        },
    )
    .await;
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    let error = refused.unwrap().unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error}");
}
