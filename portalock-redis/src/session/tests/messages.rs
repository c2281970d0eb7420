//! Which messages of the server count, and what a session leaves.

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::TcpStream,
    pin::pin,
    task::Poll,
};

use portalock_core::{FencingToken, Grant, LockName, Released, Wake};
use portalock_testkit::servers::{RedisClusterOptions, RedisOptions, RedisServer};
use redis::{PushInfo, PushKind};
use tokio::task::yield_now;

use super::{hearer::hear_message, times::has_lasted, *};
use crate::{client::Client, clients::Clients, keys::Named};

/// A client whose session needs no refresh in a test.
pub(super) fn client(server: &RedisServer) -> Client {
    client_of(server, |settings| settings)
}

pub(super) fn client_of(
    server: &RedisServer,
    with: impl FnOnce(RedisSettings) -> RedisSettings,
) -> Client {
    let settings = RedisSettings::new(&server.url()).unwrap();
    let settings = settings.with_session_ttl(Duration::from_secs(600)).unwrap();
    // The server has just started.
    let settings = settings.with_restart_wait(Duration::ZERO);
    let Clients::One(client) = Clients::new(&Arc::new(with(settings))) else {
        panic!("it is one server");
    };
    client
}

pub(super) fn source(session: &Session) -> Source {
    Source {
        is_open: Arc::new(AtomicBool::new(true)),
        location: session.service().server.route.number(),
    }
}

fn named() -> Named {
    Kind::Lock.named(&LockName::new("a").unwrap())
}

/// An owner whose request has no answer yet.
pub(super) fn waits(session: &Session) -> (OwnerId, Place) {
    let owner = OwnerId::mint();
    let place = || Place::new(owner, named());
    let expected = session.places().expect(owner, place).unwrap();
    (owner, expected.at)
}

#[tokio::test]
async fn messages_of_a_former_connection_do_not_count() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let here = session.service().server.route.number();
    for (is_open, location) in [(true, here), (false, here), (true, here + 1)] {
        let (owner, place) = waits(&session);
        let hearer = Hearer {
            session: Arc::downgrade(&session),
            source: Source {
                is_open: Arc::new(AtomicBool::new(is_open)),
                location,
            },
        };
        let text = format!("grant|{}|7", place.name);
        hearer.hear(&PushInfo {
            kind: PushKind::Message,
            data: vec![Value::Nil, Value::BulkString(text.into())],
        });
        let counts = is_open && location == here;
        assert_eq!(session.places().held(owner).is_some(), counts);
    }
}

#[tokio::test]
async fn a_grant_of_an_owners_earlier_place_does_not_count() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let (owner, place) = waits(&session);
    let earlier = Place::new(owner, named());
    hear_message(
        &session,
        &format!("grant|{}|7", earlier.name),
        &source(&session),
    );
    assert!(session.places().held(owner).is_none());
    hear_message(
        &session,
        &format!("grant|{}|8", place.name),
        &source(&session),
    );
    let token = session.places().held(owner).unwrap().1;
    assert_eq!(token, FencingToken::new(8));
}

#[tokio::test]
async fn a_neighbour_is_right_behind_the_place_that_is_named_and_no_earlier_one() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let earlier = |owner| Place::new(owner, named()).name;
    for (holder_is_earlier, next_is_earlier) in [(false, false), (false, true), (true, false)] {
        let (holder, held) = waits(&session);
        let (next, waiting) = waits(&session);
        hear_message(
            &session,
            &format!("grant|{}|7", held.name),
            &source(&session),
        );
        let (mut ahead, mut behind) = (held.name.clone(), waiting.name.clone());
        if holder_is_earlier {
            ahead = earlier(holder);
        }
        if next_is_earlier {
            behind = earlier(next);
        }
        hear_message(
            &session,
            &format!("grant|{ahead}|7|{behind}|8"),
            &source(&session),
        );
        let releasing = session.places().release(holder).unwrap();
        let takes_over = releasing.leaving().next.is_some();
        assert_eq!(takes_over, !holder_is_earlier && !next_is_earlier);
        assert_eq!(session.places().held(next).is_some(), takes_over);
    }
}

