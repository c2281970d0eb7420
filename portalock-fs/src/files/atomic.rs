//! New files that appear completely or not at all.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Deref,
    path::{Path, PathBuf},
};

use super::{forms::io_of_its_file, temp_file::TempFile};
use crate::{
    locking::{BAD_NAME, FsError},
    sys,
};

/// Creates the file at `path` in one step: `write` fills a file with another name, which is moved to `path` when it is
/// complete. portalocker's `open_atomic`.
///
/// It never replaces a file. If `path` exists, the call fails: before `write` runs, or after it if the file appears
/// meanwhile. Missing directories are created. If `write` fails, nothing is left. See [`AtomicFile`] for details, and
/// for a form without a closure.
///
/// # Errors
///
/// [`AtomicError::Exists`] if `path` exists; [`AtomicError::Write`] if `write` failed; [`AtomicError::Publish`] if the
/// finished file could not be moved to `path`: it is kept, and the error says where; [`AtomicError::File`] if a file
/// could not be created at all, or synced.
///
/// ```
/// use std::io::Write;
/// use portalock_fs::{AtomicError, open_atomic};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("reports/2026.csv");
///
/// open_atomic(&path, |file| writeln!(file, "rent,-950"))?;
///
/// let again = open_atomic(&path, |file| writeln!(file, "rent,-960"));
/// assert!(matches!(again, Err(AtomicError::Exists { .. })));
/// assert_eq!(std::fs::read_to_string(&path)?, "rent,-950\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_atomic<T>(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut AtomicFile) -> io::Result<T>,
) -> Result<T, AtomicError> {
    let mut file = AtomicFile::create(path)?;
    let value = write(&mut file).map_err(|source| AtomicError::Write {
        path: file.path.clone(),
        source,
    })?;
    file.publish()?;
    Ok(value)
}

/// A file that is written under another name, and moved to its path by [`publish`](Self::publish).
///
/// - It is created beside its destination with the usual mode of a new file; the umask applies and is not changed.
/// - Publishing syncs the content, moves the file without replacing anything, and syncs the directory (Windows has no
///   such call): after a power loss the file is complete, or not there.
/// - Moving is `renameat2(RENAME_NOREPLACE)` on Linux, `renamex_np(RENAME_EXCL)` on macOS, a hard link elsewhere. On a
///   file system without any of them (exFAT, some network mounts) it checks that the path is free and renames. The
///   content still appears in one step, but if two publish at the same instant, the later file can replace the earlier
///   one.
/// - The path is made absolute when the file is created, so a later change of the working directory has no effect.
///
/// # On drop
///
/// If the file was not published, it is removed, because it may be incomplete. A killed process leaves it as
/// `.portalock.<16 digits>.tmp`.
///
/// ```
/// use std::io::Write;
/// use portalock_fs::AtomicFile;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("model.bin");
///
/// let mut file = AtomicFile::create(&path)?;
/// file.write_all(b"weights")?;
/// assert!(!path.exists());
/// file.publish()?;
/// assert_eq!(std::fs::read(&path)?, b"weights");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "it is removed when dropped: call `publish`"]
pub struct AtomicFile {
    temp: TempFile,
    path: PathBuf,
    /// The directories whose entries are new: the destination's own first, then those that had to be created.
    new_entries_in: Vec<PathBuf>,
}

