//! A Redis primary with replicas, and sentinels that promote one of them.

use std::{fs, io, path::Path, time::Duration};

use super::{
    RedisOptions, RedisServer, ServerIdentity,
    directory::{Directory, directory},
    free_port::{Port, free_port, on_free_ports},
    process::{Program, ServerProcess, StartError},
    redis::{quoted, tls_lines},
    resp::{ask, until},
};

const PROGRAM: Program = Program {
    name: "redis-server",
    install: "install Redis 6.2 or later, such as by `apt install redis-server` or `brew install redis`",
    ready_line: "+monitor master",
};

/// The sentinels' name of the primary.
const MASTER: &str = "portalock";
const SENTINELS: u32 = 3;
/// How many sentinels must agree that the primary is down.
const QUORUM: usize = 2;

/// How to start a [`SentinelGroup`].
#[derive(Debug, Clone)]
pub struct SentinelOptions {
    replicas: usize,
    down_after: Duration,
    tls: Option<ServerIdentity>,
    server: RedisOptions,
}

impl Default for SentinelOptions {
    fn default() -> Self {
        Self {
            replicas: 1,
            down_after: Duration::from_millis(500),
            tls: None,
            server: RedisOptions::new(),
        }
    }
}

impl SentinelOptions {
    /// One replica, and a primary that counts as down after half a second of silence.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many replicas there are.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Sets how long a server must be silent before the sentinels consider it down.
    #[must_use]
    pub fn down_after(mut self, silence: Duration) -> Self {
        self.down_after = silence;
        self
    }

    /// Servers and sentinels use TLS, also between each other, without client certificates.
    #[must_use]
    pub fn tls(mut self, identity: ServerIdentity) -> Self {
        self.server = self
            .server
            .tls(identity.clone())
            .setting("tls-replication", "yes");
        self.tls = Some(identity);
        self
    }

    /// Adds a line to every server's `redis.conf`, as [`RedisOptions::setting`].
    #[must_use]
    pub fn setting(mut self, directive: impl Into<String>, values: impl Into<String>) -> Self {
        self.server = self.server.setting(directive, values);
        self
    }

