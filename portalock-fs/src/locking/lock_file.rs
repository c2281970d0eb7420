//! One lock file: opened, locked, checked to be still the one at its path, and unlocked. All locks of this crate use
//! this.

use std::{fs::File, io};

use portalock_core::Mode;

use super::{
    FsError, LockKind, NOT_A_FILE,
    handle::{try_lock, unlock},
};
use crate::sys::{self, Seen};

/// The location of a lock file.
pub(crate) trait Location {
    /// Opens the file, or creates it.
    fn open(&self) -> Result<LockFile, FsError>;

    /// The file that is there now.
    fn look(&self) -> io::Result<Seen>;

    /// Fails if files opened here no longer exclude newcomers.
    fn ensure_in_place(&self) -> Result<(), FsError> {
        Ok(())
    }

    /// Adds the file to an error.
    fn at(&self, error: FsError) -> FsError;

    /// Whether `file` is still the one at this location, which newcomers lock.
    fn is_current(&self, file: &LockFile) -> Result<bool, FsError> {
        if sys::LOCKED_FILES_STAY {
            // True as long as the file is open.
            return Ok(true);
        }
        match self.look() {
            Ok(seen) => Ok(seen.id == file.seen.id),
            Err(error) if says_gone(&error) => Ok(false),
            Err(error) => Err(self.at(FsError::new("look for", error))),
        }
    }
}

/// Whether the file does not exist, or a part of its path is not a directory.
pub(crate) fn says_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// An open lock file, and its identity.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    /// The identity at the time of opening.
    seen: Seen,
    kind: LockKind,
}

impl LockFile {
    /// Any open file.
    pub(crate) fn of(file: File, kind: LockKind) -> Result<Self, FsError> {
        let seen = sys::look_at(&file).map_err(|error| FsError::new("look at", error))?;
        Ok(Self { file, seen, kind })
    }

    /// A regular file. If it `is_ours` to write to, it must not have a second name: writing would change a file
    /// elsewhere, and two names would be one lock.
    pub(crate) fn regular(file: File, kind: LockKind, is_ours: bool) -> Result<Self, FsError> {
        let file = Self::of(file, kind)?;
        let wrong = if !file.seen.is_file {
            "a directory or a device has its name"
        } else if is_ours && file.seen.links > 1 {
            "it has a second name, a hard link"
        } else {
            return Ok(file);
        };
        let cause = io::Error::other(wrong);
        Err(FsError::new("lock", cause).meaning(NOT_A_FILE))
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Locks the file if no other owner holds it.
    pub(crate) fn try_lock(&self, mode: Mode) -> Result<bool, FsError> {
        try_lock(&self.file, mode, self.kind)
    }

    /// Unlocks the file, before it is closed, so that a child's inherited copy of the descriptor does not keep the
    /// lock. Never call it on such a copy: it would unlock the parent's lock.
    pub(crate) fn unlock(&self) -> Result<(), FsError> {
        unlock(&self.file, self.kind)
    }

    /// Unlocks and closes the file. A failure is only logged, because closing the file releases the lock as well.
    pub(crate) fn free(self) {
        if let Err(error) = self.unlock() {
            tracing::warn!(%error, "a lock file could not be unlocked");
        }
    }
}
