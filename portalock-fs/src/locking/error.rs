//! File system errors, by kind. They say nothing about who holds a lock.

use std::{error::Error, fmt, io, path::Path, sync::Arc};

use portalock_core::{BackendError, BackendErrorKind};

use crate::sys::{self, says};

/// A file system error of a lock operation.
///
/// A lock that another owner holds is not an error of this type.
#[derive(Debug, Clone)]
pub struct FsError {
    kind: FsErrorKind,
    action: &'static str,
    path: Option<Box<Path>>,
    source: Arc<io::Error>,
}

/// The kind of failure, for decisions in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FsErrorKind {
    /// The file system or the mount is read-only.
    ReadOnly,
    /// The disk is full, or the quota is exceeded.
    Full,
    /// The file, or a directory in its path, does not exist.
    Missing,
    /// The file exists already, but must be new.
    AlreadyExists,
    /// The process or the system is out of file descriptors or memory for the moment.
    TooManyOpenFiles,
    /// The file system has no locks of this kind.
    NoLocks,
    /// The user has no permission.
    PermissionDenied,
    /// The path leads to a directory, a link or a device instead of a regular file.
    NotAFile,
    /// The file has other content than a lock's record, so it is not changed.
    Foreign,
    /// The text can't be a file name here: it is empty, or would lead to another directory.
    BadName,
    /// The handle has too little access: an exclusive record lock needs write access, and a shared one needs read
    /// access.
    WrongAccess,
    /// A network file system does not answer, its handle is stale, or a file is replaced faster than it can be locked.
    Unavailable,
    /// This is a forked child, and its parent opened the backend.
    Forked,
    /// The system's limit of watched files for this user is reached.
    TooManyWatches,
    /// Anything else: see the source.
    Other,
}

impl FsErrorKind {
    /// The kind of an error of the operating system.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            _ if says(error, sys::NO_LOCKS) => Self::NoLocks,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            io::ErrorKind::AlreadyExists => Self::AlreadyExists,
            io::ErrorKind::OutOfMemory => Self::TooManyOpenFiles,
            io::ErrorKind::Unsupported => Self::NoLocks,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied,
            io::ErrorKind::IsADirectory => Self::NotAFile,
            io::ErrorKind::StaleNetworkFileHandle
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::TimedOut => Self::Unavailable,
            _ if says(error, sys::TOO_MANY_FILES) => Self::TooManyOpenFiles,
            _ if says(error, sys::WRONG_ACCESS) => Self::WrongAccess,
            _ if says(error, sys::NOT_A_FILE) => Self::NotAFile,
            _ => Self::Other,
        }
    }

    const fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::ReadOnly => "the file system is read-only: choose one that can be written",
            Self::Full => "the disk is full or the quota is exceeded: free some space",
            Self::Missing => "the file or its directory is missing: create it, and open it again",
            Self::AlreadyExists => "it exists already: choose a name that is free",
            Self::TooManyOpenFiles => {
                "too many files are open: raise the limit or hold fewer locks"
            }
            Self::NoLocks => "the file system has no such locks: choose a local directory",
            Self::PermissionDenied => "permission denied: check the owner and the mode",
            Self::NotAFile => "it is not a regular file: choose another name",
            Self::Foreign => {
                "it is not a lock's file: choose another directory, or remove the file"
            }
            Self::BadName => "it is not a file name: give text without a slash",
            Self::WrongAccess => {
                "the handle has too little access: an exclusive lock needs write access, a shared one read access"
            }
            Self::Unavailable => "the file system does not respond correctly for the moment",
            Self::Forked => "it was opened before a fork: open the backend in the child",
            Self::TooManyWatches => {
                "the limit of watched files of this user is reached: raise fs.inotify.max_user_watches and max_user_instances"
            }
            Self::Other => return None,
        })
    }
}

