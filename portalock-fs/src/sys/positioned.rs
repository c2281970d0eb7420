//! Reading and writing at a place in a file, without a cursor that others share.

#[cfg(windows)]
use std::os::windows::fs::FileExt;
use std::{fs::File, io};

/// Reads at `offset`. As little as the system gives at once.
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    // Not through the C library, which makes each of these a point where a thread may be cancelled.
    #[cfg(unix)]
    return Ok(rustix::io::pread(file, bytes, offset)?);
    #[cfg(windows)]
    return file.seek_read(bytes, offset);
}

/// Writes at `offset`. As little as the system takes at once.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return Ok(rustix::io::pwrite(file, bytes, offset)?);
    #[cfg(windows)]
    return file.seek_write(bytes, offset);
}
