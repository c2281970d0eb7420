//! Acquiring, with synchronous calls: between this process's queue and the file system.

use std::{
    io,
    sync::{Arc, MutexGuard, OnceLock, Weak},
    time::Duration,
};

use portalock_core::{
    Attempt, Contention, FencingToken, Grant, Holder, Lease, LockRequest, Loss, Mode, Patience,
    WakeSender, clock::Instant,
};

use super::{
    breaking::marked_owner,
    name::FileName,
    queue::{Held, Place, Places},
    store::Store,
};
use crate::{
    locking::{FORKED, FsError, Location, LockFile},
    sys::{Change, Registration, Watched, Watcher},
};

/// How often a waiter checks that will be woken by the waiter ahead of it in this process.
const BEHIND_OTHERS: Duration = Duration::from_secs(60);

/// How long a lock is left to other processes if the event of its release does not arrive.
const YIELD: Duration = Duration::from_millis(1);

/// What all clones of a backend share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) store: Store,
    pub(crate) places: Places,
    /// The watcher, and the watch of the directory. Empty if that can't be watched: waiters poll, and a removed lock file is
    /// not noticed.
    pub(crate) watch: OnceLock<(Arc<Watcher>, Registration)>,
    /// Whom the watcher tells.
    pub(crate) this: Weak<Self>,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) poll_interval: Duration,
    /// The longest pause of a waiter that the system wakes.
    pub(crate) watched_interval: Duration,
}

impl Client {
    /// Runs file system calls. Fails in a forked child; errors get the directory.
    pub(crate) fn run<T>(
        &self,
        call: impl FnOnce(&Self) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        // A thread of the parent may have held a mutex during the fork, so don't wait for one here.
        if self.store.origin.is_elsewhere() {
            let cause = io::Error::other("it was opened before this process was forked");
            let error = FsError::new("use the lock directory", cause).meaning(FORKED);
            return Err(error.at(&self.store.path));
        }
        call(self).map_err(|error| {
            let directory = &self.store.path;
            let path = error.path().map(|file| directory.join(file));
            error.at(path.as_ref().unwrap_or(directory))
        })
    }

    /// Makes one attempt for `request`. If it is contended without a known holder, there may be none: `inspect` may have
    /// the file locked for a microsecond, or a new holder has not written its record yet.
    pub(crate) fn attempt(&self, request: &LockRequest) -> Result<Attempt, FsError> {
        let file_name = FileName::of(&request.name);
        let visit = self.places.enter(&file_name);
        let mut place = visit.lock();
        let was_watched = place.contender.hears_of_release();
        let answer = self.attempt_in(&mut place, &file_name, request);
        place.settle();
        // A reader that came between the release and its event has ended the watch of the readers that wait for the event.
        let is_missed = was_watched
            && !place.contender.hears_of_release()
            && place.in_the_way(Mode::Shared).is_none();
        drop(place);
        if is_missed {
            visit.change(|_| ());
        }
        answer
    }

    fn attempt_in(
        &self,
        place: &mut MutexGuard<'_, Place>,
        file_name: &FileName,
        request: &LockRequest,
    ) -> Result<Attempt, FsError> {
        if let Some(held) = place.held_by(request.owner) {
            return Ok(Attempt::Granted(held.grant()));
        }
        let waits = request.patience == Patience::Queue;
        let in_the_way = place.in_the_way(request.demand);
        if in_the_way.is_some() || !place.has_turn(request.owner, request.demand) {
            // The waiter ahead in this process wakes this one, so no file system call is needed.
            let holder = match in_the_way.or(place.held.first()) {
                Some(held) => Some(held.entry().holder.clone()),
                None => self.present_holder(place, file_name),
            };
            let contention = self.contended(place, request, holder).with_queued(waits);
            let contention = contention.with_recheck_after(BEHIND_OTHERS);
            return Ok(Attempt::Contended(contention));
        }
        if std::mem::take(&mut place.yields) {
            let contention = self.contended(place, request, None);
            return Ok(Attempt::Contended(contention.with_recheck_after(YIELD)));
        }
        self.contend(place, file_name, request)
    }

    /// It is this owner's turn in this process: it contends with other processes.
    fn contend(
        &self,
        place: &mut Place,
        file_name: &FileName,
        request: &LockRequest,
    ) -> Result<Attempt, FsError> {
        let waits = request.patience == Patience::Queue;
        let watch = |file: &LockFile| waits.then(|| self.watch_file(file_name, file)).flatten();
        let location = self.store.file(file_name);
        let locked = place.contender.try_lock(&location, request.demand, watch)?;
        if let Some(locked) = locked
            && let Some(grant) = self.grant(place, file_name, locked, request)?
        {
            return Ok(Attempt::Granted(grant));
        }
        let holder = self.present_holder(place, file_name);
        let mut contention = self.contended(place, request, holder);
        // Not `queued`, although a wake-up is kept for the subscriber: the engine's second attempt costs a few system
        // calls, and with short holds it often gets the lock that a sleep and a wake-up would have to wait for.
        let watched = place.contender.hears_of_release();
        let most = if watched {
            self.watched_interval
        } else {
            self.poll_interval
        };
        contention.recheck_after = place.next_poll(request.owner, most, watched);
        Ok(Attempt::Contended(contention))
    }

