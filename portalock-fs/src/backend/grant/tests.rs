use super::*;
use crate::{locking::LockKind, sys::Origin};
use cap_std::{ambient_authority, fs::Dir};
use portalock_core::{BackendErrorKind, LockName, Patience};
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};

fn store(beside: bool) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store {
        dir: Dir::open_ambient_dir(dir.path(), ambient_authority()).unwrap(),
        path: dir.path().to_owned(),
        kind: LockKind::Flock,
        file_mode: 0o600,
        beside,
        origin: Origin::here(),
    };
    (dir, store)
}

fn request(name: &LockName, mode: Mode) -> LockRequest {
    LockRequest::new(name.clone(), mode, Patience::Once)
}

fn take(store: &Store, name: &LockName, mode: Mode, pid: u32) -> (LockFile, Written) {
    let file_name = FileName::of(name);
    let file = store.file(&file_name).open().unwrap();
    assert!(file.try_lock(mode).unwrap(), "{name} is busy");
    let mut holder = Holder::this_process(None);
    holder.pid = pid;
    let written = store.write_grant(
        &file_name,
        &file,
        FencingToken::after(None),
        &request(name, mode),
        holder,
    );
    (file, written.unwrap().unwrap())
}

fn present(store: &Store, name: &LockName) -> Vec<u32> {
    let file_name = FileName::of(name);
    let file = store.file(&file_name).open().unwrap();
    let (_, present) = store.look(&file_name, &file, usize::MAX).unwrap();
    present.into_iter().map(|entry| entry.holder.pid).collect()
}

#[test]
fn records_work_the_same_in_the_lock_file_and_beside_it() {
    for beside in [false, true] {
        let (dir, store) = store(beside);
        let us = std::process::id();
        for name in ["plain".to_owned(), "Ü".repeat(100)] {
            let name = LockName::new(name).unwrap();
            let file_name = FileName::of(&name);
            let (file, first) = take(&store, &name, Mode::Exclusive, us);
            assert_eq!(present(&store, &name), [us]);
            store.note_release(&file_name, &file, &first);
            file.free();
            assert!(present(&store, &name).is_empty());
            let (_one, second) = take(&store, &name, Mode::Shared, us);
            let (_two, third) = take(&store, &name, Mode::Shared, us);
            assert!(
                first.entry.token < second.entry.token && second.entry.token < third.entry.token
            );
            assert_eq!(present(&store, &name), [us, us]);
            let length = std::fs::metadata(dir.path().join(file_name.as_str()));
            assert_eq!(length.unwrap().len() == 0, beside);
        }
    }
}

/// Where locks are mandatory, each of these would fail or be refused to others: here the kernel tells of them.
#[cfg(target_os = "linux")]
#[test]
fn a_lock_file_with_its_record_beside_it_is_neither_read_nor_written() {
    use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

    let (dir, store) = store(true);
    let name = LockName::new("Ü".repeat(100)).unwrap();
    let file_name = FileName::of(&name);
    let path = dir.path().join(file_name.as_str());
    std::fs::write(&path, "").unwrap();
    let told = inotify::init(CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&told, &path, WatchFlags::ACCESS | WatchFlags::MODIFY).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    for mode in [Mode::Exclusive, Mode::Shared, Mode::Exclusive] {
        let (file, written) = take(&store, &name, mode, std::process::id());
        assert_eq!(present(&store, &name).len(), 1);
        store.last_written(&file_name, &file).unwrap();
        store.note_release(&file_name, &file, &written);
        file.free();
        assert!(Reader::new(&told, &mut buffer).next().is_err(), "{mode}");
    }
    std::fs::write(&path, "x").unwrap();
    assert!(Reader::new(&told, &mut buffer).next().is_ok());
}

