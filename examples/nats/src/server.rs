//! The server: connections, with the two buckets over each. Every request has a deadline, and every change is
//! conditional.

use std::{error::Error, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event,
    connection::State as Line,
    jetstream::{
        self,
        context::CreateStreamErrorKind,
        kv::{self, Operation, UpdateErrorKind},
        stream,
    },
};
use futures_util::StreamExt;
use portalock_core::{
    BackendError, BackendErrorKind as Kind, LockName,
    session::{Answered, PerRuntime},
};
use tokio::time::timeout;

use crate::{backend::NatsSettings, state::State};

/// The value that marks a session as dead, so that it can't be renewed.
const DEAD: &str = "dead";

/// The server: its settings, and a connection for each runtime.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) settings: NatsSettings,
    stores: PerRuntime<Store>,
}

impl Server {
    pub(crate) fn new(settings: NatsSettings) -> Self {
        Self {
            settings,
            stores: PerRuntime::new(),
        }
    }

    /// Runs `request` over this runtime's own connection. After a failure the connection is replaced.
    pub(crate) async fn over<T>(
        &self,
        request: impl AsyncFnOnce(&Store) -> Result<T, BackendError>,
    ) -> Result<Answered<T>, BackendError> {
        self.stores.forget(|store| !store.is_open());
        let settings = self.settings.clone();
        let open = || async move { Store::open(&settings, || ()).await };
        let store = self.stores.get(open).await?;
        let answer = timeout(self.settings.request_timeout, request(&store)).await;
        let answer = answer.unwrap_or_else(|late| Err(unavailable("go on")(late)));
        let value = answer.inspect_err(|_| self.stores.forget(|_| true))?;
        Ok(Answered {
            value,
            repeated: false,
        })
    }
}

/// A connection with its buckets. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) client: Client,
    pub(crate) locks: kv::Store,
    pub(crate) sessions: kv::Store,
}

impl Store {
    /// Connects, and creates the buckets if they don't exist. `ended` is called when the connection breaks.
    pub(crate) async fn open(
        settings: &NatsSettings,
        ended: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, BackendError> {
        let client = ConnectOptions::new()
            .connection_timeout(settings.request_timeout)
            .request_timeout(Some(settings.request_timeout))
            .ping_interval(settings.lease_time / 6)
            // The session layer opens a new one instead.
            .max_reconnects(1)
            .event_callback(move |event| {
                if matches!(event, Event::Disconnected | Event::Closed) {
                    ended();
                }
                std::future::ready(())
            })
            .connect(&settings.url)
            .await
            .map_err(unavailable("connect to NATS"))?;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(settings.request_timeout);
        let bucket = async |name: &str, max_age| {
            let bucket = format!("{}-{name}", settings.bucket);
            let config = stream::Config {
                name: format!("KV_{bucket}"),
                subjects: vec![format!("$KV.{bucket}.>")],
                max_messages_per_subject: 1,
                max_age,
                discard: stream::DiscardPolicy::New,
                allow_rollup: true,
                deny_delete: true,
                // A replica could answer with old data.
                allow_direct: false,
                ..stream::Config::default()
            };
            // This has no effect on an existing bucket with the same settings.
            let made = jetstream.create_stream(config).await;
            made.map_err(|error| match error.kind() {
                CreateStreamErrorKind::TimedOut => unavailable("make the buckets")(error),
                _ => failed(
                    Kind::Misconfigured,
                    "make the buckets: is JetStream on, and were they made with the same lease time?",
                )(error),
            })?;
            let store = jetstream.get_key_value(bucket).await;
            store.map_err(unavailable("open the buckets"))
        };
        Ok(Self {
            locks: bucket("locks", Duration::ZERO).await?,
            sessions: bucket("sessions", settings.lease_time).await?,
            client,
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.client.connection_state() != Line::Disconnected
    }

    /// The lock's state, and its revision.
    pub(crate) async fn read(&self, name: &LockName) -> Result<(State, u64), BackendError> {
        match entry(&self.locks, &key(name)).await? {
            Some(entry) => Ok((decode(&entry.value)?, entry.revision)),
            None => Ok((State::default(), 0)),
        }
    }

    /// Changes the lock's state with `step`, which returns its result and whether to write. If another client has
    /// changed the key meanwhile, the step is repeated on the newer state.
    pub(crate) async fn change<T>(
        &self,
        name: &LockName,
        mut step: impl FnMut(&mut State) -> (T, bool),
    ) -> Result<T, BackendError> {
        loop {
            let (mut state, revision) = self.read(name).await?;
            let (outcome, writes) = step(&mut state);
            if !writes {
                return Ok(outcome);
            }
            let json = serde_json::to_vec(&state);
            let json = json.map_err(failed(Kind::Other, "write a lock"))?;
            let written = update(&self.locks, &key(name), json, revision).await?;
            if written.is_some() {
                return Ok(outcome);
            }
            // A random pause, so that the competing clients don't stay in step.
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..5000))).await;
        }
    }

