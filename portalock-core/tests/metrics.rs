//! Metrics. The recorder only records events of the test's own thread.

#![cfg(feature = "metrics")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use futures_util::FutureExt;
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use portalock_core::{Lock, MemoryBackend, Policy, Pool, metrics::describe};

/// Runs `work` and returns what was recorded, by metric and labels: how many samples, or the value.
fn recorded(work: impl Future<Output = ()>) -> HashMap<String, f64> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(work));
    let snapshot = snapshotter.snapshot().into_vec();
    snapshot
        .into_iter()
        .map(|(key, _, _, value)| {
            let key = key.key();
            let mut labels: Vec<_> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            labels.sort();
            let value = match value {
                DebugValue::Counter(count) => f64::from(u32::try_from(count).unwrap()),
                DebugValue::Gauge(value) => value.into_inner(),
                DebugValue::Histogram(samples) => f64::from(u32::try_from(samples.len()).unwrap()),
            };
            (format!("{} {}", key.name(), labels.join(" ")), value)
        })
        .collect()
}

#[test]
fn a_described_metric_has_a_unit_and_a_help_text() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    metrics::with_local_recorder(&recorder, || {
        describe();
        runtime.block_on(async {
            let lock = Lock::new(MemoryBackend::new(), "m").unwrap();
            let guard = lock.acquire().await.unwrap();
            let soon = Policy::new().with_timeout(Duration::from_millis(10));
            assert!(lock.acquire_with(&soon).await.is_err());
            guard.release().await.unwrap();
        });
        metrics::counter!("portalock_renewals_total").increment(1);
    });
    let mut described = HashMap::new();
    for (key, unit, text, _) in snapshotter.snapshot().into_vec() {
        let name = key.key().name().to_owned();
        assert!(text.is_some(), "{name}");
        described.insert(name, unit.unwrap());
    }
    let expected = [
        ("portalock_wait_seconds", Unit::Seconds),
        ("portalock_hold_seconds", Unit::Seconds),
        ("portalock_waiters", Unit::Count),
        ("portalock_renewals_total", Unit::Count),
    ];
    assert_eq!(
        described,
        expected.map(|(name, unit)| (name.to_owned(), unit)).into()
    );
}

#[test]
fn waits_and_holds_are_counted_by_their_outcome() {
    let seen = recorded(async {
        let lock = Lock::new(MemoryBackend::new(), "m").unwrap();
        let guard = lock.acquire().await.unwrap();
        let soon = Policy::new().with_timeout(Duration::from_millis(10));
        assert!(lock.acquire_with(&soon).await.is_err());
        assert!(lock.try_acquire().await.is_err());
        guard.release().await.unwrap();
        let pool = Pool::new(MemoryBackend::new(), "p", 1).unwrap();
        drop(pool.acquire(1).await.unwrap());
        for releases in [true, false] {
            let guard = lock.acquire().await.unwrap();
            lock.backend().lose(lock.name());
            if releases {
                assert!(guard.release().await.is_err());
            }
        }
    });
    let backend = "backend=MemoryBackend";
    for (metric, outcome, count) in [
        ("wait", "granted", 4.0),
        ("wait", "timeout", 1.0),
        ("wait", "locked", 1.0),
        ("hold", "released", 2.0),
        ("hold", "lost", 2.0),
    ] {
        let key = format!("portalock_{metric}_seconds {backend} outcome={outcome}");
        assert_eq!(seen.get(&key), Some(&count), "{key} in {seen:?}");
    }
    let waiters = format!("portalock_waiters {backend}");
    assert_eq!(seen.get(&waiters), Some(&0.0), "{seen:?}");
}

/// A recorder that panics from some time on, as one whose mutex is poisoned.
#[derive(Clone, Default)]
struct Panics(Arc<AtomicBool>);

impl Panics {
    fn record(&self) {
        assert!(!self.0.load(Ordering::Relaxed), "the test's own panic");
    }
}

impl HistogramFn for Panics {
    fn record(&self, _: f64) {
        Self::record(self);
    }
}

impl GaugeFn for Panics {
    fn increment(&self, _: f64) {
        self.record();
    }
    fn decrement(&self, _: f64) {
        self.record();
    }
    fn set(&self, _: f64) {
        self.record();
    }
}

impl Recorder for Panics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(self.clone()))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(self.clone()))
    }
}

#[test]
fn a_recorder_that_panics_keeps_no_lock_held() {
    let (backend, recorder) = (MemoryBackend::new(), Panics::default());
    let lock = Lock::new(backend.clone(), "m").unwrap();
    let panics = |panics| recorder.0.store(panics, Ordering::Relaxed);
    metrics::with_local_recorder(&recorder, || {
        let guard = lock.try_acquire().now_or_never().unwrap().unwrap();
        let mut waiting = Box::pin(lock.acquire());
        let nobodys = &mut Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(nobodys).is_pending());
        panics(true);
        drop(guard);
        // The one that waits is granted, and counts as a waiter no more.
        let granted = catch_unwind(AssertUnwindSafe(|| waiting.as_mut().poll(nobodys)));
        assert!(granted.is_err(), "nothing was recorded");
        assert_eq!(backend.names_in_use(), 0, "it stayed held");
        let granted = catch_unwind(AssertUnwindSafe(|| lock.try_acquire().now_or_never()));
        assert!(granted.is_err(), "nothing was recorded");
        panics(false);
    });
    assert_eq!(backend.names_in_use(), 0, "it stayed held");
}

/// The process would abort.
#[test]
fn a_call_is_dropped_during_unwinding_though_the_recorder_panics() {
    let (backend, recorder) = (MemoryBackend::new(), Panics::default());
    let lock = Lock::new(backend.clone(), "m").unwrap();
    metrics::with_local_recorder(&recorder, || {
        let guard = lock.try_acquire().now_or_never().unwrap().unwrap();
        let mut waiting = Box::pin(lock.acquire());
        let nobodys = &mut Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(nobodys).is_pending());
        recorder.0.store(true, Ordering::Relaxed);
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            let _waiting = waiting;
            recorder.record();
        }));
        assert!(dropped.is_err());
        drop(guard);
    });
    assert_eq!(backend.names_in_use(), 0, "it was granted");
}