#[test]
fn readers_that_crashed_are_not_told_and_leave_their_slots() {
    let (dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let mut gone = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("--list")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    gone.wait().unwrap();
    let us = std::process::id();
    let keeper = take(&store, &name, Mode::Shared, us);
    for _ in 0..10 {
        drop(take(&store, &name, Mode::Shared, gone.id()));
    }
    if cfg!(unix) {
        assert_eq!(present(&store, &name), [us]);
        let readers = dir.path().join("a.shared");
        assert_eq!(readers.metadata().unwrap().len(), 2 * SLOT as u64);
    }
    drop(keeper);
    // After a writer the list starts again.
    drop(take(&store, &name, Mode::Exclusive, us));
    let _reader = take(&store, &name, Mode::Shared, us);
    assert_eq!(present(&store, &name), [us]);
}

#[test]
fn a_released_readers_slot_is_used_again() {
    let (dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let us = std::process::id();
    let _keeper = take(&store, &name, Mode::Shared, us);
    for _ in 0..10 {
        let (file, written) = take(&store, &name, Mode::Shared, us);
        assert_eq!(present(&store, &name).len(), 2);
        store.note_release(&FileName::of(&name), &file, &written);
    }
    assert_eq!(present(&store, &name).len(), 1);
    let readers = dir.path().join("a.shared");
    assert_eq!(readers.metadata().unwrap().len(), 2 * SLOT as u64);
}

/// What the kernel has counted for this thread, such as the bytes it has read.
#[cfg(target_os = "linux")]
fn count(what: &str) -> Option<usize> {
    let counts = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    let count = counts.lines().find_map(|line| line.strip_prefix(what));
    Some(count.unwrap().parse().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn a_readers_grant_reads_little_beside_many_readers() {
    let (_dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let us = std::process::id();
    let mut readers: Vec<_> = (0..200)
        .map(|_| take(&store, &name, Mode::Shared, us))
        .collect();
    let Some(before) = count("rchar: ") else {
        println!("SKIPPED: this system does not count what a thread reads");
        return;
    };
    for at in 0..20 {
        // Releases among the others.
        let (file, written) = readers.swap_remove(9 * at);
        store.note_release(&FileName::of(&name), &file, &written);
        readers.push(take(&store, &name, Mode::Shared, us));
    }
    let each = (count("rchar: ").unwrap() - before) / 20;
    assert!(each < 20 * SLOT, "{each} bytes each");
    assert_eq!(present(&store, &name).len(), 200);
}

#[test]
fn a_reader_that_is_stopped_while_it_draws_a_token_stops_nobody_for_long() {
    let (_dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let file_name = FileName::of(&name);
    let stopped = store.named(&file_name.beside(READERS_SUFFIX)).open();
    let stopped = stopped.unwrap();
    assert!(stopped.try_lock(Mode::Exclusive).unwrap());
    let file = store.file(&file_name).open().unwrap();
    assert!(file.try_lock(Mode::Shared).unwrap());
    let request = request(&name, Mode::Shared);
    let write = || {
        let holder = Holder::this_process(None);
        store.write_grant(
            &file_name,
            &file,
            FencingToken::after(None),
            &request,
            holder,
        )
    };
    assert!(write().unwrap().is_none());
    stopped.free();
    assert!(write().unwrap().is_some());
}

/// On Windows a locked file can't be read.
#[cfg(unix)]
#[test]
fn a_reader_that_is_stopped_while_it_draws_a_token_hides_no_holder_and_no_release() {
    let (_dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let file_name = FileName::of(&name);
    let us = std::process::id();
    let (file, written) = take(&store, &name, Mode::Shared, us);
    let stopped = store.readers(&file_name).unwrap();
    assert!(stopped.try_lock(Mode::Exclusive).unwrap());
    assert_eq!(present(&store, &name), [us]);
    store.note_release(&file_name, &file, &written);
    assert!(present(&store, &name).is_empty());
}

/// A process that is stopped while it reads the list would keep all readers out.
#[cfg(unix)]
#[test]
fn whoever_reads_the_list_of_readers_keeps_nobody_from_it() {
    let (_dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let us = std::process::id();
    let _readers: Vec<_> = (0..200)
        .map(|_| take(&store, &name, Mode::Shared, us))
        .collect();
    let list = store.readers(&FileName::of(&name)).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let mut read = 0;
            while !ends.load(Ordering::SeqCst) || read == 0 {
                assert_eq!(present(&store, &name).len(), 200);
                read += 1;
            }
        });
        for _ in 0..20_000 {
            if !list.try_lock(Mode::Exclusive).unwrap() {
                ends.store(true, Ordering::SeqCst);
                panic!("the list is locked while it is read");
            }
            list.unlock().unwrap();
        }
        ends.store(true, Ordering::SeqCst);
        reads.join().unwrap();
    });
}

/// Each time another thread completes the grant, once it was read.
#[cfg(target_os = "linux")]
#[test]
fn a_grant_that_is_half_written_is_read_once_it_is_whole() {
    use rustix::{
        event::{PollFd, PollFlags, poll},
        fs::inotify::{self, CreateFlags, WatchFlags},
    };

    let (dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let file_name = FileName::of(&name);
    let (file, written) = take(&store, &name, Mode::Shared, std::process::id());
    let whole = record::render_slot(&written.entry);
    let path = dir.path().join(file_name.as_str());
    // Not at once each time: on a busy machine the other thread may come too late.
    let is_waited_for = (0..1000).any(|_| {
        write(file.file(), (0, &whole[..SLOT / 8])).unwrap();
        write(file.file(), (SLOT as u64 / 8, [b'x'; SLOT / 8])).unwrap();
        let reads = inotify::init(CreateFlags::empty()).unwrap();
        inotify::add_watch(&reads, &path, WatchFlags::ACCESS).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                poll(&mut [PollFd::new(&reads, PollFlags::IN)], None).unwrap();
                write(file.file(), (0, &whole)).unwrap();
            });
            let record = store.read(&file_name, &file).unwrap();
            record.last.as_ref() == Some(&written.entry)
        })
    });
    assert!(is_waited_for);
}

/// A list of names looks at many records.
#[test]
fn a_record_that_stays_torn_is_not_waited_for_long() {
    let (_dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let (file, _) = take(&store, &name, Mode::Exclusive, std::process::id());
    write(file.file(), (60, b"x")).unwrap();
    let takes = || {
        let start = Instant::now();
        assert!(store.read(&FileName::of(&name), &file).unwrap().is_torn);
        start.elapsed()
    };
    // The fastest one, because the machine may be busy.
    let fastest = (0..100).map(|_| takes()).min().unwrap();
    assert!(fastest < PATIENCE / 2, "{fastest:?}");
}

/// The list beside a file that was replaced is that of the new file.
#[test]
fn a_release_leaves_no_slot_but_its_own() {
    let (dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let file_name = FileName::of(&name);
    let us = std::process::id();
    let (file, written) = take(&store, &name, Mode::Shared, us);
    std::fs::rename(dir.path().join("a.lock"), dir.path().join("away")).unwrap();
    let (_next, next) = take(&store, &name, Mode::Shared, us);
    assert_eq!(written.reader, next.reader);
    store.note_release(&file_name, &file, &written);
    assert_eq!(present(&store, &name), [us]);
}

/// A forked child may have a copy of it.
#[test]
fn a_copy_of_the_list_of_readers_keeps_nobody_out() {
    let (_dir, store) = store(false);
    let file_name = FileName::of(&LockName::new("a").unwrap());
    let copy = store.with_readers(&file_name, |readers| Ok(readers.try_clone().unwrap()));
    let copy = copy.unwrap().unwrap();
    let again = store.with_readers(&file_name, |_| Ok(()));
    assert!(again.unwrap().is_some());
    drop(copy);
}

#[test]
fn a_token_is_the_time_or_the_next_one_and_after_the_largest_there_is_none() {
    let now = FencingToken::new(7);
    let after = |last: u64| token_after(Some(FencingToken::new(last)), now);
    assert_eq!(token_after(None, now).unwrap(), now);
    for (last, next) in [(6, 7), (7, 8), (8, 9), (u64::MAX - 1, u64::MAX)] {
        assert_eq!(after(last).unwrap().get(), next);
    }
    let error = after(u64::MAX).unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Corrupt);
}

#[test]
fn another_file_in_place_of_the_list_of_readers_is_not_overwritten() {
    let (dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let (file_name, list) = (FileName::of(&name), dir.path().join("a.shared"));
    std::fs::write(&list, "precious").unwrap();
    let file = store.file(&file_name).open().unwrap();
    let holder = Holder::this_process(None);
    let written = store.write_grant(
        &file_name,
        &file,
        FencingToken::after(None),
        &request(&name, Mode::Shared),
        holder,
    );
    assert_eq!(written.unwrap_err().kind(), BackendErrorKind::Corrupt);
    assert_eq!(std::fs::read_to_string(&list).unwrap(), "precious");
}

/// Only the process's own host knows which of its processes exist.
#[test]
fn a_holder_on_another_host_is_not_taken_for_gone() {
    let (_dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    let file_name = FileName::of(&name);
    let file = store.file(&file_name).open().unwrap();
    let here = Holder::this_process(None);
    let pid = i32::MAX as u32;
    for (host, is_present) in [(here.host, cfg!(windows)), ("elsewhere".into(), true)] {
        let holder = Holder::new(host, pid, None, here.since);
        let written = store.write_grant(
            &file_name,
            &file,
            FencingToken::after(None),
            &request(&name, Mode::Exclusive),
            holder,
        );
        written.unwrap().unwrap();
        assert_eq!(present(&store, &name).len(), usize::from(is_present));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_grant_writes_its_slot_and_a_release_its_mark() {
    let (_dir, store) = store(false);
    let name = LockName::new("a").unwrap();
    // The first grant also writes the name.
    drop(take(&store, &name, Mode::Exclusive, std::process::id()));
    let Some(before) = count("wchar: ") else {
        println!("SKIPPED: this system does not count what a thread writes");
        return;
    };
    let (file, written) = take(&store, &name, Mode::Exclusive, std::process::id());
    store.note_release(&FileName::of(&name), &file, &written);
    let written = count("wchar: ").unwrap() - before;
    let released = Record::write_released(FencingToken::new(1)).1;
    assert_eq!(written, SLOT + released.len());
}
