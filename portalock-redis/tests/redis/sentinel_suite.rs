//! A part of the conformance suite behind sentinels, with one group for all cases. A restart of the service is a
//! switch.
//!
//! The other cases need a proxy for the client or another process, and work the same as on a single server.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::DynSemaphore;
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{Fixture, FixtureError, Restore, servers::SentinelGroup};
use tokio::task::spawn_blocking;

/// Longer than a switch, for cases that must lose nothing in it.
const SESSION: Duration = Duration::from_secs(5);

/// The part of the group for one case: its own keys.
struct BehindSentinels {
    group: Arc<Mutex<SentinelGroup>>,
    prefix: String,
}

impl BehindSentinels {
    async fn with_group<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut SentinelGroup) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, FixtureError> {
        let group = self.group.clone();
        let action = move || action(&mut group.lock().unwrap_or_else(PoisonError::into_inner));
        let done = spawn_blocking(action).await.map_err(FixtureError::failed)?;
        Ok(done?)
    }
}

#[async_trait]
impl Fixture for BehindSentinels {
    type Backend = RedisBackend;

    async fn client(&self) -> Result<RedisBackend, FixtureError> {
        let url = self.with_group(|group| Ok(group.url())).await?;
        let settings = RedisSettings::new(&url)
            .and_then(|settings| settings.with_prefix(&self.prefix))
            .and_then(|settings| settings.with_session_ttl(SESSION))
            .map_err(FixtureError::failed)?;
        // After each switch the group has a new primary, and the cases have no time to wait.
        let settings = settings.with_restart_wait(Duration::ZERO);
        Ok(RedisBackend::with_settings(settings).await?)
    }

    fn semaphore(&self, client: &Arc<RedisBackend>) -> Option<DynSemaphore> {
        Some(client.clone())
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        let stalled = self
            .with_group(|group| {
                let primary = group.primary().ok_or(std::io::ErrorKind::NotFound)?;
                group.servers()[primary].stall()?;
                Ok(primary)
            })
            .await?;
        let this = Self {
            group: self.group.clone(),
            prefix: String::new(),
        };
        Ok(Restore::new(async move {
            let resume = move |group: &mut SentinelGroup| {
                group.servers()[stalled].resume()?;
                group.until_whole()
            };
            this.with_group(resume).await
        }))
    }

    async fn restart_service(&self) -> Result<(), FixtureError> {
        let switch = |group: &mut SentinelGroup| {
            group.fail_over()?;
            group.until_whole()
        };
        self.with_group(switch).await
    }
}

fn play(which: impl Fn(&str) -> bool) {
    let group = Arc::new(Mutex::new(SentinelGroup::start().unwrap()));
    let case = move |prefix| BehindSentinels {
        group: group.clone(),
        prefix,
    };
    crate::fixture::play(case, which);
}

#[test]
fn the_suite_holds_behind_sentinels() {
    let groups = ["exclusive", "fairness", "tokens"];
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
#[ignore = "most cases are the same on a single server; this plays all that need no line and no other process"]
fn the_whole_suite_holds_behind_sentinels() {
    play(|_| true);
}
