//! The backend on real servers: what it costs, what it leaves behind, and what it does under faults of the network, the
//! server or an administrator.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and so may what it is made of"
)]

mod breaking;
mod claims;
mod clean_up;
mod clock;
mod deadlocks;
mod faults;
mod fence;
mod former_primary;
mod functions;
mod history;
mod holders;
mod idle;
mod messages;
mod neighbours;
mod observing;
mod pooler;
mod queue;
mod refusals;
mod resources;
mod role_defaults;
mod schema;
mod sessions;
mod standby;
mod steps;
mod strangers;
mod support;
mod unpolled;
mod without_notice;
