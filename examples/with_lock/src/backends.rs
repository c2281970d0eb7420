//! Finding the backend and the configuration.

use std::{
    env,
    path::{Path, PathBuf},
};

use portalock::Scope;
use portalock::{AnyBackend, Config};

use crate::report::Failure;

/// The default backend.
const DEFAULT: &str = "fs:";
const VARIABLE: &str = "PORTALOCK_BACKEND";

/// Opens the `given` backend, otherwise that of the environment, otherwise the default one.
pub(crate) async fn open(
    given: Option<&str>,
    config: Option<&Path>,
) -> Result<AnyBackend, Failure> {
    let (config, wanted) = find(given, config)?;
    open_at(&config, &wanted).await
}

/// As [`open`], for commands that need a lock that somebody else uses. Opening would create a mistyped directory, in which nobody
/// holds anything.
pub(crate) async fn open_used(
    given: Option<&str>,
    config: Option<&Path>,
) -> Result<AnyBackend, Failure> {
    let (config, wanted) = find(given, config)?;
    let directory = config.directory(&wanted)?;
    // If that can't be told, opening it fails, and says why.
    let is_missing = |path: &PathBuf| wanted != DEFAULT && matches!(path.try_exists(), Ok(false));
    if let Some(directory) = directory.filter(is_missing) {
        return Err(Failure::new(format!(
            "there is no directory {}: it is created when the first lock in it is taken",
            directory.display()
        )));
    }
    open_at(&config, &wanted).await
}

async fn open_at(config: &Config, wanted: &str) -> Result<AnyBackend, Failure> {
    let backend = config.open(wanted).await?;
    if backend.locks.capabilities().scope == Scope::Process {
        return Err(Failure::new(
            "this backend locks nothing outside of this process: choose another, such as fs:",
        ));
    }
    Ok(backend)
}

/// Prepares that backend's store.
pub(crate) async fn migrate(given: Option<&str>, config: Option<&Path>) -> Result<(), Failure> {
    let (config, wanted) = find(given, config)?;
    Ok(config.migrate(&wanted).await?)
}

/// The text of the wanted backend, and the configuration that may have it as a key.
fn find(given: Option<&str>, config: Option<&Path>) -> Result<(Config, String), Failure> {
    let from_environment = match env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => Some(text),
        Ok(_) | Err(env::VarError::NotPresent) => None,
        Err(env::VarError::NotUnicode(_)) => {
            return Err(Failure::new(format!("${VARIABLE} is not UTF-8 text")));
        }
    };
    let wanted = given.or(from_environment.as_deref()).unwrap_or(DEFAULT);
    let config = match config {
        // A named configuration file must be valid, even if it is not needed.
        Some(file) => Config::load(file)?,
        None if wanted.contains(':') => Config::default(),
        None => match usual_places().find(|file| file.is_file()) {
            Some(file) => Config::load(file)?,
            None => return Err(no_config(wanted)),
        },
    };
    Ok((config, wanted.to_owned()))
}

fn no_config(wanted: &str) -> Failure {
    let places: Vec<_> = usual_places()
        .map(|file| file.display().to_string())
        .collect();
    Failure::new(format!(
        "{wanted:?} is not a backend: write an address, such as fs:DIR, or describe it in {}",
        places.join(" or ")
    ))
}

/// The paths of the configuration: the user's, then the machine's.
fn usual_places() -> impl Iterator<Item = PathBuf> {
    const FILE: &str = "portalock/backends.toml";
    let user = env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|directory| directory.is_absolute())
        .or_else(|| Some(env::home_dir()?.join(".config")));
    let machine = Path::new(if cfg!(windows) {
        r"C:\ProgramData"
    } else {
        "/etc"
    });
    user.into_iter()
        .chain([machine.to_owned()])
        .map(|directory| directory.join(FILE))
}
