//! Linux and Android: record locks that belong to the open file (`fcntl(2)`, "Open file description locks").

use std::{fs::File, io};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use portalock_core::Mode;

pub(crate) fn lock(file: &File, mode: Mode) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLKW(&whole_file(lock_type(mode))))?;
    Ok(())
}

pub(crate) fn try_lock(file: &File, mode: Mode) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(lock_type(mode)))) {
        Ok(_) => Ok(true),
        // POSIX allows either code for "held by another process".
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn unlock(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)))?;
    Ok(())
}

const fn lock_type(mode: Mode) -> libc::c_int {
    match mode {
        Mode::Exclusive => libc::F_WRLCK,
        Mode::Shared => libc::F_RDLCK,
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the constants are small; the structure's fields are short"
)]
const fn whole_file(lock_type: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: lock_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        // Must be zero for a lock that belongs to the open file.
        l_pid: 0,
    }
}
