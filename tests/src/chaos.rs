//! A story in which everything goes wrong that may, and the checker that watches it.
//!
//! From a seed comes a list of steps ([`story`]); the [`Stage`] performs them with three nodes that run the real daemon
//! and two plain hosts on a bridge, and tells the [checker](crate::checker) who may own what when: derived from the
//! commands, from their exit codes and from the rules on the wire, never from what a daemon says.

mod asker;
mod books;
mod dice;
mod maps;
mod plan;
mod stage;

use std::{fmt, path::Path, time::Duration};

pub use self::{
    plan::{
        ALL, Daemon, Defend, Entry, Form, HOSTS, Kind, Model, NodeModel, PLAIN, Step, Way, address, story,
    },
    stage::Stage,
};
use crate::{
    checker::{ANSWER_NS, Violation},
    netns::Net,
    node::Node,
    wire::boot_ns,
};

/// What went wrong in a story, and what had happened up to then.
#[derive(Debug)]
pub struct Report {
    /// What is wrong, the first thing first.
    pub violations: Vec<Violation>,
    /// The steps so far, the last one included.
    told: Vec<String>,
    /// Frames about the same address around the first violation.
    around: Vec<String>,
    /// The end of each node's log.
    logs: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the story so far:")?;
        self.told.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        for log in &self.logs {
            writeln!(f, "{log}")?;
        }
        writeln!(f, "frames around it:")?;
        self.around.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        writeln!(f, "what is wrong:")?;
        self.violations.iter().take(NAMED).try_for_each(|violation| writeln!(f, "  {violation}"))?;
        match self.violations.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more"),
        }
    }
}

/// What went right.
#[derive(Debug)]
pub struct Summary {
    /// How long it took.
    pub took: Duration,
    /// Questions that an owner had to answer.
    pub questions: usize,
    /// Of 100 of them 99 were answered within so many nanoseconds.
    pub p99_ns: u64,
    /// The longest.
    pub longest_ns: u64,
    /// For how long one processor or another stood still.
    pub stood: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { took, questions, p99_ns, longest_ns, stood } = self;
        write!(
            f,
            "{:.1} s, {:.1} s of them with a processor that stood still; {questions} questions that had to be answered \
             were, 99 % within {} µs, the last within {} µs of {}",
            took.as_secs_f64(),
            stood.as_secs_f64(),
            p99_ns / 1_000,
            longest_ns / 1_000,
            ANSWER_NS / 1_000,
        )
    }
}

/// Plays these steps, each printed as it begins.
///
/// # Errors
/// The story stops at the first thing that is wrong.
pub fn play<'net>(
    net: &'net Net,
    steps: &[Step],
    prepare: impl Fn(&mut Node<'net>),
) -> Result<Summary, Box<Report>> {
    let begun_ns = boot_ns();
    let mut stage = Stage::set(net, prepare);
    let mut told = Vec::new();
    let end = steps.iter().enumerate().map(|(number, step)| (number + 1, Some(step)));
    for (number, step) in end.chain([(steps.len() + 1, None)]) {
        let at_ns = boot_ns() - begun_ns;
        let words = step.map_or_else(|| "the end".to_owned(), ToString::to_string);
        let line = format!("{:>8.3} step {number}: {words}", Duration::from_nanos(at_ns).as_secs_f64());
        println!("{line}");
        told.push(line);
        let went = match step {
            Some(step) => stage.perform(step),
            None => stage.finish(),
        };
        if let Err(violations) = went {
            return Err(Box::new(report(&stage, violations, told)));
        }
    }
    let mut took = std::mem::take(&mut stage.checker.judge.took);
    took.sort_unstable();
    let at = |percent: usize| took.get((took.len().saturating_sub(1)) * percent / 100).copied().unwrap_or(0);
    Ok(Summary {
        took: Duration::from_nanos(boot_ns() - begun_ns),
        questions: took.len(),
        p99_ns: at(99),
        longest_ns: at(100),
        stood: Duration::from_nanos(stage.checker.judge.stood_ns()),
    })
}

/// Frames that a report shows.
const SHOWN: usize = 40;
/// Lines of each log that it shows.
const LOGGED: usize = 200;
/// Violations that it shows: one thing that is wrong may be so for each frame of a flood.
const NAMED: usize = 10;

fn report(stage: &Stage<'_>, violations: Vec<Violation>, told: Vec<String>) -> Report {
    let first = violations.first();
    let around = first.and_then(|first| {
        let frames = stage.checker.segment.around(first.address?.into(), first.at_ns, SHOWN);
        Some(frames.iter().map(ToString::to_string).collect())
    });
    let logs = stage.nodes.iter().enumerate().map(|(number, node)| {
        let log = node.log();
        // What is about other addresses is not what is looked for.
        let about = first.and_then(|first| first.address).map(|address| format!("address={address} "));
        let tells = |line: &&str| {
            about.as_ref().is_none_or(|about| line.contains(about) || !line.contains("address="))
        };
        let lines: Vec<&str> = log.lines().filter(tells).collect();
        let last = &lines[lines.len().saturating_sub(LOGGED)..];
        format!("log of node {number}:\n  {}", last.join("\n  "))
    });
    let logs = logs.collect();
    Report { violations, told, around: around.unwrap_or_default(), logs }
}

/// A node's daemon is run from another file, with one of its safeties left out.
pub fn omit<'a>(program: &'a Path, safety: &'a str) -> impl Fn(&mut Node<'_>) + 'a {
    move |node| {
        program.clone_into(&mut node.program);
        node.environment.push(("ARPWARDEN_OMIT", safety.to_owned()));
    }
}
