//! All tests: the unprivileged ones as the user, then the privileged ones as root; and those of other kernels in guests.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use anyhow::{Context as _, Result};

use crate::guest::suite::{self, Selection, Suite};
use crate::guest::{self, End, Guest, Said};
use crate::kernels::{self, Choice};
use crate::setup::Arping;
use crate::verifier::{self, Table};
use crate::{build, process};

/// The privileged tests mostly wait for the wire; more at once than this and they wait for the processor,
/// which the ones with a deadline of 10 ms would notice.
const TEST_THREADS: &str = "4";

/// Plays a story in which everything goes wrong, of so many steps and of this seed or a new one.
pub(crate) fn chaos(steps: usize, seed: Option<u64>) -> Result<()> {
    let program = build::test_program("chaos")?;
    let steps = steps.to_string();
    let seed = seed.map(|seed| seed.to_string());
    let mut environment: Vec<(&str, &OsStr)> =
        vec![("ARPWARDEN_CHAOS_STEPS", steps.as_ref()), ("RUST_BACKTRACE", "0".as_ref())];
    environment.extend(seed.as_ref().map(|seed| ("ARPWARDEN_CHAOS_SEED", seed.as_ref())));
    let mut command = process::as_root(&program, &environment)?;
    let story = "a_story_of_a_new_seed_breaks_no_promise";
    process::run(command.args(["--exact", story, "--nocapture", "--quiet"]))
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    skipped: Vec<String>,
    /// Test programs that ended badly without counting a failed test.
    broken: Vec<String>,
    figures: Table,
}

/// The program that runs in a guest.
#[derive(Default)]
struct Running {
    program: String,
    /// Failed tests of all guests when it began.
    failed_before: u32,
}

/// Runs the tests whose names contain `filter`, on these kernels. The exit code says whether all passed.
pub(crate) fn run(filter: Option<&str>, kernels: &[Choice]) -> Result<ExitCode> {
    let guests: Vec<Choice> = kernels.iter().copied().filter(|kernel| *kernel != Choice::Here).collect();
    let selection = filter.map_or(Selection::Chosen, Selection::Containing);
    // Built first: an error should not come after minutes of tests.
    let suite = if guests.is_empty() { None } else { Some(Suite::build(&guests, selection)?) };
    let mut tally = Tally::default();
    let cleaned = if kernels.contains(&Choice::Here) { run_here(filter, &mut tally)? } else { Ok(()) };
    if let Some(suite) = suite {
        run_guests(&guests, &suite, &mut tally);
    }
    tally.broken.extend(tally.figures.grown()?);

    println!();
    tally.tell();
    cleaned.context("cleaning up behind tests that were killed")?;
    Ok(tally.verdict())
}

/// Shows what the verifiers of these kernels make of the programs, and compares that with what was accepted, or accepts
/// it.
pub(crate) fn verifier(kernels: &[Choice], accept: bool) -> Result<ExitCode> {
    let (program, test) = verifier::TEST;
    let guests: Vec<Choice> = kernels.iter().copied().filter(|kernel| *kernel != Choice::Here).collect();
    let suite = Suite::build(&guests, Selection::Only { program, test })?;
    let mut tally = Tally::default();
    if kernels.contains(&Choice::Here) {
        let mut command = process::as_root(build::test_program(program)?, &[])?;
        tally.add(command.args(["--exact", test]))?;
    }
    run_guests(&guests, &suite, &mut tally);
    println!("\n{}", tally.figures.shown());
    if accept && tally.failed == 0 && tally.broken.is_empty() {
        std::mem::take(&mut tally.figures).accept()?;
    } else {
        tally.broken.extend(tally.figures.grown()?);
    }
    tally.tell();
    Ok(tally.verdict())
}

/// Runs the whole suite on the running kernel; gives whether what tests that were killed have left could be removed.
fn run_here(filter: Option<&str>, tally: &mut Tally) -> Result<Result<()>> {
    // All builds first: an error in any of them should not come after minutes of tests.
    let omitting = build::daemon_that_omits()?;
    let programs = build::tests()?;
    let iputils = Arping::Iputils.find().context("the arping of iputils is gone: cargo xtask setup")?;
    let habets = Arping::Habets.find().context("the other arping is gone: cargo xtask setup")?;
    let environment: [(&str, &OsStr); 4] = [
        ("ARPWARDEN_OMITTING", omitting.as_os_str()),
        ("ARPWARDEN_IPUTILS_ARPING", iputils.as_os_str()),
        ("ARPWARDEN_HABETS_ARPING", habets.as_os_str()),
        ("RUST_BACKTRACE", "1".as_ref()),
    ];
    let (privileged, unprivileged): (Vec<_>, Vec<_>) =
        programs.iter().partition(|program| program.privileged);
    for program in unprivileged {
        tally.add(process::as_user(&program.path).current_dir(&program.folder).args(filter))?;
    }
    tally.add(build::documentation_tests().args(filter))?;
    for program in privileged {
        let mut command = process::as_root(&program.path, &environment)?;
        tally
            .add(command.current_dir(&program.folder).args(["--test-threads", TEST_THREADS]).args(filter))?;
    }
    let own = std::env::current_exe().context("finding the path of this program")?;
    Ok(process::check(process::as_root(own, &[])?.args(["as-root", "clean-up"])))
}

