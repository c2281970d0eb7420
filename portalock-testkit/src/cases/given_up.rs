//! Attempts that are given up, for the cases of locks and of permits.

use std::{future::Future, time::Duration};

use portalock_core::{BackendError, Released};

use crate::{
    trial::{Client, Trial},
    verdict::{CaseResult, soon},
};

/// What becomes of an attempt that is given up.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// It takes effect, but its answer is lost.
    Unanswered,
    /// It arrives after the release of its owner.
    Late,
}

impl Fate {
    /// Lets `attempt` of `client` meet this fate, and releases its owner as the engine does: again until it is answered.
    pub(super) async fn meet<A, R>(
        self,
        trial: &Trial,
        client: &Client,
        attempt: impl Future<Output = A>,
        release: impl Fn() -> R,
    ) -> CaseResult
    where
        R: Future<Output = Result<Released, BackendError>>,
    {
        let fault = match self {
            Self::Unanswered => trial.lose_answers(client).await?,
            Self::Late => trial.delay_requests(client).await?,
        };
        // Its outcome is of no interest. It is dropped only after the fault, because of what it may do then.
        let attempt = soon("the end of an attempt", attempt).await?;
        let released = async {
            loop {
                match release().await {
                    Ok(_) => return Ok(()),
                    Err(error) if error.is_retryable() => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let released = soon("the answer to a release", released);
        match self {
            Self::Unanswered => {
                fault.now().await?;
                drop(attempt);
                released.await??;
            }
            Self::Late => {
                released.await??;
                fault.now().await?;
            }
        }
        Ok(())
    }
}
