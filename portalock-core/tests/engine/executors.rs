//! Wake-ups are code of the program's executors: they may drop tasks, panic, or take long.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use futures_util::{FutureExt, poll};
use portalock_core::{Lock, LockBackend, MemoryBackend, Policy, blocking};

fn named<B: LockBackend>(backend: B) -> Lock<B> {
    Lock::new(backend, "deploy").unwrap()
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// As some executors do after their end.
struct DroppedWhenWoken(Mutex<Option<Task>>);

impl Wake for DroppedWhenWoken {
    fn wake(self: Arc<Self>) {
        let task = self.0.lock().unwrap().take();
        drop(task);
    }
}

fn begin(mut task: Task) {
    let dropped = Arc::new(DroppedWhenWoken(Mutex::default()));
    let waker = Waker::from(dropped.clone());
    assert!(
        task.as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    *dropped.0.lock().unwrap() = Some(task);
}

/// What is dropped there is released by the thread that wakes it.
#[tokio::test]
async fn a_wake_up_may_drop_a_guard_or_a_waiter() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let guard = lock.acquire().await.unwrap();
    for _ in 0..2 {
        let waiter = lock.clone();
        begin(Box::pin(async move {
            drop(waiter.acquire_with(&Policy::forever()).await);
        }));
    }
    begin(Box::pin(async move {
        guard.lost().await;
    }));
    let mut watch = backend.watch(lock.name()).await.unwrap().unwrap();
    assert!(watch.next().await.unwrap().is_some());
    let other = Lock::new(backend.clone(), "other").unwrap();
    let other = other.acquire().await.unwrap();
    begin(Box::pin(async move {
        watch.next().await;
        drop(other);
    }));
    let (told, is_told) = mpsc::channel();
    let (losing, name) = (backend.clone(), lock.name().clone());
    // Not a thread that the runtime would wait for.
    std::thread::spawn(move || told.send(losing.lose(&name)));
    assert_eq!(is_told.recv_timeout(Duration::from_secs(30)), Ok(1));
    assert_eq!(backend.names_in_use(), 0);
}

/// Counts how often it was woken.
#[derive(Default)]
struct PanicsWhenWoken(AtomicUsize);

impl Wake for PanicsWhenWoken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("this executor has ended");
    }
}

#[tokio::test]
async fn a_wake_up_that_panics_does_not_keep_others_from_being_woken() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let _guard = lock.acquire().await.unwrap();
    let forever = Policy::forever();
    let panics = Waker::from(Arc::new(PanicsWhenWoken::default()));
    let mut first = pin!(lock.acquire_shared_with(&forever));
    let polled = first.as_mut().poll(&mut Context::from_waker(&panics));
    assert!(polled.is_pending());
    let mut second = pin!(lock.acquire_shared_with(&forever));
    assert!(poll!(&mut second).is_pending());
    assert_eq!(backend.lose(lock.name()), 1);
    let second = tokio::time::timeout(Duration::from_secs(30), second).await;
    second.unwrap().unwrap().ensure_held().unwrap();
}

/// One call tells the holders and the observers of a name, and if it ended early, nobody would tell an observer anything again.
#[tokio::test]
async fn a_wake_up_that_panics_keeps_no_holder_and_no_observer_from_being_told() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let panics = Arc::new(PanicsWhenWoken::default());
    let waker = Waker::from(panics.clone());
    let mut panicking = Context::from_waker(&waker);
    let guards = [(); 2].map(|()| lock.try_acquire_shared().now_or_never().unwrap().unwrap());
    let mut lost = guards.each_ref().map(|guard| Box::pin(guard.lost()));
    for lost in &mut lost {
        assert!(lost.as_mut().poll(&mut panicking).is_pending());
    }
    let [mut first, mut second] =
        [(); 2].map(|()| backend.watch(lock.name()).now_or_never().unwrap());
    let [first, second] = [&mut first, &mut second].map(|watch| watch.as_mut().unwrap());
    let [first, second] = [first, second].map(|watch| watch.as_mut().unwrap());
    for watch in [&mut *first, &mut *second] {
        assert!(matches!(watch.next().await, Some(None)));
    }
    {
        let mut next = pin!(first.next());
        assert!(next.as_mut().poll(&mut panicking).is_pending());
    }
    assert_eq!(backend.lose(lock.name()), 2);
    assert_eq!(panics.0.load(Ordering::SeqCst), 3);
    let _next = lock.acquire().await.unwrap();
    for watch in [first, second] {
        assert!(matches!(watch.next().now_or_never(), Some(Some(None))));
        assert!(matches!(watch.next().now_or_never(), Some(Some(Some(_)))));
    }
}

