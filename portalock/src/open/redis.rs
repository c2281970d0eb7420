//! `redis://HOST` and its relatives, a Redis or Valkey server.

use std::error::Error;

use portalock_redis::{InvalidRedisSettings, RedisBackend, RedisSettings};
use serde::Deserialize;

use crate::{AnyBackend, OpenError};

pub(crate) async fn open(address: &str) -> Result<AnyBackend, OpenError> {
    connect(RedisSettings::new(address).map_err(|error| invalid(&error))?).await
}

pub(crate) async fn open_table(table: toml::Table) -> Result<AnyBackend, OpenError> {
    let settings = RedisSettings::deserialize(table)
        .map_err(|error| OpenError::settings("redis", error.message()))?;
    connect(settings).await
}

async fn connect(settings: RedisSettings) -> Result<AnyBackend, OpenError> {
    // Boxed, because a large future would make the futures of all callers large.
    let backend = Box::pin(RedisBackend::with_settings(settings)).await?;
    Ok(AnyBackend::new(backend))
}

/// The problem, without the prefix.
fn invalid(error: &InvalidRedisSettings) -> OpenError {
    let problem = error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string);
    OpenError::settings("redis", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrong_is_told_without_the_password() {
        for address in ["redis://u:hunter2@", "redis:hunter2", "unix:?pass=hunter2"] {
            let error = open(address).await.unwrap_err().to_string();
            assert!(error.starts_with("redis: "), "{address}: {error}");
            assert!(!error.contains("hunter2"), "{address}: {error}");
        }
        let table = "url = 'redis://h'\nsession_ttl = '1ms'".parse().unwrap();
        let error = open_table(table).await.unwrap_err().to_string();
        assert!(error.contains("`session_ttl`"), "{error}");
    }
}
