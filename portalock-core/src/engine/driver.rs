//! Drives a future on the calling thread, without a runtime. The thread sleeps in one call until it is woken, or until the
//! next timer is due.

use std::{
    cell::RefCell,
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use tokio::{
    runtime::{Handle, Id},
    task::coop::unconstrained,
};

use crate::{Sleeper, clock::Instant};

thread_local! {
    /// The innermost future that this thread drives.
    static DRIVING: RefCell<Option<Driving>> = const { RefCell::new(None) };
}

/// What the driven future waits for.
struct Driving {
    /// With what it is polled. A timer that is polled with another waker may be of another executor, which the thread runs inside
    /// the future or in a wake-up, and which may wait for it when nobody looks at the alarms.
    waker: Waker,
    /// The runtime that the thread is in. Its timers may stand still meanwhile; those of one inside the future do not.
    runtime: Option<Id>,
    alarms: Vec<(AlarmId, Instant)>,
    sleeper: Option<Arc<dyn Sleeper>>,
}

/// Identifies one timer among all of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AlarmId(u64);

impl AlarmId {
    pub(crate) fn mint() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Polls `future` until it is ready. `before_sleep` is called once, if it is not ready at once.
///
/// # Errors
///
/// That of `before_sleep`.
pub(crate) fn drive<F: Future, E>(
    future: F,
    before_sleep: impl FnOnce() -> Result<(), E>,
) -> Result<F::Output, E> {
    // The future stays on the stack: the engine's futures are large, and usually ready at once.
    // It is not one of the runtime's tasks, if the thread is in one: nothing would poll it again after a yield.
    let mut future = pin!(unconstrained(future));
    // A free lock is granted by the first poll, which needs no waker.
    let waker = Waker::noop();
    let _driving = Outer::replaced_by(Driving {
        waker: waker.clone(),
        runtime: Handle::try_current().ok().map(|runtime| runtime.id()),
        alarms: Vec::new(),
        sleeper: None,
    });
    let mut context = Context::from_waker(waker);
    if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
        return Ok(output);
    }
    before_sleep()?;
    let asleep = Arc::new(Asleep {
        thread: thread::current(),
        woken: AtomicBool::new(false),
        sleeper: Mutex::default(),
    });
    let waker = asleep.clone().into();
    with_driving(|driving| driving.waker.clone_from(&waker));
    let mut context = Context::from_waker(&waker);
    loop {
        with_driving(|driving| driving.sleeper = None);
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        asleep.until_woken();
    }
}

/// Wakes the driven future at `at`. False if this thread drives no future with this `waker`, so that the timer must be another
/// one.
pub(crate) fn set_alarm(id: AlarmId, at: Instant, waker: &Waker) -> bool {
    with_driving(|driving| {
        let is_driven = driving.waker.will_wake(waker);
        if is_driven && driving.alarms.iter().all(|(other, _)| *other != id) {
            driving.alarms.push((id, at));
        }
        is_driven
    })
    .unwrap_or(false)
}

/// Forgets the timer, if it is this thread's.
pub(crate) fn forget_alarm(id: AlarmId) {
    with_driving(|driving| driving.alarms.retain(|(other, _)| *other != id));
}

/// Whether this thread drives a future in `runtime`.
pub(crate) fn is_driving_in(runtime: &Handle) -> bool {
    with_driving(|driving| driving.runtime == Some(runtime.id())).unwrap_or(false)
}

/// Until the next poll this thread sleeps with `sleeper`, if it drives a future.
pub(crate) fn sleep_with(sleeper: &Arc<dyn Sleeper>) {
    with_driving(|driving| driving.sleeper = Some(sleeper.clone()));
}

fn with_driving<T>(act: impl FnOnce(&mut Driving) -> T) -> Option<T> {
    // A thread that ends has dropped its state; a waker's code may be called while it is borrowed.
    DRIVING
        .try_with(|driving| driving.try_borrow_mut().ok()?.as_mut().map(act))
        .ok()
        .flatten()
}

/// The state of the future that the thread drove before, which is restored when this is dropped.
struct Outer(Option<Driving>);

impl Outer {
    fn replaced_by(inner: Driving) -> Self {
        Self(
            DRIVING
                .try_with(|driving| driving.replace(Some(inner)))
                .ok()
                .flatten(),
        )
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        let outer = self.0.take();
        // Dropped after the borrow has ended: a waker may run any code.
        drop(DRIVING.try_with(|driving| driving.replace(outer)));
    }
}

/// The waker of a thread that drives a future.
struct Asleep {
    thread: Thread,
    woken: AtomicBool,
    /// Where the thread sleeps, if it isn't parked.
    sleeper: Mutex<Option<Arc<dyn Sleeper>>>,
}

impl Asleep {
    /// Sleeps until somebody calls the waker, or an alarm is due.
    fn until_woken(&self) {
        while !self.woken.swap(false, Ordering::SeqCst) {
            let now = Instant::now();
            let (is_due, next) = with_driving(|driving| {
                let due = driving.alarms.extract_if(.., |(_, at)| *at <= now);
                (
                    due.count() > 0,
                    driving.alarms.iter().map(|(_, at)| *at).min(),
                )
            })
            .unwrap_or_default();
            if is_due {
                return;
            }
            let timeout = next.map(|at| at.saturating_duration_since(now));
            let sleeper = with_driving(|driving| driving.sleeper.clone()).flatten();
            let slept = sleeper.is_some_and(|sleeper| self.with(&sleeper, timeout));
            if !slept {
                match timeout {
                    Some(timeout) => thread::park_timeout(timeout),
                    None => thread::park(),
                }
            }
        }
    }

    fn with(&self, sleeper: &Arc<dyn Sleeper>, timeout: Option<Duration>) -> bool {
        *self.sleeper() = Some(sleeper.clone());
        let slept = sleeper.sleep(timeout, &|| self.woken.load(Ordering::SeqCst));
        *self.sleeper() = None;
        slept
    }

    fn sleeper(&self) -> MutexGuard<'_, Option<Arc<dyn Sleeper>>> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Asleep {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        // Both: the thread may be about to park because another thread sleeps with the sleeper.
        self.thread.unpark();
        let sleeper = self.sleeper().clone();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}

#[cfg(test)]
mod tests;
