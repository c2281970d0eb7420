//! Requests as rows of the tables: locks and semaphores are one mechanism, weights under a capacity.

use portalock_core::{ClaimKind, LockName, LockRequest, Mode, PermitRequest, session::NamedPlace};

/// The kind of a name: locks and semaphores have separate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Lock,
    Semaphore,
}

/// The weight of an exclusive lock, and the capacity of every lock: this number of owners can share one.
const WHOLE: i64 = u32::MAX as i64;

/// What is locked, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    pub(crate) name: LockName,
    pub(crate) weight: i64,
    pub(crate) capacity: i64,
}

/// An owner's place in a session: the tables have its name as the owner.
pub(crate) type Place = NamedPlace<Wanted>;

impl Kind {
    /// The value in the column `kind`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Semaphore => "semaphore",
        }
    }

    /// The kind with this value.
    pub(crate) fn named(value: &str) -> Option<Self> {
        [Self::Lock, Self::Semaphore]
            .into_iter()
            .find(|kind| kind.as_str() == value)
    }

    /// The kind of a claim with this weight.
    pub(crate) fn claim(self, weight: i64) -> ClaimKind {
        match self {
            Self::Lock if weight == WHOLE => ClaimKind::Exclusive,
            Self::Lock => ClaimKind::Shared,
            Self::Semaphore => ClaimKind::Permits(u32::try_from(weight).unwrap_or(u32::MAX)),
        }
    }
}

impl Wanted {
    pub(crate) fn lock(request: &LockRequest) -> Self {
        Self {
            kind: Kind::Lock,
            name: request.name.clone(),
            weight: match request.demand {
                Mode::Exclusive => WHOLE,
                Mode::Shared => 1,
            },
            capacity: WHOLE,
        }
    }

    pub(crate) fn permits(request: &PermitRequest) -> Self {
        Self {
            kind: Kind::Semaphore,
            name: request.name.clone(),
            weight: request.demand.count().into(),
            capacity: request.demand.capacity().into(),
        }
    }
}

/// The channel on which a session is notified of its grants; the function `serve` uses the same name.
pub(crate) fn channel(session: &str) -> String {
    format!("portalock_{session}")
}
