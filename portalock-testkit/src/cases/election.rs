//! One of many leads: [`Election`] over the backend.

use std::{future::pending, time::Duration};

use portalock_core::{Election, FencingToken, LostSignal, Mode, Policy, Term, Tokens};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{Case, case};
use crate::{
    erased::AnyBackend,
    helper::Helper,
    section::Section,
    spy::Spy,
    trial::{Client, Trial, ensure_contended, name},
    verdict::{A_WHILE, CaseResult, SLACK, SOON, Stop, ensure, rounds, soon, within},
};

pub(super) const CASES: &[Case] = &[
    case!(election::at_most_one_leads, rules [1, 10], needs [],
        "of candidates on several clients at most one leads, and each term's token is larger than the one before"),
    case!(election::a_resigned_leader_is_followed_at_once, rules [4, 10], needs [],
        "when a leader resigns, or is dropped, a standby leads at once"),
    case!(election::a_crashed_leader_is_followed, rules [10], needs [CrashRelease, Crash],
        "when a leader's client crashes, a standby leads within the declared time"),
    case!(election::a_killed_leader_is_followed, rules [10], needs [BeyondProcess, Helper],
        "when a leader's process is killed, a standby leads within the declared time"),
    case!(election::work_stops_before_another_leads, rules [10], needs [LossNotice, TakeAway],
        "when a term is taken away, its leader knows, and its work has stopped, before another leads or within the time that the backend declares"),
    case!(election::a_cut_off_leader_stops_its_work, rules [10], needs [LossNotice, CrashRelease, CutOff],
        "the same for a leader that is cut off from the store"),
    case!(election::observers_see_every_term_in_order, rules [10], needs [Holders, Tokens, HolderTokens],
        "observers on other clients are told of every term in order; where the backend does not tell of changes, they never go back, and reach the last"),
    case!(election::an_observer_hears_of_a_crash, rules [10], needs [Holders, CrashRelease, Crash],
        "when a leader's client crashes and nobody else wants to lead, an observer is told that nobody leads"),
    case!(election::a_step_down_is_heard, rules [10], needs [Holders, Tokens, HolderTokens],
        "a leader that is asked to step down hears who asked, finishes first, and the next leader is not asked"),
];

const ELECTION: &str = "scheduler";

fn candidate(client: &Client, label: &str) -> CaseResult<Election<AnyBackend>> {
    Ok(Election::new(client.backend(), ELECTION)?.with_label(label))
}

type Standby = JoinHandle<CaseResult<Option<FencingToken>>>;

/// A candidate that waits to lead, known to have its place. It resigns as soon as it leads, and tells its token.
async fn standby(trial: &Trial, client: &Client) -> CaseResult<Standby> {
    let spy = Spy::on(client.backend());
    let election = Election::new(spy.clone(), ELECTION)?.with_policy(trial.patience());
    let waiting = crate::spawn(async move {
        let leadership = election.campaign().await?;
        leadership.ensure_held()?;
        let token = leadership.token();
        leadership.resign().await?;
        Ok(token)
    });
    spy.contended(1).await?;
    Ok(waiting)
}

async fn at_most_one_leads(trial: Trial) -> CaseResult {
    let clients = trial.clients(3).await?;
    let section = Section::of_a_lock();
    let (tell, mut terms) = mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for (number, client) in clients.iter().cycle().take(6).enumerate() {
        let election = candidate(client, &format!("candidate {number}"))?;
        let (election, section, tell) = (
            election.with_policy(trial.patience()),
            section.clone(),
            tell.clone(),
        );
        tasks.push(crate::spawn(async move {
            for _ in rounds(6) {
                let leadership = election.campaign().await?;
                ensure_contended(election.try_campaign().await, "a second candidate")?;
                section.visit(Mode::Exclusive).await;
                let _ = tell.send(leadership.token());
                leadership.resign().await?;
            }
            Ok::<_, Stop>(())
        }));
    }
    drop(tell);
    for task in tasks {
        soon("everybody's terms", task).await???;
    }
    section.ensure_never_crowded()?;
    let mut tokens = Vec::new();
    while let Some(token) = terms.recv().await {
        tokens.push(token);
    }
    ensure!(
        trial.capabilities().tokens == Tokens::None || tokens.is_sorted_by(|one, two| one < two),
        "the terms had the tokens {tokens:?}"
    );
    Ok(())
}

async fn a_resigned_leader_is_followed_at_once(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    for resigns in [true, false] {
        let election = candidate(&first, "first")?.with_policy(trial.patience());
        let leadership = election.campaign().await?;
        let waiting = standby(&trial, &second).await?;
        if resigns {
            leadership.resign().await?;
        } else {
            drop(leadership);
        }
        within(SLACK, "the term of a standby", waiting).await???;
    }
    Ok(())
}

