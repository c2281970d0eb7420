//! One connection, and the two buckets over it: every request has a deadline, and every change is conditional.

use std::{error::Error, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event,
    connection::State as Line,
    jetstream::{
        self,
        context::CreateStreamErrorKind,
        kv::{self, EntryErrorKind, Operation, UpdateErrorKind},
        stream,
    },
};
use portalock_core::{BackendError, BackendErrorKind as Kind, LockName};

use crate::{backend::NatsSettings, state::State};

/// Told to everybody when a session has ended in good order.
pub(crate) const ENDED: &str = "portalock.ended";
/// What stands in the key of a session that was found dead, so that nobody can renew it any more.
const DEAD: &str = "dead";

/// A connection with its buckets. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) client: Client,
    pub(crate) locks: kv::Store,
    pub(crate) sessions: kv::Store,
}

impl Store {
    /// Connects, and makes the buckets if they aren't there. `ended` is called when the connection breaks.
    pub(crate) async fn open(
        settings: &NatsSettings,
        ended: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, BackendError> {
        let client = ConnectOptions::new()
            .connection_timeout(settings.request_timeout)
            .request_timeout(Some(settings.request_timeout))
            .ping_interval(settings.lease_time / 6)
            // A new one is made instead, by us.
            .max_reconnects(1)
            .event_callback(move |event| {
                if matches!(event, Event::Disconnected | Event::Closed) {
                    ended();
                }
                std::future::ready(())
            })
            .connect(&settings.url)
            .await
            .map_err(|error| failed(Kind::Unavailable, "connect to NATS", error))?;
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
                // A replica would answer with what was true a moment ago.
                allow_direct: false,
                ..stream::Config::default()
            };
            // Nothing happens to one that is there and has the same settings.
            let made = jetstream.create_stream(config).await;
            made.map_err(|error| match error.kind() {
                CreateStreamErrorKind::JetStream(_) | CreateStreamErrorKind::InvalidStreamName => {
                    failed(
                        Kind::Misconfigured,
                        "use the buckets: is JetStream on, and were they made with the same lease time?",
                        error,
                    )
                }
                _ => failed(Kind::Unavailable, "open the buckets", error),
            })?;
            let store = jetstream.get_key_value(bucket).await;
            store.map_err(|error| failed(Kind::Unavailable, "open the buckets", error))
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

    /// The lock's state, and the revision that it has it in.
    pub(crate) async fn read(&self, name: &LockName) -> Result<(State, u64), BackendError> {
        match entry(&self.locks, &key(name)).await? {
            Some(entry) => Ok((decode(&entry.value)?, entry.revision)),
            None => Ok((State::default(), 0)),
        }
    }

    /// Changes the lock's state by `step`, which says what came of it and whether to write. Made again on the newer state when
    /// somebody was quicker.
    pub(crate) async fn change<T>(
        &self,
        name: &LockName,
        mut step: impl FnMut(&mut State) -> (T, bool),
    ) -> Result<T, BackendError> {
        loop {
            let (mut state, revision) = self.read(name).await?;
            let (outcome, writes) = step(&mut state);
            if !writes || self.write(name, &state, revision).await? {
                return Ok(outcome);
            }
            // Whoever was quicker goes on in step with us otherwise.
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..5000))).await;
        }
    }

    /// False if the state has changed since `revision`.
    async fn write(
        &self,
        name: &LockName,
        state: &State,
        revision: u64,
    ) -> Result<bool, BackendError> {
        const WRITING: &str = "write the state of a lock";
        let json =
            serde_json::to_vec(state).map_err(|error| failed(Kind::Other, WRITING, error))?;
        match self.locks.update(key(name), json.into(), revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(failed(Kind::Unavailable, WRITING, error)),
        }
    }

    /// Takes what dead sessions have out of a lock, and shows `look` its state. The caller's own session is known to live.
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

    /// Whether a session has ended. One that has expired is buried by this: it can't be renewed after somebody has acted on that.
    pub(crate) async fn is_dead(&self, session: &str) -> Result<bool, BackendError> {
        match entry(&self.sessions, session).await? {
            Some(entry) => Ok(entry.operation != Operation::Put || entry.value == DEAD),
            None => match self.sessions.update(session, DEAD.into(), 0).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(failed(Kind::Unavailable, "look after a session", error)),
            },
        }
    }

    /// Ends a session, and has everybody look who it was in the way of.
    pub(crate) async fn end_session(&self, session: &str) -> Result<(), BackendError> {
        const ENDING: &str = "end the session";
        let deleted = self.sessions.delete(session).await;
        deleted.map_err(|error| failed(Kind::Unavailable, ENDING, error))?;
        let told = self.client.publish(ENDED, session.to_owned().into()).await;
        told.map_err(|error| failed(Kind::Unavailable, ENDING, error))
    }
}

/// What a key holds. A deleted key holds nothing.
pub(crate) async fn entry(
    bucket: &kv::Store,
    key: &str,
) -> Result<Option<kv::Entry>, BackendError> {
    bucket.entry(key).await.map_err(|error| {
        let kind = match error.kind() {
            EntryErrorKind::InvalidKey => Kind::Misconfigured,
            EntryErrorKind::TimedOut | EntryErrorKind::Other => Kind::Unavailable,
        };
        failed(kind, "read a key", error)
    })
}

pub(crate) fn decode(value: &[u8]) -> Result<State, BackendError> {
    serde_json::from_slice(value).map_err(|error| failed(Kind::Corrupt, "read a lock", error))
}

/// Any name in the letters that a key may have.
fn key(name: &LockName) -> String {
    name.as_str()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The name of a lock's key; `None` if it is none of ours.
pub(crate) fn name(key: &str) -> Option<LockName> {
    let byte = |at: usize| u8::from_str_radix(key.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..key.len()).step_by(2).map(byte).collect();
    LockName::new(String::from_utf8(bytes?).ok()?).ok()
}

pub(crate) fn failed(
    kind: Kind,
    doing: &str,
    error: impl Into<Box<dyn Error + Send + Sync>>,
) -> BackendError {
    BackendError::new(kind, format!("can't {doing}")).with_source(error)
}
