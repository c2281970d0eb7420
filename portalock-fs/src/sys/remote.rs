//! Whether a file system is on another machine or in another process, so that it may be slow and report no changes.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    clippy::unnecessary_wraps,
    clippy::useless_conversion,
    reason = "the field's type differs between systems, and some have none"
)]

use std::io;

use cap_std::fs::Dir;

/// The numbers of such file systems (`statfs(2)`).
#[cfg(any(target_os = "linux", target_os = "android"))]
const REMOTE: [u32; 14] = [
    0x0102_1997, // 9p
    0x0BD0_0BD0, // Lustre
    0x00C3_6400, // Ceph
    0x0116_1970, // GFS2
    0x1983_0326, // BeeGFS
    0x4750_4653, // GPFS
    0x517B,      // SMB
    0x5346_414F, // AFS
    0x6573_5546, // FUSE
    0x6969,      // NFS
    0x7375_7245, // Coda
    0x7461_636F, // OCFS2
    0xFE53_4D42, // SMB 2
    0xFF53_4D42, // CIFS
];

/// Whether the directory's file system answers from elsewhere.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn is_remote(dir: &Dir) -> io::Result<bool> {
    // The kernel's numbers have 32 bits; on some machines they come sign-extended.
    let number = rustix::fs::fstatfs(dir)?.f_type as u32;
    Ok(REMOTE.contains(&number))
}

/// Whether the directory's file system answers from elsewhere.
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
pub(crate) fn is_remote(dir: &Dir) -> io::Result<bool> {
    /// The same number on all of them.
    const MNT_LOCAL: u64 = 0x1000;
    let flags = u64::from(rustix::fs::fstatfs(dir)?.f_flags);
    Ok(flags & MNT_LOCAL == 0)
}

/// Not known on this system: use [`FsSettings`](crate::FsSettings).
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_vendor = "apple",
    target_os = "freebsd"
)))]
pub(crate) fn is_remote(_: &Dir) -> io::Result<bool> {
    Ok(false)
}
