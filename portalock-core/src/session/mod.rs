//! What networked backends share: a session that outlives the caller's runtime.
//!
//! A networked backend keeps its client's liveness at the service: a lease, a key with a time to live, a row. All of its
//! locks live and die with that *session*. This module has the parts that every such backend needs, in the order in which
//! a session uses them:
//!
//! 1. [`Sessions`] starts a session when one is first needed, once for all callers that wait for it, and starts the next
//!    one when it has ended.
//! 2. [`Keeper`] renews the session's [`Lease`](crate::Lease) until it ends.
//! 3. [`PerRuntime`] keeps one connection for each runtime that uses the backend.
//! 4. [`spawn`] runs what listens for grants and losses.
//!
//! # The session thread
//!
//! Starts, renewals and listeners run on a thread of the library's own, the *session thread*. So a session doesn't notice
//! when the runtime that first used it ends, or when a computation keeps that runtime from running for longer than the
//! lease lasts. Commands run on the caller's runtime, over that runtime's own connection, so an uncontended lock costs no
//! switch between threads.
//!
//! # For implementers
//!
//! - A connection of an async client is driven by a task on the runtime that opened it. Never renew over a connection that
//!   was opened elsewhere: take the session thread's own from [`PerRuntime`].
//! - Nothing may block the session thread, or compute on it: all sessions of the process are renewed there.
//! - End a session's [`Lease`](crate::Lease) when the session is dropped; its keeper and tasks stop with it.

mod keeper;
mod per_runtime;
mod single_flight;
mod starts;
mod task;

pub use keeper::{Keeper, Renewal};
pub use per_runtime::PerRuntime;
pub use starts::{Session, Sessions};
pub use task::{Task, run, spawn};

pub(crate) use keeper::RenewalOutcome;
