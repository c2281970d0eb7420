//! Releasing, with synchronous calls.

use std::time::Duration;

use portalock_core::{LockRequest, Released};

use super::{
    acquire::Client,
    name::FileName,
    queue::{Held, Place},
};
use crate::locking::Location;

/// How long the lock may pass directly between holders of this client. They hear of a release sooner than other
/// processes, and would keep those out as long as this queue is never empty.
const AMONG_OURSELVES: Duration = Duration::from_millis(10);

impl Client {
    /// Ends the hold of the owner of `request`, or removes it from the queue.
    ///
    /// With `certain` it checks that the lock was held until now, instead of relying on the watch, if there is one, to
    /// report a loss.
    pub(crate) fn free(&self, request: &LockRequest, certain: bool) -> Released {
        if self.store.origin.is_elsewhere() {
            // In a forked child the lock belongs to the parent. A thread of the parent may have held a mutex during the
            // fork, so don't wait for one here.
            return Released::NotHeld;
        }
        let file_name = FileName::of(&request.name);
        let Some(visit) = self.places.find(&file_name) else {
            return Released::NotHeld;
        };
        visit.change(|place| {
            if let Some(held) = place.take(request.owner) {
                return self.give_up(place, &file_name, held, certain);
            }
            place.leave(request.owner);
            Released::NotHeld
        })
    }

    fn give_up(
        &self,
        place: &mut Place,
        file_name: &FileName,
        held: Held,
        certain: bool,
    ) -> Released {
        let is_gone = || matches!(self.store.file(file_name).is_current(&held.file), Ok(false));
        if held.is_lost() || (certain || held.lease.is_none()) && is_gone() {
            held.file.free();
            return Released::NotHeld;
        }
        self.store
            .note_release(file_name, &held.file, &held.written);
        let is_long = |since: portalock_core::clock::Instant| since.elapsed() > AMONG_OURSELVES;
        if place.ours_since.is_some_and(is_long) {
            place.ours_since = None;
            // The first waiter here tries when it gets the event of the release, like other processes.
            let watching = self.watch_file(file_name, &held.file);
            place.yields = place.contender.expect(watching);
        }
        held.file.free();
        Released::Freed
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use portalock_core::{Attempt, LockName, Mode, Patience, clock::Instant};

    use super::{
        super::{FsBackend, FsSettings, Watch},
        *,
    };
    use crate::sys::{Change, Watched};

    fn request(mode: Mode, patience: Patience) -> LockRequest {
        LockRequest::new(LockName::new("a").unwrap(), mode, patience)
    }

    #[test]
    fn a_client_that_had_it_for_long_lets_others_hear_of_the_release_first() {
        for (is_long, watch) in [
            (false, Watch::On),
            (true, Watch::On),
            // Nobody would hear of it.
            (true, Watch::Off),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let settings = FsSettings::new(dir.path()).with_watch(watch);
            let client = FsBackend::with_settings(&settings).unwrap().client;
            let first = request(Mode::Exclusive, Patience::Once);
            let next = request(Mode::Exclusive, Patience::Queue);
            let _ = client.attempt(&first).unwrap();
            let _ = client.attempt(&next).unwrap();
            let file_name = FileName::of(&first.name);
            let visit = client.places.find(&file_name).unwrap();
            // The watcher needs this mutex too, so it wakes nobody meanwhile.
            let mut place = visit.lock();
            let now = Instant::now();
            place.ours_since = Some(if is_long {
                now.checked_sub(2 * AMONG_OURSELVES).unwrap()
            } else {
                now + AMONG_OURSELVES
            });
            let held = place.held.pop().unwrap();
            let freed = client.give_up(&mut place, &file_name, held, true);
            assert_eq!(freed, Released::Freed);
            assert_eq!(place.yields, is_long && watch == Watch::On);
            assert_eq!(place.ours_since.is_none(), is_long);
        }
    }

    #[test]
    fn a_drop_relies_on_the_watch_and_a_release_looks() {
        for (watch, certain, freed) in [
            (Watch::On, false, Released::Freed),
            (Watch::On, true, Released::NotHeld),
            (Watch::Off, false, Released::NotHeld),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let settings = FsSettings::new(dir.path()).with_watch(watch);
            let client = FsBackend::with_settings(&settings).unwrap().client;
            let request = request(Mode::Exclusive, Patience::Once);
            let _ = client.attempt(&request).unwrap();
            let file_name = FileName::of(&request.name);
            let visit = client.places.find(&file_name).unwrap();
            // The watcher needs this mutex, so it has not told of the loss yet.
            let mut place = visit.lock();
            std::fs::remove_file(dir.path().join("a.lock")).unwrap();
            let held = place.held.pop().unwrap();
            let given_up = client.give_up(&mut place, &file_name, held, certain);
            assert_eq!(given_up, freed, "{watch:?} {certain}");
        }
    }

    /// The list of readers beside the lost file is that of the new file.
    #[test]
    fn a_lost_reader_that_is_dropped_takes_nobody_off_the_list_of_readers() {
        for watch in [Watch::On, Watch::Off] {
            let dir = tempfile::tempdir().unwrap();
            let settings = FsSettings::new(dir.path()).with_watch(watch);
            let client = FsBackend::with_settings(&settings).unwrap().client;
            let lost = request(Mode::Shared, Patience::Once);
            let _ = client.attempt(&lost).unwrap();
            std::fs::remove_file(dir.path().join("a.lock")).unwrap();
            client.tell(&Change::Replaced("a.lock".into()));
            let seen = client.inspect(&lost.name).unwrap();
            assert_eq!(seen.holders.is_empty(), watch == Watch::On);
            let other = FsBackend::open(dir.path()).unwrap().client;
            let _ = other
                .attempt(&request(Mode::Shared, Patience::Once))
                .unwrap();
            client.free(&lost, false);
            let seen = client.inspect(&lost.name).unwrap();
            assert_eq!(seen.holders.len(), 1, "{watch:?}");
        }
    }

    /// A forked child may have a copy of the open file, and the file may be put back in its place.
    #[test]
    fn a_lost_lock_file_is_unlocked_like_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let client = FsBackend::open(dir.path()).unwrap().client;
        let lost = request(Mode::Exclusive, Patience::Once);
        let _ = client.attempt(&lost).unwrap();
        let file_name = FileName::of(&lost.name);
        let visit = client.places.find(&file_name).unwrap();
        let _copy = visit.lock().held[0].file.file().try_clone().unwrap();
        let (path, away) = (dir.path().join("a.lock"), dir.path().join("away"));
        std::fs::rename(&path, &away).unwrap();
        client.tell(&Change::Replaced("a.lock".into()));
        std::fs::rename(&away, &path).unwrap();
        assert_eq!(client.free(&lost, true), Released::NotHeld);
        let next = request(Mode::Exclusive, Patience::Once);
        let attempt = client.attempt(&next).unwrap();
        assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
    }
}
