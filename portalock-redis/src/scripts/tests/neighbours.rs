//! Tokens of waiters of one session that are right behind each other: who gets one, and what becomes of it.

use super::{
    KEPT, QUEUE, SPAN, STATE, ask, attempt_with, connection, look, open_as, release_to,
    waiting_token,
};
use futures_util::StreamExt as _;
use portalock_testkit::servers::RedisServer;
use redis::aio::MultiplexedConnection;

const ALL: [&str; 2] = ["3", "3"];
const SOME: [&str; 2] = ["1", "3"];

async fn sessions(server: &RedisServer, names: &[&str]) -> MultiplexedConnection {
    let mut client = connection(server).await;
    for name in names {
        open_as(&mut client, name, KEPT).await;
    }
    client
}

async fn attempt(client: &mut MultiplexedConnection, session: &str, owner: &str) -> Vec<String> {
    attempt_with(client, session, owner, ALL, KEPT).await
}

/// The waiters and their tokens, in order.
async fn line(client: &mut MultiplexedConnection) -> Vec<(String, Option<u64>)> {
    let owners: Vec<String> = ask(client, &["ZRANGE", QUEUE, "0", "-1"]).await;
    let mut line = Vec::new();
    for owner in owners {
        let token = waiting_token(client, &owner).await.parse().ok();
        line.push((owner, token));
    }
    line
}

async fn last_token(client: &mut MultiplexedConnection) -> u64 {
    let last: String = ask(client, &["HGET", STATE, "token"]).await;
    last.split('|').next().unwrap().parse().unwrap()
}

async fn held(client: &mut MultiplexedConnection) -> (String, u64) {
    let state: Vec<(String, String)> = ask(client, &["HGETALL", STATE]).await;
    let mut claims = state
        .into_iter()
        .filter(|(field, _)| !["token", "waits", "watched"].contains(&&**field));
    let (owner, claim) = claims.next().unwrap();
    assert!(claims.next().is_none());
    (owner, claim.split('|').nth(3).unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_waiter_right_behind_its_own_session_gets_a_token_and_no_other_does() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    let first: u64 = attempt(&mut client, "a", "1").await[1].parse().unwrap();
    let mut last = first;
    for (owner, ahead) in [("2", "1"), ("3", "2")] {
        let answer = attempt(&mut client, "a", owner).await;
        assert_eq!((&*answer[0], &*answer[3]), ("contended", ahead));
        let token: u64 = answer[4].parse().unwrap();
        assert!(token > last);
        last = token;
        assert_eq!(last_token(&mut client).await, last);
        // It asks again and learns the same.
        assert_eq!(attempt(&mut client, "a", owner).await[3..], answer[3..]);
    }
    // Another session; one behind it; a shared request; and an exclusive one behind that.
    for (session, owner, shape) in [
        ("b", "4", ALL),
        ("a", "5", ALL),
        ("a", "6", SOME),
        ("a", "7", ALL),
    ] {
        let answer = attempt_with(&mut client, session, owner, shape, KEPT).await;
        assert_eq!((&*answer[0], answer.len()), ("contended", 3), "{owner}");
        assert_eq!(waiting_token(&mut client, owner).await, "");
    }
    assert_eq!(last_token(&mut client).await, last);
}

#[tokio::test]
async fn nobody_gets_a_token_behind_a_shared_hold() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    attempt_with(&mut client, "a", "1", SOME, KEPT).await;
    assert_eq!(attempt(&mut client, "a", "2").await.len(), 3);
}

