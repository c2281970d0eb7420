//! Fixtures: how the suite makes clients of a store, and how it causes faults.

use std::{error::Error, fmt, future::Future, sync::Arc};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use portalock_core::{BackendError, DynSemaphore, LockBackend, LockName, SlotSemaphore};

use crate::cases::Case;

/// A new, empty store of locks, and the faults that it can have.
///
/// Each case gets a new fixture, so cases can't see each other's locks. The fixture is dropped at the end of the case.
/// Only [`client`](Self::client) is required. Every other method causes a fault of the store or of its clients. By
/// default it answers "not provided", and the cases that need it are skipped; the report lists them with the reason.
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

    /// A new client of this fixture's store, independent of earlier ones: with its own connection, its own session and
    /// its own open directory, like a client in another process.
    ///
    /// # Errors
    ///
    /// [`FixtureError`] if the store can't be reached; the case then fails.
    async fn client(&self) -> Result<Self::Backend, FixtureError>;

    /// Semaphores in the same store, which end with `client`. By default they are made of `client`'s locks, with
    /// [`SlotSemaphore`]; `None` skips the group `semaphore`.
    fn semaphore(&self, client: &Arc<Self::Backend>) -> Option<DynSemaphore> {
        Some(Arc::new(SlotSemaphore::new(client.clone())))
    }

    /// Ends `client` like a process that is killed with `kill -9`: without a message to the store, and without a
    /// release.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn crash(&self, client: &Self::Backend) -> Result<(), FixtureError> {
        let _ = client;
        Err(FixtureError::NotProvided("a way to crash a client"))
    }

    /// Cuts the connection between `client` and the store: neither side receives anything from the other until
    /// [`Restore::now`].
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn cut_off(&self, client: &Self::Backend) -> Result<Restore, FixtureError> {
        let _ = client;
        Err(FixtureError::NotProvided("a way to cut a client off"))
    }

    /// Loses all answers of the store to `client` until [`Restore::now`]. The store still gets the requests of
    /// `client`, so they take effect without an answer.
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

    /// Keeps what `client` sends next on its way to the store, and breaks the client's connections then: the client can
    /// connect again at once. [`Restore::now`] lets the requests arrive, after all that the client has sent since.
    ///
    /// A network does this if it resets a connection for the client only, and brings the rest to the store later.
    /// [`FaultProxy::strand`](crate::proxy::FaultProxy::strand) does it for any service that is reached over TCP.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn delay_requests(&self, client: &Self::Backend) -> Result<Restore, FixtureError> {
        let _ = client;
        Err(FixtureError::NotProvided(
            "a way to let a client's requests arrive after its later ones",
        ))
    }

    /// Puts another, empty store at the address of this one: for example, a directory is renamed and created again, a
    /// symbolic link is changed, or something is mounted over it. From then on [`client`](Self::client) makes clients
    /// of the new store. Earlier clients must notice the change.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn move_store(&self) -> Result<(), FixtureError> {
        Err(FixtureError::NotProvided(
            "a way to put another store at its address",
        ))
    }

    /// Makes the store stop answering all clients, with open connections, until [`Restore::now`].
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        Err(FixtureError::NotProvided("a way to stall the service"))
    }

    /// Restarts the service of the store, with the data that its configuration keeps. Returns when the service answers
    /// again.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn restart_service(&self) -> Result<(), FixtureError> {
        Err(FixtureError::NotProvided("a way to restart the service"))
    }

    /// Takes `name` away from its holders without telling them: deletes the lock file, the key, or the row.
    ///
    /// The backend must tell the holders of this loss too, within the time of its
    /// [`LossNotice`](portalock_core::LossNotice). If that claim only covers losses that the backend itself causes,
    /// provide this method in a second fixture, for a backend that claims less.
    ///
    /// # Errors
    ///
    /// [`FixtureError::NotProvided`] by default.
    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        let _ = name;
        Err(FixtureError::NotProvided("a way to take a lock away"))
    }

    /// The reason why `case` would prove nothing on this system, if there is one. The case is then skipped, and the
    /// report shows the reason.
    ///
    /// Use it for a system that is more lenient than the real one, such as an emulator of an operating system. Don't
    /// use it for limits of the backend: cases for unclaimed capabilities are skipped anyway.
    fn skip(&self, case: &Case) -> Option<&'static str> {
        let _ = case;
        None
    }

    /// The address of this store for another process, in a form that [`connect`](Self::connect) understands. `None`,
    /// the default, skips the cases that use a helper process.
    fn address(&self) -> Option<String> {
        None
    }

    /// A client of the store at `address`. Runs in the helper process, without a fixture.
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

/// Why a fixture failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FixtureError {
    /// The fixture does not provide it: the case is skipped.
    #[error("the fixture does not provide {0}")]
    NotProvided(&'static str),
    /// The call failed: the case fails.
    #[error("the fixture failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

impl FixtureError {
    /// A failure, with its cause, or with a text that says what to do.
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

/// Ends a fault. Dropping this leaves the fault, which the fixture's own drop must then end.
#[must_use = "the fault stays until it is undone"]
pub struct Restore(BoxFuture<'static, Result<(), FixtureError>>);

impl Restore {
    /// A fault that `undo` ends.
    pub fn new(undo: impl Future<Output = Result<(), FixtureError>> + Send + 'static) -> Self {
        Self(Box::pin(undo))
    }

    /// Ends the fault.
    ///
    /// # Errors
    ///
    /// [`FixtureError`] if that failed.
    ///
    /// # Cancel safety
    ///
    /// Not safe: the fault may be ended only partly.
    pub async fn now(self) -> Result<(), FixtureError> {
        self.0.await
    }
}

impl fmt::Debug for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore").finish_non_exhaustive()
    }
}

/// A fixture, or the result of starting one.
pub trait IntoFixture {
    /// The type of the fixture.
    type Fixture: Fixture;

    /// Returns the fixture.
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
