//! Moves of slots between primaries, also step by step.

use std::io;

use super::{
    super::resp::{ask_words, until},
    RedisCluster,
};

/// The timeout of one `MIGRATE`, in milliseconds.
const MIGRATE_WITHIN: &str = "10000";

/// The move of a slot to another primary.
#[derive(Debug, Clone, Copy)]
pub struct SlotMove {
    slot: u16,
    from: usize,
    to: usize,
}

impl SlotMove {
    /// The node that gives the slot away.
    pub fn from(self) -> usize {
        self.from
    }

    /// The node that takes the slot.
    pub fn to(self) -> usize {
        self.to
    }
}

impl RedisCluster {
    /// Begins to move `slot` to another primary. Moves no key yet.
    ///
    /// # Errors
    ///
    /// The error of the system or of a node; [`io::ErrorKind::TimedOut`] if the nodes don't agree where the slot is.
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    pub fn begin_move(&self, slot: u16, to: usize) -> io::Result<SlotMove> {
        let from = until(|| self.owner(slot))?;
        let (giver, taker) = (&self.nodes[from], &self.nodes[to]);
        taker.ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", giver.id))?;
        giver.ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", taker.id))?;
        Ok(SlotMove { slot, from, to })
    }

    /// The keys of the slot that have not moved yet.
    ///
    /// # Errors
    ///
    /// The error of the system or of the node.
    pub fn keys_left(&self, moving: SlotMove) -> io::Result<Vec<String>> {
        self.nodes[moving.from].ask(&format!("CLUSTER GETKEYSINSLOT {} 1000", moving.slot))
    }

    /// Moves one key of the slot.
    ///
    /// # Errors
    ///
    /// The error of the system or of the node.
    pub fn move_key(&self, moving: SlotMove, key: &str) -> io::Result<()> {
        let port = self.nodes[moving.to].known_port().to_string();
        let words = ["MIGRATE", "127.0.0.1", &port, key, "0", MIGRATE_WITHIN];
        ask_words(self.nodes[moving.from].server.port(), words).map(drop)
    }

    /// Moves the remaining keys, and then the slot.
    ///
    /// # Errors
    ///
    /// The error of the system or of a node; [`io::ErrorKind::TimedOut`] if the nodes don't agree where the slot is.
    pub fn finish_move(&self, moving: SlotMove) -> io::Result<()> {
        loop {
            let keys = self.keys_left(moving)?;
            if keys.is_empty() {
                break;
            }
            keys.iter().try_for_each(|key| self.move_key(moving, key))?;
        }
        let SlotMove { slot, from, to } = moving;
        let told = format!("CLUSTER SETSLOT {slot} NODE {}", self.nodes[to].id);
        // The new node is told first. Otherwise nobody would serve the slot for a moment.
        for node in [to, from] {
            self.nodes[node].ask(&told)?;
        }
        until(|| self.owner(slot)).map(drop)
    }

    /// Moves `slot` to another primary, with all its keys.
    ///
    /// # Errors
    ///
    /// The same as for [`begin_move`](Self::begin_move) and [`finish_move`](Self::finish_move).
    ///
    /// # Panics
    ///
    /// If there is no node with this number.
    pub fn move_slot(&self, slot: u16, to: usize) -> io::Result<()> {
        let moving = self.begin_move(slot, to)?;
        self.finish_move(moving)
    }
}
