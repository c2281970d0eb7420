//! A child that was forked while locks were held: with and without `exec`, with guards and watchers inherited.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::{
    future::pending,
    io::{PipeReader, PipeWriter, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::{Command, Stdio, abort},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use fork::Fork;
use futures_util::FutureExt;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Grant, Inspect, Inspection, Lock,
    LockBackend, LockError, LockName, LockRequest, Mode, Patience, Released, Scope, blocking,
};
use portalock_fs::{
    AtomicFile, BoundedSemaphore, FileLock, FsBackend, LockKind, PidFileLock, ReentrantFileLock,
    TemporaryFileLock,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, waitpid},
};
use support::{LONG, Locks};

/// By this a child ends that succeeded. `exit` would run the clean-up of the standard library, which can wait for ever for
/// a mutex that a thread of the parent held during the fork.
const WENT_WELL: Signal = Signal::USR1;

/// A forked child, which is killed when this is dropped.
struct Child(Pid);

impl Child {
    /// Runs `work` in a child, whose end says whether it succeeded.
    fn doing(work: impl FnOnce()) -> Self {
        match fork::fork().unwrap() {
            Fork::Parent(pid) => Self(Pid::from_raw(pid).unwrap()),
            Fork::Child => {
                if catch_unwind(AssertUnwindSafe(work)).is_ok() {
                    let _ = kill_process(getpid(), WENT_WELL);
                }
                abort()
            }
        }
    }

