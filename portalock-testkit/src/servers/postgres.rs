//! The real `postgres`.

mod installation;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use self::installation::Installation;
use super::{
    ServerIdentity,
    directory::{Directory, directory, on_disk},
    free_port::{Port, free_port, on_free_ports},
    process::{Program, ServerProcess, StartError},
};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: Program = Program {
    name: "postgres",
    install: "install PostgreSQL 13 or later, such as by `apt install postgresql` or `brew install postgresql`",
    ready_line: "database system is ready to accept",
};

/// How long a server may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// The superuser, who needs no password.
const SUPERUSER: &str = "postgres";

/// How to start a [`PostgresServer`].
///
/// ```no_run
/// use portalock_testkit::servers::PostgresOptions;
///
/// let server = PostgresOptions::new()
///     .setting("max_connections", "20")
///     .start()?;
/// println!("{}", server.url());
/// # Ok::<(), portalock_testkit::servers::StartError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    programs: Option<PathBuf>,
    tls: Option<ServerIdentity>,
    passwords: bool,
    durable: bool,
    settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// A server that trusts everyone who reaches it, without TLS, which doesn't wait for its disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `postgres` from this directory, such as `/usr/lib/postgresql/17/bin`. By default the directory is the one in the
    /// environment variable `PORTALOCK_POSTGRES`, otherwise the first one on the path, otherwise the newest one of Debian's
    /// packages.
    #[must_use]
    pub fn programs(mut self, dir: impl Into<PathBuf>) -> Self {
        self.programs = Some(dir.into());
        self
    }

    /// Takes TLS and nothing else over TCP. Clients show no certificate.
    #[must_use]
    pub fn tls(mut self, identity: ServerIdentity) -> Self {
        self.tls = Some(identity);
        self
    }

    /// Asks everyone but the superuser for a password.
    #[must_use]
    pub fn passwords(mut self) -> Self {
        self.passwords = true;
        self
    }

    /// Syncs every commit to the disk. Without it data survives the server's end, but not the machine's.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Adds a setting, as it would stand in `postgresql.conf`, such as `max_connections`.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Starts the server and returns once it serves.
    ///
    /// # Errors
    ///
    /// [`StartError`] if it isn't installed or did not come up.
    pub fn start(self) -> Result<PostgresServer, StartError> {
        let installed = Installation::find(self.programs.as_deref())?;
        let dir = self
            .directory("postgres-")
            .map_err(StartError::io("make a directory for the server"))?;
        let data = dir.path().join("data");
        installed.copy_cluster(&data)?;
        self.set_up(&installed, dir.path())?;
        PostgresServer::on_a_free_port(self, installed, dir)
    }

    fn directory(&self, prefix: &str) -> io::Result<Directory> {
        if self.durable {
            on_disk(prefix)
        } else {
            directory(prefix)
        }
    }

    /// Who may come in, and the files for TLS where the server may read them.
    fn set_up(&self, installed: &Installation, dir: &Path) -> Result<(), StartError> {
        let data = dir.join("data");
        let host = if self.tls.is_some() {
            "hostssl"
        } else {
            "host"
        };
        let method = if self.passwords {
            "scram-sha-256"
        } else {
            "trust"
        };
        let rules = format!(
            "{host} all {SUPERUSER} 127.0.0.1/32 trust\n\
             {host} all all 127.0.0.1/32 {method}\n\
             host replication {SUPERUSER} 127.0.0.1/32 trust\n"
        );
        fs::write(data.join("pg_hba.conf"), rules).map_err(StartError::io("write pg_hba.conf"))?;
        if let Some(identity) = &self.tls {
            for (from, to) in [
                (&identity.certificate, "server.crt"),
                (&identity.key, "server.key"),
            ] {
                let to = data.join(to);
                fs::copy(from, &to)
                    .and_then(|_| fs::set_permissions(&to, fs::Permissions::from_mode(0o600)))
                    .and_then(|()| installed.give(&to))
                    .map_err(StartError::io("copy the files for TLS"))?;
            }
        }
        installed
            .give(dir)
            .map_err(StartError::io("make the directory the server's"))
    }
}

/// A running `postgres`, on a free port of the loopback interface, with a cluster in a private directory. It has the
/// superuser `postgres`, and a database of that name.
///
/// Postgres refuses to run as root: a test that does gets a server that runs as the user `postgres`, or `nobody`.
///
/// Dropping it ends the server and removes the directory. It ends with this process, however that ends.
#[derive(Debug)]
pub struct PostgresServer {
    // Declared before the directory: the server must be gone when that is removed.
    process: Option<ServerProcess>,
    options: PostgresOptions,
    port: Port,
    installed: Installation,
    dir: Directory,
}

impl PostgresServer {
    /// A server with the default [`PostgresOptions`].
    ///
    /// # Errors
    ///
    /// [`StartError`] if it isn't installed or did not come up.
    pub fn start() -> Result<Self, StartError> {
        PostgresOptions::new().start()
    }

