//! `cargo xtask`: everything that is done with this repository, from a bare machine on.
//!
//! Builds run as the user (also under sudo), only what needs root runs as root.

mod build;
mod demo;
mod guest;
mod kernels;
mod lab;
mod leftovers;
mod lint;
mod process;
mod setup;
mod test;
mod verifier;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::kernels::Choice;
use crate::setup::Set;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, runs, shows, tests and measures arpwarden"
)]
struct Arguments {
    /// Get what is missing without asking (so it is without a terminal, too)
    #[arg(long, short, global = true)]
    yes: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Say what this machine lacks, and get it
    Setup {
        /// Also what `lint --deny` needs: clippy, rustfmt, cargo-deny (compiling that takes minutes)
        #[arg(long)]
        lint: bool,
    },
    /// Build the daemon with the program inside
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Build for release and run as root: `cargo xtask run -- run --iface eth0`
    Run {
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Show the main job between network namespaces, in under a minute
    Demo,
    /// Build and run all tests; the privileged ones as root in network namespaces
    Test {
        /// Only tests whose names contain this
        filter: Option<String>,
        /// On other kernels, in guests of QEMU; may be named several times. Without it: on the running one
        #[arg(long, value_name = "KERNEL", value_delimiter = ',')]
        kernel: Vec<Choice>,
    },
    /// Play a story in which everything goes wrong, and watch the wire; a seed tells the same story again
    Chaos {
        /// How many steps; a hundred take half a minute
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        steps: usize,
        /// Which story; a new one if it is left out
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
    },
    /// What the verifiers of the kernels make of the programs: a table, compared with the last accepted figures
    Verifier {
        /// Whose; without it: of the running kernel and of all guests
        #[arg(long, value_name = "KERNEL", value_delimiter = ',')]
        kernel: Vec<Choice>,
        /// Accept the figures
        #[arg(long)]
        accept: bool,
    },
    /// Measure all that has a target, side by side with what it is compared with, in up to ten minutes
    Bench {
        /// Only these rows: frame, rate, bulk, flood, memory, claim, defence, many, handover, idle
        rows: Vec<String>,
        /// One JSON document on standard output instead of tables
        #[arg(long)]
        json: bool,
        /// Draw answers per second over the number of addresses, as SVG
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// Write docs/configuration.md anew from the table that parses the file
    Reference,
    /// Format, clippy, rustdoc, and the dependency rules where cargo-deny is there
    Lint {
        /// Get cargo-deny if it is missing, and insist on it
        #[arg(long)]
        deny: bool,
    },
    /// What `demo` and `test` let this program do as root
    #[command(hide = true)]
    AsRoot {
        #[command(subcommand)]
        part: RootPart,
    },
}

#[derive(Subcommand)]
enum RootPart {
    Demo { daemon: PathBuf },
    CleanUp,
}

fn main() -> ExitCode {
    if guest::init::is_meant() {
        return guest::init::run().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let Arguments { yes, task } = Arguments::parse();
    match perform(yes, task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(yes: bool, task: Task) -> anyhow::Result<ExitCode> {
    process::hand_back_target()?;
    match task {
        Task::Setup { lint } => {
            let sets: &[Set] =
                if lint { &[Set::Build, Set::Test, Set::Lint, Set::Deny] } else { &[Set::Build, Set::Test] };
            setup::ensure(sets, yes)?;
            println!("Everything is there. Next: cargo xtask demo, or cargo xtask test");
        }
        Task::Build { release } => {
            setup::ensure(&[Set::Build], yes)?;
            println!("{}", build::daemon(release)?.display());
        }
        Task::Run { arguments } => {
            setup::ensure(&[Set::Build], yes)?;
            return Err(process::become_root(&build::daemon(true)?, &arguments));
        }
        Task::Demo => {
            setup::ensure(&[Set::Build, Set::Demo], yes)?;
            let daemon = build::daemon(true)?;
            let own = std::env::current_exe().context("finding the path of this program")?;
            let arguments: [&OsStr; 3] = ["as-root".as_ref(), "demo".as_ref(), daemon.as_ref()];
            return Err(process::become_root(&own, arguments));
        }
        Task::Test { filter, kernel } => {
            let kernels = if kernel.is_empty() { vec![Choice::Here] } else { Choice::expand(&kernel) };
            let sets: &[Set] = match kernels.iter().all(|kernel| *kernel == Choice::Here) {
                true => &[Set::Build, Set::Test],
                false => &[Set::Build, Set::Test, Set::Guests],
            };
            setup::ensure(sets, yes)?;
            return test::run(filter.as_deref(), &kernels);
        }
        Task::Chaos { steps, seed } => {
            setup::ensure(&[Set::Build, Set::Test], yes)?;
            test::chaos(steps, seed)?;
        }
        Task::Verifier { kernel, accept } => {
            let mut kernels =
                Choice::expand(if kernel.is_empty() { &[Choice::Here, Choice::All] } else { &kernel });
            kernels.retain(|kernel| !kernel.is_of_nics());
            setup::ensure(&[Set::Build, Set::Test, Set::Guests], yes)?;
            return test::verifier(&kernels, accept);
        }
        Task::Bench { rows, json, plot } => {
            setup::ensure(&[Set::Build, Set::Test], yes)?;
            setup::ensure_peers(yes);
            let mut arguments: Vec<OsString> = rows.into_iter().map(OsString::from).collect();
            if json {
                arguments.push("--json".into());
            }
            if let Some(plot) = plot {
                arguments.extend(["--plot".into(), plot.into()]);
            }
            return Err(process::become_root(&build::benchmark()?, arguments));
        }
        Task::Reference => {
            setup::ensure(&[Set::Build], yes)?;
            let test = "config::tests::the_reference_is_up_to_date";
            let mut write = process::cargo();
            write
                .args(["test", "--package", "arpwarden", "--lib", test])
                .env("ARPWARDEN_WRITE_REFERENCE", "1");
            process::run(&mut write)?;
        }
        Task::Lint { deny } => {
            let sets: &[Set] =
                if deny { &[Set::Build, Set::Lint, Set::Deny] } else { &[Set::Build, Set::Lint] };
            setup::ensure(sets, yes)?;
            lint::run()?;
        }
        Task::AsRoot { part: RootPart::Demo { daemon } } => demo::run(&daemon)?,
        Task::AsRoot { part: RootPart::CleanUp } => leftovers::clean_up("awt-")?,
    }
    Ok(ExitCode::SUCCESS)
}
