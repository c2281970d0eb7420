//! From an address to a backend.

mod any;
mod config;
mod directory;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "fs")]
mod fs;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod scheme;

pub use any::AnyBackend;
pub use config::Config;
pub use directory::default_directory;
pub use error::OpenError;
pub use scheme::Scheme;

/// Opens the backend at `address`. The [front page](crate#addresses) lists the addresses.
///
/// It creates and opens a directory, or connects to a server, so that errors appear here and not at the first lock.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), portalock::OpenError> {
/// let backend = portalock::open("memory:").await?;
/// assert!(backend.locks.capabilities().shared);
///
/// let error = portalock::open("http://u:secret@example").await.unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "\"http\" is not a backend: write fs:DIR, redis://HOST, rediss://HOST, unix:///SOCKET, etcd://HOST,HOST or postgres://HOST/DATABASE",
/// );
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`OpenError`]. It never shows the address, which may contain a password.
///
/// # Cancel safety
///
/// Safe: nothing is held yet. If a session was started at a server, it ends when its time is over.
#[allow(
    clippy::unused_async,
    reason = "without the feature of a server nothing is awaited"
)]
pub async fn open(address: &str) -> Result<AnyBackend, OpenError> {
    let (scheme, rest) = Scheme::of(address)?;
    match scheme {
        Scheme::Memory => memory::open(rest),
        #[cfg(feature = "fs")]
        Scheme::Fs => fs::open(rest),
        #[cfg(feature = "redis")]
        Scheme::Redis => redis::open(address).await,
        #[cfg(feature = "etcd")]
        Scheme::Etcd => etcd::open(address).await,
        #[cfg(feature = "postgres")]
        Scheme::Postgres => postgres::open(address).await,
        #[allow(unreachable_patterns, reason = "with all features there is no other")]
        other => Err(not_built(other)),
    }
}

/// Opens the backend that `table` describes: the settings of a backend of kind `scheme`.
#[allow(
    clippy::unused_async,
    reason = "without the feature of a server nothing is awaited"
)]
pub(crate) async fn open_table(
    scheme: Scheme,
    table: toml::Table,
) -> Result<AnyBackend, OpenError> {
    match scheme {
        #[cfg(feature = "fs")]
        Scheme::Fs => fs::open_table(table),
        #[cfg(feature = "redis")]
        Scheme::Redis => redis::open_table(table).await,
        #[cfg(feature = "etcd")]
        Scheme::Etcd => etcd::open_table(table).await,
        #[cfg(feature = "postgres")]
        Scheme::Postgres => postgres::open_table(table).await,
        Scheme::Memory if table.is_empty() => memory::open(""),
        Scheme::Memory => Err(OpenError::settings("memory", "it has no settings")),
        #[allow(unreachable_patterns, reason = "with all features there is no other")]
        other => Err(not_built(other)),
    }
}

/// Prepares the store at `address`: creates or upgrades the schema that the backend needs. Idempotent, and safe if many
/// processes call it at once.
///
/// Only Postgres needs it, by a user who may create a schema. On other backends it does nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), portalock::OpenError> {
/// portalock::migrate("memory:").await?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`OpenError`], as [`open`].
///
/// # Cancel safety
///
/// Safe: the migration is done completely or not at all.
#[allow(
    clippy::unused_async,
    reason = "without the feature of a server nothing is awaited"
)]
pub async fn migrate(address: &str) -> Result<(), OpenError> {
    let (scheme, _) = Scheme::of(address)?;
    match scheme {
        #[cfg(feature = "postgres")]
        Scheme::Postgres => postgres::migrate(address).await,
        #[cfg(not(feature = "postgres"))]
        Scheme::Postgres => Err(not_built(scheme)),
        _ => Ok(()),
    }
}

/// The same for the backend that `table` describes.
#[allow(
    clippy::unused_async,
    reason = "without the feature of a server nothing is awaited"
)]
pub(crate) async fn migrate_table(scheme: Scheme, table: toml::Table) -> Result<(), OpenError> {
    match scheme {
        #[cfg(feature = "postgres")]
        Scheme::Postgres => postgres::migrate_table(table).await,
        #[cfg(not(feature = "postgres"))]
        Scheme::Postgres => Err(not_built(scheme)),
        _ => {
            let _ = table;
            Ok(())
        }
    }
}

fn not_built(scheme: Scheme) -> OpenError {
    OpenError::NotBuilt {
        scheme: scheme.as_str(),
        feature: scheme.as_str(),
    }
}
