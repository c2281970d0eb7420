//! Dropping a future at every await point.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::sync::watch;

/// How long a future may sleep before it is dropped without a wake-up.
const ASLEEP: Duration = Duration::from_millis(20);

/// When, after its last poll, a future is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// At once: its request is still in flight.
    AtOnce,
    /// After its wake-up: an answer, perhaps a grant, has arrived and was not read.
    OnceWoken,
}

impl Moment {
    pub(crate) const ALL: [Self; 2] = [Self::AtOnce, Self::OnceWoken];
}

/// How a future ended.
#[derive(Debug)]
pub(crate) enum Ended<T> {
    /// It completed before it could be dropped.
    With(T),
    /// It was dropped.
    Dropped,
}

/// Polls `future` at most `polls` times, each time after a wake-up, and drops it.
pub(crate) async fn drop_after<F: Future>(
    future: F,
    polls: usize,
    moment: Moment,
) -> Ended<F::Output> {
    drop_asleep(future, polls, moment, || tokio::time::sleep(ASLEEP)).await
}

/// As [`drop_after`], but a wait for a wake-up that does not come lasts as long as `asleep`.
async fn drop_asleep<F: Future, A: Future<Output = ()>>(
    future: F,
    polls: usize,
    moment: Moment,
    asleep: impl Fn() -> A,
) -> Ended<F::Output> {
    let mut future = Box::pin(future);
    for poll in 1..=polls {
        let woken = Arc::new(Woken::default());
        let outcome = poll_fn(|context| {
            woken.pass_on_to(context.waker());
            Poll::Ready(poll_once(future.as_mut(), &woken))
        })
        .await;
        if let Poll::Ready(output) = outcome {
            return Ended::With(output);
        }
        if poll < polls || moment == Moment::OnceWoken {
            tokio::select! {
                () = woken.wait() => {}
                () = asleep() => {}
            }
        }
    }
    Ended::Dropped
}

/// Drops `future` as [`drop_after`] does, beside `other`, which begins after as many turns of the other tasks. What `other` wakes
/// is woken before it is dropped, however slow the machine is.
pub(crate) async fn drop_beside<F: Future, O: Future>(
    other: O,
    future: F,
    polls: usize,
    moment: Moment,
) -> (O::Output, Ended<F::Output>) {
    let (over, is_over) = watch::channel(false);
    let other = async {
        for _ in 0..polls {
            tokio::task::yield_now().await;
        }
        let output = other.await;
        over.send_replace(true);
        output
    };
    let asleep = || {
        let mut is_over = is_over.clone();
        async move {
            let _ = is_over.wait_for(|over| *over).await;
            tokio::time::sleep(ASLEEP).await;
        }
    };
    tokio::join!(other, drop_asleep(future, polls, moment, asleep))
}

fn poll_once<F: Future>(future: Pin<&mut F>, woken: &Arc<Woken>) -> Poll<F::Output> {
    let waker = Waker::from(woken.clone());
    future.poll(&mut Context::from_waker(&waker))
}

/// Records that the future was woken, to distinguish a wake-up from a poll.
#[derive(Default)]
struct Woken {
    woken: AtomicBool,
    task: futures_util::task::AtomicWaker,
}

impl Woken {
    fn pass_on_to(&self, task: &Waker) {
        self.task.register(task);
    }

    async fn wait(&self) {
        poll_fn(|context| {
            self.pass_on_to(context.waker());
            if self.woken.load(Ordering::Acquire) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_future_is_polled_as_often_as_was_said() {
        for polls in 0..3 {
            let mut seen = 0;
            let future = poll_fn(|context| {
                seen += 1;
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            });
            let ended = drop_after(future, polls, Moment::AtOnce).await;
            assert!(matches!(ended, Ended::Dropped));
            assert_eq!(seen, polls);
        }
    }

    #[tokio::test]
    async fn an_answer_can_be_there_unread() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let unread = drop_after(told, 1, Moment::OnceWoken);
        let answer = async {
            tokio::task::yield_now().await;
            tell.send(7)
        };
        let (ended, sent) = tokio::join!(unread, answer);
        assert!(matches!(ended, Ended::Dropped));
        assert!(sent.is_ok());
    }

    #[tokio::test]
    async fn what_another_wakes_is_not_dropped_before_however_long_the_other_takes() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let slow = async {
            tokio::time::sleep(ASLEEP * 10).await;
            tell.send(7)
        };
        let (sent, ended) = drop_beside(slow, told, 1, Moment::OnceWoken).await;
        assert!(matches!(ended, Ended::Dropped));
        assert!(sent.is_ok(), "it was dropped first");
    }
}