#[tokio::test]
async fn a_grant_gives_tokens_to_the_neighbours_behind_it() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    attempt(&mut client, "b", "1").await;
    for owner in ["2", "3", "4"] {
        attempt(&mut client, "a", owner).await;
    }
    attempt(&mut client, "b", "5").await;
    attempt(&mut client, "a", "6").await;
    assert!(
        line(&mut client)
            .await
            .iter()
            .all(|(_, token)| token.is_none())
    );
    release_to(&mut client, "1", None).await;
    let (owner, token) = held(&mut client).await;
    assert_eq!(owner, "2");
    let tokens: Vec<_> = line(&mut client)
        .await
        .into_iter()
        .map(|(_, token)| token)
        .collect();
    assert_eq!(tokens[2..], [None, None]);
    assert!(Some(token) < tokens[0] && tokens[0] < tokens[1]);
    assert_eq!(Some(last_token(&mut client).await), tokens[1]);
    // The next grants use them.
    for (owner, token) in [("3", tokens[0]), ("4", tokens[1])] {
        let before = held(&mut client).await.0;
        release_to(&mut client, &before, Some(owner)).await;
        assert_eq!(held(&mut client).await, (owner.to_owned(), token.unwrap()));
    }
    release_to(&mut client, "4", None).await;
    let (owner, token) = held(&mut client).await;
    assert!(owner == "5" && Some(token) > tokens[1]);
}

#[tokio::test]
async fn a_token_is_never_given_again_whoever_gives_up_or_ends() {
    /// The last microsecond of a span of tokens, in the year 2223.
    const LATE: u64 = 8_000_000_000_000_000 - 1;
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    attempt(&mut client, "a", "1").await;
    // From here on the clock is behind, as if it was set back.
    let late = LATE.to_string();
    let _: () = ask(&mut client, &["HSET", STATE, "token", &late]).await;
    let _: () = ask(&mut client, &["PEXPIRE", STATE, "60000"]).await;
    for owner in ["2", "3", "4"] {
        attempt(&mut client, "a", owner).await;
    }
    assert_eq!(last_token(&mut client).await, LATE + 3);
    let left: u64 = ask(&mut client, &["PTTL", STATE]).await;
    assert!(left > 3_600_000, "the state outlives its tokens: {left} ms");
    attempt(&mut client, "b", "5").await;
    // One gives up. Its token is not given to anyone, and those behind keep theirs.
    assert_eq!(release_to(&mut client, "2", None).await, "waited");
    release_to(&mut client, "1", None).await;
    assert_eq!(held(&mut client).await, ("3".to_owned(), LATE + 2));
    // The session ends, and all tokens with it.
    let _: () = ask(&mut client, &["DEL", "p/session/a"]).await;
    let answer = attempt(&mut client, "b", "5").await;
    assert_eq!(answer, ["granted", &(LATE + 4).to_string()]);
}

#[tokio::test]
async fn a_release_that_overtakes_the_one_ahead_takes_nobody_elses_hold() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    attempt(&mut client, "a", "1").await;
    for (session, owner) in [("a", "2"), ("a", "3"), ("b", "4")] {
        attempt(&mut client, session, owner).await;
    }
    let overtakes = release_to(&mut client, "2", Some("3")).await;
    assert_eq!(overtakes, "waited");
    assert_eq!(held(&mut client).await.0, "1");
    assert_eq!(release_to(&mut client, "3", None).await, "waited");
    assert_eq!(held(&mut client).await.0, "1");
    assert_eq!(release_to(&mut client, "1", Some("2")).await, "1");
    assert_eq!(held(&mut client).await.0, "4");
    assert_eq!(release_to(&mut client, "2", None).await, "0");
}

#[tokio::test]
async fn a_look_says_which_token_a_waiter_has() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    let token = attempt(&mut client, "a", "1").await.remove(1);
    let next = attempt(&mut client, "a", "2").await.remove(4);
    let expected = [token, format!("waits|{next}")];
    assert_eq!(look(&mut client, &["1", "2"]).await, expected);
    release_to(&mut client, "1", Some("2")).await;
    assert_eq!(look(&mut client, &["1", "2"]).await, ["gone", &next]);
}

#[tokio::test]
async fn a_grant_outside_of_a_release_changes_no_token() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    for owner in ["1", "2", "3", "4"] {
        attempt(&mut client, "a", owner).await;
    }
    let tokens = line(&mut client).await;
    // The claim was deleted from outside.
    let _: () = ask(&mut client, &["HDEL", STATE, "1"]).await;
    assert_eq!(attempt(&mut client, "a", "3").await[3], "2");
    assert_eq!(
        held(&mut client).await,
        ("2".to_owned(), tokens[0].1.unwrap())
    );
    assert_eq!(line(&mut client).await, tokens[1..]);
    assert_eq!(Some(last_token(&mut client).await), tokens[2].1);
}

