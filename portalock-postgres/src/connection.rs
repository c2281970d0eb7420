//! Connections to the server: one connection, and one for each runtime. Every call has a deadline.

use std::{
    fmt,
    future::Future,
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{try_join, try_join3},
};
use portalock_core::{
    BackendError, BackendErrorKind,
    session::{Answered, PerRuntime},
};
use tokio::{runtime::Handle, task::AbortHandle, time::timeout};
use tokio_postgres::{
    AsyncMessage, Client, Error, Notification, Row, Statement,
    types::{ToSql, Type},
};

use crate::{
    PostgresSettings,
    answer::Standing,
    dial::{Dialled, Messages, connecting, dial},
    error::{ends_connection, failed, timed_out, wrong_version},
    route::{Order, Route, Timeline},
    schema,
    url::SILENCE,
};

/// The oldest server that has every feature this crate uses.
const OLDEST: u32 = 13;

/// One connection, driven by a task on the runtime that opened it.
pub(crate) struct Connection {
    client: Client,
    acquire: Statement,
    release: Statement,
    /// The index of its server in the settings.
    pub(crate) server: usize,
    timeline: Option<Timeline>,
    /// Dropping it closes the connection at once, even if an answer is pending that may never come.
    driver: Task,
}

/// The callback for the notifications of a connection.
pub(crate) type Hear = Box<dyn FnMut(&Notification) + Send>;

/// The callback for the end of a connection.
pub(crate) type Ended = Box<dyn FnOnce() + Send>;

impl Connection {
    /// Opens a connection on the current runtime, in this `order` as [`dial`] does. `hear` is called on that runtime, and `ended` when the
    /// connection has ended.
    pub(crate) async fn open(
        settings: &PostgresSettings,
        order: &Order,
        hear: Hear,
        ended: Option<Ended>,
    ) -> Result<Self, BackendError> {
        let opening = async {
            let (
                server,
                Dialled {
                    connecting,
                    client,
                    messages,
                    version,
                    encoding,
                    timeline,
                },
            ) = dial(settings, order).await?;
            check(version.as_deref(), encoding.as_deref())?;
            let driver = Task(tokio::spawn(drive(messages, hear, ended)).abort_handle());
            let set_up = set_up(settings);
            // The requests are pipelined: none of them waits for another's answer.
            let prepared = try_join3(
                client.batch_execute(&set_up),
                client.prepare("SELECT portalock.acquire($1, $2, $3, $4, $5, $6, $7, $8, $9)"),
                client.prepare("SELECT portalock.release($1, $2, $3, $4)"),
            )
            .await;
            let ((), acquire, release) = match prepared {
                Ok(prepared) => prepared,
                Err(error) => return Err(not_set_up(&client, &connecting, error).await),
            };
            Ok(Self {
                client,
                acquire,
                release,
                server,
                timeline,
                driver,
            })
        };
        timeout(settings.connect_timeout, opening)
            .await
            .unwrap_or_else(|_| Err(timed_out(&connecting(&settings.servers))))
    }

    /// Runs the statement that acquires a lock.
    pub(crate) async fn acquire(&self, asked: &[&(dyn ToSql + Sync)]) -> Result<Standing, Error> {
        self.client
            .query_one(&self.acquire, asked)
            .await?
            .try_get(0)
    }

    /// Runs the statement that releases a lock. Returns whether it was held.
    pub(crate) async fn release(&self, asked: &[&(dyn ToSql + Sync)]) -> Result<bool, Error> {
        self.client
            .query_one(&self.release, asked)
            .await?
            .try_get(0)
    }

