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
const KERNEL: [Part; 7] = [
    all("kernels"),
    some("verdict_in_kernel", &["the_program_does_with_each_golden_frame", "the_guard_keeps_in"]),
    some("guard", &["nothing_"]),
    some("adoption", &["killed_in_every_state", "a_restart_under_a_flood", "unload_"]),
    all("vlan"),
    all("vlan_devices"),
    all("bond"),
];

/// With the cards.
const NICS: [Part; 1] = [all("nics")];

/// Programs of others that the tests call.
const TOOLS: [&str; 12] = [
    "ip", "tc", "ethtool", "tcpdump", "ping", "nsenter", "unshare", "setpriv", "sh", "sleep", "sysctl", "cat",
];

/// Where the daemon is in the guest; the tests are in a folder beside it, as they are where Cargo builds them.
const DAEMON: &str = "/arpwarden/arpwarden";

/// The tests, built, and what they need.
pub(crate) struct Suite {
    pub(crate) content: Content,
    /// As they are in the repository: one that does not exist is no step.
    names: Vec<&'static str>,
    environment: Vec<(String, String)>,
}

impl Suite {
    /// Builds what these kernels' tests need.
    pub(crate) fn build(kernels: &[Choice]) -> Result<Self> {
        let mut names: Vec<_> =
            kernels.iter().flat_map(|kernel| parts(*kernel)).map(|part| part.program).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| build::has_test_program(name));
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
        let mut environment: Vec<(String, String)> = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("RUST_BACKTRACE", "1"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        for (name, arping) in
            [("ARPWARDEN_IPUTILS_ARPING", Arping::Iputils), ("ARPWARDEN_HABETS_ARPING", Arping::Habets)]
        {
            let path = arping.find().context("an arping is gone: cargo xtask setup")?;
            environment.push((name.into(), path.canonicalize()?.display().to_string()));
            content.tool(path.canonicalize()?);
        }
        Ok(Self { content, names, environment })
    }

    /// What is run on a kernel; with `filter`, every test that contains it of the same programs.
    pub(crate) fn steps(&self, kernel: Choice, filter: Option<&str>) -> Vec<Step> {
        let parts = parts(kernel).iter().filter(|part| self.names.contains(&part.program));
        parts
            .map(|part| {
                let filters = filter.map_or_else(|| part.filters.to_vec(), |filter| vec![filter]);
                // One after the other: at once they would wait for the processor, and there are bounds to keep.
                let arguments = ["--test-threads", "1"].into_iter().chain(filters);
                Step {
                    program: in_guest(part.program),
                    arguments: arguments.map(str::to_owned).collect(),
                    environment: self.environment.clone(),
                }
            })
            .collect()
    }
}

/// The cards of a kernel's guest.
pub(crate) fn network(kernel: Choice) -> Network {
    if kernel == Choice::Nics { Network::Kinds } else { Network::Pair }
}

fn parts(kernel: Choice) -> &'static [Part] {
    if kernel == Choice::Nics { &NICS } else { &KERNEL }
}

fn in_guest(name: &str) -> String {
    format!("/arpwarden/deps/{name}")
}
