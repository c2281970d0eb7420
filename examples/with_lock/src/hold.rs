//! The locks or permits of the command line, wanted and held.

use portalock::AnyBackend;
use portalock::{
    DynBackend, DynSemaphore, FencingToken, LockError, LockName, LockSet, LockSetGuard, LostSignal,
    Mode, PermitGuard, Policy, Pool,
};

use crate::args::{PermitsOf, RunArgs, backend_and_name};

/// What the command line wants.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// One lock or several, all or none.
    Locks(LockSet<DynBackend>),
    /// Permits of a semaphore.
    Permits(Pool<DynSemaphore>, u32),
}

impl Wanted {
    pub(crate) fn new(
        args: &RunArgs,
        backend: &AnyBackend,
        policy: Policy,
    ) -> Result<Self, LockError> {
        let (_, name) = backend_and_name(&args.target);
        let label = args.label.clone().unwrap_or_else(|| program_name(args));
        if let Some(PermitsOf(permits)) = args.permits {
            let pool = Pool::new(backend.semaphores.clone(), name, permits.capacity())?
                .with_policy(policy)
                .with_label(label);
            return Ok(Self::Permits(pool, permits.count()));
        }
        let names = std::iter::once(name).chain(args.also.iter().map(String::as_str));
        let mode = if args.shared {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let set = LockSet::new(backend.locks.clone(), names)?
            .with_mode(mode)
            .with_policy(policy)
            .with_label(label);
        Ok(Self::Locks(set))
    }

    /// The names, in the order in which they are acquired.
    pub(crate) fn names(&self) -> Vec<LockName> {
        match self {
            Self::Locks(set) => set.names().cloned().collect(),
            Self::Permits(pool, _) => vec![pool.name().clone()],
        }
    }

    /// Acquires, and waits according to the command line. Dropping the future releases everything.
    pub(crate) async fn acquire(&self) -> Result<Hold, LockError> {
        Ok(match self {
            Self::Locks(set) => Hold::Locks(set.acquire().await?),
            Self::Permits(pool, count) => Hold::Permits(pool.acquire(*count).await?),
        })
    }
}

/// The file name of the command only, because its arguments may be secret.
fn program_name(args: &RunArgs) -> String {
    let program = args.command.first().map(std::path::Path::new);
    let name = program.and_then(std::path::Path::file_name);
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// The held locks or permits.
#[derive(Debug)]
pub(crate) enum Hold {
    Locks(LockSetGuard<DynBackend>),
    Permits(PermitGuard<DynSemaphore>),
}

impl Hold {
    /// Each name and its fencing token.
    pub(crate) fn tokens(&self) -> Vec<(&LockName, Option<FencingToken>)> {
        match self {
            Self::Locks(guard) => guard.tokens().collect(),
            Self::Permits(guard) => vec![(guard.name(), guard.token())],
        }
    }

    pub(crate) fn lost_signal(&self) -> LostSignal {
        match self {
            Self::Locks(guard) => guard.lost_signal(),
            Self::Permits(guard) => guard.lost_signal(),
        }
    }

    pub(crate) fn ensure_held(&self) -> Result<(), LockError> {
        match self {
            Self::Locks(guard) => guard.ensure_held(),
            Self::Permits(guard) => guard.ensure_held(),
        }
    }

    pub(crate) async fn release(self) -> Result<(), LockError> {
        match self {
            Self::Locks(guard) => guard.release().await,
            Self::Permits(guard) => guard.release().await,
        }
    }
}
