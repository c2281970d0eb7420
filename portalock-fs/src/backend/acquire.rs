//! Acquiring, in plain calls: what happens between this process's queue and the file system.

use std::{
    io,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use portalock_core::{
    Attempt, Contention, Holder, Lease, LockRequest, Loss, Patience, WakeSender, clock::Instant,
};

use super::{
    name::FileName,
    queue::{Held, Place, Places},
    store::Store,
};
use crate::{
    locking::{DirectoryWatch, FsError, FsErrorKind, Location, LockFile},
    sys::{Registration, Watched},
};

/// How long a lock is tried that is busy though nobody is known to hold it. It takes microseconds, unless whoever has it is
/// kept from running.
const PASSING: Duration = Duration::from_millis(50);

/// How often one looks who is sure to be woken by those before it in this process.
const BEHIND_OTHERS: Duration = Duration::from_secs(60);

/// How long a lock is left to other processes, should the news of its release not arrive.
const YIELD: Duration = Duration::from_millis(1);

/// What all clones of a backend share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) store: Store,
    pub(crate) places: Places,
    /// None where nothing can be watched: waiters poll, and a removed lock file is not noticed.
    pub(crate) watch: Option<DirectoryWatch>,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) poll_interval: Duration,
}

impl Client {
    /// An error in a forked child. Nothing may be locked before this: a thread of the parent may have had it locked as it
    /// forked.
    pub(crate) fn ensure_here(&self) -> Result<(), FsError> {
        if !self.store.origin.is_elsewhere() {
            return Ok(());
        }
        let cause = io::Error::other("it was opened before this process was forked");
        let error = FsError::with_kind(FsErrorKind::Forked, "use the lock directory", cause);
        Err(self.locate(error))
    }

    /// One attempt for `request`.
    pub(crate) fn attempt(&self, request: &LockRequest) -> Result<Attempt, FsError> {
        self.ensure_here()?;
        let file_name = FileName::of(&request.name);
        let visit = self.places.enter(&file_name);
        let mut place = visit.lock();
        let answer = self.attempt_in(&mut place, &file_name, request);
        place.settle();
        drop(place);
        answer.map_err(|error| self.locate(error))
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
        let in_the_way = place.in_the_way(request.demand);
        if in_the_way.is_some() || !place.has_turn(request.owner, request.demand) {
            // Whoever is before us here wakes us: no need to trouble the file system.
            let candidate = place.contender.file();
            let holder = match (in_the_way.or(place.held.first()), candidate) {
                (Some(held), _) => Some(held.holder.clone()),
                (None, Some(file)) => self.present_holder(file_name, file),
                (None, None) => None,
            };
            let mut contention = Contention::new().with_holder(holder);
            if request.patience == Patience::Queue {
                place.join(request.owner, request.demand, &self.holder(request));
                contention = contention
                    .with_queued(true)
                    .with_recheck_after(BEHIND_OTHERS);
            }
            return Ok(Attempt::Contended(contention));
        }
        if request.patience == Patience::Queue && std::mem::take(&mut place.yields) {
            place.join(request.owner, request.demand, &self.holder(request));
            return Ok(Attempt::Contended(
                Contention::new().with_recheck_after(YIELD),
            ));
        }
        self.contend(place, file_name, request)
    }

    /// It is this owner's turn here: it contends with other processes.
    fn contend(
        &self,
        place: &mut Place,
        file_name: &FileName,
        request: &LockRequest,
    ) -> Result<Attempt, FsError> {
        let (mode, waits) = (request.demand, request.patience == Patience::Queue);
        let location = self.store.file(file_name);
        let watch = |file: &LockFile| waits.then(|| self.watch_file(file_name, file)).flatten();
        let start = Instant::now();
        let holder = loop {
            if let Some(file) = place.contender.try_lock(&location, mode, watch)? {
                return self.granted(place, file_name, file, request);
            }
            let candidate = place.contender.file();
            let holder = candidate.and_then(|file| self.present_holder(file_name, file));
            if waits || holder.is_some() {
                break holder;
            }
            // One who only looks has it, for a microsecond, or a holder is about to write down that it holds. This must not
            // be answered with "locked" before it is known which.
            if start.elapsed() >= PASSING {
                break holder;
            }
            std::thread::yield_now();
        };
        let mut contention = Contention::new().with_holder(holder);
        if waits {
            place.join(request.owner, mode, &self.holder(request));
            if !place.contender.hears_of_release() {
                contention.recheck_after = place.next_poll(request.owner, self.poll_interval);
            }
        }
        Ok(Attempt::Contended(contention))
    }

