//! Format, lints, documentation, dependency rules.

use anyhow::Result;

use crate::process;

/// Crates for the BPF target: they have no panic machinery of their own on the host, so they are linted apart.
const BPF_CRATES: [&str; 2] = ["arpwarden-ebpf", "arpwarden-reference-ebpf"];

/// Whether `cargo deny` can be called.
pub(crate) fn has_cargo_deny() -> bool {
    process::find("cargo-deny").is_some()
}

/// Runs all of it; the first failure ends it.
pub(crate) fn run() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;

    let mut clippy = process::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets"]);
    exclude_bpf(&mut clippy);
    process::run(clippy.args(["--", "--deny", "warnings"]))?;

    // The compiler for BPF often has no clippy of its own. The crates also compile for the host, where only
    // the unwinder is missing; the unstable features that they use are the ones BPF needs.
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--target-dir"]).arg(process::target_directory().join("lint-bpf"));
    for name in BPF_CRATES {
        clippy.args(["--package", name]);
    }
    clippy.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Cpanic=abort");
    process::run(clippy.args(["--bins", "--", "--deny", "warnings"]))?;

    let mut doc = process::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "--deny warnings");
    exclude_bpf(&mut doc);
    process::run(&mut doc)?;

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

fn exclude_bpf(command: &mut std::process::Command) {
    for name in BPF_CRATES {
        command.args(["--exclude", name]);
    }
}
