//! The real `pgbouncer`, in front of a Postgres.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use super::{
    directory::{Directory, directory},
    free_port::{Port, free_port},
    postgres::PostgresServer,
    process::{Program, ServerProcess, StartError},
};

const PROGRAM: Program = Program {
    name: "pgbouncer",
    install: "install PgBouncer, such as by `apt install pgbouncer` or `brew install pgbouncer`",
    ready_line: "process up",
};

/// A running `pgbouncer`, on a free port of the loopback interface. It ends when it is dropped, and with this process.
#[derive(Debug)]
pub struct Pooler {
    // Declared before the directory: the pooler must be gone when that is removed.
    _process: ServerProcess,
    port: Port,
    _dir: Directory,
}

impl Pooler {
    /// Starts a pooler in front of `server`. The settings are those of `pgbouncer.ini`, such as `("pool_mode",
    /// "transaction")`. Only the superuser can log in.
    ///
    /// # Errors
    ///
    /// [`StartError`] if it isn't installed or did not come up.
    pub fn start(server: &PostgresServer, settings: &[(&str, &str)]) -> Result<Self, StartError> {
        let dir =
            directory("pgbouncer-").map_err(StartError::io("make a directory for the pooler"))?;
        let port = free_port()?;
        let users = dir.path().join("users.txt");
        let file = dir.path().join("pgbouncer.ini");
        let mut text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\n",
            server.port(),
            port.number,
            users.display(),
        );
        for (name, value) in settings {
            text = format!("{text}{name} = {value}\n");
        }
        fs::write(&file, text)
            .and_then(|()| fs::write(&users, "\"postgres\" \"\"\n"))
            .map_err(StartError::io("write pgbouncer.ini"))?;
        // It refuses to run as root, too.
        for path in [dir.path(), &file, &users] {
            server
                .give(path)
                .map_err(StartError::io("make the directory the pooler's"))?;
        }
        let process = ServerProcess::launch(&PROGRAM, server.command(PROGRAM.name).arg(&file))?;
        Ok(Self {
            _process: process,
            port,
            _dir: dir,
        })
    }

    /// Its address: `127.0.0.1:port`.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.number).into()
    }

    /// The superuser's URL through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.addr())
    }
}
