//! The paths that run before any definition have the effect that `acquire.lua` and `release.lua` have without them.

use super::{
    CONNECTED, KEPT, ask, attempt_with, connection, holding, open, open_as, open_in_both, patience,
    release_to,
};
use crate::{
    queue::UNREAD,
    scripts::{ACQUIRE, Form, RELEASE, Script},
};
use portalock_testkit::servers::RedisServer;
use redis::{Value, aio::MultiplexedConnection};

const ROUNDS: usize = 1500;
const SESSIONS: [&str; 2] = ["a0", "b0"];

/// What begins each early path of an attempt, and what it is replaced by. What is read before that is kept.
const OF_ATTEMPTS: [(&str, &str); 4] = [
    ("if fields and #fields == 2 then", "if false then"),
    (
        "if last_token and holder and not is_held and ARGV[5] ~= 'once' then",
        "if false then",
    ),
    ("if found and not fields then", "if false then"),
    (
        "if fields and not holder and not waits and weight <= capacity then",
        "if false then",
    ),
];

const OF_RELEASES: [(&str, &str); 3] = [
    ("if freed == 1 and left == 1 then return '1' end", ""),
    (
        "if freed == 1 and not found[2] and not found[3] then return '1' end",
        "",
    ),
    (
        "if freed == 1 and found[2] and not found[3] then",
        "if false then",
    ),
];

fn without(early: &[(&str, &str)], script: &Script) -> Form {
    let mut source = script.server.source.clone();
    for (path, nothing) in early {
        assert_eq!(source.matches(path).count(), 1, "{path}");
        source = source.replace(path, nothing);
    }
    Form::new("", &source)
}

#[derive(Debug)]
enum Request {
    Attempt {
        session: &'static str,
        owner: String,
        shares: bool,
        queues: bool,
    },
    Release(String),
}

/// Does the request, and returns its answer without what depends on the clock.
async fn serve(
    client: &mut MultiplexedConnection,
    prefix: &str,
    (acquire, release): (&Form, &Form),
    request: &Request,
) -> String {
    let state = format!("{prefix}/lock/x");
    let answer = match request {
        Request::Release(owner) => release.run(client, &[&state], &[owner]).await.unwrap(),
        Request::Attempt {
            session,
            owner,
            shares,
            queues,
        } => {
            let own = format!("{prefix}/session/{session}");
            let head = format!("{session}|{}|3", if *shares { 1 } else { 3 });
            let mut arguments = vec![&**owner, KEPT, &head, "{}"];
            arguments.extend(patience(*queues, *shares));
            acquire
                .run(client, &[&state, &own], &arguments)
                .await
                .unwrap()
        }
    };
    match answer {
        Value::Array(mut words) => {
            // Which of several holders is named, and the new token.
            let token = words.get(4).is_some();
            words.truncate(4);
            words.remove(2);
            format!("{words:?} {token}")
        }
        Value::BulkString(word) if word.len() == 16 => "granted".into(),
        answer => format!("{answer:?}"),
    }
}

/// The fields of the state, the queue in its order, and for each waiter whether it has a token.
async fn stored(client: &mut MultiplexedConnection, prefix: &str) -> (Vec<String>, Vec<String>) {
    let mut fields: Vec<String> = ask(client, &["HKEYS", &format!("{prefix}/lock/x")]).await;
    fields.sort();
    let queue: Vec<String> = ask(
        client,
        &["ZRANGE", &format!("{prefix}/lock-queue/x"), "0", "-1"],
    )
    .await;
    let mut line = Vec::new();
    for owner in queue {
        let waiters = format!("{prefix}/lock-waiters/x");
        let claim: String = ask(client, &["HGET", &waiters, &owner]).await;
        let has_token = claim
            .split('|')
            .nth(3)
            .is_some_and(|token| !token.is_empty());
        line.push(format!("{owner} {has_token}"));
    }
    (fields, line)
}

/// Two copies of the same lock.
#[tokio::test]
async fn an_early_path_has_the_effect_of_the_long_way() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open_in_both(&mut client, SESSIONS).await;
    let early = (&ACQUIRE.server, &RELEASE.server);
    let (acquire, release) = (
        without(&OF_ATTEMPTS, &ACQUIRE),
        without(&OF_RELEASES, &RELEASE),
    );
    let mut owners: Vec<String> = Vec::new();
    for round in 0..ROUNDS {
        let known = random.usize(..=owners.len());
        let request = if known < owners.len() && random.u8(..5) > 1 {
            Request::Release(owners.swap_remove(known))
        } else {
            let owner = format!("{round}-1-1");
            owners.push(owner.clone());
            Request::Attempt {
                session: random.choice(SESSIONS).unwrap(),
                owner,
                // A mixture, then only those who share, then none of them.
                shares: [random.u8(..4) == 0, true, false][round / 50 % 3],
                queues: random.u8(..4) > 0,
            }
        };
        assert_eq!(
            serve(&mut client, "p", early, &request).await,
            serve(&mut client, "q", (&acquire, &release), &request).await,
            "round {round}: {request:?}"
        );
        assert_eq!(
            stored(&mut client, "p").await,
            stored(&mut client, "q").await,
            "round {round}: {request:?}"
        );
    }
}

