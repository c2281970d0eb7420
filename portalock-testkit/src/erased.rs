//! Backends and fixtures with erased types, so that the cases are compiled once, and not once per backend.

use std::{any::Any, sync::Arc};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use portalock_core::{
    Attempt, BackendError, Capabilities, DynBackend, DynSemaphore, Holder, HolderWatch, Inspect,
    Inspection, Lock, LockBackend, LockName, LockRequest, Marked, OwnerId, PermitRequest, Released,
    Semaphore, Tokens, Wakeups,
};

use crate::{
    Fixture, FixtureError, Restore,
    cases::Case,
    trial::{ensure_contended, patient},
    verdict::{CaseResult, ensure},
};

/// Any backend.
///
/// A type around the `dyn`, because the compiler can't yet prove that a future with an `Arc<dyn LockBackend>` across an
/// await is `Send` (rust-lang/rust#110338).
#[derive(Debug, Clone)]
pub(crate) struct AnyBackend(pub(crate) DynBackend);

/// Any semaphore.
#[derive(Debug, Clone)]
pub(crate) struct AnySemaphore(pub(crate) DynSemaphore);

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl LockBackend for AnyBackend {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.0.try_acquire(request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.0.release(request).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.0.subscribe(request).await
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        self.0.release_now(request)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.0.inspect(name).await
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        self.0.watch(name).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.0.names().await
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        self.0.mark_broken(name, owner, by).await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        self.0.evict(name, owner, hold).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.0.close().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Semaphore for AnySemaphore {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        self.0.try_acquire(request).await
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        self.0.release(request).await
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        self.0.subscribe(request).await
    }

    fn release_now(&self, request: &PermitRequest) -> bool {
        self.0.release_now(request)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.0.inspect(name).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.0.close().await
    }
}

/// A client of any backend.
#[derive(Clone)]
pub(crate) struct AnyClient {
    pub(crate) locks: AnyBackend,
    pub(crate) semaphore: Option<AnySemaphore>,
    concrete: Arc<dyn Any + Send + Sync>,
}

/// Any fixture.
#[async_trait]
pub(crate) trait AnyFixture: Send + Sync {
    async fn client(&self) -> Result<AnyClient, FixtureError>;
    async fn crash(&self, client: &AnyClient) -> Result<(), FixtureError>;
    async fn cut_off(&self, client: &AnyClient) -> Result<Restore, FixtureError>;
    async fn lose_answers(&self, client: &AnyClient) -> Result<Restore, FixtureError>;
    async fn delay_requests(&self, client: &AnyClient) -> Result<Restore, FixtureError>;
    async fn move_store(&self) -> Result<(), FixtureError>;
    async fn stall_service(&self) -> Result<Restore, FixtureError>;
    async fn restart_service(&self) -> Result<(), FixtureError>;
    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError>;
    fn skip(&self, case: &Case) -> Option<&'static str>;
    fn address(&self) -> Option<String>;
    async fn every_form(&self) -> CaseResult;
}

pub(crate) struct Erased<F>(pub(crate) F);

impl<F: Fixture> Erased<F> {
    fn concrete(client: &AnyClient) -> Result<&F::Backend, FixtureError> {
        client
            .concrete
            .downcast_ref()
            .ok_or_else(|| FixtureError::failed("the client is another fixture's"))
    }
}

#[async_trait]
impl<F: Fixture> AnyFixture for Erased<F> {
    async fn client(&self) -> Result<AnyClient, FixtureError> {
        let backend = Arc::new(self.0.client().await?);
        Ok(AnyClient {
            semaphore: self.0.semaphore(&backend).map(AnySemaphore),
            locks: AnyBackend(backend.clone()),
            concrete: backend,
        })
    }

    async fn crash(&self, client: &AnyClient) -> Result<(), FixtureError> {
        self.0.crash(Self::concrete(client)?).await
    }

    async fn cut_off(&self, client: &AnyClient) -> Result<Restore, FixtureError> {
        self.0.cut_off(Self::concrete(client)?).await
    }

    async fn lose_answers(&self, client: &AnyClient) -> Result<Restore, FixtureError> {
        self.0.lose_answers(Self::concrete(client)?).await
    }

    async fn delay_requests(&self, client: &AnyClient) -> Result<Restore, FixtureError> {
        self.0.delay_requests(Self::concrete(client)?).await
    }

    async fn move_store(&self) -> Result<(), FixtureError> {
        self.0.move_store().await
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        self.0.stall_service().await
    }

    async fn restart_service(&self) -> Result<(), FixtureError> {
        self.0.restart_service().await
    }

    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        self.0.take_away(name).await
    }

    fn skip(&self, case: &Case) -> Option<&'static str> {
        self.0.skip(case)
    }

    fn address(&self) -> Option<String> {
        self.0.address()
    }

    async fn every_form(&self) -> CaseResult {
        works(self.0.client().await?).await?;
        works(Box::new(self.0.client().await?) as Box<dyn LockBackend>).await?;
        works(Arc::new(self.0.client().await?) as DynBackend).await
    }
}

/// The common path, through one form of a backend. Boxed here, where the compiler can prove it `Send`.
fn works<B: LockBackend>(backend: B) -> BoxFuture<'static, CaseResult> {
    Box::pin(try_out(backend))
}

async fn try_out<B: LockBackend>(backend: B) -> CaseResult {
    let claims = backend.capabilities();
    let lock = Lock::new(backend, "any form")?;
    let guard = lock.acquire_with(&patient()).await?;
    ensure_contended(lock.try_acquire().await, "a second acquisition")?;
    ensure!(
        guard.token().is_some() == (claims.tokens != Tokens::None),
        "the claim is {:?}, and the token {:?}",
        claims.tokens,
        guard.token()
    );
    guard.release().await?;
    if claims.shared {
        let readers = [
            lock.acquire_shared().await?,
            lock.try_acquire_shared().await?,
        ];
        ensure_contended(lock.try_acquire().await, "a writer")?;
        drop(readers);
    }
    drop(lock.acquire_with(&patient()).await?);
    if claims.inspect >= Inspect::Holders {
        lock.inspect().await?;
    }
    lock.acquire_with(&patient()).await?.release().await?;
    Ok(())
}
