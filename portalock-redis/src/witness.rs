//! Servers that are asked where another one is: sentinels, or the nodes of a cluster.

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

/// One that is asked, over a connection that is kept.
#[derive(Debug)]
pub(crate) struct Witness {
    server: ConnectionInfo,
    /// Driven by the session thread.
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Where the server is, as one of them says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Grows with each switch.
    pub(crate) epoch: u64,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What they have said.
#[derive(Debug)]
pub(crate) struct Heard {
    /// What the latest epoch says.
    pub(crate) told: Told,
    /// Each of them has answered.
    pub(crate) from_all: bool,
}

/// How many answers to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enough {
    /// More than half of them: none that is away holds up a connection.
    Most,
    /// All, and the deadline for those that are away: no switch is overlooked that one of them knows of.
    All,
}

/// What is asked, and how an answer is read.
pub(crate) struct Question<T> {
    /// What can't be done without an answer.
    pub(crate) what: &'static str,
    pub(crate) commands: Pipeline,
    pub(crate) read: fn(&ConnectionInfo, Answers) -> Result<T, BackendError>,
}

/// One for each command of a question.
pub(crate) type Answers = Vec<Result<Value, RedisError>>;

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
        // Taken out for as long as it owes an answer: one that never answers is not asked again.
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
        // Nothing panics while it is held.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks them all at once, until enough have answered. Runs on the session thread, where their connections are driven.
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

/// Half of the time that a renewal has: connecting to where the server is needs the rest.
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

/// Why nobody could say: the reason that a user can do something about, if there is one.
pub(crate) fn worst(failures: impl IntoIterator<Item = BackendError>) -> Option<BackendError> {
    failures
        .into_iter()
        .reduce(|one, other| if other.is_retryable() { one } else { other })
}

/// How to connect to a server, and where it is.
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
