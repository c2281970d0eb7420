//! A session: what a client's locks live and die with.
//!
//! # What a session is at the server
//!
//! A key with a time to live, and a channel of the same name, to which grants are told. What the key holds is the session's
//! *stamp*: its form, and a number that grows with each connection of its own. There are two forms.
//!
//! - `kept`, the default: the session lives as long as its key. Whether anybody is subscribed to its channel is not asked, so it
//!   survives the end of its connection; and it is granted what it waits for meanwhile.
//! - `connected`: it lives as long as its key and a subscription to its channel. So it ends with its connection, at once.
//!
//! # What it is at the client
//!
//! One connection, the [`Link`], that is subscribed and refreshes the key. It lives on the library's session thread, so no
//! runtime of a caller can end it or keep it waiting. Callers' own commands go over connections of their own runtimes
//! (`connection.rs`), which costs them no switch between threads; that such a connection breaks concerns nobody but the calls on it.
//!
//! The client's lease counts from when the last confirmed refresh was *sent*, on the client's monotonic clock, and lasts a
//! twentieth less than the key's time to live. So it ends first, whatever happens to connections.
//!
//! # How it is taken up again
//!
//! A link that ends, or over which a refresh stays without an answer, is replaced: connect (to wherever the server is now),
//! subscribe, `raise.lua`, look after what is held, and let all who wait look once. The last step is how they learn of
//! grants that were told to nobody: a look finds the grant, or the place in the queue, by its owner. The lease is not touched
//! meanwhile: holders notice nothing unless it runs out. If the key is gone, the server has forgotten the session, and all of
//! it is lost.
//!
//! # Why an old connection can do no harm
//!
//! A request may lie somewhere on its way when its connection breaks, and arrive after everything that was sent later. What
//! could it do?
//!
//! - A release of an owner: owners are never used again, so it finds nothing, or does what was asked for.
//! - A refresh: it moves the key's time on, which the client doesn't count. Nothing sets a key again that is gone.
//! - An attempt of an owner that still waits or holds: it finds itself there.
//! - An attempt of an owner that was withdrawn: it would take a lock or a place that nobody knows of. So each attempt brings
//!   the stamp that its client knew, and is refused if the session has another by now. Each resumption gives it a new one, and
//!   so does the withdrawal of an owner of whom a request is without an answer, before it releases. An attempt that is refused
//!   though its caller waits for it is told the new stamp and sent again.
//! - An attempt in a session that is over: its key is gone, or is deleted when the client opens the next session.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portalock_core::{
    BackendError, FencingToken, Keeper, Lease, Loss, LostSignal, OwnerId,
    clock::Instant,
    session::{self, Session as _, Task},
};
use tokio::sync::mpsc;

use crate::{
    claims::Claims,
    config::RedisSettings,
    error::{failed, session_ended},
    keys::Keys,
    link::Link,
    look::{certain, confirm, replicated},
    primary::may_grant,
    record::Stamp,
    route::Route,
    scripts::OPEN,
};

/// How often is looked whether the primary is another server, at the least.
const LOOKING: Duration = Duration::from_secs(1);

/// Liveness at the server.
#[derive(Debug)]
pub(crate) struct Session {
    id: Arc<str>,
    key: String,
    lease: Lease,
    /// How long its key lives without a refresh, in milliseconds, as the server is told.
    lifetime: String,
    route: Arc<Route>,
    keys: Keys,
    claims: Arc<Claims>,
    /// What its key holds, as far as is known here.
    stamp: Mutex<Stamp>,
    /// The number of the latest stamp that was ever asked for.
    numbers: AtomicU64,
    link: Mutex<Option<Link>>,
    keeper: Mutex<Option<Keeper>>,
    /// Where grants by message go that replicas must confirm first.
    unconfirmed: Option<mpsc::UnboundedSender<(OwnerId, FencingToken)>>,
}

/// A new session's id: as many random bits as make two never meet.
fn new_id() -> Arc<str> {
    let mut random = fastrand::Rng::new();
    format!("{:016x}{:016x}", random.u64(..), random.u64(..)).into()
}

