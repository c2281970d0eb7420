use std::{
    fs::File,
    sync::{atomic::AtomicUsize, mpsc},
    thread::ThreadId,
};

use cap_std::{ambient_authority, fs::Dir};

use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Reports that there were too many events.
struct Ear(Mutex<mpsc::Sender<()>>);

impl Watched for Ear {
    fn tell(&self, change: &Change) {
        if matches!(change, Change::Everything) {
            let _ = lock(&self.0).send(());
        }
    }
}

#[test]
fn the_watch_of_a_directory_ends_at_once_and_that_of_a_file_when_it_is_closed() {
    let place = tempfile::tempdir().unwrap();
    let dir = Dir::open_ambient_dir(place.path(), ambient_authority()).unwrap();
    let file = File::create(place.path().join("a")).unwrap();
    let ear: Arc<dyn Watched> = Arc::new(Ear(Mutex::new(mpsc::channel().0)));
    let watcher = Watcher::new().unwrap();
    let count = || lock(&watcher.watches.registry).targets.len();
    drop(watcher.watch(&dir, None, Arc::downgrade(&ear)).unwrap());
    assert_eq!(count(), 0);
    drop(
        watcher
            .watch(&file, Some("a"), Arc::downgrade(&ear))
            .unwrap(),
    );
    assert_eq!(count(), 1);
    drop(file);
    let start = Instant::now();
    while count() > 0 {
        assert!(start.elapsed() < LONG, "nobody ended it");
        std::thread::yield_now();
    }
}

#[test]
fn the_watch_of_a_file_that_is_gone_is_forgotten() {
    let place = tempfile::tempdir().unwrap();
    let file = File::create(place.path().join("a")).unwrap();
    let ear: Arc<dyn Watched> = Arc::new(Ear(Mutex::new(mpsc::channel().0)));
    let watcher = Watcher::new().unwrap();
    let watching = watcher.watch(&file, Some("a"), Arc::downgrade(&ear));
    std::fs::remove_file(place.path().join("a")).unwrap();
    drop(file);
    let start = Instant::now();
    while !lock(&watcher.watches.registry).targets.is_empty() {
        assert!(start.elapsed() < LONG, "it is kept");
        std::thread::yield_now();
    }
    drop(watching);
}

/// Reports each check, and needs as many as `left`.
struct Looker {
    looks: Mutex<mpsc::Sender<()>>,
    left: AtomicUsize,
}

impl Watched for Looker {
    fn tell(&self, _: &Change) {}

    fn look(&self) -> bool {
        let _ = lock(&self.looks).send(());
        self.left.fetch_sub(1, Ordering::SeqCst) > 1
    }
}

#[test]
fn paths_are_checked_from_time_to_time_as_long_as_it_is_needed_also_between_many_events() {
    let place = tempfile::tempdir().unwrap();
    let dir = Dir::open_ambient_dir(place.path(), ambient_authority()).unwrap();
    let (sender, checked) = mpsc::channel();
    let looker: Arc<dyn Watched> = Arc::new(Looker {
        looks: Mutex::new(sender),
        left: AtomicUsize::new(2),
    });
    let watcher = Watcher::new().unwrap();
    let watching = watcher.watch(&dir, None, Arc::downgrade(&looker)).unwrap();
    let start = Instant::now();
    watcher.keep_looking();
    for check in 1..=2 {
        while checked.recv_timeout(LOOKS_EVERY / 20).is_err() {
            assert!(start.elapsed() < LONG, "check {check} never came");
            std::fs::write(place.path().join("a"), "").unwrap();
            std::fs::remove_file(place.path().join("a")).unwrap();
        }
        assert!(start.elapsed() >= check * LOOKS_EVERY, "check {check}");
    }
    assert!(checked.recv_timeout(LOOKS_EVERY + LOOKS_EVERY / 4).is_err());
    drop(watching);
}

/// Drops the watcher when it is told something, and reports this.
struct Last(Mutex<Option<Watcher>>, Mutex<mpsc::Sender<()>>);

impl Watched for Last {
    fn tell(&self, _: &Change) {
        if let Some(watcher) = lock(&self.0).take() {
            drop(watcher);
            let _ = lock(&self.1).send(());
        }
    }
}

#[test]
fn the_watchers_own_thread_may_drop_the_last_reference_to_it() {
    let place = tempfile::tempdir().unwrap();
    let dir = Dir::open_ambient_dir(place.path(), ambient_authority()).unwrap();
    let (sender, dropped) = mpsc::channel();
    let last = Arc::new(Last(Mutex::default(), Mutex::new(sender)));
    let told: Arc<dyn Watched> = last.clone();
    let watcher = Watcher::new().unwrap();
    let watching = watcher.watch(&dir, None, Arc::downgrade(&told)).unwrap();
    *lock(&last.0) = Some(watcher);
    std::fs::write(place.path().join("a"), "").unwrap();
    std::fs::remove_file(place.path().join("a")).unwrap();
    assert_eq!(dropped.recv_timeout(LONG), Ok(()));
    drop(watching);
}

/// Reports which thread was told.
struct Told(Mutex<mpsc::Sender<ThreadId>>);

impl Watched for Told {
    fn tell(&self, _: &Change) {
        let _ = lock(&self.0).send(std::thread::current().id());
    }
}

/// Watches files in a directory for being closed.
fn told_of_files() -> (
    tempfile::TempDir,
    Arc<dyn Watched>,
    mpsc::Receiver<ThreadId>,
) {
    let (sender, told) = mpsc::channel();
    let ear = Arc::new(Told(Mutex::new(sender)));
    (tempfile::tempdir().unwrap(), ear, told)
}

