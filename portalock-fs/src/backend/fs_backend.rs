//! The backend: what the engine sees of a directory of lock files.

use std::{
    io::ErrorKind,
    path::Path,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use cap_std::{ambient_authority, fs::Dir};
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, CrashRelease, Fairness,
    Holder, Inspect, Inspection, LockBackend, LockName, LockRequest, LossNotice, OwnerId, Released,
    Scope, Tokens, Wakeups, wakeups,
};

use super::{
    acquire::Client,
    config::{Calls, FsSettings, Watch},
    name::FileName,
    queue::Places,
    store::Store,
};
use crate::{
    locking::{DirectoryWatch, FsError, FsErrorKind, LockKind},
    sys::{self, Origin},
};

/// A crashed holder's files are closed as it dies, and a waiter is woken, or polls every 50 ms unless set otherwise. The rest
/// is for a machine that is busy.
const CRASH: Duration = Duration::from_secs(1);
/// The kernel reports a removed file as it is removed. The rest is for a machine that is busy.
const LOSS: Duration = Duration::from_secs(1);

/// How long a lock is tried that is busy though nobody is known to hold it. It takes microseconds, unless whoever has it is
/// kept from running.
const PASSING: Duration = Duration::from_millis(50);
/// The pause between two such tries, each of which closes the file and so wakes those who wait for it. The runtime's other tasks
/// run meanwhile.
const PAUSE: Duration = Duration::from_millis(1);

/// Locks as files in a directory, one for each name: `flock` on Unix, `LockFileEx` on Windows, or record locks.
///
/// Cheap to clone: all clones are one client. Opened twice, also in one process, it is two clients, which exclude each
/// other as two processes do.
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
/// - **Exclusion** between all processes of a host that open the same directory with the same
///   [`LockKind`]. Between hosts as far as the network file system has such locks.
/// - **Crash**: the operating system frees the locks of a process that ends, however it ends, and a waiter has them within
///   a second. A process that is stopped keeps its locks. A child never inherits one: descriptors are closed on `exec`, and
///   a release unlocks before it closes. Open the backend after a `fork`, not before: a forked copy frees nothing and
///   refuses to lock.
/// - **Tokens** grow with each grant of a name. The last one is in the lock file, with a checksum; and each is at least the clock
///   in microseconds, so that a file that was deleted, or torn by a power loss, doesn't start again from one.
/// - **Loss**, where the directory is watched: if the lock file is deleted or replaced under its holder, `lost` fires within
///   milliseconds; within half a second if the path leads to another directory. Every acquisition looks, once it has the
///   lock, whether the file is still the one in the directory, so those who come later exclude each other. Where nothing is
///   watched the holder learns of it when it releases. On Windows it can't happen: nobody can delete or replace a lock file that is open.
/// - **Breaking**, where the directory is watched: [`Lock::break_holder`](portalock_core::Lock::break_holder) tells the holder's
///   process, which unlocks. If it does not respond within a second, its lock file is replaced: it is told when it runs again.
/// - **Order**: waiters of one client are served first come, first served; a waiting writer is not overtaken by readers of
///   the same client. A waiting future that is kept but not polled keeps those behind it in its client waiting, and nobody
///   else. Between clients it is whoever comes first after the file is unlocked; nobody is promised a turn. Where the directory
///   is watched, a client whose tasks have had the lock one after the other for 10 ms starts level with the others.
/// - **Waiting**: on Linux a waiter sleeps until the file is closed by its holder (inotify), alive or dying. Elsewhere, on a
///   network file system and where the system's limits are reached, it looks again after half a millisecond and then
///   ever longer, up to [`poll_interval`](FsSettings::poll_interval). Only the first waiter of a client does either.
///
/// [`capabilities`](LockBackend::capabilities) says which of it this object has.
///
/// # What it leaves
///
/// A released lock leaves its file behind, and on Windows, where nobody else can read a locked file, another one beside it
/// with the record; [`clean`](Self::clean) removes those nobody uses. A held lock takes one open file
/// and less than 1 KiB of memory, a name that isn't used takes nothing. All backends of a process that watch share one thread,
/// which ends with the last of them.
///
/// # What `inspect` tells
///
/// The holders, by what they wrote down. It is there for people: a writer whose grant is a microsecond old may not have written
/// yet. Waiters are told of this client only. A holder whose process is gone is not told; nor is one in a container that has this
/// host's name and process numbers of its own, as Docker's `--network host` gives it. One whose process is there, or can't be looked
/// for, may have failed to write down its release: the lock is tried for a microsecond, which may make somebody else's `try_acquire`
/// fail.
#[derive(Debug, Clone)]
pub struct FsBackend {
    pub(super) client: Arc<Client>,
    capabilities: Capabilities,
    offload: bool,
}

