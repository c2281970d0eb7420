//! Systems without a watch of directories, so that waiters poll, and without a safe call for the holder of a file and the
//! start time of a process.

use std::{
    fmt::Debug,
    io,
    sync::{Arc, Weak},
};

use portalock_core::{Holder, Sleeper};

/// Windows has one kind of lock. On other systems record locks are not used: see [`HAS_RECORD_LOCKS`](super::HAS_RECORD_LOCKS).
pub(crate) use super::flock as record;
use super::{FileId, ProcessLife, Watched};

/// Never made.
#[derive(Debug)]
pub(crate) enum Watcher {}

/// Never made.
#[derive(Debug)]
pub(crate) enum Registration {}

impl Drop for Registration {
    fn drop(&mut self) {
        match *self {}
    }
}

impl Watcher {
    pub(crate) fn shared() -> io::Result<Arc<Self>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn sleeper(&self) -> Arc<dyn Sleeper> {
        match *self {}
    }

    pub(crate) fn keep_looking(&self) {
        match *self {}
    }

    pub(crate) fn watch(
        &self,
        _: impl Debug,
        _: Option<&str>,
        _: Weak<dyn Watched>,
    ) -> io::Result<Registration> {
        match *self {}
    }
}

pub(crate) fn lock_holder(_file: FileId) -> Option<Holder> {
    None
}

pub(crate) fn process_life(_pid: u32) -> Option<ProcessLife> {
    None
}
