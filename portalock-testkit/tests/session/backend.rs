//! The backend of the simulated service.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Claim, ClaimKind, CrashRelease, Fairness, Holder, Inspect,
    Inspection, LockBackend, LockName, LockRequest, LossNotice, Marked, Mode, OwnerId, Patience,
    Released, Scope, Tokens, Wakeups, session::Client,
};

use crate::{
    kept::{Simulation, Wanted},
    records::{self, LEASE},
    world::{Line, World},
};

/// A client of the simulated service. Clones are the same client.
#[derive(Debug, Clone)]
pub(crate) struct Simulated(Arc<Client<Simulation>>);

impl Simulated {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        Self(Arc::new(Client::new(Arc::new(Line::new(world)))))
    }

    /// For this time its requests get no answer.
    pub(crate) fn cut_off_for(&self, time: Duration) {
        self.0.shared().cut_for(time);
    }
}

#[async_trait]
impl LockBackend for Simulated {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Network)
            .with_shared(true)
            .with_fairness(Fairness::FirstCome)
            .with_tokens(Tokens::Durable)
            .with_crash_release(CrashRelease::Within(LEASE * 2))
            .with_loss(LossNotice::BeforeSuccessor)
            .with_inspect(Inspect::HoldersAndWaiters)
            .with_breaks(true)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        let wanted = Wanted {
            name: request.name.as_str().into(),
            shared: request.demand == Mode::Shared,
            queues: request.patience == Patience::Queue,
        };
        self.0.attempt(request.owner, &wanted).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.0.release(request.owner).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        self.0.subscribe(request.owner).map(Some)
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let name: Arc<str> = name.as_str().into();
        let asked = self
            .0
            .shared()
            .request(move |records| records.queue(&name).to_vec());
        let (holders, waiters): (Vec<_>, Vec<_>) =
            asked.await?.into_iter().partition(|claim| claim.held);
        let claims = |of: Vec<records::Claim>| {
            of.into_iter()
                .map(|claim| {
                    let kind = if claim.shared {
                        ClaimKind::Shared
                    } else {
                        ClaimKind::Exclusive
                    };
                    Claim::new(Holder::this_process(None), kind).with_owner(claim.owner)
                })
                .collect()
        };
        Ok(Inspection::new(claims(holders), claims(waiters)))
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        let (name, by) = (name.clone(), by.clone());
        let line = self.0.shared();
        line.request(move |records| records.mark(name.as_str(), owner, by))
            .await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let name = name.clone();
        let line = self.0.shared();
        let evicted = line.request(move |records| records.evict(name.as_str(), owner, hold));
        Ok(if evicted.await?? {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.0.close().await
    }
}