    /// Waits for the child, and returns whether it succeeded.
    fn went_well(self) -> bool {
        let fd = pidfd_open(self.0, PidfdFlags::empty()).unwrap();
        let limit = Timespec::try_from(LONG).unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
        let ended = waitpid(Some(self.0), WaitOptions::NOHANG).unwrap();
        ended.is_some_and(|(_, status)| status.terminating_signal() == Some(WENT_WELL.as_raw()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails if the child was already waited for.
        if matches!(waitpid(Some(self.0), WaitOptions::NOHANG), Ok(None)) {
            let _ = kill_process(self.0, Signal::KILL);
            let _ = waitpid(Some(self.0), WaitOptions::empty());
        }
    }
}

/// A child keeps its copies until the parent drops its end.
fn pipe() -> (PipeReader, PipeWriter) {
    std::io::pipe().unwrap()
}

fn wait_for_end((mut reader, writer): (PipeReader, PipeWriter)) {
    drop(writer);
    let _ = reader.read(&mut [0]);
}

fn lock(backend: &FsBackend, name: &str) -> blocking::Lock<FsBackend> {
    blocking::Lock::new(backend.clone(), name)
        .unwrap()
        .with_policy(support::patience())
}

fn is_free(directory: &Path, name: &str) -> bool {
    let other = FsBackend::open(directory).unwrap();
    match lock(&other, name).try_acquire() {
        Ok(_) => true,
        Err(error) if error.is_contention() => false,
        Err(error) => panic!("{error}"),
    }
}

fn is_told(guard: &blocking::Guard<FsBackend>) -> bool {
    let start = Instant::now();
    while !guard.is_lost() {
        if start.elapsed() > LONG {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Runs the test of this name in a process of its own, where nothing else uses the watcher: then the child drops the last of it.
/// True in that process.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "PORTALOCK_FS_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(ALONE, "1")
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    false
}

#[test]
fn a_child_that_drops_what_it_inherited_ends_nothing_of_its_parents() {
    if !is_alone("a_child_that_drops_what_it_inherited_ends_nothing_of_its_parents") {
        return;
    }
    let locks = Locks::new();
    let backend = locks.client();
    let guard = lock(&backend, "a").acquire().unwrap();
    let other = lock(&backend, "b").acquire_shared().unwrap();
    let mut inherited = Some((guard, other, backend));
    let child = Child::doing(|| drop(inherited.take()));
    assert!(child.went_well());
    let (guard, other, backend) = inherited.unwrap();
    assert!(!is_free(&locks.path(), "a"));
    assert!(!is_free(&locks.path(), "b"));
    // The watcher still works: a waiter is woken, and a loss is reported.
    let waiting = lock(&locks.client(), "b");
    let waiter = std::thread::spawn(move || waiting.acquire().map(drop));
    other.release().unwrap();
    waiter.join().unwrap().unwrap();
    std::fs::remove_file(locks.file("a")).unwrap();
    assert!(is_told(&guard), "the watch ended with the child");
    drop(backend);
}

#[test]
fn a_child_that_releases_what_it_inherited_is_told_that_it_holds_nothing() {
    let locks = Locks::new();
    let backend = locks.client();
    let mut inherited = Some(lock(&backend, "a").acquire().unwrap());
    let child = Child::doing(|| {
        let error = inherited.take().unwrap().release().unwrap_err();
        assert!(matches!(error, LockError::NotHeld { .. }), "{error}");
        // The backend belongs to the parent too.
        let error = lock(&backend, "c").try_acquire().unwrap_err();
        let LockError::Backend { source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), BackendErrorKind::Misconfigured);
    });
    assert!(child.went_well());
    assert!(!is_free(&locks.path(), "a"));
    inherited.unwrap().release().unwrap();
    assert!(is_free(&locks.path(), "a"));
}

/// Each answers without a mutex, which a thread of the parent may have held during the fork.
#[test]
fn a_childs_copy_of_a_backend_keeps_no_place_in_the_queue() {
    let locks = Locks::new();
    let backend = locks.client();
    let guard = lock(&backend, "a").acquire().unwrap();
    let waiting = support::request("a", Mode::Exclusive, Patience::Queue);
    let contended = backend.try_acquire(&waiting).now_or_never().unwrap();
    assert!(matches!(contended, Ok(Attempt::Contended(_))));
    let child = Child::doing(|| {
        let listens = backend.subscribe(&waiting).now_or_never().unwrap();
        assert!(listens.unwrap().is_none());
    });
    assert!(child.went_well());
    let listens = backend.subscribe(&waiting).now_or_never().unwrap();
    assert!(listens.unwrap().is_some());
    guard.release().unwrap();
}

#[test]
fn a_backend_that_a_child_opens_has_a_watcher_of_its_own() {
    let locks = Locks::new();
    let backend = locks.client();
    let guard = lock(&backend, "a").acquire().unwrap();
    let child = Child::doing(|| {
        let own = locks.client();
        let guard = lock(&own, "b").acquire().unwrap();
        std::fs::remove_file(locks.file("b")).unwrap();
        assert!(is_told(&guard));
        drop((guard, own));
    });
    assert!(child.went_well());
    std::fs::remove_file(locks.file("a")).unwrap();
    assert!(is_told(&guard));
}

/// As a child does that opens a backend of its own, while a thread of the parent uses the library's background thread.
/// Like a server that opens a backend in each of its forked processes, in place of the one that it inherited.
#[test]
fn a_child_that_drops_what_it_inherited_keeps_its_own_watcher() {
    let locks = Locks::new();
    let backend = locks.client();
    let mut inherited = Some((lock(&backend, "a").acquire().unwrap(), backend));
    let child = Child::doing(|| {
        let own = locks.client();
        drop(inherited.take());
        lock(&own, "b").acquire().unwrap().release().unwrap();
        // Waits for the watcher's thread.
        drop(own);
    });
    assert!(child.went_well());
}

#[test]
fn a_child_waits_for_no_thread_of_its_parent() {
    let stops = Arc::new(AtomicBool::new(false));
    let until = stops.clone();
    let busy = std::thread::spawn(move || {
        let uses = async move {
            while !until.load(Ordering::Acquire) {
                // Refused at once there.
                blocking::wait(async {}).unwrap_err();
            }
        };
        blocking::wait(uses).unwrap();
    });
    let all_went_well = (0..50).all(|_| {
        let child = Child::doing(|| blocking::wait(async {}).unwrap());
        child.went_well()
    });
    stops.store(true, Ordering::Release);
    busy.join().unwrap();
    assert!(all_went_well);
}

/// What a thread of the parent may be in the middle of: a child that drops it ends.
struct InUse(u32);

impl InUse {
    async fn for_ever<T>() -> T {
        let _in_use = Self(std::process::id());
        pending().await
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if std::process::id() != self.0 {
            abort();
        }
    }
}

/// Grants the first attempt, and answers nothing after it.
#[derive(Debug, Default)]
struct FallsSilent(AtomicBool);

#[async_trait]
impl LockBackend for FallsSilent {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Process).with_inspect(Inspect::Holders)
    }

    async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> {
        if self.0.swap(true, Ordering::AcqRel) {
            InUse::for_ever().await
        } else {
            Ok(Attempt::Granted(Grant::new()))
        }
    }

    async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
        InUse::for_ever().await
    }

