//! A timer for any executor: a thread that drives a future itself, the runtime, or the library's background thread.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use futures_util::future::select;
use tokio::{
    runtime::{Handle, Id},
    sync::oneshot,
    time::{Sleep, sleep_until},
};

use super::driver::{AlarmId, forget_alarm, is_driving_in, set_alarm};
use crate::{background::SESSIONS, clock::Instant, own::Own};

/// Ready when its deadline has passed. Created by [`at`].
pub(crate) struct Timer {
    deadline: Instant,
    alarm: AlarmId,
    /// What wakes it, if it is not the thread that drives it.
    source: Own<Source>,
}

enum Source {
    /// A timer of the tokio runtime that polls it. It follows the runtime's clock, which a test may pause.
    Tokio(Id, Pin<Box<Sleep>>),
    /// A timer on the background thread, which cancels it when the receiver is dropped.
    Background(oneshot::Receiver<()>),
    /// The system gave no thread: it wakes at once whoever polls it, until the deadline.
    Polls,
}

/// A timer for `deadline`, on any executor. It is started by the first poll.
pub(crate) fn at(deadline: Instant) -> Timer {
    Timer {
        deadline,
        alarm: AlarmId::mint(),
        source: Own::new(None),
    }
}

fn source(deadline: Instant) -> Source {
    // The thread that drives a future may be the runtime's, whose timers then stand still.
    if let Ok(runtime) = Handle::try_current()
        && !is_driving_in(&runtime)
        // A runtime without timers panics here, and there is no way to check beforehand.
        && let Ok(sleep) = catch_unwind(AssertUnwindSafe(|| Box::pin(sleep_until(deadline))))
    {
        return Source::Tokio(runtime.id(), sleep);
    }
    elsewhere(deadline)
}

/// A source that needs no runtime of the caller.
fn elsewhere(deadline: Instant) -> Source {
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
            Source::Polls
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.get_mut();
        if Instant::now() >= timer.deadline {
            return Poll::Ready(());
        }
        // In another runtime, or in none, it begins anew: nobody may drive the one before.
        let here = || Handle::try_current().ok().map(|runtime| runtime.id());
        if matches!(&timer.source.value, Some(Source::Tokio(there, _)) if Some(*there) != here()) {
            timer.source.value = None;
        }
        if timer.source.value.is_none() && set_alarm(timer.alarm, timer.deadline, context.waker()) {
            return Poll::Pending;
        }
        let source = timer
            .source
            .value
            .get_or_insert_with(|| source(timer.deadline));
        match source {
            Source::Tokio(_, sleep) => {
                let polled = catch_unwind(AssertUnwindSafe(|| sleep.as_mut().poll(context)));
                if let Ok(polled) = polled {
                    return polled;
                }
                // Its runtime has ended.
                *source = elsewhere(timer.deadline);
                Pin::new(timer).poll(context)
            }
            // Nothing is sent: the timer's task drops its end.
            Source::Background(receiver) => Pin::new(receiver).poll(context).map(drop),
            Source::Polls => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        forget_alarm(self.alarm);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::Wake,
        thread,
        time::Duration,
    };

    use super::*;
    use crate::{
        background::tests::without_threads, engine::driver::drive, lease::tests::block_on,
    };

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_thread_that_drives_a_future_needs_no_timer_elsewhere() {
        let mut timer = at(Instant::now() + Duration::from_millis(10));
        assert_eq!(drive(&mut timer, || Ok::<_, ()>(())), Ok(()));
        assert!(timer.source.value.is_none());
    }

    /// Another thread of the parent may turn the runtime's timers during the fork, and the child would wait for it.
    #[test]
    fn a_forked_child_that_drops_it_does_not_drop_what_belongs_to_a_runtime() {
        struct Wakes;
        impl Wake for Wakes {
            fn wake(self: Arc<Self>) {}
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        for in_runtime in [true, false] {
            let _inside = in_runtime.then(|| runtime.enter());
            for in_child in [true, false] {
                let (counted, mut timer) = (Arc::new(Wakes), at(Instant::now() + LONG));
                let waker = counted.clone().into();
                let polled = Pin::new(&mut timer).poll(&mut Context::from_waker(&waker));
                assert!(polled.is_pending());
                drop(waker);
                if in_child {
                    timer.source.inherit();
                }
                drop(timer);
                // The source has a clone of the waker until it is dropped.
                let is_kept = Arc::strong_count(&counted) > 1;
                assert_eq!(is_kept, in_child, "in a runtime: {in_runtime}");
            }
        }
    }

    /// As in a thread for blocking work of a runtime that is dropped meanwhile.
    #[test]
    fn it_outlasts_the_runtime_that_it_began_in() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let mut timer = at(Instant::now() + Duration::from_millis(50));
        let handle = runtime.handle().clone();
        let inside = handle.enter();
        let nobodys = &mut Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut timer).poll(nobodys).is_pending());
        drop(runtime);
        block_on(timer);
        drop(inside);
    }

    /// As a call that begins in one runtime and is awaited in another one, while nobody drives the first.
    #[test]
    fn it_leaves_a_runtime_that_stands_still() {
        let new = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().build().unwrap()
        };
        for in_another in [true, false] {
            let first = new();
            let mut timer = at(Instant::now() + Duration::from_millis(50));
            first.block_on(async { assert!(futures_util::poll!(&mut timer).is_pending()) });
            let (done, is_done) = std::sync::mpsc::channel();
            thread::spawn(move || {
                if in_another {
                    new().block_on(timer);
                } else {
                    block_on(timer);
                }
                done.send(())
            });
            let told = is_done.recv_timeout(Duration::from_secs(60));
            assert_eq!(told, Ok(()), "nobody woke it");
        }
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "the system may give the thread")]
    fn without_a_thread_it_is_ready_in_time_on_any_executor() {
        if without_threads(
            "engine::timer::tests::without_a_thread_it_is_ready_in_time_on_any_executor",
        ) {
            assert!(SESSIONS.handle().is_err());
            block_on(at(Instant::now() + Duration::from_millis(10)));
        }
    }

    #[test]
    fn outside_tokio_nothing_panics() {
        let (has_panicked, here) = (Arc::new(AtomicBool::new(false)), thread::current().id());
        let (panicked, before) = (has_panicked.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            panicked.fetch_or(thread::current().id() == here, Ordering::Relaxed);
            before(info);
        }));
        block_on(at(Instant::now() + Duration::from_millis(10)));
        assert!(!has_panicked.load(Ordering::Relaxed));
    }
}
