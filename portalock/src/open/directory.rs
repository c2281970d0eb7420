//! The default directory of `fs:`.

use std::path::PathBuf;

/// The directory of `fs:` alone: `~/.local/state/portalock/locks`, or on Windows `AppData\Local\portalock\locks` in the
/// user's profile. `None` if the user has no home directory.
///
/// It is the same in a login shell, a cron job and a service of one user, because programs with different directories
/// don't exclude each other. So it does not depend on variables that are not set everywhere, such as `XDG_RUNTIME_DIR`,
/// `XDG_STATE_HOME` or `TMPDIR`. Each user has another directory. For locks between users, name a directory that all of
/// them can write.
pub fn default_directory() -> Option<PathBuf> {
    let mut directory = std::env::home_dir().filter(|home| home.is_absolute())?;
    if cfg!(windows) {
        directory.extend(["AppData", "Local", "portalock", "locks"]);
    } else {
        directory.extend([".local", "state", "portalock", "locks"]);
    }
    Some(directory)
}
