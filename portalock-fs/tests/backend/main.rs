//! The backend within one process: two clients of a directory are as independent as two processes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

#[cfg(unix)]
mod directory;
mod exclusion;
mod looking;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
mod waiting;
