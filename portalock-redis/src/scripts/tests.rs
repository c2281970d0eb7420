//! The scripts on a real server, without the Rust client.

mod batch;
mod breaking;
mod early;
mod flags;
mod long_way;
mod neighbours;
mod random_walk;
mod sessions;

use super::{ACQUIRE, LOOK, OPEN, PRIMARY, RAISE, RELEASE};
use portalock_testkit::servers::RedisServer;
use redis::{AsyncConnectionConfig, Value, aio::MultiplexedConnection};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

/// A client without subscriptions, so none of its `connected` sessions is alive.
async fn connection(server: &RedisServer) -> MultiplexedConnection {
    let url = format!("{}?protocol=resp3", server.url());
    let client = redis::Client::open(url).unwrap();
    // As long as a busy machine may need: half a second is the default.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(LONG))
        .set_response_timeout(Some(LONG));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap()
}

/// The keys of the lock that is used.
const STATE: &str = "p/lock/a";
const QUEUE: &str = "p/lock-queue/a";
const WAITERS: &str = "p/lock-waiters/a";

const CONNECTED: &str = "connected|1";
const KEPT: &str = "kept|1";

/// Opens a session that ends with its subscription.
async fn open(connection: &mut MultiplexedConnection, session: &str) {
    connection
        .subscribe(format!("p/session/{session}"))
        .await
        .unwrap();
    open_as(connection, session, CONNECTED).await;
}

async fn open_as(connection: &mut MultiplexedConnection, session: &str, stamp: &str) {
    OPEN.run(
        connection,
        &[&format!("p/session/{session}")],
        &[stamp, "600000"],
    )
    .await
    .unwrap();
}

/// Opens these sessions for two copies of the same locks, below the prefixes `p` and `q`.
async fn open_in_both(connection: &mut MultiplexedConnection, sessions: [&str; 2]) {
    for session in sessions {
        open_as(connection, session, KEPT).await;
        ask::<()>(connection, &["SET", &format!("q/session/{session}"), KEPT]).await;
    }
}

async fn raise(connection: &mut MultiplexedConnection, session: &str) -> String {
    let answer = RAISE
        .run(connection, &[&format!("p/session/{session}")], &["60000"])
        .await
        .unwrap();
    redis::from_redis_value(answer).unwrap()
}

async fn ask<T: redis::FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&str],
) -> T {
    let (verb, arguments) = words.split_first().unwrap();
    redis::cmd(verb)
        .arg(arguments)
        .query_async(connection)
        .await
        .unwrap()
}

/// Makes an attempt for `weight` of `capacity`, with the session's stamp as its client knows it. A grant is answered by
/// its token alone.
async fn attempt_with(
    connection: &mut MultiplexedConnection,
    session: &str,
    owner: &str,
    shape: [&str; 2],
    stamp: &str,
) -> Vec<String> {
    attempt_once(connection, session, owner, shape, stamp, true).await
}

/// The same, with or without a place in the queue.
async fn attempt_once(
    connection: &mut MultiplexedConnection,
    session: &str,
    owner: &str,
    [weight, capacity]: [&str; 2],
    stamp: &str,
    queues: bool,
) -> Vec<String> {
    let own = format!("p/session/{session}");
    let head = format!("{session}|{weight}|{capacity}");
    let mut arguments = vec![owner, stamp, &head, "{}"];
    arguments.extend(patience(queues, weight != capacity));
    let answer = ACQUIRE
        .run(connection, &[STATE, &own], &arguments)
        .await
        .unwrap();
    match answer {
        Value::BulkString(token) => vec!["granted".into(), String::from_utf8(token).unwrap()],
        answer => redis::from_redis_value(answer).unwrap(),
    }
}

/// Tokens of so many microseconds have the same first digits: see `grant.lua`.
const SPAN: u64 = 1_000_000_000;

/// What the arguments of an attempt end with.
fn patience(queues: bool, shares: bool) -> &'static [&'static str] {
    match (queues, shares) {
        (true, false) => &[],
        (false, false) => &["once"],
        (true, true) => &["queues", "shares"],
        (false, true) => &["once", "shares"],
    }
}

