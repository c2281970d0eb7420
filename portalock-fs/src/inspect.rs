//! Looking at locks without taking part, and removing the files of locks that nobody uses.

use std::time::Duration;

use portalock_core::{Claim, Inspection, LockName, Mode, clock};

use crate::{
    FsError, FsErrorKind,
    acquire::{Client, lock_name},
    name::{FileName, LOCK_SUFFIX},
    open::{LockFile, Tried},
    record::Record,
    try_lock,
};

impl Client {
    /// Who holds `name`, and who waits for it here.
    pub(crate) fn inspect(&self, name: &LockName) -> Result<Inspection, FsError> {
        self.ensure_here()?;
        self.look(&FileName::of(name))
            .map_err(|error| self.locate(error))
    }

    fn look(&self, file_name: &FileName) -> Result<Inspection, FsError> {
        let mut holders = Vec::new();
        let mut waiters = Vec::new();
        if let Some(visit) = self.places.find(file_name) {
            let place = visit.lock();
            let held = place.held.iter().filter(|held| !held.is_lost());
            holders.extend(held.map(|held| Claim::new(held.holder.clone(), held.mode.into())));
            let waiting = place.waiters();
            waiters.extend(waiting.map(|(holder, mode)| Claim::new(holder.clone(), mode.into())));
        }
        let Some(file) = self.store.open_existing(file_name.as_str())? else {
            return Ok(Inspection::new(holders, waiters));
        };
        let mut record = self.store.read(file_name, &file)?;
        let mut is_held = !holders.is_empty();
        let exclusively_here = holders
            .iter()
            .any(|claim| claim.kind == Mode::Exclusive.into());
        if !exclusively_here && may_be_held(&record) {
            // Shared holders of this object have company elsewhere, or not: then nothing is to be tried.
            let mode = if is_held {
                Some(Mode::Shared)
            } else {
                self.probe(file_name, &file, &record)?
            };
            is_held = mode.is_some();
            // It may have changed hands while we looked.
            record = self.store.read(file_name, &file)?;
            let present: Vec<_> = self
                .store
                .present(file_name, &record)
                .into_iter()
                .filter(|entry| Some(entry.mode) == mode)
                .map(|entry| Claim::new(entry.holder, entry.mode.into()))
                .collect();
            if !present.is_empty() {
                holders = present;
            }
        }
        Ok(Inspection::new(holders, waiters)
            .with_held(is_held)
            .with_last_token(record.last_token()))
    }

    /// In which mode others hold the file. It is found out by trying, for a microsecond: shared, so that those who look
    /// don't mistake each other for holders.
    fn probe(
        &self,
        file_name: &FileName,
        file: &LockFile,
        record: &Record,
    ) -> Result<Option<Mode>, FsError> {
        let kind = self.store.kind;
        if !try_lock(&file.file, Mode::Shared, kind)? {
            return Ok(Some(Mode::Exclusive));
        }
        let shared = record.last.as_ref().map(|last| last.mode) == Some(Mode::Shared);
        // Those who are written down may have crashed.
        let is_held = shared
            && self.store.a_holder(file_name, record).is_some()
            && !try_lock(&file.file, Mode::Exclusive, kind)?;
        self.store.unlock(file);
        Ok(is_held.then_some(Mode::Shared))
    }

    /// The locks that somebody holds, or waits for here.
    pub(crate) fn used_names(&self) -> Result<Vec<LockName>, FsError> {
        self.ensure_here()?;
        let mut names = Vec::new();
        self.each_lock_file(|file_name| {
            let Some(seen) = ours(self.look(&file_name))? else {
                return Ok(());
            };
            if !seen.held && seen.waiters.is_empty() {
                return Ok(());
            }
            let name = lock_name(file_name.as_str(), || {
                let file = self.store.open_existing(file_name.as_str()).ok()??;
                self.store.read(&file_name, &file).ok()?.name
            });
            names.extend(name);
            Ok(())
        })?;
        Ok(names)
    }

    /// Removes the files of locks that nobody uses and nobody was granted for `unused_for`. How many it removed.
    pub(crate) fn clean(&self, unused_for: Duration) -> Result<usize, FsError> {
        self.ensure_here()?;
        let mut removed = 0;
        self.each_lock_file(|file_name| {
            if self.places.find(&file_name).is_some() {
                return Ok(());
            }
            let Some(Some(file)) = ours(self.store.open_existing(file_name.as_str()))? else {
                return Ok(());
            };
            let is_old = self
                .store
                .last_written(&file_name, &file)
                .is_ok_and(|written| {
                    clock::wall_clock()
                        .duration_since(written)
                        .is_ok_and(|age| age >= unused_for)
                });
            if !is_old || self.store.read(&file_name, &file).is_err() {
                return Ok(());
            }
            // Whoever locks it after us finds that it is gone, and makes a new one.
            if let Tried::Locked(file) =
                self.store
                    .try_lock(&file_name, Some(file), Mode::Exclusive)?
            {
                let done = self.store.remove(&file_name, file);
                removed += usize::from(done?);
            }
            Ok(())
        })?;
        Ok(removed)
    }

    fn each_lock_file(
        &self,
        mut visit: impl FnMut(FileName) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let listed = |error| self.locate(FsError::new("list the lock directory", error));
        for entry in self.store.dir.entries().map_err(listed)? {
            let file = entry.map_err(listed)?.file_name();
            let Some(file) = file.to_str().filter(|file| file.ends_with(LOCK_SUFFIX)) else {
                continue;
            };
            let file_name = FileName::existing(file);
            if file_name.is_hashed() || FileName::decode(file).is_some() {
                visit(file_name).map_err(|error| self.locate(error))?;
            }
        }
        Ok(())
    }
}

/// Passes over what is no lock of ours, whatever its name.
fn ours<T>(found: Result<T, FsError>) -> Result<Option<T>, FsError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), FsErrorKind::NotAFile | FsErrorKind::Foreign) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether it is worth trying: an exclusive holder that released in good order left nobody behind it.
fn may_be_held(record: &Record) -> bool {
    record
        .last
        .as_ref()
        .is_some_and(|last| last.mode == Mode::Shared || record.is_present())
}
