//! The backend: a session when it is needed, and the requests in it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, CrashRelease, Fairness,
    Inspect, Inspection, LockBackend, LockName, LockRequest, LossNotice, OwnerId, Released, Scope,
    Tokens, Wakeups, clock::Instant, wakeups,
};

use crate::{
    claims::Claims,
    config::{InvalidRedisSettings, RedisSettings},
    error::{failed, session_ended, unexpected},
    keys::{Keys, Kind, Named},
    scripts::{ACQUIRE, INSPECT, RELEASE},
    session::Session,
    wire::{Answer, SLOWEST_TICK, Wanted, inspection, recheck, text},
};

const ACQUIRING: &str = "acquire through Redis";
const RELEASING: &str = "release through Redis";
const INSPECTING: &str = "look at a lock in Redis";

/// How long a call waits after the first failed connection before it tries another; doubled with each.
const FIRST_RECONNECT: Duration = Duration::from_millis(50);
const LONGEST_RECONNECT: Duration = Duration::from_secs(2);

/// Locks and semaphores on a Redis server.
///
/// Cheap to clone: clones share one session, which is one connection, opened by the first call that needs it and shared by
/// all locks. When the session ends, everything held in it is lost, and the next call opens another. When the last clone
/// goes, guards included, the connection closes and the server frees what is left.
///
/// The session lives on the tokio runtime of the call that opened it, and ends with that runtime.
#[derive(Clone)]
pub struct RedisBackend(Arc<Inner>);

struct Inner {
    settings: RedisSettings,
    keys: Keys,
    sessions: String,
    claims: Arc<Claims>,
    current: Mutex<Option<Arc<Session>>>,
    opening: tokio::sync::Mutex<Opening>,
    failures: std::sync::atomic::AtomicU64,
}

/// What is known of sessions that are over, and of attempts to open one.
#[derive(Default)]
struct Opening {
    /// Sessions that the server may still think alive: the next one ends them.
    former: Vec<Arc<str>>,
    /// How many attempts in a row have failed, when the next may be made, and what came of the last.
    in_a_row: u32,
    not_before: Option<Instant>,
    last_error: Option<BackendError>,
}

