//! `etcd://HOST,HOST` and `etcds:`, an etcd cluster.

use portalock_etcd::{EtcdBackend, EtcdSettings};
use serde::Deserialize;

use crate::{AnyBackend, OpenError};

pub(crate) async fn open(address: &str) -> Result<AnyBackend, OpenError> {
    let settings = EtcdSettings::from_url(address)
        .map_err(|error| OpenError::settings("etcd", error.to_string()))?;
    connect(settings).await
}

pub(crate) async fn open_table(table: toml::Table) -> Result<AnyBackend, OpenError> {
    let settings = EtcdSettings::deserialize(table)
        .map_err(|error| OpenError::settings("etcd", error.message()))?;
    connect(settings).await
}

async fn connect(settings: EtcdSettings) -> Result<AnyBackend, OpenError> {
    // Boxed, because a large future would make the futures of all callers large.
    let backend = Box::pin(EtcdBackend::with_settings(settings)).await?;
    Ok(AnyBackend::new(backend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrong_is_told_without_the_password() {
        for (address, part) in [
            ("etcd://u:hunter2@", "`endpoints`"),
            ("etcd://hunter2@h", "`password`"),
            ("etcd://u:hunter2@h?lease_time=5", "`lease_time`"),
        ] {
            let error = open(address).await.unwrap_err().to_string();
            assert!(
                error.starts_with("etcd: ") && error.contains(part),
                "{address}: {error}"
            );
            assert!(!error.contains("hunter2"), "{address}: {error}");
        }
        let table = "endpoints = ['h']\nuser = 'u'".parse().unwrap();
        let error = open_table(table).await.unwrap_err().to_string();
        assert!(error.contains("`password`"), "{error}");
    }
}
