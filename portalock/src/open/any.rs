//! A backend whose type is forgotten: its locks and its semaphores.

use std::sync::Arc;

use portalock_core::{
    BackendError, Claim, ClaimKind, DynBackend, DynSemaphore, Election, Holder, Inspect,
    Inspection, InvalidName, Lock, LockBackend, LockError, LockName, Pool, Semaphore,
    SlotSemaphore,
};

/// The locks and the semaphores of one place, as [`open`](crate::open) found it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AnyBackend {
    /// Its locks: what a [`Lock`](portalock_core::Lock) or a [`LockSet`](portalock_core::LockSet) is made of.
    pub locks: DynBackend,
    /// Its semaphores: what a [`Pool`](portalock_core::Pool) is made of.
    pub semaphores: DynSemaphore,
}

impl AnyBackend {
    /// A backend that counts permits itself, such as Redis and etcd.
    pub fn new(backend: impl LockBackend + Semaphore + Clone) -> Self {
        Self {
            locks: Arc::new(backend.clone()),
            semaphores: Arc::new(backend),
        }
    }

    /// A backend that has only locks: its semaphores are [made of them](SlotSemaphore).
    pub fn of_locks(backend: impl LockBackend + Clone) -> Self {
        Self {
            locks: Arc::new(backend.clone()),
            semaphores: Arc::new(SlotSemaphore::new(backend)),
        }
    }

    /// The lock called `name`. No I/O is done.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] as [`Lock::new`].
    pub fn lock(&self, name: impl AsRef<str>) -> Result<Lock<DynBackend>, InvalidName> {
        Lock::new(self.locks.clone(), name)
    }

    /// The election called `name`. No I/O is done.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] as [`Lock::new`].
    pub fn election(&self, name: impl AsRef<str>) -> Result<Election<DynBackend>, InvalidName> {
        Election::new(self.locks.clone(), name)
    }

    /// The semaphore called `name`, with `capacity` permits in all. No I/O is done.
    ///
    /// # Errors
    ///
    /// As [`Pool::new`].
    pub fn pool(
        &self,
        name: impl AsRef<str>,
        capacity: u32,
    ) -> Result<Pool<DynSemaphore>, LockError> {
        Pool::new(self.semaphores.clone(), name, capacity)
    }

    /// Returns the holders and the waiters of the semaphore `name`. The answer may be out of date when it arrives.
    ///
    /// A semaphore made of locks can't answer this from the name alone, because it doesn't know the number of slots.
    /// Its slots are then found among the backend's [names](LockBackend::names); an owner of several slots is one
    /// holder with that many permits.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed, or if the backend supports neither way.
    ///
    /// # Cancel safety
    ///
    /// Safe: it changes nothing.
    pub async fn inspect_permits(&self, name: &LockName) -> Result<Inspection, BackendError> {
        if self.semaphores.capabilities().inspect != Inspect::None {
            return self.semaphores.inspect(name).await;
        }
        let mut held = false;
        let mut holders = Vec::new();
        let names = self.locks.names().await?;
        let mut slots: Vec<_> = names
            .into_iter()
            .filter_map(|slot| Some((slot_number(&slot, name)?, slot)))
            .collect();
        slots.sort_unstable();
        for (_, slot) in slots {
            let slot = self.locks.inspect(&slot).await?;
            held |= slot.held;
            for claim in slot.holders {
                add_permit(&mut holders, claim.holder);
            }
        }
        Ok(Inspection::new(holders, Vec::new()).with_held(held))
    }

    /// Ends the backend's session, which releases its locks. See [`LockBackend::close`].
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service could not be told.
    ///
    /// # Cancel safety
    ///
    /// As [`LockBackend::close`].
    pub async fn close(&self) -> Result<(), BackendError> {
        let locks = self.locks.close().await;
        locks.and(self.semaphores.close().await)
    }
}

/// The number of the permit of the semaphore `name` that the lock `slot` is, if it is one. [`SlotSemaphore`] describes
/// the names.
fn slot_number(slot: &LockName, name: &LockName) -> Option<u32> {
    slot.as_str()
        .strip_prefix(name.as_str())
        .and_then(|rest| rest.strip_prefix("#slot-"))
        .and_then(|number| number.parse().ok())
}

fn add_permit(holders: &mut Vec<Claim>, holder: Holder) {
    let same = |claim: &&mut Claim| {
        let other = &claim.holder;
        (other.pid, &other.host, &other.label) == (holder.pid, &holder.host, &holder.label)
    };
    match holders.iter_mut().find(same) {
        Some(Claim {
            holder: earlier,
            kind: ClaimKind::Permits(count),
            ..
        }) => {
            *count += 1;
            earlier.since = earlier.since.min(holder.since);
        }
        _ => holders.push(Claim::new(holder, ClaimKind::Permits(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portalock_core::{MemoryBackend, Pool};

    #[tokio::test]
    async fn permits_out_of_locks_are_counted_by_their_holder() {
        let store = MemoryBackend::new();
        let backend = AnyBackend::of_locks(store);
        let pool = |label: &str| {
            Pool::new(backend.semaphores.clone(), "p", 4)
                .unwrap()
                .with_label(label)
        };
        let name = LockName::new("p").unwrap();
        assert!(!backend.inspect_permits(&name).await.unwrap().held);

        let _two = pool("a").acquire(2).await.unwrap();
        let _one = pool("b").acquire(1).await.unwrap();
        let _other = Pool::new(backend.semaphores.clone(), "p#slot-x", 1)
            .unwrap()
            .acquire(1)
            .await
            .unwrap();
        let seen = backend.inspect_permits(&name).await.unwrap();
        assert!(seen.held);
        let claims: Vec<_> = seen
            .holders
            .iter()
            .map(|claim| (claim.holder.label.as_deref(), claim.kind))
            .collect();
        assert_eq!(
            claims,
            [
                (Some("a"), ClaimKind::Permits(2)),
                (Some("b"), ClaimKind::Permits(1))
            ]
        );
    }

    #[tokio::test]
    async fn a_native_semaphore_tells_itself() {
        let backend = AnyBackend::new(MemoryBackend::new());
        let pool = Pool::new(backend.semaphores.clone(), "p", 4).unwrap();
        let _two = pool.acquire(2).await.unwrap();
        let name = LockName::new("p").unwrap();
        let seen = backend.inspect_permits(&name).await.unwrap();
        assert_eq!(seen.holders[0].kind, ClaimKind::Permits(2));
    }
}
