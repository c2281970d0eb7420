//! Elections: at most one candidate leads, a standby follows at once, observers miss no term, and the leader gets
//! step-down requests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    future::pending,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::poll;
use portalock_core::{
    Attempt, BackendError, Capabilities, Claim, ClaimKind, Election, FencingToken, Holder,
    Inspection, LockBackend, LockError, LockName, LockRequest, MemoryBackend, Policy, Released,
    Term, clock::Instant,
};
use tokio::sync::oneshot;

fn candidate<B: LockBackend>(backend: B, label: &str) -> Election<B> {
    Election::new(backend, "scheduler")
        .unwrap()
        .with_label(label)
}

fn label(term: Option<&Term>) -> Option<&str> {
    term.and_then(|term| term.leader.label.as_deref())
}

#[tokio::test]
async fn one_leads_and_a_standby_follows_at_once() {
    let backend = MemoryBackend::new();
    let (a, b) = (
        candidate(backend.clone(), "a"),
        candidate(backend.clone(), "b"),
    );
    let first = a.try_campaign().await.unwrap();
    assert!(matches!(
        b.try_campaign().await,
        Err(LockError::AlreadyLocked { .. })
    ));
    let mut standby = pin!(b.campaign());
    assert!(poll!(&mut standby).is_pending());
    assert_eq!(label(b.leader().await.unwrap().as_ref()), Some("a"));
    let token = first.token();
    first.resign().await.unwrap();
    let second = standby.await.unwrap();
    assert!(second.token() > token);
    let leader = a.leader().await.unwrap().unwrap();
    assert_eq!(
        (leader.token, label(Some(&leader))),
        (second.token(), Some("b"))
    );
    drop(second);
    assert!(a.leader().await.unwrap().is_none());
    assert_eq!(backend.names_in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn work_is_gone_before_another_leads() {
    struct Working(Arc<AtomicBool>);
    impl Drop for Working {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }
    let backend = MemoryBackend::new();
    let working = Arc::new(AtomicBool::new(false));
    let terms = Arc::new(AtomicU32::new(0));
    let (stop, stopped) = oneshot::channel::<()>();
    let leads = tokio::spawn({
        let (election, working, terms) = (
            candidate(backend.clone(), "a"),
            working.clone(),
            terms.clone(),
        );
        async move {
            let stop = async { drop(stopped.await) };
            let work = |_| {
                assert!(
                    !working.swap(true, Ordering::SeqCst),
                    "two terms' work at once"
                );
                terms.fetch_add(1, Ordering::SeqCst);
                let working = Working(working.clone());
                async move {
                    pending::<()>().await;
                    drop(working);
                }
            };
            election.lead(stop, work).await
        }
    });
    let other = candidate(backend.clone(), "b");
    for lost in 1..=3 {
        let mut observer = other.observe();
        while label(observer.next().await.unwrap().as_ref()) != Some("a") {}
        // The term is granted before its work starts.
        while !working.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        assert_eq!(terms.load(Ordering::SeqCst), lost);
        assert_eq!(backend.lose(other.name()), 1);
        let next = other.campaign().await.unwrap();
        tokio::task::yield_now().await;
        assert!(
            !working.load(Ordering::SeqCst),
            "the work goes on in another's term"
        );
        next.resign().await.unwrap();
    }
    stop.send(()).unwrap();
    leads.await.unwrap().unwrap();
    assert!(!working.load(Ordering::SeqCst));
    assert_eq!(
        backend.names_in_use(),
        0,
        "a leader that is stopped resigns"
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_campaigns_again_after_its_pause() {
    let election = candidate(MemoryBackend::new(), "a").with_pause(Duration::from_secs(7));
    let starts = Mutex::new(Vec::new());
    let start = Instant::now();
    let work = |_| {
        starts.lock().unwrap().push(start.elapsed().as_secs());
        async {}
    };
    let stop = tokio::time::sleep(Duration::from_secs(20));
    election.lead(stop, work).await.unwrap();
    assert_eq!(*starts.lock().unwrap(), [0, 7, 14]);
}

#[tokio::test(start_paused = true)]
async fn an_observer_is_told_of_every_term_in_order_without_looking() {
    let backend = MemoryBackend::new();
    let never_looks = Policy::forever()
        .with_check_interval(Duration::MAX)
        .unwrap();
    let mut observer = candidate(backend.clone(), "watcher")
        .with_policy(never_looks)
        .observe();
    assert_eq!(observer.next().await.unwrap(), None, "the present state");
    let mut tokens = Vec::new();
    for name in ["a", "b", "c"] {
        let leadership = candidate(backend.clone(), name).campaign().await.unwrap();
        tokens.push(leadership.token());
        leadership.resign().await.unwrap();
    }
    for (name, token) in ["a", "b", "c"].into_iter().zip(tokens) {
        let term = observer.next().await.unwrap();
        assert_eq!(label(term.as_ref()), Some(name));
        assert_eq!(term.unwrap().token, token);
        assert_eq!(observer.next().await.unwrap(), None);
    }
    let standby = candidate(backend.clone(), "e");
    let leadership = candidate(backend.clone(), "d").campaign().await.unwrap();
    let mut next = pin!(standby.campaign());
    assert!(poll!(&mut next).is_pending());
    assert_eq!(
        label(observer.next().await.unwrap().as_ref()),
        Some("d"),
        "a waiter is no leader"
    );
    backend.lose(standby.name());
    assert_eq!(label(observer.next().await.unwrap().as_ref()), Some("e"));
    drop(leadership);
    assert!(
        poll!(pin!(observer.next())).is_pending(),
        "nothing changed since"
    );
}

#[tokio::test]
async fn an_observer_that_went_away_leaves_nothing_to_tell() {
    let backend = MemoryBackend::new();
    let election = candidate(backend.clone(), "a");
    let mut observer = election.observe();
    observer.next().await.unwrap();
    drop(observer);
    election.campaign().await.unwrap().resign().await.unwrap();
    let mut late = election.observe();
    assert_eq!(
        late.next().await.unwrap(),
        None,
        "the present state, not the past"
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_asked_finishes_and_hands_over() {
    let backend = MemoryBackend::new();
    let (a, b) = (
        candidate(backend.clone(), "a"),
        candidate(backend.clone(), "b"),
    );
    let first = a.campaign().await.unwrap();
    let finished = Arc::new(AtomicBool::new(false));
    let leads = tokio::spawn({
        let (leading, finished) = (first.leading(), finished.clone());
        async move {
            let asked = leading.step_down_asked().await.unwrap();
            assert_eq!(asked.label.as_deref(), Some("b"));
            tokio::time::sleep(Duration::from_secs(3)).await;
            finished.store(true, Ordering::SeqCst);
            first.resign().await.unwrap();
        }
    });
    let start = Instant::now();
    b.step_down(&Policy::forever()).await.unwrap();
    assert!(finished.load(Ordering::SeqCst));
    assert_eq!(start.elapsed().as_secs(), 3);
    leads.await.unwrap();
    let second = b.campaign().await.unwrap();
    let leading = second.leading();
    let asked = tokio::time::timeout(Duration::from_secs(60), leading.step_down_asked()).await;
    assert!(
        asked.is_err(),
        "the next term heard a request for the last one"
    );
    second.resign().await.unwrap();
    assert_eq!(backend.names_in_use(), 0, "no request is left");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_still_stands_does_not_reach_the_next_term() {
    let backend = MemoryBackend::new();
    let first = candidate(backend.clone(), "a").campaign().await.unwrap();
    let (bystander, forever) = (candidate(backend.clone(), "b"), Policy::forever());
    let mut asks = pin!(bystander.step_down(&forever));
    assert!(poll!(&mut asks).is_pending());
    first.leading().step_down_asked().await.unwrap();
    first.resign().await.unwrap();
    let second = candidate(backend.clone(), "c").campaign().await.unwrap();
    assert_eq!(backend.names_in_use(), 2, "the request still stands");
    let leading = second.leading();
    let asked = tokio::time::timeout(Duration::from_secs(60), leading.step_down_asked()).await;
    assert!(asked.is_err(), "asked by {asked:?}");
    asks.await.unwrap();
    second.ensure_held().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_does_not_listen_is_named_by_the_time_out() {
    let backend = MemoryBackend::new();
    let leadership = candidate(backend.clone(), "a").campaign().await.unwrap();
    let start = Instant::now();
    let policy = Policy::new().with_timeout(Duration::from_secs(2));
    let asker = candidate(backend.clone(), "b");
    let error = asker.step_down(&policy).await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!(error.holder().unwrap().label.as_deref(), Some("a"));
    leadership.resign().await.unwrap();
    asker.step_down(&policy).await.expect("nobody leads");
    assert_eq!(backend.names_in_use(), 0);
}

/// A backend without a watch, whose holder the test sets.
#[derive(Debug)]
struct Looks(Mutex<Vec<Inspection>>);

#[async_trait]
impl LockBackend for Looks {
    fn capabilities(&self) -> Capabilities {
        LockBackend::capabilities(&MemoryBackend::new())
    }

    async fn try_acquire(&self, _: &LockRequest) -> Result<Attempt, BackendError> {
        panic!("an observer asked for the lock")
    }

    async fn release(&self, _: &LockRequest) -> Result<Released, BackendError> {
        panic!("an observer released the lock")
    }

    async fn inspect(&self, _: &LockName) -> Result<Inspection, BackendError> {
        let mut looks = self.0.lock().unwrap();
        Ok(if looks.len() > 1 {
            looks.remove(0)
        } else {
            looks[0].clone()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn looking_tells_each_change_once_and_never_goes_back() {
    let look = |token: Option<u64>| {
        let claims = token.map(|token| {
            Claim::new(Holder::this_process(None), ClaimKind::Exclusive)
                .with_token(FencingToken::new(token))
        });
        Inspection::new(claims.into_iter().collect(), Vec::new())
    };
    let seen = [
        Some(5),
        Some(5),
        None,
        Some(5),
        None,
        Some(7),
        Some(5),
        Some(7),
        Some(9),
    ];
    let backend = Looks(Mutex::new(seen.map(look).into()));
    let mut observer = Election::new(backend, "scheduler").unwrap().observe();
    let start = Instant::now();
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(
            observer
                .next()
                .await
                .unwrap()
                .and_then(|term| term.token)
                .map(FencingToken::get),
        );
    }
    assert_eq!(told, [Some(5), None, Some(7), Some(9)]);
    assert_eq!(
        start.elapsed(),
        Duration::from_secs(2),
        "one look in each check interval"
    );
}
