//! Elections on services that fail or can't report the holder, and lost terms.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Election, HolderWatch, Inspect,
    Inspection, Lock, LockBackend, LockError, LockName, LockRequest, MemoryBackend, Policy,
    Released, Tokens, clock::Instant,
};
use tokio::sync::mpsc;

/// Fails for a number of calls, and then works. It has no watch.
#[derive(Debug, Clone)]
struct Unsteady {
    store: MemoryBackend,
    kind: BackendErrorKind,
    failures: Arc<AtomicU32>,
    claims: Capabilities,
}

impl Unsteady {
    fn new(kind: BackendErrorKind, failures: u32) -> Self {
        let store = MemoryBackend::new();
        Self {
            claims: LockBackend::capabilities(&store),
            store,
            kind,
            failures: Arc::new(AtomicU32::new(failures)),
        }
    }

    fn fail(&self, failures: u32) {
        self.failures.store(failures, Ordering::SeqCst);
    }

    fn called(&self) -> Result<(), BackendError> {
        let one_less = |left: u32| left.checked_sub(1);
        match self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
        {
            Ok(_) => Err(BackendError::new(self.kind, "told to fail")),
            Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl LockBackend for Unsteady {
    fn capabilities(&self) -> Capabilities {
        self.claims
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.called()?;
        LockBackend::try_acquire(&self.store, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        LockBackend::release(&self.store, request).await
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.called()?;
        LockBackend::inspect(&self.store, name).await
    }
}

/// Has a watch, which fails for a number of calls.
#[derive(Debug)]
struct Watched(Unsteady);

#[async_trait]
impl LockBackend for Watched {
    fn capabilities(&self) -> Capabilities {
        self.0.claims
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.0.try_acquire(request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.0.release(request).await
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        self.0.called()?;
        self.0.store.watch(name).await
    }
}

/// Never answers a release.
#[derive(Debug)]
struct Deaf(MemoryBackend);

#[async_trait]
impl LockBackend for Deaf {
    fn capabilities(&self) -> Capabilities {
        LockBackend::capabilities(&self.0).with_releases_now(false)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        LockBackend::try_acquire(&self.0, request).await
    }

    async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
        pending().await
    }
}

fn election<B: LockBackend>(backend: B) -> Election<B> {
    Election::new(backend, "scheduler").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_leader_outlasts_failures_that_may_pass() {
    // More failures than one campaign tolerates.
    let backend = Unsteady::new(BackendErrorKind::Unavailable, 20);
    let (begun, mut terms) = mpsc::unbounded_channel();
    let leads = election(backend.clone());
    let leads = tokio::spawn(async move {
        let work = |leading: portalock_core::Leading<Unsteady>| {
            begun.send(leading).unwrap();
            pending()
        };
        leads.lead(pending(), work).await
    });
    let leading = terms.recv().await.unwrap();
    assert!(leading.token().is_some());
    assert!(!leading.lost_signal().is_lost());
    backend.store.lose(&LockName::new("scheduler").unwrap());
    assert!(leading.lost_signal().is_lost());
    leads.abort();
}

#[tokio::test(start_paused = true)]
async fn a_leader_ends_at_a_failure_that_no_repetition_cures() {
    let backend = Unsteady::new(BackendErrorKind::Misconfigured, 1);
    let ended = election(backend).lead(pending(), |_| pending()).await;
    assert!(matches!(ended, Err(LockError::Backend { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_stopped_while_it_resigns_ends_after_that_and_leads_no_more() {
    let terms = AtomicU32::new(0);
    let work = |_| {
        terms.fetch_add(1, Ordering::SeqCst);
        async {}
    };
    let start = Instant::now();
    let stop = tokio::time::sleep(Duration::from_secs(1));
    let election = election(Deaf(MemoryBackend::new())).with_pause(Duration::ZERO);
    election.lead(stop, work).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert_eq!(terms.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_is_to_look_hardly_ever_does_not_look_all_the_time() {
    let backend = Unsteady::new(BackendErrorKind::Unavailable, 0);
    let policy = Policy::forever()
        .with_check_interval(Duration::MAX)
        .unwrap();
    let mut observer = election(backend.clone()).with_policy(policy).observe();
    assert_eq!(observer.next().await.unwrap(), None);
    // A check shows the loss.
    backend.fail(1);
    let news = tokio::time::timeout(Duration::from_secs(60), observer.next());
    assert!(news.await.is_err(), "it looked again");
}

/// That interval only matters where there is no watch.
#[tokio::test(start_paused = true)]
async fn an_observer_whose_watch_failed_watches_again_soon_whatever_the_check_interval_is() {
    let policy = Policy::forever()
        .with_check_interval(Duration::MAX)
        .unwrap();
    let backend = Watched(Unsteady::new(BackendErrorKind::Unavailable, 1));
    let mut observer = election(backend).with_policy(policy).observe();
    assert!(observer.next().await.is_err());
    let seen = tokio::time::timeout(Duration::from_secs(1), observer.next());
    assert_eq!(seen.await.expect("it still pauses").unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn an_observer_passes_failures_on_and_goes_on() {
    let backend = Unsteady::new(BackendErrorKind::Unavailable, 0);
    let leadership = election(backend.clone()).campaign().await.unwrap();
    let mut observer = election(backend.clone()).observe();
    backend.fail(2);
    for _ in 0..2 {
        let failed = observer.next().await;
        assert!(matches!(failed, Err(LockError::Backend { .. })));
    }
    let term = observer.next().await.unwrap().unwrap();
    assert_eq!(term.token, leadership.token());
}

#[tokio::test(start_paused = true)]
async fn asking_and_hearing_outlast_failures_that_may_pass() {
    let backend = Unsteady::new(BackendErrorKind::Unavailable, 0);
    let leadership = election(backend.clone()).campaign().await.unwrap();
    let leading = leadership.leading();
    let heard = tokio::spawn(async move { leading.step_down_asked().await });
    let asker = election(backend.clone()).with_label("asker");
    let stepping_down = tokio::spawn(async move { asker.step_down(&Policy::forever()).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    backend.fail(3);
    assert_eq!(
        heard.await.unwrap().unwrap().label.as_deref(),
        Some("asker")
    );
    assert!(!stepping_down.is_finished());
    backend.fail(2);
    leadership.resign().await.unwrap();
    stepping_down.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn asking_and_hearing_end_at_a_failure_that_no_repetition_cures() {
    let backend = Unsteady::new(BackendErrorKind::Misconfigured, 0);
    let leadership = election(backend.clone()).campaign().await.unwrap();
    let leading = leadership.leading();
    let heard = tokio::spawn(async move { leading.step_down_asked().await });
    let asker = election(backend.clone());
    let stepping_down = tokio::spawn(async move { asker.step_down(&Policy::forever()).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    backend.fail(u32::MAX);
    assert!(matches!(
        stepping_down.await.unwrap(),
        Err(LockError::Backend { .. })
    ));
    assert!(matches!(
        heard.await.unwrap(),
        Err(LockError::Backend { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn what_a_backend_can_not_tell_is_refused() {
    let mut blind = Unsteady::new(BackendErrorKind::Other, 0);
    blind.claims = blind.claims.with_inspect(Inspect::None);
    let unsupported = |error| matches!(error, LockError::Unsupported { .. });
    assert!(unsupported(
        election(blind.clone()).leader().await.unwrap_err()
    ));
    assert!(unsupported(
        election(blind).observe().next().await.unwrap_err()
    ));
    let mut tokenless = Unsteady::new(BackendErrorKind::Other, 0);
    tokenless.claims = tokenless.claims.with_tokens(Tokens::None);
    assert!(election(tokenless).leader().await.unwrap().is_none());
}

/// Never answers.
#[derive(Debug)]
struct Silent;

#[async_trait]
impl LockBackend for Silent {
    fn capabilities(&self) -> Capabilities {
        LockBackend::capabilities(&MemoryBackend::new())
    }

    async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> {
        pending().await
    }

    async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
        pending().await
    }

    async fn inspect(&self, _: &LockName) -> Result<Inspection, BackendError> {
        pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_silent_is_no_leader_that_does_not_step_down() {
    let policy = Policy::new().with_timeout(Duration::from_secs(1));
    let error = election(Silent).step_down(&policy).await.unwrap_err();
    assert!(matches!(error, LockError::Timeout { .. }), "{error}");
    assert!(!error.is_contention(), "{error}");
    // Here the leader does not step down.
    let election = election(MemoryBackend::new());
    let _leadership = election.campaign().await.unwrap();
    let error = election.step_down(&policy).await.unwrap_err();
    assert!(error.is_contention() && error.holder().is_some(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_silent_is_asked_for_five_seconds() {
    let start = Instant::now();
    assert!(election(Silent).observe().next().await.is_err());
    assert_eq!(start.elapsed(), Policy::DEFAULT_TIMEOUT);
}

#[tokio::test]
async fn who_shares_the_lock_does_not_lead() {
    let backend = MemoryBackend::new();
    let shared = Lock::new(backend.clone(), "scheduler").unwrap();
    let reader = shared.acquire_shared().await.unwrap();
    let election = election(backend);
    assert!(election.leader().await.unwrap().is_none());
    assert!(election.observe().next().await.unwrap().is_none());
    assert_eq!(election.name().as_str(), "scheduler");
    assert_eq!(election.backend().names_in_use(), 1);
    assert!(format!("{election:?}").contains("scheduler"));
    reader.release().await.unwrap();
}

#[tokio::test]
async fn a_lost_term_is_known_to_its_leader() {
    let election = election(MemoryBackend::new());
    let leadership = election.campaign().await.unwrap();
    let leading = leadership.leading().clone();
    assert!(!leadership.is_lost() && leadership.ensure_held().is_ok());
    assert_eq!(leadership.run(async { 7 }).await.unwrap(), 7);
    assert_eq!(leading.token(), leadership.token());
    assert!(format!("{leading:?}").contains("scheduler"));
    election.backend().lose(election.name());
    assert!(leadership.is_lost() && leadership.lost_signal().is_lost());
    assert!(leadership.ensure_held().is_err());
    let work = leadership.run(pending::<()>()).await;
    assert!(matches!(work, Err(LockError::Lost { .. })));
    assert!(leadership.resign().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_step_down_ends_when_a_standby_takes_over() {
    let store = MemoryBackend::new();
    let first = election(store.clone()).campaign().await.unwrap();
    let standby = election(store.clone());
    let waiting = tokio::spawn(async move { standby.campaign().await });
    tokio::task::yield_now().await;
    let asker = election(store);
    let asking = tokio::spawn(async move { asker.step_down(&Policy::forever()).await });
    first.leading().step_down_asked().await.unwrap();
    first.resign().await.unwrap();
    let second = waiting.await.unwrap().unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), asking).await;
    ended
        .expect("it waits for the next term, too")
        .unwrap()
        .unwrap();
    second.resign().await.unwrap();
}
