//! The backend: the engine's view of a directory of lock files.

use std::{
    io::ErrorKind,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use cap_std::{ambient_authority, fs::Dir};
use futures_util::{future::lazy, pending};
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, CrashRelease, Fairness, Holder, Inspect,
    Inspection, LockBackend, LockName, LockRequest, LossNotice, Marked, OwnerId, Patience,
    Released, Scope, Tokens, Wakeups, wakeups,
};

use super::{
    acquire::Client,
    config::{Calls, FsSettings, Watch},
    name::FileName,
    queue::Places,
    store::Store,
};
use crate::{
    locking::{FsError, LockKind, TOO_MANY_WATCHES},
    sys::{self, Origin, Watcher},
};

/// The kernel closes a crashed holder's files at once, and a waiter is woken, or polls every 50 ms by default. The rest
/// is for a busy machine.
const CRASH: Duration = Duration::from_secs(1);
/// The kernel reports a removed file at once. The rest is for a busy machine.
const LOSS: Duration = Duration::from_secs(1);

/// How often a waiter tries that the system wakes. It misses a release only if a forked child of the holder keeps a copy of
/// the open file, or if the path now leads to another directory.
const WATCHED: Duration = Duration::from_secs(20);

/// How long a lock is retried that is locked by an unknown holder. Such a lock is held for microseconds, unless its
/// holder doesn't get to run.
const PASSING: Duration = Duration::from_millis(50);
/// The pause between two such attempts. Each attempt closes the file, which wakes its waiters. Other tasks of the
/// runtime run meanwhile.
const PAUSE: Duration = Duration::from_millis(1);

/// Locks as files in a directory, one for each name: `flock` on Unix, `LockFileEx` on Windows, or record locks.
///
/// Cheap to clone: all clones are one client. Two backends that are opened separately are two clients, even in one
/// process, and exclude each other like two processes.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::{Lock, Policy};
/// use portalock_fs::FsBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let directory = dir.path().join("locks");
///
/// let backend = FsBackend::open(&directory)?;
/// let report = Lock::new(backend.clone(), "report")?.with_policy(Policy::new().with_timeout(Duration::from_secs(30)));
/// let readers = [report.acquire_shared().await?, report.acquire_shared().await?];
/// assert!(report.try_acquire().await.is_err());
/// drop(readers);
/// let writer = report.acquire().await?;
/// println!("writing under token {:?}", writer.token());
/// # Ok(()) }
/// ```
///
/// # What it guarantees
///
/// - **Exclusion** between all processes of a host that open the same directory with the same [`LockKind`]. Between
///   hosts it depends on the locks of the network file system.
/// - **Crash**: when a process ends for any reason, the operating system frees its locks, and a waiter has them within
///   a second. A stopped process keeps its locks. A child never inherits a lock: descriptors are closed on `exec`, and
///   a release unlocks before it closes. Open the backend after a `fork`: a forked copy frees nothing and refuses to
///   lock. But a child that was forked during the hold, and did not `exec`, keeps a crashed parent's lock until it ends.
/// - **Tokens** grow with each grant of a name. The last one is in the lock file, with a checksum; and each token is at
///   least the clock in microseconds. So tokens keep growing if the file is deleted, or damaged by a power loss.
/// - **Loss**, if the directory is watched: if the lock file is deleted or replaced, `lost` fires within milliseconds;
///   if the path leads to another directory, within half a second. After locking, every acquisition checks that its
///   file is still the one in the directory, so later holders exclude each other. If the directory is not watched, the
///   holder learns of the loss when it releases. On Windows this can't happen: nobody can delete or replace an open
///   lock file.
/// - **Breaking**, if the directory is watched: [`Lock::break_holder`](portalock_core::Lock::break_holder) tells the
///   holder's process, which unlocks. If that process does not respond within a second, its lock file is replaced, and
///   it learns of the loss when it runs again.
/// - **Order**: waiters of one client are served first come, first served, and readers of that client don't overtake a
///   waiting writer. A waiting future that is not polled delays the waiters behind it in its own client only. Between
///   clients there is no order: the first one that tries after the unlock gets the lock. If the directory is watched, a
///   client that has kept the lock among its own waiters for 10 ms hears of the next release at the same time as the
///   others.
/// - **Waiting**: on Linux a waiter sleeps until the holder closes the file or dies (inotify). It also tries every 20 s,
///   because no event is sent if a forked child of the holder has a copy of the file. On other systems, on a network file
///   system, and when the system's limits are reached, it polls: first after half a millisecond, then with growing pauses
///   up to [`poll_interval`](FsSettings::poll_interval). Only the first waiter of a client watches or polls.
///
/// [`capabilities`](LockBackend::capabilities) says what this object guarantees.
///
/// # What it leaves
///
/// A released lock leaves its file, and a lock that was shared the list of its readers. On Windows, where other handles
/// can't read a locked file, it also leaves a file with the record beside it. [`clean`](Self::clean) removes unused files. A held lock needs one open file and less
/// than 1 KiB of memory; an unused name needs nothing. All watching backends of a process share one thread, which ends
/// with the last of them. A blocking call that waits receives the events itself, if no other one does.
///
/// # What `inspect` returns
///
/// The holders, from their records in the lock files, for people: a holder whose grant is a microsecond old may not
/// have written its record yet. Only waiters of this client are returned. A holder whose process is gone is left out.
/// So is a holder in a container with this host's name and its own process ids, as with Docker's `--network host`. A
/// record may be left although the lock was released. So if the holder's process exists, or can't be checked, `inspect`
/// tries the lock for a microsecond, which can make the `try_acquire` of another process fail.
#[derive(Debug, Clone)]
pub struct FsBackend {
    pub(super) client: Arc<Client>,
    capabilities: Capabilities,
    offload: bool,
}

