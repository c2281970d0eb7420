//! The members of the cluster: one is used at a time, and the next one if it fails.
//!
//! Each member has a client of its own, instead of one client that balances between all members. So locks, watches and
//! renewals see one member's view, a hanging member is left completely, and all locks of a backend share one
//! connection.

use std::{error::Error as _, future::Future, pin::pin, sync::Arc, time::Duration};

use etcd_client::{AlarmAction, AlarmType, Client, ConnectOptions, Error, KvClient};
use portalock_core::{
    BackendError, BackendErrorKind,
    clock::Instant,
    session::{Answered, PerRuntime, in_its_runtime},
};
use tokio::sync::watch;

use crate::{
    EtcdSettings,
    error::{backend_error, timed_out},
    tls,
};

/// How long [`Endpoints::call`] looks for a raised alarm, after etcd has refused a request because of missing space.
const ALARM_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause before another request to a cluster that has no leader.
const BETWEEN_ELECTIONS: Duration = Duration::from_millis(100);

/// The members, and the one in use.
#[derive(Debug)]
pub(crate) struct Endpoints {
    members: Vec<Member>,
    /// Counts the changes of member: the member in use is this modulo the number of members.
    current: watch::Sender<usize>,
    settings: EtcdSettings,
}

#[derive(Debug)]
struct Member {
    endpoint: String,
    connections: PerRuntime<Arc<Client>>,
}

/// A connection to one member, and the turn of that member.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Arc<Client>,
    turn: usize,
}

impl Endpoints {
    /// The members that `settings` names. Nothing is sent yet.
    pub(crate) fn new(settings: &EtcdSettings) -> Result<Self, BackendError> {
        // What is wrong with them is reported at once.
        connect_options(settings)?;
        Ok(Self {
            members: settings
                .endpoints
                .iter()
                .map(|endpoint| Member {
                    endpoint: endpoint.clone(),
                    connections: PerRuntime::new(),
                })
                .collect(),
            current: watch::Sender::new(0),
            settings: settings.clone(),
        })
    }

