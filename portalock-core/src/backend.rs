//! The trait that a backend implements: three required methods; the others have defaults.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::{
    Attempt, BackendError, Capabilities, Holder, HolderWatch, Inspection, LockName, LockRequest,
    Marked, OwnerId, Released, Wakeups,
};

/// A backend that is selected at run time. It also implements [`LockBackend`].
pub type DynBackend = Arc<dyn LockBackend>;

/// A store of locks: a directory, a Redis server, an etcd cluster, a table of your own.
///
/// # Contract
///
/// A request is data, and carries an [`owner`](crate::Request::owner): the id of one acquisition. The engine does
/// deadlines, retries, back-off and clean-up. A backend never waits until a lock is free, and never sees a deadline. It
/// has three tasks: [`try_acquire`](Self::try_acquire), [`release`](Self::release), and to state what it guarantees.
///
/// # For implementers
///
/// The names in parentheses are the groups of the conformance suite that test a rule.
///
/// 1. Two incompatible grants of one name never overlap (`exclusive`, `shared`, `stress`).
/// 2. Ownership is kept per [`owner`](crate::Request::owner), never per backend object, thread or connection
///    (`release`).
/// 3. If the owner already holds the lock, [`try_acquire`](Self::try_acquire) answers [`Attempt::Granted`] with the
///    same token. If it already waits, it keeps its place (`exclusive`, `fairness`).
/// 4. [`release`](Self::release) ends the owner's hold, removes it from the queue, and affects no other owner. It may
///    be called any number of times, and for an owner that holds nothing (`release`).
/// 5. When `release` has returned, nothing of the owner is left, even if an attempt for it failed or got no answer. The
///    engine never calls `try_acquire` and `release` for one owner at the same time (`cancellation`).
/// 6. A contended attempt with [`Patience::Once`](crate::Patience::Once) leaves nothing behind (`cancellation`).
/// 7. Names are mapped injectively, and none leaves the backend's own directory or prefix (`names`).
/// 8. Every await on a service has a deadline of its own, and ends with an answer or with a [`BackendError`] that says
///    what failed. The caller's deadline abandons a call that hangs, but the reaper can't clean up until that call has
///    ended (`timeout`).
/// 9. Nothing blocks the async runtime for longer than a local system call (`timeout`).
/// 10. A capability that [`capabilities`](Self::capabilities) claims works, and requests for an unclaimed one are
///     refused (all groups).
/// 11. The backend doesn't depend on the runtime that used it first: that runtime may end, block, or be one of several
///     (`runtime`). The module [`session`](crate::session) does this for networked backends.
/// 12. Breaking a lock affects the grant of one owner and nothing else, and its holder is told before the lock can pass
///     on (`breaking`).
///
/// # Why it is shaped so
///
/// Contention is an answer and not an error, because it is a normal result. A wait is not one long call, because each
/// backend would then need its own deadlines and its own cancellation, and most bugs of lock libraries are there.
#[async_trait]
pub trait LockBackend: Debug + Send + Sync + 'static {
    /// What this backend guarantees. The answer never changes and needs no I/O.
    fn capabilities(&self) -> Capabilities;

    /// The kind of backend, for metrics and logs. By default the type's name without its path.
    fn kind(&self) -> &'static str {
        short_type_name::<Self>()
    }

    /// Makes one attempt, and never waits until the lock is free. A repeated attempt of an owner finds the owner's
    /// grant or its place in the queue.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The outcome is then unknown, and the engine releases the owner or tries
    /// again for it.
    ///
    /// # Cancel safety
    ///
    /// If the caller is dropped, the reaper completes this future. It drops one that has not ended after 20 s, and then
    /// calls [`release`](Self::release).
    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError>;

    /// Ends the owner's hold, or removes the owner from the queue. Idempotent; does nothing if the owner was never
    /// granted.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The outcome is then unknown, and the engine tries again in the
    /// background.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any point; the engine then calls it again.
    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError>;

    /// Returns the channel that wakes a waiter. The engine calls it once per wait, after the first contended attempt.
    /// Then it tries again, unless that attempt was [`queued`](crate::Contention::queued).
    ///
    /// With `Ok(None)`, the default, the engine polls according to the caller's [`Policy`](crate::Policy).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The engine then polls, or gives up if the error is not retryable.
    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let _ = request;
        Ok(None)
    }

    /// Releases the owner at once, without I/O that can wait. Returns false, the default, if the backend can't do that;
    /// the engine then calls [`release`](Self::release) in the background.
    ///
    /// A dropped guard calls this method. It must not panic, and must not need a runtime.
    fn release_now(&self, request: &LockRequest) -> bool {
        let _ = request;
        false
    }

    /// Returns the holders and the waiters of `name`. The answer may be out of date when it arrives.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let _ = name;
        Err(BackendError::unsupported("way to inspect a lock"))
    }

    /// Returns the names that have holders or waiters. The answer may be out of date when it arrives.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        Err(BackendError::unsupported("way to list its locks"))
    }

    /// Watches the exclusive holder of `name`, for an [`Observer`](crate::Observer) of an election.
    ///
    /// With `Ok(None)`, the default, the observer polls with [`inspect`](Self::inspect). A watch must follow these
    /// rules:
    /// 1. The first change is the state at the moment of the call, even if there is no holder.
    /// 2. Later changes come in the order in which they happened, with the token of the grant in
    ///    [`Claim::token`](crate::Claim::token).
    /// 3. If changes may have been missed, for example after a broken connection, the backend drops the sender. The
    ///    observer then starts a new watch.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The observer returns the error, and starts a new watch later.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any point, and must leave nothing behind.
    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        let _ = name;
        Ok(None)
    }

    /// Marks the hold of `owner` as broken by `by`: the first step of
    /// [`Lock::break_holder`](crate::Lock::break_holder).
    ///
    /// Returns which hold it is, and for how long, from now on, its client may still rely on the lock if it never learns
    /// of the mark; `None` if `owner` does not hold the lock. The engine asks again until the answer is `None`, and calls
    /// [`evict`](Self::evict) when the time that was first returned for this hold has passed. An implementation must
    /// follow these rules:
    /// 1. The mark stays until the owner has been released. A renewal that is sent after this call has returned finds
    ///    the mark. A renewal that misses the mark does not extend the lease beyond the returned time. A message that
    ///    tells the client at once may be lost.
    /// 2. When the client finds the mark, it first ends the guard's lease with [`Loss::Broken`](crate::Loss::Broken),
    ///    and then releases the owner.
    /// 3. A second call does not change the mark, but may send the message again.
    /// 4. An owner can hold the lock anew after its hold was broken: a waiter that never heard of its grant asks again.
    ///    The new hold has another [number](Marked::hold), and a mark and a time of its own.
    /// 5. `None` means that this call marked nothing. If its request was sent again, because the first try got no answer,
    ///    and then finds no hold, the answer is [`Marked::has_ended`].
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the
    /// service failed. The mark may then exist or not.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any point: the mark then exists or not.
    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        let _ = (name, owner, by);
        Err(BackendError::unsupported("way to break a lock"))
    }

    /// Ends this hold of `owner` as its own release would, from any client: the second step of
    /// [`Lock::break_holder`](crate::Lock::break_holder), for a holder that does not respond. `hold` is the number that
    /// [`mark_broken`](Self::mark_broken) returned. Affects no other owner, and does nothing if this owner does not hold
    /// the lock, or holds it anew. If it fails but may succeed later, or gets no answer for 5 s, the engine marks the hold
    /// again, and waits as long again.
    ///
    /// The store must compare the number in the same step that ends the hold: the client of a new hold may rely on it,
    /// and was not told.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any point: the hold is then ended or not.
    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let _ = (name, owner, hold);
        Err(BackendError::unsupported("way to break a lock"))
    }

    /// Ends this object's session, if it has one. Its locks are released, and its guards are lost. A later call starts
    /// a new session.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service could not be told; the session then ends at the service when its time is over.
    ///
    /// # Cancel safety
    ///
    /// Safe: once polled, the session ends nevertheless.
    async fn close(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// A type's name without its path and its parameters.
pub(crate) fn short_type_name<T: ?Sized>() -> &'static str {
    let name = std::any::type_name::<T>();
    let plain = name.split_once('<').map_or(name, |(plain, _)| plain);
    // One character: a search for two takes ten times as long, and each acquisition calls this.
    plain.rsplit_once(':').map_or(plain, |(_, last)| last)
}

