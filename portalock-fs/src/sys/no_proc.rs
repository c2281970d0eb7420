//! Systems without a safe call for the holder of a file and the start time of a process.

use std::fs::File;

use portalock_core::Holder;

use super::ProcessLife;

pub(crate) fn lock_holder(_file: &File) -> Option<Holder> {
    None
}

pub(crate) fn process_life(_pid: u32) -> Option<ProcessLife> {
    None
}
