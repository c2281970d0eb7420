//! Requests that can't work fail with a typed error, within the deadline, and the error says what to do.

use std::{error::Error, time::Duration};

use portalock_core::{
    BackendError, BackendErrorKind, Lock, LockBackend, LockError, LockName, Mode, Patience,
    Released, Request, clock::Instant,
};
use portalock_etcd::{EtcdBackend, EtcdSettings};

#[cfg(feature = "tls")]
use {
    portalock_etcd::EtcdTls,
    portalock_testkit::servers::{EtcdOptions, EtcdServer, ServerIdentity},
    std::path::{Path, PathBuf},
};

#[cfg(feature = "tls")]
use crate::support::patient;
use crate::support::{Server, with_users};

async fn refused(settings: EtcdSettings) -> BackendError {
    let settings = settings
        .with_request_timeout(Duration::from_secs(2))
        .unwrap();
    let start = Instant::now();
    let error = EtcdBackend::with_settings(settings).await.unwrap_err();
    // Three requests at most, and some time for a busy machine.
    assert!(start.elapsed() < Duration::from_secs(30), "{error}");
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    println!("{text}");
    assert!(!text.contains("hunter2"), "{text}");
    error
}

/// The address of a member that is down.
fn nobody() -> String {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn nobody_at_the_address() {
    let error = refused(EtcdSettings::new([nobody()]).unwrap()).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
}

#[tokio::test]
async fn somebody_silent_at_the_address() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = refused(EtcdSettings::new([address]).unwrap()).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
}

#[tokio::test]
async fn something_else_at_the_address() {
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        loop {
            let (mut stream, _) = other.accept().await.unwrap();
            let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
            drop(stream.write_all(answer).await);
        }
    });
    let error = refused(EtcdSettings::new([address]).unwrap()).await;
    assert_eq!(error.kind(), BackendErrorKind::Unavailable);
}

#[tokio::test]
async fn a_user_where_authentication_is_off() {
    let server = Server::start();
    let error = refused(server.settings().with_user("billing", "hunter2")).await;
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
}

#[tokio::test]
async fn users_and_roles() {
    let server = Server::with_cheap_passwords();
    let root = with_users(&server).await;

    let error = refused(server.settings()).await;
    assert_eq!(error.kind(), BackendErrorKind::PermissionDenied, "no user");
    let error = refused(server.settings().with_user("billing", "hunter3")).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::PermissionDenied,
        "a wrong password"
    );
    let lasting = server.settings().with_lease_time(Duration::from_secs(600));
    let error = refused(lasting.unwrap().with_user("billing", "hunter2")).await;
    assert_eq!(
        error.kind(),
        BackendErrorKind::PermissionDenied,
        "another prefix"
    );
    crate::support::until("the lease of the failed start is revoked", async || {
        let leases = root.lease_client().leases().await.unwrap();
        leases.leases().is_empty()
    })
    .await;

    let settings = server
        .settings()
        .with_user("billing", "hunter2")
        .with_prefix("billing")
        .unwrap();
    let client = EtcdBackend::with_settings(settings.clone()).await.unwrap();
    let lock = Lock::new(client.clone(), "a").unwrap();
    let guard = lock.acquire().await.unwrap();
    // Any change of users makes all tokens invalid.
    let mut auth = root.auth_client();
    auth.role_add("another").await.unwrap();
    guard.release().await.unwrap();
    let guard = lock.acquire().await.unwrap();
    let other = Lock::new(EtcdBackend::with_settings(settings).await.unwrap(), "a").unwrap();
    let waiting = tokio::spawn(async move { other.acquire_with(&crate::support::patient()).await });
    crate::support::until("the other waits", async || {
        lock.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();

    auth.user_revoke_role("billing", "billing").await.unwrap();
    let error = lock.acquire().await.unwrap_err();
    let LockError::Backend { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), BackendErrorKind::PermissionDenied);
    let name = LockName::new("a").unwrap();
    let request = Request::new(name, Mode::Exclusive, Patience::Queue);
    client.try_acquire(&request).await.unwrap_err();
    // Nothing is left that would be released, which is not permitted either.
    assert_eq!(client.release(&request).await.unwrap(), Released::NotHeld);
}

/// A server with a certificate of its own, which it signed itself.
#[cfg(feature = "tls")]
fn with_own_certificate(dir: &Path) -> (EtcdServer, PathBuf) {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, signed.cert.pem()).unwrap();
    std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let identity = ServerIdentity {
        authority: certificate.clone(),
        certificate: certificate.clone(),
        key,
    };
    let server = EtcdOptions::new().tls(identity).start().unwrap();
    (server, certificate)
}

