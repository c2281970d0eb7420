//! [`FsBackend`]: locks by name, each a file in one directory.
//!
//! A request goes through these files, in this order:
//!
//! | file | what |
//! |---|---|
//! | `config` | the settings |
//! | `fs_backend` | the traits that the engine calls |
//! | `acquire` | one attempt, from the queue to the file |
//! | `queue` | this client's holders and waiters of a name, first come, first served |
//! | `name` | the file name of a lock |
//! | `store` | the files of the directory |
//! | `grant` | writes the token and the holder |
//! | `record` | the format of what is written |
//! | `release` | releases the file and the queue place |
//! | `breaking` | takes a lock away from its holder |
//! | `inspect` | reads holders, and removes unused files |

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