/// Reports that it was called, and returns when it may.
struct SlowToWake(mpsc::SyncSender<()>, Mutex<mpsc::Receiver<()>>);

impl Wake for SlowToWake {
    fn wake(self: Arc<Self>) {
        self.0.send(()).unwrap();
        let _ = self.1.lock().unwrap().recv();
    }
}

#[tokio::test]
async fn a_slow_wake_up_does_not_delay_those_of_other_calls() {
    let backend = MemoryBackend::new();
    let locks = ["slow", "other"].map(|name| Lock::new(backend.clone(), name).unwrap());
    let forever = Policy::forever();
    let [slow, other] = [locks[0].acquire().await, locks[1].acquire().await].map(Result::unwrap);
    let (told, is_called) = mpsc::sync_channel(1);
    let (go_on, may_return) = mpsc::sync_channel(1);
    let waker = Waker::from(Arc::new(SlowToWake(told, Mutex::new(may_return))));
    let mut first = pin!(locks[0].acquire_with(&forever));
    let polled = first.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let mut second = pin!(locks[1].acquire_with(&forever));
    assert!(poll!(&mut second).is_pending());
    let releasing = std::thread::spawn(move || drop(slow));
    is_called.recv().unwrap();
    drop(other);
    let second = tokio::time::timeout(Duration::from_secs(30), second).await;
    go_on.send(()).unwrap();
    releasing.join().unwrap();
    drop(second.unwrap().unwrap());
}

#[tokio::test]
async fn changes_that_come_while_one_is_told_are_told_after_it_in_order() {
    let backend = MemoryBackend::new();
    let lock = named(backend.clone());
    let guard = lock.acquire().await.unwrap();
    let mut slow = backend.watch(lock.name()).await.unwrap().unwrap();
    let mut other = backend.watch(lock.name()).await.unwrap().unwrap();
    for watch in [&mut slow, &mut other] {
        assert!(watch.next().await.unwrap().is_some());
    }
    let (told, is_called) = mpsc::sync_channel(1);
    let (go_on, may_return) = mpsc::sync_channel(1);
    let waker = Waker::from(Arc::new(SlowToWake(told, Mutex::new(may_return))));
    let polled = pin!(slow.next()).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let releasing = std::thread::spawn(move || drop(guard));
    is_called.recv().unwrap();
    let _next = lock.acquire().await.unwrap();
    let early = other.next().now_or_never();
    go_on.send(()).unwrap();
    releasing.join().unwrap();
    assert!(early.is_none(), "told by two threads: {early:?}");
    for mut watch in [slow, other] {
        assert!(matches!(watch.next().now_or_never(), Some(Some(None))));
        assert!(matches!(watch.next().now_or_never(), Some(Some(Some(_)))));
    }
}

/// A task that its wake-up polls, and whether it was woken meanwhile.
struct PolledWhenWoken(Mutex<Task>, AtomicBool);

impl Wake for PolledWhenWoken {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        let waker = Waker::from(self.clone());
        // Whoever polls it does so again.
        while let Ok(mut task) = self.0.try_lock()
            && self.1.swap(false, Ordering::SeqCst)
        {
            let _ = task.as_mut().poll(&mut Context::from_waker(&waker));
        }
    }
}

/// The timers of a task that is polled by the thread of a blocking call are not those of that call, which may end first.
#[test]
fn a_wake_up_may_poll_a_task_in_a_blocking_call() {
    let backend = MemoryBackend::new();
    let [first, second] = ["first", "second"].map(|name| Lock::new(backend.clone(), name).unwrap());
    let held = [&first, &second].map(|lock| blocking::Lock::from(lock.clone()).acquire().unwrap());
    let (sender, outcome) = mpsc::channel();
    let task: Task = Box::pin(async move {
        let _first = first.acquire_with(&Policy::forever()).await.unwrap();
        let soon = Policy::new().with_timeout(Duration::from_millis(10));
        sender
            .send(second.acquire_with(&soon).await.map(drop))
            .unwrap();
    });
    Arc::new(PolledWhenWoken(Mutex::new(task), AtomicBool::new(false))).wake();
    let [first, _second] = held;
    first.release().unwrap();
    let outcome = outcome.recv_timeout(Duration::from_secs(30));
    assert!(outcome.expect("it waits on").unwrap_err().is_contention());
}
