//! A session: one key that expires, and the connection that receives grants.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::kv::Operation;
use async_trait::async_trait;
use futures_util::{StreamExt, future::try_join_all};
use portalock_core::{
    BackendError, BackendErrorKind as Kind, LockName, LockRequest, Loss, Mode, OwnerId, Patience,
    Renewal,
    clock::Instant,
    session::{
        Answered, Asked, Entered, KeptSession, Leaving, Looked, Service, Stand, Task, new_id,
        spawn,
    },
};

use crate::{
    server::{Server, Store, decode, entry, unavailable, update},
    state::{Claim, State},
};

/// A session with NATS.
pub(crate) type Session = KeptSession<SessionKey>;

#[derive(Debug)]
pub(crate) struct SessionKey {
    pub(crate) id: Arc<str>,
    server: Arc<Server>,
    /// The key's revision: only a client that knows it can renew the session.
    revision: AtomicU64,
}

/// An owner's place in the queue of a name. Each place has a different name, so a message can't be mistaken for one
/// about the owner's next place.
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

impl SessionKey {
    /// The server counts the entry's time from when it wrote the entry. This client counts from when it sent the
    /// request, which is earlier, so the session ends here first.
    fn certain(&self) -> Duration {
        self.server.settings.lease_time.mul_f64(0.95)
    }
}

#[async_trait]
impl Service for SessionKey {
    type Shared = Arc<Server>;
    type Wish = LockRequest;
    type Place = Place;
    type Connection = Line;

    const NAME: &'static str = "NATS";

    fn new(server: &Arc<Server>) -> Self {
        Self {
            id: new_id(),
            server: server.clone(),
            revision: AtomicU64::new(0),
        }
    }

    fn place(&self, owner: OwnerId, request: &LockRequest) -> Place {
        Place {
            name: request.name.clone(),
            id: format!("{owner}.{:x}", fastrand::u64(..)).into(),
        }
    }

    fn lease_time(&self) -> Duration {
        self.server.settings.lease_time
    }

    fn request_timeout(&self) -> Duration {
        self.server.settings.request_timeout
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
        let store = Store::open(&session.service().server.settings, ended.clone()).await?;
        let changes = store.locks.watch_all().await;
        let mut changes = changes.map_err(unavailable("listen for grants"))?;
        let hearer = Arc::downgrade(session);
        let listener = spawn(async move {
            while let (Some(Ok(entry)), Some(session)) = (changes.next().await, hearer.upgrade()) {
                if let Ok(state) = decode(&entry.value) {
                    hear(&session, &state);
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
        match update(&line.store.sessions, &key.id, Vec::new(), 0).await? {
            Some(revision) => key.revision.store(revision, Ordering::Release),
            None => return Err(BackendError::new(Kind::Other, "two sessions have one id")),
        }
        Ok(sent + key.certain())
    }

    async fn renew(session: &Arc<Session>, line: &Line) -> Result<Renewal, BackendError> {
        let (key, sessions) = (session.service(), &line.store.sessions);
        let known = key.revision.load(Ordering::Acquire);
        if let Some(revision) = update(sessions, &key.id, Vec::new(), known).await? {
            key.revision.store(revision, Ordering::Release);
            return Ok(Renewal::Renewed(key.certain()));
        }
        match entry(sessions, &key.id).await? {
            // An earlier renewal took effect, but its answer was lost.
            Some(entry) if entry.operation == Operation::Put && entry.value.is_empty() => {
                key.revision.store(entry.revision, Ordering::Release);
                Err(BackendError::new(Kind::Unavailable, "renewed out of turn"))
            }
            _ => Ok(Renewal::Gone(Loss::SessionEnded("it expired".into()))),
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

    async fn enter(
        session: &Arc<Session>,
        place: &Place,
        request: &LockRequest,
    ) -> Result<Answered<Entered>, BackendError> {
        let own = &session.service().id;
        let queues = request.patience == Patience::Queue;
        let shared = request.demand == Mode::Shared;
        let claim = || Claim::new(&place.id, own, shared, &request.holder);
        let step = |state: &mut State| state.enter(claim(), queues);
        let over = async |store: &Store| {
            let entered = store.change(&request.name, step).await?;
            if !matches!(entered, Entered::Refused(_)) {
                return Ok(entered);
            }
            // The session of a waiter checks for dead owners. A request that doesn't wait must do it itself, because
            // all owners in its way may be dead.
            store.bury_the_dead(&request.name, own, |_| ()).await?;
            store.change(&request.name, step).await
        };
        session.service().server.over(over).await
    }

    async fn leave(
        session: &Arc<Session>,
        leaving: &Leaving<Place>,
    ) -> Result<Answered<bool>, BackendError> {
        let Place { name, id } = &leaving.at;
        let step = |state: &mut State| {
            // A change of the revision makes requests fail that may still arrive.
            let writes = leaving.unsure || state.stand(id) != Stand::Gone;
            (state.leave(|claim| claim.place == *id), writes)
        };
        let over = async |store: &Store| store.change(name, step).await;
        session.service().server.over(over).await
    }

    async fn end(session: &Arc<Session>, line: &Line) -> Result<(), BackendError> {
        line.store.end_session(&session.service().id).await
    }
}

/// Handles a changed lock: tells the owners of this session that now hold it.
fn hear(session: &Session, state: &State) {
    let own = &session.service().id;
    for claim in state.claims().filter(|claim| claim.session == *own) {
        if let (Some(token), Some(owner)) = (claim.token(), owner_of(&claim.place)) {
            let is_of = |place: &Place| place.id == claim.place;
            session.places().granted(owner, token, is_of);
        }
    }
}

fn owner_of(place: &str) -> Option<OwnerId> {
    place.split_once('.')?.0.parse().ok()
}
