//! How a session starts, and what looks after it until it ends. All of it runs on the session thread.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use etcd_client::{Client, Error, GetOptions, LeaseGrantResponse, PutOptions, ResponseHeader};
use portalock_core::{
    BackendError, BackendErrorKind, Keeper, Lease, Loss, clock::Instant, session::spawn,
};
use tokio::sync::Notify;

use crate::{
    EtcdSettings,
    endpoints::Endpoints,
    error::session_ended,
    keys::Keys,
    look::is_there,
    numbers::Numbers,
    places::Places,
    queue::ranges,
    renewal::certain_for,
    session::Session,
    watch::Watches,
    witness::{LastWitness, Witness},
};

/// The oldest etcd that is known to do all that is asked of it.
const OLDEST: (u64, u64) = (3, 4);

/// How many answers must come from one and the same member before a session starts.
const SAME_MEMBER: usize = 3;

/// How often a session looks whether the keys of what it holds are there, withdraws what is due, and ends idle watches.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many keys are read in one transaction: etcd takes no more than 128 by default.
const KEYS_AT_ONCE: usize = 100;

/// Starts a session: a lease, the key that stands for it, and the tasks that keep both.
pub(crate) async fn start(
    endpoints: Arc<Endpoints>,
    settings: &EtcdSettings,
    keys: &Keys,
    places: Arc<Places>,
) -> Result<Arc<Session>, BackendError> {
    check_version(&endpoints).await?;
    // etcd counts leases in whole seconds.
    let seconds = settings.lease_time.as_nanos().div_ceil(1_000_000_000);
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let (granted, sent) = endpoints
        .call("get a lease", |client| grant(client, seconds))
        .await?;
    let lease_id = granted.id();
    let granted_time = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0));
    let mut session = Session {
        lease_id,
        lease: Lease::until(sent + certain_for(granted_time)),
        granted_time,
        key: keys.session(lease_id),
        key_revision: AtomicI64::new(0),
        watches: Watches::default(),
        marked: Notify::new(),
        numbers: Numbers::default(),
        endpoints,
        witness: LastWitness::default(),
    };
    if let Err(error) = put_key(&mut session).await {
        // It may take as long as the failed call did, and nobody has to wait for it.
        let revoking = spawn(async move {
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
    spawn(live(session.clone(), places))?.detach();
    tracing::debug!(
        lease = format_args!("{lease_id:x}"),
        seconds = granted_time.as_secs(),
        "etcd session started"
    );
    Ok(session)
}

/// Puts the session's key, and checks that one connection leads to one member.
async fn put_key(session: &mut Session) -> Result<(), BackendError> {
    let (put, answers) = session
        .endpoints
        .call("start a session", |client| {
            let (key, lease_id) = (session.key.clone(), session.lease_id);
            async move {
                let options = PutOptions::new().with_lease(lease_id);
                let mut store = client.kv_client();
                let put = store.put(key.as_str(), "", Some(options)).await?;
                let mut answers = Vec::new();
                for _ in 0..SAME_MEMBER {
                    let options = GetOptions::new().with_keys_only();
                    let read = store.get(key.as_str(), Some(options)).await?;
                    answers.extend(read.header().map(Witness::of));
                }
                Ok((put, answers))
            }
        })
        .await?;
    let revision = put.header().map_or(0, ResponseHeader::revision);
    session.key_revision = AtomicI64::new(revision);
    for pair in answers.windows(2) {
        if pair[0].member != pair[1].member {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "one connection leads to several etcd members, as through `etcd grpc-proxy`: a renewal can't be \
                 confirmed that way, so give the members' own client URLs",
            ));
        }
    }
    if let Some(last) = answers.last() {
        session.witness.same(*last);
    }
    Ok(())
}

