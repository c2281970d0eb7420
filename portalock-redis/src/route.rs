//! The route to the server: its current address, which is looked up for each new connection.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portalock_core::{
    BackendError, BackendErrorKind,
    clock::Instant,
    session::{self, SingleFlight, in_its_runtime},
};
use redis::ConnectionInfo;
use tokio::{sync::watch, time::timeout};

use crate::{
    address::SentinelAddress,
    cluster::{Cluster, Tag},
    config::RedisSettings,
    sentinel::Sentinels,
    witness::{Enough, Heard, Told, at},
};

/// How long calls wait for a check: the engine waits for 5 s for the whole of a call.
const LOOKS_FOR: Duration = Duration::from_secs(1);

/// The route by which one backend object finds its server.
#[derive(Debug)]
pub(crate) struct Route {
    settings: Arc<RedisSettings>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// Its location has this number.
    Fixed(Box<ConnectionInfo>, AtomicU64),
    Followed(Arc<Followed>),
}

/// The address of the server when it was looked up.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    pub(crate) server: ConnectionInfo,
    /// A different number for each location. It only grows.
    pub(crate) number: u64,
}

/// A primary that can change.
#[derive(Debug)]
struct Followed {
    witnesses: Witnesses,
    server: ConnectionInfo,
    /// The latest location, and since when it is known.
    latest: Mutex<Option<(Told, Instant)>>,
    /// The number of the latest location.
    number: AtomicU64,
    /// When the latest check began that asked all witnesses and has ended, even without an answer.
    looked: watch::Sender<Instant>,
    /// The check of those who have no session.
    looking: SingleFlight<()>,
    /// The process that created this.
    process: u32,
}

/// The servers that know the current address.
#[derive(Debug)]
enum Witnesses {
    Sentinels(Sentinels),
    /// The nodes of a cluster, for the slot of a tag.
    Nodes(Arc<Cluster>, Tag),
}

impl Route {
    pub(crate) fn to_server(server: &ConnectionInfo, settings: &Arc<RedisSettings>) -> Self {
        let way = Way::Fixed(Box::new(server.clone()), AtomicU64::new(0));
        Self::new(way, settings)
    }

    /// A route to the primary that the sentinels name.
    pub(crate) fn by_sentinels(address: &SentinelAddress, settings: &Arc<RedisSettings>) -> Self {
        let sentinels = Witnesses::Sentinels(Sentinels::new(address, settings.clone()));
        let followed = Followed::new(sentinels, address.server.clone());
        Self::new(Way::Followed(Arc::new(followed)), settings)
    }

    /// A route to the node of a cluster that serves the slot of `tag`.
    pub(crate) fn to_slot(cluster: &Arc<Cluster>, tag: Tag, settings: &Arc<RedisSettings>) -> Self {
        let nodes = Witnesses::Nodes(cluster.clone(), tag);
        let followed = Followed::new(nodes, cluster.server().clone());
        Self::new(Way::Followed(Arc::new(followed)), settings)
    }

    fn new(way: Way, settings: &Arc<RedisSettings>) -> Self {
        let settings = settings.clone();
        Self { settings, way }
    }

    pub(crate) fn settings(&self) -> &Arc<RedisSettings> {
        &self.settings
    }

    /// The tag of this route, in a cluster.
    pub(crate) fn tag(&self) -> Option<&Tag> {
        match &self.way {
            Way::Followed(followed) => match &followed.witnesses {
                Witnesses::Nodes(_, tag) => Some(tag),
                Witnesses::Sentinels(_) => None,
            },
            Way::Fixed(..) => None,
        }
    }

    /// The prefix of every key and channel of its locks.
    pub(crate) fn prefix(&self) -> &Arc<str> {
        self.tag().map_or(self.settings.prefix_text(), Tag::prefix)
    }

    /// Whether the server can move.
    pub(crate) fn is_followed(&self) -> bool {
        matches!(self.way, Way::Followed(_))
    }

