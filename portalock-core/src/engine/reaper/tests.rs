//! Tests of the clean-up: attempts that are abandoned, and releases that fail, hang or panic.

use std::{
    future,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::future::BoxFuture;

use super::*;
use crate::{
    BackendErrorKind, Capabilities, LockName, LockRequest, Mode, Patience, Released, Scope,
    Wakeups, background::tests::without_threads, request::tests::of_a_parent,
    wakeups::tests::PanicsAt,
};

/// Never releases anything, unless it does so at once: it answers with this error, or not at all.
#[derive(Debug)]
struct Stubborn {
    answer: Option<BackendErrorKind>,
    asked: AtomicUsize,
    at_once: fn() -> bool,
    panics_first: bool,
    /// A release without an answer panics when it is dropped.
    explodes: bool,
}

fn stubborn(answer: Option<BackendErrorKind>) -> Stubborn {
    Stubborn {
        answer,
        asked: AtomicUsize::new(0),
        at_once: || false,
        panics_first: false,
        explodes: false,
    }
}

struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("the test's own panic");
    }
}

fn job() -> LockRequest {
    let name = LockName::new("job").unwrap();
    LockRequest::new(name, Mode::Exclusive, Patience::Once)
}

/// Never ends, and panics when it is dropped.
fn explosive() -> InFlight {
    let explosive = Explosive;
    in_flight(async move {
        let _explosive = explosive;
        future::pending().await
    })
}

type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

impl Service<Mode> for Arc<Stubborn> {
    fn try_acquire<'a>(&'a self, _: &'a LockRequest) -> Answer<'a, Attempt> {
        Box::pin(future::pending())
    }

    fn release<'a>(&'a self, _: &'a LockRequest) -> Answer<'a, Released> {
        let is_first = self.asked.fetch_add(1, Ordering::Relaxed) == 0;
        assert!(!(self.panics_first && is_first), "told to panic");
        if let Some(kind) = self.answer {
            return Box::pin(future::ready(Err(BackendError::new(kind, "told to fail"))));
        }
        let explosive = self.explodes.then(|| Explosive);
        Box::pin(async move {
            let _explosive = explosive;
            future::pending().await
        })
    }

    fn subscribe<'a>(&'a self, _: &'a LockRequest) -> Answer<'a, Option<Wakeups>> {
        Box::pin(future::ready(Ok(None)))
    }

    fn release_now(&self, _: &LockRequest) -> bool {
        (self.at_once)()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Network)
    }

    fn kind(&self) -> &'static str {
        "stubborn"
    }
}

/// How often a release was asked for, and when it was given up.
async fn given_up(
    answer: Option<BackendErrorKind>,
    in_flight: Option<InFlight>,
) -> (usize, Duration) {
    clean_up(stubborn(answer), in_flight).await
}

async fn clean_up(backend: Stubborn, in_flight: Option<InFlight>) -> (usize, Duration) {
    let backend = Arc::new(backend);
    let start = Instant::now();
    let lost = LostSignal::never();
    Cleanup::new(backend.clone(), Arc::new(job()), in_flight, lost)
        .run()
        .await;
    (backend.asked.load(Ordering::Relaxed), start.elapsed())
}

#[test]
fn a_forked_child_does_not_wait_for_its_parents_clean_up() {
    let packed = 1 << 32 | 3;
    assert_eq!(count_in(packed, 1), 3);
    assert_eq!(count_in(packed, 2), 0);
}

#[tokio::test(start_paused = true)]
async fn what_no_repetition_cures_is_asked_for_once() {
    let answer = Some(BackendErrorKind::Misconfigured);
    assert_eq!(given_up(answer, None).await, (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_down_is_asked_ever_less_often_for_two_minutes() {
    let (asked, time) = given_up(Some(BackendErrorKind::Unavailable), None).await;
    assert!(time >= ALL_RELEASES && time <= ALL_RELEASES + LONGEST_PAUSE);
    // Eight pauses that double, then one in five seconds.
    assert!((30..40).contains(&asked), "{asked} times");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_silent_is_given_up_as_well() {
    for explodes in [false, true] {
        let backend = Stubborn {
            explodes,
            ..stubborn(None)
        };
        let (asked, time) = clean_up(backend, None).await;
        assert!(time >= ALL_RELEASES && time <= ALL_RELEASES + ONE_RELEASE + LONGEST_PAUSE);
        assert!((8..16).contains(&asked), "{asked} times");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_panicked_is_repeated() {
    let backend = Stubborn {
        panics_first: true,
        ..stubborn(Some(BackendErrorKind::Misconfigured))
    };
    assert_eq!(clean_up(backend, None).await, (2, FIRST_PAUSE));
}

#[tokio::test(start_paused = true)]
async fn a_release_goes_on_though_the_backend_panics_and_the_log_too() {
    let backend = Stubborn {
        at_once: || panic!("the test's own panic"),
        ..stubborn(Some(BackendErrorKind::Misconfigured))
    };
    let _log = PanicsAt("the backend panicked").install();
    assert_eq!(clean_up(backend, None).await, (1, Duration::ZERO));
}

#[test]
fn a_forked_child_does_not_drop_what_its_parent_has_in_flight() {
    let mut request = job();
    request.owner = of_a_parent();
    let (backend, lost) = (Arc::new(stubborn(None)), LostSignal::never());
    Cleanup::new(backend, Arc::new(request), Some(explosive()), lost).start();
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "the system may give the thread")]
fn without_a_thread_a_release_is_repeated_on_a_runtime_without_timers() {
    if !without_threads(
        "engine::reaper::tests::without_a_thread_a_release_is_repeated_on_a_runtime_without_timers",
    ) {
        return;
    }
    let backend = Arc::new(stubborn(Some(BackendErrorKind::Unavailable)));
    let request = Arc::new(job());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        Cleanup::new(backend.clone(), request, None, LostSignal::never()).start();
        while backend.asked.load(Ordering::Relaxed) < 3 {
            tokio::task::yield_now().await;
        }
    });
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_never_ends_is_released_all_the_same() {
    for in_flight in [in_flight(future::pending()), explosive()] {
        let answer = Some(BackendErrorKind::Misconfigured);
        assert_eq!(given_up(answer, Some(in_flight)).await, (1, SEE_OUT));
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_panicked_is_released_though_the_log_panics_too() {
    let backend = Arc::new(stubborn(Some(BackendErrorKind::Misconfigured)));
    let panics = in_flight(async { panic!("the test's own panic") });
    let lost = LostSignal::never();
    let cleanup = Cleanup::new(backend.clone(), Arc::new(job()), Some(panics), lost);
    let _log = PanicsAt("an abandoned attempt").install();
    let cleaned_up = AssertUnwindSafe(cleanup.run()).catch_unwind().await;
    assert!(cleaned_up.is_err(), "nothing was logged");
    assert_eq!(backend.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_attempt_is_released_at_once_where_that_is_possible() {
    let backend = Stubborn {
        at_once: || true,
        ..stubborn(None)
    };
    let granted = in_flight(async { Ok(Attempt::Granted(crate::Grant::new())) });
    assert_eq!(clean_up(backend, Some(granted)).await, (0, Duration::ZERO));
}
