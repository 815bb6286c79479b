//! What this machine must have, what it lacks, and how that is got: what is there is used, then come the
//! distribution's packages, then rustup and Cargo.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::kernels::Lists;
use crate::process;

/// The bpf-linker that goes with LLVM 22 and 23; it must be at least as new as the compiler's LLVM.
const LINKER: (&str, [u32; 2]) = ("0.13.0", [0, 13]);
/// Oldest kernel that the program loads on.
const KERNEL: [u32; 2] = [5, 10];

/// What a task needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// Compiling the daemon and the program inside it.
    Build,
    /// The demonstration: network namespaces, and the plain tools that play the other hosts.
    Demo,
    /// Tests and benchmarks: the demonstration's, and tools that check us from outside.
    Test,
    /// What the program is compared with: programs of others that do part of the same work.
    Bench,
    /// Other kernels: QEMU, and what makes a guest of them.
    Guests,
    /// Format and lints.
    Lint,
    /// The dependency rules.
    Deny,
}

/// A thing that is missing.
struct Missing {
    what: &'static str,
    why: &'static str,
    cure: Cure,
}

/// How a missing thing is got.
enum Cure {
    BpfCompiler,
    BpfLinker,
    Packages(&'static [&'static str]),
    UnpackedArping(Arping),
    UnpackedPeer(Peer),
    RustupComponent(&'static str),
    CargoDeny,
    KernelModules,
    Qemu,
    /// Nothing here can get it: the text says what a person can do.
    ByHand(&'static str),
}

/// Debian's two programs of that name; their packages exclude each other.
#[derive(Clone, Copy)]
pub(crate) enum Arping {
    Iputils,
    Habets,
}

impl Arping {
    fn package(self) -> &'static str {
        match self {
            Self::Iputils => "iputils-arping",
            Self::Habets => "arping",
        }
    }

    /// The folder that `setup` unpacks it into when it is not the installed one. In the repository whatever
    /// the target directory, because tests started by hand look there.
    fn folder(self) -> PathBuf {
        process::repository().join("target/tools").join(match self {
            Self::Iputils => "arping-iputils",
            Self::Habets => "arping-habets",
        })
    }

    fn unpacked(self) -> PathBuf {
        self.folder().join(match self {
            Self::Iputils => "usr/bin/arping",
            Self::Habets => "usr/sbin/arping",
        })
    }

    /// The executable, installed or unpacked, that says of itself that it is this one.
    pub(crate) fn find(self) -> Option<PathBuf> {
        [self.unpacked(), "/usr/bin/arping".into(), "/usr/sbin/arping".into()]
            .into_iter()
            .find(|path| path.is_file() && self.is(path))
    }

    fn is(self, path: &Path) -> bool {
        // Habets' version flag ends with an error in some versions, so only the text counts.
        let Ok(output) = process::as_user(path).arg("-V").output() else { return false };
        let iputils = String::from_utf8_lossy(&output.stdout).contains("iputils");
        match self {
            Self::Iputils => output.status.success() && iputils,
            Self::Habets => !iputils && is_loadable(path),
        }
    }
}

/// Whether the libraries of an executable are there (a program unpacked from a package brings none along).
fn is_loadable(path: &Path) -> bool {
    process::output(process::as_user("ldd").arg(path)).is_ok_and(|libraries| !libraries.contains("not found"))
}

/// Programs that hold or watch addresses. Their packages start them as services, so they are unpacked, never installed.
#[derive(Clone, Copy)]
enum Peer {
    Keepalived,
    Arpalert,
}

impl Peer {
    const ALL: [Self; 2] = [Self::Keepalived, Self::Arpalert];

    /// Of the package and of the program.
    fn name(self) -> &'static str {
        match self {
            Self::Keepalived => "keepalived",
            Self::Arpalert => "arpalert",
        }
    }

    /// The libraries that it takes, of which a machine with the tools for tests may lack some.
    fn libraries(self) -> &'static [&'static str] {
        match self {
            Self::Keepalived => {
                &["libglib2.0-0", "libmnl0", "libnftnl11", "libnl-3-200", "libnl-genl-3-200", "libsnmp40"]
            }
            Self::Arpalert => &["libpcap0.8"],
        }
    }

    /// In the repository whatever the target directory, as the benchmark looks there.
    fn folder(self) -> PathBuf {
        process::repository().join("target/tools").join(self.name())
    }

    fn is_there(self) -> bool {
        [self.folder(), "/".into()]
            .into_iter()
            .map(|root| root.join("usr/sbin").join(self.name()))
            .any(|path| path.is_file() && is_loadable(&path))
    }
}

