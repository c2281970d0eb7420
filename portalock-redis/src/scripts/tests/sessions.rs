//! What an attempt may do with its session: dead or alive, kept without a subscription, and with an old stamp.

use super::{
    CONNECTED, KEPT, QUEUE, STATE, WAITERS, ask, attempt, attempt_of, attempt_with, connection,
    holding, open, open_as, raise, release,
};
use portalock_testkit::servers::RedisServer;

#[tokio::test]
async fn a_dead_session_is_granted_nothing_and_leaves_nothing() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    // Neither a key nor a subscription; only a subscription; only a key.
    assert_eq!(attempt(&mut client, "a").await, ["ended"]);
    client.subscribe("p/session/b").await.unwrap();
    assert_eq!(attempt(&mut client, "b").await, ["ended"]);
    open_as(&mut client, "e", CONNECTED).await;
    assert_eq!(attempt(&mut client, "e").await, ["ended"]);
    for key in [STATE, QUEUE, WAITERS] {
        assert!(!ask::<bool>(&mut client, &["EXISTS", key]).await, "{key}");
    }
    // It does not get a place in the queue either.
    open(&mut client, "c").await;
    assert_eq!(attempt(&mut client, "c").await[0], "granted");
    assert_eq!(attempt_of(&mut client, "a", "2").await, ["ended"]);
    open(&mut client, "d").await;
    assert_eq!(attempt_of(&mut client, "d", "3").await[0], "contended");
    assert_eq!(attempt_of(&mut client, "a", "2").await, ["ended"]);
    let waiting: Vec<String> = ask(&mut client, &["HKEYS", WAITERS]).await;
    assert_eq!(waiting, ["3"]);
}

#[tokio::test]
async fn a_live_session_is_granted_and_finds_its_grant_again() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    let first = attempt(&mut client, "a").await;
    assert_eq!(first[0], "granted");
    assert_eq!(attempt(&mut client, "a").await, first);
}

#[tokio::test]
async fn a_kept_session_holds_and_is_granted_while_nobody_is_subscribed() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    for session in ["a", "b"] {
        open_as(&mut client, session, KEPT).await;
    }
    let shape = ["1", "1"];
    let first = attempt_with(&mut client, "a", "1", shape, KEPT).await;
    assert_eq!(first[0], "granted");
    let second = attempt_with(&mut client, "b", "2", shape, KEPT).await;
    assert_eq!(second[0], "contended");
    release(&mut client, "1").await;
    // No connection received the message: the next attempt finds the grant.
    let third = attempt_with(&mut client, "b", "2", shape, KEPT).await;
    assert_eq!(third[0], "granted");
    assert!(third[1] > first[1]);
    // The session is alive until its key is gone.
    let _: () = ask(&mut client, &["DEL", "p/session/b"]).await;
    assert_eq!(
        attempt_with(&mut client, "a", "3", shape, KEPT).await[0],
        "granted"
    );
}

#[tokio::test]
async fn an_attempt_with_a_stale_stamp_is_refused_by_each_way_and_told_the_present_one() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open_as(&mut client, "a", KEPT).await;
    for stamp in ["kept|2", "kept|3"] {
        assert_eq!(raise(&mut client, "a").await, stamp);
    }
    // With a last token, as most free locks have.
    attempt_with(&mut client, "a", "1", ["3", "3"], "kept|3").await;
    release(&mut client, "1").await;
    // A free lock, exclusive and shared; behind a holder; next to a holder with the same shape; and a case for
    // `acquire.lua`.
    for (holds, shape) in [
        (None, ["3", "3"]),
        (None, ["1", "3"]),
        (Some(["3", "3"]), ["3", "3"]),
        (Some(["1", "3"]), ["1", "3"]),
        (Some(["1", "3"]), ["1", "2"]),
    ] {
        if let Some(shape) = holds {
            attempt_with(&mut client, "a", "1", shape, "kept|3").await;
        }
        let before: Vec<String> = ask(&mut client, &["HVALS", STATE]).await;
        for stale in [KEPT, "kept|2", "kept|4", "connected|3"] {
            let answer = attempt_with(&mut client, "a", "2", shape, stale).await;
            assert_eq!(answer, ["stale", "kept|3"], "{shape:?} {stale}");
        }
        let after: Vec<String> = ask(&mut client, &["HVALS", STATE]).await;
        assert_eq!(before, after);
        assert!(!ask::<bool>(&mut client, &["EXISTS", QUEUE]).await);
        if holds.is_some() {
            release(&mut client, "1").await;
        }
    }
}

#[tokio::test]
async fn a_stamp_only_grows_and_brings_no_session_back() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    assert_eq!(raise(&mut client, "a").await, "");
    assert!(!ask::<bool>(&mut client, &["EXISTS", "p/session/a"]).await);
    open_as(&mut client, "a", "connected|9").await;
    let _: () = ask(&mut client, &["PEXPIRE", "p/session/a", "1000"]).await;
    // It works while the memory is full too: a withdrawn attempt must not take effect.
    let _: () = ask(&mut client, &["CONFIG", "SET", "maxmemory", "1"]).await;
    for stamp in ["connected|10", "connected|11"] {
        assert_eq!(raise(&mut client, "a").await, stamp);
    }
    let left: u64 = ask(&mut client, &["PTTL", "p/session/a"]).await;
    assert!(left > 50_000, "{left} ms");
}

/// As long as all others fit too, they are only counted.
#[tokio::test]
async fn the_first_grant_in_an_hour_removes_the_dead_among_those_who_share() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    let shape = ["1", "9"];
    for session in ["a", "b"] {
        open_as(&mut client, session, KEPT).await;
        attempt_with(&mut client, session, session, shape, KEPT).await;
    }
    let _: () = ask(&mut client, &["DEL", "p/session/a"]).await;
    let _: () = ask(&mut client, &["HSET", STATE, "token", "1|1|9"]).await;
    let answer = attempt_with(&mut client, "b", "c", shape, KEPT).await;
    assert_eq!(answer[0], "granted");
    assert_eq!(holding(&mut client).await, ["b", "c"]);
}
