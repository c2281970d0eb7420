//! A scripted backend: it stalls, fails, or grants exactly at the deadline.

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, mpsc::RecvTimeoutError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::{Either, select};
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, CrashRelease, Grant, Lease,
    Lock, LockBackend, LockRequest, OwnerId, Patience, Policy, Released, Scope, WakeSender,
    Wakeups, clock::Instant, wakeups,
};
use tokio::sync::Notify;

/// How long the scripted backend keeps the locks of a crashed client.
pub const KEPT: Duration = Duration::from_secs(10);

/// The behaviour for one attempt. The last step is repeated.
#[derive(Clone)]
pub enum Step {
    Grant,
    GrantAfter(Duration),
    Contended,
    ContendedAfter(Duration),
    /// Contended, with a place in the queue and this `recheck_after`.
    Queued(Duration),
    Fails(BackendErrorKind),
    Stalls,
    Panics,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Attempt(OwnerId),
    Release(OwnerId),
}

#[derive(Clone, Default)]
pub struct Scripted(pub Arc<State>);

#[derive(Default)]
pub struct State {
    pub steps: Mutex<VecDeque<Step>>,
    pub calls: Mutex<Vec<(Duration, Call)>>,
    pub lines: Mutex<Vec<WakeSender>>,
    pub listens: Mutex<bool>,
    /// How many subscriptions fail, and how, if it isn't because the session has ended.
    pub subscription_fails: Mutex<u32>,
    pub subscription_error: Mutex<Option<BackendErrorKind>>,
    pub release_fails: Mutex<u32>,
    pub lease: Mutex<Option<Lease>>,
    pub patience: Mutex<Option<Patience>>,
    pub released: Notify,
    pub start: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let backend = Self::default();
        backend.0.steps.lock().unwrap().extend(steps);
        *backend.0.start.lock().unwrap() = Some(Instant::now());
        backend
    }

    pub fn listening(self) -> Self {
        *self.0.listens.lock().unwrap() = true;
        self
    }

    pub fn failing_releases(self, count: u32) -> Self {
        *self.0.release_fails.lock().unwrap() = count;
        self
    }

    pub fn note(&self, call: Call) {
        let at = self.0.start.lock().unwrap().unwrap().elapsed();
        self.0.calls.lock().unwrap().push((at, call));
    }

    pub fn attempts(&self) -> Vec<Duration> {
        let calls = self.0.calls.lock().unwrap();
        calls
            .iter()
            .filter(|(_, call)| matches!(call, Call::Attempt(_)))
            .map(|(at, _)| *at)
            .collect()
    }

    pub fn releases(&self) -> Vec<OwnerId> {
        let calls = self.0.calls.lock().unwrap();
        calls
            .iter()
            .filter_map(|(_, call)| {
                if let Call::Release(owner) = call {
                    Some(*owner)
                } else {
                    None
                }
            })
            .collect()
    }

    /// Waits for the first release, which comes from the clean-up's own thread.
    pub async fn first_release(&self) -> OwnerId {
        let first = async {
            loop {
                let released = self.0.released.notified();
                if let Some(owner) = self.releases().first() {
                    return *owner;
                }
                released.await;
            }
        };
        within_real_time(first)
            .await
            .expect("nothing was ever released")
    }

    pub fn lock(&self) -> Lock<Self> {
        Lock::new(self.clone(), "scripted").unwrap()
    }

    fn grant(&self) -> Grant {
        let lease = self.0.lease.lock().unwrap().clone();
        Grant::new().with_lost(lease.unwrap_or_else(Lease::unbounded).signal())
    }

    pub fn line(&self) -> WakeSender {
        self.0
            .lines
            .lock()
            .unwrap()
            .last()
            .expect("nobody listens")
            .clone()
    }
}

#[async_trait]
impl LockBackend for Scripted {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Process).with_crash_release(CrashRelease::Within(KEPT))
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.note(Call::Attempt(request.owner));
        *self.0.patience.lock().unwrap() = Some(request.patience);
        let step = {
            let mut steps = self.0.steps.lock().unwrap();
            if steps.len() > 1 {
                steps.pop_front()
            } else {
                steps.front().cloned()
            }
        };
        match step.expect("a script has a step") {
            Step::Grant => Ok(Attempt::Granted(self.grant())),
            Step::GrantAfter(time) => {
                tokio::time::sleep(time).await;
                Ok(Attempt::Granted(self.grant()))
            }
            Step::Contended => Ok(Attempt::Contended(Contention::new())),
            Step::ContendedAfter(time) => {
                tokio::time::sleep(time).await;
                Ok(Attempt::Contended(Contention::new()))
            }
            Step::Queued(recheck_after) => Ok(Attempt::Contended(
                Contention::new()
                    .with_queued(true)
                    .with_recheck_after(recheck_after),
            )),
            Step::Fails(kind) => Err(BackendError::new(kind, "told to fail")),
            Step::Stalls => std::future::pending().await,
            Step::Panics => panic!("told to panic"),
        }
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.note(Call::Release(request.owner));
        self.0.released.notify_waiters();
        let mut fails = self.0.release_fails.lock().unwrap();
        if *fails > 0 {
            *fails -= 1;
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                "told to fail",
            ));
        }
        Ok(Released::Freed)
    }

    async fn subscribe(&self, _: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        if !*self.0.listens.lock().unwrap() {
            return Ok(None);
        }
        let mut fails = self.0.subscription_fails.lock().unwrap();
        if *fails > 0 {
            *fails -= 1;
            let kind = *self.0.subscription_error.lock().unwrap();
            return Err(BackendError::new(
                kind.unwrap_or(BackendErrorKind::SessionEnded),
                "told to fail",
            ));
        }
        let (sender, wakeups) = wakeups();
        self.0.lines.lock().unwrap().push(sender);
        Ok(Some(wakeups))
    }
}

/// portalocker's policy with another timeout.
pub fn seconds(timeout: u64) -> Policy {
    Policy::new().with_timeout(Duration::from_secs(timeout))
}

/// Waits for an event on another thread, for at most a minute of real time: paused time would pass at once.
pub async fn within_real_time<F: Future>(event: F) -> Option<F::Output> {
    let (passed, has_passed) = tokio::sync::oneshot::channel();
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if is_over.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            let _ = passed.send(());
        }
    });
    let output = match select(pin!(event), pin!(has_passed)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    };
    drop(over);
    output
}