/// Gets what the program is compared with. The benchmark goes on without, and says so.
pub(crate) fn ensure_peers(yes: bool) {
    if let Err(error) = ensure(&[Set::Bench], yes) {
        eprintln!("warning: some rows are left out: {error:#}");
    }
}

/// Runs a command that gets something, and insists on success. What it says is no result of the task that wants it, so it
/// goes to standard error.
fn run(command: &mut Command) -> Result<()> {
    process::run(command.stdout(std::io::stderr()))
}

/// Makes sure that these sets are there: says what is missing, asks on a terminal, gets it, looks again.
pub(crate) fn ensure(sets: &[Set], yes: bool) -> Result<()> {
    let missing = look(sets);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("This machine lacks:");
    for Missing { what, why, cure } in &missing {
        eprintln!("  {what}: {why}");
        eprintln!("      from {}", cure.source());
    }
    if missing.iter().any(|missing| matches!(missing.cure, Cure::ByHand(_))) {
        bail!("setup cannot get all of the above; see to it and run the same command again");
    }
    if !yes && std::io::stdin().is_terminal() && env::var_os("CI").is_none() {
        eprint!("Get it now? [Y/n] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("reading the answer")?;
        ensure!(
            matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"),
            "nothing was changed; `cargo xtask setup --yes` gets it all"
        );
    }
    get(missing)?;
    let left = look(sets);
    if !left.is_empty() {
        let names: Vec<_> = left.iter().map(|missing| missing.what).collect();
        bail!("still missing after setup: {}; the output above says why", names.join(", "));
    }
    Ok(())
}

/// A missing tool: its name, its package in Debian, what it is for.
type Tool = (&'static str, &'static [&'static str], &'static str);

const DEMO_TOOLS: [Tool; 4] = [
    ("ip", &["iproute2"], "makes the network namespaces"),
    ("ping", &["iputils-ping"], "measures from the client"),
    ("nsenter", &["util-linux"], "starts programs in namespaces"),
    ("sysctl", &["procps"], "sets what the namespaces' kernels do"),
];

const TEST_TOOLS: [Tool; 5] = [
    ("ethtool", &["ethtool"], "switches VLAN offloads"),
    ("tcpdump", &["tcpdump"], "captures independently"),
    ("tshark", &["tshark"], "decodes independently"),
    ("iperf3", &["iperf3"], "measures bulk TCP"),
    ("ldd", &["libc-bin"], "tells whether an unpacked tool would start"),
];

const GUEST_TOOLS: [Tool; 5] = [
    ("xz", &["xz-utils"], "unpacks kernel modules"),
    ("strip", &["binutils"], "keeps guests small"),
    ("tc", &["iproute2"], "looks at filters in guests"),
    ("unshare", &["util-linux"], "makes namespaces in guests"),
    ("timeout", &["coreutils"], "ends a guest that hangs"),
];

fn look(sets: &[Set]) -> Vec<Missing> {
    let mut missing = Vec::new();
    if sets.contains(&Set::Build) {
        missing.extend(look_for_compiler());
        missing.extend(look_for_linker());
    }
    let test = sets.contains(&Set::Test);
    if test || sets.contains(&Set::Demo) {
        let tools = DEMO_TOOLS.iter().chain(test.then_some(&TEST_TOOLS[..]).into_iter().flatten());
        missing.extend(
            tools.filter(|(name, ..)| process::find(name).is_none()).map(|&(what, packages, why)| Missing {
                what,
                why,
                cure: Cure::Packages(packages),
            }),
        );
        if Arping::Iputils.find().is_none() {
            let cure = if process::find("arping").is_some() {
                Cure::UnpackedArping(Arping::Iputils)
            } else {
                Cure::Packages(&["iputils-arping"])
            };
            missing.push(Missing {
                what: "arping of iputils",
                why: "plays the rival and asks as other hosts do",
                cure,
            });
        }
        if test && Arping::Habets.find().is_none() {
            missing.push(Missing {
                what: "the other arping",
                why: "a second opinion; never installed, as it excludes the first",
                cure: Cure::UnpackedArping(Arping::Habets),
            });
        }
        missing.extend(look_at_kernel());
    }
    if sets.contains(&Set::Bench) {
        let peers = Peer::ALL.into_iter().filter(|peer| !peer.is_there());
        missing.extend(peers.map(|peer| Missing {
            what: peer.name(),
            why: "is measured beside us; never installed, as that would start it",
            cure: Cure::UnpackedPeer(peer),
        }));
    }
    if sets.contains(&Set::Guests) {
        let tools = GUEST_TOOLS.iter().filter(|(name, ..)| process::find(name).is_none());
        missing.extend(tools.map(|&(what, packages, why)| Missing {
            what,
            why,
            cure: Cure::Packages(packages),
        }));
        if process::find("qemu-system-x86_64").is_none() {
            missing.push(Missing { what: "QEMU", why: "runs other kernels", cure: Cure::Qemu });
        }
    }
    if sets.contains(&Set::Lint) {
        let tools: [(_, _, &[&str]); 2] =
            [("clippy", "cargo-clippy", &["rust-web-clippy"]), ("rustfmt", "cargo-fmt", &["rustfmt-web"])];
        for (what, command, packages) in tools {
            // With rustup the name is always there; only the tool behind it tells.
            if !process::succeeds(process::as_user(command).arg("--version")) {
                let rustup = process::find("rustup").is_some();
                let cure = if rustup { Cure::RustupComponent(what) } else { Cure::Packages(packages) };
                missing.push(Missing { what, why: "lint", cure });
            }
        }
    }
    if sets.contains(&Set::Deny) && !crate::lint::has_cargo_deny() {
        missing.push(Missing {
            what: "cargo-deny",
            why: "checks licences and sources",
            cure: Cure::CargoDeny,
        });
    }
    missing
}

/// The compilers that userspace/build.rs tries: one that the user has linked, the distribution's, a nightly.
fn bpf_compilers() -> impl Iterator<Item = PathBuf> {
    let of_rustup = |toolchain: &str| {
        let path =
            process::output(process::as_user("rustup").args(["which", "--toolchain", toolchain, "rustc"]));
        path.ok().map(|path| PathBuf::from(path.trim()))
    };
    let distribution = Some(PathBuf::from("/usr/bin/rustc"));
    [of_rustup("arpwarden-bpf"), distribution, of_rustup("nightly")].into_iter().flatten()
}

fn can_compile_core(rustc: &Path) -> bool {
    let sysroot = process::output(process::as_user(rustc).args(["--print", "sysroot"]));
    let version = process::output(process::as_user(rustc).arg("--version"));
    sysroot.is_ok_and(|sysroot| has_core_source(Path::new(sysroot.trim())))
        && version.is_ok_and(|version| is_new_enough(&version))
}

fn has_core_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

/// Whether a text whose first number is a version of rustc says the one that the workspace needs, or a newer.
fn is_new_enough(text: &str) -> bool {
    version(text) >= version(env!("CARGO_PKG_RUST_VERSION"))
}

/// The first `major.minor` in a text.
fn version(text: &str) -> Option<[u32; 2]> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut numbers = text[start..].split(|c: char| !c.is_ascii_digit());
    Some([numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?])
}

fn look_for_compiler() -> Option<Missing> {
    if bpf_compilers().any(|rustc| can_compile_core(&rustc)) {
        return None;
    }
    Some(Missing {
        what: "a compiler for the XDP program",
        why: "a rustc together with the source of its core library, which is compiled for BPF",
        cure: Cure::BpfCompiler,
    })
}

fn look_for_linker() -> Option<Missing> {
    let there = process::output(process::as_user("bpf-linker").arg("--version"));
    if there.is_ok_and(|text| version(&text) >= Some(LINKER.1)) {
        return None;
    }
    Some(Missing { what: "bpf-linker", why: "links the XDP program", cure: Cure::BpfLinker })
}

fn look_at_kernel() -> Option<Missing> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release) < Some(KERNEL) {
        return Some(Missing {
            what: "a newer kernel",
            why: "the program needs Linux 5.10 or later",
            cure: Cure::ByHand("an update of the system"),
        });
    }
    if !Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists() {
        return Some(Missing {
            what: "BPF in the kernel",
            why: "this kernel has no bpf system call",
            cure: Cure::ByHand("a kernel with CONFIG_BPF_SYSCALL"),
        });
    }
    // Without `ip` there is nothing to try with, and as a user only with a password: a look should not ask.
    if process::find("ip").is_none() || !process::is_root() || has_virtual_links() {
        return None;
    }
    Some(Missing {
        what: "virtual links in the kernel",
        why: "namespaces are joined by veth pairs and a bridge",
        cure: Cure::KernelModules,
    })
}

