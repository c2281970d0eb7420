//! What networked backends share: a session that outlives the caller's runtime.
//!
//! A networked backend keeps its client's liveness at the service: a lease, a key with a time to live, a row. All of its
//! locks live and die with that *session*. This module has the parts that every such backend needs, in the order in which
//! a session uses them:
//!
//! 1. [`Sessions`] starts a session when one is first needed, once for all callers that wait for it, and starts the next
//!    one when it has ended.
//! 2. [`KeptSession`] keeps it over any [`Service`]: renews it, makes a broken connection anew, looks whether what it has is
//!    still there, takes over releases that failed, and ends in good order.
//! 3. [`Places`] is the book of what its owners have: who holds, who waits, and what may still arrive.
//! 4. [`PerRuntime`] keeps one connection for each runtime that uses the backend, for the callers' own requests.
//!
//! A backend whose session is of another kind builds on the parts: [`Keeper`] renews a [`Lease`](crate::Lease) until it ends,
//! and [`spawn`] runs what listens for grants and losses.
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
mod kept;
mod look;
mod per_runtime;
mod places;
mod service;
mod single_flight;
mod starts;
mod task;

pub use keeper::{Keeper, Renewal};
pub use kept::KeptSession;
pub use per_runtime::PerRuntime;
pub use places::{Asked, Expected, Leaving, Places, Releasing, Stand};
pub use service::{Looked, Service};
pub use starts::{Session, Sessions};
pub use task::{Task, run, spawn};

pub(crate) use keeper::RenewalOutcome;
