//! Callers' requests, each over its own runtime's connection.
//!
//! A call whose connection breaks is sent again over a new one, at once and then with growing pauses, as long as an answer is
//! waited for: everything that is sent here may be sent twice. A server that restarts is bridged that way.

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

/// What to send.
#[derive(Clone, Copy)]
pub(crate) enum Call<'c> {
    Script(&'static Script, &'c [&'c str], &'c [&'c str]),
    Plain(&'c Cmd),
}

/// One runtime's connection.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    number: u64,
    /// The number of the location where it leads to.
    location: u64,
    pub(crate) connection: MultiplexedConnection,
}

/// The connections that carry the callers' requests, one for each runtime.
#[derive(Debug)]
pub(crate) struct Connections {
    route: Arc<Route>,
    wires: PerRuntime<Wire>,
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

    /// The present runtime's connection, if it leads to where the primary is, or a new one.
    pub(crate) async fn wire(&self) -> Result<Wire, BackendError> {
        match self.wires.present() {
            Some(wire) if self.leads_there(&wire) => Ok(wire),
            // In a box of its own: it is large, and each call would carry room for it.
            _ => Box::pin(self.open_wire()).await,
        }
    }

    /// What was sent over a wire that doesn't may have been done, by a server that is the primary no more.
    fn leads_there(&self, wire: &Wire) -> bool {
        wire.location == self.route.number()
    }

    async fn open_wire(&self) -> Result<Wire, BackendError> {
        self.wires.forget(|wire| !self.leads_there(wire));
        let (route, opened) = (self.route.clone(), self.opened.clone());
        let open = move || async move {
            let location = route.find().await?;
            let mut connection = connect(&route, &location, |_| Ok::<(), ()>(())).await?;
            may_grant(&mut connection, &route).await?;
            Ok(Wire {
                number: opened.fetch_add(1, Ordering::Relaxed),
                location: location.number,
                connection,
            })
        };
        self.wires.get(open).await
    }

    /// Sends `call`, again where its connection breaks. `goes_on` is asked before it is sent once more.
    pub(crate) async fn send(
        &self,
        what: &'static str,
        call: Call<'_>,
        goes_on: impl Fn() -> Result<(), BackendError> + Send + Sync,
    ) -> Result<Answered<Value>, BackendError> {
        let begun = Instant::now();
        let failure = match self.send_once(what, call).await {
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
    ) -> Result<Answered<Value>, BackendError> {
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
            failure = match self.send_once(what, call).await {
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

    async fn send_once(&self, what: &'static str, call: Call<'_>) -> Result<Value, BackendError> {
        let mut wire = self.wire().await?;
        match call.send(self.route.tag(), &mut wire.connection).await {
            Ok(value) if self.leads_there(&wire) => Ok(value),
            Ok(_) => Err(BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't {what}: another server has become the primary"),
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
