//! The rare cases of attempts and releases, in `acquire.lua` and `release.lua`: each test sets up one case.

use super::{
    super::INSPECT, KEPT, QUEUE, STATE, WAITERS, ask, attempt_once, attempt_with, connection,
    holding, open_as, release, release_to,
};
use futures_util::StreamExt as _;
use portalock_testkit::servers::RedisServer;
use redis::aio::MultiplexedConnection;

const ALL: [&str; 2] = ["1", "1"];
/// More than the capacity: it is never granted.
const TOO_MUCH: [&str; 2] = ["3", "2"];

/// A client with these sessions, which are alive as long as their keys exist.
async fn sessions(server: &RedisServer, names: &[&str]) -> MultiplexedConnection {
    let mut client = connection(server).await;
    for name in names {
        open_as(&mut client, name, KEPT).await;
    }
    client
}

async fn end(client: &mut MultiplexedConnection, session: &str) {
    let _: () = ask(client, &["DEL", &format!("p/session/{session}")]).await;
}

async fn attempt(client: &mut MultiplexedConnection, session: &str, owner: &str) -> Vec<String> {
    attempt_with(client, session, owner, ALL, KEPT).await
}

async fn order(client: &mut MultiplexedConnection) -> Vec<String> {
    ask(client, &["ZRANGE", QUEUE, "0", "-1"]).await
}

async fn claim(client: &mut MultiplexedConnection, key: &str, owner: &str) -> String {
    ask(client, &["HGET", key, owner]).await
}

#[tokio::test]
async fn one_who_asks_again_is_granted_what_a_dead_holder_left() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    attempt(&mut client, "a", "1").await;
    assert_eq!(attempt(&mut client, "b", "2").await[0], "contended");
    end(&mut client, "a").await;
    let answer = attempt(&mut client, "b", "2").await;
    assert_eq!(answer[0], "granted");
    let held = claim(&mut client, STATE, "2").await;
    assert_eq!(held.split('|').nth(3), Some(&*answer[1]), "{held}");
    assert_eq!(holding(&mut client).await, ["2"]);
}

#[tokio::test]
async fn one_who_waits_is_shown_a_holder_and_how_many_are_behind() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    attempt(&mut client, "a", "1").await;
    let held = claim(&mut client, STATE, "1").await;
    for owner in ["2", "3", "4"] {
        let answer = attempt(&mut client, "b", owner).await;
        assert_eq!(answer, ["contended", "0", &held]);
    }
    for (owner, behind) in [("2", "2"), ("3", "1"), ("4", "0")] {
        let answer = attempt(&mut client, "b", owner).await;
        assert_eq!(answer, ["contended", behind, &held]);
    }
}

#[tokio::test]
async fn one_who_asks_again_takes_out_the_dead_at_the_end_of_the_queue() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b", "c"]).await;
    for (session, owner) in [
        ("a", "1"),
        ("a", "2"),
        ("b", "3"),
        ("c", "4"),
        ("b", "5"),
        ("b", "6"),
    ] {
        attempt(&mut client, session, owner).await;
    }
    end(&mut client, "b").await;
    assert_eq!(
        attempt(&mut client, "a", "2").await[..2],
        ["contended", "2"]
    );
    // A living waiter checks the owners ahead of it.
    assert_eq!(order(&mut client).await, ["2", "3", "4"]);
    end(&mut client, "c").await;
    assert_eq!(
        attempt(&mut client, "a", "2").await[..2],
        ["contended", "0"]
    );
    assert_eq!(order(&mut client).await, ["2"]);
    let waiting: Vec<String> = ask(&mut client, &["HKEYS", WAITERS]).await;
    assert_eq!(waiting, ["2"]);
}

