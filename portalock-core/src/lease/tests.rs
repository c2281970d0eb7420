//! Leases and their signals, on paused time.

use super::*;
use crate::wakeups::tests::Panics;
use std::{
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

#[tokio::test(start_paused = true)]
async fn the_deadline_fires_without_anyone_saying_so() {
    let start = Instant::now();
    let lease = Lease::until(start + Duration::from_secs(10));
    assert_eq!(lease.signal().lost().await, Loss::Expired);
    assert_eq!(start.elapsed().as_secs(), 10);
}

/// A plain executor, as other libraries bring theirs.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

/// As what a thread of the parent holds that reads the signal during a fork.
pub(crate) fn reading(signal: &LostSignal) -> impl Drop + '_ {
    match (&signal.tenure, &signal.sources) {
        (Some(read), _) | (None, Sources::One(read)) => read.lock(),
        _ => panic!("nothing is locked"),
    }
}

#[test]
fn the_deadline_fires_on_any_executor() {
    let lease = Lease::until(Instant::now() + Duration::from_millis(50));
    assert_eq!(block_on(lease.signal().lost()), Loss::Expired);
}

#[test]
fn the_deadline_fires_in_a_runtime_without_time() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let lease = Lease::until(Instant::now() + Duration::from_millis(50));
    assert_eq!(runtime.block_on(lease.signal().lost()), Loss::Expired);
}

#[test]
fn an_extension_is_seen_on_any_executor() {
    let start = Instant::now();
    let lease = Lease::until(start + Duration::from_millis(200));
    let signal = lease.signal();
    let waiter = std::thread::spawn(move || block_on(signal.lost()));
    assert!(lease.extend(start + Duration::from_millis(400)));
    waiter.join().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(400));
}

#[tokio::test(start_paused = true)]
async fn an_extension_is_seen_by_a_waiter() {
    let start = Instant::now();
    let lease = Lease::until(start + Duration::from_secs(10));
    let signal = lease.signal();
    let waiter = tokio::spawn(async move { signal.lost().await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(lease.extend(start + Duration::from_secs(15)));
    waiter.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_comes_later_is_seen_by_a_waiter() {
    let start = Instant::now();
    let lease = Lease::unbounded();
    let signal = lease.signal();
    let waiter = tokio::spawn(async move { signal.lost().await });
    tokio::task::yield_now().await;
    assert!(lease.extend(start + Duration::from_secs(15)));
    waiter.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 15);
}

/// A waker whose code reads the signal, and which counts its calls.
struct Reads(LostSignal, AtomicU32);

impl Wake for Reads {
    fn wake(self: Arc<Self>) {
        let _ = self.0.is_lost();
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// On a thread of its own: a waker that is called while the lease is locked never returns.
#[test]
fn whoever_waits_is_told_of_each_change_and_may_read_the_lease() {
    let (sender, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        // Nothing drives it, so that no timer fires.
        let _inside = runtime.enter();
        let second = Duration::from_secs(1);
        let deadline = Instant::now() + second;
        let lease = Lease::until(deadline);
        let reads = Arc::new(Reads(lease.signal(), AtomicU32::new(0)));
        let waker = reads.clone().into();
        let mut waits = pin!(reads.0.lost());
        let mut extended = |after, deadline| {
            let [mut its, mut nobodys] = [&waker, Waker::noop()].map(Context::from_waker);
            assert!(waits.as_mut().poll(&mut its).is_pending());
            // Its first poll moves the clock.
            let _ = pin!(tokio::time::advance(after)).poll(&mut nobodys);
            (lease.extend(deadline), reads.1.swap(0, Ordering::SeqCst))
        };
        let extensions = [
            extended(Duration::ZERO, deadline),
            extended(Duration::ZERO, deadline + second),
            extended(second * 2, deadline + second * 9),
        ];
        sender.send(extensions).unwrap();
    });
    let told = told.recv_timeout(Duration::from_secs(60)).unwrap();
    // No change, a change, and an end that the renewal has found.
    assert_eq!(told, [(true, 0), (true, 1), (false, 1)]);
}

#[test]
fn whoever_waits_beside_a_waker_that_panics_is_told() {
    let lease = Lease::unbounded();
    let signals = [lease.signal(), lease.signal(), lease.signal()];
    let mut waits = signals.each_ref().map(|signal| Box::pin(signal.lost()));
    let counts = Arc::new(Reads(LostSignal::never(), AtomicU32::new(0)));
    let wakers = [
        counts.clone().into(),
        Arc::new(Panics).into(),
        counts.clone().into(),
    ];
    for (wait, waker) in waits.iter_mut().zip(&wakers) {
        let polled = wait.as_mut().poll(&mut Context::from_waker(waker));
        assert!(polled.is_pending());
    }
    lease.end(Loss::Expired);
    assert_eq!(counts.1.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_late_extension_revives_nothing() {
    let lease = Lease::until(Instant::now() + Duration::from_secs(1));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!lease.extend(Instant::now() + Duration::from_secs(60)));
    assert!(lease.signal().is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_keeper_reads_what_its_lease_came_to() {
    let deadline = Instant::now() + Duration::from_secs(1);
    let lease = Lease::until(deadline);
    assert_eq!(lease.deadline(), Some(deadline));
    assert_eq!(lease.signal().deadline(), Some(deadline));
    assert_eq!(lease.loss(), None);
    lease.extend(deadline - Duration::from_millis(500));
    assert_eq!(
        lease.deadline(),
        Some(deadline),
        "an earlier deadline changes nothing"
    );
    lease.end(Loss::Expired);
    assert_eq!(lease.loss(), Some(Loss::Expired));
}

#[tokio::test(start_paused = true)]
async fn the_first_reason_stays_and_is_readable_late() {
    let lease = Lease::unbounded();
    lease.end(Loss::Removed("gone".into()));
    lease.end(Loss::Expired);
    let late = lease.signal();
    assert_eq!(late.lost().await, Loss::Removed("gone".into()));
    assert_eq!(late.loss(), Some(Loss::Removed("gone".into())));
}

#[tokio::test(start_paused = true)]
async fn a_settled_lease_never_fires() {
    let lease = Lease::until(Instant::now() + Duration::from_secs(1));
    let signal = lease.signal();
    lease.settle();
    lease.end(Loss::Expired);
    assert!(
        tokio::time::timeout(Duration::from_secs(60), signal.lost())
            .await
            .is_err()
    );
    assert!(!signal.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_merged_signal_fires_with_the_first() {
    let (one, two) = (Lease::unbounded(), Lease::unbounded());
    let merged = LostSignal::any([one.signal(), LostSignal::never(), two.signal()]);
    assert!(!merged.is_lost());
    two.end(Loss::Expired);
    assert_eq!(merged.lost().await, Loss::Expired);
    assert!(format!("{merged:?}").contains("Expired"));
}

#[tokio::test(start_paused = true)]
async fn a_signal_of_what_is_never_lost_waits_for_good() {
    for merged in [LostSignal::any([]), LostSignal::any([LostSignal::never()])] {
        let waiting = tokio::time::timeout(Duration::from_secs(3600), merged.lost());
        assert!(waiting.await.is_err());
        assert!(!merged.is_lost() && merged.deadline().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_merged_deadline_is_the_first() {
    let now = Instant::now();
    let (one, two) = (
        Lease::until(now + Duration::from_secs(2)),
        Lease::until(now + Duration::from_secs(1)),
    );
    let merged = LostSignal::any([one.signal(), two.signal(), Lease::unbounded().signal()]);
    assert_eq!(merged.deadline(), two.deadline());
}
