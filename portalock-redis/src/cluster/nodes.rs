//! What a node of a cluster reports about all nodes.

use std::ops::RangeInclusive;

use portalock_core::{BackendError, BackendErrorKind};
use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, ServerErrorKind};

use crate::{
    error::{failed, unexpected},
    witness::{Answers, Question, Told},
};

pub(super) const ASKING: &str = "ask a node of the Redis cluster where its slots are";

/// One node, as reported by itself or by another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
    /// The epoch of its slots: if several nodes claim a slot, the one with the greatest epoch serves it.
    epoch: u64,
    slots: Vec<RangeInclusive<u16>>,
}

impl Node {
    pub(super) fn serves(&self, slot: u16) -> bool {
        self.slots.iter().any(|range| range.contains(&slot))
    }

    pub(super) fn has_slots(&self) -> bool {
        !self.slots.is_empty()
    }

    pub(super) fn told(&self) -> Told {
        Told {
            epoch: self.epoch,
            host: self.host.clone(),
            port: self.port,
        }
    }
}

/// Asks for the nodes, and the slots that they serve.
pub(super) fn question() -> Question<Vec<Node>> {
    let mut commands = redis::pipe();
    // The only command that returns the epochs.
    commands.cmd("CLUSTER").arg("NODES").ignore_errors();
    Question {
        what: ASKING,
        commands,
        read,
    }
}

fn read(asked: &ConnectionInfo, mut answers: Answers) -> Result<Vec<Node>, BackendError> {
    let answer = answers.pop().ok_or_else(|| unexpected(ASKING))?;
    let text: String = answer
        .and_then(|answer| Ok(redis::from_redis_value(answer)?))
        .map_err(refused)?;
    let (host, by_name) = match asked.addr() {
        ConnectionAddr::Tcp(host, _) => (&**host, false),
        // A certificate more likely has the name than the address.
        ConnectionAddr::TcpTls { host, .. } => (&**host, true),
        _ => return Err(unexpected(ASKING)),
    };
    let nodes = text.lines().filter_map(|line| node(line, host, by_name));
    Ok(nodes.collect())
}

/// A server without cluster mode answers with a bare `ERR`.
fn refused(error: RedisError) -> BackendError {
    if error.kind() != ErrorKind::Server(ServerErrorKind::ResponseError) {
        return failed(ASKING, error);
    }
    BackendError::new(
        BackendErrorKind::Unsupported,
        format!("can't {ASKING}: the server is no node of a cluster: write redis:// for it"),
    )
    .with_source(error)
}

/// Reads a line of `CLUSTER NODES`: id, address, flags, primary, ping, pong, epoch, link, and slots. `asked` is the
/// host of the node that answered; with `by_name`, a node's name is preferred to its address. `None` for a node that
/// can't be reached.
pub(super) fn node(line: &str, asked: &str, by_name: bool) -> Option<Node> {
    let mut parts = line.split(' ');
    let place = parts.nth(1)?;
    let flags = parts.next()?;
    let epoch = parts.nth(3)?.parse().ok()?;
    if flags
        .split(',')
        .any(|flag| matches!(flag, "noaddr" | "handshake"))
    {
        return None;
    }
    // `ip:port@bus`, and `,hostname` if it has one.
    let (place, hostname) = place.split_once(',').unwrap_or((place, ""));
    let hostname = hostname.split(',').next().unwrap_or_default();
    let (ip, port) = place.split('@').next()?.rsplit_once(':')?;
    let host = match (hostname, ip) {
        (name, _) if by_name && !name.is_empty() => name,
        (_, "") => asked,
        (_, ip) => ip,
    };
    Some(Node {
        host: host.to_owned(),
        port: port.parse().ok()?,
        epoch,
        // The slots follow the link's state. A slot in brackets is moving; the node that lists the slot without
        // brackets serves it.
        slots: parts.skip(1).filter_map(range).collect(),
    })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_a_node_is_and_what_it_serves() {
        let read = |line| node(line, "asked", false).unwrap();
        let primary = read(
            "07c3 10.0.0.1:30004@31004,,tls-port=0,shard-id=69bc myself,master - 0 142 4 connected 0-5 9 [7->-67ed] [8-<-292f]",
        );
        assert_eq!((&*primary.host, primary.port), ("10.0.0.1", 30004));
        assert_eq!(primary.epoch, 4);
        let served: Vec<u16> = (0..12).filter(|slot| primary.serves(*slot)).collect();
        assert_eq!(served, [0, 1, 2, 3, 4, 5, 9]);

        let line = "67ed 10.0.0.2:1@2,n2.example slave 07c3 0 1 5 disconnected";
        let replica = read(line);
        assert_eq!((&*replica.host, replica.port), ("10.0.0.2", 1));
        assert_eq!(node(line, "asked", true).unwrap().host, "n2.example");
        assert!(!replica.serves(0));
        assert_eq!(
            read("a :7000@17000 myself,master - 0 0 1 connected 3").host,
            "asked"
        );
        assert_eq!(
            read("a ::1:7000@17000 master - 0 0 1 connected").host,
            "::1"
        );
    }

    #[test]
    fn a_node_without_an_address_is_none() {
        for line in [
            "",
            "a",
            "a :0@0 master,noaddr - 0 0 1 connected 3",
            "a 1.2.3.4:1@2 handshake - 0 0 1 connected",
            "a 1.2.3.4:1@2 master - 0 0 x connected",
        ] {
            assert_eq!(node(line, "asked", true), None, "{line}");
        }
    }
}
