//! Behind sentinels: clients find the primary and follow it when it changes. A holder learns what a switch lost before
//! its successor is granted the lock.

use std::time::Duration;

use portalock_core::{BackendErrorKind, Guard, LockBackend, LostSignal, clock::Instant, session};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    proxy::{Direction, FaultProxy},
    servers::{RedisServer, SentinelGroup, SentinelOptions},
};
use tokio::task::spawn_blocking;

use crate::fixture::{Admin, ENOUGH, connected, granted, lock, settings_at, waiting};

/// Longer than each switch in these tests.
const LASTING: Duration = Duration::from_secs(30);
/// So short that a test can wait for its end.
const SHORT: Duration = Duration::from_secs(3);

pub(crate) async fn start(options: SentinelOptions) -> SentinelGroup {
    spawn_blocking(move || options.start())
        .await
        .unwrap()
        .unwrap()
}

/// Runs a blocking operation on the group.
pub(crate) async fn on<T: Send + 'static>(
    group: SentinelGroup,
    action: impl FnOnce(&mut SentinelGroup) -> std::io::Result<T> + Send + 'static,
) -> (SentinelGroup, T) {
    let action = move || {
        let mut group = group;
        action(&mut group).map(|done| (group, done))
    };
    spawn_blocking(action).await.unwrap().unwrap()
}

pub(crate) fn lasting(url: &str) -> RedisSettings {
    settings_at(url).with_session_ttl(LASTING).unwrap()
}

/// Waits until all earlier writes at this server are on its replica.
pub(crate) async fn replicated(server: &RedisServer) {
    let mut admin = Admin::of(server).await;
    admin.ask::<()>("SET marker x").await;
    let replicas: u32 = admin.ask("WAIT 1 60000").await;
    assert_eq!(replicas, 1);
}

/// Waits until this client's grants are stored on this server.
pub(crate) async fn on_server(backend: &RedisBackend, server: &RedisServer) {
    let mut admin = Admin::of(server).await;
    let begun = Instant::now();
    loop {
        let _held = acquired(backend, "b").await;
        if admin.keys().await.contains(&"portalock/lock/b".to_owned()) {
            return;
        }
        assert!(begun.elapsed() < ENOUGH, "it should have moved by now");
    }
}

