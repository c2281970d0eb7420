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
    /// With `certain` it checks that the lock was held until now, instead of relying on the watch to report a loss.
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
        let is_gone =
            || certain && matches!(self.store.file(file_name).is_current(&held.file), Ok(false));
        if held.is_lost() || is_gone() {
            held.file.free();
            return Released::NotHeld;
        }
        self.store
            .note_release(file_name, &held.file, &held.written);
        let is_long = |since: portalock_core::clock::Instant| since.elapsed() > AMONG_OURSELVES;
        if place.ours_since.is_some_and(is_long) && place.waiters().next().is_some() {
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
    use portalock_core::{LockName, Mode, Patience, clock::Instant};

    use super::{super::FsBackend, *};

    #[test]
    fn a_client_that_had_it_for_long_lets_others_hear_of_the_release_first() {
        for is_long in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let client = FsBackend::open(dir.path()).unwrap().client;
            let request =
                |patience| LockRequest::new(LockName::new("a").unwrap(), Mode::Exclusive, patience);
            let (first, next) = (request(Patience::Once), request(Patience::Queue));
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
            assert_eq!(place.yields, is_long);
        }
    }
}
