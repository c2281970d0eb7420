//! A failing service: what is retried, for how long, and the caller's error.

use std::time::Duration;

use portalock_core::{BackendErrorKind, LockError, clock::Instant};

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

/// A queue at a service that fails for this long, then grants.
async fn waits_through(outage: Duration, listens: bool) -> Result<(), LockError> {
    let queued = Step::Queued(Duration::from_millis(100));
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let backend = Scripted::new([queued, fails]);
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
    waits_through(KEPT / 2, true).await.unwrap();
    for (outage, listens) in [(KEPT * 2, true), (KEPT / 2, false)] {
        let error = waits_through(outage, listens).await.unwrap_err();
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
async fn a_failure_before_a_silence_is_what_the_caller_is_told() {
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let backend = Scripted::new([fails, Step::Stalls]);
    let error = backend.lock().acquire_with(&seconds(3)).await.unwrap_err();
    let LockError::Timeout { last_error, .. } = error else {
        unreachable!("{error}")
    };
    assert_eq!(last_error.unwrap().to_string(), "told to fail");
}
