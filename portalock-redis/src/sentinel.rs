//! Asking sentinels where the primary is.
//!
//! All of them are asked at once, over connections that are kept on the session thread. One answer is enough if no more come;
//! where they differ, the latest epoch counts: sentinels raise it with each switch, and one that hears of a switch late says for a
//! while what was true before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use portalock_core::{BackendError, BackendErrorKind};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, ServerErrorKind,
    Value, aio::MultiplexedConnection,
};
use tokio::{task::JoinSet, time::timeout};

use crate::{address::SentinelAddress, config::RedisSettings, connect::client, error::failed};

const ASKING: &str = "ask a Redis sentinel for the primary";

/// The sentinels of one primary.
#[derive(Debug)]
pub(crate) struct Sentinels {
    all: Vec<Arc<Sentinel>>,
    master: Arc<str>,
    settings: Arc<RedisSettings>,
}

#[derive(Debug)]
struct Sentinel {
    server: ConnectionInfo,
    /// Driven by the session thread.
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Where the primary is, as one sentinel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Grows with each switch.
    pub(crate) epoch: u64,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What the sentinels have said.
pub(crate) struct Heard {
    /// What the latest epoch says.
    pub(crate) told: Told,
    /// Each of them has answered.
    pub(crate) from_all: bool,
}

/// How many answers to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Enough {
    /// More than half of them: none that is away holds up a connection.
    Most,
    /// All, and the deadline for those that are away: no switch is overlooked that one of them knows of.
    All,
}

impl Sentinels {
    pub(crate) fn new(address: &SentinelAddress, settings: Arc<RedisSettings>) -> Self {
        let sentinel = |server: &ConnectionInfo| {
            Arc::new(Sentinel {
                server: server.clone(),
                connection: Mutex::default(),
            })
        };
        Self {
            all: address.sentinels.iter().map(sentinel).collect(),
            master: address.master.clone(),
            settings,
        }
    }

    /// Asks them all. Runs on the session thread, where their connections are driven.
    pub(crate) async fn ask(&self, enough: Enough) -> Result<Heard, BackendError> {
        let within = self.patience();
        let mut questions = JoinSet::new();
        for sentinel in &self.all {
            let (sentinel, master) = (sentinel.clone(), self.master.clone());
            let settings = self.settings.clone();
            questions.spawn(async move {
                match timeout(within, sentinel.ask(&master, &settings)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(silent()),
                }
            });
        }
        let mut answers = Answers::default();
        while let Some(answer) = questions.join_next().await {
            answers.add(answer.unwrap_or_else(|_| Err(silent())));
            if matches!(enough, Enough::Most) && answers.count > self.all.len() / 2 {
                break;
            }
        }
        answers.heard(self.all.len())
    }

    /// Half of the time that a renewal has: connecting to the primary needs the rest.
    fn patience(&self) -> Duration {
        let renewal = self.settings.session_ttl() / 3;
        self.settings.connect_timeout().min(renewal / 2)
    }
}

impl Sentinel {
    /// What this one knows of the master, if it knows it.
    async fn ask(
        &self,
        master: &str,
        settings: &RedisSettings,
    ) -> Result<Option<Told>, BackendError> {
        // Taken out for as long as it owes an answer: one that never answers is not asked again.
        let kept = self.kept().take();
        if let Some(connection) = kept
            && let Ok(told) = told(&connection, master).await
        {
            *self.kept() = Some(connection);
            return Ok(told);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout()))
            .set_response_timeout(Some(settings.patience()));
        let connection = client(&self.server, settings.authority())
            .await?
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| failed(ASKING, error))?;
        let told = told(&connection, master).await.map_err(refused)?;
        *self.kept() = Some(connection);
        Ok(told)
    }

    fn kept(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        // Nothing panics while it is held.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn told(
    connection: &MultiplexedConnection,
    master: &str,
) -> Result<Option<Told>, RedisError> {
    let mut questions = redis::pipe();
    questions.cmd("SENTINEL").arg("MASTER").arg(master);
    // In a failover it tells the new one as soon as that is a primary; the state changes when the replicas have followed.
    questions
        .cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(master);
    let mut connection = connection.clone();
    let answers: [Result<Value, RedisError>; 2] = questions
        .ignore_errors()
        .query_async(&mut connection)
        .await?;
    let [state, place] = answers;
    let Some((host, port)) = redis::from_redis_value(place?)? else {
        // Of one that it doesn't know, the state is an error.
        return Ok(None);
    };
    let state: HashMap<String, String> = redis::from_redis_value(state?)?;
    let epoch = state
        .get("config-epoch")
        .and_then(|epoch| epoch.parse().ok());
    Ok(Some(Told {
        epoch: epoch.unwrap_or(0),
        host,
        port,
    }))
}