    /// Sends a request to the member in use, and to the next ones if it doesn't answer, all within the request timeout.
    ///
    /// A member may have executed `request` although its answer never came. So it must be harmless to execute `request`
    /// twice. Also a call that fails says whether a request got no answer.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        doing: &'static str,
        request: F,
    ) -> Answered<Result<T, BackendError>>
    where
        F: Fn(Arc<Client>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut repeated = false;
        let calling = async {
            let members = self.members.len();
            let (start, timeout) = (Instant::now(), self.settings.request_timeout);
            let share = timeout / u32::try_from(members).unwrap_or(u32::MAX);
            let mut fresh_login = false;
            let mut temporary = None;
            let mut tries = 0;
            // A single member is tried twice, the second time on a new connection: the old one may have ended with a
            // restart.
            let most = members.max(2);
            loop {
                let turn = *self.current.borrow();
                let left = timeout.saturating_sub(start.elapsed());
                let mut used = None;
                let attempt = async {
                    let client = self.client(turn, doing).await?;
                    used = Some(client.clone());
                    let answer = request(client).await;
                    answer.map_err(|error| backend_error(error, doing))
                };
                let error = match tokio::time::timeout(left.min(share), attempt).await {
                    Ok(Ok(value)) => break Ok(value),
                    Ok(Err(error)) => error,
                    Err(_) => timed_out(doing),
                };
                match error.kind() {
                    // One member may be misconfigured, for example with a certificate that has expired.
                    BackendErrorKind::Unavailable
                    | BackendErrorKind::Misconfigured
                    | BackendErrorKind::Other => {
                        repeated |= used.is_some();
                        self.leave(turn, used.as_ref());
                        if answered_unavailable(&error) {
                            // An election takes a second or two: wait for it, within the request timeout.
                            tokio::time::sleep(BETWEEN_ELECTIONS).await;
                        } else {
                            tries += 1;
                        }
                        // If one member failed only for now, a later call may succeed, whatever is wrong with the others.
                        let earlier = temporary.take().filter(|_| !error.is_retryable());
                        let error = earlier.unwrap_or(error);
                        if tries >= most || start.elapsed() >= timeout {
                            break Err(error);
                        }
                        temporary = Some(error).filter(BackendError::is_retryable);
                    }
                    // A change of users can make a token invalid; etcd reports this with the code for an invalid request.
                    BackendErrorKind::PermissionDenied
                        if used.is_some() && !fresh_login && self.settings.user.is_some() =>
                    {
                        fresh_login = true;
                        self.forget(turn, used.as_ref());
                    }
                    BackendErrorKind::Exhausted => break Err(self.full_or_busy(turn, error).await),
                    _ => break Err(error),
                }
            }
        };
        let value = in_its_runtime(pin!(calling)).await;
        Answered { value, repeated }
    }

    /// A connection to the member in use, for a stream. Connecting and logging in must complete within this time.
    pub(crate) async fn connection(
        &self,
        doing: &'static str,
        within: Duration,
    ) -> Result<Connection, BackendError> {
        let turn = *self.current.borrow();
        let connected = tokio::time::timeout(within, self.client(turn, doing)).await;
        let connected = connected.unwrap_or_else(|_| Err(timed_out(doing)));
        let client = connected.inspect_err(|_| self.leave(turn, None))?;
        Ok(Connection { client, turn })
    }

    /// Records that `connection` has failed: moves on to the next member, unless that has already happened.
    pub(crate) fn fail(&self, connection: &Connection) {
        self.leave(connection.turn, Some(&connection.client));
    }

    /// Returns when a member other than `connection`'s is in use.
    pub(crate) async fn moved_from(&self, connection: &Connection) {
        let mut current = self.current.subscribe();
        // This can't fail: the sender lives as long as `self`.
        let _ = current.wait_for(|turn| *turn != connection.turn).await;
    }

    /// The current runtime's connection to a member.
    async fn client(&self, turn: usize, doing: &'static str) -> Result<Arc<Client>, BackendError> {
        let member = self.member(turn);
        let connect = || {
            let (endpoint, settings) = (member.endpoint.clone(), self.settings.clone());
            let (within, has_files) = (settings.request_timeout, settings.tls.is_some());
            let failed = move |error| backend_error(error, doing);
            let connecting = async move {
                // This reads the files of certificates again, because they are renewed from time to time. It does so on a
                // thread for that: a file system may hang, and this may be the thread of all sessions.
                let read = move || connect_options(&settings);
                let options = if has_files {
                    let read = tokio::task::spawn_blocking(read).await;
                    read.map_err(|error| failed(Error::IoError(error.into())))?
                } else {
                    read()
                };
                // Connecting includes the login, and all callers on one runtime wait for the same connection.
                let connected = Client::connect([endpoint], Some(options?)).await;
                Ok(Arc::new(connected.map_err(failed)?))
            };
            async move {
                let connected = tokio::time::timeout(within, connecting).await;
                connected.unwrap_or_else(|_| Err(timed_out(doing)))
            }
        };
        member.connections.get(connect).await
    }

    fn leave(&self, turn: usize, client: Option<&Arc<Client>>) {
        self.forget(turn, client);
        // If many callers failed on one member, the first one moves on and the others follow.
        self.current.send_if_modified(|current| {
            let moves = *current == turn;
            if moves {
                *current = turn.wrapping_add(1);
                tracing::debug!(
                    from = self.member(turn).endpoint,
                    to = self.member(*current).endpoint,
                    "moving on to the next etcd endpoint"
                );
            }
            moves
        });
    }

    /// Drops a connection, so that the next use of its member connects and logs in again.
    fn forget(&self, turn: usize, client: Option<&Arc<Client>>) {
        if let Some(client) = client {
            self.member(turn)
                .connections
                .forget(|held| Arc::ptr_eq(held, client));
        }
    }

    fn member(&self, turn: usize) -> &Member {
        &self.members[turn % self.members.len()]
    }

    /// etcd uses one code both for a full store and for a busy server. A raised alarm tells which it is.
    async fn full_or_busy(&self, turn: usize, error: BackendError) -> BackendError {
        let alarms = async {
            let client = self.client(turn, "ask for alarms").await.ok()?;
            client
                .maintenance_client()
                .alarm(AlarmAction::Get, AlarmType::Nospace, None)
                .await
                .ok()
        };
        match tokio::time::timeout(ALARM_TIMEOUT, alarms).await {
            Ok(Some(answer)) if !answer.alarms().is_empty() => BackendError::new(
                BackendErrorKind::OutOfSpace,
                "etcd's store is full: compact and defragment it, or raise its quota, then disarm the alarm",
            )
            .with_source(error),
            _ => error,
        }
    }
}

/// A client for reads whose answers may be longer than the default limit of a message.
pub(crate) fn reader(client: &Client) -> KvClient {
    let client = client.kv_client();
    client.max_decoding_message_size(usize::MAX)
}

/// Whether a member answered that it can't serve at the moment, as opposed to a member that could not be reached.
fn answered_unavailable(error: &BackendError) -> bool {
    let answer = error.source().and_then(|error| error.downcast_ref());
    matches!(answer, Some(Error::GRpcStatus(status))
        if status.code() == tonic::Code::Unavailable && status.source().is_none())
}

fn connect_options(settings: &EtcdSettings) -> Result<ConnectOptions, BackendError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(settings.connect_timeout)
        // Without it, a firewall may forget an idle connection, and then the next request over it gets no answer.
        .with_tcp_keepalive(Duration::from_secs(30))
        // With this option, a member that is cut off from the others ends its streams. Without it, the streams stay
        // silent.
        .with_require_leader(true);
    if let Some((user, password)) = &settings.user {
        options = options.with_user(user, &password.0);
    }
    tls::apply(settings, options)
}
