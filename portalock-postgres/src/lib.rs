//! Locks and semaphores in Postgres, for [portalock](portalock_core).

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod client;
mod config;
mod connection;
mod error;
mod fence;
mod keys;
mod look;
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
