//! A kept session: it is renewed, resumed over a new connection, checked, and ended.

use std::{
    convert::Infallible,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::{Either, join_all, join5, select};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{
    Renewal, Service, Session,
    client::settle,
    keeper::{PANICKED, caught, keep},
    look::{AGAIN_AFTER, Looks, SEEN_AT_ONCE, seen_at_once},
    places::{Asked, Places},
    service::Looked,
    spawn,
};
use crate::{BackendError, BackendErrorKind, Lease, Loss, OwnerId, clock::Instant};

/// The pause before a reconnect, if the last connection did not last. It doubles each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How many releases are repeated at once.
const PAID_AT_ONCE: usize = 32;

/// A [`Session`] over any [`Service`]. It outlives its connection: while the lease lasts, a reset loses no lock and no
/// place. A [`Client`](super::Client) starts it.
pub struct KeptSession<S: Service> {
    service: S,
    lease: Lease,
    places: Places<S::Place>,
    connection: Mutex<Option<S::Connection>>,
    ended: Notify,
    /// Asks for a renewal at once.
    renewal: Notify,
    /// The places of the last reconnect that are still unchecked.
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
    /// Starts a session that replaces `former`, and keeps it until its lease ends. Runs on the session thread.
    ///
    /// # Errors
    ///
    /// The error of [`Service::connect`] or [`Service::begin`]; [`SessionEnded`](BackendErrorKind::SessionEnded) if its
    /// lease ended meanwhile.
    ///
    /// # Cancel safety
    ///
    /// If the call is dropped, a session at the service ends when its time is over.
    pub(super) async fn start(
        service: S,
        former: Option<Arc<Self>>,
    ) -> Result<Arc<Self>, BackendError> {
        // Before `begin` nothing is certain, and no caller has the session.
        let lease = Lease::unbounded();
        let session = Arc::new(Self {
            service,
            places: Places::new(lease.signal()),
            lease,
            connection: Mutex::new(None),
            ended: Notify::new(),
            renewal: Notify::new(),
            unseen: Mutex::default(),
            looks: Looks::default(),
            finished: watch::Sender::default(),
        });
        let connection = S::connect(&session).await?;
        let until = S::begin(&session, &connection, former.as_ref()).await?;
        session.set_connection(Some(connection));
        if !session.lease.extend(until) {
            return Err(session.over());
        }
        // First, because the program's log may panic, and nobody would have the session that goes on.
        tracing::debug!(service = S::NAME, "a session begins");
        spawn(session.clone().live(former))?.detach();
        Ok(session)
    }

    /// The backend's part of the session.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// The places of its owners.
    pub fn places(&self) -> &Places<S::Place> {
        &self.places
    }

    /// Ends the session: its locks are lost. The clean-up runs in the background.
    pub fn end(&self, loss: Loss) {
        self.lease.end(loss);
    }

    /// Fails if the session is no longer certain.
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

    /// The connection has ended, or may have: if so, the session reconnects at once. A session that
    /// [ends with its connection](Service::ends_with_connection) ends.
    pub fn connection_ended(&self) {
        if self.service.ends_with_connection() && self.connection().is_none() {
            self.end(cut_off());
        }
        self.ended.notify_one();
    }

    /// Renews at once instead of at the end of the interval, because the caller needs the answer of a renewal.
    pub fn renew_now(&self) {
        self.renewal.notify_one();
    }

    /// An owner ahead of a waiter may be dead after this time: checks the places then.
    pub fn look_within(&self, time: Duration) {
        self.looks.within(time);
    }

    /// Its current connection.
    pub fn connection(&self) -> Option<S::Connection> {
        let connection = self.lock_connection().clone();
        connection.filter(S::is_open)
    }

    fn over(&self) -> BackendError {
        self.places.over()
    }

    fn interval(&self) -> Duration {
        self.service.lease_time() / 3
    }

    /// Keeps the session until it ends, for whatever reason. Then tells the waiters and cleans up.
    async fn live(self: Arc<Self>, former: Option<Arc<Self>>) {
        let ended = self.lease.signal();
        let upkeep = join5(
            keep(&self.lease, self.interval(), &self.renewal, || self.renew()),
            self.mend(),
            self.look_at_times(),
            self.collect(),
            S::chores(&self, former),
        );
        // Only the first of these ends by itself, with the lease. If one panics, also when it is dropped, those who wait must hear
        // of the end too.
        let kept = async {
            select(pin!(ended.lost()), pin!(upkeep)).await;
            Ok(())
        };
        if caught(kept).await.is_err() {
            self.end(Loss::SessionEnded(PANICKED.into()));
        }
        self.places.close();
        let finished = async {
            let finished = timeout(self.service.request_timeout(), self.finish()).await;
            finished.unwrap_or_else(|_| Err(late::<S>()))
        };
        let finished = caught(finished).await;
        self.finished.send_replace(Some(finished.clone()));
        // Last, because the program's log may panic, and nobody would hear of the end.
        let over = self.over();
        tracing::debug!(service = S::NAME, %over, "a session has ended");
        if let Err(error) = finished {
            tracing::debug!(service = S::NAME, %error, "the session ends by its time at the service");
        }
    }

    /// Waits until the session, which has ended here, has also ended at the service.
    pub(super) async fn finished(&self) -> Result<(), BackendError> {
        let mut finished = self.finished.subscribe();
        // The sender lives as long as the session.
        match finished.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(finished)) => finished.clone(),
            _ => Ok(()),
        }
    }

    async fn finish(self: &Arc<Self>) -> Result<(), BackendError> {
        let present = self.set_connection(None).filter(S::is_open);
        if self.service.ends_with_connection() {
            return match present {
                Some(connection) => S::end(self, &connection).await,
                None => Ok(()),
            };
        }
        if let Some(connection) = present {
            // Half of the time: if the connection is broken or hangs, there is time for another one.
            let within = self.service.request_timeout() / 2;
            if let Ok(Ok(())) = timeout(within, S::end(self, &connection)).await {
                return Ok(());
            }
            self.service.gave_up(&connection);
        }
        let connection = S::connect(self).await?;
        S::end(self, &connection).await
    }

    /// Renews the lease, over a new connection if there is none. After a reconnect the session first checks every place, and
    /// then extends the lease: the service may have lost a hold, and after the extension its holder might be told too late.
    async fn renew(self: &Arc<Self>) -> Result<Renewal, BackendError> {
        let start = Instant::now();
        let connection = if let Some(connection) = self.connection() {
            connection
        } else if self.service.ends_with_connection() {
            return Ok(Renewal::Gone(cut_off()));
        } else {
            let connection = caught(S::connect(self)).await?;
            let _former = self.set_connection(Some(connection.clone()));
            *self.lock_unseen() = self.places.reconnected();
            connection
        };
        let sent = Instant::now();
        // Half of the time of one renewal: if the connection hangs, there is time for another one.
        let within = self.service.request_timeout().min(self.interval() / 2);
        let answer = timeout(within, caught(S::renew(self, &connection))).await;
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

    /// Checks the places that existed at the last reconnect. With very many places this takes longer than one renewal may
    /// take. Then the next renewal continues with the rest.
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
            // One `look` is enough: it may do more at each call than to read these places.
            if rest > 0 {
                self.ask(&some, S::read(self, connection, &some)).await?;
            } else {
                self.ask(&some, S::look(self, connection, &some)).await?;
            }
            self.lock_unseen().truncate(rest);
        }
    }

    /// Reconnects at once when the connection breaks.
    async fn mend(&self) -> Infallible {
        let mut pause = FIRST_PAUSE;
        loop {
            let has_lasted = timeout(LONGEST_PAUSE, self.ended.notified()).await.is_err();
            if has_lasted {
                pause = FIRST_PAUSE;
                self.ended.notified().await;
            }
            if self.connection().is_none() {
                self.renew_now();
            }
            // If each new connection ends at once, for example because the service refuses the subscription, this must not become a
            // busy loop.
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Checks places at intervals, and when an owner ahead of a waiter may have died.
    async fn look_at_times(self: &Arc<Self>) -> Infallible {
        let mut turn = 0;
        loop {
            self.looks.next(self.interval()).await;
            self.pay().await;
            let mut asked = self.places.standing(!S::WAITERS_ASK_AGAIN);
            let at_once = seen_at_once(asked.len(), self.interval());
            if asked.len() > at_once {
                // There are too many for one check: check them in turn.
                asked.sort_unstable_by_key(|asked| asked.owner);
                turn = (turn + at_once) % asked.len();
                asked.rotate_left(turn);
                asked.truncate(at_once);
            }
            // Without a connection nothing is checked. After the reconnect everything is.
            if let Some(connection) = self.connection()
                && (!asked.is_empty() || self.service.looks_anyway())
            {
                // A failed check is repeated soon.
                let _ = self.ask(&asked, S::look(self, &connection, &asked)).await;
            }
        }
    }

    /// Starts a check soon after a release failed or was dropped: it repeats the release. One that the service has lost is repeated at
    /// once, because others may wait, and find the next such release only after this one.
    async fn collect(self: &Arc<Self>) -> Infallible {
        loop {
            let owed = pin!(self.places.owed.notified());
            let unknown = pin!(self.places.unknown.notified());
            match select(owed, unknown).await {
                Either::Left(_) => self.look_within(AGAIN_AFTER),
                Either::Right(_) => self.pay().await,
            }
        }
    }

    async fn ask(
        self: &Arc<Self>,
        asked: &[Asked<S::Place>],
        looking: impl Future<Output = Result<Looked, BackendError>>,
    ) -> Result<(), BackendError> {
        let reconnects = self.places.reconnects();
        let mut is_answered = false;
        let looking = async {
            let looked = looking.await;
            is_answered = true;
            looked
        };
        let looked = self.within_time(looking).await;
        // Nothing more comes over it; and grants would not, either. One that was made meanwhile is another.
        if !is_answered && self.places.reconnects() == reconnects {
            self.give_up_connection();
            self.connection_ended();
        }
        let looked = looked?;
        // It tells what a former server had. The session checks all places over the next connection, before it extends its
        // lease.
        if self.places.reconnects() != reconnects || self.connection().is_none() {
            let given_up = format!("the connection to {} was given up", S::NAME);
            return Err(BackendError::new(BackendErrorKind::Unavailable, given_up));
        }
        for (asked, stand) in asked.iter().zip(looked.stands) {
            self.places.found(asked, stand, S::NAME);
        }
        if let Some(time) = looked.again_in {
            self.look_within(time);
        }
        Ok(())
    }

    /// Repeats the releases that are due, some at once: one after the other, those of a thousand broken locks would take a thousand
    /// round trips. After half of the interval the rest waits for the places to be checked: a holder must hear of its loss in time,
    /// however many releases are due after an outage.
    async fn pay(self: &Arc<Self>) {
        let begun = Instant::now();
        for owners in self.places.due().chunks(PAID_AT_ONCE) {
            if begun.elapsed() > self.interval() / 2 {
                return self.look_within(Duration::ZERO);
            }
            let paid = join_all(owners.iter().map(|owner| self.pay_one(*owner))).await;
            let mut failures = paid
                .iter()
                .map(|paid| paid.as_ref().err().map(BackendError::kind));
            let is_away = failures
                .clone()
                .any(|kind| kind == Some(BackendErrorKind::Unavailable));
            // If the service refused some, the others can still succeed. Without a free connection, each would dial in vain.
            if is_away || failures.all(|kind| kind == Some(BackendErrorKind::Exhausted)) {
                return;
            }
        }
    }

    async fn pay_one(self: &Arc<Self>, owner: OwnerId) -> Result<(), BackendError> {
        let Some(releasing) = self.places.release_due(owner) else {
            return Ok(());
        };
        let leaving = releasing.leaving();
        self.within_time(S::leave(self, leaving)).await?;
        if self.within_time(settle(self, leaving)).await.is_ok() {
            releasing.done();
        }
        Ok(())
    }

    /// Returns the result if it comes in time. Otherwise the session checks again soon.
    async fn within_time<T>(
        &self,
        work: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let done = timeout(self.service.request_timeout(), caught(work)).await;
        let done = done.unwrap_or_else(|_| Err(late::<S>()));
        if let Err(error) = &done {
            tracing::debug!(service = S::NAME, %error, "could not look after what a session has");
            self.look_within(AGAIN_AFTER);
        }
        done
    }

    fn give_up_connection(&self) {
        // The session would end with this connection, which may still answer.
        if self.service.ends_with_connection() {
            return;
        }
        let given_up = self.set_connection(None);
        if let Some(connection) = given_up {
            self.service.gave_up(&connection);
        }
    }

    /// Returns the former connection, which is dropped after the lock: its own destructor may call the session.
    fn set_connection(&self, connection: Option<S::Connection>) -> Option<S::Connection> {
        std::mem::replace(&mut *self.lock_connection(), connection)
    }

    fn lock_connection(&self) -> MutexGuard<'_, Option<S::Connection>> {
        lock(&self.connection)
    }

    fn lock_unseen(&self) -> MutexGuard<'_, Vec<Asked<S::Place>>> {
        lock(&self.unseen)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds the lock.
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