    /// How often to check whether the server has moved.
    pub(crate) fn look_interval(&self) -> Duration {
        let interval = self.settings.look_interval();
        // In a cluster an answer may be reused for half of the interval.
        if self.tag().is_some() {
            interval / 2
        } else {
            interval
        }
    }

    /// Returns the current address of the server.
    pub(crate) async fn find(&self) -> Result<Location, BackendError> {
        match &self.way {
            Way::Fixed(server, number) => Ok(Location {
                server: (**server).clone(),
                number: number.load(Ordering::Acquire),
            }),
            Way::Followed(followed) => {
                let (looking, fresh) = (followed.clone(), self.reused());
                session::run(async move { looking.look(Enough::Most, fresh).await }).await?
            }
        }
    }

    /// The location of another node of the cluster, which an `ASK` error names for a key of a moving slot. Without a host, it
    /// is on the present node's host.
    pub(crate) fn beside(&self, host: &str, port: u16) -> Location {
        let server = match &self.way {
            Way::Fixed(server, _) => at(server, host, port),
            Way::Followed(followed) => followed.beside(host, port),
        };
        // No connection of calls or of a session leads there, so none is left if it is a replica.
        Location {
            server,
            number: u64::MAX,
        }
    }

    /// Checks whether the server has moved, and asks all servers that may know.
    pub(crate) async fn look(&self) -> Result<(), BackendError> {
        match &self.way {
            Way::Fixed(..) => Ok(()),
            Way::Followed(followed) => {
                let (looking, fresh) = (followed.clone(), self.reused());
                let looked = session::run(async move { looking.look(Enough::All, fresh).await });
                looked.await?.map(drop)
            }
        }
    }

    /// Checks whether the server has moved, if nobody has for a session's time. A session does so all the time, but a backend that only
    /// observes or inspects has none. If servers that may know are away, it doesn't wait for them: an answer of the former primary
    /// counts only until the check has ended.
    pub(crate) async fn look_if_due(&self) {
        let Way::Followed(followed) = &self.way else {
            return;
        };
        let lasts = self.settings.session_ttl();
        // A forked child's copy may be one of a check that never ends.
        if !followed.is_due(lasts) || followed.process != std::process::id() {
            return;
        }
        let ready = || (!followed.is_due(lasts)).then_some(());
        let look = || {
            let looking = followed.clone();
            // The tags of a cluster share an answer.
            async move { looking.look(Enough::All, lasts / 2).await.map(drop) }
        };
        for_a_moment(followed.looking.run(ready, look)).await;
    }

    /// Checks whether the server has moved, for a call that must not reach a former primary.
    pub(crate) async fn look_first(&self) {
        for_a_moment(self.look()).await;
    }

    /// How old an answer may be that is used again.
    fn reused(&self) -> Duration {
        self.settings.look_interval() / 2
    }

    /// Waits until a check has ended that began at most half of a session's time before `sent`: see `primary.rs`. There is
    /// one, unless the session's thread has been paused.
    pub(crate) async fn looked_before(&self, sent: Instant) {
        if let Way::Followed(followed) = &self.way
            && let Some(since) = sent.checked_sub(self.settings.session_ttl() / 2)
        {
            let mut looked = followed.looked.subscribe();
            // The sender lives as long as the route.
            let _ = looked.wait_for(|begun| *begun >= since).await;
        }
    }

    /// The number of the latest location. A connection to an earlier location leads to a server that is no longer the
    /// primary, even if it still believes to be: its answers don't count.
    pub(crate) fn number(&self) -> u64 {
        self.latest_number().load(Ordering::Acquire)
    }

    /// Connections to the location with this number must not be used any more. Its server is a replica, and may lack grants if it
    /// is promoted again: they would not [wait](crate::primary) for the earlier holders. Or the same address may lead to another
    /// server now. Returns false if they were left before.
    pub(crate) fn leave(&self, number: u64) -> bool {
        let left = self.latest_number().compare_exchange(
            number,
            number.saturating_add(1),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        left.is_ok()
    }

    fn latest_number(&self) -> &AtomicU64 {
        match &self.way {
            Way::Fixed(_, number) => number,
            Way::Followed(followed) => &followed.number,
        }
    }
}

impl Followed {
    fn new(witnesses: Witnesses, server: ConnectionInfo) -> Self {
        Self {
            witnesses,
            server,
            latest: Mutex::default(),
            number: AtomicU64::new(0),
            looked: watch::Sender::new(Instant::now()),
            looking: SingleFlight::new(),
            process: std::process::id(),
        }
    }