/// Tries in a network namespace of its own, which ends with the command.
fn has_virtual_links() -> bool {
    let script = "ip link add name a type veth peer name b && ip link add name c type bridge";
    process::succeeds(process::as_user("unshare").args(["--net", "sh", "-c", script]))
}

impl Cure {
    fn source(&self) -> String {
        match self {
            Self::BpfCompiler => {
                let rustup = "`rustup toolchain install nightly --component rust-src`";
                if has_apt() {
                    format!("the packages {}; without such packages {rustup}", COMPILER_PACKAGES.join(", "))
                } else {
                    rustup.into()
                }
            }
            Self::BpfLinker => {
                format!("`cargo install bpf-linker@{}` (a minute or two), with LLVM from packages", LINKER.0)
            }
            Self::Packages(packages) if has_apt() => format!("the package {}", packages.join(", ")),
            Self::Packages(packages) => {
                format!("your package manager (Debian calls the package {})", packages.join(", "))
            }
            Self::UnpackedArping(which) => {
                format!("the package {}, unpacked into {}", which.package(), which.folder().display())
            }
            Self::UnpackedPeer(peer) => {
                format!("the package {}, unpacked into {}", peer.name(), peer.folder().display())
            }
            Self::RustupComponent(component) => format!("`rustup component add {component}`"),
            Self::CargoDeny => "`cargo install cargo-deny` (some minutes)".into(),
            Self::KernelModules => "`modprobe --all veth bridge`".into(),
            Self::Qemu if is_bookworm() => {
                format!("the package {QEMU} of bookworm-backports; apt's own sources stay as they are")
            }
            Self::Qemu => format!("the package {QEMU}"),
            Self::ByHand(what) => (*what).into(),
        }
    }
}