/// Keeps the session until it ends, however it comes; then tells the waiters and clears up.
async fn live(session: Arc<Session>, places: Arc<Places>) {
    let keeper = Keeper::spawn(session.lease.clone(), session.renewal_interval(), {
        let (session, places) = (session.clone(), places.clone());
        move || session.clone().renew(places.clone())
    });
    if let Err(error) = &keeper {
        session
            .lease
            .end(Loss::SessionEnded(error.to_string().into()));
    }
    let ended = session.lease.signal();
    let loss = tokio::select! {
        loss = ended.lost() => loss,
        never = session.watch() => match never {},
        never = look_after(&session, &places) => match never {},
        never = renew_when_marked(&session, &keeper) => match never {},
    };
    drop(keeper);
    tracing::debug!(lease = format_args!("{:x}", session.lease_id), %loss, "etcd session ended");
    session.watches.fail(&session_ended(&loss.to_string()));
    // The keys may outlive what is certain here. Nobody needs to wait for them.
    if let Err(error) = session.revoke().await {
        tracing::debug!(%error, "the lease could not be revoked: it ends by its time");
    }
    places.forget_all(&session);
}

async fn renew_when_marked(session: &Session, keeper: &Result<Keeper, BackendError>) -> Infallible {
    loop {
        session.marked.notified().await;
        if let Ok(keeper) = keeper {
            keeper.renew_now();
        }
    }
}

/// Once in a while: ends watches that nobody needs, withdraws what is due, and looks for the keys of what is held.
async fn look_after(session: &Session, places: &Places) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        session.watches.forget_idle();
        for (owner, _) in places.due(session) {
            if places.release(owner).await.is_err() {
                break;
            }
        }
        if let Err(error) = look_for_held_keys(session, places).await {
            tracing::debug!(%error, "could not look for the keys of held locks");
        }
    }
}

/// Tells holders whose keys somebody deleted. etcd itself deletes a key only with its lease, whose end is noticed by itself;
/// so this is about people and their tools. A lock that is held for less than [`LOOK_EVERY`] costs nothing.
async fn look_for_held_keys(session: &Session, places: &Places) -> Result<(), BackendError> {
    for some in places.held(session).chunks(KEYS_AT_ONCE) {
        let keys = [session.own()]
            .into_iter()
            .chain(some.iter().map(|(_, place)| place.own()));
        let doing = "look for the keys of held locks";
        let answer = session.read(doing, keys.collect()).await?;
        let mut found = ranges(&answer).into_iter();
        if found.next().is_some_and(|own| own.is_empty()) {
            session.end_gone();
            return Ok(());
        }
        for ((owner, place), own) in some.iter().zip(found) {
            if place.taken.is_some_and(|taken| !is_there(&own, taken)) {
                places.lose(*owner, place);
            }
        }
    }
    Ok(())
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
        .await?;
    if is_too_old(status.version()) {
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

fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u64>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portalock_core::Renewal;
    use portalock_testkit::{
        proxy::{Direction, FaultProxy},
        servers::EtcdServer,
    };

    /// How late every answer is.
    const LATE: Duration = Duration::from_millis(700);

    #[tokio::test]
    async fn a_lease_is_counted_from_when_it_was_asked_for() {
        let server = EtcdServer::start().unwrap();
        let line = FaultProxy::start((std::net::Ipv4Addr::LOCALHOST, server.port(0))).unwrap();
        line.delay(Direction::ToClient, LATE);
        let settings = EtcdSettings::new([line.addr().to_string()])
            .unwrap()
            .with_lease_time(Duration::from_millis(600_001))
            .unwrap()
            .with_request_timeout(Duration::from_secs(60))
            .unwrap();
        let endpoints = Arc::new(Endpoints::new(&settings).unwrap());
        let keys = Keys::new("test");
        let session = start(endpoints, &settings, &keys, Arc::default())
            .await
            .unwrap();
        assert_eq!(session.granted_time, Duration::from_secs(601));
        let certain = certain_for(session.granted_time);
        // After the grant's answer came that of a put, and those of the reads.
        let answered_by = Instant::now() - LATE - LATE * u32::try_from(SAME_MEMBER).unwrap();
        assert!(session.lease.deadline().unwrap() <= answered_by - LATE + certain);

        let renewed = session.renew(Arc::default()).await.unwrap();
        let Renewal::Renewed(time) = renewed else {
            panic!("{renewed:?}")
        };
        // It was answered later than that.
        assert!(time < certain + LATE, "{time:?}");
    }

    #[test]
    fn an_etcd_of_unknown_version_is_not_too_old() {
        for version in ["2.3.8", "3.3.27"] {
            assert!(is_too_old(version), "{version}");
        }
        for version in ["3.4.0", "3.10.1", "4.0.0", "3", "main"] {
            assert!(!is_too_old(version), "{version}");
        }
    }
}
