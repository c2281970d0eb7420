//! The layout of the store: the keys of each name, and the way back from a key to its name.
//!
//! ```text
//! portalock//locks/<name>/exclusive/<number>@<lease>
//! portalock//locks/<name>/shared/<number>@<lease>
//! portalock//permits/<name>/<count>of<capacity>/<number>@<lease>
//! portalock//sessions/<lease>
//! portalock//sessions/<lease>/broken/<owner>
//! ```
//!
//! The double slash ends the prefix, which itself contains no double slash. So the keys of two prefixes never mix, even
//! if one prefix starts with the other. An escaped name contains no slash, so no name's directory lies in another one.
//! The key contains what a waiter must know about the requests ahead of it (mode, permits), so a waiter reads keys and
//! not values. [`numbers`](crate::numbers) explains the numbers.

use portalock_core::{
    ClaimKind, LockName, LockRequest, Mode, OwnerId, PermitRequest, settings::percent_decode,
};

/// All keys of a backend, below its prefix.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    root: String,
}

/// The queue of a request, and its rule.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    /// The prefix of all keys of the queue.
    pub(crate) keys: String,
    /// The prefix of the keys of requests for the same mode or weight.
    pub(crate) directory: String,
    /// What the request waits for.
    pub(crate) rule: Rule,
}

/// What a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Every request ahead of it.
    Exclusive,
    /// The exclusive requests ahead of it, whose keys have the prefix `writers`.
    Shared {
        /// The part of the queue that holds the exclusive requests.
        writers: String,
    },
    /// Enough permits of the requests ahead of it.
    Permits(Weight),
}

/// How many permits a request takes, and of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight {
    pub(crate) count: u32,
    pub(crate) capacity: u32,
}

const EXCLUSIVE: &str = "exclusive";
const SHARED: &str = "shared";
const MARKS: &str = "/broken/";

impl Keys {
    /// The keys below `prefix`, which the settings have checked.
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            root: format!("{prefix}//"),
        }
    }

    /// The key of a session, which exists as long as its lease.
    pub(crate) fn session(&self, lease: i64) -> String {
        format!("{}sessions/{lease:x}", self.root)
    }

    /// The prefix of the keys of all locks.
    pub(crate) fn locks(&self) -> String {
        format!("{}locks/", self.root)
    }

    /// The prefix of the keys of one lock.
    pub(crate) fn lock_queue(&self, name: &LockName) -> String {
        format!("{}{}/", self.locks(), escape(name))
    }

    /// The prefix of the keys of one semaphore.
    pub(crate) fn permit_queue(&self, name: &LockName) -> String {
        format!("{}permits/{}/", self.root, escape(name))
    }

    /// The queue of a request for a lock.
    pub(crate) fn lock(&self, request: &LockRequest) -> Queue {
        let queue = self.lock_queue(&request.name);
        let writers = format!("{queue}{EXCLUSIVE}/");
        let (directory, rule) = match request.demand {
            Mode::Exclusive => (writers, Rule::Exclusive),
            Mode::Shared => (format!("{queue}{SHARED}/"), Rule::Shared { writers }),
        };
        Queue {
            keys: queue,
            directory,
            rule,
        }
    }

    /// The queue of a request for permits.
    pub(crate) fn permits(&self, request: &PermitRequest) -> Queue {
        let queue = self.permit_queue(&request.name);
        let weight = Weight {
            count: request.demand.count(),
            capacity: request.demand.capacity(),
        };
        Queue {
            directory: format!("{queue}{}of{}/", weight.count, weight.capacity),
            keys: queue,
            rule: Rule::Permits(weight),
        }
    }

    /// The name of the lock that `key` belongs to.
    pub(crate) fn name_of_lock(&self, key: &[u8]) -> Option<LockName> {
        let rest = key.strip_prefix(self.locks().as_bytes())?;
        let escaped = rest.split(|byte| *byte == b'/').next()?;
        let escaped = std::str::from_utf8(escaped).ok()?;
        LockName::new(percent_decode("name", escaped).ok()?).ok()
    }
}

impl Queue {
    /// The prefix of the keys that can be in the way.
    pub(crate) fn in_the_way(&self) -> &str {
        match &self.rule {
            Rule::Shared { writers } => writers,
            Rule::Exclusive | Rule::Permits(_) => &self.keys,
        }
    }

    /// The key with this number in the session of `lease`.
    pub(crate) fn key(&self, number: usize, lease: i64) -> String {
        format!("{}{number}@{lease:x}", self.directory)
    }
}

/// The key that marks the hold of `owner` as broken. `session` is the key of the owner's session.
pub(crate) fn mark(session: &str, owner: OwnerId) -> String {
    format!("{session}{MARKS}{owner}")
}

/// The owner that a mark belongs to, if the key is a mark below the session's key.
pub(crate) fn marked_owner(session: &str, key: &[u8]) -> Option<OwnerId> {
    let rest = key.strip_prefix(session.as_bytes())?;
    let owner = rest.strip_prefix(MARKS.as_bytes())?;
    std::str::from_utf8(owner).ok()?.parse().ok()
}

