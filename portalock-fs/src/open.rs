//! The lock files of one directory: opened without leaving it, locked, and checked to be still there.

use std::{io, path::PathBuf};

use cap_fs_ext::{FollowSymlinks, MetadataExt, OpenOptionsFollowExt};
use cap_std::fs::{Dir, File, Metadata, OpenOptions};
use portalock_core::Mode;

use crate::{
    FsError, FsErrorKind, LockKind,
    name::{FileName, INFO_SUFFIX, READERS_SUFFIX},
    sys, try_lock, unlock,
};

/// How often an acquisition starts again because the file it locked was no longer the one in the directory.
const REPLACED: usize = 16;

/// A directory and how its files are opened and locked.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dir: Dir,
    /// Where it was opened, as an absolute path; none if it was handed in open.
    pub(crate) path: Option<PathBuf>,
    pub(crate) kind: LockKind,
    pub(crate) file_mode: u32,
    /// Whether records stand in a file beside the lock file, because a locked file can't be read.
    pub(crate) beside: bool,
}

/// An open lock file, and which one it is.
#[derive(Debug)]
pub(crate) struct LockFile {
    pub(crate) file: File,
    id: FileId,
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

/// How an attempt to lock a file ended.
#[derive(Debug)]
pub(crate) enum Tried {
    Locked(LockFile),
    Busy(LockFile),
}

impl Store {
    /// Locks the file of `name`, through `candidate` if it is still the one in the directory.
    pub(crate) fn try_lock(
        &self,
        name: &FileName,
        candidate: Option<LockFile>,
        mode: Mode,
    ) -> Result<Tried, FsError> {
        let mut candidate = candidate;
        for _ in 0..REPLACED {
            let file = match candidate.take() {
                Some(file) => file,
                None => self.open(name.as_str())?,
            };
            let locked =
                try_lock(&file.file, mode, self.kind).map_err(|error| error.at(name.as_str()))?;
            // A file that was deleted or replaced between opening and locking excludes nobody who opens it anew.
            if self.is_current(name, &file)? {
                return Ok(if locked {
                    Tried::Locked(file)
                } else {
                    Tried::Busy(file)
                });
            }
            if locked {
                self.unlock(&file);
            }
            if !self.is_in_place() {
                return Err(Self::moved());
            }
        }
        let cause = io::Error::other("the lock file is replaced again and again");
        Err(FsError::with_kind(FsErrorKind::Unavailable, "lock", cause).at(name.as_str()))
    }

    /// Unlocks before the file is closed: a copy of the descriptor that a child inherited must not keep the lock.
    pub(crate) fn unlock(&self, file: &LockFile) {
        if let Err(error) = unlock(&file.file, self.kind) {
            // Closing it, which follows, frees it as well.
            tracing::warn!(%error, "a lock file could not be unlocked");
        }
    }

    /// Removes all files of a lock, of which this one is locked. False if somebody is about to use it after all.
    pub(crate) fn remove(&self, name: &FileName, locked: LockFile) -> Result<bool, FsError> {
        for file in [name.beside(READERS_SUFFIX), name.beside(INFO_SUFFIX)] {
            self.remove_file(&file)?;
        }
        if !sys::LOCKED_FILES_STAY {
            // Whoever locks it after us finds that it is gone, and makes a new one.
            let removed = self.remove_file(name.as_str());
            self.unlock(&locked);
            return removed;
        }
        // Open files stay, so whoever opens it before it is removed keeps it.
        self.unlock(&locked);
        drop(locked);
        self.remove_file(name.as_str())
    }

