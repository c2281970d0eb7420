//! The backend within one process: two clients of a directory are as far from each other as two processes are.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::time::{Duration, Instant};

use portalock_core::{
    Attempt, ClaimKind, FencingToken, LockBackend, LockError, LossNotice, Mode, Patience, Released,
};
use portalock_fs::{Calls, FsBackend, FsSettings, LockKind, Watch};
use support::{LONG, Locks, granted, lock, patience, request, soon, try_once};

#[tokio::test]
async fn two_clients_exclude_each_other() {
    let locks = Locks::new();
    for kind in [LockKind::Flock, LockKind::Record] {
        if kind == LockKind::Record
            && cfg!(not(any(
                target_os = "linux",
                target_os = "android",
                windows
            )))
        {
            continue;
        }
        let settings = FsSettings::new(locks.path()).with_lock(kind);
        let (one, two) = (
            FsBackend::with_settings(&settings).unwrap(),
            FsBackend::with_settings(&settings).unwrap(),
        );
        let (held, _) = try_once(&one, "a", Mode::Exclusive).await.unwrap();
        assert!(try_once(&two, "a", Mode::Exclusive).await.is_none());
        assert!(try_once(&two, "a", Mode::Shared).await.is_none());
        assert!(try_once(&two, "b", Mode::Exclusive).await.is_some());
        assert_eq!(one.release(&held).await.unwrap(), Released::Freed);
        assert_eq!(one.release(&held).await.unwrap(), Released::NotHeld);
        let (held, _) = try_once(&two, "a", Mode::Exclusive).await.unwrap();
        assert_eq!(one.release(&held).await.unwrap(), Released::NotHeld);
        assert!(try_once(&one, "a", Mode::Exclusive).await.is_none());
        two.release(&held).await.unwrap();
    }
}

#[tokio::test]
async fn shared_holders_are_together_and_each_has_a_token_of_its_own() {
    let locks = Locks::new();
    let clients: Vec<_> = (0..4).map(|_| locks.client()).collect();
    let mut last = None;
    for round in 0..3 {
        let mut held = Vec::new();
        for client in clients.iter().chain(&clients) {
            let (request, grant) = try_once(client, "a", Mode::Shared).await.unwrap();
            assert!(grant.token > last, "round {round}");
            last = grant.token;
            held.push((client, request));
        }
        assert!(try_once(&clients[0], "a", Mode::Exclusive).await.is_none());
        for (client, request) in held {
            assert_eq!(client.release(&request).await.unwrap(), Released::Freed);
        }
        let (request, grant) = try_once(&clients[0], "a", Mode::Exclusive).await.unwrap();
        assert!(grant.token > last);
        last = grant.token;
        clients[0].release(&request).await.unwrap();
    }
}

#[test]
fn shared_tokens_drawn_at_once_never_meet() {
    let locks = Locks::new();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = locks.client();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build();
                runtime.unwrap().block_on(async {
                    let mut tokens = Vec::new();
                    for _ in 0..200 {
                        let guard = lock(&client, "a").acquire_shared().await.unwrap();
                        tokens.push(guard.token().unwrap());
                    }
                    assert!(tokens.is_sorted(), "a client's own tokens fell");
                    tokens
                })
            })
        })
        .collect();
    let mut tokens: Vec<FencingToken> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    let all = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), all, "two grants with one token");
}

#[tokio::test]
async fn a_granted_owner_that_tries_again_finds_its_grant() {
    let locks = Locks::new();
    let client = locks.client();
    let (request, grant) = try_once(&client, "a", Mode::Exclusive).await.unwrap();
    let again = granted(client.try_acquire(&request).await.unwrap());
    assert_eq!(again.token, grant.token);
}

#[tokio::test]
async fn a_release_wakes_the_next_waiter_of_this_client_and_of_another() {
    let locks = Locks::new();
    let holder = locks.client();
    for waiter in [holder.clone(), locks.client()] {
        let guard = lock(&holder, "a").acquire().await.unwrap();
        let token = guard.token();
        let waiting = tokio::spawn(async move { lock(&waiter, "a").acquire().await });
        tokio::task::yield_now().await;
        // On one thread the waiter has by now gone to sleep, for a minute if nothing wakes it.
        guard.release().await.unwrap();
        let next = soon(waiting).await.unwrap();
        assert!(next.token() > token);
    }
}

