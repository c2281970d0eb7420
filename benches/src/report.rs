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

/// The rows of a contest, as the time of one operation. The target is that of each contestant whose name begins with
/// `portalock`. Of the others, those that are faster than all of these are said to be ahead; a floor isn't.
pub fn times(outcomes: &[Outcome], target: Target) {
    rows(outcomes, target, micros, |ratio| ratio);
}

/// The same, as so many operations in a second.
pub fn rates(outcomes: &[Outcome], target: Target) {
    rows(outcomes, target, per_second, f64::recip);
}

fn rows(
    outcomes: &[Outcome],
    target: Target,
    measured: fn(Duration) -> String,
    ratio: fn(f64) -> f64,
) {
    let is_ours = |outcome: &&Outcome| outcome.name.starts_with("portalock");
    let fastest = outcomes.iter().filter(is_ours).map(|ours| ours.time).min();
    for outcome in outcomes {
        let (what, ratio) = (&outcome.name, ratio(outcome.ratio));
        let measured = measured(outcome.time);
        if is_ours(&outcome) {
            row(what, measured, ratio, target);
        } else {
            let is_ahead = fastest.is_some_and(|ours| outcome.time < ours);
            let is_floor = what.starts_with("floor");
            let verdict = if is_ahead && !is_floor {
                "**ahead**"
            } else {
                ""
            };
            println!("| {what} | {measured} | {ratio:.2} |  | {verdict} |");
        }
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
