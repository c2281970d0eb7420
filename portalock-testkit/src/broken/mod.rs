//! Broken backends, each with one bug, which show that the suite finds the bugs that it claims to find.
//!
//! A suite that always passes proves nothing. So this module has a correct backend, [`Sound`], and a table of
//! [`Flaw`]s, each of a kind that lock libraries have had. For each flaw the table names the case that must fail. The
//! same case must pass without the flaw:
//!
//! ```
//! use portalock_testkit::{broken, cases};
//!
//! for specimen in broken::all() {
//!     println!("{}: {}", specimen.name(), specimen.wrong());
//!     assert!(cases::find(specimen.caught_by()).is_some());
//! }
//!
//! let specimen = broken::find("forgets_release").expect("it is in the table");
//! let case = cases::find(specimen.caught_by()).expect("it is in the suite");
//! assert!(specimen.suite().run_case(case).is_failure());
//! assert!(!specimen.control().run_case(case).is_failure());
//! ```
//!
//! When you add a case, add a flaw: a case that no flaw fails may test nothing.

pub mod breaks;
pub mod elections;
mod flaw;
pub mod grants;
pub mod hand_overs;
mod line;
pub mod looks;
pub mod losses;
pub mod names;
pub mod permits;
pub mod releases;
pub mod runtime;
mod sound;
pub mod tokens;
pub mod waits;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use flaw::{Flaw, Flawed, FlawedStore, Flawless};
pub use sound::{LEASE, Sound};

use crate::Suite;

/// One broken backend, and how the suite finds its bug.
pub struct Specimen {
    name: &'static str,
    wrong: &'static str,
    caught_by: &'static str,
    seen: &'static str,
    flaw: fn() -> Arc<dyn Flaw>,
    control: fn() -> Arc<dyn Flaw>,
}

impl Specimen {
    /// A short name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The bug, in one line.
    pub const fn wrong(&self) -> &'static str {
        self.wrong
    }

    /// The full name of the case that must fail: `group::case`.
    pub const fn caught_by(&self) -> &'static str {
        self.caught_by
    }

    /// A part of the message of that case. A case that fails for another reason has not found the bug.
    pub const fn seen(&self) -> &'static str {
        self.seen
    }

    /// The suite for stores with this bug.
    pub fn suite(&self) -> Suite {
        suite_on(self.flaw)
    }

    /// The suite for the same stores without the bug.
    pub fn control(&self) -> Suite {
        suite_on(self.control)
    }
}

impl fmt::Debug for Specimen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Specimen")
            .field("name", &self.name)
            .field("caught_by", &self.caught_by)
            .finish_non_exhaustive()
    }
}

/// Locks a flaw's own record. If a case panicked while holding it, that case has already failed.
fn locked<T>(record: &Mutex<T>) -> MutexGuard<'_, T> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Not generic: each backend type would compile the whole of the core once more.
fn suite_on(flaw: fn() -> Arc<dyn Flaw>) -> Suite {
    Suite::new(move || async move { FlawedStore::with(flaw()) })
}

fn default_flaw<F: Flaw + Default>() -> Arc<dyn Flaw> {
    Arc::new(F::default())
}

/// A row of a file's table of flaws.
macro_rules! specimen {
    ($name:ident: $flaw:ty, $wrong:literal, $caught_by:literal, $seen:literal) => {
        specimen!($name: $flaw, $wrong, $caught_by, $seen, $crate::broken::Flawless)
    };
    ($name:ident: $flaw:ty, $wrong:literal, $caught_by:literal, $seen:literal, $control:ty) => {
        $crate::broken::Specimen {
            name: stringify!($name),
            wrong: $wrong,
            caught_by: $caught_by,
            seen: $seen,
            flaw: $crate::broken::default_flaw::<$flaw>,
            control: $crate::broken::default_flaw::<$control>,
        }
    };
}
use specimen;

const THEMES: &[&[Specimen]] = &[
    grants::SPECIMENS,
    releases::SPECIMENS,
    waits::SPECIMENS,
    tokens::SPECIMENS,
    names::SPECIMENS,
    losses::SPECIMENS,
    hand_overs::SPECIMENS,
    breaks::SPECIMENS,
    looks::SPECIMENS,
    permits::SPECIMENS,
    runtime::SPECIMENS,
    elections::SPECIMENS,
];

/// Every broken backend.
pub fn all() -> impl Iterator<Item = &'static Specimen> {
    THEMES.iter().copied().flatten()
}

/// The broken backend of this name.
pub fn find(name: &str) -> Option<&'static Specimen> {
    all().find(|specimen| specimen.name == name)
}