/// How many guests run at once; each has two processors.
const AT_ONCE: usize = 2;
/// How long a guest may take, in seconds: what the slowest took beside another one on two cores with other work to do, and a third more.
const LIMIT: u32 = 1_800;

/// Gets the kernels, boots them and counts what their tests say. A kernel that can't be had is skipped, and said so.
fn run_guests(guests: &[Choice], suite: &Suite, tally: &mut Tally) {
    let mut kernels = VecDeque::new();
    for choice in guests {
        match kernels::get(*choice) {
            Ok(kernel) => kernels.push_back((*choice, kernel)),
            Err(error) => {
                let line = format!("skipped: no kernel {}: {error:#}", choice.name());
                eprintln!("{line}");
                tally.skipped.push(line);
            }
        }
    }
    let (kernels, tally) = (Mutex::new(kernels), Mutex::new(tally));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((choice, kernel)) = next(&kernels) {
                    let name = kernel.name;
                    let steps = suite.steps(choice);
                    let (content, network) = (&suite.content, suite::network(choice));
                    let guest = Guest { kernel: &kernel, content, steps, network, limit: LIMIT };
                    let mut running = Running::default();
                    let end = guest::run(&guest, |said| locked(&tally).hear(name, &mut running, said));
                    let broken = match end {
                        Ok(End::Done) => continue,
                        Ok(End::Broken(why)) => why,
                        Err(error) => format!("{error:#}"),
                    };
                    locked(&tally).broken.push(format!("the guest {name}, at {}: {broken}", running.program));
                }
            });
        }
    });
}

fn next<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    locked(queue).pop_front()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

impl Tally {
    /// Says what was skipped and broken, and how much there was of everything.
    fn tell(&self) {
        for reason in &self.skipped {
            println!("{reason}");
        }
        for what in &self.broken {
            println!("did not end as it should: {what}");
        }
        let Self { passed, failed, ignored, skipped, broken, .. } = self;
        println!(
            "{passed} passed, {} failed, {} skipped",
            *failed as usize + broken.len(),
            *ignored as usize + skipped.len()
        );
    }

    fn verdict(&self) -> ExitCode {
        let good = self.failed == 0 && self.broken.is_empty() && self.passed > 0;
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Runs test programs, passes on what they print and counts their results.
    fn add(&mut self, command: &mut Command) -> Result<()> {
        eprintln!("$ {}", process::shown(command));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", process::shown(command)))?;
        let (output, messages) =
            child.stdout.take().zip(child.stderr.take()).context("pipes of a test program")?;
        let messages = thread::spawn(move || {
            let (mut skipped, mut figures) = (Vec::new(), Table::default());
            for line in BufReader::new(messages).lines().map_while(|line| line.ok()) {
                if figures.take(Choice::Here.name(), &line) {
                    continue;
                }
                eprintln!("{line}");
                if line.starts_with("skipped: ") {
                    skipped.push(line);
                }
            }
            (skipped, figures)
        });
        let failed_before = self.failed;
        for line in BufReader::new(output).lines() {
            let line = line.context("reading what a test program prints")?;
            println!("{line}");
            self.count(&line);
        }
        let (skipped, figures) = messages.join().unwrap_or_default();
        self.skipped.extend(skipped);
        self.figures.extend(figures);
        let status = child.wait().context("waiting for a test program")?;
        if !status.success() && self.failed == failed_before {
            self.broken.push(format!("{} ({status})", process::shown(command)));
        }
        Ok(())
    }

    /// Shows what a guest tells, and counts its results.
    fn hear(&mut self, guest: &str, running: &mut Running, said: Said) {
        match said {
            Said::Kernel(text) => eprintln!("[{guest}] {text}"),
            Said::Begins(program) => {
                eprintln!("[{guest}] $ {program}");
                *running = Running { program, failed_before: self.failed };
            }
            Said::Output(line) => {
                println!("[{guest}] {line}");
                self.count(&line);
            }
            Said::Message(line) if self.figures.take(guest, &line) => {}
            Said::Message(line) => {
                eprintln!("[{guest}] {line}");
                if let Some(reason) = line.strip_prefix("skipped: ") {
                    self.skipped.push(format!("skipped: on {guest}: {reason}"));
                }
            }
            Said::Ended { seconds, how } => {
                let Running { program, failed_before } = running;
                eprintln!("[{guest}] {program} took {seconds} s");
                if !how.is_empty() && self.failed == *failed_before {
                    self.broken.push(format!("{program} on {guest} ({how})"));
                }
            }
            Said::Done => {}
        }
    }

    /// Counts a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn count(&mut self, line: &str) {
        let Some(results) = line.strip_prefix("test result: ") else { return };
        let number = |name: &str| {
            let (before, _) = results.split_once(name)?;
            before.rsplit(' ').next()?.parse::<u32>().ok()
        };
        self.passed += number(" passed").unwrap_or(0);
        self.failed += number(" failed").unwrap_or(0);
        self.ignored += number(" ignored").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn result_lines_of_several_programs_add_up() {
        let mut tally = Tally::default();
        tally.count("running 4 tests");
        tally.count(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        tally.count("test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (13, 2, 1));
    }
}
