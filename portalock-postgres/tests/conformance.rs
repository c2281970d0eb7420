//! The suite on a real Postgres: a new server for each case, with a fault proxy in front of each client.
#![cfg(unix)]

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{DynSemaphore, LockName};
use portalock_postgres::{
    PostgresBackend, PostgresSettings, migrate,
    tokio_postgres::{self, NoTls},
};
use portalock_testkit::{
    Fixture, FixtureError, Restore,
    proxy::{Direction, FaultProxy},
    servers::{Pooler, PostgresServer, StartError},
};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// Long enough to stay alive on a busy machine, short enough to wait for its end.
const LEASE: Duration = Duration::from_secs(5);
/// As by default, half of the lease: a session survives one request without an answer.
const REQUEST: Duration = Duration::from_millis(2500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Default,
    /// Sessions end with their connections.
    WithoutNotice,
    /// All clients connect to a pooler in session mode.
    Pooled,
}

/// A pool that is large enough for every case, and a pooler that soon tries again to reach a server that was away.
const POOLER: [(&str, &str); 3] = [
    ("pool_mode", "session"),
    ("default_pool_size", "90"),
    ("server_login_retry", "0.1"),
];

struct RealPostgres {
    form: Form,
    server: Arc<Mutex<PostgresServer>>,
    pooler: Option<Pooler>,
    /// The fault proxy of each client, by the client's name.
    lines: Mutex<HashMap<String, Arc<FaultProxy>>>,
}

impl RealPostgres {
    async fn start(form: Form) -> Result<Self, FixtureError> {
        let start = move || {
            let server = PostgresServer::start()?;
            let pooler = match form {
                Form::Pooled => Some(Pooler::start(&server, &POOLER)?),
                Form::Default | Form::WithoutNotice => None,
            };
            Ok((server, pooler))
        };
        let (server, pooler) = spawn_blocking(start)
            .await
            .map_err(FixtureError::failed)?
            .map_err(|error: StartError| FixtureError::failed(error))?;
        migrate(&settings(form, &server.url())?).await?;
        Ok(Self {
            form,
            server: Arc::new(Mutex::new(server)),
            pooler,
            lines: Mutex::default(),
        })
    }

    fn with_server<T>(&self, use_it: impl FnOnce(&PostgresServer) -> T) -> T {
        use_it(&self.server.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where clients connect to.
    fn addr(&self) -> SocketAddr {
        let pooler = self.pooler.as_ref().map(Pooler::addr);
        pooler.unwrap_or_else(|| self.with_server(PostgresServer::addr))
    }

    /// After an outage a pooler refuses clients until it has reached the server again.
    async fn pooler_serves(&self) -> Result<(), FixtureError> {
        let Some(pooler) = &self.pooler else {
            return Ok(());
        };
        let url = pooler.url();
        // The pooler accepts a client itself; only a statement needs the server.
        let answers = async || {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
            let connection = tokio::spawn(connection);
            client.batch_execute("SELECT").await?;
            drop(client);
            let _ = connection.await;
            Ok::<_, tokio_postgres::Error>(())
        };
        let serves = async {
            while answers().await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(20), serves)
            .await
            .map_err(FixtureError::failed)
    }

    fn line(&self, client: &PostgresBackend) -> Result<Arc<FaultProxy>, FixtureError> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .get(client.settings().application_name())
            .cloned()
            .ok_or_else(|| FixtureError::failed("this client was not made by this fixture"))
    }
}

fn settings(form: Form, url: &str) -> Result<PostgresSettings, FixtureError> {
    let settings = PostgresSettings::from_url(url)
        .and_then(|settings| settings.with_lease_time(LEASE))
        .and_then(|settings| settings.with_request_timeout(REQUEST))
        .map_err(FixtureError::failed)?;
    Ok(settings.with_release_without_notice(form == Form::WithoutNotice))
}

/// The prefix of an address for another process, if its clients must use the option too.
const WITHOUT_NOTICE: &str = "without-notice ";

#[async_trait]
impl Fixture for RealPostgres {
    type Backend = PostgresBackend;

    async fn client(&self) -> Result<PostgresBackend, FixtureError> {
        let line = Arc::new(FaultProxy::start(self.addr())?);
        let addr = line.addr();
        let name = {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let name = format!("client-{}", lines.len());
            lines.insert(name.clone(), line);
            name
        };
        let url = format!("postgres://postgres@{addr}/postgres?application_name={name}");
        Ok(PostgresBackend::with_settings(settings(self.form, &url)?).await?)
    }

    fn semaphore(&self, client: &Arc<PostgresBackend>) -> Option<DynSemaphore> {
        Some(client.clone())
    }

    async fn crash(&self, client: &PostgresBackend) -> Result<(), FixtureError> {
        let line = self.line(client)?;
        line.refuse(true);
        line.cut();
        Ok(())
    }