async fn a_crashed_leader_is_followed(trial: Trial) -> CaseResult {
    let (doomed, other) = trial.two_clients().await?;
    let leadership = candidate(&doomed, "doomed")?.campaign().await?;
    let waiting = standby(&trial, &other).await?;
    trial.crash(&doomed).await?;
    is_followed(&trial, leadership.token(), waiting).await
}

async fn an_observer_hears_of_a_crash(trial: Trial) -> CaseResult {
    let (doomed, other) = trial.two_clients().await?;
    let _leadership = candidate(&doomed, "doomed")?.campaign().await?;
    let mut observer = candidate(&other, "other")?.observe();
    let first = soon("an observer's first word", observer.next()).await??;
    ensure!(
        first.is_some(),
        "somebody leads, and an observer sees nobody"
    );
    trial.crash(&doomed).await?;
    let limit = trial.crash_limit() + SOON;
    let word = "an observer's word that a crashed leader is gone";
    let next = within(limit, word, observer.next()).await??;
    ensure!(
        next.is_none(),
        "nobody leads after a crash, and an observer sees {next:?}"
    );
    Ok(())
}

async fn a_killed_leader_is_followed(trial: Trial) -> CaseResult {
    let client = trial.client().await?;
    let mut helper = Helper::start(&trial).await?;
    let token = helper.acquire(1, &name(ELECTION)?, Mode::Exclusive).await?;
    let waiting = standby(&trial, &client).await?;
    helper.kill().await?;
    is_followed(&trial, token, waiting).await
}

async fn is_followed(trial: &Trial, token: Option<FencingToken>, waiting: Standby) -> CaseResult {
    let next = within(trial.crash_limit(), "the term of a standby", waiting).await???;
    ensure!(
        trial.capabilities().tokens == Tokens::None || next > token,
        "the token {next:?} follows {token:?}"
    );
    Ok(())
}

async fn work_stops_before_another_leads(trial: Trial) -> CaseResult {
    let first = trial.client().await?;
    let its_trial = trial.clone();
    let taken = async move { its_trial.take_away(&name(ELECTION)?).await };
    let leads = Leads::start(&first).await?;
    leads.end(&trial, taken).await
}

async fn a_cut_off_leader_stops_its_work(trial: Trial) -> CaseResult {
    let first = trial.client().await?;
    let leads = Leads::start(&first).await?;
    let cut = trial.cut_off(&first).await?;
    leads.end(&trial, async { Ok(()) }).await?;
    cut.now().await?;
    Ok(())
}

/// A candidate at work, in its first term.
struct Leads {
    lost: LostSignal,
    /// Closed when the work is dropped.
    at_work: oneshot::Receiver<()>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<CaseResult>,
}

impl Leads {
    async fn start(client: &Client) -> CaseResult<Self> {
        // The pause prevents a new campaign during the check.
        let election = candidate(client, "first")?.with_pause(SOON * 4);
        let (stop, stopped) = oneshot::channel::<()>();
        let (begun, mut beginnings) = mpsc::unbounded_channel();
        let task = crate::spawn(async move {
            let stop = async { drop(stopped.await) };
            let work = |leading: portalock_core::Leading<AnyBackend>| {
                let (working, at_work) = oneshot::channel::<()>();
                let _ = begun.send((leading.lost_signal(), at_work));
                async move {
                    let _working = working;
                    pending::<()>().await;
                }
            };
            Ok(election.lead(stop, work).await?)
        });
        let begun = soon("the first term's work", beginnings.recv()).await?;
        let (lost, at_work) = begun.ok_or_else(|| Stop::failed("the candidate ended"))?;
        Ok(Self {
            lost,
            at_work,
            stop,
            task,
        })
    }

    /// Ends the term by `fault`, and looks what is left of its work when another leads.
    async fn end(self, trial: &Trial, fault: impl Future<Output = CaseResult>) -> CaseResult {
        let second = candidate(&trial.client().await?, "second")?.with_policy(trial.patience());
        fault.await?;
        let next = second.campaign().await?;
        // Read before anything else is awaited.
        let known = self.lost.is_lost();
        let window = trial.notice();
        ensure!(
            known || !window.is_zero(),
            "another led before the earlier leader knew that its term was over"
        );
        within(
            window.max(SLACK),
            "the end of an earlier term's work",
            self.at_work,
        )
        .await?
        .err();
        ensure!(
            self.lost.is_lost(),
            "the work ended, and its leader was not told"
        );
        next.resign().await?;
        let _ = self.stop.send(());
        soon("the end of a candidate that was stopped", self.task).await???;
        Ok(())
    }
}

