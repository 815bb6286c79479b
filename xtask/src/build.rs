//! Builds, and where the results are: Cargo says it, nothing is guessed.

use std::path::PathBuf;
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
    executables(&mut cargo, &["bin"])?
        .pop()
        .context("building the daemon gave no executable: is it still named `arpwarden`?")
}

/// Builds the privileged tests and returns their executables.
pub(crate) fn privileged_tests() -> Result<Vec<PathBuf>> {
    let mut cargo = process::cargo();
    cargo.args(["test", "--package", "arpwarden-tests", "--lib", "--tests", "--no-run"]);
    executables(&mut cargo, &["lib", "test"])
}

/// Builds the benchmark, and the daemon beside it, and returns the benchmark's path.
pub(crate) fn benchmark() -> Result<PathBuf> {
    daemon(true)?;
    let mut cargo = process::cargo();
    cargo.args(["bench", "--package", "arpwarden-tests", "--bench", "figures", "--no-run"]);
    executables(&mut cargo, &["bench"])?
        .pop()
        .context("building arpwarden-tests gave no benchmark named `figures`")
}

/// The executables of targets of these kinds.
fn executables(cargo: &mut Command, kinds: &[&str]) -> Result<Vec<PathBuf>> {
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let build = cargo.spawn().context("starting cargo")?.wait_with_output().context("waiting for cargo")?;
    if !build.status.success() {
        bail!("`{}` failed: {}", process::shown(cargo), build.status);
    }
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&build.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if let Some(path) = message["executable"].as_str()
            && message["target"]["kind"][0].as_str().is_some_and(|kind| kinds.contains(&kind))
        {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}
