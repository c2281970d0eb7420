//! Marks on locks that are broken, and holds that are ended.

use super::{
    super::{BREAK, EVICT},
    KEPT, STATE, ask, attempt_of, attempt_with, connection, open, open_as,
};
use portalock_testkit::servers::RedisServer;
use redis::aio::MultiplexedConnection;

async fn mark(connection: &mut MultiplexedConnection, owner: &str, by: &str) -> String {
    let answer = BREAK.run(connection, &[STATE], &[owner, by]).await.unwrap();
    redis::from_redis_value(answer).unwrap()
}

#[tokio::test]
async fn a_mark_lies_beside_the_session_that_holds_by_the_name_of_its_place() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open_as(&mut client, "a", KEPT).await;
    attempt_with(&mut client, "a", "1.7", ["3", "3"], KEPT).await;
    attempt_with(&mut client, "a", "2.8", ["3", "3"], KEPT).await;
    assert_eq!(mark(&mut client, "2", "x").await, "-", "it waits");
    assert_eq!(mark(&mut client, "9", "x").await, "-");
    let _: () = ask(&mut client, &["PEXPIRE", "p/session/a", "20000"]).await;
    let lasts: u64 = mark(&mut client, "1", "x").await.parse().unwrap();
    assert!((10_000..=20_000).contains(&lasts), "{lasts} ms");
    mark(&mut client, "1", "y").await;
    let marks: Vec<(String, String)> = ask(&mut client, &["HGETALL", "p/session/a/broken"]).await;
    assert_eq!(marks, [("1.7".to_owned(), "x".to_owned())]);
    // A session that has ended relies on nothing.
    let _: () = ask(&mut client, &["DEL", "p/session/a"]).await;
    assert_eq!(mark(&mut client, "1", "x").await, "0");
}

#[tokio::test]
async fn what_an_owner_holds_is_freed_by_whatever_place() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    attempt_of(&mut client, "a", "1.7").await;
    attempt_of(&mut client, "a", "2.8").await;
    for (owner, freed) in [("9", "0"), ("1", "1"), ("1", "0"), ("2", "1"), ("2", "0")] {
        let answer = EVICT.run(&mut client, &[STATE], &[owner]).await;
        let answer: String = redis::from_redis_value(answer.unwrap()).unwrap();
        assert_eq!(answer, freed, "{owner}");
    }
}
