//! A session: one lease, on which all keys of a backend depend. The module [`begin`](crate::begin) starts it.
//!
//! How long a session is certain
//!
//! etcd's leader counts a lease's time from when it executed the grant or the latest renewal. That was after the
//! request was sent, so `sent + time` on this machine's clock is before the lease's end on the leader's clock, except
//! for the drift between the two clocks; [`certain_for`] subtracts more than that drift. A new leader counts every
//! lease's whole time again, from an even later moment. So the deadline kept here passes before etcd deletes a key,
//! whatever messages are lost, with one exception: a member that believes it is the leader executes a renewal without
//! asking the others. A leader that was stopped, deposed meanwhile and then resumed may still answer a renewal that its
//! successor doesn't know. Therefore each renewal is followed by a linearizable read through the same member. The
//! renewal counts only if the member was in the same term from before the renewal was sent until after the read was
//! answered: then a majority has confirmed that term's leader after it renewed the lease, and a later leader began
//! counting after that. The cost is one read per third of the lease time.
//!
//! # What survives a broken connection
//!
//! The whole session survives. It is the lease, not the connection: a new connection leads to the same or another
//! member, and all watches start again on it.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Client, Error, GetOptions, KeyValue, ResponseHeader, Txn, TxnOp, TxnResponse};
use portalock_core::{
    BackendError, BackendErrorKind, Loss, OwnerId, Renewal,
    clock::Instant,
    session::{Answered, Asked, Entered, KeptSession, Leaving, Looked, Service},
};
use tonic::Code;

use crate::{
    begin::{begin, check_version},
    breaking::heed,
    client::{Server, Wish, enter, leave},
    endpoints::{Connection, reader},
    error::backend_error,
    keys::session_end,
    look::{LOOK_EVERY, look},
    numbers::Numbers,
    place::Place,
    queue::revision,
    stream::Line,
    watch::Watches,
    witness::{LastWitness, Witness},
};

const CONNECTING: &str = "open the session's connection";
const ENDING: &str = "end the session";

/// A session with etcd.
pub(crate) type Session = KeptSession<SessionLease>;

/// The state of a session beyond what every session has.
#[derive(Debug)]
pub(crate) struct SessionLease {
    pub(crate) server: Arc<Server>,
    /// Set once the session has started: before that, no request is sent in its name.
    granted: OnceLock<Granted>,
    /// The latest modification of the session's key. Every request for a place names the modification that it knows. If
    /// a request got no answer, modifying the key makes it fail when it arrives later.
    key_revision: AtomicI64,
    /// The largest revision that an answer to the session has contained; `MAX` once a later answer contained a smaller one.
    latest: AtomicI64,
    pub(crate) watches: Arc<Watches>,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) witness: LastWitness,
}

/// The lease, as etcd granted it.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) id: i64,
    /// How long etcd keeps the session without a renewal.
    pub(crate) time: Duration,
    /// The key that exists as long as the session.
    pub(crate) key: String,
}

impl SessionLease {
    /// The id of the lease.
    pub(crate) fn id(&self) -> i64 {
        self.granted.get().map_or(0, |granted| granted.id)
    }

    /// The key that exists as long as the session.
    pub(crate) fn key(&self) -> &str {
        self.granted.get().map_or("", |granted| &granted.key)
    }

    /// Records that etcd has granted the session's lease.
    pub(crate) fn was_granted(&self, granted: Granted) {
        // A session starts once.
        let _ = self.granted.set(granted);
    }

    /// How long one of several members may take for the requests of a renewal: half of what the keeper allows, so that
    /// there is time for another member if one hangs.
    pub(crate) fn patience(&self) -> Duration {
        self.request_timeout().min(self.lease_time() / 6)
    }

    /// The latest known modification of the session's key.
    pub(crate) fn known(&self) -> i64 {
        self.key_revision.load(Ordering::Acquire)
    }

    /// Records a modification of the session's key.
    pub(crate) fn key_modified(&self, revision: i64) {
        // The newest answer counts, not the largest revision, because a restore from a snapshot sets revisions back. An
        // older answer may overwrite a newer one; the next transaction then fails and corrects the value.
        self.key_revision.store(revision, Ordering::Release);
    }

    /// Executes a transaction of the session.
    pub(crate) async fn transact(
        &self,
        doing: &'static str,
        transaction: Txn,
    ) -> Answered<Result<TxnResponse, BackendError>> {
        let latest = self.latest.load(Ordering::Acquire);
        let answered = self.server.transact(doing, transaction).await;
        if let Ok(answer) = &answered.value {
            self.saw(revision(answer), latest);
        }
        answered
    }

    /// Records the revision in an answer to a request that was sent when `latest` was the largest one.
    fn saw(&self, revision: i64, latest: i64) {
        let is_set_back = revision < latest;
        let largest = if is_set_back { i64::MAX } else { revision };
        self.latest.fetch_max(largest, Ordering::AcqRel);
    }

