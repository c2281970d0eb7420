//! A session: one connection, one subscription, one refreshed key. All claims of a backend live and die with it.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use portalock_core::{
    BackendError, BackendErrorKind, FencingToken, Keeper, Lease, Loss, LostSignal, OwnerId,
    clock::Instant,
};
use redis::{PushInfo, PushKind, Value, aio::MultiplexedConnection};
use tokio::sync::mpsc;

use crate::{
    claims::Claims,
    config::RedisSettings,
    connect::{connect, message},
    error::{failed, session_ended},
    keys::Keys,
    refresh::{Refresh, certain},
    scripts::{OPEN, RELEASE, Script},
};

/// The most that replicas are waited for.
const REPLICAS_WITHIN: Duration = Duration::from_secs(1);

/// Liveness at the server.
#[derive(Debug)]
pub(crate) struct Session {
    id: Arc<str>,
    key: String,
    /// Gone once the session has ended, so that the socket closes as soon as the calls in flight are over.
    connection: Mutex<Option<MultiplexedConnection>>,
    lease: Lease,
    /// In milliseconds.
    lifetime: u64,
    replicas: u32,
    replicas_within: Duration,
    /// Everything that refreshes stops with it.
    keeper: Mutex<Option<Keeper>>,
}

/// A new session's id: as many random bits as make two never meet.
fn new_id() -> Arc<str> {
    let mut random = fastrand::Rng::new();
    format!("{:016x}{:016x}", random.u64(..), random.u64(..)).into()
}

impl Session {
    /// Opens a session, and ends those that came before it at the server.
    ///
    /// One that fails to open leaves nothing to end: no request was ever made in it.
    pub(crate) async fn open(
        settings: &RedisSettings,
        keys: &Keys,
        claims: &Arc<Claims>,
        former: &[Arc<str>],
    ) -> Result<Arc<Self>, BackendError> {
        const WHAT: &str = "open a session with Redis";
        let id = new_id();
        let lifetime = settings.lifetime();
        let key = keys.sessions() + &id;
        let lease = Lease::unbounded();
        let (unconfirmed, confirm) = mpsc::unbounded_channel();
        let line = Line {
            lease: lease.clone(),
            claims: claims.clone(),
            tick: settings.tick_interval(),
            unconfirmed: (settings.wait_replicas() > 0).then_some(unconfirmed),
        };
        let mut connection = connect(
            settings,
            move |push| -> Result<(), ()> {
                line.hear(&push);
                Ok(())
            },
            settings.response_timeout().min(lifetime / 2),
        )
        .await?;

        // Subscribed first: a key without a subscription then always means that the session is over.
        connection
            .subscribe(&key)
            .await
            .map_err(|error| failed(WHAT, error))?;
        let former: Vec<String> = former.iter().map(|id| keys.sessions() + id).collect();
        let mut opened = vec![key.as_str()];
        opened.extend(former.iter().map(String::as_str));
        let form = match settings.disconnect_grace() {
            Some(_) => "strict",
            None => "live",
        };
        let sent = Instant::now();
        OPEN.run(
            &mut connection,
            &opened,
            &[form, &lifetime.as_millis().to_string()],
        )
        .await
        .map_err(|error| failed(WHAT, error))?;

        let session = Arc::new(Self {
            id: id.clone(),
            key: key.clone(),
            connection: Mutex::new(Some(connection.clone())),
            lease: lease.clone(),
            lifetime: u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX),
            replicas: settings.wait_replicas(),
            replicas_within: REPLICAS_WITHIN.min(lifetime / 4),
            keeper: Mutex::new(None),
        });
        if !sent
            .checked_add(certain(lifetime))
            .is_some_and(|deadline| lease.extend(deadline))
        {
            return Err(session_ended(lease.loss()));
        }
        let refresh = Refresh {
            key,
            id,
            lifetime,
            claims: claims.clone(),
            keys: keys.clone(),
        };
        session.start(refresh, connection, confirm)?;
        Ok(session)
    }

    fn start(
        self: &Arc<Self>,
        refresh: Refresh,
        connection: MultiplexedConnection,
        confirm: mpsc::UnboundedReceiver<(OwnerId, FencingToken)>,
    ) -> Result<(), BackendError> {
        let claims = refresh.claims.clone();
        let keeper = Keeper::spawn(
            self.lease.clone(),
            Refresh::interval(refresh.lifetime),
            refresh.renewals(connection),
        )?;
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        if self.replicas > 0 {
            tokio::spawn(confirm_grants(
                Arc::downgrade(self),
                claims.clone(),
                confirm,
            ));
        }
        let (id, ended, session) = (self.id.clone(), self.lease.signal(), Arc::downgrade(self));
        tokio::spawn(async move {
            let loss = ended.lost().await;
            tracing::warn!(session = %id, %loss, "the session with Redis has ended");
            if let Some(session) = session.upgrade() {
                session.disconnect();
            }
            claims.session_ended(&id, &session_ended(Some(loss)));
        });
        Ok(())
    }

    pub(crate) fn id(&self) -> &Arc<str> {
        &self.id
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Why it has ended, if it has.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.lease.loss()
    }

    /// Says that the session is over.
    pub(crate) fn end(&self, why: &'static str) {
        self.lease.end(Loss::SessionEnded(why.into()));
    }

    /// Fires when everything that lives in this session is lost.
    pub(crate) fn lost(&self) -> LostSignal {
        self.lease.signal()
    }

    /// Runs a script on the session's connection.
    pub(crate) async fn call(
        &self,
        what: &'static str,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
    ) -> Result<Value, BackendError> {
        let mut connection = self.connection()?;
        let answer = script.run(&mut connection, keys, arguments).await;
        match answer {
            Ok(value) => Ok(value),
            // The connection broke under the call: its end is the reason, whatever the call saw of it.
            Err(_) if self.loss().is_some() => Err(session_ended(self.loss())),
            Err(error) => Err(failed(what, error)),
        }
    }

    /// The connection, unless the session has ended.
    pub(crate) fn connection(&self) -> Result<MultiplexedConnection, BackendError> {
        match (self.loss(), self.raw()) {
            (None, Some(connection)) => Ok(connection),
            (loss, _) => Err(session_ended(loss)),
        }
    }

    fn raw(&self) -> Option<MultiplexedConnection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn disconnect(&self) {
        self.keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Waits until enough replicas have what was written so far, where the settings ask for it.
    ///
    /// `WAIT` counts from this connection's own last write, so there is one first: a grant by message was written on
    /// another's.
    pub(crate) async fn confirm(&self) -> Result<(), BackendError> {
        const WHAT: &str = "confirm a grant at the replicas";
        if self.replicas == 0 {
            return Ok(());
        }
        let mut connection = self.connection()?;
        let _: Value = redis::cmd("PEXPIRE")
            .arg(&self.key)
            .arg(self.lifetime)
            .query_async(&mut connection)
            .await
            .map_err(|error| failed(WHAT, error))?;
        let confirmed: u32 = redis::cmd("WAIT")
            .arg(self.replicas)
            .arg(u64::try_from(self.replicas_within.as_millis()).unwrap_or(u64::MAX))
            .query_async(&mut connection)
            .await
            .map_err(|error| failed(WHAT, error))?;
        if confirmed < self.replicas {
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!(
                    "can't {WHAT}: {confirmed} of {} answered in time",
                    self.replicas
                ),
            ));
        }
        Ok(())
    }

    /// Ends the session in good order: its guards are lost first, then the server frees what they held.
    pub(crate) async fn close(&self, keys: &Keys, claims: &Claims) -> Result<(), BackendError> {
        const WHAT: &str = "close the session with Redis";
        let left = claims.of_session(&self.id);
        let connection = self.raw();
        self.lease
            .end(Loss::SessionEnded("this program closed it".into()));
        let Some(mut connection) = connection else {
            return Ok(());
        };
        let sessions = keys.sessions();
        for (owner, named) in left {
            let of = keys.of(&named);
            let keys = [&*of.state, &*of.queue, &*of.waiters];
            RELEASE
                .run(&mut connection, &keys, &[&sessions, &owner.to_string()])
                .await
                .map_err(|error| failed(WHAT, error))?;
        }
        redis::cmd("DEL")
            .arg(&self.key)
            .query_async::<()>(&mut connection)
            .await
            .map_err(|error| failed(WHAT, error))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.lease
            .end(Loss::SessionEnded("its backend was dropped".into()));
    }
}

