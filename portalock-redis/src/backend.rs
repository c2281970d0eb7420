//! The backend: a session when it is needed, and the requests in it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, CrashRelease, Fairness,
    Holder, HolderWatch, Inspect, Inspection, LockBackend, LockName, LockRequest, Loss, LossNotice,
    OwnerId, Released, Scope, Tokens, Wakeups, session::Sessions, wakeups,
};

use crate::{
    calls::{Answered, Call, Calls},
    claims::Claims,
    config::{InvalidRedisSettings, RedisSettings},
    error::{failed, session_ended, unexpected},
    keys::{Keys, Kind, Named},
    refresh::{confirm, forgotten},
    route::Route,
    scripts::{ACQUIRE, INSPECT, RELEASE, RESUME},
    session::Session,
    wire::{Answer, SLOWEST_TICK, Stamp, Wanted, inspection, recheck, text},
};

const ACQUIRING: &str = "acquire through Redis";
const RELEASING: &str = "release through Redis";
const INSPECTING: &str = "look at a lock in Redis";

/// How often an attempt is sent with a stamp that another call has made void meanwhile.
const STALE_ATTEMPTS: usize = 10;

/// Locks and semaphores on a Redis server.
///
/// Cheap to clone: clones share one session, opened by the first call that needs it and shared by all locks. The session lives
/// on a thread of the library's own, so it depends on no runtime: a backend can be shared by many, and each has a
/// connection of its own for its calls. When the session ends, everything held in it is lost, and the next call opens
/// another. When the last clone goes, guards included, the session is closed and the server frees what is left.
#[derive(Clone)]
pub struct RedisBackend(Arc<Inner>);

struct Inner {
    settings: Arc<RedisSettings>,
    route: Arc<Route>,
    keys: Keys,
    /// What the key of every session begins with.
    prefix: String,
    claims: Arc<Claims>,
    sessions: Sessions<Session>,
    calls: Calls,
}

impl RedisBackend {
    /// A backend for the server at `url`, connected. A server that has just started or been promoted is waited for: see
    /// [`restart_wait`](RedisSettings::with_restart_wait).
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
        let settings = Arc::new(settings);
        let route = Arc::new(Route::new(settings.clone()));
        Self(Arc::new(Inner {
            prefix: keys.sessions(),
            keys,
            calls: Calls::new(route.clone()),
            route,
            settings,
            claims: Arc::default(),
            sessions: Sessions::new(),
        }))
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &RedisSettings {
        &self.0.settings
    }

    /// The way to the server.
    pub(crate) fn route(&self) -> &Arc<Route> {
        &self.0.route
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
        self.0
            .send("ping Redis", Call::Plain(&redis::cmd("PING")))
            .await
            .map(drop)
    }

    /// The live session, begun if there is none.
    async fn session(&self) -> Result<Arc<Session>, BackendError> {
        match self.0.sessions.live() {
            Some(session) => Ok(session),
            // In a box of its own: it is large, and each call would carry room for it.
            None => Box::pin(self.begin_session()).await,
        }
    }

