//! The methods that both traits share, so that one engine serves locks and semaphores.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{
    Attempt, BackendError, Capabilities, LockBackend, LockRequest, Mode, PermitRequest, Permits,
    Released, Request, Semaphore, Wakeups,
};

type Answer<T> = Result<T, BackendError>;

/// The demand: a mode of a lock, or permits.
pub(crate) trait Demand: Clone + fmt::Debug + fmt::Display + Send + Sync + 'static {
    fn permits(&self) -> Option<Permits> {
        None
    }
}

impl Demand for Mode {}

impl Demand for Permits {
    fn permits(&self) -> Option<Permits> {
        Some(*self)
    }
}

/// A [`LockBackend`] or a [`Semaphore`], as the engine sees it.
pub(crate) trait Service<D: Demand>: Clone + Send + Sync + 'static {
    fn try_acquire<'a>(&'a self, request: &'a Request<D>) -> BoxFuture<'a, Answer<Attempt>>;
    fn release<'a>(&'a self, request: &'a Request<D>) -> BoxFuture<'a, Answer<Released>>;
    fn subscribe<'a>(&'a self, request: &'a Request<D>) -> BoxFuture<'a, Answer<Option<Wakeups>>>;
    fn release_now(&self, request: &Request<D>) -> bool;
    fn capabilities(&self) -> Capabilities;
    fn kind(&self) -> &'static str;
}

/// A backend's locks.
#[derive(Debug)]
pub(crate) struct Locks<B>(pub(crate) Arc<B>);

/// A semaphore's permits.
#[derive(Debug)]
pub(crate) struct PermitsOf<S>(pub(crate) Arc<S>);

impl<B> Clone for Locks<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Clone for PermitsOf<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// Calls the backend inside the `Arc`. The `Arc` is a backend too, and would box each future once more.
impl<B: LockBackend> Service<Mode> for Locks<B> {
    fn try_acquire<'a>(&'a self, request: &'a LockRequest) -> BoxFuture<'a, Answer<Attempt>> {
        (*self.0).try_acquire(request)
    }

    fn release<'a>(&'a self, request: &'a LockRequest) -> BoxFuture<'a, Answer<Released>> {
        (*self.0).release(request)
    }

    fn subscribe<'a>(&'a self, request: &'a LockRequest) -> BoxFuture<'a, Answer<Option<Wakeups>>> {
        (*self.0).subscribe(request)
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        (*self.0).release_now(request)
    }

    fn capabilities(&self) -> Capabilities {
        (*self.0).capabilities()
    }

    fn kind(&self) -> &'static str {
        (*self.0).kind()
    }
}

impl<S: Semaphore> Service<Permits> for PermitsOf<S> {
    fn try_acquire<'a>(&'a self, request: &'a PermitRequest) -> BoxFuture<'a, Answer<Attempt>> {
        (*self.0).try_acquire(request)
    }

    fn release<'a>(&'a self, request: &'a PermitRequest) -> BoxFuture<'a, Answer<Released>> {
        (*self.0).release(request)
    }

    fn subscribe<'a>(
        &'a self,
        request: &'a PermitRequest,
    ) -> BoxFuture<'a, Answer<Option<Wakeups>>> {
        (*self.0).subscribe(request)
    }

    fn release_now(&self, request: &PermitRequest) -> bool {
        (*self.0).release_now(request)
    }

    fn capabilities(&self) -> Capabilities {
        (*self.0).capabilities()
    }

    fn kind(&self) -> &'static str {
        (*self.0).kind()
    }
}