/// Skips a backend whose `inspect` tells no token: observers can't tell terms apart there.
async fn ensure_tokens_are_told(client: &Client) -> CaseResult {
    let election = candidate(client, "probe")?;
    let leadership = election.campaign().await?;
    let seen = election.leader().await?;
    leadership.resign().await?;
    if seen.is_some_and(|term| term.token.is_none()) {
        let lack = "the backend does not tell the token of who holds";
        return Err(Stop::Skipped(lack.to_owned()));
    }
    Ok(())
}

/// What an observer was told, until it saw the leader who comes last.
async fn observe(
    client: Client,
    watching: oneshot::Sender<()>,
    last: &'static str,
) -> CaseResult<Vec<Term>> {
    let mut observer = candidate(&client, "observer")?.observe();
    let present = observer.next().await?;
    ensure!(
        present.is_none(),
        "nobody leads, and an observer was told of {present:?}"
    );
    let _ = watching.send(());
    let mut terms = Vec::new();
    loop {
        if let Some(term) = observer.next().await? {
            let is_last = term.leader.label.as_deref() == Some(last);
            terms.push(term);
            if is_last {
                return Ok(terms);
            }
        }
    }
}

async fn observers_see_every_term_in_order(trial: Trial) -> CaseResult {
    const LAST: &str = "the last";
    let clients = trial.clients(4).await?;
    let (candidates, watchers) = clients.split_at(2);
    ensure_tokens_are_told(&clients[0]).await?;
    let tells = {
        let watch = watchers[0].backend();
        let watch = portalock_core::LockBackend::watch(&watch, &name(ELECTION)?).await?;
        watch.is_some()
    };
    let mut observers = Vec::new();
    for client in watchers {
        let (watching, begun) = oneshot::channel();
        let observer = crate::spawn(observe(client.clone(), watching, LAST));
        soon("an observer's first word", begun).await?.ok();
        observers.push(observer);
    }
    let mut terms = Vec::new();
    let mut last = None;
    for (number, client) in candidates.iter().cycle().take(7).enumerate() {
        let label = match number {
            6 => LAST.to_owned(),
            _ => format!("term {number}"),
        };
        let election = candidate(client, &label)?.with_policy(trial.patience());
        let leadership = election.campaign().await?;
        terms.push((Some(label), leadership.token()));
        if number == 6 {
            last = Some(leadership);
        } else {
            leadership.resign().await?;
        }
    }
    for observer in observers {
        let told = soon("an observer's word of the last term", observer).await???;
        let told: Vec<_> = told
            .into_iter()
            .map(|term| (term.leader.label.as_deref().map(str::to_owned), term.token))
            .collect();
        let all_in_order = told.is_sorted_by(|(_, one), (_, two)| one < two)
            && told.iter().all(|term| terms.contains(term));
        ensure!(
            all_in_order && (!tells || told == terms),
            "the terms were {terms:?}, and an observer was told of {told:?}"
        );
    }
    if let Some(leadership) = last {
        leadership.resign().await?;
    }
    Ok(())
}

async fn a_step_down_is_heard(trial: Trial) -> CaseResult {
    let (first, second) = trial.two_clients().await?;
    ensure_tokens_are_told(&first).await?;
    let leadership = candidate(&first, "first")?.campaign().await?;
    let (finished, is_finished) = oneshot::channel();
    let leads = crate::spawn(async move {
        let asked = leadership.leading().step_down_asked().await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _ = finished.send(asked.label);
        leadership.resign().await?;
        Ok::<_, Stop>(())
    });
    let asker = candidate(&second, "asker")?;
    let patience = Policy::new().with_timeout(SOON);
    asker.step_down(&patience).await?;
    let mut is_finished = is_finished;
    let label = is_finished
        .try_recv()
        .map_err(|_| Stop::failed("the leader was followed before it had finished"))?;
    ensure!(
        label.as_deref() == Some("asker"),
        "the leader was asked by {label:?}, it was told"
    );
    soon("the first leader's end", leads).await???;
    asker.step_down(&patience).await?;
    let next = candidate(&second, "second")?.campaign().await?;
    let unasked = tokio::time::timeout(A_WHILE, next.leading().step_down_asked()).await;
    ensure!(
        unasked.is_err(),
        "a leader whom nobody asked was told of {unasked:?}"
    );
    next.resign().await?;
    Ok(())
}
