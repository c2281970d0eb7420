//! The flags of a state, which show that somebody waits or observes; and keys that somebody deletes.

use super::{
    super::INSPECT, KEPT, QUEUE, SPAN, STATE, ask, attempt, attempt_for, attempt_of, attempt_with,
    connection, holding, open, open_as, release, release_to,
};
use futures_util::StreamExt as _;
use portalock_testkit::servers::RedisServer;

const CHANGES: &str = "p/lock@0/a";

#[tokio::test]
async fn who_waits_in_a_queue_that_somebody_deletes_takes_a_place_again() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for owner in ["1", "2", "3"] {
        attempt_of(&mut client, "a", owner).await;
    }
    let _: () = ask(&mut client, &["DEL", QUEUE]).await;
    for owner in ["3", "2", "3"] {
        assert_ne!(attempt_of(&mut client, "a", owner).await[1], "-", "{owner}");
    }
    let order: Vec<String> = ask(&mut client, &["ZRANGE", QUEUE, "0", "-1"]).await;
    assert_eq!(order, ["3", "2"]);
    // The same in `acquire.lua`: behind another waiter, without a holder.
    let _: () = ask(&mut client, &["ZREM", QUEUE, "2"]).await;
    let _: () = ask(&mut client, &["HDEL", STATE, "1"]).await;
    assert_eq!(attempt_of(&mut client, "a", "2").await[1], "0");
    release(&mut client, "3").await;
    release(&mut client, "2").await;
}

#[tokio::test]
async fn who_waits_for_a_state_that_somebody_deletes_is_served_first() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for newcomer in ["3", "2"] {
        for owner in ["1", "2"] {
            attempt_of(&mut client, "a", owner).await;
        }
        let _: () = ask(&mut client, &["DEL", STATE]).await;
        // By a newcomer, and by the waiter itself.
        let answer = attempt_of(&mut client, "a", newcomer).await;
        assert_eq!(answer[0] == "granted", newcomer == "2", "{answer:?}");
        assert_eq!(holding(&mut client).await, ["2"]);
        release(&mut client, "2").await;
        if newcomer == "3" {
            release(&mut client, "3").await;
        }
        assert!(!ask::<bool>(&mut client, &["EXISTS", QUEUE]).await);
    }
}

#[tokio::test]
async fn who_is_left_in_a_queue_whose_state_somebody_deletes_is_served_by_the_next_release() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for owner in ["1", "2", "3"] {
        attempt_of(&mut client, "a", owner).await;
    }
    let _: () = ask(&mut client, &["DEL", STATE]).await;
    assert_eq!(attempt_of(&mut client, "a", "3").await[0], "contended");
    release(&mut client, "2").await;
    assert_eq!(holding(&mut client).await, ["3"]);
}

#[tokio::test]
async fn a_waiter_that_gives_up_in_a_queue_without_a_state_forgets_nobody() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for owner in ["1", "2", "3", "4"] {
        attempt_of(&mut client, "a", owner).await;
    }
    let _: () = ask(&mut client, &["DEL", STATE]).await;
    assert_eq!(release_to(&mut client, "2", None).await, "waited");
    assert_eq!(holding(&mut client).await, ["3"]);
    release(&mut client, "3").await;
    assert_eq!(holding(&mut client).await, ["4"]);
}

#[tokio::test]
async fn changes_are_published_while_there_are_observers() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    let shares = ["1", "3"];
    for shape in [["1", "1"], shares] {
        for watched in [false, true] {
            if watched {
                INSPECT
                    .run(&mut client, &[STATE], &[CHANGES])
                    .await
                    .unwrap();
                client.subscribe(CHANGES).await.unwrap();
            }
            let _: () = ask(&mut client, &["CONFIG", "RESETSTAT"]).await;
            for owner in ["1", "2"] {
                attempt_for(&mut client, "a", owner, shape).await;
            }
            for owner in ["1", "2"] {
                release(&mut client, owner).await;
            }
            let stats: String = ask(&mut client, &["INFO", "commandstats"]).await;
            let published: u32 = stats
                .lines()
                .find_map(|line| {
                    line.strip_prefix("cmdstat_publish:calls=")?
                        .split(',')
                        .next()
                })
                .map_or(0, |calls| calls.parse().unwrap());
            // Two grants; a release without a grant, or two; and the waiter's own message.
            let (changes, messages) = if shape == shares { (4, 0) } else { (3, 1) };
            let expected = messages + if watched { changes } else { 0 };
            assert_eq!(published, expected, "{shape:?} {watched}");
        }
        // The first message that nobody receives removes the flag.
        client.unsubscribe(CHANGES).await.unwrap();
        attempt_for(&mut client, "a", "1", shape).await;
        release(&mut client, "1").await;
        let fields: Vec<String> = ask(&mut client, &["HKEYS", STATE]).await;
        assert_eq!(fields, ["token"]);
    }
}