    /// The file is locked: draws a token, and writes down who holds.
    fn granted(
        &self,
        place: &mut Place,
        file_name: &FileName,
        file: LockFile,
        request: &LockRequest,
    ) -> Result<Attempt, FsError> {
        let holder = self.holder(request);
        let mode = request.demand;
        let written = self.start_watching().and_then(|()| {
            self.store
                .write_grant(file_name, &request.name, &file, mode, &holder)
        });
        let written = match written {
            Ok(Some(written)) => written,
            Ok(None) => {
                file.free();
                return self.no_token(place, file_name, request);
            }
            Err(error) => {
                file.free();
                return Err(error);
            }
        };
        let held = Held {
            owner: request.owner,
            mode,
            written,
            file,
            holder,
            lease: self.watch.is_some().then(Lease::unbounded),
        };
        let grant = held.grant();
        if place.held.is_empty() {
            // Most names have one holder: room for four would be most of what a held lock takes.
            place.held.reserve_exact(1);
        }
        place.held.push(held);
        place.leave(request.owner);
        place.ours_since.get_or_insert_with(Instant::now);
        Ok(Attempt::Granted(grant))
    }

    /// The lock could be had, but its token could not: another process is kept from running while it draws one.
    fn no_token(
        &self,
        place: &mut Place,
        file_name: &FileName,
        request: &LockRequest,
    ) -> Result<Attempt, FsError> {
        if request.patience == Patience::Once {
            let cause = io::Error::other("another process is drawing a token and does not go on");
            let error = FsError::with_kind(FsErrorKind::Unavailable, "draw a token for", cause);
            return Err(error.at(file_name.as_str()));
        }
        place.join(request.owner, request.demand, &self.holder(request));
        let mut contention = Contention::new();
        contention.recheck_after = place.next_poll(request.owner, self.poll_interval);
        Ok(Attempt::Contended(contention))
    }

    /// Opens a waiter's line. False if it does not wait.
    pub(crate) fn listen(&self, request: &LockRequest, line: WakeSender) -> bool {
        if self.store.origin.is_elsewhere() {
            return false;
        }
        let file_name = FileName::of(&request.name);
        self.places
            .find(&file_name)
            .is_some_and(|visit| visit.lock().listen(request.owner, line))
    }

    /// Who holds by what the lock file says; nobody if it can't be read or is just being written.
    fn present_holder(&self, file_name: &FileName, file: &LockFile) -> Option<Holder> {
        let record = self.store.read(file_name, file).ok()?;
        let present = self.store.present(file_name, &record, 1);
        present.into_iter().next().map(|entry| entry.holder)
    }

    fn holder(&self, request: &LockRequest) -> Holder {
        let mut holder = request.holder.clone().since_now();
        if holder.label.is_none() {
            holder.label.clone_from(&self.label);
        }
        holder
    }

    fn start_watching(&self) -> Result<(), FsError> {
        let Some(watch) = &self.watch else {
            return Ok(());
        };
        watch.start().map_err(|error| {
            let action = "start the thread that watches";
            FsError::with_kind(FsErrorKind::Unavailable, action, error)
        })
    }

    /// Watches the file that this process contends for. Without a watch, which the system may refuse at any time, its
    /// waiters poll.
    pub(crate) fn watch_file(&self, file_name: &FileName, file: &LockFile) -> Option<Registration> {
        let watching = self.watch.as_ref()?.watch_file(file, file_name.as_str());
        watching
            .inspect_err(|error| tracing::debug!(%error, "a lock file can't be watched: polling"))
            .ok()
    }

    /// Says in which directory it was.
    pub(crate) fn locate(&self, error: FsError) -> FsError {
        match (&self.store.path, error.path()) {
            (Some(directory), Some(file)) => {
                let path = directory.join(file);
                error.at(path)
            }
            (Some(directory), None) => error.at(directory),
            (None, _) => error,
        }
    }

    /// Ends the leases of those who hold `file_name` through a file that is no longer there.
    fn verify(&self, file_name: &FileName) {
        let Some(visit) = self.places.find(file_name) else {
            return;
        };
        let mut place = visit.lock();
        for held in &place.held {
            let Some(lease) = &held.lease else {
                continue;
            };
            // An error would say nothing about the file.
            if let Ok(false) = self.store.file(file_name).is_current(&held.file) {
                let file = file_name.as_str();
                let what = format!("{file} was removed or replaced, or its path leads elsewhere");
                lease.end(Loss::Removed(what.into()));
            }
        }
        // Those who wait must go on to the file that is there now, if any.
        place.wake_first();
    }
}

impl Watched for Client {
    fn closed(&self, file: &str) {
        let file_name = FileName::existing(file);
        if let Some(visit) = self.places.find(&file_name) {
            let mut place = visit.lock();
            place.yields = false;
            place.wake_first();
        }
    }

    fn replaced(&self, file: &str) {
        self.verify(&FileName::existing(file));
    }

    fn everything_changed(&self) {
        for file_name in self.places.names() {
            self.verify(&file_name);
        }
    }

    fn look(&self) -> bool {
        if self.places.names().is_empty() {
            return false;
        }
        if self.store.ensure_in_place().is_err() {
            self.everything_changed();
        }
        true
    }
}
