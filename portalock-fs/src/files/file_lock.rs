//! The lock on a user's own data file: open, lock, hand out the open file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Deref,
    path::Path,
};

use portalock_core::{LockError, Mode, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    forms::{guard_methods, io_of_its_file, lock_methods},
    owned::{Owned, once},
    spec::Spec,
};
use crate::locking::{FsError, LockKind};

/// A lock on a data file: acquiring it opens the file, locks it and hands it out. portalocker's `Lock`.
///
/// The lock is on the data file itself, so it excludes everybody who locks that file in the same way, whatever they are
/// written in. The defaults are portalocker's: [`FileMode::Append`], exclusive, [`LockKind::Flock`], [`Policy::default`] (5 s).
///
/// - With [`FileMode::Write`] the content is discarded once the lock is held. While somebody else holds it, not a byte
///   changes.
/// - Once locked, the path is looked at again. If the file has been replaced meanwhile, as an editor or `mv` does, the new
///   one is opened and locked instead: two holders of one path have the same file.
/// - Each acquisition opens the file anew, so two of one `FileLock` exclude each other, also within one thread.
/// - The path is made absolute by [`new`](Self::new): a later change of the working directory leads nowhere else.
///
/// Every `acquire` comes in two forms. The one called `blocking_` is for synchronous programs and needs no runtime.
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
/// On Windows locks are mandatory: while the file is locked, the guard and its copies read and write it, and no other handle
/// does (`ERROR_LOCK_VIOLATION`); while it is shared everybody reads it and nobody writes it, not even who shares it. Nobody
/// can delete, rename or replace it. To let others read, lock a file beside it.
#[derive(Debug, Clone)]
pub struct FileLock {
    pub(super) spec: Spec,
    share: Mode,
    pub(super) policy: Policy,
}

impl FileLock {
    /// The lock on the file at `path`. Nothing is opened yet.
    ///
    /// # Errors
    ///
    /// [`FsError`] if `path` is empty or can't be made absolute.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, FsError> {
        Ok(Self {
            spec: Spec::new(path.as_ref())?,
            share: Mode::Exclusive,
            policy: Policy::default(),
        })
    }

    /// Sets how the file is opened. Default [`FileMode::Append`].
    #[must_use]
    pub const fn with_mode(mut self, mode: FileMode) -> Self {
        self.spec.mode = mode;
        self
    }

    /// Opens the file as `options` say, such as with permissions or flags of your own, instead of by a [`FileMode`].
    ///
    /// The file is opened before it is locked, so don't set `truncate`: empty it through the guard with
    /// [`File::set_len`]. Flags are taken as they are: without `O_NONBLOCK` opening a named pipe hangs.
    #[must_use]
    pub fn with_options(mut self, options: OpenOptions) -> Self {
        self.spec.options = Some(options);
        self
    }

    /// Locks shared rather than exclusively: others may share it, none may hold it exclusively. Default exclusive.
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.share = Mode::Shared;
        self
    }

    lock_methods!(FileGuard);
}

/// A data file, open and locked. It derefs to [`File`], and reads, writes and seeks itself.
///
/// # On drop
///
/// The file is unlocked, also if a copy of the handle lives on, and closed. A failure is logged;
/// [`release`](Self::release) reports it. It never blocks, and needs no runtime.
#[derive(Debug)]
#[must_use = "the file is unlocked as soon as the guard is dropped"]
pub struct FileGuard(Owned);

impl FileGuard {
    /// The open file; the guard derefs to it.
    pub fn file(&self) -> &File {
        self.0.file()
    }

    guard_methods!();
}

io_of_its_file!(FileGuard);
