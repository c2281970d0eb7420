//! At most so many at once: a semaphore of slot files.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use portalock_core::{Lock, LockError, LockName, Mode, Permits, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    owned::{Owned, failed, once},
    spec::Spec,
};
use crate::locking::{FsError, FsErrorKind, LockKind};

/// At most so many at once, among all processes that use the same directory and name. portalocker's
/// `NamedBoundedSemaphore`.
///
/// Each permit is a lock on one of the files `name.00.lock`, `name.01.lock`, ... in the directory: portalocker's naming,
/// so its processes and ours share one semaphore. The files stay; only the locks come and go.
///
/// - The name is a file's name: where file systems ignore case, as on Windows and macOS, so do semaphores.
/// - Everybody who takes part must give the same number of permits.
/// - Several permits are taken all or none. There is no queue: who asks at the right moment is served.
/// - The slots are tried in the order of their numbers, so that few permits in use mean few files. With
///   [`in_random_order`](Self::in_random_order) each attempt starts anywhere, which spreads many contenders out.
/// - A missing directory is a clear error, and the next attempt after it was created succeeds.
/// - A slot file that is deleted while it is held lets one more in. The default directory is the system's temporary
///   one, as portalocker's is: for what runs long, choose one that no cleaner visits.
///
/// ```
/// use portalock_fs::BoundedSemaphore;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path();
///
/// let converters = BoundedSemaphore::new("converters", 2)?.in_directory(path)?;
/// let one = converters.blocking_acquire()?;
/// let two = converters.blocking_acquire()?;
/// assert!(converters.try_acquire().is_err());
/// one.release()?;
/// assert!(converters.try_acquire().is_ok());
/// # drop(two);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct BoundedSemaphore {
    name: String,
    directory: PathBuf,
    kind: LockKind,
    random_order: bool,
    capacity: u32,
    policy: Policy,
}

impl BoundedSemaphore {
    /// The semaphore called `name` with `capacity` permits, in the system's temporary directory. Nothing is created yet.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidPermits`] if `capacity` is zero; [`LockError::InvalidName`] if `name` is empty or too long;
    /// [`LockError::Backend`] if it can't be the start of a file's name, since it has a slash.
    pub fn new(name: impl Into<String>, capacity: u32) -> Result<Self, LockError> {
        let semaphore = Self {
            name: name.into(),
            directory: env::temp_dir(),
            kind: LockKind::default(),
            random_order: false,
            capacity,
            policy: Policy::default(),
        };
        Permits::new(1, capacity)?;
        let lock_name = LockName::new(&semaphore.name)?;
        let file_name = semaphore.file_name(0);
        if Path::new(&file_name).file_name() != Some(OsStr::new(&file_name)) {
            let error = io::Error::from(io::ErrorKind::InvalidInput);
            let error = FsError::with_kind(FsErrorKind::BadName, "use", error).at(&semaphore.name);
            return Err(failed(lock_name, error));
        }
        Ok(semaphore)
    }

    /// A semaphore with a name of its own, for processes that are told [`name`](Self::name). Nothing is created yet.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidPermits`] if `capacity` is zero.
    pub fn with_random_name(capacity: u32) -> Result<Self, LockError> {
        Self::new(
            format!("bounded_semaphore.{:016x}", fastrand::u64(..)),
            capacity,
        )
    }

    /// Keeps the slot files in `directory`.
    ///
    /// # Errors
    ///
    /// [`FsError`] if the path is empty or can't be made absolute.
    pub fn in_directory(mut self, directory: impl AsRef<Path>) -> Result<Self, FsError> {
        self.directory = Spec::new(directory.as_ref())?.path;
        Ok(self)
    }

    /// Tries the slots in an order that is random each time. Default: by number.
    #[must_use]
    pub const fn in_random_order(mut self) -> Self {
        self.random_order = true;
        self
    }

    /// Sets which of the system's locks to use. Default [`LockKind::Flock`].
    #[must_use]
    pub const fn with_kind(mut self, kind: LockKind) -> Self {
        self.kind = kind;
        self
    }

    /// Sets how [`acquire`](Self::acquire) waits. Default [`Policy::default`]: 5 s.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The name, to be told to other processes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many permits there are.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The slot files, whether or not they exist yet.
    pub fn paths(&self) -> Vec<PathBuf> {
        (0..self.capacity)
            .map(|number| self.directory.join(self.file_name(number)))
            .collect()
    }

