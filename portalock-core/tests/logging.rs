//! Logging. Whether a log line is enabled is cached for the whole process, so this has a test binary of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use futures_util::FutureExt;
use portalock_core::{Lock, LockName, LockSet, MemoryBackend, Policy};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Keeps each event as `message field=value ..`.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    /// As one that writes to a pipe that was closed.
    panics: bool,
    /// When a span is entered.
    span_panics: Arc<AtomicBool>,
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = match field.name() {
            "message" => format!("{value:?}{}", self.0),
            name => format!("{} {name}={value:?}", self.0),
        };
        self.0 = text;
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut line = Line(String::new());
        attributes.record(&mut line);
        self.lines
            .lock()
            .unwrap()
            .push(format!("[{}{}]", attributes.metadata().name(), line.0));
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.lines.lock().unwrap().push(line.0);
        assert!(!self.panics, "the test's own panic");
    }
    fn enter(&self, _: &span::Id) {
        let panics = self.span_panics.load(Ordering::Relaxed);
        assert!(!panics, "the test's own panic");
    }
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn every_step_of_a_locks_life_is_logged_with_fields() {
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let backend = MemoryBackend::new();
            let lock = Lock::new(backend.clone(), "deploy")
                .unwrap()
                .with_label("blue");
            let guard = lock.acquire().await.unwrap();
            let soon = Policy::new().with_timeout(Duration::from_millis(5));
            assert!(lock.acquire_with(&soon).await.is_err());
            guard.release().await.unwrap();
            let guard = lock.acquire().await.unwrap();
            backend.lose(&LockName::new("deploy").unwrap());
            drop(guard);
        });
    });
    let lines = log.lines.lock().unwrap().clone();
    for wanted in [
        "[acquire backend=MemoryBackend name=deploy want=exclusive owner=",
        "acquired waited=",
        "contended holder=pid ",
        "waiting",
        "timed out waited=",
        "released name=deploy owner=",
        "lost name=deploy owner=",
    ] {
        assert!(
            lines.iter().any(|line| line.starts_with(wanted)),
            "no {wanted:?} in {lines:#?}"
        );
    }
    // It is said once for each call, however often it looks.
    let contended = lines.iter().filter(|line| line.starts_with("contended"));
    assert_eq!(contended.count(), 1, "{lines:#?}");
}

/// The process would abort if two guards panicked, or one during unwinding.
#[test]
fn dropped_guards_are_released_though_the_log_panics() {
    let backend = MemoryBackend::new();
    let set = LockSet::new(backend.clone(), ["deploy", "migrate"]).unwrap();
    let log = Log::default();
    for unwinds in [false, true] {
        let guards = set.try_acquire().now_or_never().unwrap().unwrap();
        log.lines.lock().unwrap().clear();
        let log = Log {
            panics: true,
            ..log.clone()
        };
        let lines = log.lines.clone();
        let dropped = tracing::subscriber::with_default(log, || {
            catch_unwind(AssertUnwindSafe(|| {
                let _guards = guards;
                assert!(!unwinds, "the test's own panic");
            }))
        });
        assert_eq!(dropped.is_err(), unwinds, "the caller got the log's panic");
        assert_eq!(lines.lock().unwrap().len(), 2, "not each was logged");
        assert_eq!(backend.names_in_use(), 0, "they stayed held");
    }
}

/// As one that writes when a span is entered.
#[test]
fn a_dropped_call_leaves_the_queue_though_the_log_panics() {
    let backend = MemoryBackend::new();
    let lock = Lock::new(backend.clone(), "deploy").unwrap();
    let log = Log::default();
    for unwinds in [false, true] {
        tracing::subscriber::with_default(log.clone(), || {
            let guard = lock.try_acquire().now_or_never().unwrap().unwrap();
            let mut waiting = Box::pin(lock.acquire());
            let nobodys = &mut Context::from_waker(Waker::noop());
            assert!(waiting.as_mut().poll(nobodys).is_pending());
            log.span_panics.store(true, Ordering::Relaxed);
            let dropped = catch_unwind(AssertUnwindSafe(|| {
                let _waiting = waiting;
                assert!(!unwinds, "the test's own panic");
            }));
            log.span_panics.store(false, Ordering::Relaxed);
            assert_eq!(dropped.is_err(), unwinds, "the caller got the log's panic");
            drop(guard);
        });
        assert_eq!(backend.names_in_use(), 0, "it was granted");
    }
}
