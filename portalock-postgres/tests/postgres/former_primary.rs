//! A former primary that still runs after its standby was promoted, and one that can't do its work: clients go on elsewhere.

use std::time::Duration;

use portalock_core::{
    BackendErrorKind, Holder, Lock, LockBackend as _, Loss, Policy, clock::Instant,
};
use portalock_postgres::{PostgresBackend, tokio_postgres::Client};
use portalock_testkit::proxy::{Direction, FaultProxy};

use crate::{
    standby::{LEASE, at, caught_up, either, expiry, standby},
    support::{LONG, Server, connect, patient, until},
};

/// The standby is promoted while the former primary, which is named first, still runs. It accepts connections and can confirm no change,
/// because its synchronous standby has left it.
#[tokio::test]
async fn clients_leave_a_former_primary_that_can_confirm_nothing() {
    let server = Server::start().await;
    let standby = standby(&server).await;
    server
        .run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        .await;
    server.run("SELECT pg_reload_conf()").await;
    until("the standby is synchronous", async || {
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        server.number(synchronous).await == 1
    })
    .await;
    let settings = either(&server, &standby);
    let short = settings.clone();
    let short = short.with_request_timeout(Duration::from_secs(1)).unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let lock = |name| Lock::new(client.clone(), name).unwrap();
    let held = lock("held").acquire().await.unwrap();
    let broken = lock("broken").acquire().await.unwrap();
    let admin = connect(&standby.url()).await;
    admin.query("SELECT pg_promote()", &[]).await.unwrap();

    // Without a session.
    let operator = PostgresBackend::new(short.clone());
    let holder = Holder::this_process(None);
    until("a lock is broken", async || {
        let marked = operator.mark_broken(broken.name(), broken.owner(), &holder);
        marked.await.is_ok()
    })
    .await;
    // One that starts now. Each start begins with the former primary, and a busy machine may need more than one.
    let start = Instant::now();
    let new = loop {
        match PostgresBackend::with_settings(short.clone()).await {
            Ok(new) => break new,
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
    };
    let policy = patient().with_max_failures(u32::MAX);
    let others = Lock::new(new, "new").unwrap();
    let others = others.acquire_with(&policy).await.unwrap();
    let next = lock("next").acquire_with(&policy).await.unwrap();
    held.ensure_held().unwrap();
    assert!(matches!(broken.lost().await, Loss::Broken(_)));
    until("only the others are held, at the new primary", async || {
        let names = "SELECT string_agg(name, ' ' ORDER BY name) FROM portalock.names WHERE owner IS NOT NULL";
        let names: String = admin.query_one(names, &[]).await.unwrap().get(0);
        names == "held new next"
    })
    .await;
    for guard in [held, others, next] {
        guard.release().await.unwrap();
    }
}

/// The only server that accepts writes does not answer for once, and the other one is a standby. Later the standby is not dialled first.
#[tokio::test]
async fn a_primary_that_was_silent_once_keeps_its_sessions() {
    let server = Server::start().await;
    let standby = standby(&server).await;
    let ((line, _), to_standby) = (server.line(), FaultProxy::start(standby.addr()).unwrap());
    let settings = at([line.addr(), to_standby.addr()], "?connect_timeout=2");
    let settings = settings.with_lease_time(LEASE / 2).unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let guard = Lock::new(client, "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    let before = expiry(&server).await;
    line.black_hole(Direction::Both);
    to_standby.black_hole(Direction::Both);
    until("the session has left it", async || {
        to_standby.connections() > 0
    })
    .await;
    line.heal();
    to_standby.heal();
    let renewed = async |before| {
        until("the session is renewed", async || {
            guard.ensure_held().unwrap();
            expiry(&server).await > before
        })
        .await;
    };
    renewed(before).await;
    // Once more: then the client has read the first answer.
    renewed(expiry(&server).await).await;
    until("the standby has no connection", async || {
        to_standby.connections() == 0
    })
    .await;
    to_standby.black_hole(Direction::Both);
    let before = expiry(&server).await;
    line.cut();
    renewed(before).await;
    assert_eq!(to_standby.connections(), 0);
}

/// The former primary still runs and confirms changes. It is named first, and the promoted standby is away for a while.
#[tokio::test]
async fn a_client_of_a_promoted_standby_does_not_go_back_to_the_former_primary() {
    let server = Server::start().await;
    let standby = standby(&server).await;
    let (to_former, to_standby) = (server.line().0, FaultProxy::start(standby.addr()).unwrap());
    let settings = at([to_former.addr(), to_standby.addr()], "");
    let settings = settings.with_lease_time(Duration::from_secs(600)).unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let lock = |name| Lock::new(client.clone(), name).unwrap();
    let held = lock("held").acquire().await.unwrap();
    let broken = lock("broken").acquire().await.unwrap();
    caught_up(&server).await;
    let admin = connect(&standby.url()).await;
    admin.query("SELECT pg_promote()", &[]).await.unwrap();
    let operator = PostgresBackend::connect(standby.url()).await.unwrap();
    let by = Holder::this_process(None);
    let marked = operator.mark_broken(broken.name(), broken.owner(), &by);
    marked.await.unwrap().unwrap();
    to_former.refuse(true);
    to_former.cut();
    // The renewal that tells of it is confirmed by the standby.
    assert!(matches!(broken.lost().await, Loss::Broken(_)));
    let first = lock("first").acquire_with(&patient()).await.unwrap();

    to_standby.refuse(true);
    to_standby.cut();
    to_former.refuse(false);
    let policy = Policy::default().with_timeout(Duration::from_secs(3));
    let gone = lock("second").acquire_with(&policy).await;
    assert!(gone.is_err(), "the former primary granted it");
    to_standby.refuse(false);
    let policy = patient().with_max_failures(u32::MAX);
    let second = lock("second").acquire_with(&policy).await.unwrap();
    let granted = "SELECT count(*) FROM portalock.names WHERE name IN ('first', 'second')";
    assert_eq!(server.number(granted).await, 0);
    let granted: i64 = admin.query_one(granted, &[]).await.unwrap().get(0);
    assert_eq!(granted, 2);
    for guard in [held, first, second] {
        guard.release().await.unwrap();
    }
}

/// Makes the server fail with this code when it is asked for its timeline.
async fn fails_to_tell_its_timeline(server: &Client, code: &str) {
    let sql = format!(
        "-- What is built in runs whatever its row says, but not under another name.
         DO $$ BEGIN
            IF 'pg_catalog.pg_control_system()'::regprocedure::oid < 16384 THEN
                ALTER FUNCTION pg_catalog.pg_control_system() RENAME TO pg_control_system_before;
            END IF;
         END $$;
         CREATE OR REPLACE FUNCTION pg_catalog.pg_control_system(OUT pg_control_version integer, OUT catalog_version_no integer,
            OUT system_identifier bigint, OUT pg_control_last_modified timestamptz)
         LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it fails' USING ERRCODE = '{code}'; END $$"
    );
    server.batch_execute(&sql).await.unwrap();
}

/// The promoted standby, which is named first, is slow when a client starts, and away then. The former primary runs and would confirm changes.
#[tokio::test]
async fn a_fresh_client_that_has_met_a_promoted_standby_does_not_go_to_the_former_primary() {
    let server = Server::start().await;
    let standby = standby(&server).await;
    caught_up(&server).await;
    let mut admin = connect(&standby.url()).await;
    admin.query("SELECT pg_promote()", &[]).await.unwrap();
    let to_standby = FaultProxy::start(standby.addr()).unwrap();
    let former = server.postgres.lock().unwrap().addr();
    let settings = at(
        [to_standby.addr(), former],
        "?request_timeout=1s&connect_timeout=120",
    );
    let slow = admin.transaction().await.unwrap();
    let locking = "LOCK TABLE portalock.sessions";
    slow.batch_execute(locking).await.unwrap();
    let lock = Lock::new(PostgresBackend::new(settings), "a").unwrap();
    let started = lock.try_acquire().await;
    assert!(started.is_err(), "the former primary granted it");
    to_standby.refuse(true);
    to_standby.cut();
    let refused = async |reason: &str| {
        let error = lock.try_acquire().await.unwrap_err();
        assert!(format!("{error:?}").contains(reason), "{error:?}");
    };
    refused("it is a former primary").await;
    fails_to_tell_its_timeline(&server.admin().await, "42883").await;
    refused("it does not tell its timeline").await;
    slow.rollback().await.unwrap();
    to_standby.refuse(false);
    let policy = patient().with_max_failures(u32::MAX);
    lock.acquire_with(&policy)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let sessions = "SELECT count(*) FROM portalock.sessions";
    assert_eq!(server.number(sessions).await, 0);
}

/// A client without a session marks a hold. Then the server that is named first is back.
#[tokio::test]
async fn a_break_goes_on_at_the_server_that_has_confirmed_the_mark() {
    let (first, server) = tokio::join!(Server::start(), Server::start());
    let ((to_first, _), (to_server, _)) = (first.line(), server.line());
    let (of_the_holder, lasting) = server.line();
    let lasting = lasting.with_lease_time(Duration::from_secs(600)).unwrap();
    let holder = PostgresBackend::with_settings(lasting).await.unwrap();
    let held = Lock::new(holder, "a").unwrap().acquire().await.unwrap();
    // It does not hear of the mark.
    of_the_holder.black_hole(Direction::Both);
    let settings = at([to_first.addr(), to_server.addr()], "");
    let operator = PostgresBackend::new(settings);
    let by = Holder::this_process(None);
    let mark = async || {
        let marked = operator.mark_broken(held.name(), held.owner(), &by).await;
        marked.unwrap()
    };
    to_first.refuse(true);
    assert!(mark().await.is_some());
    to_first.refuse(false);
    to_server.cut();
    assert!(mark().await.is_some());
    assert_eq!(to_first.connections(), 0, "it was sent to another server");
}

/// The server that is named first accepts connections and can write nothing.
#[tokio::test]
async fn a_session_starts_at_the_next_server_if_the_first_has_an_error_of_its_own() {
    let (first, server) = tokio::join!(Server::start(), Server::start());
    let addr = |server: &Server| server.postgres.lock().unwrap().addr();
    let settings = at([addr(&first), addr(&server)], "");
    for code in ["53100", "58030", "XX001"] {
        let fails = format!(
            "CREATE OR REPLACE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'it fails' USING ERRCODE = '{code}'; END $$;
             DROP TRIGGER IF EXISTS fails ON portalock.sessions;
             CREATE TRIGGER fails BEFORE INSERT ON portalock.sessions FOR EACH ROW EXECUTE FUNCTION fails()"
        );
        first.run(&fails).await;
        let client = PostgresBackend::with_settings(settings.clone()).await;
        client.unwrap().close().await.unwrap();
    }
}

/// A server that can't tell is used, such as a service without timelines, but not one that failed to for once.
#[tokio::test]
async fn a_server_that_failed_to_tell_its_timeline_is_not_used() {
    let server = Server::start().await;
    let addr = server.postgres.lock().unwrap().addr();
    let admin = server.admin().await;
    for code in ["53200", "57014", "XX000"] {
        fails_to_tell_its_timeline(&admin, code).await;
        let client = PostgresBackend::with_settings(at([addr, addr], "")).await;
        assert_eq!(client.unwrap_err().kind(), BackendErrorKind::Unavailable);
    }
    for code in ["42883", "42501", "0A000"] {
        fails_to_tell_its_timeline(&admin, code).await;
        let client = PostgresBackend::with_settings(at([addr, addr], "")).await;
        client.unwrap().close().await.unwrap();
    }
}
