//! `postgres://HOST/DATABASE`, a PostgreSQL database.

use portalock_postgres::{PostgresBackend, PostgresSettings};
use serde::Deserialize;

use crate::{AnyBackend, OpenError};

pub(crate) async fn open(address: &str) -> Result<AnyBackend, OpenError> {
    connect(of_address(address)?).await
}

pub(crate) async fn open_table(table: toml::Table) -> Result<AnyBackend, OpenError> {
    connect(of_table(table)?).await
}

pub(crate) async fn migrate(address: &str) -> Result<(), OpenError> {
    Ok(portalock_postgres::migrate(&of_address(address)?).await?)
}

pub(crate) async fn migrate_table(table: toml::Table) -> Result<(), OpenError> {
    Ok(portalock_postgres::migrate(&of_table(table)?).await?)
}

fn of_address(address: &str) -> Result<PostgresSettings, OpenError> {
    PostgresSettings::from_url(address)
        .map_err(|error| OpenError::settings("postgres", error.to_string()))
}

fn of_table(table: toml::Table) -> Result<PostgresSettings, OpenError> {
    PostgresSettings::deserialize(table)
        .map_err(|error| OpenError::settings("postgres", error.message()))
}

async fn connect(settings: PostgresSettings) -> Result<AnyBackend, OpenError> {
    // Boxed, because a large future would make the futures of all callers large.
    let backend = Box::pin(PostgresBackend::with_settings(settings)).await?;
    Ok(AnyBackend::new(backend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrong_is_told_without_the_password() {
        for address in [
            "postgres://u:hunter2@h:port/d",
            "postgres://u:hunter2@h/d?lease_time=5",
            "postgres://u:hunter2@h/d?nonsense=1",
        ] {
            let error = open(address).await.unwrap_err().to_string();
            assert!(error.starts_with("postgres: "), "{address}: {error}");
            assert!(!error.contains("hunter2"), "{address}: {error}");
        }
        let table = "url = 'postgres://u:hunter2@h/d'\nlease_time = '1ms'"
            .parse()
            .unwrap();
        let error = open_table(table).await.unwrap_err().to_string();
        assert!(error.contains("`lease_time`"), "{error}");
    }
}
