//! Tables, printed row by row as they come, in Markdown.

use std::{fmt, time::Duration};

use crate::contest::Outcome;

/// What a ratio should be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// This much of the floor, or less.
    AtMost(f64),
    /// This much of the floor, or more.
    AtLeast(f64),
    /// Shown beside the others.
    None,
}

impl Target {
    /// Whether a ratio is what it should be; `true` without a target.
    pub fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
            Self::None => true,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::None => write!(f, ""),
        }
    }
}

/// Begins a table.
pub fn table(title: &str) {
    println!("\n### {title}\n");
    println!("| what | measured | to its floor | target | |");
    println!("|---|---:|---:|---|---|");
}

/// One row: what was measured, as it reads, its ratio, and what that should be.
pub fn row(what: &str, measured: impl fmt::Display, ratio: f64, target: Target) {
    let verdict = match target {
        Target::None => "",
        target if target.is_met(ratio) => "met",
        _ => "**missed**",
    };
    println!("| {what} | {measured} | {ratio:.2} | {target} | {verdict} |");
}

/// The rows of a contest. The target is that of each contestant whose name begins with `portalock`.
pub fn times(outcomes: &[Outcome], target: Target) {
    for outcome in outcomes {
        let target = if outcome.name.starts_with("portalock") {
            target
        } else {
            Target::None
        };
        row(&outcome.name, micros(outcome.time), outcome.ratio, target);
    }
}

/// A time in microseconds, for people.
pub fn micros(time: Duration) -> String {
    format!("{:.2} µs", time.as_secs_f64() * 1e6)
}

/// A time as so many in a second, for people.
pub fn per_second(time: Duration) -> String {
    format!("{:.0}/s", 1.0 / time.as_secs_f64().max(1e-12))
}