impl AtomicFile {
    /// Starts a file that will appear at `path`. Missing directories are created.
    ///
    /// # Errors
    ///
    /// [`AtomicError::Exists`] if `path` exists, even as a dangling link; [`AtomicError::File`] if no file can be
    /// created beside it.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, AtomicError> {
        let path = path.as_ref();
        let bad = |error| FsError::new("create", error).meaning(BAD_NAME).at(path);
        let anchored = std::path::absolute(path).map_err(bad)?;
        // Without a slash at the end, which only a directory can have.
        let anchored: PathBuf = anchored.components().collect();
        let (Some(parent), Some(_)) = (anchored.parent(), anchored.file_name()) else {
            return Err(bad(io::ErrorKind::InvalidInput.into()).into());
        };
        match std::fs::symlink_metadata(&anchored) {
            Ok(_) => return Err(AtomicError::Exists { path: anchored }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FsError::new("look at", error).at(&anchored).into()),
        }
        let new_entries_in = create_directories(parent)?;
        Ok(Self {
            temp: TempFile::create_in(parent)?,
            path: anchored,
            new_entries_in,
        })
    }

    /// The destination, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file. `AtomicFile` derefs to it.
    pub fn file(&self) -> &File {
        self.temp.file()
    }

    /// Syncs the content and moves the file to its path.
    ///
    /// # Errors
    ///
    /// - [`AtomicError::File`] if the content could not be synced; the file is removed.
    /// - [`AtomicError::Publish`] if the file could not be moved, for example because another file has appeared at the
    ///   path. That file is not changed. The finished file is kept, and the error says where.
    /// - [`AtomicError::NotDurable`] if the file is at its path, but its directory could not be synced.
    pub fn publish(mut self) -> Result<(), AtomicError> {
        self.temp.sync()?;
        if let Err(error) = self.temp.publish(&self.path) {
            return Err(AtomicError::Publish {
                source: FsError::new("create", error).at(&self.path),
                path: self.path,
                payload: self.temp.keep(),
            });
        }
        for directory in &self.new_entries_in {
            if let Err(error) = sys::sync_directory(directory) {
                return Err(AtomicError::NotDurable {
                    source: FsError::new("sync", error).at(directory),
                    path: self.path,
                });
            }
        }
        Ok(())
    }
}

/// Creates `directory` and those above it that are missing. Returns the directories that get a new entry: `directory`
/// itself, and the parent of each that was created.
fn create_directories(directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let mut changed = vec![directory.to_owned()];
    for ancestor in directory.ancestors() {
        if ancestor.exists() {
            break;
        }
        changed.extend(ancestor.parent().map(Path::to_owned));
    }
    std::fs::create_dir_all(directory)
        .map_err(|error| FsError::new("create the directory", error).at(directory))?;
    Ok(changed)
}

/// Why a file could not be published, or may not survive a power loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AtomicError {
    /// The path exists already. Nothing was written.
    #[error("{} exists already: choose a name that is free", path.display())]
    Exists {
        /// Where the file should have appeared.
        path: PathBuf,
    },
    /// The closure failed. Nothing is left.
    #[error("{} could not be written", path.display())]
    Write {
        /// Where the file should have appeared.
        path: PathBuf,
        /// The closure's error.
        source: io::Error,
    },
    /// The file is complete, but could not be moved to its path. It is kept.
    #[error("{} could not be published: the finished file was kept as {}", path.display(), payload.display())]
    Publish {
        /// Where the file should have appeared.
        path: PathBuf,
        /// Where the finished file is.
        payload: PathBuf,
        /// Why it could not be moved: [`is_exists`](AtomicError::is_exists) if another file has appeared there.
        source: FsError,
    },
    /// The file is at its path, but its directory could not be synced, so the file may not survive a power loss.
    #[error("{} is in place, but may not survive a power loss", path.display())]
    NotDurable {
        /// Where the file is.
        path: PathBuf,
        /// Why the directory could not be synced.
        source: FsError,
    },
    /// The file could not be created or synced. Nothing is left.
    #[error(transparent)]
    File(#[from] FsError),
}

impl AtomicError {
    /// Whether the error means that the path exists already.
    pub fn is_exists(&self) -> bool {
        match self {
            Self::Exists { .. } => true,
            Self::Publish { source, .. } => {
                source.io_error().kind() == io::ErrorKind::AlreadyExists
            }
            _ => false,
        }
    }
}

io_of_its_file!(AtomicFile);
