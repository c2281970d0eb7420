//! Another process that locks, shares and gives up, and counts what it sees: this test program again.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io::{Read, Seek, Write},
    iter::Sum,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use portalock_core::{Guard, LockError, Policy, clock::Instant};
use portalock_redis::RedisBackend;
use tokio::task::JoinSet;

use super::{Run, client};
use crate::fixture::{lock, patient};

const TASKS: usize = 3;
const NAMES: usize = 2;

const URL: &str = "PORTALOCK_RESETS_URL";
const DIR: &str = "PORTALOCK_RESETS_DIR";
const REPORT: &str = "PORTALOCK_RESETS_REPORT";
/// Two times in milliseconds.
const TIME: &str = "PORTALOCK_RESETS_TIME";
const SESSION: &str = "PORTALOCK_RESETS_SESSION";

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) faults: u32,
    pub(super) held: u32,
    /// Holds that ended before their release.
    pub(super) lost: u32,
    pub(super) overlaps: u32,
    /// Tokens that did not grow.
    pub(super) fell: u32,
    /// Places in the queue that were lost, or that lost their rank.
    pub(super) places_lost: u32,
    /// Calls of patient waiters, and releases, that failed otherwise.
    pub(super) failed: u32,
}

impl Counts {
    pub(super) fn nothing_lost(&self) -> bool {
        self.lost + self.overlaps + self.fell + self.places_lost + self.failed == 0 && self.held > 0
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} faults, {} holds, {} lost, {} overlaps, {} tokens that fell, {} places not kept, {} failed calls",
            self.faults,
            self.held,
            self.lost,
            self.overlaps,
            self.fell,
            self.places_lost,
            self.failed
        )
    }
}

/// Adds what other processes saw.
impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, one| Self {
            faults: sum.faults + one.faults,
            held: sum.held + one.held,
            lost: sum.lost + one.lost,
            overlaps: sum.overlaps + one.overlaps,
            fell: sum.fell + one.fell,
            places_lost: sum.places_lost + one.places_lost,
            failed: sum.failed + one.failed,
        })
    }
}

/// Another process at work.
pub(super) struct Worker {
    child: Child,
    report: PathBuf,
}

impl Worker {
    pub(super) fn start(url: &str, dir: &Path, run: Run) -> Self {
        let report = dir.join(format!("report-{:016x}", fastrand::u64(..)));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "resets::worker::be_at_work", "--nocapture"])
            .env(URL, url)
            .env(DIR, dir)
            .env(REPORT, &report)
            .env(TIME, run.time.as_millis().to_string())
            .env(SESSION, run.session.as_millis().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, report }
    }

    /// Waits for the end of the process, and returns what it saw.
    pub(super) fn counts(mut self) -> Counts {
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "a worker failed");
        let report = fs::read_to_string(&self.report).unwrap();
        let numbers: Vec<u32> = report.split(' ').map(|n| n.parse().unwrap()).collect();
        let [held, lost, overlaps, fell, failed] = numbers[..] else {
            panic!("{report}");
        };
        Counts {
            held,
            lost,
            overlaps,
            fell,
            failed,
            ..Counts::default()
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn be_at_work() {
    let (Ok(url), Ok(dir)) = (std::env::var(URL), std::env::var(DIR)) else {
        return;
    };
    let millis = |name| Duration::from_millis(std::env::var(name).unwrap().parse().unwrap());
    let backend = client(&url, millis(SESSION));
    let until = Instant::now() + millis(TIME);
    let counts = Arc::<Mutex<Counts>>::default();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (backend, dir, counts) = (backend.clone(), PathBuf::from(&dir), counts.clone());
        tasks.spawn(async move {
            while Instant::now() < until {
                work(&backend, &dir, &counts).await;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let seen = counts.lock().unwrap();
    let report = [seen.held, seen.lost, seen.overlaps, seen.fell, seen.failed];
    let report = report.map(|number| number.to_string()).join(" ");
    fs::write(std::env::var(REPORT).unwrap(), report).unwrap();
}

/// Acquires and holds one lock, exclusive or shared, with long or short patience.
async fn work(backend: &RedisBackend, dir: &Path, counts: &Mutex<Counts>) {
    let name = format!("work-{}", fastrand::usize(..NAMES));
    let policy = if fastrand::u8(..3) == 0 {
        Policy::new().with_timeout(Duration::from_millis(fastrand::u64(..40)))
    } else {
        patient()
    };
    let gives_up = policy != patient();
    let wanted = lock(backend, &name).with_policy(policy);
    let shared = fastrand::u8(..3) == 0;
    let held = if shared {
        wanted.acquire_shared().await
    } else {
        wanted.acquire().await
    };
    match held {
        Ok(guard) => hold(guard, &dir.join(name), shared, counts).await,
        Err(LockError::Timeout { .. }) if gives_up => {}
        // A call with less patience than a fault lasts may get an error from the fault.
        Err(error) if gives_up && error.is_retryable() => {}
        Err(error) => {
            eprintln!("a call failed: {error:?}");
            counts.lock().unwrap().failed += 1;
        }
    }
}

/// A file lock of the system shows whether two processes hold the lock; tokens grow with each exclusive hold.
async fn hold(guard: Guard<RedisBackend>, path: &Path, shared: bool, counts: &Mutex<Counts>) {
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let witnessed = if shared {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    let overlaps = matches!(witnessed, Err(TryLockError::WouldBlock));
    let mut fell = false;
    if !shared && !overlaps {
        let mut last = String::new();
        file.read_to_string(&mut last).unwrap();
        let token = u64::from(guard.token().unwrap());
        fell = last.parse().unwrap_or(0) >= token;
        file.rewind().unwrap();
        file.write_all(token.to_string().as_bytes()).unwrap();
    }
    tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
    let lost = guard.is_lost();
    // Closing the file unlocks it.
    drop(file);
    let released = guard.release().await;
    let mut counts = counts.lock().unwrap();
    counts.held += 1;
    counts.overlaps += u32::from(overlaps);
    counts.fell += u32::from(fell);
    match released {
        _ if lost => counts.lost += 1,
        Err(LockError::Lost { .. }) => counts.lost += 1,
        Err(error) => {
            eprintln!("a release failed: {error:?}");
            counts.failed += 1;
        }
        Ok(()) => {}
    }
}
