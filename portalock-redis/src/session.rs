//! A session: when it ends, all its locks end.
//!
//! # What a session is at the server
//!
//! A key with a time to live, and a channel of the same name, which gets the grants. The value of the key is the
//! session's *stamp*: its form, and a number. There are two forms.
//!
//! - `kept`, the default: the session is alive as long as its key exists. Subscriptions to its channel don't matter. So
//!   the session survives the end of its connection, and its waiters can be granted locks meanwhile.
//! - `connected`: the session is alive as long as its key and a subscription to its channel exist. So it ends at once
//!   when its connection ends.
//!
//! # Until when a session is certain
//!
//! The server counts the key's time by its own clock, from when it executed the refresh. The client counts the time by
//! its monotonic clock, from before it sent the refresh. And [`certain`] subtracts more than two clocks can drift apart
//! in that time. So the client's lease always ends first, whatever happens to connections.
//!
//! # What survives a broken connection
//!
//! Everything in a `kept` session. A new connection, to the current address of the server, subscribes to the same
//! channel and refreshes the key. If the key is gone, the server has forgotten the session, and all its locks are lost.
//! Otherwise the client checks all places before it extends the lease. In this way it learns of a grant whose message
//! was lost, and of places that a promoted or restored server doesn't have.
//!
//! # Why an old connection can do no harm
//!
//! A request may still be in transit when its connection breaks, and may arrive after all later requests. These are the
//! possible cases:
//!
//! - A release of a place: places are never used twice, so the release finds nothing, or does what was requested.
//! - A refresh: it extends the key's time, and the client does not count that. No command creates a key again that is
//!   gone.
//! - An attempt for a place that still waits or holds: the script finds the place.
//! - An attempt for a place that was withdrawn: it would take a lock or a place that no client knows of. So each
//!   attempt carries the stamp that its client knew, and is refused if the session has another stamp now. If a request
//!   for a place has no answer, the withdrawal gives the session a new stamp before it releases the place. If an
//!   attempt is refused while its caller still waits for it, the client gets the new stamp and sends the attempt again.
//! - An attempt in a session that has ended: its key is gone, or is deleted when the client opens the next session.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    BackendError, BackendErrorKind, Loss, OwnerId, Renewal,
    clock::Instant,
    session::{Answered, Asked, Entered, KeptSession, Leaving, Looked, Service, new_id},
};
use redis::{RedisError, aio::MultiplexedConnection};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    breaking::{Mark, heed, marks_key},
    client::{Server, Wish, enter, leave},
    cluster::moving,
    config::RedisSettings,
    connect::{connect, subscribe},
    error::{failed, is_moving},
    keys::{Kind, Place, WHOLE, Wanted},
    look::look,
    primary::may_grant,
    raises::Raises,
    replicas::{Unconfirmed, renewed_at_replicas, replicated},
    route::Route,
    scripts::OPEN,
};

mod hearer;

use hearer::Hearer;

const STARTING: &str = "begin a session with Redis";
const RENEWING: &str = "refresh the session with Redis";
const LOOKING_AFTER: &str = "look after what a session has in Redis";
const ENDING: &str = "end the session with Redis";

/// How many releases of what a session leaves are under way at once.
const HANDED_OVER_AT_ONCE: usize = 64;

/// A session with Redis.
pub(crate) type Session = KeptSession<SessionKey>;

/// The Redis part of a session.
#[derive(Debug)]
pub(crate) struct SessionKey {
    pub(crate) id: Arc<str>,
    /// The name of its key and of its channel.
    pub(crate) key: String,
    /// How long its key lives without a refresh, in milliseconds, as text for the server.
    pub(crate) lifetime: String,
    pub(crate) server: Arc<Server>,
    /// The beginning of the claim of each exclusive lock.
    whole: Arc<str>,
    /// The value of its key, as far as this client knows.
    stamp: Mutex<Arc<str>>,
    pub(crate) raises: Raises,
    /// Grants that came by message, and that replicas must confirm before the waiters are told.
    pub(crate) unconfirmed: Unconfirmed,
}

/// A connection that is subscribed to the session's channel. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) connection: MultiplexedConnection,
    source: Source,
    route: Arc<Route>,
}

/// Where messages and answers come from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    is_open: Arc<AtomicBool>,
    /// The number of the location that the connection leads to.
    location: u64,
}

impl Source {
    /// Whether what comes over this connection counts: not after it has ended or was given up, and not from a former primary.
    pub(crate) fn counts(&self, route: &Route) -> bool {
        self.is_open.load(Ordering::Acquire) && self.location == route.number()
    }
}

impl SessionKey {
    pub(crate) fn settings(&self) -> &RedisSettings {
        &self.server.settings
    }

    /// The beginning of a claim in this session.
    pub(crate) fn head_of(&self, wanted: &Wanted) -> Arc<str> {
        if wanted.named.kind == Kind::Lock && !wanted.shares() {
            return self.whole.clone();
        }
        head(&self.id, wanted.weight, wanted.capacity)
    }

