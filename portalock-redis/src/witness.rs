//! Witnesses: servers that know the address of another server. They are sentinels, or nodes of a cluster.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use portalock_core::{BackendError, BackendErrorKind};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, Pipeline, RedisError, Value,
    aio::MultiplexedConnection,
};
use tokio::{task::JoinSet, time::timeout};

use crate::{config::RedisSettings, connect::client, error::failed};

/// A server to ask, over a connection that is kept.
#[derive(Debug)]
pub(crate) struct Witness {
    server: ConnectionInfo,
    /// The session thread drives this connection.
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// The address of the server, as one witness reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Grows with each switch to another server.
    pub(crate) epoch: u64,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// The result of asking the witnesses.
#[derive(Debug)]
pub(crate) struct Heard {
    /// The first of the answers: there is at least one.
    told: Told,
    /// The answers with the latest epoch.
    answers: Vec<Told>,
    /// Whether all witnesses have answered.
    pub(crate) from_all: bool,
}

impl Heard {
    /// Keeps the answers with the latest epoch. `None` if there is no answer.
    pub(crate) fn latest(mut answers: Vec<Told>, from_all: bool) -> Option<Self> {
        let epoch = answers.iter().map(|told| told.epoch).max();
        answers.retain(|told| Some(told.epoch) == epoch);
        Some(Self {
            told: answers.first()?.clone(),
            answers,
            from_all,
        })
    }

    /// Whether these answers are enough to [select](Self::select) an address: they agree, or one of them is the `known` address.
    pub(crate) fn is_clear(&self, known: Option<&Told>) -> bool {
        let mut answers = self.answers.iter();
        self.from_all
            || known.is_some_and(|known| answers.clone().any(|told| told.is_at(known)))
            || answers.all(|told| told.is_at(&self.told))
    }

    /// Selects the address that counts. With one epoch the witnesses name two if they know one server by different
    /// names, for example by its host name and by its IP address, or if one of them was set up wrongly. Then most of
    /// them count. While some don't answer, the `known` address stays as long as one of them names it: to take turns
    /// between two names would look like one switch after another.
    pub(crate) fn select(self, known: Option<&Told>) -> Told {
        let is_known = |told: &Told| known.is_some_and(|known| told.is_at(known));
        let named_by = |told: &Told| self.answers.iter().filter(|one| one.is_at(told)).count();
        let weight = |told: &&Told| {
            (
                !self.from_all && is_known(told),
                named_by(told),
                is_known(told),
            )
        };
        let selected = self.answers.iter().max_by_key(weight);
        selected.unwrap_or(&self.told).clone()
    }
}

/// How many answers to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enough {
    /// More than half of the witnesses, so that one unreachable witness does not delay a connection.
    Most,
    /// All witnesses; the deadline ends the wait for unreachable ones. So no switch that a reachable witness knows of
    /// is missed.
    All,
}

/// A question, and the function that reads an answer.
pub(crate) struct Question<T> {
    /// The operation that fails without an answer.
    pub(crate) what: &'static str,
    pub(crate) commands: Pipeline,
    pub(crate) read: fn(&ConnectionInfo, Answers) -> Result<T, BackendError>,
}

/// The answers to a question, one for each command.
pub(crate) type Answers = Vec<Result<Value, RedisError>>;