impl FsBackend {
    /// Opens the locks in `directory`, which is created if it doesn't exist, with the defaults of [`FsSettings`].
    ///
    /// Use a directory of its own, which only users of the locks can write. Every user who can write the directory can
    /// remove or replace a lock file, and in a directory that everybody can write, such as `/tmp`, any user can take
    /// the name first. On Unix a new directory gets the usual permissions, and lock files are for their owner only
    /// (`600`).
    ///
    /// # Errors
    ///
    /// [`FsError`] if the directory can't be created or opened.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, FsError> {
        Self::with_settings(&FsSettings::new(directory.as_ref()))
    }

    /// Opens the locks with these settings. The directory is created if it doesn't exist.
    ///
    /// # Errors
    ///
    /// [`FsError`] if the directory can't be created or opened, or if the system can't do what the settings require.
    pub fn with_settings(settings: &FsSettings) -> Result<Self, FsError> {
        let directory = settings.directory();
        let failed = |action, error| FsError::new(action, error).at(directory);
        if settings.lock() == LockKind::Record && !sys::HAS_RECORD_LOCKS {
            let action = "use record locks, which belong to the whole process here, for";
            return Err(failed(action, ErrorKind::Unsupported.into()));
        }
        make_directory(directory, settings.file_mode())
            .map_err(|error| failed("create the lock directory", error))?;
        let dir = Dir::open_ambient_dir(directory, ambient_authority())
            .map_err(|error| failed("open the lock directory", error))?;
        let is_remote =
            sys::is_remote(&dir).map_err(|error| failed("find the file system of", error))?;
        let offload = match settings.calls() {
            Calls::Auto => is_remote,
            Calls::Inline => false,
            Calls::Offload => true,
        };
        let wants_watch = match settings.watch() {
            // Changes made on another machine are not reported.
            Watch::Auto => !is_remote,
            Watch::On => true,
            Watch::Off => false,
        };
        let at_least = if is_remote { Duration::ZERO } else { WATCHED };
        let client = Arc::new_cyclic(|this| Client {
            store: Store {
                dir,
                // Absolute, because the program may change its working directory.
                path: std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()),
                kind: settings.lock(),
                file_mode: settings.file_mode(),
                beside: cfg!(windows),
                origin: Origin::here(),
            },
            places: Places::default(),
            watch: OnceLock::new(),
            this: this.clone(),
            label: settings.label.clone(),
            poll_interval: settings.poll_interval(),
            watched_interval: settings.poll_interval().max(at_least),
        });
        if wants_watch {
            let watched = Watcher::shared().and_then(|watcher| {
                let directory = watcher.watch(&client.store.dir, None, client.this.clone())?;
                Ok((watcher, directory))
            });
            match watched {
                Ok(watch) => drop(client.watch.set(watch)),
                Err(error) if settings.watch() == Watch::On => {
                    let error = failed("watch", error);
                    return Err(match error.kind() {
                        // The kernel's errors for too many watches, or too many instances, of this user.
                        BackendErrorKind::OutOfSpace | BackendErrorKind::Exhausted => {
                            error.meaning(TOO_MANY_WATCHES)
                        }
                        _ => error,
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "the lock directory can't be watched: waiters poll");
                }
            }
        }
        let is_watched = client.watch.get().is_some();
        Ok(Self {
            capabilities: capabilities(is_watched, offload, settings.poll_interval()),
            client,
            offload,
        })
    }

    /// The file name of a lock in the directory.
    ///
    /// Two names never have the same file name, on any file system. Lower-case ASCII letters, digits, `_`, `-` and
    /// inner dots are kept, and everything else is percent-encoded. So names don't collide on file systems that ignore
    /// case or Unicode forms, and no name is a path. A name that is too long for a file is cut, and its SHA-256 is
    /// appended. Each file contains the full name.
    ///
    /// ```
    /// use portalock_core::LockName;
    /// use portalock_fs::FsBackend;
    ///
    /// let name = LockName::new("../Billing 7")?;
    /// assert_eq!(FsBackend::file_name(&name), "%2e.%2f%42illing%207.lock");
    /// # Ok::<(), portalock_core::InvalidName>(())
    /// ```
    pub fn file_name(name: &LockName) -> String {
        FileName::of(name).as_str().to_owned()
    }

    /// Removes the files of locks without holders and waiters that were not granted for `unused_for`. Returns the
    /// number of removed locks.
    ///
    /// A released lock leaves a file of at most 2 KiB, which contains the last token. Removing the file at each release
    /// is how some libraries come to grant a lock twice. If a program uses millions of names, call this from time to
    /// time, from any process. It locks each file before it removes it. A process that is about to lock the file
    /// notices the removal and creates a new one.
    ///
    /// After that tokens keep growing by the clock, even if it is set back by up to `unused_for`.
    ///
    /// It makes a few system calls per file, on the calling thread.
    ///
    /// # Errors
    ///
    /// [`FsError`] if the directory can't be listed, or if a file can't be locked or removed.
    pub fn clean(&self, unused_for: Duration) -> Result<usize, FsError> {
        self.client.run(|client| client.clean(unused_for))
    }

    /// Fails if the directory is not watched, because no holder would be told.
    fn ensure_breaks(&self) -> Result<(), BackendError> {
        if self.capabilities.breaks {
            return Ok(());
        }
        Err(BackendError::unsupported("way to break a lock"))
    }

    /// Runs file system calls that may fail.
    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> Result<T, FsError> + Send + 'static,
    ) -> Result<T, BackendError> {
        Ok(self.call(move |client| client.run(call)).await??)
    }

    /// Runs file system calls, on a thread where they may block.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        if self.offload
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let client = self.client.clone();
            let called = runtime.spawn_blocking(move || call(&client)).await;
            return called.map_err(|error| {
                let message = "the runtime shut down before the file system answered";
                BackendError::new(BackendErrorKind::Unavailable, message).with_source(error)
            });
        }
        Ok(call(&self.client))
    }
}

