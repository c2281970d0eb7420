//! Where things stand in the store: every name maps to keys of its own, and back.
//!
//! ```text
//! portalock//locks/<name>/exclusive/<number>@<lease>
//! portalock//locks/<name>/shared/<number>@<lease>
//! portalock//permits/<name>/<count>of<capacity>/<number>@<lease>
//! portalock//sessions/<lease>
//! portalock//sessions/<lease>/broken/<owner>
//! ```
//!
//! The double slash ends the prefix, which has none itself: of two prefixes neither can reach into the other, also where
//! one begins with the other. A name has no slash once it is escaped, so that no name's directory lies in another's. What a
//! waiter must know of those before it (mode, permits) is in the key: it reads keys, not values. The numbers are those of
//! [`numbers`](crate::numbers).

use portalock_core::{
    ClaimKind, LockName, LockRequest, Mode, OwnerId, PermitRequest, settings::percent_decode,
};

/// All keys of a backend, below its prefix.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    root: String,
}

/// The queue that a request stands in, and by which rule.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    /// What all keys of the queue begin with.
    pub(crate) keys: String,
    /// What the keys begin with of those who want the same.
    pub(crate) directory: String,
    /// Whom it waits for.
    pub(crate) rule: Rule,
}

/// Whom a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// For everyone before it.
    Exclusive,
    /// For the exclusive ones before it, whose keys begin with `writers`.
    Shared {
        /// The part of the queue that holds the exclusive requests.
        writers: String,
    },
    /// For permits of those before it to come back.
    Permits(Weight),
}

/// How many permits a request takes, of how many.
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

    /// The key that stands for a session, as long as its lease.
    pub(crate) fn session(&self, lease: i64) -> String {
        format!("{}sessions/{lease:x}", self.root)
    }

    /// What the keys of all locks begin with.
    pub(crate) fn locks(&self) -> String {
        format!("{}locks/", self.root)
    }

    /// What the keys of one lock begin with.
    pub(crate) fn lock_queue(&self, name: &LockName) -> String {
        format!("{}{}/", self.locks(), escape(name))
    }

    /// What the keys of one semaphore begin with.
    pub(crate) fn permit_queue(&self, name: &LockName) -> String {
        format!("{}permits/{}/", self.root, escape(name))
    }

    /// The queue for a request for a lock.
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

    /// The queue for a request for permits.
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
    /// What the keys begin with that can be in the way.
    pub(crate) fn in_the_way(&self) -> &str {
        match &self.rule {
            Rule::Shared { writers } => writers,
            Rule::Exclusive | Rule::Permits(_) => &self.keys,
        }
    }

    /// The key of this number in the session of `lease`.
    pub(crate) fn key(&self, number: usize, lease: i64) -> String {
        format!("{}{number}@{lease:x}", self.directory)
    }
}

/// The key by which what `owner` holds in the session of this key is marked as broken.
pub(crate) fn mark(session: &str, owner: OwnerId) -> String {
    format!("{session}{MARKS}{owner}")
}

/// The owner that a mark is on, if the key is one below the session's.
pub(crate) fn marked_owner(session: &str, key: &[u8]) -> Option<OwnerId> {
    let rest = key.strip_prefix(session.as_bytes())?;
    let owner = rest.strip_prefix(MARKS.as_bytes())?;
    std::str::from_utf8(owner).ok()?.parse().ok()
}

/// The end of a range that begins with a session's key and has all below it: a slash is followed by a zero, and no other
/// session's key begins with this one and a smaller character.
pub(crate) fn session_end(session: &str) -> String {
    format!("{session}0")
}

/// What the request with this key is for, if the key is one of `queue`.
pub(crate) fn kind_in(queue: &str, key: &[u8]) -> Option<ClaimKind> {
    let rest = std::str::from_utf8(key.strip_prefix(queue.as_bytes())?).ok()?;
    match rest.split_once('/')?.0 {
        EXCLUSIVE => Some(ClaimKind::Exclusive),
        SHARED => Some(ClaimKind::Shared),
        permits => Some(ClaimKind::Permits(Weight::parse(permits)?.count)),
    }
}

/// The weight of the request with this key, if the key is one of a semaphore's `queue`.
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

/// Percent-encodes what would end the name or hide in a terminal. Injective, since the percent sign is encoded too.
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
