//! A private directory for a server.

use std::{io, path::Path};

use tempfile::{Builder, TempDir};

use super::process::Lifeline;

/// A directory that is removed when this is dropped, and also if this process ends without dropping it.
#[derive(Debug)]
pub(super) struct Directory {
    // Declared before the lifeline, which must not end while the directory is there.
    dir: TempDir,
    _lifeline: Lifeline,
}

impl Directory {
    fn new(dir: TempDir) -> Self {
        Self {
            _lifeline: Lifeline::of_directory(dir.path()),
            dir,
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Makes a directory whose name begins with `prefix`: in memory where there is room, because a disk that other tests
/// keep busy takes seconds for a commit or for a copy of a cluster. What is in it survives the server's end.
pub(super) fn directory(prefix: &str) -> io::Result<Directory> {
    in_memory(prefix).map_or_else(|| on_disk(prefix), |dir| Ok(Directory::new(dir)))
}

pub(super) fn on_disk(prefix: &str) -> io::Result<Directory> {
    Builder::new().prefix(prefix).tempdir().map(Directory::new)
}

#[cfg(target_os = "linux")]
fn in_memory(prefix: &str) -> Option<TempDir> {
    const MEMORY: &str = "/dev/shm";
    /// Enough for the servers of many tests. A container often has 64 MB, less than one etcd needs.
    const ROOM: u64 = 2 << 30;
    let memory = rustix::fs::statvfs(MEMORY).ok()?;
    let room = memory.f_bavail.saturating_mul(memory.f_frsize);
    (room >= ROOM)
        .then(|| Builder::new().prefix(prefix).tempdir_in(MEMORY).ok())
        .flatten()
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &str) -> Option<TempDir> {
    None
}
