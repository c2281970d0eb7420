//! Linux and Android: one inotify instance and one thread for all backends of the process.
//!
//! The instance is shared because a user has few of them (128 by default), and a process may have many backends.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use cap_std::fs::Dir;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use super::{Origin, Watched};

/// The events of at least a hundred files, or of one with the longest name.
const BUFFER: usize = 4096;

/// After it has told of a file, the thread stays up for so long (2 ms), and then ends the watches that nobody needs any
/// more. Who has just been woken by one has better things to do: ending it is a slow call that wakes the thread again.
const LINGER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};
/// How many such watches there may be until then. The system counts a user's watches.
const MOST_ABANDONED: usize = 64;

/// How often the thread looks whether paths still lead to the directories in which something is held.
const LOOKS_EVERY: Duration = Duration::from_millis(250);

/// The process's watcher, for as long as a backend uses it.
static SHARED: Mutex<Weak<Watcher>> = Mutex::new(Weak::new());

/// An inotify instance, and the thread that reads it.
pub(crate) struct Watcher {
    events: OwnedFd,
    /// Has the thread read its orders in the registry.
    orders: OwnedFd,
    registry: Arc<Mutex<Registry>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// A forked child shares the instance with its parent but has no thread: it must neither use nor end anything here.
    origin: Origin,
}

#[derive(Default)]
struct Registry {
    /// By watch descriptor. Two backends on one directory, or two waiters on one file, share a descriptor.
    targets: HashMap<i32, Vec<Target>>,
    next_id: u64,
    /// Order: the thread is to end.
    stops: bool,
    /// Order: the thread looks from time to time whether paths still lead where they did.
    looks: bool,
    /// The thread looks at `abandoned` soon.
    lingers: bool,
    /// Descriptors that had no target left at some time. Each may have got another one since.
    abandoned: Vec<i32>,
}

#[derive(Clone)]
struct Target {
    id: u64,
    /// The file that is watched; none for a directory, whose events name theirs.
    file: Option<Arc<str>>,
    told: Weak<dyn Watched>,
}

/// One watch: it ends when this is dropped.
pub(crate) struct Registration {
    watcher: Weak<Watcher>,
    descriptor: i32,
    id: u64,
}

/// One event, and whom it concerns.
struct News {
    target: Target,
    flags: ReadFlags,
    name: Option<Arc<str>>,
}

impl Watcher {
    pub(crate) fn shared() -> io::Result<Arc<Self>> {
        let mut shared = lock(&SHARED);
        if let Some(watcher) = shared
            .upgrade()
            .filter(|watcher| !watcher.origin.is_elsewhere())
        {
            return Ok(watcher);
        }
        let watcher = Arc::new(Self::new()?);
        *shared = Arc::downgrade(&watcher);
        Ok(watcher)
    }

    fn new() -> io::Result<Self> {
        Ok(Self {
            events: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            orders: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            registry: Arc::default(),
            thread: Mutex::default(),
            origin: Origin::here(),
        })
    }

    /// Starts the thread, unless it runs.
    pub(crate) fn start(this: &Arc<Self>) -> io::Result<()> {
        let mut thread = lock(&this.thread);
        if thread.is_some() {
            return Ok(());
        }
        let events = this.events.try_clone()?;
        let orders = this.orders.try_clone()?;
        let registry = this.registry.clone();
        // The thread must not keep the watcher alive: its end is what stops the thread.
        *thread = Some(
            std::thread::Builder::new()
                .name("portalock-watch".to_owned())
                .stack_size(256 * 1024)
                .spawn(move || run(&events, &orders, &registry))?,
        );
        Ok(())
    }

    /// Has the thread look from time to time, for as long as anybody needs it.
    pub(crate) fn keep_looking(&self) {
        let mut registry = lock(&self.registry);
        if !registry.looks {
            registry.looks = true;
            self.order();
        }
    }

    fn order(&self) {
        // It fails only if there are orders that have not been read for ever.
        let _ = rustix::io::write(&self.orders, &1_u64.to_ne_bytes());
    }