#[tokio::test]
async fn waiters_of_one_client_are_served_in_order_and_readers_do_not_starve_a_writer() {
    let locks = Locks::new();
    let client = locks.client();
    let guard = lock(&client, "a").acquire_shared().await.unwrap();
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for (at, mode) in [Mode::Exclusive, Mode::Shared, Mode::Shared, Mode::Exclusive]
        .into_iter()
        .enumerate()
    {
        let (lock, served) = (lock(&client, "a"), served.clone());
        tasks.push(tokio::spawn(async move {
            let guard = match mode {
                Mode::Exclusive => lock.acquire().await.unwrap(),
                Mode::Shared => lock.acquire_shared().await.unwrap(),
            };
            served.send(at).unwrap();
            guard.release().await.unwrap();
        }));
        tokio::task::yield_now().await;
    }
    // Shared, but behind a writer.
    assert!(try_once(&client, "a", Mode::Shared).await.is_none());
    guard.release().await.unwrap();
    for task in tasks {
        soon(task).await;
    }
    let mut seen = Vec::new();
    while let Ok(at) = order.try_recv() {
        seen.push(at);
    }
    seen[1..3].sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_waiter_that_gives_up_lets_those_behind_it_through() {
    let locks = Locks::new();
    let (holder, client) = (locks.client(), locks.client());
    let guard = lock(&holder, "a").acquire_shared().await.unwrap();
    let writer = request("a", Mode::Exclusive, Patience::Queue);
    let attempt = client.try_acquire(&writer).await.unwrap();
    assert!(matches!(attempt, Attempt::Contended(_)));
    let reader = lock(&client, "a");
    let reader = tokio::spawn(async move { reader.acquire_shared().await });
    tokio::task::yield_now().await;
    assert_eq!(client.release(&writer).await.unwrap(), Released::NotHeld);
    drop(soon(reader).await.unwrap());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn waiters_poll_where_nothing_is_watched() {
    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_watch(Watch::Off);
    let holder = locks.client();
    let client = FsBackend::with_settings(&settings).unwrap();
    assert_eq!(client.capabilities().loss, LossNotice::Never);
    let guard = lock(&holder, "a").acquire().await.unwrap();
    let waiting = tokio::spawn(async move { lock(&client, "a").acquire().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    guard.release().await.unwrap();
    drop(soon(waiting).await.unwrap());
}

#[tokio::test]
async fn calls_may_be_made_in_other_threads() {
    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_calls(Calls::Offload);
    let client = FsBackend::with_settings(&settings).unwrap();
    assert!(!client.capabilities().releases_now);
    let guard = lock(&client, "a").acquire().await.unwrap();
    assert!(lock(&client, "a").inspect().await.unwrap().held);
    let waiter = lock(&client, "a");
    let waiting = tokio::spawn(async move { waiter.acquire().await });
    guard.release().await.unwrap();
    drop(soon(waiting).await.unwrap());
    portalock_core::shutdown(LONG).await.unwrap();
    assert!(try_once(&client, "a", Mode::Exclusive).await.is_some());
}

#[test]
fn synchronous_code_needs_no_runtime() {
    let locks = Locks::new();
    let blocking = |client: FsBackend| {
        let lock = portalock_core::blocking::Lock::new(client, "a").unwrap();
        lock.with_policy(patience())
    };
    let guard = blocking(locks.client()).acquire().unwrap();
    let waiter = blocking(locks.client());
    let waiting = std::thread::spawn(move || waiter.acquire().map(|guard| guard.token()));
    let token = guard.token();
    let start = Instant::now();
    guard.release().unwrap();
    assert!(waiting.join().unwrap().unwrap() > token);
    assert!(start.elapsed() < LONG, "nobody woke it");
}

#[tokio::test]
async fn contention_names_the_holder() {
    let locks = Locks::new();
    let settings = FsSettings::new(locks.path()).with_label("of the settings");
    let (one, two) = (FsBackend::with_settings(&settings).unwrap(), locks.client());
    let guard = lock(&one, "a").with_label("nightly").acquire().await;
    for client in [&one, &two] {
        let error = lock(client, "a").try_acquire().await.unwrap_err();
        let LockError::AlreadyLocked { holder, .. } = &error else {
            panic!("{error}");
        };
        let holder = holder.as_deref().unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(holder.label.as_deref(), Some("nightly"));
    }
    drop(guard);
    let _guard = lock(&one, "a").acquire().await.unwrap();
    let error = lock(&two, "a").try_acquire().await.unwrap_err();
    let label = error.holder().and_then(|holder| holder.label.as_deref());
    assert_eq!(label, Some("of the settings"));
}

#[tokio::test]
async fn inspect_tells_who_holds_here_and_elsewhere() {
    let locks = Locks::new();
    let (one, two) = (locks.client(), locks.client());
    let look = async |client: &FsBackend| lock(client, "a").inspect().await.unwrap();
    assert!(!look(&one).await.held);

    let guard = lock(&one, "a").with_label("x").acquire().await.unwrap();
    for client in [&one, &two] {
        let seen = look(client).await;
        assert!(seen.held);
        assert_eq!(seen.holders.len(), 1);
        assert_eq!(seen.holders[0].holder.label.as_deref(), Some("x"));
        assert_eq!(seen.holders[0].kind, ClaimKind::Exclusive);
        assert_eq!(seen.last_token, guard.token());
    }
    let waiter = request("a", Mode::Exclusive, Patience::Queue);
    let _ = two.try_acquire(&waiter).await.unwrap();
    assert_eq!(look(&two).await.waiters.len(), 1);
    two.release(&waiter).await.unwrap();
    let token = guard.token();
    guard.release().await.unwrap();
    for client in [&one, &two] {
        let seen = look(client).await;
        assert!(!seen.held && seen.holders.is_empty() && seen.waiters.is_empty());
        assert_eq!(seen.last_token, token);
    }

    // Each of several readers is told, also by one of them.
    let first = lock(&one, "a").with_label("first").acquire_shared().await;
    let second = lock(&two, "a").with_label("second").acquire_shared().await;
    for client in [&one, &two, &locks.client()] {
        let seen = look(client).await;
        let labels: Vec<_> = seen
            .holders
            .iter()
            .map(|claim| claim.holder.label.as_deref())
            .collect();
        assert_eq!(labels, [Some("first"), Some("second")]);
    }
    first.unwrap().release().await.unwrap();
    for client in [&one, &two] {
        let seen = look(client).await;
        assert_eq!(seen.holders.len(), 1);
        assert_eq!(seen.holders[0].holder.label.as_deref(), Some("second"));
    }
    second.unwrap().release().await.unwrap();
    assert!(!look(&two).await.held);
}

#[tokio::test]
async fn looking_never_takes_a_free_lock_from_anybody() {
    let locks = Locks::new();
    let (one, two) = (locks.client(), locks.client());
    drop(lock(&one, "a").acquire().await.unwrap());
    let looking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        for _ in 0..2000 {
            runtime.block_on(lock(&two, "a").inspect()).unwrap();
        }
    });
    while !looking.is_finished() {
        let (held, _) = try_once(&one, "a", Mode::Exclusive).await.unwrap();
        one.release(&held).await.unwrap();
    }
    looking.join().unwrap();
}

/// A crashed holder's record says that it holds: those who look must try the lock.
#[cfg(unix)]
#[tokio::test]
async fn looking_never_takes_the_lock_of_a_crashed_holder_from_anybody() {
    use portalock_core::Holder;
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    let locks = Locks::new();
    let one = locks.client();
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let holder = Holder::this_process(None);
    let holder = Holder::new(holder.host, gone.id(), None, holder.since);
    let mut crashed = request("a", Mode::Exclusive, Patience::Once);
    crashed.holder = holder;
    granted(one.try_acquire(&crashed).await.unwrap());
    let record = std::fs::read(locks.record("a")).unwrap();
    one.release(&crashed).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (client, stop) = (locks.client(), stop.clone());
            std::thread::spawn(move || {
                let look = portalock_core::blocking::Lock::new(client, "a").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    look.inspect().unwrap();
                }
            })
        })
        .collect();
    let mut refused = 0;
    for _ in 0..5000 {
        std::fs::write(locks.record("a"), &record).unwrap();
        match try_once(&one, "a", Mode::Exclusive).await {
            Some((held, _)) => drop(one.release(&held).await.unwrap()),
            None => refused += 1,
        }
    }
    stop.store(true, Ordering::Relaxed);
    for looker in lookers {
        looker.join().unwrap();
    }
    assert_eq!(refused, 0, "times a free lock was said to be held");
}

