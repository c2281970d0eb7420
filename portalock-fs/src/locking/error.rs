//! File system errors. They say nothing about who holds a lock.

use std::{error::Error, fmt, io, path::Path, sync::Arc};

use portalock_core::{BackendError, BackendErrorKind};

use crate::sys::{self, says};

/// A file system error of a lock operation.
///
/// A lock that another owner holds is not an error of this type.
#[derive(Debug, Clone)]
pub struct FsError {
    action: &'static str,
    path: Option<Box<Path>>,
    meaning: Meaning,
    source: Arc<io::Error>,
}

/// The kind of a failure, and what to do about it.
type Meaning = &'static (BackendErrorKind, &'static str);

/// A directory, a link or a device is at the path.
pub(crate) const NOT_A_FILE: Meaning = &(
    BackendErrorKind::Corrupt,
    "it is not a regular file: choose another name",
);
/// The file has other content than a lock's record, so it is not changed.
pub(crate) const FOREIGN: Meaning = &(
    BackendErrorKind::Corrupt,
    "it is not a lock's file: choose another directory, or remove the file",
);
/// The text can't be a file name here: it is empty, or would lead to another directory.
pub(crate) const BAD_NAME: Meaning = &(
    BackendErrorKind::Misconfigured,
    "it is not a file name: give text without a slash",
);
/// This is a forked child, and its parent opened the backend.
pub(crate) const FORKED: Meaning = &(
    BackendErrorKind::Misconfigured,
    "it was opened before a fork: open the backend in the child",
);
/// The system's limit of watched files for this user is reached.
pub(crate) const TOO_MANY_WATCHES: Meaning = &(
    BackendErrorKind::Exhausted,
    "the limit of watched files of this user is reached: raise fs.inotify.max_user_watches and max_user_instances",
);
/// The file system has no locks of this kind.
const NO_LOCKS: Meaning = &(
    BackendErrorKind::Unsupported,
    "the file system has no such locks: choose a local directory",
);
/// The process or the system is out of file descriptors or memory for the moment.
const TOO_MANY_FILES: Meaning = &(
    BackendErrorKind::Exhausted,
    "too many files are open: raise the limit or hold fewer locks",
);

/// What an error of the operating system means.
fn meaning_of(error: &io::Error) -> Meaning {
    match error.kind() {
        _ if says(error, sys::NO_LOCKS) => NO_LOCKS,
        io::ErrorKind::Unsupported => NO_LOCKS,
        io::ErrorKind::ReadOnlyFilesystem => &(
            BackendErrorKind::ReadOnly,
            "the file system is read-only: choose one that can be written",
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => &(
            BackendErrorKind::OutOfSpace,
            "the disk is full or the quota is exceeded: free some space",
        ),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => &(
            BackendErrorKind::NotFound,
            "the file or its directory is missing: create it, and open it again",
        ),
        io::ErrorKind::AlreadyExists => &(
            BackendErrorKind::Corrupt,
            "a file exists already at this path or above it: choose another one",
        ),
        io::ErrorKind::PermissionDenied => &(
            BackendErrorKind::PermissionDenied,
            "permission denied: check the owner and the mode",
        ),
        io::ErrorKind::StaleNetworkFileHandle
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::TimedOut => &(
            BackendErrorKind::Unavailable,
            "the file system does not respond correctly for the moment",
        ),
        io::ErrorKind::OutOfMemory => TOO_MANY_FILES,
        io::ErrorKind::IsADirectory => NOT_A_FILE,
        _ if says(error, sys::TOO_MANY_FILES) => TOO_MANY_FILES,
        _ if says(error, sys::NOT_A_FILE) => NOT_A_FILE,
        _ if says(error, sys::WRONG_ACCESS) => &(
            BackendErrorKind::Misconfigured,
            "the handle has too little access: an exclusive lock needs write access, a shared one read access",
        ),
        _ => &(BackendErrorKind::Other, ""),
    }
}

impl FsError {
    /// The failure `source` of an `action`: a verb for the text after "can't", such as `"lock"`.
    pub fn new(action: &'static str, source: io::Error) -> Self {
        Self {
            action,
            path: None,
            meaning: meaning_of(&source),
            source: Arc::new(source),
        }
    }

    /// The failure to open a file. For a directory, Windows reports that permission is denied.
    pub(crate) fn open(source: io::Error, is_directory: impl FnOnce() -> bool) -> Self {
        let error = Self::new("open", source);
        match error.kind() {
            BackendErrorKind::PermissionDenied if is_directory() => error.meaning(NOT_A_FILE),
            _ => error,
        }
    }

    /// The caller knows more about its meaning than the operating system.
    pub(crate) fn meaning(mut self, meaning: Meaning) -> Self {
        self.meaning = meaning;
        self
    }

    /// Adds the file.
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().into());
        self
    }

    /// The kind of failure.
    pub const fn kind(&self) -> BackendErrorKind {
        self.meaning.0
    }

    /// The file, if it has a path.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The error of the operating system.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't {}", self.action)?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        match self.meaning.1 {
            "" => Ok(()),
            advice => write!(f, ": {advice}"),
        }
    }
}