    /// Runs any other statement. It is planned each time, in the same round trip.
    pub(crate) async fn query(
        &self,
        statement: &str,
        asked: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        self.client.query_typed(statement, asked).await
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Closes it, though others may still have it: its requests fail, and nothing more is heard over it.
    pub(crate) fn close(&self) {
        self.driver.0.abort();
    }

    /// Starts to listen, and returns the server process of this connection.
    pub(crate) async fn listen(&self, channel: &str) -> Result<i32, Error> {
        let listen = format!("LISTEN \"{channel}\"");
        let (backend, ()) = try_join(self.backend(), self.client.batch_execute(&listen)).await?;
        Ok(backend)
    }

    /// The server process that serves this connection.
    pub(crate) async fn backend(&self) -> Result<i32, Error> {
        let rows = self.query("SELECT pg_backend_pid()", &[]).await?;
        rows.first().map_or(Ok(0), |row| row.try_get(0))
    }

    /// Opens a transaction. Behind a pooler, this keeps a server process until [`let_go`](Self::let_go).
    pub(crate) async fn hold(&self) -> Result<(), Error> {
        self.client.batch_execute("BEGIN").await
    }

    pub(crate) async fn let_go(&self) -> Result<(), Error> {
        self.client.batch_execute("ROLLBACK").await
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Processes the server's messages, until the connection ends.
pub(crate) async fn drive(mut messages: Messages, mut hear: Hear, ended: Option<Ended>) {
    while let Some(message) = messages.next().await {
        match message {
            Ok(AsyncMessage::Notification(notification)) => hear(&notification),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection to Postgres ended");
                break;
            }
        }
    }
    drop(messages);
    if let Some(ended) = ended {
        ended();
    }
}

/// A task that ends when this is dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a request whose answer may be long, in a task of the current runtime. A connection reads nothing more while a part of an answer
/// has not been taken, so a caller that doesn't poll its request would keep all others of its runtime waiting.
pub(crate) async fn in_task<T: Send + 'static>(
    request: impl Future<Output = Result<T, BackendError>> + Send + 'static,
) -> Result<T, BackendError> {
    let Ok(runtime) = Handle::try_current() else {
        // It says what is missing.
        return request.await;
    };
    let answer = runtime.spawn(request);
    let _ends_with_the_caller = Task(answer.abort_handle());
    answer.await.unwrap_or_else(|ended| {
        let ended_by = match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(ended_by) => ended_by,
        };
        let problem = "the runtime of the call has ended";
        Err(BackendError::new(BackendErrorKind::Unavailable, problem).with_source(ended_by))
    })
}

/// The settings of each connection, whatever the defaults of the server, the database or the user are.
fn set_up(settings: &PostgresSettings) -> String {
    let millis = in_millis(settings.request_timeout);
    // A session that ends with its connection is over when the server gives that up: not before the client's own clock has told.
    let lease = if settings.release_without_notice {
        settings.lease_time.saturating_add(Duration::from_secs(1))
    } else {
        Duration::ZERO
    };
    let silence = in_millis(lease.max(SILENCE));
    // Linux accepts no longer time.
    let idle = lease.as_secs().clamp(10, 32_767);
    format!(
        // The functions require that each of their statements sees what was committed before that statement.
        "SET default_transaction_isolation = 'read committed';
         SET statement_timeout = {millis};
         SET lock_timeout = {millis};
         SET search_path = pg_catalog;
         SET jit = off;
         -- Tables that were small when a plan was made don't stay so.
         SET enable_seqscan = off;
         -- Whoever was granted a lock must be known after a crash.
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
         -- Since version 14, and since version 17.
         SELECT set_config(name, '0', false)
         FROM unnest('{{idle_in_transaction_session_timeout, idle_session_timeout, transaction_timeout}}'::text[]) name
         WHERE current_setting(name, true) IS NOT NULL;
         -- Or a client that is gone without a word keeps its places among the connections, and what it has locked, for two hours.
         -- Where the system has no such limit, the server would write a line to its log.
         SELECT set_config(name, longest::text, false)
         FROM (VALUES ('tcp_keepalives_idle', {idle}), ('tcp_keepalives_interval', 5), ('tcp_keepalives_count', 3),
             ('tcp_user_timeout', {silence})) limits (name, longest)
         WHERE current_setting(name)::int NOT BETWEEN 1 AND longest
         AND (name <> 'tcp_user_timeout' OR version() LIKE '%linux%');"
    )
}

