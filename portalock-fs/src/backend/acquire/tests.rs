use futures_util::FutureExt;
use portalock_core::{LockBackend, LockName, Policy, blocking, wakeups};

use super::{
    super::{Calls, FsBackend, FsSettings, Watch},
    *,
};

fn client() -> (tempfile::TempDir, Arc<Client>) {
    let dir = tempfile::tempdir().unwrap();
    let client = FsBackend::open(dir.path()).unwrap().client;
    (dir, client)
}

fn request(patience: Patience) -> LockRequest {
    LockRequest::new(LockName::new("a").unwrap(), Mode::Exclusive, patience)
}

fn contention(attempt: Attempt) -> Contention {
    match attempt {
        Attempt::Contended(contention) => contention,
        granted @ Attempt::Granted(_) => panic!("{granted:?}"),
    }
}

#[test]
fn nobody_looks_for_a_path_that_nothing_is_held_at() {
    let (_dir, client) = client();
    let request = request(Patience::Once);
    for _ in 0..2 {
        assert!(!client.look());
        let _ = client.attempt(&request).unwrap();
        assert!(client.look());
        client.free(&request, true);
    }
    assert!(!client.look());
    // A waiter looks for itself, each time it tries.
    let other = FsBackend::open(&client.store.path).unwrap().client;
    let _ = other.attempt(&request).unwrap();
    let waiting = self::request(Patience::Queue);
    assert!(matches!(
        client.attempt(&waiting).unwrap(),
        Attempt::Contended(_)
    ));
    assert!(!client.look());
}

#[test]
fn a_path_that_leads_to_the_same_directory_wakes_nobody() {
    let (_dir, client) = client();
    let (first, next) = (request(Patience::Once), request(Patience::Queue));
    let _ = client.attempt(&first).unwrap();
    let _ = client.attempt(&next).unwrap();
    let (line, mut wakeups) = wakeups();
    assert!(client.listen(&next, line));
    let file_name = FileName::of(&first.name);
    let visit = client.places.find(&file_name).unwrap();
    {
        // Looked at while another thread uses the state.
        let _place = visit.lock();
        assert!(client.look());
    }
    assert!(wakeups.next().now_or_never().is_none());
    client.tell(&Change::Everything);
    assert!(wakeups.next().now_or_never().is_some());
}

#[test]
fn a_waiter_leaves_one_try_to_others_if_it_should_and_then_goes_on() {
    let (_dir, client) = client();
    let (first, next) = (request(Patience::Once), request(Patience::Queue));
    let _ = client.attempt(&first).unwrap();
    assert!(contention(client.attempt(&next).unwrap()).queued);
    let passing = client.attempt(&request(Patience::Once)).unwrap();
    assert!(!contention(passing).queued);
    let file_name = FileName::of(&first.name);
    let visit = client.places.find(&file_name).unwrap();
    let mut place = visit.lock();
    place.held.pop().unwrap().file.free();
    place.yields = true;
    let mut attempt = || client.attempt_in(&mut place, &file_name, &next).unwrap();
    assert_eq!(contention(attempt()).recheck_after, Some(YIELD));
    assert!(matches!(attempt(), Attempt::Granted(_)));
}

#[test]
fn a_waiter_that_hears_of_the_release_tries_at_once() {
    let (_dir, client) = client();
    let (first, next) = (request(Patience::Once), request(Patience::Queue));
    let _ = client.attempt(&first).unwrap();
    let _ = client.attempt(&next).unwrap();
    let file_name = FileName::of(&first.name);
    let visit = client.places.find(&file_name).unwrap();
    visit.lock().held.pop().unwrap().file.free();
    visit.lock().yields = true;
    client.tell(&Change::Closed(file_name.as_str().into()));
    assert!(matches!(
        client.attempt(&next).unwrap(),
        Attempt::Granted(_)
    ));
}

/// The event of the release would have woken them, but the watch ends with the grant.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn a_reader_that_gets_in_before_the_event_wakes_the_other_readers() {
    for (mode, wakes) in [(Mode::Shared, true), (Mode::Exclusive, false)] {
        let (dir, client) = client();
        let other = FsBackend::open(dir.path()).unwrap().client;
        let held = request(Patience::Once);
        let _ = other.attempt(&held).unwrap();
        let waiting = [(); 2].map(|()| {
            let waiting = LockRequest::new(held.name.clone(), mode, Patience::Queue);
            let _ = contention(client.attempt(&waiting).unwrap());
            waiting
        });
        let (line, mut wakeups) = wakeups();
        assert!(client.listen(&waiting[1], line));
        let file_name = FileName::of(&held.name);
        other.places.find(&file_name).unwrap().change(|place| {
            // It stays open, so there is no event.
            let _ = place.held[0].file.unlock();
        });
        let first = client.attempt(&waiting[0]).unwrap();
        assert!(matches!(first, Attempt::Granted(_)), "{first:?}");
        assert_eq!(wakeups.next().now_or_never().is_some(), wakes, "{mode:?}");
    }
}

