//! One acquisition of a user's own files, as a backend for the engine: open, lock, release. Usually it is one file; the
//! permits of a semaphore are several.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Contention, CrashRelease, Grant, Holder, Lock,
    LockBackend, LockError, LockRequest, Loss, Mode, Patience, Released, Scope, WakeSender,
    Wakeups, wakeups,
};

use super::spec::Spec;
use crate::{
    locking::{Contender, FileWatch, FsError, Location, LockFile},
    sys,
};

/// The backend of one acquisition, or of several one after the other.
#[derive(Debug)]
pub(crate) struct Acquisition {
    /// The files to choose from.
    specs: Vec<Spec>,
    /// How many of them to lock, all or none.
    wanted: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// One contender for each file, while it waits.
    contenders: Vec<Contender>,
    /// The waiter, once the engine has subscribed, and what wakes it.
    waiter: Option<(Arc<WakeSender>, FileWatch)>,
    /// The last known holder of one of the files.
    seen: Option<Holder>,
    held: Vec<Held>,
}

/// A locked file.
#[derive(Debug)]
struct Held {
    /// The index of its spec.
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

    /// An acquisition of `wanted` of these files, which are tried in this order.
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

    /// The first locked file. The lock must be held.
    #[allow(
        clippy::expect_used,
        reason = "it is called by those who hold the lock"
    )]
    pub(crate) fn file(&self) -> Arc<LockFile> {
        let first = self.lock().held.first().map(|held| held.file.clone());
        first.expect("the lock is held")
    }

    /// Leaves the files locked, for the caller to unlock.
    pub(crate) fn keep(&self) {
        self.lock().held.clear();
    }

    /// Why one of the files was lost, if it was.
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
            let holder = self.take(&mut contenders, state.watch(), mode, &mut held);
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

    /// Locks files until there are enough. Otherwise returns the holder of the first contended file, if it is known.
    fn take(
        &self,
        contenders: &mut [Contender],
        watch: Option<&FileWatch>,
        mode: Mode,
        held: &mut Vec<Held>,
    ) -> Result<Option<Holder>, FsError> {
        let mut holder = None;
        for (number, (spec, contender)) in self.specs.iter().zip(contenders).enumerate() {
            if held.len() == self.wanted {
                break;
            }
            let Some(file) =
                contender.try_lock(spec, mode, |file| watch?.watch_file(file, "").ok())?
            else {
                holder = holder.or_else(|| spec.holder(contender.file()?.file()));
                if sys::LOCKED_FILES_STAY && spec.goes_with_lock {
                    // If a waiter had the file open, the holder could not remove it.
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

    /// Releases all files, even after a failure, and reports the first failure. `NotHeld` if one of the files was lost
    /// before, or if nothing is held.
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

    /// Releases one file. If its spec says so, the file is removed before it is unlocked.
    fn free(&self, held: Held) -> Result<Released, FsError> {
        let Held { number, mode, file } = held;
        if file.is_inherited() {
            return Ok(Released::NotHeld);
        }
        let spec = &self.specs[number];
        let is_ours = spec.is_current(&file);
        // The file that is there now may belong to another holder.
        let goes = spec.goes_with_lock && matches!(is_ours, Ok(true)) && is_alone(&file, mode);
        let remove = || removed(&spec.path, sys::remove_lock_file(&spec.path));
        // Remove the file while it is locked: between an unlock and the removal, another process could lock the file,
        // and a third one a new file. Remove the pid file first: when the lock file is gone, the next holder may create
        // both.
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
    fn watch(&self) -> Option<&FileWatch> {
        self.waiter.as_ref().map(|(_, watch)| watch)
    }

    fn contention(&mut self, now: Option<Holder>) -> Contention {
        let pid = |holder: &Option<Holder>| holder.as_ref().map(|holder| holder.pid);
        // The holder that was seen first.
        if pid(&self.seen) != pid(&now) {
            self.seen = now;
        }
        Contention::new().with_holder(self.seen.clone())
    }
}

/// Whether nobody else shares the file that is about to be removed. If the system can't remove open files, trying to
/// remove it shows this.
fn is_alone(file: &LockFile, mode: Mode) -> bool {
    mode == Mode::Exclusive
        || sys::LOCKED_FILES_STAY
        || matches!(file.try_lock(Mode::Exclusive), Ok(true))
}

/// A file that is already gone is not a failure.
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
        let sender = Arc::new(sender);
        let told: Weak<WakeSender> = Arc::downgrade(&sender);
        let Ok(watch) = FileWatch::new(told, None) else {
            return Ok(None);
        };
        let wakeups = wakeups.with_sleeper(Some(watch.sleeper()));
        // The engine subscribes once, and then tries again: that attempt starts to watch.
        self.lock().waiter = Some((sender, watch));
        Ok(Some(wakeups))
    }

    async fn release(&self, _request: &LockRequest) -> Result<Released, BackendError> {
        Ok(self.end()?)
    }

    fn release_now(&self, _request: &LockRequest) -> bool {
        if let Err(error) = self.end() {
            let source = error.io_error();
            tracing::warn!(%error, %source, "a file lock was dropped, and its file could not be cleaned up");
        }
        true
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use std::time::Duration;

    use portalock_core::Wake;

    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_waiter_names_the_holder_it_saw_first_and_hears_of_its_release() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec::new(&dir.path().join("data")).unwrap();
        let request = LockRequest::new(spec.name().unwrap(), Mode::Exclusive, Patience::Queue);
        let [theirs, ours] = [(); 2].map(|()| Acquisition::lock_on(spec.clone()).unwrap());
        let (theirs, ours) = (theirs.backend(), ours.backend());
        let capabilities = ours.capabilities();
        assert!(capabilities.releases_now && !capabilities.needs_runtime);
        let held = theirs.try_acquire(&request).await.unwrap();
        assert!(matches!(held, Attempt::Granted(_)), "{held:?}");
        let mut wakeups = ours.subscribe(&request).await.unwrap().unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            match ours.try_acquire(&request).await.unwrap() {
                Attempt::Contended(contention) => seen.push(contention.holder),
                granted @ Attempt::Granted(_) => panic!("{granted:?}"),
            }
        }
        // With the time at which it was seen. The system does not always tell.
        if let [Some(first), Some(second)] = &seen[..] {
            assert_eq!(first, second);
        }
        assert!(theirs.release_now(&request));
        let wake = tokio::time::timeout(LONG, wakeups.next()).await.unwrap();
        assert!(matches!(wake, Wake::TryNow), "{wake:?}");
        let held = ours.try_acquire(&request).await.unwrap();
        assert!(matches!(held, Attempt::Granted(_)), "{held:?}");
        let again = ours.try_acquire(&request).await.unwrap();
        assert!(matches!(again, Attempt::Granted(_)), "{again:?}");
        let ends = [theirs, ours].map(|lock| lock.end().unwrap());
        assert_eq!(ends, [Released::NotHeld, Released::Freed]);
    }
}
