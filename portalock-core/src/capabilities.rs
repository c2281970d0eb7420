//! What a backend guarantees, in a form that programs can read and the conformance suite can check.

use std::time::Duration;

/// In which order waiters are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fairness {
    /// Any waiter may be next; none is promised a turn.
    None,
    /// First come, first served among the waiters of one backend object; none between processes.
    WithinClient,
    /// First come, first served among all clients. A waiting writer is not starved by readers.
    FirstCome,
}

/// How far a fencing token's order reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tokens {
    /// Grants carry no token.
    None,
    /// Tokens of a name strictly grow for as long as the store keeps its data.
    Growing,
    /// Tokens of a name strictly grow, also over a restart that lost the store's data.
    Durable,
}

/// How a holder learns that it no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossNotice {
    /// Ownership is never lost while the process lives; or it is, and nothing tells.
    Never,
    /// The lost signal fires before the service could grant the name to another.
    BeforeSuccessor,
    /// The lost signal fires at most this long after another could have been granted the name.
    Within(Duration),
}

/// How soon a crashed holder's lock passes on to a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CrashRelease {
    /// Never by itself: the lock lives and dies with the process.
    WithProcess,
    /// Within this time of the crash. The conformance suite measures it.
    Within(Duration),
}

/// What [`inspect`](crate::LockBackend::inspect) can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Inspect {
    /// Nothing: it answers with [`Unsupported`](crate::BackendErrorKind::Unsupported).
    None,
    /// Who holds.
    Holders,
    /// Who holds and who waits.
    HoldersAndWaiters,
}

/// Between whom a backend's locks exclude.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The tasks and threads of one process.
    Process,
    /// The processes of one host.
    Host,
    /// The hosts that reach one service.
    Network,
}

/// A backend's guarantees, each one machine-readable.
///
/// Start from [`Capabilities::new`], which promises exclusive locks and nothing else, and add what holds. The conformance
/// suite checks both ways: what is claimed must pass, what is not claimed must be refused.
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
    /// Between whom the locks exclude.
    pub scope: Scope,
    /// Whether [`Mode::Shared`](crate::Mode::Shared) is granted. Where it isn't, asking for it fails before any I/O.
    pub shared: bool,
    /// In which order waiters are served.
    pub fairness: Fairness,
    /// How far the tokens' order reaches.
    pub tokens: Tokens,
    /// How soon a crashed holder's lock passes on.
    pub crash_release: CrashRelease,
    /// How a holder learns that it lost the lock.
    pub loss: LossNotice,
    /// What `inspect` can tell.
    pub inspect: Inspect,
    /// Whether a lock can be taken away from its holder: see [`Lock::break_holder`](crate::Lock::break_holder). The holder is
    /// then told as [`loss`](Self::loss) says.
    pub breaks: bool,
    /// Whether [`release_now`](crate::LockBackend::release_now) frees a lock without waiting for anything.
    pub releases_now: bool,
    /// Whether the backend's futures need a tokio runtime to be polled in. Where they don't, the
    /// [`blocking`](crate::blocking) facade runs them on the calling thread.
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

    /// Sets [`scope`](Self::scope).
    #[must_use]
    pub const fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
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
