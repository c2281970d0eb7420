//! One deadline for a whole call, without a timer if nothing is pending.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use super::timer::{self, Timer};
use crate::clock::Instant;

/// The time at which a call gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// Never, for `None` or for a time that the clock can't represent.
    pub(crate) fn after(start: Instant, timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| start.checked_add(timeout)))
    }

    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }

    pub(crate) fn has_passed(self) -> bool {
        self.0.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Waits for `future` until the deadline. An answer at the exact deadline counts.
    pub(crate) async fn bound<F: Future>(self, future: F) -> Option<F::Output> {
        bound(self.0, future).await
    }
}

/// Waits for `future` until `deadline`; `None` if the deadline has passed.
pub(crate) async fn bound<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    let Some(deadline) = deadline else {
        return Some(future.await);
    };
    Bounded {
        future: pin!(future),
        deadline,
        timer: None,
    }
    .await
}

/// Polls the future first, and creates a timer only if it is pending: tokio's timers have a resolution of milliseconds,
/// and a free lock should not pay for one.
struct Bounded<'f, F> {
    future: Pin<&'f mut F>,
    deadline: Instant,
    timer: Option<Timer>,
}

impl<F: Future> Future for Bounded<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        let deadline = self.deadline;
        let timer = self.timer.get_or_insert_with(|| timer::at(deadline));
        Pin::new(timer).poll(context).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::block_on;

    #[tokio::test(start_paused = true)]
    async fn an_answer_at_the_very_instant_counts() {
        let start = Instant::now();
        let deadline = Deadline::after(start, Some(Duration::from_secs(1)));
        let answer = async {
            tokio::time::sleep_until(start + Duration::from_secs(1)).await;
            7
        };
        assert_eq!(deadline.bound(answer).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_ends_at_the_deadline() {
        let start = Instant::now();
        let deadline = Deadline::after(start, Some(Duration::from_secs(3)));
        assert_eq!(deadline.bound(std::future::pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), 3);
        assert!(deadline.has_passed());
    }

    #[test]
    fn a_runtime_without_time_keeps_a_deadline() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let soon = Deadline::after(Instant::now(), Some(Duration::from_millis(50)));
        let silence = runtime.block_on(soon.bound(std::future::pending::<()>()));
        assert!(silence.is_none() && soon.has_passed());
    }

    #[test]
    fn an_executor_that_is_no_runtime_keeps_a_deadline() {
        let soon = Deadline::after(Instant::now(), Some(Duration::from_millis(50)));
        let silence = block_on(soon.bound(std::future::pending::<()>()));
        assert!(silence.is_none() && soon.has_passed());
    }

    #[test]
    fn a_timeout_beyond_the_clock_is_never() {
        assert!(
            Deadline::after(Instant::now(), Some(Duration::MAX))
                .instant()
                .is_none()
        );
    }

    #[test]
    fn what_is_ready_needs_no_runtime() {
        let deadline = Deadline::after(Instant::now(), Some(Duration::from_secs(1)));
        let mut future = pin!(deadline.bound(async { 1 }));
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert_eq!(future.as_mut().poll(&mut context), Poll::Ready(Some(1)));
    }
}
