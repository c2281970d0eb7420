//! The name of an owner's place at the server.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use portalock_core::OwnerId;

use crate::keys::Named;

/// An owner's place in a session.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The name of this place, which the scripts use as the owner. Each place has a name of its own, so a release that
    /// arrives late does not find the owner's next place.
    pub(crate) name: Arc<str>,
    pub(crate) named: Named,
}

impl Place {
    pub(crate) fn new(owner: OwnerId, named: Named) -> Self {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("{owner}.{number}").into(),
            named,
        }
    }

    /// The owner in a place's name.
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
        let named = Named {
            kind: Kind::Lock,
            name: LockName::new("a").unwrap(),
        };
        let (first, second) = (Place::new(owner, named.clone()), Place::new(owner, named));
        assert_ne!(first.name, second.name);
        for place in [first, second] {
            assert_eq!(Place::owner(&place.name), Some(owner));
        }
        assert_eq!(Place::owner("somebody"), None);
    }
}
