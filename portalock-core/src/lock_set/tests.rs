use super::*;
use crate::{Attempt, BackendError, Capabilities, LockRequest, MemoryBackend, Released, Scope};

#[tokio::test]
async fn opposite_orders_do_not_deadlock() {
    let backend = MemoryBackend::new();
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let names = if number % 2 == 0 {
                ["a", "b", "c"]
            } else {
                ["c", "b", "a"]
            };
            let backend = backend.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let guard = LockSet::new(backend.clone(), names)
                        .unwrap()
                        .acquire_with(&Policy::forever())
                        .await
                        .unwrap();
                    tokio::task::yield_now().await;
                    guard.release().await.unwrap();
                }
            })
        })
        .collect();
    let all = futures_util::future::join_all(tasks);
    for task in tokio::time::timeout(Duration::from_secs(30), all)
        .await
        .expect("deadlock")
    {
        task.unwrap();
    }
    assert_eq!(backend.names_in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_deadline_for_all_and_none_is_kept() {
    let backend = MemoryBackend::new();
    let last = Lock::new(backend.clone(), "c")
        .unwrap()
        .acquire()
        .await
        .unwrap();
    let start = Instant::now();
    let policy = Policy::new().with_timeout(Duration::from_secs(3));
    let error = LockSet::new(backend.clone(), ["a", "b", "c"])
        .unwrap()
        .acquire_with(&policy)
        .await
        .unwrap_err();
    assert!(error.is_contention());
    assert_eq!(start.elapsed().as_secs(), 3);
    drop(last);
    assert_eq!(backend.names_in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn time_spent_on_one_name_is_not_there_for_the_next() {
    let backend = MemoryBackend::new();
    let lock = |name| Lock::new(backend.clone(), name).unwrap();
    let first = lock("a").acquire().await.unwrap();
    let _last = lock("b").acquire().await.unwrap();
    let start = Instant::now();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(first);
    });
    let policy = Policy::new().with_timeout(Duration::from_secs(3));
    let error = LockSet::new(backend.clone(), ["a", "b"])
        .unwrap()
        .acquire_with(&policy)
        .await
        .unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 3);
    let LockError::Timeout { waited, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(waited.as_secs(), 3, "how long the whole call lasted");
}

/// A service that takes its time for every answer.
#[derive(Debug, Clone)]
struct Slow {
    store: MemoryBackend,
    grant: Duration,
    release: Duration,
}

impl Slow {
    fn new(grant: Duration, release: Duration) -> Self {
        Self {
            store: MemoryBackend::new(),
            grant,
            release,
        }
    }
}

#[async_trait::async_trait]
impl LockBackend for Slow {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Network)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        tokio::time::sleep(self.grant).await;
        LockBackend::try_acquire(&self.store, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        tokio::time::sleep(self.release).await;
        LockBackend::release(&self.store, request).await
    }
}

