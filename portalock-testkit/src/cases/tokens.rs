//! A fencing token grows with every grant, for every owner and after every event.

use std::sync::{Arc, Mutex, PoisonError};

use portalock_core::{FencingToken, Guard, LockBackend, Mode};

use super::{Case, case};
use crate::{
    helper::Helper,
    trial::{Trial, name, once, once_shared, patient},
    verdict::{CaseResult, Stop, ensure, rounds, soon},
};

pub(super) const CASES: &[Case] = &[
    case!(
        tokens::grow_between_clients,
        rules[10],
        needs[Tokens],
        "each grant of a name carries a larger token than the one before, whichever client is granted"
    ),
    case!(
        tokens::grow_among_contenders,
        rules[10],
        needs[Tokens],
        "in the order in which contending tasks hold the lock, their tokens strictly grow"
    ),
    case!(tokens::grow_in_shared_mode, rules [10], needs [Tokens, Shared],
        "shared grants carry tokens too, each its own, and a writer's is larger than those of the readers before it"),
    case!(
        tokens::grow_when_the_name_was_forgotten,
        rules[10],
        needs[Tokens],
        "a name that was unused for a while, during which others were used, is granted with a larger token again"
    ),
    case!(
        tokens::grow_past_a_refused_attempt,
        rules[10],
        needs[Tokens],
        "attempts that are refused or withdrawn never make a later token smaller"
    ),
    case!(tokens::grow_across_a_crash, rules [10], needs [Tokens, CrashRelease, Crash],
        "the grant after a crash carries a larger token than the crashed holder's"),
    case!(tokens::grow_between_processes, rules [10], needs [Tokens, BeyondProcess, Helper],
        "tokens grow from one process to the next, also when the earlier one was killed"),
    case!(tokens::grow_across_a_restart, rules [10], needs [Tokens, Restart],
        "the grant after the service was restarted carries a larger token than those before"),
    case!(
        tokens::absent_unless_claimed,
        rules[10],
        needs[NoTokens],
        "a backend that claims no tokens grants without one"
    ),
];

/// The largest token so far. Refuses one that does not grow.
#[derive(Default)]
struct Highest(Option<FencingToken>);

impl Highest {
    fn grows(&mut self, token: Option<FencingToken>, whose: &str) -> CaseResult {
        let Some(token) = token else {
            return Err(Stop::Failed(format!(
                "{whose} was granted without a token, which the backend claims to give"
            )));
        };
        ensure!(
            self.0.is_none_or(|before| before < token),
            "{whose} was granted with token {token} after {:?}",
            self.0
        );
        self.0 = Some(token);
        Ok(())
    }

    async fn grows_with<B: LockBackend>(&mut self, guard: Guard<B>, whose: &str) -> CaseResult {
        self.grows(guard.token(), whose)?;
        guard.release().await?;
        Ok(())
    }
}

async fn grow_between_clients(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let (here, there) = (first.lock("job")?, second.lock("job")?);
    let mut highest = Highest::default();
    for _ in 0..10 {
        let guard = here.acquire_with(&patient()).await?;
        highest.grows_with(guard, "the first client").await?;
        let guard = there.acquire_with(&patient()).await?;
        highest.grows_with(guard, "the second client").await?;
    }
    Ok(())
}

async fn grow_among_contenders(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for client in clients.iter().cycle().take(6) {
        let (lock, order) = (client.lock("job")?, order.clone());
        tasks.push(crate::spawn(async move {
            for _ in rounds(8) {
                let guard = lock.acquire_with(&patient()).await?;
                order
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(guard.token());
                guard.release().await?;
            }
            Ok::<_, Stop>(())
        }));
    }
    for task in tasks {
        soon("everyone's turns", task).await???;
    }
    let mut highest = Highest::default();
    for token in order
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .drain(..)
    {
        highest.grows(token, "a contender")?;
    }
    Ok(())
}

async fn grow_in_shared_mode(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let mut highest = Highest::default();
    for _ in 0..3 {
        let (one, two) = (once_shared(&name), once_shared(&name));
        highest.grows(first.grant(&one).await?.token, "a reader")?;
        highest.grows(second.grant(&two).await?.token, "a reader beside another")?;
        first.free(&one).await?;
        second.free(&two).await?;
        let writer = once(&name);
        highest.grows(second.grant(&writer).await?.token, "a writer after readers")?;
        second.free(&writer).await?;
    }
    Ok(())
}

async fn grow_when_the_name_was_forgotten(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let mut highest = Highest::default();
    let guard = first.lock("job")?.acquire().await?;
    highest.grows_with(guard, "the first holder").await?;
    for other in 0..40 {
        let lock = second.lock(format!("other {other}"))?;
        lock.acquire().await?.release().await?;
    }
    soon("the end of close", first.backend().close()).await??;
    drop(first);
    let late = trial.client().await?;
    let guard = late.lock("job")?.acquire_with(&trial.patience()).await?;
    highest.grows_with(guard, "a client that came later").await
}

async fn grow_past_a_refused_attempt(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    let name = name("job")?;
    let mut highest = Highest::default();
    for _ in 0..5 {
        let held = once(&name);
        highest.grows(first.grant(&held).await?.token, "a holder")?;
        let refused = crate::trial::queued(&name);
        second.refused(&refused).await?;
        second.release(&refused).await?;
        second.refused(&once(&name)).await?;
        first.free(&held).await?;
    }
    Ok(())
}

async fn grow_across_a_crash(trial: Trial) -> CaseResult {
    let (doomed, client) = trial.two_clients().await?;
    let mut highest = Highest::default();
    let lost = doomed.lock("job")?.acquire().await?;
    highest.grows(lost.token(), "the holder that crashes")?;
    trial.crash(&doomed).await?;
    let guard = client.lock("job")?.acquire_with(&trial.patience()).await?;
    drop(lost);
    highest.grows_with(guard, "the holder after a crash").await
}

async fn grow_between_processes(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let name = name("job")?;
    let mut highest = Highest::default();
    let guard = client.lock(&name)?.acquire().await?;
    highest.grows_with(guard, "this process").await?;
    let mut helper = Helper::start(&trial).await?;
    let token = helper.acquire(1, &name, Mode::Exclusive).await?;
    highest.grows(token, "another process")?;
    helper.release(1).await?;
    let guard = client.lock(&name)?.acquire_with(&patient()).await?;
    highest.grows_with(guard, "this process again").await?;
    let token = helper.acquire(2, &name, Mode::Exclusive).await?;
    highest.grows(token, "a process that is then killed")?;
    helper.kill().await?;
    let guard = client.lock(&name)?.acquire_with(&trial.patience()).await?;
    highest.grows_with(guard, "whoever came after it").await
}

async fn grow_across_a_restart(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let mut highest = Highest::default();
    for _ in 0..3 {
        let guard = client.lock("job")?.acquire().await?;
        highest
            .grows_with(guard, "a holder before the restart")
            .await?;
    }
    trial.restart_service().await?;
    let late = trial.client().await?;
    let guard = late.lock("job")?.acquire_with(&trial.patience()).await?;
    highest
        .grows_with(guard, "a holder after the restart")
        .await
}

async fn absent_unless_claimed(trial: Trial) -> CaseResult {
    let guard = trial.client().await?.lock("job")?.acquire().await?;
    ensure!(
        guard.token().is_none(),
        "a grant carries {:?}, though the backend claims no tokens",
        guard.token()
    );
    guard.release().await?;
    Ok(())
}
