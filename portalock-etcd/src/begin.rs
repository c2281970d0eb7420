//! The start of a session: its lease and its key.

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, GetOptions, PutOptions, ResponseHeader};
use portalock_core::{BackendError, BackendErrorKind, clock::Instant, session::spawn};

use crate::{
    endpoints::Endpoints,
    session::{Granted, Session, SessionLease, certain_for},
    witness::Witness,
};

/// The oldest etcd that has every feature this crate uses.
const OLDEST: (u64, u64) = (3, 4);

/// How many answers must come from one member before a session starts.
const SAME_MEMBER: usize = 3;

/// Starts the session, in place of `former`. Returns the time until which the session is certain.
pub(crate) async fn begin(
    session: &Arc<Session>,
    former: Option<&Arc<Session>>,
) -> Result<Instant, BackendError> {
    if let Some(former) = former {
        // Its keys would be in the way, and a request of it may still arrive.
        former.service().revoke().await?;
    }
    let lease = session.service();
    let until = get_lease(lease).await?;
    if let Err(error) = put_key(lease).await {
        // Revoking may take as long as the failed call did, and nobody needs to wait for it.
        let session = session.clone();
        let revoking = spawn(async move {
            if let Err(error) = session.service().revoke().await {
                tracing::debug!(%error, "the lease of a failed start ends by its time");
            }
        });
        if let Ok(revoking) = revoking {
            revoking.detach();
        }
        return Err(error);
    }
    // There is now a key to watch, so the connection can listen.
    session.connection_ended();
    Ok(until)
}

/// Gets the session's lease. Returns the time until which it is certain.
pub(crate) async fn get_lease(lease: &SessionLease) -> Result<Instant, BackendError> {
    let server = &lease.server;
    // etcd counts leases in whole seconds.
    let time = server.settings.lease_time;
    let seconds = time.as_nanos().div_ceil(1_000_000_000);
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let get = |client: Arc<Client>| async move {
        let sent = Instant::now();
        let granted = client.lease_client().grant(seconds, None).await?;
        Ok((granted, sent))
    };
    let (granted, sent) = server.endpoints.call("get a lease", get).await.value?;
    let time = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0));
    lease.was_granted(Granted {
        id: granted.id(),
        time,
        key: server.keys.session(granted.id()),
    });
    Ok(sent.checked_add(certain_for(time)).unwrap_or(sent))
}

/// Puts the session's key, and checks that one connection leads to one member.
pub(crate) async fn put_key(lease: &SessionLease) -> Result<(), BackendError> {
    let start = |client: Arc<Client>| async move {
        let options = PutOptions::new().with_lease(lease.id());
        let mut store = client.kv_client();
        let put = store.put(lease.key(), "", Some(options)).await?;
        let mut answers = Vec::new();
        for _ in 0..SAME_MEMBER {
            let options = GetOptions::new().with_keys_only();
            let read = store.get(lease.key(), Some(options)).await?;
            answers.extend(read.header().map(Witness::of));
        }
        Ok((put, answers))
    };
    let endpoints = &lease.server.endpoints;
    let (put, answers) = endpoints.call("start a session", start).await.value?;
    lease.key_modified(put.header().map_or(0, ResponseHeader::revision));
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
        lease.witness.same(*last);
    }
    Ok(())
}

/// Checks that the cluster is recent enough.
pub(crate) async fn check_version(endpoints: &Endpoints) -> Result<(), BackendError> {
    let status = endpoints
        .call("ask etcd for its version", |client| async move {
            client.maintenance_client().status().await
        })
        .await
        .value?;
    ensure_recent(status.version())
}

fn ensure_recent(version: &str) -> Result<(), BackendError> {
    let mut numbers = version.split('.').map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST => Err(BackendError::new(
            BackendErrorKind::Unsupported,
            format!(
                "etcd {version} is too old: version {}.{} or later is needed",
                OLDEST.0, OLDEST.1
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::ranges;
    use crate::{
        EtcdSettings,
        client::{Client, Server},
    };
    use etcd_client::TxnOp;
    use portalock_core::{
        Loss,
        session::{Service as _, Session as _},
    };
    use portalock_testkit::{
        proxy::{Direction, FaultProxy},
        servers::EtcdServer,
    };

    /// The delay of every answer.
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
        let client = Client::new(Arc::new(Server::new(settings).unwrap()));
        let session = client.session().await.unwrap();
        let lease_time = session.service().lease_time();
        assert_eq!(lease_time, Duration::from_secs(601));
        let certain = certain_for(lease_time);
        // After the answer to the grant came the answers to the put and to the reads.
        let answered_by = Instant::now() - LATE - LATE * u32::try_from(SAME_MEMBER).unwrap();
        assert!(session.lease().deadline().unwrap() <= answered_by - LATE + certain);
    }

    #[tokio::test]
    async fn a_former_session_that_lives_on_at_etcd_is_ended_by_the_next() {
        let server = EtcdServer::start().unwrap();
        let line = FaultProxy::start((std::net::Ipv4Addr::LOCALHOST, server.port(0))).unwrap();
        let timeout = Duration::from_secs(4);
        let settings = EtcdSettings::new([line.addr().to_string()])
            .unwrap()
            .with_lease_time(Duration::from_secs(600))
            .unwrap()
            .with_request_timeout(timeout)
            .unwrap();
        let client = Client::new(Arc::new(Server::new(settings).unwrap()));
        let former = client.session().await.unwrap();
        line.refuse(true);
        line.cut();
        former.end(Loss::Expired);
        // The former session fails to end its lease at etcd, and does not try again.
        tokio::time::sleep(timeout * 3).await;
        line.heal();
        let next = loop {
            if let Ok(session) = client.session().await {
                break session;
            }
        };
        let key = former.service().key();
        let found = next
            .service()
            .server
            .read("look", vec![TxnOp::get(key, None)]);
        assert!(ranges(&found.await.unwrap()).concat().is_empty());
    }

    #[test]
    fn an_etcd_of_unknown_version_is_not_too_old() {
        for version in ["2.3.8", "3.3.27"] {
            let error = ensure_recent(version).unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Unsupported);
            assert!(error.to_string().contains(version), "{error}");
        }
        for version in ["3.4.0", "3.10.1", "4.0.0", "3", "main"] {
            ensure_recent(version).unwrap();
        }
    }
}
