//! Why a backend could not be opened.

use std::{error::Error, io, path::PathBuf};

use portalock_core::BackendError;

/// Why a backend could not be opened. It never shows an address, which may hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The text has no scheme, so it is no address.
    #[error("the address has no scheme{hint}")]
    NoScheme {
        /// What to write instead.
        hint: &'static str,
    },
    /// The address begins with a scheme that nobody knows.
    #[error(
        "{scheme:?} is no backend: write fs:DIR, redis://HOST, rediss://HOST, unix:///SOCKET, etcd://HOST,HOST or postgres://HOST/DATABASE"
    )]
    UnknownScheme {
        /// What it begins with.
        scheme: String,
    },
    /// The backend is there, but not in this build.
    #[error("this build has no {scheme} backend: build it with the feature `{feature}`")]
    NotBuilt {
        /// What was asked for.
        scheme: &'static str,
        /// The feature that brings it.
        feature: &'static str,
    },
    /// The kind of backend is known, and what is said of it makes no sense.
    #[error("{scheme}: {problem}")]
    Settings {
        /// Which kind.
        scheme: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The configuration has no backend of this name.
    #[error("no backend is called {key:?}: {known}")]
    UnknownKey {
        /// What was asked for.
        key: String,
        /// Which there are, for people.
        known: String,
    },
    /// The configuration is no TOML, or makes no sense.
    #[error("{place}: {problem}")]
    Config {
        /// The file, and the line or the backend in it.
        place: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The configuration file could not be read.
    #[error("can't read {}", .path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The backend's own set-up failed: a directory can't be made, a server does not answer.
    #[error(transparent)]
    Backend(Box<dyn Error + Send + Sync>),
}

impl OpenError {
    pub(crate) fn settings(scheme: &'static str, problem: impl Into<String>) -> Self {
        Self::Settings {
            scheme,
            problem: problem.into(),
        }
    }
}

impl From<BackendError> for OpenError {
    fn from(error: BackendError) -> Self {
        Self::Backend(error.into())
    }
}