macro_rules! forward_lock_backend {
    ($($wrapper:ty),+) => {$(
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<B: LockBackend + ?Sized> LockBackend for $wrapper {
            fn capabilities(&self) -> Capabilities {
                (**self).capabilities()
            }

            fn kind(&self) -> &'static str {
                (**self).kind()
            }

            async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
                (**self).try_acquire(request).await
            }

            async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
                (**self).release(request).await
            }

            async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
                (**self).subscribe(request).await
            }

            fn release_now(&self, request: &LockRequest) -> bool {
                (**self).release_now(request)
            }

            async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
                (**self).inspect(name).await
            }

            async fn names(&self) -> Result<Vec<LockName>, BackendError> {
                (**self).names().await
            }

            async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
                (**self).watch(name).await
            }

            async fn mark_broken(
                &self,
                name: &LockName,
                owner: OwnerId,
                by: &Holder,
            ) -> Result<Option<Marked>, BackendError> {
                (**self).mark_broken(name, owner, by).await
            }

            async fn evict(
                &self,
                name: &LockName,
                owner: OwnerId,
                hold: u64,
            ) -> Result<Released, BackendError> {
                (**self).evict(name, owner, hold).await
            }

            async fn close(&self) -> Result<(), BackendError> {
                (**self).close().await
            }
        }
    )+};
}

forward_lock_backend!(Arc<B>, Box<B>);
