//! Locks on a user's own data file: open, lock, and return the open file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Deref,
    path::Path,
};

use portalock_core::{Lock, LockError, Mode, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    forms::{acquire_methods, guard_methods, io_of_its_file, lock_methods},
    owned::{Owned, once},
    spec::Spec,
};
use crate::locking::{FsError, LockKind};

/// A lock on a data file. Acquiring it opens the file, locks it and returns it in the guard. portalocker's `Lock`.
///
/// The lock is on the data file itself, so it excludes all programs, in any language, that lock that file with the same
/// kind of lock. The defaults are portalocker's: [`FileMode::Append`], exclusive, [`LockKind::Flock`],
/// [`Policy::default`] (5 s).
///
/// - With [`FileMode::Write`] the content is discarded after locking. While another owner holds the lock, the content
///   does not change.
/// - After locking, the path is checked again. If the file was replaced meanwhile, as an editor or `mv` does, the new
///   file is opened and locked instead. So all holders of one path lock the same file.
/// - Each acquisition opens the file again, so two acquisitions of one `FileLock` exclude each other, even in one
///   thread.
/// - [`new`](Self::new) makes the path absolute, so a later change of the working directory has no effect.
///
/// Every `acquire` has two forms. The form with the prefix `blocking_` is for synchronous programs and needs no
/// runtime.
///
/// ```
/// use std::io::Write;
/// use portalock_fs::FileLock;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ledger.csv");
///
/// let ledger = FileLock::new(&path)?;
/// let mut file = ledger.blocking_acquire()?;
/// writeln!(file, "rent,-950")?;
/// assert!(ledger.try_acquire().is_err());
/// file.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// On Windows locks are mandatory. While the file is locked exclusively, only the guard and its copies can read and
/// write it; other handles get `ERROR_LOCK_VIOLATION`. While it is shared, every handle can read it and none can write
/// it, not even a holder's. Nobody can delete, rename or replace it. To let other programs read the file, lock a file
/// beside it.
#[derive(Debug, Clone)]
pub struct FileLock {
    pub(super) spec: Spec,
    pub(super) policy: Policy,
}

impl FileLock {
    /// A lock on the file at `path`. The file is not opened yet.
    ///
    /// # Errors
    ///
    /// [`FsError`] if `path` is empty or can't be made absolute.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, FsError> {
        Ok(Self {
            spec: Spec::new(path.as_ref())?,
            policy: Policy::default(),
        })
    }

    /// Sets how the file is opened. Default [`FileMode::Append`].
    #[must_use]
    pub const fn with_mode(mut self, mode: FileMode) -> Self {
        self.spec.mode = mode;
        self
    }

    /// Opens the file with `options`, for example with permissions or flags of your own, instead of a [`FileMode`].
    ///
    /// The file is opened before it is locked, so don't set `truncate`; truncate it through the guard with
    /// [`File::set_len`]. Flags are not changed: without `O_NONBLOCK`, opening a named pipe blocks.
    #[must_use]
    pub fn with_options(mut self, options: OpenOptions) -> Self {
        self.spec.options = Some(options);
        self
    }

    /// Makes the lock shared: any number of owners can share it, and none can hold it exclusively meanwhile. Default:
    /// exclusive.
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.spec.share = Mode::Shared;
        self
    }

    lock_methods!(FileGuard);
}

/// An open and locked data file. It derefs to [`File`], and also implements `Read`, `Write` and `Seek`.
///
/// # On drop
///
/// The file is unlocked, even if a copy of the handle still exists, and closed. A failure is logged;
/// [`release`](Self::release) reports it. Dropping never blocks, and needs no runtime.
#[derive(Debug)]
#[must_use = "the file is unlocked as soon as the guard is dropped"]
pub struct FileGuard(Owned);

impl FileGuard {
    /// The open file. The guard derefs to it.
    pub fn file(&self) -> &File {
        self.0.file()
    }

    guard_methods!();
}

io_of_its_file!(FileGuard);
