//! Breaking locks, on a scripted backend.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::pending,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Broken, Capabilities, Grant, Holder, Lock,
    LockBackend, LockError, LockName, LockRequest, Loss, Marked, MemoryBackend, OwnerId, Policy,
    Released, Scope, blocking, clock::Instant,
};

/// How long a holder may rely on the lock after it was marked.
const RELIES: Duration = Duration::from_secs(10);

/// The check after the first mark at which the holder releases the lock; never, if there is none.
#[derive(Debug, Default)]
struct Holds {
    until_look: Option<u32>,
    /// Only the first mark gets an answer. Later ones fail with this.
    fails_later: Option<BackendErrorKind>,
    /// The check from which on the owner holds the lock anew.
    anew_at_look: Option<u32>,
    is_unable: bool,
    /// How the first eviction fails.
    eviction_fails: Option<BackendErrorKind>,
    /// Whether the first eviction gets no answer.
    eviction_is_lost: bool,
    /// Whether it ends the hold nevertheless.
    eviction_counts: bool,
    /// What all later ones answer: that they ended the hold, if there is none.
    later_evictions: Option<Result<Released, BackendErrorKind>>,
    /// How long its client relies on the lock after a mark, if not for `RELIES`.
    relies: Option<Duration>,
    /// What a mark answers instead.
    marked: Option<Marked>,
    /// Whether the first mark after an eviction fails.
    fails_after_eviction: AtomicBool,
    looks: AtomicU32,
    evictions: AtomicU32,
    marked_by: Mutex<Option<Holder>>,
}

#[async_trait]
impl LockBackend for Holds {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Network).with_breaks(!self.is_unable)
    }

    async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> {
        Ok(Attempt::Granted(Grant::new()))
    }

    async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
        Ok(Released::NotHeld)
    }

    async fn mark_broken(
        &self,
        _: &LockName,
        _: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        *self.marked_by.lock().unwrap() = Some(by.clone());
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        if let Some(kind) = self.fails_later
            && look > 0
        {
            return Err(BackendError::new(kind, "away"));
        }
        if self.evictions.load(Ordering::Relaxed) > 0
            && self.fails_after_eviction.swap(false, Ordering::Relaxed)
        {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "away"));
        }
        let is_back = self.until_look.is_some_and(|last| look >= last)
            || self.eviction_counts && self.evictions.load(Ordering::Relaxed) > 0;
        let hold = self
            .anew_at_look
            .filter(|first| look >= *first)
            .map_or(1, u64::from);
        // A client that reaches the service but misses the mark would delay its end forever.
        let marked = Marked::new(self.relies.unwrap_or(RELIES), hold);
        Ok((!is_back).then_some(self.marked.unwrap_or(marked)))
    }

    async fn evict(&self, _: &LockName, _: OwnerId, hold: u64) -> Result<Released, BackendError> {
        assert_eq!(hold, self.anew_at_look.map_or(1, u64::from));
        if self.evictions.fetch_add(1, Ordering::Relaxed) > 0 {
            let answer = self.later_evictions.unwrap_or(Ok(Released::Freed));
            return answer.map_err(|kind| BackendError::new(kind, "away"));
        }
        if self.eviction_is_lost {
            pending::<()>().await;
        }
        match self.eviction_fails {
            None => Ok(Released::Freed),
            Some(kind) => Err(BackendError::new(kind, "away")),
        }
    }
}

