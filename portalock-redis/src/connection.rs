//! The callers' requests. Each uses the connection of its own runtime.
//!
//! If the connection of a call breaks, the call is sent again over a new connection: at once, then with growing pauses,
//! as long as the caller waits for the answer. So every request here may be sent twice. In this way calls survive a
//! restart of the server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use portalock_core::{
    BackendError, BackendErrorKind,
    clock::Instant,
    session::{Answered, PerRuntime},
};
use redis::{Cmd, RedisError, Value, aio::MultiplexedConnection};

use crate::{
    batch::Answer,
    calls::Calls,
    cluster::Tag,
    connect::connect,
    error::{breaks, failed},
    primary::may_grant,
    route::Route,
    scripts::Script,
};

/// The pause after the second failure in a row; there is none after the first.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A command or script to send.
#[derive(Clone, Copy)]
pub(crate) enum Call<'c> {
    Script(&'static Script, &'c [&'c str], &'c [&'c str]),
    Plain(&'c Cmd),
}

/// The connection of one runtime.
#[derive(Debug)]
pub(crate) struct Wire {
    number: u64,
    /// The number of the location that the connection leads to.
    location: u64,
    connection: MultiplexedConnection,
    calls: Arc<Calls>,
}

/// The connections for the callers' requests, one for each runtime.
#[derive(Debug)]
pub(crate) struct Connections {
    route: Arc<Route>,
    wires: PerRuntime<Arc<Wire>>,
    opened: Arc<AtomicU64>,
}

impl Connections {
    pub(crate) fn new(route: Arc<Route>) -> Self {
        Self {
            route,
            wires: PerRuntime::new(),
            opened: Arc::default(),
        }
    }

    /// Returns the current runtime's connection if it leads to the current primary, or else a new one.
    pub(crate) async fn wire(&self) -> Result<Arc<Wire>, BackendError> {
        match self.wires.present() {
            Some(wire) if self.leads_there(&wire) => Ok(wire),
            // Boxed: the future is large, and each call would reserve space for it.
            _ => Box::pin(self.open_wire()).await,
        }
    }

    /// Whether the connection leads to the current primary. If not, its commands may have run on a server that is no
    /// longer the primary.
    fn leads_there(&self, wire: &Wire) -> bool {
        wire.location == self.route.number()
    }

    async fn open_wire(&self) -> Result<Arc<Wire>, BackendError> {
        self.wires.forget(|wire| !self.leads_there(wire));
        let (route, opened) = (self.route.clone(), self.opened.clone());
        let open = move || async move {
            let location = route.find().await?;
            let mut connection = connect(&route, &location, |_| Ok::<(), ()>(())).await?;
            may_grant(&mut connection, &route).await?;
            Ok(Arc::new(Wire {
                number: opened.fetch_add(1, Ordering::Relaxed),
                location: location.number,
                connection,
                calls: Arc::default(),
            }))
        };
        self.wires.get(open).await
    }

    /// Sends `call`, and repeats it if the connection breaks. Before each repetition it calls `goes_on`. Returns the answer, and
    /// the connection over which it came.
    pub(crate) async fn send(
        &self,
        what: &'static str,
        call: Call<'_>,
        goes_on: impl Fn() -> Result<(), BackendError> + Send + Sync,
    ) -> Result<Answered<(Value, Arc<Wire>)>, BackendError> {
        let begun = Instant::now();
        let failure = match self.send_once(what, call, true).await {
            Ok(value) => {
                return Ok(Answered {
                    value,
                    repeated: false,
                });
            }
            Err(failure) => failure,
        };
        Box::pin(self.send_again(what, call, &goes_on, begun, failure)).await
    }

    async fn send_again(
        &self,
        what: &'static str,
        call: Call<'_>,
        goes_on: &(dyn Fn() -> Result<(), BackendError> + Send + Sync),
        begun: Instant,
        mut failure: BackendError,
    ) -> Result<Answered<(Value, Arc<Wire>)>, BackendError> {
        let mut pause = Duration::ZERO;
        loop {
            goes_on()?;
            if failure.kind() != BackendErrorKind::Unavailable
                || begun.elapsed() >= self.route.settings().patience()
            {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            failure = match self.send_once(what, call, false).await {
                Ok(value) => {
                    return Ok(Answered {
                        value,
                        repeated: true,
                    });
                }
                Err(failure) => failure,
            };
        }
    }

    /// `gathers` says whether the call may be sent together with others. Without an answer it is `Unavailable`.
    async fn send_once(
        &self,
        what: &'static str,
        call: Call<'_>,
        gathers: bool,
    ) -> Result<(Value, Arc<Wire>), BackendError> {
        let wire = self.wire().await?;
        match wire.send(call, &self.route, gathers).await {
            Ok(_) if !self.leads_there(&wire) => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {what}: another server has become the primary"),
            )),
            Ok(Some(value)) => Ok((value, wire)),
            Ok(None) => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {what}: it was sent together with others, and got no answer"),
            )),
            Err(error) => {
                if breaks(&error) {
                    self.wires.forget(|present| present.number == wire.number);
                }
                Err(failed(what, error))
            }
        }
    }
}

impl Wire {
    pub(crate) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    async fn send(&self, call: Call<'_>, route: &Arc<Route>, gathers: bool) -> Answer {
        let in_flight = self.calls.begin();
        if gathers
            && in_flight.has_company
            && let Some(answered) = self.calls.gather(call, route, &self.connection)
        {
            // Without a sender, the task that served this call has ended.
            return answered.await.unwrap_or(Ok(None));
        }
        let mut connection = self.connection();
        // Boxed: the future is large, and a call that is gathered would reserve space for it.
        let alone = Box::pin(call.send(route.tag(), &mut connection));
        alone.await.map(Some)
    }
}

impl Call<'_> {
    async fn send(
        self,
        tag: Option<&Tag>,
        connection: &mut MultiplexedConnection,
    ) -> Result<Value, RedisError> {
        match self {
            Self::Script(script, keys, arguments) => {
                script.run_in(tag, connection, keys, arguments).await
            }
            Self::Plain(command) => command.query_async(connection).await,
        }
    }
}
