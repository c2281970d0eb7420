//! What a file-specific lock locks: a path, and how to open, lock and leave it.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Deref,
    path::{Path, PathBuf},
};

use portalock_core::{Holder, LockError, LockName, Loss};

use crate::{FileMode, FsError, FsErrorKind, LockKind, sys};

/// What is locked, and how.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) path: PathBuf,
    pub(crate) mode: FileMode,
    /// How the user wants it opened, instead of what the mode says.
    pub(crate) options: Option<OpenOptions>,
    pub(crate) kind: LockKind,
    /// Whether the path may be a symbolic link.
    pub(crate) follow: bool,
    pub(crate) ending: Ending,
    pub(crate) witness: Witness,
}

/// What a release leaves behind.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    /// The file stays.
    Keep,
    /// The file is removed, after its companion if there is one.
    Remove { companion: Option<PathBuf> },
}

/// Who can say who holds the file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Witness {
    /// The operating system, where it tells.
    System,
    /// Whoever wrote this down when they took the lock.
    Written(fn(&Path) -> Option<Holder>),
}

impl Spec {
    /// The file at `path`, anchored now: a later change of the working directory leads nowhere else.
    pub(crate) fn new(path: &Path) -> Result<Self, FsError> {
        let anchored = std::path::absolute(path)
            .map_err(|error| FsError::with_kind(FsErrorKind::BadName, "lock", error).at(path))?;
        Ok(Self {
            path: anchored,
            mode: FileMode::default(),
            options: None,
            kind: LockKind::default(),
            follow: true,
            ending: Ending::Keep,
            witness: Witness::System,
        })
    }

    /// The path as a lock's name, for errors and logs; of a long one, its end.
    pub(crate) fn name(&self) -> Result<LockName, LockError> {
        let path = self.path.to_string_lossy().replace('\0', "\u{fffd}");
        let mut start = path.len().saturating_sub(LockName::MAX_BYTES);
        while !path.is_char_boundary(start) {
            start += 1;
        }
        Ok(LockName::new(&path[start..])?)
    }

    pub(crate) fn open(&self) -> Result<Handle, FsError> {
        let options = self.options.clone().unwrap_or_else(|| {
            let mut options = self.mode.options();
            sys::set_open_flags(&mut options, self.follow);
            options
        });
        let file = sys::patiently(|| options.open(&self.path))
            .map_err(|error| self.failed("open", error))?;
        let handle = Handle {
            file: Some(file),
            kind: self.kind,
        };
        let metadata = handle
            .metadata()
            .map_err(|error| self.failed("look at", error))?;
        if !metadata.is_file() {
            let error = io::Error::other("not a regular file");
            return Err(FsError::with_kind(FsErrorKind::NotAFile, "lock", error).at(&self.path));
        }
        if !self.follow && sys::has_other_names(&metadata) {
            // A lock file of our own: writing to it would write to a file elsewhere.
            let error = io::Error::other("it has a second name, a hard link");
            return Err(FsError::with_kind(FsErrorKind::NotAFile, "lock", error).at(&self.path));
        }
        Ok(handle)
    }

    /// Whether the path still names this very file.
    pub(crate) fn names(&self, file: &File) -> Result<bool, FsError> {
        sys::path_names_file(&self.path, self.follow, file)
            .map_err(|error| self.failed("look at", error))
    }

    /// What has happened if the path no longer names the locked file.
    pub(crate) fn loss(&self) -> Loss {
        Loss::Removed(format!("{} was removed or replaced", self.path.display()).into())
    }

    pub(crate) fn failed(&self, action: &'static str, error: io::Error) -> FsError {
        let kind = match FsErrorKind::of(&error) {
            // What Windows says of a directory.
            FsErrorKind::PermissionDenied if self.path.is_dir() => FsErrorKind::NotAFile,
            kind => kind,
        };
        FsError::with_kind(kind, action, error).at(&self.path)
    }
}

/// An open file that is closed so that no other lock of this process on it is lost.
#[derive(Debug)]
pub(crate) struct Handle {
    file: Option<File>,
    kind: LockKind,
}

impl Deref for Handle {
    type Target = File;

    #[allow(clippy::expect_used, reason = "only `drop` takes the file")]
    fn deref(&self) -> &File {
        self.file.as_ref().expect("the file is there until drop")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            sys::close(file, self.kind);
        }
    }
}
