//! What a file lock locks: a file, and how to open, lock and close it.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use portalock_core::{Holder, LockError, LockName, Mode};

use super::{file_mode::FileMode, pid_record};
use crate::{
    locking::{BAD_NAME, FsError, Location, LockFile, LockKind},
    sys::{self, Seen},
};

/// The name of a file without a path in errors and logs.
pub(crate) const OPEN_FILE: &str = "an open file";

/// What is locked, and how.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Empty if the file is already open.
    pub(crate) path: PathBuf,
    /// A copy of the user's handle. Both share one lock.
    open: Option<Arc<File>>,
    pub(crate) mode: FileMode,
    /// The user's options for opening the file, instead of the mode.
    pub(crate) options: Option<OpenOptions>,
    pub(crate) kind: LockKind,
    /// Whether it is locked exclusively or shared.
    pub(crate) share: Mode,
    /// Whether the path may be a symbolic link, and the file may have other names.
    pub(crate) follow: bool,
    /// Whether a release removes the file.
    pub(crate) goes_with_lock: bool,
    /// The pid file, in which the holder writes its pid. A release removes it too.
    pub(crate) pid_file: Option<PathBuf>,
}

impl Spec {
    /// The file at `path`, which is made absolute now, so that a later change of the working directory has no effect.
    pub(crate) fn new(path: &Path) -> Result<Self, FsError> {
        let anchored = std::path::absolute(path)
            .map_err(|error| FsError::new("lock", error).meaning(BAD_NAME).at(path))?;
        Ok(Self::with(anchored, None))
    }

    /// The same for a file that exists for its lock only, so its path may not be a link, and it may have no other name.
    pub(crate) fn of_lock_file(path: &Path, mode: FileMode) -> Result<Self, FsError> {
        Ok(Self {
            mode,
            follow: false,
            ..Self::new(path)?
        })
    }

    /// A file that the user has open, by a copy of the handle.
    pub(crate) fn of_open(copy: File, share: Mode, kind: LockKind) -> Self {
        Self {
            kind,
            share,
            ..Self::with(PathBuf::new(), Some(Arc::new(copy)))
        }
    }

    fn with(path: PathBuf, open: Option<Arc<File>>) -> Self {
        Self {
            path,
            open,
            mode: FileMode::default(),
            options: None,
            kind: LockKind::default(),
            share: Mode::Exclusive,
            follow: true,
            goes_with_lock: false,
            pid_file: None,
        }
    }

    /// The path as a lock's name, for errors and logs; only the end of a long path.
    pub(crate) fn name(&self) -> Result<LockName, LockError> {
        if self.open.is_some() {
            return Ok(LockName::new(OPEN_FILE)?);
        }
        let path = self.path.to_string_lossy().replace('\0', "\u{fffd}");
        let mut start = path.len().saturating_sub(LockName::MAX_BYTES);
        while !path.is_char_boundary(start) {
            start += 1;
        }
        Ok(LockName::new(&path[start..])?)
    }

    /// The path that the user gave.
    pub(crate) fn given_path(&self) -> &Path {
        self.pid_file.as_ref().unwrap_or(&self.path)
    }

    /// What must be done after locking, and never before.
    pub(crate) fn begin(&self, file: &File) -> Result<(), FsError> {
        if self.options.is_none() && self.mode.truncates() {
            let emptied = file.set_len(0);
            emptied.map_err(|error| self.at(FsError::new("empty", error)))?;
        }
        match &self.pid_file {
            Some(pid_file) => pid_record::write(pid_file, file),
            None => Ok(()),
        }
    }

    /// The holder that the pid file names.
    pub(crate) fn pid_holder(&self, file: &File) -> Option<Holder> {
        pid_record::holder_beside(self.pid_file.as_ref()?, file)
    }

    /// The holder that the system names, of a file without a pid file.
    pub(crate) fn lock_holder(&self) -> Option<Holder> {
        let seen = self.look().ok().filter(|_| self.pid_file.is_none())?;
        sys::lock_holder(seen.id)
    }
}

impl Location for Spec {
    fn open(&self) -> Result<LockFile, FsError> {
        if let Some(handle) = &self.open {
            let copy = handle.try_clone();
            let copy = copy.map_err(|error| FsError::new("copy the handle of", error))?;
            return LockFile::of(copy, self.kind);
        }
        let options = self.options.clone().unwrap_or_else(|| {
            let mut options = self.mode.options();
            sys::set_open_flags(&mut options, self.follow);
            options
        });
        sys::patiently(|| options.open(&self.path))
            .map_err(|error| FsError::open(error, || self.path.is_dir()))
            .and_then(|file| LockFile::regular(file, self.kind, !self.follow))
            .map_err(|error| self.at(error))
    }

    fn look(&self) -> io::Result<Seen> {
        match &self.open {
            Some(handle) => sys::look_at(handle),
            None => sys::look_along(&self.path, self.follow),
        }
    }

    fn at(&self, error: FsError) -> FsError {
        match &self.open {
            Some(_) => error,
            None => error.at(&self.path),
        }
    }
}
