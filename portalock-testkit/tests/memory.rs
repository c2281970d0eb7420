//! The suite on the reference backend, in every form in which a program may hold one.

use std::sync::Arc;

use async_trait::async_trait;
use portalock_core::{
    DynBackend, DynSemaphore, LockBackend, LockName, MemoryBackend, SlotSemaphore,
};
use portalock_testkit::{Fixture, FixtureError};

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
