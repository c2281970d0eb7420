//! The suite on a real etcd: a new server for each case, with a fault proxy in front of each client.
#![cfg(unix)]

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{DynSemaphore, LockName};
use portalock_etcd::{
    EtcdBackend, EtcdSettings,
    etcd_client::{Client, DeleteOptions},
};
use portalock_testkit::{
    Fixture, FixtureError, Restore,
    proxy::{Direction, FaultProxy},
    servers::EtcdServer,
};
use tokio::task::spawn_blocking;

/// Long enough to stay alive on a busy machine, short enough to wait for its end.
const LEASE: Duration = Duration::from_secs(4);

struct RealEtcd {
    server: Arc<EtcdServer>,
    /// The fault proxy of each client that this fixture has created.
    lines: Mutex<Vec<(String, Arc<FaultProxy>)>>,
}

impl RealEtcd {
    fn start() -> Result<Self, FixtureError> {
        let server = EtcdServer::start().map_err(FixtureError::failed)?;
        Ok(Self {
            server: Arc::new(server),
            lines: Mutex::default(),
        })
    }

    /// The fault proxy between `client` and the server. The address of a client identifies it.
    fn line(&self, client: &EtcdBackend) -> Result<Arc<FaultProxy>, FixtureError> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .find(|(address, _)| client.settings().endpoints().contains(address))
            .map(|(_, line)| line.clone())
            .ok_or_else(|| FixtureError::failed("this client was not made by this fixture"))
    }

    async fn connect(address: &str) -> Result<EtcdBackend, FixtureError> {
        let settings = EtcdSettings::new([address])
            .and_then(|settings| settings.with_lease_time(LEASE))
            .map_err(FixtureError::failed)?;
        Ok(EtcdBackend::with_settings(settings).await?)
    }
}

#[async_trait]
impl Fixture for RealEtcd {
    type Backend = EtcdBackend;

    async fn client(&self) -> Result<EtcdBackend, FixtureError> {
        let line = FaultProxy::start((Ipv4Addr::LOCALHOST, self.server.port(0)))?;
        let address = line.addr().to_string();
        let client = Self::connect(&address).await?;
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push((address, Arc::new(line)));
        Ok(client)
    }

    fn semaphore(&self, client: &Arc<EtcdBackend>) -> Option<DynSemaphore> {
        Some(client.clone())
    }

    async fn crash(&self, client: &EtcdBackend) -> Result<(), FixtureError> {
        let line = self.line(client)?;
        line.refuse(true);
        line.cut();
        Ok(())
    }

    async fn cut_off(&self, client: &EtcdBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.black_hole(Direction::Both);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn lose_answers(&self, client: &EtcdBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.black_hole(Direction::ToClient);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn delay_requests(&self, client: &EtcdBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.strand();
        Ok(Restore::new(async move {
            line.deliver().await;
            Ok(())
        }))
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        self.server.stall(0)?;
        let server = self.server.clone();
        Ok(Restore::new(async move { Ok(server.resume(0)?) }))
    }

    async fn restart_service(&self) -> Result<(), FixtureError> {
        let server = self.server.clone();
        spawn_blocking(move || server.restart(&[0]))
            .await
            .map_err(FixtureError::failed)?
            .map_err(FixtureError::failed)
    }

    fn address(&self) -> Option<String> {
        Some(format!("127.0.0.1:{}", self.server.port(0)))
    }

    async fn connect(address: &str) -> Result<EtcdBackend, FixtureError> {
        Self::connect(address).await
    }
}

portalock_testkit::conformance!(RealEtcd::start());

/// A fault that no backend can report in advance: a person deletes a lock's key.
///
/// If etcd ends a hold by itself, the holder is told in advance; the backend claims this, and the suite above tests the
/// claim. If a person deletes the key, the holder is told afterwards: once the lock has been held for a second, and
/// then soon after the deletion. So these cases run on a backend that claims no more than that.
mod by_hand {
    use portalock_core::{
        Attempt, BackendError, Capabilities, Inspection, LockBackend, LockRequest, LossNotice,
        Released, Wakeups,
    };
    use portalock_testkit::Suite;

    use super::*;

    #[derive(Debug)]
    struct ToldLater(EtcdBackend);

    #[async_trait]
    impl LockBackend for ToldLater {
        fn capabilities(&self) -> Capabilities {
            LockBackend::capabilities(&self.0).with_loss(LossNotice::Within(Duration::from_secs(2)))
        }

        async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
            LockBackend::try_acquire(&self.0, request).await
        }

        async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
            LockBackend::release(&self.0, request).await
        }

        async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
            LockBackend::subscribe(&self.0, request).await
        }

        async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
            LockBackend::inspect(&self.0, name).await
        }
    }

    struct Robbed(RealEtcd);

    #[async_trait]
    impl Fixture for Robbed {
        type Backend = ToldLater;

        async fn client(&self) -> Result<ToldLater, FixtureError> {
            Ok(ToldLater(self.0.client().await?))
        }

        async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
            let mut admin = Client::connect(self.0.server.endpoints(), None)
                .await
                .map_err(FixtureError::failed)?;
            // No name here contains a character that keys escape.
            let queue = format!("portalock//locks/{name}/");
            admin
                .delete(queue, Some(DeleteOptions::new().with_prefix()))
                .await
                .map_err(FixtureError::failed)?;
            Ok(())
        }
    }

    fn check(case: &str) {
        Suite::new(|| async { RealEtcd::start().map(Robbed) }).check(case);
    }

    #[test]
    fn a_lock_taken_away_fires_lost() {
        check("loss::a_lock_taken_away_fires_lost");
    }

    #[test]
    fn a_release_hides_no_loss() {
        check("loss::a_release_hides_no_loss");
    }

    #[test]
    fn a_loss_during_a_hand_over_leaves_one_holder() {
        check("hand_over::a_loss_during_one_leaves_one_holder");
    }

    #[test]
    fn a_leaders_work_stops() {
        check("election::work_stops_before_another_leads");
    }

    #[test]
    fn work_stops_with_the_lock() {
        check("loss::work_stops_with_the_lock");
    }

    #[test]
    fn a_lost_guard_leaves_the_next_holder() {
        check("loss::a_lost_guard_leaves_the_next_holder");
    }

    #[test]
    fn random_history_with_losses() {
        check("stress::random_history_with_losses");
    }
}
