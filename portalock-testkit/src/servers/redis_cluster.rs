//! A Redis Cluster: several primaries, each with a part of the slots, and replicas that are promoted when a primary fails.

mod cut;
mod moves;

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    RedisOptions, RedisServer, ServerIdentity, StartError,
    free_port::{Port, free_port, on_free_ports},
    resp::{ask, ask_words, until},
};
use cut::Line;
pub use moves::SlotMove;

const SLOTS: u16 = 16384;
const PRIMARIES: usize = 3;
/// After this time a replica has given up a failover by hand.
const FAILOVER_WITHIN: Duration = Duration::from_secs(6);

/// The options of a [`RedisCluster`].
#[derive(Debug, Clone)]
pub struct RedisClusterOptions {
    node_timeout: Duration,
    replicas: usize,
    can_be_cut: bool,
    server: RedisOptions,
}

impl Default for RedisClusterOptions {
    fn default() -> Self {
        Self {
            node_timeout: Duration::from_secs(2),
            replicas: 1,
            can_be_cut: false,
            server: RedisOptions::new(),
        }
    }
}

impl RedisClusterOptions {
    /// Three primaries with one replica each. A node counts as failed after two seconds without an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets after how much time without an answer a node counts as failed.
    #[must_use]
    pub fn node_timeout(mut self, silence: Duration) -> Self {
        self.node_timeout = silence;
        self
    }

    /// Sets how many replicas each primary has.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Allows to cut nodes off from each other: see [`RedisCluster::cut_off`]. Not together with [`tls`](Self::tls).
    #[must_use]
    pub fn can_be_cut(mut self) -> Self {
        self.can_be_cut = true;
        self
    }

    /// Uses TLS for clients, and between the nodes. Clients need no certificate.
    #[must_use]
    pub fn tls(mut self, identity: ServerIdentity) -> Self {
        self.server = self
            .server
            .tls(identity)
            .setting("tls-replication", "yes")
            .setting("tls-cluster", "yes");
        self
    }

    /// Adds a line to every node's `redis.conf`, like [`RedisOptions::setting`].
    #[must_use]
    pub fn setting(mut self, directive: impl Into<String>, values: impl Into<String>) -> Self {
        self.server = self.server.setting(directive, values);
        self
    }

    /// Starts the nodes. Returns when every slot is served and every replica follows its primary.
    ///
    /// # Errors
    ///
    /// [`StartError`] if Redis 7 or later isn't installed, or if a node does not start.
    pub fn start(self) -> Result<RedisCluster, StartError> {
        let server = self
            .server
            .setting("cluster-enabled", "yes")
            .setting("cluster-config-file", "nodes.conf")
            .setting(
                "cluster-node-timeout",
                self.node_timeout.as_millis().to_string(),
            )
            // A replica can be promoted even if it lost its primary long ago.
            .setting("cluster-replica-validity-factor", "0")
            .setting("cluster-allow-replica-migration", "no")
            .setting("repl-diskless-sync-delay", "0")
            .setting("repl-ping-replica-period", "1");
        let nodes = (0..PRIMARIES * (1 + self.replicas))
            .map(|number| Node::start(&server, self.can_be_cut.then_some(number)))
            .collect::<Result<Vec<_>, _>>()?;
        let cluster = RedisCluster { nodes };
        cluster
            .join()
            .map_err(StartError::io("bring a cluster together"))?;
        Ok(cluster)
    }
}

/// A running cluster. At the start the first three nodes are the primaries, each with a third of the slots.
///
/// Dropping it kills all nodes.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    server: RedisServer,
    /// The node's id in the cluster.
    id: String,
    /// The port of its bus.
    _own: Port,
    /// The bus port that the other nodes use.
    bus: u16,
    /// The proxy at that port, if nodes can be cut off.
    line: Option<Line>,
    /// It runs, but the other nodes can't reach it.
    is_away: bool,
}

impl Node {
    /// Starts a node; if it can be cut off, with its number.
    fn start(options: &RedisOptions, can_be_cut: Option<usize>) -> Result<Self, StartError> {
        let (server, own, line) = on_free_ports(|| {
            let own = free_port()?;
            let line = can_be_cut
                .map(|number| Line::start(number, own.number))
                .transpose()?;
            let mut options = options
                .clone()
                .setting("cluster-port", own.number.to_string());
            if let Some(line) = &line {
                options = line.settings(options);
            }
            Ok((options.start()?, own, line))
        })?;
        let id =
            one(server.port(), "CLUSTER MYID").map_err(StartError::io("ask a node for its id"))?;
        Ok(Self {
            server,
            id,
            bus: line.as_ref().map_or(own.number, Line::port),
            _own: own,
            line,
            is_away: false,
        })
    }

