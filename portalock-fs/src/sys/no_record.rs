//! Unix systems where record locks belong to the process: closing any other handle of the file drops them, so they are
//! not reliable.

use std::{fs::File, io};

use portalock_core::Mode;

pub(crate) fn lock(_file: &File, _mode: Mode) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn try_lock(_file: &File, _mode: Mode) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn unlock(_file: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
