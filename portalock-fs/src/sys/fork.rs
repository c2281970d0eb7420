//! Distinguishing a forked child from its parent: it has copies of its parent's locks, and must not release them.

/// The process that created something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        Self(std::process::id())
    }

    /// As in a child that was forked since.
    #[cfg(all(test, any(target_os = "linux", target_os = "android")))]
    pub(crate) fn inherit(&mut self) {
        self.0 += 1;
    }

    /// Whether this is a forked child's inherited copy.
    pub(crate) fn is_elsewhere(self) -> bool {
        self != Self::here()
    }
}
