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
    /// The runtime that the thread is in. A future that is polled in another one has timers there.
    runtime: Option<Id>,
    alarms: Vec<Alarm>,
    sleeper: Option<Arc<dyn Sleeper>>,
}

struct Alarm {
    id: AlarmId,
    at: Instant,
    waker: Waker,
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
    let _driving = Outer::replaced_by(Some(Driving {
        runtime: current_runtime(),
        alarms: Vec::new(),
        sleeper: None,
    }));
    // A free lock is granted by the first poll, which needs no waker.
    let mut context = Context::from_waker(Waker::noop());
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
    let mut context = Context::from_waker(&waker);
    loop {
        with_driving(|driving| driving.sleeper = None);
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        asleep.until_woken();
    }
}

/// Makes a driven future's timer call `waker` at `at`. False if this thread drives no future, so that the timer must be
/// another one.
pub(crate) fn set_alarm(id: AlarmId, at: Instant, waker: &Waker) -> bool {
    with_driving(|driving| {
        if driving.runtime != current_runtime() {
            return false;
        }
        match driving.alarms.iter_mut().find(|alarm| alarm.id == id) {
            Some(alarm) => alarm.waker.clone_from(waker),
            None => driving.alarms.push(Alarm {
                id,
                at,
                waker: waker.clone(),
            }),
        }
        true
    })
    .unwrap_or(false)
}

/// Forgets the timer, if it is this thread's.
pub(crate) fn forget_alarm(id: AlarmId) {
    with_driving(|driving| driving.alarms.retain(|alarm| alarm.id != id));
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

fn current_runtime() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

/// Runs `others`, which may poll any task: its timers are not those of the future that this thread drives, which may be
/// ready before they are due.
pub(crate) fn undriven(others: impl FnOnce()) {
    let _driving = Outer::replaced_by(None);
    others();
}

/// The state of the future that the thread drove before, which is restored when this is dropped.
struct Outer {
    driving: Option<Driving>,
    /// Not if it is borrowed or dropped, as in [`with_driving`].
    is_replaced: bool,
}

impl Outer {
    fn replaced_by(inner: Option<Driving>) -> Self {
        let replaced = DRIVING.try_with(|driving| {
            let mut driving = driving.try_borrow_mut().ok()?;
            let driving = std::mem::replace(&mut *driving, inner);
            Some(Self {
                driving,
                is_replaced: true,
            })
        });
        replaced.ok().flatten().unwrap_or(Self {
            driving: None,
            is_replaced: false,
        })
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        if self.is_replaced {
            let outer = self.driving.take();
            // Dropped after the borrow has ended: a waker may run any code.
            drop(DRIVING.try_with(|driving| driving.replace(outer)));
        }
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
    /// Sleeps until somebody calls the waker, perhaps a timer of this thread.
    fn until_woken(&self) {
        while !self.woken.swap(false, Ordering::SeqCst) {
            let (due, next) = due_alarms();
            if !due.is_empty() {
                due.into_iter().for_each(Waker::wake);
                continue;
            }
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
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

/// The wakers of the timers that are due, and when the next one is.
fn due_alarms() -> (Vec<Waker>, Option<Instant>) {
    with_driving(|driving| {
        let now = Instant::now();
        let due = driving.alarms.extract_if(.., |alarm| alarm.at <= now);
        let due = due.map(|alarm| alarm.waker).collect();
        (due, driving.alarms.iter().map(|alarm| alarm.at).min())
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests;
