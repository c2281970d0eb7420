//! `portalock-redis` against a real `redis-server`, which must be installed. Each test starts its own.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers are part of the test"
)]

mod addresses;
mod batches;
mod breaking;
#[cfg(target_os = "linux")]
mod clock;
mod cluster;
mod cluster_cut;
mod cluster_half_way;
mod cluster_moves;
mod cluster_suite;
mod faults;
mod fixture;
mod guarantees;
mod history;
mod neighbours;
mod portalocker;
mod refusals;
mod replicas;
mod resets;
mod resume;
mod runtimes;
mod semaphore;
mod sentinel;
mod sentinel_bystanders;
mod sentinel_suite;
mod session;
mod switches;
mod waiting;
