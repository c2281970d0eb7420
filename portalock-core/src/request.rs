//! A request is data: what is wanted, by whom, and whether the caller will wait for it.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Holder, LockName};

/// Whether a lock excludes everyone or only the exclusive ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One holder, alone.
    Exclusive,
    /// Any number of shared holders together, no exclusive one beside them.
    Shared,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Exclusive => "exclusive",
            Mode::Shared => "shared",
        })
    }
}

/// How many permits are wanted, of how many there are. Never zero, never more than there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permits {
    count: u32,
    capacity: u32,
}

impl Permits {
    /// `count` permits of `capacity`.
    ///
    /// # Errors
    ///
    /// [`InvalidPermits`] if either is zero or `count` exceeds `capacity`: such a request could never be granted.
    pub const fn new(count: u32, capacity: u32) -> Result<Self, InvalidPermits> {
        if capacity == 0 || count == 0 || count > capacity {
            return Err(InvalidPermits { count, capacity });
        }
        Ok(Self { count, capacity })
    }

    /// How many are wanted: at least 1.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// How many there are in all: at least [`count`](Self::count).
    pub const fn capacity(self) -> u32 {
        self.capacity
    }
}

impl fmt::Display for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} permits", self.count, self.capacity)
    }
}

/// A number of permits that no semaphore could ever grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} of {capacity} permits can never be granted: ask for at least 1 and at most what there are"
)]
pub struct InvalidPermits {
    /// How many were asked for.
    pub count: u32,
    /// How many there are.
    pub capacity: u32,
}

/// The identity of one acquisition: minted by the engine, never reused, never shared by two guards.
///
/// [`Display`](fmt::Display) gives text of at most 41 ASCII letters, digits and dashes, for a store's keys;
/// [`FromStr`] reads it back, and it is written and read so by serde.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerId {
    process: u64,
    pid: u32,
    serial: u64,
}

impl OwnerId {
    /// A new identity, different from every other one here and, up to the chance of two random 64-bit numbers meeting,
    /// anywhere.
    pub fn mint() -> Self {
        // A forked child inherits the statics below; its pid tells it from its parent.
        Self::mint_in(std::process::id())
    }

    /// Whether a forked child asks, which has a copy of what its parent acquired.
    pub(crate) fn is_inherited(self) -> bool {
        self.pid != std::process::id()
    }

    /// As [`mint`](Self::mint), by a caller who has just asked for the process id: that is a system call.
    fn mint_in(pid: u32) -> Self {
        static PROCESS: OnceLock<u64> = OnceLock::new();
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self {
            process: *PROCESS.get_or_init(|| fastrand::Rng::new().u64(..)),
            pid,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Hash for OwnerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The rest tells processes apart, whose owners seldom meet in one table.
        self.serial.hash(state);
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}-{:x}", self.process, self.pid, self.serial)
    }
}

/// Why a text is no [`OwnerId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not what an owner's identity looks like as text")]
pub struct InvalidOwner;

impl FromStr for OwnerId {
    type Err = InvalidOwner;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        let mut parts = text.splitn(3, '-');
        let mut part = || parts.next().ok_or(InvalidOwner);
        let (process, pid, serial) = (part()?, part()?, part()?);
        if !text.bytes().all(is_ours) {
            return Err(InvalidOwner);
        }
        Ok(Self {
            process: u64::from_str_radix(process, 16).map_err(|_| InvalidOwner)?,
            pid: u32::from_str_radix(pid, 16).map_err(|_| InvalidOwner)?,
            serial: u64::from_str_radix(serial, 16).map_err(|_| InvalidOwner)?,
        })
    }
}

impl Serialize for OwnerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OwnerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether the caller goes on waiting if this attempt is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Patience {
    /// One attempt only: the backend keeps nothing of it if it is contended.
    Once,
    /// The caller will wait: a backend with a queue keeps a place for this owner until it is granted or released.
    Queue,
}

/// One acquisition's request: everything a backend does is addressed by it.
///
/// `D` says what is wanted: a [`Mode`] of a lock, or [`Permits`] of a semaphore.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request<D> {
    /// What is to be locked.
    pub name: LockName,
    /// Which mode, or how many permits.
    pub demand: D,
    /// Whose acquisition this is. [`release`](crate::LockBackend::release) finds what to free by it.
    pub owner: OwnerId,
    /// Whether to keep a place in a queue.
    pub patience: Patience,
    /// Who asks: what other people's errors will say of the holder.
    pub holder: Holder,
}

/// A request for a lock.
pub type LockRequest = Request<Mode>;

/// A request for permits of a semaphore.
pub type PermitRequest = Request<Permits>;

impl<D> Request<D> {
    /// A request with a newly minted owner, made by this process.
    pub fn new(name: LockName, demand: D, patience: Patience) -> Self {
        let pid = std::process::id();
        Self {
            name,
            demand,
            owner: OwnerId::mint_in(pid),
            patience,
            holder: Holder::this_host(pid, None),
        }
    }

    /// The same, with a label for people to read.
    #[must_use]
    pub fn with_label(mut self, label: Option<Arc<str>>) -> Self {
        self.holder.label = label;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn owners_never_repeat() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    (0..10_000)
                        .map(|_| OwnerId::mint().to_string())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let mut seen = HashSet::new();
        for thread in threads {
            for owner in thread.join().unwrap() {
                assert!(owner.len() <= 41, "{owner}");
                assert!(seen.insert(owner));
            }
        }
    }

    #[test]
    fn an_owner_is_read_back() {
        let owner = OwnerId::mint();
        assert_eq!(owner.to_string().parse(), Ok(owner));
        let json = serde_json::to_string(&owner).unwrap();
        assert_eq!(json, format!("\"{owner}\""));
        assert_eq!(serde_json::from_str::<OwnerId>(&json).unwrap(), owner);
        let largest = OwnerId {
            process: u64::MAX,
            pid: u32::MAX,
            serial: u64::MAX,
        };
        assert_eq!(largest.to_string().parse(), Ok(largest));
        for text in [
            "",
            "1",
            "1-2",
            "1-2-3-4",
            "1--3",
            "1-2-x",
            "1-2-F",
            "+1-2-3",
            "1-100000000-3",
        ] {
            assert_eq!(text.parse::<OwnerId>(), Err(InvalidOwner), "{text:?}");
        }
    }

    #[test]
    fn permits_that_could_never_be_granted_are_refused() {
        assert!(Permits::new(0, 3).is_err());
        assert!(Permits::new(1, 0).is_err());
        assert!(Permits::new(4, 3).is_err());
        assert_eq!(Permits::new(3, 3).unwrap().count(), 3);
    }
}
