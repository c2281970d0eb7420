//! Several attempts and releases in one script: see `batch.lua`.

use std::{iter, ops::Range};

use redis::{RedisError, Value, aio::MultiplexedConnection};
use tokio::sync::oneshot;

use crate::{
    cluster::Tag,
    connection::Call,
    route::Route,
    scripts::{ACQUIRE, BATCH, RELEASE},
};

/// The letters of requests in `batch.lua`.
const QUEUES: char = 'q';
const ONCE: char = 'o';
const RELEASES: char = 'r';

/// The answer to one request of a batch. `None` if it is missing: the request may have had an effect or not.
pub(crate) type Answer = Result<Option<Value>, RedisError>;

/// Requests, and where their callers wait.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    parts: Vec<Part>,
    /// The words of all parts.
    text: String,
    /// What all its attempts have.
    attempts: Option<Attempts>,
}

#[derive(Debug)]
struct Part {
    letter: char,
    state: Range<usize>,
    owner: Range<usize>,
    answer: oneshot::Sender<Answer>,
}

/// The requests of a batch with their answers.
#[derive(Debug)]
#[must_use]
pub(crate) struct Answered {
    parts: Vec<Part>,
    answers: Vec<Answer>,
}

#[derive(Debug, PartialEq, Eq)]
struct Attempts {
    session: String,
    stamp: String,
    head: String,
    who: String,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Adds a request. `None` if the script doesn't do such a request, or not together with those that are here.
    pub(crate) fn add(&mut self, call: Call<'_>) -> Option<oneshot::Receiver<Answer>> {
        let (letter, state, owner) = match call {
            Call::Script(
                script,
                &[state, session],
                &[owner, stamp, head, who, ref patience @ ..],
            ) if std::ptr::eq(script, &raw const *ACQUIRE) => {
                let letter = match patience {
                    [] => QUEUES,
                    ["once"] => ONCE,
                    _ => return None,
                };
                let its = [session, stamp, head, who];
                let attempts = self.attempts.get_or_insert_with(|| Attempts::new(its));
                if attempts.words() != its {
                    return None;
                }
                (letter, state, owner)
            }
            Call::Script(script, &[state], &[owner])
                if std::ptr::eq(script, &raw const *RELEASE) =>
            {
                (RELEASES, state, owner)
            }
            _ => return None,
        };
        let (answer, answered) = oneshot::channel();
        let part = Part {
            letter,
            state: self.write(state),
            owner: self.write(owner),
            answer,
        };
        self.parts.push(part);
        Some(answered)
    }

    fn write(&mut self, word: &str) -> Range<usize> {
        let from = self.text.len();
        self.text.push_str(word);
        from..self.text.len()
    }

    fn word(&self, at: &Range<usize>) -> &str {
        self.text.get(at.clone()).unwrap_or_default()
    }

    /// Sends the requests whose callers still wait.
    pub(crate) async fn send(
        mut self,
        route: &Route,
        mut connection: MultiplexedConnection,
    ) -> Answered {
        self.parts.retain(|part| !part.answer.is_closed());
        let (tag, connection) = (route.tag(), &mut connection);
        let answers = match &*self.parts {
            [] => Vec::new(),
            [part] => {
                let answer = self.run_alone(part, tag, connection).await;
                vec![answer.map(Some)]
            }
            _ => match self.run(tag, connection).await {
                Ok(answer) => self.read(answer).unwrap_or_default(),
                // The server refused the script, maybe because of only one of the requests.
                Err(error) if error.code().is_some() => Vec::new(),
                Err(error) => self.parts.iter().map(|_| Err(error.clone())).collect(),
            },
        };
        Answered {
            parts: self.parts,
            answers,
        }
    }

    async fn run_alone(
        &self,
        part: &Part,
        tag: Option<&Tag>,
        connection: &mut MultiplexedConnection,
    ) -> Result<Value, RedisError> {
        let (state, owner) = (self.word(&part.state), self.word(&part.owner));
        match &self.attempts {
            Some(Attempts {
                session,
                stamp,
                head,
                who,
            }) if part.letter != RELEASES => {
                let arguments = [owner, stamp, head, who, "once"];
                let count = if part.letter == QUEUES { 4 } else { 5 };
                ACQUIRE
                    .run_in(tag, connection, &[state, session], &arguments[..count])
                    .await
            }
            _ => RELEASE.run_in(tag, connection, &[state], &[owner]).await,
        }
    }

