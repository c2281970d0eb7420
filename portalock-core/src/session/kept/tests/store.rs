//! A service in this process whose faults a test switches on, and which notes what it was asked for.

use super::*;

/// A store in this process, with one session.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) lease: Duration,
    pub(super) stands: Mutex<HashMap<u32, Stand>>,
    pub(super) events: watch::Sender<Vec<Event>>,
    pub(super) refuses: AtomicBool,
    pub(super) hangs: AtomicBool,
    pub(super) panics: AtomicBool,
    /// Looks get no answer.
    pub(super) blind: AtomicBool,
    /// Every second look fails.
    pub(super) blinks: AtomicBool,
    pub(super) looks: AtomicU64,
    /// Each look asks for another one.
    pub(super) looks_again: AtomicBool,
    /// The next look hangs.
    pub(super) stares: AtomicBool,
    /// Nobody can connect.
    pub(super) is_away: AtomicBool,
    /// The look that hangs goes on.
    pub(super) blink: Notify,
    /// A request may take as long as a test.
    pub(super) is_patient: AtomicBool,
    /// The first connection refuses to end the session, or hangs.
    pub(super) first_is_deaf: AtomicBool,
    /// Attempts wait for this gate.
    pub(super) gate: AtomicBool,
    /// Attempts get no answer in time.
    pub(super) late: AtomicBool,
    /// Attempts get this answer, whatever the place's state is.
    pub(super) answers: Mutex<Option<fn() -> Entered>>,
    pub(super) repeats: AtomicBool,
    pub(super) ends_with_connection: AtomicBool,
    /// A session's lease ends while it begins.
    pub(super) ends_at_begin: AtomicBool,
    /// The next connect panics, as tokio does if the lookup of a name gets no thread.
    pub(super) connect_panics: AtomicBool,
    /// The next look panics.
    pub(super) look_panics: AtomicBool,
    pub(super) chore_panics: Notify,
    /// The chores, and an end without an answer, panic when they are dropped.
    pub(super) explodes: AtomicBool,
    /// The service does not answer to the end.
    pub(super) end_hangs: AtomicBool,
    /// Connections end as soon as they are made.
    pub(super) ends_connections: AtomicBool,
    /// Places that can't be released.
    pub(super) stuck: Mutex<Vec<u32>>,
    /// Places whose release the service has no means for.
    pub(super) full: Mutex<Vec<u32>>,
    /// Places whose release gets no answer.
    pub(super) silent: Mutex<Vec<u32>>,
    pub(super) releases_hang: AtomicBool,
    /// Each release takes a while.
    pub(super) releases_slowly: AtomicBool,
    pub(super) cannot_settle: AtomicBool,
    pub(super) settles_late: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Connected,
    Asked,
    GaveUp,
    Renewed,
    Looked(usize),
    /// Only the states were read.
    Read(usize),
    /// A look or a release hangs.
    Hung,
    /// The service has no means for a release.
    Full,
    /// And whether a request might still be on its way.
    Released(u32, bool),
    /// This place was left when the session ended.
    Left(u32),
    /// Late requests for this place are refused.
    Settled(u32),
    Ended,
}

impl Store {
    pub(super) fn note(&self, event: Event) {
        self.events.send_modify(|events| events.push(event));
    }

    /// Waits until `event` has happened this number of times.
    pub(super) async fn has_seen(&self, event: Event, times: usize) {
        let mut events = self.events.subscribe();
        let count = |events: &Vec<Event>| events.iter().filter(|it| **it == event).count();
        tokio::time::timeout(PATIENCE, events.wait_for(|events| count(events) >= times))
            .await
            .unwrap_or_else(|_| panic!("{event:?} did not happen"))
            .unwrap();
    }

    pub(super) fn count(&self, event: Event) -> usize {
        let events = self.events.borrow();
        events.iter().filter(|it| **it == event).count()
    }

    pub(super) fn set(&self, place: u32, stand: Stand) {
        self.stands.lock().unwrap().insert(place, stand);
    }

    pub(super) async fn answer(&self) -> Result<(), BackendError> {
        assert!(
            !self.panics.swap(false, Ordering::AcqRel),
            "the test's own panic"
        );
        if self.hangs.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
        if self.refuses.load(Ordering::Acquire) {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "refused"));
        }
        Ok(())
    }

    /// The states of these places.
    async fn see(&self, asked: &[Asked<u32>], event: Event) -> Result<Looked, BackendError> {
        assert!(
            !self.look_panics.swap(false, Ordering::AcqRel),
            "the test's own panic"
        );
        if self.stares.swap(false, Ordering::AcqRel) {
            self.note(Event::Hung);
            self.blink.notified().await;
        }
        let blinks = self.blinks.load(Ordering::Acquire)
            && self.looks.fetch_add(1, Ordering::AcqRel) % 2 == 1;
        if blinks || self.blind.load(Ordering::Acquire) {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "blind"));
        }
        let stands = {
            let stands = self.stands.lock().unwrap();
            let stand = |asked: &Asked<u32>| stands.get(&asked.at).copied();
            asked
                .iter()
                .map(|asked| stand(asked).unwrap_or(Stand::Gone))
                .collect()
        };
        self.note(event);
        let again = self.looks_again.load(Ordering::Acquire).then_some(LOOK_IN);
        Ok(Looked::new(stands, again))
    }
}

