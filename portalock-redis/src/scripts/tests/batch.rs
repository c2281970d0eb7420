//! Requests in one script: each has the effect and the answer that it has alone.

use super::{KEPT, SPAN, ask, connection, open_as, open_in_both, patience, raise};
use crate::scripts::{ACQUIRE, BATCH, RELEASE};
use portalock_testkit::servers::RedisServer;
use redis::{Value, aio::MultiplexedConnection};

const NAMES: usize = 4;
const ROUNDS: usize = 400;
const SESSIONS: [&str; 2] = ["a0", "b0"];

/// A request for an exclusive lock: its letter in `batch.lua`, the number of the name, and the owner.
type Request = (char, usize, String);

fn state(prefix: &str, name: usize) -> String {
    format!("{prefix}/lock/{name}")
}

fn head(session: &str) -> String {
    format!("{session}|3|3")
}

async fn together(
    connection: &mut MultiplexedConnection,
    (prefix, session, stamp): (&str, &str, &str),
    requests: &[Request],
) -> Vec<Value> {
    let letters: String = requests.iter().map(|(letter, ..)| letter).collect();
    let states: Vec<_> = requests
        .iter()
        .map(|(_, name, _)| state(prefix, *name))
        .collect();
    let (own, head) = (format!("{prefix}/session/{session}"), head(session));
    let mut keys: Vec<&str> = states.iter().map(|state| &**state).collect();
    let mut arguments = vec![&*letters];
    arguments.extend(requests.iter().map(|(.., owner)| &**owner));
    if letters.contains(['q', 'o']) {
        keys.push(&own);
        arguments.extend([stamp, &head, "{}"]);
    }
    let answer = BATCH.run(connection, &keys, &arguments).await.unwrap();
    let Value::Array(words) = answer else {
        panic!("{answer:?}");
    };
    let (token, words) = words.split_first().unwrap();
    let mut answers: Vec<Value> = letters
        .chars()
        .map(|letter| match letter {
            'r' => Value::BulkString(b"1".into()),
            _ => token.clone(),
        })
        .collect();
    for pair in words.chunks(2) {
        let Value::Int(number) = pair[0] else {
            panic!("{pair:?}");
        };
        answers[usize::try_from(number).unwrap() - 1] = pair[1].clone();
    }
    answers
}

async fn alone(
    connection: &mut MultiplexedConnection,
    (prefix, session, stamp): (&str, &str, &str),
    (letter, name, owner): &Request,
) -> Value {
    let state = state(prefix, *name);
    if *letter == 'r' {
        return RELEASE.run(connection, &[&state], &[owner]).await.unwrap();
    }
    let own = format!("{prefix}/session/{session}");
    let head = head(session);
    let mut arguments = vec![&**owner, stamp, &head, "{}"];
    arguments.extend(patience(*letter == 'q', false));
    ACQUIRE
        .run(connection, &[&state, &own], &arguments)
        .await
        .unwrap()
}

/// The answer without its tokens and times, which depend on the clock.
fn shape(answer: &Value) -> String {
    let text = format!("{answer:?}");
    let mut shape = String::new();
    let mut digits = String::new();
    for character in text.chars().chain(['.']) {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        shape += if digits.len() > 9 { "N" } else { &*digits };
        digits.clear();
        shape.push(character);
    }
    shape
}

/// What the server has of a name: the fields of the state, and the queue in its order.
async fn stored(
    connection: &mut MultiplexedConnection,
    prefix: &str,
    name: usize,
) -> (Vec<String>, Vec<String>) {
    let mut fields: Vec<String> = ask(connection, &["HKEYS", &state(prefix, name)]).await;
    fields.sort();
    let queue = format!("{prefix}/lock-queue/{name}");
    (
        fields,
        ask(connection, &["ZRANGE", &queue, "0", "-1"]).await,
    )
}

async fn token(connection: &mut MultiplexedConnection, name: usize) -> u64 {
    let token: Option<String> = ask(connection, &["HGET", &state("p", name), "token"]).await;
    // Maybe with a shape.
    let number = token.as_ref().and_then(|token| token.split('|').next());
    number.map_or(0, |number| number.parse().unwrap())
}

