//! Taking a lock away from its holder: tell it, wait for it, and end its hold by force if it does not respond.

use super::{answer::answer, backoff::Backoff, timer};
use crate::{Holder, LockBackend, LockError, LockName, OwnerId, Policy, Released, clock::Instant};

/// The result of breaking a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Broken {
    /// The holder's client was told, and released the lock.
    Released,
    /// The holder's client did not respond while it could rely on the lock, so its hold was ended by force.
    Evicted,
    /// The owner did not hold the lock: it had been released or lost, it only waited, or it never existed. Nothing was
    /// changed.
    NotHeld,
}

pub(crate) async fn break_holder<B: LockBackend + ?Sized>(
    backend: &B,
    name: &LockName,
    owner: OwnerId,
    by: &Holder,
    policy: &Policy,
) -> Result<Broken, LockError> {
    if !backend.capabilities().breaks {
        return Err(LockError::Unsupported {
            what: "way to break a lock",
            instead: "its capabilities have no `breaks`: end the holder's process",
        });
    }
    let mut backoff = Backoff::new(policy);
    let mut after_failure = Backoff::after_failure(policy);
    // The time until which a holder that knows nothing of the mark may rely on the lock, as the first mark returned it:
    // the first since an eviction failed, if one did.
    // A client that misses the mark but still reaches the service must not move it.
    let mut relies_until: Option<Option<Instant>> = None;
    // Each may have failed only because its answer was lost.
    let mut failed_evictions = 0;
    loop {
        match answer(name, backend.mark_broken(name, owner, by)).await {
            Ok(None) if failed_evictions > 0 => return Ok(Broken::Evicted),
            Ok(None) if relies_until.is_none() => return Ok(Broken::NotHeld),
            Ok(None) => return Ok(Broken::Released),
            Ok(Some(time)) => {
                relies_until.get_or_insert_with(|| {
                    tracing::debug!(%name, %owner, ?time, "marked as broken");
                    Instant::now().checked_add(time)
                });
            }
            // The mark exists, and the wait continues.
            Err(error) if error.is_retryable() && relies_until.is_some() => {
                tracing::debug!(%name, %owner, %error, "could not ask after a broken lock");
            }
            Err(error) => return Err(error),
        }
        let relied = relies_until.flatten();
        if relied.is_some_and(|until| Instant::now() >= until) {
            match answer(name, backend.evict(name, owner)).await {
                Ok(Released::NotHeld) if failed_evictions == 0 => return Ok(Broken::Released),
                Ok(_) => return Ok(Broken::Evicted),
                // The service may have lost the mark, and then the holder may rely on the lock for longer.
                Err(error) if error.is_retryable() && failed_evictions < policy.max_failures() => {
                    tracing::debug!(%name, %owner, %error, "could not end a broken hold");
                    relies_until = None;
                    failed_evictions += 1;
                }
                Err(error) => return Err(error),
            }
        }
        let pause = match relies_until {
            Some(_) => backoff.pause(),
            None => after_failure.pause(),
        };
        let next = Instant::now().checked_add(pause);
        match [next, relies_until.flatten()].into_iter().flatten().min() {
            Some(next) => timer::at(next).await,
            None => std::future::pending().await,
        }
    }
}