impl session::Session for Session {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Session {
    /// Begins a session, and ends the one before it at the server. Runs on the session thread.
    ///
    /// One that fails to begin leaves nothing but a key that nobody refreshes: no request was ever made in it.
    pub(crate) async fn start(
        route: Arc<Route>,
        keys: Keys,
        claims: Arc<Claims>,
        former: Option<Arc<Self>>,
    ) -> Result<Arc<Self>, BackendError> {
        let id = new_id();
        let settings = route.settings();
        let (unconfirmed, unheard) = mpsc::unbounded_channel();
        let session = Arc::new(Self {
            key: keys.sessions() + &id,
            id,
            lease: Lease::unbounded(),
            lifetime: settings.session_ttl().as_millis().to_string(),
            stamp: Mutex::new(Stamp::new(settings.release_without_notice(), 1)),
            numbers: AtomicU64::new(1),
            link: Mutex::new(None),
            keeper: Mutex::new(None),
            unconfirmed: (settings.wait_replicas() > 0).then_some(unconfirmed),
            route,
            keys,
            claims,
        });
        // Subscribed first: the key of a `connected` session without a subscription then always means that it is over.
        let link = Link::open(&session).await?;
        let begun = session.open_key(&link, former.as_deref()).await;
        if let Err(error) = begun {
            session.end(Loss::SessionEnded("it could not begin".into()));
            return Err(error);
        }
        session.install(link.clone());
        session.start_keeper()?;
        if link.has_ended() {
            // Before there was a keeper to be told.
            session.renew_now();
        }
        let mut tasks = vec![session::spawn(session.clone().confirm_grants(unheard))?];
        if session.route.is_followed() {
            tasks.push(session::spawn(session.clone().follow())?);
        }
        session::spawn(session.clone().live(tasks))?.detach();
        tracing::debug!(session = %session.id, "a session with Redis begins");
        Ok(session)
    }

    async fn open_key(&self, link: &Link, former: Option<&Self>) -> Result<(), BackendError> {
        let mut connection = link.connection();
        may_grant(&mut connection, &self.route).await?;
        let mut opened = vec![self.key()];
        opened.extend(former.map(Self::key));
        let stamp = self.stamp();
        let sent = Instant::now();
        OPEN.run_in(
            self.route.tag(),
            &mut connection,
            &opened,
            &[stamp.text(), self.lifetime_text()],
        )
        .await
        .map_err(|error| failed("begin a session with Redis", error))?;
        replicated(&mut connection, self.settings()).await?;
        let lasts = sent
            .checked_add(certain(self.lifetime()))
            .is_some_and(|deadline| self.lease.extend(deadline));
        if lasts {
            Ok(())
        } else {
            Err(session_ended(self.loss()))
        }
    }

    fn start_keeper(self: &Arc<Self>) -> Result<(), BackendError> {
        let session = self.clone();
        // Often enough for two to be lost.
        let keeper = Keeper::spawn(self.lease.clone(), self.lifetime() / 3, {
            let mut turn = 0;
            move || {
                let held = session.held(&mut turn);
                session.clone().renew(held)
            }
        });
        match keeper {
            Ok(keeper) => {
                *self.keeper() = Some(keeper);
                Ok(())
            }
            Err(error) => {
                self.end(Loss::SessionEnded("it could not be kept".into()));
                Err(error)
            }
        }
    }

    /// Until the session ends, however it comes; then tells the waiters and clears up.
    async fn live(self: Arc<Self>, tasks: Vec<Task>) {
        let loss = self.lost().lost().await;
        drop(tasks);
        if self.claims.of_session(&self.id).is_empty() {
            tracing::debug!(session = %self.id, %loss, "the session with Redis has ended");
        } else {
            tracing::warn!(session = %self.id, %loss, "the session with Redis has ended, and all in it is lost");
        }
        self.keeper().take();
        self.claims
            .session_ended(&self.id, &session_ended(Some(loss)));
        let link = self.link().take();
        if let Some(link) = link.filter(|link| !link.has_ended()) {
            // Else it goes by its time to live. Nobody has to wait for it.
            let deleted = redis::cmd("DEL")
                .arg(&self.key)
                .query_async::<()>(&mut link.connection())
                .await;
            if let Err(error) = deleted {
                tracing::debug!(%error, "the session's key ends by its time");
            }
        }
    }

