//! Unix systems whose record locks belong to the process: any other handle of the file that is closed drops them, so they are no
//! locks to rely on.

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
