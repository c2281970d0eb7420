//! Runs cases: each on a new store, in its own runtime, with a time limit.

use std::{
    any::Any,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use futures_util::future::BoxFuture;
use portalock_core::clock::Instant;
use tokio::runtime;

use crate::{
    CaseReport, FixtureError, HelperCommand, IntoFixture, Outcome, Report,
    cases::{self, Case},
    erased::{AnyFixture, Erased},
    trial::Trial,
    verdict::{CaseResult, Stop},
};

/// The default time limit of a case; see [`Suite::with_limit`].
const LIMIT: Duration = Duration::from_secs(60);

/// The number of cases that run at the same time. Cases mostly wait.
const AT_ONCE: usize = 4;

/// The threads of each case's runtime. If a backend blocks one, the others can detect it.
const WORKERS: usize = 4;

/// How long what a case began may take to end after its verdict.
const TIDY: Duration = Duration::from_secs(5);

type Factory =
    dyn Fn() -> BoxFuture<'static, Result<Box<dyn AnyFixture>, FixtureError>> + Send + Sync;

/// The conformance suite for stores of one kind.
#[derive(Clone)]
pub struct Suite {
    factory: Arc<Factory>,
    helper: Option<HelperCommand>,
    limit: Duration,
}

/// Runs every case on stores that `fixture` makes, and returns a report.
///
/// The call blocks, so call it outside of a runtime. Cases that need a helper process are skipped: use
/// [`conformance!`](crate::conformance!), which has one, or [`Suite::with_helper`].
pub fn run<M, Fut>(fixture: M) -> Report
where
    M: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output: IntoFixture> + Send + 'static,
{
    Suite::new(fixture).run()
}

impl Suite {
    /// The suite for stores that `fixture` makes. It returns a [`Fixture`](crate::Fixture), or the result of starting
    /// one.
    pub fn new<M, Fut>(fixture: M) -> Self
    where
        M: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoFixture> + Send + 'static,
    {
        let fixture = Arc::new(fixture);
        Self {
            factory: Arc::new(move || {
                let fixture = fixture.clone();
                Box::pin(async move {
                    let fixture = fixture().await.into_fixture()?;
                    Ok(Box::new(Erased(fixture)) as Box<dyn AnyFixture>)
                })
            }),
            helper: None,
            limit: LIMIT,
        }
    }

    /// Sets how to start the helper process. Default: none, and the cases that need it are skipped.
    #[must_use]
    pub fn with_helper(mut self, helper: HelperCommand) -> Self {
        self.helper = Some(helper);
        self
    }

    /// Sets the time after which a case counts as hung. Default 60 s.
    #[must_use]
    pub const fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs every case, a few at a time. The call blocks, so call it outside of a runtime.
    pub fn run(&self) -> Report {
        let cases: Vec<_> = cases::all().collect();
        let next = AtomicUsize::new(0);
        let turns = || {
            let mut reports = Vec::new();
            while let Some((number, case)) = {
                let number = next.fetch_add(1, Ordering::Relaxed);
                cases.get(number).map(|case| (number, *case))
            } {
                reports.push((number, self.run_case(case)));
            }
            reports
        };
        let mut reports: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(turns)).collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .flatten()
                .collect()
        });
        reports.sort_by_key(|(number, _)| *number);
        Report::new(reports.into_iter().map(|(_, report)| report).collect())
    }

    /// Runs one case. The call blocks, so call it outside of a runtime.
    pub fn run_case(&self, case: &'static Case) -> CaseReport {
        let started = Instant::now();
        let (tell, told) = mpsc::channel();
        let suite = self.clone();
        // A thread of its own, so that a backend that blocks its runtime, or never returns, is detected as hung.
        thread::spawn(move || {
            let _ = tell.send(suite.play(case));
        });
        // A longer history gets a longer time limit.
        let limit = self.limit.saturating_add(cases::stress_time());
        let outcome = match told.recv_timeout(limit) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(Stop::Skipped(reason))) => Outcome::Skipped { reason },
            Ok(Err(Stop::Failed(reason))) => Outcome::Failed { reason },
            Err(mpsc::RecvTimeoutError::Timeout) => Outcome::Hung { after: limit },
            Err(mpsc::RecvTimeoutError::Disconnected) => Outcome::Failed {
                reason: "the case's thread panicked".to_owned(),
            },
        };
        CaseReport {
            group: case.group().to_owned(),
            name: case.name().to_owned(),
            proves: case.proves().to_owned(),
            outcome,
            time: started.elapsed(),
        }
    }

    /// Runs one case of [`conformance!`](crate::conformance!) as a `#[test]`.
    ///
    /// # Panics
    ///
    /// If the case fails, or if there is no case with this name.
    #[doc(hidden)]
    #[allow(clippy::panic, reason = "this is the assertion of a test")]
    pub fn check(&self, id: &str) {
        let Some(case) = cases::find(id) else {
            panic!("the suite has no case {id}");
        };
        let report = self.run_case(case);
        assert!(!report.is_failure(), "\n{id}\n{report}\n");
        println!("{report}");
    }

    fn play(&self, case: &'static Case) -> CaseResult {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .map_err(|error| Stop::Failed(format!("no runtime for the case: {error}")))?;
        let fixture = (self.factory)();
        let helper = self.helper.clone();
        let played = runtime.block_on(runtime.spawn(async move {
            let fixture = fixture.await?;
            if let Some(reason) = fixture.skip(case) {
                return Err(Stop::Skipped(reason.to_owned()));
            }
            let trial = Trial::new(fixture, helper, case).await?;
            let played = case.play(trial).await;
            if let Err(Stop::Skipped(reason)) = &played
                && case.needs().is_empty()
            {
                return Err(Stop::Failed(format!(
                    "it claims to need nothing, and {reason}"
                )));
            }
            played
        }));
        // A task that is left over owns the store too, and a test's process ends right after this.
        runtime.shutdown_timeout(TIDY);
        played.unwrap_or_else(|ended| Err(ended.into()))
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("something that is no text")
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("helper", &self.helper)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
