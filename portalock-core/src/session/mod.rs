//! The session layer for networked backends: a session that outlives the caller's runtime.
//!
//! A networked backend keeps its client's liveness at the service: a lease, a key with a time to live, or a row. When
//! this *session* ends, all its locks end. This module has the parts that every such backend needs, in the order in
//! which a session uses them:
//!
//! 1. [`Client`] makes the requests: attempts, releases, and subscriptions of waiters. It starts a session when one is
//!    first needed, once for all waiting callers, and starts the next one when that has ended.
//! 2. [`KeptSession`] keeps the session: it renews it, reconnects, checks that its locks still exist, repeats failed
//!    releases, and ends the session.
//! 3. [`Places`] records the places of the session's owners: holds, waiters, and requests that may still arrive.
//!    [`NamedPlace`] gives each place a name of its own.
//! 4. [`PerRuntime`] keeps one connection for each runtime that uses the backend, for the callers' requests. Requests that use
//!    tokio are made [`in_its_runtime`].
//!
//! A backend implements [`Service`]. `docs/writing-a-backend.md` explains an example.
//!
//! A backend with another kind of session can use the parts: [`Keeper`] renews a [`Lease`](crate::Lease) until it ends,
//! [`spawn`] runs a listener for grants and losses, and [`SingleFlight`] does for all callers what one of them needs first.
//!
//! # The session thread
//!
//! Starts, renewals and listeners run on a thread of the library, the *session thread*. So the session goes on if the
//! runtime that used it first ends, or if a computation blocks that runtime for longer than the lease. Requests run on
//! the caller's runtime, over that runtime's own connection, so an uncontended lock needs no switch between threads.
//!
//! # For implementers
//!
//! - A task on the runtime that opened a connection drives it. Never renew over a connection of another runtime: take
//!   the session thread's own from [`PerRuntime`].
//! - Never block the session thread, and don't compute on it: it renews all sessions of the process.
//! - End a session's [`Lease`](crate::Lease) when the session is dropped; this also stops its keeper and tasks.

mod client;
mod id;
mod keeper;
mod kept;
mod lasting;
mod look;
mod named_place;
mod per_runtime;
mod places;
mod service;
mod single_flight;
mod starts;
mod task;

pub use client::{Answered, Client, Entered};
pub use id::new_id;
pub use keeper::{Keeper, Renewal};
pub use kept::KeptSession;
pub use lasting::in_its_runtime;
pub use named_place::NamedPlace;
pub use per_runtime::PerRuntime;
pub use places::{Asked, Expected, Leaving, Places, Releasing, Stand};
pub use service::{Looked, Service};
pub use single_flight::SingleFlight;
pub use starts::Session;
pub use task::{Task, run, spawn};

pub(crate) use keeper::RenewalOutcome;
