//! The service's answer to a call that has no deadline of its own.

use std::{future::Future, time::Duration};

use super::deadline::bound;
use crate::{
    BackendError, BackendErrorKind, LockError, LockName, Policy, clock::Instant, own::Own,
};

/// How long such a call waits for the answer.
const ANSWER_TIME: Duration = Policy::DEFAULT_TIMEOUT;

/// Waits for the answer to `asked` for 5 s.
pub(crate) async fn answer<T>(
    name: &LockName,
    asked: impl Future<Output = Result<T, BackendError>> + Unpin,
) -> Result<T, LockError> {
    let asked = Own::new(Some(asked));
    // A caller that asks until something changes, and is answered at once, would never let other tasks run.
    tokio::task::coop::consume_budget().await;
    let silence = "the lock service did not answer";
    bound(Instant::now().checked_add(ANSWER_TIME), asked)
        .await
        .unwrap_or_else(|| Err(BackendError::new(BackendErrorKind::Unavailable, silence)))
        .map_err(|source| LockError::Backend {
            name: name.clone(),
            source,
        })
}
