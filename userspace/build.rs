//! Builds the BPF program and puts it into `OUT_DIR` as `arpwarden-ebpf`, for `io::bpf` to embed.
//!
//! This starts cargo itself where `aya_build::build_ebpf` would do for most: that one finds compilers through
//! rustup alone, expects `RUSTC_BOOTSTRAP` in the environment of whoever calls cargo, and shows each line of
//! the inner build as a warning. Here a distribution's compiler will do, and plain `cargo build` needs no
//! environment.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail};

const PROGRAM: &str = "arpwarden-ebpf";
/// What gets the compiler and the linker.
const REMEDY: &str = "run `cargo xtask setup`";
/// Name under which `cargo xtask setup` makes a compiler known to rustup.
const OWN_TOOLCHAIN: &str = "arpwarden-bpf";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("userspace/ has no parent folder")?;
    for path in ["ebpf", "common/Cargo.toml", "common/src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }

    let linker = bpf_linker()?;
    let rustc = compiler()?;
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "little" => "bpfel-unknown-none",
        _ => "bpfeb-unknown-none",
    };
    // A target directory of its own: cargo locks the one that the outer build is using.
    let target_dir = out_dir.join("bpf");
    // Which kernel structures aya-ebpf's bindings describe. No BTF of the program: the kernel refuses what LLVM
    // writes for enums that share bytes with a field ("Invalid member bits_offset"), and no map needs it.
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let mut flags = format!("--cfg=bpf_target_arch=\"{arch}\"");
    // Where the kernel has HAVE_EFFICIENT_UNALIGNED_ACCESS its verifier lets a program load four bytes of a frame at once; LLVM
    // 22 does so if told that it may, and takes a quarter fewer instructions for a request.
    if matches!(arch.as_str(), "x86_64" | "aarch64" | "powerpc64" | "s390x") {
        flags += "\u{1f}-Clink-arg=--cpu-features=+allows-misaligned-mem-access";
    }

    let mut build = Command::new(rustc.with_file_name("cargo"));
    build
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--package", PROGRAM, "--bins", "-Zbuild-std=core"])
        .args(["--target", target, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC", &rustc)
        // `-Zbuild-std` is not stable; no stable compiler builds for BPF without.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .env("CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER", &linker)
        .env("ARPWARDEN_BPF_LINKER", &linker);
    // Set by cargo and clippy for the outer build; they name another compiler.
    for variable in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "CARGO_BUILD_TARGET"] {
        build.env_remove(variable);
    }
    // Whatever the daemon is built for: inlined and optimised otherwise the program is one that no verifier takes.
    for (variable, _) in env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"CARGO_PROFILE_") || variable == "CARGO_INCREMENTAL" {
            build.env_remove(variable);
        }
    }
    let output = build.output().with_context(|| format!("starting {build:?}, to build {PROGRAM}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("building {PROGRAM} with {}: {}\n{messages}", rustc.display(), output.status);
    }
    for line in messages.lines() {
        println!("cargo:warning={line}");
    }
    let object = target_dir.join(target).join("release").join(PROGRAM);
    let place = out_dir.join(PROGRAM);
    fs::copy(&object, &place)
        .with_context(|| format!("copying {} to {}", object.display(), place.display()))?;
    Ok(())
}

/// The linker: on the path, or where `cargo install` puts it.
fn bpf_linker() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = [("CARGO_HOME", "bin"), ("HOME", ".cargo/bin")]
        .into_iter()
        .filter_map(|(variable, folder)| Some(PathBuf::from(env::var_os(variable)?).join(folder)));
    env::split_paths(&path)
        .chain(installed)
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
        .with_context(|| {
            format!("bpf-linker, which links {PROGRAM}, is neither on the path nor in ~/.cargo/bin: {REMEDY}")
        })
}

/// A compiler that comes with the source of `core` and is not too old: the one that `cargo xtask setup` chose,
/// else the distribution's, else rustup's nightly.
fn compiler() -> Result<PathBuf> {
    let candidates =
        [rustup_compiler(OWN_TOOLCHAIN), Ok(PathBuf::from("/usr/bin/rustc")), rustup_compiler("nightly")];
    let mut reasons = String::new();
    for candidate in candidates {
        match candidate.and_then(|rustc| usable(&rustc).map(|()| rustc)) {
            Ok(rustc) => return Ok(rustc),
            Err(reason) => reasons += &format!("\n- {reason:#}"),
        }
    }
    bail!("no Rust compiler here can build {PROGRAM}, which needs the source of `core`: {REMEDY}{reasons}")
}

/// The compiler of one of rustup's toolchains.
fn rustup_compiler(toolchain: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(said_by("rustup", ["which", "--toolchain", toolchain, "rustc"])?))
}

fn usable(rustc: &Path) -> Result<()> {
    let version = said_by(rustc, ["--version"])?;
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    if minor(version.trim_start_matches("rustc ")) < minor(oldest) {
        bail!("{} is {version}, older than {oldest}", rustc.display());
    }
    let core = Path::new(&said_by(rustc, ["--print", "sysroot"])?).join("lib/rustlib/src/rust/library/core");
    if !core.is_dir() {
        bail!("{} lacks {}", rustc.display(), core.display());
    }
    Ok(())
}

/// The second number of a version, or 0: the first has been 1 since 2015.
fn minor(version: &str) -> u32 {
    version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0)
}

/// What a command prints, which has to succeed.
fn said_by<const N: usize>(program: impl AsRef<OsStr>, arguments: [&str; N]) -> Result<String> {
    let program = program.as_ref();
    let name = program.display();
    let Output { status, stdout, stderr } =
        Command::new(program).args(arguments).output().with_context(|| format!("starting {name}"))?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        bail!("{name} {}: {}", arguments.join(" "), stderr.lines().next().unwrap_or_default());
    }
    Ok(String::from_utf8(stdout).with_context(|| format!("reading what {name} printed"))?.trim().into())
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name}, which cargo sets for a build script"))
}
