//! A new file, beside the path that it will be moved to.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use crate::{
    locking::FsError,
    sys::{self, Origin},
};

/// An open file with a temporary name. Dropping it removes the file, unless it was kept or moved.
#[derive(Debug)]
pub(crate) struct TempFile {
    file: File,
    path: PathBuf,
    /// The process that removes the file: not a forked child with a copy.
    owner: Option<Origin>,
}

impl TempFile {
    /// Creates one in `directory`, with the usual mode of a new file: the system applies the umask, and the mode is not
    /// changed later.
    ///
    /// The name has a fixed length, because the destination's name may be as long as the file system allows.
    pub(crate) fn create_in(directory: &Path) -> Result<Self, FsError> {
        loop {
            let path = directory.join(format!(".portalock.{:016x}.tmp", fastrand::u64(..)));
            let mut options = OpenOptions::new();
            match options.read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        path,
                        owner: Some(Origin::here()),
                    });
                }
                // A forked child gets the same random numbers as its parent.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FsError::new("create a file in", error).at(directory)),
            }
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the content to the disk.
    pub(crate) fn sync(&self) -> Result<(), FsError> {
        sys::sync(&self.file).map_err(|error| FsError::new("sync", error).at(&self.path))
    }

    /// Moves the file to `path`, and replaces an existing file.
    pub(crate) fn replace(mut self, path: &Path) -> Result<(), FsError> {
        sys::replace(&self.path, path).map_err(|error| FsError::new("write", error).at(path))?;
        self.owner = None;
        Ok(())
    }

    /// Moves the file to `path`, which must not exist.
    pub(crate) fn publish(&mut self, path: &Path) -> io::Result<()> {
        sys::publish(&self.path, path)?;
        self.owner = None;
        Ok(())
    }

    /// Keeps the file where it is.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.owner = None;
        std::mem::take(&mut self.path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.owner.is_none_or(Origin::is_elsewhere) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file was left behind");
        }
    }
}
