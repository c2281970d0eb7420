//! Maps Postgres's failures to the error kinds that programs match: by SQLSTATE, never by the text of a message.

use std::{error::Error as _, io};

use portalock_core::{BackendError, BackendErrorKind, settings::InvalidSetting};
use tokio_postgres::{
    Error,
    error::{Severity, SqlState},
};

/// The meaning of a failed statement. `doing` names the operation, such as "acquire". The source is kept; it contains
/// no password.
pub(crate) fn failed(doing: &str, error: Error) -> BackendError {
    let (kind, advice) = classify(&error);
    BackendError::new(kind, format!("can't {doing}: {advice}")).with_source(error)
}

/// As [`failed`], for a connection that could not be opened. If it failed without an answer from the server and not
/// because of the network, the settings are wrong.
pub(crate) fn not_connected(connecting: &str, error: Error) -> BackendError {
    let is_network = error
        .source()
        .is_some_and(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_network));
    if error.code().is_some() || is_network || error.is_closed() {
        return failed(connecting, error);
    }
    BackendError::new(
        BackendErrorKind::Misconfigured,
        format!(
            "can't {connecting}: check user, password and `sslmode`, whether the server has TLS, and its certificate"
        ),
    )
    .with_source(error)
}

fn is_network(error: &io::Error) -> bool {
    // A refused certificate appears as this kind.
    error.kind() != io::ErrorKind::InvalidData
}

/// Whether the connection is no longer usable. So it is after each failure that is no answer of the server.
pub(crate) fn ends_connection(error: &Error) -> bool {
    error.code().is_none_or(|code| {
        [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::IDLE_SESSION_TIMEOUT,
            // A statement was prepared for functions that have since been replaced.
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::INVALID_SQL_STATEMENT_NAME,
        ]
        .contains(code)
    })
}

/// Whether the answer does not fit a request for a text. A server that can't answer such a request ends the connection.
pub(crate) fn is_of_another_request(error: &Error) -> bool {
    match error.as_db_error() {
        Some(answer) => answer.parsed_severity() == Some(Severity::Error),
        None => !error.is_closed() && !is_io(error),
    }
}

fn is_io(error: &Error) -> bool {
    error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .is_some()
}

fn classify(error: &Error) -> (BackendErrorKind, &'static str) {
    use BackendErrorKind as Kind;
    let Some(code) = error.code() else {
        return NO_ANSWER;
    };
    match code.code() {
        "53300" => (
            Kind::Exhausted,
            "the server has no connection left: raise `max_connections`, or have fewer clients",
        ),
        "53100" => (Kind::OutOfSpace, "the server's disk is full"),
        "25006" => (
            Kind::ReadOnly,
            "the server is a standby, or its transactions are read-only: connect to the primary",
        ),
        "28000" | "28P01" => (
            Kind::PermissionDenied,
            "the server refused the user: check user and password, `pg_hba.conf`, and whether it wants TLS",
        ),
        "42501" => (
            Kind::PermissionDenied,
            "the user lacks a privilege: USAGE on the schema portalock for locks, CREATE on the database to migrate, or ownership of the schema to upgrade it",
        ),
        "3D000" => (Kind::NotFound, "there is no such database"),
        "3F000" | "42883" | "42P01" => NO_SCHEMA,
        "57014" | "55P03" | "25P03" => (
            Kind::Unavailable,
            "the server did not carry it out in time, or somebody cancelled it",
        ),
        "40001" | "40P01" => (
            Kind::Unavailable,
            "another transaction was in the way: it may be tried again",
        ),
        // A statement with that name already exists: the same server process has served another client before.
        "42P05" => (Kind::Unsupported, POOLED),
        "0A000" | "26000" => (
            Kind::Unavailable,
            "the schema was changed meanwhile: it may be tried again",
        ),
        "XX001" | "XX002" => (Kind::Corrupt, "the server says that its data is damaged"),
        code => match &code[..2] {
            "08" | "57" => NO_ANSWER,
            "53" => (Kind::Exhausted, "the server lacks resources"),
            "54" | "58" => (Kind::Exhausted, "the server met a limit of its system"),
            _ => (Kind::Other, "see the cause"),
        },
    }
}

const NO_ANSWER: (BackendErrorKind, &str) = (
    BackendErrorKind::Unavailable,
    "the server did not answer, or the connection broke",
);
const NO_SCHEMA: (BackendErrorKind, &str) = (
    BackendErrorKind::NotFound,
    "the schema portalock is not in this database: call `portalock::migrate` once, or run `with_lock migrate`",
);

/// Whether another of several servers may begin a session after this error, for example because the disk of a former primary is full.
/// Wrong settings, and a database without the schema, are the same at all of them.
pub(crate) fn is_of_one_server(error: &BackendError) -> bool {
    use BackendErrorKind as Kind;
    !matches!(
        error.kind(),
        Kind::Misconfigured | Kind::Unsupported | Kind::NotFound | Kind::PermissionDenied
    )
}

/// The server did not answer within the request timeout.
pub(crate) fn timed_out(doing: &str) -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("can't {doing}: the server did not answer in time"),
    )
}

/// The schema's version differs from this crate's.
pub(crate) fn wrong_version(found: i32, needed: i32) -> BackendError {
    let advice = if found < needed {
        "call `portalock::migrate` to upgrade it, or run `with_lock migrate`"
    } else {
        "it belongs to a later portalock-postgres: update this program"
    };
    BackendError::new(
        BackendErrorKind::Misconfigured,
        format!(
            "the schema portalock has version {found}, and version {needed} is needed: {advice}"
        ),
    )
}

/// One client is connected to several server processes.
pub(crate) fn pooled() -> BackendError {
    BackendError::new(BackendErrorKind::Unsupported, POOLED)
}

pub(crate) const POOLED: &str = "a pooler gives each transaction another server process, and grants can't be heard through it: give the \
    server's own address, or a pooler's in session mode";

/// Settings that can't be used to connect.
pub(crate) fn misconfigured(error: InvalidSetting) -> BackendError {
    BackendError::new(
        BackendErrorKind::Misconfigured,
        "the settings for Postgres are not valid",
    )
    .with_source(error)
}
