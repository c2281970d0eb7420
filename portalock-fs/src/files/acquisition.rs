//! One acquisition of a user's own files, as the engine sees it: open, lock, free. Mostly of one file; of several, where so many
//! of them are wanted, such as the permits of a semaphore.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Contention, CrashRelease, Grant, Holder, Lock,
    LockBackend, LockError, LockRequest, Loss, Mode, Patience, Released, Scope, Wakeups, wakeups,
};

use super::spec::Spec;
use crate::{
    locking::{Contender, FsError, Line, Location, LockFile},
    sys,
};

/// The backend of one acquisition, or of several one after the other.
#[derive(Debug)]
pub(crate) struct Acquisition {
    /// Any of these files.
    specs: Vec<Spec>,
    /// How many of them, all or none.
    wanted: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// While it waits, one for each file.
    contenders: Vec<Contender>,
    /// Where the waiter is woken, once the engine listens.
    line: Option<Line>,
    /// Who was last seen holding one of the files.
    seen: Option<Holder>,
    held: Vec<Held>,
}

/// A file that is locked.
#[derive(Debug)]
struct Held {
    /// Which of the specs it is.
    number: usize,
    mode: Mode,
    file: Arc<LockFile>,
}

impl Acquisition {
    /// The lock on one file.
    pub(crate) fn lock_on(spec: Spec) -> Result<Lock<Self>, LockError> {
        let name = spec.name()?;
        Ok(Lock::new(Self::of_some(vec![spec], 1), name)?)
    }

    /// Of as many as are `wanted` of these files. They are tried in this order.
    pub(crate) fn of_some(specs: Vec<Spec>, wanted: usize) -> Self {
        Self {
            specs,
            wanted,
            state: Mutex::default(),
        }
    }

    /// The path of the first of its files.
    pub(crate) fn path(&self) -> &Path {
        let first = self.specs.first();
        first.map_or(Path::new(""), Spec::given_path)
    }

    /// The first file that is held.
    pub(crate) fn file(&self) -> Option<Arc<LockFile>> {
        self.lock().held.first().map(|held| held.file.clone())
    }

    /// Leaves what is held locked, for somebody else to unlock.
    pub(crate) fn keep(&self) {
        self.lock().held.clear();
    }

    /// Why one of the files is no longer held, if it isn't.
    pub(crate) fn loss(&self) -> Result<Option<Loss>, FsError> {
        for held in &self.lock().held {
            if held.file.is_inherited() {
                let what = "it belongs to the process that this one was forked from";
                return Ok(Some(Loss::Removed(what.into())));
            }
            let spec = &self.specs[held.number];
            if !spec.is_current(&held.file)? {
                return Ok(Some(spec.loss()));
            }
        }
        Ok(None)
    }

    fn attempt(&self, mode: Mode, patience: Patience) -> Result<Attempt, FsError> {
        let mut state = self.lock();
        if state.held.is_empty() {
            let mut contenders = std::mem::take(&mut state.contenders);
            contenders.resize_with(self.specs.len(), Contender::default);
            let mut held = Vec::new();
            let holder = self.take(&mut contenders, state.line.as_ref(), mode, &mut held);
            if held.len() < self.wanted || holder.is_err() {
                // All or none.
                for held in held {
                    self.free(held)?;
                }
                if patience == Patience::Queue {
                    state.contenders = contenders;
                }
                return Ok(Attempt::Contended(state.contention(holder?)));
            }
            state.held = held;
        }
        Ok(Attempt::Granted(Grant::new()))
    }

    /// Locks files until there are enough. Who has the first of the others, if that can be told.
    fn take(
        &self,
        contenders: &mut [Contender],
        line: Option<&Line>,
        mode: Mode,
        held: &mut Vec<Held>,
    ) -> Result<Option<Holder>, FsError> {
        let mut holder = None;
        for (number, (spec, contender)) in self.specs.iter().zip(contenders).enumerate() {
            if held.len() == self.wanted {
                break;
            }
            let Some(file) = contender.try_lock(spec, mode, |file| line?.watch_file(file).ok())?
            else {
                holder = holder.or_else(|| spec.holder(contender.file()?.file()));
                if sys::LOCKED_FILES_STAY && spec.goes_with_lock {
                    // A waiter that has it open would keep its holder from removing it.
                    *contender = Contender::default();
                }
                continue;
            };
            let file = Arc::new(file);
            held.push(Held {
                number,
                mode,
                file: file.clone(),
            });
            spec.begin(file.file())?;
        }
        Ok(holder)
    }

    /// Frees what is held. The first failure is reported, and none keeps the rest from being freed. `NotHeld` if one of the
    /// files was lost before, or nothing is held.
    fn end(&self) -> Result<Released, FsError> {
        let state = std::mem::take(&mut *self.lock());
        let ends: Vec<_> = state.held.into_iter().map(|held| self.free(held)).collect();
        let ends = ends.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(if ends.is_empty() || ends.contains(&Released::NotHeld) {
            Released::NotHeld
        } else {
            Released::Freed
        })
    }

    /// Frees one file: if it goes with its lock it is removed before it is unlocked.
    fn free(&self, held: Held) -> Result<Released, FsError> {
        let Held { number, mode, file } = held;
        if file.is_inherited() {
            return Ok(Released::NotHeld);
        }
        let spec = &self.specs[number];
        let is_ours = spec.is_current(&file);
        // What stands there now may be another's.
        let goes = spec.goes_with_lock && matches!(is_ours, Ok(true)) && is_alone(&file, mode);
        let remove = || removed(&spec.path, sys::remove_lock_file(&spec.path));
        // Removed while still locked: between unlock and removal another could lock the file, and a third one a new one.
        // The pid file goes first: once the lock file has gone, the next holder locks a new one and has a pid file.
        let mut done = Ok(());
        if goes && let Some(pid_file) = &spec.pid_file {
            done = removed(pid_file, sys::remove_file(pid_file));
        }
        if goes && !sys::LOCKED_FILES_STAY {
            done = done.and(remove());
        }
        done = done.and(file.unlock().map_err(|error| spec.at(error)));
        drop(file);
        if goes && sys::LOCKED_FILES_STAY {
            done = done.and(remove());
        }
        done?;
        Ok(if is_ours? {
            Released::Freed
        } else {
            Released::NotHeld
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn contention(&mut self, now: Option<Holder>) -> Contention {
        let pid = |holder: &Option<Holder>| holder.as_ref().map(|holder| holder.pid);
        // The one seen at first counts from there.
        if pid(&self.seen) != pid(&now) {
            self.seen = now;
        }
        Contention::new().with_holder(self.seen.clone())
    }
}

/// Whether nobody shares the file that is about to be removed. Where an open file can't be removed, trying shows it.
fn is_alone(file: &LockFile, mode: Mode) -> bool {
    mode == Mode::Exclusive
        || sys::LOCKED_FILES_STAY
        || matches!(file.try_lock(Mode::Exclusive), Ok(true))
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
impl LockBackend for Acquisition {
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
        let Ok(line) = Line::new(sender) else {
            return Ok(None);
        };
        // The engine asks once, and tries again afterwards: that attempt starts to watch.
        self.lock().line = Some(line);
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
