//! One acquisition of one file, as the engine sees it: open, lock, check that the path still names what was locked.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Contention, CrashRelease, Grant, Holder, LockBackend,
    LockRequest, Loss, Mode, Patience, Released, Scope, Wakeups, wakeups,
};

use crate::{
    FsError,
    fork::Origin,
    line::{Line, Listening},
    spec::{Ending, Handle, Spec, Witness},
    sys, try_lock, unlock,
};

/// How often a path that is replaced between open and lock is opened anew, before the answer is "contended" and the
/// caller's deadline decides.
const REOPENS: usize = 16;

/// The backend of one acquisition.
#[derive(Debug)]
pub(crate) struct OneFile {
    spec: Spec,
    state: Mutex<State>,
    /// Where the waiter is woken, once the engine listens.
    line: Mutex<Option<Line>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    Waiting(Candidate),
    Held {
        handle: Arc<Handle>,
        mode: Mode,
        origin: Origin,
    },
}

/// A file that is open but not locked, and kept so between two attempts.
#[derive(Debug)]
struct Candidate {
    /// Declared before the handle, whose closing is not to be heard.
    listening: Option<Listening>,
    handle: Handle,
    seen: Option<Holder>,
}

impl OneFile {
    pub(crate) fn new(spec: Spec) -> Self {
        Self {
            spec,
            state: Mutex::default(),
            line: Mutex::default(),
        }
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Has the waiter woken on `line` from the next attempt on.
    pub(crate) fn listen_on(&self, line: Line) {
        *self.lock_line() = Some(line);
    }

    fn lock_line(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The locked file.
    pub(crate) fn handle(&self) -> Option<Arc<Handle>> {
        match &*self.lock_state() {
            State::Held { handle, .. } => Some(handle.clone()),
            _ => None,
        }
    }

    /// Whether the path still names the locked file.
    pub(crate) fn check(&self) -> Result<Option<Loss>, FsError> {
        let State::Held { handle, origin, .. } = &*self.lock_state() else {
            return Ok(None);
        };
        if origin.is_elsewhere() {
            let what = "it belongs to the process that this one was forked from";
            return Ok(Some(Loss::Removed(what.into())));
        }
        if self.spec.names(handle)? {
            return Ok(None);
        }
        Ok(Some(self.spec.loss()))
    }

    pub(crate) fn attempt(&self, mode: Mode, patience: Patience) -> Result<Attempt, FsError> {
        let mut state = self.lock_state();
        let mut candidate = match std::mem::take(&mut *state) {
            held @ State::Held { .. } => {
                *state = held;
                return Ok(Attempt::Granted(Grant::new()));
            }
            // What was opened before may have been removed or replaced since.
            State::Waiting(candidate) if self.spec.names(&candidate.handle)? => candidate,
            State::Waiting(_) | State::Closed => self.open()?,
        };
        for _ in 0..REOPENS {
            let locked = try_lock(&*candidate.handle, mode, self.spec.kind)
                .map_err(|error| error.at(&self.spec.path))?;
            if !locked {
                if self.listen(&mut candidate) {
                    // It may have been freed before anybody listened.
                    continue;
                }
                return Ok(Attempt::Contended(
                    self.wait(&mut state, candidate, patience),
                ));
            }
            // Somebody may have removed or replaced the file between our open and our lock: then it is a lock on nothing.
            if self.spec.names(&candidate.handle)? {
                self.empty(&candidate.handle)?;
                *state = State::Held {
                    handle: Arc::new(candidate.handle),
                    mode,
                    origin: Origin::here(),
                };
                return Ok(Attempt::Granted(Grant::new()));
            }
            unlock(&*candidate.handle, self.spec.kind)?;
            candidate = self.open()?;
        }
        Ok(Attempt::Contended(Contention::new()))
    }

    fn open(&self) -> Result<Candidate, FsError> {
        Ok(Candidate {
            listening: None,
            handle: self.spec.open()?,
            seen: None,
        })
    }

    /// Somebody else has it: keeps what the next attempt needs, and says who it is.
    fn wait(&self, state: &mut State, mut candidate: Candidate, patience: Patience) -> Contention {
        let now = match self.spec.witness {
            Witness::System => sys::lock_holder(&candidate.handle),
            Witness::Written(read) => read(&self.spec.path),
        };
        // The one seen at first counts from there.
        if candidate.seen.as_ref().map(|seen| seen.pid) != now.as_ref().map(|now| now.pid) {
            candidate.seen = now;
        }
        let contention = Contention::new().with_holder(candidate.seen.clone());
        // Where a file that is open can't be removed, a waiter must not keep its holder from removing it.
        let keep_open = !sys::LOCKED_FILES_STAY || matches!(self.spec.ending, Ending::Keep);
        if patience == Patience::Queue && keep_open {
            *state = State::Waiting(candidate);
        }
        contention
    }

    /// Listens for the file being closed, if there is a line and nobody listens to this file yet. True if that is new.
    fn listen(&self, candidate: &mut Candidate) -> bool {
        if candidate.listening.is_some() {
            return false;
        }
        candidate.listening = self
            .lock_line()
            .as_ref()
            .and_then(|line| line.listen(&candidate.handle));
        candidate.listening.is_some()
    }

    /// Empties the file if the mode says so: only now that it is locked.
    fn empty(&self, handle: &Handle) -> Result<(), FsError> {
        if self.spec.options.is_some() || !self.spec.mode.truncates() {
            return Ok(());
        }
        handle.set_len(0).map_err(|error| {
            // Closing would free it too, but not where a child process has the handle.
            let _ = unlock(&**handle, self.spec.kind);
            self.spec.failed("empty", error)
        })
    }

    /// Frees what is held. The first failure is reported, and none keeps the rest from being done. `NotHeld` if the lock
    /// was lost before, or is another process's.
    pub(crate) fn end(&self) -> Result<Released, FsError> {
        match std::mem::take(&mut *self.lock_state()) {
            // A forked child: unlocking would free the parent's lock, closing our copy does not.
            State::Held { origin, .. } if origin.is_elsewhere() => Ok(Released::NotHeld),
            State::Held { handle, mode, .. } => self.free(handle, mode),
            State::Waiting(_) | State::Closed => Ok(Released::NotHeld),
        }
    }

    fn free(&self, handle: Arc<Handle>, mode: Mode) -> Result<Released, FsError> {
        let is_ours = self.spec.names(&handle);
        // What stands there now is another's.
        let removes = matches!(is_ours, Ok(true)) && self.is_alone(&handle, mode);
        // Removed while still locked: between unlock and removal another could lock the file, and a third one a new one.
        // The companion goes first: once the lock file has gone, the next holder locks a new one and has a companion.
        let mut done = Ok(());
        if removes && let Ending::Remove { companion } = &self.spec.ending {
            if let Some(companion) = companion {
                done = removed(companion, sys::remove_file(companion));
            }
            if !sys::LOCKED_FILES_STAY {
                done = done.and(self.remove());
            }
        }
        done =
            done.and(unlock(&**handle, self.spec.kind).map_err(|error| error.at(&self.spec.path)));
        drop(handle);
        if removes && sys::LOCKED_FILES_STAY && matches!(self.spec.ending, Ending::Remove { .. }) {
            done = done.and(self.remove());
        }
        done?;
        Ok(if is_ours? {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }

    /// Whether nobody shares the file that is about to be removed. Where an open file can't be removed, trying shows it.
    fn is_alone(&self, handle: &Handle, mode: Mode) -> bool {
        mode == Mode::Exclusive
            || sys::LOCKED_FILES_STAY
            || matches!(self.spec.ending, Ending::Keep)
            || matches!(
                try_lock(&**handle, Mode::Exclusive, self.spec.kind),
                Ok(true)
            )
    }

    fn remove(&self) -> Result<(), FsError> {
        let path = &self.spec.path;
        removed(path, sys::remove_lock_file(path))
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OneFile {
    /// Only of use where an attempt for several files won some of them.
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "a file lock could not be freed in good order");
        }
    }
}

/// A file that is gone already is no failure.
fn removed(path: &Path, removed: io::Result<()>) -> Result<(), FsError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FsError::new("remove", error).at(path))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl LockBackend for OneFile {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Host)
            .with_shared(true)
            .with_crash_release(CrashRelease::WithProcess)
            .with_releases_now(true)
            .with_needs_runtime(false)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        Ok(self.attempt(request.demand, request.patience)?)
    }

    async fn subscribe(&self, _request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let (sender, wakeups) = wakeups();
        let Some(line) = Line::new(sender) else {
            return Ok(None);
        };
        // The engine asks once, and tries again afterwards: that attempt starts to listen.
        self.listen_on(line);
        Ok(Some(wakeups))
    }

    async fn release(&self, _request: &LockRequest) -> Result<Released, BackendError> {
        Ok(self.end()?)
    }

    fn release_now(&self, _request: &LockRequest) -> bool {
        if let Err(error) = self.end() {
            let source = error.io_error();
            tracing::warn!(%error, %source, "a file lock was dropped, and something was left behind");
        }
        true
    }
}
