//! A Redis cluster: finds the node that serves a slot.
//!
//! Each name belongs to one of several hash [tags](Tag), by its hash. All keys of the lock, and of the sessions that
//! use it, have this tag and so are in one slot. There the scripts work as on a single server (`scripts.rs`). A client
//! has one session for each tag that it uses, which starts at the first use of the tag. The session has a
//! [`Route`](crate::route::Route) to the node that serves the tag's slot.
//!
//! The nodes tell which of them serves a slot, as sentinels tell which server is the primary. Several nodes are asked
//! at once, and the answer with the latest epoch counts. A node takes a later epoch when it is promoted and when it
//! gets a slot.

pub(crate) mod moving;
mod nodes;
mod tag;
mod tags;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use portalock_core::{BackendError, BackendErrorKind, clock::Instant};
use redis::ConnectionInfo;

pub(crate) use self::{
    tag::{Tag, number_of},
    tags::agree,
};

use self::nodes::{ASKING, Node};
use crate::{
    address::ClusterAddress,
    config::RedisSettings,
    witness::{Enough, Heard, Witness, ask_all, at, silent, worst},
};

/// The maximum number of nodes that are asked at once, besides those in the URL: in a large cluster, a few nodes know
/// as much as all.
const ASKED: usize = 16;

/// The nodes of one cluster, as one client object knows them.
#[derive(Debug)]
pub(crate) struct Cluster {
    settings: Arc<RedisSettings>,
    named: Vec<Arc<Witness>>,
    /// How to connect to a node, without its address.
    server: ConnectionInfo,
    /// The nodes that other nodes reported and the URL does not name, by address.
    learned: Mutex<HashMap<(String, u16), Arc<Witness>>>,
    /// The last answers from most nodes, and from all. One caller asks, and others wait for its answer.
    most: tokio::sync::Mutex<Option<Asked>>,
    all: tokio::sync::Mutex<Option<Asked>>,
}

/// The result of asking the nodes.
#[derive(Debug)]
struct Asked {
    asked_at: Instant,
    said: Result<Said, BackendError>,
}

/// What the nodes report about themselves and each other.
#[derive(Debug)]
struct Said {
    nodes: Vec<Node>,
    from_all: bool,
}

impl Cluster {
    pub(crate) fn new(address: &ClusterAddress, settings: Arc<RedisSettings>) -> Self {
        let named = address.nodes.iter().cloned();
        Self {
            settings,
            named: named.map(Witness::new).map(Arc::new).collect(),
            server: address.server.clone(),
            learned: Mutex::default(),
            most: tokio::sync::Mutex::default(),
            all: tokio::sync::Mutex::default(),
        }
    }

    /// How to connect to a node, without its address.
    pub(crate) fn server(&self) -> &ConnectionInfo {
        &self.server
    }

    /// Returns the node that serves `slot`, and when the nodes were asked: an answer of all of them may be so old as `fresh`. Runs on the session thread, which drives the
    /// connections to the nodes.
    pub(crate) async fn owner(
        &self,
        slot: u16,
        enough: Enough,
        fresh: Duration,
    ) -> Result<(Instant, Heard), BackendError> {
        let (latest, since) = match enough {
            // A caller that opens a connection may know that earlier answers are out of date.
            Enough::Most => (&self.most, Instant::now()),
            Enough::All => {
                // Each session of the client asks, and can use an answer that another session has just got.
                let now = Instant::now();
                (&self.all, now.checked_sub(fresh).unwrap_or(now))
            }
        };
        let mut latest = latest.lock().await;
        let heard = match latest.take() {
            Some(heard) if heard.asked_at >= since => heard,
            _ => Asked {
                asked_at: Instant::now(),
                said: self.ask(enough).await,
            },
        };
        // Failures are stored too: otherwise the waiting callers would fail one after the other.
        let asked = latest.insert(heard);
        let said = asked.said.as_ref().map_err(Clone::clone)?;
        let owner = said.owner(slot).ok_or_else(|| {
            BackendError::new(
                BackendErrorKind::Unavailable,
                format!("can't find who serves slot {slot} of the Redis cluster: no node does"),
            )
        })?;
        Ok((asked.asked_at, owner))
    }

    async fn ask(&self, enough: Enough) -> Result<Said, BackendError> {
        let (witnesses, are_all) = self.witnesses();
        let asked = witnesses.len();
        let answers = ask_all(witnesses, nodes::question(), enough, &self.settings).await;
        let (mut said, mut failures) = (Vec::new(), Vec::new());
        for answer in answers {
            match answer {
                Ok(nodes) => said.push(nodes),
                Err(error) => failures.push(error),
            }
        }
        if said.is_empty() {
            let failure = worst(failures).unwrap_or_else(|| silent(ASKING));
            if !failure.is_retryable() {
                return Err(failure);
            }
            let none =
                format!("can't find the nodes of the Redis cluster: none of {asked} answered");
            return Err(BackendError::new(failure.kind(), none).with_source(failure));
        }
        self.learn(&said);
        Ok(Said {
            from_all: are_all && said.len() == asked,
            nodes: said.concat(),
        })
    }

