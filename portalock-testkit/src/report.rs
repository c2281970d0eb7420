//! Reports: one line per case, for a person or a program.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// How one case ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// The promise holds.
    Passed,
    /// The case was not run: the backend does not claim the capability, or the fixture can't cause the fault.
    Skipped {
        /// What is missing.
        reason: String,
    },
    /// The promise is broken.
    Failed {
        /// What was seen.
        reason: String,
    },
    /// The case did not end: an expected event did not happen.
    Hung {
        /// The time limit.
        after: Duration,
    },
}

/// One case and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CaseReport {
    /// The case's group.
    pub group: String,
    /// The case's name within the group.
    pub name: String,
    /// The promise that it tests.
    pub proves: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    pub time: Duration,
}

impl CaseReport {
    /// Whether the promise was tested and is broken.
    pub fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. } | Outcome::Hung { .. })
    }
}

/// The results of a run of the suite.
///
/// Its [`Display`](fmt::Display) text is for people: a line per case, with the reason if it did not pass, and totals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The cases, in the suite's order.
    pub cases: Vec<CaseReport>,
}

impl Report {
    pub(crate) fn new(cases: Vec<CaseReport>) -> Self {
        Self { cases }
    }

    /// Whether no case failed. Skipped cases don't count as failures: see [`skipped`](Self::skipped).
    pub fn is_success(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The cases that failed or hung.
    pub fn failures(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| case.is_failure())
    }

    /// The cases that were not tested.
    pub fn skipped(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases
            .iter()
            .filter(|case| matches!(case.outcome, Outcome::Skipped { .. }))
    }

    /// The number of promises that were tested and hold.
    pub fn passed(&self) -> usize {
        self.cases
            .iter()
            .filter(|case| case.outcome == Outcome::Passed)
            .count()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Skipped { .. } => "skipped",
            Self::Failed { .. } => "FAILED",
            Self::Hung { .. } => "HUNG",
        })
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.as_millis();
        write!(f, "  {:<7} {:>6} ms  {}", self.outcome, time, self.name)?;
        match &self.outcome {
            Outcome::Passed => Ok(()),
            Outcome::Skipped { reason } => write!(f, "\n      {reason}"),
            Outcome::Failed { reason } => {
                write!(
                    f,
                    "\n      promise: {}\n      seen:    {reason}",
                    self.proves
                )
            }
            Outcome::Hung { after } => write!(
                f,
                "\n      promise: {}\n      seen:    nothing for {} s",
                self.proves,
                after.as_secs()
            ),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut group = None;
        for case in &self.cases {
            if group != Some(&case.group) {
                group = Some(&case.group);
                writeln!(f, "{}", case.group)?;
            }
            writeln!(f, "{case}")?;
        }
        write!(
            f,
            "{} cases: {} passed, {} failed, {} skipped",
            self.cases.len(),
            self.passed(),
            self.failures().count(),
            self.skipped().count()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let case = |name: &str, outcome| CaseReport {
            group: "exclusive".to_owned(),
            name: name.to_owned(),
            proves: "two clients exclude each other".to_owned(),
            outcome,
            time: Duration::from_millis(7),
        };
        Report::new(vec![
            case("good", Outcome::Passed),
            case(
                "absent",
                Outcome::Skipped {
                    reason: "the fixture does not provide x".to_owned(),
                },
            ),
            case(
                "bad",
                Outcome::Failed {
                    reason: "both held".to_owned(),
                },
            ),
        ])
    }

    #[test]
    fn a_person_can_read_it() {
        let expected = "\
exclusive
  passed       7 ms  good
  skipped      7 ms  absent
      the fixture does not provide x
  FAILED       7 ms  bad
      promise: two clients exclude each other
      seen:    both held
3 cases: 1 passed, 1 failed, 1 skipped";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn a_program_can_load_it() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report());
        assert!(text.contains(r#""outcome":"failed""#), "{text}");
    }
}
