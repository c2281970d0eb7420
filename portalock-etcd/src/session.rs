//! A session: one lease, in which all of a backend's keys live. How it starts see [`begin`](crate::begin).
//!
//! # Until when a session is certain
//!
//! etcd's leader counts a lease's time from when it carried out the grant or the latest renewal. That was after the request
//! was sent, so `sent + time` on this machine's clock comes before the lease's end on the leader's, up to what two
//! clocks drift apart meanwhile; [`certain_for`] takes off more than that. A new leader counts every lease's whole time
//! anew, from later still. So the deadline kept here passes before etcd deletes a key, whatever is lost on the way, but
//! for one thing: a renewal is carried out by whoever takes itself for the leader, without asking the others. A leader
//! that was stopped, deposed meanwhile and then resumed may still answer a renewal that its successor knows nothing of.
//! Therefore each renewal is followed by a linearizable read through the same member, and counts only if the member was
//! in one and the same term from before the renewal was sent until after it was answered: a majority has then confirmed
//! that term's leader after it renewed, and a later leader began counting after that. One read in a third of the lease's
//! time is what this costs.
//!
//! # What survives a broken connection
//!
//! All of it. The session is its lease, not its connection: a new one leads to the same member or to another, and what is waited
//! for is watched anew on it.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Error, GetOptions, KeyValue, ResponseHeader, TxnOp};
use portalock_core::{
    BackendError, BackendErrorKind, Loss, OwnerId, Renewal,
    clock::Instant,
    session::{Answered, Asked, Entered, KeptSession, Leaving, Looked, Service},
};

use crate::{
    begin::{begin, check_version},
    breaking::heed,
    client::{Server, Wish, enter, leave},
    endpoints::Connection,
    error::backend_error,
    keys::session_end,
    look::{LOOK_EVERY, look},
    numbers::Numbers,
    place::Place,
    stream::Line,
    watch::Watches,
    witness::{LastWitness, Witness},
};

const CONNECTING: &str = "open the session's connection";
const RENEWING: &str = "renew the lease";
const ENDING: &str = "end the session";

/// A session with etcd.
pub(crate) type Session = KeptSession<SessionLease>;

/// What there is to know of a session beside what every session has.
#[derive(Debug)]
pub(crate) struct SessionLease {
    pub(crate) server: Arc<Server>,
    /// Set once the session has begun: nothing is asked in its name before.
    granted: OnceLock<Granted>,
    /// The latest modification of the session's key. Every request for a place says which one it knows; so a request whose answer
    /// never came can be made to fail, should it arrive yet, by modifying the key.
    key_revision: AtomicI64,
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
    /// The lease's number.
    pub(crate) fn id(&self) -> i64 {
        self.granted.get().map_or(0, |granted| granted.id)
    }

    /// The key that exists as long as the session.
    pub(crate) fn key(&self) -> &str {
        self.granted.get().map_or("", |granted| &granted.key)
    }

    /// etcd has granted the session's lease.
    pub(crate) fn was_granted(&self, granted: Granted) {
        // A session begins once.
        let _ = self.granted.set(granted);
    }

    /// How long one of several members may take with what a renewal needs: half of what the keeper allows, so that one that hangs
    /// leaves time for another.
    pub(crate) fn patience(&self) -> Duration {
        self.request_timeout().min(self.lease_time() / 6)
    }

    /// The latest modification of the session's key that is known here.
    pub(crate) fn known(&self) -> i64 {
        self.key_revision.load(Ordering::Acquire)
    }

    /// Takes note of a modification of the session's key.
    pub(crate) fn key_modified(&self, revision: i64) {
        // The newest answer counts, not the largest revision: a restore from a snapshot takes revisions back. What an older
        // answer overwrites is corrected by the next transaction that fails for it.
        self.key_revision.store(revision, Ordering::Release);
    }