#[tokio::test]
async fn one_who_asks_again_keeps_the_queue() {
    const HOUR: i64 = 3_600_000;
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    for owner in ["1", "2"] {
        attempt(&mut client, "a", owner).await;
    }
    // Both keys expire within an hour; or somebody has deleted one, and the waiter's claim makes it again, without a time to live.
    for deleted in [None, Some(WAITERS), Some(QUEUE)] {
        if let Some(key) = deleted {
            let _: () = ask(&mut client, &["DEL", key]).await;
            attempt(&mut client, "a", "2").await;
        } else {
            for key in [QUEUE, WAITERS] {
                let _: () = ask(&mut client, &["PEXPIRE", key, "3000000"]).await;
            }
        }
        attempt(&mut client, "a", "2").await;
        for key in [QUEUE, WAITERS] {
            let left: i64 = ask(&mut client, &["PTTL", key]).await;
            assert!(left > HOUR, "{deleted:?} {key}: {left} ms");
        }
    }
}

/// The next new waiters of the same hour don't look at the time to live: see `acquire_behind.lua`.
#[tokio::test]
async fn the_first_new_waiter_of_an_hour_leaves_time_for_those_after_it() {
    const HALF_AN_HOUR: i64 = 1_800_000;
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    for owner in ["1", "2"] {
        attempt(&mut client, "a", owner).await;
    }
    for key in [QUEUE, WAITERS] {
        let _: () = ask(&mut client, &["PEXPIRE", key, "3660000"]).await;
    }
    let _: () = ask(&mut client, &["ZINCRBY", QUEUE, "-3600000000", "2"]).await;
    // Its token is not simple, so it lines up the long way.
    let _: () = ask(&mut client, &["HSET", STATE, "token", "8000000000000000"]).await;
    assert_eq!(attempt(&mut client, "a", "3").await.len(), 5);
    for key in [QUEUE, WAITERS] {
        let left: i64 = ask(&mut client, &["PTTL", key]).await;
        assert!(left > 3 * HALF_AN_HOUR, "{key}: {left} ms");
    }
}

#[tokio::test]
async fn who_is_the_last_after_a_check_is_told() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b", "c"]).await;
    let pubsub = redis::Client::open(server.url()).unwrap();
    let (mut sink, mut messages) = pubsub.get_async_pubsub().await.unwrap().split();
    sink.subscribe("p/session/b").await.unwrap();
    for (session, owner) in [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("c", "5")] {
        attempt(&mut client, session, owner).await;
    }
    assert_eq!(attempt(&mut client, "b", "3").await[1], "2");
    end(&mut client, "c").await;
    for checked in ["once", "twice"] {
        assert_eq!(attempt(&mut client, "a", "2").await[1], "1");
        let _: () = ask(&mut client, &["PUBLISH", "p/session/b", checked]).await;
    }
    // By the check that took out the dead, and by no other. Each asks whether it still waits.
    let asked = &*format!("asked|3|{STATE}");
    for expected in ["last|3", asked, "once", asked, "twice"] {
        let message = messages.next().await.unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), expected);
    }
}

#[tokio::test]
async fn what_never_fits_waits_and_nobody_overtakes_it() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    let answer = attempt_with(&mut client, "a", "1", TOO_MUCH, KEPT).await;
    assert_eq!(
        answer,
        ["contended", "0", "a|3|2||0|{}"],
        "nobody else is in its way"
    );
    let left: i64 = ask(&mut client, &["PTTL", STATE]).await;
    assert!(left > 0, "the state has only the flag: {left} ms");
    // As if the clock was set back afterwards.
    let _: () = ask(&mut client, &["ZINCRBY", QUEUE, "3600000000", "1"]).await;
    for owner in ["2", "3"] {
        let answer = attempt(&mut client, "b", owner).await;
        assert_eq!(answer[..2], ["contended", "0"]);
        assert!(answer[2].starts_with("a|3|2|"), "{answer:?}");
    }
    assert_eq!(order(&mut client).await, ["1", "2", "3"]);
    end(&mut client, "a").await;
    assert_eq!(attempt(&mut client, "b", "2").await[0], "granted");
}