    /// Takes one permit, waiting as the policy says.
    ///
    /// # Errors
    ///
    /// - [`LockError::Timeout`] if none came free in time; [`LockError::AlreadyLocked`] at once if the policy says to fail
    ///   when locked. Both name one who holds a permit where the system tells (Linux).
    /// - [`LockError::Backend`] at once if the slot files can't be created or locked, as in a missing directory. Nothing
    ///   is held then, and a later call may succeed.
    ///
    /// # Cancel safety
    ///
    /// Safe: no permit stays behind.
    ///
    /// # Fairness
    ///
    /// None.
    pub async fn acquire(&self) -> Result<SlotGuard, LockError> {
        self.acquire_many(1).await
    }

    /// Takes `count` permits, all or none, waiting as the policy says.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`LockError::InvalidPermits`] if there are never so many.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_many(&self, count: u32) -> Result<SlotGuard, LockError> {
        let (lock, permits) = self.lock(count)?;
        let owned = Owned::acquire(lock, Mode::Exclusive, &self.policy).await?;
        Ok(SlotGuard { owned, permits })
    }

    /// Takes one permit if one is free. It does not wait, so there is nothing async about it.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if none is free; [`LockError::Backend`] as [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<SlotGuard, LockError> {
        self.try_acquire_many(1)
    }

    /// Takes `count` permits, all or none, if they are free. It does not wait, so there is nothing async about it.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire), and [`LockError::InvalidPermits`] if there are never so many.
    pub fn try_acquire_many(&self, count: u32) -> Result<SlotGuard, LockError> {
        self.blocking(count, &once())
    }

    /// [`acquire`](Self::acquire) for synchronous code: it parks the thread.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn blocking_acquire(&self) -> Result<SlotGuard, LockError> {
        self.blocking_acquire_many(1)
    }

    /// [`acquire_many`](Self::acquire_many) for synchronous code: it parks the thread.
    ///
    /// # Errors
    ///
    /// As [`acquire_many`](Self::acquire_many).
    pub fn blocking_acquire_many(&self, count: u32) -> Result<SlotGuard, LockError> {
        self.blocking(count, &self.policy)
    }

    fn blocking(&self, count: u32, policy: &Policy) -> Result<SlotGuard, LockError> {
        let (lock, permits) = self.lock(count)?;
        let owned = Owned::blocking_acquire(lock, Mode::Exclusive, policy)?;
        Ok(SlotGuard { owned, permits })
    }

    /// One acquisition of `count` slots.
    fn lock(&self, count: u32) -> Result<(Lock<Acquisition>, Permits), LockError> {
        let permits = Permits::new(count, self.capacity)?;
        let name = LockName::new(&self.name)?;
        let slots = self.slots().map_err(|error| failed(name.clone(), error))?;
        let acquisition = Acquisition::of_some(slots, count as usize);
        Ok((Lock::new(acquisition, name)?, permits))
    }

    /// The slot files, in the order in which they are tried.
    fn slots(&self) -> Result<Vec<Spec>, FsError> {
        let mut slots = Vec::new();
        for path in self.paths() {
            let mut slot = Spec::new(&path)?;
            slot.mode = FileMode::Append;
            slot.kind = self.kind;
            slot.follow = false;
            slots.push(slot);
        }
        if self.random_order {
            fastrand::shuffle(&mut slots);
        }
        Ok(slots)
    }

    /// portalocker's `{name}.{number:02d}.lock`.
    fn file_name(&self, number: u32) -> String {
        format!("{}.{number:02}.lock", self.name)
    }
}

/// Permits that are held.
///
/// # On drop
///
/// They are given back: at once, without a runtime.
#[derive(Debug)]
#[must_use = "the permits are given back as soon as the guard is dropped"]
pub struct SlotGuard {
    owned: Owned,
    permits: Permits,
}

impl SlotGuard {
    /// How many permits are held, of how many.
    pub const fn permits(&self) -> Permits {
        self.permits
    }

    /// An error if a slot file was removed or replaced: then one more may be in.
    ///
    /// It looks at the file system; what it found is true for that moment.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`]; [`LockError::Backend`] if the file system can't be asked.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.owned.ensure_held()
    }

    /// Gives the permits back, and says how that went.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if a slot file had been removed or replaced, which lets one more in.
    /// [`LockError::Backend`] if the system refused to unlock a slot. It is closed in any case, which frees it.
    pub fn release(self) -> Result<(), LockError> {
        self.owned.release()
    }
}