#[tokio::test]
async fn names_lists_what_is_used_and_nothing_else() {
    let locks = Locks::new();
    let (one, two) = (locks.client(), locks.client());
    let long = "Ü\n".repeat(80);
    let held: Vec<_> = futures_held(&one, &["..", "CON", "a/b", &long]).await;
    drop(lock(&one, "released").acquire().await.unwrap());
    std::fs::write(locks.path().join("notes.txt"), "mine").unwrap();
    std::fs::write(locks.path().join("theirs.lock"), "12345\n").unwrap();
    std::fs::create_dir(locks.path().join("directory.lock")).unwrap();
    for client in [&one, &two] {
        let mut names: Vec<String> = client
            .names()
            .await
            .unwrap()
            .into_iter()
            .map(String::from)
            .collect();
        names.sort();
        assert_eq!(names, ["..", "CON", "a/b", &long]);
    }
    drop(held);
    assert!(two.names().await.unwrap().is_empty());
}

async fn futures_held(client: &FsBackend, names: &[&str]) -> Vec<portalock_core::Guard<FsBackend>> {
    let mut held = Vec::new();
    for name in names {
        held.push(lock(client, name).acquire().await.unwrap());
    }
    held
}

#[tokio::test]
async fn tokens_grow_over_a_removed_file_and_a_torn_record() {
    let locks = Locks::new();
    let client = locks.client();
    let draw = async || {
        let guard = lock(&client, "a").acquire().await.unwrap();
        let token = guard.token();
        guard.release().await.unwrap();
        token
    };
    let mut last = draw().await;
    for damage in 0..6 {
        let file = locks.record("a");
        let mut bytes = std::fs::read(&file).unwrap();
        match damage {
            0 => std::fs::remove_file(&file).unwrap(),
            1 => std::fs::write(&file, "").unwrap(),
            2 => std::fs::write(&file, [0; 512]).unwrap(),
            torn => {
                for byte in bytes.iter_mut().skip(100 * torn).take(200) {
                    *byte = b'?';
                }
                std::fs::write(&file, bytes).unwrap();
            }
        }
        let next = draw().await;
        assert!(next > last, "damage {damage}");
        last = next;
    }
}

