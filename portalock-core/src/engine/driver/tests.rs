use std::{
    future::pending,
    sync::{Condvar, mpsc},
    task::ready,
};

use futures_util::{FutureExt, StreamExt, future::FusedFuture, stream::FuturesUnordered};
use tokio::sync::oneshot;

use super::*;
use crate::{
    Wake as Woken,
    engine::{deadline::bound, timer},
    lease::tests::block_on,
    wakeups,
};

const SOON: Duration = Duration::from_millis(20);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn run<F: Future>(future: F) -> F::Output {
    drive(future, || Ok::<_, ()>(())).unwrap()
}

/// Runs `work` on a thread of its own; fails if it does not end.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    done.recv_timeout(LONG).expect("nobody woke it")
}

fn soon() -> timer::Timer {
    timer::at(Instant::now() + SOON)
}

#[test]
fn what_is_ready_at_once_needs_no_leave_to_sleep() {
    assert_eq!(drive(async { 7 }, || Err("may not sleep")), Ok(7));
    assert_eq!(
        drive(pending::<()>(), || Err("may not sleep")),
        Err("may not sleep")
    );
}

#[test]
fn a_timer_wakes_the_part_of_the_future_that_waits_for_it() {
    ends(|| {
        // These are only polled if their own waker was called.
        let mut timers: FuturesUnordered<_> = (0..3).map(|_| soon()).collect();
        run(async { while timers.next().await.is_some() {} });
    });
}

#[test]
fn it_polls_only_what_was_woken() {
    let polls = ends(|| {
        let (mut timer, mut polls) = (soon(), 0);
        run(std::future::poll_fn(|context| {
            polls += 1;
            timer.poll_unpin(context)
        }));
        polls
    });
    assert!(polls < 10, "{polls} polls");
}

#[test]
fn a_timer_that_was_dropped_wakes_nobody() {
    ends(|| {
        let start = Instant::now();
        run(async {
            let alarms = || with_driving(|driving| driving.alarms.len());
            let [mut one, mut other] = [(); 2].map(|()| Box::pin(timer::at(start + LONG)));
            for _ in 0..2 {
                assert!(futures_util::poll!(&mut one).is_pending());
                assert!(futures_util::poll!(&mut other).is_pending());
                assert_eq!(alarms(), Some(2));
            }
            drop(one);
            soon().await;
            assert_eq!(alarms(), Some(1), "that of the other one");
        });
    });
}

/// Its code sets another timer, which wakes this one's future.
struct SetsAnother(Mutex<Option<timer::Timer>>, Waker);

impl Wake for SetsAnother {
    fn wake(self: Arc<Self>) {
        let another = self
            .0
            .lock()
            .unwrap()
            .insert(soon())
            .poll_unpin(&mut Context::from_waker(&self.1));
        if another.is_ready() {
            self.1.wake_by_ref();
        }
    }
}

#[test]
fn a_timer_that_a_waker_sets_is_heeded() {
    ends(|| {
        // What it set goes with it.
        let mut sets = None;
        let (mut first, mut polls) = (soon(), 0);
        run(std::future::poll_fn(|context| {
            polls += 1;
            // The very first poll has a waker that wakes nobody.
            if polls > 2 {
                return Poll::Ready(());
            }
            let another = SetsAnother(Mutex::default(), context.waker().clone());
            let waker = sets.insert(Arc::new(another)).clone().into();
            first.poll_unpin(&mut Context::from_waker(&waker))
        }));
    });
}

#[test]
fn a_timer_is_due_at_its_very_instant() {
    ends(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let (mut timer, mut polls) = (soon(), 0);
        run(std::future::poll_fn(|context| {
            polls += 1;
            // The very first poll has a waker that wakes nobody.
            if polls == 1 {
                return Poll::Pending;
            }
            let fired = timer.poll_unpin(context);
            if polls == 2 {
                // Its first poll moves the clock.
                let mut nobodys = Context::from_waker(Waker::noop());
                let _ = pin!(tokio::time::advance(SOON)).poll(&mut nobodys);
            }
            fired
        }));
    });
}

