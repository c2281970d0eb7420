//! The lock files of one directory: opened without leaving it, and removed.

use std::{
    io,
    path::{Path, PathBuf},
};

use cap_fs_ext::{FollowSymlinks, OpenOptionsFollowExt};
use cap_std::fs::{Dir, OpenOptions};

use super::name::{FileName, INFO_SUFFIX, READERS_SUFFIX};
use crate::{
    locking::{FsError, Location, LockFile, LockKind, says_gone},
    sys::{self, Origin, Seen},
};

/// A directory and how its files are opened and locked.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dir: Dir,
    /// The absolute path at the time of opening.
    pub(crate) path: PathBuf,
    pub(crate) kind: LockKind,
    pub(crate) file_mode: u32,
    /// Whether records are in a file beside the lock file, because a locked file can't be read.
    pub(crate) beside: bool,
    /// The process that opened it. A forked child has copies of its files, and must not unlock them.
    pub(crate) origin: Origin,
}

/// One file of the directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'s> {
    store: &'s Store,
    name: &'s str,
}

impl Store {
    /// The lock file of `name`.
    pub(crate) fn file<'s>(&'s self, name: &'s FileName) -> Named<'s> {
        self.named(name.as_str())
    }

    /// Any file in the directory.
    pub(crate) const fn named<'s>(&'s self, name: &'s str) -> Named<'s> {
        Named { store: self, name }
    }

    /// The names of the files in the directory.
    pub(crate) fn files(&self) -> Result<impl Iterator<Item = Result<String, FsError>>, FsError> {
        let failed = |error| FsError::new("list the lock directory", error);
        let entries = self.dir.entries().map_err(failed)?;
        // No file of a lock has a name that is not Unicode.
        let name = |entry: cap_std::fs::DirEntry| entry.file_name().into_string().ok();
        Ok(entries.filter_map(move |entry| entry.map(name).map_err(failed).transpose()))
    }

    /// Removes all files of a lock; this one is locked. False if another process is about to use the lock.
    pub(crate) fn remove(&self, name: &FileName, locked: LockFile) -> Result<bool, FsError> {
        for file in [name.beside(READERS_SUFFIX), name.beside(INFO_SUFFIX)] {
            self.remove_file(&file)?;
        }
        let remove = || self.remove_file(name.as_str());
        // A process that locks the file after this notices that it is gone, and creates a new one.
        let removed = (!sys::LOCKED_FILES_STAY).then(remove);
        locked.free();
        // Where open files can't be removed, a process that opens the file first keeps it.
        removed.unwrap_or_else(remove)
    }

    /// False if the file is open and the system doesn't remove open files.
    pub(crate) fn remove_file(&self, file: &str) -> Result<bool, FsError> {
        match self.dir.remove_file(file) {
            Err(error) if sys::says(&error, sys::IN_USE) => Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FsError::new("remove", error).at(file))
            }
            _ => Ok(true),
        }
    }

    /// Fails if the path leads to another directory, as far as that can be detected.
    pub(crate) fn ensure_in_place(&self) -> Result<(), FsError> {
        let there = sys::look_along(&self.path, true);
        let leads_elsewhere = match (there, sys::look_for(&self.dir, ".")) {
            (Ok(there), Ok(here)) => there.id != here.id,
            (Err(error), _) => says_gone(&error),
            (_, Err(_)) => false,
        };
        if leads_elsewhere {
            let cause = io::Error::new(
                io::ErrorKind::NotFound,
                "its path now leads to another directory",
            );
            return Err(FsError::new("use the lock directory", cause));
        }
        Ok(())
    }
}

impl Named<'_> {
    /// Opens the file if it exists.
    pub(crate) fn open_existing(&self) -> Result<Option<LockFile>, FsError> {
        match self.open_with(&mut OpenOptions::new()) {
            Err(error) if error.io_error().kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_with(&self, options: &mut OpenOptions) -> Result<LockFile, FsError> {
        let (dir, mode) = (&self.store.dir, self.store.file_mode);
        options.read(true).write(true).follow(FollowSymlinks::No);
        sys::set_lock_file_flags(options, mode);
        sys::patiently(|| dir.open_with(self.name, options))
            .map_err(|error| FsError::open(error, || dir.is_dir(self.name)))
            .and_then(|file| LockFile::regular(file.into_std(), self.store.kind, true))
            .map_err(|error| error.at(self.name))
    }
}

impl Location for Named<'_> {
    fn open(&self) -> Result<LockFile, FsError> {
        let mut options = OpenOptions::new();
        options.create(true);
        let file = self.open_with(&mut options)?;
        if self.store.file_mode & 0o077 != 0 {
            sys::apply_file_mode(file.file(), self.store.file_mode);
        }
        Ok(file)
    }

    /// Checks the whole path, because the next process opens the file by the path, wherever it leads then. If this user
    /// may not read the path, it checks in the open directory.
    fn look(&self) -> io::Result<Seen> {
        match sys::look_along(&self.store.path.join(self.name), false) {
            Err(error) if !says_gone(&error) => sys::look_for(&self.store.dir, self.name),
            seen => seen,
        }
    }

    fn ensure_in_place(&self) -> Result<(), FsError> {
        self.store.ensure_in_place()
    }

    fn at(&self, error: FsError) -> FsError {
        error.at(Path::new(self.name))
    }
}
