//! Nodes that the other nodes take for dead, but that run: they are cut off from the other nodes, or stalled for a while.
//!
//! A cut spares the clients. Each node has two kinds of connections to others. On the bus it connects to every other node:
//! a proxy before each bus port refuses the cut node, which has an address of its own, and the existing connections are
//! closed by hand. Replicas connect to their primary as clients, with a user of their own, which a node can shut out.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use super::{Node, RedisCluster, RedisOptions, StartError};
use crate::proxy::FaultProxy;

/// The user as which replicas connect to their primary.
const REPLICA: &str = "replica";

/// The proxy before the bus port of a node.
#[derive(Debug)]
pub(super) struct Line {
    proxy: FaultProxy,
    /// The address from which this node connects to others.
    from: Ipv4Addr,
}

impl Line {
    pub(super) fn start(number: usize, bus: u16) -> Result<Self, StartError> {
        let proxy = FaultProxy::start(([127, 0, 0, 1], bus));
        // The whole network 127.0.0.0/8 is this host, at least on Linux.
        let number = u8::try_from(number).unwrap_or(u8::MAX - 2);
        Ok(Self {
            proxy: proxy.map_err(StartError::io("start a proxy for the bus"))?,
            from: Ipv4Addr::new(127, 0, 0, number + 2),
        })
    }

    /// The port for the other nodes.
    pub(super) fn port(&self) -> u16 {
        self.proxy.port()
    }

    /// Adds the settings of the node.
    pub(super) fn settings(&self, options: RedisOptions) -> RedisOptions {
        options
            .setting("bind-source-addr", self.from.to_string())
            .setting("cluster-announce-ip", "127.0.0.1")
            .setting("cluster-announce-bus-port", self.port().to_string())
            .setting("user", format!("{REPLICA} on >{REPLICA} ~* &* +@all"))
            .setting("masteruser", REPLICA)
            .setting("masterauth", REPLICA)
            .setting("enable-debug-command", "yes")
    }
}

impl Node {
    fn line(&self) -> io::Result<&Line> {
        let line = self.line.as_ref();
        line.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
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
        let from = self.nodes[node].line()?.from;
        let cut = &self.nodes[node];
        for other in &self.nodes {
            let proxy = &other.line()?.proxy;
            if other.id == cut.id {
                proxy.refuse(true);
            } else {
                proxy.refuse_from(Some(IpAddr::V4(from)));
            }
        }
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
            line.proxy.heal();
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
