//! The callers' requests. Each uses the connection of its own runtime.
//!
//! If the connection of a call breaks, the call is sent again over a new connection: at once, then with growing pauses,
//! as long as the caller waits for the answer. So every request here may be sent twice. In this way calls survive a
//! restart of the server.

use std::{
    io,
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
use tokio::{
    runtime::{Handle, Id},
    time::timeout,
};

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

/// If the runtime stood still until the timeout, the answer may be there, and its task runs only after those whose time is over.
const LATE: Duration = Duration::from_millis(250);

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
    /// The runtime that drives it.
    runtime: Id,
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
        self.route.look_if_due().await;
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
                runtime: Handle::current().id(),
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
        let (begun, mut sent) = (Instant::now(), false);
        let failure = match self.send_once(what, call, true, &mut sent).await {
            Ok(value) => {
                return Ok(Answered {
                    value,
                    repeated: false,
                });
            }
            Err(failure) => failure,
        };
        Box::pin(self.send_again(what, call, &goes_on, begun, failure, sent)).await
    }

    async fn send_again(
        &self,
        what: &'static str,
        call: Call<'_>,
        goes_on: &(dyn Fn() -> Result<(), BackendError> + Send + Sync),
        begun: Instant,
        mut failure: BackendError,
        mut sent: bool,
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
            let repeated = sent;
            failure = match self.send_once(what, call, false, &mut sent).await {
                Ok(value) => return Ok(Answered { value, repeated }),
                Err(failure) => failure,
            };
        }
    }

    /// `gathers` says whether the call may be sent together with others. Without an answer it is `Unavailable`. Sets `sent` unless
    /// there was no connection for it.
    async fn send_once(
        &self,
        what: &'static str,
        call: Call<'_>,
        gathers: bool,
        sent: &mut bool,
    ) -> Result<(Value, Arc<Wire>), BackendError> {
        let wire = self.wire().await?;
        *sent = true;
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
    /// The runtime that drives this connection, if it polls the caller. Another one polls a call that was dropped, and a batch must not wait
    /// for that one.
    fn own_runtime(&self) -> Option<Handle> {
        let runtime = Handle::try_current().ok()?;
        (runtime.id() == self.runtime).then_some(runtime)
    }

    pub(crate) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    async fn send(&self, call: Call<'_>, route: &Arc<Route>, gathers: bool) -> Answer {
        let in_flight = self.calls.begin();
        if gathers
            && in_flight.has_company
            && let Some(runtime) = self.own_runtime()
            && let Some(answered) = self.calls.gather(call, route, &self.connection, &runtime)
        {
            let mut answered = answered;
            for time in [route.settings().patience(), LATE] {
                if let Ok(answer) = timeout(time, &mut answered).await {
                    // Without a sender, the task that served this call has ended.
                    return answer.unwrap_or(Ok(None));
                }
            }
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
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

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use std::sync::mpsc;

    use futures_util::{future::join_all, poll};
    use portalock_testkit::servers::RedisServer;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::{RedisSettings, address::Address, scripts::RELEASE};

    /// A request that may be sent together with others.
    fn call() -> Call<'static> {
        Call::Script(&RELEASE, &["p/lock/a"], &["1.1"])
    }

    /// A call that waits for what never comes would end with it.
    const ENOUGH: Duration = Duration::from_secs(60);

    fn connections(server: &RedisServer) -> Connections {
        let settings = RedisSettings::new(&server.url()).unwrap();
        let settings = settings.with_response_timeout(Duration::from_secs(1));
        let settings = Arc::new(settings.unwrap().with_restart_wait(Duration::ZERO));
        let Address::Fixed(server) = settings.address() else {
            panic!("it names a server");
        };
        Connections::new(Arc::new(Route::to_server(server, &settings)))
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// Otherwise a break of nothing would be told as one that took effect without an answer.
    #[test]
    fn a_call_without_a_connection_was_not_sent() {
        let server = RedisServer::start().unwrap();
        let connections = connections(&server);
        let own = runtime();
        own.block_on(connections.wire()).unwrap();
        drop(server);
        for is_connected in [true, false] {
            let mut sent = false;
            let failed = own.block_on(connections.send_once("test", call(), false, &mut sent));
            assert_eq!(failed.unwrap_err().kind(), BackendErrorKind::Unavailable);
            assert_eq!(sent, is_connected);
        }
    }

    /// It stood still for longer than the timeout.
    #[test]
    fn answers_that_came_while_the_runtime_stood_still_count() {
        let server = RedisServer::start().unwrap();
        let connections = connections(&server);
        let own = runtime();
        let wire = own.block_on(connections.wire()).unwrap();
        let _company = [wire.calls.begin(), wire.calls.begin()];
        let calls = (0..40).map(|_| wire.send(call(), &connections.route, true));
        let mut all = Box::pin(join_all(calls));
        own.block_on(async {
            assert!(poll!(&mut all).is_pending());
            // They are sent.
            while wire.calls.is_gathering() {
                tokio::task::yield_now().await;
            }
            let (_never, event) = mpsc::channel::<()>();
            let _ = event.recv_timeout(connections.route.settings().patience() * 2);
            let answers = all.await;
            assert!(answers.iter().all(|answer| matches!(answer, Ok(Some(_)))));
        });
    }

    /// As a call that was dropped, which a thread of the library polls.
    #[test]
    fn a_call_on_another_runtime_sends_nothing_together_with_those_of_this_one() {
        let server = RedisServer::start().unwrap();
        let connections = connections(&server);
        let (own, other) = (runtime(), runtime());
        let wire = own.block_on(connections.wire()).unwrap();
        let _company = [wire.calls.begin(), wire.calls.begin()];
        let route = &connections.route;
        let mut theirs = Box::pin(wire.send(call(), route, true));
        other.block_on(async { assert!(poll!(&mut theirs).is_pending()) });
        // Nobody drives the other one any more.
        let answer = own.block_on(async { timeout(ENOUGH, wire.send(call(), route, true)).await });
        assert!(answer.unwrap().unwrap().is_some());
    }

    /// The batch that it has begun is sent after it has computed.
    #[test]
    fn a_task_that_computes_keeps_no_call_of_another_waiting() {
        let server = RedisServer::start().unwrap();
        let connections = Arc::new(connections(&server));
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let wire = runtime.block_on(connections.wire()).unwrap();
        let (computes, is_computing) = mpsc::channel();
        let (ends, end) = mpsc::channel::<()>();
        let of_computing = connections.clone();
        let wire_of_computing = wire.clone();
        let _company = [wire.calls.begin(), wire.calls.begin()];
        let computing = runtime.spawn(async move {
            let mut its = Box::pin(wire_of_computing.send(call(), &of_computing.route, true));
            assert!(poll!(&mut its).is_pending());
            computes.send(()).unwrap();
            let _ = end.recv();
            let _ = its.await;
        });
        is_computing.recv_timeout(ENOUGH).unwrap();
        let send = async || timeout(ENOUGH, connections.send("test", call(), || Ok(()))).await;
        // As one that was sent by itself and is not answered in time.
        let late = runtime.block_on(send()).expect("it waits for the task");
        assert_eq!(late.unwrap_err().kind(), BackendErrorKind::Unavailable);
        // Over the next connection.
        runtime.block_on(send()).unwrap().unwrap();
        drop(ends);
        runtime.block_on(computing).unwrap();
    }
}