#[test]
fn a_wake_up_from_another_thread_ends_the_sleep() {
    ends(|| {
        for _ in 0..1000 {
            let (sender, receiver) = oneshot::channel();
            let waker = thread::spawn(move || sender.send(()));
            run(receiver).unwrap();
            waker.join().unwrap().unwrap();
        }
    });
}

#[test]
fn a_future_inside_another_one_takes_nothing_from_it() {
    ends(|| {
        let (sender, outer) = oneshot::channel();
        let (mut sender, mut outer) = (Some(sender), outer.fuse());
        let mut timers: FuturesUnordered<_> = [soon()].into_iter().collect();
        run(std::future::poll_fn(|context| {
            if let Some(sender) = sender.take() {
                assert!(outer.poll_unpin(context).is_pending());
                // Where the machine stalls, it is due already.
                let _ = timers.poll_next_unpin(context);
                // The outer one is woken while the inner one sleeps.
                let waker = thread::spawn(move || sender.send(()));
                run(async { soon().await });
                waker.join().unwrap().unwrap();
                return Poll::Pending;
            }
            if !outer.is_terminated() {
                ready!(outer.poll_unpin(context)).unwrap();
            }
            // Polled only once the timer has called its own waker.
            timers.poll_next_unpin(context).map(drop)
        }));
    });
}

#[test]
fn a_runtime_inside_has_its_own_timers() {
    ends(|| {
        let silence = run(async {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            // By its own clock, which goes on at once.
            runtime
                .block_on(async { bound(Some(Instant::now() + LONG * 2), pending::<()>()).await })
        });
        assert!(silence.is_none());
    });
}

/// As if a backend's call waits for another lock there.
#[test]
fn an_executor_inside_keeps_its_deadlines() {
    let silence =
        ends(|| run(async { block_on(bound(Some(Instant::now() + SOON), pending::<()>())) }));
    assert!(silence.is_none());
    ends(|| {
        let mut polls = 0;
        run(std::future::poll_fn(|context| {
            polls += 1;
            if polls == 1 {
                // The very first poll has a waker that wakes nobody.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            block_on(soon());
            Poll::Ready(())
        }));
    });
}

/// The runtime's timers stand still as long as the call blocks its thread.
#[test]
fn a_part_with_its_own_waker_keeps_its_deadline_in_a_runtime_that_the_call_blocks() {
    ends(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut timers: FuturesUnordered<_> = [soon()].into_iter().collect();
            run(timers.next());
        });
    });
}

#[test]
fn a_future_that_moves_to_another_thread_keeps_its_deadline() {
    ends(|| {
        let mut moving = Box::pin(bound(Some(Instant::now() + SOON), pending::<()>()));
        run(async { assert!(futures_util::poll!(&mut moving).is_pending()) });
        assert!(thread::scope(|scope| scope.spawn(|| run(moving)).join().unwrap()).is_none());
    });
}

#[test]
fn a_task_without_budget_may_call_it() {
    ends(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            while tokio::task::coop::has_budget_remaining() {
                tokio::task::coop::consume_budget().await;
            }
            run(tokio::task::coop::consume_budget());
        });
    });
}

/// It ends each sleep at once, as if an event of somebody else had arrived.
#[derive(Default)]
struct Restless(AtomicU64);

impl Sleeper for Restless {
    fn sleep(&self, _: Option<Duration>, _: &dyn Fn() -> bool) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn wake(&self) {}
}

#[test]
fn an_event_of_another_waiter_does_not_send_it_elsewhere() {
    let place = Arc::new(Restless::default());
    let (sender, wakeups) = wakeups();
    let mut wakeups = wakeups.with_sleeper(Some(place.clone()));
    let there = place.clone();
    let waits = async move {
        assert!(matches!(wakeups.next().await, Woken::TryNow));
        let sleeps = there.0.load(Ordering::SeqCst);
        soon().await;
        there.0.load(Ordering::SeqCst) - sleeps
    };
    let waiter = thread::spawn(move || run(waits));
    let start = Instant::now();
    while place.0.load(Ordering::SeqCst) < 3 {
        assert!(start.elapsed() < LONG, "it sleeps elsewhere");
        thread::yield_now();
    }
    sender.wake();
    let later = ends(|| waiter.join().unwrap());
    assert_eq!(later, 0, "nothing wakes it from there any more");
}