/// The largest value that the server accepts, if it is longer.
fn in_millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

/// The failure of the first statements. Another version of the schema has other functions, so it is named first.
async fn not_set_up(client: &Client, connecting: &str, error: Error) -> BackendError {
    match schema::present(client).await {
        Ok(found) if found != 0 && found != schema::VERSION => {
            wrong_version(found, schema::VERSION)
        }
        _ => failed(connecting, error),
    }
}

fn check(version: Option<&str>, encoding: Option<&str>) -> Result<(), BackendError> {
    let unsupported =
        |problem: String| Err(BackendError::new(BackendErrorKind::Unsupported, problem));
    let major = version.and_then(|version| {
        let digits = version.split(|character: char| !character.is_ascii_digit());
        digits.into_iter().next()?.parse::<u32>().ok()
    });
    match (major, encoding) {
        (Some(major), _) if major < OLDEST => unsupported(format!(
            "the server's version is {major}: PostgreSQL {OLDEST} or later is needed"
        )),
        (_, Some(encoding)) if encoding != "UTF8" => unsupported(format!(
            "the database's encoding is {encoding}: names need UTF8"
        )),
        _ => Ok(()),
    }
}

/// The connections for the callers' statements, one for each runtime.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) settings: Arc<PostgresSettings>,
    open: PerRuntime<Arc<Connection>>,
    /// The session's connection.
    line: Mutex<Weak<Connection>>,
    route: Arc<Route>,
}

impl Connections {
    pub(crate) fn new(settings: Arc<PostgresSettings>) -> Self {
        Self {
            settings,
            open: PerRuntime::new(),
            line: Mutex::default(),
            route: Arc::default(),
        }
    }