struct Explosive<'s>(&'s Store);

impl Drop for Explosive<'_> {
    fn drop(&mut self) {
        let explodes = self.0.explodes.load(Ordering::Acquire);
        assert!(!explodes, "the test's own panic");
    }
}

/// A connection, which tells its session when it ends.
pub(super) struct Line<const ASKS: bool> {
    pub(super) is_open: AtomicBool,
    session: Weak<KeptSession<InStore<ASKS>>>,
}

impl<const ASKS: bool> Drop for Line<ASKS> {
    fn drop(&mut self) {
        if let Some(session) = self.session.upgrade()
            && session.connection().is_none()
        {
            session.connection_ended();
        }
    }
}

/// `ASKS`: whether waiters ask again.
#[derive(Debug, Clone, Default)]
pub(super) struct InStore<const ASKS: bool = false>(pub(super) Arc<Store>);

pub(super) type Kept = KeptSession<InStore>;

#[async_trait]
impl<const ASKS: bool> Service for InStore<ASKS> {
    type Shared = Self;
    /// The place's number, and whether to wait.
    type Wish = (u32, bool);
    type Place = u32;
    type Connection = Arc<Line<ASKS>>;

    const NAME: &'static str = "the store";
    const WAITERS_ASK_AGAIN: bool = ASKS;

    fn new(settings: &Self) -> Self {
        settings.clone()
    }

    fn place(&self, _: OwnerId, wish: &(u32, bool)) -> u32 {
        wish.0
    }

    fn lease_time(&self) -> Duration {
        self.0.lease
    }

    fn request_timeout(&self) -> Duration {
        let is_patient = self.0.is_patient.load(Ordering::Acquire);
        if is_patient { PATIENCE } else { LEASE }
    }