    /// Starts everything, and returns when the servers and sentinels know each other.
    ///
    /// # Errors
    ///
    /// [`StartError`] if Redis isn't installed or something did not come up.
    pub fn start(self) -> Result<SentinelGroup, StartError> {
        let server = self
            .server
            .setting("repl-diskless-sync-delay", "0")
            .setting("repl-ping-replica-period", "1");
        let mut servers = vec![server.clone().start()?];
        for _ in 0..self.replicas {
            let primary = format!("127.0.0.1 {}", known_port(&servers[0]));
            servers.push(server.clone().setting("replicaof", primary).start()?);
        }
        // One after another: if all notice the failure at once, each votes for itself, and the election is repeated
        // seconds later.
        let patience = |place| self.down_after + self.down_after / 2 * place;
        let sentinels = (0..SENTINELS)
            .map(|place| {
                let primary = known_port(&servers[0]);
                on_free_ports(|| Sentinel::start(primary, patience(place), self.tls.as_ref()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let group = SentinelGroup { servers, sentinels };
        group
            .until_whole()
            .map_err(StartError::io("bring sentinels together"))?;
        Ok(group)
    }
}

/// A running primary, its replicas, and three sentinels of which two must agree that the primary is down.
///
/// Dropping it kills them all.
#[derive(Debug)]
pub struct SentinelGroup {
    servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
}

#[derive(Debug)]
struct Sentinel {
    // Declared before the directory: it must be gone when that is removed.
    _process: ServerProcess,
    port: Port,
    tls_port: Option<Port>,
    _dir: Directory,
}

/// The port of a server that sentinels and replicas use.
fn known_port(server: &RedisServer) -> u16 {
    server.tls_port().unwrap_or(server.port())
}

impl SentinelGroup {
    /// A group with the default [`SentinelOptions`].
    ///
    /// # Errors
    ///
    /// As [`SentinelOptions::start`].
    pub fn start() -> Result<Self, StartError> {
        SentinelOptions::new().start()
    }

    /// Its URL: `redis+sentinel://127.0.0.1:port,.../portalock`, or `rediss+sentinel` with [`SentinelOptions::tls`].
    pub fn url(&self) -> String {
        self.url_by(&self.sentinel_ports())
    }

    /// The same URL with other ports, such as those of proxies.
    pub fn url_by(&self, ports: &[u16]) -> String {
        let places: Vec<_> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let tls = self.sentinels.iter().any(|one| one.tls_port.is_some());
        let scheme = if tls { "rediss" } else { "redis" };
        format!("{scheme}+sentinel://{}/{MASTER}", places.join(","))
    }

    /// The ports of its sentinels, for clients.
    pub fn sentinel_ports(&self) -> Vec<u16> {
        let port =
            |sentinel: &Sentinel| sentinel.tls_port.as_ref().unwrap_or(&sentinel.port).number;
        self.sentinels.iter().map(port).collect()
    }

    /// All servers; the first one started as the primary.
    pub fn servers(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// The index of the [server](Self::servers) that all sentinels name as the primary. `None` while they differ.
    pub fn primary(&self) -> Option<usize> {
        let mut places = self.sentinels.iter().map(Sentinel::names);
        let port = places.next()?.ok()?;
        let agreed = places.all(|place| place.is_ok_and(|place| place == port));
        agreed.then(|| {
            self.servers
                .iter()
                .position(|server| known_port(server) == port)
        })?
    }

    /// Waits until all sentinels name another primary than this one, and returns its index.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`].
    pub fn until_moved_from(&self, former: usize) -> io::Result<usize> {
        until(|| self.primary().filter(|primary| *primary != former))
    }

    /// Waits until there is a primary, all other running servers follow it, and every sentinel knows it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`].
    pub fn until_whole(&self) -> io::Result<()> {
        until(|| {
            let primary = &self.servers[self.primary()?];
            let info = ask(primary.port(), "INFO replication").ok()?;
            let running = self.servers.iter().filter(|server| server.pid().is_some());
            let followed = info[0].matches("state=online").count() + 1 == running.count();
            let knows = |sentinel: &Sentinel| sentinel.knows(self.servers.len() - 1);
            (followed && self.sentinels.iter().all(knows)).then_some(())
        })
    }

    /// Makes a sentinel promote a replica (`SENTINEL FAILOVER`), although the primary is healthy, and waits for the
    /// switch. Returns the index of the new primary.
    ///
    /// # Errors
    ///
    /// The system's, a sentinel's refusal, or [`io::ErrorKind::TimedOut`].
    pub fn fail_over(&self) -> io::Result<usize> {
        let former = until(|| self.primary())?;
        let (one, port) = (&self.sentinels[0], known_port(&self.servers[former]));
        until(|| {
            // It refuses while a switch is in progress, and aborts a switch if the replica is too slow.
            if one.names().is_ok_and(|named| named == port) {
                let _ = ask(one.port.number, &format!("SENTINEL FAILOVER {MASTER}"));
            }
            self.primary().filter(|primary| *primary != former)
        })
    }
}

impl Sentinel {
    fn start(
        primary: u16,
        down_after: Duration,
        tls: Option<&ServerIdentity>,
    ) -> Result<Self, StartError> {
        let dir =
            directory("sentinel-").map_err(StartError::io("make a directory for the sentinel"))?;
        let port = free_port()?;
        let mut lines = vec![
            format!("port {}", port.number),
            format!("sentinel monitor {MASTER} 127.0.0.1 {primary} {QUORUM}"),
            format!(
                "sentinel down-after-milliseconds {MASTER} {}",
                down_after.as_millis()
            ),
        ];
        let tls_port = tls.map(|_| free_port()).transpose()?;
        if let (Some(tls_port), Some(identity)) = (&tls_port, tls) {
            lines.extend(tls_lines(tls_port.number, identity));
            lines.push("tls-replication yes".to_owned());
        }
        let process = launch(dir.path(), lines)?;
        // Shorter periods for tests, for Redis 7 and later. If a sentinel learns of a switch later than four publish
        // periods, it reverts the switch. The ping period is not changed: a sentinel only promotes a replica that it
        // has reached within five ping periods, and it checks once a second.
        let _ = ask(
            port.number,
            "SENTINEL DEBUG info-period 100 ask-period 100 publish-period 1000 min-link-reconnect-period 100 \
             tilt-trigger 30000",
        );
        Ok(Self {
            _process: process,
            port,
            tls_port,
            _dir: dir,
        })
    }

    /// The port of the server that it names as the primary.
    fn names(&self) -> io::Result<u16> {
        let place = ask(
            self.port.number,
            &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}"),
        )?;
        let port = place.get(1).and_then(|port| port.parse().ok());
        port.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether it knows this number of replicas and the other sentinels, and no switch is in progress.
    fn knows(&self, replicas: usize) -> bool {
        let Ok(state) = ask(self.port.number, &format!("SENTINEL MASTER {MASTER}")) else {
            return false;
        };
        let value = |key: &str| {
            let mut pairs = state.chunks_exact(2);
            pairs.find(|pair| pair[0] == key).map(|pair| &*pair[1])
        };
        value("num-slaves") == Some(&replicas.to_string())
            && value("num-other-sentinels") == Some(&(SENTINELS - 1).to_string())
            && value("flags") == Some("master")
    }
}

fn launch(dir: &Path, mut lines: Vec<String>) -> Result<ServerProcess, StartError> {
    lines.extend([
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", quoted(dir)),
        // An election without a winner is repeated after twice the time.
        format!("sentinel failover-timeout {MASTER} 2500"),
        format!("sentinel parallel-syncs {MASTER} 8"),
    ]);
    let file = dir.join("sentinel.conf");
    fs::write(&file, lines.join("\n") + "\n").map_err(StartError::io("write sentinel.conf"))?;
    ServerProcess::start(&PROGRAM, [file.as_os_str(), "--sentinel".as_ref()])
}