    /// The file is locked since `now`: draws a token, and writes the holder. `None` if another process is drawing a token and
    /// doesn't get to run.
    fn grant(
        &self,
        place: &mut Place,
        file_name: &FileName,
        (file, now): (LockFile, FencingToken),
        request: &LockRequest,
    ) -> Result<Option<Grant>, FsError> {
        if let Some((watcher, _)) = self.watch.get() {
            watcher.keep_looking();
        }
        let holder = self.holder(request);
        let written = self
            .store
            .write_grant(file_name, &file, now, request, holder);
        let Ok(Some(written)) = written else {
            file.free();
            return written.map(|_| None);
        };
        let held = Held {
            written,
            file,
            lease: self.watch.get().map(|_| Lease::unbounded()),
        };
        let grant = held.grant();
        if place.held.is_empty() {
            // Most names have one holder. Space for four would be most of the memory of a held lock.
            place.held.reserve_exact(1);
        }
        place.held.push(held);
        place.leave(request.owner);
        place.ours_since.get_or_insert_with(Instant::now);
        Ok(Some(grant))
    }

    /// The lock is contended. If the request waits, it takes a place in the queue.
    fn contended(
        &self,
        place: &mut Place,
        request: &LockRequest,
        holder: Option<Holder>,
    ) -> Contention {
        if request.patience == Patience::Queue {
            place.join(request.owner, request.demand, &self.holder(request));
        }
        Contention::new().with_holder(holder)
    }

    /// Subscribes a waiter. False if it does not wait.
    pub(crate) fn listen(&self, request: &LockRequest, line: WakeSender) -> bool {
        if self.store.origin.is_elsewhere() {
            return false;
        }
        let file_name = FileName::of(&request.name);
        self.places
            .find(&file_name)
            .is_some_and(|visit| visit.lock().listen(request.owner, line))
    }

    /// The holder, from the record in the contender's file; none if the record can't be read or is being written.
    fn present_holder(&self, place: &Place, file_name: &FileName) -> Option<Holder> {
        let file = place.contender.file()?;
        let (_, present) = self.store.look(file_name, file, 1).ok()?;
        present.into_iter().next().map(|entry| entry.holder)
    }

    fn holder(&self, request: &LockRequest) -> Holder {
        let mut holder = request.holder.clone().since_now();
        holder.label = holder.label.or_else(|| self.label.clone());
        holder
    }

    /// Watches the file that this process contends for. If the system refuses a watch, the waiters poll.
    pub(crate) fn watch_file(&self, file_name: &FileName, file: &LockFile) -> Option<Registration> {
        let (watcher, _) = self.watch.get()?;
        watcher
            .watch(file.file(), Some(file_name.as_str()), self.this.clone())
            .inspect_err(|error| tracing::debug!(%error, "a lock file can't be watched: polling"))
            .ok()
    }

    /// Ends the leases of the holders of `file_name` whose file is no longer there.
    fn verify(&self, file_name: &FileName) {
        let Some(visit) = self.places.find(file_name) else {
            return;
        };
        let location = self.store.file(file_name);
        // An error says nothing about the file.
        let is_lost = |held: &&Held| matches!(location.is_current(&held.file), Ok(false));
        let place = visit.lock();
        let lost = place.held.iter().filter(is_lost);
        let leases: Vec<_> = lost.filter_map(|held| held.lease.clone()).collect();
        // The wake-up may drop the guard, which uses the place.
        drop(place);
        for lease in leases {
            let file = file_name.as_str();
            let what = format!("{file} was removed or replaced, or its path leads elsewhere");
            lease.end(Loss::Removed(what.into()));
        }
        // Waiters are woken, because they must continue with the file that is there now, if any.
        visit.change(|_| ());
    }
}

impl Watched for Client {
    fn tell(&self, change: &Change) {
        match change {
            Change::Closed(file) => {
                if let Some(visit) = self.places.find(&FileName::existing(file)) {
                    visit.change(|place| place.yields = false);
                }
            }
            Change::Replaced(file) => match marked_owner(file) {
                // It may be the one that this client has removed, and the owner may hold anew.
                Some(owner) if self.store.dir.exists(&**file) => self.heed(owner),
                Some(_) => {}
                None => self.verify(&FileName::existing(file)),
            },
            Change::Everything => {
                self.heed_all();
                for file_name in self.places.names() {
                    self.verify(&file_name);
                }
            }
        }
    }

    fn look(&self) -> bool {
        if !self.places.have_holders() {
            return false;
        }
        if self.store.ensure_in_place().is_err() {
            self.tell(&Change::Everything);
        }
        true
    }
}

#[cfg(test)]
mod tests;