async fn attempt_for(
    connection: &mut MultiplexedConnection,
    session: &str,
    owner: &str,
    shape: [&str; 2],
) -> Vec<String> {
    attempt_with(connection, session, owner, shape, CONNECTED).await
}

async fn attempt_of(
    connection: &mut MultiplexedConnection,
    session: &str,
    owner: &str,
) -> Vec<String> {
    attempt_for(connection, session, owner, ["1", "1"]).await
}

async fn attempt(connection: &mut MultiplexedConnection, session: &str) -> Vec<String> {
    attempt_of(connection, session, "1-1-1").await
}

/// The fields of the state that are claims, in the order in which the server lists them.
async fn holding(connection: &mut MultiplexedConnection) -> Vec<String> {
    let mut fields: Vec<String> = ask(connection, &["HKEYS", STATE]).await;
    fields.retain(|field| !["token", "waits", "watched"].contains(&&**field));
    fields
}

async fn release(connection: &mut MultiplexedConnection, owner: &str) {
    assert_eq!(release_to(connection, owner, None).await, "1");
}

/// Releases, and may name the neighbour that holds from now on.
async fn release_to(
    connection: &mut MultiplexedConnection,
    owner: &str,
    next: Option<&str>,
) -> String {
    let mut arguments = vec![owner];
    arguments.extend(next);
    let answer = RELEASE.run(connection, &[STATE], &arguments).await;
    redis::from_redis_value(answer.unwrap()).unwrap()
}

#[tokio::test]
async fn a_release_passes_over_who_can_not_hear() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    for session in ["a", "b", "c", "d"] {
        open(&mut client, session).await;
    }
    attempt_of(&mut client, "a", "1").await;
    for (session, owner) in [("b", "2"), ("c", "3"), ("d", "4")] {
        assert_eq!(
            attempt_of(&mut client, session, owner).await[0],
            "contended"
        );
    }
    // Session b has lost its subscription, and session c its key.
    client.unsubscribe("p/session/b").await.unwrap();
    let _: () = ask(&mut client, &["DEL", "p/session/c"]).await;
    release(&mut client, "1").await;
    assert_eq!(holding(&mut client).await, ["4"]);
    for key in [QUEUE, WAITERS] {
        assert!(!ask::<bool>(&mut client, &["EXISTS", key]).await, "{key}");
    }
}

#[tokio::test]
async fn a_release_grants_as_many_as_fit() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for (owner, shape) in [
        ("1", ["3", "3"]),
        ("2", ["1", "3"]),
        ("3", ["1", "3"]),
        ("4", ["3", "3"]),
        ("5", ["1", "3"]),
    ] {
        attempt_for(&mut client, "a", owner, shape).await;
    }
    for (freed, holders, waiters) in [
        ("1", &["2", "3"][..], &["4", "5"][..]),
        // The first waiter needs the whole capacity, so the last one waits too.
        ("2", &["3"], &["4", "5"]),
        ("3", &["4"], &["5"]),
        ("4", &["5"], &[]),
    ] {
        release(&mut client, freed).await;
        let held = holding(&mut client).await;
        let waiting: Vec<String> = ask(&mut client, &["ZRANGE", QUEUE, "0", "-1"]).await;
        assert_eq!(
            (&*held, &*waiting),
            (
                &*holders
                    .iter()
                    .map(|&owner| owner.to_owned())
                    .collect::<Vec<_>>(),
                &*waiters
                    .iter()
                    .map(|&owner| owner.to_owned())
                    .collect::<Vec<_>>()
            ),
            "{freed} released"
        );
    }
}

#[tokio::test]
async fn who_shares_with_its_like_reads_none_of_them() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    let shared = ["1", "100"];
    attempt_for(&mut client, "a", "1", shared).await;
    // One who wanted all has given up. The first one after it finds that nobody waits.
    attempt_for(&mut client, "a", "4", ["100", "100"]).await;
    assert_eq!(release_to(&mut client, "4", None).await, "0");
    attempt_for(&mut client, "a", "5", shared).await;
    let _: () = ask(&mut client, &["CONFIG", "RESETSTAT"]).await;
    for owner in ["2", "3"] {
        let answer = attempt_for(&mut client, "a", owner, shared).await;
        assert_eq!(answer[0], "granted");
        release(&mut client, owner).await;
    }
    let calls: String = ask(&mut client, &["INFO", "commandstats"]).await;
    assert!(calls.contains("cmdstat_hlen:"), "{calls}");
    assert!(!calls.contains("cmdstat_hgetall:"), "{calls}");
}

