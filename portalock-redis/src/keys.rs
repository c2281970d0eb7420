//! How a request is stored in Redis, and under which keys. Locks and semaphores use one mechanism: weights under a
//! capacity. Names are mapped injectively, below the prefix.

use portalock_core::{ClaimKind, LockName, LockRequest, Mode, PermitRequest, session::NamedPlace};

/// The weight of an exclusive lock, and the capacity of every lock: this number of owners can share one.
pub(crate) const WHOLE: u32 = u32::MAX;

/// The kind of a name. Locks and semaphores have separate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Lock,
    Semaphore,
}

/// Makes keys. A prefix has no slash, so it ends at the first slash of a key. So different prefixes or names never give
/// the same key.
#[derive(Debug)]
pub(crate) struct Keys {
    prefix: String,
    sessions: String,
}

/// The kind and the name of a lock or semaphore. Its keys are made when they are needed, which is rare while it is
/// held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) kind: Kind,
    pub(crate) name: LockName,
}

/// The lock or semaphore that is requested, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) named: Named,
    pub(crate) weight: u32,
    pub(crate) capacity: u32,
}

/// An owner's place in a session: the scripts use its name as the owner.
pub(crate) type Place = NamedPlace<Named>;

impl Kind {
    /// The kind of a claim with this weight.
    pub(crate) fn claim(self, weight: u32) -> ClaimKind {
        match self {
            Self::Semaphore => ClaimKind::Permits(weight),
            Self::Lock if weight == WHOLE => ClaimKind::Exclusive,
            Self::Lock => ClaimKind::Shared,
        }
    }

    pub(crate) fn named(self, name: &LockName) -> Named {
        Named {
            kind: self,
            name: name.clone(),
        }
    }
}

impl Wanted {
    pub(crate) fn lock(request: &LockRequest) -> Self {
        Self {
            named: Kind::Lock.named(&request.name),
            weight: match request.demand {
                Mode::Exclusive => WHOLE,
                Mode::Shared => 1,
            },
            capacity: WHOLE,
        }
    }

    /// Whether others can share it, because it is less than the whole capacity.
    pub(crate) fn shares(&self) -> bool {
        self.weight != self.capacity
    }

    pub(crate) fn permits(request: &PermitRequest) -> Self {
        Self {
            named: Kind::Semaphore.named(&request.name),
            weight: request.demand.count(),
            capacity: request.demand.capacity(),
        }
    }
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            sessions: format!("{prefix}/session/"),
        }
    }

    /// The key of the state. The scripts make the other keys of a name from it: see `grant.lua`.
    pub(crate) fn state(&self, named: &Named) -> String {
        match named.kind {
            Kind::Lock => self.key("/lock/", named),
            Kind::Semaphore => self.key("/semaphore/", named),
        }
    }

    /// The channel of the lock's observers. All databases of a server share its channels, and each has its own locks.
    pub(crate) fn changes(&self, name: &LockName, database: i64) -> String {
        format!("{}/lock@{database}/{}", self.prefix, name.as_str())
    }

    /// The key of the waiters' claims.
    pub(crate) fn waiters(&self, named: &Named) -> String {
        match named.kind {
            Kind::Lock => self.key("/lock-waiters/", named),
            Kind::Semaphore => self.key("/semaphore-waiters/", named),
        }
    }

    fn key(&self, kind: &str, named: &Named) -> String {
        [&*self.prefix, kind, named.name.as_str()].concat()
    }

    /// The prefix of the key and the channel of a session; its id follows.
    pub(crate) fn sessions(&self) -> &str {
        &self.sessions
    }

    /// A `MATCH` pattern for the states and queues of every lock.
    pub(crate) fn lock_pattern(&self) -> String {
        let mut pattern = String::new();
        for character in self.prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + "/lock/*"
    }

    /// The name of a lock's state. `None` if portalock did not make the key.
    pub(crate) fn lock_name(&self, state: &str) -> Option<LockName> {
        let named = self.named(state)?;
        (named.kind == Kind::Lock).then_some(named.name)
    }

    /// The kind and name of a state. `None` if portalock did not make the key.
    pub(crate) fn named(&self, state: &str) -> Option<Named> {
        let key = state.strip_prefix(&self.prefix)?;
        let (kind, name) = match key.strip_prefix("/lock/") {
            Some(name) => (Kind::Lock, name),
            None => (Kind::Semaphore, key.strip_prefix("/semaphore/")?),
        };
        let name = LockName::new(name).ok()?;
        Some(Named { kind, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_names_meet() {
        let names = [
            "a", "A", "a/b", "/a", "a/", "-queue/a", "lock/a", "{a}", "*", "a:b", "é", "e\u{301}",
            "..", "a\nb",
        ];
        let mut seen = HashSet::new();
        for prefix in ["p", "p:lock", "portalock"] {
            let keys = Keys::new(prefix);
            for kind in [Kind::Lock, Kind::Semaphore] {
                for name in names {
                    let of = kind.named(&LockName::new(name).unwrap());
                    for key in [keys.state(&of), keys.waiters(&of)] {
                        assert!(seen.insert(key.clone()), "{key}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_state_leads_back_to_its_name() {
        let keys = Keys::new("p");
        for kind in [Kind::Lock, Kind::Semaphore] {
            for name in ["a", "lock/a", "/", "-queue/x", "a|b"] {
                let named = Named {
                    kind,
                    name: LockName::new(name).unwrap(),
                };
                let state = keys.state(&named);
                let lock = (kind == Kind::Lock).then(|| named.name.clone());
                assert_eq!(keys.lock_name(&state), lock);
                assert_eq!(keys.named(&state), Some(named));
            }
        }
        assert_eq!(keys.lock_name("q/lock/a"), None);
        assert_eq!(keys.lock_name("p/lock-queue/a"), None);
    }

    #[test]
    fn a_pattern_takes_each_character_of_the_prefix_as_it_is() {
        let pattern = Keys::new("a[b]*?\\^-c").lock_pattern();
        assert_eq!(pattern, r"a\[b\]\*\?\\\^\-c/lock/*");
    }
}
