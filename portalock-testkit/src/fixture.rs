//! What the suite is told of a backend: how to make clients of a store, and how to hurt them.

use std::{error::Error, fmt, future::Future, sync::Arc};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use portalock_core::{BackendError, DynSemaphore, LockBackend, LockName, SlotSemaphore};

use crate::cases::Case;

/// One fresh, empty store of locks, and what can be done to it.
///
/// A fixture is made anew for each case, so cases can't see each other's locks, and it is dropped at the case's end. Only
/// [`client`](Self::client) is required. Every other method is a way to hurt the store or its clients: its default says
/// "not provided", and the cases that need it are then skipped, by name and with the reason.
///
/// ```
/// use async_trait::async_trait;
/// use portalock_testkit::{Fixture, FixtureError};
/// # use portalock_core::{Attempt, BackendError, Capabilities, Grant, LockBackend, LockRequest, Released, Scope};
/// # #[derive(Debug, Clone, Default)] struct MyBackend;
/// # #[async_trait] impl LockBackend for MyBackend {
/// #     fn capabilities(&self) -> Capabilities { Capabilities::new(Scope::Process) }
/// #     async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> { Ok(Attempt::Granted(Grant::new())) }
/// #     async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> { Ok(Released::Freed) }
/// # }
///
/// #[derive(Default)]
/// struct MyFixture {
///     store: MyBackend,
/// }
///
/// #[async_trait]
/// impl Fixture for MyFixture {
///     type Backend = MyBackend;
///
///     async fn client(&self) -> Result<MyBackend, FixtureError> {
///         Ok(self.store.clone())
///     }
/// }
/// ```
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// The backend under test.
    type Backend: LockBackend;

    /// A new client of this fixture's store, independent of those made before: its own connection, its own session, its
    /// own open directory, as another process would have.
    ///
    /// # Errors
    ///
    /// [`FixtureError`] if there is no store to reach; the case then fails.
    async fn client(&self) -> Result<Self::Backend, FixtureError>;

    /// Semaphores in the same store, living and dying with `client`. By default they are made of `client`'s locks, by
    /// [`SlotSemaphore`]; `None` skips the group `semaphore`.
    fn semaphore(&self, client: &Arc<Self::Backend>) -> Option<DynSemaphore> {
        Some(Arc::new(SlotSemaphore::new(client.clone())))
    }

    /// Ends `client` the way `kill -9` ends a process: without a word to the store, and without running a release.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn crash(&self, client: &Self::Backend) -> Result<(), FixtureError> {
        let _ = client;
        Err(FixtureError::NotProvided("a way to crash a client"))
    }

    /// Cuts the line between `client` and the store: neither side hears of the other until [`Restore::now`].
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn cut_off(&self, client: &Self::Backend) -> Result<Restore, FixtureError> {
        let _ = client;
        Err(FixtureError::NotProvided("a way to cut a client off"))
    }

    /// Loses whatever the store answers to `client` until [`Restore::now`]. The store still hears `client`: what it asks for
    /// takes effect, and nobody tells it.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn lose_answers(&self, client: &Self::Backend) -> Result<Restore, FixtureError> {
        let _ = client;
        Err(FixtureError::NotProvided(
            "a way to lose the store's answers to a client",
        ))
    }

    /// Puts another, empty store at the address by which clients find this one: a directory is renamed and made anew, a
    /// symbolic link is switched, something is mounted over it. [`client`](Self::client) makes clients of the new store from
    /// then on; those that were made before have to notice.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn move_store(&self) -> Result<(), FixtureError> {
        Err(FixtureError::NotProvided(
            "a way to put another store at its address",
        ))
    }

    /// Makes the store stop answering everyone, with connections open, until [`Restore::now`].
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        Err(FixtureError::NotProvided("a way to stall the service"))
    }

    /// Ends the service that keeps the store and starts it again, with what its set-up makes it keep. Returns when it
    /// answers again.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn restart_service(&self) -> Result<(), FixtureError> {
        Err(FixtureError::NotProvided("a way to restart the service"))
    }

    /// Takes `name` away from those who hold it, behind their backs: deletes the lock file, the key, the row.
    ///
    /// The holders must be told of that, too, as soon as the backend's [`LossNotice`](portalock_core::LossNotice) says. Where
    /// that holds only for what the backend does by itself, provide this in a second fixture, around a backend that claims
    /// less.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        let _ = name;
        Err(FixtureError::NotProvided("a way to take a lock away"))
    }

    /// Why `case` would prove nothing where it runs, if that is so: it is then skipped, and the report gives this reason.
    ///
    /// For a place that is more lenient than the real one, such as an emulator of an operating system. A backend's own
    /// limits are no reason: what it doesn't claim is skipped without being asked.
    fn skip(&self, case: &Case) -> Option<&'static str> {
        let _ = case;
        None
    }

    /// Where another process finds this store, in a form that [`connect`](Self::connect) understands. `None`, the
    /// default, skips the cases that use a helper process.
    fn address(&self) -> Option<String> {
        None
    }

    /// A client of the store at `address`; runs in the helper process, without a fixture.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn connect(address: &str) -> Result<Self::Backend, FixtureError>
    where
        Self: Sized,
    {
        let _ = address;
        Err(FixtureError::NotProvided("clients in another process"))
    }
}

/// Why a fixture did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FixtureError {
    /// The fixture does not have it: the case is skipped, not failed.
    #[error("the fixture does not provide {0}")]
    NotProvided(&'static str),
    /// It was tried, and failed: the case fails.
    #[error("the fixture failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

impl FixtureError {
    /// A failure, with its cause or with text that says what to do.
    pub fn failed(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(cause.into())
    }
}

impl From<std::io::Error> for FixtureError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

impl From<BackendError> for FixtureError {
    fn from(error: BackendError) -> Self {
        Self::failed(error)
    }
}

/// Undoes a fault. Dropping it leaves the fault in place, for the fixture's own end to clear away.
#[must_use = "the fault stays until it is undone"]
pub struct Restore(BoxFuture<'static, Result<(), FixtureError>>);

impl Restore {
    /// A fault that `undo` undoes.
    pub fn new(undo: impl Future<Output = Result<(), FixtureError>> + Send + 'static) -> Self {
        Self(Box::pin(undo))
    }

    /// Undoes it.
    ///
    /// # Errors
    ///
    /// [`FixtureError`] if that failed.
    ///
    /// # Cancel safety
    ///
    /// None: the fault may be half undone.
    pub async fn now(self) -> Result<(), FixtureError> {
        self.0.await
    }
}

impl fmt::Debug for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore").finish_non_exhaustive()
    }
}

/// What makes fixtures: the fixture itself, or the result of an attempt to start one.
pub trait IntoFixture {
    /// The fixture that is made.
    type Fixture: Fixture;

    /// Makes it.
    ///
    /// # Errors
    ///
    /// [`FixtureError`] if it could not be started.
    fn into_fixture(self) -> Result<Self::Fixture, FixtureError>;
}

impl<F: Fixture> IntoFixture for F {
    type Fixture = F;

    fn into_fixture(self) -> Result<F, FixtureError> {
        Ok(self)
    }
}

impl<F: Fixture, E: Into<FixtureError>> IntoFixture for Result<F, E> {
    type Fixture = F;

    fn into_fixture(self) -> Result<F, FixtureError> {
        self.map_err(Into::into)
    }
}
