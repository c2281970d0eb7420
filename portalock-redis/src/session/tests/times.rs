//! For how long a session is certain, at the client and at the server.

use std::{future::poll_fn, pin::pin, task::Poll};

use portalock_testkit::servers::RedisServer;

use super::{messages::client, *};

const TTL: Duration = Duration::from_secs(600);
/// More than two clocks drift apart in that time, and not so much that a holder loses its lock for nothing.
const CERTAIN: Duration = Duration::from_secs(570);

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