#[tokio::test]
async fn a_clock_set_back_does_not_lower_a_token() {
    let locks = Locks::new();
    let client = locks.client();
    drop(lock(&client, "a").acquire().await.unwrap());
    // As if the last grant had been made by a clock that was a century ahead.
    let file = locks.record("a");
    let text = String::from_utf8(std::fs::read(&file).unwrap()).unwrap();
    let line = text.lines().next().unwrap();
    let body = &line["portalock 1 ".len() + 17..];
    let ahead = 4_900_000_000_000_000_u64;
    let body = format!("{ahead:020}{}", &body[20..]);
    let sum = body
        .as_bytes()
        .chunks(8)
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
            mixed ^ (mixed >> 32)
        });
    std::fs::write(&file, format!("portalock 1 {sum:016x} {body}\n")).unwrap();
    for grant in 1..5 {
        let guard = lock(&client, "a").acquire().await.unwrap();
        assert_eq!(guard.token(), Some(FencingToken::new(ahead + grant)));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn lock_files_are_for_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let locks = Locks::new();
    let client = locks.client();
    drop(lock(&client, "a").acquire_shared().await.unwrap());
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(locks.path()) & 0o022, 0);
    for entry in std::fs::read_dir(locks.path()).unwrap() {
        assert_eq!(mode(entry.unwrap().path()) & 0o177, 0);
    }
}

/// Other systems take Unicode only, or have a test of their own.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_directory_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let locks = Locks::new();
    let odd = std::ffi::OsStr::from_bytes(b"l\xf6cks \xff");
    let directory = locks.path().join(odd);
    let (one, two) = (
        FsBackend::open(&directory).unwrap(),
        FsBackend::open(&directory).unwrap(),
    );
    let (held, _) = try_once(&one, "a", Mode::Exclusive).await.unwrap();
    assert!(try_once(&two, "a", Mode::Exclusive).await.is_none());
    assert_eq!(one.release(&held).await.unwrap(), Released::Freed);
    assert_eq!(two.clean(Duration::ZERO).unwrap(), 1);

    let lock = portalock_fs::PidFileLock::new(directory.join("pid")).unwrap();
    let pid = lock.try_acquire().unwrap();
    assert_eq!(lock.read_pid(), Some(std::process::id()));
    pid.release().unwrap();
    portalock_fs::open_atomic(directory.join("report"), |_| Ok(())).unwrap();
    assert!(directory.join("report").exists());
}

/// The umask is the process's, so a process of its own has it.
#[cfg(unix)]
#[tokio::test]
async fn a_group_may_lock_whatever_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;

    const DIRECTORY: &str = "PORTALOCK_FS_TEST_UMASK";
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let settings = FsSettings::new(directory).with_file_mode(0o660).unwrap();
        let client = FsBackend::with_settings(&settings).unwrap();
        drop(lock(&client, "a").acquire_shared().await.unwrap());
        return;
    }
    let locks = Locks::new();
    let status = std::process::Command::new("sh")
        .args(["-c", "umask 077; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_group_may_lock_whatever_the_umask_says"])
        .env(DIRECTORY, locks.path())
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&locks.path()), 0o2775);
    for suffix in ["lock", "shared"] {
        let file = locks.path().join(format!("a.{suffix}"));
        assert_eq!(mode(&file), 0o660, "{suffix}");
    }
}

#[test]
fn the_longest_poll_interval_is_no_panic() {
    let settings = FsSettings::new(Locks::new().path()).with_watch(Watch::Off);
    let settings = settings.with_poll_interval(Duration::MAX).unwrap();
    FsBackend::with_settings(&settings).unwrap();
}