    /// Notices that the primary is another server, though the one before may still answer as if it were. Its loss of connections is
    /// noticed without.
    async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOKING.min(self.lifetime() / 3)).await;
            // Unknown: nothing follows from it.
            if let Err(error) = self.route.look().await {
                tracing::debug!(%error, "where the Redis primary is, is unknown");
            }
            let place = self.link().as_ref().map(Link::place);
            if place == Some(self.route.number()) {
                continue;
            }
            if self.is_connected_form() {
                self.end(Loss::SessionEnded(
                    "another server has become the primary".into(),
                ));
            } else {
                self.renew_now();
            }
        }
    }

    /// Grants by message that replicas must have before anybody is told.
    async fn confirm_grants(
        self: Arc<Self>,
        mut grants: mpsc::UnboundedReceiver<(OwnerId, FencingToken)>,
    ) {
        while let Some((owner, token)) = grants.recv().await {
            let link = self.link().clone();
            let confirmed = match link {
                Some(link) => confirm(&mut link.connection(), &self).await,
                None => Err(session_ended(self.loss())),
            };
            match confirmed {
                Ok(()) => self.claims.granted(owner, token, &self.lost()),
                // Whoever waits gives the grant back.
                Err(error) => self.claims.failed(owner, error),
            }
        }
    }

    /// A grant came by message.
    pub(crate) fn granted(&self, owner: OwnerId, token: FencingToken) {
        match &self.unconfirmed {
            // The receiver lives as long as the session.
            Some(unconfirmed) => drop(unconfirmed.send((owner, token))),
            None => self.claims.granted(owner, token, &self.lost()),
        }
    }

    /// From now on this is the session's connection.
    pub(crate) fn install(&self, link: Link) {
        *self.link() = Some(link);
    }

    /// Its connection is gone, or may be: look now rather than when the next refresh is due.
    pub(crate) fn renew_now(&self) {
        if let Some(keeper) = &*self.keeper() {
            keeper.renew_now();
        }
    }

    pub(crate) fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Its key, and its channel.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    pub(crate) fn settings(&self) -> &RedisSettings {
        self.route.settings()
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether it ends with its connection.
    pub(crate) fn is_connected_form(&self) -> bool {
        self.settings().release_without_notice()
    }

    /// How long its key lives without a refresh.
    pub(crate) fn lifetime(&self) -> Duration {
        self.settings().session_ttl()
    }

    pub(crate) fn lifetime_text(&self) -> &str {
        &self.lifetime
    }

    /// What its key holds, as far as is known here.
    pub(crate) fn stamp(&self) -> Stamp {
        lock(&self.stamp).clone()
    }

    /// A stamp that it never had.
    pub(crate) fn next_stamp(&self) -> Stamp {
        let number = self.numbers.fetch_add(1, Ordering::AcqRel) + 1;
        Stamp::new(self.is_connected_form(), number)
    }

    /// Its key holds this, or did: stamps only grow.
    pub(crate) fn has_stamp(&self, stamp: Stamp) {
        let mut known = lock(&self.stamp);
        if known.number < stamp.number {
            *known = stamp;
        }
    }

    /// Why it has ended, if it has.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.lease().loss()
    }

    /// Says that the session is over.
    pub(crate) fn end(&self, loss: Loss) {
        self.lease.end(loss);
    }

    /// Fires when everything that lives in this session is lost.
    pub(crate) fn lost(&self) -> LostSignal {
        self.lease.signal()
    }

    pub(crate) fn link(&self) -> MutexGuard<'_, Option<Link>> {
        lock(&self.link)
    }

    fn keeper(&self) -> MutexGuard<'_, Option<Keeper>> {
        lock(&self.keeper)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