/// The waiter wants all, and waits for the last; or it wants as much as each of the others.
#[tokio::test]
async fn who_releases_next_to_others_reads_none_of_them() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for (shape, after_each) in [
        (["3", "3"], [&["2", "3"] as &[_], &["3"], &["4"]]),
        (["1", "3"], [&["2", "3", "4"], &["3", "4"], &["4"]]),
    ] {
        for owner in ["1", "2", "3"] {
            attempt_for(&mut client, "a", owner, ["1", "3"]).await;
        }
        attempt_for(&mut client, "a", "4", shape).await;
        let _: () = ask(&mut client, &["CONFIG", "RESETSTAT"]).await;
        for (owner, left) in ["1", "2", "3"].into_iter().zip(after_each) {
            release(&mut client, owner).await;
            assert_eq!(holding(&mut client).await, left);
        }
        let calls: String = ask(&mut client, &["INFO", "commandstats"]).await;
        assert!(!calls.contains("cmdstat_hgetall:"), "{calls}");
        release(&mut client, "4").await;
    }
}

#[tokio::test]
async fn a_dead_holder_is_not_waited_for() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    for (session, ends) in [
        ("a", ["UNSUBSCRIBE", "p/session/a"]),
        ("b", ["DEL", "p/session/b"]),
    ] {
        open(&mut client, session).await;
        open(&mut client, "f").await;
        assert_eq!(
            attempt_of(&mut client, session, session).await[0],
            "granted"
        );
        if ends[0] == "DEL" {
            let _: () = ask(&mut client, &ends).await;
        } else {
            client.unsubscribe(ends[1]).await.unwrap();
        }
        assert_eq!(
            attempt_of(&mut client, "f", "9").await[0],
            "granted",
            "{session}"
        );
        release(&mut client, "9").await;
    }
}

#[tokio::test]
async fn who_comes_later_stands_behind_whatever_the_clock_says() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for owner in ["1", "2"] {
        attempt_of(&mut client, "a", owner).await;
    }
    // An hour ahead, as if the clock was set back afterwards.
    let _: () = ask(&mut client, &["ZINCRBY", QUEUE, "3600000000", "2"]).await;
    for owner in ["3", "4"] {
        assert_eq!(attempt_of(&mut client, "a", owner).await[0], "contended");
    }
    let order: Vec<String> = ask(&mut client, &["ZRANGE", QUEUE, "0", "-1"]).await;
    assert_eq!(order, ["2", "3", "4"]);
}

#[tokio::test]
async fn a_queue_that_is_never_empty_does_not_expire() {
    const HOUR: u64 = 3_600_000;
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    for owner in ["1", "2"] {
        attempt_of(&mut client, "a", owner).await;
    }
    // As if the last waiter had arrived in the hour before, and no other since.
    let _: () = ask(&mut client, &["ZINCRBY", QUEUE, "-3600000000", "2"]).await;
    for key in [QUEUE, WAITERS] {
        let _: () = ask(&mut client, &["PEXPIRE", key, "60000"]).await;
    }
    assert_eq!(attempt_of(&mut client, "a", "3").await[0], "contended");
    for key in [QUEUE, WAITERS] {
        let left: u64 = ask(&mut client, &["PTTL", key]).await;
        assert!(left > HOUR, "{key}: {left} ms");
    }
}

#[tokio::test]
async fn what_is_held_for_long_does_not_expire() {
    const NEARLY_AN_HOUR: u64 = 3_590_000;
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    // Exclusive and shared: they write the last token in two ways.
    for shape in [["3", "3"], ["1", "3"]] {
        attempt_for(&mut client, "a", "1", shape).await;
        let _: () = ask(&mut client, &["PEXPIRE", STATE, "60000"]).await;
        assert_ne!(look(&mut client, &["1"]).await, ["gone"]);
        let left: u64 = ask(&mut client, &["PTTL", STATE]).await;
        assert!(left > NEARLY_AN_HOUR, "{shape:?}: {left} ms");
        release(&mut client, "1").await;
    }
}