    /// A hot standby of this server, which follows it and takes no writes until somebody calls `pg_promote()` there. It starts from
    /// a copy of the data, for which this server is [stopped](Self::stop) and started again.
    ///
    /// # Errors
    ///
    /// [`StartError`] if one of the two did not come up, or this server takes TLS only.
    pub fn standby(&mut self) -> Result<Self, StartError> {
        const COPYING: &str = "copy the server's data";
        let dir = self
            .options
            .directory("postgres-standby-")
            .map_err(StartError::io(COPYING))?;
        let data = dir.path().join("data");
        self.stop();
        self.installed
            .copy_data(&self.dir.path().join("data"), &data)?;
        self.restart()?;
        let primary = format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user={SUPERUSER}'\n",
            self.port.number
        );
        fs::write(data.join("postgresql.auto.conf"), primary)
            .and_then(|()| fs::write(data.join("standby.signal"), ""))
            .and_then(|()| self.give(dir.path()))
            .map_err(StartError::io("make a standby of a copy"))?;
        Self::on_a_free_port(self.options.clone(), self.installed.clone(), dir)
    }

    fn on_a_free_port(
        options: PostgresOptions,
        installed: Installation,
        dir: Directory,
    ) -> Result<Self, StartError> {
        let mut server = Self {
            process: None,
            options,
            port: free_port()?,
            installed,
            dir,
        };
        on_free_ports(|| {
            server.port = free_port()?;
            server.restart()
        })?;
        Ok(server)
    }

    /// The port on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Its address: `127.0.0.1:port`.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.number).into()
    }

    /// The superuser's URL: `postgres://postgres@127.0.0.1:port/postgres`.
    pub fn url(&self) -> String {
        self.url_of(SUPERUSER)
    }

    /// The URL of another user; a password goes into it as `user:password`.
    pub fn url_of(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres", self.port.number)
    }

    /// The end of the server's log: for a failing test to print.
    pub fn last_lines(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(String::new, ServerProcess::last_lines)
    }

    /// Ends the server without a word to its clients and without a checkpoint, as `pg_ctl stop -m immediate` does: it recovers
    /// from its log when it is started again. Its port refuses connections until [`restart`](Self::restart).
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // One that stands still goes on, to end.
            for pid in family(process.id()).into_iter().flatten() {
                let _ = kill_process(pid, Signal::CONT);
            }
            if let Some(pid) = pid(process.id()) {
                let _ = kill_process(pid, Signal::QUIT);
            }
            process.ends_within(ENDS_WITHIN);
        }
    }

    /// Stops the server if it runs, and starts it again on the same port, with its data.
    ///
    /// # Errors
    ///
    /// [`StartError`] if it did not come up.
    pub fn restart(&mut self) -> Result<(), StartError> {
        self.stop();
        let data = self.dir.path().join("data");
        let mut command = self.installed.command("postgres");
        command.arg("-D").arg(&data);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        set("port", &self.port.number.to_string());
        set("listen_addresses", "127.0.0.1");
        set("unix_socket_directories", "");
        set("logging_collector", "off");
        // In its directory, so that nothing of a killed server is left elsewhere.
        set("dynamic_shared_memory_type", "mmap");
        set("shared_buffers", "16MB");
        set("max_wal_size", "64MB");
        // The default since version 14.
        set("password_encryption", "scram-sha-256");
        if !self.options.durable {
            set("fsync", "off");
            set("full_page_writes", "off");
        }
        if self.options.tls.is_some() {
            set("ssl", "on");
            set("ssl_cert_file", "server.crt");
            set("ssl_key_file", "server.key");
        }
        for (name, value) in &self.options.settings {
            set(name, value);
        }
        self.process = Some(ServerProcess::launch(&PROGRAM, &mut command)?);
        Ok(())
    }

    /// Stops all of its processes where they stand (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    ///
    /// The system's, or `NotFound` if it doesn't run.
    pub fn stall(&self) -> io::Result<()> {
        let first = self.first()?;
        // First the one that makes others.
        kill_process(first, Signal::STOP)?;
        Self::signal_others(first, Signal::STOP)
    }

    /// Lets a stalled server go on (SIGCONT).
    ///
    /// # Errors
    ///
    /// The system's, or `NotFound` if it doesn't run.
    pub fn resume(&self) -> io::Result<()> {
        let first = self.first()?;
        Self::signal_others(first, Signal::CONT)?;
        Ok(kill_process(first, Signal::CONT)?)
    }

    /// Gives a file or a directory to the user that the server runs as.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        self.installed.give(path)
    }

    /// A command that runs as that user.
    pub(super) fn command(&self, program: &str) -> Command {
        self.installed.step_down(Command::new(program))
    }

    fn first(&self) -> io::Result<Pid> {
        self.process
            .as_ref()
            .and_then(|process| pid(process.id()))
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the server doesn't run"))
    }

    fn signal_others(first: Pid, signal: Signal) -> io::Result<()> {
        for process in family(first.as_raw_nonzero().get().unsigned_abs())? {
            match kill_process(process, signal) {
                // It has ended meanwhile.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// A server's processes: it has one for each connection, each in a process group of its own.
fn family(first: u32) -> io::Result<Vec<Pid>> {
    let listing = Command::new("ps")
        .args(["-A", "-o", "pid=,ppid="])
        .output()?;
    let listing = String::from_utf8_lossy(&listing.stdout);
    let mut family = vec![first];
    for line in listing.lines() {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        if let (Some(Ok(id)), Some(Ok(parent))) = (numbers.next(), numbers.next())
            && parent == first
        {
            family.push(id);
        }
    }
    Ok(family.into_iter().filter_map(pid).collect())
}
