//! Moving a file to a name that must be free, with the calls that the file system supports.

use std::{io, path::Path};

/// Moves `from` to `to`, in one step and without replacing an existing file.
///
/// Without an exclusive rename and hard links, it checks and renames; then it can't exclude another call at the same
/// instant.
pub(crate) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    if let Some(outcome) = super::rename_exclusive(from, to) {
        return outcome;
    }
    publish_by_link(from, to)
}

fn publish_by_link(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        Ok(()) => {
            if let Err(error) = std::fs::remove_file(from) {
                tracing::warn!(path = %from.display(), %error, "a temporary name of a published file was left behind");
            }
            Ok(())
        }
        Err(error) if super::says(&error, super::NO_HARD_LINKS) => publish_by_look(from, to),
        Err(error) => Err(error),
    }
}

fn publish_by_look(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn each_way_moves_the_file_and_replaces_nothing() {
        type Way = fn(&Path, &Path) -> io::Result<()>;
        let ways: [(&str, Way); 3] = [
            ("best", publish),
            ("link", publish_by_link),
            ("look", publish_by_look),
        ];
        for (way, publish) in ways {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            fs::write(&from, "first").unwrap();
            publish(&from, &to).unwrap();
            assert!(!from.exists(), "{way}");

            fs::write(&from, "second").unwrap();
            let error = publish(&from, &to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{way}");
            assert_eq!(fs::read_to_string(&to).unwrap(), "first", "{way}");
            assert_eq!(fs::read_to_string(&from).unwrap(), "second", "{way}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_not_replaced_either() {
        for publish in [publish, publish_by_link, publish_by_look] {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            fs::write(&from, "content").unwrap();
            std::os::unix::fs::symlink("nowhere", &to).unwrap();
            let error = publish(&from, &to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert!(fs::symlink_metadata(&to).unwrap().is_symlink());
        }
    }
}