fn lock(holds: Holds) -> Lock<Holds> {
    Lock::new(holds, "job").unwrap().with_label("operator")
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_gives_the_lock_back_is_not_evicted() {
    let lock = lock(Holds {
        until_look: Some(3),
        ..Holds::default()
    });
    let ended = lock.break_holder(OwnerId::mint()).await.unwrap();
    assert_eq!(ended, Broken::Released);
    assert_eq!(lock.backend().evictions.load(Ordering::Relaxed), 0);
    let by = lock.backend().marked_by.lock().unwrap().clone().unwrap();
    assert_eq!(by.label.as_deref(), Some("operator"));
    assert_eq!(by.pid, std::process::id());
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_does_not_respond_is_evicted_once_it_can_not_rely_on_the_lock() {
    for fails_later in [None, Some(BackendErrorKind::Unavailable)] {
        let lock = lock(Holds {
            fails_later,
            ..Holds::default()
        });
        let begun = Instant::now();
        let ended = lock.break_holder(OwnerId::mint()).await.unwrap();
        assert_eq!(ended, Broken::Evicted);
        assert_eq!(begun.elapsed().as_secs(), RELIES.as_secs());
        let looks = lock.backend().looks.load(Ordering::Relaxed);
        assert!((40..100).contains(&looks), "{looks} looks");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_began_later_is_relied_on_for_a_time_of_its_own() {
    let lock = lock(Holds {
        anew_at_look: Some(30),
        ..Holds::default()
    });
    let begun = Instant::now();
    let ended = lock.break_holder(OwnerId::mint()).await.unwrap();
    assert_eq!(ended, Broken::Evicted);
    // The new hold is found after a few seconds.
    assert!(
        begun.elapsed() > RELIES + Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_marked_again_if_its_eviction_was_not_answered() {
    let away = Some(BackendErrorKind::Unavailable);
    for (eviction_fails, eviction_counts) in [(None, false), (away, false), (away, true)] {
        let lock = lock(Holds {
            eviction_fails,
            eviction_is_lost: eviction_fails.is_none(),
            eviction_counts,
            ..Holds::default()
        });
        let begun = Instant::now();
        let ended = lock.break_holder(OwnerId::mint()).await.unwrap();
        assert_eq!(ended, Broken::Evicted);
        let rounds = if eviction_counts { 1 } else { 2 };
        assert_eq!(begun.elapsed().as_secs() / RELIES.as_secs(), rounds);
    }
}

#[tokio::test(start_paused = true)]
async fn an_eviction_that_failed_is_told() {
    let refused = lock(Holds {
        eviction_fails: Some(BackendErrorKind::Misconfigured),
        ..Holds::default()
    });
    let ended = refused.break_holder(OwnerId::mint()).await;
    assert!(matches!(ended, Err(LockError::Backend { .. })), "{ended:?}");
    // The service has gone for good.
    let lost = lock(Holds {
        eviction_fails: Some(BackendErrorKind::Unavailable),
        fails_later: Some(BackendErrorKind::Unavailable),
        ..Holds::default()
    });
    let ended = lost.break_holder(OwnerId::mint()).await;
    assert!(matches!(ended, Err(LockError::Backend { .. })), "{ended:?}");
    // It answers marks, and never ends a hold.
    let unable = lock(Holds {
        eviction_fails: Some(BackendErrorKind::Unavailable),
        later_evictions: Some(Err(BackendErrorKind::Unavailable)),
        ..Holds::default()
    });
    let ended = unable.break_holder(OwnerId::mint()).await;
    assert!(matches!(ended, Err(LockError::Backend { .. })), "{ended:?}");
    let retried = Policy::new().max_failures();
    assert_eq!(
        unable.backend().evictions.load(Ordering::Relaxed),
        1 + retried
    );
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_gone_after_an_eviction_without_an_answer_was_evicted() {
    let lock = lock(Holds {
        eviction_is_lost: true,
        later_evictions: Some(Ok(Released::NotHeld)),
        ..Holds::default()
    });
    let ended = lock.break_holder(OwnerId::mint()).await.unwrap();
    assert_eq!(ended, Broken::Evicted);
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_fails_once_after_an_eviction_is_repeated() {
    let lock = lock(Holds {
        eviction_fails: Some(BackendErrorKind::Unavailable),
        fails_after_eviction: true.into(),
        ..Holds::default()
    });
    let ended = lock.break_holder(OwnerId::mint()).await.unwrap();
    assert_eq!(ended, Broken::Evicted);
}

/// As of a backend without leases: its client learns of the mark, and gives the lock back.
#[tokio::test(start_paused = true)]
async fn a_break_ends_soon_whatever_the_check_interval_is() {
    let policy = Policy::new()
        .with_first_check(Duration::MAX)
        .and_then(|policy| policy.with_check_interval(Duration::MAX))
        .unwrap();
    for relies in [RELIES, Duration::MAX] {
        let lock = lock(Holds {
            until_look: Some(2),
            relies: Some(relies),
            ..Holds::default()
        });
        let lock = lock.with_policy(policy.clone());
        let ended = tokio::time::timeout(RELIES / 2, lock.break_holder(OwnerId::mint())).await;
        assert_eq!(ended.expect("it sleeps").unwrap(), Broken::Released);
    }
}

#[tokio::test(start_paused = true)]
async fn a_break_of_a_hold_without_a_lease_ends_with_the_service() {
    let lock = lock(Holds {
        relies: Some(Duration::MAX),
        fails_later: Some(BackendErrorKind::Unavailable),
        ..Holds::default()
    });
    let ended = tokio::time::timeout(RELIES, lock.break_holder(OwnerId::mint())).await;
    let ended = ended.expect("it asks for ever");
    assert!(matches!(ended, Err(LockError::Backend { .. })), "{ended:?}");
    let retried = Policy::new().max_failures();
    assert_eq!(lock.backend().looks.load(Ordering::Relaxed), 2 + retried);
}

/// A waiter whose wake-ups are rarely lost may check once an hour.
#[tokio::test(start_paused = true)]
async fn a_hold_is_marked_again_soon_whatever_the_check_interval_is() {
    for longest in [Duration::from_secs(3600), Duration::MAX] {
        let policy = Policy::new()
            .with_first_check(longest)
            .and_then(|policy| policy.with_check_interval(longest));
        let lock = lock(Holds {
            eviction_fails: Some(BackendErrorKind::Unavailable),
            ..Holds::default()
        });
        let lock = lock.with_policy(policy.unwrap());
        let begun = Instant::now();
        let ended = tokio::time::timeout(RELIES * 9, lock.break_holder(OwnerId::mint())).await;
        assert_eq!(ended.expect("it sleeps").unwrap(), Broken::Evicted);
        assert_eq!(begun.elapsed().as_secs() / RELIES.as_secs(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_does_not_hold_is_left_alone() {
    let lock = lock(Holds {
        until_look: Some(0),
        ..Holds::default()
    });
    let ended = lock.break_holder(OwnerId::mint()).await.unwrap();
    assert_eq!(ended, Broken::NotHeld);
    assert_eq!(lock.backend().evictions.load(Ordering::Relaxed), 0);
}

/// An earlier try of the first mark had no answer, and the holder has released the lock since.
#[tokio::test(start_paused = true)]
async fn an_owner_that_was_perhaps_marked_is_not_told_as_left_alone() {
    // Also if each later answer is the same.
    for until_look in [Some(1), None] {
        let lock = lock(Holds {
            until_look,
            marked: Some(Marked::has_ended()),
            ..Holds::default()
        });
        let day = Duration::from_secs(86_400);
        let ended = tokio::time::timeout(day, lock.break_holder(OwnerId::mint())).await;
        assert_eq!(ended.expect("it asks for ever").unwrap(), Broken::Released);
        assert_eq!(lock.backend().evictions.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_failed_is_told() {
    // The first one failed, or a later one for a reason that does not pass.
    for (looks, kind) in [
        (1, BackendErrorKind::Unavailable),
        (0, BackendErrorKind::Misconfigured),
    ] {
        let lock = lock(Holds {
            fails_later: Some(kind),
            looks: AtomicU32::new(looks),
            ..Holds::default()
        });
        let ended = lock.break_holder(OwnerId::mint()).await;
        assert!(matches!(ended, Err(LockError::Backend { .. })), "{ended:?}");
        // It was not repeated.
        assert_eq!(lock.backend().looks.load(Ordering::Relaxed), 2);
        assert_eq!(lock.backend().evictions.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn a_backend_that_can_not_break_a_lock_is_not_asked() {
    let lock = lock(Holds {
        is_unable: true,
        ..Holds::default()
    });
    let refused = lock.break_holder(OwnerId::mint()).await;
    assert!(matches!(refused, Err(LockError::Unsupported { .. })));
    assert_eq!(lock.backend().looks.load(Ordering::Relaxed), 0);
}

#[test]
fn it_works_without_async_and_says_who() {
    let lock = blocking::Lock::new(MemoryBackend::new(), "job").unwrap();
    let guard = lock.acquire().unwrap();
    let operator = lock.clone().with_label("operator");
    assert_eq!(
        operator.break_holder(guard.owner()).unwrap(),
        Broken::Released
    );
    assert_eq!(
        operator.break_holder(guard.owner()).unwrap(),
        Broken::NotHeld
    );
    let Err(LockError::Lost {
        loss: loss @ Loss::Broken(_),
        ..
    }) = guard.release()
    else {
        panic!("a lock that was broken is released");
    };
    let text = loss.to_string();
    assert!(
        text.starts_with("the lock was broken by pid ") && text.contains("(operator) at 2"),
        "{text}"
    );
}
