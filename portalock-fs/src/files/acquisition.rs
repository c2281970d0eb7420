//! One acquisition of a user's own file, as a backend for the engine: open, lock, release. A semaphore has several files to
//! choose from.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Contention, CrashRelease, Grant, Lock, LockBackend,
    LockError, LockRequest, Loss, Mode, OwnerId, Patience, Released, Scope, WakeSender, Wakeups,
    wakeups,
};

use super::spec::Spec;
use crate::{
    locking::{Contender, FsError, Location, LockFile},
    sys::{self, Origin, Watcher},
};

/// The backend of one acquisition, or of several one after the other.
#[derive(Debug)]
pub(crate) struct Acquisition {
    /// The files to choose from, which are tried in this order.
    specs: Vec<Spec>,
    state: Mutex<State>,
    /// A forked child has a copy, with its parent's lock. It must not lock `state`, which a thread of the parent may have locked
    /// during the fork.
    origin: Origin,
}

#[derive(Debug, Default)]
struct State {
    /// One contender for each file, while it waits.
    contenders: Vec<Contender>,
    /// The owner that waits, once the engine has subscribed it, and what wakes it.
    waiter: Option<(OwnerId, Arc<WakeSender>, Arc<Watcher>)>,
    /// The owner, and its file.
    held: Option<(OwnerId, Held)>,
}

/// A locked file.
#[derive(Debug)]
struct Held {
    /// The index of its spec.
    number: usize,
    file: Arc<LockFile>,
}

impl Acquisition {
    /// The lock on one file.
    pub(crate) fn lock_on(spec: Spec) -> Result<Lock<Self>, LockError> {
        let name = spec.name()?;
        Ok(Lock::new(Self::of_any(vec![spec]), name)?)
    }

    /// How the files are locked.
    pub(crate) fn share(&self) -> Mode {
        self.specs
            .first()
            .map_or(Mode::Exclusive, |spec| spec.share)
    }

    /// An acquisition of one of these files.
    pub(crate) fn of_any(specs: Vec<Spec>) -> Self {
        Self {
            specs,
            state: Mutex::default(),
            origin: Origin::here(),
        }
    }

