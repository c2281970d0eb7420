//! Clients that lock at random, for tests that cause their own faults.

use std::{env, future::Future, str::FromStr, sync::Arc, time::Duration};

use portalock_core::{Lock, LockBackend, LockError, LockName, Mode, Policy, clock::Instant};
use tokio::{sync::watch, task::JoinSet};

use super::{Happened, History, Recorder};

/// The number of tasks of each client.
const TASKS: usize = 2;
/// How long each call may take. Every fault ends sooner.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a call may fail in a row: in effect there is no limit.
const FAILURES: u32 = 100_000;

/// The seed of a random test: `PORTALOCK_SEED`, or a new one. The test prints it, so that you can repeat the run.
pub fn seed() -> u64 {
    from_environment("PORTALOCK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000_000))
}

/// How long random clients run: `PORTALOCK_STRESS_SECONDS`, or `default`.
pub fn stress_time(default: Duration) -> Duration {
    from_environment("PORTALOCK_STRESS_SECONDS").map_or(default, Duration::from_secs)
}

fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// Runs the clients while `faults` runs. Each client locks, shares, holds and releases at random, from several tasks.
/// Returns their history when the last call has ended.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::{LockBackend, MemoryBackend};
/// use portalock_testkit::history::{random_clients, seed};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), portalock_core::LockError> {
/// let store = MemoryBackend::new();
/// let clients = [store.client(), store.client()];
/// let faults = tokio::time::sleep(Duration::from_millis(50));
/// let history = random_clients(&clients, seed(), faults).await?;
/// assert!(history.check(&LockBackend::capabilities(&store)).is_empty());
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// The [`LockError`] of a call that failed for good, or that got no lock within a minute.
///
/// # Cancel safety
///
/// If the call is dropped, the clients stop.
///
/// # Panics
///
/// If `faults` panics.
pub async fn random_clients<B: LockBackend + Clone>(
    clients: &[B],
    seed: u64,
    faults: impl Future<Output = ()>,
) -> Result<History, LockError> {
    let recorder = Arc::new(Recorder::new());
    let (over, ends) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut random = fastrand::Rng::with_seed(seed);
    for (number, client) in clients.iter().enumerate() {
        for _ in 0..TASKS {
            let task = Task {
                number,
                client: client.clone(),
                recorder: recorder.clone(),
                ends: ends.clone(),
                random: random.fork(),
            };
            tasks.spawn(task.run());
        }
    }
    faults.await;
    over.send_replace(true);
    for ended in tasks.join_all().await {
        ended?;
    }
    Ok(recorder.history())
}

struct Task<B> {
    number: usize,
    client: B,
    recorder: Arc<Recorder>,
    ends: watch::Receiver<bool>,
    random: fastrand::Rng,
}

impl<B: LockBackend + Clone> Task<B> {
    async fn run(mut self) -> Result<(), LockError> {
        while !*self.ends.borrow() {
            self.turn().await?;
        }
        Ok(())
    }

    async fn turn(&mut self) -> Result<(), LockError> {
        let name = LockName::new(if self.random.bool() { "job" } else { "other" })?;
        let shares = LockBackend::capabilities(&self.client).shared && self.random.u8(..3) == 0;
        let mode = if shares {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let lock = Lock::new(self.client.clone(), &name)?;
        let policy = Policy::default()
            .with_timeout(PATIENCE)
            .with_max_failures(FAILURES);
        let asked = Instant::now();
        let id = self.recorder.asked(self.number, name, mode);
        let acquired = match mode {
            Mode::Exclusive => lock.acquire_with(&policy).await,
            Mode::Shared => lock.acquire_shared_with(&policy).await,
        };
        let guard = match acquired {
            Ok(guard) => guard,
            Err(error) if error.is_retryable() && asked.elapsed() < PATIENCE => {
                self.recorder.happened(id, Happened::GaveUp);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.recorder
            .granted(id, guard.token(), guard.lost_signal());
        let held = Duration::from_micros(self.random.u64(100..20_000));
        if guard.run(tokio::time::sleep(held)).await.is_err() {
            self.recorder.happened(id, Happened::Lost);
        }
        self.recorder.happened(id, Happened::Releasing);
        if self.random.bool() {
            // A failed release breaks no promise: the clean-up repeats it in the background.
            drop(guard.release().await);
        } else {
            drop(guard);
        }
        self.recorder.happened(id, Happened::Released);
        Ok(())
    }
}
