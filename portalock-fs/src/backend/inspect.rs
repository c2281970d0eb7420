//! Reading the holders of locks, and removing unused files.

use std::time::{Duration, SystemTime};

use portalock_core::{BackendErrorKind, Claim, Inspection, LockName, Mode, clock};

use super::{
    acquire::Client,
    name::{FileName, LOCK_SUFFIX},
    record::Entry,
};
use crate::locking::{FsError, Location, LockFile};

impl Client {
    /// The holders of `name`, and its waiters in this client.
    pub(crate) fn inspect(&self, name: &LockName) -> Result<Inspection, FsError> {
        let file_name = &FileName::of(name);
        let (mut holders, mut waiters) = (Vec::new(), Vec::new());
        let mut mode = None;
        if let Some(visit) = self.places.find(file_name) {
            let place = visit.lock();
            for held in place.held.iter().filter(|held| !held.is_lost()) {
                mode = Some(held.entry().mode);
                holders.push(claim(held.entry()));
            }
            let waiting = place.waiters();
            waiters.extend(waiting.map(|(holder, mode)| Claim::new(holder.clone(), mode.into())));
        }
        let Some(file) = self.store.file(file_name).open_existing()? else {
            return Ok(Inspection::new(holders, waiters));
        };
        if mode.is_none() {
            mode = self.probe(file_name, &file)?;
        }
        // The holder may have changed meanwhile. If this client shares the lock, others may share it too.
        let (record, present) = self.store.look(file_name, &file, usize::MAX)?;
        let present = present.iter().filter(|entry| Some(entry.mode) == mode);
        let present: Vec<_> = present.map(claim).collect();
        if !present.is_empty() {
            holders = present;
        }
        Ok(Inspection::new(holders, waiters)
            .with_held(mode.is_some())
            .with_last_token(record.last_token()))
    }

    /// The mode in which others hold the file. A recorded holder whose process exists may have released without writing
    /// it, so the lock is tried for a microsecond. The first attempt is shared, so that two inspections don't take each
    /// other for holders.
    fn probe(&self, file_name: &FileName, file: &LockFile) -> Result<Option<Mode>, FsError> {
        let (record, present) = self.store.look(file_name, file, 1)?;
        // Others may hold while a grant is half written.
        if present.is_empty() && !record.is_torn {
            return Ok(None);
        }
        if !file.try_lock(Mode::Shared)? {
            return Ok(Some(Mode::Exclusive));
        }
        let was_alone = record.last.is_some_and(|last| last.mode == Mode::Exclusive);
        let is_held = !was_alone && !file.try_lock(Mode::Exclusive)?;
        file.unlock()?;
        Ok(is_held.then_some(Mode::Shared))
    }