#[test]
fn a_lock_is_passed_on_here_from_the_first_grant_that_others_wait_behind() {
    let (_dir, client) = client();
    let file_name = FileName::of(&request(Patience::Once).name);
    let waiting: Vec<_> = (0..4).map(|_| request(Patience::Queue)).collect();
    let try_once = |at: usize| client.attempt(&waiting[at]).unwrap();
    let _ = try_once(0);
    let visit = client.places.find(&file_name).unwrap();
    assert_eq!(visit.lock().ours_since, None);
    for at in [1, 2] {
        let _ = contention(try_once(at));
    }
    client.free(&waiting[0], true);
    assert!(matches!(try_once(1), Attempt::Granted(_)));
    assert!(visit.lock().ours_since.is_some());
    // Later than any release here.
    let since = Some(Instant::now() + BEHIND_OTHERS);
    visit.lock().ours_since = since;
    let _ = contention(try_once(3));
    client.free(&waiting[1], true);
    assert!(matches!(try_once(2), Attempt::Granted(_)));
    assert_eq!(visit.lock().ours_since, since);
    client.free(&waiting[2], true);
    assert!(matches!(try_once(3), Attempt::Granted(_)));
    assert_eq!(visit.lock().ours_since, None);
}

#[test]
fn a_waiter_that_polls_pauses_for_no_longer_than_it_should() {
    let (dir, holder) = client();
    let most = Duration::from_millis(3);
    let settings = FsSettings::new(dir.path()).with_watch(Watch::Off);
    let settings = settings.with_poll_interval(most).unwrap();
    let client = FsBackend::with_settings(&settings).unwrap().client;
    let _ = holder.attempt(&request(Patience::Once)).unwrap();
    let waiting = request(Patience::Queue);
    for _ in 0..20 {
        let pause = contention(client.attempt(&waiting).unwrap()).recheck_after;
        assert!(pause.unwrap() <= most, "{pause:?}");
    }
}

/// This client's holder has lost the lock, and another client has locked the new file.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn what_only_waiters_need_goes_with_the_last_of_them() {
    let (dir, client) = client();
    let (once, waiting) = (request(Patience::Once), request(Patience::Queue));
    let _ = client.attempt(&request(Patience::Once)).unwrap();
    let file_name = FileName::of(&once.name);
    std::fs::remove_file(dir.path().join(file_name.as_str())).unwrap();
    client.tell(&Change::Replaced(file_name.as_str().into()));
    let other = FsBackend::open(dir.path()).unwrap().client;
    let _ = other.attempt(&request(Patience::Once)).unwrap();
    let visit = client.places.find(&file_name).unwrap();
    let mut place = visit.lock();
    let mut attempt = |request| {
        let attempt = client.attempt_in(&mut place, &file_name, request).unwrap();
        assert!(contention(attempt).holder.is_some());
        place.contender.hears_of_release()
    };
    assert!(!attempt(&once), "it does not wait");
    assert!(attempt(&waiting));
    drop(place);
    let has_file = || visit.lock().contender.file().is_some();
    assert!(has_file());
    visit.lock().yields = true;
    client.free(&waiting, true);
    assert!(!has_file() && !visit.lock().yields);
    let _ = contention(client.attempt(&once).unwrap());
    assert!(!has_file());
}

/// Newcomers would refuse the link.
#[cfg(unix)]
#[test]
fn a_link_to_the_locked_file_is_not_the_locked_file() {
    let (dir, client) = client();
    let request = request(Patience::Once);
    let _ = client.attempt(&request).unwrap();
    let (path, away) = (dir.path().join("a.lock"), dir.path().join("away"));
    std::fs::rename(&path, &away).unwrap();
    std::os::unix::fs::symlink(&away, &path).unwrap();
    assert_eq!(
        client.free(&request, true),
        portalock_core::Released::NotHeld
    );
}

#[cfg(unix)]
#[test]
fn the_path_of_the_directory_may_be_a_link() {
    let (dir, holder) = client();
    let base = tempfile::tempdir().unwrap();
    let link = base.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let client = FsBackend::open(&link).unwrap().client;
    let _ = holder.attempt(&request(Patience::Once)).unwrap();
    let waiting = request(Patience::Queue);
    let _ = contention(client.attempt(&waiting).unwrap());
    std::fs::remove_file(dir.path().join("a.lock")).unwrap();
    let attempt = client.attempt(&waiting).unwrap();
    assert!(matches!(attempt, Attempt::Granted(_)), "{attempt:?}");
}

/// While a file server does not answer, another task's attempt has the place.
#[test]
fn a_stalled_attempt_blocks_no_runtime_whose_calls_are_offloaded() {
    let dir = tempfile::tempdir().unwrap();
    let settings = FsSettings::new(dir.path()).with_calls(Calls::Offload);
    let backend = FsBackend::with_settings(&settings).unwrap();
    let (client, waiting) = (backend.client.clone(), request(Patience::Queue));
    let file_name = FileName::of(&waiting.name);
    let visit = client.places.enter(&file_name);
    let place = visit.lock();
    let (sender, is_pending) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let mut subscribing = backend.subscribe(&waiting);
            sender.send(futures_util::poll!(&mut subscribing).is_pending())
        })
    });
    let is_pending = is_pending.recv_timeout(Duration::from_secs(60));
    drop(place);
    assert_eq!(is_pending, Ok(true));
}

/// A call that waits for no holder blocks the task that makes it for a moment only.
#[test]
fn a_blocking_try_in_a_task_is_woken_if_the_holder_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let backend = FsBackend::open(dir.path()).unwrap();
    let file_name = FileName::of(&request(Patience::Once).name);
    let file = backend.client.store.file(&file_name).open().unwrap();
    assert!(file.try_lock(Mode::Exclusive).unwrap());
    let (sender, failed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let lock = blocking::Lock::new(backend, "a").unwrap();
            let policy = Policy::forever().with_fail_when_locked(true);
            sender.send(lock.acquire_with(&policy).map(drop))
        })
    });
    let failed = failed.recv_timeout(Duration::from_secs(60));
    assert!(failed.unwrap().unwrap_err().is_contention());
}
