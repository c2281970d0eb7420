//! The lock on a user's own data file: open, lock, hand out the open file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Deref,
    path::Path,
};

use portalock_core::{LockError, Mode, Policy};

use super::{
    file_mode::FileMode,
    owned::{Owned, once},
    spec::Spec,
};
use crate::locking::{FsError, LockKind};

/// A lock on a data file: acquiring it opens the file, locks it and hands it out. portalocker's `Lock`.
///
/// The lock is on the data file itself, so it excludes everybody who locks that file in the same way, whatever they are
/// written in. The defaults are portalocker's: [`FileMode::Append`], exclusive, [`LockKind::Flock`], 5 s.
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
    spec: Spec,
    share: Mode,
    policy: Policy,
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

    /// Sets which of the system's locks to use. Default [`LockKind::Flock`].
    #[must_use]
    pub const fn with_kind(mut self, kind: LockKind) -> Self {
        self.spec.kind = kind;
        self
    }

    /// Sets how [`acquire`](Self::acquire) waits: timeout, check interval, whether to fail when locked. Default
    /// [`Policy::default`].
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// What is locked, and how it is waited for.
    pub(crate) fn into_parts(self) -> (Spec, Policy) {
        (self.spec, self.policy)
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.spec.path
    }

    /// Opens and locks the file, waiting as the lock's policy says.
    ///
    /// # Errors
    ///
    /// - [`LockError::Timeout`] if somebody else held it all the time, naming their pid where the system tells (Linux).
    /// - [`LockError::AlreadyLocked`] at once, if the policy says to fail when locked.
    /// - [`LockError::Backend`] at once if the file can't be opened, emptied or locked at all: its
    ///   [`kind`](portalock_core::BackendError::kind) says why. Such a failure is never taken for contention.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was opened is closed, what was locked is freed.
    pub async fn acquire(&self) -> Result<FileGuard, LockError> {
        self.acquire_with(&self.policy).await
    }

    /// As [`acquire`](Self::acquire), waiting as `policy` says.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_with(&self, policy: &Policy) -> Result<FileGuard, LockError> {
        Owned::acquire(&self.spec, self.share, policy)
            .await
            .map(FileGuard)
    }

    /// Opens and locks the file if it is free. It does not wait, so there is nothing async about it.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if somebody else holds it; [`LockError::Backend`] as [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<FileGuard, LockError> {
        self.blocking_acquire_with(&once())
    }

    /// [`acquire`](Self::acquire) for synchronous code: it parks the thread.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn blocking_acquire(&self) -> Result<FileGuard, LockError> {
        self.blocking_acquire_with(&self.policy)
    }

    /// [`acquire_with`](Self::acquire_with) for synchronous code: it parks the thread.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn blocking_acquire_with(&self, policy: &Policy) -> Result<FileGuard, LockError> {
        Owned::blocking_acquire(&self.spec, self.share, policy).map(FileGuard)
    }
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

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// An error if the path no longer names the locked file: somebody removed or replaced it, and newcomers lock another.
    ///
    /// It looks at the file system; what it found is true for that moment.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`]; [`LockError::Backend`] if the file system can't be asked.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.0.ensure_held()
    }

    /// Unlocks and closes the file, and says how that went. The file is closed in any case.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if the path no longer named the locked file: somebody removed or replaced it, and others may have
    /// locked the new one. [`LockError::Backend`] if the system refused to unlock it.
    pub fn release(self) -> Result<(), LockError> {
        self.0.release()
    }
}

impl Deref for FileGuard {
    type Target = File;

    fn deref(&self) -> &File {
        self.file()
    }
}

impl Read for FileGuard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file().read(buffer)
    }
}

impl Write for FileGuard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

impl Seek for FileGuard {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file().seek(position)
    }
}
