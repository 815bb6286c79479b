//! All tests: the unprivileged ones as the user, then the privileged ones as root.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context as _, Result};

use crate::setup::Arping;
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
}

/// Runs the tests whose names contain `filter`. The exit code says whether all passed.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
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
    let mut tally = Tally::default();
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
    let cleaned = process::check(process::as_root(own, &[])?.args(["as-root", "clean-up"]));

    println!();
    for reason in &tally.skipped {
        println!("{reason}");
    }
    for what in &tally.broken {
        println!("did not end as a test program should: {what}");
    }
    let Tally { passed, failed, ignored, skipped, broken } = &tally;
    println!(
        "{passed} passed, {} failed, {} skipped",
        *failed as usize + broken.len(),
        *ignored as usize + skipped.len()
    );
    cleaned.context("cleaning up behind tests that were killed")?;
    Ok(if *failed == 0 && broken.is_empty() && *passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Tally {
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
            let mut skipped = Vec::new();
            for line in BufReader::new(messages).lines().map_while(|line| line.ok()) {
                eprintln!("{line}");
                if line.starts_with("skipped: ") {
                    skipped.push(line);
                }
            }
            skipped
        });
        let failed_before = self.failed;
        for line in BufReader::new(output).lines() {
            let line = line.context("reading what a test program prints")?;
            println!("{line}");
            self.count(&line);
        }
        self.skipped.extend(messages.join().unwrap_or_default());
        let status = child.wait().context("waiting for a test program")?;
        if !status.success() && self.failed == failed_before {
            self.broken.push(format!("{} ({status})", process::shown(command)));
        }
        Ok(())
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
