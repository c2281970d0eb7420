//! Linux and Android: one inotify instance and one thread for all backends of the process.
//!
//! The instance is shared because a user has few of them (128 by default), and a process may have many backends.
//!
//! A blocking call that waits reads the events itself, so that a release wakes one thread and not two. One thread can do this at a
//! time. The kernel gives an event to that thread if it sleeps, and otherwise to the watcher's own thread: both have an epoll
//! instance with `EPOLLEXCLUSIVE`, and the one that was added first is asked first.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use portalock_core::Sleeper;
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use super::{
    super::{Change, Origin, Watched},
    event_wait::EventWait,
};

/// The events of at least a hundred files, or of one with the longest name.
const BUFFER: usize = 4096;
/// A read that returned fewer events left none, because an event takes at most 16 bytes and a name of 256.
const ANY_EVENTS: usize = BUFFER / (16 + 256);

/// The events of a watched directory.
const DIRECTORY: WatchFlags = WatchFlags::ONLYDIR
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// How often the thread checks that paths still lead to the directories with held locks.
const LOOKS_EVERY: Duration = Duration::from_millis(250);

/// The process's watcher, as long as it is used.
static SHARED: Mutex<Weak<Watcher>> = Mutex::new(Weak::new());
/// The process that used it last.
static USER: AtomicU32 = AtomicU32::new(0);

/// An inotify instance, and the thread that reads it until this is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    watches: Arc<Watches>,
    thread: Option<JoinHandle<()>>,
}

/// The state that is shared with the thread.
#[derive(Debug)]
struct Watches {
    events: OwnedFd,
    /// What the watcher's thread waits at.
    thread: EventWait,
    /// What the thread of a blocking call waits at, one at a time.
    waiter: EventWait,
    /// Whether such a thread uses it.
    is_taken: AtomicBool,
    /// Whether that thread sleeps there.
    is_asleep: AtomicBool,
    /// Order: end the thread.
    stops: AtomicBool,
    /// Order: check from time to time that paths still lead to the same directories.
    looks: AtomicBool,
    registry: Mutex<Registry>,
    /// A forked child shares the instance with its parent but has no thread, so it must not use or end anything here.
    origin: Origin,
}

#[derive(Debug, Default)]
struct Registry {
    /// By watch descriptor. Two backends on one directory, or two waiters on one file, share a descriptor.
    targets: HashMap<i32, Vec<Target>>,
    next_id: u64,
}

#[derive(Debug, Clone)]
struct Target {
    id: u64,
    /// The watched file; none for a directory, whose events contain file names.
    file: Option<Arc<str>>,
    told: Weak<dyn Watched>,
}

/// One watch. Dropping this ends it.
#[derive(Debug)]
pub(crate) struct Registration {
    watches: Arc<Watches>,
    descriptor: i32,
    id: u64,
}

impl Watcher {
    pub(crate) fn shared() -> io::Result<Arc<Self>> {
        let process = std::process::id();
        let mut shared = match SHARED.try_lock() {
            Ok(shared) => shared,
            Err(_) if USER.load(Ordering::Relaxed) == process => lock(&SHARED),
            // A thread of the parent had the mutex during the fork, so it is never free here.
            Err(_) => return Self::new().map(Arc::new),
        };
        USER.store(process, Ordering::Relaxed);
        let present = shared.upgrade();
        if let Some(watcher) = present.filter(|watcher| !watcher.watches.origin.is_elsewhere()) {
            return Ok(watcher);
        }
        let watcher = Arc::new(Self::new()?);
        *shared = Arc::downgrade(&watcher);
        Ok(watcher)
    }

    fn new() -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watches = Arc::new(Watches {
            // Made first, so that the kernel asks it first.
            waiter: EventWait::new(&events)?,
            thread: EventWait::new(&events)?,
            events,
            is_taken: AtomicBool::new(false),
            is_asleep: AtomicBool::new(false),
            stops: AtomicBool::new(false),
            looks: AtomicBool::new(false),
            registry: Mutex::default(),
            origin: Origin::here(),
        });
        let read = watches.clone();
        let thread = std::thread::Builder::new()
            .name("portalock-watch".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || read.run())?;
        Ok(Self {
            watches,
            thread: Some(thread),
        })
    }

    /// Lets the thread of a blocking call receive the events.
    pub(crate) fn sleeper(&self) -> Arc<dyn Sleeper> {
        self.watches.clone()
    }

    /// Makes the thread check paths from time to time, as long as this is needed.
    pub(crate) fn keep_looking(&self) {
        self.watches.order(&self.watches.looks);
    }

    /// Watches `file`, called so in the events, for being closed by any program, even one that only reads it, like
    /// flock(1). Without a name, watches a directory.
    pub(crate) fn watch(
        &self,
        what: impl AsFd,
        file: Option<&str>,
        told: Weak<dyn Watched>,
    ) -> io::Result<Registration> {
        let (file, flags) = match file {
            Some(file) => (Some(file.into()), WatchFlags::CLOSE),
            None => (None, DIRECTORY),
        };
        // Watches the open file itself, not the file that its name leads to now.
        let path = format!("/proc/self/fd/{}", what.as_fd().as_raw_fd());
        let watches = self.watches.clone();
        // Locked during the call, so that a removal of the same descriptor comes completely before or after it.
        let mut registry = lock(&watches.registry);
        let descriptor = inotify::add_watch(&watches.events, path, flags | WatchFlags::MASK_ADD)?;
        let id = registry.next_id;
        registry.next_id += 1;
        let targets = registry.targets.entry(descriptor).or_default();
        targets.push(Target { id, file, told });
        drop(registry);
        Ok(Registration {
            watches,
            descriptor,
            id,
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.watches.origin.is_elsewhere() {
            // Dropping it would detach the thread of the child that the C library has given the parent's stack.
            std::mem::forget(self.thread.take());
            return;
        }
        self.watches.order(&self.watches.stops);
        if let Some(thread) = self.thread.take()
            // The thread itself drops the last backend, if all other references were dropped while it called it.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.watches.origin.is_elsewhere() {
            // The watch belongs to the parent, whose thread may have held the registry's mutex during the fork.
            return;
        }
        let mut registry = lock(&self.watches.registry);
        let Some(targets) = registry.targets.get_mut(&self.descriptor) else {
            return;
        };
        let was_directory = targets.iter().any(|target| target.file.is_none());
        targets.retain(|target| target.id != self.id);
        // The watch of a file ends when the file is closed, which follows. Ending it here would be a slow call for the
        // waiter that was just woken, and would wake the thread once more.
        if targets.is_empty() && was_directory {
            self.watches.end(&mut registry, self.descriptor);
        }
    }
}