const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

fn has_apt() -> bool {
    process::find("apt-get").is_some()
}

fn get(missing: Vec<Missing>) -> Result<()> {
    let mut apt = Apt::default();
    // All plain packages in one go.
    let mut packages = BTreeSet::new();
    for missing in &missing {
        match missing.cure {
            Cure::Packages(names) => packages.extend(names.iter().copied()),
            Cure::BpfCompiler
            | Cure::BpfLinker
            | Cure::UnpackedArping(_)
            | Cure::UnpackedPeer(_)
            | Cure::RustupComponent(_)
            | Cure::CargoDeny
            | Cure::KernelModules
            | Cure::Qemu
            | Cure::ByHand(_) => {}
        }
    }
    if !packages.is_empty() {
        ensure!(
            has_apt(),
            "this machine has no apt-get: install what is listed above by hand, then run the same command again"
        );
        let packages: Vec<_> = packages.into_iter().collect();
        apt.install(&packages)?;
    }
    for missing in missing {
        match missing.cure {
            Cure::BpfCompiler => get_compiler(&mut apt)?,
            Cure::BpfLinker => get_linker(&mut apt)?,
            Cure::UnpackedArping(which) => apt.unpack_arping(which)?,
            Cure::UnpackedPeer(peer) => apt.unpack_peer(peer)?,
            Cure::RustupComponent(component) => {
                run(process::as_user("rustup").args(["component", "add", component]))?;
            }
            Cure::CargoDeny => run(process::cargo().args(["install", "--locked", "cargo-deny"]))?,
            Cure::KernelModules => {
                let modules = run(process::as_root("modprobe", &[])?.args(["--all", "veth", "bridge"]));
                modules.context(
                    "this kernel has neither built in: tests and demonstration need another kernel",
                )?;
            }
            Cure::Qemu => get_qemu(&mut apt)?,
            Cure::Packages(_) | Cure::ByHand(_) => {}
        }
    }
    Ok(())
}

fn get_compiler(apt: &mut Apt) -> Result<()> {
    if has_apt() && apt.offers(COMPILER_PACKAGES[0], is_new_enough)? {
        return apt.install(&COMPILER_PACKAGES);
    }
    ensure!(
        process::find("rustup").is_some(),
        "neither the distribution nor rustup offers a compiler with the source of core: install rustup, then run \
         `cargo xtask setup`"
    );
    run(process::as_user("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]))
}

fn get_linker(apt: &mut Apt) -> Result<()> {
    let crate_name = format!("bpf-linker@{}", LINKER.0);
    let prefix = Path::new("/usr/lib/llvm-22");
    if !prefix.join("bin/llvm-config").exists() && has_apt() && apt.offers("llvm-22-dev", |_| true)? {
        apt.install(&["llvm-22-dev"])?;
    }
    if prefix.join("bin/llvm-config").exists() {
        let mut cargo = process::cargo();
        cargo.args(["install", "--locked", &crate_name, "--no-default-features", "--features", "llvm-22"]);
        return run(cargo.env("LLVM_PREFIX", prefix));
    }
    let binstall = process::find("cargo-binstall").is_some();
    let arguments: &[&str] = if binstall { &["binstall", "--no-confirm"] } else { &["install", "--locked"] };
    run(process::cargo().args(arguments).arg(&crate_name)).with_context(|| {
        "bpf-linker is built against LLVM: install LLVM 22's or 23's development files, or cargo-binstall, which \
         fetches a finished one"
    })
}

const QEMU: &str = "qemu-system-x86";

fn is_bookworm() -> bool {
    fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "VERSION_CODENAME=bookworm"))
}

