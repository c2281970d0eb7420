//! The same locks without async, for any backend.
//!
//! If a backend needs no runtime, such as files and memory, a call runs on the calling thread: without contention it
//! consists of plain function calls, and a wait parks the thread. Calls on other backends run on a background runtime,
//! which is started at first use. Open such a backend with [`wait`], so that it uses the same runtime.
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
//! Don't use these calls in async tasks: they block the thread.

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
