//! Breaking locks, with files.
//!
//! The mark is a file in the directory, named after the owner. It is put there by renaming, which the holder's watch
//! reports. The holder's process then tells the guard, writes the release, removes the mark and unlocks the file. A
//! file lock has no lease, so a process gets a second to respond. After that, its locked file is replaced by another
//! file. When the process runs again, it learns of this as of any replaced lock file.

use std::{
    io::{Read, Write},
    time::Duration,
};

use portalock_core::{Holder, LockName, Loss, Marked, Mode, OwnerId, Released};

use super::{acquire::Client, inspect::is_old, name::FileName, queue::Visit, record::Record};
use crate::{
    locking::{FsError, Location},
    sys,
};

/// The suffix of a mark's file name, after the owner.
pub(crate) const MARK_SUFFIX: &str = ".broken";
/// The suffix of a file that is renamed to a mark or a lock file.
pub(crate) const DRAFT_SUFFIX: &str = ".draft";

/// How long a holder's process has to respond.
const RESPONDS: Duration = Duration::from_secs(1);

/// The longest mark that is read. Names of hosts and labels are short.
const LONGEST_MARK: u64 = 64 * 1024;

/// The owner whose mark has this file name.
pub(crate) fn marked_owner(file: &str) -> Option<OwnerId> {
    file.strip_suffix(MARK_SUFFIX)?.parse().ok()
}

fn mark_on(owner: OwnerId) -> String {
    format!("{owner}{MARK_SUFFIX}")
}