#[tokio::test]
async fn a_token_grows_whatever_the_clock_says_and_its_state_outlives_it() {
    const HOUR: u64 = 3_600_000;
    /// A time in the year 2223.
    const LATE: u64 = 8_000_000_000_000_000;
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    for shape in [ALL, ["1", "3"]] {
        attempt_with(&mut client, "a", "1", shape, KEPT).await;
        let left: u64 = ask(&mut client, &["PTTL", STATE]).await;
        assert!((HOUR..=2 * HOUR).contains(&left), "{left} ms");
        release(&mut client, "1").await;
        // Once an hour is enough for the time to live.
        let _: () = ask(&mut client, &["PEXPIRE", STATE, "60000"]).await;
        attempt_with(&mut client, "a", "1", shape, KEPT).await;
        let left: u64 = ask(&mut client, &["PTTL", STATE]).await;
        assert!(left <= 60_000, "{left} ms");
        release(&mut client, "1").await;

        let _: () = ask(&mut client, &["HSET", STATE, "token", &LATE.to_string()]).await;
        let answer = attempt_with(&mut client, "a", "1", shape, KEPT).await;
        assert_eq!(answer, ["granted", &(LATE + 1).to_string()]);
        release(&mut client, "1").await;
        let _: () = ask(&mut client, &["DEL", STATE]).await;
    }
}

#[tokio::test]
async fn holders_are_told_in_the_order_of_their_grants() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    for weight in ["3", "1", "4", "6", "5", "9", "2", "8", "7"] {
        attempt_with(&mut client, "a", weight, [weight, "100"], KEPT).await;
    }
    let answer = INSPECT.run(&mut client, &[STATE], &[]).await.unwrap();
    let answer: Vec<String> = redis::from_redis_value(answer).unwrap();
    let weights: Vec<&str> = answer[2..].chunks(5).map(|claim| &*claim[1]).collect();
    assert_eq!(weights, ["3", "1", "4", "6", "5", "9", "2", "8", "7"]);
}

/// Waiters get tokens in advance, which are nobody's business yet.
#[tokio::test]
async fn living_waiters_are_told_in_their_order_and_without_their_tokens() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b", "c"]).await;
    let granted = attempt(&mut client, "a", "1").await.remove(1);
    for (session, owner) in [("a", "2"), ("c", "3"), ("b", "4")] {
        attempt(&mut client, session, owner).await;
    }
    end(&mut client, "c").await;
    let answer = INSPECT.run(&mut client, &[STATE], &[]).await.unwrap();
    let answer: Vec<String> = redis::from_redis_value(answer).unwrap();
    assert_eq!(answer[..2], [&*granted, "1"]);
    let claims: Vec<_> = answer[2..].chunks(5).map(|claim| &claim[..3]).collect();
    assert_eq!(
        claims,
        [["1", "1", &granted], ["2", "1", ""], ["4", "1", ""]]
    );
}

#[tokio::test]
async fn who_waits_makes_the_client_of_the_holder_check_it() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    let pubsub = redis::Client::open(server.url()).unwrap();
    let (mut sink, mut messages) = pubsub.get_async_pubsub().await.unwrap().split();
    sink.subscribe("p/session/a").await.unwrap();
    attempt(&mut client, "a", "1").await;
    for _ in 0..2 {
        attempt(&mut client, "b", "2").await;
    }
    let _: () = ask(&mut client, &["PUBLISH", "p/session/a", "no more"]).await;
    for expected in [&*format!("asked|1|{STATE}"), "no more"] {
        let message = messages.next().await.unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), expected);
    }
}