    /// The locks with holders, or with waiters in this client.
    pub(crate) fn used_names(&self) -> Result<Vec<LockName>, FsError> {
        let mut names = Vec::new();
        self.each_lock(|_, name, _| {
            let seen = self.inspect(&name)?;
            if seen.held || !seen.waiters.is_empty() {
                names.push(name);
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// Removes the files of unused locks that were not granted for `unused_for`. Returns their number.
    pub(crate) fn clean(&self, unused_for: Duration) -> Result<usize, FsError> {
        self.clean_marks(unused_for)?;
        let mut removed = 0;
        self.each_lock(|file_name, _, file| {
            if self.places.find(file_name).is_some() {
                return Ok(());
            }
            let is_unused = || {
                let written = self.store.last_written(file_name, &file)?;
                Ok::<_, FsError>(is_old(written, unused_for))
            };
            if !is_unused()? || !file.try_lock(Mode::Exclusive)? {
                return Ok(());
            }
            // Checked again, because the lock may have been granted and released before this locked it.
            if is_unused()? && self.store.file(file_name).is_current(&file)? {
                removed += usize::from(self.store.remove(file_name, file)?);
            } else {
                file.free();
            }
            Ok(())
        })?;
        Ok(removed)
    }

    /// Visits the open file of each lock, which contains the lock's name. Files that are not lock files are skipped,
    /// whatever their name.
    fn each_lock(
        &self,
        mut visit: impl FnMut(&FileName, LockName, LockFile) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        for file in self.store.files()? {
            let file_name = FileName::existing(&file?);
            if !file_name.as_str().ends_with(LOCK_SUFFIX) {
                continue;
            }
            let visited = self
                .store
                .file(&file_name)
                .open_existing()
                .and_then(|open| {
                    let Some(file) = open else { return Ok(()) };
                    let name = self.store.read(&file_name, &file)?.name;
                    let name = name.and_then(|name| LockName::new(name).ok());
                    match name.filter(|name| FileName::of(name) == file_name) {
                        Some(name) => visit(&file_name, name, file),
                        None => Ok(()),
                    }
                });
            if let Err(error) = visited
                && error.kind() != BackendErrorKind::Corrupt
            {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Whether a file that was `written` then has not been used for this long.
pub(crate) fn is_old(written: SystemTime, unused_for: Duration) -> bool {
    let age = clock::wall_clock().duration_since(written);
    age.is_ok_and(|age| age >= unused_for)
}

fn claim(entry: &Entry) -> Claim {
    let claim = Claim::new(entry.holder.clone(), entry.mode.into());
    claim.with_owner(entry.owner).with_token(entry.token)
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use portalock_core::{Attempt, LockRequest, Patience};

    use super::{super::FsBackend, *};

    fn client(dir: &tempfile::TempDir) -> Arc<Client> {
        FsBackend::open(dir.path()).unwrap().client
    }

    fn request(mode: Mode, patience: Patience) -> LockRequest {
        LockRequest::new(LockName::new("a").unwrap(), mode, patience)
    }

    #[test]
    fn a_record_that_was_left_is_no_holder() {
        for mode in [Mode::Exclusive, Mode::Shared] {
            let dir = tempfile::tempdir().unwrap();
            let (holder, other) = (client(&dir), client(&dir));
            let held = request(mode, Patience::Once);
            let _ = holder.attempt(&held).unwrap();
            assert!(other.inspect(&held.name).unwrap().held);
            let file_name = FileName::of(&held.name);
            holder.places.find(&file_name).unwrap().change(|place| {
                let _ = place.held[0].file.unlock();
            });
            let seen = other.inspect(&held.name).unwrap();
            assert!(!seen.held && seen.holders.is_empty(), "{seen:?}");
            // Looking has left it free.
            let next = request(Mode::Exclusive, Patience::Once);
            assert!(matches!(other.attempt(&next).unwrap(), Attempt::Granted(_)));
        }
    }

    /// The list of holders is read while it changes.
    #[test]
    fn a_lock_that_passes_from_reader_to_reader_always_has_a_holder() {
        let dir = tempfile::tempdir().unwrap();
        let (holder, other) = (client(&dir), client(&dir));
        let take = || {
            let held = request(Mode::Shared, Patience::Once);
            assert!(matches!(
                holder.attempt(&held).unwrap(),
                Attempt::Granted(_)
            ));
            held
        };
        // Their slots are unused then, so that the holder moves in the list.
        let many: Vec<_> = (0..40).map(|_| take()).collect();
        let mut held = take();
        for held in many {
            holder.free(&held, true);
        }
        let name = held.name.clone();
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::SeqCst) {
                    let next = take();
                    holder.free(&std::mem::replace(&mut held, next), true);
                }
            });
            let all_found = (0..2000).all(|_| {
                let seen = other.inspect(&name).unwrap();
                seen.held && !seen.holders.is_empty()
            });
            ends.store(true, Ordering::SeqCst);
            assert!(all_found);
        });
    }

    /// As by a process that was stopped while it wrote its grant.
    #[test]
    fn a_lock_whose_record_is_torn_is_tried() {
        for mode in [Mode::Exclusive, Mode::Shared] {
            let dir = tempfile::tempdir().unwrap();
            let (holder, other) = (client(&dir), client(&dir));
            let held = request(mode, Patience::Once);
            let _ = holder.attempt(&held).unwrap();
            let record = std::fs::File::options()
                .write(true)
                .open(dir.path().join("a.lock"));
            crate::sys::write_at(&record.unwrap(), b"x", 60).unwrap();
            assert!(other.inspect(&held.name).unwrap().held);
            holder.free(&held, true);
            assert!(!other.inspect(&held.name).unwrap().held);
        }
    }

    #[test]
    fn a_lock_is_not_called_free_if_its_holders_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (holder, other) = (client(&dir), client(&dir));
        let held = request(Mode::Shared, Patience::Once);
        let _ = holder.attempt(&held).unwrap();
        std::fs::remove_file(dir.path().join("a.shared")).unwrap();
        std::fs::create_dir(dir.path().join("a.shared")).unwrap();
        for client in [&holder, &other] {
            let error = client.inspect(&held.name).unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Corrupt, "{error}");
        }
    }

    #[test]
    fn a_name_with_waiters_only_is_used_and_another_file_with_the_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (holder, waiter) = (client(&dir), client(&dir));
        let held = request(Mode::Exclusive, Patience::Once);
        let _ = holder.attempt(&held).unwrap();
        let _ = waiter
            .attempt(&request(Mode::Exclusive, Patience::Queue))
            .unwrap();
        std::fs::copy(dir.path().join("a.lock"), dir.path().join("b.lock")).unwrap();
        let names = std::slice::from_ref(&held.name);
        assert_eq!(holder.used_names().unwrap(), names);
        holder.free(&held, true);
        assert!(holder.used_names().unwrap().is_empty());
        assert_eq!(waiter.used_names().unwrap(), names);
    }

    #[test]
    fn a_client_knows_its_own_hold_whatever_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let client = client(&dir);
        let held = request(Mode::Exclusive, Patience::Once);
        let _ = client.attempt(&held).unwrap();
        std::fs::write(dir.path().join("a.lock"), "").unwrap();
        let seen = client.inspect(&held.name).unwrap();
        assert!(seen.held && seen.holders.len() == 1, "{seen:?}");
    }

    #[test]
    fn a_lock_whose_list_of_readers_is_something_else_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let client = client(&dir);
        let held = request(Mode::Exclusive, Patience::Once);
        let _ = client.attempt(&held).unwrap();
        client.free(&held, true);
        std::fs::create_dir(dir.path().join("a.shared")).unwrap();
        assert_eq!(client.clean(Duration::ZERO).unwrap(), 0);
        assert!(dir.path().join("a.lock").exists());
        std::fs::remove_dir(dir.path().join("a.shared")).unwrap();
        assert_eq!(client.clean(Duration::ZERO).unwrap(), 1);
    }
}
