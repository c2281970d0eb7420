//! Many names at once, and many more over time.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use portalock_core::{Attempt, LockBackend, Mode, Patience};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Locks, request};

/// The descriptors of the tests themselves.
const OTHERS: u64 = 200;

/// They measure the process's memory, so one at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[cfg(target_os = "linux")]
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    resident * rustix::param::page_size()
}

#[tokio::test]
async fn ten_thousand_names_are_held_at_once() {
    let _alone = ALONE.lock().await;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let wanted = Rlimit {
        current: Some(most.min(10_000 + OTHERS)),
        ..limit
    };
    if limit
        .current
        .is_some_and(|current| current < 10_000 + OTHERS)
    {
        setrlimit(Resource::Nofile, wanted).unwrap();
    }
    let count = 10_000.min(most - OTHERS);
    if count < 10_000 {
        println!("the system allows {most} open files: holding {count} names");
    }
    let locks = Locks::new();
    let (client, other) = (locks.client(), locks.client());
    #[cfg(target_os = "linux")]
    let before = resident_bytes();
    let mut held = Vec::new();
    for at in 0..count {
        let request = request(&format!("name {at}"), Mode::Exclusive, Patience::Once);
        let attempt = client.try_acquire(&request).await.unwrap();
        assert!(matches!(attempt, Attempt::Granted(_)), "{at}");
        held.push(request);
    }
    #[cfg(target_os = "linux")]
    {
        // The requests in the engine are counted too.
        let each = resident_bytes().saturating_sub(before) / held.len();
        assert!(each < 1024, "a held lock takes {each} bytes");
    }
    for at in [0, held.len() / 2, held.len() - 1] {
        let again = request(held[at].name.as_str(), Mode::Shared, Patience::Once);
        let attempt = other.try_acquire(&again).await.unwrap();
        assert!(matches!(attempt, Attempt::Contended(_)), "{at}");
    }
    for request in &held {
        assert!(client.release_now(request));
    }
    let attempt = other
        .try_acquire(&request("name 7", Mode::Exclusive, Patience::Once))
        .await;
    assert!(matches!(attempt, Ok(Attempt::Granted(_))));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn names_that_come_and_go_leave_nothing_in_memory_and_their_files_can_be_cleaned() {
    let _alone = ALONE.lock().await;
    let locks = Locks::new();
    let client = locks.client();
    let mut before = 0;
    for at in 0..9_000 {
        if at == 3_000 {
            before = resident_bytes();
        }
        let mode = if at % 10 == 0 {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let request = request(&format!("name {at}"), mode, Patience::Once);
        let _ = client.try_acquire(&request).await.unwrap();
        assert!(client.release_now(&request));
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 6_000 * 50, "6,000 more names took {grown} bytes");

    let kept = request("kept", Mode::Exclusive, Patience::Once);
    let _ = client.try_acquire(&kept).await.unwrap();
    let cleaner = locks.client();
    assert_eq!(
        cleaner.clean(std::time::Duration::from_secs(3600)).unwrap(),
        0
    );
    assert_eq!(cleaner.clean(std::time::Duration::ZERO).unwrap(), 9_000);
    let left: Vec<_> = std::fs::read_dir(locks.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["kept.lock"]);
    assert!(client.release_now(&kept));
}
