//! Those who are compared: each takes one lock in one directory, does something, and frees it.

use std::{
    cell::RefCell,
    fmt,
    fs::File,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use distributed_lock_core::{DistributedLock, LockHandle, LockProvider};
use distributed_lock_file::{FileDistributedLock, FileLockHandle, FileLockProvider};
use portalock_benches::Failure;
use portalock_core::{Lock, Policy, blocking};
use portalock_fs::FsBackend;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use tokio::runtime::{Builder, Runtime};

use crate::locks::Exclusive;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Flock,
    Blocking,
    CurrentThread,
    MultiThread,
    BackendEach,
    FdLock,
    OpenFdLock,
    FsLock,
    OpenFsLock,
    DistributedLock,
}

impl Kind {
    const ALL: [(Self, &str); 10] = [
        (Self::Flock, "floor: open, flock, unlock, close"),
        (Self::Blocking, "portalock, blocking"),
        (Self::CurrentThread, "portalock, async, current-thread"),
        (Self::MultiThread, "portalock, async, multi-thread"),
        (Self::BackendEach, "portalock, blocking, a backend each"),
        (Self::FdLock, "fd-lock"),
        (Self::OpenFdLock, "fd-lock, kept open"),
        (Self::FsLock, "fslock"),
        (Self::OpenFsLock, "fslock, kept open"),
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

/// One of them, ready to take its lock. No file stays open in between unless its kind says so.
pub(crate) enum Taker {
    Flock(PathBuf),
    Blocking(blocking::Lock<FsBackend>),
    Async(Lock<FsBackend>, Runtime),
    FdLock(PathBuf),
    OpenFdLock(RefCell<fd_lock::RwLock<File>>),
    FsLock(PathBuf),
    OpenFsLock(RefCell<fslock::LockFile>),
    Distributed(Arc<FileDistributedLock>, Runtime),
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
            Kind::Blocking | Kind::BackendEach => {
                Self::Blocking(ours(directory, "nightly")?.into())
            }
            Kind::CurrentThread => Self::Async(ours(directory, "nightly")?, current_thread()?),
            Kind::MultiThread => Self::Async(ours(directory, "nightly")?, multi_thread()?),
            Kind::FdLock => Self::FdLock(directory.join("fd-lock")),
            Kind::OpenFdLock => {
                let file = open_std(&directory.join("fd-lock-open"))?;
                Self::OpenFdLock(fd_lock::RwLock::new(file).into())
            }
            Kind::FsLock => Self::FsLock(directory.join("fslock")),
            Kind::OpenFsLock => {
                let file = fslock::LockFile::open(&directory.join("fslock-open"))?;
                Self::OpenFsLock(file.into())
            }
            Kind::DistributedLock => Self::Distributed(distributed(directory)?, current_thread()?),
        })
    }

    /// One for each thread of a process, which share a backend if their kind does.
    pub(crate) fn many(kind: Kind, directory: &Path, count: u32) -> Result<Vec<Self>, Failure> {
        let first = Self::new(kind, directory)?;
        if let (Kind::Blocking, Self::Blocking(lock)) = (kind, &first) {
            return Ok((0..count).map(|_| Self::Blocking(lock.clone())).collect());
        }
        (0..count).map(|_| Self::new(kind, directory)).collect()
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
            Self::OpenFdLock(lock) => {
                let mut lock = lock.borrow_mut();
                let _guard = lock.write()?;
                inside()
            }
            Self::FsLock(path) => in_fslock(&mut fslock::LockFile::open(path)?, inside),
            Self::OpenFsLock(lock) => in_fslock(&mut lock.borrow_mut(), inside),
            Self::Distributed(lock, runtime) => runtime.block_on(async {
                let handle = lock.acquire(None).await?;
                let done = inside();
                handle.release().await?;
                done
            }),
        }
    }
}

fn in_fslock<T>(
    lock: &mut fslock::LockFile,
    inside: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    lock.lock()?;
    let done = inside();
    lock.unlock()?;
    done
}

pub(crate) fn distributed(directory: &Path) -> Result<Arc<FileDistributedLock>, Failure> {
    let provider = FileLockProvider::new(directory.join("distributed"))?;
    Ok(Arc::new(provider.create_lock("nightly")))
}

impl Exclusive for Arc<FileDistributedLock> {
    type Held = FileLockHandle;

    async fn take(&self) -> Result<FileLockHandle, Failure> {
        Ok(self.acquire(None).await?)
    }

    async fn give(held: FileLockHandle) -> Result<(), Failure> {
        Ok(held.release().await?)
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
