//! The conformance suite in a cluster, with one cluster for all cases. A restart of the service is a failover of every
//! primary.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::DynSemaphore;
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    Fixture, FixtureError, Restore,
    servers::{RedisCluster, RedisClusterOptions},
};
use tokio::task::spawn_blocking;

/// Longer than a failover, for cases that must lose nothing in it.
const SESSION: Duration = Duration::from_secs(5);
/// Long, so that a node that a case stalls does not count as failed. Nodes vote only once per primary in twice this time,
/// so the second switch may have to wait for it.
const NODE_TIMEOUT: Duration = Duration::from_secs(20);

/// The part of the cluster for one case: its own keys.
struct InCluster {
    cluster: Arc<Mutex<RedisCluster>>,
    prefix: String,
}

impl InCluster {
    async fn with_cluster<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut RedisCluster) -> io::Result<T> + Send + 'static,
    ) -> Result<T, FixtureError> {
        let cluster = self.cluster.clone();
        let action = move || action(&mut cluster.lock().unwrap_or_else(PoisonError::into_inner));
        let done = spawn_blocking(action).await.map_err(FixtureError::failed)?;
        Ok(done?)
    }
}

#[async_trait]
impl Fixture for InCluster {
    type Backend = RedisBackend;

    async fn client(&self) -> Result<RedisBackend, FixtureError> {
        let url = self.with_cluster(|cluster| Ok(cluster.url())).await?;
        let settings = RedisSettings::new(&url)
            .and_then(|settings| settings.with_prefix(&self.prefix))
            .and_then(|settings| settings.with_session_ttl(SESSION))
            .map_err(FixtureError::failed)?;
        // Nodes are promoted again and again, and the cases have no time to wait.
        let settings = settings.with_restart_wait(Duration::ZERO);
        Ok(RedisBackend::with_settings(settings).await?)
    }

    fn semaphore(&self, client: &Arc<RedisBackend>) -> Option<DynSemaphore> {
        Some(client.clone())
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        self.with_cluster(|cluster| {
            (0..cluster.len()).try_for_each(|node| cluster.node(node).stall())
        })
        .await?;
        let this = Self {
            cluster: self.cluster.clone(),
            prefix: String::new(),
        };
        Ok(Restore::new(async move {
            let resume = |cluster: &mut RedisCluster| {
                (0..cluster.len()).try_for_each(|node| cluster.node(node).resume())?;
                cluster.until_whole()
            };
            this.with_cluster(resume).await
        }))
    }

    async fn restart_service(&self) -> Result<(), FixtureError> {
        let switch = |cluster: &mut RedisCluster| {
            for slot in [0, 8_000, 16_000] {
                cluster.fail_over(slot)?;
            }
            cluster.until_whole()
        };
        self.with_cluster(switch).await
    }
}

fn play(which: impl Fn(&str) -> bool) {
    let options = RedisClusterOptions::new().node_timeout(NODE_TIMEOUT);
    let cluster = Arc::new(Mutex::new(options.start().unwrap()));
    let case = move |prefix| InCluster {
        cluster: cluster.clone(),
        prefix,
    };
    crate::fixture::play(case, which);
}

#[test]
fn the_suite_holds_in_a_cluster() {
    let groups = ["exclusive", "fairness", "names", "semaphore", "tokens"];
    let restarts = [
        "loss::a_restart_leaves_no_false_holder",
        "loss::a_stalled_service_ends_the_lease",
    ];
    play(|id| {
        groups
            .iter()
            .any(|group| id.starts_with(&format!("{group}::")))
            || restarts.contains(&id)
    });
}

#[test]
#[ignore = "most cases are the same on a single server; this plays all that need no line of a client's own"]
fn the_whole_suite_holds_in_a_cluster() {
    play(|_| true);
}
