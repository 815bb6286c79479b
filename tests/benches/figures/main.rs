//! The figures that stay: what the program costs, and what it is compared with, all in one run, because absolute figures are those
//! of the machine. Needs root; run it by `cargo xtask bench`. docs/performance.md says how each row is measured.

mod bulk;
mod claims;
mod defence;
mod flood;
mod handover;
mod idle;
mod many;
mod memory;
mod peers;
mod per_frame;
mod process;
mod rate;
mod references;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use arpwarden_tests::{
    figures::{
        plot::{Plot, svg},
        table::{Section, document, summary, text},
    },
    lane,
};
use serde_json::json;

/// What is measured together: the name, how, and whether it draws a plot.
enum Family {
    Table(fn() -> Section),
    Drawn(fn() -> (Section, Plot)),
}

const FAMILIES: [(&str, Family); 10] = [
    ("frame", Family::Table(per_frame::measure)),
    ("rate", Family::Drawn(rate::measure)),
    ("bulk", Family::Table(bulk::measure)),
    ("flood", Family::Table(flood::measure)),
    ("memory", Family::Table(memory::measure)),
    ("claim", Family::Table(claims::measure)),
    ("defence", Family::Table(defence::measure)),
    ("many", Family::Table(many::measure)),
    ("handover", Family::Table(handover::measure)),
    ("idle", Family::Table(idle::measure)),
];

#[derive(Default)]
struct Wanted {
    families: Vec<String>,
    json: bool,
    plot: Option<PathBuf>,
}

fn main() -> ExitCode {
    let wanted = match wanted(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let begun = Instant::now();
    let (mut sections, mut drawn) = (Vec::new(), None);
    for (name, family) in FAMILIES {
        if !wanted.families.is_empty() && !wanted.families.iter().any(|family| family == name) {
            continue;
        }
        eprintln!("measuring: {name}");
        let section = match family {
            Family::Table(measure) => measure(),
            Family::Drawn(measure) => {
                let (section, plot) = measure();
                drawn = Some(plot);
                section
            }
        };
        if !wanted.json {
            println!("{}", text(&section));
        }
        sections.push(section);
    }
    if let Some((path, plot)) = wanted.plot.as_ref().zip(drawn)
        && let Err(error) = std::fs::write(path, svg(&plot))
    {
        eprintln!("error: writing the plot into {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    let machine = machine(begun.elapsed());
    if wanted.json {
        println!("{:#}", document(&machine, &sections));
    } else {
        println!("{}\n{machine}", summary(&sections));
    }
    ExitCode::SUCCESS
}

/// Cargo adds `--bench` of its own.
fn wanted(arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    let mut arguments = arguments.filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => wanted.json = true,
            "--plot" => wanted.plot = Some(arguments.next().ok_or("--plot wants a path")?.into()),
            name if FAMILIES.iter().any(|(family, _)| *family == name) => wanted.families.push(argument),
            other => {
                let names = FAMILIES.map(|(name, _)| name).join(", ");
                return Err(format!("there is no row {other}; there are {names}"));
            }
        }
    }
    if wanted.plot.is_some()
        && !wanted.families.is_empty()
        && !wanted.families.iter().any(|name| name == "rate")
    {
        return Err("the plot is of the row rate, which is not measured".into());
    }
    Ok(wanted)
}

/// What the figures are figures of.
fn machine(took: Duration) -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
    json!({
        "cpu": cpu,
        "cpus": arpwarden_tests::live::cpus().len(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        // Of one, five and fifteen minutes, at the end.
        "load": read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        "seconds": took.as_secs(),
    })
}