fn capabilities(is_watched: bool, offload: bool, poll_interval: Duration) -> Capabilities {
    let (crash, loss) = if is_watched {
        (CRASH, LossNotice::Within(LOSS))
    } else {
        (CRASH.saturating_add(poll_interval), LossNotice::Never)
    };
    Capabilities::new(Scope::Host)
        .with_shared(true)
        .with_fairness(Fairness::WithinClient)
        .with_tokens(Tokens::Durable)
        .with_crash_release(CrashRelease::Within(crash))
        .with_loss(loss)
        .with_inspect(Inspect::Holders)
        // A holder learns of a loss from the watch.
        .with_breaks(is_watched)
        .with_releases_now(!offload)
        .with_needs_runtime(false)
}

#[async_trait]
impl LockBackend for FsBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        let (start, caller) = (Instant::now(), Arc::new(()));
        loop {
            let (tried, wanted) = (Instant::now(), request.clone());
            let heard = Arc::downgrade(&caller);
            let attempt = self.run(move |client| {
                let attempt = client.attempt(&wanted);
                // The caller was dropped before a thread was free for this, so its owner may have been released already.
                if heard.strong_count() == 0 {
                    client.free(&wanted, false);
                }
                attempt
            });
            let attempt = attempt.await?;
            let is_unknown = matches!(&attempt, Attempt::Contended(seen) if seen.holder.is_none());
            if request.patience == Patience::Queue || !is_unknown || tried - start >= PASSING {
                return Ok(attempt);
            }
            // No timer is used: some runtimes have none. It yields at least once, also if an attempt takes longer than this.
            // Not by tokio's `yield_now`: a blocking call in a task would not be woken before the task has ended.
            while {
                lazy(|context| context.waker().wake_by_ref()).await;
                pending!();
                tried.elapsed() < PAUSE
            } {}
        }
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        let request = request.clone();
        self.call(move |client| client.free(&request, true)).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let ((line, wakeups), request) = (wakeups(), request.clone());
        // Waiters of this process wake each other, even if the directory is not watched. An attempt may have the place locked.
        let listens = self.call(move |client| client.listen(&request, line));
        let listens = listens.await?;
        let sleeper = self.client.watch.get().map(|watch| watch.0.sleeper());
        Ok(listens.then(|| wakeups.with_sleeper(sleeper)))
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        if self.offload {
            return false;
        }
        self.client.free(request, false);
        true
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let name = name.clone();
        self.run(move |client| client.inspect(&name)).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.run(Client::used_names).await
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        self.ensure_breaks()?;
        let (name, by) = (name.clone(), by.clone());
        self.run(move |client| client.mark(&name, owner, &by)).await
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        self.ensure_breaks()?;
        let name = name.clone();
        let evicting = self.run(move |client| client.evict(&name, owner, hold));
        let evicted = evicting.await?;
        let is_shared = "a shared holder can't be evicted, because others may share its file: end the process that does not respond";
        evicted.ok_or_else(|| BackendError::new(BackendErrorKind::Unsupported, is_shared))
    }
}

/// Every user of the locks must be able to create lock files. If the group may write them, this includes the group,
/// whatever the umask is.
fn make_directory(directory: &Path, file_mode: u32) -> std::io::Result<()> {
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::create_dir(directory) {
        Ok(()) if file_mode & 0o020 != 0 => sys::let_group_write(directory),
        Err(_) if directory.is_dir() => Ok(()),
        made => made,
    }
}
