//! What the benchmarks share: contests between an operation and its floor, tables of ratios, and plots.
//!
//! A machine's load changes from minute to minute, so no time means anything alone. Every figure is a ratio of two times
//! from the same run, whose rounds take turns: see [`contest`](contest::contest).

pub mod contest;
pub mod plot;
pub mod report;

/// What ends a benchmark early.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