#[tokio::test]
async fn the_state_outlives_the_tokens_that_come_with_a_grant() {
    /// The first microsecond of a span of tokens, in the year 2223.
    const LATE: u64 = 8_000_000_000_000_000;
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    attempt(&mut client, "b", "1").await;
    for owner in ["2", "3"] {
        attempt(&mut client, "a", owner).await;
    }
    // The next token is the last one of a span, far ahead of the clock.
    let last = (LATE - 2).to_string();
    let _: () = ask(&mut client, &["HSET", STATE, "token", &last]).await;
    let _: () = ask(&mut client, &["PEXPIRE", STATE, "60000"]).await;
    release_to(&mut client, "1", None).await;
    assert_eq!(last_token(&mut client).await, LATE);
    let left: u64 = ask(&mut client, &["PTTL", STATE]).await;
    assert!(left > 3_600_000, "{left} ms");
}

#[tokio::test]
async fn the_state_outlives_a_token_that_a_waiter_gets_at_once() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    let first = attempt(&mut client, "a", "1").await.remove(1);
    // The last token is from the span before.
    let earlier = first.parse::<u64>().unwrap() - SPAN;
    let _: () = ask(&mut client, &["HSET", STATE, "token", &earlier.to_string()]).await;
    let _: () = ask(&mut client, &["PEXPIRE", STATE, "60000"]).await;
    let next = attempt(&mut client, "a", "2").await.remove(4);
    assert!(next > first, "{next} after {first}");
    let left: u64 = ask(&mut client, &["PTTL", STATE]).await;
    assert!(left > 3_600_000, "{left} ms");
}

#[tokio::test]
async fn a_message_is_left_out_only_if_the_client_knows_all_of_it() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    let (mut sink, mut messages) = redis::Client::open(server.url())
        .unwrap()
        .get_async_pubsub()
        .await
        .unwrap()
        .split();
    sink.subscribe("p/session/a").await.unwrap();
    for (session, owner) in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4"), ("a", "5")] {
        attempt(&mut client, session, owner).await;
    }
    // The one in between gives up.
    release_to(&mut client, "4", None).await;
    let given = waiting_token(&mut client, "2").await;
    let other = waiting_token(&mut client, "3").await;
    release_to(&mut client, "1", Some("2")).await;
    release_to(&mut client, "2", Some("3")).await;
    let new = waiting_token(&mut client, "5").await;
    assert!(given < other && other < new);
    release_to(&mut client, "3", Some("2")).await;
    for expected in [format!("grant|3|{other}|5|{new}"), format!("grant|5|{new}")] {
        let message = messages.next().await.unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), expected);
    }
}

#[tokio::test]
async fn a_look_gives_no_token_to_a_waiter_whose_session_does_not_hold() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    for key in [QUEUE, STATE] {
        attempt(&mut client, "a", "1").await;
        attempt(&mut client, "a", "2").await;
        let _: () = ask(&mut client, &["DEL", key]).await;
        release_to(&mut client, "1", None).await;
        assert_eq!(look(&mut client, &["2"]).await, ["waits|"]);
        if key == QUEUE {
            let granted = attempt(&mut client, "b", "3").await;
            assert_eq!(granted[0], "granted");
            assert_eq!(look(&mut client, &["2"]).await, ["waits|"]);
            release_to(&mut client, "3", None).await;
        }
        release_to(&mut client, "2", None).await;
    }
}

/// The token of a place that is gone is smaller than that of the waiter that took this place.
#[tokio::test]
async fn who_takes_a_place_again_behind_another_session_loses_its_token() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    attempt(&mut client, "a", "1").await;
    attempt(&mut client, "a", "2").await;
    let _: () = ask(&mut client, &["DEL", QUEUE]).await;
    attempt(&mut client, "b", "3").await;
    assert_eq!(attempt(&mut client, "a", "2").await[1], "0");
    assert_eq!(
        line(&mut client).await,
        [("3".to_owned(), None), ("2".to_owned(), None)]
    );
}