/// The token in the claim of a waiter, or ''.
async fn waiting_token(connection: &mut MultiplexedConnection, owner: &str) -> String {
    let claim: String = ask(connection, &["HGET", WAITERS, owner]).await;
    claim.split('|').nth(3).unwrap().to_owned()
}

/// The state of these places.
async fn look(connection: &mut MultiplexedConnection, places: &[&str]) -> Vec<String> {
    let keys = [STATE, WAITERS].repeat(places.len());
    let answer = LOOK.run(connection, &keys, places).await.unwrap();
    redis::from_redis_value(answer).unwrap()
}

#[tokio::test]
async fn a_look_tells_who_holds_and_who_waits() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open(&mut client, "a").await;
    let granted = attempt_of(&mut client, "a", "1").await;
    attempt_of(&mut client, "a", "2").await;
    // Another session's waiter has no token.
    open(&mut client, "b").await;
    attempt_of(&mut client, "b", "3").await;
    let places = ["2", "3", "4", "1"];
    let given = waiting_token(&mut client, "2").await;
    assert_eq!(
        look(&mut client, &places).await,
        [&*format!("waits|{given}"), "waits|", "gone", &granted[1]]
    );
    // A key that portalock did not write contains no place.
    let _: () = ask(&mut client, &["HDEL", STATE, "token"]).await;
    assert_eq!(look(&mut client, &["1"]).await, ["gone"]);
    for key in [STATE, WAITERS] {
        let _: () = ask(&mut client, &["SET", key, "spoiled"]).await;
    }
    assert_eq!(look(&mut client, &places).await, ["gone"; 4]);
}

async fn wait_of(connection: &mut MultiplexedConnection, confirmed: bool) -> String {
    let confirmed = if confirmed { "1" } else { "0" };
    let answer = PRIMARY.run(connection, &["p"], &["60000", confirmed]).await;
    redis::from_redis_value(answer.unwrap()).unwrap()
}

#[tokio::test]
async fn a_server_waits_from_its_start_or_from_when_it_was_promoted_and_confirmed() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    let left: u32 = wait_of(&mut client, false).await.parse().unwrap();
    assert!((40_000..=60_000).contains(&left), "{left}");
    // The key says that this server became the primary long ago.
    let id = ask::<String>(&mut client, &["GET", "p"]).await;
    let id = id.split('|').next().unwrap();
    ask::<()>(&mut client, &["SET", "p", &format!("{id}|1")]).await;
    assert_eq!(wait_of(&mut client, false).await, "0");
    // A release, which frees memory, may need this connection.
    ask::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(wait_of(&mut client, false).await, "0");
    ask::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "0"]).await;

    // A slot from a node that was promoted later than this server was started; or a slot that was not confirmed yet.
    let mut left = 60_000;
    while left > 57_000 {
        ask::<()>(&mut client, &["DEL", "p"]).await;
        left = wait_of(&mut client, false).await.parse().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let time: Vec<u64> = ask(&mut client, &["TIME"]).await;
    let promoted = time[0] * 1000;
    ask::<()>(&mut client, &["SET", "p", &format!("0a|{promoted}")]).await;
    let left: u32 = wait_of(&mut client, false).await.parse().unwrap();
    assert!(left > 58_000, "{left}");
    ask::<()>(&mut client, &["SET", "p", "0a|0"]).await;
    assert_eq!(wait_of(&mut client, false).await, "unconfirmed");

    // A promotion gives the server another id.
    let () = ask(&mut client, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let () = ask(&mut client, &["REPLICAOF", "NO", "ONE"]).await;
    for _ in 0..2 {
        assert_eq!(wait_of(&mut client, false).await, "unconfirmed");
    }
    let left: u32 = wait_of(&mut client, true).await.parse().unwrap();
    assert!((40_000..=60_000).contains(&left), "{left}");
    let again: u32 = wait_of(&mut client, false).await.parse().unwrap();
    assert!(again <= left, "{again} after {left}");
}