impl Watches {
    /// Gives the thread an order, unless it has it already.
    fn order(&self, order: &AtomicBool) {
        if !order.swap(true, Ordering::AcqRel) {
            self.thread.wake();
        }
    }

    /// Ends the watch `descriptor`.
    fn end(&self, registry: &mut Registry, descriptor: i32) {
        registry.targets.remove(&descriptor);
        // It fails if the watched file is gone, and then there is nothing to remove.
        let _ = inotify::remove_watch(&self.events, descriptor);
    }

    fn run(&self) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut next_look: Option<Instant> = None;
        loop {
            let pause = next_look.map(|at| at.saturating_duration_since(Instant::now()));
            match self.thread.wait(pause) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => return tracing::error!(%error, "lock files are no longer watched"),
            }
            if self.stops.load(Ordering::Acquire) {
                return;
            }
            self.report(&mut buffer);
            if next_look.is_some_and(|at| at <= Instant::now()) {
                self.look();
                next_look = None;
            }
            if next_look.is_none() && self.looks.load(Ordering::Acquire) {
                next_look = Some(Instant::now() + LOOKS_EVERY);
            }
        }
    }

    /// Reads one buffer of events, and tells everybody whom they concern. False if it may have left events.
    fn report(&self, buffer: &mut [MaybeUninit<u8>]) -> bool {
        let mut news = Vec::new();
        let mut reader = Reader::new(&self.events, buffer);
        let mut read = 0;
        while read == 0 || !reader.is_buffer_empty() {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            read += 1;
            let name = event.file_name().and_then(|name| name.to_str().ok());
            for target in self.concerned(event.wd(), event.events()) {
                let change = match (target.file, name) {
                    (Some(file), _) => Change::Closed(file),
                    (None, Some(name)) => Change::Replaced(name.into()),
                    (None, None) => Change::Everything,
                };
                news.push((target.told, change));
            }
        }
        // No mutex is held during these calls, because they may start and end watches.
        for (told, change) in news {
            if let Some(told) = told.upgrade() {
                told.tell(&change);
            }
        }
        read < ANY_EVENTS
    }

    fn concerned(&self, watch: i32, what: ReadFlags) -> Vec<Target> {
        let mut registry = lock(&self.registry);
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            // The events that would have ended these may be lost.
            let unused = registry.targets.extract_if(|_, told| told.is_empty());
            unused.for_each(|(watch, _)| _ = inotify::remove_watch(&self.events, watch));
            return registry.targets.values().flatten().cloned().collect();
        }
        if what.contains(ReadFlags::IGNORED) {
            // The system ended the watch, because the watched file is gone.
            return registry.targets.remove(&watch).unwrap_or_default();
        }
        let targets = registry.targets.get(&watch).cloned().unwrap_or_default();
        if targets.is_empty() {
            self.end(&mut registry, watch);
        }
        targets
    }

    /// Makes all watches of directories check their paths, and records whether another check is needed.
    fn look(&self) {
        // Reset before the checks: a watch that needs a check from now on gives the order again.
        self.looks.store(false, Ordering::Release);
        let watched: Vec<_> = {
            let registry = lock(&self.registry);
            let targets = registry.targets.values().flatten();
            let directories = targets.filter(|target| target.file.is_none());
            directories.map(|target| target.told.clone()).collect()
        };
        for told in watched {
            if told.upgrade().is_some_and(|told| told.look()) {
                self.looks.store(true, Ordering::Release);
            }
        }
    }
}

impl Sleeper for Watches {
    fn sleep(&self, timeout: Option<Duration>, is_woken: &dyn Fn() -> bool) -> bool {
        // A forked child has no thread that would take over.
        if self.origin.is_elsewhere() || self.is_taken.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.is_asleep.store(true, Ordering::SeqCst);
        let slept = if is_woken() {
            Ok(())
        } else {
            self.waiter.wait(timeout)
        };
        self.is_asleep.store(false, Ordering::SeqCst);
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        if !self.report(&mut buffer) {
            // The kernel told only this thread of the events that are left.
            self.thread.wake();
        }
        self.is_taken.store(false, Ordering::Release);
        matches!(slept, Ok(()) | Err(Errno::INTR))
    }

    fn wake(&self) {
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            self.waiter.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
