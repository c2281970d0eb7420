//! Calls that end with the runtime in which they began.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{runtime::Handle, sync::oneshot};

use crate::{BackendError, BackendErrorKind};

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
