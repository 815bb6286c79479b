//! Which tests run in guests. Not all of them: the processor that QEMU plays is some ten times slower than a real one,
//! so what has a bound in milliseconds stays on the running kernel, and what is the same code on every kernel is tried by
//! one test of many.

use anyhow::{Context as _, Result};

use super::{Content, Network, Step};
use crate::kernels::Choice;
use crate::setup::Arping;
use crate::{build, process};

/// A test program, and what it is told: filters by name.
struct Part {
    program: &'static str,
    filters: &'static [&'static str],
}

/// A program with all its tests.
const fn all(program: &'static str) -> Part {
    Part { program, filters: &[] }
}

/// Tests of a program.
const fn some(program: &'static str, filters: &'static [&'static str]) -> Part {
    Part { program, filters }
}

/// On every kernel.
const KERNEL: [Part; 9] = [
    all("kernels"),
    some(
        "verdict_in_kernel",
        &["the_program_does_with", "the_program_for_tc", "the_programs_for_older", "the_guard_keeps_in"],
    ),
    some("guard", &["nothing_leaves_past_the_lease", "nothing_leaves_while_a_frozen_daemon_yields"]),
    some("adoption", &["keep_leaves_everything", "a_restart_under_a_flood", "unload_after_a_kill"]),
    some("vlan", &["tagged_claims_are_no_event"]),
    // A short one: see the environment below.
    some("chaos", &["a_story_of_a_new_seed"]),
    some(
        "vlan_devices",
        &["an_address_is_registered_on_its_device", "the_same_address_in_two_vlans", "outlives_its_daemon"],
    ),
    // The others want native mode on a bond, which is Linux 5.15's.
    some("bond", &["auto_takes_tc", "while_the_bond_switches_in_tc"]),
    all("team"),
];

/// On the newest one, in place of what is chosen of these programs: on the running kernel they are skipped where it lacks
/// the devices.
const NEWEST: [Part; 2] = [all("vlan_devices"), all("bond")];

/// With the cards.
const NICS: [Part; 1] = [all("nics")];

/// What tests and daemons in guests find in their environment, beside the paths of programs.
const ENVIRONMENT: [(&str, &str); 7] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("RUST_BACKTRACE", "1"),
    // The verifier has a third of the work with a program that says less, and that is most of what a start of the daemon
    // takes here. That the program of each log level loads is a test of its own.
    ("RUST_LOG", "warn"),
    // Of so many golden frames one is tried: all of them take minutes. A prime, so that it meets each kind of frame, each
    // state and each kind of tags.
    ("ARPWARDEN_GOLDEN_SHARE", "61"),
    ("ARPWARDEN_CHAOS_STEPS", "12"),
    // The same story on every kernel.
    ("ARPWARDEN_CHAOS_SEED", "1"),
];

/// Programs of others that the tests call.
const TOOLS: [&str; 13] = [
    "ip", "bridge", "tc", "ethtool", "tcpdump", "ping", "nsenter", "unshare", "setpriv", "sh", "sleep",
    "sysctl", "cat",
];

/// Which of the tests.
#[derive(Clone, Copy)]
pub(crate) enum Selection<'a> {
    /// Those that are chosen for guests.
    Chosen,
    /// Of the programs that are, all whose names contain this.
    Containing(&'a str),
    /// One of one program.
    Only { program: &'static str, test: &'static str },
}

/// Where the daemon is in the guest; the tests are in a folder beside it, as they are where Cargo builds them.
const DAEMON: &str = "/arpwarden/arpwarden";

/// The tests, built, and what they need.
pub(crate) struct Suite<'a> {
    pub(crate) content: Content,
    selection: Selection<'a>,
    /// As they are in the repository: one that does not exist is no step.
    names: Vec<&'static str>,
    environment: Vec<(String, String)>,
}

impl<'a> Suite<'a> {
    /// Builds what these kernels' tests need.
    pub(crate) fn build(kernels: &[Choice], selection: Selection<'a>) -> Result<Self> {
        let mut names: Vec<_> =
            kernels.iter().flat_map(|kernel| parts(*kernel)).map(|part| part.program).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| match selection {
            Selection::Only { program, .. } => *name == program,
            Selection::Chosen | Selection::Containing(_) => build::has_test_program(name),
        });
        let built = build::test_programs(names.iter().copied())?;
        let mut content = Content::new();
        content.program(DAEMON, &built.daemon)?;
        for (name, path) in &built.tests {
            content.program(&in_guest(name), path)?;
        }
        for name in TOOLS {
            content
                .tool(process::find(name).with_context(|| format!("{name} is not here: cargo xtask setup"))?);
        }
        let mut environment = ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        for (name, arping) in
            [("ARPWARDEN_IPUTILS_ARPING", Arping::Iputils), ("ARPWARDEN_HABETS_ARPING", Arping::Habets)]
        {
            let path = arping.find().context("an arping is gone: cargo xtask setup")?;
            environment.push((name.into(), path.canonicalize()?.display().to_string()));
            content.tool(path.canonicalize()?);
        }
        Ok(Self { content, selection, names, environment })
    }

    /// What is run on a kernel.
    pub(crate) fn steps(&self, kernel: Choice) -> Vec<Step> {
        let parts = parts(kernel).into_iter().filter(|part| self.names.contains(&part.program));
        let step = |part: &Part| {
            // One after the other: at once they would wait for the processor, and there are bounds to keep.
            let mut arguments = vec!["--test-threads", "1"];
            match self.selection {
                Selection::Chosen => arguments.extend(part.filters),
                Selection::Containing(filter) => arguments.push(filter),
                Selection::Only { test, .. } => arguments.extend(["--exact", test]),
            }
            Step {
                program: in_guest(part.program),
                arguments: arguments.into_iter().map(str::to_owned).collect(),
                environment: self.environment.clone(),
            }
        };
        parts.map(step).collect()
    }
}

/// The cards of a kernel's guest.
pub(crate) fn network(kernel: Choice) -> Network {
    if kernel.is_of_nics() { Network::Kinds } else { Network::Pair }
}

fn parts(kernel: Choice) -> Vec<&'static Part> {
    if kernel.is_of_nics() {
        return NICS.iter().collect();
    }
    let further: &[Part] = if kernel == Choice::New { &NEWEST } else { &[] };
    let is_further = |part: &&Part| further.iter().any(|other| other.program == part.program);
    KERNEL.iter().filter(|part| !is_further(part)).chain(further).collect()
}

fn in_guest(name: &str) -> String {
    format!("/arpwarden/deps/{name}")
}