/// A release without a grant is a change although others wait, and a waiter that gives up is none.
#[tokio::test]
async fn observers_hear_who_releases_while_others_wait() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    let pubsub = redis::Client::open(server.url()).unwrap();
    let (mut sink, mut messages) = pubsub.get_async_pubsub().await.unwrap().split();
    sink.subscribe(CHANGES).await.unwrap();
    for (owner, shape) in [
        ("1", ["1", "3"]),
        ("2", ["1", "3"]),
        ("3", ["3", "3"]),
        ("4", ["3", "3"]),
    ] {
        attempt_for(&mut client, "a", owner, shape).await;
    }
    INSPECT
        .run(&mut client, &[STATE], &[CHANGES])
        .await
        .unwrap();
    assert_eq!(release_to(&mut client, "3", None).await, "0");
    release(&mut client, "1").await;
    release(&mut client, "2").await;
    release(&mut client, "4").await;
    let _: () = ask(&mut client, &["PUBLISH", CHANGES, "no more"]).await;
    for expected in ["-1", "+4", "-4", "no more"] {
        let message = messages.next().await.unwrap();
        let text = message.get_payload::<String>().unwrap();
        assert_eq!(text.split('|').next(), Some(expected));
    }
}

/// A database that was loaded or swapped into another one has the flags of the former observers.
#[tokio::test]
async fn an_observer_replaces_the_channel_of_another_database() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    let _: () = ask(&mut client, &["HSET", STATE, "watched", "p/lock@5/a"]).await;
    INSPECT
        .run(&mut client, &[STATE], &[CHANGES])
        .await
        .unwrap();
    // Who looks without observing changes nothing.
    INSPECT.run(&mut client, &[STATE], &[]).await.unwrap();
    let channel: String = ask(&mut client, &["HGET", STATE, "watched"]).await;
    assert_eq!(channel, CHANGES);
}

#[tokio::test]
async fn an_observer_of_a_new_name_leaves_no_key_for_ever() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for _ in 0..2 {
        INSPECT
            .run(&mut client, &[STATE], &[CHANGES])
            .await
            .unwrap();
        let left: i64 = ask(&mut client, &["PTTL", STATE]).await;
        assert!(left > 3_600_000, "{left} ms");
        attempt(&mut client, "a").await;
        let left: i64 = ask(&mut client, &["PTTL", STATE]).await;
        assert!(left > 3_600_000, "{left} ms");
        let _: () = ask(&mut client, &["DEL", STATE]).await;
    }
}

#[tokio::test]
async fn a_free_lock_with_a_token_is_granted_by_the_same_rules() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    open_as(&mut client, "b", KEPT).await;
    let first = attempt(&mut client, "a").await;
    release(&mut client, "1-1-1").await;
    // A session whose subscription has ended, and one without a key.
    client.unsubscribe("p/session/a").await.unwrap();
    assert_eq!(attempt(&mut client, "a").await, ["ended"]);
    assert_eq!(attempt(&mut client, "c").await, ["ended"]);
    // The last token is from the span before: the state is kept for longer.
    let token: u64 = first[1].parse().unwrap();
    let earlier = (token - SPAN).to_string();
    let _: () = ask(&mut client, &["HSET", STATE, "token", &earlier]).await;
    let _: () = ask(&mut client, &["PEXPIRE", STATE, "60000"]).await;
    let second = attempt_with(&mut client, "b", "2", ["1", "1"], KEPT).await;
    assert_eq!(second[0], "granted");
    assert!(second[1] > first[1]);
    let left: i64 = ask(&mut client, &["PTTL", STATE]).await;
    assert!(left > 3_600_000, "{left} ms");
    release(&mut client, "2").await;
    // The clock was set back, also by so little that the last token has the same first digits.
    for later in [token + SPAN, token + SPAN / 10] {
        let _: () = ask(&mut client, &["HSET", STATE, "token", &later.to_string()]).await;
        let third = attempt_with(&mut client, "b", "3", ["1", "1"], KEPT).await;
        assert_eq!(third, ["granted", &(later + 1).to_string()]);
        release(&mut client, "3").await;
    }
}

#[tokio::test]
async fn a_contended_lock_is_handed_over_by_the_same_rules() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    for session in ["a", "b"] {
        open_as(&mut client, session, KEPT).await;
    }
    let whole = ["1", "1"];
    let granted = attempt_with(&mut client, "a", "1", whole, KEPT).await;
    for (session, owner) in [("b", "2"), ("a", "3")] {
        attempt_with(&mut client, session, owner, whole, KEPT).await;
    }
    let first: u64 = granted[1].parse().unwrap();
    // The last token is from the span before; or the clock was set back.
    for (holder, next, last) in [("1", "2", first - SPAN), ("2", "3", first + SPAN)] {
        let _: () = ask(&mut client, &["HSET", STATE, "token", &last.to_string()]).await;
        let _: () = ask(&mut client, &["PEXPIRE", STATE, "60000"]).await;
        release(&mut client, holder).await;
        let claim: String = ask(&mut client, &["HGET", STATE, next]).await;
        let token: u64 = claim.split('|').nth(3).unwrap().parse().unwrap();
        if last > first {
            assert_eq!(token, last + 1);
        } else {
            assert!(token > first);
            let left: i64 = ask(&mut client, &["PTTL", STATE]).await;
            assert!(left > 3_600_000, "{left} ms");
        }
    }
    // A waiter that has its token, in a state whose last token somebody has deleted.
    let last: u64 = ask(&mut client, &["HGET", STATE, "token"]).await;
    attempt_with(&mut client, "a", "4", whole, KEPT).await;
    let _: () = ask(&mut client, &["HSET", STATE, "token", &last.to_string()]).await;
    release(&mut client, "3").await;
    let now: u64 = ask(&mut client, &["HGET", STATE, "token"]).await;
    assert_eq!(now, last + 1);
}