    /// Whether the latest check is so old.
    fn is_due(&self, age: Duration) -> bool {
        self.looked.borrow().elapsed() >= age
    }

    /// Asks the witnesses. Answers of all of them may be so old as `fresh`. Runs on the session thread.
    async fn look(&self, enough: Enough, fresh: Duration) -> Result<Location, BackendError> {
        if enough == Enough::Most {
            let (asked_at, heard) = self.ask(enough, fresh).await?;
            let is_clear = heard.is_clear(self.lock().as_ref().map(|(told, _)| told));
            if is_clear && let Ok(found) = self.note(asked_at, heard) {
                return Ok(found);
            }
            // The others say which of two addresses counts, or one of them has heard of the last switch.
        }
        let begun = Instant::now();
        let asked = self.ask(Enough::All, fresh).await;
        let asked_at = asked.as_ref().map_or(begun, |(asked_at, _)| *asked_at);
        let found = asked.and_then(|(asked_at, heard)| self.note(asked_at, heard));
        self.looked.send_if_modified(|latest| {
            let is_later = *latest < asked_at;
            *latest = asked_at.max(*latest);
            is_later
        });
        found
    }

    /// Returns the answers, and when the witnesses were asked.
    async fn ask(&self, enough: Enough, fresh: Duration) -> Result<(Instant, Heard), BackendError> {
        match &self.witnesses {
            Witnesses::Sentinels(sentinels) => {
                let now = Instant::now();
                Ok((now, sentinels.ask(enough).await?))
            }
            Witnesses::Nodes(cluster, tag) => cluster.owner(tag.slot(), enough, fresh).await,
        }
    }

    fn beside(&self, host: &str, port: u16) -> ConnectionInfo {
        let latest = self.lock();
        let present = latest.as_ref().map_or("", |(told, _)| &told.host);
        let host = if host.is_empty() { present } else { host };
        at(&self.server, host, port)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Told, Instant)>> {
        // No code panics while it holds the lock.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an answer, unless it is older than the known one. An older epoch is only accepted if all witnesses have
    /// answered: then the witnesses were set up again. They must have been asked since the other one is known.
    fn note(&self, asked_at: Instant, heard: Heard) -> Result<Location, BackendError> {
        let from_all = heard.from_all;
        let mut latest = self.lock();
        let mut told = heard.select(latest.as_ref().map(|(known, _)| known));
        if let Some((known, since)) = &*latest {
            if asked_at < *since && told.epoch <= known.epoch {
                told = known.clone();
            }
            if told.epoch < known.epoch && !from_all {
                return Err(BackendError::new(
                    BackendErrorKind::Unavailable,
                    "can't find the Redis primary: those that answer have not heard of the last switch",
                ));
            }
            if !told.is_at(known) {
                let number = self.number.fetch_add(1, Ordering::AcqRel) + 1;
                tracing::info!(%told.host, told.port, told.epoch, number, "the Redis primary is another server now");
            }
        }
        let location = Location {
            server: at(&self.server, &told.host, told.port),
            number: self.number.load(Ordering::Acquire),
        };
        if latest.as_ref().is_none_or(|(known, _)| *known != told) {
            *latest = Some((told, Instant::now()));
        }
        Ok(location)
    }
}

/// Waits for a check. Without a result, or outside a runtime, nothing changes; then the call itself fails.
async fn for_a_moment(looking: impl Future<Output = Result<(), BackendError>>) {
    // Boxed: the future is large, and each call would reserve space for it.
    let looking = Box::pin(async { timeout(LOOKS_FOR, looking).await.unwrap_or(Ok(())) });
    if let Err(error) = in_its_runtime(looking).await {
        tracing::debug!(%error, "where the Redis primary is, is unknown");
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
