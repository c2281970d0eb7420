//! Clients that lock at random, for tests that cause their own faults.

use std::{env, future::Future, str::FromStr, sync::Arc, time::Duration};

use portalock_core::{
    FencingToken, Guard, Lock, LockBackend, LockError, LockName, LostSignal, Mode, PermitGuard,
    Permits, Policy, Pool, Semaphore, clock::Instant,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use super::{Happened, History, Recorder};

/// The number of tasks of each client.
const TASKS: usize = 2;
/// How long each call may take. Every fault ends sooner.
const PATIENCE: Duration = Duration::from_secs(60);
/// The permits of each semaphore.
const CAPACITY: u32 = 3;
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
    play(clients.iter().cloned().map(Locker), seed, faults).await
}

/// Like [`random_clients`], with the permits of a semaphore. Each request is for one to three of three permits.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::{MemoryBackend, Semaphore};
/// use portalock_testkit::history::{random_pool_clients, seed};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), portalock_core::LockError> {
/// let store = MemoryBackend::new();
/// let clients = [store.client(), store.client()];
/// let faults = tokio::time::sleep(Duration::from_millis(50));
/// let history = random_pool_clients(&clients, seed(), faults).await?;
/// assert!(history.check(&Semaphore::capabilities(&store)).is_empty());
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// The [`LockError`] of a call that failed for good, or that got no permits within a minute.
///
/// # Cancel safety
///
/// If the call is dropped, the clients stop.
///
/// # Panics
///
/// If `faults` panics.
pub async fn random_pool_clients<S: Semaphore + Clone>(
    clients: &[S],
    seed: u64,
    faults: impl Future<Output = ()>,
) -> Result<History, LockError> {
    play(clients.iter().cloned().map(PoolClient), seed, faults).await
}

/// Runs [`random_clients`] and [`random_pool_clients`] beside each other while `faults` runs, and returns both histories.
///
/// # Errors
///
/// The [`LockError`] of a call that failed for good, or that got nothing within a minute.
///
/// # Cancel safety
///
/// If the call is dropped, the clients stop.
///
/// # Panics
///
/// If `faults` panics.
pub async fn random_clients_of_both<B: LockBackend + Semaphore + Clone>(
    clients: &[B],
    seed: u64,
    faults: impl Future<Output = ()>,
) -> Result<(History, History), LockError> {
    let (ended, over) = oneshot::channel::<()>();
    // Boxed, so that the whole stays small.
    let faults = Box::pin(async {
        faults.await;
        drop(ended);
    });
    // Nothing is sent: the other end is dropped.
    let over = async { drop(over.await) };
    tokio::try_join!(
        random_clients(clients, seed, faults),
        random_pool_clients(clients, seed, over),
    )
}

/// A client, and how it takes its turns.
trait Client: Clone + Send + 'static {
    fn turn(task: &mut Task<Self>) -> impl Future<Output = Result<(), LockError>> + Send;
}

async fn play<C: Client>(
    clients: impl Iterator<Item = C>,
    seed: u64,
    faults: impl Future<Output = ()>,
) -> Result<History, LockError> {
    let recorder = Arc::new(Recorder::new());
    let (over, ends) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut random = fastrand::Rng::with_seed(seed);
    for (number, client) in clients.enumerate() {
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

struct Task<C> {
    number: usize,
    client: C,
    recorder: Arc<Recorder>,
    ends: watch::Receiver<bool>,
    random: fastrand::Rng,
}

impl<C: Client> Task<C> {
    async fn run(mut self) -> Result<(), LockError> {
        while !*self.ends.borrow() {
            C::turn(&mut self).await?;
        }
        Ok(())
    }

    fn name(&mut self) -> Result<LockName, LockError> {
        Ok(LockName::new(if self.random.bool() {
            "job"
        } else {
            "other"
        })?)
    }

    /// Holds for a while what was acquired. If the request may fail, its client gave up.
    async fn hold<G: Held>(
        &mut self,
        id: u64,
        asked: Instant,
        acquired: Result<G, LockError>,
    ) -> Result<(), LockError> {
        let guard = match acquired {
            Ok(guard) => guard,
            Err(error) if error.is_retryable() && asked.elapsed() < PATIENCE => {
                self.recorder.happened(id, Happened::GaveUp);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let signal = guard.lost_signal();
        self.recorder.granted(id, guard.token(), signal.clone());
        let held = Duration::from_micros(self.random.u64(100..20_000));
        if timeout(held, signal.lost()).await.is_ok() {
            self.recorder.happened(id, Happened::Lost);
        }
        self.recorder.happened(id, Happened::Releasing);
        if self.random.bool() {
            guard.release().await;
        } else {
            drop(guard);
        }
        self.recorder.happened(id, Happened::Released);
        Ok(())
    }
}

/// A guard of a lock or of permits.
trait Held: Send {
    fn token(&self) -> Option<FencingToken>;
    fn lost_signal(&self) -> LostSignal;
    /// A failed release breaks no promise: the clean-up repeats it in the background.
    fn release(self) -> impl Future<Output = ()> + Send;
}

macro_rules! held {
    ($($guard:ident<$backend:ident>),+) => {$(
        impl<B: $backend> Held for $guard<B> {
            fn token(&self) -> Option<FencingToken> {
                self.token()
            }

            fn lost_signal(&self) -> LostSignal {
                self.lost_signal()
            }

            async fn release(self) {
                drop(self.release().await);
            }
        }
    )+};
}

held!(Guard<LockBackend>, PermitGuard<Semaphore>);

fn policy() -> Policy {
    Policy::default()
        .with_timeout(PATIENCE)
        .with_max_failures(FAILURES)
}

#[derive(Clone)]
struct Locker<B>(B);

impl<B: LockBackend + Clone> Client for Locker<B> {
    async fn turn(task: &mut Task<Self>) -> Result<(), LockError> {
        let name = task.name()?;
        let client = &task.client.0;
        let shares = LockBackend::capabilities(client).shared && task.random.u8(..3) == 0;
        let mode = if shares {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let lock = Lock::new(client.clone(), &name)?.with_policy(policy());
        let asked = Instant::now();
        let id = task.recorder.asked(task.number, name, mode);
        let acquired = match mode {
            Mode::Exclusive => lock.acquire().await,
            Mode::Shared => lock.acquire_shared().await,
        };
        task.hold(id, asked, acquired).await
    }
}

#[derive(Clone)]
struct PoolClient<S>(S);

impl<S: Semaphore + Clone> Client for PoolClient<S> {
    async fn turn(task: &mut Task<Self>) -> Result<(), LockError> {
        let name = task.name()?;
        let permits = Permits::new(task.random.u32(1..=CAPACITY), CAPACITY)?;
        let pool = Pool::new(task.client.0.clone(), &name, CAPACITY)?.with_policy(policy());
        let asked = Instant::now();
        let id = task.recorder.asked_permits(task.number, name, permits);
        let acquired = pool.acquire(permits.count()).await;
        task.hold(id, asked, acquired).await
    }
}