    async fn run(
        &self,
        tag: Option<&Tag>,
        connection: &mut MultiplexedConnection,
    ) -> Result<Value, RedisError> {
        let letters: String = self.parts.iter().map(|part| part.letter).collect();
        let mut keys: Vec<&str> = self
            .parts
            .iter()
            .map(|part| self.word(&part.state))
            .collect();
        let mut arguments = vec![&*letters];
        arguments.extend(self.parts.iter().map(|part| self.word(&part.owner)));
        if let Some(attempts) = &self.attempts {
            let [session, stamp, head, who] = attempts.words();
            keys.push(session);
            arguments.extend([stamp, head, who]);
        }
        BATCH.run_in(tag, connection, &keys, &arguments).await
    }

    /// Reads the answer of `batch.lua`.
    fn read(&self, answer: Value) -> Option<Vec<Answer>> {
        let Value::Array(words) = answer else {
            return None;
        };
        let mut words = words.into_iter();
        let token = words.next()?;
        let usual = |part: &Part| match part.letter {
            RELEASES => Value::BulkString(b"1".into()),
            _ => token.clone(),
        };
        let mut answers: Vec<Answer> = self
            .parts
            .iter()
            .map(|part| Ok(Some(usual(part))))
            .collect();
        while let (Some(number), Some(answer)) = (words.next(), words.next()) {
            let Value::Int(number) = number else {
                return None;
            };
            let index = usize::try_from(number).ok()?.checked_sub(1)?;
            *answers.get_mut(index)? = Ok(Some(answer).filter(|answer| *answer != Value::Nil));
        }
        Some(answers)
    }
}

impl Answered {
    /// Gives each caller its answer, or none if it is missing.
    pub(crate) fn give_out(self) {
        let missing = iter::repeat_with(|| Ok(None));
        for (part, answer) in self
            .parts
            .into_iter()
            .zip(self.answers.into_iter().chain(missing))
        {
            // A caller that was dropped needs no answer.
            let _ = part.answer.send(answer);
        }
    }
}

impl Attempts {
    fn new([session, stamp, head, who]: [&str; 4]) -> Self {
        Self {
            session: session.to_owned(),
            stamp: stamp.to_owned(),
            head: head.to_owned(),
            who: who.to_owned(),
        }
    }

