//! Those who are compared: each takes one lock in one directory, does something, and frees it.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    str::FromStr,
};

use distributed_lock_core::{DistributedLock, LockHandle, LockProvider};
use distributed_lock_file::{FileDistributedLock, FileLockProvider};
use portalock_benches::Failure;
use portalock_core::{Lock, Policy, blocking};
use portalock_fs::FsBackend;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use tokio::runtime::{Builder, Runtime};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Flock,
    Blocking,
    CurrentThread,
    MultiThread,
    FdLock,
    FsLock,
    DistributedLock,
}

impl Kind {
    const ALL: [(Self, &str); 7] = [
        (Self::Flock, "floor: open, flock, unlock, close"),
        (Self::Blocking, "portalock, blocking"),
        (Self::CurrentThread, "portalock, async, current-thread"),
        (Self::MultiThread, "portalock, async, multi-thread"),
        (Self::FdLock, "fd-lock"),
        (Self::FsLock, "fslock"),
        (Self::DistributedLock, "distributed-lock-file"),
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Kind {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let kind = Self::ALL.iter().find(|(_, name)| *name == text);
        kind.map(|(kind, _)| *kind)
            .ok_or_else(|| format!("no kind is called {text:?}").into())
    }
}

/// One of them, ready to take its lock. Nothing stays open in between that its users would not keep.
pub(crate) enum Taker {
    Flock(PathBuf),
    Blocking(blocking::Lock<FsBackend>),
    Async(Lock<FsBackend>, Runtime),
    FdLock(PathBuf),
    FsLock(PathBuf),
    Distributed(FileDistributedLock, Runtime),
}

pub(crate) fn current_thread() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

pub(crate) fn multi_thread() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// A lock of ours that waits for as long as it takes.
pub(crate) fn ours(directory: &Path, name: &str) -> Result<Lock<FsBackend>, Failure> {
    let lock = Lock::new(FsBackend::open(directory)?, name)?;
    Ok(lock.with_policy(Policy::forever()))
}

impl Taker {
    pub(crate) fn new(kind: Kind, directory: &Path) -> Result<Self, Failure> {
        Ok(match kind {
            Kind::Flock => Self::Flock(directory.join("flock")),
            Kind::Blocking => Self::Blocking(ours(directory, "nightly")?.into()),
            Kind::CurrentThread => Self::Async(ours(directory, "nightly")?, current_thread()?),
            Kind::MultiThread => Self::Async(ours(directory, "nightly")?, multi_thread()?),
            Kind::FdLock => Self::FdLock(directory.join("fd-lock")),
            Kind::FsLock => Self::FsLock(directory.join("fslock")),
            Kind::DistributedLock => {
                let provider = FileLockProvider::new(directory.join("distributed"))?;
                Self::Distributed(provider.create_lock("nightly"), current_thread()?)
            }
        })
    }

    /// Takes the lock, waiting for it, and frees it after `inside`.
    pub(crate) fn take<T>(
        &self,
        inside: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match self {
            Self::Flock(path) => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
                let file = open(path, flags, Mode::RUSR | Mode::WUSR)?;
                flock(&file, FlockOperation::LockExclusive)?;
                let done = inside();
                flock(&file, FlockOperation::Unlock)?;
                done
            }
            Self::Blocking(lock) => {
                let guard = lock.acquire()?;
                let done = inside();
                drop(guard);
                done
            }
            Self::Async(lock, runtime) => runtime.block_on(async {
                let guard = lock.acquire().await?;
                let done = inside();
                drop(guard);
                done
            }),
            Self::FdLock(path) => {
                let mut lock = fd_lock::RwLock::new(open_std(path)?);
                let _guard = lock.write()?;
                inside()
            }
            Self::FsLock(path) => {
                let mut lock = fslock::LockFile::open(path)?;
                lock.lock()?;
                let done = inside();
                lock.unlock()?;
                done
            }
            Self::Distributed(lock, runtime) => runtime.block_on(async {
                let handle = lock.acquire(None).await?;
                let done = inside();
                handle.release().await?;
                done
            }),
        }
    }
}

fn open_std(path: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}