    /// False if somebody has it open, where that keeps it.
    fn remove_file(&self, file: &str) -> Result<bool, FsError> {
        match self.dir.remove_file(file) {
            Err(error) if sys::says_in_use(&error) => Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FsError::new("remove", error).at(file))
            }
            _ => Ok(true),
        }
    }

    /// Whether the directory still has this very file under this name.
    pub(crate) fn is_current(&self, name: &FileName, file: &LockFile) -> Result<bool, FsError> {
        if sys::LOCKED_FILES_STAY {
            // It does for as long as it is open.
            return Ok(true);
        }
        // By the whole path: whoever comes next opens it by that, wherever it leads by then.
        let by_path = self
            .path
            .as_ref()
            .map(|path| sys::look_along(&path.join(name.as_str()), false));
        let found = match by_path {
            Some(Err(error)) if !says_gone(&error) => None,
            found => found,
        };
        // Those who may not look along the path, or have none, look in the directory that is open.
        match found.unwrap_or_else(|| sys::look_for(&self.dir, name.as_str())) {
            Ok(found) => Ok(FileId::from(found) == file.id),
            Err(error) if says_gone(&error) => Ok(false),
            Err(error) => Err(FsError::new("look for", error).at(name.as_str())),
        }
    }

    /// Whether the path still leads to this very directory. True if that can't be told.
    pub(crate) fn is_in_place(&self) -> bool {
        let Some(path) = &self.path else {
            return true;
        };
        match (sys::look_along(path, true), self.dir.dir_metadata()) {
            (Ok(there), Ok(here)) => FileId::from(there) == FileId::of(&here),
            (Err(error), _) => !says_gone(&error),
            (_, Err(_)) => true,
        }
    }

    /// What is said once the path leads elsewhere.
    pub(crate) fn moved() -> FsError {
        let cause = io::Error::new(io::ErrorKind::NotFound, "its path leads elsewhere by now");
        FsError::new("use the lock directory", cause)
    }

    /// Opens a file, and makes it if it isn't there.
    pub(crate) fn open(&self, name: &str) -> Result<LockFile, FsError> {
        let mut options = OpenOptions::new();
        options.create(true);
        let file = self
            .open_with(name, &mut options)
            .map_err(|error| self.not_opened(name, error))?;
        if self.file_mode & 0o077 != 0 {
            sys::apply_file_mode(&file, self.file_mode);
        }
        LockFile::new(file, name)
    }

    /// Opens the file if it is there.
    pub(crate) fn open_existing(&self, name: &str) -> Result<Option<LockFile>, FsError> {
        match self.open_with(name, &mut OpenOptions::new()) {
            Ok(file) => LockFile::new(file, name).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.not_opened(name, error)),
        }
    }

    fn not_opened(&self, name: &str, error: io::Error) -> FsError {
        let kind = match FsErrorKind::of(&error) {
            // What Windows says of a directory.
            FsErrorKind::PermissionDenied if self.dir.is_dir(name) => FsErrorKind::NotAFile,
            kind => kind,
        };
        FsError::with_kind(kind, "open", error).at(name)
    }

    fn open_with(&self, name: &str, options: &mut OpenOptions) -> io::Result<File> {
        options.read(true).write(true).follow(FollowSymlinks::No);
        sys::set_lock_file_flags(options, self.file_mode);
        sys::patiently(|| self.dir.open_with(name, options))
    }
}

impl LockFile {
    fn new(file: File, name: &str) -> Result<Self, FsError> {
        let seen = sys::look_at(&file).map_err(|error| FsError::new("look at", error).at(name))?;
        let wrong = |what: &'static str| {
            let cause = io::Error::other(what);
            Err(FsError::with_kind(FsErrorKind::NotAFile, "use", cause).at(name))
        };
        if !seen.is_file {
            return wrong("a directory or a device has its name");
        }
        if seen.links > 1 {
            // Writing to it would write to a file elsewhere, and two names would be one lock.
            return wrong("it has a second name, a hard link");
        }
        Ok(Self {
            id: seen.into(),
            file,
        })
    }

    /// Which file it is.
    pub(crate) const fn id(&self) -> FileId {
        self.id
    }
}

/// Whether nothing is there, or something on the way is no directory.
fn says_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

impl From<sys::Seen> for FileId {
    fn from(seen: sys::Seen) -> Self {
        Self {
            device: seen.device,
            inode: seen.inode,
        }
    }
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}
