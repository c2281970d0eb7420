//! Code for all Unix systems.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    clippy::unnecessary_cast,
    clippy::useless_conversion,
    reason = "the types of permissions and of `stat`'s fields differ between systems"
)]

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::Path,
};

use cap_std::fs::{Dir, OpenOptionsExt as _};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, open, statat},
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::Seen;

/// A file can be removed while it is open and locked.
pub(crate) const LOCKED_FILES_STAY: bool = false;

/// Opening never blocks, as on a named pipe, and never takes a controlling terminal.
pub(crate) fn set_open_flags(options: &mut OpenOptions, follow: bool) {
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    flags.set(OFlags::NOFOLLOW, !follow);
    options.custom_flags(flags.bits().cast_signed());
}

/// Creates lock files with the permissions `file_mode`.
pub(crate) fn set_lock_file_flags(options: &mut cap_std::fs::OpenOptions, file_mode: u32) {
    options.mode(file_mode);
}

/// Lets the group create files in the new `directory`. New files belong to the group of the directory, whichever user
/// creates them.
pub(crate) fn let_group_write(directory: &Path) -> io::Result<()> {
    let made = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = open(directory, made, Mode::empty())?;
    Ok(fchmod(made, Mode::from_raw_mode(0o2775))?)
}

/// Gives a new file the permissions `file_mode`, because the umask may have removed some. Fails if another user created
/// it, who does the same.
pub(crate) fn apply_file_mode(file: &File, file_mode: u32) {
    if let Ok(stat) = fstat(file)
        && stat.st_size == 0
        && Mode::from_raw_mode(stat.st_mode) != Mode::from_raw_mode(file_mode as _)
    {
        let _ = fchmod(file, Mode::from_raw_mode(file_mode as _));
    }
}

/// Gives `file` the permissions of `like`, as far as this user may.
pub(crate) fn permit_as(file: &File, like: &File) {
    if let Ok(like) = like.metadata() {
        // The owner comes first, because changing it can remove permissions.
        let _ = fchown(file, Some(like.uid()), Some(like.gid()));
        let _ = file.set_permissions(Permissions::from_mode(like.mode() & 0o777));
    }
}

/// Opening for reading never blocks either.
pub(crate) fn set_read_flags(options: &mut OpenOptions) {
    set_open_flags(options, true);
}

/// On Unix an open file of another program causes no error.
pub(crate) fn patiently<T>(call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    super::uninterrupted(call)
}

/// The identity of a file. Takes half the time of the standard library's call, which requests all metadata.
pub(crate) fn look_at(file: &File) -> io::Result<Seen> {
    Ok(seen(&fstat(file)?))
}

/// The identity of the file `name` in `dir`. Links are not followed.
pub(crate) fn look_for(dir: &Dir, name: &str) -> io::Result<Seen> {
    Ok(seen(&statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

/// The identity of the file at `path`. If its last part is a link, it is followed only if requested.
pub(crate) fn look_along(path: &Path, follow: bool) -> io::Result<Seen> {
    let mut flags = AtFlags::empty();
    flags.set(AtFlags::SYMLINK_NOFOLLOW, !follow);
    Ok(seen(&statat(CWD, path, flags)?))
}

fn seen(stat: &Stat) -> Seen {
    Seen {
        id: (stat.st_dev as u64, stat.st_ino as u64),
        links: stat.st_nlink as u64,
        is_file: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
    }
}

/// Moves `from` to `to` unless `to` exists; `None` if the file system has no such call.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub(crate) fn rename_exclusive(from: &Path, to: &Path) -> Option<io::Result<()>> {
    use rustix::fs::{RenameFlags, renameat_with};

    let renamed =
        renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(io::Error::from);
    match renamed {
        Err(error) if says(&error, NOT_SUPPORTED) => None,
        done => Some(done),
    }
}

/// Syncs the content to the disk. Some file systems have nothing to sync and return an error, which is ignored.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if says(&error, NOT_SUPPORTED) => Ok(()),
        done => done,
    }
}

/// Makes changes of a directory's names durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    sync(&File::open(directory)?)
}

/// Whether there is a process with this pid; `None` if the system doesn't know.
pub(crate) fn process_exists(pid: u32) -> Option<bool> {
    let pid = Pid::from_raw(pid.try_into().ok()?)?;
    match test_kill_process(pid) {
        // The process exists, but this user may not signal it.
        Ok(()) | Err(Errno::PERM) => Some(true),
        Err(Errno::SRCH) => Some(false),
        Err(_) => None,
    }
}

/// A file system without hard links (exFAT, some network mounts), or a file that has too many.
pub(crate) const NO_HARD_LINKS: &[Errno] = &[
    Errno::PERM,
    Errno::NOTSUP,
    Errno::OPNOTSUPP,
    Errno::NOSYS,
    Errno::MLINK,
];
/// `ENOLCK` is how NFS without a lock service answers.
pub(crate) const NO_LOCKS: &[Errno] =
    &[Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOLCK, Errno::NOSYS];
/// On Unix an open file can be removed.
pub(crate) const IN_USE: &[Errno] = &[];
pub(crate) const TOO_MANY_FILES: &[Errno] = &[Errno::MFILE, Errno::NFILE];
/// The error of a lock call on a handle without write access, or without read access.
pub(crate) const WRONG_ACCESS: &[Errno] = &[Errno::BADF];
/// A symbolic link that was not to be followed, or a device without a driver.
pub(crate) const NOT_A_FILE: &[Errno] = &[Errno::LOOP, Errno::NXIO];
/// What has nothing to sync, or no such call.
const NOT_SUPPORTED: &[Errno] = &[
    Errno::INVAL,
    Errno::BADF,
    Errno::NOSYS,
    Errno::NOTSUP,
    Errno::OPNOTSUPP,
];

/// Whether the system's error is one of these.
pub(crate) fn says(error: &io::Error, codes: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_group_gets_no_rights_through_a_link() {
        let base = tempfile::tempdir().unwrap();
        let (target, link) = (base.path().join("target"), base.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        let mode = || target.metadata().unwrap().mode() & 0o7777;
        let before = mode();
        assert!(let_group_write(&link).is_err());
        assert_eq!(mode(), before);
        let_group_write(&target).unwrap();
        assert_eq!(mode(), 0o2775);
    }

    #[test]
    fn an_interrupted_call_is_repeated() {
        let mut answers = [Err(Errno::INTR), Err(Errno::INTR), Ok(7), Ok(8)].into_iter();
        let opened = patiently(|| answers.next().unwrap().map_err(io::Error::from));
        assert_eq!(opened.unwrap(), 7);
    }

    #[test]
    fn only_a_new_file_gets_the_mode() {
        let file = tempfile::tempfile().unwrap();
        let mode = || file.metadata().unwrap().mode() & 0o777;
        apply_file_mode(&file, 0o660);
        assert_eq!(mode(), 0o660);
        file.set_len(1).unwrap();
        apply_file_mode(&file, 0o600);
        assert_eq!(mode(), 0o660);
    }
}
