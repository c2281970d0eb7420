//! The service: its records, as Redis or Postgres keep them, and the way there.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portalock_core::{
    BackendError, BackendErrorKind, FencingToken, Holder, OwnerId, clock, clock::Instant,
};
use tokio::sync::mpsc;

pub(crate) const LEASE: Duration = Duration::from_millis(900);
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_millis(250);

/// A place in a lock's queue. Those at the front hold.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) place: Arc<str>,
    pub(crate) owner: OwnerId,
    pub(crate) session: u64,
    pub(crate) shared: bool,
    pub(crate) token: Option<FencingToken>,
    pub(crate) held: bool,
}

#[derive(Debug, Clone)]
struct Mark {
    session: u64,
    by: Holder,
    /// Until then its holder may rely on the lock without knowing of the mark.
    relies_until: Instant,
}

/// What the service tells a session.
#[derive(Debug, Clone)]
pub(crate) enum News {
    Granted(Arc<str>, OwnerId, FencingToken),
    RenewNow,
}

/// What the service knows. An empty queue stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    sessions: HashMap<u64, Instant>,
    queues: HashMap<Arc<str>, Vec<Claim>>,
    last_token: u64,
    refused: HashSet<Arc<str>>,
    marks: HashMap<Arc<str>, Mark>,
    /// After a failover nobody is granted until all who may still rely on a lock have renewed.
    grants_from: Option<Instant>,
    news: Vec<(u64, News)>,
}

impl Records {
    fn expire(&mut self) {
        let now = Instant::now();
        self.sessions.retain(|_, ends| *ends > now);
        let names: Vec<_> = self.queues.keys().cloned().collect();
        for name in names {
            if let Some(queue) = self.queues.get_mut(&name) {
                queue.retain(|claim| self.sessions.contains_key(&claim.session));
            }
            self.serve(&name);
        }
    }

    /// Grants the lock to those at the front.
    fn serve(&mut self, name: &str) {
        if self.grants_from.is_some_and(|from| Instant::now() < from) {
            return;
        }
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        for at in 0..queue.len() {
            let (ahead, rest) = queue.split_at_mut(at);
            let claim = &mut rest[0];
            let fits = ahead.iter().all(|other| other.shared && claim.shared);
            if !fits {
                return;
            }
            if !claim.held {
                // Also those that follow a failover to an older state are greater.
                self.last_token = (self.last_token + 1).max(clock::wall_clock_micros());
                let token = *claim
                    .token
                    .get_or_insert(FencingToken::new(self.last_token));
                claim.held = true;
                let news = News::Granted(claim.place.clone(), claim.owner, token);
                self.news.push((claim.session, news));
            }
        }
    }

    pub(crate) fn begin(&mut self, session: u64, former: Option<u64>) {
        if let Some(former) = former {
            self.end(former);
        }
        self.sessions.insert(session, Instant::now() + LEASE);
    }

    pub(crate) fn end(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.expire();
    }