    /// The value of its key, as far as this client knows.
    pub(crate) fn stamp(&self) -> Arc<str> {
        // No code panics while it holds the lock.
        let stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        stamp.clone()
    }

    /// Records the value of its key, from an answer. If an older answer arrives later, the next attempt is stale, and
    /// its answer corrects the value.
    pub(crate) fn stamp_is(&self, stamp: Arc<str>) {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }
}

impl Line {
    /// Fails if answers on this connection can't be trusted. When a node gives a slot away, it ends the subscription
    /// with a message that the client library takes for an answer. Each later answer is then taken for the answer to an
    /// earlier command.
    pub(crate) fn ensure_open(&self, what: &'static str) -> Result<(), BackendError> {
        if SessionKey::is_open(self) {
            return Ok(());
        }
        Err(BackendError::new(
            BackendErrorKind::Unavailable,
            format!("can't {what}: its subscription ended meanwhile"),
        ))
    }
}

#[async_trait]
impl Service for SessionKey {
    type Shared = Arc<Server>;
    type Wish = Wish;
    type Place = Place;
    type Connection = Line;

    const NAME: &'static str = "Redis";
    const WAITERS_ASK_AGAIN: bool = true;

    fn new(server: &Arc<Server>) -> Self {
        let id = new_id();
        let settings = &server.settings;
        let form = if settings.release_without_notice() {
            "connected|1"
        } else {
            "kept|1"
        };
        Self {
            key: [server.keys.sessions(), &id].concat(),
            whole: head(&id, WHOLE, WHOLE),
            id,
            lifetime: settings.session_ttl().as_millis().to_string(),
            server: server.clone(),
            stamp: Mutex::new(form.into()),
            raises: Raises::default(),
            unconfirmed: Unconfirmed::default(),
        }
    }

    fn place(&self, owner: OwnerId, wish: &Wish) -> Place {
        Place::new(owner, wish.wanted.named.clone())
    }

    fn lease_time(&self) -> Duration {
        self.settings().session_ttl()
    }

    fn request_timeout(&self) -> Duration {
        self.settings().patience()
    }

    async fn connect(session: &Arc<Session>) -> Result<Line, BackendError> {
        let key = session.service();
        let route = key.server.route.clone();
        // A fixed address may lead to another server now, and the connections of calls would stay at the former one. A session that has
        // ended only ends at the server: it must not move the calls of its successor.
        let moves_calls = !route.is_followed() && session.ensure_live().is_ok();
        if moves_calls {
            route.leave(route.number());
        }
        let location = route.find().await?;
        // Calls leave it once more when this connection is open, as one of them may have reached the former server meanwhile.
        let number = location.number + u64::from(moves_calls);
        let source = Source {
            is_open: Arc::new(AtomicBool::new(true)),
            location: number,
        };
        let hearer = Hearer {
            session: Arc::downgrade(session),
            source: source.clone(),
        };
        let push = move |push| -> Result<(), ()> {
            hearer.hear(&push);
            Ok(())
        };
        let mut connection = connect(&route, &location, push).await?;
        subscribe(&route, &mut connection, &key.key)
            .await
            .map_err(|error| failed("subscribe to the session's channel in Redis", error))?;
        if moves_calls && !route.leave(location.number) {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {STARTING}: its address led to a replica meanwhile"),
            ));
        }
        Ok(Line {
            connection,
            source,
            route,
        })
    }

    fn ends_with_connection(&self) -> bool {
        self.settings().release_without_notice()
    }

    fn is_open(line: &Line) -> bool {
        line.source.counts(&line.route)
    }

    fn gave_up(&self, line: &Line) {
        // Its messages no longer count: another connection takes over, and all places are checked over that one.
        line.source.is_open.store(false, Ordering::Release);
    }

    async fn begin(
        session: &Arc<Session>,
        line: &Line,
        former: Option<&Arc<Session>>,
    ) -> Result<Instant, BackendError> {
        let begun = begin(session.service(), line, former).await;
        // An error too may come of an answer to another command.
        line.ensure_open(STARTING)?;
        begun
    }

    async fn renew(session: &Arc<Session>, line: &Line) -> Result<Renewal, BackendError> {
        let key = session.service();
        let sent = Instant::now();
        let mut connection = line.connection.clone();
        let renewed: Result<(bool, Vec<Mark>), RedisError> = redis::pipe()
            .cmd("PEXPIRE")
            .arg(&key.key)
            .arg(&key.lifetime)
            .cmd("HGETALL")
            .arg(marks_key(key))
            .query_async(&mut connection)
            .await;
        let (is_known, marks) = match renewed {
            Err(error) if is_moving(&error) => (true, moving::renew(key, &mut connection).await?),
            renewed => renewed.map_err(|error| failed(RENEWING, error))?,
        };
        line.ensure_open(RENEWING)?;
        if !is_known {
            return Ok(Renewal::Gone(forgotten()));
        }
        // Marks are handled before the lease is extended: see `breaking.rs`.
        heed(session, &mut connection, marks).await;
        renewed_at_replicas(&mut connection, key.settings()).await?;
        // A process that was paused may not know yet that this is a former primary. Replicas would not confirm to that one.
        if key.settings().wait_replicas() == 0 {
            key.server.route.looked_before(sent).await;
        }
        line.ensure_open(RENEWING)?;
        Ok(Renewal::Renewed(certain(key.settings().session_ttl())))
    }

    async fn look(
        session: &Arc<Session>,
        line: &Line,
        asked: &[Asked<Place>],
    ) -> Result<Looked, BackendError> {
        let looked = look(session.service(), line.connection.clone(), asked).await?;
        line.ensure_open(LOOKING_AFTER)?;
        Ok(looked)
    }

    async fn enter(
        session: &Arc<Session>,
        place: &Place,
        wish: &Wish,
    ) -> Result<Answered<Entered>, BackendError> {
        enter(session, place, wish).await
    }

    async fn leave(
        session: &Arc<Session>,
        leaving: &Leaving<Place>,
    ) -> Result<Answered<bool>, BackendError> {
        leave(session, leaving).await
    }

    async fn end(session: &Arc<Session>, line: &Line) -> Result<(), BackendError> {
        let key = session.service();
        let mut connection = line.connection.clone();
        redis::cmd("DEL")
            .arg(&key.key)
            .query_async::<()>(&mut connection)
            .await
            .map_err(|error| failed(ENDING, error))?;
        hand_over(key.server.clone(), session.places().left()).await;
        Ok(())
    }

    async fn chores(session: &Arc<Session>, _: Option<Arc<Session>>) -> Infallible {
        let confirming = session.service().unconfirmed.confirm(session);
        tokio::join!(follow(session), confirming).0
    }
}

