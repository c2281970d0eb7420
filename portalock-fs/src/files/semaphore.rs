//! A semaphore made of slot files.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use portalock_core::{Lock, LockError, LockName, OwnerId, Permits, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    forms::{acquire_methods, guard_methods},
    owned::{Owned, failed, once},
    spec::Spec,
};
use crate::locking::{BAD_NAME, FsError, LockKind};

/// The largest capacity: an attempt may open the file of each slot.
const MOST_SLOTS: u32 = 1 << 20;

/// At most so many at once, among all processes that use the same directory and name. portalocker's
/// `NamedBoundedSemaphore`.
///
/// Each permit is a lock on one of the files `name.00.lock`, `name.01.lock`, ... in the directory: portalocker uses the
/// same names, so Python and Rust programs can share a semaphore. The files stay after a release.
///
/// - The name is a file name: on file systems that ignore case, as on Windows and macOS, semaphore names ignore case
///   too.
/// - All users must give the same capacity, of 1,048,576 at most: if all slots before a free one are taken, an attempt opens
///   the file of each.
/// - A guard is one permit. To take several at once, all or none, use a [`Pool`](portalock_core::Pool) of a
///   [`SlotSemaphore`](portalock_core::SlotSemaphore) on an [`FsBackend`](crate::FsBackend).
/// - The slots are tried in the order of their numbers, so that few permits in use mean few files. With
///   [`in_random_order`](Self::in_random_order) each attempt starts anywhere, which spreads many contenders out.
/// - A missing directory is a clear error, and the next attempt after it was created succeeds.
/// - If a held slot file is deleted, one more permit can be acquired. The default directory is the system's temporary
///   one, as in portalocker. For programs that run long, use a directory that no cleaner deletes files from.
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
    /// [`LockError::InvalidPermits`] if `capacity` is zero; [`LockError::Unsupported`] if it is more than 1,048,576;
    /// [`LockError::InvalidName`] if `name` is empty or too long; [`LockError::Backend`] if `name` contains a slash, so
    /// that it can't be the start of a file name.
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
        if capacity > MOST_SLOTS {
            return Err(LockError::Unsupported {
                what: "semaphore of more than 1,048,576 slot files",
                instead: "use a `Pool` of a backend that counts permits",
            });
        }
        let lock_name = LockName::new(&semaphore.name)?;
        let file_name = semaphore.file_name(0);
        if Path::new(&file_name).file_name() != Some(OsStr::new(&file_name)) {
            let error = FsError::new("use", io::ErrorKind::InvalidInput.into()).meaning(BAD_NAME);
            return Err(failed(lock_name, error.at(&semaphore.name)));
        }
        Ok(semaphore)
    }

    /// A semaphore with a new unique name. Give [`name`](Self::name) to the other processes. Nothing is created yet.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidPermits`] if `capacity` is zero; [`LockError::Unsupported`] if it is more than 1,048,576.
    pub fn with_random_name(capacity: u32) -> Result<Self, LockError> {
        Self::new(format!("bounded_semaphore.{}", OwnerId::mint()), capacity)
    }

    /// Sets the directory of the slot files.
    ///
    /// # Errors
    ///
    /// [`FsError`] if the path is empty or can't be made absolute.
    pub fn in_directory(mut self, directory: impl AsRef<Path>) -> Result<Self, FsError> {
        self.directory = Spec::new(directory.as_ref())?.path;
        Ok(self)
    }

    /// Tries the slots in a new random order each time. Default: in order of their numbers.
    #[must_use]
    pub const fn in_random_order(mut self) -> Self {
        self.random_order = true;
        self
    }

    /// Sets the kind of lock. Default [`LockKind::Flock`].
    #[must_use]
    pub const fn with_kind(mut self, kind: LockKind) -> Self {
        self.kind = kind;
        self
    }

    /// The name, for other processes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of permits in all.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The slot files, whether or not they exist yet.
    pub fn paths(&self) -> Vec<PathBuf> {
        (0..self.capacity)
            .map(|number| self.directory.join(self.file_name(number)))
            .collect()
    }

    acquire_methods!(
        SlotGuard,
        "Acquires one permit: opens or creates slot files until it can lock one. There is no order among waiters."
    );

    /// One acquisition of a slot.
    fn lock(&self) -> Result<Lock<Acquisition>, LockError> {
        let name = LockName::new(&self.name)?;
        let slots = self.slots().map_err(|error| failed(name.clone(), error))?;
        Ok(Lock::new(Acquisition::of_any(slots), name)?)
    }

    /// The slot files, in the order in which they are tried.
    fn slots(&self) -> Result<Vec<Spec>, FsError> {
        let mut slots = Vec::new();
        for path in self.paths() {
            let mut slot = Spec::of_lock_file(&path, FileMode::Append)?;
            slot.kind = self.kind;
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

/// A held permit.
///
/// # On drop
///
/// The permit is released at once, without a runtime.
#[derive(Debug)]
#[must_use = "the permit is given back as soon as the guard is dropped"]
pub struct SlotGuard(Owned);

impl SlotGuard {
    guard_methods!();
}
