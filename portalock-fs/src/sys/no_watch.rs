//! Systems without a watch of directories: waiters poll.

use std::{
    fs::File,
    io,
    sync::{Arc, Weak},
};

use cap_std::fs::Dir;
use portalock_core::Sleeper;

use super::Watched;

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

    pub(crate) fn watch_directory(
        &self,
        _: &Dir,
        _: Weak<dyn Watched>,
    ) -> io::Result<Registration> {
        match *self {}
    }

    pub(crate) fn watch_file(
        &self,
        _: &File,
        _: &str,
        _: Weak<dyn Watched>,
    ) -> io::Result<Registration> {
        match *self {}
    }
}
