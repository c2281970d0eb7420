//! The way to the service, and what goes wrong on it.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portalock_core::{BackendError, clock::Instant};
use tokio::sync::mpsc;

use crate::records::{News, Records, away};

pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_millis(250);

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
        self.serve(|records| records.is_empty())
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

    /// Another server takes over, which has not heard of what was last.
    pub(crate) fn fails_over(&self) {
        let mut records = locked(&self.records);
        let mut older = locked(&self.older);
        let now = std::mem::take(&mut *records);
        *records = std::mem::replace(&mut *older, now.clone());
        records.take_over_from(now);
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
        let news = records.take_news();
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
