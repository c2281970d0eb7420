//! Calls that end with the runtime in which they began.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{runtime::Handle, sync::oneshot};

use super::per_runtime::no_runtime;
use crate::{BackendError, BackendErrorKind};

/// Makes a call that needs tokio, for example its timers, in the current runtime.
///
/// The caller may move the call to another runtime while it waits. Then the call goes on as long as the first runtime lasts.
///
/// # Errors
///
/// [`Misconfigured`](BackendErrorKind::Misconfigured) outside a tokio runtime, [`Unavailable`](BackendErrorKind::Unavailable) if
/// the runtime has ended meanwhile, or what `call` failed with.
///
/// # Cancel safety
///
/// That of `call`.
pub async fn in_its_runtime<T>(
    call: impl Future<Output = Result<T, BackendError>> + Unpin,
) -> Result<T, BackendError> {
    Handle::try_current().map_err(|_| no_runtime())?;
    while_its_runtime_lasts(call).await
}

/// A call that may be polled in another runtime than the one in which it began: by the clean-up, if its caller was dropped.
///
/// It fails when its own runtime has ended. Nothing that it waits for can come then, and tokio's timers panic, which ends a
/// program that was built with `panic = "abort"`.
pub(super) struct Lasting<F> {
    call: F,
    runtime: Option<Handle>,
    /// Only if it is polled elsewhere. Ready when the runtime has ended.
    end: Option<oneshot::Receiver<()>>,
}

/// Begins `call` in the current runtime.
pub(super) fn while_its_runtime_lasts<F>(call: F) -> Lasting<F> {
    Lasting {
        call,
        runtime: Handle::try_current().ok(),
        end: None,
    }
}

impl<T, F: Future<Output = Result<T, BackendError>> + Unpin> Future for Lasting<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { call, runtime, end } = &mut *self;
        let is_elsewhere = |runtime: &&mut Handle| {
            Handle::try_current().map_or(true, |here| here.id() != runtime.id())
        };
        if let Some(runtime) = runtime.as_mut().filter(is_elsewhere)
            && Pin::new(end.get_or_insert_with(|| end_of(runtime)))
                .poll(context)
                .is_ready()
        {
            let ended = "the runtime in which the request was sent has ended";
            return Poll::Ready(Err(BackendError::new(BackendErrorKind::Unavailable, ended)));
        }
        Pin::new(call).poll(context)
    }
}

fn end_of(runtime: &Handle) -> oneshot::Receiver<()> {
    let (mut lasts, end) = oneshot::channel();
    // A runtime that ends drops its tasks before it stops its timers, and one that has ended drops a new task at once.
    runtime.spawn(async move { lasts.closed().await });
    end
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::{
        runtime::Builder,
        time::{sleep, timeout},
    };

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn outside_a_runtime_it_says_what_to_do() {
        let call = Box::pin(async {
            sleep(Duration::ZERO).await;
            Ok(())
        });
        let error = in_its_runtime(call).now_or_never().unwrap().unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
    }

    #[test]
    fn elsewhere_it_goes_on_until_its_runtime_has_ended() {
        for ends in [false, true] {
            let (own, other) = (runtime(), runtime());
            let (go, gone) = oneshot::channel();
            let call = Box::pin(async {
                let told = timeout(Duration::from_secs(3600), gone).await;
                Ok(told.unwrap().unwrap())
            });
            let mut call = Box::pin(in_its_runtime(call));
            for runtime in [&own, &other] {
                runtime.block_on(async { assert!(futures_util::poll!(&mut call).is_pending()) });
            }
            if ends {
                drop(own);
                let error = other.block_on(call).unwrap_err();
                assert_eq!(error.kind(), BackendErrorKind::Unavailable);
            } else {
                go.send(7).unwrap();
                assert_eq!(other.block_on(call).unwrap(), 7);
            }
        }
    }
}
