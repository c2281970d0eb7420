//! Real servers for tests and examples: started on a free port in a private directory, stopped when dropped.
//!
//! Everything here is synchronous and returns when the server is ready, so that it serves async tests, blocking ones and
//! examples alike; a start takes tens of milliseconds. A server that isn't installed is an error that says what to
//! install, never a silent pass.
//!
//! For a server that is not here, [`ServerProcess`] starts any [`Program`].

mod directory;
mod etcd;
mod free_port;
#[cfg(unix)]
mod pgbouncer;
#[cfg(unix)]
mod postgres;
mod process;
mod redis;
mod redis_cluster;
mod resp;
mod sentinel;

pub use etcd::{EtcdOptions, EtcdServer};
#[cfg(unix)]
pub use pgbouncer::Pooler;
#[cfg(unix)]
pub use postgres::{PostgresOptions, PostgresServer};
pub use process::{Program, ServerProcess, StartError};
pub use redis::{RedisOptions, RedisServer, ServerIdentity};
pub use redis_cluster::{RedisCluster, RedisClusterOptions, SlotMove};
pub use sentinel::{SentinelGroup, SentinelOptions};