/// The settings of a client that trusts this authority and no other.
#[cfg(feature = "tls")]
fn trusting(authority: &Path, endpoints: &[String]) -> EtcdSettings {
    let mut tls = EtcdTls::default();
    tls.ca_file = Some(authority.to_owned());
    EtcdSettings::new(endpoints).unwrap().with_tls(tls).unwrap()
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn certificates_that_were_renewed_are_read_again() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (server, certificate) = with_own_certificate(dirs[0].path());
    let trusted = dirs[1].path().join("trusted.pem");
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&trusted, other.cert.pem()).unwrap();
    let client = EtcdBackend::new(trusting(&trusted, &server.endpoints())).unwrap();
    let lock = Lock::new(client, "a").unwrap();
    let error = lock.acquire_with(&patient()).await.unwrap_err();
    assert!(!error.is_retryable(), "{error:?}");
    std::fs::copy(certificate, trusted).unwrap();
    drop(lock.acquire_with(&patient()).await.unwrap());
}

/// As on a network file system whose server does not answer.
#[cfg(feature = "tls")]
#[tokio::test]
async fn a_file_that_can_not_be_read_for_now_costs_no_other_session_its_locks() {
    let server = Server::start();
    let lease = Duration::from_secs(3);
    let holder = server.client_with(|settings| settings.with_lease_time(lease).unwrap());
    let lock = Lock::new(holder.await, "held").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&file, signed.cert.pem()).unwrap();
    let client = EtcdBackend::new(trusting(&file, &[format!("https://{}", nobody())])).unwrap();
    std::fs::remove_file(&file).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&file).status();
    assert!(made.unwrap().success());
    let waits = Lock::new(client, "waits").unwrap();
    // The session's start waits for somebody who writes to the file.
    let _waiting = tokio::spawn(async move { waits.acquire_with(&patient()).await.map(drop) });
    let lost = tokio::time::timeout(lease * 3, guard.lost()).await;
    // Now its reads end, and the next ones fail.
    let writer = std::fs::File::create(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    drop(writer);
    assert!(lost.is_err(), "{lost:?}");
    guard.release().await.unwrap();
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_member_whose_certificate_is_not_trusted_is_passed_over() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (other, _) = with_own_certificate(dirs[0].path());
    let (server, certificate) = with_own_certificate(dirs[1].path());
    let endpoints = [other.endpoints(), server.endpoints()].concat();
    let settings = trusting(&certificate, &endpoints).with_request_timeout(Duration::from_secs(60));
    let client = EtcdBackend::with_settings(settings.unwrap()).await.unwrap();
    let guard = Lock::new(client, "a").unwrap().acquire().await.unwrap();
    guard.release().await.unwrap();
}

/// The member that is down may have a good certificate.
#[cfg(feature = "tls")]
#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_no_refusal_while_another_member_is_down() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (other, _) = with_own_certificate(dirs[0].path());
    let trusted = dirs[1].path().join("trusted.pem");
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&trusted, signed.cert.pem()).unwrap();
    let mut endpoints = [format!("https://{}", nobody()), other.endpoints().remove(0)];
    for _ in 0..2 {
        endpoints.reverse();
        let error = refused(trusting(&trusted, &endpoints)).await;
        assert_eq!(error.kind(), BackendErrorKind::Unavailable, "{error:?}");
    }
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_trusts_the_authority_it_is_given_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (server, certificate) = with_own_certificate(dir.path());
    let endpoints = server.endpoints();
    let client = EtcdBackend::with_settings(trusting(&certificate, &endpoints))
        .await
        .unwrap();
    let guard = Lock::new(client, "a").unwrap().acquire().await.unwrap();
    guard.release().await.unwrap();

    let url = format!(
        "etcds://127.0.0.1:{}?ca_file={}",
        server.port(0),
        certificate.display()
    );
    EtcdBackend::connect(url).await.unwrap();

    let error = refused(EtcdSettings::new(&endpoints).unwrap()).await;
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
    let missing = trusting(&dir.path().join("missing.pem"), &endpoints);
    let error = EtcdBackend::with_settings(missing).await.unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Misconfigured, "{error:?}");
    let plain = EtcdSettings::new([format!("127.0.0.1:{}", server.port(0))]).unwrap();
    assert_eq!(refused(plain).await.kind(), BackendErrorKind::Unavailable);
}
