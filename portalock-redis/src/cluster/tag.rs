//! Hash tags, which put keys into one slot.

use std::sync::Arc;

use portalock_core::LockName;

/// The number of slots of a cluster.
const SLOTS: u16 = 16384;

/// The common prefix of a part of all names: all keys and channels of their locks, and of the sessions that use them,
/// begin with it.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    prefix: Arc<str>,
    slot: u16,
    never_set: Arc<str>,
}

impl Tag {
    /// The tag with this number, for the names of `prefix`.
    pub(crate) fn new(prefix: &str, number: u16) -> Self {
        Self::of(&format!("{prefix}-{number}"))
    }

    /// The tag of the keys that all clients of `prefix` share.
    pub(crate) fn of_all(prefix: &str) -> Self {
        Self::of(prefix)
    }

    /// `text` has no brace, because the text between the first two braces selects the slot.
    fn of(text: &str) -> Self {
        let prefix = format!("{{{text}}}");
        Self {
            slot: hash(text) % SLOTS,
            never_set: format!("{prefix}/never-set").into(),
            prefix: prefix.into(),
        }
    }

    /// The prefix of its keys; a slash follows.
    pub(crate) fn prefix(&self) -> &Arc<str> {
        &self.prefix
    }

    pub(crate) fn slot(&self) -> u16 {
        self.slot
    }

    /// A key in its slot that is never set: see `scripts.rs`.
    pub(crate) fn never_set(&self) -> &str {
        &self.never_set
    }
}

/// The number of the tag of a name. All clients must calculate the same number, whatever their version.
pub(crate) fn number_of(name: &LockName, tags: u16) -> u16 {
    hash(name.as_str()) % tags
}

/// CRC16 in the XMODEM variant, which Redis uses to hash tags.
fn hash(text: &str) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    text.bytes().fold(0, |hash, byte| {
        (0..8).fold(hash ^ u16::from(byte) << 8, |hash, _| {
            let carry = if hash & 0x8000 == 0 { 0 } else { POLYNOMIAL };
            hash << 1 ^ carry
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // The values that `CLUSTER KEYSLOT` returns.
        assert_eq!(hash("123456789"), 0x31c3);
        assert_eq!(Tag::new("portalock", 1).slot(), 10256);
        assert_eq!(&**Tag::new("portalock", 1).prefix(), "{portalock-1}");
        assert_eq!(&**Tag::of_all("portalock").prefix(), "{portalock}");
    }

    #[test]
    fn names_spread_over_all_tags_and_never_move() {
        let number = |name: &str| number_of(&LockName::new(name).unwrap(), 16);
        let mut counts = [0; 16];
        for i in 0..1600 {
            counts[usize::from(number(&format!("job-{i}")))] += 1;
        }
        assert!(
            counts.iter().all(|count| (50..150).contains(count)),
            "{counts:?}"
        );
        // A client of another version must calculate the same numbers.
        assert_eq!(["nightly-report", "a", "é"].map(number), [15, 7, 4]);
    }
}
