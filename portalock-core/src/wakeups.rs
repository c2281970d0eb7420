//! How a backend wakes a waiter: "try now", or the grant itself.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{BackendError, Grant, engine::driver};

/// A message to a waiter.
#[derive(Debug)]
#[non_exhaustive]
pub enum Wake {
    /// Something changed: try again now.
    TryNow,
    /// The backend has granted the lock to the waiter.
    Granted(Grant),
    /// The waiter's place in the queue is gone, because its session has ended.
    Failed(BackendError),
    /// No further wake-up will come. The engine then polls.
    Silent,
}

/// The waiter's end: wake-ups of one request. Created by [`wakeups`].
///
/// Dropping it tells the backend that nobody listens. If a grant was sent but not read, the engine's release of the
/// owner frees it.
pub struct Wakeups {
    mailbox: Arc<Mailbox>,
    sleeper: Option<Arc<dyn Sleeper>>,
    #[allow(dead_code, reason = "kept for its drop")]
    subscription: Option<Box<dyn Any + Send + Sync>>,
}

/// How the thread of a [`blocking`](crate::blocking) call sleeps until its wake-up comes.
///
/// A thread that receives a backend's events wakes the waiter's thread, which costs two wake-ups. A backend that can receive its
/// events on any thread lets the waiter receive them itself. Attach a sleeper with [`Wakeups::with_sleeper`].
pub trait Sleeper: Send + Sync {
    /// Sleeps until [`wake`](Self::wake) is called or `timeout` has passed, and handles the events that arrive. It may return
    /// earlier. False if it did not sleep, for example because another thread sleeps here: the caller then sleeps without
    /// it.
    ///
    /// `is_woken` becomes true before `wake` is called: check it after the last moment at which `wake` would have had no effect.
    fn sleep(&self, timeout: Option<Duration>, is_woken: &dyn Fn() -> bool) -> bool;

    /// Ends the sleep of the thread that sleeps here, if there is one.
    fn wake(&self);
}

/// The backend's end. Cheap to clone. When the last clone is dropped, the waiter gets [`Wake::Silent`].
#[derive(Clone)]
pub struct WakeSender {
    mailbox: Weak<Mailbox>,
    _alive: Arc<SenderAlive>,
}

/// Creates a connected pair. Unread wake-ups are merged into one, so the channel does not grow.
///
/// ```
/// use portalock_core::{wakeups, Wake};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let (sender, mut wakeups) = wakeups();
/// sender.wake();
/// sender.wake();
/// assert!(matches!(wakeups.next().await, Wake::TryNow));
/// drop(sender);
/// assert!(matches!(wakeups.next().await, Wake::Silent));
/// # }
/// ```
pub fn wakeups() -> (WakeSender, Wakeups) {
    let mailbox = Arc::new(Mailbox::default());
    let alive = Arc::new(SenderAlive(Arc::downgrade(&mailbox)));
    let sender = WakeSender {
        mailbox: Arc::downgrade(&mailbox),
        _alive: alive,
    };
    (
        sender,
        Wakeups {
            mailbox,
            sleeper: None,
            subscription: None,
        },
    )
}

/// Runs wake-ups, which are code of the program's executors. A panic there ends here, because it must not end a backend's
/// thread or a stranger's call, which has others to wake. The panic hook has reported it.
pub(crate) fn run_wake_ups(wake: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(wake));
}

/// Those who wait for a change. All of them are woken, even if a waker panics: with [`Notify::notify_waiters`] the others
/// would then sleep on.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Mutex<Vec<Weak<Notify>>>);

impl Listeners {
    /// A new listener, which is notified of the first change from now on.
    pub(crate) fn add(&self) -> Arc<Notify> {
        let listener = Arc::new(Notify::new());
        let mut all = self.lock();
        if all.len() == all.capacity() {
            // Without those that were dropped, or the list would grow with each wait until there is a change.
            all.retain(|listener| listener.strong_count() > 0);
            let as_many = all.len();
            all.reserve(as_many);
        }
        all.push(Arc::downgrade(&listener));
        listener
    }

