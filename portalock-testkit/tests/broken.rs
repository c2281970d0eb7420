//! The suite on backends that are broken: each must fail its case, and for its own reason.

use std::{collections::BTreeSet, sync::mpsc, thread, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, Capabilities, Lease, LockBackend, LockRequest, LossNotice, LostSignal,
    PermitRequest, Semaphore,
};
use portalock_testkit::{
    CaseReport, Outcome, Suite,
    broken::{self, Flaw, FlawedStore, Flawless, Sound, Specimen},
    cases::{self, Need},
    conformance,
};

/// The backend that all flaws are built into has none of its own, in any case of the suite.
mod flawless {
    use super::*;

    conformance!(FlawedStore::new(Flawless));
}

/// More than any of these cases takes: a case that hangs has not said what it saw.
const LIMIT: Duration = Duration::from_secs(50);

fn play(suite: Suite, specimen: &Specimen) -> Result<CaseReport, String> {
    let case = cases::find(specimen.caught_by())
        .ok_or_else(|| format!("the suite has no case {}", specimen.caught_by()))?;
    Ok(suite.with_limit(LIMIT).run_case(case))
}

/// What is wrong with how the suite treats this broken backend, if anything.
fn verdict(specimen: &Specimen) -> Result<(), String> {
    match play(specimen.control(), specimen)?.outcome {
        Outcome::Passed => {}
        other => return Err(format!("a backend without the flaw: {other:?}")),
    }
    match play(specimen.suite(), specimen)?.outcome {
        Outcome::Failed { reason } if reason.contains(specimen.seen()) => Ok(()),
        Outcome::Failed { reason } => Err(format!(
            "it failed for another reason than `{}`: {reason}",
            specimen.seen()
        )),
        other => Err(format!("it was not caught: {other:?}")),
    }
}

/// Most of the time is spent waiting for what a broken backend never does, so all wait together.
#[test]
fn every_broken_backend_fails_its_case_and_a_correct_one_passes() {
    let (tell, told) = mpsc::channel();
    for specimen in broken::all() {
        let tell = tell.clone();
        thread::spawn(move || tell.send((specimen, verdict(specimen))));
    }
    drop(tell);
    let mut wrong = Vec::new();
    for (specimen, verdict) in told {
        match verdict {
            Ok(()) => println!("caught  {}: {}", specimen.name(), specimen.wrong()),
            Err(problem) => wrong.push(format!(
                "{} ({}), which {}:\n    {problem}",
                specimen.name(),
                specimen.caught_by(),
                specimen.wrong()
            )),
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// What is refused before any backend is asked, so that no backend can fail it.
const DECIDED_BY_THE_ENGINE: &str = "semaphore::more_than_there_are_is_refused";

/// A case that no broken backend fails may be one that tests nothing.
#[test]
fn every_case_is_failed_by_some_broken_backend() {
    let (tell, told) = mpsc::channel();
    for case in cases::all() {
        let id = case.id();
        // No other process reaches these stores.
        if case.needs().contains(&Need::Helper) || id == DECIDED_BY_THE_ENGINE {
            continue;
        }
        let tell = tell.clone();
        thread::spawn(move || {
            let (its_own, others): (Vec<_>, Vec<_>) =
                broken::all().partition(|specimen| specimen.caught_by() == id);
            let failed = its_own.into_iter().chain(others).any(|specimen| {
                let suite = specimen.suite().with_limit(LIMIT);
                suite.run_case(case).is_failure()
            });
            tell.send((id, failed))
        });
    }
    drop(tell);
    let useless: Vec<_> = told
        .into_iter()
        .filter_map(|(id, failed)| (!failed).then_some(id))
        .collect();
    assert!(useless.is_empty(), "nothing fails these: {useless:?}");
}

#[test]
fn there_are_enough_of_them_and_no_two_alike() {
    let names: BTreeSet<_> = broken::all().map(Specimen::name).collect();
    assert_eq!(names.len(), broken::all().count(), "two have one name");
    assert!(names.len() >= 22);
}

/// Not wrong: its semaphores claim less than its locks. A holder of permits is never told of a loss.
#[derive(Debug)]
struct ClaimsLessForPermits;

#[async_trait]
impl Flaw for ClaimsLessForPermits {
    fn claims_permits(&self, sound: &Sound) -> Capabilities {
        self.claims(sound).with_loss(LossNotice::Never)
    }

    async fn try_acquire_permits(
        &self,
        sound: &Sound,
        request: &PermitRequest,
    ) -> Result<Attempt, BackendError> {
        Ok(match Semaphore::try_acquire(sound, request).await? {
            Attempt::Granted(grant) => Attempt::Granted(grant.with_lost(LostSignal::never())),
            contended @ Attempt::Contended(_) => contended,
        })
    }
}

#[test]
fn semaphores_are_held_to_their_own_claims() {
    let suite = Suite::new(|| async { FlawedStore::new(ClaimsLessForPermits) });
    let case = cases::find("semaphore::a_cut_off_holder_is_told").unwrap();
    let report = suite.run_case(case);
    assert!(
        matches!(report.outcome, Outcome::Skipped { .. }),
        "{report}"
    );
}

/// Not wrong: it tells of a loss a moment later, as it claims.
#[derive(Debug)]
struct TellsLaterAsItClaims;

#[async_trait]
impl Flaw for TellsLaterAsItClaims {
    fn claims(&self, sound: &Sound) -> Capabilities {
        LockBackend::capabilities(sound).with_loss(LossNotice::Within(Duration::from_secs(1)))
    }

    async fn try_acquire(
        &self,
        sound: &Sound,
        request: &LockRequest,
    ) -> Result<Attempt, BackendError> {
        let attempt = LockBackend::try_acquire(sound, request).await?;
        let Attempt::Granted(grant) = attempt else {
            return Ok(attempt);
        };
        let (early, late) = (grant.lost.clone(), Lease::unbounded());
        let signal = late.signal();
        tokio::spawn(async move {
            let loss = early.lost().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            late.end(loss);
        });
        Ok(Attempt::Granted(grant.with_lost(signal)))
    }
}

#[test]
fn a_loss_may_be_told_as_late_as_was_claimed_also_when_a_client_is_closed() {
    let suite = Suite::new(|| async { FlawedStore::new(TellsLaterAsItClaims) });
    let case = cases::find("release::a_closed_client_starts_anew").unwrap();
    let report = suite.run_case(case);
    assert_eq!(report.outcome, Outcome::Passed, "{report}");
}
