//! What no backend has to write: deadlines, retries, back-off, cancellation and clean-up.
//!
//! - [`wait`] takes one acquisition from its first attempt to the grant, within one [`deadline`], looking again after a
//!   [`backoff`] or when the backend wakes it.
//! - [`held`] is the ownership that every guard wraps.
//! - [`breaking`] takes a lock away from its holder.
//! - [`measure`] tells the `metrics` facade about both, if the feature is on.
//! - [`reaper`] cleans up after whoever went away, in the background.
//! - [`timer`] works on any executor.
//! - [`service`] makes locks and semaphores one thing to all of them.

pub(crate) mod backoff;
pub(crate) mod breaking;
pub(crate) mod deadline;
pub(crate) mod held;
pub(crate) mod measure;
pub(crate) mod reaper;
pub(crate) mod service;
pub(crate) mod timer;
pub(crate) mod wait;
