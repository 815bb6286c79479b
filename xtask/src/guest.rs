//! Guests: other kernels, booted in QEMU, with our programs in them. A guest's file system is made on the spot and lives
//! in its memory; its first process is this very program (`init`).

pub(crate) mod archive;
pub(crate) mod init;
pub(crate) mod suite;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use self::archive::Archive;
use crate::kernels::{self, Kernel};
use crate::process;

/// The first process, where the kernel looks for it.
const INIT: &str = "/init";
/// What it is to do: a [`Step`] a line.
const PLAN: &str = "/plan";
/// The modules to load: a name and its parameters a line, in order.
const MODULES: &str = "/modules/list";

/// Modules that are loaded where the kernel has them as such, with their parameters: no device that nobody asked for.
const LOADED: [(&str, &str); 18] = [
    ("virtio_pci", ""),
    ("virtio_net", ""),
    ("veth", ""),
    ("8021q", ""),
    ("bonding", "max_bonds=0"),
    ("bridge", ""),
    ("dummy", "numdummies=0"),
    ("macvlan", ""),
    ("ipvlan", ""),
    ("team", ""),
    ("team_mode_activebackup", ""),
    ("sch_ingress", ""),
    ("cls_bpf", ""),
    ("sch_netem", ""),
    ("e1000", ""),
    ("e1000e", ""),
    ("igb", ""),
    ("vmxnet3", ""),
];

/// A program that runs in a guest.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Step {
    /// Where it is in the guest.
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Step {
    fn name(&self) -> String {
        Path::new(&self.program)
            .file_name()
            .map_or_else(|| self.program.clone(), |name| name.to_string_lossy().into_owned())
    }
}

/// What a guest tells, a line each.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) enum Said {
    /// Of itself.
    Kernel(String),
    /// A program begins.
    Begins(String),
    /// A line on its standard output.
    Output(String),
    /// A line on its standard error.
    Message(String),
    /// It has ended: well, or as `how` says.
    Ended { seconds: u64, how: String },
    /// All have.
    Done,
}

/// A guest to be.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    /// What is in it beside modules and `init`.
    pub(crate) content: &'a Content,
    pub(crate) steps: Vec<Step>,
    pub(crate) network: Network,
    /// How long it may take from power on to power off, in seconds.
    pub(crate) limit: u32,
}

/// The network cards of a guest. Those of a pair are on one wire, and nothing else is: nothing leaves the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// A pair of virtio cards.
    Pair,
    /// Pairs of a card of each kind and a virtio card, its peer.
    Kinds,
}

/// Kinds of cards that QEMU plays, in the order of [`Network::Kinds`].
const KINDS: [&str; 5] = ["e1000e", "igb", "vmxnet3", "virtio-net-pci", "e1000"];
/// Queues of the virtio cards that have several: one for each of the guest's two processors, and as many again, which
/// the driver wants for what XDP sends.
const QUEUES: u32 = 4;

/// Programs and files for guests.
pub(crate) struct Content {
    /// Path in the guest, path here.
    programs: BTreeMap<String, PathBuf>,
    tools: BTreeSet<PathBuf>,
}

impl Content {
    pub(crate) fn new() -> Self {
        Self { programs: BTreeMap::new(), tools: BTreeSet::new() }
    }

    /// A program that Cargo has built, at `path` in the guest. What only a debugger wants is left behind: it would be
    /// nine tenths of what the guest keeps in memory.
    pub(crate) fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        let folder = kernels::folder().join("stripped");
        process::check(process::as_user("mkdir").arg("-p").arg(&folder))?;
        let name = source.file_name().context("a program's name")?;
        let stripped = folder.join(name);
        process::check(process::as_user("strip").arg("--strip-debug").arg("-o").args([&stripped, source]))?;
        self.programs.insert(path.into(), stripped);
        Ok(())
    }

    /// A tool of this machine, at its own path.
    pub(crate) fn tool(&mut self, path: PathBuf) {
        self.tools.insert(path);
    }

    fn put_into(&self, archive: &mut Archive) -> Result<()> {
        for (path, source) in &self.programs {
            archive.program(path, source)?;
        }
        for tool in &self.tools {
            archive.tool(tool)?;
        }
        Ok(())
    }
}

/// How a guest ended.
pub(crate) enum End {
    /// All steps were done.
    Done,
    /// It did not come so far, as the text says.
    Broken(String),
}

