//! Locks and semaphores in PostgreSQL, for [portalock](portalock_core).

mod backend;
mod client;
mod config;
mod connection;
mod error;
mod fence;
mod keys;
mod places;
mod queue;
mod record;
mod schema;
mod semaphore;
mod session;
mod tls;
mod url;

pub use backend::PostgresBackend;
pub use config::PostgresSettings;
pub use fence::Fence;
pub use schema::{migrate, schema_sql};

/// The client that this crate speaks to Postgres with.
pub use tokio_postgres;
