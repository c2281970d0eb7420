//! Many clients at random for a while, and what their history shows.

use std::{
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use portalock_core::{Guard, Lock, LockError, Mode, Policy, clock::Instant};
use tokio::{sync::watch, time::timeout};

use super::{Case, case};
use crate::{
    history::{self, Happened, Recorder},
    spy::Spy,
    trial::{Client, Trial, ensure_contended, name, patient},
    verdict::{CaseResult, SLACK, SOON, Stop, ensure, soon, within},
};

pub(super) const CASES: &[Case] = &[
    case!(stress::random_history, rules [1, 3, 5, 10], needs [],
        "the history of clients that lock, share, hold, give up and drop at random shows no overlap, no token that does not grow, nobody overtaken and nobody forgotten"),
    case!(stress::random_history_with_crashes, rules [1, 10], needs [CrashRelease, Crash],
        "the same while clients crash"),
    case!(stress::random_history_with_losses, rules [1, 10], needs [LossNotice, TakeAway],
        "the same while locks are taken away behind their holders' backs"),
    case!(stress::a_storm_of_giving_up_strands_nobody, rules [5], needs [],
        "after many waits that were given up near the moment of their grant, the lock is free"),
    case!(stress::many_names_at_once, rules [1, 7], needs [],
        "one client holds many names at once, from many tasks, and each keeps others out"),
];

const WORKERS: usize = 6;
const CLIENTS: usize = 3;
/// How long after a crash its word may take: as long as the fixture needs to make the next client.
const WORD_OF_DEATH: Duration = Duration::from_secs(5);

/// How long random clients run, unless the environment says otherwise.
const STRESS: Duration = Duration::from_secs(2);

/// The seed of everything random in this run. Failures tell it.
pub(super) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(history::seed)
}

/// How long random clients run.
pub(crate) fn stress_time() -> Duration {
    history::stress_time(STRESS)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Crash,
    TakeAway,
}

async fn random_history(trial: Trial) -> CaseResult {
    play(trial, Fault::None).await
}

async fn random_history_with_crashes(trial: Trial) -> CaseResult {
    play(trial, Fault::Crash).await
}

async fn random_history_with_losses(trial: Trial) -> CaseResult {
    play(trial, Fault::TakeAway).await
}

/// A client's place in the play: whoever has it at the moment, and word of its death.
struct Seat {
    occupant: RwLock<Occupant>,
}

#[derive(Clone)]
struct Occupant {
    number: usize,
    client: Client,
    died: watch::Receiver<bool>,
}

impl Seat {
    fn occupant(&self) -> Occupant {
        self.occupant
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn sit(&self, occupant: Occupant) {
        *self
            .occupant
            .write()
            .unwrap_or_else(PoisonError::into_inner) = occupant;
    }
}

struct Stage {
    trial: Trial,
    recorder: Recorder,
    seats: Vec<Seat>,
    fault: Fault,
    until: Instant,
}

async fn play(trial: Trial, fault: Fault) -> CaseResult {
    let seed = seed();
    let mut seats = Vec::new();
    let mut deaths = Vec::new();
    for number in 0..CLIENTS {
        let (tell, died) = watch::channel(false);
        let client = trial.client().await?;
        seats.push(Seat {
            occupant: RwLock::new(Occupant {
                number,
                client,
                died,
            }),
        });
        deaths.push(tell);
    }
    let stage = Arc::new(Stage {
        trial,
        recorder: Recorder::new(),
        seats,
        fault,
        until: Instant::now() + stress_time(),
    });
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let random = fastrand::Rng::with_seed(seed.wrapping_add(number as u64));
            crate::spawn(stage.clone().work(number, random))
        })
        .collect();
    let harm = fastrand::Rng::with_seed(seed.wrapping_mul(31));
    stage.do_harm(deaths, harm).await?;
    for worker in workers {
        within(
            stage.trial.crash_limit() + SOON + SLACK,
            format!("the end of every client's last call, with seed {seed},"),
            worker,
        )
        .await???;
    }
    let history = stage.recorder.history();
    let violations = history.check(stage.trial.capabilities());
    if let Some(first) = violations.first() {
        return Err(Stop::Failed(format!(
            "{} violations in {} events, with seed {seed}; the first: {first}",
            violations.len(),
            history.events().len(),
        )));
    }
    ensure!(
        history.grants() > 0,
        "nobody was ever granted a lock, with seed {seed}"
    );
    Ok(())
}