    /// Revokes the lease: etcd deletes the session's keys at once. Idempotent.
    pub(crate) async fn revoke(&self) -> Result<(), BackendError> {
        let id = self.id();
        let revoking = |client: Arc<Client>| async move { client.lease_client().revoke(id).await };
        match self.server.endpoints.call(ENDING, revoking).await.value {
            // The lease no longer exists.
            Err(error) if error.kind() != BackendErrorKind::SessionEnded => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads the session's key.
    pub(crate) fn own(&self) -> TxnOp {
        TxnOp::get(self.key(), Some(GetOptions::new().with_keys_only()))
    }

    /// A linearizable read of the session's key and all keys below it; `None` if the session is over.
    ///
    /// A restore from a snapshot sets revisions back. If it also brings back the session's lease, keys that the session
    /// has deleted since may be back too, and they would stay as long as the session. So the session ends.
    pub(crate) async fn read_key(&self, connection: &Connection) -> Result<Option<Own>, Error> {
        let (key, latest) = (self.key(), self.latest.load(Ordering::Acquire));
        let options = GetOptions::new().with_range(session_end(key));
        let mut read = reader(&connection.client).get(key, Some(options)).await?;
        let header = read.take_header();
        let revision = header.as_ref().map_or(latest, ResponseHeader::revision);
        self.saw(revision, latest);
        let keys = read.take_kvs().into_iter();
        let (own, marks): (Vec<_>, Vec<_>) = keys.partition(|found| found.key() == key.as_bytes());
        let restored = self.latest.load(Ordering::Acquire) == i64::MAX;
        Ok((!own.is_empty() && !restored).then_some(Own { header, marks }))
    }

    /// Renews the lease, with a renewal that counts. Returns the state of the session afterwards, `None` if it is gone.
    async fn renew(&self, connection: &Connection) -> Result<Option<Own>, Error> {
        let mut leases = connection.client.lease_client();
        loop {
            let renewed = leases.keep_alive(self.id()).await;
            let Some(own) = self.read_key(connection).await? else {
                return Ok(None);
            };
            let witness = own.header.as_ref().map(Witness::of);
            let counts = witness.is_some_and(|witness| self.witness.same(witness));
            // If the leader no longer knows a lease whose key still exists, the key is about to be deleted.
            renewed?;
            if counts {
                return Ok(Some(own));
            }
            // The term changed during the renewal, so it doesn't count, but the next one may.
        }
    }
}

/// The state of a session, as read from etcd.
#[derive(Debug)]
pub(crate) struct Own {
    header: Option<ResponseHeader>,
    /// The marks on its holds, see [`breaking`](crate::breaking).
    marks: Vec<KeyValue>,
}

#[async_trait]
impl Service for SessionLease {
    type Shared = Arc<Server>;
    type Wish = Wish;
    type Place = Arc<Place>;
    type Connection = Line;

    const NAME: &'static str = "etcd";

    fn new(server: &Arc<Server>) -> Self {
        Self {
            server: server.clone(),
            granted: OnceLock::new(),
            key_revision: AtomicI64::new(0),
            latest: AtomicI64::new(0),
            watches: Arc::default(),
            numbers: Arc::default(),
            witness: LastWitness::default(),
        }
    }

    fn place(&self, owner: OwnerId, wish: &Wish) -> Arc<Place> {
        Arc::new(Place::new(owner, wish, self.id(), &self.numbers))
    }

    fn lease_time(&self) -> Duration {
        let settings = &self.server.settings;
        self.granted
            .get()
            .map_or(settings.lease_time, |granted| granted.time)
    }

    fn request_timeout(&self) -> Duration {
        self.server.settings.request_timeout
    }

    async fn connect(session: &Arc<Session>) -> Result<Line, BackendError> {
        let lease = session.service();
        let endpoints = &lease.server.endpoints;
        let has_begun = lease.granted.get().is_some();
        if !has_begun {
            // This finds a member that answers.
            check_version(endpoints).await?;
        }
        let line = Line::new(endpoints.connection(CONNECTING, lease.patience()).await?);
        // Before there is a lease, or after it has ended, there is nothing to watch.
        if has_begun && session.ensure_live().is_ok() {
            let listening = line.listen(session).await;
            listening.inspect_err(|_| endpoints.fail(&line.connection))?;
        }
        Ok(line)
    }

    fn is_open(line: &Line) -> bool {
        line.is_open()
    }

    fn gave_up(&self, line: &Line) {
        line.close();
        self.server.endpoints.fail(&line.connection);
    }

    async fn begin(
        session: &Arc<Session>,
        _: &Line,
        former: Option<&Arc<Session>>,
    ) -> Result<Instant, BackendError> {
        begin(session, former).await
    }

    async fn renew(session: &Arc<Session>, line: &Line) -> Result<Renewal, BackendError> {
        let (lease, connection) = (session.service(), &line.connection);
        let mut renewed = lease.renew(connection).await;
        if matches!(&renewed, Err(Error::GRpcStatus(status)) if status.code() == Code::Unauthenticated)
            && connection.client.refresh_token().await.is_ok()
        {
            // Its token had expired, and a new connection would cost more.
            renewed = lease.renew(connection).await;
        }
        let Some(own) = renewed.map_err(|error| backend_error(error, "renew the lease"))? else {
            return Ok(Renewal::Gone(gone()));
        };
        // Before the lease is extended, as the module `breaking` requires.
        heed(session, own.marks);
        Ok(Renewal::Renewed(certain_for(lease.lease_time())))
    }

    async fn look(
        session: &Arc<Session>,
        _: &Line,
        asked: &[Asked<Arc<Place>>],
    ) -> Result<Looked, BackendError> {
        look(session, asked).await
    }

    async fn enter(
        session: &Arc<Session>,
        place: &Arc<Place>,
        wish: &Wish,
    ) -> Result<Answered<Entered>, BackendError> {
        enter(session, place, wish).await
    }

    async fn leave(
        session: &Arc<Session>,
        leaving: &Leaving<Arc<Place>>,
    ) -> Result<Answered<bool>, BackendError> {
        leave(session.service(), leaving).await
    }

    async fn settle(
        session: &Arc<Session>,
        leaving: &Leaving<Arc<Place>>,
    ) -> Result<(), BackendError> {
        leaving.at.withdraw_for_good(session.service()).await
    }

    async fn end(session: &Arc<Session>, _: &Line) -> Result<(), BackendError> {
        session.service().revoke().await
    }

    async fn chores(session: &Arc<Session>, _: Option<Arc<Session>>) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            session.service().watches.forget_idle();
        }
    }
}

