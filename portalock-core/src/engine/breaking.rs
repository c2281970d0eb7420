//! Taking a lock away from its holder: tell it, wait for it, and end its hold by force if it does not respond.

use super::{answer::answer, backoff::Backoff, timer};
use crate::{
    Holder, LockBackend, LockError, LockName, Marked, OwnerId, Policy, Released, clock::Instant,
};

/// The result of breaking a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Broken {
    /// The hold was marked as broken, and has ended: its client was told and released the lock, or its lease ended first.
    /// If the first request got no answer, and found no hold when it was sent again, there may have been none.
    Released,
    /// The holder's client did not respond while it could rely on the lock, so its hold was ended by force. Or a request
    /// to end it by force got no answer, and the hold is gone.
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
    // The marked hold, and the time until which a holder that knows nothing of the mark may rely on it, as the first mark
    // of that hold returned it: the first since an eviction failed, if one did.
    // A client that misses the mark but still reaches the service must not move it.
    let mut marked: Option<(u64, Option<Instant>)> = None;
    // Each may have failed only because its answer was lost.
    let mut failed_evictions = 0;
    // Those in a row that nothing else ends.
    let mut failed_marks = 0;
    loop {
        let relies_until = marked.and_then(|(_, until)| until);
        let is_first = marked.is_none() && failed_evictions == 0;
        // Of what is known to have been marked, it says only that it is not held.
        let is_known = |found: &Marked| is_first || *found != Marked::has_ended();
        let found = answer(name, backend.mark_broken(name, owner, by)).await;
        match found.map(|found| found.filter(is_known)) {
            Ok(None) if failed_evictions > 0 => return Ok(Broken::Evicted),
            Ok(None) if marked.is_none() => return Ok(Broken::NotHeld),
            Ok(None) => return Ok(Broken::Released),
            Ok(Some(Marked { relies_for, hold }))
                if marked.is_none_or(|(other, _)| hold != other) =>
            {
                tracing::debug!(%name, %owner, ?relies_for, "marked as broken");
                marked = Some((hold, Instant::now().checked_add(relies_for)));
                failed_marks = 0;
            }
            Ok(Some(_)) => failed_marks = 0,
            // The mark exists, and the wait continues until that time.
            Err(error) if error.is_retryable() && relies_until.is_some() => {
                tracing::debug!(%name, %owner, %error, "could not ask after a broken lock");
            }
            Err(error)
                if error.is_retryable()
                    && (marked.is_some() || failed_evictions > 0)
                    && failed_marks < policy.max_failures() =>
            {
                tracing::debug!(%name, %owner, %error, "could not mark a broken lock again");
                failed_marks += 1;
                backoff.slow_down();
            }
            Err(error) => return Err(error),
        }
        if let Some((hold, Some(until))) = marked
            && Instant::now() >= until
        {
            match answer(name, backend.evict(name, owner, hold)).await {
                Ok(Released::NotHeld) if failed_evictions == 0 => return Ok(Broken::Released),
                Ok(_) => return Ok(Broken::Evicted),
                // The service may have lost the mark, and then the holder may rely on the lock for longer.
                Err(error) if error.is_retryable() && failed_evictions < policy.max_failures() => {
                    tracing::debug!(%name, %owner, %error, "could not end a broken hold");
                    marked = None;
                    failed_evictions += 1;
                    backoff.slow_down();
                }
                Err(error) => return Err(error),
            }
        }
        let next = Instant::now() + backoff.pause().min(Policy::DEFAULT_CHECK_INTERVAL);
        let relies_until = marked.and_then(|(_, until)| until);
        timer::at(relies_until.map_or(next, |until| until.min(next))).await;
    }
}