    /// The names with holders or waiters. Each name that was ever used leaves a key.
    pub(crate) async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let keys = self.locks.keys().await;
        let mut keys = keys.map_err(unavailable("list the locks"))?;
        let mut names = Vec::new();
        while let Some(key) = keys.next().await {
            let key = key.map_err(unavailable("list the locks"))?;
            if let Some(name) = name(&key)
                && self.read(&name).await?.0.claims().next().is_some()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes the claims of dead sessions from a lock, and passes its state to `look`. The caller's own session is
    /// alive.
    pub(crate) async fn bury_the_dead<T>(
        &self,
        name: &LockName,
        own: &str,
        look: impl Fn(&State) -> T,
    ) -> Result<T, BackendError> {
        let (state, _) = self.read(name).await?;
        let mut dead = Vec::new();
        for session in state.claims().map(|claim| &claim.session) {
            if **session != *own && !dead.contains(session) && self.is_dead(session).await? {
                dead.push(session.clone());
            }
        }
        if dead.is_empty() {
            return Ok(look(&state));
        }
        let bury = |state: &mut State| {
            state.leave(|claim| dead.contains(&claim.session));
            (look(state), true)
        };
        self.change(name, bury).await
    }

    /// Whether a session has ended. This marks an expired session as dead, so that it can't be renewed afterwards.
    pub(crate) async fn is_dead(&self, session: &str) -> Result<bool, BackendError> {
        if let Some(entry) = entry(&self.sessions, session).await? {
            return Ok(entry.operation != Operation::Put || entry.value == DEAD);
        }
        let buried = update(&self.sessions, session, DEAD.into(), 0).await?;
        Ok(buried.is_some())
    }

    pub(crate) async fn end_session(&self, session: &str) -> Result<(), BackendError> {
        let deleted = self.sessions.delete(session).await;
        deleted.map_err(unavailable("end the session"))
    }
}

/// The value of a key. A deleted key has none.
pub(crate) async fn entry(
    bucket: &kv::Store,
    key: &str,
) -> Result<Option<kv::Entry>, BackendError> {
    bucket.entry(key).await.map_err(unavailable("read a key"))
}

/// Writes a key if it has this revision (0 for a missing key), and returns its next revision. `None` if it has another
/// one.
pub(crate) async fn update(
    bucket: &kv::Store,
    key: &str,
    value: Vec<u8>,
    revision: u64,
) -> Result<Option<u64>, BackendError> {
    match bucket.update(key, value.into(), revision).await {
        Ok(revision) => Ok(Some(revision)),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
        Err(error) => Err(unavailable("write a key")(error)),
    }
}

pub(crate) fn decode(value: &[u8]) -> Result<State, BackendError> {
    serde_json::from_slice(value).map_err(failed(Kind::Corrupt, "read a lock"))
}

/// A name, encoded with the characters that a key may have.
fn key(name: &LockName) -> String {
    name.as_str()
        .bytes()
        .fold(String::new(), |key, byte| format!("{key}{byte:02x}"))
}

/// The name of a lock's key; `None` if the key is not a lock.
fn name(key: &str) -> Option<LockName> {
    let byte = |at: usize| u8::from_str_radix(key.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..key.len()).step_by(2).map(byte).collect();
    LockName::new(String::from_utf8(bytes?).ok()?).ok()
}

pub(crate) fn unavailable<E: Into<Box<dyn Error + Send + Sync>>>(
    doing: &str,
) -> impl FnOnce(E) -> BackendError {
    failed(Kind::Unavailable, doing)
}

fn failed<E: Into<Box<dyn Error + Send + Sync>>>(
    kind: Kind,
    doing: &str,
) -> impl FnOnce(E) -> BackendError {
    move |error| BackendError::new(kind, format!("can't {doing}")).with_source(error)
}