    pub(crate) fn lives(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    /// Renews a session, and returns the marks of its places, if it still lives.
    pub(crate) fn renew(&mut self, session: u64) -> Option<Vec<(Arc<str>, Holder)>> {
        *self.sessions.get_mut(&session)? = Instant::now() + LEASE;
        let marks = self
            .marks
            .iter()
            .filter(|(_, mark)| mark.session == session);
        Some(
            marks
                .map(|(place, mark)| (place.clone(), mark.by.clone()))
                .collect(),
        )
    }

    pub(crate) fn heed(&mut self, marks: &[Arc<str>]) {
        self.marks.retain(|place, _| !marks.contains(place));
    }

    pub(crate) fn queue(&self, name: &str) -> &[Claim] {
        self.queues.get(name).map_or(&[], Vec::as_slice)
    }

    /// The claims of a session, each with the name of its lock.
    pub(crate) fn claims_of(&self, session: u64) -> Vec<(Arc<str>, Claim)> {
        let all = self
            .queues
            .iter()
            .flat_map(|(name, queue)| queue.iter().map(move |claim| (name.clone(), claim.clone())));
        all.filter(|(_, claim)| claim.session == session).collect()
    }

    /// Enters a claim, unless it is there or its place was refused, and returns what came of it. If the claim ahead is of the same
    /// session, that is returned too: the session can hand the lock on by itself, with the token that the new claim has already.
    pub(crate) fn enter(
        &mut self,
        name: &Arc<str>,
        new: Claim,
        queues: bool,
    ) -> Option<(Claim, Option<Claim>)> {
        if self.refused.contains(&new.place) {
            return None;
        }
        let place = new.place.clone();
        let queue = self.queues.entry(name.clone()).or_default();
        if !queue.iter().any(|claim| claim.place == place) {
            queue.push(new);
            self.serve(name);
            // The caller hears of it by the answer.
            self.news.pop_if(
                |(_, news)| matches!(news, News::Granted(granted, ..) if *granted == place),
            );
        }
        let queue = self.queues.get_mut(name)?;
        let at = queue.iter().position(|claim| claim.place == place)?;
        if !queue[at].held && !queues {
            queue.remove(at);
            return None;
        }
        let (ahead, rest) = queue.split_at_mut(at);
        let (ahead, claim) = (ahead.last(), &mut rest[0]);
        let ahead = ahead.filter(|ahead| {
            !claim.held
                && !claim.shared
                && !ahead.shared
                && ahead.session == claim.session
                && ahead.token.is_some()
        });
        if ahead.is_some() && claim.token.is_none() {
            self.last_token = (self.last_token + 1).max(clock::wall_clock_micros());
            claim.token = Some(FencingToken::new(self.last_token));
        }
        Some((claim.clone(), ahead.cloned()))
    }

    /// Removes a claim, and says whether it was held. If a request for it may still come, that is refused from now on.
    pub(crate) fn leave(&mut self, name: &str, place: &Arc<str>, unsure: bool) -> bool {
        if unsure {
            self.refused.insert(place.clone());
        }
        self.marks.remove(place);
        let Some(queue) = self.queues.get_mut(name) else {
            return false;
        };
        let Some(at) = queue.iter().position(|claim| claim.place == *place) else {
            return false;
        };
        let held = queue.remove(at).held;
        self.serve(name);
        held
    }

    fn held_by(&self, name: &str, owner: OwnerId) -> Option<&Claim> {
        let mut queue = self.queue(name).iter();
        queue.find(|claim| claim.owner == owner && claim.held)
    }

    pub(crate) fn mark(&mut self, name: &str, owner: OwnerId, by: Holder) -> Option<Duration> {
        let claim = self.held_by(name, owner)?.clone();
        let relies_until = *self.sessions.get(&claim.session)?;
        self.marks.entry(claim.place).or_insert(Mark {
            session: claim.session,
            by,
            relies_until,
        });
        self.news.push((claim.session, News::RenewNow));
        Some(relies_until.saturating_duration_since(Instant::now()))
    }

    /// Removes what a marked holder holds, and says whether it held it.
    pub(crate) fn evict(&mut self, name: &str, owner: OwnerId) -> Result<bool, BackendError> {
        let Some(claim) = self.held_by(name, owner).cloned() else {
            return Ok(false);
        };
        let mark = self.marks.get(&claim.place);
        if mark.is_none_or(|mark| mark.relies_until > Instant::now()) {
            return Err(away("it may still rely on the lock"));
        }
        Ok(self.leave(name, &claim.place, false))
    }
}

/// A session's connection, by which it hears news.
#[derive(Debug)]
pub(crate) struct Connection {
    open: AtomicBool,
    news: mpsc::UnboundedSender<News>,
}

impl Connection {
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

/// The service and the way there.
pub(crate) struct World {
    records: Mutex<Records>,
    /// What another server knows, which would take over.
    older: Mutex<Records>,
    connections: Mutex<HashMap<u64, Weak<Connection>>>,
    back_at: Mutex<Option<Instant>>,
    calm: AtomicBool,
    random: Mutex<fastrand::Rng>,
    sessions: Mutex<u64>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap()
}

pub(crate) fn away(message: &'static str) -> BackendError {
    BackendError::new(BackendErrorKind::Unavailable, message)
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            records: Mutex::default(),
            older: Mutex::default(),
            connections: Mutex::default(),
            back_at: Mutex::default(),
            calm: AtomicBool::new(false),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            sessions: Mutex::default(),
        }
    }

    pub(crate) fn one_of(&self, choices: usize) -> usize {
        locked(&self.random).usize(..choices)
    }

    pub(crate) fn up_to(&self, milliseconds: u64) -> Duration {
        Duration::from_micros(locked(&self.random).u64(..=milliseconds * 1000))
    }

    pub(crate) async fn pause(&self, milliseconds: u64) {
        tokio::time::sleep(self.up_to(milliseconds)).await;
    }

    pub(crate) fn new_session(&self) -> u64 {
        let mut last = locked(&self.sessions);
        *last += 1;
        *last
    }