    /// Gives the lease back: etcd deletes the session's keys at once. Idempotent.
    pub(crate) async fn revoke(&self) -> Result<(), BackendError> {
        let id = self.id();
        let revoked = self
            .server
            .endpoints
            .call(ENDING, |client| async move {
                client.lease_client().revoke(id).await
            })
            .await;
        match revoked {
            // There is no such lease any more.
            Err(error) if error.kind() != BackendErrorKind::SessionEnded => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks for the session's key.
    pub(crate) fn own(&self) -> TxnOp {
        TxnOp::get(self.key(), Some(GetOptions::new().with_keys_only()))
    }

    /// A linearizable look at the session's key and all below it; `None` if the key is gone.
    pub(crate) async fn read_key(&self, connection: &Connection) -> Result<Option<Own>, Error> {
        let key = self.key();
        let options = GetOptions::new().with_range(session_end(key));
        let mut read = connection
            .client
            .kv_client()
            .get(key, Some(options))
            .await?;
        let header = read.take_header();
        let keys = read.take_kvs();
        let (own, marks): (Vec<_>, Vec<_>) = keys
            .into_iter()
            .partition(|found| found.key() == key.as_bytes());
        Ok((!own.is_empty()).then_some(Own { header, marks }))
    }

    /// One renewal: what the session finds of itself afterwards, and whether it counts.
    async fn renew(&self, connection: &Connection) -> Result<Option<(Own, bool)>, Error> {
        let mut leases = connection.client.lease_client();
        let renewed = leases.keep_alive(self.id()).await;
        let Some(own) = self.read_key(connection).await? else {
            return Ok(None);
        };
        let witness = own.header.as_ref().map(Witness::of);
        let counts = witness.is_some_and(|witness| self.witness.same(witness));
        // A lease that the leader calls unknown while its key is still there is about to be deleted.
        renewed?;
        Ok(Some((own, counts)))
    }
}

/// What a session finds of itself.
#[derive(Debug)]
pub(crate) struct Own {
    header: Option<ResponseHeader>,
    /// The marks on what it holds, see [`breaking`](crate::breaking).
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
        // Before there is a lease there is nothing to listen to, nor where it has ended.
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
        let lease = session.service();
        loop {
            let renewed = lease.renew(&line.connection).await;
            let renewed = renewed.map_err(|error| backend_error(error, RENEWING))?;
            let Some((own, counts)) = renewed else {
                return Ok(Renewal::Gone(gone()));
            };
            // Before the lease is prolonged: see there.
            heed(session, own.marks);
            if counts {
                return Ok(Renewal::Renewed(certain_for(lease.lease_time())));
            }
            // Between two terms: what was answered counts for nothing, but the next answer may.
        }
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

/// etcd no longer knows the session.
pub(crate) fn gone() -> Loss {
    Loss::SessionEnded("its lease expired at the server or was revoked by somebody".into())
}

/// For how long a lease of this time is certain, from when it was asked for: a hundredth less, since two clocks don't run
/// at quite the same speed.
pub(crate) fn certain_for(time: Duration) -> Duration {
    time.saturating_sub(time / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EtcdSettings, client::Client};
    use portalock_testkit::servers::EtcdServer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// As if a member had answered that is no longer in office.
    fn deposed(lease: &SessionLease) {
        lease.witness.same(Witness { member: 0, term: 0 });
    }

    /// A session that nothing is done in, and its connection.
    async fn session(server: &EtcdServer) -> (Client, Arc<Session>, Line) {
        let settings = EtcdSettings::new(server.endpoints()).unwrap();
        let settings = settings.with_lease_time(Duration::from_secs(600)).unwrap();
        let before = reads_at(server).await;
        let client = Client::new(Arc::new(Server::new(settings).unwrap()));
        let session = client.session().await.unwrap();
        // Three at its start, one as it listens, one by its first renewal.
        while reads_at(server).await < before + 5 {
            tokio::task::yield_now().await;
        }
        let line = session.connection().unwrap();
        (client, session, line)
    }

    #[tokio::test]
    async fn a_connection_that_is_given_up_hears_nothing_more_and_its_member_is_left() {
        let server = EtcdServer::start().unwrap();
        let (_client, session, line) = session(&server).await;
        let lease = session.service();
        assert!(line.is_open());
        lease.gave_up(&line);
        assert!(!line.is_open());
        let left = lease.server.endpoints.moved_from(&line.connection);
        let soon = Duration::from_secs(60);
        tokio::time::timeout(soon, left).await.unwrap();
    }

    #[tokio::test]
    async fn a_renewal_counts_once_one_member_has_answered_in_one_term_before_and_after_it() {
        let server = EtcdServer::start().unwrap();
        let (_client, session, line) = session(&server).await;
        let lease = session.service();
        deposed(lease);
        let (_, counts) = lease.renew(&line.connection).await.unwrap().unwrap();
        assert!(!counts);
        let (_, counts) = lease.renew(&line.connection).await.unwrap().unwrap();
        assert!(counts);

        // Where the first does not count, another one is made.
        for reads in [1, 2] {
            if reads == 2 {
                deposed(lease);
            }
            let before = reads_at(&server).await;
            let renewed = <SessionLease as Service>::renew(&session, &line).await;
            assert!(matches!(renewed, Ok(Renewal::Renewed(_))), "{renewed:?}");
            assert_eq!(reads_at(&server).await - before, reads);
        }
    }

    /// How many reads the server has carried out, by its own count.
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