const ALL: [&str; 2] = ["1", "1"];
const HALF: [&str; 2] = ["1", "2"];

/// Several hold, and a check was right before, so this one does not read them.
#[tokio::test]
async fn a_check_notices_a_dead_last_waiter_at_once() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    for session in ["a", "b"] {
        open_as(&mut client, session, KEPT).await;
    }
    open(&mut client, "c").await;
    for owner in ["x", "y"] {
        attempt_with(&mut client, "a", owner, HALF, KEPT).await;
    }
    for (session, owner, stamp) in [("b", "1", KEPT), ("b", "2", KEPT), ("c", "3", CONNECTED)] {
        attempt_with(&mut client, session, owner, HALF, stamp).await;
    }
    for behind in ["2", "1"] {
        let answer = attempt_with(&mut client, "b", "1", HALF, KEPT).await;
        assert_eq!(answer[..2], ["contended", behind]);
        client.unsubscribe("p/session/c").await.unwrap();
    }
}

/// How often sessions have been looked at together, as `prelude.lua` does it.
async fn looks(client: &mut MultiplexedConnection) -> Option<String> {
    let stats: String = ask(client, &["INFO", "commandstats"]).await;
    let calls = |line: &str| {
        Some(
            line.strip_prefix("cmdstat_mget:")?
                .split_once(',')?
                .0
                .into(),
        )
    };
    stats.lines().find_map(calls)
}

#[tokio::test]
async fn a_check_right_after_another_one_reads_no_holders() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    for session in ["a", "b"] {
        open_as(&mut client, session, KEPT).await;
    }
    for (session, owner) in [("a", "x"), ("a", "y"), ("b", "1"), ("b", "2")] {
        attempt_with(&mut client, session, owner, HALF, KEPT).await;
    }
    // A busy machine may take longer than `UNREAD` between two checks.
    let mut tries = 0..1000;
    let mut before = None;
    while tries.next().is_some() {
        let answer = attempt_with(&mut client, "b", "1", HALF, KEPT).await;
        assert_eq!(answer[..2], ["contended", "1"]);
        let now = looks(&mut client).await;
        if now == before {
            return;
        }
        before = now;
    }
    panic!("each check has read all holders");
}

/// The server's clock, in microseconds.
async fn clock(client: &mut MultiplexedConnection) -> u64 {
    let [seconds, micros]: [u64; 2] = ask(client, &["TIME"]).await;
    seconds * 1_000_000 + micros
}

/// The sessions of all waiters behind live, but no client checks for them: their runtime is blocked.
#[tokio::test]
async fn the_only_waiter_that_checks_notices_a_dead_holder() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    for session in ["a", "b", "c"] {
        open_as(&mut client, session, KEPT).await;
    }
    for holder in ["x", "y"] {
        attempt_with(&mut client, "a", holder, HALF, KEPT).await;
    }
    attempt_with(&mut client, "b", "1", HALF, KEPT).await;
    for owner in 2..=200 {
        attempt_with(&mut client, "c", &owner.to_string(), HALF, KEPT).await;
    }
    let answer = attempt_with(&mut client, "b", "1", HALF, KEPT).await;
    assert_eq!(answer[..2], ["contended", "199"]);
    let _: () = ask(&mut client, &["DEL", "p/session/a"]).await;
    let died = clock(&mut client).await;
    // The check before counts for so long.
    let unread = u64::try_from(UNREAD.as_micros()).unwrap();
    while clock(&mut client).await < died + unread {}
    let answer = attempt_with(&mut client, "b", "1", HALF, KEPT).await;
    assert_eq!(answer[0], "granted", "{answer:?}");
}

#[tokio::test]
async fn every_check_tells_a_waiter_its_token() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open_as(&mut client, "a", KEPT).await;
    open_as(&mut client, "b", KEPT).await;
    attempt_with(&mut client, "a", "0", ALL, KEPT).await;
    let first = attempt_with(&mut client, "a", "1", ALL, KEPT).await;
    for owner in 2..=9 {
        attempt_with(&mut client, "a", &owner.to_string(), ALL, KEPT).await;
    }
    // The last waiter has none.
    attempt_with(&mut client, "b", "10", ALL, KEPT).await;
    for _ in 0..8 {
        let answer = attempt_with(&mut client, "a", "1", ALL, KEPT).await;
        assert_eq!(answer[3..], first[3..], "{answer:?}");
    }
}

#[tokio::test]
async fn a_release_grants_also_what_is_left_beside_a_waiter_of_the_usual_shape() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open_as(&mut client, "a", KEPT).await;
    for (owner, weight) in [("0", "2"), ("1", "2"), ("2", "1"), ("3", "1")] {
        attempt_with(&mut client, "a", owner, [weight, "3"], KEPT).await;
    }
    release_to(&mut client, "0", None).await;
    assert_eq!(holding(&mut client).await, ["1", "2"]);
}
