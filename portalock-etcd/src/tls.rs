//! TLS: the client's options for the files in the settings.

use etcd_client::ConnectOptions;
use portalock_core::BackendError;

use crate::EtcdSettings;

/// Without the feature `tls` the settings have already refused every TLS option.
#[cfg(not(feature = "tls"))]
#[allow(
    clippy::unnecessary_wraps,
    reason = "the same face as with the feature"
)]
pub(crate) fn apply(
    _settings: &EtcdSettings,
    options: ConnectOptions,
) -> Result<ConnectOptions, BackendError> {
    Ok(options)
}

/// Adds TLS to `options` if the settings or an endpoint ask for it.
#[cfg(feature = "tls")]
pub(crate) fn apply(
    settings: &EtcdSettings,
    options: ConnectOptions,
) -> Result<ConnectOptions, BackendError> {
    use etcd_client::{Certificate, Identity, TlsOptions};
    use portalock_core::settings::InvalidSetting;

    let over_tls = |endpoint: &String| endpoint.starts_with("https://");
    if settings.tls.is_none() && !settings.endpoints.iter().any(over_tls) {
        return Ok(options);
    }
    let plain = |endpoint: &String| {
        endpoint.starts_with("http://") || (settings.tls.is_none() && !over_tls(endpoint))
    };
    if settings.endpoints.iter().any(plain) {
        return Err(crate::error::misconfigured(InvalidSetting::new(
            "endpoints",
            "has one without TLS beside the TLS settings or others with it: begin all with https://",
        )));
    }
    let settings = settings.tls.clone().unwrap_or_default();
    let mut tls = TlsOptions::new();
    tls = match &settings.ca_file {
        Some(file) => tls.ca_certificate(Certificate::from_pem(read(file, "ca_file")?)),
        None => tls.with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (&settings.cert_file, &settings.key_file) {
        tls = tls.identity(Identity::from_pem(
            read(certificate, "cert_file")?,
            read(key, "key_file")?,
        ));
    }
    if let Some(name) = settings.server_name {
        tls = tls.domain_name(name);
    }
    Ok(options.with_tls(tls))
}

#[cfg(feature = "tls")]
fn read(file: &std::path::Path, field: &'static str) -> Result<Vec<u8>, BackendError> {
    std::fs::read(file).map_err(|error| {
        BackendError::new(
            portalock_core::BackendErrorKind::Misconfigured,
            format!("`{field}` can't be read: {}", file.display()),
        )
        .with_source(error)
    })
}
