//! A timer for any executor: a thread that drives a future itself, the runtime, or the library's background thread.

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

use super::driver::{AlarmId, forget_alarm, set_alarm};
use crate::{background::SESSIONS, clock::Instant};

/// Ready when its deadline has passed. Created by [`at`].
pub(crate) struct Timer {
    deadline: Instant,
    alarm: AlarmId,
    /// What wakes it, if it is not the thread that drives it.
    source: Option<Source>,
}

enum Source {
    /// A timer of the tokio runtime that polls it. It follows the runtime's clock, which a test may pause.
    Tokio(Pin<Box<Sleep>>),
    /// A timer on the background thread, which cancels it when the receiver is dropped.
    Background(oneshot::Receiver<()>),
    /// The system gave no thread: the timer never fires, but code that reads the clock still sees the deadline.
    Never,
}

/// A timer for `deadline`, on any executor. It is started by the first poll.
pub(crate) fn at(deadline: Instant) -> Timer {
    Timer {
        deadline,
        alarm: AlarmId::mint(),
        source: None,
    }
}

fn source(deadline: Instant) -> Source {
    if Handle::try_current().is_ok() {
        // A runtime without timers panics here, and there is no way to check beforehand.
        if let Ok(sleep) = catch_unwind(AssertUnwindSafe(|| Box::pin(sleep_until(deadline)))) {
            return Source::Tokio(sleep);
        }
    }
    match SESSIONS.handle() {
        Ok(handle) => {
            let (mut sender, receiver) = oneshot::channel();
            // Dropping the sender wakes the receiver.
            handle.spawn(async move {
                select(pin!(sleep_until(deadline)), pin!(sender.closed())).await;
            });
            Source::Background(receiver)
        }
        Err(error) => {
            tracing::error!(%error, "no thread for a timer");
            Source::Never
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.get_mut();
        let source = match &mut timer.source {
            Some(source) => source,
            None if Instant::now() >= timer.deadline => return Poll::Ready(()),
            None if set_alarm(timer.alarm, timer.deadline, context.waker()) => {
                return Poll::Pending;
            }
            none => none.insert(source(timer.deadline)),
        };
        match source {
            Source::Tokio(sleep) => sleep.as_mut().poll(context),
            // Nothing is sent: the timer's task drops its end.
            Source::Background(receiver) => Pin::new(receiver).poll(context).map(drop),
            Source::Never => Poll::Pending,
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.source.is_none() {
            forget_alarm(self.alarm);
        }
    }
}
