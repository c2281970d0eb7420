//! Windows: locks are mandatory, and belong to the open file.
#![allow(
    clippy::unnecessary_wraps,
    reason = "the same face as on other systems"
)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::windows::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::Duration,
};

use cap_fs_ext::MetadataExt as _;
use cap_std::{
    ambient_authority,
    fs::{Dir, Metadata, OpenOptionsExt as _},
};

use super::Seen;

/// An open lock file can't be removed: see [`set_open_flags`].
pub(crate) const LOCKED_FILES_STAY: bool = true;

const ERROR_INVALID_FUNCTION: i32 = 1;
const ERROR_TOO_MANY_OPEN_FILES: i32 = 4;
const ERROR_ACCESS_DENIED: i32 = 5;
const ERROR_INVALID_HANDLE: i32 = 6;
const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_NOT_SUPPORTED: i32 = 50;
const ERROR_DELETE_PENDING: i32 = 303;
const ERROR_TOO_MANY_LINKS: i32 = 1142;
const ERROR_CANT_ACCESS_FILE: i32 = 1920;

const FILE_SHARE_READ: u32 = 1;
const FILE_SHARE_WRITE: u32 = 2;
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// How long a call is retried while a scanner has the file open, or a removal is not complete: 1 + 2 + 4 + 8 + 16 ms.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The identity of a file.
pub(crate) fn look_at(file: &File) -> io::Result<Seen> {
    Ok(seen(&Metadata::from_file(file)?))
}

/// The identity of the file `name` in `dir`. Links are not followed.
pub(crate) fn look_for(dir: &Dir, name: &str) -> io::Result<Seen> {
    Ok(seen(&dir.symlink_metadata(name)?))
}

/// The identity of the directory at `path`. A lock file is not looked for along its path, because it stays as long as it is open.
pub(crate) fn look_along(path: &Path, _follow: bool) -> io::Result<Seen> {
    let dir = Dir::open_ambient_dir(path, ambient_authority())?;
    Ok(seen(&dir.dir_metadata()?))
}

fn seen(metadata: &Metadata) -> Seen {
    Seen {
        id: (metadata.dev(), metadata.ino()),
        links: metadata.nlink(),
        is_file: metadata.is_file(),
    }
}

/// Without `FILE_SHARE_DELETE`, nobody can remove or replace the file while it is open here.
pub(crate) fn set_open_flags(options: &mut OpenOptions, follow: bool) {
    options.share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE);
    if !follow {
        options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    }
}

/// Like [`set_open_flags`]. Permissions are inherited from the directory.
pub(crate) fn set_lock_file_flags(options: &mut cap_std::fs::OpenOptions, _file_mode: u32) {
    options.share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE);
}

/// Who may do what is inherited.
pub(crate) fn let_group_write(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// Who may do what is inherited.
pub(crate) fn apply_file_mode(_file: &File, _file_mode: u32) {}

pub(crate) fn permit_as(_file: &File, _like: &File) {}

/// A reader shares everything, so that it does not prevent the writer from replacing the file.
pub(crate) fn set_read_flags(_options: &mut OpenOptions) {}

/// Retries a call for a moment if it fails because another program has the file open, or because the file is being
/// removed.
#[allow(
    clippy::disallowed_methods,
    reason = "a scanner that has the file open gives no sign when it is done"
)]
pub(crate) fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match call() {
            Err(error) if says(&error, MAY_PASS) => thread::sleep(pause),
            done => return done,
        }
        pause *= 2;
    }
    call()
}

/// Syncs the content to the disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// The file system's journal does this.
pub(crate) fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// Not possible without an unsafe call.
pub(crate) fn process_exists(_pid: u32) -> Option<bool> {
    None
}

pub(crate) const NO_HARD_LINKS: &[i32] = &[
    ERROR_INVALID_FUNCTION,
    ERROR_NOT_SUPPORTED,
    ERROR_TOO_MANY_LINKS,
];
pub(crate) const NO_LOCKS: &[i32] = &[ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED];
pub(crate) const IN_USE: &[i32] = &[ERROR_SHARING_VIOLATION];
pub(crate) const TOO_MANY_FILES: &[i32] = &[ERROR_TOO_MANY_OPEN_FILES];
pub(crate) const WRONG_ACCESS: &[i32] = &[ERROR_INVALID_HANDLE];
pub(crate) const NOT_A_FILE: &[i32] = &[ERROR_CANT_ACCESS_FILE];
/// A file that is removed while a program has it open gives "access denied" until that program closes it.
const MAY_PASS: &[i32] = &[
    ERROR_ACCESS_DENIED,
    ERROR_SHARING_VIOLATION,
    ERROR_DELETE_PENDING,
];

/// Whether the system's error is one of these.
pub(crate) fn says(error: &io::Error, codes: &[i32]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}
