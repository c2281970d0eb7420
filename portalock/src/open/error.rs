//! Why a backend could not be opened.

use std::{error::Error, io, path::PathBuf};

use portalock_core::BackendError;

/// Why a backend could not be opened. It never shows an address, which may contain a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The text has no scheme, so it is not an address.
    #[error("the address has no scheme{hint}")]
    NoScheme {
        /// What to write instead.
        hint: &'static str,
    },
    /// The address has an unknown scheme.
    #[error(
        "{scheme:?} is not a backend: write fs:DIR, redis://HOST, rediss://HOST, unix:///SOCKET, etcd://HOST,HOST or postgres://HOST/DATABASE"
    )]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// The backend is not in this build.
    #[error("this build has no {scheme} backend: build it with the feature `{feature}`")]
    NotBuilt {
        /// The requested name.
        scheme: &'static str,
        /// The feature that adds it.
        feature: &'static str,
    },
    /// The address or the settings are not valid.
    #[error("{scheme}: {problem}")]
    Settings {
        /// The kind of backend.
        scheme: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The configuration has no backend of this name.
    #[error("no backend is called {key:?}: {known}")]
    UnknownKey {
        /// The requested name.
        key: String,
        /// The existing names, for people.
        known: String,
    },
    /// The configuration is not TOML, or not valid.
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
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The backend failed to open: a directory can't be created, or a server does not answer.
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