    async fn begin_session(&self) -> Result<Arc<Session>, BackendError> {
        // The session would begin all the same, on its own thread, and the call fail after it.
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BackendError::new(
                BackendErrorKind::Misconfigured,
                "Redis needs a tokio runtime: call from within one, or use the blocking facade",
            ));
        }
        let (route, keys, claims) = (
            self.0.route.clone(),
            self.0.keys.clone(),
            self.0.claims.clone(),
        );
        self.0
            .sessions
            .get(move |former| Session::start(route, keys, claims, former))
            .await
    }

    pub(crate) fn guarantees(&self) -> Capabilities {
        let settings = &self.0.settings;
        // What is declared here holds for every crash: the machine's too, and that of everyone else in the queue at the same
        // time.
        let crash = settings
            .session_ttl()
            .saturating_add(settings.tick_interval().saturating_mul(SLOWEST_TICK));
        let loss = if settings.release_without_notice() {
            LossNotice::Within(settings.session_ttl())
        } else {
            LossNotice::BeforeSuccessor
        };
        Capabilities::new(Scope::Network)
            .with_shared(true)
            .with_fairness(Fairness::FirstCome)
            .with_tokens(Tokens::Durable)
            .with_crash_release(CrashRelease::Within(crash))
            .with_loss(loss)
            .with_inspect(Inspect::HoldersAndWaiters)
            .with_breaks(true)
    }

    pub(crate) async fn attempt(&self, wanted: &Wanted<'_>) -> Result<Attempt, BackendError> {
        let session = self.session().await?;
        let claims = &self.0.claims;
        let answer = self.ask(&session, wanted).await;
        // A grant may have come by message while the answer was under way, before the waiter listens.
        if let Some(grant) = claims.take_unheard(wanted.owner) {
            return Ok(Attempt::Granted(grant));
        }
        match answer {
            Ok(Answer::Granted(token)) => {
                if self.0.settings.wait_replicas() > 0 {
                    let mut connection = self.0.calls.wire().await?.connection;
                    confirm(&mut connection, &session).await?;
                }
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
                session.end(forgotten());
                Err(session_ended(session.loss()))
            }
            Ok(Answer::Stale(_)) => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {ACQUIRING}: the session's connections were made anew all the time"),
            )),
            Err(error) => {
                // Its claims may have been cleared before this one was added.
                if session.loss().is_some() {
                    claims.forget(wanted.owner);
                }
                Err(error)
            }
        }
    }

    /// One attempt, sent again with the session's present stamp if it was refused for an older one.
    async fn ask(&self, session: &Session, wanted: &Wanted<'_>) -> Result<Answer, BackendError> {
        let claims = &self.0.claims;
        let mut answer = None;
        for _ in 0..STALE_ATTEMPTS {
            let stamp = session.stamp();
            let before = claims.expect(wanted.owner, session.id(), &wanted.named, stamp.number);
            let answered = self.ask_with(session, &stamp, wanted).await?;
            if !answered.repeated {
                claims.answered(wanted.owner, before);
            }
            let read = Answer::of(&answered.value).ok_or_else(|| unexpected(ACQUIRING))?;
            let Answer::Stale(later) = &read else {
                return Ok(read);
            };
            session.has_stamp(later.clone());
            answer = Some(read);
        }
        answer.ok_or_else(|| unexpected(ACQUIRING))
    }

    async fn ask_with(
        &self,
        session: &Session,
        stamp: &Stamp,
        wanted: &Wanted<'_>,
    ) -> Result<Answered, BackendError> {
        let Inner {
            keys,
            prefix,
            settings,
            calls,
            ..
        } = &*self.0;
        let keys = keys.of(&wanted.named);
        let call = Call::Script(
            &ACQUIRE,
            &[&keys.state, &keys.queue, &keys.waiters, session.key()],
            &[
                prefix,
                session.id(),
                &wanted.owner.to_string(),
                &wanted.weight.to_string(),
                &wanted.capacity.to_string(),
                if wanted.queues { "1" } else { "0" },
                &wanted.who(settings.label()),
                stamp.text(),
            ],
        );
        let goes_on = || match session.loss() {
            None => Ok(()),
            loss => Err(session_ended(loss)),
        };
        calls.send(ACQUIRING, call, goes_on).await
    }

    pub(crate) async fn withdraw(
        &self,
        kind: Kind,
        name: &LockName,
        owner: OwnerId,
    ) -> Result<Released, BackendError> {
        let inner = &*self.0;
        let Some(session) = inner.sessions.latest() else {
            // The server can't know of anything that this object has asked for.
            return Ok(Released::NotHeld);
        };
        let releasing = inner.claims.releasing(owner);
        inner.make_void(&session, owner).await?;
        let keys = inner.keys.of(&Named {
            kind,
            name: name.clone(),
        });
        let call = Call::Script(
            &RELEASE,
            &[&keys.state, &keys.queue, &keys.waiters],
            &[&inner.prefix, &owner.to_string()],
        );
        let answered = inner.send(RELEASING, call).await?;
        releasing.done();
        match text(&answered.value) {
            Some("1") => Ok(Released::Freed),
            // The first of the two may have freed it.
            Some("0") if answered.repeated && session.loss().is_none() => Ok(Released::Freed),
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
        let call = Call::Script(
            &INSPECT,
            &[&keys.state, &keys.queue, &keys.waiters],
            &[&self.0.prefix],
        );
        let answered = self.ask_plainly(INSPECTING, call).await?;
        redis::from_redis_value(answered.value)
            .ok()
            .and_then(|answer: Vec<String>| inspection(kind, &answer))
            .ok_or_else(|| unexpected(INSPECTING))
    }

    /// Sends what needs no claim of this client's, in its session.
    pub(crate) async fn ask_plainly(
        &self,
        what: &'static str,
        call: Call<'_>,
    ) -> Result<Answered, BackendError> {
        self.session().await?;
        self.0.send(what, call).await
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// What the key of every session begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Ends the session in good order: its guards are lost first, then the server frees what they held.
    pub(crate) async fn end_session(&self) -> Result<(), BackendError> {
        const WHAT: &str = "close the session with Redis";
        let inner = &*self.0;
        let Some(session) = inner.sessions.take() else {
            return Ok(());
        };
        let left = inner.claims.of_session(session.id());
        if session.loss().is_some() {
            return Ok(());
        }
        session.end(Loss::SessionEnded("this program closed it".into()));
        for (owner, named) in left {
            let keys = inner.keys.of(&named);
            let call = Call::Script(
                &RELEASE,
                &[&keys.state, &keys.queue, &keys.waiters],
                &[&inner.prefix, &owner.to_string()],
            );
            inner.send(WHAT, call).await?;
        }
        let mut delete = redis::cmd("DEL");
        inner
            .send(WHAT, Call::Plain(delete.arg(session.key())))
            .await
            .map(drop)
    }
}

impl Inner {
    async fn send(&self, what: &'static str, call: Call<'_>) -> Result<Answered, BackendError> {
        self.calls.send(what, call, || Ok(())).await
    }

    /// Sees to it that no request of `owner` takes effect from now on, though some may still be under way.
    async fn make_void(&self, session: &Session, owner: OwnerId) -> Result<(), BackendError> {
        let present = session.stamp().number;
        if session.loss().is_some() || !self.claims.may_arrive(owner, session.id(), present) {
            return Ok(());
        }
        let stamp = session.next_stamp();
        let call = Call::Script(&RESUME, &[session.key()], &session.raising(&stamp));
        let answered = self.send(RELEASING, call).await?;
        if !session.raised(stamp.clone(), &answered.value)? {
            session.end(forgotten());
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.take() {
            session.end(Loss::SessionEnded("its backend was dropped".into()));
        }
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
        let mut names = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(self.0.keys.lock_pattern())
                .arg("COUNT")
                .arg(1000);
            let answered = self.0.send(WHAT, Call::Plain(&scan)).await?;
            let (next, found): (String, Vec<String>) = redis::from_redis_value(answered.value)
                .map_err(|error| failed(WHAT, error.into()))?;
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

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        self.observe(name).await.map(Some)
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Duration>, BackendError> {
        self.mark(name, owner, by).await
    }

    async fn evict(&self, name: &LockName, owner: OwnerId) -> Result<Released, BackendError> {
        self.end_hold(name, owner).await
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.end_session().await
    }
}