    async fn inspect(&self, _: &LockName) -> Result<Inspection, BackendError> {
        InUse::for_ever().await
    }
}

#[test]
fn a_child_that_drops_calls_under_way_drops_nothing_that_its_parent_uses() {
    let lock = Lock::new(FallsSilent::default(), "a").unwrap();
    let guard = lock.acquire().now_or_never().unwrap().unwrap();
    let acquires = lock.acquire().map(drop).boxed();
    let releases = guard.release().map(drop).boxed();
    let inspects = lock.inspect().map(drop).boxed();
    for mut call in [acquires, releases, inspects].map(Some) {
        assert!(call.as_mut().unwrap().now_or_never().is_none());
        assert!(Child::doing(|| drop(call.take())).went_well());
    }
}

#[test]
fn a_release_frees_the_lock_though_a_child_has_a_copy() {
    let locks = Locks::new();
    let backend = locks.client();
    let guard = lock(&backend, "a").acquire().unwrap();
    let (reader, writer) = pipe();
    let mut ends = Some((reader, writer));
    let child = Child::doing(|| wait_for_end(ends.take().unwrap()));
    guard.release().unwrap();
    assert!(is_free(&locks.path(), "a"));
    drop(ends);
    assert!(child.went_well());
}

/// The kernel keeps a lock until the last copy of the open file is closed.
#[test]
fn a_crashed_holders_lock_stays_while_a_child_has_a_copy() {
    let locks = Locks::new();
    let (reader, writer) = pipe();
    let mut ends = Some((reader, writer));
    let holder = Child::doing(|| {
        let backend = locks.client();
        let guard = lock(&backend, "a").acquire().unwrap();
        let ends = ends.take().unwrap();
        if let Fork::Child = fork::fork().unwrap() {
            wait_for_end(ends);
        }
        // Like a crash: nothing is dropped.
        std::mem::forget((guard, backend));
    });
    assert!(holder.went_well());
    assert!(!is_free(&locks.path(), "a"));
    drop(ends);
    let guard = lock(&locks.client(), "a").acquire().unwrap();
    guard.release().unwrap();
}

#[test]
fn a_program_that_is_started_inherits_no_lock() {
    let locks = Locks::new();
    let backend = locks.client();
    let file = FileLock::new(locks.path().join("data")).unwrap();
    let guards = (lock(&backend, "a").acquire().unwrap(), file.try_acquire());
    let mut program = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Closed without an unlock, like after a crash: no copy may be left.
    let (guard, data) = guards;
    drop((guard, data));
    assert!(is_free(&locks.path(), "a"));
    assert!(file.try_acquire().is_ok());
    let pid = program.id();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let inherited = open
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .any(|target| target.starts_with(locks.path()));
    assert!(!inherited);
    drop(program.stdin.take());
    program.wait().unwrap();
}