/// The loss of a session that has ended at etcd.
pub(crate) fn gone() -> Loss {
    Loss::SessionEnded("its lease expired or was revoked, or the server was restored".into())
}

/// How long a lease of this time is certain, from when it was requested: one percent less, because two clocks don't run
/// at exactly the same speed.
pub(crate) fn certain_for(time: Duration) -> Duration {
    time.saturating_sub(time / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EtcdSettings,
        begin::{get_lease, put_key},
        client::Client,
    };
    use portalock_testkit::servers::EtcdServer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn settings(server: &EtcdServer) -> EtcdSettings {
        let settings = EtcdSettings::new(server.endpoints()).unwrap();
        settings.with_lease_time(Duration::from_secs(600)).unwrap()
    }

    #[tokio::test]
    async fn a_connection_that_is_given_up_hears_nothing_more_and_its_member_is_left() {
        let server = EtcdServer::start().unwrap();
        let client = Client::new(Arc::new(Server::new(settings(&server)).unwrap()));
        let session = client.session().await.unwrap();
        let line = loop {
            if let Some(line) = session.connection() {
                break line;
            }
            tokio::task::yield_now().await;
        };
        let lease = session.service();
        lease.gave_up(&line);
        assert!(!line.is_open());
        let left = lease.server.endpoints.moved_from(&line.connection);
        let soon = Duration::from_secs(60);
        tokio::time::timeout(soon, left).await.unwrap();
    }

    #[tokio::test]
    async fn a_renewal_counts_once_one_member_has_answered_in_one_term_before_and_after_it() {
        let server = EtcdServer::start().unwrap();
        // Without a session nothing else renews the lease or reads.
        let lease = SessionLease::new(&Arc::new(Server::new(settings(&server)).unwrap()));
        get_lease(&lease).await.unwrap();
        put_key(&lease).await.unwrap();
        let endpoints = &lease.server.endpoints;
        let connection = endpoints.connection(CONNECTING, lease.patience());
        let connection = connection.await.unwrap();
        // If the first one does not count, another one follows.
        for reads in [1, 2] {
            if reads == 2 {
                let deposed = Witness { member: 0, term: 0 };
                lease.witness.same(deposed);
            }
            let before = reads_at(&server).await;
            assert!(lease.renew(&connection).await.unwrap().is_some());
            assert_eq!(reads_at(&server).await - before, reads);
        }
    }

    #[tokio::test]
    async fn a_session_is_over_once_an_answer_has_set_its_revision_back() {
        let server = EtcdServer::start().unwrap();
        let lease = SessionLease::new(&Arc::new(Server::new(settings(&server)).unwrap()));
        get_lease(&lease).await.unwrap();
        put_key(&lease).await.unwrap();
        let endpoints = &lease.server.endpoints;
        let connection = endpoints.connection(CONNECTING, lease.patience());
        let connection = connection.await.unwrap();
        let lives = async || lease.read_key(&connection).await.unwrap().is_some();
        let put = || Txn::new().and_then([TxnOp::put("anything", "", None)]);
        let answer = lease.transact(ENDING, put()).await.value.unwrap();
        assert!(lives().await);
        lease.saw(revision(&answer) + 1, 0);
        lease.transact(ENDING, put()).await.value.unwrap();
        assert!(lives().await, "it is not less than known before");
        lease.saw(revision(&answer) + 10, 0);
        lease.transact(ENDING, put()).await.value.unwrap();
        for _ in 0..10 {
            lease.transact(ENDING, put()).await.value.unwrap();
        }
        assert!(!lives().await);
    }

    /// The number of reads that the server has executed, by its own count.
    async fn reads_at(server: &EtcdServer) -> u64 {
        let address = ("127.0.0.1", server.port(0));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd_mvcc_range_total "));
        count.unwrap().parse().unwrap()
    }
}
