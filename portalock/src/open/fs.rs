//! `fs:DIR`, locks on files.

use std::path::PathBuf;

use portalock_fs::{FsBackend, FsSettings};
use serde::Deserialize;
use toml::{Table, Value};

use crate::{AnyBackend, OpenError, Scheme, default_directory};

pub(crate) fn open(rest: &str) -> Result<AnyBackend, OpenError> {
    open_settings(&FsSettings::new(directory(rest)?))
}

pub(crate) fn open_table(table: Table) -> Result<AnyBackend, OpenError> {
    open_settings(&settings(table)?)
}

/// The directory of the locks at `address`; `None` if it has another scheme.
pub(crate) fn directory_of(address: &str) -> Result<Option<PathBuf>, OpenError> {
    match Scheme::of(address)? {
        (Scheme::Fs, rest) => directory(rest).map(Some),
        _ => Ok(None),
    }
}

/// The directory in a table.
pub(crate) fn directory_in(table: Table) -> Result<PathBuf, OpenError> {
    Ok(settings(table)?.directory().to_owned())
}

/// Reads settings, and expands a tilde as in an address. Otherwise the table and the address would name two directories,
/// whose locks don't exclude each other.
fn settings(mut table: Table) -> Result<FsSettings, OpenError> {
    if let Some(Value::String(path)) = table.get("directory")
        && let Some(path) = below_home(path)?
    {
        let path = Value::try_from(path)
            .map_err(|error| OpenError::settings("fs", format!("`directory`: {error}")))?;
        table.insert("directory".to_owned(), path);
    }
    FsSettings::deserialize(table).map_err(|error| OpenError::settings("fs", error.message()))
}

fn open_settings(settings: &FsSettings) -> Result<AnyBackend, OpenError> {
    let backend =
        FsBackend::with_settings(settings).map_err(|error| OpenError::Backend(error.into()))?;
    Ok(AnyBackend::of_locks(backend))
}

/// The directory in `rest` of an address. Nothing is decoded, so that any path can be used unchanged.
fn directory(rest: &str) -> Result<PathBuf, OpenError> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        // `fs:///path`: the host between the slashes is empty.
        Some(path) if path.starts_with('/') => path,
        Some(_) => {
            return Err(OpenError::settings(
                "fs",
                "it has a host: write fs:DIR or fs:///DIR",
            ));
        }
    };
    if path.is_empty() {
        return default_directory()
            .ok_or_else(|| OpenError::settings("fs", "you have no home directory: write fs:DIR"));
    }
    Ok(below_home(path)?.unwrap_or_else(|| path.into()))
}

/// The path that begins with a tilde, which neither a shell expands after `fs:` nor TOML. `None` for another path.
fn below_home(path: &str) -> Result<Option<PathBuf>, OpenError> {
    if let Some(below) = path.strip_prefix("~/") {
        let home = std::env::home_dir()
            .ok_or_else(|| OpenError::settings("fs", "you have no home directory: write fs:DIR"))?;
        return Ok(Some(home.join(below)));
    }
    if path.starts_with('~') {
        let problem =
            "a tilde stands for your home only as ~/DIR: write ./~ for a directory of that name";
        return Err(OpenError::settings("fs", problem));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is() {
        for (rest, path) in [
            ("/run/lock", "/run/lock"),
            ("///run/lock", "/run/lock"),
            ("a b%20/c", "a b%20/c"),
            ("./~", "./~"),
        ] {
            assert_eq!(directory(rest).unwrap(), PathBuf::from(path));
        }
    }

    #[test]
    fn a_tilde_is_home() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(directory("~/locks").unwrap(), home.join("locks"));
        assert!(directory("~root/locks").is_err());
    }

    #[test]
    fn a_tilde_in_a_table_is_home_too() {
        let with = |path| settings(toml::from_str(&format!("directory = '{path}'")).unwrap());
        for path in ["~/locks", "./~", "/run/lock"] {
            assert_eq!(with(path).unwrap().directory(), directory(path).unwrap());
        }
        assert!(with("~root/locks").is_err());
    }

    #[test]
    fn a_host_is_refused() {
        let error = directory("//run/lock").unwrap_err().to_string();
        assert!(error.contains("fs:///DIR"), "{error}");
    }

    #[test]
    fn no_path_is_the_users_own_directory() {
        assert_eq!(directory("").unwrap(), default_directory().unwrap());
    }
}