#[tokio::test]
async fn some_checks_of_the_last_waiter_ask_about_many_places_and_others_about_a_few() {
    const ONE: [&str; 2] = ["1", "20"];
    const WHOLE: [&str; 2] = ["20", "20"];
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b", "c"]).await;
    let pubsub = redis::Client::open(server.url()).unwrap();
    let (mut sink, mut messages) = pubsub.get_async_pubsub().await.unwrap().split();
    for session in ["a", "b", "c"] {
        sink.subscribe(format!("p/session/{session}"))
            .await
            .unwrap();
    }
    let holders: Vec<String> = (0..20).map(|number| format!("a{number}")).collect();
    let waiters: Vec<String> = (0..20).map(|number| format!("b{number}")).collect();
    for holder in &holders {
        attempt_with(&mut client, "a", holder, ONE, KEPT).await;
    }
    for waiter in &waiters {
        attempt_with(&mut client, "b", waiter, WHOLE, KEPT).await;
    }
    attempt_with(&mut client, "c", "last", ONE, KEPT).await;
    let last = ("c", "last", ONE, true, None);
    // One in five by the clock: the chance that none of them is, or all are, is less than one in a million.
    let mut attempts = vec![last; 100];
    attempts.push(("b", "b1", WHOLE, true, Some("last")));
    attempts.push(("c", "once", ONE, false, None));
    let mut many = 0;
    for (session, owner, shape, queues, last) in attempts {
        // As if no waiter had checked the holders recently: then one that is not the last does.
        let _: () = ask(&mut client, &["HSET", STATE, "waits", "1"]).await;
        attempt_once(&mut client, session, owner, shape, KEPT, queues).await;
        let _: () = ask(&mut client, &["PUBLISH", "p/session/a", "no more"]).await;
        let mut asked = Vec::new();
        loop {
            let text: String = messages.next().await.unwrap().get_payload().unwrap();
            let Some(place) = text.strip_prefix("asked|") else {
                assert_eq!(text, "no more");
                break;
            };
            let (place, state) = place.split_once('|').unwrap();
            assert_eq!(state, STATE);
            asked.push(place.to_owned());
        }
        let (of_the_last, mut asked): (Vec<String>, Vec<_>) =
            asked.into_iter().partition(|place| place == "last");
        assert_eq!(of_the_last, Vec::from_iter(last), "{owner}");
        let is_many = asked.len() > 2 && owner == "last";
        many += usize::from(is_many);
        let at_once = if is_many { 16 } else { 1 };
        let of_waiters = asked.split_off(at_once);
        assert_eq!(of_waiters, waiters[..at_once], "{owner}");
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), at_once, "{owner}: {asked:?}");
        assert!(asked.iter().all(|place| holders.contains(place)));
    }
    assert!((1..=60).contains(&many), "{many} of 100");
}

#[tokio::test]
async fn a_waiter_does_not_ask_for_itself() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    let pubsub = redis::Client::open(server.url()).unwrap();
    let (mut sink, mut messages) = pubsub.get_async_pubsub().await.unwrap().split();
    sink.subscribe("p/session/b").await.unwrap();
    attempt(&mut client, "a", "1").await;
    for _ in 0..2 {
        attempt(&mut client, "b", "2").await;
    }
    let _: () = ask(&mut client, &["PUBLISH", "p/session/b", "no more"]).await;
    let message = messages.next().await.unwrap();
    assert_eq!(message.get_payload::<String>().unwrap(), "no more");
}

#[tokio::test]
async fn a_claim_that_portalock_did_not_write_is_an_error_with_a_code() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a"]).await;
    let _: () = ask(&mut client, &["HSET", STATE, "1", "spoiled"]).await;
    let error = INSPECT.run(&mut client, &[STATE], &[]).await.unwrap_err();
    assert_eq!(error.code(), Some("CORRUPT"), "{error}");
}

#[tokio::test]
async fn who_is_the_last_after_a_release_is_told() {
    let server = RedisServer::start().unwrap();
    let mut client = sessions(&server, &["a", "b"]).await;
    let pubsub = redis::Client::open(server.url()).unwrap();
    let (mut sink, mut messages) = pubsub.get_async_pubsub().await.unwrap().split();
    sink.subscribe("p/session/b").await.unwrap();
    for (session, owner) in [("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"), ("a", "5")] {
        attempt(&mut client, session, owner).await;
    }
    // One in between gives up, and then the last one.
    for owner in ["4", "5"] {
        assert_eq!(release_to(&mut client, owner, None).await, "0");
        let _: () = ask(&mut client, &["PUBLISH", "p/session/b", owner]).await;
    }
    for expected in ["4", "last|3", "5"] {
        let message = messages.next().await.unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), expected);
    }
}
