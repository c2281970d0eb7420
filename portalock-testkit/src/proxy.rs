//! The fault proxy: a TCP proxy between a client and its server, which causes network faults.
//!
//! It forwards TCP from its own port. In each direction it can delay data, hold data back, or drop it. While it holds
//! data back (a black hole), nothing arrives until it is healed, not even the end of a connection. It can also cut
//! connections and refuse new ones, and let what was sent on a broken connection arrive late. It runs on its own thread, so a blocked or paused runtime of a test doesn't affect
//! it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

/// The most that is read at once.
const CHUNK: usize = 16 * 1024;
/// How many chunks may be in flight in one direction. Then the sender gets back pressure, as from a full TCP window.
const WINDOW: usize = 64;
/// A message may come in several parts, but not with such a pause between two.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the server's answer to a late message is waited for.
const ANSWER: Duration = Duration::from_secs(5);

/// The direction of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
    /// Both directions.
    Both,
}

/// A TCP proxy that causes faults on request. Clones are the same proxy. Dropping the last one closes all its
/// connections.
///
/// ```no_run
/// use portalock_testkit::proxy::{Direction, FaultProxy};
///
/// let proxy = FaultProxy::start(([127, 0, 0, 1], 6379))?;
/// println!("connect to {}", proxy.addr());
/// proxy.black_hole(Direction::ToClient); // answers don't arrive any more
/// proxy.heal();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct FaultProxy {
    addr: SocketAddr,
    state: watch::Sender<State>,
    open: Arc<AtomicUsize>,
    /// How many connections have data that is to arrive late.
    stranded: watch::Sender<usize>,
}

#[derive(Debug, Clone, Default)]
struct State {
    to_server: Faults,
    to_client: Faults,
    refuse: bool,
    refuse_from: Option<IpAddr>,
    /// The number of cuts. A connection that is older than the last cut is closed.
    cuts: u64,
    strands: u64,
    /// How many strands are over.
    delivered: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    delay: Duration,
    hold: bool,
    drop: bool,
}

impl State {
    fn each(&mut self, direction: Direction, change: impl Fn(&mut Faults)) {
        if direction != Direction::ToClient {
            change(&mut self.to_server);
        }
        if direction != Direction::ToServer {
            change(&mut self.to_client);
        }
    }

    /// Whether a connection that was opened after so many strands has since been stranded, and not delivered.
    const fn is_stranded(&self, after: u64) -> bool {
        self.delivered <= after && after < self.strands
    }
}

impl FaultProxy {
    /// Listens on a free port of the loopback interface and forwards to `server`.
    ///
    /// # Errors
    ///
    /// The system's error, if there is no free port or no thread.
    pub fn start(server: impl Into<SocketAddr>) -> io::Result<Self> {
        let server = server.into();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (state, watcher) = watch::channel(State::default());
        let open = Arc::new(AtomicUsize::new(0));
        let stranded = watch::Sender::new(0);
        let counts = (open.clone(), stranded.clone());
        thread::Builder::new()
            .name("fault-proxy".to_owned())
            .spawn(move || {
                // Ends when the `FaultProxy` is dropped; the connections' tasks end with the runtime.
                runtime.block_on(async {
                    if let Ok(listener) = TcpListener::from_std(listener) {
                        serve(listener, server, watcher, counts).await;
                    }
                });
            })?;
        Ok(Self {
            addr,
            state,
            open,
            stranded,
        })
    }

    /// The address for clients.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The port for clients.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Delays all data that is read from now on. Bytes keep their order.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.state
            .send_modify(|state| state.each(direction, |faults| faults.delay = delay));
    }

    /// Holds back all data, and the end of connections, until [`heal`](Self::heal), like a lost link. New connections
    /// are accepted but get no data.
    pub fn black_hole(&self, direction: Direction) {
        self.state
            .send_modify(|state| state.each(direction, |faults| faults.hold = true));
    }

    /// Drops all data from now on, until [`heal`](Self::heal). The stream then continues with a gap, so cut the
    /// connection before healing, unless the test is about the gap.
    pub fn drop_bytes(&self, direction: Direction) {
        self.state
            .send_modify(|state| state.each(direction, |faults| faults.drop = true));
    }

    /// Closes every open connection, on both sides. New connections are accepted.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Sets whether new connections are closed at once. Open ones stay open.
    pub fn refuse(&self, refuse: bool) {
        self.state.send_modify(|state| state.refuse = refuse);
    }

    /// Sets from which address new connections are closed at once. Open ones stay open.
    pub fn refuse_from(&self, from: Option<IpAddr>) {
        self.state.send_modify(|state| state.refuse_from = from);
    }

    /// Keeps the next message that a client sends on a connection that is open now, and then closes the connection on
    /// the client's side only. New connections are not affected, so what the client sends on them overtakes the message.
    /// It arrives at the server with [`deliver`](Self::deliver), unless the connection is [cut](Self::cut) before.
    pub fn strand(&self) {
        self.state.send_modify(|state| state.strands += 1);
    }

    /// Lets the messages arrive that were kept since [`strand`](Self::strand), waits for the server's answers, which are
    /// lost, and closes the connections.
    ///
    /// # Cancel safety
    ///
    /// Safe: the messages arrive all the same.
    pub async fn deliver(&self) {
        self.state
            .send_modify(|state| state.delivered = state.strands);
        // The sender lives as long as `self`.
        let _ = self
            .stranded
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }

    /// Ends all delays, black holes, dropping, refusing and stranding. Data that was held back is delivered.
    pub fn heal(&self) {
        self.state.send_modify(|state| {
            *state = State {
                cuts: state.cuts,
                strands: state.strands,
                delivered: state.strands,
                ..State::default()
            };
        });
    }
}

