//! Medians with their spread, percentiles, and taking turns.

/// What some runs of the same thing gave.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

impl Spread {
    /// Of one or more runs.
    ///
    /// # Panics
    /// Of none, or if one is not a number.
    pub fn of(runs: &[f64]) -> Self {
        let sorted = sorted(runs);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Self { median, lowest: sorted[0], highest: sorted[sorted.len() - 1] }
    }

    /// Of something that was measured once.
    pub const fn once(value: f64) -> Self {
        Self { median: value, lowest: value, highest: value }
    }
}

/// The value below or at which so many of a hundred are.
///
/// # Panics
/// Of none, or if one is not a number.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let sorted = sorted(values);
    // The nearest rank: the least value with so many of a hundred at or below it.
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

fn sorted(values: &[f64]) -> Vec<f64> {
    assert!(!values.is_empty() && values.iter().all(|value| !value.is_nan()), "not to be sorted: {values:?}");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// What `count` subjects gave in `rounds` rounds, taking turns, each other round in the opposite order: whatever else the
/// machine does meets all of them alike.
pub fn in_turn(rounds: usize, count: usize, mut measure: impl FnMut(usize) -> f64) -> Vec<Vec<f64>> {
    let mut runs = vec![Vec::with_capacity(rounds); count];
    for round in 0..rounds {
        for turn in 0..count {
            let subject = if round % 2 == 0 { turn } else { count - 1 - turn };
            runs[subject].push(measure(subject));
        }
    }
    runs
}

/// Each run of `these` over the run of `those` in the same round.
pub fn ratios(these: &[f64], those: &[f64]) -> Vec<f64> {
    these.iter().zip(those).map(|(this, that)| this / that).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let odd = Spread::of(&[9.0, 1.0, 4.0]);
        assert_eq!(odd, Spread { median: 4.0, lowest: 1.0, highest: 9.0 });
        assert_eq!(Spread::of(&[8.0, 1.0, 4.0, 2.0]), Spread { median: 3.0, lowest: 1.0, highest: 8.0 });
        assert_eq!(Spread::of(&[7.0]), Spread::once(7.0));
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!([50, 99, 100, 0].map(|percent| percentile(&values, percent)), [100.0, 198.0, 200.0, 1.0]);
        assert_eq!(percentile(&[3.0], 99), 3.0);
        assert_eq!(percentile(&[1.0, 2.0], 50), 1.0);
    }

    #[test]
    #[should_panic(expected = "not to be sorted")]
    fn what_is_not_a_number_has_no_median() {
        Spread::of(&[1.0, f64::NAN]);
    }

    #[test]
    fn turns_are_taken_to_and_fro() {
        let mut order = Vec::new();
        let runs = in_turn(2, 3, |subject| {
            order.push(subject);
            order.len() as f64
        });
        assert_eq!(order, [0, 1, 2, 2, 1, 0]);
        assert_eq!(runs, [[1.0, 6.0], [2.0, 5.0], [3.0, 4.0]]);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        assert_eq!(ratios(&[1.0, 9.0], &[2.0, 3.0]), [0.5, 3.0]);
    }
}
