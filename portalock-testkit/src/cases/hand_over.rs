//! A lock that goes from one to the next while something else goes wrong.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use portalock_core::{Guard, Lease, Lock, LockError, Loss, LostSignal, OwnerId};
use tokio::task::JoinHandle;

use super::{Case, case, loss::ensure_told};
use crate::{
    spy::Spy,
    trial::{Client, Trial},
    verdict::{A_WHILE, CaseResult, Stop, soon, within},
};

pub(super) const CASES: &[Case] = &[
    case!(hand_over::a_loss_during_one_leaves_one_holder, rules [1, 10], needs [LossNotice, TakeAway],
        "when a lock is taken away while others wait, and while it is being released to them, no two believe that they hold it"),
    case!(hand_over::a_waiter_that_was_given_up_is_not_granted_late, rules [1, 10], needs [LossNotice, CrashRelease, CutOff],
        "a waiter that was cut off until the store had given it up doesn't believe, once it hears the store again, that it holds what another does"),
];

/// How often a lock changes hands while it is taken away.
const ROUNDS: u32 = 12;

/// Those who were granted the lock and have not given it back, with the lease of their belief, which ends when they do.
#[derive(Clone, Default)]
struct Believers(Arc<Mutex<Vec<(OwnerId, LostSignal, Lease)>>>);

impl Believers {
    /// Counts one more. Returns who else believes that it holds, as signals of the end of that. One that knows of its loss
    /// believes nothing.
    fn join(&self, owner: OwnerId, mine: &LostSignal) -> Vec<LostSignal> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = all
            .iter()
            .map(|(_, lost, belief)| LostSignal::any([lost.clone(), belief.signal()]));
        let others = others.filter(|other| !mine.is_lost() && !other.is_lost());
        let others = others.collect();
        all.push((owner, mine.clone(), Lease::unbounded()));
        others
    }

    fn leave(&self, owner: OwnerId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, _, belief) in all.extract_if(.., |(other, ..)| *other == owner) {
            belief.end(Loss::Removed("it was given back".into()));
        }
    }
}

type Waiting = JoinHandle<CaseResult>;

/// Waits for the lock in a task of its own, and has its turn. Returns when it has its place.
async fn waits(trial: &Trial, client: &Client, believers: &Believers) -> CaseResult<Waiting> {
    let (spy, trial, believers) = (Spy::on(client.backend()), trial.clone(), believers.clone());
    let lock = Lock::new(spy.clone(), "job")?;
    let waiting = crate::spawn(async move {
        let guard = lock.acquire_with(&trial.patience()).await?;
        let mine = guard.lost_signal();
        for other in believers.join(guard.owner(), &mine) {
            told(&trial, &mine, &other).await?;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        believers.leave(guard.owner());
        given_back(guard.release().await)
    });
    spy.contended(1).await?;
    Ok(waiting)
}

/// One of two who both believe that they hold must be told, in the time that the backend declares, unless the other gives
/// the lock back meanwhile.
async fn told(trial: &Trial, one: &LostSignal, other: &LostSignal) -> CaseResult {
    let window = trial.notice();
    if window.is_zero() {
        return Err(Stop::failed(
            "two believed at the same time that they held the lock",
        ));
    }
    let either = LostSignal::any([one.clone(), other.clone()]);
    let word = "word to one of two holders that it lost the lock";
    within(window, word, either.lost()).await?;
    Ok(())
}

/// What was taken away can't be released any more.
fn given_back(released: Result<(), LockError>) -> CaseResult {
    match released {
        Ok(()) | Err(LockError::Lost { .. } | LockError::NotHeld { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn a_loss_during_one_leaves_one_holder(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let [holder, second, third] = &clients[..] else {
        return Err(Stop::failed("the fixture made too few clients"));
    };
    for round in 0..ROUNDS {
        let believers = Believers::default();
        let lock = holder.lock("job")?;
        let guard = lock.acquire_with(&trial.patience()).await?;
        let signal = guard.lost_signal();
        believers.join(guard.owner(), &signal);
        let waiting = [
            waits(&trial, second, &believers).await?,
            waits(&trial, third, &believers).await?,
        ];
        if round % 2 == 0 {
            trial.take_away(lock.name()).await?;
        } else {
            let owner = guard.owner();
            let release = async {
                believers.leave(owner);
                guard.release().await
            };
            let (released, taken) = tokio::join!(release, trial.take_away(lock.name()));
            given_back(released)?;
            taken?;
        }
        for waiter in waiting {
            soon("every waiter's turn", waiter).await???;
        }
    }
    Ok(())
}

async fn a_waiter_that_was_given_up_is_not_granted_late(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let [holder, doomed, behind] = &clients[..] else {
        return Err(Stop::failed("the fixture made too few clients"));
    };
    let held = holder.lock("job")?.acquire().await?;
    let spy = Spy::on(doomed.backend());
    let lock = Lock::new(spy.clone(), "job")?;
    let tireless = trial.patience().with_max_failures(u32::MAX);
    let mut late = crate::spawn(async move { lock.acquire_with(&tireless).await });
    spy.contended(1).await?;
    let cut = trial.cut_off(doomed).await?;
    held.release().await?;
    let lock = behind.lock("job")?;
    let next = lock.acquire_with(&trial.patience()).await?;
    cut.now().await?;
    if let Ok(granted) = tokio::time::timeout(A_WHILE * 3, &mut late).await {
        let granted = granted??;
        if !next.is_lost() {
            let known = granted.is_lost();
            ensure_told(&trial, &granted.lost_signal(), known).await?;
        }
        drop(granted);
        next.release().await?;
        return Ok(());
    }
    next.release().await?;
    // Either its turn comes now, or its call ends with an error.
    let late: Result<Guard<_>, LockError> = soon("the end of the late wait", late).await??;
    drop(late);
    trial.ensure_free(behind, lock.name()).await
}
