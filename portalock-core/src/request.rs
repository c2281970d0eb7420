//! Requests: what is wanted, for which acquisition, and whether the caller waits.

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

use crate::{Holder, LockName, random::random};

/// The mode of a lock: exclusive or shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One holder.
    Exclusive,
    /// Any number of shared holders, and no exclusive one.
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

/// A number of wanted permits, and the capacity. The number is at least 1 and at most the capacity.
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

    /// The number of wanted permits: at least 1.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The number of permits in all: at least [`count`](Self::count).
    pub const fn capacity(self) -> u32 {
        self.capacity
    }
}

impl fmt::Display for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} permits", self.count, self.capacity)
    }
}

/// A number of permits that can never be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} of {capacity} permits can never be granted: both must be at least 1, and the first at most the second"
)]
pub struct InvalidPermits {
    /// The number of wanted permits.
    pub count: u32,
    /// The capacity.
    pub capacity: u32,
}

/// The id of one acquisition. The engine creates it; it is never reused and never shared by two guards.
///
/// The ids of one process are ordered: a later one is greater.
///
/// [`Display`](fmt::Display) gives text of at most 42 ASCII letters, digits and dashes, for keys in a store.
/// [`FromStr`] parses it, and serde uses the same text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerId {
    process: u64,
    pid: u32,
    serial: u64,
}

impl OwnerId {
    /// A new id. It differs from all other ids in this process, and from those of other processes unless two random
    /// 64-bit numbers are equal.
    pub fn mint() -> Self {
        Self::mint_in(std::process::id())
    }

    /// Whether this process is a forked child that has a copy of its parent's acquisition.
    pub(crate) fn is_inherited(self) -> bool {
        self.pid != std::process::id()
    }

    /// Like [`mint`](Self::mint), for a caller that already has the process id, which costs a system call.
    fn mint_in(pid: u32) -> Self {
        static PROCESS: OnceLock<u64> = OnceLock::new();
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self {
            // A forked child inherits it and the serial number; the process id distinguishes it from its parent.
            process: *PROCESS.get_or_init(random),
            pid,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Hash for OwnerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The other parts distinguish processes, whose owners are rarely in the same table.
        self.serial.hash(state);
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'-'; OWNER_LEN];
        let mut end = write_hex(&mut text, 0, self.process, 16);
        end = write_hex(&mut text, end + 1, u64::from(self.pid), 1);
        end = write_hex(&mut text, end + 1, self.serial, 1);
        f.write_str(std::str::from_utf8(&text[..end]).unwrap_or_default())
    }
}

/// The longest text of an owner: 16 digits, 8 and 16, and two dashes.
const OWNER_LEN: usize = 42;

/// Writes at least so many hexadecimal digits of `number` from `start`, and returns the end. The formatter of the standard
/// library takes several times as long, and each attempt on a server has an owner's text.
fn write_hex(text: &mut [u8; OWNER_LEN], start: usize, number: u64, least: u32) -> usize {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(least);
    for (at, digit) in (0..digits).rev().enumerate() {
        let value = (number >> (4 * digit)).to_le_bytes()[0] & 15;
        text[start + at] = b"0123456789abcdef"[usize::from(value)];
    }
    start + digits as usize
}

/// A text that is not an [`OwnerId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this text is not an owner id: copy one from an inspection of the lock")]
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

/// Whether the caller waits if this attempt is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Patience {
    /// The caller does not wait: if the lock is contended, the backend keeps nothing of this attempt.
    Once,
    /// The caller waits: a backend with a queue keeps a place for this owner until it is granted or released.
    Queue,
}

/// The request of one acquisition. Every operation of a backend gets it.
///
/// `D` is the demand: a [`Mode`] of a lock, or [`Permits`] of a semaphore.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request<D> {
    /// The name of the lock or semaphore.
    pub name: LockName,
    /// The mode, or the number of permits.
    pub demand: D,
    /// The id of this acquisition. [`release`](crate::LockBackend::release) uses it to find what to release.
    pub owner: OwnerId,
    /// Whether to keep a place in a queue.
    pub patience: Patience,
    /// A description of this process, which errors of other processes show if it becomes the holder.
    pub holder: Holder,
}

/// A request for a lock.
pub type LockRequest = Request<Mode>;

/// A request for permits of a semaphore.
pub type PermitRequest = Request<Permits>;

impl<D> Request<D> {
    /// A request of this process, with a new owner.
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

    /// Sets the label in the holder's description.
    #[must_use]
    pub fn with_label(mut self, label: Option<Arc<str>>) -> Self {
        self.holder.label = label;
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::HashSet;

    /// An owner of another process, as a forked child finds it.
    pub(crate) fn of_a_parent() -> OwnerId {
        OwnerId::mint_in(std::process::id() + 1)
    }

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
                assert!(owner.len() <= OWNER_LEN, "{owner}");
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
        assert_eq!(largest.to_string().len(), OWNER_LEN);
        let small = OwnerId {
            process: 0xfab,
            pid: 0x10,
            serial: 0,
        };
        assert_eq!(small.to_string(), "0000000000000fab-10-0");
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
        let error = Permits::new(1, 0).unwrap_err();
        assert!(
            error.to_string().contains("both must be at least 1"),
            "{error}"
        );
        assert!(Permits::new(4, 3).is_err());
        assert_eq!(Permits::new(3, 3).unwrap().count(), 3);
    }
}