    async fn connect(session: &Arc<KeptSession<Self>>) -> Result<Self::Connection, BackendError> {
        let store = &session.service().0;
        if store.is_away.load(Ordering::Acquire) {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "away"));
        }
        store.note(Event::Connected);
        assert!(
            !store.connect_panics.swap(false, Ordering::AcqRel),
            "the test's own panic"
        );
        let is_short = store.ends_connections.load(Ordering::Acquire);
        if is_short {
            session.connection_ended();
        }
        Ok(Arc::new(Line {
            is_open: AtomicBool::new(!is_short),
            session: Arc::downgrade(session),
        }))
    }

    fn ends_with_connection(&self) -> bool {
        self.0.ends_with_connection.load(Ordering::Acquire)
    }

    fn is_open(connection: &Self::Connection) -> bool {
        connection.is_open.load(Ordering::Acquire)
    }

    fn gave_up(&self, _: &Self::Connection) {
        self.0.note(Event::GaveUp);
    }

    async fn begin(
        session: &Arc<KeptSession<Self>>,
        _: &Self::Connection,
        _: Option<&Arc<KeptSession<Self>>>,
    ) -> Result<Instant, BackendError> {
        let begun = Instant::now();
        let store = &session.service().0;
        store.answer().await?;
        if store.ends_at_begin.load(Ordering::Acquire) {
            session.end(Loss::Expired);
        }
        Ok(begun + session.service().lease_time())
    }

    async fn renew(
        session: &Arc<KeptSession<Self>>,
        _: &Self::Connection,
    ) -> Result<Renewal, BackendError> {
        session.service().0.answer().await?;
        session.service().0.note(Event::Renewed);
        Ok(Renewal::Renewed(session.service().lease_time()))
    }

    async fn look(
        session: &Arc<KeptSession<Self>>,
        _: &Self::Connection,
        asked: &[Asked<u32>],
    ) -> Result<Looked, BackendError> {
        let event = Event::Looked(asked.len());
        session.service().0.see(asked, event).await
    }

    async fn read(
        session: &Arc<KeptSession<Self>>,
        _: &Self::Connection,
        asked: &[Asked<u32>],
    ) -> Result<Looked, BackendError> {
        let event = Event::Read(asked.len());
        session.service().0.see(asked, event).await
    }

    async fn enter(
        session: &Arc<KeptSession<Self>>,
        place: &u32,
        (_, waits): &(u32, bool),
    ) -> Result<Answered<Entered>, BackendError> {
        let store = &session.service().0;
        let repeated = store.repeats.load(Ordering::Acquire);
        store.answer().await?;
        let stand = store.stands.lock().unwrap().get(place).copied();
        store.note(Event::Asked);
        if store.late.load(Ordering::Acquire) {
            tokio::time::sleep(PATIENCE).await;
        }
        while store.gate.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        if let Some(answer) = *store.answers.lock().unwrap() {
            let value = answer();
            return Ok(Answered { value, repeated });
        }
        let value = match stand {
            Some(Stand::Held(token)) => Entered::Granted(token),
            Some(Stand::Gone) | None => Entered::Ended(Loss::Expired),
            Some(_) if *waits => Entered::Queued {
                holder: None,
                look_in: Some(LOOK_IN),
            },
            Some(_) => Entered::Refused(None),
        };
        Ok(Answered { value, repeated })
    }

    async fn leave(
        session: &Arc<KeptSession<Self>>,
        leaving: &Leaving<u32>,
    ) -> Result<Answered<bool>, BackendError> {
        let store = &session.service().0;
        let repeated = store.repeats.load(Ordering::Acquire);
        store.answer().await?;
        if store.releases_hang.load(Ordering::Acquire) {
            store.note(Event::Hung);
            std::future::pending::<()>().await;
        }
        if store.releases_slowly.load(Ordering::Acquire) {
            tokio::time::sleep(SLOW).await;
        }
        if store.stuck.lock().unwrap().contains(&leaving.at) {
            return Err(BackendError::new(BackendErrorKind::Corrupt, "stuck"));
        }
        if store.full.lock().unwrap().contains(&leaving.at) {
            store.note(Event::Full);
            return Err(BackendError::new(BackendErrorKind::Exhausted, "full"));
        }
        if store.silent.lock().unwrap().contains(&leaving.at) {
            return Err(BackendError::new(BackendErrorKind::Unavailable, "silent"));
        }
        store.note(Event::Released(leaving.at, leaving.unsure));
        let removed = store.stands.lock().unwrap().remove(&leaving.at);
        let value = matches!(removed, Some(Stand::Held(_)));
        Ok(Answered { value, repeated })
    }

    async fn settle(
        session: &Arc<KeptSession<Self>>,
        leaving: &Leaving<u32>,
    ) -> Result<(), BackendError> {
        let store = &session.service().0;
        if store.cannot_settle.load(Ordering::Acquire) {
            return Err(BackendError::new(BackendErrorKind::OutOfSpace, "full"));
        }
        if store.settles_late.load(Ordering::Acquire) {
            tokio::time::sleep(PATIENCE).await;
        }
        store.note(Event::Settled(leaving.at));
        Ok(())
    }

    async fn chores(
        session: &Arc<KeptSession<Self>>,
        _: Option<Arc<KeptSession<Self>>>,
    ) -> Infallible {
        let explosive = Explosive(&session.service().0);
        explosive.0.chore_panics.notified().await;
        panic!("the test's own panic");
    }

    async fn end(
        session: &Arc<KeptSession<Self>>,
        _: &Self::Connection,
    ) -> Result<(), BackendError> {
        let store = &session.service().0;
        if store.first_is_deaf.load(Ordering::Acquire) && store.count(Event::Connected) < 2 {
            store.answer().await?;
            return Err(BackendError::new(BackendErrorKind::Unavailable, "deaf"));
        }
        if store.end_hangs.load(Ordering::Acquire) {
            let _explosive = Explosive(store);
            std::future::pending::<()>().await;
        }
        for place in session.places().left() {
            store.note(Event::Left(*place));
        }
        store.note(Event::Ended);
        Ok(())
    }
}

pub(super) async fn start() -> (Arc<Store>, Arc<Kept>, Sessions<Kept>) {
    start_with(LEASE).await
}

pub(super) async fn start_with(lease: Duration) -> (Arc<Store>, Arc<Kept>, Sessions<Kept>) {
    let service = InStore(Arc::new(Store {
        lease,
        ..Store::default()
    }));
    let store = service.0.clone();
    let sessions = Sessions::new();
    let session = sessions.get(|former| Kept::start(service, former)).await;
    (store, session.unwrap(), sessions)
}

/// Ends the current connection, like a reset.
pub(super) fn reset<const ASKS: bool>(session: &KeptSession<InStore<ASKS>>) {
    let connection = session.connection().unwrap();
    connection.is_open.store(false, Ordering::Release);
    drop(connection);
    session.connection_ended();
}
