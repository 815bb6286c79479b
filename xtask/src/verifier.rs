//! What the kernels' verifiers make of the programs: a table, and a bar on growth against the last accepted figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::kernels::Choice;
use crate::process;

/// The test that loads every program at every log level and tells the [`Figures`].
pub(crate) const TEST: (&str, &str) = ("kernels", "every_program_loads_at_every_log_level");
/// What the lines begin with that it tells them in.
const PREFIX: &str = "figures: ";
/// By how much walked instructions may grow without a word, in percent. The point releases of a kernel differ by less.
const GROWTH: u64 = 10;
/// The log levels of the table: nothing, and what `run` has by default.
const SHOWN: [(u8, &str); 2] = [(0, "off"), (3, "info")];

/// What the test tells of a program at a log level.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Figures {
    program: String,
    level: u8,
    instructions: u32,
    walked: u64,
    states: u64,
    peak_states: u64,
    stack: String,
    milliseconds: f64,
}

/// By kernel, as it is named on the command line.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<String, Vec<Figures>>);

/// Walked instructions by kernel, then program and log level: what was accepted last.
#[derive(Serialize, Deserialize, Default, PartialEq, Eq, Debug)]
#[serde(transparent)]
struct Accepted(BTreeMap<String, BTreeMap<String, u64>>);

impl Table {
    /// Takes a line that a test has written, if it is about this.
    pub(crate) fn take(&mut self, kernel: &str, line: &str) -> bool {
        let figures = line.split_once(PREFIX).and_then(|(_, figures)| serde_json::from_str(figures).ok());
        let Some(figures) = figures else { return false };
        self.0.entry(kernel.into()).or_default().push(figures);
        true
    }

    /// Takes what another table has.
    pub(crate) fn extend(&mut self, other: Self) {
        for (kernel, figures) in other.0 {
            self.0.entry(kernel).or_default().extend(figures);
        }
    }

    /// The table for a terminal.
    pub(crate) fn shown(&self) -> String {
        let mut text = String::from(
            "kernel  program            log   instructions  walked    states (peak)   stack                      load\n",
        );
        for (kernel, all) in &self.0 {
            for figures in all {
                let Some((_, level)) = SHOWN.iter().find(|(level, _)| *level == figures.level) else {
                    continue;
                };
                let Figures { program, instructions, walked, stack, milliseconds, .. } = figures;
                let states = format!("{} ({})", figures.states, figures.peak_states);
                text += &format!(
                    "{kernel:<7} {program:<18} {level:<5} {instructions:>12}  {walked:>6}  {states:>14}   {stack:<25} {milliseconds:>5.0} ms\n"
                );
            }
        }
        text
    }

    fn walked(&self) -> Accepted {
        let of_kernel = |all: &Vec<Figures>| -> BTreeMap<String, u64> {
            all.iter().map(|figures| (name(figures), figures.walked)).collect()
        };
        Accepted(self.0.iter().map(|(kernel, all)| (kernel.clone(), of_kernel(all))).collect())
    }

    /// What has grown beyond the bar; kernels and programs of which nothing was accepted count as having grown, unless
    /// nothing of the kernel was.
    pub(crate) fn grown(&self) -> Result<Vec<String>> {
        Ok(grown(&Accepted::read()?, &self.walked()))
    }

    /// Accepts the figures of these kernels; those of others stay.
    pub(crate) fn accept(self) -> Result<()> {
        let mut accepted = Accepted::read()?;
        accepted.0.extend(self.walked().0);
        // The running kernel is another on each machine.
        accepted.0.remove(Choice::Here.name());
        let text = serde_json::to_string_pretty(&accepted)? + "\n";
        let file = Accepted::file();
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }
}

fn name(figures: &Figures) -> String {
    format!("{} at log level {}", figures.program, figures.level)
}

fn grown(accepted: &Accepted, now: &Accepted) -> Vec<String> {
    let mut grown = Vec::new();
    for (kernel, programs) in &now.0 {
        let Some(accepted) = accepted.0.get(kernel) else { continue };
        for (program, walked) in programs {
            match accepted.get(program) {
                Some(before) if *walked * 100 <= before * (100 + GROWTH) => {}
                Some(before) => grown.push(format!(
                    "the verifier of {kernel} walks {walked} instructions for {program}, more than {GROWTH} % above \
                     the {before} that were accepted: `cargo xtask verifier --accept` if that is meant"
                )),
                None => grown.push(format!(
                    "nothing was accepted for {program} on {kernel}, where the verifier walks {walked} \
                     instructions: `cargo xtask verifier --accept`"
                )),
            }
        }
    }
    grown
}

impl Accepted {
    fn file() -> PathBuf {
        process::repository().join("xtask/verifier.json")
    }

    fn read() -> Result<Self> {
        let file = Self::file();
        match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("reading {}", file.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(kernel: &str, program: &str, walked: u64) -> Accepted {
        Accepted(BTreeMap::from([(kernel.into(), BTreeMap::from([(program.into(), walked)]))]))
    }

    #[test]
    fn growth_is_told_beyond_the_bar_only() {
        let before = accepted("6.1", "a", 1_000);
        assert!(grown(&before, &accepted("6.1", "a", 1_100)).is_empty());
        assert!(grown(&before, &accepted("6.1", "a", 1)).is_empty());
        assert_eq!(grown(&before, &accepted("6.1", "a", 1_101)).len(), 1);
        assert_eq!(grown(&before, &accepted("6.1", "b", 1)).len(), 1);
        assert!(grown(&before, &accepted("here", "a", 9_999)).is_empty());
    }

    #[test]
    fn figures_are_found_in_a_line() {
        let mut table = Table::default();
        let line = r#"test a ... figures: {"program":"p","level":3,"instructions":10,"walked":20,"states":3,"peak_states":2,"stack":"8","milliseconds":1.5}"#;
        assert!(table.take("6.1", line));
        assert!(!table.take("6.1", "test a ... ok"));
        assert!(table.shown().contains("p                  info"), "{}", table.shown());
        assert_eq!(table.walked(), accepted("6.1", "p at log level 3", 20));
    }
}
