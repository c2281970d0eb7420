//! The tools of a case: a new store, its clients, and steps that most cases share.

use std::{sync::Arc, time::Duration};

use portalock_core::{
    Attempt, Capabilities, CrashRelease, Fairness, Grant, Inspect, Lock, LockBackend, LockError,
    LockName, LockRequest, LossNotice, Mode, Patience, Policy, Pool, Released, Scope, Semaphore,
    Tokens,
};

use crate::{
    HelperCommand, Restore,
    cases::{Case, Need},
    erased::{AnyBackend, AnyClient, AnyFixture, AnySemaphore},
    verdict::{CaseResult, SLACK, SOON, Stop, ensure, soon},
};

/// One run of a case on a new store. Clones are the same run.
#[derive(Clone)]
pub(crate) struct Trial(Arc<Inner>);

struct Inner {
    fixture: Box<dyn AnyFixture>,
    capabilities: Capabilities,
    /// The capabilities of the semaphores, if the fixture provides them.
    counting: Option<Capabilities>,
    helper: Option<HelperCommand>,
}

/// One client of the store. Clones are the same client.
#[derive(Clone)]
pub(crate) struct Client(AnyClient);

impl Trial {
    /// Prepares a new store for `case`, or returns what is missing for it.
    pub(crate) async fn new(
        fixture: Box<dyn AnyFixture>,
        helper: Option<HelperCommand>,
        case: &Case,
    ) -> CaseResult<Self> {
        let client = fixture.client().await?;
        let trial = Self(Arc::new(Inner {
            capabilities: client.locks.capabilities(),
            counting: client.semaphore.map(|semaphore| semaphore.capabilities()),
            fixture,
            helper,
        }));
        for need in case.needs() {
            if let Some(lack) = trial.lack(*need) {
                return Err(Stop::Skipped(lack.to_owned()));
            }
        }
        Ok(trial)
    }

