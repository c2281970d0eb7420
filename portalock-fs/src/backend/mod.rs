//! [`FsBackend`]: locks by name, each a file in one directory.
//!
//! A request goes through these files, in this order:
//!
//! | file | what |
//! |---|---|
//! | `config` | the settings |
//! | `fs_backend` | what the engine sees |
//! | `acquire` | one attempt, from the queue to the file |
//! | `queue` | who holds a name here and who waits, first come, first served |
//! | `name` | a lock's name as a file's name |
//! | `store` | the files of the directory |
//! | `grant` | the token, and who holds, written down |
//! | `record` | how that is written |
//! | `release` | back again |
//! | `breaking` | a lock taken away from its holder |
//! | `inspect` | looking at locks, and removing the files that nobody uses |

mod acquire;
mod breaking;
mod config;
mod fs_backend;
mod grant;
mod inspect;
mod name;
mod queue;
mod record;
mod release;
mod store;

pub use config::{Calls, FsSettings, Watch};
pub use fs_backend::FsBackend;