    pub(crate) fn connect(&self, session: u64) -> (Arc<Connection>, mpsc::UnboundedReceiver<News>) {
        let (news, heard) = mpsc::unbounded_channel();
        let open = AtomicBool::new(true);
        let connection = Arc::new(Connection { open, news });
        locked(&self.connections).insert(session, Arc::downgrade(&connection));
        (connection, heard)
    }

    /// From now on nothing fails.
    pub(crate) fn calm(&self) {
        self.calm.store(true, Ordering::Release);
        *locked(&self.back_at) = None;
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Acquire)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.serve(|records| records.queues.values().all(Vec::is_empty))
    }

    pub(crate) fn is_away_for(&self, time: Duration) {
        *locked(&self.back_at) = Some(Instant::now() + time);
    }

    pub(crate) fn reset_a_connection(&self) {
        let open: Vec<_> = locked(&self.connections)
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        if !open.is_empty() {
            open[self.one_of(open.len())]
                .open
                .store(false, Ordering::Release);
        }
    }

    /// Another server takes over, which has not heard of what was last. As with the backends, it extends all sessions, grants nothing
    /// for as long as somebody may rely on a lock, and knows what was refused.
    pub(crate) fn fails_over(&self) {
        let mut records = locked(&self.records);
        let mut older = locked(&self.older);
        let now = std::mem::take(&mut *records);
        *records = std::mem::replace(&mut *older, now.clone());
        records.refused = now.refused;
        records.last_token = now.last_token;
        records.grants_from = Some(Instant::now() + LEASE);
        records.news.clear();
        for ends in records.sessions.values_mut() {
            *ends = Instant::now() + LEASE;
        }
        for connection in locked(&self.connections).values().filter_map(Weak::upgrade) {
            connection.open.store(false, Ordering::Release);
        }
    }

    async fn on_its_way<T: Send + 'static>(
        self: &Arc<Self>,
        request: impl FnOnce(&mut Records) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        if self.is_calm() {
            return Ok(self.serve(request));
        }
        self.pause(3).await;
        if locked(&self.back_at).is_some_and(|at| Instant::now() < at) {
            if self.one_of(2) == 0 {
                return Err(away("refused"));
            }
            std::future::pending::<()>().await;
        }
        match self.one_of(100) {
            0 => return Err(away("lost")),
            1 | 2 => {
                let world = self.clone();
                tokio::spawn(async move {
                    world.pause(150).await;
                    drop(world.serve(request));
                });
                self.pause(60).await;
                return Err(away("late"));
            }
            3 | 4 => {
                self.serve(request);
                return Err(away("the answer is lost"));
            }
            5 => std::future::pending().await,
            6 => self.pause(120).await,
            _ => {}
        }
        let answer = self.serve(request);
        self.pause(3).await;
        Ok(answer)
    }

    fn serve<T>(&self, request: impl FnOnce(&mut Records) -> T) -> T {
        let mut records = locked(&self.records);
        records.expire();
        let answer = request(&mut records);
        let news = std::mem::take(&mut records.news);
        if self.one_of(20) == 0 {
            *locked(&self.older) = records.clone();
        }
        drop(records);
        let connections = locked(&self.connections);
        for (session, news) in news {
            let connection = connections.get(&session).and_then(Weak::upgrade);
            if let Some(connection) = connection.filter(|connection| connection.is_open()) {
                let _not_heard = connection.news.send(news);
            }
        }
        answer
    }
}

/// A client's way to the service.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) world: Arc<World>,
    cut_until: Mutex<Option<Instant>>,
}

impl Line {
    pub(crate) fn new(world: &Arc<World>) -> Self {
        Self {
            world: world.clone(),
            cut_until: Mutex::default(),
        }
    }

    /// For this time its requests get no answer.
    pub(crate) fn cut_for(&self, time: Duration) {
        *locked(&self.cut_until) = Some(Instant::now() + time);
    }

    fn is_cut(&self) -> bool {
        let until = *locked(&self.cut_until);
        !self.world.is_calm() && until.is_some_and(|until| Instant::now() < until)
    }

    /// A request, and what may happen on its way.
    pub(crate) async fn request<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Records) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        let on_its_way = async {
            if self.is_cut() {
                std::future::pending::<()>().await;
            }
            self.world.on_its_way(request).await
        };
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, on_its_way).await;
        answered.unwrap_or_else(|_| Err(away("no answer in time")))
    }
}