#[tokio::test]
async fn a_release_after_a_lost_answer_notices_that_the_session_is_gone() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let key = session.service();
    let (owner, _) = waits(&session);
    let wire = key.server.connections.wire().await.unwrap();
    let mut delete = redis::cmd("DEL");
    delete.arg(&key.key);
    delete
        .query_async::<()>(&mut wire.connection())
        .await
        .unwrap();
    client.release(owner).await.unwrap();
    let over = session.ensure_live().unwrap_err().to_string();
    assert!(over.contains("the server no longer knows it"), "{over}");
}

#[tokio::test]
async fn few_releases_of_a_session_that_ends_are_under_way_at_once_and_only_for_a_time() {
    let redis = RedisServer::start().unwrap();
    let patience = Duration::from_secs(300);
    let client = client_of(&redis, |settings| {
        settings.with_response_timeout(patience).unwrap()
    });
    let session = client.session().await.unwrap();
    let server = session.service().server.clone();
    // Opens the connection of this runtime.
    server.connections.wire().await.unwrap();
    let left = [(); 4 * HANDED_OVER_AT_ONCE].map(|()| Place::new(OwnerId::mint(), named()));
    // Each release has the server.
    let releases = || Arc::strong_count(&server);
    let before = releases();
    redis.stall().unwrap();
    tokio::time::pause();
    let begun = Instant::now();
    let looking_on = async {
        while releases() < before + HANDED_OVER_AT_ONCE {
            yield_now().await;
        }
        for _ in 0..100 {
            yield_now().await;
        }
        assert!(releases() < before + 2 * HANDED_OVER_AT_ONCE);
    };
    tokio::join!(hand_over(server.clone(), &left), looking_on);
    has_lasted(begun, patience / 3);
    tokio::time::resume();
    redis.resume().unwrap();
    hand_over(server.clone(), &left).await;
    assert_eq!(releases(), before);
}

#[tokio::test]
async fn nothing_counts_that_comes_over_a_connection_that_was_given_up() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let line = session.connection().unwrap();
    line.ensure_open(RENEWING).unwrap();
    let key = session.service();
    key.gave_up(&line);
    line.ensure_open(RENEWING).unwrap_err();
    SessionKey::look(&session, &line, &[]).await.unwrap_err();
    SessionKey::renew(&session, &line).await.unwrap_err();
    SessionKey::begin(&session, &line, None).await.unwrap_err();
    // Not even that the session has ended.
    let mut delete = redis::cmd("DEL");
    delete.arg(&key.key);
    let mut connection = line.connection.clone();
    delete.query_async::<()>(&mut connection).await.unwrap();
    SessionKey::renew(&session, &line).await.unwrap_err();
}

#[tokio::test]
async fn no_session_begins_where_nobody_knows_since_when_the_server_is_the_primary() {
    let server = RedisServer::start().unwrap();
    let wait = Duration::from_millis(1);
    let client = client_of(&server, |settings| settings.with_restart_wait(wait));
    let session = client.session().await.unwrap();
    let line = session.connection().unwrap();
    let mut connection = line.connection.clone();
    let key = &session.service().key;
    for command in [
        "DEL portalock/primary",
        "HSET portalock/primary since x",
        &format!("DEL {key}"),
    ] {
        ask(&mut connection, command).await;
    }
    let error = SessionKey::begin(&session, &line, None).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{error:?}");
    let exists = ask(&mut connection, &format!("EXISTS {key}")).await;
    assert_eq!(exists, Value::Int(0));
}

/// A server, its replica, and a client whose grants and refreshes the replica confirms.
async fn confirmed() -> (RedisServer, RedisServer, Client, Arc<Session>) {
    confirmed_of(|settings| settings).await
}

