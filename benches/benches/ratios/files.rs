//! Files: locks of processes on one machine.
//!
//! The floor is what any file lock does: open, `flock`, unlock, close, in system calls alone.

mod children;
mod contended;
mod growth;
mod held;
mod idle;
mod taker;
mod uncontended;

use portalock_benches::Failure;

use crate::Effort;

pub(crate) use children::run_as_child;

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    uncontended::run(effort)?;
    contended::run(effort)?;
    idle::run(effort)?;
    held::run(effort)?;
    growth::run(effort)
}
