//! A fixed address that leads to another server than before, while the former one goes on. Here the address is a link to a
//! server's socket.

use std::{
    future::{Future as _, poll_fn},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    task::Poll,
    time::Duration,
};

use portalock_core::{BackendErrorKind, Policy};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::{RedisOptions, RedisServer},
};

use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    runtime::Builder,
    task::spawn_blocking,
};

use crate::fixture::{Admin, ENOUGH, connected, eventually, lock, replica_of, settings_at};

struct Address {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Address {
    fn of(server: &RedisServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("address");
        symlink(server.socket(), &path).unwrap();
        Self { path, _dir: dir }
    }

    fn url(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// The address leads to `next` from now on.
    fn leads_to(&self, next: &RedisServer) {
        self.leads_to_socket(&next.socket());
    }

    fn leads_to_socket(&self, next: &Path) {
        let link = self.path.with_extension("next");
        symlink(next, &link).unwrap();
        std::fs::rename(link, &self.path).unwrap();
    }

    /// The address leads to `next` from now on. The one client's session goes there.
    async fn moves(&self, former: &RedisServer, next: &RedisServer) {
        self.leads_to(next);
        Admin::of(former).await.kill_sessions().await;
        eventually(async || {
            let subscribed = Admin::of(next).await.ask("CLIENT LIST TYPE pubsub").await;
            let subscribed: String = subscribed;
            !subscribed.is_empty()
        })
        .await;
    }
}

fn server() -> RedisServer {
    let at_once = RedisOptions::new().setting("repl-diskless-sync-delay", "0");
    at_once.start().unwrap()
}

async fn replicate(admin: &mut Admin, other: &RedisServer) {
    let follow = format!("REPLICAOF 127.0.0.1 {}", other.port());
    admin.ask::<()>(&follow).await;
}

/// `server` gets the data of `other`, as its replica, and is a primary again.
async fn take_over(server: &RedisServer, other: &RedisServer) {
    let mut admin = Admin::of(server).await;
    replicate(&mut admin, other).await;
    while !(admin.ask::<String>("INFO replication").await).contains("master_link_status:up") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    admin.ask::<()>("REPLICAOF NO ONE").await;
}

/// The server refuses sessions their channels from now on. This also ends their connections.
async fn refuse_sessions(server: &RedisServer) {
    let no_channels = "ACL SETUSER default resetchannels";
    Admin::of(server).await.ask::<()>(no_channels).await;
}

async fn until_refused(server: &RedisServer) {
    eventually(async || {
        let errors: String = Admin::of(server).await.ask("INFO errorstats").await;
        errors.contains("NOPERM")
    })
    .await;
}

/// Acquires a lock, which `server` must have granted.
async fn is_granted_by(server: &RedisServer, client: &RedisBackend) {
    let _held = lock(client, "a").acquire().await.unwrap();
    let keys = Admin::of(server).await.keys().await;
    assert!(
        keys.contains(&"portalock/lock/a".to_owned()),
        "another server granted it, this one has {keys:?}"
    );
}

/// Its calls had a connection to the former server, which also knows the session for a while.
#[tokio::test]
async fn calls_go_where_the_session_went() {
    let (former, next) = (server(), server());
    let address = Address::of(&former);
    let settings = settings_at(&address.url()).with_session_ttl(ENOUGH);
    let client = connected(settings.unwrap()).await;
    client.ping().await.unwrap();
    take_over(&next, &former).await;
    address.moves(&former, &next).await;
    is_granted_by(&next, &client).await;
}

/// The former server refuses the session its channel, and accepts a connection of calls before the address moves.
#[tokio::test]
async fn calls_go_where_the_session_went_when_it_could_connect() {
    let (former, next) = (server(), server());
    let address = Address::of(&former);
    let settings = settings_at(&address.url()).with_session_ttl(ENOUGH);
    let client = connected(settings.unwrap()).await;
    take_over(&next, &former).await;
    refuse_sessions(&former).await;
    until_refused(&former).await;
    client.ping().await.unwrap();
    address.leads_to(&next);
    eventually(async || Admin::of(&next).await.calls("pexpire").await > 0).await;
    is_granted_by(&next, &client).await;
}

/// It was a replica meanwhile, and lacks a grant. A connection of calls is from before.
#[tokio::test]
async fn the_server_that_an_address_leads_back_to_waits_before_it_grants() {
    const TIME: Duration = Duration::from_secs(6);
    let (one, two) = (server(), server());
    let address = Address::of(&one);
    let settings = |url: &str| RedisSettings::new(url).unwrap().with_session_ttl(TIME);
    let other = connected(settings(&address.url()).unwrap()).await;
    other.ping().await.unwrap();
    take_over(&two, &one).await;
    address.moves(&one, &two).await;

    let line = FaultProxy::start(two.addr()).unwrap();
    let behind = settings(&format!("redis://{}", line.addr())).unwrap();
    let holder = connected(behind.with_restart_wait(Duration::ZERO)).await;
    take_over(&one, &two).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    line.black_hole(Direction::Both);
    address.moves(&two, &one).await;
    let policy = Policy::new()
        .with_timeout(ENOUGH)
        .with_max_failures(u32::MAX);
    let _next = lock(&other, "a").acquire_with(&policy).await.unwrap();
    assert!(
        held.is_lost(),
        "granted to another before the holder was told"
    );
}

/// Neither server accepts the session: both refuse it its channel.
#[tokio::test]
async fn calls_go_where_the_session_tried_to_go() {
    let (former, next) = (server(), server());
    let address = Address::of(&former);
    let settings = settings_at(&address.url()).with_session_ttl(ENOUGH);
    let client = connected(settings.unwrap()).await;
    take_over(&next, &former).await;
    refuse_sessions(&next).await;
    refuse_sessions(&former).await;
    until_refused(&former).await;
    client.ping().await.unwrap();
    address.leads_to(&next);
    until_refused(&next).await;
    is_granted_by(&next, &client).await;
}

/// The address leads back for a moment, to a replica that is promoted again, while the session connects.
#[tokio::test]
async fn calls_go_where_the_session_went_though_the_address_led_back_meanwhile() {
    let (former, next) = (server(), server());
    let address = Address::of(&former);
    let settings = settings_at(&address.url()).with_session_ttl(ENOUGH);
    let client = connected(settings.unwrap()).await;
    take_over(&next, &former).await;
    let slow = address.path.with_extension("slow");
    let listener = UnixListener::bind(&slow).unwrap();
    address.leads_to_socket(&slow);
    Admin::of(&former).await.kill_sessions().await;
    let (mut session, _) = listener.accept().await.unwrap();

    address.leads_to(&former);
    let mut admin = Admin::of(&former).await;
    replicate(&mut admin, &next).await;
    client.ping().await.unwrap_err();
    admin.ask::<()>("REPLICAOF NO ONE").await;
    client.ping().await.unwrap();

    address.leads_to(&next);
    let mut server = UnixStream::connect(next.socket()).await.unwrap();
    tokio::spawn(async move { copy_bidirectional(&mut session, &mut server).await });
    eventually(async || Admin::of(&next).await.calls("pexpire").await > 0).await;
    is_granted_by(&next, &client).await;
}

/// The server is a replica for a moment. Only a call of another runtime notices it.
#[tokio::test]
async fn no_connection_is_used_again_if_a_call_has_found_a_replica() {
    let (one, two) = (server(), server());
    let settings = settings_at(&one.url()).with_session_ttl(ENOUGH * 10);
    let client = connected(settings.unwrap()).await;
    client.ping().await.unwrap();
    let mut admin = Admin::of(&one).await;
    replicate(&mut admin, &two).await;
    let elsewhere = client.clone();
    let call = move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(elsewhere.ping())
    };
    let error = spawn_blocking(call).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::ReadOnly);
    admin.ask::<()>("REPLICAOF NO ONE").await;
    let opened = admin.calls("hello").await;
    client.ping().await.unwrap();
    let now = admin.calls("hello").await;
    assert!(now > opened, "the connection from before was used");
}

