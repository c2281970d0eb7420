//! The program itself, run like by a user.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod backends;
mod conflict;
mod crash;
mod errors;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(target_os = "linux")]
mod keep;
mod loss;
mod pass_through;
mod permits;
#[cfg(feature = "postgres")]
mod postgres;
mod program;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "redis", feature = "etcd", feature = "postgres"))]
mod service;
mod signals;
mod terminal;
mod who;
