//! The engine on paused time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(missing_docs, unreachable_pub, reason = "nobody else uses it")]

mod clean_up;
mod deadlines;
mod executors;
mod failures;
mod other_tasks;
mod scripted;
mod silence;
mod wake_ups;