/// Waits for the lock, and retries after each retryable error.
pub(crate) async fn acquired(backend: &RedisBackend, name: &str) -> Guard<RedisBackend> {
    let begun = Instant::now();
    loop {
        match lock(backend, name).acquire().await {
            Ok(guard) => return guard,
            Err(error) => assert!(
                error.is_retryable() && begun.elapsed() < ENOUGH,
                "{error:?}"
            ),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    Stopped,
    Demoted,
}

/// The primary changes: locks, tokens and places stay.
async fn nothing_is_lost(fault: Fault) {
    let mut group = start(SentinelOptions::new()).await;
    let holder = connected(lasting(&group.url())).await;
    let other = connected(lasting(&group.url())).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let waiter = waiting(&other, "a").await;
    replicated(&group.servers()[0]).await;
    let begun = Instant::now();
    let (mut group, _) = on(group, move |group| {
        match fault {
            Fault::Killed => group.servers()[0].stop(),
            Fault::Stopped => group.servers()[0].stall()?,
            Fault::Demoted => return group.fail_over(),
        }
        let primary = group.until_moved_from(0)?;
        if let Fault::Stopped = fault {
            // It continues as the former primary, and executes what it received meanwhile, until a sentinel changes its
            // role.
            group.servers()[0].resume()?;
        }
        Ok(primary)
    })
    .await;
    println!("{fault:?}: the switch took {:?}", begun.elapsed());
    // The connections of callers and sessions lead to the new primary, or will soon.
    for backend in [&holder, &other] {
        on_server(backend, &group.servers()[1]).await;
    }
    held.ensure_held().unwrap();
    assert!(!waiter.is_finished());
    let token = held.token();
    held.release().await.unwrap();
    let next = granted(waiter).await;
    assert!(next.token() > token);
}

#[tokio::test]
async fn a_primary_that_is_killed_takes_nothing_with_it() {
    nothing_is_lost(Fault::Killed).await;
}

#[tokio::test]
async fn a_primary_that_stands_still_takes_nothing_with_it() {
    nothing_is_lost(Fault::Stopped).await;
}

#[tokio::test]
async fn a_primary_that_is_demoted_by_hand_takes_nothing_with_it() {
    nothing_is_lost(Fault::Demoted).await;
}

/// Creates a separate user for clients, so that replicas and sentinels can be shut out of a server.
pub(crate) async fn with_user(group: &mut SentinelGroup) -> String {
    for server in group.servers() {
        let mut admin = Admin::of(server).await;
        admin
            .ask::<()>("ACL SETUSER client on >c ~* &* +@all")
            .await;
    }
    as_client(&group.url())
}

fn as_client(url: &str) -> String {
    url.replace("://", "://client:c@")
}

/// Cuts a server off from replicas and sentinels, but not from clients. The server continues in its role.
pub(crate) async fn part(server: &RedisServer) {
    let mut admin = Admin::at(&format!("redis://client:c@{}", server.addr())).await;
    admin.ask::<()>("ACL SETUSER default off").await;
    admin.ask::<u32>("CLIENT KILL USER default").await;
}

/// A proxy to each sentinel, which can be cut off.
pub(crate) fn by_lines(group: &SentinelGroup) -> (String, Vec<FaultProxy>) {
    let lines: Vec<_> = group
        .sentinel_ports()
        .iter()
        .map(|port| FaultProxy::start(([127, 0, 0, 1], *port)).unwrap())
        .collect();
    let ports: Vec<_> = lines.iter().map(FaultProxy::port).collect();
    (as_client(&group.url_by(&ports)), lines)
}

fn short(url: &str) -> RedisSettings {
    RedisSettings::new(url)
        .unwrap()
        .with_session_ttl(SHORT)
        .unwrap()
}

/// The next owner is granted the lock, and the holder was told before that.
async fn tells_first(lost: &LostSignal, other: &RedisBackend) -> Guard<RedisBackend> {
    let next = acquired(other, "a").await;
    assert!(
        lost.is_lost(),
        "granted to another before the holder was told"
    );
    next.ensure_held().unwrap();
    next
}

/// The holder sees the switch late, and its last refreshes went to the old primary.
async fn a_grant_that_the_promoted_replica_lacks(reaches_the_next: bool) {
    let mut group = start(SentinelOptions::new()).await;
    let url = with_user(&mut group).await;
    let (behind, lines) = by_lines(&group);
    let settings = |url| RedisSettings::new(url).unwrap().with_session_ttl(SHORT * 2);
    let behind = if reaches_the_next {
        behind
    } else {
        let mut admin = Admin::of(&group.servers()[0]).await;
        admin
            .ask::<()>("ACL SETUSER holder on >h ~* &* +@all")
            .await;
        behind.replace("client:c@", "holder:h@")
    };
    let holder = connected(settings(&behind).unwrap()).await;
    let other = connected(settings(&url).unwrap()).await;
    // Its calls have a connection now.
    holder.ping().await.unwrap();
    replicated(&group.servers()[0]).await;
    for line in &lines {
        line.black_hole(Direction::Both);
    }
    part(&group.servers()[0]).await;
    let held = lock(&holder, "a").acquire().await.unwrap();
    let lost = held.lost_signal();
    let waits = tokio::spawn(async move { tells_first(&lost, &other).await });
    let (_group, primary) = on(group, |group| group.until_moved_from(0)).await;
    assert_eq!(primary, 1);
    // The other client saw the switch long before the holder can: the holder's primary still answers normally.
    tokio::time::sleep(SHORT / 2).await;
    assert!(!held.is_lost());
    for line in &lines {
        line.heal();
    }
    let next = waits.await.unwrap();
    assert!(next.token() > held.token());
}

#[tokio::test]
async fn a_grant_that_the_promoted_replica_lacks_is_told_first() {
    a_grant_that_the_promoted_replica_lacks(true).await;
}

/// So its own clock tells it.
#[tokio::test]
async fn a_holder_that_does_not_reach_the_new_primary_is_told_first() {
    a_grant_that_the_promoted_replica_lacks(false).await;
}

/// Its first refresh after the pause goes to the old primary, and one of the sentinels does not answer it.
#[tokio::test]
async fn a_holder_that_was_paused_does_not_extend_its_lease_before_it_looks() {
    const TIME: Duration = Duration::from_secs(8);
    let mut group = start(SentinelOptions::new()).await;
    with_user(&mut group).await;
    let mut admin = Admin::of(&group.servers()[0]).await;
    admin
        .ask::<()>("ACL SETUSER holder on >h ~* &* +@all")
        .await;
    let (behind, lines) = by_lines(&group);
    // The new primary refuses it.
    let behind = behind.replace("client:c@", "holder:h@");
    let settings = settings_at(&behind).with_session_ttl(TIME).unwrap();
    let holder = connected(settings).await;
    let held = lock(&holder, "a").acquire().await.unwrap();

    let (resume, pause) = std::sync::mpsc::channel();
    let (tells, begun) = tokio::sync::oneshot::channel();
    let paused = session::spawn(async move {
        tells.send(Instant::now()).unwrap();
        let _ = pause.recv();
    });
    paused.unwrap().detach();
    let begun = begun.await.unwrap();
    lines[0].black_hole(Direction::Both);
    part(&group.servers()[0]).await;
    let (_group, _) = on(group, |group| group.until_moved_from(0)).await;
    // Its lease lasts for a moment yet.
    tokio::time::sleep((TIME * 4 / 5).saturating_sub(begun.elapsed())).await;
    resume.send(()).unwrap();
    tokio::time::timeout(ENOUGH, held.lost()).await.unwrap();
    assert!(begun.elapsed() < TIME * 3 / 2, "{:?}", begun.elapsed());
}

/// The answers of two sentinels are enough to find a primary. The third one has heard of a switch, and answers later.
#[tokio::test]
async fn a_client_goes_to_the_primary_that_only_the_slowest_sentinel_names() {
    const LATE: Duration = Duration::from_secs(1);
    let mut former = start(SentinelOptions::new()).await;
    let later = start(SentinelOptions::new()).await;
    let (mut later, primary) = on(later, |group| group.fail_over()).await;
    let knows = FaultProxy::start(([127, 0, 0, 1], later.sentinel_ports()[0])).unwrap();
    knows.delay(Direction::ToClient, LATE);
    let stale = former.sentinel_ports();
    let url = former.url_by(&[stale[0], stale[1], knows.port()]);
    let backend = RedisBackend::new(lasting(&url));
    let _held = acquired(&backend, "a").await;
    for (server, has_it) in [
        (&former.servers()[0], false),
        (&later.servers()[primary], true),
    ] {
        let keys = Admin::of(server).await.keys().await;
        assert_eq!(keys.contains(&"portalock/lock/a".to_owned()), has_it);
    }
}

/// Two of three name it, but one of them answers last. To change the name in the middle of a start would look like a switch.
#[tokio::test]
async fn a_session_begins_at_once_if_one_sentinel_names_the_primary_differently() {
    let mut group = start(SentinelOptions::new()).await;
    let ports = group.sentinel_ports();
    let primary = group.servers()[0].addr();
    let other_name = FaultProxy::start(primary).unwrap();
    let mut admin = Admin::at(&format!("redis://127.0.0.1:{}", ports[0])).await;
    let master = group.url().rsplit('/').next().unwrap().to_owned();
    admin.ask::<()>(&format!("SENTINEL REMOVE {master}")).await;
    let monitor = format!(
        "SENTINEL MONITOR {master} 127.0.0.1 {} 2",
        other_name.port()
    );
    admin.ask::<()>(&monitor).await;
    let later = |port: u16, by: Duration| {
        let line = FaultProxy::start(([127, 0, 0, 1], port)).unwrap();
        line.delay(Direction::ToClient, by);
        line
    };
    let second = later(ports[0], Duration::from_millis(100));
    let last = later(ports[2], Duration::from_millis(500));
    let url = group.url_by(&[second.port(), ports[1], last.port()]);
    let backend = RedisBackend::with_settings(lasting(&url)).await.unwrap();
    let _held = lock(&backend, "a").try_acquire().await.unwrap();
}

/// Otherwise the client could see a switch later than within half of its session's time.
#[tokio::test]
async fn a_silent_sentinel_does_not_make_the_looks_rarer() {
    const TIME: Duration = Duration::from_secs(3);
    let group = start(SentinelOptions::new()).await;
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = group.url_by(&[port, group.sentinel_ports()[0]]);
    let settings = settings_at(&url).with_session_ttl(TIME).unwrap();
    let stays = async {
        let _client = loop {
            match RedisBackend::with_settings(settings.clone()).await {
                Ok(client) => break client,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        };
        std::future::pending::<()>().await;
    };
    // Each look opens a connection to it, because the one before got no answer. A connection to the primary does so too,
    // but the next look comes much sooner or later than an interval after that.
    let looks_often = async {
        let (mut _line, _) = silent.accept().await.unwrap();
        loop {
            let before = Instant::now();
            (_line, _) = silent.accept().await.unwrap();
            let gap = before.elapsed();
            if gap > TIME / 4 && gap < TIME * 5 / 12 {
                return;
            }
        }
    };
    tokio::select! {
        () = stays => {}
        seen = tokio::time::timeout(ENOUGH, looks_often) => seen.unwrap(),
    }
}

/// Until its clients have seen the switch, the old primary may have extended sessions.
#[tokio::test]
async fn a_promoted_server_waits_for_half_as_long_again() {
    let group = start(SentinelOptions::new()).await;
    let (group, _) = on(group, |group| group.fail_over()).await;
    let begun = Instant::now();
    connected(short(&group.url())).await;
    assert!(begun.elapsed() > SHORT * 4 / 3, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_split_that_the_holder_cannot_see_is_told_first_where_replicas_confirm() {
    let mut group = start(SentinelOptions::new().replicas(2)).await;
    let url = with_user(&mut group).await;
    let (behind, lines) = by_lines(&group);
    let holder = connected(short(&behind).with_wait_replicas(1)).await;
    let other = connected(short(&url).with_wait_replicas(1)).await;
    let held = acquired(&holder, "a").await;
    for line in &lines {
        line.black_hole(Direction::Both);
    }
    part(&group.servers()[0]).await;
    let _next = tells_first(&held.lost_signal(), &other).await;
    assert_ne!(group.primary(), Some(0));
}

#[tokio::test]
async fn a_split_that_the_holder_cannot_see_leaves_two_where_none_confirm() {
    let mut group = start(SentinelOptions::new()).await;
    let url = with_user(&mut group).await;
    let (behind, lines) = by_lines(&group);
    let (holder, other) = (
        connected(short(&behind)).await,
        connected(short(&url)).await,
    );
    let held = lock(&holder, "a").acquire().await.unwrap();
    for line in &lines {
        line.black_hole(Direction::Both);
    }
    part(&group.servers()[0]).await;
    // The claim is on both servers, but its session is refreshed on only one of them.
    let _next = lock(&other, "a").acquire().await.unwrap();
    assert!(!held.is_lost(), "that would be better than promised");
    for line in &lines {
        line.heal();
    }
    tokio::time::timeout(ENOUGH, held.lost()).await.unwrap();
}

#[tokio::test]
async fn without_notice_a_session_ends_with_the_primary_that_it_began_on() {
    let group = start(SentinelOptions::new()).await;
    let settings = lasting(&group.url()).with_release_without_notice(true);
    let backend = connected(settings).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let (_group, _) = on(group, |group| group.fail_over()).await;
    tokio::time::timeout(ENOUGH, held.lost()).await.unwrap();
    let _again = acquired(&backend, "a").await;
}

#[tokio::test]
async fn what_sentinels_refuse_or_do_not_know_is_told_apart() {
    let kind = async |url: &str| {
        let refused = RedisBackend::with_settings(settings_at(url)).await;
        refused.expect_err(url).kind()
    };
    let mut group = start(SentinelOptions::new()).await;
    let ports = group.sentinel_ports();
    let nobody = RedisServer::start().unwrap();
    // A sentinel that is down, or a server that is no sentinel, does no harm. Neither does a name that only one
    // sentinel knows.
    let mut gone = RedisServer::start().unwrap();
    gone.stop();
    let url = group.url_by(&[gone.port(), nobody.port(), ports[0]]);
    connected(settings_at(&url)).await.ping().await.unwrap();

    let unknown = group.url().replace("/portalock", "/other");
    assert_eq!(kind(&unknown).await, BackendErrorKind::Misconfigured);
    let none = group.url_by(&[nobody.port()]);
    assert_eq!(kind(&none).await, BackendErrorKind::Misconfigured);
    let away = group.url_by(&[gone.port()]);
    assert_eq!(kind(&away).await, BackendErrorKind::Unavailable);

    // A separate login for the sentinels, with the minimum of permissions.
    for port in &ports {
        let mut admin = Admin::at(&format!("redis://127.0.0.1:{port}")).await;
        admin
            .ask::<()>(
                "ACL SETUSER least on >s -@all +sentinel|master +sentinel|get-master-addr-by-name",
            )
            .await;
        admin.ask::<()>("ACL SETUSER default resetpass").await;
    }
    assert_eq!(kind(&group.url()).await, BackendErrorKind::PermissionDenied);
    let by_url = format!("{}?sentinel_user=least&sentinel_password=s", group.url());
    connected(settings_at(&by_url)).await.ping().await.unwrap();
    let by_settings = settings_at(&group.url()).with_sentinel_login(Some("least"), "s");
    let backend = connected(by_settings.unwrap()).await;
    LockBackend::inspect(&backend, &"a".parse().unwrap())
        .await
        .unwrap();
    let wrong = format!("{}?sentinel_user=least&sentinel_password=t", group.url());
    assert_eq!(kind(&wrong).await, BackendErrorKind::PermissionDenied);

    // The login for the servers is different.
    let url = with_user(&mut group).await;
    let wrong = url.replace(":c@", ":d@") + "?sentinel_user=least&sentinel_password=s";
    assert_eq!(kind(&wrong).await, BackendErrorKind::PermissionDenied);
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_holds_for_sentinels_and_servers_and_after_a_switch() {
    let dir = tempfile::tempdir().unwrap();
    let identity = crate::fixture::identity(dir.path());
    let authority = identity.authority.clone();
    let group = start(SentinelOptions::new().tls(identity)).await;
    let backend = connected(lasting(&group.url()).with_authority(authority)).await;
    let held = lock(&backend, "a").acquire().await.unwrap();
    let (mut group, primary) = on(group, |group| group.fail_over()).await;
    on_server(&backend, &group.servers()[primary]).await;
    held.release().await.unwrap();

    // The certificates are not trusted.
    let refused = RedisBackend::with_settings(lasting(&group.url())).await;
    assert!(refused.is_err());
}