impl Told {
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl Witness {
    pub(crate) fn new(server: ConnectionInfo) -> Self {
        Self {
            server,
            connection: Mutex::default(),
        }
    }

    pub(crate) fn is_at(&self, host: &str, port: u16) -> bool {
        match self.server.addr() {
            ConnectionAddr::Tcp(its, at)
            | ConnectionAddr::TcpTls {
                host: its,
                port: at,
                ..
            } => its == host && *at == port,
            _ => false,
        }
    }

    async fn ask<T>(
        &self,
        question: &Question<T>,
        settings: &RedisSettings,
    ) -> Result<T, BackendError> {
        // Taken out until it has answered, so that a connection that never answers is not used again.
        let kept = self.kept().take();
        if let Some(connection) = kept
            && let Ok(answers) = self.ask_over(connection, question).await
        {
            return (question.read)(&self.server, answers);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout()))
            .set_response_timeout(Some(settings.patience()));
        let connection = client(&self.server, settings.authority())
            .await?
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| failed(question.what, error))?;
        let answers = self.ask_over(connection, question).await;
        (question.read)(
            &self.server,
            answers.map_err(|error| failed(question.what, error))?,
        )
    }

    async fn ask_over<T>(
        &self,
        mut connection: MultiplexedConnection,
        question: &Question<T>,
    ) -> Result<Answers, RedisError> {
        let answers = question.commands.query_async(&mut connection).await?;
        *self.kept() = Some(connection);
        Ok(answers)
    }

    fn kept(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        // No code panics while it holds the lock.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks all witnesses at once, until enough have answered. Runs on the session thread, which drives their connections.
pub(crate) async fn ask_all<T: Send + 'static>(
    witnesses: Vec<Arc<Witness>>,
    question: Question<T>,
    enough: Enough,
    settings: &Arc<RedisSettings>,
) -> Vec<Result<T, BackendError>> {
    let within = patience(settings);
    let (asked, what, question) = (witnesses.len(), question.what, Arc::new(question));
    let mut questions = JoinSet::new();
    for witness in witnesses {
        let (question, settings) = (question.clone(), settings.clone());
        questions.spawn(async move {
            match timeout(within, witness.ask(&question, &settings)).await {
                Ok(answer) => answer,
                Err(_) => Err(silent(question.what)),
            }
        });
    }
    let (mut answers, mut count) = (Vec::new(), 0);
    while let Some(answer) = questions.join_next().await {
        let answer = answer.unwrap_or_else(|_| Err(silent(what)));
        count += usize::from(answer.is_ok());
        answers.push(answer);
        if enough == Enough::Most && count > asked / 2 {
            break;
        }
    }
    answers
}

/// Half of the time for a renewal: connecting to the server needs the other half.
fn patience(settings: &RedisSettings) -> Duration {
    let renewal = settings.session_ttl() / 3;
    settings.connect_timeout().min(renewal / 2)
}

pub(crate) fn silent(what: &'static str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("can't {what}: it did not answer in time"),
    )
}

/// Selects the reason why no witness answered; if there is one that a user can fix, it is selected.
pub(crate) fn worst(failures: impl IntoIterator<Item = BackendError>) -> Option<BackendError> {
    failures
        .into_iter()
        .reduce(|one, other| if other.is_retryable() { one } else { other })
}

/// Adds an address to the settings of a connection.
pub(crate) fn at(server: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let host = host.to_owned();
    let place = match server.addr() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    server.clone().set_addr(place)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use portalock_testkit::servers::RedisServer;

    use super::*;
    use crate::address::Address;

    fn told(host: &str) -> Told {
        Told {
            epoch: 1,
            host: host.to_owned(),
            port: 1,
        }
    }

    /// Otherwise each look would seem to be a switch, in which a session reconnects or ends.
    #[test]
    fn two_names_of_one_server_are_no_switch() {
        for (answers, from_all, known, selected) in [
            ("ab", true, "a", "a"),
            ("ba", true, "a", "a"),
            ("ab", true, "b", "b"),
            ("abb", false, "a", "a"),
            ("bba", false, "a", "a"),
            ("abb", true, "a", "b"),
            ("bab", true, "", "b"),
            ("bb", false, "a", "b"),
        ] {
            let told_by = answers.chars().map(|host| told(&host.to_string()));
            let heard = Heard::latest(told_by.collect(), from_all).unwrap();
            let selected_now = heard.select(Some(&told(known)));
            assert_eq!(selected_now, told(selected), "{answers} {from_all} {known}");
        }
    }

    #[tokio::test]
    async fn most_of_the_witnesses_are_enough_or_all_are_asked() {
        let server = RedisServer::start().unwrap();
        let settings = Arc::new(RedisSettings::new(&server.url()).unwrap());
        let Address::Fixed(address) = settings.address() else {
            panic!("it names a server");
        };
        for (enough, answered) in [(Enough::Most, 3), (Enough::All, 5)] {
            let question = Question {
                what: "ask a test's server",
                commands: redis::pipe().ping().clone(),
                read: |_, answers| Ok(answers),
            };
            let witnesses = [(); 5].map(|()| Arc::new(Witness::new(address.clone())));
            let answers = ask_all(witnesses.to_vec(), question, enough, &settings).await;
            assert_eq!(
                answers.iter().filter(|answer| answer.is_ok()).count(),
                answered
            );
        }
        assert_eq!(patience(&settings), settings.session_ttl() / 6);
    }
}
