//! The cases: the promise that each tests, what it needs, and its code.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::{trial::Trial, verdict::CaseResult};

mod breaking;
mod cancellation;
mod composite;
mod crash;
mod election;
mod exclusive;
mod fairness;
mod given_up;
mod hand_over;
mod inspect;
mod loss;
mod names;
mod release;
mod runtime;
mod semaphore;
mod semaphore_faults;
mod semaphore_waits;
mod shared;
mod stress;
mod timeout;
mod tokens;

pub(crate) use stress::stress_time;

/// One promise, and its test.
pub struct Case {
    group: &'static str,
    name: &'static str,
    proves: &'static str,
    rules: &'static [u8],
    needs: &'static [Need],
    play: fn(Trial) -> BoxFuture<'static, CaseResult>,
}

/// A requirement of a case. A case is skipped if one is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// The backend claims shared locks.
    Shared,
    /// The backend does not claim shared locks.
    NoShared,
    /// The backend claims fencing tokens.
    Tokens,
    /// The backend does not claim fencing tokens.
    NoTokens,
    /// The backend claims that `inspect` returns the holders.
    Holders,
    /// The backend claims that `inspect` also returns the waiters.
    Waiters,
    /// The backend does not claim `inspect`.
    NoInspect,
    /// The backend claims an order at least among the waiters of one client.
    Order,
    /// The backend claims first come, first served among all clients.
    FirstCome,
    /// The backend claims that a crashed holder's lock passes on.
    CrashRelease,
    /// The backend claims that a holder learns of a loss.
    LossNotice,
    /// The backend claims that a lock can be taken away from its holder.
    Breaks,
    /// The backend does not claim that.
    NoBreaks,
    /// The backend claims to release at once, without waiting.
    ReleasesNow,
    /// The backend's locks reach beyond the process.
    BeyondProcess,
    /// The fixture provides semaphores.
    Semaphore,
    /// The fixture provides semaphores that are first come, first served.
    FairSemaphore,
    /// The fixture's semaphores claim that a crashed holder's permits pass on.
    PermitCrashRelease,
    /// The fixture's semaphores claim that a holder learns of a loss.
    PermitLossNotice,
    /// The fixture can crash a client.
    Crash,
    /// The fixture can cut a client off.
    CutOff,
    /// The fixture can lose what the store answers to a client.
    LoseAnswers,
    /// The fixture can let a client's requests arrive after its later ones.
    DelayRequests,
    /// The fixture can put another store at the store's address.
    MoveStore,
    /// The fixture can stall the service.
    Stall,
    /// The fixture can restart the service.
    Restart,
    /// The fixture can take a lock away.
    TakeAway,
    /// The backend lists its names. Its answer shows this, because there is no capability for it.
    Listing,
    /// The backend returns the holder's token. Its answer shows this, because there is no capability for it.
    HolderTokens,
    /// There is a helper process, and the fixture has an address for it.
    Helper,
}

impl Case {
    /// The group that the case belongs to.
    pub const fn group(&self) -> &'static str {
        self.group
    }

    /// The case's name within its group.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The case's full name: `group::name`.
    pub fn id(&self) -> String {
        format!("{}::{}", self.group, self.name)
    }

    /// The promise that it tests, in a sentence.
    pub const fn proves(&self) -> &'static str {
        self.proves
    }

    /// Which of [`LockBackend`](portalock_core::LockBackend#for-implementers)'s rules it tests, by number.
    pub const fn rules(&self) -> &'static [u8] {
        self.rules
    }

    /// Its requirements.
    pub const fn needs(&self) -> &'static [Need] {
        self.needs
    }

    pub(crate) fn play(&self, trial: Trial) -> BoxFuture<'static, CaseResult> {
        (self.play)(trial)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("id", &self.id())
            .field("proves", &self.proves)
            .finish_non_exhaustive()
    }
}

/// A row of a group's table of cases.
macro_rules! case {
    ($group:ident::$name:ident, rules $rules:expr, needs [$($need:ident),*], $proves:literal) => {
        $crate::cases::Case {
            group: stringify!($group),
            name: stringify!($name),
            proves: $proves,
            rules: &$rules,
            needs: &[$($crate::cases::Need::$need),*],
            play: |trial| Box::pin($name(trial)),
        }
    };
}
use case;

const GROUPS: &[&[Case]] = &[
    exclusive::CASES,
    shared::CASES,
    timeout::CASES,
    cancellation::CASES,
    release::CASES,
    loss::CASES,
    hand_over::CASES,
    breaking::CASES,
    crash::CASES,
    tokens::CASES,
    names::CASES,
    inspect::CASES,
    fairness::CASES,
    semaphore::CASES,
    semaphore_waits::CASES,
    semaphore_faults::CASES,
    composite::CASES,
    runtime::CASES,
    election::CASES,
    stress::CASES,
];

/// Every case, in the order of the report.
pub fn all() -> impl Iterator<Item = &'static Case> {
    GROUPS.iter().copied().flatten()
}

/// The case of this full name, `group::name`.
pub fn find(id: &str) -> Option<&'static Case> {
    let (group, name) = id.split_once("::")?;
    all().find(|case| case.group == group && case.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let ids: HashSet<String> = all().map(Case::id).collect();
        assert_eq!(ids.len(), all().count());
        assert!(ids.len() >= 45, "only {} cases", ids.len());
        for id in &ids {
            assert!(find(id).is_some(), "{id}");
        }
    }

    #[test]
    fn every_rule_of_the_contract_has_a_case() {
        for rule in 1..=12 {
            assert!(
                all().any(|case| case.rules().contains(&rule)),
                "rule {rule} of LockBackend is tested by no case"
            );
        }
    }

    #[test]
    fn a_promise_is_one_sentence() {
        for case in all() {
            let proves = case.proves();
            assert!(
                !proves.is_empty() && !proves.ends_with('.'),
                "{}",
                case.id()
            );
        }
    }
}
