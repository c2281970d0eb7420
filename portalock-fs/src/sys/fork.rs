//! Telling a forked child from its parent: it has copies of what its parent holds, and may end none of it.

/// The process in which something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        Self(std::process::id())
    }

    /// Whether this is a copy that a forked child inherited.
    pub(crate) fn is_elsewhere(self) -> bool {
        self != Self::here()
    }
}
