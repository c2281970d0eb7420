//! Nodes that the other nodes take for dead, but that run: they are cut off from the other nodes, or stalled for a while.
//!
//! A cut spares the clients. Each node has two kinds of connections to others. On the bus it connects to every other node: a proxy before each bus
//! port refuses new connections, and the existing ones are closed by hand. Replicas connect to their primary as clients,
//! with a user of their own, which a node can shut out.

use std::io;

use super::{RedisCluster, RedisOptions, StartError};
use crate::proxy::FaultProxy;

/// The user as which replicas connect to their primary.
const REPLICA: &str = "replica";

/// Adds the settings that make cuts possible.
pub(super) fn allowed(server: RedisOptions) -> RedisOptions {
    server
        .setting("user", format!("{REPLICA} on >{REPLICA} ~* &* +@all"))
        .setting("masteruser", REPLICA)
        .setting("masterauth", REPLICA)
        .setting("enable-debug-command", "yes")
}

/// The proxy before a bus port.
pub(super) fn line_to(bus: u16) -> Result<FaultProxy, StartError> {
    FaultProxy::start(([127, 0, 0, 1], bus)).map_err(StartError::io("start a proxy for the bus"))
}

impl RedisCluster {
    /// Cuts a node off from all other nodes, its replicas included. The node runs on, and clients reach it.
    ///
    /// # Errors
    ///
    /// The error of the system or of a node, also if the cluster was started without
    /// [`RedisClusterOptions::can_be_cut`](super::RedisClusterOptions::can_be_cut).
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    pub fn cut_off(&mut self, node: usize) -> io::Result<()> {
        self.nodes[node].is_away = true;
        // A new connection between the other nodes would be refused too. But they have theirs.
        for other in &self.nodes {
            let line = other.line.as_ref().ok_or(io::ErrorKind::Unsupported)?;
            line.refuse(true);
        }
        let cut = &self.nodes[node];
        for other in &self.nodes {
            if other.id != cut.id {
                cut.ask(&format!("DEBUG CLUSTERLINK KILL ALL {}", other.id))?;
            }
        }
        cut.ask(&format!("ACL SETUSER {REPLICA} off"))?;
        cut.ask(&format!("CLIENT KILL USER {REPLICA}")).map(drop)
    }

    /// Ends the cut, and returns when the nodes agree about every slot.
    ///
    /// # Errors
    ///
    /// The error of the system or of a node; [`io::ErrorKind::TimedOut`].
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    pub fn rejoin(&mut self, node: usize) -> io::Result<()> {
        self.nodes[node].ask(&format!("ACL SETUSER {REPLICA} on"))?;
        for line in self.nodes.iter().filter_map(|node| node.line.as_ref()) {
            line.refuse(false);
        }
        self.nodes[node].is_away = false;
        self.until_whole()
    }

    /// Stalls a node (SIGSTOP). Unlike with [`RedisServer::stall`](super::RedisServer::stall), the methods here don't ask
    /// this node.
    ///
    /// # Errors
    ///
    /// The error of the system.
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    #[cfg(unix)]
    pub fn stall(&mut self, node: usize) -> io::Result<()> {
        self.nodes[node].server.stall()?;
        self.nodes[node].is_away = true;
        Ok(())
    }

    /// Continues a node that [`stall`](Self::stall) has stalled, and returns when the nodes agree about every slot.
    ///
    /// # Errors
    ///
    /// The error of the system; [`io::ErrorKind::TimedOut`].
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    #[cfg(unix)]
    pub fn resume(&mut self, node: usize) -> io::Result<()> {
        self.nodes[node].server.resume()?;
        self.nodes[node].is_away = false;
        self.until_whole()
    }
}
