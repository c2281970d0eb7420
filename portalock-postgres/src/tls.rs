//! The way to the server, with TLS or without.

use portalock_core::BackendError;

use crate::{
    PostgresSettings,
    connection::{Dialled, dialled},
};

/// Without the feature `tls`: the settings have refused whatever asks for it.
pub(crate) async fn dial(settings: &PostgresSettings) -> Result<Dialled, BackendError> {
    dialled(settings.server.connect(tokio_postgres::NoTls).await)
}
