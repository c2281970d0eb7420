//! Releasing, in plain calls. A lock passes to the next one here either by being unlocked, which wakes that one as it wakes
//! other processes, or by being handed on as it is: see [`Stay`] for how long that may go on.

use portalock_core::{LockRequest, Mode, Released};

use crate::{
    acquire::Client,
    name::FileName,
    queue::{Heir, Held, Place},
    stay::Stay,
};

impl Client {
    /// Frees what the owner of `request` holds, or takes it out of the queue.
    ///
    /// `certain` asks whether the lock was really held until now, rather than trust that a loss would have been heard of.
    pub(crate) fn free(&self, request: &LockRequest, certain: bool) -> Released {
        if self.origin.is_elsewhere() {
            // A forked child: unlocking would free the parent's lock, closing our copies does not. A thread of the parent
            // may have had the places locked when it forked: nothing here may wait for that.
            return Released::NotHeld;
        }
        let file_name = FileName::of(&request.name);
        let Some(visit) = self.places.find(&file_name) else {
            return Released::NotHeld;
        };
        let mut place = visit.lock();
        let held = place
            .held
            .iter()
            .position(|held| held.owner == request.owner)
            .map(|at| place.held.swap_remove(at));
        if held.is_none() && place.leave(request.owner) {
            place.wake_first();
        }
        let released = held.map_or(Released::NotHeld, |held| {
            self.give_up(&mut place, &file_name, held, certain)
        });
        place.settle();
        released
    }

    /// Frees what was held, or hands it on.
    fn give_up(
        &self,
        place: &mut Place,
        file_name: &FileName,
        held: Held,
        certain: bool,
    ) -> Released {
        let heir = self.heir(place, &held);
        let is_there = (certain || heir.is_some())
            .then(|| self.store.is_current(file_name, &held.file))
            .transpose();
        if held.is_lost() || matches!(is_there, Ok(Some(false))) {
            self.store.unlock(&held.file);
            drop(held);
            place.wake_first();
            return Released::NotHeld;
        }
        let held = match (heir, is_there) {
            (Some((heir, stay)), Ok(_)) => match self.hand_on(place, file_name, held, heir, stay) {
                None => return Released::Freed,
                Some(held) => held,
            },
            _ => held,
        };
        self.store.note_release(file_name, &held.file, held.written);
        self.unlock(place, file_name, held);
        Released::Freed
    }

    /// Who is to have the lock next without its being unlocked, if other processes have not been kept waiting by that for
    /// too long. Only where they are told of the release that follows.
    fn heir(&self, place: &Place, held: &Held) -> Option<(Heir, Stay)> {
        if self.watch.is_none() || held.mode == Mode::Shared {
            return None;
        }
        let mut heir = place.heir()?;
        heir.holder = heir.holder.since_now();
        let stay = held.stay.longer(heir.holder.since)?;
        Some((heir, stay))
    }

    /// Makes the lock `heir`'s: locked as it is. Given back if that can't be.
    fn hand_on(
        &self,
        place: &mut Place,
        file_name: &FileName,
        held: Held,
        heir: Heir,
        stay: Stay,
    ) -> Option<Held> {
        let written = self
            .store
            .write_next(file_name, &held.file, held.written, &heir.holder);
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                tracing::debug!(%error, "a lock could not be handed on: it is unlocked instead");
                return Some(held);
            }
        };
        let Heir {
            owner,
            holder,
            line,
        } = heir;
        let handed = Held {
            owner,
            mode: held.mode,
            written,
            file: held.file,
            holder,
            lease: self.lease(),
            stay,
        };
        if !line.grant(handed.grant()) {
            // It is about to leave, and would only have freed it.
            return Some(handed);
        }
        place.leave(owner);
        place.held.push(handed);
        None
    }

    /// Unlocks and closes the file, and has those who wait here woken.
    fn unlock(&self, place: &mut Place, file_name: &FileName, held: Held) {
        if held.stay.was_handed_on() && place.waiters().next().is_some() {
            // Other processes were passed over: whoever is first here tries when it hears of the release as they do.
            place.watching = self.watch_file(file_name, &held.file);
            place.yields = place.watching.is_some();
        }
        self.store.unlock(&held.file);
        drop(held);
        place.wake_first();
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{FsBackend, LockKind, try_lock};
    use portalock_core::{Attempt, LockBackend, LockName, Patience, wakeups};

    fn request(patience: Patience) -> LockRequest {
        LockRequest::new(LockName::new("a").unwrap(), Mode::Exclusive, patience)
    }

    #[tokio::test]
    async fn a_lock_that_cannot_be_handed_on_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        let backend = FsBackend::open(dir.path()).unwrap();
        let client = backend.client();
        let (first, next) = (request(Patience::Once), request(Patience::Queue));
        let granted = client.attempt(&first).unwrap();
        assert!(matches!(granted, Attempt::Granted(_)));
        let _ = client.attempt(&next).unwrap();
        let (line, mut told) = wakeups();
        assert!(client.listen(&next, line));
        // The same file, but nothing can be written to it: as where a disk fails.
        let unwritable = client.store.dir.open("a.lock").unwrap();
        let file_name = FileName::of(&first.name);
        let visit = client.places.find(&file_name).unwrap();
        visit.lock().held[0].file.file = unwritable;
        let locked = try_lock(
            &visit.lock().held[0].file.file,
            Mode::Exclusive,
            LockKind::Flock,
        );
        assert!(locked.unwrap());
        assert_eq!(client.free(&first, true), Released::Freed);
        assert!(matches!(told.next().await, portalock_core::Wake::TryNow));
        let other = FsBackend::open(dir.path()).unwrap();
        let taken = other.try_acquire(&request(Patience::Once)).await.unwrap();
        assert!(matches!(taken, Attempt::Granted(_)));
    }
}
