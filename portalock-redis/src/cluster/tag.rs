//! Hash tags: what makes keys lie in one slot.

use std::sync::Arc;

use portalock_core::LockName;

/// Among so many slots a cluster shares out its keys.
const SLOTS: u16 = 16384;

/// What a part of all names has in common: the beginning of all keys and channels of its locks, and of the sessions that meet there.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    prefix: Arc<str>,
    slot: u16,
    never_set: Arc<str>,
}

impl Tag {
    /// The tag of this number below `prefix`.
    pub(crate) fn new(prefix: &str, number: u16) -> Self {
        Self::of(&format!("{prefix}-{number}"))
    }

    /// The one of what concerns every client of `prefix`.
    pub(crate) fn of_all(prefix: &str) -> Self {
        Self::of(prefix)
    }

    /// `text` has no brace: what is between the first two counts.
    fn of(text: &str) -> Self {
        let prefix = format!("{{{text}}}");
        Self {
            slot: hash(text) % SLOTS,
            never_set: format!("{prefix}/never-set").into(),
            prefix: prefix.into(),
        }
    }

    /// What its keys begin with; a slash follows.
    pub(crate) fn prefix(&self) -> &Arc<str> {
        &self.prefix
    }

    pub(crate) fn slot(&self) -> u16 {
        self.slot
    }

    /// A key of its slot that nobody ever sets: see `scripts.rs`.
    pub(crate) fn never_set(&self) -> &str {
        &self.never_set
    }
}

/// The number of the tag of a name. All clients must reckon it alike, whatever their version.
pub(crate) fn number_of(name: &LockName, tags: u16) -> u16 {
    hash(name.as_str()) % tags
}

/// CRC16 in the form called XMODEM, by which Redis hashes tags.
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
        // As `CLUSTER KEYSLOT` says them.
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
        // A client of another version must find the same.
        assert_eq!(["nightly-report", "a", "é"].map(number), [15, 7, 4]);
    }
}