/// The end of the range with a session's key and all keys below it. `0` is the character after the slash, and no other
/// session's key consists of this key and a smaller character.
pub(crate) fn session_end(session: &str) -> String {
    format!("{session}0")
}

/// What the request with this key wants, if the key belongs to `queue`.
pub(crate) fn kind_in(queue: &str, key: &[u8]) -> Option<ClaimKind> {
    let rest = std::str::from_utf8(key.strip_prefix(queue.as_bytes())?).ok()?;
    match rest.split_once('/')?.0 {
        EXCLUSIVE => Some(ClaimKind::Exclusive),
        SHARED => Some(ClaimKind::Shared),
        permits => Some(ClaimKind::Permits(Weight::parse(permits)?.count)),
    }
}

/// The weight of the request with this key, if the key belongs to the `queue` of a semaphore.
pub(crate) fn weight_in(queue: &str, key: &[u8]) -> Option<Weight> {
    let rest = std::str::from_utf8(key.strip_prefix(queue.as_bytes())?).ok()?;
    Weight::parse(rest.split_once('/')?.0)
}

impl Weight {
    fn parse(text: &str) -> Option<Self> {
        let (count, capacity) = text.split_once("of")?;
        Some(Self {
            count: count.parse().ok()?,
            capacity: capacity.parse().ok()?,
        })
    }
}

/// Percent-encodes the characters that would end the name, and invisible ones. Injective, because the percent sign is
/// encoded too.
fn escape(name: &LockName) -> String {
    let mut escaped = String::with_capacity(name.as_str().len());
    for character in name.as_str().chars() {
        if matches!(character, '/' | '%') || character.is_ascii_control() {
            escaped.push('%');
            for digit in [u32::from(character) >> 4, u32::from(character) & 15] {
                escaped.extend(char::from_digit(digit, 16));
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use portalock_core::{Patience, Permits, Request};

    fn request(name: &str, mode: Mode) -> LockRequest {
        Request::new(LockName::new(name).unwrap(), mode, Patience::Queue)
    }

    #[test]
    fn no_name_lies_in_another() {
        let keys = Keys::new("portalock");
        let names = [
            "a",
            "a/b",
            "a%2fb",
            "a//b",
            "..",
            "exclusive",
            "Ä",
            "a\n",
            "a\u{7f}",
        ];
        let queues: Vec<String> = names
            .iter()
            .map(|name| keys.lock_queue(&LockName::new(name).unwrap()))
            .collect();
        for (i, one) in queues.iter().enumerate() {
            for other in &queues[i + 1..] {
                assert!(!one.starts_with(other.as_str()) && !other.starts_with(one.as_str()));
            }
        }
    }

    #[test]
    fn a_name_comes_back_from_its_key() {
        let keys = Keys::new("team/portalock");
        for name in [
            "a",
            "a/b",
            "a%2fb",
            "%",
            "Straße 7",
            "a\n",
            "\u{1}",
            &"/".repeat(255),
        ] {
            let queue = keys.lock(&request(name, Mode::Shared));
            let found = keys.name_of_lock(queue.key(0, 7).as_bytes()).unwrap();
            assert_eq!(found.as_str(), name);
        }
    }

    #[test]
    fn a_mark_is_in_its_sessions_range_and_no_others() {
        let keys = Keys::new("portalock");
        let owner = OwnerId::mint();
        let session = keys.session(0x1a);
        let mark = mark(&session, owner);
        assert_eq!(marked_owner(&session, mark.as_bytes()), Some(owner));
        let others = [0x1, 0x19, 0x1a0, 0x1af, 0x1b].map(|lease| keys.session(lease));
        for own in [&session, &mark] {
            assert!(*own >= session && *own < session_end(&session));
            for other in &others {
                assert!(own < other || *own >= session_end(other), "{own} {other}");
                assert_eq!(marked_owner(other, own.as_bytes()), None);
            }
        }
    }

    #[test]
    fn nested_prefixes_do_not_meet() {
        let outer = Keys::new("app").lock_queue(&LockName::new("locks").unwrap());
        let inner = Keys::new("app/locks").locks();
        assert!(!inner.starts_with(&outer) && !outer.starts_with(&inner));
    }

    #[test]
    fn locks_and_semaphores_of_one_name_do_not_meet() {
        let keys = Keys::new("portalock");
        let name = LockName::new("a").unwrap();
        assert_ne!(keys.lock_queue(&name), keys.permit_queue(&name));
    }

    #[test]
    fn a_key_says_what_it_is_for() {
        let keys = Keys::new("portalock");
        let queue = keys.lock(&request("a", Mode::Exclusive));
        assert_eq!(
            kind_in(&queue.keys, queue.key(0, 1).as_bytes()),
            Some(ClaimKind::Exclusive)
        );
        let permits = Request::new(
            LockName::new("a").unwrap(),
            Permits::new(2, 5).unwrap(),
            Patience::Queue,
        );
        let queue = keys.permits(&permits);
        assert_eq!(
            kind_in(&queue.keys, queue.key(0, 1).as_bytes()),
            Some(ClaimKind::Permits(2))
        );
        assert_eq!(kind_in(&queue.keys, b"portalock//permits/a/what"), None);
    }
}