pub(super) async fn confirmed_of(
    with: impl Fn(RedisSettings) -> RedisSettings,
) -> (RedisServer, RedisServer, Client, Arc<Session>) {
    let server = RedisServer::start().unwrap();
    let primary = format!("127.0.0.1 {}", server.port());
    let replica = RedisOptions::new().setting("replicaof", primary).start();
    let replica = replica.unwrap();
    let client = client_of(&server, |settings| with(settings.with_wait_replicas(1)));
    let session = loop {
        if let Ok(session) = client.session().await {
            break session;
        }
    };
    (server, replica, client, session)
}

/// Another server may be the primary now, which lacks the grant. It would confirm only its own writes.
#[tokio::test]
async fn a_grant_is_not_confirmed_over_a_later_connection() {
    let (_server, replica, _client, session) = confirmed().await;
    for (is_replaced, is_cut) in [(false, false), (true, false), (false, true)] {
        let (owner, place) = waits(&session);
        let mut wakeups = session.places().listen(owner);
        let source = source(&session);
        if is_cut {
            session.service().gave_up(&session.connection().unwrap());
        }
        loop {
            replica.stall().unwrap();
            hear_message(&session, &format!("grant|{}|7", place.name), &source);
            source.is_open.store(!is_replaced, Ordering::Release);
            replica.resume().unwrap();
            match wakeups.next().await {
                Wake::Granted(_) => assert!(!is_replaced && !is_cut),
                // It asks again.
                Wake::Failed(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    if !is_replaced && !is_cut {
                        // The replica was late.
                        continue;
                    }
                }
                told => panic!("{told:?}"),
            }
            break;
        }
    }
}

#[tokio::test]
async fn a_grant_is_not_told_if_something_fails_while_replicas_confirm_it() {
    let (server, _replica, _client, session) = confirmed().await;
    let line = session.connection().unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    // As long as a busy machine may need: half a second is the default.
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    let mut admin = connecting.await.unwrap();
    let unconfirmed = Unconfirmed::default();
    for (right, ends) in [("+wait", true), ("-wait", true), ("+wait -pexpire", false)] {
        ask(&mut admin, &format!("ACL SETUSER default {right}")).await;
        line.source.is_open.store(true, Ordering::Release);
        let (owner, place) = waits(&session);
        let mut wakeups = session.places().listen(owner);
        let source = source(&session);
        unconfirmed.add(owner, &place.name, FencingToken::new(7), &source);
        if ends {
            server.stall().unwrap();
        }
        let mut confirming = pin!(unconfirmed.confirm(&session));
        let is_pending =
            poll_fn(|context| Poll::Ready(confirming.as_mut().poll(context).is_pending()));
        assert!(is_pending.await);
        if ends {
            session.service().gave_up(&line);
            server.resume().unwrap();
        }
        tokio::select! {
            never = confirming => match never {},
            told = wakeups.next() => {
                // A refusal may be the answer to another command, if the connection has ended.
                let Wake::Failed(error) = told else { panic!("{told:?}") };
                assert_eq!(error.is_retryable(), ends, "{error:?}");
            }
        }
        assert_eq!(Arc::strong_count(&source.is_open), 1, "it is forgotten");
    }
}

#[tokio::test]
async fn all_grants_that_come_together_are_told() {
    let (_server, _replica, _client, session) = confirmed().await;
    let mut waiters = Vec::new();
    for token in [7, 8] {
        let (owner, place) = waits(&session);
        waiters.push((session.places().listen(owner), token));
        // An earlier place of this owner has an earlier token.
        for (place, token) in [(Place::new(owner, named()), 1), (place, token)] {
            let text = format!("grant|{}|{token}", place.name);
            hear_message(&session, &text, &source(&session));
        }
    }
    for (mut waiter, token) in waiters {
        match waiter.next().await {
            Wake::Granted(grant) => assert_eq!(grant.token, Some(FencingToken::new(token))),
            // The replica was late.
            Wake::Failed(_) => {}
            told => panic!("{told:?}"),
        }
    }
}