impl FsBackend {
    /// Locks in `directory`, which is made if it isn't there, with the defaults of [`FsSettings`].
    ///
    /// Give the locks a directory of their own, which only those can write who may lock: who can write it can remove or
    /// replace a lock file, and in a directory that all can write, such as `/tmp`, anybody can take the name first. On Unix it
    /// is made with the permissions of any new directory, and lock files are for their owner only (`600`).
    ///
    /// # Errors
    ///
    /// [`FsError`] if the directory can't be made or opened.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, FsError> {
        Self::with_settings(&FsSettings::new(directory.as_ref()))
    }

    /// Locks as the settings say. Their directory is made if it isn't there.
    ///
    /// # Errors
    ///
    /// [`FsError`] if the directory can't be made or opened, or if the system can't do what the settings insist on.
    pub fn with_settings(settings: &FsSettings) -> Result<Self, FsError> {
        let directory = settings.directory();
        let failed = |action, error| FsError::new(action, error).at(directory);
        if settings.lock() == LockKind::Record && !sys::HAS_RECORD_LOCKS {
            let action = "use record locks, which belong to the whole process here, for";
            return Err(failed(action, ErrorKind::Unsupported.into()));
        }
        make_directory(directory, settings.file_mode())
            .map_err(|error| failed("make the lock directory", error))?;
        let dir = Dir::open_ambient_dir(directory, ambient_authority())
            .map_err(|error| failed("open the lock directory", error))?;
        let is_remote =
            sys::is_remote(&dir).map_err(|error| failed("tell the file system of", error))?;
        let offload = match settings.calls() {
            Calls::Auto => is_remote,
            Calls::Inline => false,
            Calls::Offload => true,
        };
        let wants_watch = match settings.watch() {
            // What happens on another machine is not reported.
            Watch::Auto => !is_remote,
            Watch::On => true,
            Watch::Off => false,
        };
        let client = Arc::new(Client {
            store: Store {
                dir,
                // Absolute, for as long as the program keeps changing its own directory.
                path: std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()),
                kind: settings.lock(),
                file_mode: settings.file_mode(),
                beside: cfg!(windows),
                origin: Origin::here(),
            },
            places: Places::default(),
            watch: OnceLock::new(),
            label: settings.label.clone(),
            poll_interval: settings.poll_interval(),
        });
        if wants_watch {
            let told: Weak<Client> = Arc::downgrade(&client);
            match DirectoryWatch::new(&client.store.dir, told) {
                Ok(watch) => drop(client.watch.set(watch)),
                Err(error) if settings.watch() == Watch::On => {
                    let kind = match FsErrorKind::of(&error) {
                        // How the kernel says that there are too many watches, or instances, of this user.
                        FsErrorKind::Full | FsErrorKind::TooManyOpenFiles => {
                            FsErrorKind::TooManyWatches
                        }
                        kind => kind,
                    };
                    return Err(FsError::with_kind(kind, "watch", error).at(directory));
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

    /// The name of a lock's file in its directory, for those who want to look at it.
    ///
    /// Injective, on every file system: lower-case ASCII letters, digits, `_`, `-` and dots inside stand for themselves,
    /// anything else is percent-encoded, so that no two names meet where case or Unicode forms don't count, and none is a
    /// path. Names too long for a file are cut and get their SHA-256. The full name is in each file.
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

    /// Removes the files of locks that nobody holds or waits for, and nobody was granted for `unused_for`. Returns how many
    /// locks that were.
    ///
    /// A released lock leaves its file behind, of at most 2 KiB: it has the last token in it, and removing it with each
    /// release is what makes other libraries grant a lock twice. Where names come and go by the million, call this now
    /// and then, from any process. It locks each file before it removes it, and whoever was about to lock it finds that out
    /// and makes a new one.
    ///
    /// Tokens go on growing after that by the clock, even if it is set back by up to `unused_for`.
    ///
    /// It makes a few system calls per file in the calling thread.
    ///
    /// # Errors
    ///
    /// [`FsError`] if the directory can't be listed, or a file neither locked nor removed.
    pub fn clean(&self, unused_for: Duration) -> Result<usize, FsError> {
        self.client.clean(unused_for)
    }

    /// An error where nothing is watched: no holder would be told.
    fn ensure_breaks(&self) -> Result<(), BackendError> {
        if self.capabilities.breaks {
            return Ok(());
        }
        Err(BackendError::unsupported("way to break a lock"))
    }

    /// Makes file system calls, in a thread where they may last.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        if self.offload
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let client = self.client.clone();
            return runtime
                .spawn_blocking(move || call(&client))
                .await
                .map_err(|error| {
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
        // A holder is told by what is watched.
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
        let start = Instant::now();
        loop {
            let request = request.clone();
            let attempt = self.call(move |client| client.attempt(&request)).await??;
            if let Some(attempt) = attempt {
                return Ok(attempt);
            }
            let tried = Instant::now();
            if tried - start >= PASSING {
                return Ok(Attempt::Contended(Contention::new()));
            }
            // No timer: neither the blocking form nor every runtime has one.
            while tried.elapsed() < PAUSE {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        let request = request.clone();
        self.call(move |client| client.free(&request, true)).await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let (line, wakeups) = wakeups();
        // Waiters of this process wake each other, even where nothing is watched.
        Ok(self.client.listen(request, line).then_some(wakeups))
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
        Ok(self.call(move |client| client.inspect(&name)).await??)
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        Ok(self.call(Client::used_names).await??)
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        self.ensure_breaks()?;
        let (name, by) = (name.clone(), by.clone());
        Ok(self
            .call(move |client| client.mark(&name, owner, &by))
            .await??)
    }

    async fn evict(&self, name: &LockName, owner: OwnerId) -> Result<Released, BackendError> {
        self.ensure_breaks()?;
        let name = name.clone();
        Ok(self
            .call(move |client| client.evict(&name, owner))
            .await??)
    }
}

/// Whoever may use the locks must be able to make their files: the group too if it may write them, whatever the umask says.
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
