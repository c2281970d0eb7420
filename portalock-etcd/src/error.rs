//! Maps etcd's failures to the error kinds that programs match.

use std::{error::Error as _, io, iter};

use etcd_client::Error;
use portalock_core::{BackendError, BackendErrorKind, settings::InvalidSetting};
use tonic::{Code, Status};

/// The meaning of a failed call to etcd. `doing` names the operation, such as "take a place in the queue".
///
/// The codes are those of etcd's `api/v3rpc/rpctypes/error.go`. If one code has several meanings, the text gives what
/// they have in common. Messages differ between releases, so they are kept as the source and never compared.
pub(crate) fn backend_error(error: Error, doing: &'static str) -> BackendError {
    let (kind, advice) = match &error {
        Error::GRpcStatus(status) if is_invalid_data(status) => (
            BackendErrorKind::Misconfigured,
            "what answers speaks no TLS, or shows a certificate that is not trusted: check `ca_file` and `server_name`",
        ),
        Error::GRpcStatus(status) if status.source().is_none() => of_code(status.code()),
        // Not an answer of etcd: nobody could be reached, or the connection or the stream was reset, for example by a
        // proxy. Then etcd may have executed the request.
        Error::GRpcStatus(_)
        | Error::TransportError(_)
        | Error::IoError(_)
        | Error::Internal(_) => (
            BackendErrorKind::Unavailable,
            "check that etcd runs at the endpoints, that they are its client URLs, and whether they want TLS",
        ),
        Error::WatchError(_) | Error::LeaseKeepAliveError(_) => {
            (BackendErrorKind::Unavailable, "the stream to etcd ended")
        }
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::EndpointError(_) => (
            BackendErrorKind::Misconfigured,
            "check the endpoints and the TLS settings",
        ),
        _ => (BackendErrorKind::Other, "see the cause"),
    };
    BackendError::new(kind, format!("can't {doing}: {advice}")).with_source(error)
}

/// Whether the connection failed because of invalid data. A refused certificate appears in this form.
fn is_invalid_data(status: &Status) -> bool {
    iter::successors(status.source(), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::InvalidData)
}

const fn of_code(code: Code) -> (BackendErrorKind, &'static str) {
    use BackendErrorKind as Kind;
    match code {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => (
            Kind::Unavailable,
            "etcd did not answer, or has no majority or no leader; check its members",
        ),
        Code::NotFound => (Kind::SessionEnded, "the lease has ended"),
        Code::ResourceExhausted => (Kind::Exhausted, "etcd has too much to do"),
        // etcd answers InvalidArgument for a wrong password, for a missing user where one is needed, and for a token
        // that is older than the last change of its users. Nothing else in this crate's requests can be invalid.
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument => (
            Kind::PermissionDenied,
            "check user and password, and that its role may read and write the prefix",
        ),
        Code::FailedPrecondition => (
            Kind::Misconfigured,
            "a user is set, but etcd's authentication is not enabled: leave the user out or enable it",
        ),
        Code::DataLoss => (Kind::Corrupt, "etcd says that its data is damaged"),
        Code::Unimplemented => (
            Kind::Unsupported,
            "what answers is no etcd of version 3.4 or later",
        ),
        Code::Unknown | Code::Internal => (
            Kind::Unavailable,
            "the connection broke; check that the endpoints are etcd's client URLs and whether they want TLS",
        ),
        _ => (Kind::Other, "see the cause"),
    }
}

/// etcd did not answer within the request timeout.
pub(crate) fn timed_out(doing: &'static str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("can't {doing}: etcd did not answer in time; check its members and the endpoints"),
    )
}

/// Settings that can't be used to connect.
pub(crate) fn misconfigured(error: InvalidSetting) -> BackendError {
    BackendError::new(
        BackendErrorKind::Misconfigured,
        "the settings for etcd are not valid",
    )
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_stream_that_was_reset_is_no_refusal() {
        let kind = |status| backend_error(Error::GRpcStatus(status), "test").kind();
        for code in [Code::ResourceExhausted, Code::PermissionDenied] {
            assert_ne!(kind(Status::new(code, "")), BackendErrorKind::Unavailable);
            let mut reset = Status::new(code, "");
            reset.set_source(Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
            assert_eq!(kind(reset), BackendErrorKind::Unavailable);
        }
    }
}
