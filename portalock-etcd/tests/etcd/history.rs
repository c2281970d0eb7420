//! Random clients on three members under random faults, and the history checker's verdict.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portalock_core::{Capabilities, Lock, LockBackend, LockError, LockName, Mode, clock::Instant};
use portalock_etcd::EtcdBackend;
use portalock_testkit::{
    history::{Happened, History},
    proxy::{Direction, FaultProxy},
};
use tokio::task::spawn_blocking;

use crate::support::{Server, patient};

/// How long it runs: `PORTALOCK_STRESS_SECONDS`, or this. CI asks for more.
const SECONDS: u64 = 15;

/// Longer than any fault here by far. A leader that was stopped for longer than a lease may, up to etcd 3.4.24 and 3.5.7,
/// have live leases revoked when it goes on: that is etcd's fault and not what is tested here.
const LEASE: Duration = Duration::from_secs(8);

#[derive(Debug)]
struct Book {
    start: Instant,
    history: Mutex<History>,
    acquisitions: AtomicU64,
}

impl Book {
    fn next(&self) -> u64 {
        self.acquisitions.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, acquisition: u64, what: Happened) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push(self.start.elapsed(), acquisition, what);
    }
}

struct Client {
    number: usize,
    backend: EtcdBackend,
    lines: Vec<FaultProxy>,
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_promise_is_broken_under_random_faults() {
    let seed = from_environment("PORTALOCK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = from_environment("PORTALOCK_STRESS_SECONDS").unwrap_or(SECONDS);
    println!("PORTALOCK_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = Arc::new(Server::cluster());
    let book = Arc::new(Book {
        start: Instant::now(),
        history: Mutex::default(),
        acquisitions: AtomicU64::new(0),
    });
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut lines: Vec<FaultProxy> = (0..3).map(|member| server.line(member)).collect();
        lines.rotate_left(number % 3);
        let through: Vec<&FaultProxy> = lines.iter().collect();
        let backend = server
            .client_through(&through, |settings| {
                settings.with_lease_time(LEASE).unwrap()
            })
            .await;
        clients.push(Arc::new(Client {
            number,
            backend,
            lines,
        }));
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for client in &clients {
        for _ in 0..2 {
            let (client, book) = (client.clone(), book.clone());
            let random = random.fork();
            tasks.push(tokio::spawn(work(client, book, random, end)));
        }
    }
    while Instant::now() < end {
        fault(&server, &clients, &mut random).await;
        tokio::time::sleep(Duration::from_millis(random.u64(100..800))).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let history = book.history.lock().unwrap_or_else(PoisonError::into_inner);
    let capabilities: Capabilities = LockBackend::capabilities(&clients[0].backend);
    let violations = history.check(&capabilities);
    println!("{} grants in {seconds} s", history.grants());
    assert!(
        history.grants() > 10,
        "PORTALOCK_SEED={seed}: too little happened"
    );
    assert!(
        violations.is_empty(),
        "PORTALOCK_SEED={seed}: {violations:#?}"
    );
}

/// Locks, holds and lets go at random, and writes down what it saw.
async fn work(client: Arc<Client>, book: Arc<Book>, mut random: fastrand::Rng, end: Instant) {
    while Instant::now() < end {
        let name = LockName::new(if random.bool() { "job" } else { "other" }).unwrap();
        let mode = if random.u8(..3) == 0 {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let lock = Lock::new(client.backend.clone(), &name).unwrap();
        let id = book.next();
        book.note(
            id,
            Happened::Asked {
                client: client.number,
                name,
                mode,
            },
        );
        let policy = patient().with_max_failures(1_000);
        let acquired = match mode {
            Mode::Exclusive => lock.acquire_with(&policy).await,
            Mode::Shared => lock.acquire_shared_with(&policy).await,
        };
        let guard = match acquired {
            Ok(guard) => guard,
            Err(error @ LockError::Backend { .. }) if error.is_retryable() => {
                book.note(id, Happened::GaveUp);
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        book.note(
            id,
            Happened::Granted {
                token: guard.token(),
            },
        );
        let held = Duration::from_micros(random.u64(100..20_000));
        if guard.run(tokio::time::sleep(held)).await.is_err() {
            book.note(id, Happened::Lost);
            continue;
        }
        book.note(id, Happened::Releasing);
        if random.bool() {
            // That it could not be told is no breach of a promise: it goes on in the background.
            drop(guard.release().await);
            book.note(id, Happened::Released);
        } else {
            drop(guard);
        }
    }
}

async fn fault(server: &Arc<Server>, clients: &[Arc<Client>], random: &mut fastrand::Rng) {
    let member = random.usize(..3);
    let pause = Duration::from_millis(random.u64(50..2_000));
    let client = &clients[random.usize(..clients.len())];
    let line = &client.lines[random.usize(..3)];
    match random.u8(..6) {
        0 => {
            let server = server.clone();
            spawn_blocking(move || {
                server.etcd.kill(member);
                server.etcd.restart(&[member]).unwrap();
            })
            .await
            .unwrap();
        }
        1 => {
            server.etcd.stall(member).unwrap();
            tokio::time::sleep(pause).await;
            server.etcd.resume(member).unwrap();
        }
        2 => line.cut(),
        3 => {
            line.black_hole(Direction::Both);
            tokio::time::sleep(pause).await;
            line.heal();
        }
        4 => {
            for line in &client.lines {
                line.black_hole(Direction::ToClient);
            }
            tokio::time::sleep(pause).await;
            for line in &client.lines {
                line.heal();
            }
        }
        _ => {
            line.delay(Direction::Both, Duration::from_millis(random.u64(1..100)));
            tokio::time::sleep(pause).await;
            line.heal();
        }
    }
}
