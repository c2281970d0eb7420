//! The trait that a backend implements: three required methods, the rest has honest defaults.

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    Attempt, BackendError, Capabilities, Holder, HolderWatch, Inspection, LockName, LockRequest,
    OwnerId, Released, Wakeups,
};

/// Any backend, chosen at run time. It is a [`LockBackend`] itself.
pub type DynBackend = Arc<dyn LockBackend>;

/// Where locks live: a directory, a Redis server, an etcd cluster, a table of your own.
///
/// # Contract
///
/// A request is data, and everything is addressed by its [`owner`](crate::Request::owner). The engine brings the
/// deadline, the retries, the back-off and the cleaning up; a backend never waits for another holder and never sees a
/// deadline. It does three things: [`try_acquire`](Self::try_acquire), [`release`](Self::release), and saying what it
/// guarantees.
///
/// # For implementers
///
/// Each rule is followed by the group of the conformance suite that tests it.
///
/// 1. Two incompatible grants of one name never overlap (`exclusive`, `shared`, `stress`).
/// 2. Ownership is kept per [`owner`](crate::Request::owner), never per backend object, thread or connection
///    (`release`).
/// 3. [`try_acquire`](Self::try_acquire) for an owner that already holds answers [`Attempt::Granted`] with the same
///    token; for one that already waits it keeps its place (`exclusive`, `fairness`).
/// 4. [`release`](Self::release) frees what this owner holds, takes it out of the queue, and touches nobody else. It may be
///    called for an owner that holds nothing, any number of times (`release`).
/// 5. After `release` has returned nothing of the owner is left, also if an attempt for it failed or was never heard of
///    again. The engine never runs both at once for one owner (`cancellation`).
/// 6. With [`Patience::Once`](crate::Patience::Once) a contended attempt leaves nothing behind (`cancellation`).
/// 7. Names are mapped injectively, and none leaves the backend's own directory or prefix (`names`).
/// 8. Every await on a service ends by itself: with an answer, or with a [`BackendError`] that says what failed. A call
///    that hangs is abandoned at the caller's deadline, but is what keeps the reaper from cleaning up (`timeout`).
/// 9. Nothing blocks the async runtime for longer than a local system call takes (`timeout`).
/// 10. What [`capabilities`](Self::capabilities) claims holds, and what it doesn't claim is refused (all groups).
/// 11. Nothing depends on the runtime that first used the backend: it may end, stand still or be one of several
///     (`runtime`). [`session`](crate::session) has what a networked backend needs for that.
/// 12. Breaking a lock touches the grant of one owner and nothing else, and its holder is told before another can be granted
///     (`breaking`).
///
/// # Why it is shaped so
///
/// Contention is an answer, not an error: it is what a lock service says all day. A wait is not one long call, because
/// then each backend would need its own deadlines and its own cancellation, and those are where locks go wrong.
#[async_trait]
pub trait LockBackend: Debug + Send + Sync + 'static {
    /// What this backend guarantees. Constant for the life of the object, and without I/O.
    fn capabilities(&self) -> Capabilities;

    /// What kind of backend this is, for metrics and logs. By default the type's own name without its path.
    fn kind(&self) -> &'static str {
        short_type_name::<Self>()
    }

    /// One attempt; never waits for another holder. Repeating it for one owner finds, or keeps, the same place.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The attempt's outcome is then unknown, and the engine releases the owner or
    /// tries again for it.
    ///
    /// # Cancel safety
    ///
    /// The engine never drops this future half-way: it is seen out by the reaper. An implementation need not be cancel
    /// safe.
    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError>;

    /// Frees what the owner holds, or takes it out of the queue. Idempotent; harmless if it was never granted.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed: whether the lock was freed is then unknown, and the engine tries again in the
    /// background.
    ///
    /// # Cancel safety
    ///
    /// A caller may drop it half-way; the engine then calls it again.
    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError>;

    /// Opens the line on which a waiter is woken. Called once per wait, after the first contended attempt; the engine
    /// tries again afterwards unless that attempt was [`queued`](crate::Contention::queued).
    ///
    /// `Ok(None)`, the default, makes the engine poll as the caller's [`Policy`](crate::Policy) says.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The engine then polls, or gives up if the error is not retryable.
    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let _ = request;
        Ok(None)
    }

    /// Frees at once what the owner holds or waits for, without I/O that can wait. False, the default, if that can't be
    /// done: the engine then calls [`release`](Self::release) in the background.
    ///
    /// It is what a dropped guard does; it must not panic, and must not need a runtime.
    fn release_now(&self, request: &LockRequest) -> bool {
        let _ = request;
        false
    }

    /// Who holds `name` and who waits for it, by now perhaps no longer true.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let _ = name;
        Err(BackendError::unsupported("way to look at a lock"))
    }

    /// The names that are held or waited for, by now perhaps no longer true.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        Err(BackendError::unsupported("way to list its locks"))
    }

    /// Tells who holds `name` exclusively, change by change: what an [`Observer`](crate::Observer) of an election needs.
    ///
    /// `Ok(None)`, the default, makes the observer look from time to time by [`inspect`](Self::inspect). A backend that
    /// answers with a watch owes this:
    /// 1. The first change told is the state at the moment of the call, also if nobody holds.
    /// 2. Each later change is told in the order in which it happened, with the token of the grant in
    ///    [`Claim::token`](crate::Claim::token).
    /// 3. When changes may have been missed, as after a broken connection, the sender is dropped. The observer then
    ///    watches anew.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed. The observer passes it on and watches again later.
    ///
    /// # Cancel safety
    ///
    /// A caller may drop it half-way; nothing may stay behind.
    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        let _ = name;
        Ok(None)
    }

    /// Marks what `owner` holds as broken by `by`: the first half of [`Lock::break_holder`](crate::Lock::break_holder).
    ///
    /// Answers how long the holder's client may go on relying on the lock if it never hears of this, counted from the answer;
    /// `None` if `owner` does not hold. The engine asks again until it is `None`, and calls [`evict`](Self::evict) once that
    /// time has passed. A backend owes this:
    /// 1. The mark stays until the owner has been released. A renewal that is sent after the answer finds it, and no renewal
    ///    that misses it prolongs the lease beyond the time that was answered. A message that tells the client at once may be
    ///    lost.
    /// 2. The client that finds the mark first ends the guard's lease by [`Loss::Broken`](crate::Loss::Broken), and then
    ///    releases the owner.
    /// 3. The first mark stays: marking again changes nothing, but may send the message again.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed. Whether there is a mark is then unknown.
    ///
    /// # Cancel safety
    ///
    /// A caller may drop it half-way: there is a mark or there is none.
    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        let _ = (name, owner, by);
        Err(BackendError::unsupported("way to break a lock"))
    }

    /// Frees what `owner` holds as its own release would, from any client: the second half of
    /// [`Lock::break_holder`](crate::Lock::break_holder), for a holder that does not respond. Touches nobody else.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    ///
    /// # Cancel safety
    ///
    /// A caller may drop it half-way: the owner holds or it doesn't.
    async fn evict(&self, name: &LockName, owner: OwnerId) -> Result<Released, BackendError> {
        let _ = (name, owner);
        Err(BackendError::unsupported("way to break a lock"))
    }

    /// Ends this object's session, if it has one, in good order: what it still holds is freed and its guards are lost.
    /// A later call starts a new session.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service could not be told; it then learns by the session's own time.
    async fn close(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// A type's name without its path and its parameters.
pub(crate) fn short_type_name<T: ?Sized>() -> &'static str {
    let name = std::any::type_name::<T>();
    let plain = name.split_once('<').map_or(name, |(plain, _)| plain);
    plain.rsplit_once("::").map_or(plain, |(_, last)| last)
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
            ) -> Result<Option<Duration>, BackendError> {
                (**self).mark_broken(name, owner, by).await
            }

            async fn evict(&self, name: &LockName, owner: OwnerId) -> Result<Released, BackendError> {
                (**self).evict(name, owner).await
            }

            async fn close(&self) -> Result<(), BackendError> {
                (**self).close().await
            }
        }
    )+};
}

forward_lock_backend!(Arc<B>, Box<B>);
