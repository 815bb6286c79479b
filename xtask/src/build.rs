//! Builds, and where the results are: Cargo says it, nothing is guessed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;

/// Builds the daemon and returns its path.
pub(crate) fn daemon(release: bool) -> Result<PathBuf> {
    let mut cargo = process::cargo();
    cargo.args(["build", "--package", "arpwarden", "--bin", "arpwarden"]);
    if release {
        cargo.arg("--release");
    }
    only(executables(&mut cargo)?, "daemon")
}

/// All packages but the one for the BPF target. Tests are built and run with this one selection, because Cargo
/// compiles a dependency anew for each set of features that a selection of packages asks of it.
const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "arpwarden-ebpf"];
/// The package whose tests need root.
const PRIVILEGED: &str = "tests";

/// A program with tests.
pub(crate) struct TestProgram {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its package's folder, where Cargo would run it.
    pub(crate) folder: PathBuf,
    /// Whether it is to be run as root.
    pub(crate) privileged: bool,
}

/// Builds all tests, and the daemon beside the privileged ones, which start it.
pub(crate) fn tests() -> Result<Vec<TestProgram>> {
    let mut daemon = process::cargo();
    executables(daemon.arg("build").args(PACKAGES).args(["--bin", "arpwarden"]))?;
    let mut tests = process::cargo();
    let built = executables(tests.arg("test").args(PACKAGES).arg("--no-run"))?;
    let tests = built.into_iter().filter(|built| built.test).map(|Executable { path, folder, .. }| {
        let privileged = folder.ends_with(PRIVILEGED);
        TestProgram { path, folder, privileged }
    });
    let mut tests: Vec<_> = tests.collect();
    // Cargo names them as they get ready, which is another order each time.
    tests.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(tests)
}

/// Builds the daemon that lets the environment take one of its safeties away, for the tests of the checker, and returns the
/// path of a copy: the next build puts the shipped one in its place. With the selection of all other builds, so that
/// nothing but the daemon itself is compiled for it.
pub(crate) fn daemon_that_omits() -> Result<PathBuf> {
    let mut cargo = process::cargo();
    cargo.arg("build").args(PACKAGES).args(["--bin", "arpwarden", "--features", "arpwarden/omit"]);
    let built = only(executables(&mut cargo)?, "daemon")?;
    let folder = process::target_directory().join("omit");
    // As the user, who has to be able to remove it.
    process::check(process::as_user("mkdir").arg("-p").arg(&folder))?;
    let copy = folder.join("arpwarden");
    process::check(process::as_user("cp").arg("--force").args([&built, &copy]))?;
    Ok(copy)
}

/// The daemon and some test programs that need root.
pub(crate) struct Programs {
    pub(crate) daemon: PathBuf,
    /// By name.
    pub(crate) tests: BTreeMap<String, PathBuf>,
}

/// Builds the test programs with these names, and the daemon beside them.
pub(crate) fn test_programs<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Programs> {
    let mut daemon = process::cargo();
    let daemon =
        only(executables(daemon.arg("build").args(PACKAGES).args(["--bin", "arpwarden"]))?, "daemon")?;
    let mut tests = process::cargo();
    tests.arg("test").args(PACKAGES).arg("--no-run");
    for name in names {
        tests.args(["--test", name]);
    }
    let tests = executables(&mut tests)?.into_iter().map(|built| (built.name, built.path)).collect();
    Ok(Programs { daemon, tests })
}

/// Builds the test program `name`, and the daemon beside it, and returns its path.
pub(crate) fn test_program(name: &str) -> Result<PathBuf> {
    let Programs { mut tests, .. } = test_programs([name])?;
    tests.remove(name).with_context(|| format!("cargo named no test program {name}"))
}

/// Whether there is a test program of this name.
pub(crate) fn has_test_program(name: &str) -> bool {
    process::repository().join(PRIVILEGED).join("tests").join(name).with_extension("rs").exists()
}

/// The tests in documentation: Cargo alone knows how to run them.
pub(crate) fn documentation_tests() -> Command {
    let mut cargo = process::cargo();
    cargo.args(["test", "--doc"]).args(PACKAGES);
    cargo
}

/// Builds the benchmark, and the daemon beside it, and returns the benchmark's path.
pub(crate) fn benchmark() -> Result<PathBuf> {
    daemon(true)?;
    let mut cargo = process::cargo();
    cargo.args(["bench", "--package", "arpwarden-tests", "--bench", "figures", "--no-run"]);
    only(executables(&mut cargo)?, "benchmark")
}

/// An executable that Cargo has built.
struct Executable {
    name: String,
    path: PathBuf,
    folder: PathBuf,
    /// Whether it is built to be tested, with the harness of tests inside.
    test: bool,
}

fn executables(cargo: &mut Command) -> Result<Vec<Executable>> {
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let build = cargo.spawn().context("starting cargo")?.wait_with_output().context("waiting for cargo")?;
    if !build.status.success() {
        bail!("`{}` failed: {}", process::shown(cargo), build.status);
    }
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&build.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if let Some(path) = message["executable"].as_str()
            && let Some(folder) = message["manifest_path"].as_str().and_then(|path| Path::new(path).parent())
        {
            let test = message["profile"]["test"].as_bool() == Some(true);
            let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
            found.push(Executable { name, path: path.into(), folder: folder.into(), test });
        }
    }
    Ok(found)
}

fn only(mut executables: Vec<Executable>, what: &str) -> Result<PathBuf> {
    let count = executables.len();
    match executables.pop() {
        Some(Executable { path, .. }) if count == 1 => Ok(path),
        Some(_) | None => bail!("cargo named {count} executables where the {what} alone was expected"),
    }
}