/// It connects once more, to end at the server.
#[tokio::test]
async fn a_session_that_has_ended_moves_no_calls() {
    let server = server();
    let address = Address::of(&server);
    let settings = settings_at(&address.url()).with_session_ttl(ENOUGH);
    let settings = settings.unwrap().with_response_timeout(ENOUGH).unwrap();
    let client = connected(settings.with_connect_timeout(ENOUGH).unwrap()).await;
    let slow = address.path.with_extension("slow");
    let listener = UnixListener::bind(&slow).unwrap();
    address.leads_to_socket(&slow);
    Admin::of(&server).await.kill_sessions().await;
    let (_before, _) = listener.accept().await.unwrap();
    let closed = client.clone();
    let closing = tokio::spawn(async move { closed.close().await });
    let (mut session, _) = listener.accept().await.unwrap();

    address.leads_to(&server);
    client.ping().await.unwrap();
    let mut to_server = UnixStream::connect(server.socket()).await.unwrap();
    tokio::spawn(async move { copy_bidirectional(&mut session, &mut to_server).await });
    closing.await.unwrap().unwrap();
    let mut admin = Admin::of(&server).await;
    let opened = admin.calls("hello").await;
    client.ping().await.unwrap();
    let now = admin.calls("hello").await;
    assert_eq!(now, opened, "the ended session moved the calls");
}

/// The call goes on in another runtime, whose connection leads to another server. That one has a replica too, but not the grant.
#[tokio::test]
async fn a_grant_is_confirmed_by_replicas_of_the_server_that_made_it() {
    let (former, next) = (server(), server());
    let (replica, _other) = (replica_of(&former).await, replica_of(&next).await);
    let address = Address::of(&former);
    let settings = settings_at(&address.url()).with_wait_replicas(1);
    let client = connected(settings.with_session_ttl(ENOUGH * 10).unwrap()).await;
    client.ping().await.unwrap();
    address.leads_to(&next);
    replica.stall().unwrap();

    let lock = lock(&client, "a").with_policy(Policy::new().with_max_failures(0));
    let mut acquiring = Box::pin(async move { lock.acquire().await });
    poll_fn(|context| {
        assert!(acquiring.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    // The answers come in order, so the grant is there.
    client.ping().await.unwrap();
    let elsewhere = move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(acquiring)
    };
    let granted = spawn_blocking(elsewhere).await.unwrap();
    let error = granted.expect_err("the other server's replica confirmed it");
    assert!(error.is_retryable(), "{error}");
}
