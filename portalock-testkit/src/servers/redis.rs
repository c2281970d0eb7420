//! The real `redis-server`.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use super::{
    directory::{Directory, directory},
    free_port::{Port, free_port, on_free_ports},
    process::{Program, ServerProcess, StartError},
    resp::ask,
};

const PROGRAM: Program = Program {
    name: "redis-server",
    install: "install Redis 6.2 or later, such as by `apt install redis-server` or `brew install redis`",
    ready_line: "eady to accept connections",
};

/// How to start a [`RedisServer`].
///
/// ```no_run
/// use portalock_testkit::servers::RedisOptions;
///
/// let server = RedisOptions::new()
///     .persistent(true)
///     .setting("maxmemory", "4mb")
///     .start()?;
/// println!("{}", server.url());
/// # Ok::<(), portalock_testkit::servers::StartError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    persistent: bool,
    tls: Option<ServerIdentity>,
    settings: Vec<(String, String)>,
}

/// The certificate of a server: PEM files.
#[derive(Debug, Clone)]
pub struct ServerIdentity {
    /// The certificate of the authority that clients trust.
    pub authority: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

impl RedisOptions {
    /// A server without persistence, password or TLS.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the data survives [`RedisServer::restart`] (an append-only file, synced at every write). Default
    /// false: a restart loses everything.
    #[must_use]
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = persistent;
        self
    }

    /// Listens on a second port with TLS, without client certificates: see [`RedisServer::tls_port`].
    #[must_use]
    pub fn tls(mut self, identity: ServerIdentity) -> Self {
        self.tls = Some(identity);
        self
    }

    /// Adds a line to `redis.conf`: a directive, such as `maxmemory`, and its values, such as `4mb`.
    #[must_use]
    pub fn setting(mut self, directive: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((directive.into(), value.into()));
        self
    }

    /// Starts the server, and returns when it answers a PING.
    ///
    /// # Errors
    ///
    /// [`StartError`] if it isn't installed or did not come up.
    pub fn start(self) -> Result<RedisServer, StartError> {
        let dir = directory("redis-").map_err(StartError::io("make a directory for the server"))?;
        let (process, port, tls_port) = on_free_ports(|| {
            let port = free_port()?;
            let tls_port = self.tls.as_ref().map(|_| free_port()).transpose()?;
            let process = launch(&self, dir.path(), &port, tls_port.as_ref())?;
            Ok((process, port, tls_port))
        })?;
        Ok(RedisServer {
            process: Some(process),
            options: self,
            port,
            tls_port,
            dir,
        })
    }
}

/// A running `redis-server`, on a free port of the loopback interface and a unix socket, in a private directory.
///
/// Dropping it kills the server and removes the directory. It also ends with this process, for whatever reason that
/// ends.
#[derive(Debug)]
pub struct RedisServer {
    // Declared before the directory: the server must be gone when that is removed.
    process: Option<ServerProcess>,
    options: RedisOptions,
    port: Port,
    tls_port: Option<Port>,
    dir: Directory,
}

impl RedisServer {
    /// A server with the default [`RedisOptions`].
    ///
    /// # Errors
    ///
    /// [`StartError`] if it isn't installed or did not come up.
    pub fn start() -> Result<Self, StartError> {
        RedisOptions::new().start()
    }

    /// The port on 127.0.0.1. It stays the same after a restart.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The port with TLS, if [`RedisOptions::tls`] was set.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port.as_ref().map(|port| port.number)
    }

    /// Its address: `127.0.0.1:port`.
    pub fn addr(&self) -> std::net::SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.number).into()
    }

    /// Its URL: `redis://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number)
    }

    /// The unix socket that it also listens on.
    pub fn socket(&self) -> PathBuf {
        socket_in(self.dir.path())
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ServerProcess::id)
    }

    /// The last lines of the server's log, for failing tests.
    pub fn last_lines(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(String::new, ServerProcess::last_lines)
    }

    /// Kills the server (SIGKILL). Its port refuses connections until [`restart`](Self::restart).
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Kills the server if it runs, and starts it again on the same port. Its data survives if it is
    /// [`persistent`](RedisOptions::persistent); otherwise everything is lost.
    ///
    /// # Errors
    ///
    /// [`StartError`] if it did not come up.
    pub fn restart(&mut self) -> Result<(), StartError> {
        self.stop();
        self.process = Some(launch(
            &self.options,
            self.dir.path(),
            &self.port,
            self.tls_port.as_ref(),
        )?);
        Ok(())
    }

    /// Like [`restart`](Self::restart), but also loses the data of a persistent server.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the data could not be removed or the server did not come up.
    pub fn restart_empty(&mut self) -> Result<(), StartError> {
        self.stop();
        let entries = fs::read_dir(self.dir.path()).map_err(StartError::io("look for the data"))?;
        for entry in entries {
            let path = entry.map_err(StartError::io("look for the data"))?.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(StartError::io("remove the data"))?;
        }
        self.restart()
    }

    /// Stops the process (SIGSTOP): connections stay open, but nothing answers.
    ///
    /// # Errors
    ///
    /// The system's, or `NotFound` if it doesn't run.
    #[cfg(unix)]
    pub fn stall(&self) -> io::Result<()> {
        self.running()?.stall()
    }

    /// Continues a stalled server (SIGCONT).
    ///
    /// # Errors
    ///
    /// The system's, or `NotFound` if it doesn't run.
    #[cfg(unix)]
    pub fn resume(&self) -> io::Result<()> {
        self.running()?.resume()
    }

    #[cfg(unix)]
    fn running(&self) -> io::Result<&ServerProcess> {
        self.process
            .as_ref()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the server doesn't run"))
    }
}

fn launch(
    options: &RedisOptions,
    dir: &Path,
    port: &Port,
    tls_port: Option<&Port>,
) -> Result<ServerProcess, StartError> {
    let socket = socket_in(dir);
    let mut lines = vec![
        format!("port {}", port.number),
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", quoted(dir)),
        format!("unixsocket {}", quoted(&socket)),
        "save \"\"".to_owned(),
    ];
    if options.persistent {
        lines.push("appendonly yes".to_owned());
        lines.push("appendfsync always".to_owned());
    }
    if let (Some(tls_port), Some(identity)) = (tls_port, &options.tls) {
        lines.extend(tls_lines(tls_port.number, identity));
    }
    lines.extend(
        options
            .settings
            .iter()
            .map(|(directive, values)| format!("{directive} {values}")),
    );
    let file = dir.join("redis.conf");
    fs::write(&file, lines.join("\n") + "\n").map_err(StartError::io("write redis.conf"))?;
    let process = ServerProcess::start(&PROGRAM, [&file])?;
    ping(port.number).map_err(StartError::io("get an answer from redis-server"))?;
    Ok(process)
}

/// The TLS configuration of a server.
pub(super) fn tls_lines(port: u16, identity: &ServerIdentity) -> [String; 5] {
    [
        format!("tls-port {port}"),
        format!("tls-ca-cert-file {}", quoted(&identity.authority)),
        format!("tls-cert-file {}", quoted(&identity.certificate)),
        format!("tls-key-file {}", quoted(&identity.key)),
        "tls-auth-clients no".to_owned(),
    ]
}

/// Waits for any answer, even "not authenticated".
fn ping(port: u16) -> io::Result<()> {
    match ask(port, "PING") {
        Err(error) if error.kind() != io::ErrorKind::Other => Err(error),
        _ => Ok(()),
    }
}

/// A path in the syntax of `redis.conf`.
pub(super) fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("redis.sock")
}
