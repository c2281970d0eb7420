//! One who wants a file that others may have: it tries, watches, and tries again.

use portalock_core::Mode;

use super::{FsError, Location, LockFile, Watching};

/// How often an attempt starts again because the file it locked was no longer the one at its place. Then it is for the caller's
/// deadline to decide.
const REPLACED: usize = 16;

/// One who wants a file. It keeps the file open and watched between two attempts: closing it would wake the others who wait.
#[derive(Debug, Default)]
pub(crate) struct Contender {
    /// Declared before the file, whose closing is not to be heard.
    watching: Option<Watching>,
    file: Option<LockFile>,
}

impl Contender {
    /// The locked file, or none if somebody else has it. `watch` starts to watch a file, if it is to be watched.
    pub(crate) fn try_lock(
        &mut self,
        place: &impl Location,
        mode: Mode,
        mut watch: impl FnMut(&LockFile) -> Option<Watching>,
    ) -> Result<Option<LockFile>, FsError> {
        for _ in 0..REPLACED {
            let file = match self.file.take() {
                Some(file) => file,
                None => place.open()?,
            };
            let locked = file.try_lock(mode).map_err(|error| place.at(error))?;
            // A file that was deleted or replaced between opening and locking excludes nobody who opens it anew.
            if !place.is_current(&file)? {
                if locked {
                    file.free();
                }
                place.ensure_in_place()?;
                continue;
            }
            if locked {
                return Ok(Some(file));
            }
            let is_watched = self.is_watched(&file);
            if !is_watched {
                self.watching = watch(&file);
            }
            self.file = Some(file);
            if is_watched || self.watching.is_none() {
                break;
            }
            // Again, since it may have been freed before it was watched.
        }
        Ok(None)
    }

    /// The file that somebody else has.
    pub(crate) const fn file(&self) -> Option<&LockFile> {
        self.file.as_ref()
    }

    /// Whether the news of its release will come.
    pub(crate) fn hears_of_release(&self) -> bool {
        self.file.as_ref().is_some_and(|file| self.is_watched(file))
    }

    /// Watches for the release of a file that is held here, and is about to be freed.
    pub(crate) fn expect(&mut self, watching: Option<Watching>) -> bool {
        self.watching = watching;
        self.watching.is_some()
    }

    fn is_watched(&self, file: &LockFile) -> bool {
        let watching = self.watching.as_ref();
        watching.is_some_and(|watching| watching.is_of(file))
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{fs::File, io, path::PathBuf};

    use portalock_core::wakeups;

    use super::{super::Line, *};
    use crate::{
        LockKind,
        sys::{self, Origin, Seen},
    };

    struct Place(PathBuf);

    impl Location for Place {
        fn open(&self) -> Result<LockFile, FsError> {
            let file = File::options().append(true).create(true).open(&self.0);
            let file = file.map_err(|error| FsError::new("open", error))?;
            LockFile::of(file, LockKind::Flock, Origin::here())
        }

        fn look(&self) -> io::Result<Seen> {
            sys::look_along(&self.0, true)
        }

        fn at(&self, error: FsError) -> FsError {
            error
        }
    }

    fn place() -> (tempfile::TempDir, Place, LockFile) {
        let dir = tempfile::tempdir().unwrap();
        let place = Place(dir.path().join("file"));
        let other = place.open().unwrap();
        assert!(other.try_lock(Mode::Exclusive).unwrap());
        (dir, place, other)
    }

    #[test]
    fn a_file_that_is_freed_before_it_is_watched_is_found_free() {
        let (_dir, place, other) = place();
        let (sender, _wakeups) = wakeups();
        let line = Line::new(sender).unwrap();
        let (mut contender, mut other) = (Contender::default(), Some(other));
        let locked = contender.try_lock(&place, Mode::Exclusive, |file| {
            // Nobody hears of this.
            drop(other.take());
            line.watch_file(file).ok()
        });
        assert!(locked.unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_replaced_is_left_for_the_new_one() {
        let (dir, place, other) = place();
        let mut contender = Contender::default();
        let mut attempt = || contender.try_lock(&place, Mode::Exclusive, |_| None);
        assert!(attempt().unwrap().is_none());
        std::fs::rename(dir.path().join("file"), dir.path().join("old")).unwrap();
        let locked = attempt().unwrap().unwrap();
        assert!(locked.id() != other.id() && place.is_current(&locked).unwrap());
    }
}
