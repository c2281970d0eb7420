//! A contender for a file: it tries, watches, and tries again.

use portalock_core::{FencingToken, Mode};

use super::{FsError, Location, LockFile};
use crate::sys::Registration;

/// How often an attempt is repeated because the locked file was no longer the one at its path. After that the caller's
/// deadline decides.
const REPLACED: usize = 16;

/// A contender for a file. It keeps the file open and watched between two attempts, because closing it would wake other
/// waiters.
#[derive(Debug, Default)]
pub(crate) struct Contender {
    /// The watch of `file`, or of a file that this process holds and is about to release. Declared before `file`, so
    /// that it is dropped first and does not report the closing of `file`.
    watching: Option<Registration>,
    file: Option<LockFile>,
}

impl Contender {
    /// Returns the locked file and a token of the time when it was locked, or none if another holder has it. `watch` starts a watch of a file, if there should be
    /// one.
    pub(crate) fn try_lock(
        &mut self,
        place: &impl Location,
        mode: Mode,
        mut watch: impl FnMut(&LockFile) -> Option<Registration>,
    ) -> Result<Option<(LockFile, FencingToken)>, FsError> {
        for _ in 0..REPLACED {
            let (file, watching) = match (self.file.take(), self.watching.take()) {
                (Some(file), watching) => (file, watching),
                (None, _) => (place.open()?, None),
            };
            let locked = file.try_lock(mode).map_err(|error| place.at(error))?;
            // Read before the check: if another file takes this one's place later, its tokens are of a later time.
            let now = FencingToken::after(None);
            // If the file was deleted or replaced between opening and locking, it does not exclude newcomers.
            match (place.is_current(&file), locked) {
                (Ok(true), true) => return Ok(Some((file, now))),
                (Ok(true), false) => {}
                (is_current, _) => {
                    // Dropped before the file is closed, which the watch would report.
                    drop(watching);
                    if locked {
                        file.free();
                    }
                    is_current?;
                    place.ensure_in_place()?;
                    continue;
                }
            }
            let was_watched = watching.is_some();
            self.watching = watching.or_else(|| watch(&file));
            self.file = Some(file);
            if was_watched || self.watching.is_none() {
                break;
            }
            // Tried again, because the file may have been unlocked before the watch started.
        }
        Ok(None)
    }

    /// The contended file.
    pub(crate) const fn file(&self) -> Option<&LockFile> {
        self.file.as_ref()
    }

    /// Whether there is a watch that will report the release.
    pub(crate) const fn hears_of_release(&self) -> bool {
        self.watching.is_some()
    }

    /// Watches a file that this process holds and is about to release.
    pub(crate) fn expect(&mut self, watching: Option<Registration>) -> bool {
        *self = Self {
            watching,
            file: None,
        };
        self.hears_of_release()
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        fs::File,
        io,
        path::PathBuf,
    };

    use portalock_core::wakeups;

    use super::*;
    use crate::{
        LockKind,
        sys::{self, FileId, Seen, Watcher},
    };

    struct Place(PathBuf);

    impl Location for Place {
        fn open(&self) -> Result<LockFile, FsError> {
            let file = File::options().append(true).create(true).open(&self.0);
            let file = file.map_err(|error| FsError::new("open", error))?;
            LockFile::of(file, LockKind::Flock)
        }

        fn look(&self) -> io::Result<Seen> {
            sys::look_along(&self.0, true)
        }

        fn at(&self, error: FsError) -> FsError {
            error
        }
    }