    /// Wakes all listeners, which then no longer listen.
    pub(crate) fn wake_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        for listener in all.iter().filter_map(Weak::upgrade) {
            run_wake_ups(|| listener.notify_one());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Mailbox {
    content: Mutex<Content>,
    arrived: Notify,
}

#[derive(Default)]
struct Content {
    try_now: bool,
    verdict: Option<Result<Grant, BackendError>>,
    silent: bool,
}

struct SenderAlive(Weak<Mailbox>);

impl Drop for SenderAlive {
    fn drop(&mut self) {
        if let Some(mailbox) = self.0.upgrade() {
            mailbox.lock().silent = true;
            run_wake_ups(|| mailbox.arrived.notify_one());
        }
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WakeSender {
    /// Tells the waiter to try now. False if it no longer listens.
    pub fn wake(&self) -> bool {
        self.send(Wake::TryNow)
    }

    /// Sends the grant. False if the waiter no longer listens; the backend must then take the grant back.
    pub fn grant(&self, grant: Grant) -> bool {
        self.send(Wake::Granted(grant))
    }

    /// Tells the waiter that its place in the queue is gone.
    pub fn fail(&self, error: BackendError) -> bool {
        self.send(Wake::Failed(error))
    }

    fn send(&self, message: Wake) -> bool {
        let listens = self.post(message);
        self.ring();
        listens
    }

    /// Leaves a message, and wakes the waiter only when [`ring`](Self::ring) is called. False if it no longer listens.
    pub(crate) fn post(&self, message: Wake) -> bool {
        let Some(mailbox) = self.mailbox.upgrade() else {
            return false;
        };
        let mut content = mailbox.lock();
        match message {
            Wake::TryNow => content.try_now = true,
            Wake::Granted(grant) => content.verdict = Some(Ok(grant)),
            Wake::Failed(error) => content.verdict = Some(Err(error)),
            Wake::Silent => content.silent = true,
        }
        true
    }

    /// Wakes the waiter.
    pub(crate) fn ring(&self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            run_wake_ups(|| mailbox.arrived.notify_one());
        }
    }
}

impl Wakeups {
    /// Attaches `subscription` to the waiter: it is dropped when the waiter stops listening.
    #[must_use]
    pub fn with_subscription(mut self, subscription: impl Any + Send + Sync) -> Self {
        self.subscription = Some(Box::new(subscription));
        self
    }

    /// Sets the `sleeper` of a blocking call's thread. An async call does not use it. Default: none.
    #[must_use]
    pub fn with_sleeper(mut self, sleeper: Option<Arc<dyn Sleeper>>) -> Self {
        self.sleeper = sleeper;
        self
    }

    /// Waits for the next wake-up.
    ///
    /// # Cancel safety
    ///
    /// Safe: a wake-up that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Wake {
        loop {
            if let Some(wake) = self.mailbox.lock().take() {
                return wake;
            }
            let mut arrived = pin!(self.mailbox.arrived.notified());
            poll_fn(|context| {
                let arrived = arrived.as_mut().poll(context);
                if let (Some(sleeper), true) = (&self.sleeper, arrived.is_pending()) {
                    driver::sleep_with(sleeper);
                }
                arrived
            })
            .await;
        }
    }
}

impl Content {
    fn take(&mut self) -> Option<Wake> {
        if let Some(verdict) = self.verdict.take() {
            return Some(match verdict {
                Ok(grant) => Wake::Granted(grant),
                Err(error) => Wake::Failed(error),
            });
        }
        if std::mem::take(&mut self.try_now) {
            return Some(Wake::TryNow);
        }
        self.silent.then_some(Wake::Silent)
    }
}

impl fmt::Debug for Wakeups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wakeups").finish_non_exhaustive()
    }
}

impl fmt::Debug for WakeSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WakeSender").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::LazyLock;

    use super::*;

    /// As the waker of an event loop that has ended.
    pub(crate) struct Panics;

    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("this executor has ended");
        }
    }

    /// A log that panics at what contains this text.
    pub(crate) struct PanicsAt(pub(crate) &'static str);

    impl PanicsAt {
        /// Makes it the log of this thread until the guard is dropped.
        pub(crate) fn install(self) -> tracing::subscriber::DefaultGuard {
            // Beside a second one that lives on. With a single one, tracing asks the log of the thread that comes to a line first
            // whether the line is of interest, and that is the answer for all threads.
            static SECOND: LazyLock<tracing::Dispatch> =
                LazyLock::new(|| tracing::Dispatch::new(PanicsAt("nothing is logged here")));
            LazyLock::force(&SECOND);
            tracing::subscriber::set_default(self)
        }
    }

    impl tracing::field::Visit for PanicsAt {
        fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn fmt::Debug) {
            assert!(
                !format!("{value:?}").contains(self.0),
                "the test's own panic"
            );
        }
    }

    impl tracing::Subscriber for PanicsAt {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut Self(self.0));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test]
    async fn a_grant_comes_before_a_merged_wake_up() {
        let (sender, mut wakeups) = wakeups();
        assert!(sender.wake());
        assert!(sender.grant(Grant::new()));
        assert!(matches!(wakeups.next().await, Wake::Granted(_)));
        assert!(matches!(wakeups.next().await, Wake::TryNow));
    }

    #[tokio::test]
    async fn a_sender_learns_that_nobody_listens() {
        let (sender, wakeups) = wakeups();
        drop(wakeups);
        assert!(!sender.grant(Grant::new()));
    }

    #[tokio::test]
    async fn the_subscription_ends_with_the_waiter() {
        let (_sender, wakeups) = wakeups();
        let subscription = Arc::new(());
        let seen = Arc::downgrade(&subscription);
        let wakeups = wakeups.with_subscription(subscription);
        assert!(seen.upgrade().is_some());
        drop(wakeups);
        assert!(seen.upgrade().is_none());
    }

    #[test]
    fn the_list_of_listeners_is_no_longer_than_they_are_many() {
        let listeners = Listeners::default();
        let kept: Vec<_> = (0..10).map(|_| listeners.add()).collect();
        for _ in 0..1000 {
            listeners.add();
        }
        assert!(listeners.lock().len() < 4 * kept.len());
        assert!(kept.iter().all(|kept| Arc::weak_count(kept) == 1));
    }

    #[tokio::test]
    async fn one_clone_keeps_the_line_open() {
        let (sender, mut wakeups) = wakeups();
        let clone = sender.clone();
        drop(sender);
        clone.wake();
        assert!(matches!(wakeups.next().await, Wake::TryNow));
    }
}
