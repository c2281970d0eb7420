//! The suite on a real NATS server: a new server for each case, with a fault proxy in front of each client.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use portalock_example_nats::{NatsBackend, NatsSettings};
use portalock_testkit::{
    Fixture, FixtureError, Restore,
    proxy::{Direction, FaultProxy},
    servers::{Program, ServerProcess, StartError},
};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

/// Long enough to stay alive on a busy machine, short enough to wait for its end.
const LEASE: Duration = Duration::from_secs(3);

const PROGRAM: Program = Program {
    name: "nats-server",
    install: "install NATS, such as by `apt install nats-server` or `brew install nats-server`",
    ready_line: "Server is ready",
};

portalock_testkit::conformance!(Nats::start().await);

struct Nats {
    // Declared before the directory: the server must have ended when the directory is removed.
    server: Arc<Mutex<ServerProcess>>,
    address: SocketAddr,
    directory: TempDir,
    /// The fault proxy of each client, by its URL.
    lines: Mutex<HashMap<String, Arc<FaultProxy>>>,
}

impl Nats {
    async fn start() -> Result<Self, FixtureError> {
        spawn_blocking(|| {
            let directory = tempfile::tempdir()?;
            // The server selects a free port, and its log contains the port.
            let server = launch(directory.path(), "-1").map_err(FixtureError::failed)?;
            let log = server.last_lines();
            let said = log.split_once("client connections on 127.0.0.1:");
            let port = said.and_then(|(_, port)| port.lines().next()?.parse().ok());
            let port: u16 = port.ok_or_else(|| FixtureError::failed(log.clone()))?;
            Ok(Self {
                server: Arc::new(Mutex::new(server)),
                address: (Ipv4Addr::LOCALHOST, port).into(),
                directory,
                lines: Mutex::default(),
            })
        })
        .await
        .map_err(FixtureError::failed)?
    }

    fn line(&self, client: &NatsBackend) -> Arc<FaultProxy> {
        self.lines.lock().unwrap()[&client.settings().url].clone()
    }
}

fn launch(directory: &Path, port: &str) -> Result<ServerProcess, StartError> {
    let path = directory.display().to_string();
    ServerProcess::start(
        &PROGRAM,
        [
            "--addr",
            "127.0.0.1",
            "--port",
            port,
            "--jetstream",
            "--store_dir",
            &path,
        ],
    )
}

fn settings(address: &str) -> NatsSettings {
    NatsSettings {
        url: format!("nats://{address}"),
        bucket: "test".into(),
        lease_time: LEASE,
        request_timeout: Duration::from_secs(2),
    }
}

#[async_trait]
impl Fixture for Nats {
    type Backend = NatsBackend;

    async fn client(&self) -> Result<NatsBackend, FixtureError> {
        let line = Arc::new(FaultProxy::start(self.address)?);
        let settings = settings(&line.addr().to_string());
        self.lines
            .lock()
            .unwrap()
            .insert(settings.url.clone(), line);
        Ok(NatsBackend::connect(settings).await?)
    }

    async fn crash(&self, client: &NatsBackend) -> Result<(), FixtureError> {
        let line = self.line(client);
        line.refuse(true);
        line.cut();
        Ok(())
    }

    async fn cut_off(&self, client: &NatsBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client);
        line.black_hole(Direction::Both);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn lose_answers(&self, client: &NatsBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client);
        line.black_hole(Direction::ToClient);
        Ok(Restore::new(async move {
            line.heal();
            Ok(())
        }))
    }

    async fn delay_requests(&self, client: &NatsBackend) -> Result<Restore, FixtureError> {
        let line = self.line(client);
        line.strand();
        Ok(Restore::new(async move {
            line.deliver().await;
            Ok(())
        }))
    }

    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        self.server.lock().unwrap().stall()?;
        let server = self.server.clone();
        Ok(Restore::new(
            async move { Ok(server.lock().unwrap().resume()?) },
        ))
    }

    async fn restart_service(&self) -> Result<(), FixtureError> {
        let (server, port) = (self.server.clone(), self.address.port().to_string());
        let directory = self.directory.path().to_owned();
        spawn_blocking(move || {
            let mut server = server.lock().unwrap();
            // Its port must be free first.
            server.kill()?;
            *server = launch(&directory, &port).map_err(FixtureError::failed)?;
            Ok(())
        })
        .await
        .map_err(FixtureError::failed)?
    }

    fn address(&self) -> Option<String> {
        Some(self.address.to_string())
    }

    async fn connect(address: &str) -> Result<NatsBackend, FixtureError> {
        Ok(NatsBackend::connect(settings(address)).await?)
    }
}
