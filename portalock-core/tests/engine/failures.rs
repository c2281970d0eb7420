//! A failing service: what is retried, for how long, and the caller's error.

use std::time::Duration;

use portalock_core::{BackendErrorKind, LockError, Policy, clock::Instant};

use crate::scripted::{Call, KEPT, Scripted, Step, seconds};

#[tokio::test(start_paused = true)]
async fn passing_failures_are_tried_again_for_the_same_owner() {
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let backend = Scripted::new([fails.clone(), fails.clone(), fails, Step::Grant]);
    let guard = backend.lock().acquire().await.unwrap();
    let calls = backend.0.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 4);
    assert!(
        calls
            .iter()
            .all(|(_, call)| *call == Call::Attempt(guard.owner()))
    );
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_in_a_row_end_the_call_with_their_cause() {
    let backend = Scripted::new([Step::Fails(BackendErrorKind::Unavailable)]);
    let start = Instant::now();
    let error = backend.lock().acquire().await.unwrap_err();
    assert!(
        matches!(&error, LockError::Backend { source, .. } if source.kind() == BackendErrorKind::Unavailable)
    );
    assert_eq!(backend.attempts().len(), 6, "one and five more");
    assert!(
        start.elapsed() >= Duration::from_millis(500),
        "gave a restarting service no time"
    );
    backend.first_release().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_accepts_no_failure_ends_with_the_first() {
    let backend = Scripted::new([Step::Fails(BackendErrorKind::Unavailable)]);
    let policy = seconds(5).with_max_failures(0);
    let error = backend.lock().acquire_with(&policy).await.unwrap_err();
    assert!(matches!(error, LockError::Backend { .. }), "{error}");
    assert_eq!(backend.attempts().len(), 1);
}

/// That interval only matters for a contended lock: one reset must not cost a quarter of it.
#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_soon_whatever_the_check_interval_is() {
    for interval in [Duration::from_secs(3600), Duration::MAX] {
        let fails = Step::Fails(BackendErrorKind::Unavailable);
        let backend = Scripted::new([fails.clone(), fails, Step::Grant]);
        let policy = Policy::forever().with_check_interval(interval).unwrap();
        let lock = backend.lock();
        let granted = tokio::time::timeout(Duration::from_secs(1), lock.acquire_with(&policy));
        drop(granted.await.expect("it still pauses").unwrap());
    }
}

/// A service that answers with `first`, fails for this long, and then grants.
async fn waits_through(outage: Duration, first: Step, listens: bool) -> Result<(), LockError> {
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let backend = Scripted::new([first, fails]);
    let backend = if listens {
        backend.listening()
    } else {
        backend
    };
    let policy = seconds(60).with_jitter(0.0).unwrap();
    let lock = backend.lock();
    let acquire = lock.acquire_with(&policy);
    let heals = async {
        tokio::time::sleep(outage).await;
        *backend.0.steps.lock().unwrap() = [Step::Grant].into();
    };
    tokio::join!(acquire, heals).0.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_hears_keeps_its_place_while_the_service_keeps_it() {
    let queued = Step::Queued(Duration::from_millis(100));
    waits_through(KEPT / 2, queued.clone(), true).await.unwrap();
    for (outage, first, listens) in [
        (KEPT * 2, queued.clone(), true),
        (KEPT / 2, queued, false),
        (KEPT / 2, Step::Contended, true),
    ] {
        let error = waits_through(outage, first, listens).await.unwrap_err();
        assert!(matches!(error, LockError::Backend { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_sets_the_count_of_failures_back() {
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let mut steps = Vec::new();
    for _ in 0..4 {
        steps.extend([fails.clone(), fails.clone(), fails.clone(), Step::Contended]);
    }
    steps.push(Step::Grant);
    let backend = Scripted::new(steps);
    assert!(backend.lock().acquire_with(&seconds(60)).await.is_ok());
}

/// It forgets the failures before: when they began, how long the pauses were, and what the last one was.
#[tokio::test(start_paused = true)]
async fn after_an_answer_failures_begin_anew() {
    let fails = || std::iter::repeat_n(Step::Fails(BackendErrorKind::Unavailable), 5);
    let queued = || [Step::Queued(KEPT)].into_iter();
    let backend = Scripted::new(queued().chain(fails()).chain(queued()).chain(fails())).listening();
    let policy = seconds(60).with_max_failures(1).with_jitter(0.0).unwrap();
    let lock = backend.lock();
    let acquire = lock.acquire_with(&policy);
    let heals = async {
        // Longer than the service keeps a place since the first failure, not since the first of the second row.
        tokio::time::sleep(KEPT * 5 / 2).await;
        *backend.0.steps.lock().unwrap() = [Step::Queued(KEPT)].into();
    };
    let error = tokio::join!(acquire, heals).0.unwrap_err();
    let LockError::Timeout { last_error, .. } = error else {
        panic!("{error}")
    };
    assert!(last_error.is_none());
    let times = backend.attempts();
    let pause = |attempt: usize| times[attempt + 1].abs_diff(times[attempt]);
    assert_eq!(pause(7), pause(1), "after the first failure of each row");
}

#[tokio::test(start_paused = true)]
async fn a_failure_for_good_ends_the_call_at_once() {
    let backend = Scripted::new([Step::Fails(BackendErrorKind::PermissionDenied)]);
    let error = backend.lock().acquire().await.unwrap_err();
    assert!(!error.is_retryable());
    assert_eq!(backend.attempts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_deadline_is_the_timeouts_cause() {
    let backend = Scripted::new([Step::Contended, Step::Fails(BackendErrorKind::Unavailable)]);
    let policy = seconds(1).with_max_failures(u32::MAX);
    let error = backend.lock().acquire_with(&policy).await.unwrap_err();
    assert!(matches!(
        error,
        LockError::Timeout {
            last_error: Some(_),
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_just_before_the_deadline_may_be_on_its_way_to_a_healthy_service() {
    for (silence, is_contention) in [(0, true), (999, true), (1000, false)] {
        let backend = Scripted::new([Step::Contended, Step::Stalls]);
        let second_look = Duration::from_millis(3000 - silence);
        let policy = seconds(3)
            .with_first_check(second_look)
            .and_then(|policy| policy.with_check_interval(second_look))
            .and_then(|policy| policy.with_jitter(0.0))
            .unwrap();
        let error = backend.lock().acquire_with(&policy).await.unwrap_err();
        assert_eq!(error.is_contention(), is_contention, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_a_silence_is_what_the_caller_is_told() {
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let backend = Scripted::new([fails, Step::Stalls]);
    let error = backend.lock().acquire_with(&seconds(3)).await.unwrap_err();
    let LockError::Timeout { last_error, .. } = error else {
        unreachable!("{error}")
    };
    assert_eq!(last_error.unwrap().to_string(), "told to fail");
}
