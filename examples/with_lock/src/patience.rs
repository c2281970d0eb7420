//! How long to wait, all in all: for the backend's connection and for the lock.

use std::{future::Future, time::Duration};

use portalock::{Policy, clock::Instant};

use crate::{
    args::RunArgs,
    report::{Failure, in_millis},
};

/// What the command line says of waiting, and since when we wait.
#[derive(Debug)]
pub(crate) struct Patience {
    since: Instant,
    timeout: Option<Duration>,
    non_blocking: bool,
}

impl Patience {
    /// It begins now.
    pub(crate) fn of(args: &RunArgs) -> Self {
        Self {
            since: Instant::now(),
            timeout: args.timeout,
            non_blocking: args.non_blocking,
        }
    }

    /// Gives up opening the backend when the time is over. A time of zero means one attempt, which takes its time.
    pub(crate) async fn bound<T>(
        &self,
        opening: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match self.timeout {
            Some(timeout) if !timeout.is_zero() => tokio::time::timeout(timeout, opening)
                .await
                .unwrap_or_else(|_| Err(no_answer(timeout))),
            _ => opening.await,
        }
    }

    /// How to wait for the lock in the time that is left.
    pub(crate) fn policy(&self) -> Policy {
        match self.timeout {
            // The time is for the service to answer in; nobody else is waited for.
            None if self.non_blocking => Policy::new().with_fail_when_locked(true),
            None => Policy::forever(),
            Some(timeout) => {
                Policy::new().with_timeout(timeout.saturating_sub(self.since.elapsed()))
            }
        }
    }
}

fn no_answer(timeout: Duration) -> Failure {
    Failure::new(format!(
        "the backend gave no answer within {}",
        in_millis(timeout)
    ))
}
