//! Format, lints, documentation, dependency rules.

use anyhow::Result;

use crate::process;

/// The crate for the BPF target: it cannot unwind on the host, so it is linted apart.
const BPF_CRATE: &str = "arpwarden-ebpf";

/// Whether `cargo deny` can be called.
pub(crate) fn has_cargo_deny() -> bool {
    process::find("cargo-deny").is_some()
}

/// Runs all of it; the first failure ends it.
pub(crate) fn run() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;

    let workspace = ["--workspace", "--exclude", BPF_CRATE];
    let mut clippy = process::cargo();
    clippy.arg("clippy").args(workspace).args(["--all-targets", "--", "--deny", "warnings"]);
    process::run(&mut clippy)?;

    // By the host's clippy: the compiler for BPF often has none of its own. In a target directory of its own,
    // because the flag would have everything else compiled anew.
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--package", BPF_CRATE, "--bins", "--target-dir"]);
    clippy.arg(process::target_directory().join("lint-bpf")).args(["--", "--deny", "warnings"]);
    process::run(clippy.env("RUSTFLAGS", "-Cpanic=abort"))?;

    // For developers, so private items are shown, and links to them lead somewhere.
    let mut doc = process::cargo();
    doc.arg("doc").args(workspace).args(["--no-deps", "--document-private-items"]);
    process::run(doc.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links"))?;

    if has_cargo_deny() {
        // Known vulnerabilities are left out: their database is not in a package registry.
        process::run(process::cargo().args([
            "deny",
            "--workspace",
            "check",
            "--hide-inclusion-graph",
            "bans",
            "licenses",
            "sources",
        ]))?;
    } else {
        eprintln!(
            "cargo-deny is not there, so licences and sources were not checked: cargo xtask lint --deny gets it"
        );
    }
    Ok(())
}
