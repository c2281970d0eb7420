//! The conformance suite for portalock's backends: prove a backend right, or see what it gets wrong.
//!
//! A [`Fixture`] makes independent clients of one store and, where it can, crashes one, cuts one off or restarts the
//! service. [`conformance!`] then makes one `#[test]` of every case, and [`run()`] gives a [`Report`] that a person can read.
//!
//! ```
//! use async_trait::async_trait;
//! use portalock_core::MemoryBackend;
//! use portalock_testkit::{Fixture, FixtureError, Suite, cases};
//!
//! /// One store, made anew for each case.
//! struct InMemory(MemoryBackend);
//!
//! #[async_trait]
//! impl Fixture for InMemory {
//!     type Backend = MemoryBackend;
//!
//!     async fn client(&self) -> Result<MemoryBackend, FixtureError> {
//!         Ok(self.0.client())
//!     }
//! }
//!
//! let suite = Suite::new(|| async { InMemory(MemoryBackend::new()) });
//! let case = cases::find("exclusive::one_holder_among_clients").unwrap();
//! let report = suite.run_case(case);
//! assert!(!report.is_failure(), "{report}");
//! ```
//!
//! # How it tests
//!
//! - What a backend claims by its [`Capabilities`](portalock_core::Capabilities) must pass, what it does not claim must be
//!   refused. A case is skipped only for want of a claim or of something that the fixture can do, or where the fixture says
//!   that it would prove nothing, and the report says so.
//! - Exclusion is tested with real holds, by tasks, by threads and by processes; a process is killed, stopped, or forked, for
//!   real.
//! - Cancellation is swept: a call is dropped after each of its polls, before and after its answer has arrived.
//! - Random clients leave a [`history`], which is held against the promises. They tell their seed when it shows a violation:
//!   `PORTALOCK_SEED` plays it again, `PORTALOCK_STRESS_SECONDS` plays for longer.
//! - Broken backends, each wrong in one way, show that the suite finds what it says it does: see [`broken`].
//!
//! `docs/writing-a-backend.md` is the guide.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod broken;
pub mod cases;
mod conformance;
mod crowd;
mod erased;
mod fixture;
mod fork;
mod helper;
pub mod history;
pub mod process;
#[cfg(feature = "proxy")]
pub mod proxy;
mod report;
mod run;
mod section;
#[cfg(feature = "servers")]
pub mod servers;
mod spy;
mod sweep;
mod trial;
mod verdict;

pub use fixture::{Fixture, FixtureError, IntoFixture, Restore};
pub use process::HelperCommand;
pub use report::{CaseReport, Outcome, Report};
pub use run::{Suite, run};