    /// What the capabilities lack for `need`. What the fixture lacks shows when its methods are called.
    fn lack(&self, need: Need) -> Option<&'static str> {
        let claims = self.capabilities();
        let counting = self.0.counting.as_ref();
        let (met, lack) = match need {
            Need::Shared => (claims.shared, "the backend does not claim shared locks"),
            Need::NoShared => (!claims.shared, "the backend claims shared locks"),
            Need::Tokens => (
                claims.tokens != Tokens::None,
                "the backend does not claim fencing tokens",
            ),
            Need::NoTokens => (
                claims.tokens == Tokens::None,
                "the backend claims fencing tokens",
            ),
            Need::Holders => (
                claims.inspect >= Inspect::Holders,
                "the backend does not claim to know who holds",
            ),
            Need::Waiters => (
                claims.inspect >= Inspect::HoldersAndWaiters,
                "the backend does not claim to know who waits",
            ),
            Need::NoInspect => (
                claims.inspect == Inspect::None,
                "the backend claims to know who holds",
            ),
            Need::Order => (
                claims.fairness != Fairness::None,
                "the backend does not claim any order among waiters",
            ),
            Need::FirstCome => (
                claims.fairness == Fairness::FirstCome,
                "the backend does not claim first come, first served among all clients",
            ),
            Need::CrashRelease => (
                matches!(claims.crash_release, CrashRelease::Within(_)),
                "the backend's locks live and die with the process",
            ),
            Need::LossNotice => (
                claims.loss != LossNotice::Never,
                "the backend does not claim to notice a loss",
            ),
            Need::Breaks => (
                claims.breaks,
                "the backend does not claim a way to break a lock",
            ),
            Need::NoBreaks => (!claims.breaks, "the backend claims a way to break a lock"),
            Need::ReleasesNow => (
                claims.releases_now,
                "the backend does not claim to release at once",
            ),
            Need::BeyondProcess => (
                claims.scope != Scope::Process,
                "the backend's locks end at the process",
            ),
            Need::Semaphore => (
                counting.is_some(),
                "the fixture does not provide semaphores",
            ),
            Need::FairSemaphore => (
                counting.is_some_and(|claims| claims.fairness == Fairness::FirstCome),
                "the fixture does not provide semaphores that are first come, first served",
            ),
            Need::PermitCrashRelease => (
                counting
                    .is_some_and(|claims| matches!(claims.crash_release, CrashRelease::Within(_))),
                "the fixture's semaphores don't claim that the permits of a crashed holder pass on",
            ),
            Need::PermitLossNotice => (
                counting.is_some_and(|claims| claims.loss != LossNotice::Never),
                "the fixture's semaphores don't claim to notice a loss",
            ),
            Need::Listing
            | Need::HolderTokens
            | Need::Crash
            | Need::CutOff
            | Need::LoseAnswers
            | Need::DelayRequests
            | Need::MoveStore
            | Need::Stall
            | Need::Restart
            | Need::TakeAway
            | Need::Helper => return None,
        };
        (!met).then_some(lack)
    }

    /// The backend's capabilities.
    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// A new client, independent of the others.
    pub(crate) async fn client(&self) -> CaseResult<Client> {
        Ok(Client(self.0.fixture.client().await?))
    }

    pub(crate) async fn two_clients(&self) -> CaseResult<(Client, Client)> {
        Ok((self.client().await?, self.client().await?))
    }

    pub(crate) async fn clients(&self, count: usize) -> CaseResult<Vec<Client>> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(self.client().await?);
        }
        Ok(clients)
    }

    pub(crate) async fn crash(&self, client: &Client) -> CaseResult {
        Ok(self.0.fixture.crash(&client.0).await?)
    }

    pub(crate) async fn cut_off(&self, client: &Client) -> CaseResult<Restore> {
        Ok(self.0.fixture.cut_off(&client.0).await?)
    }

    pub(crate) async fn lose_answers(&self, client: &Client) -> CaseResult<Restore> {
        Ok(self.0.fixture.lose_answers(&client.0).await?)
    }

    pub(crate) async fn delay_requests(&self, client: &Client) -> CaseResult<Restore> {
        Ok(self.0.fixture.delay_requests(&client.0).await?)
    }

    pub(crate) async fn move_store(&self) -> CaseResult {
        Ok(self.0.fixture.move_store().await?)
    }

    pub(crate) async fn stall_service(&self) -> CaseResult<Restore> {
        Ok(self.0.fixture.stall_service().await?)
    }

    pub(crate) async fn restart_service(&self) -> CaseResult {
        Ok(self.0.fixture.restart_service().await?)
    }

    pub(crate) async fn take_away(&self, name: &LockName) -> CaseResult {
        Ok(self.0.fixture.take_away(name).await?)
    }

    /// Runs the common path on every form of the backend, each with its own type.
    pub(crate) async fn every_form(&self) -> CaseResult {
        self.0.fixture.every_form().await
    }

    pub(crate) fn helper(&self) -> Option<&HelperCommand> {
        self.0.helper.as_ref()
    }

    pub(crate) fn address(&self) -> Option<String> {
        self.0.fixture.address()
    }

    /// The time within which a crashed holder's lock must pass on: what the backend declares, plus what a slow machine
    /// may add.
    pub(crate) fn crash_limit(&self) -> Duration {
        crash_limit(self.capabilities())
    }

    /// How soon after the successor's grant an earlier holder must know of its loss. Zero means before the grant.
    pub(crate) fn notice(&self) -> Duration {
        notice(self.capabilities())
    }

    /// The time within which all waiters for a crashed or lost holder must be served, even if the backend declares
    /// nothing.
    pub(crate) fn patience(&self) -> Policy {
        Policy::new().with_timeout(SOON + self.crash_limit())
    }

    /// Checks that `client` can acquire `name` soon, and that nothing is left after its release.
    pub(crate) async fn ensure_free(&self, client: &Client, name: &LockName) -> CaseResult {
        let lock = client.lock(name)?;
        match lock.acquire_with(&patient()).await {
            Ok(guard) => guard.release().await?,
            Err(error @ LockError::Timeout { .. }) => {
                return Err(Stop::Failed(format!(
                    "nobody should hold it any more: {}",
                    crate::verdict::chain(&error)
                )));
            }
            Err(error) => return Err(error.into()),
        }
        if self.capabilities().inspect >= Inspect::HoldersAndWaiters {
            let emptied = async {
                loop {
                    let seen = lock.inspect().await?;
                    if !seen.held && seen.waiters.is_empty() {
                        return Ok::<_, LockError>(());
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            soon("the last holder or waiter leaving", emptied).await??;
        }
        Ok(())
    }
}

impl Client {
    /// The backend, for code that is generic over backends.
    pub(crate) fn backend(&self) -> AnyBackend {
        self.0.locks.clone()
    }

    pub(crate) fn semaphore(&self) -> CaseResult<AnySemaphore> {
        self.0
            .semaphore
            .clone()
            .ok_or_else(|| Stop::Skipped("the fixture does not provide semaphores".to_owned()))
    }

    pub(crate) fn lock(&self, name: impl AsRef<str>) -> CaseResult<Lock<AnyBackend>> {
        Ok(Lock::new(self.backend(), name)?.with_policy(patient()))
    }

    pub(crate) fn pool(
        &self,
        name: impl AsRef<str>,
        capacity: u32,
    ) -> CaseResult<Pool<AnySemaphore>> {
        Ok(Pool::new(self.semaphore()?, name, capacity)?.with_policy(patient()))
    }

    /// Makes one attempt for the owner of `request`.
    pub(crate) async fn attempt(&self, request: &LockRequest) -> CaseResult<Attempt> {
        let attempt = soon(
            "the answer to an attempt",
            self.0.locks.try_acquire(request),
        )
        .await?;
        Ok(attempt?)
    }

    /// Makes one attempt that must be granted.
    pub(crate) async fn grant(&self, request: &LockRequest) -> CaseResult<Grant> {
        match self.attempt(request).await? {
            Attempt::Granted(grant) => Ok(grant),
            Attempt::Contended(contention) => Err(Stop::Failed(format!(
                "{} {} was refused while nobody was in the way: {contention:?}",
                request.demand, request.name
            ))),
        }
    }

    /// Makes one attempt that must be refused.
    pub(crate) async fn refused(&self, request: &LockRequest) -> CaseResult {
        match self.attempt(request).await? {
            Attempt::Contended(_) => Ok(()),
            Attempt::Granted(_) => Err(Stop::Failed(format!(
                "{} {} was granted while somebody was in the way",
                request.demand, request.name
            ))),
        }
    }

    /// Makes attempts for the owner of `request` until it is granted.
    pub(crate) async fn granted_soon(&self, request: &LockRequest) -> CaseResult<Grant> {
        let granted = async {
            loop {
                if let Attempt::Granted(grant) = self.attempt(request).await? {
                    return Ok(grant);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon(format!("a grant of {}", request.name), granted).await?
    }

    pub(crate) async fn release(&self, request: &LockRequest) -> CaseResult<Released> {
        let released = soon("the answer to a release", self.0.locks.release(request)).await?;
        Ok(released?)
    }

    /// Releases a lock that must have been held.
    pub(crate) async fn free(&self, request: &LockRequest) -> CaseResult {
        let released = self.release(request).await?;
        ensure!(
            released == Released::Freed,
            "releasing a holder of {} answered {released:?}",
            request.name
        );
        Ok(())
    }
}

/// See [`Trial::crash_limit`].
pub(crate) fn crash_limit(claims: &Capabilities) -> Duration {
    match claims.crash_release {
        CrashRelease::Within(bound) => bound + SLACK,
        _ => SLACK,
    }
}

/// See [`Trial::notice`].
pub(crate) fn notice(claims: &Capabilities) -> Duration {
    match claims.loss {
        LossNotice::Within(window) => window + SLACK,
        _ => Duration::ZERO,
    }
}

/// A valid name.
pub(crate) fn name(text: &str) -> CaseResult<LockName> {
    Ok(LockName::new(text)?)
}

/// A request of a new owner for the exclusive lock, which does not wait.
pub(crate) fn once(name: &LockName) -> LockRequest {
    LockRequest::new(name.clone(), Mode::Exclusive, Patience::Once)
}

/// The same for a shared lock.
pub(crate) fn once_shared(name: &LockName) -> LockRequest {
    LockRequest::new(name.clone(), Mode::Shared, Patience::Once)
}

/// A request of a new owner for the exclusive lock, which waits.
pub(crate) fn queued(name: &LockName) -> LockRequest {
    LockRequest::new(name.clone(), Mode::Exclusive, Patience::Queue)
}

/// The same for a shared lock.
pub(crate) fn queued_shared(name: &LockName) -> LockRequest {
    LockRequest::new(name.clone(), Mode::Shared, Patience::Queue)
}

/// A policy with the longest timeout of a case.
pub(crate) fn patient() -> Policy {
    Policy::new().with_timeout(SOON)
}

/// A policy that tries often, for cases with little time or with much contention.
pub(crate) fn eager() -> CaseResult<Policy> {
    patient()
        .with_first_check(Duration::from_millis(1))
        .and_then(|policy| policy.with_check_interval(Duration::from_millis(4)))
        .map_err(|error| Stop::failed(error.to_string()))
}

/// An acquisition that must fail with contention.
pub(crate) fn ensure_contended<G>(
    acquired: Result<G, LockError>,
    who: &str,
) -> CaseResult<LockError> {
    match acquired {
        Err(error) if error.is_contention() => Ok(error),
        Err(error) => Err(error.into()),
        Ok(_) => Err(Stop::Failed(format!(
            "{who} was granted while somebody was in the way"
        ))),
    }
}
