//! The locking API of portalock, the engine behind it, and the trait for backends. Contains no client of any service.
//!
//! ```
//! use portalock_core::{Lock, LockError, MemoryBackend};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
//! // Any backend works here; this one is in memory.
//! let lock = Lock::new(MemoryBackend::new(), "nightly-report")?;
//! let guard = lock.acquire().await?;
//! // Only one holder at a time gets here. Send the token with each write, so that the resource can refuse a former holder.
//! println!("fencing token {:?}", guard.token());
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # Using locks
//!
//! - A [`Lock`] is a name in a backend. Acquiring it gives a [`Guard`], which releases it when dropped. [`Guard::run`] stops
//!   your work if the lock is lost. With [`Guard::token`] a resource can refuse a former holder.
//! - A [`Pool`] gives permits of a [`Semaphore`]. [`SlotSemaphore`] is a semaphore on any backend.
//! - A [`LockSet`] acquires several names at once. A [`ReentrantLock`] can be acquired again by its holder. [`blocking`] has
//!   the same API without async.
//! - In an [`Election`] one of several processes leads: it runs work while it leads, steps down, and observers see who leads.
//! - A [`Policy`] sets how long a call waits and how often it tries. [`LockError`] has separate variants for contention, loss,
//!   misuse and failures of the service, and names the holder if it is known.
//! - [`Lock::inspect`] returns the holders, and [`Lock::break_holder`] takes a lock away from its holder.
//! - [`DynBackend`] selects the backend at run time, a type parameter `B: LockBackend` at compile time.
//!
//! # Writing a backend
//!
//! Implement [`LockBackend`]: three methods, one of which states what the backend guarantees ([`Capabilities`]). The engine does
//! timeouts, retries, back-off, cancellation and clean-up. A backend tells its holders of a loss with a [`Lease`]; a [`Keeper`]
//! renews leases that expire in the store. It wakes waiters through [`wakeups`]. A networked backend implements
//! [`session::Service`] and gets all of this from the session layer. Test the backend with the conformance suite of
//! `portalock-testkit`.
//!
//! # What is logged
//!
//! Spans and events go to [`tracing`](https://docs.rs/tracing). The span `acquire` has the fields `backend`, `name`, `want`
//! and `owner`. Its events are `contended` (`holder`, `waits`), `waiting`, `acquired` (`waited`, `attempts`, `token`),
//! `timed out` and `the lock service failed` (`error`), all at debug level. Outside the span, `released` is a debug event and `lost` a
//! warning, both with `name` and `owner`.
//!
//! # Features
//!
//! - `metrics`: waits, holds, losses and renewals go to the `metrics` facade. See the module `metrics`.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod attempt;
mod backend;
mod background;
pub mod blocking;
mod capabilities;
pub mod clock;
mod election;
mod engine;
mod error;
mod guard;
mod holder;
mod lease;
mod lock;
mod lock_set;
mod memory;
#[cfg(feature = "metrics")]
pub mod metrics;
mod name;
mod own;
pub mod policy;
mod pool;
mod random;
mod reentrant;
mod request;
mod semaphore;
pub mod session;
pub mod settings;
mod slots;
mod token;
mod wakeups;
mod watch;

pub use attempt::{Attempt, Claim, ClaimKind, Contention, Grant, Inspection, Marked, Released};
pub use backend::{DynBackend, LockBackend};
pub use capabilities::{Capabilities, CrashRelease, Fairness, Inspect, LossNotice, Scope, Tokens};
pub use election::{Election, Leadership, Leading, Observer, Term};
pub use engine::{
    breaking::Broken,
    reaper::{Unfinished, shutdown},
};
pub use error::{BackendError, BackendErrorKind, LockError};
pub use guard::{Guard, PermitGuard};
pub use holder::Holder;
pub use lease::{Lease, Loss, LostSignal};
pub use lock::Lock;
pub use lock_set::{LockSet, LockSetGuard};
pub use memory::MemoryBackend;
pub use name::{InvalidName, LockName};
pub use policy::Policy;
pub use pool::Pool;
pub use reentrant::{ReentrantGuard, ReentrantLock};
pub use request::{
    InvalidOwner, InvalidPermits, LockRequest, Mode, OwnerId, Patience, PermitRequest, Permits,
    Request,
};
pub use semaphore::{DynSemaphore, Semaphore};
pub use session::{Keeper, Renewal};
pub use slots::SlotSemaphore;
pub use token::FencingToken;
pub use wakeups::{Sleeper, Wake, WakeSender, Wakeups, wakeups};
pub use watch::{HolderSender, HolderWatch, holder_watch};
