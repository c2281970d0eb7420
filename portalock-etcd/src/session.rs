//! A session: one lease, in which all of a backend's keys live, and the tasks that keep it.
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

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Client, Error, GetOptions, LeaseGrantResponse, LeaseTimeToLiveOptions, PutOptions,
    ResponseHeader,
};
use portalock_core::{
    BackendError, BackendErrorKind, Keeper, Lease, Loss, Renewal, clock::Instant,
};

use crate::{
    EtcdSettings,
    endpoints::{Connection, Endpoints},
    error::{backend_error, session_ended, timed_out},
    holds::{Holds, LOOK_EVERY},
    keys::Keys,
    places::Places,
    slots::Slots,
    watch::Watches,
};

/// The oldest etcd that is known to do all that is asked of it.
const OLDEST: (u64, u64) = (3, 4);

/// How many answers must come from one and the same member before a session starts.
const SAME_MEMBER: usize = 3;

/// What a failed renewal could not do.
const RENEWING: &str = "renew the lease";

impl portalock_core::session::Session for Session {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// One lease and what hangs on it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) lease_id: i64,
    pub(crate) lease: Lease,
    pub(crate) watches: Watches,
    pub(crate) holds: Holds,
    pub(crate) slots: Slots,
    /// The key that exists as long as the session.
    pub(crate) key: String,
    /// The key's latest modification. Every request for a place says which one it knows; so a request whose answer
    /// never came can be made to fail, should it arrive yet, by modifying the key.
    key_revision: AtomicI64,
    granted_time: Duration,
    pub(crate) endpoints: Arc<Endpoints>,
    /// Who answered last, before the next renewal is sent.
    witness: Mutex<Option<Witness>>,
}

/// Which member answered, and in which term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Witness {
    member: u64,
    term: u64,
}

impl Witness {
    fn of(header: Option<&ResponseHeader>) -> Option<Self> {
        header.map(|header| Self {
            member: header.member_id(),
            term: header.raft_term(),
        })
    }
}

