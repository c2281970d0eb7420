//! The real `etcd`: one member, or a cluster.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use super::{
    ServerIdentity,
    directory::{Directory, directory},
    free_port::{Port, free_port, on_free_ports},
    process::{Program, ServerProcess, StartError},
};

const PROGRAM: Program = Program {
    name: "etcd",
    install: "install etcd 3.4 or later, such as by `apt install etcd-server` or `brew install etcd`",
    ready_line: "serving client traffic",
};

/// How to start an [`EtcdServer`].
///
/// ```no_run
/// use portalock_testkit::servers::EtcdOptions;
///
/// let cluster = EtcdOptions::new()
///     .members(3)
///     .argument("--quota-backend-bytes=16777216")
///     .start()?;
/// println!("{:?}", cluster.endpoints());
/// # Ok::<(), portalock_testkit::servers::StartError>(())
/// ```
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    members: usize,
    tls: Option<ServerIdentity>,
    arguments: Vec<OsString>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            members: 1,
            tls: None,
            arguments: Vec::new(),
        }
    }
}

impl EtcdOptions {
    /// A single member, without users or TLS.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many members the cluster has.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members.max(1);
        self
    }

    /// Serves clients over TLS, without client certificates.
    #[must_use]
    pub fn tls(mut self, identity: ServerIdentity) -> Self {
        self.tls = Some(identity);
        self
    }

    /// Adds an argument to every member's command line, such as `--quota-backend-bytes=16777216`.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts the members, and returns when all of them serve.
    ///
    /// # Errors
    ///
    /// [`StartError`] if etcd isn't installed or did not come up.
    pub fn start(self) -> Result<EtcdServer, StartError> {
        let all: Vec<usize> = (0..self.members).collect();
        on_free_ports(|| {
            let server = EtcdServer::laid_out(&self)?;
            server.restart(&all)?;
            Ok(server)
        })
    }
}

/// A running etcd, on free ports of the loopback interface, in a private directory. The directory is in memory if the
/// system supports that, because etcd syncs every write.
///
/// Dropping it kills the members and removes their data. They also end with this process, for whatever reason it ends.
#[derive(Debug)]
pub struct EtcdServer {
    // Declared before the directory: the members must be gone when that is removed.
    members: Vec<Member>,
    _dir: Directory,
}

#[derive(Debug)]
struct Member {
    endpoint: String,
    /// For clients, and for the other members.
    ports: [Port; 2],
    data: PathBuf,
    arguments: Vec<OsString>,
    process: Mutex<Option<ServerProcess>>,
}

impl EtcdServer {
    /// A single member with the default [`EtcdOptions`].
    ///
    /// # Errors
    ///
    /// [`StartError`] if etcd isn't installed or did not come up.
    pub fn start() -> Result<Self, StartError> {
        EtcdOptions::new().start()
    }