impl Client {
    /// Marks the hold of `owner`, and returns its token and how long it has to respond. `None` if it does not hold the lock.
    pub(crate) fn mark(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, FsError> {
        let mut holders = self.inspect(name)?.holders.into_iter();
        let held = holders.find(|claim| claim.owner == Some(owner));
        let mark = mark_on(owner);
        let Some(token) = held.and_then(|claim| claim.token) else {
            self.remove_mark(&mark);
            return Ok(None);
        };
        if !self.store.dir.exists(&mark) {
            // The mark's text is for people: the lock is broken even without it.
            let text = serde_json::to_vec(by).unwrap_or_default();
            self.put(&mark, &text, &FileName::of(name))?;
        }
        Ok(Some(Marked::new(RESPONDS, token.get())))
    }

    /// Replaces the lock file that `owner` has locked with this token, by a file with the same token, marked as released.
    /// `None` if other holders may share the file.
    pub(crate) fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Option<Released>, FsError> {
        let file_name = &FileName::of(name);
        let Some(file) = self.store.file(file_name).open_existing()? else {
            return Ok(Some(Released::NotHeld));
        };
        let (_, present) = self.store.look(file_name, &file, usize::MAX)?;
        let mut present = present.into_iter();
        let found = present.find(|entry| entry.owner == owner && entry.token.get() == hold);
        let token = match found {
            None => return Ok(Some(Released::NotHeld)),
            Some(entry) if entry.mode == Mode::Shared => return Ok(None),
            Some(entry) => entry.token,
        };
        // Checked last, because the owner may have released meanwhile, and another may hold the file.
        if file.try_lock(Mode::Shared)? {
            file.unlock()?;
            return Ok(Some(Released::NotHeld));
        }
        let released = Record::released(name, token);
        self.put(file_name.as_str(), &released, file_name)?;
        Ok(Some(Released::Freed))
    }

    /// Creates a file with this content in one step, with the permissions of the lock file `of`, because the user who
    /// breaks a lock may be another one, such as root.
    fn put(&self, file: &str, content: &[u8], of: &FileName) -> Result<(), FsError> {
        let draft = format!("{}{DRAFT_SUFFIX}", OwnerId::mint());
        let put = self.store.named(&draft).open().and_then(|open| {
            if let Some(of) = self.store.file(of).open_existing()? {
                sys::permit_as(open.file(), of.file());
            }
            let written = open.file().write_all(content);
            written.map_err(|error| FsError::new("write", error))?;
            // Some systems rename closed files only.
            drop(open);
            let dir = &self.store.dir;
            dir.rename(&draft, dir, file)
                .map_err(|error| FsError::new("put in its place", error).at(file))
        });
        put.inspect_err(|_| drop(self.store.dir.remove_file(&draft)))
    }

    fn remove_mark(&self, mark: &str) {
        if let Err(error) = self.store.remove_file(mark) {
            tracing::debug!(%error, mark, "a mark could not be removed");
        }
    }

    /// A mark for `owner` has appeared: if this client has the hold, its guard is told, and the lock is released.
    pub(crate) fn heed(&self, owner: OwnerId) {
        let mark = mark_on(owner);
        let loss = self.read_mark(&mark);
        let take = |visit: &Visit<'_>| visit.lock().take(owner);
        for name in self.places.names() {
            if let Some(visit) = self.places.find(&name)
                && let Some(held) = take(&visit)
            {
                // The wake-up may drop the guard, which uses the place.
                if let Some(lease) = &held.lease {
                    lease.end(loss);
                }
                self.store.note_release(&name, &held.file, &held.written);
                // While nobody can hold anew: the next hold of the owner has a mark of its own.
                self.remove_mark(&mark);
                held.file.free();
                return visit.change(|_| ());
            }
        }
    }

    /// The same for all existing marks, because events may have been lost.
    pub(crate) fn heed_all(&self) {
        let files = self.store.files().into_iter().flatten().flatten();
        let marked = files.filter_map(|file| marked_owner(&file));
        marked.for_each(|owner| self.heed(owner));
    }

    /// Removes marks that were not handled for this long, and files that never became a mark.
    pub(crate) fn clean_marks(&self, unused_for: Duration) -> Result<(), FsError> {
        for file in self.store.files()? {
            let file = file?;
            let mut suffixes = [MARK_SUFFIX, DRAFT_SUFFIX].iter();
            let owner = suffixes.find_map(|suffix| file.strip_suffix(suffix));
            let is_ours = owner.is_some_and(|owner| owner.parse::<OwnerId>().is_ok());
            let written = || self.store.dir.metadata(&file).ok()?.modified().ok();
            if is_ours && written().is_some_and(|at| is_old(at.into_std(), unused_for)) {
                self.remove_mark(&file);
            }
        }
        Ok(())
    }

    fn read_mark(&self, mark: &str) -> Loss {
        let mark = self.store.named(mark).open_existing().ok().flatten();
        let text = mark.as_ref().map(|mark| mark.file().take(LONGEST_MARK));
        Loss::broken_by(text.and_then(|text| serde_json::from_reader(text).ok()))
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use portalock_core::{Attempt, LockRequest, Patience};

    use super::{
        super::{FsBackend, FsSettings, Watch},
        *,
    };
    use crate::sys::{Change, Watched};

    /// It is not watched, so it hears of a mark only from the test.
    fn client(dir: &tempfile::TempDir) -> Arc<Client> {
        let settings = FsSettings::new(dir.path()).with_watch(Watch::Off);
        FsBackend::with_settings(&settings).unwrap().client
    }

    fn request(name: &str, mode: Mode) -> LockRequest {
        LockRequest::new(LockName::new(name).unwrap(), mode, Patience::Once)
    }

    fn hold(client: &Client, name: &str, mode: Mode) -> LockRequest {
        let request = request(name, mode);
        let attempt = client.attempt(&request).unwrap();
        assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
        request
    }

    fn by(label: &str) -> Holder {
        Holder::this_process(Some(label.into()))
    }

    #[test]
    fn each_hold_with_a_mark_is_ended_and_the_mark_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (holder, other) = (client(&dir), client(&dir));
        let held: Vec<_> = ["a", "b", "c", "d", "e", "f"]
            .map(|name| hold(&holder, name, Mode::Exclusive))
            .into();
        // A forked child may have copies of the open files.
        let copies: Vec<_> = held
            .iter()
            .map(|held| {
                let file_name = FileName::of(&held.name);
                let visit = holder.places.find(&file_name).unwrap();
                let place = visit.lock();
                place.held[0].file.file().try_clone().unwrap()
            })
            .collect();
        let mark = |held: &LockRequest| other.mark(&held.name, held.owner, &by("x"));
        for held in &held[..5] {
            let marked = mark(held).unwrap();
            assert_eq!(marked.map(|marked| marked.relies_for), Some(RESPONDS));
        }
        for held in &held[..3] {
            holder.heed(held.owner);
        }
        // Events may have been lost.
        holder.tell(&Change::Everything);
        for held in &held[..5] {
            assert!(!other.store.dir.exists(mark_on(held.owner)));
            let _next = hold(&other, held.name.as_str(), Mode::Exclusive);
            // The owner that was marked is gone, and the next one is not.
            assert_eq!(mark(held).unwrap(), None);
        }
        let attempt = other.attempt(&request("f", Mode::Exclusive)).unwrap();
        assert!(matches!(attempt, Attempt::Contended(_)), "{attempt:?}");
        drop(copies);
    }

    #[test]
    fn the_first_mark_stays_and_one_that_came_too_late_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (holder, other) = (client(&dir), client(&dir));
        let held = hold(&holder, "a", Mode::Exclusive);
        let mark = |label| other.mark(&held.name, held.owner, &by(label)).unwrap();
        let first = mark("first");
        assert!(first.is_some());
        assert_eq!(mark("second"), first);
        let path = dir.path().join(mark_on(held.owner));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("first"), "{text}");
        holder.free(&held, true);
        assert_eq!(mark("third"), None);
        assert!(!path.exists());
    }

    #[test]
    fn only_that_hold_of_the_exclusive_holder_is_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let (holder, other) = (client(&dir), client(&dir));
        let hold_of = |held: &LockRequest| {
            let seen = other.inspect(&held.name).unwrap();
            seen.holders[0].token.unwrap().get()
        };
        let evict = |held: &LockRequest, owner, hold| other.evict(&held.name, owner, hold).unwrap();
        let shared = hold(&holder, "shared", Mode::Shared);
        assert_eq!(evict(&shared, shared.owner, hold_of(&shared)), None);
        let held = hold(&holder, "a", Mode::Exclusive);
        let number = hold_of(&held);
        for (owner, hold) in [(shared.owner, number), (held.owner, number - 1)] {
            assert_eq!(evict(&held, owner, hold), Some(Released::NotHeld));
        }
        // A record may be left although the lock was released.
        let file_name = FileName::of(&held.name);
        holder.places.find(&file_name).unwrap().change(|place| {
            let _ = place.held[0].file.unlock();
        });
        assert_eq!(evict(&held, held.owner, number), Some(Released::NotHeld));
        let attempt = other.attempt(&request("a", Mode::Exclusive)).unwrap();
        assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
    }

    #[test]
    fn a_draft_that_cannot_be_moved_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let client = client(&dir);
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let of = FileName::of(&LockName::new("a").unwrap());
        assert!(client.put("directory", b"", &of).is_err());
        let left: Vec<_> = client.store.files().unwrap().map(Result::unwrap).collect();
        assert_eq!(left, ["directory"]);
    }

    #[test]
    fn marks_and_drafts_that_nobody_used_are_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let client = client(&dir);
        let owner = OwnerId::mint();
        let ours = [mark_on(owner), format!("{owner}{DRAFT_SUFFIX}")];
        let others = [format!("x{MARK_SUFFIX}"), owner.to_string()];
        for file in ours.iter().chain(&others) {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let is_there = |file: &String| dir.path().join(file).exists();
        client.clean(Duration::from_secs(3600)).unwrap();
        assert!(ours.iter().all(is_there));
        client.clean(Duration::ZERO).unwrap();
        assert!(!ours.iter().any(is_there));
        assert!(others.iter().all(is_there));
    }
}