/// A thread sleeps in it, unless it is taken.
#[derive(Default)]
struct Place {
    is_taken: bool,
    sleeps: AtomicBool,
    bell: Condvar,
    has_rung: Mutex<bool>,
}

impl Sleeper for Place {
    fn sleep(&self, _: Option<Duration>, is_woken: &dyn Fn() -> bool) -> bool {
        self.sleeps.store(true, Ordering::SeqCst);
        if self.is_taken {
            // The wake-up goes to this place just before the thread leaves it.
            while !is_woken() {
                thread::yield_now();
            }
            return false;
        }
        let mut has_rung = self.has_rung.lock().unwrap();
        while !*has_rung && !is_woken() {
            has_rung = self.bell.wait(has_rung).unwrap();
        }
        true
    }

    fn wake(&self) {
        *self.has_rung.lock().unwrap() = true;
        self.bell.notify_one();
    }
}

/// Another thread sleeps in it.
#[derive(Default)]
struct Taken(AtomicU64);

impl Sleeper for Taken {
    fn sleep(&self, _: Option<Duration>, _: &dyn Fn() -> bool) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst);
        false
    }

    fn wake(&self) {
        panic!("the thread does not sleep here any more");
    }
}

/// The waker is called twice while the thread sleeps in it.
#[derive(Default)]
struct Twice(Mutex<Option<Waker>>, AtomicU64);

impl Sleeper for Twice {
    fn sleep(&self, _: Option<Duration>, _: &dyn Fn() -> bool) -> bool {
        let waker = self.0.lock().unwrap().take().unwrap();
        waker.wake_by_ref();
        waker.wake_by_ref();
        true
    }

    fn wake(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_thread_that_wakes_up_is_not_woken_again() {
    let twice = Arc::new(Twice::default());
    let (place, mut polls) = (twice.clone(), 0);
    ends(move || {
        let sleeper: Arc<dyn Sleeper> = place.clone();
        run(std::future::poll_fn(|context| {
            polls += 1;
            if polls > 2 {
                return Poll::Ready(());
            }
            *place.0.lock().unwrap() = Some(context.waker().clone());
            sleep_with(&sleeper);
            Poll::Pending
        }));
    });
    assert_eq!(twice.1.load(Ordering::SeqCst), 1);
}

#[test]
fn where_another_thread_sleeps_it_does_not_try_again_and_again() {
    let place = Arc::new(Taken::default());
    let (_sender, wakeups) = wakeups();
    let mut wakeups = wakeups.with_sleeper(Some(place.clone()));
    let silence = ends(move || run(bound(Some(Instant::now() + SOON), wakeups.next())));
    assert!(silence.is_none());
    let tries = place.0.load(Ordering::SeqCst);
    assert!((1..10).contains(&tries), "{tries} tries");
}

#[test]
fn a_waiter_sleeps_where_its_wake_ups_come_from_unless_another_thread_does() {
    for is_taken in [false, true] {
        let place = Arc::new(Place {
            is_taken,
            ..Place::default()
        });
        let (sender, wakeups) = wakeups();
        let mut wakeups = wakeups.with_sleeper(Some(place.clone()));
        let waiter = thread::spawn(move || run(async move { wakeups.next().await }));
        let start = Instant::now();
        while !place.sleeps.load(Ordering::SeqCst) {
            assert!(start.elapsed() < LONG, "it sleeps elsewhere");
            thread::yield_now();
        }
        sender.wake();
        assert!(matches!(ends(|| waiter.join().unwrap()), Woken::TryNow));
    }
}
