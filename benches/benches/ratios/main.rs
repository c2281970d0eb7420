//! Measures portalock beside the bare operations below it and beside its peers, and prints ratios.
//!
//! ```text
//! cargo bench -p portalock-benches --bench ratios -- [--quick] [SECTION...]
//! ```
//!
//! Without a section all are run; `redis` stands for all whose names begin so. `--quick` runs few rounds: enough to see that
//! it works, not to believe a figure.

mod etcd;
mod files;
mod flavours;
mod growth;
mod locks;
mod memory;
mod postgres;
mod redis;
mod timeouts;

use std::env;

use portalock_benches::Failure;

/// A section: its name, and how to run it.
type Section = (&'static str, fn(Effort) -> Result<(), Failure>);

const SECTIONS: &[Section] = &[
    ("memory", memory::run),
    ("timeouts", timeouts::run),
    ("files", files::run),
    ("redis", redis::run),
    ("redis-contended", redis::contended),
    ("redis-kept", redis::kept),
    ("redis-growth", redis::growth),
    ("etcd", etcd::run),
    ("etcd-contended", etcd::contended),
    ("etcd-growth", etcd::growth),
    ("postgres", postgres::run),
];

/// Where the plots go.
pub(crate) const PLOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/plots");

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// To believe the figures.
    Full,
    /// To see that it runs.
    Quick,
}

impl Effort {
    /// As many as said, or a hundredth of that.
    pub(crate) fn of(self, full: u32) -> u32 {
        match self {
            Self::Full => full,
            Self::Quick => full.div_ceil(100),
        }
    }

    /// How many rounds a contest has.
    pub(crate) fn rounds(self) -> usize {
        match self {
            Self::Full => 15,
            Self::Quick => 1,
        }
    }
}

fn main() -> Result<(), Failure> {
    if files::run_as_child()? {
        return Ok(());
    }
    // Cargo adds `--bench`.
    let words: Vec<String> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    if words.first().is_some_and(|word| word == redis::CHILD) {
        return redis::child(&words[1..]);
    }
    let effort = if words.iter().any(|word| word == "--quick") {
        Effort::Quick
    } else {
        Effort::Full
    };
    let wanted: Vec<&String> = words.iter().filter(|word| *word != "--quick").collect();
    if let Some(unknown) = wanted.iter().find(|word| {
        SECTIONS
            .iter()
            .all(|(name, _)| !name.starts_with(word.as_str()))
    }) {
        let known: Vec<_> = SECTIONS.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "there is no section {unknown:?}; there are {}",
            known.join(", ")
        )
        .into());
    }
    for (name, run) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|word| name.starts_with(word.as_str())) {
            run(effort)?;
        }
    }
    Ok(())
}
