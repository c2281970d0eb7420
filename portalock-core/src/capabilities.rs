//! What a backend guarantees, in a form that programs can read and the conformance suite can test.

use std::time::Duration;

/// The order in which waiters are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fairness {
    /// No order: any waiter may be next, and a waiter may never be served.
    None,
    /// First come, first served among the waiters of one backend object; no order between processes.
    WithinClient,
    /// First come, first served among all clients. Readers don't starve a waiting writer.
    FirstCome,
}

/// How long fencing tokens keep growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tokens {
    /// Grants carry no token.
    None,
    /// Tokens of a name strictly grow for as long as the store keeps its data.
    Growing,
    /// Tokens of a name strictly grow, even across a restart that lost the store's data.
    Durable,
}

/// When a holder learns that it lost the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossNotice {
    /// The signal never fires: a lock can't be lost while the process lives, or the backend can't detect a loss.
    Never,
    /// The lost signal fires before the service can grant the name to another owner.
    BeforeSuccessor,
    /// The lost signal fires at most this long after the service could grant the name to another owner.
    Within(Duration),
}

/// How soon a crashed holder's lock passes on to a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CrashRelease {
    /// Never: the lock exists only inside the process.
    WithProcess,
    /// Within this time after the crash. The conformance suite measures it.
    Within(Duration),
}

/// What [`inspect`](crate::LockBackend::inspect) returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Inspect {
    /// Nothing: it fails with [`Unsupported`](crate::BackendErrorKind::Unsupported).
    None,
    /// The holders.
    Holders,
    /// The holders and the waiters.
    HoldersAndWaiters,
}

/// Which programs a backend's locks exclude from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The tasks and threads of one process.
    Process,
    /// The processes of one host.
    Host,
    /// All hosts that use the same service.
    Network,
}

/// The guarantees of a backend, in machine-readable form.
///
/// Start with [`Capabilities::new`], which claims exclusive locks and nothing else, and add claims. The conformance
/// suite tests both directions: a claimed capability must work, and a request for an unclaimed one must be refused.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::{Capabilities, CrashRelease, Fairness, Scope, Tokens};
///
/// let capabilities = Capabilities::new(Scope::Host)
///     .with_shared(true)
///     .with_fairness(Fairness::FirstCome)
///     .with_tokens(Tokens::Growing)
///     .with_crash_release(CrashRelease::Within(Duration::from_secs(10)));
/// assert!(capabilities.shared);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a claim of its own")]
#[non_exhaustive]
pub struct Capabilities {
    /// Which programs the locks exclude from each other.
    pub scope: Scope,
    /// Whether the backend has shared locks ([`Mode::Shared`](crate::Mode::Shared)). If not, a request for one fails
    /// before any I/O.
    pub shared: bool,
    /// The order in which waiters are served.
    pub fairness: Fairness,
    /// How long tokens keep growing.
    pub tokens: Tokens,
    /// How soon a crashed holder's lock passes on.
    pub crash_release: CrashRelease,
    /// When a holder learns that it lost the lock.
    pub loss: LossNotice,
    /// What `inspect` returns.
    pub inspect: Inspect,
    /// Whether a lock can be taken away from its holder: see [`Lock::break_holder`](crate::Lock::break_holder).
    /// [`loss`](Self::loss) says when the holder is then told.
    pub breaks: bool,
    /// Whether [`release_now`](crate::LockBackend::release_now) releases a lock without waiting.
    pub releases_now: bool,
    /// Whether the backend's futures must be polled in a tokio runtime. If not, the [`blocking`](crate::blocking)
    /// module runs them on the calling thread.
    pub needs_runtime: bool,
}

impl Capabilities {
    /// Exclusive locks in `scope`, and no other promise.
    pub const fn new(scope: Scope) -> Self {
        Self {
            scope,
            shared: false,
            fairness: Fairness::None,
            tokens: Tokens::None,
            crash_release: CrashRelease::WithProcess,
            loss: LossNotice::Never,
            inspect: Inspect::None,
            breaks: false,
            releases_now: false,
            needs_runtime: true,
        }
    }

    /// Sets [`shared`](Self::shared).
    #[must_use]
    pub const fn with_shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Sets [`fairness`](Self::fairness).
    #[must_use]
    pub const fn with_fairness(mut self, fairness: Fairness) -> Self {
        self.fairness = fairness;
        self
    }

    /// Sets [`tokens`](Self::tokens).
    #[must_use]
    pub const fn with_tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = tokens;
        self
    }

    /// Sets [`crash_release`](Self::crash_release).
    #[must_use]
    pub const fn with_crash_release(mut self, crash_release: CrashRelease) -> Self {
        self.crash_release = crash_release;
        self
    }

    /// Sets [`loss`](Self::loss).
    #[must_use]
    pub const fn with_loss(mut self, loss: LossNotice) -> Self {
        self.loss = loss;
        self
    }

    /// Sets [`inspect`](Self::inspect).
    #[must_use]
    pub const fn with_inspect(mut self, inspect: Inspect) -> Self {
        self.inspect = inspect;
        self
    }

    /// Sets [`breaks`](Self::breaks).
    #[must_use]
    pub const fn with_breaks(mut self, breaks: bool) -> Self {
        self.breaks = breaks;
        self
    }

    /// Sets [`releases_now`](Self::releases_now).
    #[must_use]
    pub const fn with_releases_now(mut self, releases_now: bool) -> Self {
        self.releases_now = releases_now;
        self
    }

    /// Sets [`needs_runtime`](Self::needs_runtime).
    #[must_use]
    pub const fn with_needs_runtime(mut self, needs_runtime: bool) -> Self {
        self.needs_runtime = needs_runtime;
        self
    }
}