    /// The number and the open file of the hold. The lock must be held.
    #[allow(
        clippy::expect_used,
        reason = "it is called by those who hold the lock"
    )]
    pub(crate) fn held(&self) -> (usize, Arc<LockFile>) {
        let state = self.lock();
        let (_, held) = state.held.as_ref().expect("the lock is held");
        (held.number, held.file.clone())
    }

    /// The path of the file with this number.
    pub(crate) fn path(&self, number: usize) -> &Path {
        self.specs[number].given_path()
    }

    /// Leaves the file locked, for the caller to unlock.
    pub(crate) fn keep(&self) {
        self.lock().held = None;
    }

    /// Why the file was lost, if it was.
    pub(crate) fn loss(&self) -> Result<Option<Loss>, FsError> {
        if self.origin.is_elsewhere() {
            let what = "it belongs to the process that this one was forked from";
            return Ok(Some(Loss::Removed(what.into())));
        }
        let state = self.lock();
        let Some((_, Held { number, file })) = &state.held else {
            return Ok(None);
        };
        let spec = &self.specs[*number];
        let what = || format!("{} was removed or replaced", spec.path.display());
        Ok((!spec.is_current(file)?).then(|| Loss::Removed(what().into())))
    }

    /// Tries the files until one can be locked.
    fn attempt(&self, request: &LockRequest) -> Result<Attempt, FsError> {
        let mut state = self.lock();
        let owner = request.owner;
        // A reentrant lock's last holder may not have released it yet.
        if state.held.as_ref().is_some_and(|(of, _)| *of == owner) {
            return Ok(Attempt::Granted(Grant::new()));
        }
        let mut contenders = std::mem::take(&mut state.contenders);
        contenders.resize_with(self.specs.len(), Contender::default);
        let mut holder = None;
        for (number, (spec, contender)) in self.specs.iter().zip(&mut contenders).enumerate() {
            let watch = |file: &LockFile| {
                let waiter = state.waiter.as_ref();
                let (_, waiter, watcher) = waiter.filter(|(of, ..)| *of == owner)?;
                let told: Weak<WakeSender> = Arc::downgrade(waiter);
                watcher.watch(file.file(), Some(""), told).ok()
            };
            if let Some((file, _)) = contender.try_lock(spec, spec.share, watch)? {
                let file = Arc::new(file);
                let held = Held { number, file };
                if let Err(error) = spec.begin(held.file.file()) {
                    return self.free(held).and(Err(error));
                }
                state.held = Some((owner, held));
                return Ok(Attempt::Granted(Grant::new()));
            }
            holder = holder.or_else(|| spec.pid_holder(contender.file()?.file()));
            if sys::LOCKED_FILES_STAY && spec.goes_with_lock {
                // If a waiter had the file open, the holder could not remove it.
                *contender = Contender::default();
            }
        }
        if request.patience == Patience::Queue {
            state.contenders = contenders;
        }
        Ok(Attempt::Contended(Contention::new().with_holder(holder)))
    }

    /// Adds the holder to the error of a call that has found the lock held. Not in each attempt, and of one file only: the kernel
    /// takes milliseconds to tell the holder, and a release is not noticed meanwhile.
    pub(crate) fn name_holder(&self, mut error: LockError) -> LockError {
        if let LockError::AlreadyLocked { holder, .. } | LockError::Timeout { holder, .. } =
            &mut error
        {
            let seen = self.specs.first().and_then(Spec::lock_holder);
            *holder = holder.take().or(seen.map(Box::new));
        }
        error
    }

    /// `NotHeld` if the file was lost before, or if nothing is held.
    fn end(&self, owner: OwnerId) -> Result<Released, FsError> {
        if self.origin.is_elsewhere() {
            return Ok(Released::NotHeld);
        }
        let mut state = self.lock();
        let held = state.held.take_if(|(of, _)| *of == owner);
        state.waiter.take_if(|(of, ..)| *of == owner);
        if state.waiter.is_none() {
            state.contenders.clear();
        }
        drop(state);
        held.map_or(Ok(Released::NotHeld), |(_, held)| self.free(held))
    }

    /// Releases one file. If its spec says so, the file is removed before it is unlocked.
    fn free(&self, held: Held) -> Result<Released, FsError> {
        let Held { number, file } = held;
        let spec = &self.specs[number];
        let is_ours = spec.is_current(&file);
        // The file that is there now may belong to another holder.
        let goes = spec.goes_with_lock && matches!(is_ours, Ok(true)) && is_alone(&file, spec);
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

/// Whether nobody else shares the file that is about to be removed. If the system can't remove open files, trying to
/// remove it shows this.
fn is_alone(file: &LockFile, spec: &Spec) -> bool {
    spec.share == Mode::Exclusive
        || sys::LOCKED_FILES_STAY
        // The mode is not changed in one step: meanwhile another holder may have locked the file alone, and removed it.
        || matches!(file.try_lock(Mode::Exclusive), Ok(true))
            && matches!(spec.is_current(file), Ok(true))
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
        if self.origin.is_elsewhere() {
            return Err(BackendError::forked());
        }
        Ok(self.attempt(request)?)
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        if self.origin.is_elsewhere() {
            return Ok(None);
        }
        let Ok(watcher) = Watcher::shared() else {
            return Ok(None);
        };
        let (sender, wakeups) = wakeups();
        let wakeups = wakeups.with_sleeper(Some(watcher.sleeper()));
        // The engine subscribes once, and then tries again: that attempt starts to watch.
        self.lock().waiter = Some((request.owner, Arc::new(sender), watcher));
        Ok(Some(wakeups))
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        Ok(self.end(request.owner)?)
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        if let Err(error) = self.end(request.owner) {
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

    use futures_util::FutureExt;
    use portalock_core::Wake;

    use super::{super::file_mode::FileMode, *};

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_waiter_hears_of_a_release_and_does_not_ask_the_kernel_for_the_holder() {
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
        for _ in 0..2 {
            match ours.try_acquire(&request).await.unwrap() {
                Attempt::Contended(contention) => assert_eq!(contention.holder, None),
                granted @ Attempt::Granted(_) => panic!("{granted:?}"),
            }
        }
        assert!(theirs.release_now(&request));
        let wake = tokio::time::timeout(LONG, wakeups.next()).await.unwrap();
        assert!(matches!(wake, Wake::TryNow), "{wake:?}");
        let held = ours.try_acquire(&request).await.unwrap();
        assert!(matches!(held, Attempt::Granted(_)), "{held:?}");
        let again = ours.try_acquire(&request).await.unwrap();
        assert!(matches!(again, Attempt::Granted(_)), "{again:?}");
        let ends = [theirs, ours].map(|lock| lock.end(request.owner).unwrap());
        assert_eq!(ends, [Released::NotHeld, Released::Freed]);
    }

    /// A reentrant lock's next holder may come when the last one has not released yet.
    #[tokio::test]
    async fn the_next_owner_gets_the_file_once_the_last_one_has_released_it() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec::new(&dir.path().join("data")).unwrap();
        let [last, next] = [(); 2]
            .map(|()| LockRequest::new(spec.name().unwrap(), Mode::Exclusive, Patience::Queue));
        let lock = Acquisition::lock_on(spec).unwrap();
        let lock = lock.backend();
        let is_granted = |request| matches!(lock.attempt(request).unwrap(), Attempt::Granted(_));
        // Its line wakes nobody later.
        let _line = lock.subscribe(&last).await.unwrap();
        assert!(is_granted(&last) && !is_granted(&next));
        let mut wakeups = lock.subscribe(&next).await.unwrap().unwrap();
        assert!(!is_granted(&next) && is_granted(&last));
        assert_eq!(lock.end(last.owner).unwrap(), Released::Freed);
        let wake = tokio::time::timeout(LONG, wakeups.next()).await.unwrap();
        assert!(matches!(wake, Wake::TryNow), "{wake:?}");
        assert!(is_granted(&next) && !is_granted(&last));
        assert_eq!(lock.end(last.owner).unwrap(), Released::NotHeld);
        assert_eq!(lock.end(next.owner).unwrap(), Released::Freed);
    }

    #[test]
    fn a_forked_childs_copy_waits_for_no_thread_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec::new(&dir.path().join("data")).unwrap();
        let request = LockRequest::new(spec.name().unwrap(), Mode::Exclusive, Patience::Queue);
        let mut lock = Acquisition::of_any(vec![spec]);
        let held = lock.attempt(&request).unwrap();
        assert!(matches!(held, Attempt::Granted(_)), "{held:?}");
        lock.origin.inherit();
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            // As a thread of the parent during the fork.
            let state = lock.lock();
            scope.spawn(|| {
                let attempt = lock.try_acquire(&request).now_or_never().unwrap();
                let wakeups = lock.subscribe(&request).now_or_never().unwrap();
                let refused = attempt.is_err() && wakeups.unwrap().is_none();
                let lost = lock.loss().unwrap().is_some();
                sender.send((refused, lost, lock.end(request.owner).unwrap()))
            });
            let ended = ended.recv_timeout(LONG);
            drop(state);
            assert_eq!(ended.unwrap(), (true, true, Released::NotHeld));
        });
        assert!(lock.lock().held.is_some());
    }

    #[test]
    fn a_file_that_another_holder_has_replaced_meanwhile_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = Spec::of_lock_file(&dir.path().join("lock"), FileMode::AppendRead).unwrap();
        spec.share = Mode::Shared;
        let file = spec.open().unwrap();
        assert!(file.try_lock(Mode::Shared).unwrap());
        assert!(is_alone(&file, &spec));
        std::fs::rename(&spec.path, dir.path().join("old")).unwrap();
        let next = spec.open().unwrap();
        assert!(!is_alone(&file, &spec) && is_alone(&next, &spec));
    }
}
