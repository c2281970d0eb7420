//! The conformance suite for portalock's backends: it tests each promise of a backend, on a real store and under faults.
//!
//! A [`Fixture`] makes independent clients of one store. It can also cause faults: crash a client, cut it off, or restart the
//! service. [`conformance!`] makes a `#[test]` of every case, and [`run()`] returns a readable [`Report`].
//!
//! ```
//! use async_trait::async_trait;
//! use portalock_core::MemoryBackend;
//! use portalock_testkit::{Fixture, FixtureError, Suite, cases};
//!
//! /// A store; each case gets a new one.
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
//! - A capability that the backend claims ([`Capabilities`](portalock_core::Capabilities)) must work, and a request for an
//!   unclaimed one must be refused. A case is skipped if the backend doesn't claim the capability, if the fixture can't cause
//!   the fault, or if the fixture says that the case would prove nothing. The report lists skipped cases with the reason.
//! - Tasks, threads and processes take real locks. Processes are really killed, stopped and forked.
//! - Cancellation is tested at every point: a call is dropped after each of its polls, before and after its answer has arrived.
//! - Random clients record a [`history`], which a checker compares with the promises. A violation prints its seed:
//!   `PORTALOCK_SEED` repeats the run, `PORTALOCK_STRESS_SECONDS` makes it longer.
//! - Broken backends, each with one bug, show that the suite finds such bugs: see [`broken`].
//!
//! `docs/writing-a-backend.md` is the guide.

#![cfg_attr(docsrs, feature(doc_cfg))]

// The unit tests need none of these, and they take long to compile.
#[cfg(not(test))]
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
mod spawn;
mod spy;
#[cfg(unix)]
mod stop;
mod sweep;
mod trial;
mod verdict;

pub use fixture::{Fixture, FixtureError, IntoFixture, Restore};
#[cfg(unix)]
pub use fork::refuses_in_a_child;
pub use process::HelperCommand;
pub use report::{CaseReport, Outcome, Report};
pub use run::{Suite, run};

use spawn::spawn;
