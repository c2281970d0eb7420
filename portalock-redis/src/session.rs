//! A session: what a client's locks live and die with.
//!
//! # What a session is at the server
//!
//! A key with a time to live, and a channel of the same name, to which grants are told. What the key holds is the session's
//! *stamp*: its form, and a number. There are two forms.
//!
//! - `kept`, the default: the session lives as long as its key. Whether anybody is subscribed to its channel is not asked, so it
//!   survives the end of its connection; and it is granted what it waits for meanwhile.
//! - `connected`: it lives as long as its key and a subscription to its channel. So it ends with its connection, at once.
//!
//! # Until when a session is certain
//!
//! The server counts the key's time from when it carried out the refresh, by its own clock. That was after the refresh was sent,
//! from when the client counts, on its monotonic clock; and [`certain`] takes off more than two clocks drift apart meanwhile. So
//! the client's lease ends first, whatever happens to connections.
//!
//! # What survives a broken connection
//!
//! All of a `kept` session. A new connection, to wherever the server is now, is subscribed to the same channel and refreshes the
//! key. If that is gone, the server has forgotten the session, and all of it is lost. If not, all places are looked after before the
//! lease is prolonged: that is how a grant is learnt that was told to nobody, and what a server that was promoted or restored
//! doesn't know of.
//!
//! # Why an old connection can do no harm
//!
//! A request may lie somewhere on its way when its connection breaks, and arrive after everything that was sent later. What
//! could it do?
//!
//! - A release of a place: places are never taken twice, so it finds nothing, or does what was asked for.
//! - A refresh: it moves the key's time on, which the client doesn't count. Nothing sets a key again that is gone.
//! - An attempt for a place that still waits or holds: it finds itself there.
//! - An attempt for a place that was withdrawn: it would take a lock or a place that nobody knows of. So each attempt brings
//!   the stamp that its client knew, and is refused if the session has another by now. The withdrawal of a place of which a request
//!   is without an answer gives the session another one, before it releases. An attempt that is refused though its caller waits for
//!   it is told the new stamp and sent again.
//! - An attempt in a session that is over: its key is gone, or is deleted when the client opens the next session.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    BackendError, BackendErrorKind, FencingToken, Loss, OwnerId, Renewal,
    clock::Instant,
    session::{Answered, Asked, Entered, KeptSession, Leaving, Looked, Service},
};
use redis::{PushInfo, RedisError, aio::MultiplexedConnection};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    breaking::{Mark, heed, marks_key},
    client::{Server, Wish, enter, leave},
    cluster::moving,
    config::RedisSettings,
    connect::{connect, is_end, is_message, message, subscribe},
    error::{failed, is_moving},
    look::look,
    place::Place,
    primary::may_grant,
    replicas::{Unconfirmed, renewed_at_replicas, replicated},
    route::Route,
    scripts::OPEN,
};

const STARTING: &str = "begin a session with Redis";
const RENEWING: &str = "refresh the session with Redis";
const LOOKING_AFTER: &str = "look after what a session has in Redis";
const ENDING: &str = "end the session with Redis";

/// How many releases of what a session leaves are under way at once.
const HANDED_OVER_AT_ONCE: usize = 64;

/// A session with Redis.
pub(crate) type Session = KeptSession<SessionKey>;

/// What there is to know of a session beside what every session has.
#[derive(Debug)]
pub(crate) struct SessionKey {
    pub(crate) id: Arc<str>,
    /// Its key, and its channel.
    pub(crate) key: String,
    /// How long its key lives without a refresh, in milliseconds, as the server is told.
    pub(crate) lifetime: String,
    pub(crate) server: Arc<Server>,
    /// What its key holds, as far as is known here.
    stamp: Mutex<Arc<str>>,
    /// Grants by message that replicas must have before anybody is told.
    pub(crate) unconfirmed: Unconfirmed,
}

/// A connection that is subscribed to the session's channel. It ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) connection: MultiplexedConnection,
    is_open: Arc<AtomicBool>,
    route: Arc<Route>,
    /// The number of the location where it leads to.
    location: u64,
}

impl SessionKey {
    pub(crate) fn settings(&self) -> &RedisSettings {
        &self.server.settings
    }

    /// What its key holds, as far as is known here.
    pub(crate) fn stamp(&self) -> Arc<str> {
        // Nothing panics while it is held.
        let stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        stamp.clone()
    }

    /// Its key holds this, as an answer says. An older answer that comes later is corrected by the next attempt, which is stale.
    pub(crate) fn stamp_is(&self, stamp: Arc<str>) {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }
}