fn silent() -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("can't {ASKING}: it did not answer in time"),
    )
}

/// A server that is none has no such command.
fn refused(error: RedisError) -> BackendError {
    if error.kind() != ErrorKind::Server(ServerErrorKind::ResponseError) {
        return failed(ASKING, error);
    }
    BackendError::new(
        BackendErrorKind::Misconfigured,
        format!("can't {ASKING}: the server at its address is no sentinel"),
    )
    .with_source(error)
}

/// What has been answered so far.
#[derive(Debug, Default)]
struct Answers {
    latest: Option<Told>,
    /// How many knew the master, or didn't.
    count: usize,
    /// Why one did not answer: the reason that its user can do something about, if there is one.
    failure: Option<BackendError>,
}

impl Answers {
    fn add(&mut self, answer: Result<Option<Told>, BackendError>) {
        match answer {
            Ok(told) => {
                self.count += 1;
                if let Some(told) = told
                    && self
                        .latest
                        .as_ref()
                        .is_none_or(|latest| latest.epoch < told.epoch)
                {
                    self.latest = Some(told);
                }
            }
            Err(error) => {
                if self.failure.is_none() || !error.is_retryable() {
                    self.failure = Some(error);
                }
            }
        }
    }

    fn heard(self, asked: usize) -> Result<Heard, BackendError> {
        const WHAT: &str = "can't find the Redis primary";
        if let Some(told) = self.latest {
            return Ok(Heard {
                told,
                from_all: self.count == asked,
            });
        }
        let Some(failure) = self.failure else {
            return Err(BackendError::new(
                BackendErrorKind::Misconfigured,
                format!("{WHAT}: the sentinels know no master of that name"),
            ));
        };
        let answered = match self.count {
            0 => format!("none of {asked} sentinels answered"),
            count => {
                format!("{count} of {asked} sentinels answered, and know no master of that name")
            }
        };
        Err(BackendError::new(failure.kind(), format!("{WHAT}: {answered}")).with_source(failure))
    }
}

/// The primary's address, with how to connect to it.
pub(crate) fn at(server: &ConnectionInfo, told: &Told) -> ConnectionInfo {
    let (host, port) = (told.host.clone(), told.port);
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
mod tests {
    use super::*;

    fn told(epoch: u64, port: u16) -> Told {
        Told {
            epoch,
            host: "h".into(),
            port,
        }
    }

    #[test]
    fn the_latest_epoch_counts_whoever_answers_first() {
        for order in [[1, 3, 2], [3, 2, 1], [2, 1, 3]] {
            let mut answers = Answers::default();
            for epoch in order {
                answers.add(Ok(Some(told(epoch, u16::try_from(epoch).unwrap()))));
            }
            let heard = answers.heard(3).unwrap();
            assert_eq!(heard.told, told(3, 3));
            assert!(heard.from_all);
        }
    }

    #[test]
    fn one_answer_is_enough_and_none_says_why() {
        let denied = || BackendError::new(BackendErrorKind::PermissionDenied, "no");
        let mut answers = Answers::default();
        answers.add(Err(silent()));
        answers.add(Ok(Some(told(0, 1))));
        answers.add(Err(denied()));
        assert!(!answers.heard(3).unwrap().from_all);

        let kind = |given: Vec<Result<Option<Told>, BackendError>>| {
            let (mut answers, asked) = (Answers::default(), given.len());
            for answer in given {
                answers.add(answer);
            }
            answers.heard(asked).map(drop).unwrap_err().kind()
        };
        assert_eq!(
            kind(vec![Ok(None), Ok(None)]),
            BackendErrorKind::Misconfigured
        );
        assert_eq!(
            kind(vec![Err(silent()), Ok(None)]),
            BackendErrorKind::Unavailable
        );
        assert_eq!(
            kind(vec![Err(silent()), Err(denied()), Err(silent())]),
            BackendErrorKind::PermissionDenied
        );
    }
}
