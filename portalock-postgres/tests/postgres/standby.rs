//! A standby refuses sessions, and is used after it was promoted.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    task::Poll,
    time::Duration,
};

use portalock_core::{BackendErrorKind, Lock, LockBackend as _, LockError, blocking};
use portalock_postgres::{PostgresBackend, PostgresSettings};
use portalock_testkit::{proxy::Direction, servers::PostgresServer};

use crate::support::{Server, connect, patient, until};

pub(crate) const LEASE: Duration = Duration::from_secs(20);

pub(crate) async fn standby(server: &Server) -> PostgresServer {
    let postgres = server.postgres.clone();
    let start = move || postgres.lock().unwrap().standby();
    tokio::task::spawn_blocking(start).await.unwrap().unwrap()
}

/// Until when the latest session lives, in microseconds.
const EXPIRY: &str = "SELECT (date_part('epoch', max(expires)) * 1000000)::bigint FROM portalock.sessions WHERE lease < '1 minute'";

pub(crate) async fn expiry(server: &Server) -> i64 {
    server.number(EXPIRY).await
}

pub(crate) fn at([first, second]: [SocketAddr; 2], parameters: &str) -> PostgresSettings {
    let url = format!("postgres://postgres@{first},{second}/postgres{parameters}");
    PostgresSettings::from_url(&url).unwrap()
}

/// Settings that name both servers.
pub(crate) fn either(server: &Server, standby: &PostgresServer) -> PostgresSettings {
    let primary = server.postgres.lock().unwrap().addr();
    let url = format!(
        "postgres://postgres@/postgres?host=127.0.0.1,127.0.0.1&port={},{}",
        primary.port(),
        standby.port()
    );
    PostgresSettings::from_url(&url)
        .unwrap()
        .with_lease_time(LEASE)
        .unwrap()
}

/// Waits until the standby has received everything that the primary has written.
pub(crate) async fn caught_up(server: &Server) {
    until("the standby has caught up", async || {
        let behind = "SELECT count(*) FILTER (WHERE replay_lsn = pg_current_wal_lsn()) FROM pg_stat_replication";
        server.number(behind).await == 1
    })
    .await;
}

async fn promote(server: &Server, standby: &PostgresServer) {
    server.do_with(PostgresServer::stop).await;
    let admin = connect(&standby.url()).await;
    admin.query("SELECT pg_promote()", &[]).await.unwrap();
}

/// Starts the standby, which was stopped, when the primary is stopped and sends nothing more, and promotes it.
async fn promote_stopped(server: &Server, mut standby: PostgresServer) -> PostgresServer {
    server.do_with(PostgresServer::stop).await;
    let standby = tokio::task::spawn_blocking(move || {
        standby.restart().unwrap();
        standby
    })
    .await
    .unwrap();
    promote(server, &standby).await;
    standby
}

