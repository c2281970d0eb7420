//! Systems that do not tell, or only by a call that is not safe, who holds a file and when a process started.

use std::fs::File;

use portalock_core::Holder;

use super::ProcessLife;

pub(crate) fn lock_holder(_file: &File) -> Option<Holder> {
    None
}

pub(crate) fn process_life(_pid: u32) -> Option<ProcessLife> {
    None
}
