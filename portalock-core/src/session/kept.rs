//! A session that is kept: renewed, taken up again over a new connection, looked after, and ended in good order.

use std::{
    convert::Infallible,
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{join, join4, select};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{
    Keeper, Renewal, Service, Session,
    client::settle,
    look::{AGAIN_AFTER, Looks, SEEN_AT_ONCE, seen_at_once},
    places::{Asked, Places},
    spawn,
};
use crate::{BackendError, BackendErrorKind, Lease, Loss, clock::Instant};

/// Connections that end are not made anew more often than this.
const MENDED_AT_MOST_EVERY: Duration = Duration::from_millis(100);

/// A [`Session`] over any [`Service`]: it is not its connection, so a reset costs nobody a lock or a place as long as the lease
/// lasts. Made by [`start`](Self::start), within [`Sessions::get`](super::Sessions::get).
pub struct KeptSession<S: Service> {
    service: S,
    lease: Lease,
    places: Places<S::Place>,
    connection: Mutex<Option<S::Connection>>,
    ended: Notify,
    hurried: Notify,
    /// How many connections it has had. An attempt that was under way when another one came may have missed its grant.
    connections: AtomicU64,
    /// What there was when the present connection was made and has not been asked for since.
    unseen: Mutex<Vec<Asked<S::Place>>>,
    looks: Looks,
    finished: watch::Sender<Option<Result<(), BackendError>>>,
}

impl<S: Service> Session for KeptSession<S> {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl<S: Service> KeptSession<S> {
    /// Begins a session, in place of `former`, and keeps it until its lease ends. Runs on the session thread.
    ///
    /// # Errors
    ///
    /// What [`Service::connect`] or [`Service::begin`] failed with; [`SessionEnded`](BackendErrorKind::SessionEnded) if its
    /// lease ran out meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call leaves what was begun at the service until its time there ends.
    pub async fn start(service: S, former: Option<Arc<Self>>) -> Result<Arc<Self>, BackendError> {
        // Until it has begun nothing is certain, and nobody knows of it.
        let lease = Lease::unbounded();
        let session = Arc::new(Self {
            service,
            places: Places::new(lease.signal()),
            lease,
            connection: Mutex::new(None),
            ended: Notify::new(),
            hurried: Notify::new(),
            connections: AtomicU64::new(1),
            unseen: Mutex::default(),
            looks: Looks::default(),
            finished: watch::Sender::default(),
        });
        let connection = S::connect(&session).await?;
        let until = S::begin(&session, &connection, former.as_ref()).await?;
        *session.lock_connection() = Some(connection);
        if !session.lease.extend(until) {
            return Err(session.over());
        }
        spawn(session.clone().live(former))?.detach();
        tracing::debug!(service = S::NAME, "a session begins");
        Ok(session)
    }

    /// What the backend keeps for the session.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// What its owners have.
    pub fn places(&self) -> &Places<S::Place> {
        &self.places
    }

    /// Ends the session: its locks are lost. The rest is seen to in the background.
    pub fn end(&self, loss: Loss) {
        self.lease.end(loss);
    }

    /// Fails once the session is certain no more.
    ///
    /// # Errors
    ///
    /// [`SessionEnded`](BackendErrorKind::SessionEnded) then.
    pub fn ensure_live(&self) -> Result<(), BackendError> {
        match self.lease.loss() {
            Some(_) => Err(self.over()),
            None => Ok(()),
        }
    }

    /// Its connection is gone, or may be: another one is made at once. A session that
    /// [ends with its connection](Service::ends_with_connection) is over.
    pub fn connection_ended(&self) {
        if self.service.ends_with_connection() && self.connection().is_none() {
            self.end(cut_off());
        }
        self.ended.notify_one();
    }

    /// Renews at once, for what the renewal tells, rather than when it is due.
    pub fn renew_now(&self) {
        self.hurried.notify_one();
    }

    /// Somebody in front of a waiter may be dead after this time: what the session has is looked after then.
    pub fn look_within(&self, time: Duration) {
        self.looks.within(time);
    }

    /// Its present connection.
    pub fn connection(&self) -> Option<S::Connection> {
        self.lock_connection().clone().filter(S::is_open)
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }

    fn over(&self) -> BackendError {
        self.places.over()
    }

    fn interval(&self) -> Duration {
        self.service.lease_time() / 3
    }

    /// Keeps the session until it ends, however it comes; then tells the waiters and clears up.
    async fn live(self: Arc<Self>, former: Option<Arc<Self>>) {
        let keeper = Keeper::spawn(self.lease.clone(), self.interval(), {
            let session = self.clone();
            move || session.clone().renew()
        });
        match keeper {
            Err(error) => self.end(Loss::SessionEnded(error.to_string().into())),
            Ok(keeper) => {
                let ended = self.lease.signal();
                let upkeep = join4(
                    join(self.mend(&keeper), self.hurry(&keeper)),
                    self.look_at_times(),
                    self.collect(),
                    S::chores(&self, former),
                );
                // None of these ends by itself.
                select(pin!(ended.lost()), pin!(upkeep)).await;
            }
        }
        let over = self.over();
        tracing::debug!(service = S::NAME, %over, "a session has ended");
        self.places.close();
        let finishing = timeout(self.service.request_timeout(), self.finish()).await;
        let finished = finishing.unwrap_or_else(|_| Err(late::<S>()));
        if let Err(error) = &finished {
            tracing::debug!(service = S::NAME, %error, "the session ends by its time at the service");
        }
        self.finished.send_replace(Some(finished));
    }

    /// Waits until the session, which has ended here, has ended at the service.
    pub(super) async fn finished(&self) -> Result<(), BackendError> {
        let mut finished = self.finished.subscribe();
        // Its sender is as old as the session.
        match finished.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(finished)) => finished.clone(),
            _ => Ok(()),
        }
    }

    async fn finish(self: &Arc<Self>) -> Result<(), BackendError> {
        let present = self.lock_connection().take().filter(S::is_open);
        if self.service.ends_with_connection() {
            return match present {
                Some(connection) => S::end(self, &connection).await,
                None => Ok(()),
            };
        }
        if let Some(connection) = present {
            // Half of the time: a connection that is broken or hangs leaves time for another.
            let within = self.service.request_timeout() / 2;
            if let Ok(Ok(())) = timeout(within, S::end(self, &connection)).await {
                return Ok(());
            }
            self.service.gave_up(&connection);
        }
        let connection = S::connect(self).await?;
        S::end(self, &connection).await
    }

    /// Renews the lease, over a new connection if there is none. Over that, every place is asked for before the lease is prolonged:
    /// the service may have lost one, and whoever is told of that later may not be told in time.
    async fn renew(self: Arc<Self>) -> Result<Renewal, BackendError> {
        let start = Instant::now();
        let connection = if let Some(connection) = self.connection() {
            connection
        } else if self.service.ends_with_connection() {
            return Ok(Renewal::Gone(cut_off()));
        } else {
            let connection = S::connect(&self).await?;
            self.connections.fetch_add(1, Ordering::AcqRel);
            *self.lock_connection() = Some(connection.clone());
            // After it has been counted: whoever comes later sees that.
            *self.lock_unseen() = self.places.standing(true);
            connection
        };
        let sent = Instant::now();
        // Half of what the keeper allows: a connection that hangs leaves time for another.
        let within = self.service.request_timeout().min(self.interval() / 2);
        let answer = timeout(within, S::renew(&self, &connection)).await;
        match answer.unwrap_or_else(|_| Err(late::<S>())) {
            Ok(Renewal::Renewed(time)) => {
                self.ask_for_unseen(&connection).await?;
                Ok(Renewal::Renewed(
                    time.saturating_add(sent.duration_since(start)),
                ))
            }
            Ok(gone) => Ok(gone),
            Err(error) => {
                self.give_up_connection();
                Err(error)
            }
        }
    }

    /// Asks for what was there when this connection was made. With very many places that takes longer than one renewal may: the
    /// next one goes on with the rest.
    async fn ask_for_unseen(
        self: &Arc<Self>,
        connection: &S::Connection,
    ) -> Result<(), BackendError> {
        loop {
            let (rest, some) = {
                let unseen = self.lock_unseen();
                let rest = unseen.len().saturating_sub(SEEN_AT_ONCE);
                (rest, unseen[rest..].to_vec())
            };
            if some.is_empty() {
                return Ok(());
            }
            self.ask(connection, &some).await?;
            self.lock_unseen().truncate(rest);
        }
    }

    /// Has a connection that broke made anew at once.
    async fn mend(&self, keeper: &Keeper) -> Infallible {
        loop {
            self.ended.notified().await;
            if self.connection().is_none() {
                keeper.renew_now();
            }
            // One that ends as soon as it is made is not made anew without end.
            sleep(MENDED_AT_MOST_EVERY).await;
        }
    }

    /// Has the session renewed when somebody asks for it.
    async fn hurry(&self, keeper: &Keeper) -> Infallible {
        loop {
            self.hurried.notified().await;
            keeper.renew_now();
        }
    }

    /// Looks now and then, and when somebody in front of a waiter may have died.
    async fn look_at_times(self: &Arc<Self>) -> Infallible {
        let mut turn = 0;
        loop {
            self.looks.next(self.interval()).await;
            self.pay().await;
            let mut asked = self.places.standing(!S::WAITERS_ASK_AGAIN);
            let at_once = seen_at_once(asked.len(), self.interval());
            if asked.len() > at_once {
                // With more, each has its turn.
                asked.sort_unstable_by_key(|asked| asked.owner);
                turn = (turn + at_once) % asked.len();
                asked.rotate_left(turn);
                asked.truncate(at_once);
            }
            // Without a connection nothing is asked: once there is one again, everything is.
            if let Some(connection) = self.connection()
                && (!asked.is_empty() || self.service.looks_anyway())
            {
                // If not, it is asked again soon.
                let _ = self.ask(&connection, &asked).await;
            }
        }
    }

    /// Takes over releases that failed or were dropped half-way.
    async fn collect(&self) -> Infallible {
        loop {
            self.places.owed.notified().await;
            self.look_within(AGAIN_AFTER);
        }
    }

    async fn ask(
        self: &Arc<Self>,
        connection: &S::Connection,
        asked: &[Asked<S::Place>],
    ) -> Result<(), BackendError> {
        let looked = self.within_time(S::look(self, connection, asked)).await?;
        for (asked, stand) in asked.iter().zip(looked.stands) {
            self.places.found(asked, stand, S::NAME);
        }
        if let Some(time) = looked.again_in {
            self.look_within(time);
        }
        Ok(())
    }

    /// Releases what is due.
    async fn pay(self: &Arc<Self>) {
        for owner in self.places.due() {
            let Some(releasing) = self.places.release_due(owner) else {
                continue;
            };
            let leaving = releasing.leaving();
            match self.within_time(S::leave(self, leaving)).await {
                Ok(_) => {}
                Err(error) if error.kind() == BackendErrorKind::Unavailable => return,
                // What the service refuses for one is no reason for the others to wait.
                Err(_) => continue,
            }
            if self.within_time(settle(self, leaving)).await.is_ok() {
                releasing.done();
            }
        }
    }

    /// What this comes to, if it is answered in time. If not, the session looks again soon.
    async fn within_time<T>(
        &self,
        work: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let connections = self.connections();
        let error = match timeout(self.service.request_timeout(), work).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(_) => {
                // Nothing more comes over it; and grants would not, either. One that was made meanwhile is another.
                if self.connections() == connections {
                    self.give_up_connection();
                    self.connection_ended();
                }
                late::<S>()
            }
        };
        tracing::debug!(service = S::NAME, %error, "could not look after what a session has");
        self.look_within(AGAIN_AFTER);
        Err(error)
    }

    fn give_up_connection(&self) {
        // One that the session ends with may still answer.
        if self.service.ends_with_connection() {
            return;
        }
        let given_up = self.lock_connection().take();
        if let Some(connection) = given_up {
            self.service.gave_up(&connection);
        }
    }

    fn lock_connection(&self) -> MutexGuard<'_, Option<S::Connection>> {
        lock(&self.connection)
    }

    fn lock_unseen(&self) -> MutexGuard<'_, Vec<Asked<S::Place>>> {
        lock(&self.unseen)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut_off() -> Loss {
    Loss::SessionEnded("its connection has ended".into())
}

fn late<S: Service>() -> BackendError {
    BackendError::new(
        BackendErrorKind::Unavailable,
        format!("{} did not answer in time", S::NAME),
    )
}

impl<S: Service> fmt::Debug for KeptSession<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptSession")
            .field("service", &self.service)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