    async fn cut_off(&self, client: &PostgresBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.black_hole(Direction::Both);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn lose_answers(&self, client: &PostgresBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.black_hole(Direction::ToClient);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn delay_requests(&self, client: &PostgresBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client)?;
        line.strand();
        Ok(Restore::new(async move {
            line.deliver().await;
            Ok(())
        }))
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        self.with_server(PostgresServer::stall)?;
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
        spawn_blocking(restart)
            .await
            .map_err(FixtureError::failed)?
            .map_err(FixtureError::failed)?;
        self.pooler_serves().await
    }

    fn address(&self) -> Option<String> {
        let url = format!("postgres://postgres@{}/postgres", self.addr());
        Some(match self.form {
            Form::Default | Form::Pooled => url,
            Form::WithoutNotice => format!("{WITHOUT_NOTICE}{url}"),
        })
    }

    async fn connect(address: &str) -> Result<PostgresBackend, FixtureError> {
        let settings = match address.strip_prefix(WITHOUT_NOTICE) {
            Some(url) => settings(Form::WithoutNotice, url)?,
            None => settings(Form::Default, address)?,
        };
        Ok(PostgresBackend::with_settings(settings).await?)
    }
}

portalock_testkit::conformance!(RealPostgres::start(Form::Default).await);

mod without_notice {
    portalock_testkit::conformance!(super::RealPostgres::start(super::Form::WithoutNotice).await);
}

/// A pooler in session mode changes how connections begin and end, so these are the cases about that. All cases take
/// minutes more: the report below runs them.
mod pooled {
    use portalock_testkit::Suite;

    use super::*;

    pub(super) fn suite() -> Suite {
        Suite::new(|| RealPostgres::start(Form::Pooled))
    }

    #[test]
    fn crashed_clients_free_their_locks() {
        suite().check("crash::a_crashed_client_frees_its_lock");
        suite().check("crash::a_crashed_waiter_is_passed_over");
    }

    #[test]
    fn holders_are_told_of_their_loss() {
        suite().check("loss::a_cut_off_holder_is_told");
        suite().check("loss::a_stalled_service_ends_the_lease");
        suite().check("loss::a_restart_leaves_no_false_holder");
    }

    #[test]
    fn waiters_are_served_in_order() {
        suite().check("fairness::all_clients_waiters_are_served_in_order");
    }

    #[test]
    fn random_history_with_crashes() {
        suite().check("stress::random_history_with_crashes");
    }
}

/// The suite's complete report.
#[test]
#[ignore = "each case is a test already; this prints them as one report"]
fn report() {
    let report = __portalock_suite().run();
    println!("{report}");
    assert!(report.is_success());
}

/// The complete report of the suite behind a pooler in session mode.
#[test]
#[ignore = "it takes minutes, and the cases that a pooler could change are tests already"]
fn report_behind_a_pooler() {
    let report = pooled::suite().run();
    println!("{report}");
    assert!(report.is_success());
}

/// A fault that no backend can report in advance: a person deletes a claim.
///
/// If Postgres ends a hold by itself, the holder is told in advance; the backend claims this, and the suite above tests
/// the claim. If a person deletes the claim, the session's next check tells the holder, afterwards. So these cases run
/// on a backend that claims no more than that.
mod by_hand {
    use portalock_core::{
        Attempt, BackendError, Capabilities, Inspection, LockBackend, LockRequest, LossNotice,
        Released, Wakeups,
    };
    use portalock_testkit::Suite;

    use super::*;

    #[derive(Debug)]
    struct ToldLater(PostgresBackend);

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

    struct Robbed(RealPostgres);

    #[async_trait]
    impl Fixture for Robbed {
        type Backend = ToldLater;

        async fn client(&self) -> Result<ToldLater, FixtureError> {
            Ok(ToldLater(self.0.client().await?))
        }

        async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
            let url = self.0.with_server(PostgresServer::url);
            let delete = async {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
                let connection = tokio::spawn(connection);
                for statement in [
                    "UPDATE portalock.names SET owner = NULL WHERE name = $1",
                    "DELETE FROM portalock.queue WHERE name = $1 AND token IS NOT NULL",
                ] {
                    client.execute(statement, &[&name.as_str()]).await?;
                }
                drop(client);
                let _ = connection.await;
                Ok::<_, tokio_postgres::Error>(())
            };
            delete.await.map_err(FixtureError::failed)
        }
    }

    fn check(case: &str) {
        Suite::new(|| async { RealPostgres::start(Form::Default).await.map(Robbed) }).check(case);
    }

    #[test]
    fn a_lock_taken_away_fires_lost() {
        check("loss::a_lock_taken_away_fires_lost");
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
