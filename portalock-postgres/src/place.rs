//! The name of an owner's place at the server.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use portalock_core::OwnerId;

use crate::keys::Wanted;

/// An owner's place in a session.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The owner's name at the server. Each place has a different name, so a late release doesn't find the owner's next
    /// place.
    pub(crate) name: Arc<str>,
    pub(crate) wanted: Wanted,
}

impl Place {
    pub(crate) fn new(owner: OwnerId, wanted: Wanted) -> Self {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("{owner}.{number}").into(),
            wanted,
        }
    }

    /// The owner of the place with this name.
    pub(crate) fn owner(name: &str) -> Option<OwnerId> {
        name.split_once('.')?.0.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Kind;
    use portalock_core::LockName;

    #[test]
    fn each_place_has_a_name_that_leads_to_its_owner() {
        let owner = OwnerId::mint();
        let wanted = || Wanted {
            kind: Kind::Lock,
            name: LockName::new("a").unwrap(),
            weight: 1,
            capacity: 1,
        };
        let (first, second) = (Place::new(owner, wanted()), Place::new(owner, wanted()));
        assert_ne!(first.name, second.name);
        for place in [first, second] {
            assert_eq!(Place::owner(&place.name), Some(owner));
        }
        assert_eq!(Place::owner("somebody"), None);
    }
}