/// Boots a guest and shows all that it tells.
pub(crate) fn run(guest: &Guest<'_>, mut show: impl FnMut(Said)) -> Result<End> {
    let folder = kernels::folder().join(format!("guest-{}", guest.kernel.name));
    process::check(process::as_user("mkdir").arg("-p").arg(&folder))?;
    // Another run may be under way.
    let memory = folder.join(format!("memory-{}", std::process::id()));
    let console = folder.join("console");
    write_archive(guest, &memory)?;

    let mut command = machine(guest, &memory, &console);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut machine = command.spawn().context("starting QEMU")?;
    let (report, complaints) = machine.stdout.take().zip(machine.stderr.take()).context("pipes of QEMU")?;
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        let _as_far_as_it_came = BufReader::new(complaints).read_to_string(&mut text);
        text
    });
    let mut is_done = false;
    for line in BufReader::new(report).lines() {
        let line = line.context("reading what a guest tells")?;
        match serde_json::from_str(&line) {
            Ok(Said::Done) => is_done = true,
            Ok(said) => show(said),
            Err(_) => show(Said::Kernel(line)),
        }
    }
    let status = machine.wait().context("waiting for QEMU")?;
    let complaints = complaints.join().unwrap_or_default();
    fs::remove_file(&memory).with_context(|| format!("removing {}", memory.display()))?;
    if is_done {
        return Ok(End::Done);
    }
    let why = match status.code() {
        // timeout(1)
        Some(124 | 137) => format!("it was stopped at the limit of {} s", guest.limit),
        _ => format!("it stopped before its programs had ended ({status})"),
    };
    let said = fs::read(&console).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let last: Vec<&str> = said.lines().rev().take(20).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    // The wires have no way out of the machine, which is meant.
    let complaints: Vec<&str> = complaints.lines().filter(|line| !line.contains("no host network")).collect();
    Ok(End::Broken(format!(
        "{why}; {}the last words of its kernel ({}):\n{}",
        complaints.iter().map(|line| format!("{line}; ")).collect::<String>(),
        console.display(),
        last.join("\n")
    )))
}

fn write_archive(guest: &Guest<'_>, to: &Path) -> Result<()> {
    let mut archive = Archive::new()?;
    for folder in ["proc", "sys", "tmp", "run", "root", "etc", "var/run"] {
        archive.folder(folder)?;
    }
    archive
        .text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    archive.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    let own = std::env::current_exe().context("finding the path of this program")?;
    archive.program(INIT, &own)?;
    guest.content.put_into(&mut archive)?;
    let mut plan = String::new();
    for step in &guest.steps {
        plan += &serde_json::to_string(step)?;
        plan.push('\n');
    }
    archive.text(PLAN, plan)?;
    put_modules(&guest.kernel.modules, &mut archive)?;

    let mut file = BufWriter::new(File::create(to).with_context(|| format!("creating {}", to.display()))?);
    archive.write(&mut file)?;
    file.flush().with_context(|| format!("writing {}", to.display()))
}

/// Puts the modules of [`LOADED`] and those that they need into an archive, and the list of them.
fn put_modules(folder: &Path, archive: &mut Archive) -> Result<()> {
    let mut files = BTreeMap::new();
    kernels::visit(folder, &mut |path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((name, _)) = name.split_once(".ko") {
            files.insert(name.replace('-', "_"), path.to_owned());
        }
    })?;
    ensure!(!files.is_empty(), "no modules below {}", folder.display());
    let mut order = Vec::new();
    for (name, _) in LOADED {
        add_module(name, &files, &mut order, archive)?;
    }
    let list = order.into_iter().map(|name| {
        let parameters = LOADED.iter().find(|(known, _)| *known == name).map_or("", |(_, with)| with);
        format!("{name} {parameters}\n")
    });
    archive.text(MODULES, list.collect::<String>())
}

fn add_module(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<String>,
    archive: &mut Archive,
) -> Result<()> {
    // One that is not there is built in, or not made for this kernel: the tests tell.
    let Some(file) = files.get(name) else { return Ok(()) };
    if order.iter().any(|known| known == name) {
        return Ok(());
    }
    let module = module(file)?;
    for needed in needs(&module) {
        add_module(&needed, files, order, archive)?;
    }
    order.push(name.to_owned());
    archive.text(&format!("modules/{name}.ko"), module)
}