    /// The nodes to ask: all nodes of the URL, and some that other nodes reported. And whether these are all known
    /// nodes.
    fn witnesses(&self) -> (Vec<Arc<Witness>>, bool) {
        // No code panics while it holds the lock.
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let mut learned: Vec<_> = learned.values().cloned().collect();
        let are_all = learned.len() <= ASKED;
        fastrand::shuffle(&mut learned);
        learned.truncate(ASKED);
        learned.extend(self.named.iter().cloned());
        (learned, are_all)
    }

    /// Records the nodes that these answers report. A node that was removed from the cluster knows only itself, and no
    /// slots. It is forgotten: it could become a node of another cluster. If no other node has answered, the known nodes stay.
    fn learn(&self, answers: &[Vec<Node>]) {
        let of_cluster = |nodes: &&Vec<Node>| nodes.iter().any(Node::has_slots);
        let mut nodes = answers.iter().filter(of_cluster).flatten().peekable();
        if nodes.peek().is_none() {
            return;
        }
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = std::mem::take(&mut *learned);
        let is_named = |node: &&Node| {
            let mut named = self.named.iter();
            named.any(|named| named.is_at(&node.host, node.port))
        };
        for node in nodes.filter(|node| !is_named(node)) {
            let place = (node.host.clone(), node.port);
            let witness = known
                .remove(&place)
                .unwrap_or_else(|| Arc::new(Witness::new(at(&self.server, &node.host, node.port))));
            learned.insert(place, witness);
        }
    }
}

impl Said {
    /// Returns the node that serves `slot`. If several nodes are reported, the latest epoch counts.
    fn owner(&self, slot: u16) -> Option<Heard> {
        let serving = self.nodes.iter().filter(|node| node.serves(slot));
        Heard::latest(serving.map(Node::told).collect(), self.from_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address::Address, cluster::nodes::node};

    /// Otherwise the client would have nobody left to ask.
    #[test]
    fn a_node_that_was_removed_makes_no_other_forgotten() {
        let settings = RedisSettings::new("redis+cluster://10.0.0.1:1").unwrap();
        let Address::Cluster(address) = settings.address().clone() else {
            panic!("it names a cluster");
        };
        let cluster = Cluster::new(&address, Arc::new(settings));
        let learn = |answers: &[&[&str]]| {
            let node = |line: &&str| node(line, "asked", false);
            let nodes = |lines: &&[&str]| lines.iter().filter_map(node).collect();
            cluster.learn(&answers.iter().map(nodes).collect::<Vec<_>>());
            cluster.witnesses().0.len()
        };
        let others = [
            "a 10.0.0.1:1@2 master - 0 0 1 connected",
            "b 10.0.0.2:1@2 master - 0 0 2 connected 0-8191",
            "c 10.0.0.3:1@2 master - 0 0 3 connected 8192-16383",
        ];
        assert_eq!(learn(&[&others]), 3);
        let removed = "a 10.0.0.1:1@2 myself,master - 0 0 1 connected";
        assert_eq!(learn(&[&[removed]]), 3);
        let one = "b 10.0.0.2:1@2 myself,master - 0 0 2 connected 0-16383";
        let removed = "c 10.0.0.3:1@2 myself,master - 0 0 0 connected";
        assert_eq!(learn(&[&[one], &[removed]]), 2);
    }

    #[test]
    fn of_those_who_claim_a_slot_the_latest_epoch_serves_it() {
        let claims = [
            "a 10.0.0.1:1@2 myself,master - 0 0 3 connected 0-9",
            "b 10.0.0.2:1@2 myself,master - 0 0 5 connected 5-9",
            "a 10.0.0.1:1@2 master - 0 0 3 connected 0-4",
            "c 10.0.0.3:1@2 myself,slave b 0 0 7 connected",
        ];
        for order in [[0, 1, 2, 3], [3, 1, 0, 2]] {
            let nodes = order.map(|line| node(claims[line], "asked", false).unwrap());
            let said = Said {
                nodes: nodes.into(),
                from_all: true,
            };
            let host = |slot| said.owner(slot).map(|heard| heard.select(None).host);
            assert_eq!(host(4).as_deref(), Some("10.0.0.1"));
            assert_eq!(host(5).as_deref(), Some("10.0.0.2"));
            assert_eq!(host(10), None);
        }
    }
}
