//! Reading and writing at a position in a file, without a shared cursor.

#[cfg(windows)]
use std::os::windows::fs::FileExt;
use std::{fs::File, io};

/// Reads at `offset`, perhaps less than requested.
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    // The C library is not used, because it makes each of these calls a thread cancellation point, which costs time.
    #[cfg(unix)]
    return Ok(rustix::io::retry_on_intr(|| {
        rustix::io::pread(file, &mut *bytes, offset)
    })?);
    #[cfg(windows)]
    return file.seek_read(bytes, offset);
}

/// Writes at `offset`, perhaps less than requested.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return Ok(rustix::io::retry_on_intr(|| {
        rustix::io::pwrite(file, bytes, offset)
    })?);
    #[cfg(windows)]
    return file.seek_write(bytes, offset);
}