/// A module as the kernel takes it: old kernels don't unpack it themselves.
fn module(file: &Path) -> Result<Vec<u8>> {
    let unpack: &[&str] = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => &["xz"],
        Some("zst") => &["zstd"],
        Some("gz") => &["gzip"],
        _ => return fs::read(file).with_context(|| format!("reading {}", file.display())),
    };
    let mut command = process::as_user(unpack[0]);
    let output = command.args(["--decompress", "--stdout"]).arg(file).output();
    let output = output.with_context(|| format!("starting {}", process::shown(&command)))?;
    if !output.status.success() {
        bail!("`{}`: {}", process::shown(&command), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// The modules that a module says it needs: `depends=` among the words that it carries, each ended by a zero byte.
fn needs(module: &[u8]) -> Vec<String> {
    let word = module.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"depends="));
    let word = String::from_utf8_lossy(word.unwrap_or_default()).into_owned();
    word.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn machine(guest: &Guest<'_>, memory: &Path, console: &Path) -> Command {
    let acceleration = if has_kvm() { "kvm:tcg" } else { "tcg" };
    // In the foreground, so that an interrupt at the terminal reaches the machine as well.
    let mut command = process::as_user("timeout");
    command.args(["--foreground", "--kill-after=5", &guest.limit.to_string()]);
    let taps = guest.network == Network::Kinds && process::succeeds(&mut with_taps("true", &[]));
    if taps {
        let with_taps = with_taps("qemu-system-x86_64", &[]);
        command.arg(with_taps.get_program()).args(with_taps.get_args());
    } else {
        command.arg("qemu-system-x86_64");
    }
    command.args(["-machine", &format!("q35,accel={acceleration}")]);
    // Five-level page tables make a guest under TCG slower, and nothing here needs them.
    command.args(["-cpu", "max,la57=off", "-smp", "2", "-m", "1536"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(&guest.kernel.image).arg("-initrd").arg(memory);
    command.args(["-append", "console=ttyS0 panic=-1 oops=panic mitigations=off nokaslr quiet loglevel=4"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report"]);
    command.args(cards(guest.network));
    if taps {
        let first = 2 * KINDS.len();
        for (tap, card) in (first..first + 2).enumerate() {
            command.arg("-netdev");
            command.arg(format!("tap,id=card{card},ifname=tap{tap},script=no,downscript=no,queues={QUEUES}"));
            command.arg("-device").arg(format!(
                "virtio-net-pci,netdev=card{card},mac=52:54:00:00:00:{card:02x},mq=on,vectors={},romfile=",
                2 * QUEUES + 2
            ));
        }
    }
    command
}

/// A command in a network namespace of its own with two taps on a bridge: the only wire of QEMU's that cards with
/// several queues can be on. Nothing else is in the namespace, and it ends with the command.
fn with_taps(program: &str, arguments: &[&str]) -> Command {
    let script = "set -e
        ip link add wire type bridge stp_state 0 forward_delay 0 mcast_snooping 0
        ip link set wire up
        for tap in tap0 tap1; do
            ip tuntap add dev $tap mode tap multi_queue vnet_hdr
            ip link set $tap master wire up
        done
        exec \"$@\"";
    let mut command = process::as_user("unshare");
    // As somebody who is not root, in a user namespace.
    let user: &[&str] = if process::user_is_root() { &[] } else { &["--map-root-user"] };
    command.args(user).args(["--net", "sh", "-c", script, "sh", program]).args(arguments);
    command
}

/// Arguments for the cards. The first one of a pair has an even last byte in its MAC, its peer the next number.
fn cards(network: Network) -> Vec<String> {
    let pairs: &[&str] = match network {
        Network::Pair => &["virtio-net-pci"],
        Network::Kinds => &KINDS,
    };
    let mut arguments = Vec::new();
    for (wire, kind) in pairs.iter().enumerate() {
        for (end, kind) in [kind, "virtio-net-pci"].into_iter().enumerate() {
            let card = 2 * wire + end;
            arguments.extend([
                "-netdev".into(),
                format!("hubport,id=card{card},hubid={wire}"),
                "-device".into(),
                format!("{kind},netdev=card{card},mac=52:54:00:00:00:{card:02x},romfile="),
            ]);
        }
    }
    arguments
}

/// Whether KVM is of use. That `/dev/kvm` can be opened proves little: one without the processor's own virtualisation
/// opens, and then hangs a kernel that was not made for it.
fn has_kvm() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
        && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_tells_what_it_needs() {
        assert_eq!(needs(b"\0license=GPL\0depends=stp,llc\0name=bridge\0"), ["stp", "llc"]);
        assert_eq!(needs(b"\0depends=virtio-ring\0"), ["virtio_ring"]);
        assert!(needs(b"\0depends=\0").is_empty());
        assert!(needs(b"nothing").is_empty());
    }

    #[test]
    fn the_cards_of_a_pair_are_on_one_wire() {
        let cards = cards(Network::Kinds);
        assert!(cards.contains(&"hubport,id=card2,hubid=1".into()), "{cards:?}");
        assert!(
            cards.contains(&"igb,netdev=card2,mac=52:54:00:00:00:02,romfile=".into())
                && cards.contains(&"virtio-net-pci,netdev=card3,mac=52:54:00:00:00:03,romfile=".into()),
            "{cards:?}"
        );
    }
}