/// Begins a session at the server, in place of `former`. Returns until when it is certain.
async fn begin(
    key: &SessionKey,
    line: &Line,
    former: Option<&Arc<Session>>,
) -> Result<Instant, BackendError> {
    let mut connection = line.connection.clone();
    may_grant(&mut connection, &key.server.route).await?;
    let mut opened = vec![&*key.key];
    opened.extend(former.map(|former| &*former.service().key));
    let sent = Instant::now();
    // After the subscription, so that a `connected` session with a key and without a subscription has always ended.
    let tag = key.server.route.tag();
    let arguments = [&*key.stamp(), &key.lifetime];
    OPEN.run_in(tag, &mut connection, &opened, &arguments)
        .await
        .map_err(|error| failed(STARTING, error))?;
    replicated(&mut connection, key.settings()).await?;
    // The answers of most sentinels were enough to find this server, or the process was paused since. Another sentinel may
    // know of a switch. Then this is a former primary, and the connections of calls may lead to it too.
    if key.settings().wait_replicas() == 0 {
        // Without an answer nothing changes.
        let _ = key.server.route.look().await;
    }
    Ok(sent + certain(key.settings().session_ttl()))
}

/// Releases what a session has left, so that those who wait behind are granted at once.
async fn hand_over(server: Arc<Server>, left: &[Place]) {
    let within = server.settings.patience() / 3;
    let releasing = async {
        let mut releases = JoinSet::new();
        for place in left {
            if releases.len() == HANDED_OVER_AT_ONCE {
                releases.join_next().await;
            }
            let (server, place) = (server.clone(), place.clone());
            releases.spawn(async move { server.release(&place, None, false).await });
        }
        while releases.join_next().await.is_some() {}
    };
    // Those who wait behind the rest find it out by themselves, at their next look.
    let _ = timeout(within, releasing).await;
}

/// Notices that the primary is another server, though the one before may still answer as if it were. Its loss of connections is
/// noticed without.
async fn follow(session: &Session) -> Infallible {
    let key = session.service();
    let route = &key.server.route;
    if !route.is_followed() {
        std::future::pending::<()>().await;
    }
    loop {
        // An answer that takes long does not put off the next question.
        let pause = tokio::time::sleep(route.look_interval());
        // The address is unknown, so nothing changes.
        if let Err(error) = route.look().await {
            tracing::debug!(%error, "where the Redis primary is, is unknown");
        }
        if session.connection().is_none() {
            session.connection_ended();
        }
        pause.await;
    }
}

/// The beginning of a claim: the session, and how much is claimed.
fn head(session: &str, weight: u32, capacity: u32) -> Arc<str> {
    format!("{session}|{weight}|{capacity}").into()
}

/// The loss of a session that the server no longer knows.
pub(crate) fn forgotten() -> Loss {
    Loss::SessionEnded("the server no longer knows it".into())
}

/// How long the client relies on a key that the server keeps for `lifetime`. It is shorter, because two clocks run at
/// different speeds.
fn certain(lifetime: Duration) -> Duration {
    lifetime.mul_f64(0.95)
}

#[cfg(all(test, unix))]
mod tests;