    fn ask(&self, command: &str) -> io::Result<Vec<String>> {
        ask(self.server.port(), command)
    }

    /// Whether the other nodes can reach it.
    fn takes_part(&self) -> bool {
        self.server.pid().is_some() && !self.is_away
    }

    /// The port that clients and other nodes use.
    fn known_port(&self) -> u16 {
        self.server.tls_port().unwrap_or(self.server.port())
    }

    /// The id of the node that serves a slot, as this node sees it.
    fn owner(&self, slot: u16) -> io::Result<Option<String>> {
        let nodes = one(self.server.port(), "CLUSTER NODES")?;
        let owner = nodes.lines().find(|line| serves(line, slot));
        Ok(owner.and_then(|line| line.split(' ').next().map(str::to_owned)))
    }
}

/// Whether, in this line of `CLUSTER NODES`, the node serves `slot`.
fn serves(line: &str, slot: u16) -> bool {
    line.split(' ').skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&slot),
            // A slot in brackets: it is being moved.
            _ => false,
        }
    })
}

impl RedisCluster {
    /// Starts a cluster with the default [`RedisClusterOptions`].
    ///
    /// # Errors
    ///
    /// The same as for [`RedisClusterOptions::start`].
    pub fn start() -> Result<Self, StartError> {
        RedisClusterOptions::new().start()
    }

    fn join(&self) -> io::Result<()> {
        let first = &self.nodes[0];
        for node in &self.nodes[1..] {
            node.ask(&format!(
                "CLUSTER MEET 127.0.0.1 {} {}",
                first.known_port(),
                first.bus
            ))?;
        }
        for (place, node) in (0..).zip(&self.nodes[..PRIMARIES]) {
            let third = |place| SLOTS * place / 3;
            let (from, to) = (third(place), third(place + 1) - 1);
            node.ask(&format!("CLUSTER ADDSLOTSRANGE {from} {to}"))?;
        }
        for (place, node) in self.nodes.iter().enumerate().skip(PRIMARIES) {
            let primary = &self.nodes[place % PRIMARIES].id;
            // The node refuses this until it knows the primary.
            until(|| node.ask(&format!("CLUSTER REPLICATE {primary}")).ok())?;
        }
        self.until_whole()
    }

    /// The URL with all nodes: `redis+cluster://127.0.0.1:port,...`, or `rediss+cluster` with [`RedisClusterOptions::tls`].
    pub fn url(&self) -> String {
        let ports: Vec<_> = self.nodes.iter().map(Node::known_port).collect();
        self.url_by(&ports)
    }

    /// The URL with these ports only.
    pub fn url_by(&self, ports: &[u16]) -> String {
        let places: Vec<_> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let tls = self.nodes[0].server.tls_port().is_some();
        let scheme = if tls { "rediss" } else { "redis" };
        format!("{scheme}+cluster://{}", places.join(","))
    }