    fn id(file: &LockFile) -> FileId {
        sys::look_at(file.file()).unwrap().id
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
        let sender = std::sync::Arc::new(sender);
        let told: std::sync::Weak<portalock_core::WakeSender> = std::sync::Arc::downgrade(&sender);
        let events = Watcher::shared().unwrap();
        let (mut contender, mut other) = (Contender::default(), Some(other));
        let locked = contender.try_lock(&place, Mode::Exclusive, |file| {
            // This wakes nobody.
            drop(other.take());
            events.watch(file.file(), Some(""), told.clone()).ok()
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
        let (locked, _) = attempt().unwrap().unwrap();
        assert!(id(&locked) != id(&other) && place.is_current(&locked).unwrap());
    }

    /// Counts how often the file at the place is looked at, which is once for each try.
    struct Counted(Place, Cell<u32>);

    impl Location for Counted {
        fn open(&self) -> Result<LockFile, FsError> {
            self.0.open()
        }

        fn look(&self) -> io::Result<Seen> {
            self.1.set(self.1.get() + 1);
            self.0.look()
        }

        fn at(&self, error: FsError) -> FsError {
            error
        }
    }

    #[test]
    fn only_an_attempt_that_begins_to_watch_tries_twice() {
        let (_dir, place, _other) = place();
        let place = Counted(place, Cell::default());
        let (sender, _wakeups) = wakeups();
        let sender = std::sync::Arc::new(sender);
        let told: std::sync::Weak<portalock_core::WakeSender> = std::sync::Arc::downgrade(&sender);
        let events = Watcher::shared().unwrap();
        let mut contender = Contender::default();
        for (watches, tries) in [(false, 1), (false, 1), (true, 2), (true, 1)] {
            let locked = contender.try_lock(&place, Mode::Exclusive, |file| {
                watches.then(|| events.watch(file.file(), Some(""), told.clone()).unwrap())
            });
            assert!(locked.unwrap().is_none());
            assert_eq!(place.1.take(), tries);
        }
    }

    /// Keeps the time of the check, which takes a while.
    struct Checked(Place, Cell<Option<FencingToken>>);

    impl Location for Checked {
        fn open(&self) -> Result<LockFile, FsError> {
            self.0.open()
        }

        fn look(&self) -> io::Result<Seen> {
            let now = FencingToken::after(None);
            self.1.set(Some(now));
            while FencingToken::after(None) == now {}
            self.0.look()
        }

        fn at(&self, error: FsError) -> FsError {
            error
        }
    }

    /// Between the check and the grant another file may take its place, and have an owner with a token of that time.
    #[test]
    fn the_time_of_a_lock_is_before_the_check_of_its_file() {
        let (_dir, place, other) = place();
        drop(other);
        let place = Checked(place, Cell::default());
        let locked = Contender::default().try_lock(&place, Mode::Exclusive, |_| None);
        let (_, now) = locked.unwrap().unwrap();
        assert!(Some(now) <= place.1.get(), "{now} {:?}", place.1);
    }

    /// Before the file is opened, another process creates and locks one with the inode number of the last one.
    struct Reused {
        place: Place,
        id: FileId,
        next: RefCell<Option<LockFile>>,
    }

    impl Location for Reused {
        fn open(&self) -> Result<LockFile, FsError> {
            for _ in 0..100 {
                let next = self.place.open()?;
                if id(&next) == self.id {
                    assert!(next.try_lock(Mode::Exclusive)?);
                    self.next.replace(Some(next));
                    return self.place.open();
                }
                std::fs::remove_file(&self.place.0).unwrap();
            }
            println!("SKIPPED: this file system gives no number twice");
            self.place.open()
        }

        fn look(&self) -> io::Result<Seen> {
            self.place.look()
        }

        fn at(&self, error: FsError) -> FsError {
            error
        }
    }

    #[test]
    fn a_new_file_that_has_the_number_of_the_old_one_is_watched_anew() {
        let (_dir, place, other) = place();
        let (sender, _wakeups) = wakeups();
        let sender = std::sync::Arc::new(sender);
        let told: std::sync::Weak<portalock_core::WakeSender> = std::sync::Arc::downgrade(&sender);
        let events = Watcher::shared().unwrap();
        let (mut contender, mut watches) = (Contender::default(), 0);
        let mut watch = |file: &LockFile| {
            watches += 1;
            events.watch(file.file(), Some(""), told.clone()).ok()
        };
        let busy = contender.try_lock(&place, Mode::Exclusive, &mut watch);
        assert!(busy.unwrap().is_none());
        std::fs::remove_file(&place.0).unwrap();
        let (id, next) = (id(&other), RefCell::default());
        drop(other);
        let reused = Reused { place, id, next };
        let new = contender.try_lock(&reused, Mode::Exclusive, &mut watch);
        assert!(new.unwrap().is_some() || watches == 2);
    }
}