/// A grant whose holder is told of its loss by the next refresh: an operator has broken the lock.
async fn broken(session: &Session) -> Grant {
    let (owner, place) = waits(session);
    let mut wakeups = session.places().listen(owner);
    session
        .places()
        .granted(owner, FencingToken::new(7), |_| true);
    let mut mark = redis::cmd("HSET");
    mark.arg(marks_key(session.service()));
    mark.arg(&*place.name).arg("1|");
    let mut connection = session.connection().unwrap().connection;
    mark.query_async::<()>(&mut connection).await.unwrap();
    let Wake::Granted(grant) = wakeups.next().await else {
        panic!("it was granted");
    };
    grant
}

#[tokio::test]
async fn a_broken_lock_is_told_before_the_refresh_counts() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let grant = broken(&session).await;
    let line = session.connection().unwrap();
    SessionKey::renew(&session, &line).await.unwrap();
    assert!(matches!(grant.lost.loss(), Some(Loss::Removed(_))));
}

#[tokio::test]
async fn a_broken_lock_is_told_although_no_replica_confirms_the_refresh() {
    let (_server, replica, _client, session) = confirmed().await;
    let grant = broken(&session).await;
    let line = session.connection().unwrap();
    replica.stall().unwrap();
    SessionKey::renew(&session, &line).await.unwrap_err();
    assert!(matches!(grant.lost.loss(), Some(Loss::Removed(_))));
}

#[tokio::test]
async fn a_refresh_does_not_count_if_its_connection_ends_while_replicas_confirm_it() {
    let (_server, replica, _client, session) = confirmed().await;
    let grant = broken(&session).await;
    let line = session.connection().unwrap();
    replica.stall().unwrap();
    let ending = async {
        // What is sent after this is the wait for replicas.
        grant.lost.lost().await;
        session.service().gave_up(&line);
        replica.resume().unwrap();
    };
    let (renewed, ()) = tokio::join!(SessionKey::renew(&session, &line), ending);
    renewed.unwrap_err();
}

#[tokio::test]
async fn a_release_of_what_the_server_does_not_have_says_so() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let (owner, _) = waits(&session);
    session
        .places()
        .granted(owner, FencingToken::new(7), |_| true);
    let released = client.release(owner).await.unwrap();
    assert_eq!(released, Released::NotHeld);
}

/// The client library takes the message for the answer to a command in flight. So what fails then can be tried again.
#[tokio::test]
async fn a_subscription_that_ends_while_something_begins_makes_no_wrong_answer() {
    let options = RedisClusterOptions::new().replicas(0);
    let cluster = tokio::task::spawn_blocking(move || options.start().unwrap());
    let cluster = cluster.await.unwrap();
    let settings = RedisSettings::new(&cluster.url()).unwrap();
    // The servers have just started; and a new session asks since when they are primaries.
    let settings = settings.with_restart_wait(Duration::from_millis(1));
    let clients = Clients::new(&Arc::new(settings));
    let client = clients.of(&LockName::new("a").unwrap()).await.unwrap();
    let session = client.session().await.unwrap();
    let route = &session.service().server.route;
    let slot = route.tag().unwrap().slot();
    let node = cluster.node(cluster.owner(slot).unwrap());
    let mut admin = TcpStream::connect(node.addr()).unwrap();
    // The server has accepted the connection.
    admin.write_all(b"PING\r\n").unwrap();
    admin.read_exact(&mut [0; 7]).unwrap();
    let taken_and_given_back =
        format!("MULTI\r\nCLUSTER DELSLOTS {slot}\r\nCLUSTER ADDSLOTS {slot}\r\nEXEC\r\n");

    let line = SessionKey::connect(&session).await.unwrap();
    node.stall().unwrap();
    // The server reads in the order in which something came.
    admin.write_all(taken_and_given_back.as_bytes()).unwrap();
    let mut beginning = pin!(SessionKey::begin(&session, &line, None));
    let is_pending = poll_fn(|context| Poll::Ready(beginning.as_mut().poll(context).is_pending()));
    assert!(is_pending.await);
    node.resume().unwrap();
    let error = beginning.await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
}