async fn serve(
    listener: TcpListener,
    server: SocketAddr,
    mut state: watch::Receiver<State>,
    (open, stranded): (Arc<AtomicUsize>, watch::Sender<usize>),
) {
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, from)) = accepted else { continue };
                let now = state.borrow_and_update().clone();
                if now.refuse || now.refuse_from == Some(from.ip()) {
                    continue;
                }
                let counted = Counted::new(open.clone());
                let (watcher, stranded) = (state.clone(), stranded.clone());
                crate::spawn(async move {
                    connection(client, server, watcher, &now, &stranded).await;
                    drop(counted);
                });
            }
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// One client's connection, until one side closes it or it is cut. `born` is the state at its beginning.
async fn connection(
    mut client: TcpStream,
    server: SocketAddr,
    state: watch::Receiver<State>,
    born: &State,
    stranded: &watch::Sender<usize>,
) {
    let mut cut = state.clone();
    let forward = async {
        let Ok(mut upstream) = TcpStream::connect(server).await else {
            return;
        };
        // Small messages must not wait for each other: the proxy adds no delay of its own.
        let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = upstream.split();
        let is_stranded = |state: &State| state.is_stranded(born.strands);
        // The first end of stream closes both directions, because no protocol here uses half-closed connections.
        let kept = tokio::select! {
            kept = pump(from_client, to_server, state.clone(), |state| state.to_server, is_stranded) => kept,
            _ = pump(from_server, to_client, state.clone(), |state| state.to_client, |_| false) => None,
        };
        if let Some(message) = kept {
            let _kept = Kept::new(stranded);
            deliver_late(message, client, upstream, state, is_stranded).await;
        }
    };
    tokio::select! {
        () = forward => {}
        _ = cut.wait_for(|state| state.cuts > born.cuts) => {}
    }
}

/// Closes the client's side after its message, and brings the message to the server when the strand is over.
async fn deliver_late(
    mut message: Vec<u8>,
    mut client: TcpStream,
    mut upstream: TcpStream,
    mut state: watch::Receiver<State>,
    is_stranded: impl Fn(&State) -> bool,
) {
    while let Ok(Ok(1..)) = timeout(PAUSE, client.read_buf(&mut message)).await {}
    drop(client);
    if state.wait_for(|state| !is_stranded(state)).await.is_err() {
        return;
    }
    let mut answer = vec![0; CHUNK];
    // What the server sent before is no answer to the message.
    while let Ok(1..) = upstream.try_read(&mut answer) {}
    let mut patience = ANSWER;
    if upstream.write_all(&message).await.is_ok() {
        while let Ok(Ok(1..)) = timeout(patience, upstream.read(&mut answer)).await {
            patience = PAUSE;
        }
    }
}

/// Moves bytes in one direction. Returns when the end of the stream was *delivered*, after delays and black holes, or
/// with what it has not delivered because the connection is stranded.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: watch::Receiver<State>,
    faults: impl Fn(&State) -> Faults,
    is_stranded: impl Fn(&State) -> bool,
) -> Option<Vec<u8>> {
    let (sender, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(WINDOW);
    let mut healed = state.clone();
    let read = async {
        loop {
            let mut bytes = vec![0; CHUNK];
            let count = from.read(&mut bytes).await.unwrap_or(0);
            bytes.truncate(count);
            let due = Instant::now() + faults(&state.borrow()).delay;
            if sender.send((due, bytes)).await.is_err() || count == 0 {
                // The end of the stream is delayed like data.
                return std::future::pending::<()>().await;
            }
        }
    };
    let write = async {
        while let Some((due, mut bytes)) = on_the_way.recv().await {
            tokio::time::sleep_until(due).await;
            let now = healed.wait_for(|state| !faults(state).hold).await;
            let (faults, strands) = now
                .map(|state| (faults(&state), is_stranded(&state)))
                .ok()?;
            if bytes.is_empty() {
                return None;
            }
            if strands {
                while let Ok((_, more)) = on_the_way.try_recv() {
                    bytes.extend(more);
                }
                return Some(bytes);
            }
            if !faults.drop && to.write_all(&bytes).await.is_err() {
                return None;
            }
        }
        None
    };
    tokio::select! {
        () = read => None,
        kept = write => kept,
    }
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(open)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A message that is to arrive late. It is no longer waited for if its connection is cut.
struct Kept<'s>(&'s watch::Sender<usize>);

impl<'s> Kept<'s> {
    fn new(stranded: &'s watch::Sender<usize>) -> Self {
        stranded.send_modify(|count| *count += 1);
        Self(stranded)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