    /// Opens a new connection for each runtime, to the server of the session's new connection `line`. After a failover, an open
    /// connection could still lead to the former primary: what is released there stays held at the new one.
    pub(crate) fn follow(&self, line: &Arc<Connection>) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(line);
        self.open.clear();
    }

    /// The order in which the next connection of the session dials the servers.
    pub(crate) fn order(&self) -> Order {
        self.route.order(self.settings.servers.len())
    }

    /// Only the server of `connection`.
    pub(crate) fn only(&self, connection: &Connection) -> Order {
        self.route.only(connection.server)
    }

    /// The server of `connection` has confirmed a change.
    pub(crate) fn confirmed(&self, connection: &Connection) {
        let timeline = connection.timeline.as_ref();
        self.route.confirmed(connection.server, timeline);
    }

    /// As [`confirmed`](Self::confirmed), for a call. If there is a session, it finds out by itself.
    pub(crate) fn confirmed_call(&self, connection: &Connection) {
        if self.server().is_none() {
            self.confirmed(connection);
        }
    }

    /// The server of `connection` did not confirm a change. If the connection has ended, it could not.
    pub(crate) fn not_confirmed(&self, connection: &Connection) {
        if !connection.is_closed() {
            self.route.failed(connection.server);
        }
    }

    /// The server of the session, as long as its connection is open. If that server refuses another connection, a former primary
    /// could still grant what the session's server has granted to somebody else.
    fn server(&self) -> Option<usize> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let open = line.upgrade().filter(|line| !line.is_closed());
        open.map(|line| line.server)
    }

    /// Runs `call` over the current runtime's connection. If the connection turns out to be broken, it runs `call` once
    /// more over a new one, so `call` must be safe to repeat.
    pub(crate) async fn call<T, F>(
        &self,
        doing: &'static str,
        call: impl Fn(Arc<Connection>) -> F,
    ) -> Result<Answered<T>, BackendError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut repeated = false;
        loop {
            let connection = self.get().await?;
            let error = match timeout(self.settings.request_timeout, call(connection.clone())).await
            {
                Ok(Ok(value)) => return Ok(Answered { value, repeated }),
                Ok(Err(error)) => error,
                Err(_) => {
                    // A session finds out by itself, and other calls than this one may get their answers.
                    if self.server().is_none() {
                        self.not_confirmed(&connection);
                    }
                    self.forget(&connection);
                    return Err(timed_out(doing));
                }
            };
            let broken = ends_connection(&error) || connection.is_closed();
            if broken {
                self.forget(&connection);
            }
            if repeated || !broken {
                return Err(failed(doing, error));
            }
            repeated = true;
        }
    }

    async fn get(&self) -> Result<Arc<Connection>, BackendError> {
        let settings = self.settings.clone();
        let open = || {
            let settings = settings.clone();
            let only = |server| self.route.only(server);
            let order = self.server().map_or_else(|| self.order(), only);
            async move {
                let connection =
                    Connection::open(&settings, &order, Box::new(|_| {}), None).await?;
                Ok(Arc::new(connection))
            }
        };
        let connection = self.open.get(open).await?;
        if !connection.is_closed() {
            return Ok(connection);
        }
        self.forget(&connection);
        self.open.get(open).await
    }

    fn forget(&self, connection: &Arc<Connection>) {
        self.open.forget(|open| Arc::ptr_eq(open, connection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portalock_core::settings::LONGEST;

    fn settings() -> PostgresSettings {
        PostgresSettings::from_url("postgres://db").unwrap()
    }

    #[test]
    fn the_longest_request_is_one_that_a_server_can_count() {
        let set_up = set_up(&settings().with_request_timeout(LONGEST).unwrap());
        assert!(
            set_up.contains("statement_timeout = 2147483647;"),
            "{set_up}"
        );
    }

    /// In a network that is cut for a while, and for ever, neither the client's end nor its system's answer reaches the server.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_server_gives_up_clients_that_are_gone_in_silence() {
        let start = || portalock_testkit::servers::PostgresOptions::new().start();
        let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let shown = async |sql: &str| {
            let url = server.url();
            let connecting = tokio_postgres::connect(&url, tokio_postgres::NoTls);
            let (client, connection) = connecting.await.unwrap();
            let driving = tokio::spawn(connection);
            client.batch_execute(sql).await.unwrap();
            let sql = "SELECT array_agg(current_setting(name)::int ORDER BY name) FROM unnest(ARRAY[
                'tcp_keepalives_count', 'tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_user_timeout']) name";
            let limits: Vec<i32> = client.query_one(sql, &[]).await.unwrap().get(0);
            driving.abort();
            limits
        };
        let settings = settings().with_lease_time(Duration::from_secs(60)).unwrap();
        let set_up = set_up(&settings);
        assert_eq!(shown(&set_up).await, [3, 10, 5, 30_000]);
        // The hold ends with the connection, so its client's own clock must be the first.
        let tied = super::set_up(&settings.clone().with_release_without_notice(true));
        assert_eq!(shown(&tied).await, [3, 61, 5, 61_000]);
        // An administrator's shorter ones stay.
        let shorter = "ALTER ROLE postgres SET tcp_keepalives_idle = 4;
            ALTER ROLE postgres SET tcp_user_timeout = 2000; ALTER ROLE postgres SET tcp_keepalives_count = 8";
        shown(shorter).await;
        assert_eq!(shown(&set_up).await, [3, 4, 5, 2_000]);
    }

    #[test]
    fn servers_that_can_not_keep_locks_are_refused() {
        for (version, encoding) in [
            ("12.20", "UTF8"),
            ("9.6.24", "UTF8"),
            ("15.8 (Debian 15.8-0)", "LATIN1"),
        ] {
            let error = check(Some(version), Some(encoding)).unwrap_err();
            assert_eq!(error.kind(), BackendErrorKind::Unsupported, "{error}");
        }
        for version in ["13.0", "15.8 (Debian 15.8-0)", "17beta1", "18.1"] {
            check(Some(version), Some("UTF8")).unwrap();
        }
    }
}
