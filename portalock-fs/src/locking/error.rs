//! What a file system refuses, by kind: never a word about who holds a lock.

use std::{error::Error, fmt, io, path::Path, sync::Arc};

use portalock_core::{BackendError, BackendErrorKind};

use crate::sys::{self, says};

/// Why a file system did not do what a lock needs.
///
/// A lock that somebody else holds is not among them: that is an answer, not a failure.
#[derive(Debug, Clone)]
pub struct FsError {
    kind: FsErrorKind,
    action: &'static str,
    path: Option<Box<Path>>,
    source: Arc<io::Error>,
}

/// What kind of failure it is: what a program can decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FsErrorKind {
    /// The file system, or the mount, can't be written.
    ReadOnly,
    /// The disk is full, or the quota is used up.
    Full,
    /// The file, or a directory on the way to it, is not there.
    Missing,
    /// Something is there already, where only a new file would do.
    AlreadyExists,
    /// The process or the system has no file descriptor, or no memory, left for the moment.
    TooManyOpenFiles,
    /// The file system has no locks of this kind.
    NoLocks,
    /// The user may not do that.
    PermissionDenied,
    /// A directory, a link or a device is where a regular file should be.
    NotAFile,
    /// The file has something in it that is no lock's record: it is somebody else's, and is left alone.
    Foreign,
    /// The text can't be the name of a file here: it is empty, or would lead to another directory.
    BadName,
    /// The handle was opened for too little: an exclusive record lock needs one that can write, a shared one that can
    /// read.
    WrongAccess,
    /// A network file system does not answer, the handle to it went stale, or a file is replaced faster than it can be
    /// locked.
    Unavailable,
    /// The backend was opened by the process that this one was forked from.
    Forked,
    /// The system watches no more files for this user.
    TooManyWatches,
    /// Anything else: see the source.
    Other,
}

impl FsErrorKind {
    /// Reads the kind out of what the operating system said.
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
            Self::ReadOnly => {
                "the file system is read-only: choose a directory that can be written"
            }
            Self::Full => "the disk is full or the quota used up: free some space",
            Self::Missing => {
                "the file or its directory is missing: make the directory, and open it anew"
            }
            Self::AlreadyExists => "it exists already: choose a name that is free",
            Self::TooManyOpenFiles => {
                "too many files are open: raise the limit or hold fewer locks at once"
            }
            Self::NoLocks => "the file system has no such locks: choose a local directory",
            Self::PermissionDenied => "permission denied: check the owner and the mode",
            Self::NotAFile => "it is not a regular file: choose another name",
            Self::Foreign => {
                "it holds something that is no lock's record: choose another directory, or remove the file"
            }
            Self::BadName => "it is no name for a file: give it text without a slash",
            Self::WrongAccess => {
                "the handle is open for too little: exclusive needs write access, shared needs read access"
            }
            Self::Unavailable => "the file system does not answer as it should for the moment",
            Self::Forked => "it was opened before a fork: open the backend in the child",
            Self::TooManyWatches => {
                "the system watches no more files for this user: raise fs.inotify.max_user_watches and max_user_instances"
            }
            Self::Other => return None,
        })
    }
}

impl FsError {
    /// The failure `source` of an `action`, such as `"lock"`: the verb that goes on after "can't".
    pub fn new(action: &'static str, source: io::Error) -> Self {
        Self::with_kind(FsErrorKind::of(&source), action, source)
    }

    /// The same with the kind decided by the caller, who may know more than the operating system said.
    pub fn with_kind(kind: FsErrorKind, action: &'static str, source: io::Error) -> Self {
        Self {
            kind,
            action,
            path: None,
            source: Arc::new(source),
        }
    }

    /// The failure to open a file. Of a directory Windows says that permission is denied.
    pub(crate) fn open(source: io::Error, is_directory: impl FnOnce() -> bool) -> Self {
        let kind = match FsErrorKind::of(&source) {
            FsErrorKind::PermissionDenied if is_directory() => FsErrorKind::NotAFile,
            kind => kind,
        };
        Self::with_kind(kind, "open", source)
    }

    /// Says on which file.
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().into());
        self
    }

    /// What kind of failure it is.
    pub const fn kind(&self) -> FsErrorKind {
        self.kind
    }

    /// The file it was about, where it had a name.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What the operating system said.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }

    /// Whether the same call may succeed later by itself.
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
    /// Keeps the operating system's kind; the whole [`FsError`] is inside.
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
            "can't open /data/a.lock: the disk is full or the quota used up: free some space"
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