    /// The members' client URLs.
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.endpoint.clone())
            .collect()
    }

    /// The port on 127.0.0.1 where this member serves clients. It stays the same after a restart.
    ///
    /// # Panics
    ///
    /// If there is no such member. This applies to all methods with a member's number.
    pub fn port(&self, member: usize) -> u16 {
        self.members[member].ports[0].number
    }

    /// The number of members, running or not.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Kills a member (SIGKILL). Its data stays.
    ///
    /// # Panics
    ///
    /// If there is no such member.
    pub fn kill(&self, member: usize) {
        drop(self.members[member].lock().take());
    }

    /// Kills these members if they run, starts them with their ports and data, all at once, and returns when all of
    /// them serve. Without a majority of all members they never do.
    ///
    /// # Errors
    ///
    /// [`StartError`] if one did not come up.
    ///
    /// # Panics
    ///
    /// If there is no such member.
    pub fn restart(&self, members: &[usize]) -> Result<(), StartError> {
        thread::scope(|scope| {
            let starting: Vec<_> = members
                .iter()
                .map(|member| scope.spawn(|| self.members[*member].start()))
                .collect();
            starting
                .into_iter()
                .try_for_each(|start| match start.join() {
                    Ok(started) => started,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })
    }

    /// Stops a member's process (SIGSTOP): its connections stay open, but get no answers.
    ///
    /// # Errors
    ///
    /// The system's, or if the member does not run.
    ///
    /// # Panics
    ///
    /// If there is no such member.
    #[cfg(unix)]
    pub fn stall(&self, member: usize) -> io::Result<()> {
        self.members[member].running(ServerProcess::stall)
    }

    /// Continues a stalled member.
    ///
    /// # Errors
    ///
    /// The system's, or if the member does not run.
    ///
    /// # Panics
    ///
    /// If there is no such member.
    #[cfg(unix)]
    pub fn resume(&self, member: usize) -> io::Result<()> {
        self.members[member].running(ServerProcess::resume)
    }

    /// Deletes the data of a member that was killed. A lone member is a new, empty service when it is started again.
    ///
    /// # Errors
    ///
    /// The system's.
    ///
    /// # Panics
    ///
    /// If there is no such member.
    pub fn wipe(&self, member: usize) -> io::Result<()> {
        std::fs::remove_dir_all(&self.members[member].data)
    }

    /// The data directory of a member, for a test that saves and restores it while the member does not run.
    ///
    /// # Panics
    ///
    /// If there is no such member.
    pub fn data(&self, member: usize) -> &Path {
        &self.members[member].data
    }

    fn laid_out(options: &EtcdOptions) -> Result<Self, StartError> {
        let dir = directory("etcd-").map_err(StartError::io("make a directory for the server"))?;
        let scheme = if options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let mut members = Vec::new();
        let mut peers = Vec::new();
        for number in 0..options.members {
            let ports = [free_port()?, free_port()?];
            peers.push(format!("http://127.0.0.1:{}", ports[1].number));
            members.push(Member {
                endpoint: format!("{scheme}://127.0.0.1:{}", ports[0].number),
                ports,
                data: dir.path().join(number.to_string()),
                arguments: Vec::new(),
                process: Mutex::new(None),
            });
        }
        let cluster = peers
            .iter()
            .enumerate()
            .map(|(number, peer)| format!("member-{number}={peer}"))
            .collect::<Vec<_>>()
            .join(",");
        // A single member may elect itself at once. With several members, a short timeout on a busy machine makes them
        // replace each other.
        let (heartbeat, election) = if options.members == 1 {
            (10, 100)
        } else {
            (100, 1000)
        };
        for (number, (member, peer)) in members.iter_mut().zip(&peers).enumerate() {
            member.argument(format!("--name=member-{number}"));
            member.argument(format!("--listen-client-urls={}", member.endpoint));
            member.argument(format!("--advertise-client-urls={}", member.endpoint));
            member.argument(format!("--listen-peer-urls={peer}"));
            member.argument(format!("--initial-advertise-peer-urls={peer}"));
            member.argument(format!("--initial-cluster={cluster}"));
            member.argument(format!("--heartbeat-interval={heartbeat}"));
            member.argument(format!("--election-timeout={election}"));
            member.argument("--logger=zap".to_owned());
            let data = member.data.clone();
            member.file("--data-dir=", &data);
            if let Some(identity) = &options.tls {
                member.file("--cert-file=", &identity.certificate);
                member.file("--key-file=", &identity.key);
            }
            // If an argument is given twice, etcd uses the last one.
            member.arguments.extend(options.arguments.iter().cloned());
        }
        Ok(Self { members, _dir: dir })
    }
}

impl Member {
    fn argument(&mut self, argument: String) {
        self.arguments.push(argument.into());
    }

    fn file(&mut self, flag: &str, file: &Path) {
        let mut argument = OsString::from(flag);
        argument.push(file);
        self.arguments.push(argument);
    }

    fn start(&self) -> Result<(), StartError> {
        let mut process = self.lock();
        drop(process.take());
        *process = Some(ServerProcess::start(&PROGRAM, &self.arguments)?);
        Ok(())
    }

    #[cfg(unix)]
    fn running(&self, act: impl FnOnce(&ServerProcess) -> io::Result<()>) -> io::Result<()> {
        match self.lock().as_ref() {
            Some(process) => act(process),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "this member does not run",
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ServerProcess>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
