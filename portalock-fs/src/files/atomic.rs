//! A new file that appears whole or not at all.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Deref,
    path::{Path, PathBuf},
};

use super::{forms::io_of_its_file, temp_file::TempFile};
use crate::{
    locking::{FsError, FsErrorKind},
    sys,
};

/// Creates the file at `path` in one step: `write` fills it under another name, and only when it is complete does it
/// appear at `path`. portalocker's `open_atomic`.
///
/// It never replaces: a file that exists already is an error, before `write` runs if it is there by then, else after.
/// Missing directories are created. If `write` fails nothing is left. See [`AtomicFile`] for the details, and for a form
/// without a closure.
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

/// A file being written under another name, to appear at its path by [`publish`](Self::publish).
///
/// - It is created beside its destination with the mode that a plain `open` gives it: the umask is honoured, and not
///   touched.
/// - Publishing syncs the content, moves the file without replacing anything, and syncs the directory (Windows has no such
///   call): after a power loss it is there whole, or not at all.
/// - Moving is `renameat2(RENAME_NOREPLACE)` on Linux, `renamex_np(RENAME_EXCL)` on macOS, a hard link elsewhere. A file system
///   that has none of them (exFAT, some network mounts) gets a look and a rename: the content still appears at
///   once, but of two that publish at the same instant the later one can replace the earlier.
/// - The path is made absolute when the file is created: a later change of the working directory leads nowhere else.
///
/// # On drop
///
/// Unpublished, it is removed: it may be half written. A process that is killed leaves it behind, as
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
    /// [`AtomicError::Exists`] if something is at `path`, be it a link that leads nowhere; [`AtomicError::File`] if no
    /// file can be created beside it.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, AtomicError> {
        let path = path.as_ref();
        let anchored = std::path::absolute(path)
            .map_err(|error| FsError::with_kind(FsErrorKind::BadName, "create", error).at(path))?;
        let (Some(parent), Some(_)) = (anchored.parent(), anchored.file_name()) else {
            let error = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(FsError::with_kind(FsErrorKind::BadName, "create", error)
                .at(path)
                .into());
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

    /// Where it will appear, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file; this derefs to it.
    pub fn file(&self) -> &File {
        self.temp.file()
    }

    /// Syncs what was written and lets it appear at its path.
    ///
    /// # Errors
    ///
    /// - [`AtomicError::File`] if it could not be synced: it is removed.
    /// - [`AtomicError::Publish`] if it could not be moved, also because somebody else's file has appeared at the path,
    ///   which is left untouched: the finished file is kept, and the error says where.
    /// - [`AtomicError::NotDurable`] if it is in place but its directory could not be synced.
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

/// Why no file appeared at the path, or why it may not last.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AtomicError {
    /// Something is at the path already. Nothing was written.
    #[error("{} exists already: choose a name that is free", path.display())]
    Exists {
        /// Where the file should have appeared.
        path: PathBuf,
    },
    /// The closure that writes the content failed. Nothing is left.
    #[error("{} could not be written", path.display())]
    Write {
        /// Where the file should have appeared.
        path: PathBuf,
        /// What the closure said.
        source: io::Error,
    },
    /// The file is complete, but could not be moved to its path: it is kept.
    #[error("{} could not be published: the finished file was kept as {}", path.display(), payload.display())]
    Publish {
        /// Where the file should have appeared.
        path: PathBuf,
        /// Where the finished file is.
        payload: PathBuf,
        /// Why it could not be moved: [`FsErrorKind::AlreadyExists`] if somebody else was first.
        source: FsError,
    },
    /// The file is in place, but its directory could not be synced: a power loss may undo it.
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
    /// Whether it says that the path is taken, found early or late.
    pub fn is_exists(&self) -> bool {
        match self {
            Self::Exists { .. } => true,
            Self::Publish { source, .. } => source.kind() == FsErrorKind::AlreadyExists,
            _ => false,
        }
    }
}

io_of_its_file!(AtomicFile);
