//! The ownership that every guard contains.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, OnceLock},
};

use futures_util::future::{Either, select};

use super::{
    answer::answer,
    measure::Hold,
    reaper,
    service::{Demand, Service},
};
use crate::{
    FencingToken, Grant, Lease, LockError, LockName, Loss, LostSignal, OwnerId, Released, Request,
};

/// The ownership of one acquisition. Released when dropped.
pub(crate) struct Held<S: Service<D>, D: Demand> {
    service: S,
    request: Arc<Request<D>>,
    grant: Grant,
    /// Created when the signal is first requested: this is rare, and it takes a third of a guard's memory.
    tenure: OnceLock<Tenure>,
    armed: bool,
    hold: Hold,
}

/// The grant's lost signal, as the guard's user sees it: it never fires after the guard was released.
struct Tenure {
    lost: LostSignal,
    /// Settled when the lock is released.
    lease: Lease,
}

impl<S: Service<D>, D: Demand> Held<S, D> {
    pub(crate) fn new(service: S, request: Arc<Request<D>>, grant: Grant) -> Self {
        Self {
            service,
            request,
            grant,
            tenure: OnceLock::new(),
            armed: true,
            hold: Hold::new(),
        }
    }

    pub(crate) fn name(&self) -> &LockName {
        &self.request.name
    }

    pub(crate) fn demand(&self) -> &D {
        &self.request.demand
    }

    pub(crate) fn owner(&self) -> OwnerId {
        self.request.owner
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.grant.token
    }

    pub(crate) fn lost_signal(&self) -> &LostSignal {
        let tenure = self.tenure.get_or_init(|| {
            let lease = Lease::unbounded();
            Tenure {
                lost: self.grant.lost.during(&lease),
                lease,
            }
        });
        &tenure.lost
    }

    /// Why the lock was lost, if it was.
    pub(crate) fn loss(&self) -> Option<Loss> {
        let tenure = self.tenure.get();
        let lost = tenure.map_or(&self.grant.lost, |tenure| &tenure.lost);
        lost.loss_of(self.owner())
    }

    /// From now on, no signal of this guard fires if it has not fired yet.
    fn settle(&self) {
        // In a forked child a thread of the parent may stay in the lease.
        if let Some(tenure) = self.tenure.get()
            && !self.owner().is_inherited()
        {
            tenure.lease.settle();
        }
    }

    pub(crate) fn ensure_held(&self) -> Result<(), LockError> {
        match self.loss() {
            None => Ok(()),
            Some(loss) => Err(self.lost_by(loss)),
        }
    }

    pub(crate) async fn run<F: Future>(&self, work: F) -> Result<F::Output, LockError> {
        let lost = async { self.lost_by(self.lost_signal().lost().await) };
        while_held(lost, || self.ensure_held(), work).await
    }

    pub(crate) async fn release(mut self) -> Result<(), LockError> {
        if !self.service.capabilities().releases_now && self.request.owner.is_inherited() {
            // This is a forked child's copy: dropping it sends nothing.
            return Err(LockError::NotHeld {
                name: self.request.name.clone(),
            });
        }
        // Read before the release, which may remove the record that the signal watches.
        let loss = self.loss();
        if loss.is_some() {
            self.hold.lost();
        }
        self.settle();
        let released = answer(&self.request.name, self.service.release(&self.request)).await;
        // Otherwise dropping `self` hands the release to the reaper.
        self.armed = released.is_err();
        if let Some(loss) = loss {
            return Err(self.lost_by(loss));
        }
        match released? {
            Released::Freed => {
                tracing::debug!(name = %self.request.name, owner = %self.request.owner, "released");
                Ok(())
            }
            Released::NotHeld => Err(LockError::NotHeld {
                name: self.request.name.clone(),
            }),
        }
    }

    fn lost_by(&self, loss: Loss) -> LockError {
        tracing::warn!(name = %self.request.name, owner = %self.request.owner, %loss, "lost");
        LockError::Lost {
            name: self.request.name.clone(),
            loss,
        }
    }
}

