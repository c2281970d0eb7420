//! The conformance suite on a real server, with both forms of a session: the holder is told first, or its locks end
//! with its connection.
#![cfg(unix)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{DynSemaphore, LockName};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::{
    Fixture, FixtureError, Restore,
    proxy::{Direction, FaultProxy},
    servers::{RedisOptions, RedisServer},
};

mod default_form {
    portalock_testkit::conformance!(super::Redis::start(super::Form::Default));

    /// The complete report of the suite.
    #[test]
    #[ignore = "each case is a test already; this prints them as one report"]
    fn report() {
        let report = __portalock_suite().run();
        println!("{report}");
        assert!(report.is_success());
    }
}

mod without_notice {
    portalock_testkit::conformance!(super::Redis::start(super::Form::WithoutNotice));
}

/// Short enough for a test to wait for it, and long enough for a loaded machine to keep its sessions.
const SESSION: Duration = Duration::from_secs(5);

/// How long the server may take to answer the administrator.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum Form {
    /// The server keeps its data: only after such a restart, clients need not wait.
    Default,
    WithoutNotice,
}

struct Redis {
    form: Form,
    server: Arc<Mutex<RedisServer>>,
    /// Each client has its own proxy, found by the client's label.
    lines: Mutex<HashMap<String, Arc<FaultProxy>>>,
}

impl Redis {
    fn start(form: Form) -> Result<Self, FixtureError> {
        let server = RedisOptions::new()
            .persistent(matches!(form, Form::Default))
            .start()
            .map_err(FixtureError::failed)?;
        Ok(Self {
            form,
            server: Arc::new(Mutex::new(server)),
            lines: Mutex::default(),
        })
    }

    fn with_server<T>(&self, use_it: impl FnOnce(&RedisServer) -> T) -> T {
        use_it(&self.server.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn line(&self, client: &RedisBackend) -> Result<Arc<FaultProxy>, FixtureError> {
        client
            .settings()
            .label()
            .and_then(|label| {
                let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.get(label).cloned()
            })
            .ok_or_else(|| FixtureError::failed("the client is not this fixture's"))
    }
}

async fn client(form: &str, url: &str, label: &str) -> Result<RedisBackend, FixtureError> {
    let settings = RedisSettings::new(url)
        .map_err(FixtureError::failed)?
        .with_label(label)
        .with_restart_wait(Duration::ZERO)
        .with_release_without_notice(form == Form::WithoutNotice.name())
        .with_session_ttl(SESSION)
        .map_err(FixtureError::failed)?;
    Ok(RedisBackend::with_settings(settings).await?)
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Form::Default => "default",
            Form::WithoutNotice => "without-notice",
        }
    }
}

#[async_trait]
impl Fixture for Redis {
    type Backend = RedisBackend;

    async fn client(&self) -> Result<RedisBackend, FixtureError> {
        let line = Arc::new(FaultProxy::start(self.with_server(RedisServer::addr))?);
        let url = format!("redis://{}", line.addr());
        let label = {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let label = format!("client {}", lines.len());
            lines.insert(label.clone(), line);
            label
        };
        client(self.form.name(), &url, &label).await
    }

    fn semaphore(&self, client: &Arc<RedisBackend>) -> Option<DynSemaphore> {
        Some(client.clone())
    }

    async fn crash(&self, client: &RedisBackend) -> Result<(), FixtureError> {
        let line = self.line(client)?;
        line.refuse(true);
        line.cut();
        Ok(())
    }

    async fn cut_off(&self, client: &RedisBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.black_hole(Direction::Both);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn lose_answers(&self, client: &RedisBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.black_hole(Direction::ToClient);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn delay_requests(&self, client: &RedisBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.strand();
        Ok(Restore::new(async move {
            line.deliver().await;
            Ok(())
        }))
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        self.with_server(RedisServer::stall)?;
        let server = self.server.clone();
        Ok(Restore::new(async move {
            let server = server.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(server.resume()?)
        }))
    }

    async fn restart_service(&self) -> Result<(), FixtureError> {
        let server = self.server.clone();
        let restart = move || {
            let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
            server.restart()
        };
        tokio::task::spawn_blocking(restart)
            .await
            .map_err(FixtureError::failed)?
            .map_err(FixtureError::failed)
    }

    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        if matches!(self.form, Form::Default) {
            // If someone deletes a key, another owner is granted the lock before the holder can know. No form of a
            // session can prevent that.
            return Err(FixtureError::NotProvided(
                "a way to delete a lock's key that tells its holder first",
            ));
        }
        // As long as a busy machine may need: half a second is the default.
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let delete = async {
            let mut connection = redis::Client::open(self.with_server(RedisServer::url))?
                .get_multiplexed_async_connection_with_config(&patient)
                .await?;
            redis::cmd("DEL")
                .arg(format!("portalock/lock/{name}"))
                .query_async::<()>(&mut connection)
                .await
        };
        delete.await.map_err(FixtureError::failed)
    }

    fn address(&self) -> Option<String> {
        Some(format!(
            "{} {}",
            self.form.name(),
            self.with_server(RedisServer::url)
        ))
    }

    async fn connect(address: &str) -> Result<RedisBackend, FixtureError> {
        let (form, url) = address
            .split_once(' ')
            .ok_or_else(|| FixtureError::failed("this is no fixture's address"))?;
        client(form, url, "helper process").await
    }
}
