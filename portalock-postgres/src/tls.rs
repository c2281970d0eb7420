//! Connects to the server, with TLS or without.

use std::path::Path;

use portalock_core::BackendError;
use tokio_postgres::Config;

use crate::dial::{Dialled, dialled};

/// Without the feature `tls` the settings have already refused every TLS option.
#[cfg(not(feature = "tls"))]
pub(crate) async fn dial(
    server: &Config,
    _ca_file: Option<&Path>,
) -> Result<Dialled, BackendError> {
    dialled(server, server.connect(tokio_postgres::NoTls).await)
}

#[cfg(feature = "tls")]
pub(crate) use with_rustls::dial;

#[cfg(feature = "tls")]
mod with_rustls {
    use std::{
        future::Future,
        io,
        pin::Pin,
        sync::Arc,
        task::{Context, Poll},
    };

    use portalock_core::BackendErrorKind;
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject},
    };
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio_postgres::{
        Socket,
        config::SslMode,
        tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
    };
    use tokio_rustls::TlsConnector;

    use super::{BackendError, Config, Dialled, Path, dialled};

    pub(crate) async fn dial(
        server: &Config,
        ca_file: Option<&Path>,
    ) -> Result<Dialled, BackendError> {
        if server.get_ssl_mode() == SslMode::Disable {
            return dialled(server, server.connect(tokio_postgres::NoTls).await);
        }
        let ca_file = ca_file.map(Path::to_owned);
        let config = tokio::task::spawn_blocking(move || configure(ca_file.as_deref()))
            .await
            .map_err(|error| misconfigured("the TLS settings could not be read", error))??;
        let rustls = Rustls(TlsConnector::from(Arc::new(config)));
        dialled(server, server.connect(rustls).await)
    }

    /// Trusts the certificate authorities in the file, or the system's.
    fn configure(ca_file: Option<&Path>) -> Result<ClientConfig, BackendError> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(file) => {
                let unreadable = |error| unreadable(file, error);
                for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
                    roots
                        .add(certificate.map_err(unreadable)?)
                        .map_err(|error| misconfigured("`ca_file` has a bad certificate", error))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| misconfigured("rustls has no protocol version", error))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }

    fn unreadable(file: &Path, error: rustls::pki_types::pem::Error) -> BackendError {
        misconfigured(
            format!(
                "`ca_file`: can't read the certificates in {}",
                file.display()
            ),
            error,
        )
    }

    fn misconfigured(
        problem: impl Into<std::borrow::Cow<'static, str>>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> BackendError {
        BackendError::new(BackendErrorKind::Misconfigured, problem).with_source(cause)
    }

    #[derive(Clone)]
    struct Rustls(TlsConnector);

    struct RustlsTo(TlsConnector, ServerName<'static>);

    /// A stream without channel binding: SCRAM checks passwords over a connection whose certificate was verified.
    struct Stream<S>(tokio_rustls::client::TlsStream<S>);

    impl MakeTlsConnect<Socket> for Rustls {
        type Stream = Stream<Socket>;
        type TlsConnect = RustlsTo;
        type Error = InvalidDnsNameError;

        fn make_tls_connect(&mut self, domain: &str) -> Result<RustlsTo, InvalidDnsNameError> {
            let name = ServerName::try_from(domain)?.to_owned();
            Ok(RustlsTo(self.0.clone(), name))
        }
    }

    impl TlsConnect<Socket> for RustlsTo {
        type Stream = Stream<Socket>;
        type Error = io::Error;
        type Future = Pin<Box<dyn Future<Output = io::Result<Stream<Socket>>> + Send>>;

        fn connect(self, socket: Socket) -> Self::Future {
            Box::pin(async move { Ok(Stream(self.0.connect(self.1, socket).await?)) })
        }
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
        fn channel_binding(&self) -> ChannelBinding {
            ChannelBinding::none()
        }
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }
}