impl Line {
    /// Whether what was answered over it counts. A node that gives a slot away ends the subscription by a message that the client
    /// library takes for an answer: what is answered afterwards is taken for the answer to an earlier command.
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
            id,
            lifetime: settings.session_ttl().as_millis().to_string(),
            server: server.clone(),
            stamp: Mutex::new(form.into()),
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
        let location = route.find().await?;
        let is_open = Arc::new(AtomicBool::new(true));
        let hearer = Hearer {
            session: Arc::downgrade(session),
            is_open: is_open.clone(),
            location: location.number,
        };
        let push = move |push| -> Result<(), ()> {
            hearer.hear(&push);
            Ok(())
        };
        let mut connection = connect(&route, &location, push).await?;
        subscribe(&route, &mut connection, &key.key)
            .await
            .map_err(|error| failed("subscribe to the session's channel in Redis", error))?;
        Ok(Line {
            connection,
            is_open,
            route,
            location: location.number,
        })
    }

    fn ends_with_connection(&self) -> bool {
        self.settings().release_without_notice()
    }

    fn is_open(line: &Line) -> bool {
        // What the primary before says counts for nothing.
        line.is_open.load(Ordering::Acquire) && line.location == line.route.number()
    }

    async fn begin(
        session: &Arc<Session>,
        line: &Line,
        former: Option<&Arc<Session>>,
    ) -> Result<Instant, BackendError> {
        let key = session.service();
        let mut connection = line.connection.clone();
        may_grant(&mut connection, &key.server.route).await?;
        let mut opened = vec![&*key.key];
        opened.extend(former.map(|former| &*former.service().key));
        let sent = Instant::now();
        // After the subscription: the key of a `connected` session without one then always means that it is over.
        let tag = key.server.route.tag();
        let arguments = [&*key.stamp(), &key.lifetime];
        OPEN.run_in(tag, &mut connection, &opened, &arguments)
            .await
            .map_err(|error| failed(STARTING, error))?;
        replicated(&mut connection, key.settings()).await?;
        line.ensure_open(STARTING)?;
        Ok(sent + certain(key.settings().session_ttl()))
    }

    async fn renew(session: &Arc<Session>, line: &Line) -> Result<Renewal, BackendError> {
        let key = session.service();
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
        // Before the lease is prolonged: see there.
        heed(session, &mut connection, marks).await;
        renewed_at_replicas(&mut connection, key.settings()).await?;
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
        // Those who wait behind would find it out by themselves, at their next look.
        let handing_over = hand_over(key.server.clone(), session.places().left());
        let _ = timeout(key.settings().patience() / 3, handing_over).await;
        Ok(())
    }

    async fn chores(session: &Arc<Session>, _: Option<Arc<Session>>) -> Infallible {
        let confirming = session.service().unconfirmed.confirm(session);
        tokio::join!(follow(session), confirming).0
    }
}

/// Releases what a session has left, so that those who wait behind are granted at once.
async fn hand_over(server: Arc<Server>, left: &[Place]) {
    let mut releases = JoinSet::new();
    for place in left {
        if releases.len() == HANDED_OVER_AT_ONCE {
            releases.join_next().await;
        }
        let (server, place) = (server.clone(), place.clone());
        releases.spawn(async move { server.release(&place).await });
    }
    while releases.join_next().await.is_some() {}
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
        tokio::time::sleep(route.look_interval()).await;
        // Unknown: nothing follows from it.
        if let Err(error) = route.look().await {
            tracing::debug!(%error, "where the Redis primary is, is unknown");
        }
        if session.connection().is_none() {
            session.connection_ended();
        }
    }
}

/// What comes on the connection unasked.
struct Hearer {
    session: Weak<Session>,
    is_open: Arc<AtomicBool>,
    location: u64,
}

impl Hearer {
    /// Called by the connection's reader, in the order in which the server wrote. It must not wait.
    fn hear(&self, push: &PushInfo) {
        let Some(session) = self.session.upgrade() else {
            return;
        };
        match &push.kind {
            // What the primary before says counts for nothing.
            kind if is_message(kind)
                && self.location == session.service().server.route.number() =>
            {
                if let Some(text) = message(push) {
                    hear_message(&session, text);
                }
            }
            kind if is_end(kind) => {
                self.is_open.store(false, Ordering::Release);
                session.connection_ended();
            }
            _ => {}
        }
    }
}

fn hear_message(session: &Arc<Session>, text: &str) {
    // The refresh finds what.
    if text == "broken" {
        return session.renew_now();
    }
    // The last part may have any character in it.
    let mut parts = text.splitn(3, '|');
    let (Some(what), Some(name)) = (parts.next(), parts.next()) else {
        return;
    };
    let Some(owner) = Place::owner(name) else {
        return;
    };
    let key = session.service();
    match (what, parts.next()) {
        ("grant", Some(token)) => {
            if let Ok(token) = token.parse().map(FencingToken::new) {
                granted(session, owner, name, token);
            }
        }
        ("last", None) => {
            // It looks after one tick: of many that give up at once, few become the last for so long.
            let session = session.clone();
            tokio::spawn(async move {
                tokio::time::sleep(session.service().settings().tick_interval()).await;
                session.places().wake(owner);
            });
        }
        ("asked", Some(state)) => {
            if let Some(named) = key.server.keys.named(state) {
                let name = name.into();
                session.places().found_unknown(owner, Place { name, named });
            }
        }
        _ => {}
    }
}

fn granted(session: &Session, owner: OwnerId, name: &str, token: FencingToken) {
    let key = session.service();
    if key.settings().wait_replicas() > 0 {
        return key.unconfirmed.add(owner, name, token);
    }
    let is_of = |place: &Place| *place.name == *name;
    session.places().granted(owner, token, is_of);
}

/// A new session's id: as many random bits as make two never meet.
fn new_id() -> Arc<str> {
    let mut random = fastrand::Rng::new();
    format!("{:016x}{:016x}", random.u64(..), random.u64(..)).into()
}

/// The server no longer knows the session.
pub(crate) fn forgotten() -> Loss {
    Loss::SessionEnded("the server no longer knows it".into())
}

/// How long the client relies on what the server keeps for `lifetime`: less, for two clocks that don't run alike.
fn certain(lifetime: Duration) -> Duration {
    lifetime.mul_f64(0.95)
}
