//! The same locks without async, for any backend.
//!
//! A backend that needs no runtime, such as files and memory, is driven on the calling thread: an uncontended call is
//! plain function calls, and a wait parks the thread. Calls on other backends run on one runtime in the background that
//! is started at first use; open such a backend with [`wait`], so that its session lives there too.
//!
//! ```
//! use portalock_core::{blocking::Lock, LockError, MemoryBackend};
//!
//! let lock = Lock::new(MemoryBackend::new(), "deploy")?;
//! let guard = lock.acquire()?;
//! assert!(lock.try_acquire().is_err());
//! guard.release()?;
//! # Ok::<(), LockError>(())
//! ```
//!
//! As with every blocking call, keep them out of async tasks: they hold up the thread they run on.

mod drive;
mod election;
mod guard;
mod lock;
mod lock_set;
mod pool;
mod reentrant;

pub use drive::wait;
pub use election::{Election, Leadership, Observer};
pub use guard::{Guard, PermitGuard};
pub use lock::Lock;
pub use lock_set::{LockSet, LockSetGuard};
pub use pool::Pool;
pub use reentrant::{ReentrantGuard, ReentrantLock};