#[test]
fn a_childs_copies_of_file_guards_wait_for_no_thread_of_its_parent() {
    let locks = Locks::new();
    std::fs::create_dir(locks.path()).unwrap();
    let file = |name: &str| FileLock::new(locks.path().join(name)).unwrap();
    let guard = file("a").try_acquire().unwrap();
    let reentrant = ReentrantFileLock::new(file("b")).unwrap();
    let outer = reentrant.blocking_acquire().unwrap();
    let stops = AtomicBool::new(false);
    let all_went_well = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stops.load(Ordering::Acquire) {
                guard.ensure_held().unwrap();
                drop(reentrant.blocking_acquire().unwrap());
            }
        });
        let all_went_well = (0..100).all(|_| {
            let child = Child::doing(|| {
                assert!(guard.ensure_held().is_err());
                assert!(guard.path().ends_with("a"));
                assert_eq!(reentrant.count(), 0);
            });
            child.went_well()
        });
        stops.store(true, Ordering::Release);
        all_went_well
    });
    assert!(all_went_well);
    assert_eq!(reentrant.count(), 1);
    outer.release().unwrap();
    guard.release().unwrap();
}

#[test]
fn a_childs_copies_of_file_guards_end_nothing_of_its_parents() {
    let locks = Locks::new();
    std::fs::create_dir(locks.path()).unwrap();
    let path = |name: &str| locks.path().join(name);
    for kind in [LockKind::Flock, LockKind::Record] {
        let data = FileLock::new(path("data")).unwrap().with_kind(kind);
        let temporary = TemporaryFileLock::new(path("t.lock")).unwrap();
        let temporary = temporary.with_kind(kind);
        let pid = PidFileLock::new(path("d.pid")).unwrap().with_kind(kind);
        let slots = BoundedSemaphore::new("slots", 1).unwrap().with_kind(kind);
        let slots = slots.in_directory(locks.path()).unwrap();
        let mut inherited = Some((
            data.try_acquire().unwrap(),
            temporary.try_acquire().unwrap(),
            pid.try_acquire().unwrap(),
            slots.try_acquire().unwrap(),
        ));
        for releases in [false, true] {
            let child = Child::doing(|| {
                let (data, temporary, pid, slot) = inherited.take().unwrap();
                if releases {
                    assert!(data.ensure_held().is_err());
                    assert!(data.release().is_err());
                    assert!(temporary.release().is_err());
                    assert!(pid.release().is_err());
                    assert!(slot.release().is_err());
                }
            });
            assert!(child.went_well());
            assert!(data.try_acquire().is_err());
            assert!(temporary.try_acquire().is_err());
            assert!(pid.try_acquire().is_err());
            assert!(slots.try_acquire().is_err());
            assert_eq!(pid.read_pid(), Some(std::process::id()));
        }
        let (data, temporary, pid, slot) = inherited.unwrap();
        data.release().unwrap();
        temporary.release().unwrap();
        pid.release().unwrap();
        slot.release().unwrap();
    }
}

#[test]
fn a_child_does_not_count_as_its_parents_reentrant_lock() {
    let locks = Locks::new();
    std::fs::create_dir(locks.path()).unwrap();
    let file = FileLock::new(locks.path().join("data")).unwrap();
    let ours = ReentrantFileLock::new(file.clone()).unwrap();
    let guard = ours.blocking_acquire().unwrap();
    let child = Child::doing(|| assert!(ours.blocking_acquire().is_err()));
    assert!(child.went_well());
    assert!(file.try_acquire().is_err());
    guard.release().unwrap();
}

#[test]
fn a_child_that_drops_an_unfinished_file_leaves_it_to_its_parent() {
    let locks = Locks::new();
    let mut inherited = Some(AtomicFile::create(locks.path()).unwrap());
    let child = Child::doing(|| drop(inherited.take()));
    assert!(child.went_well());
    inherited.unwrap().publish().unwrap();
}