impl<S: Service<D>, D: Demand> Drop for Held<S, D> {
    fn drop(&mut self) {
        let mut loss = None;
        if self.armed {
            loss = self.loss();
            self.settle();
            reaper::release(
                self.service.clone(),
                self.request.clone(),
                self.grant.lost.clone(),
            );
        }
        // After the release, and caught: the program's log and its metrics may panic. During unwinding, or in a second guard, that would
        // abort the process.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            if let Some(loss) = loss {
                self.hold.lost();
                tracing::warn!(name = %self.request.name, owner = %self.request.owner, %loss, "lost");
            } else if self.armed {
                tracing::debug!(name = %self.request.name, owner = %self.request.owner, "released by drop");
            }
            self.hold.ended(self.service.kind(), &self.request.name);
        }));
    }
}

impl<S: Service<D>, D: Demand> fmt::Debug for Held<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("name", &self.request.name)
            .field("demand", &self.request.demand)
            .field("owner", &self.request.owner)
            .field("token", &self.grant.token)
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}

/// Runs `work` until it has ended or `lost` has. `held` is the last check, for a loss at the moment when `work` ends.
pub(crate) async fn while_held<F: Future>(
    lost: impl Future<Output = LockError>,
    held: impl FnOnce() -> Result<(), LockError>,
    work: F,
) -> Result<F::Output, LockError> {
    // The loss is polled first, so that work doesn't continue after the lock was lost.
    match select(pin!(lost), pin!(work)).await {
        Either::Left((lost, _)) => Err(lost),
        Either::Right((output, _)) => held().map(|()| output),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use async_trait::async_trait;

    use super::*;
    use crate::{
        Attempt, BackendError, Capabilities, LockBackend, LockRequest, Mode, Patience, Scope,
        engine::service::Locks, lease::tests::reading, request::tests::of_a_parent,
    };

    /// Tells which calls it got.
    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<&'static str>>);

    #[async_trait]
    impl LockBackend for Heard {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new(Scope::Network)
        }

        async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> {
            self.0.lock().unwrap().push("attempt");
            Ok(Attempt::Granted(Grant::new()))
        }

        async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
            self.0.lock().unwrap().push("release");
            Ok(Released::Freed)
        }
    }

    fn held(backend: &Arc<Heard>, owner: OwnerId) -> Held<Locks<Heard>, Mode> {
        held_by(backend, owner, Grant::new())
    }

    fn held_by(backend: &Arc<Heard>, owner: OwnerId, grant: Grant) -> Held<Locks<Heard>, Mode> {
        let name = LockName::new("job").unwrap();
        let mut request = LockRequest::new(name, Mode::Exclusive, Patience::Once);
        request.owner = owner;
        Held::new(Locks(backend.clone()), Arc::new(request), grant)
    }

    /// The lease of a session is that of all its guards, and other threads of the parent often read it.
    #[test]
    fn a_forked_child_that_drops_a_guard_waits_for_no_thread_of_its_parent() {
        let backend = Arc::new(Heard::default());
        let [session, place] = [(); 2].map(|()| Lease::unbounded().signal());
        for at in 0..3 {
            let lost = LostSignal::any([session.clone(), place.clone()]);
            let parents = held_by(&backend, of_a_parent(), Grant::new().with_lost(lost));
            let tenure = parents.lost_signal().clone();
            let read = reading([&session, &place, &tenure][at]);
            let (sender, dropped) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                drop(parents);
                sender.send(())
            });
            let told = dropped.recv_timeout(Duration::from_secs(60));
            drop(read);
            assert_eq!(
                told,
                Ok(()),
                "it waits for the thread that reads the signal {at}"
            );
        }
    }

    #[tokio::test]
    async fn a_forked_childs_copy_sends_nothing() {
        let backend = Arc::new(Heard::default());
        let parents = of_a_parent();
        drop(held(&backend, parents));
        let released = held(&backend, parents).release().await;
        assert!(matches!(released, Err(LockError::NotHeld { .. })));
        let service = Locks(backend.clone());
        let abandoned = held(&backend, parents).request.clone();
        let attempt = {
            let (service, request) = (service.clone(), abandoned.clone());
            reaper::in_flight(async move { service.try_acquire(&request).await })
        };
        reaper::withdraw(service, abandoned, Some(attempt));
        reaper::shutdown(Duration::from_secs(5)).await.unwrap();
        assert!(backend.0.lock().unwrap().is_empty());

        let own = held(&backend, OwnerId::mint());
        assert!(format!("{own:?}").contains("job"));
        own.release().await.unwrap();
        reaper::shutdown(Duration::from_secs(5)).await.unwrap();
        assert_eq!(*backend.0.lock().unwrap(), ["release"]);
    }
}
