//! The backend on real servers: what it costs, what it leaves behind, and what it does under faults of the network, the
//! server or an administrator.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and so may what it is made of"
)]

mod again;
mod breaking;
mod cluster;
mod example;
mod faults;
mod history;
mod locks;
mod permits;
mod races;
mod refusals;
mod runtimes;
mod support;
mod tokens;
mod unknown;
