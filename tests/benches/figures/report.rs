//! Medians with their spread.

use std::fmt;

/// What some runs of the same thing gave.
#[derive(Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    lowest: f64,
    highest: f64,
}

impl Figure {
    /// Of one or more runs.
    pub(crate) fn of(mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        let [lowest, .., highest] = runs[..] else { panic!("a figure of fewer than two runs") };
        Self { median: runs[runs.len() / 2], lowest, highest }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let Self { median, lowest, highest } = self;
        let spread = format!("({lowest:.digits$} to {highest:.digits$})");
        write!(f, "{median:>6.digits$} {spread:<14}")
    }
}