#[tokio::test]
async fn a_promoted_standby_goes_on_with_every_session() {
    let server = Server::start().await;
    let standby = standby(&server).await;
    let error = PostgresBackend::connect(standby.url()).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::ReadOnly);

    let settings = either(&server, &standby);
    let holder = PostgresBackend::with_settings(settings.clone())
        .await
        .unwrap();
    let holder = Lock::new(holder, "a").unwrap();
    let waiter = PostgresBackend::with_settings(settings).await.unwrap();
    let waiter = Lock::new(waiter, "a").unwrap();
    let guard = holder.acquire().await.unwrap();
    let waiting = tokio::spawn(async move { waiter.acquire_with(&patient()).await.unwrap() });
    until("the other waits", async || {
        holder.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    caught_up(&server).await;
    promote(&server, &standby).await;

    guard.ensure_held().unwrap();
    let token = guard.token();
    guard.release().await.unwrap();
    let next = waiting.await.unwrap();
    assert!(next.token() > token);
    next.release().await.unwrap();
}

/// A server that accepts connections and sends nothing doesn't keep a client from the next server.
#[tokio::test]
async fn a_silent_server_is_passed_over() {
    let server = Server::start().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let direct = server.postgres.lock().unwrap().addr();
    let settings = at([silent.local_addr().unwrap(), direct], "?connect_timeout=2");
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let guard = Lock::new(client, "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    guard.release().await.unwrap();
}

/// The session's server falls silent. Its share of `connect_timeout` is longer than a renewal may take.
#[tokio::test]
async fn a_session_passes_over_a_server_that_has_fallen_silent() {
    let server = Server::start().await;
    let (line, _) = server.line();
    let direct = server.postgres.lock().unwrap().addr();
    let settings = at([line.addr(), direct], "?connect_timeout=15");
    let settings = settings.with_lease_time(LEASE).unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let guard = Lock::new(client, "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    line.black_hole(Direction::Both);
    line.cut();
    let before = expiry(&server).await;
    until("the session is renewed", async || {
        guard.ensure_held().unwrap();
        expiry(&server).await > before
    })
    .await;
}

/// A grant that an asynchronous standby has not received is lost, and its holder is told.
#[tokio::test]
async fn a_grant_that_the_standby_never_got_is_lost_and_told() {
    let server = Server::start().await;
    let mut standby = standby(&server).await;
    let client = PostgresBackend::with_settings(either(&server, &standby))
        .await
        .unwrap();
    let kept = Lock::new(client.clone(), "kept")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    caught_up(&server).await;
    // Stopped, so that no data is in flight to it.
    standby.stop();
    let lost = Lock::new(client, "lost").unwrap().acquire().await.unwrap();
    let _standby = promote_stopped(&server, standby).await;
    lost.lost().await;
    kept.ensure_held().unwrap();
}

/// The server ends when it has written a grant, and before the synchronous standby has it. The repeated attempt finds the grant.
#[tokio::test]
async fn a_grant_is_told_when_the_synchronous_standby_has_it() {
    let server = Server::start().await;
    let mut standby = standby(&server).await;
    let settings = server.settings_with_lease(Duration::from_secs(600));
    let settings = settings.with_request_timeout(Duration::from_secs(60));
    let client = PostgresBackend::with_settings(settings.unwrap()).await;
    let lock = Lock::new(client.unwrap(), "a").unwrap();
    caught_up(&server).await;
    standby.stop();
    server
        .run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        .await;
    server.run("SELECT pg_reload_conf()").await;
    let waits = async |query: &str| {
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE";
        server
            .number(&format!("{waits} '%portalock.{query}%'"))
            .await
            == 1
    };
    let admin = server.admin().await;
    tokio::spawn(async move {
        let write = "SELECT pg_logical_emit_message(true, 'portalock.test', '')";
        while admin.batch_execute(write).await.is_ok() {}
    });
    until("writes wait for the standby", async || waits("test").await).await;
    // The restart may take long.
    let policy = patient().with_max_failures(u32::MAX);
    let acquiring = tokio::spawn(async move { lock.acquire_with(&policy).await.unwrap() });
    until("the grant waits", async || waits("acquire").await).await;
    server.do_with(|postgres| postgres.restart().unwrap()).await;
    until("the repeated attempt waits", async || {
        assert!(!acquiring.is_finished(), "the standby does not know of it");
        waits("acquire").await
    })
    .await;
    let restart = move || standby.restart().map(|()| standby);
    let _standby = tokio::task::spawn_blocking(restart).await.unwrap().unwrap();
    acquiring.await.unwrap().release().await.unwrap();
}

/// The promoted standby still knows what the client has released. The client releases it again.
#[tokio::test]
async fn a_release_that_the_standby_never_got_is_repeated() {
    let server = Server::start().await;
    let mut standby = standby(&server).await;
    let settings = either(&server, &standby);
    let client = PostgresBackend::with_settings(settings.clone())
        .await
        .unwrap();
    let other = PostgresBackend::with_settings(settings).await.unwrap();
    let lock = |client: &PostgresBackend, name| Lock::new(client.clone(), name).unwrap();
    let kept = lock(&client, "kept").acquire().await.unwrap();
    let shared = lock(&client, "shared").acquire_shared().await.unwrap();
    let released = lock(&client, "released").acquire().await.unwrap();
    // It waits for a lock of the other client, which is released after the wait was given up.
    let queued = lock(&other, "queued").acquire().await.unwrap();
    let waiter = lock(&client, "queued");
    let waiting = tokio::spawn(async move { waiter.acquire_with(&patient()).await });
    until("the client waits", async || {
        let waits = "SELECT count(*) FROM portalock.queue WHERE place IS NOT NULL";
        server.number(waits).await == 1
    })
    .await;
    caught_up(&server).await;
    // Stopped, so that no data is in flight to it.
    standby.stop();
    released.release().await.unwrap();
    shared.release().await.unwrap();
    waiting.abort();
    until("nobody waits", async || {
        let waits = "SELECT count(*) FROM portalock.queue";
        server.number(waits).await == 0
    })
    .await;
    let _standby = promote_stopped(&server, standby).await;
    queued.release().await.unwrap();
    for name in ["released", "shared", "queued"] {
        let guard = lock(&other, name).acquire_with(&patient()).await.unwrap();
        guard.release().await.unwrap();
    }
    kept.ensure_held().unwrap();
}

/// As before, but the client reads the former primary's answer to a release after it has reconnected.
#[tokio::test]
async fn a_release_that_the_former_primary_has_answered_is_repeated() {
    let server = Server::start().await;
    let mut standby = standby(&server).await;
    let settings = either(&server, &standby);
    let client = PostgresBackend::with_settings(settings.clone())
        .await
        .unwrap();
    let other = PostgresBackend::with_settings(settings).await.unwrap();
    let lock = |client: &PostgresBackend, name| Lock::new(client.clone(), name).unwrap();
    let first = lock(&client, "first").acquire().await.unwrap();
    let second = lock(&client, "second").acquire().await.unwrap();
    caught_up(&server).await;
    standby.stop();
    first.release().await.unwrap();
    let mut releasing = pin!(second.release());
    poll_fn(|context| {
        assert!(releasing.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    until("both are free", async || {
        let held = "SELECT count(*) FROM portalock.names WHERE owner IS NOT NULL";
        server.number(held).await == 0
    })
    .await;
    let _standby = promote_stopped(&server, standby).await;
    // Then the client has read its claims.
    let guard = lock(&other, "first")
        .acquire_with(&patient())
        .await
        .unwrap();
    guard.release().await.unwrap();
    releasing.await.unwrap();
    let guard = lock(&other, "second")
        .acquire_with(&patient())
        .await
        .unwrap();
    guard.release().await.unwrap();
}

/// The former primary still runs, and a connection to it is still open.
#[tokio::test]
async fn requests_go_to_the_server_of_the_session() {
    let server = Server::start().await;
    let standby = standby(&server).await;
    let client = PostgresBackend::with_settings(either(&server, &standby))
        .await
        .unwrap();
    let lock = |name| Lock::new(client.clone(), name).unwrap();
    let first = lock("first").acquire().await.unwrap();
    let second = lock("second").acquire().await.unwrap();
    caught_up(&server).await;
    let admin = connect(&standby.url()).await;
    admin.query("SELECT pg_promote()", &[]).await.unwrap();
    first.release().await.unwrap();

    let database = server.url.trim_end_matches("postgres").to_owned() + "template1";
    let former = connect(&database).await;
    let accept = async |accepts: bool| {
        let sql = format!("ALTER DATABASE postgres ALLOW_CONNECTIONS {accepts}");
        former.batch_execute(&sql).await.unwrap();
    };
    accept(false).await;
    let of_the_session = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'portalock' AND query NOT LIKE '%portalock.release(%'";
    former.batch_execute(of_the_session).await.unwrap();
    let held = async || -> i64 {
        let counting = "SELECT count(*) FROM portalock.names WHERE owner IS NOT NULL";
        admin.query_one(counting, &[]).await.unwrap().get(0)
    };
    // A later connection could be to the former primary again, which is named first.
    let renewing = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'portalock'";
    until("the session has reconnected", async || {
        let sessions: i64 = admin.query_one(renewing, &[]).await.unwrap().get(0);
        sessions > 0
    })
    .await;
    accept(true).await;
    // The session has read its claims then.
    until("the first is released again", async || held().await == 1).await;
    second.release().await.unwrap();
    until("the second is released", async || held().await == 0).await;
}

/// The server of the session refuses the connection of another runtime, and the other server would accept it.
#[tokio::test]
async fn no_request_goes_to_another_server_than_that_of_the_session() {
    let (former, server) = tokio::join!(Server::start(), Server::start());
    let ((to_former, _), (to_server, _)) = (former.line(), server.line());
    let settings = at([to_former.addr(), to_server.addr()], "");
    let settings = settings.with_lease_time(Duration::from_secs(600)).unwrap();
    to_former.refuse(true);
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let guard = Lock::new(client.clone(), "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    to_former.refuse(false);
    to_server.refuse(true);
    let other = blocking::Lock::new(client, "b").unwrap();
    let tried = tokio::task::spawn_blocking(move || other.try_acquire());
    let tried = tried.await.unwrap();
    assert!(matches!(tried, Err(LockError::Backend { .. })), "{tried:?}");
    guard.ensure_held().unwrap();
}

/// A former primary falls silent, and answers a request when the session is at the other server.
#[tokio::test]
async fn a_late_answer_of_a_former_server_ends_no_session() {
    let (former, server) = tokio::join!(Server::start(), Server::start());
    let ((to_former, _), (to_server, _)) = (former.line(), server.line());
    let settings = at([to_former.addr(), to_server.addr()], "?connect_timeout=120");
    let settings = settings.with_lease_time(LEASE).unwrap();
    to_former.refuse(true);
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let lock = |name| Lock::new(client.clone(), name).unwrap();
    let guard = lock("a").acquire_with(&patient()).await.unwrap();
    to_former.refuse(false);
    to_former.black_hole(Direction::Both);
    let before = expiry(&server).await;
    to_server.refuse(true);
    to_server.cut();
    let dialled = async |count| {
        until("a connection is open", async || {
            to_former.connections() >= count
        })
        .await;
    };
    dialled(1).await;
    let other = lock("b");
    let acquiring = tokio::spawn(async move { other.acquire_with(&patient()).await });
    let observer = client.clone();
    let observing = tokio::spawn(async move { observer.watch(&"b".parse().unwrap()).await });
    dialled(2).await;
    to_server.refuse(false);
    until("the session is renewed", async || {
        expiry(&server).await > before
    })
    .await;
    to_former.heal();
    let mut watch = observing.await.unwrap().unwrap().unwrap();
    let ended = tokio::time::timeout(LEASE, watch.next()).await;
    assert!(ended.unwrap().is_none(), "it observes at the former server");
    acquiring.await.unwrap().unwrap().release().await.unwrap();
    guard.release().await.unwrap();
}

/// A session that has ended connects to the first server to end there. The next session is at the other server.
#[tokio::test]
async fn a_session_that_has_ended_leads_no_requests_to_its_server() {
    let (first, server) = tokio::join!(Server::start(), Server::start());
    let ((to_first, _), (to_server, _)) = (first.line(), server.line());
    let settings = at([to_first.addr(), to_server.addr()], "");
    let settings = settings.with_request_timeout(Duration::from_secs(10));
    to_first.refuse(true);
    let client = PostgresBackend::with_settings(settings.unwrap())
        .await
        .unwrap();
    let lock = |name| Lock::new(client.clone(), name).unwrap();

    let mut admin = server.admin().await;
    let blocking = admin.transaction().await.unwrap();
    let ends_late = "SELECT FROM portalock.sessions FOR UPDATE";
    blocking.execute(ends_late, &[]).await.unwrap();
    let closed = client.clone();
    let closing = tokio::spawn(async move { closed.close().await });
    until("the session ends", async || {
        let ending = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%end_session(%' AND wait_event_type = 'Lock'";
        server.number(ending).await == 1
    })
    .await;
    let guard = lock("a").acquire_with(&patient()).await.unwrap();
    to_first.refuse(false);
    closing.await.unwrap().unwrap();
    let next = lock("b").acquire_with(&patient()).await.unwrap();
    next.release().await.unwrap();
    guard.release().await.unwrap();
}

/// The former primary grants a lock when the session is at the promoted standby, where another client holds it.
#[tokio::test]
async fn a_late_grant_of_a_former_server_does_not_count() {
    let server = Server::start().await;
    let standby = standby(&server).await;
    let lasting = server.settings_with_lease(Duration::from_secs(600));
    let holder = PostgresBackend::with_settings(lasting).await.unwrap();
    let held = Lock::new(holder, "a").unwrap().acquire().await.unwrap();
    let (line, _) = server.line();
    let settings = at([line.addr(), standby.addr()], "?connect_timeout=120");
    let settings = settings.with_lease_time(LEASE).unwrap();
    let settings = settings.with_request_timeout(Duration::from_secs(120));
    let client = PostgresBackend::with_settings(settings.unwrap())
        .await
        .unwrap();
    let waiter = Lock::new(client, "a").unwrap();
    let waiting = tokio::spawn(async move { waiter.acquire_with(&patient()).await });
    until("the client waits", async || {
        let waits = "SELECT count(*) FROM portalock.queue WHERE place IS NOT NULL";
        server.number(waits).await == 1
    })
    .await;
    caught_up(&server).await;
    line.black_hole(Direction::Both);
    let admin = connect(&standby.url()).await;
    admin.query("SELECT pg_promote()", &[]).await.unwrap();
    let number = async |sql: &str| -> i64 { admin.query_one(sql, &[]).await.unwrap().get(0) };
    let before = number(EXPIRY).await;
    until("the session is renewed", async || {
        number(EXPIRY).await > before
    })
    .await;
    held.release().await.unwrap();
    line.heal();
    until("the connections to it are closed", async || {
        line.connections() == 0
    })
    .await;
    assert!(
        !waiting.is_finished(),
        "the server of the session has another holder"
    );
}