/// What comes on the connection unasked.
struct Line {
    lease: Lease,
    claims: Arc<Claims>,
    tick: Duration,
    /// Where grants go that replicas must confirm first.
    unconfirmed: Option<mpsc::UnboundedSender<(OwnerId, FencingToken)>>,
}

impl Line {
    /// Called by the connection's reader, in the order in which the server wrote. It must not wait.
    fn hear(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Message => {
                if let Some(text) = message(push) {
                    self.message(text);
                }
            }
            PushKind::Disconnection => self
                .lease
                .end(Loss::SessionEnded("the connection was closed".into())),
            PushKind::Unsubscribe => self
                .lease
                .end(Loss::SessionEnded("its subscription was ended".into())),
            _ => {}
        }
    }

    fn message(&self, text: &str) {
        let mut parts = text.split('|');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("grant"), Some(owner), Some(token)) => {
                let (Ok(owner), Ok(token)) = (owner.parse(), token.parse().map(FencingToken::new))
                else {
                    return;
                };
                match &self.unconfirmed {
                    // The receiver lives as long as the session.
                    Some(unconfirmed) => drop(unconfirmed.send((owner, token))),
                    None => self.claims.granted(owner, token, &self.lease.signal()),
                }
            }
            (Some("last"), Some(owner), None) => {
                // It looks after one tick: of many that give up at once, few become the last for so long.
                let Ok(owner) = owner.parse() else {
                    return;
                };
                let (claims, tick) = (self.claims.clone(), self.tick);
                tokio::spawn(async move {
                    tokio::time::sleep(tick).await;
                    claims.last(owner);
                });
            }
            _ => {}
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The connection's task went away without a word: its runtime has ended.
        self.lease
            .end(Loss::SessionEnded("its connection is gone".into()));
    }
}

async fn confirm_grants(
    session: Weak<Session>,
    claims: Arc<Claims>,
    mut grants: mpsc::UnboundedReceiver<(OwnerId, FencingToken)>,
) {
    while let Some((owner, token)) = grants.recv().await {
        let Some(session) = session.upgrade() else {
            return;
        };
        match session.confirm().await {
            Ok(()) => claims.granted(owner, token, &session.lost()),
            // Whoever waits gives the grant back.
            Err(error) => claims.failed(owner, error),
        }
    }
}