    /// The number of nodes.
    #[expect(
        clippy::len_without_is_empty,
        reason = "there is no cluster without a node"
    )]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns a node.
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    pub fn node(&self, node: usize) -> &RedisServer {
        &self.nodes[node].server
    }

    /// Returns a node, to stop or start it.
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    pub fn node_mut(&mut self, node: usize) -> &mut RedisServer {
        &mut self.nodes[node].server
    }

    /// The slot of a key.
    ///
    /// # Errors
    ///
    /// The error of the system if no node answers.
    pub fn slot_of(&self, key: &str) -> io::Result<u16> {
        let running = self.nodes.iter().find(|node| node.takes_part());
        let node = running.ok_or(io::ErrorKind::NotFound)?;
        let slot = ask_words(node.server.port(), ["CLUSTER", "KEYSLOT", key])?;
        slot.first()
            .and_then(|slot| slot.parse().ok())
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The node that serves `slot`, if all running nodes agree. Nodes that are cut off or stalled are not asked. Otherwise `None`.
    pub fn owner(&self, slot: u16) -> Option<usize> {
        let mut running = self.nodes.iter().filter(|node| node.takes_part());
        let id = running.next()?.owner(slot).ok()??;
        let agreed = running.all(|node| {
            let owner = node.owner(slot).ok().flatten();
            owner.as_deref() == Some(&*id)
        });
        let place = self.nodes.iter().position(|node| node.id == id);
        place.filter(|_| agreed)
    }

    /// Waits until all running nodes agree that another node than `former` serves `slot`, and returns that node.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`].
    pub fn until_moved_from(&self, slot: u16, former: usize) -> io::Result<usize> {
        until(|| self.owner(slot).filter(|owner| *owner != former))
    }

    /// Waits until every slot is served and every running replica follows its primary.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`].
    pub fn until_whole(&self) -> io::Result<()> {
        let is_whole = |node: &Node| {
            let state = one(node.server.port(), "CLUSTER INFO").ok()?;
            let nodes = one(node.server.port(), "CLUSTER NODES").ok()?;
            let role = one(node.server.port(), "INFO replication").ok()?;
            let all = nodes.lines().count() == self.nodes.len() && !nodes.contains("handshake");
            let follows = role.contains("role:master") || role.contains("master_link_status:up");
            (state.contains("cluster_state:ok") && all && follows).then_some(())
        };
        let mut running = self.nodes.iter().filter(|node| node.takes_part());
        running.try_for_each(|node| until(|| is_whole(node)))
    }

    /// Promotes a replica of the primary that serves `slot` (`CLUSTER FAILOVER`), and waits until it serves the slot. Returns
    /// that node.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`], also if the primary has no running replica.
    pub fn fail_over(&self, slot: u16) -> io::Result<usize> {
        let former = until(|| self.owner(slot))?;
        let mut asked: Option<Instant> = None;
        until(|| {
            // If its primary is too slow, a replica gives up after five seconds. A new request starts the failover again.
            if asked.is_none_or(|asked| asked.elapsed() > FAILOVER_WITHIN) {
                let replica = self.replica_of(former)?;
                if !self.would_vote_for(replica, former) {
                    return None;
                }
                asked = replica.ask("CLUSTER FAILOVER").ok().map(|_| Instant::now());
            }
            self.owner(slot).filter(|owner| *owner != former)
        })
    }

    /// Whether all running nodes know the replica as this primary's, and the same epoch. A node that does not yet know
    /// refuses its vote, and the replica asks for votes again only after four times the node timeout.
    fn would_vote_for(&self, replica: &Node, primary: usize) -> bool {
        let follows = format!("slave {}", self.nodes[primary].id);
        let known = |node: &Node| {
            let nodes = one(node.server.port(), "CLUSTER NODES").ok()?;
            let state = one(node.server.port(), "CLUSTER INFO").ok()?;
            let mut epochs = state
                .lines()
                .filter(|line| line.starts_with("cluster_current_epoch"));
            let is_its = |line: &str| line.starts_with(&replica.id) && line.contains(&follows);
            nodes
                .lines()
                .any(is_its)
                .then(|| epochs.next().map(str::to_owned))
        };
        let mut running = self
            .nodes
            .iter()
            .filter(|node| node.takes_part())
            .map(known);
        let first = running.next().flatten();
        first.is_some() && running.all(|other| other == first)
    }

    /// A running replica, as the primary sees it.
    fn replica_of(&self, primary: usize) -> Option<&Node> {
        let primary = &self.nodes[primary];
        let known = one(primary.server.port(), "CLUSTER NODES").ok()?;
        let follows = format!("slave {}", primary.id);
        self.nodes.iter().find(|node| {
            let is_its = |line: &str| line.starts_with(&node.id) && line.contains(&follows);
            node.takes_part() && known.lines().any(is_its)
        })
    }
}

/// The text of an answer with one text.
fn one(port: u16, command: &str) -> io::Result<String> {
    let mut texts = ask(port, command)?;
    texts.pop().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_serves_the_slots_of_its_ranges() {
        let line = "a 127.0.0.1:1@2 myself,master - 0 0 3 connected 5 10-12 [7->-b]";
        let served: Vec<u16> = (0..20).filter(|slot| serves(line, *slot)).collect();
        assert_eq!(served, [5, 10, 11, 12]);
    }
}