    fn words(&self) -> [&str; 4] {
        [&self.session, &self.stamp, &self.head, &self.who]
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{sync::Arc, time::Duration};

    use portalock_testkit::servers::RedisServer;

    use super::*;
    use crate::{clients::Clients, config::RedisSettings, scripts::EVICT};

    const ATTEMPT: [&str; 5] = ["1.1", "kept|1", "a|3|3", "{}", "once"];

    fn add(batch: &mut Batch, state: &str, arguments: &[&str]) -> bool {
        let keys = [state, "p/session/a"];
        let call = Call::Script(&ACQUIRE, &keys, arguments);
        batch.add(call).is_some()
    }

    #[test]
    fn attempts_with_other_words_and_other_requests_stay_out() {
        let mut batch = Batch::default();
        assert!(add(&mut batch, "p/lock/a", &ATTEMPT));
        for (word, other) in [(1, "kept|2"), (2, "a|4|4"), (3, "{\"pid\":1}")] {
            let mut arguments = ATTEMPT;
            arguments[word] = other;
            assert!(!add(&mut batch, "p/lock/b", &arguments), "{other}");
        }
        let shares = [&ATTEMPT[..], &["shares"]].concat();
        assert!(!add(&mut batch, "p/lock/b", &shares));
        let keys = ["p/lock/b"];
        let names_a_neighbour = Call::Script(&RELEASE, &keys, &["1.1", "2.1"]);
        assert!(batch.add(names_a_neighbour).is_none());
        let other_scripts = [
            Call::Script(&EVICT, &keys, &["1.1"]),
            Call::Script(&EVICT, &["p/lock/b", "p/session/a"], &ATTEMPT),
        ];
        assert!(other_scripts.iter().all(|call| batch.add(*call).is_none()));
        assert!(batch.add(Call::Script(&RELEASE, &keys, &["1.1"])).is_some());
        assert!(add(&mut batch, "p/lock/b", &ATTEMPT));
        assert_eq!(batch.len(), 3);
    }

    #[test]
    fn an_answer_that_is_none_of_the_script_answers_nobody() {
        let mut batch = Batch::default();
        for state in ["p/lock/a", "p/lock/b"] {
            add(&mut batch, state, &ATTEMPT);
        }
        let token = Value::BulkString(b"7".into());
        let other = Value::BulkString(b"8".into());
        let read = |words: &[Value]| {
            let answers = batch.read(Value::Array(words.to_vec()))?;
            Some(answers.into_iter().map(Result::unwrap).collect::<Vec<_>>())
        };
        let both = [Some(token.clone()), Some(other.clone())];
        assert_eq!(
            read(&[token.clone(), Value::Int(2), other.clone()]).unwrap(),
            both
        );
        let second = [None, Some(token.clone())];
        assert_eq!(
            read(&[token.clone(), Value::Int(1), Value::Nil]).unwrap(),
            second
        );
        for number in [Value::Int(0), Value::Int(3), Value::Int(-1), Value::Nil] {
            assert_eq!(read(&[token.clone(), number, other.clone()]), None);
        }
        assert_eq!(read(&[]), None);
        assert!(batch.read(Value::Okay).is_none());
    }

    async fn ask(connection: &mut MultiplexedConnection, command: &str) -> Value {
        let mut words = command.split(' ');
        let mut sent = redis::cmd(words.next().unwrap());
        sent.arg(words.collect::<Vec<_>>());
        sent.query_async(connection).await.unwrap()
    }

    #[tokio::test]
    async fn a_batch_does_what_its_callers_still_wait_for() {
        let server = RedisServer::start().unwrap();
        let settings = RedisSettings::new(&server.url()).unwrap();
        let settings = settings.with_restart_wait(Duration::ZERO);
        let Clients::One(client) = Clients::new(&Arc::new(settings)) else {
            panic!("it is one server");
        };
        let session = client.session().await.unwrap();
        let (key, route) = (session.service(), &session.service().server.route);
        let wire = key.server.connections.wire().await.unwrap();
        let mut connection = wire.connection();
        let (stamp, head) = (key.stamp(), format!("{}|3|3", key.id));
        let add = |batch: &mut Batch, letter, name, owner: &str| {
            let state = format!("portalock/lock/{name}");
            let attempt = [owner, &stamp, &head, "{}", "once"];
            let call = match letter {
                RELEASES => Call::Script(&RELEASE, &[&state], &[owner]),
                QUEUES => Call::Script(&ACQUIRE, &[&state, &key.key], &attempt[..4]),
                _ => Call::Script(&ACQUIRE, &[&state, &key.key], &attempt),
            };
            batch.add(call).unwrap()
        };
        let send = async |batch: Batch| batch.send(route, wire.connection()).await.give_out();

        let mut batch = Batch::default();
        let granted = add(&mut batch, QUEUES, "a", "1.1");
        drop(add(&mut batch, RELEASES, "a", "1.1"));
        send(batch).await;
        let token = granted.await.unwrap().unwrap().unwrap();
        assert!(matches!(token, Value::BulkString(_)), "{token:?}");

        // An attempt that takes no place in the queue, and one that takes a place.
        for (letter, queued) in [(ONCE, 0), (QUEUES, 1)] {
            let mut batch = Batch::default();
            let refused = add(&mut batch, letter, "a", "2.1");
            drop(add(&mut batch, RELEASES, "a", "1.1"));
            send(batch).await;
            let answer = refused.await.unwrap().unwrap().unwrap();
            assert!(matches!(answer, Value::Array(_)), "{answer:?}");
            let queue = ask(&mut connection, "EXISTS portalock/lock-queue/a").await;
            assert_eq!(queue, Value::Int(queued));
        }

        let mut batch = Batch::default();
        drop(add(&mut batch, QUEUES, "b", "3.1"));
        let released = add(&mut batch, RELEASES, "a", "1.1");
        send(batch).await;
        let one = Value::BulkString(b"1".into());
        assert_eq!(released.await.unwrap().unwrap(), Some(one));
        let exists = ask(&mut connection, "EXISTS portalock/lock/b").await;
        assert_eq!(exists, Value::Int(0));

        // Each caller then asks by itself whether its own request is refused.
        ask(&mut connection, "ACL SETUSER default -evalsha").await;
        let mut batch = Batch::default();
        let both = ["a", "b"].map(|name| add(&mut batch, QUEUES, name, "4.1"));
        send(batch).await;
        for answered in both {
            assert_eq!(answered.await.unwrap().unwrap(), None);
        }

        drop(server);
        let mut batch = Batch::default();
        let both = ["a", "b"].map(|name| add(&mut batch, QUEUES, name, "4.1"));
        send(batch).await;
        for answered in both {
            answered.await.unwrap().unwrap_err();
        }
    }
}
