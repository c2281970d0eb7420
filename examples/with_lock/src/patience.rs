//! How long to wait in all: for the backend's connection and for the lock.

use std::{future::Future, time::Duration};

use portalock::{Policy, clock::Instant};

use crate::{
    args::RunArgs,
    report::{Failure, in_millis},
};

/// The waiting options of the command line, and the start of the wait.
#[derive(Debug)]
pub(crate) struct Patience {
    since: Instant,
    timeout: Option<Duration>,
    non_blocking: bool,
}

impl Patience {
    /// The wait starts now.
    pub(crate) fn of(args: &RunArgs) -> Self {
        Self {
            since: Instant::now(),
            timeout: args.timeout,
            non_blocking: args.non_blocking,
        }
    }

    /// Gives up opening the backend when the time is over. Zero means one attempt, without a time limit.
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

    /// The policy for the lock, with the remaining time.
    pub(crate) fn policy(&self) -> Policy {
        match self.timeout {
            // The time is for the service's answer; the call waits for no holder.
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
        "the backend did not answer within {}",
        in_millis(timeout)
    ))
}
