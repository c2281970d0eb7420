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
    let marked = mark(&mut client, "1", "x").await;
    let lasts: u64 = marked.strip_suffix("|7").unwrap().parse().unwrap();
    assert!((10_000..=20_000).contains(&lasts), "{lasts} ms");
    mark(&mut client, "1", "y").await;
    let marks: Vec<(String, String)> = ask(&mut client, &["HGETALL", "p/session/a/broken"]).await;
    let [(place, mark_of_it)] = &marks[..] else {
        panic!("{marks:?}");
    };
    let (ends, by) = mark_of_it.split_once('|').unwrap();
    assert_eq!((&**place, by), ("1.7", "x"));
    let time: Vec<u64> = ask(&mut client, &["TIME"]).await;
    let left = ends.parse::<u64>().unwrap() - time[0] * 1000;
    assert!((10_000..=21_000).contains(&left), "{left} ms");
    let left: i64 = ask(&mut client, &["PTTL", "p/session/a/broken"]).await;
    assert!(left > 0, "the mark would stay for ever");
    // A session that has ended relies on nothing.
    let _: () = ask(&mut client, &["DEL", "p/session/a"]).await;
    assert_eq!(mark(&mut client, "1", "x").await, "0|7");
}

async fn evict(connection: &mut MultiplexedConnection, place: &str) -> String {
    let answer = EVICT.run(connection, &[STATE], &[place]).await;
    redis::from_redis_value(answer.unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_held_at_a_place_is_freed() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    attempt_of(&mut client, "a", "1.7").await;
    attempt_of(&mut client, "a", "2.8").await;
    let ended = ["HSET", "p/session/a/broken", "1.7", "1|x", "2.8", "1|x"];
    let _: () = ask(&mut client, &ended).await;
    // The second place waits until the first one is freed.
    let steps = [
        ("2.8", "0"),
        ("1.8", "0"),
        ("1.7", "1"),
        ("1.7", "0"),
        ("2.8", "1"),
    ];
    for (place, freed) in steps {
        assert_eq!(evict(&mut client, place).await, freed, "{place}");
    }
}

#[tokio::test]
async fn a_hold_is_not_ended_while_its_client_may_rely_on_it() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open_as(&mut client, "a", KEPT).await;
    attempt_with(&mut client, "a", "1.7", ["3", "3"], KEPT).await;
    let left = async |client: &mut MultiplexedConnection| {
        let answer = evict(client, "1.7").await;
        let left = answer.strip_prefix("wait|").expect(&answer);
        left.parse::<u64>().unwrap()
    };
    // There is no mark.
    let _: () = ask(&mut client, &["PEXPIRE", "p/session/a", "20000"]).await;
    assert!((10_000..=20_000).contains(&left(&mut client).await));
    mark(&mut client, "1", "x").await;
    // Refreshes after the mark have found it.
    let _: () = ask(&mut client, &["PEXPIRE", "p/session/a", "90000"]).await;
    assert!((10_000..=20_001).contains(&left(&mut client).await));
    // The session has ended.
    let _: () = ask(&mut client, &["DEL", "p/session/a"]).await;
    assert_eq!(evict(&mut client, "1.7").await, "1");
}
