//! A timer for any executor: the runtime's own, or one on the library's background thread.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use futures_util::future::select;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Sleep, sleep_until},
};

use crate::{background::SESSIONS, clock::Instant};

/// Ready when its deadline has passed. Created by [`at`].
pub(crate) enum Timer {
    /// A timer of the tokio runtime that polls it. It follows the runtime's clock, which a test may pause.
    Tokio(Pin<Box<Sleep>>),
    /// A timer on the background thread, which cancels it when the receiver is dropped.
    Background(oneshot::Receiver<()>),
    /// The system gave no thread: the timer never fires, but code that reads the clock still sees the deadline.
    Never,
}

/// A timer for `deadline`, on any executor.
pub(crate) fn at(deadline: Instant) -> Timer {
    if Handle::try_current().is_ok() {
        // A runtime without timers panics here, and there is no way to check beforehand.
        if let Ok(sleep) = catch_unwind(AssertUnwindSafe(|| Box::pin(sleep_until(deadline)))) {
            return Timer::Tokio(sleep);
        }
    }
    in_background(deadline)
}

fn in_background(deadline: Instant) -> Timer {
    match SESSIONS.handle() {
        Ok(handle) => {
            let (mut sender, receiver) = oneshot::channel();
            // Dropping the sender wakes the receiver.
            handle.spawn(async move {
                select(pin!(sleep_until(deadline)), pin!(sender.closed())).await;
            });
            Timer::Background(receiver)
        }
        Err(error) => {
            tracing::error!(%error, "no thread for a timer");
            Timer::Never
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.get_mut() {
            Self::Tokio(sleep) => sleep.as_mut().poll(context),
            // Nothing is sent: the timer's task drops its end.
            Self::Background(receiver) => Pin::new(receiver).poll(context).map(drop),
            Self::Never => Poll::Pending,
        }
    }
}
