//! A server for one test, and the reads that tests need.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use portalock_core::{LockBackend, LockName, Policy, Semaphore};
use portalock_etcd::{
    EtcdBackend, EtcdSettings,
    etcd_client::{Client, ConnectOptions, GetOptions, KvClient, Permission},
};
use portalock_testkit::{
    proxy::FaultProxy,
    servers::{EtcdOptions, EtcdServer},
};

/// How long a test waits for something that must happen. The machine may be busy.
const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) etcd: Arc<EtcdServer>,
}

/// A policy for waits on a busy machine.
pub(crate) fn patient() -> Policy {
    Policy::default().with_timeout(LONG)
}

impl Server {
    pub(crate) fn start() -> Self {
        Self {
            etcd: Arc::new(EtcdServer::start().unwrap()),
        }
    }

    pub(crate) fn cluster() -> Self {
        Self {
            etcd: Arc::new(EtcdOptions::new().members(3).start().unwrap()),
        }
    }

    pub(crate) fn with(argument: &str) -> Self {
        let started = EtcdOptions::new().argument(argument).start();
        Self {
            etcd: Arc::new(started.unwrap()),
        }
    }

    /// For users: by default, a check of a password costs so much that a busy machine answers it too late.
    pub(crate) fn with_cheap_passwords() -> Self {
        Self::with("--bcrypt-cost=4")
    }

    /// A fault proxy in front of a member.
    pub(crate) fn line(&self, member: usize) -> FaultProxy {
        FaultProxy::start((Ipv4Addr::LOCALHOST, self.etcd.port(member))).unwrap()
    }

    /// A client that reaches the server through these lines only.
    pub(crate) async fn client_through(
        &self,
        lines: &[&FaultProxy],
        change: impl FnOnce(EtcdSettings) -> EtcdSettings,
    ) -> EtcdBackend {
        let endpoints = lines.iter().map(|line| line.addr().to_string());
        let settings = change(EtcdSettings::new(endpoints).unwrap());
        EtcdBackend::with_settings(settings).await.unwrap()
    }

    /// The same, with a session that outlasts its test, and with this request timeout.
    pub(crate) async fn lasting_client_through(
        &self,
        lines: &[&FaultProxy],
        request_timeout: Duration,
    ) -> EtcdBackend {
        self.client_through(lines, |settings| {
            settings
                .with_request_timeout(request_timeout)
                .unwrap()
                .with_lease_time(Duration::from_secs(600))
                .unwrap()
        })
        .await
    }

    /// Restarts members without blocking the test's own runtime, which has leases to renew.
    pub(crate) async fn restart(&self, members: &'static [usize]) {
        let etcd = self.etcd.clone();
        tokio::task::spawn_blocking(move || etcd.restart(members))
            .await
            .unwrap()
            .unwrap();
    }

    /// Revokes all leases, as an administrator may do.
    pub(crate) async fn revoke_all(&self) {
        let mut leases = self.admin().await.lease_client();
        for lease in leases.leases().await.unwrap().leases() {
            // It makes no difference if a lease ends by itself meanwhile.
            drop(leases.revoke(lease.id()).await);
        }
    }

    /// The sum of one of the first member's counters.
    pub(crate) async fn counter(&self, name: &str) -> f64 {
        self.counter_of(0, name).await
    }

    /// The sum of one of this member's counters.
    pub(crate) async fn counter_of(&self, member: usize, name: &str) -> f64 {
        self.metrics(member)
            .await
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub(crate) fn settings(&self) -> EtcdSettings {
        EtcdSettings::new(self.etcd.endpoints()).unwrap()
    }

    pub(crate) async fn client(&self) -> EtcdBackend {
        EtcdBackend::with_settings(self.settings()).await.unwrap()
    }

    pub(crate) async fn client_with(
        &self,
        change: impl FnOnce(EtcdSettings) -> EtcdSettings,
    ) -> EtcdBackend {
        EtcdBackend::with_settings(change(self.settings()))
            .await
            .unwrap()
    }

    /// A plain client of etcd, without locks.
    pub(crate) async fn admin(&self) -> Client {
        Client::connect(self.etcd.endpoints(), None).await.unwrap()
    }

    pub(crate) async fn raw(&self) -> KvClient {
        self.admin().await.kv_client()
    }

    /// All keys of locks and semaphores.
    pub(crate) async fn lock_keys(&self) -> Vec<String> {
        let mut keys = self.keys("portalock//locks/").await;
        keys.extend(self.keys("portalock//permits/").await);
        keys
    }

    pub(crate) async fn session_keys(&self) -> Vec<String> {
        self.keys("portalock//sessions/").await
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let options = GetOptions::new().with_prefix().with_keys_only();
        let found = self.raw().await.get(prefix, Some(options)).await.unwrap();
        found
            .kvs()
            .iter()
            .map(|key| key.key_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until this number of requests wait for the lock.
    pub(crate) async fn waiters(&self, name: &str, count: usize) {
        let client = self.client().await;
        let name = LockName::new(name).unwrap();
        self.until("so many wait", async || {
            LockBackend::inspect(&client, &name)
                .await
                .unwrap()
                .waiters
                .len()
                == count
        })
        .await;
    }

    /// Waits until this number of requests wait for permits.
    pub(crate) async fn permit_waiters(&self, name: &str, count: usize) {
        let client = self.client().await;
        let name = LockName::new(name).unwrap();
        self.until("so many wait", async || {
            Semaphore::inspect(&client, &name)
                .await
                .unwrap()
                .waiters
                .len()
                == count
        })
        .await;
    }

    pub(crate) async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        until(what, &mut condition).await;
    }

    /// How many transactions and how many deletions the server has executed, by its own count.
    pub(crate) async fn requests(&self) -> (u64, u64) {
        let executed = async |method| {
            let labels = format!("grpc_code=\"OK\",grpc_method=\"{method}\"");
            self.calls("grpc_server_handled_total", &labels).await
        };
        (executed("Txn").await, executed("DeleteRange").await)
    }

    /// How many calls of this method have reached the server, by its own count.
    pub(crate) async fn begun(&self, method: &str) -> u64 {
        let labels = format!("grpc_method=\"{method}\"");
        self.calls("grpc_server_started_total", &labels).await
    }

    /// The sum of a counter of calls, over those whose labels begin with these.
    async fn calls(&self, name: &str, labels: &str) -> u64 {
        let line = format!("{name}{{{labels}");
        self.metrics(0)
            .await
            .lines()
            .filter(|found| found.starts_with(&line))
            .filter_map(|found| found.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    async fn metrics(&self, member: usize) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = ("127.0.0.1", self.etcd.port(member));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Waits until `condition` holds, if no event reports it.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let look = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, look)
        .await
        .unwrap_or_else(|_| panic!("not after {LONG:?}: {what}"));
}

/// Creates the users `root` and `billing`; `billing` may only use the prefix `billing`.
pub(crate) async fn with_users(server: &Server) -> Client {
    let admin = server.admin().await;
    let mut auth = admin.auth_client();
    auth.user_add("root", "hunter2", None).await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.role_add("billing").await.unwrap();
    let whole_prefix = Permission::read_write("billing//").with_prefix();
    auth.role_grant_permission("billing", whole_prefix)
        .await
        .unwrap();
    auth.user_add("billing", "hunter2", None).await.unwrap();
    auth.user_grant_role("billing", "billing").await.unwrap();
    auth.auth_enable().await.unwrap();
    let options = ConnectOptions::new().with_user("root", "hunter2");
    Client::connect(server.etcd.endpoints(), Some(options))
        .await
        .unwrap()
}
