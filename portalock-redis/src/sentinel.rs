//! Asks sentinels for the address of the primary.
//!
//! All sentinels are asked at once, over connections that are kept on the session thread. One answer is enough if no
//! more come. If the answers differ, the latest epoch counts: sentinels raise it with each switch, and a sentinel that
//! learns of a switch late gives the old address for a while.

use std::{collections::HashMap, sync::Arc};

use portalock_core::{BackendError, BackendErrorKind};
use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::{
    address::SentinelAddress,
    config::RedisSettings,
    error::failed,
    witness::{Answers, Enough, Heard, Question, Told, Witness, ask_all, worst},
};

const ASKING: &str = "ask a Redis sentinel for the primary";

/// The sentinels of one primary.
#[derive(Debug)]
pub(crate) struct Sentinels {
    all: Vec<Arc<Witness>>,
    master: Arc<str>,
    settings: Arc<RedisSettings>,
}

impl Sentinels {
    pub(crate) fn new(address: &SentinelAddress, settings: Arc<RedisSettings>) -> Self {
        let sentinels = address.sentinels.iter().cloned();
        Self {
            all: sentinels.map(Witness::new).map(Arc::new).collect(),
            master: address.master.clone(),
            settings,
        }
    }

    /// Asks all sentinels.
    pub(crate) async fn ask(&self, enough: Enough) -> Result<Heard, BackendError> {
        let mut commands = redis::pipe();
        commands.cmd("SENTINEL").arg("MASTER").arg(&*self.master);
        // In a failover, this command returns the new primary as soon as it is one; the state changes only when the
        // replicas follow it.
        commands
            .cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&*self.master)
            .ignore_errors();
        let question = Question {
            what: ASKING,
            commands,
            read: |_, answers| told(answers).map_err(refused),
        };
        let answers = ask_all(self.all.clone(), question, enough, &self.settings).await;
        heard(answers, self.all.len())
    }
}

/// Reads the answer of one sentinel: the address of the master, if the sentinel knows it.
fn told(answers: Answers) -> Result<Option<Told>, RedisError> {
    let [state, place] = <[_; 2]>::try_from(answers).map_err(|_| {
        redis::RedisError::from((ErrorKind::UnexpectedReturnType, "not two answers"))
    })?;
    let Some((host, port)) = redis::from_redis_value(place?)? else {
        // The sentinel answers with an error if it doesn't know the master.
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

/// A server that is not a sentinel does not have this command.
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

/// Selects the result from the answers of `asked` sentinels: if they differ, the latest epoch counts.
fn heard(
    answers: Vec<Result<Option<Told>, BackendError>>,
    asked: usize,
) -> Result<Heard, BackendError> {
    const WHAT: &str = "can't find the Redis primary";
    let (mut told, mut count, mut failures) = (Vec::new(), 0, Vec::new());
    for answer in answers {
        match answer {
            Ok(answer) => {
                count += 1;
                told.extend(answer);
            }
            Err(error) => failures.push(error),
        }
    }
    if let Some(heard) = Heard::latest(told, count == asked) {
        return Ok(heard);
    }
    let Some(failure) = worst(failures) else {
        return Err(BackendError::new(
            BackendErrorKind::Misconfigured,
            format!("{WHAT}: the sentinels know no master of that name"),
        ));
    };
    let answered = match count {
        0 => format!("none of {asked} sentinels answered"),
        count => {
            format!("{count} of {asked} sentinels answered, and know no master of that name")
        }
    };
    Err(BackendError::new(failure.kind(), format!("{WHAT}: {answered}")).with_source(failure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::witness::silent;

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
            let answers = order.map(|epoch| Ok(Some(told(epoch, u16::try_from(epoch).unwrap()))));
            let heard = heard(answers.into(), 3).unwrap();
            assert!(heard.from_all);
            assert_eq!(heard.select(None), told(3, 3));
        }
    }

    #[test]
    fn one_answer_is_enough_and_none_says_why() {
        let silent = || Err(silent(ASKING));
        let denied = || Err(BackendError::new(BackendErrorKind::PermissionDenied, "no"));
        let answers = vec![silent(), Ok(Some(told(0, 1))), denied()];
        assert!(!heard(answers, 3).unwrap().from_all);

        let kind = |answers: Vec<Result<Option<Told>, BackendError>>| {
            let asked = answers.len();
            heard(answers, asked).unwrap_err().kind()
        };
        assert_eq!(
            kind(vec![Ok(None), Ok(None)]),
            BackendErrorKind::Misconfigured
        );
        assert_eq!(
            kind(vec![silent(), Ok(None)]),
            BackendErrorKind::Unavailable
        );
        assert_eq!(
            kind(vec![silent(), denied(), silent()]),
            BackendErrorKind::PermissionDenied
        );
    }
}
