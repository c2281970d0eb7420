//! One locking API over any backend: files on one machine, Redis or etcd across machines, or a store of your own.
//!
//! ```
//! use portalock_core::{Lock, LockError, MemoryBackend};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
//! // Any backend will do; this one lives in memory.
//! let lock = Lock::new(MemoryBackend::new(), "nightly-report")?;
//! let guard = lock.acquire().await?;
//! // Alone in here. The token goes along with every write that must not come from a holder of old.
//! println!("fencing token {:?}", guard.token());
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # Using locks
//!
//! - [`Lock`] is a name in a backend; acquiring it gives a [`Guard`], which frees it when dropped. [`Guard::run`] stops
//!   your work if the lock is lost, [`Guard::token`] lets a resource refuse a holder of old.
//! - [`Pool`] shares out the permits of a [`Semaphore`]; [`SlotSemaphore`] makes one of any backend.
//! - [`LockSet`] takes several names at once, [`ReentrantLock`] counts, [`blocking`] is all of it without async.
//! - [`Election`] lets one of many lead: it campaigns, works while it leads, hands over, and tells others who leads.
//! - [`Policy`] says how long to wait and how often to look. [`LockError`] tells contention, loss, misuse and the
//!   service's own failures apart, and names the holder where that can be known.
//! - [`Lock::inspect`] tells who holds, and [`Lock::break_holder`] takes a lock away from its holder.
//! - [`DynBackend`] chooses the backend at run time, a type parameter `B: LockBackend` at compile time.
//!
//! # Writing a backend
//!
//! Implement [`LockBackend`]: three methods, and a statement of what is guaranteed ([`Capabilities`]). The engine brings
//! timeouts, retries, back-off, cancellation and clean-up. Tell a holder that it lost by a [`Lease`], renewed by a
//! [`Keeper`] where the store's own leases run out; wake those who wait through [`wakeups`]. Then run the conformance suite
//! of `portalock-testkit` on it.
//!
//! # What is logged
//!
//! Spans and events go to [`tracing`](https://docs.rs/tracing): the span `acquire` has the fields `name`, `want` and
//! `owner`; in it come the events `contended` (`holder`, `waits`), `waiting`, `acquired` (`waited`, `attempts`, `token`),
//! `timed out` and `the lock service failed` (`error`), all at debug level. `released` is a debug event, `lost` a warning,
//! both with `name` and `owner`.
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
pub mod policy;
mod pool;
mod reentrant;
mod request;
mod semaphore;
pub mod session;
pub mod settings;
mod slots;
mod token;
mod wakeups;
mod watch;

pub use attempt::{Attempt, Claim, ClaimKind, Contention, Grant, Inspection, Released};
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
pub use lock_set::{LockSet, LockSetGuard, acquire_all};
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
pub use wakeups::{Wake, WakeSender, Wakeups, wakeups};
pub use watch::{HolderSender, HolderWatch, holder_watch};