impl FsError {
    /// The failure `source` of an `action`: a verb for the text after "can't", such as `"lock"`.
    pub fn new(action: &'static str, source: io::Error) -> Self {
        Self::with_kind(FsErrorKind::of(&source), action, source)
    }

    /// The same with a kind from the caller, which may know more than the operating system.
    pub fn with_kind(kind: FsErrorKind, action: &'static str, source: io::Error) -> Self {
        Self {
            kind,
            action,
            path: None,
            source: Arc::new(source),
        }
    }

    /// The failure to open a file. For a directory, Windows reports that permission is denied.
    pub(crate) fn open(source: io::Error, is_directory: impl FnOnce() -> bool) -> Self {
        let kind = match FsErrorKind::of(&source) {
            FsErrorKind::PermissionDenied if is_directory() => FsErrorKind::NotAFile,
            kind => kind,
        };
        Self::with_kind(kind, "open", source)
    }

    /// Adds the file.
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().into());
        self
    }

    /// The kind of failure.
    pub const fn kind(&self) -> FsErrorKind {
        self.kind
    }

    /// The file, if it has a path.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The error of the operating system.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }

    /// Whether the same call may succeed later, without other changes.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            FsErrorKind::TooManyOpenFiles | FsErrorKind::Unavailable
        )
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't {}", self.action)?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        self.kind
            .advice()
            .map_or(Ok(()), |advice| write!(f, ": {advice}"))
    }
}

impl Error for FsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl From<FsError> for BackendError {
    fn from(error: FsError) -> Self {
        let kind = match error.kind {
            FsErrorKind::ReadOnly => BackendErrorKind::ReadOnly,
            FsErrorKind::Full => BackendErrorKind::OutOfSpace,
            FsErrorKind::Missing => BackendErrorKind::NotFound,
            FsErrorKind::TooManyOpenFiles | FsErrorKind::TooManyWatches => {
                BackendErrorKind::Exhausted
            }
            FsErrorKind::NoLocks => BackendErrorKind::Unsupported,
            FsErrorKind::PermissionDenied => BackendErrorKind::PermissionDenied,
            FsErrorKind::NotAFile | FsErrorKind::Foreign => BackendErrorKind::Corrupt,
            FsErrorKind::BadName | FsErrorKind::WrongAccess | FsErrorKind::Forked => {
                BackendErrorKind::Misconfigured
            }
            FsErrorKind::Unavailable => BackendErrorKind::Unavailable,
            FsErrorKind::AlreadyExists | FsErrorKind::Other => BackendErrorKind::Other,
        };
        let message = error.to_string();
        Self::new(kind, message).with_source(error.source)
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
        assert_eq!(error.kind(), FsErrorKind::Full);
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
            assert_eq!(error.is_retryable(), retryable, "{kind}");
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
            (Errno::ROFS, FsErrorKind::ReadOnly),
            (Errno::NOSPC, FsErrorKind::Full),
            (Errno::DQUOT, FsErrorKind::Full),
            (Errno::NOENT, FsErrorKind::Missing),
            (Errno::MFILE, FsErrorKind::TooManyOpenFiles),
            (Errno::NFILE, FsErrorKind::TooManyOpenFiles),
            (Errno::NOTSUP, FsErrorKind::NoLocks),
            (Errno::OPNOTSUPP, FsErrorKind::NoLocks),
            (Errno::NOLCK, FsErrorKind::NoLocks),
            (Errno::NOSYS, FsErrorKind::NoLocks),
            (Errno::ACCESS, FsErrorKind::PermissionDenied),
            (Errno::ISDIR, FsErrorKind::NotAFile),
            (Errno::LOOP, FsErrorKind::NotAFile),
            (Errno::BADF, FsErrorKind::WrongAccess),
            (Errno::STALE, FsErrorKind::Unavailable),
            (Errno::IO, FsErrorKind::Other),
        ] {
            let error = io::Error::from(code);
            assert_eq!(FsErrorKind::of(&error), kind, "{error}");
        }
    }
}
