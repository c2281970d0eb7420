//! One lock file, wherever it is: opened, locked, checked to be still the one at its place, and freed. Everything here that
//! locks a file does it this way.

use std::{fs::File, io};

use portalock_core::Mode;

use super::{
    FsError, FsErrorKind, LockKind,
    handle::{try_lock, unlock},
};
use crate::sys::{self, Origin, Seen};

/// Where a lock file is.
pub(crate) trait Location {
    /// Opens the file that is there, or makes it.
    fn open(&self) -> Result<LockFile, FsError>;

    /// Which file is there now.
    fn look(&self) -> io::Result<Seen>;

    /// An error if nothing that is opened here excludes newcomers any more.
    fn ensure_in_place(&self) -> Result<(), FsError> {
        Ok(())
    }

    /// Says on what file a failure was.
    fn at(&self, error: FsError) -> FsError;

    /// Whether `file` is still the one that is here: whoever comes next locks that one.
    fn is_current(&self, file: &LockFile) -> Result<bool, FsError> {
        if sys::LOCKED_FILES_STAY {
            // It is for as long as it is open.
            return Ok(true);
        }
        match self.look() {
            Ok(seen) => Ok(seen.id == file.seen.id),
            Err(error) if says_gone(&error) => Ok(false),
            Err(error) => Err(self.at(FsError::new("look for", error))),
        }
    }
}

/// Whether nothing is there, or something on the way is no directory.
pub(crate) fn says_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// An open file that is for locking, and which one it is.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    /// What it was when it was opened.
    seen: Seen,
    kind: LockKind,
    /// A forked child has a copy of the file, which has its parent's lock.
    origin: Origin,
}

impl LockFile {
    /// Any open file.
    pub(crate) fn of(file: File, kind: LockKind, origin: Origin) -> Result<Self, FsError> {
        let seen = sys::look_at(&file).map_err(|error| FsError::new("look at", error))?;
        Ok(Self {
            file,
            seen,
            kind,
            origin,
        })
    }

    /// A regular file; one that `is_ours` to write to must have no second name: that would write to a file elsewhere, and two
    /// names would be one lock.
    pub(crate) fn regular(
        file: File,
        kind: LockKind,
        origin: Origin,
        is_ours: bool,
    ) -> Result<Self, FsError> {
        let file = Self::of(file, kind, origin)?;
        let wrong = if !file.seen.is_file {
            "a directory or a device has its name"
        } else if is_ours && file.seen.links > 1 {
            "it has a second name, a hard link"
        } else {
            return Ok(file);
        };
        let cause = io::Error::other(wrong);
        Err(FsError::with_kind(FsErrorKind::NotAFile, "lock", cause))
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Whether this is a forked child's copy: the lock is its parent's.
    pub(crate) fn is_inherited(&self) -> bool {
        self.origin.is_elsewhere()
    }

    /// Locks it if nobody is in the way.
    pub(crate) fn try_lock(&self, mode: Mode) -> Result<bool, FsError> {
        try_lock(&self.file, mode, self.kind)
    }

    /// Unlocks it, before it is closed: a copy of the descriptor that a child inherited must not keep the lock. It must not be
    /// called on such a copy, which would unlock the parent's.
    pub(crate) fn unlock(&self) -> Result<(), FsError> {
        unlock(&self.file, self.kind)
    }

    /// Unlocks and closes it. A failure is only logged: closing it frees it as well.
    pub(crate) fn free(self) {
        if let Err(error) = self.unlock() {
            tracing::warn!(%error, "a lock file could not be unlocked");
        }
    }
}
