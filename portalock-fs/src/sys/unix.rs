//! What all Unix systems share.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use cap_std::fs::{Dir, OpenOptionsExt as _};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, open, statat},
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::{FileId, Seen};

/// A file can be removed while it is open and locked.
pub(crate) const LOCKED_FILES_STAY: bool = false;

/// Opening never hangs, as a named pipe would, and never makes a terminal ours.
pub(crate) fn set_open_flags(options: &mut OpenOptions, follow: bool) {
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    options.custom_flags(flags.bits().cast_signed());
}

/// Lock files are made for whom `file_mode` says.
pub(crate) fn set_lock_file_flags(options: &mut cap_std::fs::OpenOptions, file_mode: u32) {
    options.mode(file_mode);
}

/// Lets the owner's group make files in `directory`, which its owner has just made. New files belong to the group of the
/// directory, whoever makes them.
pub(crate) fn let_group_write(directory: &Path) -> io::Result<()> {
    let made = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = open(directory, made, Mode::empty())?;
    Ok(fchmod(made, Mode::from_raw_mode(0o2775))?)
}

/// Gives a file that nobody has written to yet the permissions `file_mode`, of which the umask may have taken some. It fails
/// if another user made it, who does the same.
#[allow(
    clippy::cast_possible_truncation,
    reason = "permissions fit into the shorter type that some systems have"
)]
pub(crate) fn apply_file_mode(file: &File, file_mode: u32) {
    if let Ok(stat) = fstat(file)
        && stat.st_size == 0
        && Mode::from_raw_mode(stat.st_mode) != Mode::from_raw_mode(file_mode as _)
    {
        let _ = fchmod(file, Mode::from_raw_mode(file_mode as _));
    }
}

/// Opening for reading never hangs either.
pub(crate) fn set_read_flags(options: &mut OpenOptions) {
    set_open_flags(options, true);
}

/// Nobody's open file is in anybody's way here.
pub(crate) fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    call()
}

/// Which file it is. Half of what the standard library's call costs, which asks for all that is known of a file.
pub(crate) fn look_at(file: &File) -> io::Result<Seen> {
    Ok(seen(&fstat(file)?))
}

/// Which file `name` leads to, a single name in `dir`. Links are not followed.
pub(crate) fn look_for(dir: &Dir, name: &str) -> io::Result<Seen> {
    Ok(seen(&statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

/// Which file `path` leads to. Of its last part a link is followed only if asked.
pub(crate) fn look_along(path: &Path, follow: bool) -> io::Result<Seen> {
    let flags = if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    };
    Ok(seen(&statat(CWD, path, flags)?))
}

#[allow(
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    clippy::unnecessary_cast,
    clippy::useless_conversion,
    reason = "the fields' types differ between systems"
)]
fn seen(stat: &Stat) -> Seen {
    Seen {
        id: FileId {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
        },
        links: stat.st_nlink as u64,
        is_file: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
    }
}

pub(crate) fn remove_lock_file(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

/// Moves `from` to `to`, over what may stand there.
pub(crate) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Moves `from` to `to` unless something is there; `None` if the file system has no such call.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub(crate) fn rename_exclusive(from: &Path, to: &Path) -> Option<io::Result<()>> {
    use rustix::fs::{RenameFlags, renameat_with};

    let renamed =
        renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(io::Error::from);
    match renamed {
        Err(error)
            if is_one_of(
                &error,
                &[Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP],
            ) =>
        {
            None
        }
        done => Some(done),
    }
}

/// There is no such call.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(crate) fn rename_exclusive(_from: &Path, _to: &Path) -> Option<io::Result<()>> {
    None
}

/// Makes what happened to a directory's names last. Some file systems have nothing to sync and say so: no failure.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error)
            if is_one_of(
                &error,
                &[Errno::INVAL, Errno::BADF, Errno::NOTSUP, Errno::OPNOTSUPP],
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Whether there is a process with this pid; `None` if the system does not say.
pub(crate) fn process_exists(pid: u32) -> Option<bool> {
    let pid = Pid::from_raw(pid.try_into().ok()?)?;
    match test_kill_process(pid) {
        // Not ours to signal, but there.
        Ok(()) | Err(Errno::PERM) => Some(true),
        Err(Errno::SRCH) => Some(false),
        Err(_) => None,
    }
}

/// Where record locks belong to the process, any other handle of the file that is closed drops them: no lock to rely on.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn lock_record(_file: &File, _mode: portalock_core::Mode) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// As [`lock_record`].
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn try_lock_record(_file: &File, _mode: portalock_core::Mode) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

/// As [`lock_record`].
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn unlock_record(_file: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// These systems don't tell.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn lock_holder(_file: &File) -> Option<portalock_core::Holder> {
    None
}

/// These systems tell in ways that differ: not asked.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn process_life(_pid: u32) -> Option<super::ProcessLife> {
    None
}

/// A file system without hard links (exFAT, some network mounts), or a file that has too many.
pub(crate) fn says_no_hard_links(error: &io::Error) -> bool {
    is_one_of(
        error,
        &[
            Errno::PERM,
            Errno::NOTSUP,
            Errno::OPNOTSUPP,
            Errno::NOSYS,
            Errno::MLINK,
        ],
    )
}

/// `ENOLCK` is how NFS without a lock service answers.
pub(crate) fn says_no_locks(error: &io::Error) -> bool {
    is_one_of(
        error,
        &[Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOLCK, Errno::NOSYS],
    )
}

/// Being open keeps no file here.
pub(crate) fn says_in_use(_error: &io::Error) -> bool {
    false
}

pub(crate) fn says_too_many_files(error: &io::Error) -> bool {
    is_one_of(error, &[Errno::MFILE, Errno::NFILE])
}

/// A lock call on a handle that can't write, or can't read, says "bad descriptor".
pub(crate) fn says_wrong_access(error: &io::Error) -> bool {
    is_one_of(error, &[Errno::BADF])
}

/// A symbolic link that was not to be followed, or a device without a driver.
pub(crate) fn says_not_a_file(error: &io::Error) -> bool {
    is_one_of(error, &[Errno::LOOP, Errno::NXIO])
}

fn is_one_of(error: &io::Error, codes: &[Errno]) -> bool {
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
}
