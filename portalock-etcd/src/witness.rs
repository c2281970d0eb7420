//! The member that answered, and its term: they decide whether a renewal counts, see [`session`](crate::session).

use std::sync::{Mutex, PoisonError};

use etcd_client::ResponseHeader;

/// The member that answered, and its term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witness {
    pub(crate) member: u64,
    pub(crate) term: u64,
}

impl Witness {
    pub(crate) fn of(header: &ResponseHeader) -> Self {
        Self {
            member: header.member_id(),
            term: header.raft_term(),
        }
    }
}

/// The member that answered last.
#[derive(Debug, Default)]
pub(crate) struct LastWitness(Mutex<Option<Witness>>);

impl LastWitness {
    /// Records the member that answered. Returns true if the same member answered before, in the same term: then a
    /// renewal between the two answers counts.
    pub(crate) fn same(&self, now: Witness) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.replace(now) == Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_counts_if_one_member_answered_in_one_term_before_and_after_it() {
        let witness = |member, term| Witness { member, term };
        let last = LastWitness::default();
        assert!(!last.same(witness(1, 2)), "nobody answered before");
        assert!(last.same(witness(1, 2)));
        assert!(!last.same(witness(1, 3)), "another leader since");
        assert!(last.same(witness(1, 3)));
        assert!(!last.same(witness(2, 3)), "another member, which may lag");
        assert!(!last.same(witness(1, 3)), "and back");
    }
}
