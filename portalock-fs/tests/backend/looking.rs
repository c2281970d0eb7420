//! Inspecting locks: holders and waiters.

use portalock_core::{ClaimKind, LockBackend, LockError, Mode, Patience};
use portalock_fs::{FsBackend, FsSettings};

use crate::support::{Locks, lock, request, try_once};

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

    // Each of several readers is returned, also by one of them.
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

/// A crashed holder's record still says that it holds, so `inspect` must try the lock.
#[cfg(unix)]
#[tokio::test]
async fn looking_never_takes_the_lock_of_a_crashed_holder_from_anybody() {
    use crate::support::granted;
    use portalock_core::Holder;
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    let locks = Locks::new();
    let one = locks.client();
    // Larger than each system's greatest: the id of a process that has ended may be in use again.
    let gone = u32::MAX / 2;
    let holder = Holder::this_process(None);
    let holder = Holder::new(holder.host, gone, None, holder.since);
    let mut crashed = request("a", Mode::Exclusive, Patience::Once);
    crashed.holder = holder;
    granted(one.try_acquire(&crashed).await.unwrap());
    let record = std::fs::read(locks.record("a")).unwrap();
    one.release(&crashed).await.unwrap();
    std::fs::write(locks.record("a"), &record).unwrap();
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
    // Not through a client, which would write a record of its own while it holds.
    let file = std::fs::File::open(locks.file("a")).unwrap();
    let mut refused = 0;
    for _ in 0..20_000 {
        match file.try_lock() {
            Ok(()) => file.unlock().unwrap(),
            Err(_) => refused += 1,
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
