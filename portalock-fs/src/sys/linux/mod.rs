//! Linux and Android: record locks that belong to the open file, a watch of directories and files, and information from
//! `/proc`.

mod event_wait;
mod inotify;
mod proc;
pub(crate) mod record;

pub(crate) use inotify::{Registration, Watcher};
pub(crate) use proc::{lock_holder, process_life};
