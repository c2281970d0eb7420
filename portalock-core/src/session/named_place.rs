//! Places whose owners have a new name at the service each time.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::OwnerId;

/// Enough for each name.
const LONGEST: usize = 64;

/// An owner's place, for a service that records the owner by a name.
///
/// ```
/// use portalock_core::{OwnerId, session::NamedPlace};
///
/// let owner = OwnerId::mint();
/// let (first, second) = (NamedPlace::new(owner, "a"), NamedPlace::new(owner, "a"));
/// assert_ne!(first.name, second.name);
/// assert_eq!(NamedPlace::<&str>::owner(&second.name), Some(owner));
/// assert_eq!(NamedPlace::<&str>::owner("somebody"), None);
/// ```
#[derive(Debug, Clone)]
pub struct NamedPlace<W> {
    /// The owner's name at the service. Each place has a different name, so a late release doesn't find the owner's next
    /// place.
    pub name: Arc<str>,
    /// What the owner wants at the service.
    pub wanted: W,
}

impl<W> NamedPlace<W> {
    /// Makes a place with a new name.
    pub fn new(owner: OwnerId, wanted: W) -> Self {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        let mut name = String::with_capacity(LONGEST);
        // Writing to a string does not fail.
        let _ = write!(name, "{owner}.{number}");
        Self {
            name: name.into(),
            wanted,
        }
    }

    /// The owner of the place with this name, if it is the name of a place.
    pub fn owner(name: &str) -> Option<OwnerId> {
        name.split_once('.')?.0.parse().ok()
    }
}