impl Error for FsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl From<FsError> for BackendError {
    fn from(error: FsError) -> Self {
        Self::new(error.kind(), error.to_string()).with_source(error.source)
    }
}

impl From<FsError> for io::Error {
    /// Keeps the kind of the operating system's error, and contains the [`FsError`].
    fn from(error: FsError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_what_to_do_and_keeps_its_cause() {
        let error = FsError::new("open", io::ErrorKind::StorageFull.into()).at("/data/a.lock");
        assert_eq!(error.kind(), BackendErrorKind::OutOfSpace);
        assert_eq!(
            error.to_string(),
            "can't open /data/a.lock: the disk is full or the quota is exceeded: free some space"
        );
        let error = BackendError::from(error);
        assert_eq!(error.kind(), BackendErrorKind::OutOfSpace);
        assert!(error.source().is_some());
    }

    #[test]
    fn only_what_passes_by_itself_is_retryable() {
        for (kind, retryable) in [
            (io::ErrorKind::ReadOnlyFilesystem, false),
            (io::ErrorKind::PermissionDenied, false),
            (io::ErrorKind::NotFound, false),
            (io::ErrorKind::TimedOut, true),
            (io::ErrorKind::OutOfMemory, true),
        ] {
            let error = FsError::new("open", kind.into());
            assert_eq!(
                BackendError::from(error).is_retryable(),
                retryable,
                "{kind}"
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn raw_codes_are_told_apart() {
        use rustix::io::Errno;
        for (code, kind) in [
            (Errno::ROFS, BackendErrorKind::ReadOnly),
            (Errno::NOSPC, BackendErrorKind::OutOfSpace),
            (Errno::DQUOT, BackendErrorKind::OutOfSpace),
            (Errno::NOENT, BackendErrorKind::NotFound),
            (Errno::MFILE, BackendErrorKind::Exhausted),
            (Errno::NFILE, BackendErrorKind::Exhausted),
            (Errno::NOTSUP, BackendErrorKind::Unsupported),
            (Errno::OPNOTSUPP, BackendErrorKind::Unsupported),
            (Errno::NOLCK, BackendErrorKind::Unsupported),
            (Errno::NOSYS, BackendErrorKind::Unsupported),
            (Errno::ACCESS, BackendErrorKind::PermissionDenied),
            (Errno::ISDIR, BackendErrorKind::Corrupt),
            (Errno::LOOP, BackendErrorKind::Corrupt),
            (Errno::BADF, BackendErrorKind::Misconfigured),
            (Errno::STALE, BackendErrorKind::Unavailable),
            (Errno::IO, BackendErrorKind::Other),
        ] {
            let error = io::Error::from(code);
            assert_eq!(meaning_of(&error).0, kind, "{error}");
        }
    }
}