impl RedisBackend {
    /// A backend for the server at `url`, connected.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the URL is none ([`Misconfigured`](BackendErrorKind::Misconfigured)), or the server can't be
    /// reached or can't keep locks.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        let settings = RedisSettings::new(url).map_err(|error| misconfigured(&error))?;
        Self::with_settings(settings).await
    }

    /// A backend with these settings, connected.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn with_settings(settings: RedisSettings) -> Result<Self, BackendError> {
        let backend = Self::new(settings);
        backend.session().await?;
        Ok(backend)
    }

    /// A backend that connects when it is first used.
    pub fn new(settings: RedisSettings) -> Self {
        let keys = Keys::new(settings.prefix().into());
        Self(Arc::new(Inner {
            sessions: keys.sessions(),
            keys,
            settings,
            claims: Arc::default(),
            current: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            failures: std::sync::atomic::AtomicU64::new(0),
        }))
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &RedisSettings {
        &self.0.settings
    }

    /// Asks the server to answer.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if it doesn't.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn ping(&self) -> Result<(), BackendError> {
        let mut connection = self.session().await?.connection()?;
        redis::cmd("PING")
            .query_async::<redis::Value>(&mut connection)
            .await
            .map(drop)
            .map_err(|error| failed("ping Redis", error))
    }

    /// The live session, opened if there is none.
    async fn session(&self) -> Result<Arc<Session>, BackendError> {
        match self.0.live() {
            Some(session) => Ok(session),
            // In a box of its own: it is large, and each call would carry room for it.
            None => Box::pin(self.open_session()).await,
        }
    }

    async fn open_session(&self) -> Result<Arc<Session>, BackendError> {
        use std::sync::atomic::Ordering;
        let inner = &*self.0;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BackendError::new(
                BackendErrorKind::Misconfigured,
                "Redis needs a tokio runtime: call from within one, or use the blocking facade",
            ));
        }
        let seen = inner.failures.load(Ordering::Acquire);
        let mut opening = inner.opening.lock().await;
        if let Some(session) = inner.live() {
            return Ok(session);
        }
        // Someone else has tried while this call stood in line: one answer serves all.
        if inner.failures.load(Ordering::Acquire) != seen
            && let Some(error) = &opening.last_error
        {
            return Err(error.clone());
        }
        if let Some(not_before) = opening.not_before {
            tokio::time::sleep_until(not_before).await;
        }
        if let Some(ended) = inner.take_current() {
            opening.former.push(ended.id().clone());
        }
        match Session::open(&inner.settings, &inner.keys, &inner.claims, &opening.former).await {
            Ok(session) => {
                tracing::debug!(session = %session.id(), "a session with Redis begins");
                *opening = Opening::default();
                *inner.current() = Some(session.clone());
                Ok(session)
            }
            Err(error) => {
                let pause = FIRST_RECONNECT
                    .saturating_mul(2_u32.saturating_pow(opening.in_a_row))
                    .min(LONGEST_RECONNECT);
                opening.in_a_row = opening.in_a_row.saturating_add(1);
                opening.not_before =
                    Instant::now().checked_add(pause.mul_f64(fastrand::f64() / 2.0 + 0.5));
                opening.last_error = Some(error.clone());
                inner.failures.fetch_add(1, Ordering::AcqRel);
                Err(error)
            }
        }
    }

    pub(crate) fn guarantees(&self) -> Capabilities {
        let settings = &self.0.settings;
        // A crash that closes the connection is noticed by the next tick of the queue's last waiter. What is declared
        // here holds for every crash: the machine's too, and that of everyone else in the queue at the same time.
        let crash = settings
            .lifetime()
            .saturating_add(settings.tick_interval().saturating_mul(SLOWEST_TICK));
        let loss = match settings.disconnect_grace() {
            Some(_) => LossNotice::BeforeSuccessor,
            None => LossNotice::Within(settings.lifetime()),
        };
        Capabilities::new(Scope::Network)
            .with_shared(true)
            .with_fairness(Fairness::FirstCome)
            .with_tokens(Tokens::Durable)
            .with_crash_release(CrashRelease::Within(crash))
            .with_loss(loss)
            .with_inspect(Inspect::HoldersAndWaiters)
    }

    pub(crate) async fn attempt(&self, wanted: &Wanted<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let claims = &self.0.claims;
        claims.expect(wanted.owner, session.id(), &wanted.named);
        let answer = self.ask(&session, wanted).await;
        // A grant may have come by message while the answer was under way, before the waiter listens.
        if let Some(grant) = claims.take_unheard(wanted.owner) {
            return Ok(Attempt::Granted(grant));
        }
        match answer {
            Ok(Answer::Granted(token)) => {
                session.confirm().await?;
                Ok(Attempt::Granted(claims.hold(
                    wanted.owner,
                    token,
                    &session.lost(),
                )))
            }
            Ok(Answer::Contended { behind, holder }) => {
                let contention = Contention::new().with_holder(holder);
                let Some(behind) = behind else {
                    claims.forget(wanted.owner);
                    return Ok(Attempt::Contended(contention));
                };
                let recheck = recheck(behind, self.0.settings.tick_interval());
                Ok(Attempt::Contended(
                    contention.with_queued(true).with_recheck_after(recheck),
                ))
            }
            Ok(Answer::Ended) => {
                session.end("the server no longer knows it");
                Err(session_ended(session.loss()))
            }
            Err(error) => {
                // Its claims may have been cleared before this one was added.
                if session.loss().is_some() {
                    claims.forget(wanted.owner);
                }
                Err(error)
            }
        }
    }

    async fn ask(&self, session: &Session, wanted: &Wanted<'_>) -> Result<Answer, BackendError> {
        let Inner {
            keys,
            sessions,
            settings,
            ..
        } = &*self.0;
        let keys = keys.of(&wanted.named);
        let answer = session
            .call(
                ACQUIRING,
                &ACQUIRE,
                &[&keys.state, &keys.queue, &keys.waiters, session.key()],
                &[
                    sessions,
                    session.id(),
                    &wanted.owner.to_string(),
                    &wanted.weight.to_string(),
                    &wanted.capacity.to_string(),
                    if wanted.queues { "1" } else { "0" },
                    &wanted.who(settings.label()),
                ],
            )
            .await?;
        Answer::of(&answer).ok_or_else(|| unexpected(ACQUIRING))
    }

    pub(crate) async fn withdraw(
        &self,
        kind: Kind,
        name: &LockName,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let inner = &*self.0;
        if !inner.has_sessions().await {
            return Ok(Released::NotHeld);
        }
        let session = self.session().await?;
        let keys = inner.keys.of(&Named {
            kind,
            name: name.clone(),
        });
        inner.claims.releasing(owner);
        let answer = session
            .call(
                RELEASING,
                &RELEASE,
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&inner.sessions, &owner.to_string()],
            )
            .await?;
        inner.claims.forget(owner);
        match text(&answer) {
            Some("1") => Ok(Released::Freed),
            Some("0") => Ok(Released::NotHeld),
            _ => Err(unexpected(RELEASING)),
        }
    }

    /// The line on which a grant comes to a waiter.
    pub(crate) fn listen(&self, owner: OwnerId) -> Wakeups {
        self.0.claims.listen(owner).unwrap_or_else(|| {
            // Its session has ended since the attempt, and the place in the queue with it.
            let (sender, line) = wakeups();
            sender.fail(session_ended(None));
            line
        })
    }

    pub(crate) async fn look(
        &self,
        kind: Kind,
        name: &LockName,
    ) -> Result<Inspection, BackendError> {
        let keys = self.0.keys.of(&Named {
            kind,
            name: name.clone(),
        });
        let answer = self
            .session()
            .await?
            .call(
                INSPECTING,
                &INSPECT,
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&self.0.sessions],
            )
            .await?;
        redis::from_redis_value(answer)
            .ok()
            .and_then(|answer: Vec<String>| inspection(kind, &answer))
            .ok_or_else(|| unexpected(INSPECTING))
    }

    pub(crate) async fn end_session(&self) -> Result<(), BackendError> {
        let Some(session) = self.0.take_current() else {
            return Ok(());
        };
        let closed = session.close(&self.0.keys, &self.0.claims).await;
        if closed.is_err() {
            let mut opening = self.0.opening.lock().await;
            opening.former.push(session.id().clone());
        }
        closed
    }
}