/// On Debian 12 from its backports: its own QEMU lacks cards, and would remove a `qemu-utils` of backports.
fn get_qemu(apt: &mut Apt) -> Result<()> {
    ensure!(has_apt(), "this machine has no apt-get: install QEMU for x86_64 by hand");
    if !is_bookworm() {
        return apt.install(&["--no-remove", QEMU]);
    }
    let lists = Lists::of_qemu()?;
    let mut command = lists.apt_as_root("apt-get")?;
    command.args(["--quiet", "--yes", "--option=Dpkg::Use-Pty=0", "--no-install-recommends", "--no-remove"]);
    run(command.args(["--target-release=bookworm-backports", "install", QEMU]))
}

/// Debian's packages. The lists are read anew at most once, and only when something is not found in them.
#[derive(Default)]
struct Apt {
    updated: bool,
}

impl Apt {
    fn update(&mut self) -> Result<()> {
        self.updated = true;
        run(process::as_root("apt-get", &[])?.args(["--quiet", "update"]))
    }

    /// Whether there is such a package in a version that will do.
    fn offers(&mut self, package: &str, will_do: impl Fn(&str) -> bool) -> Result<bool> {
        loop {
            let policy = process::output(process::as_user("apt-cache").args(["policy", package]))?;
            let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
            if candidate.is_some_and(|version| version != "(none)" && will_do(version)) {
                return Ok(true);
            }
            if self.updated {
                return Ok(false);
            }
            self.update()?;
        }
    }

    fn install(&mut self, packages: &[&str]) -> Result<()> {
        loop {
            let mut command = process::as_root("apt-get", &[("DEBIAN_FRONTEND", "noninteractive".as_ref())])?;
            command
                .args(["--quiet", "--yes", "--option=Dpkg::Use-Pty=0", "--no-install-recommends", "install"])
                .args(packages);
            match run(&mut command) {
                Err(error) if self.updated => return Err(error),
                Err(_) => self.update()?, // old lists name files that are gone
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Unpacks a package without installing it.
    fn unpack_arping(&mut self, which: Arping) -> Result<()> {
        let package = which.package();
        ensure!(
            has_apt(),
            "this machine has no apt-get: put the arping of Debian's package {package} at {}",
            which.unpacked().display()
        );
        ensure!(self.offers(package, |_| true)?, "no package {package} is offered here");
        match which {
            // The only library of it that tcpdump has not brought along.
            Arping::Habets => self.install(&["libnet1"])?,
            Arping::Iputils => {}
        }
        self.unpack(package, &which.folder())
    }

    /// Unpacks a package without installing it, and installs the libraries that it takes.
    fn unpack_peer(&mut self, peer: Peer) -> Result<()> {
        let package = peer.name();
        ensure!(has_apt(), "this machine has no apt-get: install {package} by hand, without starting it");
        ensure!(self.offers(package, |_| true)?, "no package {package} is offered here");
        self.unpack(package, &peer.folder())?;
        if !peer.is_there() {
            self.install(peer.libraries())?;
        }
        Ok(())
    }

    fn unpack(&mut self, package: &str, directory: &Path) -> Result<()> {
        process::check(process::as_user("mkdir").arg("-p").arg(directory))?;
        run(process::as_user("apt-get").args(["--quiet", "download", package]).current_dir(directory))?;
        for file in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                run(process::as_user("dpkg-deb").arg("-x").arg(&path).arg(directory))?;
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_in_a_text_is_read() {
        assert_eq!(version("rustc 1.96.0 (abc 2026-05-25) (built from a source tarball)"), Some([1, 96]));
        assert_eq!(version("1.96.0+dfsg1-1~deb12u2"), Some([1, 96]));
        assert_eq!(version("6.18.44-fc"), Some([6, 18]));
        assert_eq!(version("no number"), None);
    }

    #[test]
    fn a_newer_minor_version_is_newer_than_a_longer_text() {
        assert!(version("bpf-linker 0.13.0") >= Some(LINKER.1));
        assert!(version("bpf-linker 0.9.15") < Some(LINKER.1));
    }
}
