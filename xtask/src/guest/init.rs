//! What this program does as the first process of a guest: it makes the place ready, runs the programs of the plan one
//! after the other, passes on what they say, and switches the machine off.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::{MODULES, PLAN, Said, Step};

/// The second serial line: the first one has the kernel's own words.
const REPORT: &str = "/dev/ttyS1";

/// As [`super::INIT`], by whoever is the first process.
pub(crate) fn is_meant() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == super::INIT)
}

/// Does it all. The machine is off afterwards; a kernel whose first process ends panics, which ends the guest too.
pub(crate) fn run() -> Result<()> {
    if let Err(error) = perform() {
        eprintln!("guest: {error:#}");
    }
    reboot(RebootMode::RB_POWER_OFF).context("switching the machine off")?;
    Ok(())
}

fn perform() -> Result<()> {
    for (what, kind, place) in [
        ("proc", "proc", "/proc"),
        ("sys", "sysfs", "/sys"),
        ("dev", "devtmpfs", "/dev"),
        ("tmp", "tmpfs", "/tmp"),
        ("run", "tmpfs", "/run"),
        ("bpf", "bpf", "/sys/fs/bpf"),
    ] {
        fs::create_dir_all(place)?;
        mount(Some(what), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {place}"))?;
    }
    fs::create_dir_all("/run/netns")?;
    for (link, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/stderr", "/proc/self/fd/2")] {
        symlink(target, link).with_context(|| format!("making {link}"))?;
    }
    let report = File::options().read(true).write(true).open(REPORT).context("opening the report's line")?;
    let mut line = tcgetattr(&report).context("asking for the line's settings")?;
    cfmakeraw(&mut line);
    tcsetattr(&report, SetArg::TCSANOW, &line).context("setting the line")?;
    let report = Report(Mutex::new(report));

    let modules = fs::read_to_string(MODULES).context("reading the list of modules")?;
    for line in modules.lines() {
        let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
        let file = File::open(format!("/modules/{name}.ko"))?;
        if let Err(error) = finit_module(&file, &CString::new(parameters)?, ModuleInitFlags::empty()) {
            report.say(&Said::Kernel(format!("module {name} did not load: {error}")));
        }
    }
    // Before the first program, because some wait for the machine to have run for a while.
    report.say(&Said::Kernel(format!(
        "Linux {}, {} modules",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        modules.lines().count()
    )));

    let plan = fs::read_to_string(PLAN).context("reading the plan")?;
    for line in plan.lines() {
        let step: Step = serde_json::from_str(line).context("reading a step")?;
        report.say(&Said::Begins(step.name()));
        let begun = Instant::now();
        let ended = perform_step(&step, &report).unwrap_or_else(|error| format!("{error:#}"));
        report.say(&Said::Ended { seconds: begun.elapsed().as_secs(), how: ended });
    }
    report.say(&Said::Done);
    Ok(())
}

/// Runs a program to its end and says how it ended: nothing if it succeeded.
fn perform_step(step: &Step, report: &Report) -> Result<String> {
    let mut command = Command::new(&step.program);
    command.args(&step.arguments).env_clear().envs(step.environment.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/tmp");
    let mut child = command.spawn().with_context(|| format!("starting {}", step.program))?;
    let (output, messages) = child.stdout.take().zip(child.stderr.take()).context("pipes of a program")?;
    thread::scope(|scope| {
        scope.spawn(|| report.pass_on(messages, Said::Message));
        report.pass_on(output, Said::Output);
    });
    let status = child.wait().context("waiting for a program")?;
    Ok(if status.success() { String::new() } else { status.to_string() })
}

/// The line to the host; whole lines only.
struct Report(Mutex<File>);

impl Report {
    fn say(&self, said: &Said) {
        let mut line = serde_json::to_string(said).unwrap_or_default();
        line.push('\n');
        let mut report = self.0.lock().unwrap_or_else(|broken| broken.into_inner());
        if let Err(error) = report.write_all(line.as_bytes()) {
            eprintln!("guest: writing the report: {error}");
        }
    }

    fn pass_on(&self, from: impl Read, kind: fn(String) -> Said) {
        // Bytes that are no text are shown as such, not the end of it.
        for line in BufReader::new(from).split(b'\n').map_while(|line| line.ok()) {
            self.say(&kind(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}
