//! Where `fs:` keeps its locks when no directory is named.

use std::path::PathBuf;

/// The directory of `fs:` alone: `~/.local/state/portalock/locks`, on Windows `AppData\Local\portalock\locks` in the
/// user's profile. `None` if the user has no home.
///
/// It is the same in a login shell, a cron job and a service of one user, which is what counts: two programs that look
/// in different directories don't exclude each other. So it follows none of the variables that only some sessions have
/// set, such as `XDG_RUNTIME_DIR`, `XDG_STATE_HOME` or `TMPDIR`. Two users have two directories: for locks between users,
/// name one that both can write.
pub fn default_directory() -> Option<PathBuf> {
    let mut directory = std::env::home_dir().filter(|home| home.is_absolute())?;
    if cfg!(windows) {
        directory.extend(["AppData", "Local", "portalock", "locks"]);
    } else {
        directory.extend([".local", "state", "portalock", "locks"]);
    }
    Some(directory)
}