#[tokio::test(start_paused = true)]
async fn trying_a_set_ends_at_the_sets_own_timeout() {
    let policy = Policy::new().with_timeout(Duration::from_millis(100));
    let set = LockSet::new(Slow::new(Duration::MAX, Duration::ZERO), ["a", "b"])
        .unwrap()
        .with_policy(policy);
    let start = Instant::now();
    assert!(!set.try_acquire().await.unwrap_err().is_contention());
    assert_eq!(start.elapsed(), Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn one_attempt_each_shares_one_deadline() {
    let set = || {
        let slow = Slow::new(Duration::from_secs(4), Duration::ZERO);
        LockSet::new(slow, ["a", "b", "c"]).unwrap()
    };
    let none = Policy::new().with_timeout(Duration::ZERO);
    let start = Instant::now();
    assert!(set().acquire_with(&none).await.is_err());
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let start = Instant::now();
    assert!(set().try_acquire().await.is_err());
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_could_not_be_had_has_given_back_what_it_took() {
    let slow = Slow::new(Duration::ZERO, Duration::from_millis(300));
    let held = Lock::new(slow.clone(), "c").unwrap().acquire().await;
    let set = LockSet::new(slow.clone(), ["a", "b", "c"]).unwrap();
    let start = Instant::now();
    assert!(set.try_acquire().await.unwrap_err().is_contention());
    assert_eq!(
        slow.store.names_in_use(),
        1,
        "only what somebody else holds"
    );
    assert_eq!(
        start.elapsed(),
        Duration::from_millis(300),
        "at the same time"
    );
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_hangs_keeps_a_failed_set_for_a_second_only() {
    let hangs = Slow::new(Duration::ZERO, Duration::MAX);
    let _held = Lock::new(hangs.clone(), "c").unwrap().acquire().await;
    let set = LockSet::new(hangs, ["a", "b", "c"]).unwrap();
    let start = Instant::now();
    assert!(set.try_acquire().await.unwrap_err().is_contention());
    assert_eq!(start.elapsed(), GIVE_BACK);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_failed_at_a_service_does_not_wait_for_it_again() {
    let hangs = Slow::new(Duration::from_secs(3), Duration::MAX);
    let set = LockSet::new(hangs, ["a", "b"]).unwrap();
    let start = Instant::now();
    assert!(!set.try_acquire().await.unwrap_err().is_contention());
    assert_eq!(start.elapsed(), Duration::from_secs(5), "the timeout");
}

#[tokio::test(start_paused = true)]
async fn releasing_a_set_takes_as_long_as_releasing_one() {
    let hangs = Slow::new(Duration::ZERO, Duration::MAX);
    let guard = LockSet::new(hangs, ["a", "b", "c"])
        .unwrap()
        .acquire_with(&Policy::new())
        .await
        .unwrap();
    let start = Instant::now();
    assert!(guard.release().await.is_err());
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn one_lost_is_all_lost() {
    let backend = MemoryBackend::new();
    let guard = LockSet::new(backend.clone(), ["a", "b"])
        .unwrap()
        .acquire_with(&Policy::new())
        .await
        .unwrap();
    {
        let mut work = pin!(guard.run(std::future::pending::<()>()));
        assert!(futures_util::poll!(&mut work).is_pending());
        backend.lose(&LockName::new("b").unwrap());
        let lost = work.await;
        assert!(matches!(lost, Err(LockError::Lost { name, .. }) if name.as_str() == "b"));
    }
    assert!(guard.release().await.is_err());
}

#[tokio::test]
async fn work_that_ends_with_a_loss_has_not_ended_in_time() {
    let backend = MemoryBackend::new();
    let guard = LockSet::new(backend.clone(), ["a", "b"])
        .unwrap()
        .acquire_with(&Policy::new())
        .await
        .unwrap();
    let lost = guard
        .run(async { backend.lose(&LockName::new("b").unwrap()) })
        .await;
    assert!(matches!(lost, Err(LockError::Lost { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_loss_while_another_name_is_waited_for_ends_the_wait() {
    let backend = MemoryBackend::new();
    let lock = |name| Lock::new(backend.clone(), name).unwrap();
    let held = lock("b").acquire().await.unwrap();
    let set = LockSet::new(backend.clone(), ["a", "b"]).unwrap();
    let forever = Policy::forever();
    {
        let mut waits = pin!(set.acquire_with(&forever));
        assert!(futures_util::poll!(&mut waits).is_pending());
        backend.lose(&LockName::new("a").unwrap());
        let ended = tokio::time::timeout(Duration::from_secs(3600), waits).await;
        let lost = ended.expect("it waits for the other name").unwrap_err();
        assert!(matches!(lost, LockError::Lost { name, .. } if name.as_str() == "a"));
    }
    drop(held);
    assert_eq!(backend.names_in_use(), 0, "nobody waits any more");
}

/// Takes the name `a` away while it grants another.
#[derive(Debug, Clone)]
struct Fickle(MemoryBackend);

#[async_trait::async_trait]
impl LockBackend for Fickle {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Process)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        if request.name.as_str() != "a" {
            self.0.lose(&LockName::new("a").unwrap());
        }
        LockBackend::try_acquire(&self.0, request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        LockBackend::release(&self.0, request).await
    }
}

#[tokio::test]
async fn a_set_with_a_lost_lock_is_not_granted() {
    let set = LockSet::new(Fickle(MemoryBackend::new()), ["a", "b"]).unwrap();
    let lost = set.acquire().await.map(drop);
    assert!(matches!(lost, Err(LockError::Lost { .. })), "{lost:?}");
}

#[tokio::test]
async fn an_empty_set_is_held_at_once() {
    let none: [&str; 0] = [];
    let guard = LockSet::new(MemoryBackend::new(), none)
        .unwrap()
        .acquire_with(&Policy::new())
        .await
        .unwrap();
    assert_eq!(guard.names().count(), 0);
    guard.release().await.unwrap();
}
