//! The engine, which all backends share: deadlines, retries, back-off, cancellation and clean-up.
//!
//! - [`wait`] runs one acquisition from its first attempt to the grant, with one [`deadline`]. It tries again after a
//!   [`backoff`], or when the backend wakes it.
//! - [`held`] is the ownership that every guard contains.
//! - [`breaking`] takes a lock away from its holder.
//! - [`answer`] waits for the service in calls that have no deadline of their own.
//! - [`measure`] records both for the `metrics` facade, if the feature is on.
//! - [`reaper`] cleans up after dropped calls and guards, in the background.
//! - [`own`] is what a forked child does not drop.
//! - [`driver`] drives a future on the calling thread, for the blocking form.
//! - [`timer`] works on any executor.
//! - [`service`] gives locks and semaphores the same interface for all of them.

pub(crate) mod answer;
pub(crate) mod backoff;
pub(crate) mod breaking;
pub(crate) mod deadline;
pub(crate) mod driver;
pub(crate) mod held;
pub(crate) mod measure;
pub(crate) mod reaper;
pub(crate) mod service;
pub(crate) mod timer;
pub(crate) mod wait;