    pub(crate) fn watch_directory(
        this: &Arc<Self>,
        dir: &Dir,
        told: Weak<dyn Watched>,
    ) -> io::Result<Registration> {
        let flags = WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        Self::add(this, dir, flags, None, told)
    }

    /// Watches one file for being closed by anybody, also by those who only read it, as flock(1) does.
    pub(crate) fn watch_file(
        this: &Arc<Self>,
        file: &File,
        name: &str,
        told: Weak<dyn Watched>,
    ) -> io::Result<Registration> {
        Self::add(this, file, WatchFlags::CLOSE, Some(name.into()), told)
    }

    fn add(
        this: &Arc<Self>,
        what: impl AsFd,
        flags: WatchFlags,
        file: Option<Arc<str>>,
        told: Weak<dyn Watched>,
    ) -> io::Result<Registration> {
        // The open file itself, not what its name leads to by now.
        let path = format!("/proc/self/fd/{}", what.as_fd().as_raw_fd());
        // Locked over the call: a removal of the same descriptor must come wholly before or wholly after.
        let mut registry = lock(&this.registry);
        let descriptor = inotify::add_watch(&this.events, path, flags | WatchFlags::MASK_ADD)?;
        let id = registry.next_id;
        registry.next_id += 1;
        registry
            .targets
            .entry(descriptor)
            .or_default()
            .push(Target { id, file, told });
        Ok(Registration {
            watcher: Arc::downgrade(this),
            descriptor,
            id,
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(watcher) = self.watcher.upgrade() else {
            return;
        };
        if watcher.origin.is_elsewhere() {
            // The watch is the parent's, and its thread may have had the registry locked when it forked.
            return;
        }
        let mut registry = lock(&watcher.registry);
        let Some(targets) = registry.targets.get_mut(&self.descriptor) else {
            return;
        };
        targets.retain(|target| target.id != self.id);
        if !targets.is_empty() {
            return;
        }
        if registry.lingers && registry.abandoned.len() < MOST_ABANDONED {
            registry.abandoned.push(self.descriptor);
        } else {
            registry.end(&watcher.events, self.descriptor);
        }
    }
}

impl Registry {
    /// Ends the watch `descriptor`.
    fn end(&mut self, events: &OwnedFd, descriptor: i32) {
        self.targets.remove(&descriptor);
        // It fails if what was watched is gone, and then there is nothing to remove.
        let _ = inotify::remove_watch(events, descriptor);
    }

    /// Ends the watches that were left for later and that nobody has taken up again.
    fn tidy(&mut self, events: &OwnedFd) {
        self.lingers = false;
        for descriptor in std::mem::take(&mut self.abandoned) {
            if self.targets.get(&descriptor).is_some_and(Vec::is_empty) {
                self.end(events, descriptor);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.origin.is_elsewhere() {
            return;
        }
        lock(&self.registry).stops = true;
        self.order();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            // The thread itself drops the last backend if everyone else did while it was telling it something.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn run(events: &OwnedFd, orders: &OwnedFd, registry: &Mutex<Registry>) {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut lingers = false;
    let mut next_look: Option<Instant> = None;
    loop {
        let mut ready = [
            PollFd::new(events, PollFlags::IN),
            PollFd::new(orders, PollFlags::IN),
        ];
        let pause = next_look.map(|at| at.saturating_duration_since(Instant::now()));
        let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
        let pause = if lingers { Some(LINGER) } else { pause };
        match poll(&mut ready, pause.as_ref()) {
            Ok(0) if lingers => {
                lock(registry).tidy(events);
                lingers = false;
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "lock files are no longer watched");
                return;
            }
        }
        if !ready[1].revents().is_empty() {
            let _ = rustix::io::read(orders, &mut [0; 8]);
            let registry = lock(registry);
            if registry.stops {
                return;
            }
            if registry.looks && next_look.is_none() {
                next_look = Some(Instant::now() + LOOKS_EVERY);
            }
        }
        if !ready[0].revents().is_empty() {
            let news = read(events, &mut buffer, registry);
            if !news.is_empty() && !lingers {
                lingers = true;
                lock(registry).lingers = true;
            }
            for news in news {
                tell(&news);
            }
        }
        if next_look.is_some_and(|at| at <= Instant::now()) {
            next_look = look(registry).then(|| Instant::now() + LOOKS_EVERY);
        }
    }
}

/// Has everybody look who watches a directory. False if nobody needs another look.
fn look(registry: &Mutex<Registry>) -> bool {
    let watched: Vec<_> = {
        let mut registry = lock(registry);
        // Before anybody looks: whoever needs it from now on gives the order anew.
        registry.looks = false;
        let targets = registry.targets.values().flatten();
        let directories = targets.filter(|target| target.file.is_none());
        directories.map(|target| target.told.clone()).collect()
    };
    let mut goes_on = false;
    for told in watched {
        goes_on |= told.upgrade().is_some_and(|told| told.look());
    }
    if goes_on {
        lock(registry).looks = true;
    }
    goes_on
}

/// Reads what has happened. The registry is not locked while anybody is told: the told may watch and stop watching.
fn read(events: &OwnedFd, buffer: &mut [MaybeUninit<u8>], registry: &Mutex<Registry>) -> Vec<News> {
    let mut news = Vec::new();
    let mut reader = Reader::new(events, buffer);
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(Errno::INTR) => continue,
            Err(_) => return news,
        };
        let flags = event.events();
        let name: Option<Arc<str>> = event
            .file_name()
            .and_then(|name| name.to_str().ok())
            .map(Arc::from);
        let mut registry = lock(registry);
        let concerned: Vec<Target> = if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            registry.targets.values().flatten().cloned().collect()
        } else if flags.contains(ReadFlags::IGNORED) {
            // The system ended it: what was watched is gone.
            let targets = registry.targets.remove(&event.wd());
            targets.into_iter().flatten().collect()
        } else {
            let targets = registry.targets.get(&event.wd());
            targets.into_iter().flatten().cloned().collect()
        };
        drop(registry);
        news.extend(concerned.into_iter().map(|target| News {
            target,
            flags,
            name: name.clone(),
        }));
        if reader.is_buffer_empty() {
            // Whoever waits for this does not wait for another call that finds nothing.
            return news;
        }
    }
}

fn tell(news: &News) {
    let Some(told) = news.target.told.upgrade() else {
        return;
    };
    let everything = ReadFlags::QUEUE_OVERFLOW
        | ReadFlags::DELETE_SELF
        | ReadFlags::MOVE_SELF
        | ReadFlags::UNMOUNT
        | ReadFlags::IGNORED;
    match (&news.target.file, &news.name) {
        (Some(file), _) => told.closed(file),
        (None, Some(name)) => told.replaced(name),
        (None, None) if news.flags.intersects(everything) => told.everything_changed(),
        (None, None) => {}
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").finish_non_exhaustive()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one is locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use cap_std::ambient_authority;

    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Says what it is told.
    struct Ear(Mutex<mpsc::Sender<&'static str>>);

    impl Watched for Ear {
        fn closed(&self, _file: &str) {
            let _ = lock(&self.0).send("closed");
        }

        fn replaced(&self, _file: &str) {}

        fn everything_changed(&self) {
            let _ = lock(&self.0).send("everything");
        }

        fn look(&self) -> bool {
            false
        }
    }

    #[test]
    fn more_than_the_system_keeps_means_that_anything_may_have_changed() {
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let most: usize = most.trim().parse().unwrap();
        if most > 200_000 {
            println!("SKIPPED: the system keeps {most} events");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(place.path(), ambient_authority()).unwrap();
        let (sender, told) = mpsc::channel();
        let ear: Arc<dyn Watched> = Arc::new(Ear(Mutex::new(sender)));
        // Its thread does not run yet.
        let watcher = Arc::new(Watcher::new().unwrap());
        let registration = Watcher::watch_directory(&watcher, &dir, Arc::downgrade(&ear)).unwrap();
        let (mut from, mut to) = (place.path().join("a"), place.path().join("b"));
        std::fs::write(&from, "").unwrap();
        for _ in 0..=most / 2 {
            std::fs::rename(&from, &to).unwrap();
            std::mem::swap(&mut from, &mut to);
        }
        Watcher::start(&watcher).unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok("everything"));
        drop((registration, watcher));
    }
}