#[test]
fn a_thread_that_sleeps_is_told_itself_and_the_watchers_thread_tells_the_others() {
    let (place, ear, told) = told_of_files();
    let watcher = Watcher::new().unwrap();
    let close = || {
        let file = File::create(place.path().join("a")).unwrap();
        let watching = watcher.watch(&file, Some("a"), Arc::downgrade(&ear));
        drop(file);
        let by = told.recv_timeout(LONG).unwrap();
        drop(watching);
        by
    };
    let watchers_own = watcher.thread.as_ref().unwrap().thread().id();
    assert_eq!(close(), watchers_own);
    let sleeper = watcher.sleeper();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(|| {
            while !ends.load(Ordering::SeqCst) {
                assert!(sleeper.sleep(None, &|| ends.load(Ordering::SeqCst)));
            }
        });
        let id = sleeping.thread().id();
        // It may be awake at the moment, because it was told.
        let start = Instant::now();
        let by_itself = std::iter::repeat_with(close)
            .take_while(|_| start.elapsed() < LONG)
            .any(|by| by == id);
        ends.store(true, Ordering::SeqCst);
        sleeper.wake();
        assert!(by_itself, "the watcher's thread is always told first");
    });
    assert_eq!(close(), watchers_own);
}

#[test]
fn two_threads_do_not_sleep_in_one_place() {
    let sleeper = Watcher::new().unwrap().sleeper();
    let (asleep, first_sleeps) = mpsc::channel();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let is_woken = || {
                let _ = asleep.send(());
                false
            };
            sleeper.sleep(None, &is_woken)
        });
        first_sleeps.recv().unwrap();
        assert!(!sleeper.sleep(None, &|| false));
        sleeper.wake();
        assert!(first.join().unwrap());
    });
    assert!(sleeper.sleep(Some(Duration::ZERO), &|| false));
    let start = Instant::now();
    assert!(sleeper.sleep(Some(LONG), &|| true));
    assert!(start.elapsed() < LONG, "it slept though it was woken");
}

/// Threads begin and end to sleep at any moment: each event reaches somebody.
#[test]
fn no_event_is_lost_between_a_sleeping_thread_and_the_watchers() {
    let (place, ear, told) = told_of_files();
    let watcher = Watcher::new().unwrap();
    let seed = fastrand::get_seed();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (sleeper, ends) = (watcher.sleeper(), &ends);
            let mut random = fastrand::Rng::with_seed(seed + number);
            scope.spawn(move || {
                while !ends.load(Ordering::SeqCst) {
                    let pause = Duration::from_micros(random.u64(..1500));
                    let is_woken = random.bool();
                    if random.bool() {
                        sleeper.wake();
                    }
                    if !sleeper.sleep(Some(pause), &|| is_woken) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        let all_told = (0..1000).all(|_| {
            let file = File::create(place.path().join("a")).unwrap();
            let watching = watcher.watch(&file, Some("a"), Arc::downgrade(&ear));
            drop(file);
            let is_told = told.recv_timeout(LONG).is_ok();
            drop(watching);
            is_told
        });
        ends.store(true, Ordering::SeqCst);
        assert!(all_told, "an event was lost, seed {seed}");
    });
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
    let watcher = Watcher::new().unwrap();
    let registration = watcher.watch(&dir, None, Arc::downgrade(&ear)).unwrap();
    let file = File::create(place.path().join("file")).unwrap();
    drop(
        watcher
            .watch(&file, Some("file"), Arc::downgrade(&ear))
            .unwrap(),
    );
    // While this is locked, the thread reads at most one buffer.
    let registry = lock(&watcher.watches.registry);
    let (mut from, mut to) = (place.path().join("a"), place.path().join("b"));
    std::fs::write(&from, "").unwrap();
    for _ in 0..most {
        std::fs::rename(&from, &to).unwrap();
        std::mem::swap(&mut from, &mut to);
    }
    // Its watch would end with this event, which is lost.
    drop(file);
    drop(registry);
    assert_eq!(told.recv_timeout(LONG), Ok(()));
    assert_eq!(lock(&watcher.watches.registry).targets.len(), 1);
    drop((registration, watcher));
}

#[test]
fn a_forked_child_does_not_wait_for_a_thread_of_its_parent() {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{
            Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, waitpid,
        },
    };
    // `exit` could wait for a mutex of the standard library.
    const WENT_WELL: Signal = Signal::USR1;
    drop(Watcher::shared().unwrap());
    // The child has no thread that would unlock it.
    let held = lock(&SHARED);
    let child = match fork::fork().unwrap() {
        fork::Fork::Parent(pid) => Pid::from_raw(pid).unwrap(),
        fork::Fork::Child => {
            if Watcher::shared().is_ok() {
                let _ = kill_process(getpid(), WENT_WELL);
            }
            std::process::abort()
        }
    };
    drop(held);
    let fd = pidfd_open(child, PidfdFlags::empty()).unwrap();
    let limit = Timespec::try_from(Duration::from_secs(30)).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
    // Fails if it has ended.
    let _ = kill_process(child, Signal::KILL);
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.terminating_signal(), Some(WENT_WELL.as_raw()));
}

#[test]
fn whoever_asks_for_the_watcher_while_another_thread_does_gets_the_same() {
    let watcher = Watcher::shared().unwrap();
    let held = lock(&SHARED);
    let (sender, got) = mpsc::channel();
    let asking = std::thread::spawn(move || sender.send(Watcher::shared().unwrap()));
    // Nobody would see that it waits: a watcher of its own would come at once.
    assert!(got.recv_timeout(LOOKS_EVERY).is_err());
    drop(held);
    assert!(Arc::ptr_eq(&watcher, &got.recv_timeout(LONG).unwrap()));
    asking.join().unwrap().unwrap();
}