/// Two copies of the same locks: one gets each request alone, and the other gets several in one script.
#[tokio::test]
async fn each_request_has_the_answer_and_the_effect_that_it_has_alone() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    open_in_both(&mut client, SESSIONS).await;
    let mut present: Vec<(usize, String)> = Vec::new();
    let mut number = 0;
    for _ in 0..ROUNDS {
        let session = *random.choice(&SESSIONS).unwrap();
        let stamp = if random.u8(..8) == 0 { "kept|2" } else { KEPT };
        let mut requests = Vec::new();
        for _ in 0..random.usize(1..8) {
            let known = random.usize(..=present.len());
            if known < present.len() && random.u8(..3) > 0 {
                let (name, owner) = present.swap_remove(known);
                requests.push(('r', name, owner));
            } else {
                number += 1;
                let name = random.usize(..NAMES);
                let owner = format!("{number}.1");
                present.push((name, owner.clone()));
                requests.push((*random.choice(&['q', 'o']).unwrap(), name, owner));
            }
        }
        let mut before = Vec::new();
        for name in 0..NAMES {
            before.push(token(&mut client, name).await);
        }
        let answers = together(&mut client, ("p", session, stamp), &requests).await;
        for (request, answer) in requests.iter().zip(&answers) {
            let expected = alone(&mut client, ("q", session, stamp), request).await;
            assert_eq!(shape(answer), shape(&expected), "{request:?} {requests:?}");
        }
        for (name, before) in before.into_iter().enumerate() {
            assert_eq!(
                stored(&mut client, "p", name).await,
                stored(&mut client, "q", name).await,
                "{requests:?}"
            );
            assert!(token(&mut client, name).await >= before);
        }
    }
}

fn request(letter: char, name: usize, owner: &str) -> Request {
    (letter, name, owner.to_owned())
}

fn is_granted(answer: &Value) -> bool {
    matches!(answer, Value::BulkString(token) if token.len() == 16)
}

/// Makes free locks that have a last token, as most free locks have.
async fn used(connection: &mut MultiplexedConnection) {
    open_as(connection, "a0", KEPT).await;
    for name in 0..NAMES {
        for letter in ['q', 'r'] {
            alone(connection, ("p", "a0", KEPT), &request(letter, name, "0.1")).await;
        }
    }
}

#[tokio::test]
async fn what_fails_takes_nothing_from_the_others() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    used(&mut client).await;
    let by = ("p", "a0", KEPT);
    alone(&mut client, by, &request('q', 2, "1.1")).await;
    for name in [1, 7] {
        ask::<()>(&mut client, &["SET", &state("p", name), "spoiled"]).await;
    }
    let requests = [
        request('q', 0, "2.1"),
        request('q', 1, "3.1"),
        request('r', 2, "1.1"),
        request('r', 7, "4.1"),
        request('q', 2, "5.1"),
    ];
    let answers = together(&mut client, by, &requests).await;
    assert!(
        is_granted(&answers[0]) && is_granted(&answers[4]),
        "{answers:?}"
    );
    assert_eq!(answers[1], Value::Nil);
    assert_eq!(answers[2], Value::BulkString(b"1".into()));
    assert_eq!(answers[3], Value::Nil);

    // Without memory, a release is done as it is alone, and an attempt too if the script has written before.
    ask::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let answers = together(
        &mut client,
        by,
        &[request('q', 3, "6.1"), request('r', 0, "2.1")],
    )
    .await;
    assert_eq!(answers, [Value::Nil, Value::BulkString(b"1".into())]);
    ask::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "0"]).await;
    for (name, holder) in [(0, None), (2, Some("5.1")), (3, None)] {
        let (fields, queue) = stored(&mut client, "p", name).await;
        let mut expected: Vec<_> = holder.into_iter().collect();
        expected.push("token");
        assert_eq!(
            (fields, queue.len()),
            (expected.iter().map(|&field| field.to_owned()).collect(), 0)
        );
    }
    // A session key that is none fails the attempts, and not the releases.
    ask::<()>(&mut client, &["DEL", "p/session/a0"]).await;
    ask::<()>(&mut client, &["HSET", "p/session/a0", "a", "b"]).await;
    let answers = together(
        &mut client,
        by,
        &[request('q', 3, "7.1"), request('r', 2, "5.1")],
    )
    .await;
    assert_eq!(answers, [Value::Nil, Value::BulkString(b"1".into())]);
}