impl Session {
    /// Starts a session: a lease, the key that stands for it, and the tasks that keep both. Runs on the session thread.
    pub(crate) async fn start(
        endpoints: Arc<Endpoints>,
        settings: &EtcdSettings,
        keys: &Keys,
        places: Arc<Places>,
    ) -> Result<Arc<Self>, BackendError> {
        check_version(&endpoints).await?;
        let seconds = whole_seconds(settings.lease_time);
        let (granted, sent) = endpoints
            .call("get a lease", |client| grant(client, seconds))
            .await?
            .value;
        let lease_id = granted.id();
        let granted_time = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0));
        let mut session = Self {
            lease_id,
            lease: Lease::until(sent + certain_for(granted_time)),
            watches: Watches::default(),
            holds: Holds::default(),
            slots: Slots::default(),
            key: keys.session(lease_id),
            key_revision: AtomicI64::new(0),
            granted_time,
            endpoints,
            witness: Mutex::new(None),
        };
        if let Err(error) = session.put_key().await {
            // It may take as long as the failed call did, and nobody has to wait for it.
            let revoking = portalock_core::session::spawn(async move {
                if let Err(error) = session.revoke().await {
                    tracing::debug!(%error, "the lease of a failed start ends by its time");
                }
            });
            if let Ok(revoking) = revoking {
                revoking.detach();
            }
            return Err(error);
        }
        let session = Arc::new(session);
        portalock_core::session::spawn(session.clone().live(places))?.detach();
        tracing::debug!(
            lease = format_args!("{lease_id:x}"),
            seconds = granted_time.as_secs(),
            "etcd session started"
        );
        Ok(session)
    }

    /// Puts the session's key, and checks that one connection leads to one member.
    async fn put_key(&mut self) -> Result<(), BackendError> {
        let put = self
            .endpoints
            .call("start a session", |client| {
                let (key, lease_id) = (self.key.clone(), self.lease_id);
                async move {
                    let options = PutOptions::new().with_lease(lease_id);
                    let put = client
                        .kv_client()
                        .put(key.as_str(), "", Some(options))
                        .await?;
                    let mut answers = Vec::new();
                    for _ in 0..SAME_MEMBER {
                        let options = GetOptions::new().with_keys_only();
                        let mut read = client.kv_client().get(key.as_str(), Some(options)).await?;
                        answers.push(Witness::of(read.take_header().as_ref()));
                    }
                    Ok((put, answers))
                }
            })
            .await?
            .value;
        let (put, answers) = put;
        let revision = put.header().map_or(0, ResponseHeader::revision);
        self.key_revision = AtomicI64::new(revision);
        self.witness = Mutex::new(answers.last().copied().flatten());
        let member = |witness: &Option<Witness>| witness.map(|witness| witness.member);
        if answers
            .windows(2)
            .any(|pair| member(&pair[0]) != member(&pair[1]))
        {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "one connection leads to several etcd members, as through `etcd grpc-proxy`: a renewal can't be \
                 confirmed that way, so give the members' own client URLs",
            ));
        }
        Ok(())
    }

    /// How long etcd keeps the session without a renewal.
    pub(crate) const fn granted_time(&self) -> Duration {
        self.granted_time
    }

    /// The error of a session that is certain no more.
    pub(crate) fn ended(&self) -> Option<BackendError> {
        self.lease
            .loss()
            .map(|loss| session_ended(&loss.to_string()))
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

    /// Ends the session: its locks are lost. The rest, waiters and lease, is seen to in the background.
    pub(crate) fn end(&self, loss: Loss) {
        self.lease.end(loss);
    }

    /// Ends the session because etcd no longer knows it.
    pub(crate) fn end_gone(&self) {
        self.end(gone());
    }

    /// Gives the lease back: etcd deletes the session's keys at once. Idempotent.
    pub(crate) async fn revoke(&self) -> Result<(), BackendError> {
        let lease_id = self.lease_id;
        let revoked = self
            .endpoints
            .call("end the session", |client| async move {
                client.lease_client().revoke(lease_id).await
            })
            .await;
        match revoked {
            Ok(_) => Ok(()),
            // There is no such lease any more.
            Err(failure) if failure.error.kind() == BackendErrorKind::SessionEnded => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Keeps the session until it ends, however it comes; then tells the waiters and clears up.
    async fn live(self: Arc<Self>, places: Arc<Places>) {
        let keeper = Keeper::spawn(self.lease.clone(), self.interval(), {
            let session = self.clone();
            move || session.clone().renew()
        });
        if let Err(error) = &keeper {
            self.end(Loss::SessionEnded(error.to_string().into()));
        }
        let ended = self.lease.signal();
        let loss = tokio::select! {
            loss = ended.lost() => loss,
            never = self.watch() => match never {},
            never = self.look_after(&places) => match never {},
        };
        drop(keeper);
        tracing::debug!(lease = format_args!("{:x}", self.lease_id), %loss, "etcd session ended");
        self.watches.fail(&session_ended(&loss.to_string()));
        // The keys may outlive what is certain here. Nobody needs to wait for them.
        if let Err(error) = self.revoke().await {
            tracing::debug!(%error, "the lease could not be revoked: it ends by its time");
        }
        places.forget_all(&self);
    }

    /// A third of the time may pass before a renewal is due.
    fn interval(&self) -> Duration {
        self.granted_time / 3
    }

    /// Renews the lease, at one member after the other.
    async fn renew(self: Arc<Self>) -> Result<Renewal, BackendError> {
        // Half of what the keeper allows: a member that hangs leaves time for another.
        let patience = (self.interval() / 2).min(self.endpoints.request_timeout());
        let start = Instant::now();
        loop {
            let connection = self.endpoints.connection(RENEWING, patience).await?;
            let sent = Instant::now();
            let answer = tokio::time::timeout(patience, self.renew_through(&connection)).await;
            let error = match answer {
                Ok(Ok(Some(true))) => {
                    return Ok(Renewal::Renewed(
                        certain_for(self.granted_time) + sent.duration_since(start),
                    ));
                }
                // Between two terms: what was answered counts for nothing, but the next answer may.
                Ok(Ok(Some(false))) => continue,
                Ok(Ok(None)) => return Ok(Renewal::Gone(gone())),
                Ok(Err(error)) => backend_error(error, RENEWING),
                Err(_) => timed_out(RENEWING),
            };
            self.endpoints.fail(&connection);
            if error.kind() != BackendErrorKind::Unavailable || self.endpoints.len() == 1 {
                return Err(error);
            }
            tracing::debug!(%error, "a renewal failed at one member");
        }
    }

    /// One renewal through one member: whether it counts, or `None` if there is no such session any more.
    async fn renew_through(&self, connection: &Connection) -> Result<Option<bool>, Error> {
        let renewed = connection
            .client
            .lease_client()
            .keep_alive(self.lease_id)
            .await;
        let Some(header) = self.read_key(connection).await? else {
            return Ok(None);
        };
        let now = Witness::of(header.as_ref());
        let before = std::mem::replace(&mut *self.lock_witness(), now);
        // A lease that the leader calls unknown while its key is still there is about to be deleted.
        renewed?;
        Ok(Some(now.is_some() && before == now))
    }

    /// A linearizable look at the session's key: the answer's header, or `None` if the key is gone.
    pub(crate) async fn read_key(
        &self,
        connection: &Connection,
    ) -> Result<Option<Option<ResponseHeader>>, Error> {
        let options = GetOptions::new().with_keys_only();
        let mut read = connection
            .client
            .kv_client()
            .get(self.key.as_str(), Some(options))
            .await?;
        Ok((!read.kvs().is_empty()).then(|| read.take_header()))
    }

    /// Once in a while: ends watches that nobody needs, withdraws what is due, and looks for the keys of what is held.
    async fn look_after(&self, places: &Places) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.watches.forget_idle();
            for owner in places.due(self) {
                if places.release(owner).await.is_err() {
                    break;
                }
            }
            if let Err(error) = self.look_for_held_keys().await {
                tracing::debug!(%error, "could not look for the keys of held locks");
            }
        }
    }

    /// Tells the holders whose keys the lease no longer has.
    async fn look_for_held_keys(&self) -> Result<(), BackendError> {
        let owners = self.holds.owners();
        if owners.is_empty() {
            return Ok(());
        }
        let lease_id = self.lease_id;
        let answer = self
            .endpoints
            .call("look for the keys of held locks", |client| async move {
                let options = LeaseTimeToLiveOptions::new().with_keys();
                client
                    .lease_client()
                    .time_to_live(lease_id, Some(options))
                    .await
            })
            .await?
            .value;
        // A lease that is gone says so by a negative time: that is the renewal's matter.
        if answer.ttl() >= 0 {
            self.holds.found(&owners, answer.keys());
        }
        Ok(())
    }

    fn lock_witness(&self) -> MutexGuard<'_, Option<Witness>> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone() -> Loss {
    Loss::SessionEnded("its lease expired at the server or was revoked by somebody".into())
}

/// For how long a lease of this time is certain, from when it was asked for: a hundredth less, since two clocks don't run
/// at quite the same speed.
pub(crate) fn certain_for(time: Duration) -> Duration {
    time.saturating_sub(time / 100)
}

/// etcd counts leases in whole seconds.
pub(crate) fn whole_seconds(time: Duration) -> i64 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

async fn grant(client: Arc<Client>, seconds: i64) -> Result<(LeaseGrantResponse, Instant), Error> {
    let sent = Instant::now();
    let granted = client.lease_client().grant(seconds, None).await?;
    Ok((granted, sent))
}

async fn check_version(endpoints: &Endpoints) -> Result<(), BackendError> {
    let status = endpoints
        .call("ask etcd for its version", |client| async move {
            client.maintenance_client().status().await
        })
        .await?
        .value;
    let mut numbers = status.version().split('.').map(str::parse::<u64>);
    if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next())
        && (major, minor) < OLDEST
    {
        return Err(BackendError::new(
            BackendErrorKind::Unsupported,
            format!(
                "etcd {} is too old: version {}.{} or later is needed",
                status.version(),
                OLDEST.0,
                OLDEST.1
            ),
        ));
    }
    Ok(())
}
