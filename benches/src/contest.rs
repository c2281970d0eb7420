//! Contestants that take turns, so that a change of the machine's load hits all of them alike.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::Failure;

/// One who takes part: a name, and a round, which answers how long one operation took on average.
pub struct Contestant<'a> {
    name: String,
    round: Box<dyn FnMut() -> Result<Duration, Failure> + 'a>,
}

impl fmt::Debug for Contestant<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Contestant")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<'a> Contestant<'a> {
    /// A contestant whose round measures itself.
    pub fn new(
        name: impl Into<String>,
        round: impl FnMut() -> Result<Duration, Failure> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            round: Box::new(round),
        }
    }

    /// A contestant that does one thing `times` times in each round.
    pub fn repeating(
        name: impl Into<String>,
        times: u32,
        mut operation: impl FnMut() -> Result<(), Failure> + 'a,
    ) -> Self {
        Self::new(name, move || {
            let started = Instant::now();
            for _ in 0..times {
                operation()?;
            }
            Ok(started.elapsed() / times.max(1))
        })
    }
}

/// What came out for one contestant.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Whose it is.
    pub name: String,
    /// The time of one operation: the median of the rounds.
    pub time: Duration,
    /// By how much that is more than the first contestant's: the median of the rounds' own ratios.
    pub ratio: f64,
}

/// Lets the contestants take turns for so many rounds, after one that does not count. The first is the floor.
///
/// # Errors
///
/// The first failure of a round.
pub fn contest(
    rounds: usize,
    mut contestants: Vec<Contestant<'_>>,
) -> Result<Vec<Outcome>, Failure> {
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); contestants.len()];
    for round in 0..=rounds {
        for (contestant, times) in contestants.iter_mut().zip(&mut times) {
            let time = (contestant.round)()?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    let floor = times.first().cloned().unwrap_or_default();
    let outcomes = contestants
        .into_iter()
        .zip(times)
        .map(|(contestant, times)| {
            let ratios = times
                .iter()
                .zip(&floor)
                .map(|(time, floor)| time.as_secs_f64() / floor.as_secs_f64().max(1e-12))
                .collect();
            let seconds = times.iter().map(Duration::as_secs_f64).collect();
            Outcome {
                name: contestant.name,
                time: Duration::from_secs_f64(median(seconds)),
                ratio: median(ratios),
            }
        });
    Ok(outcomes.collect())
}

/// The same outcomes, with their ratios to a fixed time.
pub fn to(time: Duration, outcomes: Vec<Outcome>) -> Vec<Outcome> {
    let ratio = |outcome: &Outcome| outcome.time.as_secs_f64() / time.as_secs_f64();
    let to_time = |outcome: Outcome| Outcome {
        ratio: ratio(&outcome),
        ..outcome
    };
    outcomes.into_iter().map(to_time).collect()
}

/// The middle one; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_rounds_side_by_side() -> Result<(), Failure> {
        // Both get three times slower in the middle: their ratio doesn't change.
        let drift = |base: u64| {
            let mut round = 0;
            move || {
                round += 1;
                Ok(Duration::from_micros(if round > 3 {
                    base * 3
                } else {
                    base
                }))
            }
        };
        let outcomes = contest(
            5,
            vec![
                Contestant::new("floor", drift(10)),
                Contestant::new("ours", drift(15)),
            ],
        )?;
        assert!((outcomes[1].ratio - 1.5).abs() < 1e-9);
        assert_eq!(outcomes[0].name, "floor");
        Ok(())
    }
}
