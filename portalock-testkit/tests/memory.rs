//! The suite on the reference backend, in every form in which a program may hold one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    DynBackend, DynSemaphore, LockBackend, LockName, MemoryBackend, SlotSemaphore,
};
use portalock_testkit::{
    Fixture, FixtureError, Outcome, Suite,
    cases::{self, Case},
};

/// A store in memory, through whatever `form` makes of its clients.
struct InMemory<B> {
    store: MemoryBackend,
    form: fn(MemoryBackend) -> B,
    semaphore: fn(&MemoryBackend) -> DynSemaphore,
}

fn native(store: &MemoryBackend) -> DynSemaphore {
    Arc::new(store.client())
}

fn slots(store: &MemoryBackend) -> DynSemaphore {
    Arc::new(SlotSemaphore::new(store.client()))
}

#[async_trait]
impl<B: LockBackend> Fixture for InMemory<B> {
    type Backend = B;

    async fn client(&self) -> Result<B, FixtureError> {
        Ok((self.form)(self.store.client()))
    }

    fn semaphore(&self, _client: &Arc<B>) -> Option<DynSemaphore> {
        Some((self.semaphore)(&self.store))
    }

    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        self.store.lose(name);
        Ok(())
    }
}

fn in_memory<B>(
    form: fn(MemoryBackend) -> B,
    semaphore: fn(&MemoryBackend) -> DynSemaphore,
) -> InMemory<B> {
    InMemory {
        store: MemoryBackend::new(),
        form,
        semaphore,
    }
}

mod generic {
    use super::{in_memory, native};
    portalock_testkit::conformance!(in_memory(|store| store, native));
}

mod boxed {
    use super::{LockBackend, in_memory, native};
    portalock_testkit::conformance!(in_memory::<Box<dyn LockBackend>>(
        |store| Box::new(store),
        native
    ));
}

mod chosen_at_run_time {
    use super::{Arc, DynBackend, in_memory, slots};
    portalock_testkit::conformance!(in_memory::<DynBackend>(|store| Arc::new(store), slots));
}

#[test]
fn the_report_counts_every_case_and_says_why_one_was_skipped() {
    let report = portalock_testkit::run(|| async { in_memory(|store| store, native) });
    println!("{report}");
    assert!(report.is_success(), "{report}");
    assert_eq!(
        report.passed() + report.skipped().count(),
        portalock_testkit::cases::all().count()
    );
    let text = report.to_string();
    assert!(text.contains("the backend's locks live and die with the process"));
    assert!(text.contains("the fixture does not provide a way to restart the service"));
}

/// A place that is known to be lenient about one group of cases.
struct Lenient(MemoryBackend);

#[async_trait]
impl Fixture for Lenient {
    type Backend = MemoryBackend;

    async fn client(&self) -> Result<MemoryBackend, FixtureError> {
        Ok(self.0.client())
    }

    fn skip(&self, case: &Case) -> Option<&'static str> {
        (case.group() == "inspect").then_some("anybody sees everything here")
    }
}

#[test]
fn a_case_that_proves_nothing_here_is_skipped_and_the_report_says_why() {
    let suite = Suite::new(|| async { Lenient(MemoryBackend::new()) });
    let run = |case| suite.run_case(cases::find(case).unwrap());
    let skipped = run("inspect::contention_names_the_holder");
    assert!(matches!(skipped.outcome, Outcome::Skipped { .. }));
    assert!(skipped.to_string().contains("anybody sees everything here"));
    let played = run("exclusive::one_holder_among_clients");
    assert_eq!(played.outcome, Outcome::Passed);
}

/// A store that takes a while to end, like a server, and provides nothing.
struct Slow(MemoryBackend, Arc<AtomicBool>);

#[async_trait]
impl Fixture for Slow {
    type Backend = MemoryBackend;

    async fn client(&self) -> Result<MemoryBackend, FixtureError> {
        Ok(self.0.client())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        #[allow(clippy::disallowed_methods, reason = "it is what takes a while")]
        std::thread::sleep(Duration::from_millis(200));
        self.1.store(true, Ordering::Release);
    }
}

#[test]
fn a_store_has_ended_when_its_case_has_even_if_tasks_were_left() {
    let has_ended = Arc::new(AtomicBool::new(false));
    let ending = has_ended.clone();
    let suite = Suite::new(move || {
        let ending = ending.clone();
        async move { Slow(MemoryBackend::new(), ending) }
    });
    // Skipped when others wait already, in tasks of their own.
    let skipped =
        suite.run_case(cases::find("hand_over::a_loss_during_one_leaves_one_holder").unwrap());
    assert!(
        matches!(skipped.outcome, Outcome::Skipped { .. }),
        "{skipped}"
    );
    assert!(has_ended.load(Ordering::Acquire));
}