impl Inner {
    fn current(&self) -> std::sync::MutexGuard<'_, Option<Arc<Session>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_current(&self) -> Option<Arc<Session>> {
        self.current().take()
    }

    fn live(&self) -> Option<Arc<Session>> {
        self.current()
            .as_ref()
            .filter(|session| session.loss().is_none())
            .cloned()
    }

    /// Whether the server can know of anything that this object has asked for.
    async fn has_sessions(&self) -> bool {
        self.current().is_some() || !self.opening.lock().await.former.is_empty()
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

fn misconfigured(error: &InvalidRedisSettings) -> BackendError {
    BackendError::new(BackendErrorKind::Misconfigured, error.to_string())
}

#[async_trait]
impl LockBackend for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        self.guarantees()
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.attempt(&Wanted::lock(request)).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.withdraw(Kind::Lock, &request.name, request.owner)
            .await
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(Some(self.listen(request.owner)))
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.look(Kind::Lock, name).await
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        const WHAT: &str = "list the locks in Redis";
        let session = self.session().await?;
        let mut connection = session.connection()?;
        let mut names = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let (next, found): (String, Vec<String>) = redis::cmd("SCAN")
                .arg(&cursor)
                .arg("MATCH")
                .arg(self.0.keys.lock_pattern())
                .arg("COUNT")
                .arg(1000)
                .query_async(&mut connection)
                .await
                .map_err(|error| failed(WHAT, error))?;
            // A state outlives its last grant for a while: only a look tells.
            for name in found.iter().filter_map(|key| self.0.keys.lock_name(key)) {
                let found = self.look(Kind::Lock, &name).await?;
                if found.held || !found.waiters.is_empty() {
                    names.push(name);
                }
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        names.sort_unstable();
        // A scan may come by the same key twice.
        names.dedup();
        Ok(names)
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.end_session().await
    }
}
