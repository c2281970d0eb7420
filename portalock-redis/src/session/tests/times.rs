//! For how long a session is certain, at the client and at the server. And for how long it waits.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    pin::pin,
    task::Poll,
};

use portalock_core::Wake;
use portalock_testkit::servers::RedisServer;

use super::{
    hearer::hear_message,
    messages::{client, confirmed_of, source, waits},
    *,
};
use crate::clients::Clients;

const TTL: Duration = Duration::from_secs(600);
/// More than two clocks drift apart in that time, and not so much that a holder loses its lock for nothing.
const CERTAIN: Duration = Duration::from_secs(570);

/// The clock is paused, and a timer goes off at the next full millisecond.
pub(super) fn has_lasted(since: Instant, time: Duration) {
    let lasted = since.elapsed();
    let longest = time + Duration::from_millis(1);
    assert!(time < lasted && lasted <= longest, "{lasted:?}");
}

/// For how long the server keeps the session's key.
async fn left(session: &Session, line: &Line) -> Duration {
    let mut pttl = redis::cmd("PTTL");
    pttl.arg(&session.service().key);
    let left: u64 = pttl
        .query_async(&mut line.connection.clone())
        .await
        .unwrap();
    Duration::from_millis(left)
}

#[tokio::test]
async fn a_session_that_begins_is_certain_from_before_its_request_was_sent() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let line = session.connection().unwrap();
    server.stall().unwrap();
    let before = Instant::now();
    let mut beginning = pin!(SessionKey::begin(&session, &line, None));
    let is_pending = poll_fn(|context| Poll::Ready(beginning.as_mut().poll(context).is_pending()));
    assert!(is_pending.await);
    let sent = Instant::now();
    server.resume().unwrap();
    let until = beginning.await.unwrap();
    assert!(before + CERTAIN <= until && until <= sent + CERTAIN);
    let left = left(&session, &line).await;
    assert!(CERTAIN < left && left <= TTL, "{left:?}");
}

#[tokio::test]
async fn the_engine_gets_the_times_of_the_settings() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let key = session.service();
    assert_eq!(key.lease_time(), TTL);
    assert_eq!(key.lifetime, TTL.as_millis().to_string());
    assert_eq!(key.request_timeout(), key.settings().response_timeout());
}

#[tokio::test]
async fn each_write_of_a_session_extends_the_time_of_its_key() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let key = session.service();
    let line = session.connection().unwrap();
    let mut connection = line.connection.clone();
    for is_refresh in [true, false] {
        let mut expire = redis::cmd("PEXPIRE");
        expire.arg(&key.key).arg(60_000);
        expire.query_async::<()>(&mut connection).await.unwrap();
        if is_refresh {
            let renewed = SessionKey::renew(&session, &line).await.unwrap();
            assert!(matches!(renewed, Renewal::Renewed(CERTAIN)), "{renewed:?}");
        } else {
            confirm(&mut connection, key).await.unwrap();
        }
        let left = left(&session, &line).await;
        assert!(CERTAIN < left && left <= TTL, "{left:?}");
    }
}

#[tokio::test]
async fn the_new_last_waiter_checks_after_a_tick() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let (owner, place) = waits(&session);
    let mut wakeups = session.places().listen(owner);
    tokio::time::pause();
    let told = Instant::now();
    let text = format!("last|{}", place.name);
    hear_message(&session, &text, &source(&session));
    let wake = wakeups.next().await;
    assert!(matches!(wake, Wake::TryNow), "{wake:?}");
    has_lasted(told, session.service().settings().tick_interval());
}

/// The paused clock goes on only while everything waits for it: an answer takes no time.
#[tokio::test]
async fn a_server_that_can_move_is_looked_for_at_intervals() {
    const LOOKS: usize = 3;
    let options = RedisClusterOptions::new().replicas(0);
    let cluster = tokio::task::spawn_blocking(move || options.start().unwrap());
    let cluster = cluster.await.unwrap();
    let settings = RedisSettings::new(&cluster.url()).unwrap();
    let settings = settings.with_restart_wait(Duration::ZERO);
    let clients = Clients::new(&Arc::new(settings));
    let client = clients.of(&LockName::new("a").unwrap()).await.unwrap();
    let session = client.session().await.unwrap();
    tokio::time::pause();
    let mut looked = Instant::now();
    let mut following = pin!(follow(&session));
    for _ in 0..LOOKS {
        let before = looked;
        poll_fn(|context| {
            assert!(following.as_mut().poll(context).is_pending());
            looked = Instant::now();
            if looked == before {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        has_lasted(before, session.service().server.route.look_interval());
    }
}

#[tokio::test]
async fn a_server_that_can_not_move_is_not_looked_for() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let mut following = pin!(follow(&session));
    let mut polls = 0;
    let counting = poll_fn(|context| {
        polls += 1;
        following.as_mut().poll(context)
    });
    tokio::time::pause();
    timeout(TTL, counting).await.unwrap_err();
    // At first, and when the time is over.
    assert_eq!(polls, 2);
}

#[tokio::test]
async fn a_start_waits_longer_for_replicas_than_a_refresh() {
    let ttl = Duration::from_secs(7);
    let (server, _replica, _client, session) =
        confirmed_of(|settings| settings.with_session_ttl(ttl).unwrap()).await;
    let line = session.connection().unwrap();
    let mut monitor = TcpStream::connect(server.addr()).unwrap();
    monitor.write_all(b"MONITOR\r\n").unwrap();
    let mut seen = BufReader::new(monitor).lines();
    assert_eq!(seen.next().unwrap().unwrap(), "+OK");
    loop {
        // On a loaded machine the session may have ended meanwhile, or the replica may be late.
        let _ = SessionKey::begin(&session, &line, None).await;
        let renewed = SessionKey::renew(&session, &line).await;
        if !matches!(renewed, Ok(Renewal::Gone(_))) {
            break;
        }
    }
    ask(&mut line.connection.clone(), "ECHO end").await;
    let seen = seen.map(Result::unwrap);
    let waits: BTreeSet<String> = seen
        .take_while(|line| !line.ends_with(r#""ECHO" "end""#))
        .filter_map(|line| Some(line.split_once(r#""WAIT" "1" "#)?.1.to_owned()))
        .collect();
    let expected = [r#""1000""#, r#""875""#];
    assert_eq!(waits, expected.map(str::to_owned).into());
}
