//! A session: one key that expires, and the connection that hears of grants.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::kv::{Operation, UpdateErrorKind};
use async_trait::async_trait;
use futures_util::{StreamExt, future::try_join_all};
use portalock_core::{
    BackendError, BackendErrorKind as Kind, LockName, Loss, OwnerId, Renewal,
    clock::Instant,
    session::{Asked, KeptSession, Leaving, Looked, Service, Stand, Task, spawn},
};

use crate::{
    backend::NatsSettings,
    state::State,
    store::{ENDED, Store, decode, entry, failed},
};

/// A session with NATS.
pub(crate) type Session = KeptSession<SessionKey>;

#[derive(Debug)]
pub(crate) struct SessionKey {
    pub(crate) id: Arc<str>,
    settings: Arc<NatsSettings>,
    /// The key's revision: only who knows it can renew the session.
    revision: AtomicU64,
}

/// An owner's place in the queue of a name. Each has a name of its own, which a message can't mistake for the owner's next.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: LockName,
    pub(crate) id: Arc<str>,
}

/// A connection, and the task that listens on it.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    store: Store,
    is_open: Arc<AtomicBool>,
    _listener: Arc<Task>,
}

impl Place {
    pub(crate) fn new(name: &LockName, owner: OwnerId) -> Self {
        Self {
            name: name.clone(),
            id: format!("{owner}.{:x}", fastrand::u64(..)).into(),
        }
    }

    fn owner(id: &str) -> Option<OwnerId> {
        id.split_once('.')?.0.parse().ok()
    }
}

impl SessionKey {
    pub(crate) fn new(settings: Arc<NatsSettings>) -> Self {
        Self {
            id: format!("{:032x}", fastrand::u128(..)).into(),
            settings,
            revision: AtomicU64::new(0),
        }
    }

    /// The entry expires by the server's clock, from when it was written: later than this, which counts from when it was sent.
    fn certain(&self) -> Duration {
        self.settings.lease_time.mul_f64(0.95)
    }
}

#[async_trait]
impl Service for SessionKey {
    type Connection = Line;
    type Place = Place;

    const NAME: &'static str = "NATS";

    fn lease_time(&self) -> Duration {
        self.settings.lease_time
    }

    fn request_timeout(&self) -> Duration {
        self.settings.request_timeout
    }

    async fn connect(session: &Arc<Session>) -> Result<Line, BackendError> {
        let is_open = Arc::new(AtomicBool::new(true));
        let ended = {
            let (session, is_open) = (Arc::downgrade(session), is_open.clone());
            move || {
                is_open.store(false, Ordering::Release);
                if let Some(session) = session.upgrade() {
                    session.connection_ended();
                }
            }
        };
        let store = Store::open(&session.service().settings, ended.clone()).await?;
        let listening = "listen for grants";
        let changes = store.locks.watch_all().await;
        let mut changes = changes.map_err(|error| failed(Kind::Unavailable, listening, error))?;
        let ends = store.client.subscribe(ENDED).await;
        let mut ends = ends.map_err(|error| failed(Kind::Unavailable, listening, error))?;
        let hearer = Arc::downgrade(session);
        let listener = spawn(async move {
            loop {
                let state = tokio::select! {
                    change = changes.next() => match change {
                        Some(Ok(entry)) => decode(&entry.value).ok(),
                        _ => break,
                    },
                    end = ends.next() => match end {
                        Some(_) => None,
                        None => break,
                    },
                };
                let Some(session) = hearer.upgrade() else {
                    return;
                };
                match state {
                    Some(state) => hear(&session, &state),
                    // A session that was in the way may have ended.
                    None => session.look_within(Duration::ZERO),
                }
            }
            ended();
        })?;
        Ok(Line {
            store,
            is_open,
            _listener: Arc::new(listener),
        })
    }

    fn is_open(line: &Line) -> bool {
        line.is_open.load(Ordering::Acquire)
    }

    async fn begin(
        session: &Arc<Session>,
        line: &Line,
        former: Option<&Arc<Session>>,
    ) -> Result<Instant, BackendError> {
        let key = session.service();
        if let Some(former) = former {
            line.store.end_session(&former.service().id).await?;
        }
        let sent = Instant::now();
        let begun = line.store.sessions.update(&*key.id, "".into(), 0).await;
        let revision = begun.map_err(|error| failed(Kind::Unavailable, "begin", error))?;
        key.revision.store(revision, Ordering::Release);
        Ok(sent + key.certain())
    }

    async fn renew(session: &Arc<Session>, line: &Line) -> Result<Renewal, BackendError> {
        let (key, sessions) = (session.service(), &line.store.sessions);
        let known = key.revision.load(Ordering::Acquire);
        match sessions.update(&*key.id, "".into(), known).await {
            Ok(revision) => {
                key.revision.store(revision, Ordering::Release);
                return Ok(Renewal::Renewed(key.certain()));
            }
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
            Err(error) => return Err(failed(Kind::Unavailable, "renew", error)),
        }
        // It has expired, or an earlier renewal took effect and its answer was lost.
        match entry(sessions, &key.id).await? {
            Some(entry) if entry.operation == Operation::Put && entry.value.is_empty() => {
                key.revision.store(entry.revision, Ordering::Release);
                Err(BackendError::new(
                    Kind::Unavailable,
                    "a renewal was overtaken",
                ))
            }
            _ => Ok(Renewal::Gone(Loss::SessionEnded(
                "it expired at the server".into(),
            ))),
        }
    }

    async fn look(
        session: &Arc<Session>,
        line: &Line,
        asked: &[Asked<Place>],
    ) -> Result<Looked, BackendError> {
        let own = &session.service().id;
        let stands = asked.iter().map(async |asked| {
            let Place { name, id } = &asked.at;
            let stand = |state: &State| state.stand(id);
            line.store.bury_the_dead(name, own, stand).await
        });
        Ok(Looked::new(try_join_all(stands).await?, None))
    }

    async fn release(
        _: &Arc<Session>,
        line: &Line,
        leaving: &Leaving<Place>,
    ) -> Result<(), BackendError> {
        leave(&line.store, leaving).await.map(drop)
    }

    async fn end(session: &Arc<Session>, line: &Line) -> Result<(), BackendError> {
        line.store.end_session(&session.service().id).await
    }
}

/// Frees a place. True if its owner held.
pub(crate) async fn leave(store: &Store, leaving: &Leaving<Place>) -> Result<bool, BackendError> {
    let Place { name, id } = &leaving.at;
    let step = |state: &mut State| {
        let was_there = state.stand(id) != Stand::Gone;
        // A change of the revision makes void whatever is still on its way.
        let writes = was_there || leaving.unsure;
        (state.leave(|claim| claim.place == *id), writes)
    };
    store.change(name, step).await
}

/// A lock has changed: who of this session holds it now.
fn hear(session: &Session, state: &State) {
    for claim in state
        .claims()
        .filter(|it| it.session == session.service().id)
    {
        if let (Some(token), Some(owner)) = (claim.token(), Place::owner(&claim.place)) {
            let is_of = |place: &Place| place.id == claim.place;
            session.places().granted(owner, token, is_of);
        }
    }
}
