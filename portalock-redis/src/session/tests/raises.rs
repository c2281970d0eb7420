//! When the stamp of a session is raised.

use std::pin::pin;

use futures_util::{
    future::{Either, join_all, select},
    poll,
};
use portalock_testkit::servers::RedisServer;
use tokio::task::yield_now;

use super::{
    messages::{client, client_of, waits},
    *,
};

async fn admin(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

fn told(answer: Value) -> String {
    redis::from_redis_value(answer).unwrap()
}

/// Otherwise attempts of a busy client are stale at every try after a reset.
#[tokio::test]
async fn withdrawals_at_once_raise_the_stamp_once_but_not_by_a_raise_that_has_begun_before() {
    const PAUSE: &str = "CLIENT PAUSE 600000 WRITE";
    let server = RedisServer::start().unwrap();
    let patience = Duration::from_secs(300);
    let client = client_of(&server, |settings| {
        settings.with_response_timeout(patience).unwrap()
    });
    let session = client.session().await.unwrap();
    let key = session.service();
    let mut admin = admin(&server).await;
    ask(&mut admin, PAUSE).await;
    let (first, _) = waits(&session);
    let mut first = pin!(client.release(first));
    let begun = async {
        let is_held_up = "blocked_clients:1\r\n";
        while !told(ask(&mut admin, "INFO clients").await).contains(is_held_up) {
            yield_now().await;
        }
    };
    assert!(matches!(
        select(&mut first, pin!(begun)).await,
        Either::Right(_)
    ));
    let owners = [(); 100].map(|()| waits(&session).0);
    let mut others = pin!(join_all(owners.map(|owner| client.release(owner))));
    assert!(poll!(&mut others).is_pending());
    assert_eq!(key.raises.asked(), 101);
    ask(&mut admin, "CLIENT UNPAUSE").await;
    let (first, others) = tokio::join!(first, others);
    first.unwrap();
    assert!(others.iter().all(Result::is_ok));
    let stamp = told(ask(&mut admin, &format!("GET {}", key.key)).await);
    assert_eq!((&*stamp, &*key.stamp()), ("kept|3", "kept|3"));
}

#[tokio::test]
async fn a_raise_that_fails_fails_those_who_asked_before_it_and_the_next_is_made() {
    let server = RedisServer::start().unwrap();
    let client = client(&server);
    let session = client.session().await.unwrap();
    let key = session.service();
    let mut admin = admin(&server).await;
    ask(&mut admin, "ACL SETUSER default -evalsha -eval").await;
    key.raises.raise(&session).await.unwrap_err();
    assert_eq!(&*key.stamp(), "kept|1");
    ask(&mut admin, "ACL SETUSER default +evalsha +eval").await;
    key.raises.raise(&session).await.unwrap();
    assert_eq!(&*key.stamp(), "kept|2");
}