#[tokio::test]
async fn attempts_with_a_stale_stamp_are_refused_and_releases_are_not() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    used(&mut client).await;
    alone(&mut client, ("p", "a0", KEPT), &request('q', 0, "1.1")).await;
    assert_eq!(raise(&mut client, "a0").await, "kept|2");
    let requests = [
        request('q', 1, "2.1"),
        request('r', 0, "1.1"),
        request('o', 0, "3.1"),
    ];
    let answers = together(&mut client, ("p", "a0", KEPT), &requests).await;
    let stale = Value::Array(
        ["stale", "kept|2"]
            .map(|word| Value::BulkString(word.into()))
            .into(),
    );
    assert_eq!(
        answers,
        [stale.clone(), Value::BulkString(b"1".into()), stale]
    );
    ask::<()>(&mut client, &["DEL", "p/session/a0"]).await;
    let answers = together(&mut client, ("p", "a0", "kept|2"), &requests).await;
    let ended = Value::Array(vec![Value::BulkString(b"ended".into())]);
    assert_eq!(
        answers,
        [ended.clone(), Value::BulkString(b"0".into()), ended]
    );
    for name in 0..NAMES {
        assert_eq!(stored(&mut client, "p", name).await.0, ["token"]);
    }
}

#[tokio::test]
async fn a_state_of_an_earlier_span_lives_longer_and_the_clock_may_be_set_back() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    used(&mut client).await;
    let state = state("p", 0);
    // Tokens of a span have the same first digits, and a state lives for one or two hours after its last token.
    let last = token(&mut client, 0).await;
    let earlier = (last - SPAN).to_string();
    ask::<()>(&mut client, &["HSET", &state, "token", &earlier]).await;
    ask::<()>(&mut client, &["PEXPIRE", &state, "60000"]).await;
    let requests = [request('q', 0, "1.1"), request('q', 1, "2.1")];
    let answers = together(&mut client, ("p", "a0", KEPT), &requests).await;
    assert!(answers.iter().all(is_granted), "{answers:?}");
    let left: i64 = ask(&mut client, &["PTTL", &state]).await;
    assert!(left > 3_600_000, "{left} ms");
    // The clock was set back, by so little that the last token has the same first digits, and by more.
    for later in [last + SPAN / 10, last + SPAN] {
        together(&mut client, ("p", "a0", KEPT), &[request('r', 0, "1.1")]).await;
        ask::<()>(&mut client, &["HSET", &state, "token", &later.to_string()]).await;
        together(&mut client, ("p", "a0", KEPT), &[request('q', 0, "1.1")]).await;
        assert_eq!(token(&mut client, 0).await, later + 1);
    }
}

#[tokio::test]
async fn free_locks_take_two_calls_each_and_one_look_at_session_and_clock() {
    let server = RedisServer::start().unwrap();
    let mut client = connection(&server).await;
    used(&mut client).await;
    for (letter, expected) in [
        (
            'q',
            &[("get", 1), ("time", 1), ("hgetall", NAMES), ("hset", NAMES)][..],
        ),
        ('r', &[("hlen", NAMES), ("hdel", NAMES)]),
    ] {
        let requests: Vec<_> = (0..NAMES)
            .map(|name| request(letter, name, &format!("{name}.1")))
            .collect();
        // The first run loads the script, where it finds that there is nothing to do.
        together(&mut client, ("p", "a0", KEPT), &[request('r', 0, "0.0")]).await;
        ask::<()>(&mut client, &["CONFIG", "RESETSTAT"]).await;
        together(&mut client, ("p", "a0", KEPT), &requests).await;
        let stats: String = ask(&mut client, &["INFO", "commandstats"]).await;
        let mut found: Vec<_> = stats
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
            .map(|(command, rest)| (command, rest.split(',').next().unwrap().parse().unwrap()))
            .filter(|(command, _)| !["config|resetstat", "info", "evalsha"].contains(command))
            .collect();
        found.sort_unstable();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