impl Stage {
    async fn work(self: Arc<Self>, number: usize, mut random: fastrand::Rng) -> CaseResult {
        while Instant::now() < self.until {
            let occupant = self.seats[number % CLIENTS].occupant();
            let mut died = occupant.died.clone();
            let dead = async {
                // An error says that the teller is gone: at the play's end, when nobody dies any more.
                if died.wait_for(|died| *died).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let turn = self.turn(&occupant, &mut random);
            let done = tokio::select! {
                biased;
                () = dead => Ok(()),
                done = turn => done,
            };
            if done.is_err() {
                // A client that crashes may see its own death before word of it comes.
                let mut died = occupant.died.clone();
                let word = timeout(WORD_OF_DEATH, died.wait_for(|died| *died)).await;
                if !matches!(word, Ok(Ok(_))) {
                    return done;
                }
            }
            if *occupant.died.borrow() {
                // What this turn asked after its client's crash was noted.
                self.recorder.crashed(occupant.number);
            }
        }
        Ok(())
    }

    async fn turn(&self, occupant: &Occupant, random: &mut fastrand::Rng) -> CaseResult {
        let name = name(if random.bool() { "job" } else { "other" })?;
        let shared = self.trial.capabilities().shared && random.u8(..3) > 0;
        let mode = if shared {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let spy = Spy::on(occupant.client.backend());
        let lock = Lock::new(spy.clone(), &name)?;
        let brief = Duration::from_micros(random.u64(0..4_000));
        let manner = random.u8(..10);
        let policy = match manner {
            0 => Policy::new().with_timeout(brief),
            _ => self.trial.patience(),
        };
        let id = self.recorder.asked(occupant.number, name, mode);
        let acquire = async {
            match mode {
                Mode::Exclusive => lock.acquire_with(&policy).await,
                Mode::Shared => lock.acquire_shared_with(&policy).await,
            }
        };
        let place = async {
            if spy.contended(1).await.is_ok() {
                self.recorder.happened(id, Happened::Queued);
            }
            std::future::pending().await
        };
        let change_of_mind = async {
            if manner == 1 {
                tokio::time::sleep(brief).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let acquired = tokio::select! {
            acquired = acquire => acquired,
            never = place => never,
            () = change_of_mind => {
                self.recorder.happened(id, Happened::GaveUp);
                return Ok(());
            }
        };
        match acquired {
            Ok(guard) => self.hold(id, guard, random).await,
            // So little time that it may have been over before the first answer.
            Err(LockError::Timeout { .. }) if manner == 0 => {
                self.recorder.happened(id, Happened::GaveUp);
                Ok(())
            }
            Err(error) if error.is_contention() => {
                self.recorder.happened(id, Happened::TimedOut);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn hold(
        &self,
        id: u64,
        guard: Guard<Arc<Spy>>,
        random: &mut fastrand::Rng,
    ) -> CaseResult {
        self.recorder
            .granted(id, guard.token(), guard.lost_signal());
        let work = Duration::from_micros(random.u64(60..1_500));
        tokio::select! {
            biased;
            _ = guard.lost() => self.recorder.happened(id, Happened::Lost),
            () = tokio::time::sleep(work) => {}
        }
        self.recorder.happened(id, Happened::Releasing);
        let released = if random.bool() {
            guard.release().await
        } else {
            drop(guard);
            Ok(())
        };
        self.recorder.happened(id, Happened::Released);
        match released {
            Err(LockError::Lost { .. } | LockError::NotHeld { .. })
                if self.fault == Fault::TakeAway =>
            {
                Ok(())
            }
            released => Ok(released?),
        }
    }

    /// Crashes clients, or takes locks away, until the end.
    async fn do_harm(
        &self,
        mut deaths: Vec<watch::Sender<bool>>,
        mut random: fastrand::Rng,
    ) -> CaseResult {
        let mut number = CLIENTS;
        while Instant::now() < self.until {
            tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
            match self.fault {
                Fault::None => {}
                Fault::TakeAway => {
                    let name = name(if random.bool() { "job" } else { "other" })?;
                    self.recorder.taking_away(&name);
                    let taken = self.trial.take_away(&name).await;
                    self.recorder.taken_away();
                    taken?;
                }
                Fault::Crash => {
                    let seat = random.usize(..CLIENTS);
                    let doomed = self.seats[seat].occupant();
                    self.recorder.crashed(doomed.number);
                    self.trial.crash(&doomed.client).await?;
                    let (tell, died) = watch::channel(false);
                    let client = self.trial.client().await?;
                    self.seats[seat].sit(Occupant {
                        number,
                        client,
                        died,
                    });
                    number += 1;
                    std::mem::replace(&mut deaths[seat], tell).send_replace(true);
                    // What asked between the note and the crash died with it, too.
                    self.recorder.crashed(doomed.number);
                }
            }
        }
        Ok(())
    }
}

async fn a_storm_of_giving_up_strands_nobody(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let seed = seed();
    let mut tasks = Vec::new();
    for (number, client) in (0_u64..).zip(clients.iter().cycle().take(8)) {
        let lock = client.lock("job")?;
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(number));
        tasks.push(crate::spawn(async move {
            for _ in 0..30 {
                let patience = Duration::from_micros(random.u64(..5_000));
                if let Ok(guard) = timeout(patience, lock.acquire()).await {
                    let _guard = guard?;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Ok::<_, Stop>(())
        }));
    }
    for task in tasks {
        soon(format!("the storm's end, with seed {seed},"), task).await???;
    }
    for client in &clients {
        trial
            .ensure_free(client, client.lock("job")?.name())
            .await?;
    }
    Ok(())
}

async fn many_names_at_once(trial: Trial) -> CaseResult {
    let (holder, other) = trial.two_clients().await?;
    let mut tasks = Vec::new();
    for number in 0..200 {
        let lock = holder.lock(format!("job {number}"))?;
        tasks.push(crate::spawn(
            async move { lock.acquire_with(&patient()).await },
        ));
    }
    let mut guards = Vec::new();
    for task in tasks {
        guards.push(soon("a grant of a free name", task).await???);
    }
    // All at once: one after the other they would take longer than a session lives on a machine that is starved.
    let mut attempts = Vec::new();
    for guard in &guards {
        let lock = other.lock(guard.name())?;
        attempts.push(crate::spawn(async move { lock.try_acquire().await }));
    }
    for (attempt, guard) in attempts.into_iter().zip(&guards) {
        ensure_contended(attempt.await?, guard.name().as_str())?;
    }
    for guard in guards {
        guard.release().await?;
    }
    for number in [0, 100, 199] {
        let lock = other.lock(format!("job {number}"))?;
        lock.try_acquire().await?.release().await?;
    }
    Ok(())
}
