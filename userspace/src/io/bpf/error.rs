//! Why something failed, in words.

use std::{
    error::Error,
    fmt, io,
    time::{Duration, SystemTime},
};

use arpwarden_common::abi::{self, AddressKey};
use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::{
    super::clock,
    Mode,
    layout::Shape,
    load::{Memory, missing_capabilities},
    pins::{Pins, PinsError},
};

/// Why the programs could not be loaded, or those of an earlier run not be taken over.
#[derive(Debug)]
pub enum LoadError {
    /// The kernel does not permit it.
    NotPermitted {
        /// Capabilities that this process lacks; empty if it has all that can be checked.
        missing: Vec<&'static str>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The limit on locked memory is too low, on a kernel that counts maps against it (before Linux 5.11).
    LockedMemory {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel has no map of this kind.
    Map {
        /// Its name.
        map: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's verifier refuses the program.
    Rejected {
        /// The kernel's answer, with the verifier's log.
        source: ProgramError,
    },
    /// The program was built for another layout of the maps.
    Layout {
        /// The version that it was built for, if it says.
        found: Option<u32>,
    },
    /// Something is not in the object.
    Incomplete {
        /// What.
        lacks: &'static str,
    },
    /// A map is of another type or size than expected.
    Shape {
        /// Its name.
        map: &'static str,
        /// What differs.
        source: MapError,
    },
    /// A map can't be mapped into memory.
    Mapping {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pins can't be made or read.
    Pins {
        /// Why.
        source: PinsError,
    },
    /// What is pinned is attached in another network namespace.
    Elsewhere {
        /// Where.
        pins: Pins,
        /// Inode of that namespace.
        inode: u64,
    },
    /// What is pinned has another layout version.
    OtherLayout {
        /// Where.
        pins: Pins,
        /// Which; 0: it was never finished, and is attached all the same.
        found: u64,
    },
    /// A map that is pinned has another shape.
    OtherShape {
        /// Where.
        pins: Pins,
        /// The map's name.
        map: &'static str,
        /// What is pinned.
        found: Shape,
        /// What this daemon's program has.
        expected: Shape,
    },
    /// A map is not pinned, though others are, or programs are attached.
    PinMissing {
        /// Where.
        pins: Pins,
        /// The map's name.
        map: &'static str,
    },
    /// What an earlier run has left could not be read or put right.
    Leftover {
        /// Which map, and why.
        source: TableError,
    },
    /// The program of an earlier run could not be replaced.
    Adopt {
        /// Index of the interface.
        index: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The program's messages can't be read.
    Messages {
        /// Why.
        source: aya_log::Error,
    },
    /// The object is not what the loader understands.
    Object {
        /// Why.
        source: EbpfError,
    },
}

impl LoadError {
    /// Whether a missing permission is the reason, so that the command ends with 5.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::NotPermitted { .. } => true,
            Self::Pins { source } => source.is_permission(),
            Self::Adopt { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Elsewhere { .. }
            | Self::OtherLayout { .. }
            | Self::OtherShape { .. }
            | Self::PinMissing { .. }
            | Self::Leftover { .. }
            | Self::LockedMemory { .. }
            | Self::Map { .. }
            | Self::Rejected { .. }
            | Self::Layout { .. }
            | Self::Incomplete { .. }
            | Self::Shape { .. }
            | Self::Mapping { .. }
            | Self::Messages { .. }
            | Self::Object { .. } => false,
        }
    }

    pub(super) const fn pins(source: PinsError) -> Self {
        Self::Pins { source }
    }

    pub(super) const fn table(source: TableError) -> Self {
        Self::Leftover { source }
    }

    pub(super) fn of_object(error: EbpfError, memory: &Memory) -> Self {
        let EbpfError::MapError(MapError::CreateError { name, io_error }) = error else {
            return Self::Object { source: error };
        };
        if io_error.raw_os_error() == Some(libc::EPERM) {
            return Self::refused(io_error, memory);
        }
        Self::Map { map: name, source: io_error }
    }

    pub(super) fn of_program(error: ProgramError, memory: &Memory) -> Self {
        if let ProgramError::LoadError { io_error, .. } = &error
            && let Some(code @ (libc::EPERM | libc::EACCES)) = io_error.raw_os_error()
        {
            // The verifier says EACCES too; without CAP_PERFMON it forbids more.
            if code == libc::EPERM || !missing_capabilities().is_empty() {
                return Self::refused(io::Error::from_raw_os_error(code), memory);
            }
        }
        Self::Rejected { source: error }
    }

    fn refused(source: io::Error, memory: &Memory) -> Self {
        let missing = missing_capabilities();
        match memory {
            Memory::Limited if missing.is_empty() => Self::LockedMemory { source },
            Memory::Free | Memory::Limited => Self::NotPermitted { missing, source },
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("loading the program: ")?;
        match self {
            Self::NotPermitted { missing, .. } => permission(f, missing),
            Self::LockedMemory { .. } => f.write_str(
                "this kernel counts maps as locked memory, and the limit is too low: run with \
                 'ulimit -l unlimited' (systemd: LimitMEMLOCK=infinity), or with CAP_SYS_RESOURCE",
            ),
            Self::Map { map, .. } => write!(
                f,
                "the kernel does not make the map {map}; Linux 5.10 is the oldest that has all of them: use a \
                 newer kernel, or see that memory is left"
            ),
            Self::Rejected { source } => {
                f.write_str(
                    "the kernel's verifier refuses it; please report this with the kernel's version",
                )?;
                let ProgramError::LoadError { verifier_log, .. } = source else { return Ok(()) };
                last_lines(f, &verifier_log.to_string())
            }
            Self::Layout { found: Some(found) } => write!(
                f,
                "it was built for layout version {found} of the maps and this daemon for {}: build both anew",
                abi::ABI_VERSION
            ),
            Self::Layout { found: None } => {
                f.write_str("it does not say which layout of the maps it was built for: build it anew")
            }
            Self::Incomplete { lacks } => {
                write!(f, "the object lacks {lacks}, or has it in another shape: build it anew")
            }
            Self::Shape { map, .. } => {
                write!(f, "the map {map} has not the type or size that this daemon expects: build both anew")
            }
            Self::Mapping { map, .. } => write!(
                f,
                "mapping the map {map} into memory failed: it needs Linux 5.5 and address space that is left"
            ),
            Self::Pins { .. } => f.write_str("it has to be pinned, so that it goes on when the daemon ends"),
            Self::Elsewhere { pins, inode } => elsewhere(f, pins, *inode),
            Self::OtherLayout { pins, found } => {
                match found {
                    0 => write!(
                        f,
                        "what is pinned in {pins} was never finished, and is attached all the same"
                    )?,
                    _ => write!(
                        f,
                        "what is pinned in {pins} has layout version {found}, and this daemon {}",
                        abi::ABI_VERSION
                    )?,
                }
                other_version(f, pins)
            }
            Self::OtherShape { pins, map, found, expected } => {
                write!(
                    f,
                    "the map {map} in {pins} is another one ({found}) than this daemon's ({expected})"
                )?;
                other_version(f, pins)
            }
            Self::PinMissing { pins, map } => {
                write!(f, "the pin of the map {map} is missing in {pins}: somebody has removed it")?;
                other_version(f, pins)
            }
            Self::Leftover { .. } => f.write_str("what an earlier run has left can't be taken over"),
            Self::Adopt { index, .. } => write!(
                f,
                "replacing the program that an earlier run has attached to interface #{index} failed; that one goes \
                 on"
            ),
            Self::Messages { .. } => {
                f.write_str("its messages can't be read: go on with the log level at 'off'")
            }
            Self::Object { .. } => f.write_str("the object can't be used: build it anew"),
        }
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotPermitted { source, .. }
            | Self::LockedMemory { source }
            | Self::Map { source, .. }
            | Self::Mapping { source, .. }
            | Self::Adopt { source, .. } => Some(source),
            Self::Pins { source } => Some(source),
            Self::Leftover { source } => Some(source),
            // Its text is the verifier's log, of which the message has the end.
            Self::Rejected { source: ProgramError::LoadError { io_error, .. } } => Some(io_error),
            Self::Rejected { source } => Some(source),
            Self::Shape { source, .. } => Some(source),
            Self::Messages { source } => Some(source),
            Self::Object { source } => Some(source),
            Self::Layout { .. }
            | Self::Incomplete { .. }
            | Self::Elsewhere { .. }
            | Self::OtherLayout { .. }
            | Self::OtherShape { .. }
            | Self::PinMissing { .. } => None,
        }
    }
}

/// What to do about maps that can't be taken over.
fn other_version(f: &mut fmt::Formatter<'_>, pins: &Pins) -> fmt::Result {
    let instance = pins.directory().file_name().unwrap_or_default().to_string_lossy();
    write!(
        f,
        ". They were left as they are, and go on answering. Start the arpwarden that made them, or give all its \
         addresses up with 'arpwarden --instance {instance} unload' first"
    )
}

/// What is pinned is in use where it can't be seen from here.
pub(super) fn elsewhere(f: &mut fmt::Formatter<'_>, pins: &Pins, inode: u64) -> fmt::Result {
    write!(
        f,
        "what is pinned in {pins} is attached in another network namespace (inode {inode}) and goes on there; run this \
         there, with 'nsenter --net=', or choose another --instance"
    )
}

/// What is missing, or what else may be in the way.
fn permission(f: &mut fmt::Formatter<'_>, missing: &[&str]) -> fmt::Result {
    if missing.is_empty() {
        return f.write_str(
            "the kernel does not permit it, though this process has CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: in a \
             container or user namespace they don't count, and a seccomp filter or kernel lockdown may forbid \
             bpf(2); run it on the host",
        );
    }
    write!(f, "not permitted: {} missing; run as root, or grant it", missing.join(", "))
}

/// The end of the verifier's log, where the reason stands.
fn last_lines(f: &mut fmt::Formatter<'_>, log: &str) -> fmt::Result {
    let lines: Vec<_> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(8)..] {
        write!(f, "\n  {line}")?;
    }
    Ok(())
}

/// What was to be attached. `Display` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attaching {
    /// The program that answers, in this mode.
    Program(Mode),
    /// The guard.
    Guard,
}

impl fmt::Display for Attaching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(mode) => write!(f, "the program (in {} mode)", mode.name()),
            Self::Guard => f.write_str("the guard for what leaves it (tc)"),
        }
    }
}

/// Why the program could not be attached.
#[derive(Debug)]
pub enum AttachError {
    /// The interface is not there.
    NoSuchInterface {
        /// Its name.
        interface: String,
    },
    /// The interface could not be looked at.
    Unseen {
        /// Its name.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// This daemon's program is there already.
    AlreadyAttached {
        /// Its name.
        interface: String,
    },
    /// A program of another arpwarden instance is there. It was left as it was.
    OtherInstance {
        /// The interface's name.
        interface: String,
        /// What is known of it.
        program: ForeignProgram,
        /// The instance's name, if its pins can be seen.
        instance: Option<String>,
    },
    /// The program can't be loaded.
    Load {
        /// The interface's name.
        interface: String,
        /// Why.
        source: Box<LoadError>,
    },
    /// Somebody else's XDP program is there, and the mode is one of XDP. It was left as it was.
    Foreign {
        /// The interface's name.
        interface: String,
        /// The mode asked for.
        mode: Mode,
        /// What is known of it.
        program: ForeignProgram,
    },
    /// The driver does not take a program in this mode, as the interface is set up.
    Unsupported {
        /// The interface's name.
        interface: String,
        /// The mode asked for.
        mode: Mode,
        /// The interface's MTU in bytes.
        mtu: u32,
        /// [`super::Datapath::multi_buffer`].
        multi_buffer: bool,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not permit it.
    NotPermitted {
        /// The interface's name.
        interface: String,
        /// Capabilities that this process lacks; empty if it has all that can be checked.
        missing: Vec<&'static str>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else.
    Kernel {
        /// The interface's name.
        interface: String,
        /// What was to be attached.
        what: Attaching,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl AttachError {
    /// Whether a missing permission is the reason, so that the command ends with 5.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::NotPermitted { .. } => true,
            Self::Load { source, .. } => source.is_permission(),
            Self::NoSuchInterface { .. }
            | Self::Unseen { .. }
            | Self::AlreadyAttached { .. }
            | Self::OtherInstance { .. }
            | Self::Foreign { .. }
            | Self::Unsupported { .. }
            | Self::Kernel { .. } => false,
        }
    }

    /// Whether another mode may do where this failed.
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { mode: Mode::Native, .. })
    }
}

impl AttachError {
    fn interface(&self) -> &str {
        match self {
            Self::NoSuchInterface { interface }
            | Self::Unseen { interface, .. }
            | Self::AlreadyAttached { interface }
            | Self::OtherInstance { interface, .. }
            | Self::Load { interface, .. }
            | Self::Foreign { interface, .. }
            | Self::Unsupported { interface, .. }
            | Self::NotPermitted { interface, .. }
            | Self::Kernel { interface, .. } => interface,
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.interface();
        match self {
            Self::Foreign { mode, .. } | Self::Unsupported { mode, .. } => {
                write!(f, "attaching the program to {interface} in {} mode: ", mode.name())?;
            }
            Self::Kernel { what, .. } => write!(f, "attaching {what} to {interface}: ")?,
            Self::NoSuchInterface { .. }
            | Self::Unseen { .. }
            | Self::AlreadyAttached { .. }
            | Self::OtherInstance { .. }
            | Self::Load { .. }
            | Self::NotPermitted { .. } => write!(f, "attaching the program to {interface}: ")?,
        }
        match self {
            Self::NoSuchInterface { .. } => {
                f.write_str("there is no such interface (any more); see 'ip link'")
            }
            Self::Unseen { .. } => {
                f.write_str("asking the kernel what it carries failed, so it was not touched; try again")
            }
            Self::AlreadyAttached { .. } => f.write_str("this daemon's program is there already"),
            Self::OtherInstance { program, instance, .. } => {
                match instance {
                    Some(name) => write!(
                        f,
                        "{program} of the arpwarden instance '{name}' is there, and two would answer twice; end that \
                         one with 'arpwarden --instance {name} unload'"
                    ),
                    None => write!(
                        f,
                        "{program} of another arpwarden instance is there, whose pins can't be seen from here, and two \
                         would answer twice; end that one with 'arpwarden --instance NAME unload' where it runs"
                    ),
                }?;
                f.write_str(", or choose another interface")
            }
            Self::Load { .. } => f.write_str("it can't be loaded"),
            Self::Foreign { program, .. } => {
                write!(
                    f,
                    "{program} is there; it is not arpwarden's of this instance and was left as it is. Stop what owns it"
                )?;
                match program.link {
                    Some(link) => write!(f, " (or 'bpftool link detach id {link}')"),
                    None => write!(f, " (or 'ip link set dev {interface} {} off')", program.place.flag()),
                }?;
                f.write_str(", choose another interface, or live beside it with --attach tc")
            }
            Self::Unsupported { mode, mtu, multi_buffer, .. } => {
                write!(f, "the driver does not take it, as the interface is set up now (MTU {mtu})")?;
                match (mode, multi_buffer) {
                    (Mode::Native, true) => {
                        f.write_str("; use --attach tc, or a smaller MTU, fewer queues, no LRO")
                    }
                    (Mode::Native, false) => f.write_str(
                        "; use --attach tc, or a smaller MTU: before Linux 5.18 there is none above a page",
                    ),
                    (Mode::Generic | Mode::Tc, _) => f.write_str("; use --attach tc"),
                }
            }
            Self::NotPermitted { missing, .. } => permission(f, missing),
            Self::Kernel { what: Attaching::Guard | Attaching::Program(Mode::Tc), source, .. }
                if source.raw_os_error() == Some(libc::EEXIST) =>
            {
                write!(
                    f,
                    "its place is taken by an 'ingress' qdisc, which knows no way out, or by a filter that is not \
                     arpwarden's; 'tc qdisc show dev {interface}' and 'tc filter show dev {interface} ingress' (or \
                     'egress') show it"
                )
            }
            Self::Kernel { what: Attaching::Guard | Attaching::Program(Mode::Tc), source, .. }
                if source.raw_os_error() == Some(libc::ENOENT) =>
            {
                f.write_str(
                    "the kernel has no clsact qdisc or no BPF filters for it: load the modules sch_ingress and cls_bpf",
                )
            }
            Self::Kernel { .. } => f.write_str("the kernel refuses; see its log for a reason"),
        }
    }
}

impl Error for AttachError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unseen { source, .. } => Some(source),
            Self::Unsupported { source, .. }
            | Self::NotPermitted { source, .. }
            | Self::Kernel { source, .. } => Some(source),
            Self::Load { source, .. } => Some(&**source),
            Self::NoSuchInterface { .. }
            | Self::AlreadyAttached { .. }
            | Self::OtherInstance { .. }
            | Self::Foreign { .. } => None,
        }
    }
}

/// Where a program is on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// XDP, attached so; `None`: in hardware, or in several modes at once.
    Xdp(Option<Mode>),
    /// tc, for what comes in.
    Ingress,
    /// tc, for what leaves.
    Egress,
}

impl Place {
    /// The word for it of ip-link(8).
    const fn flag(self) -> &'static str {
        match self {
            Self::Xdp(Some(Mode::Native)) => "xdpdrv",
            Self::Xdp(Some(Mode::Generic)) => "xdpgeneric",
            Self::Xdp(Some(Mode::Tc) | None) | Self::Ingress | Self::Egress => "xdp",
        }
    }
}

/// Somebody else's program on an interface, as far as the kernel tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignProgram {
    /// The kernel's identifier of it.
    pub id: u32,
    /// Its name; the kernel keeps 15 bytes.
    pub name: Option<String>,
    /// Where it is.
    pub place: Place,
    /// The user who loaded it.
    pub created_by_uid: Option<u32>,
    /// When it was loaded.
    pub loaded_at: Option<SystemTime>,
    /// The identifier of the link that holds it there; `None` if it was attached by netlink, as `ip link` does.
    pub link: Option<u32>,
}

impl fmt::Display for ForeignProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.place {
            Place::Xdp(_) => "XDP program ",
            Place::Ingress | Place::Egress => "tc program ",
        })?;
        self.id.fmt(f)?;
        if let Some(name) = &self.name {
            write!(f, " '{name}'")?;
        }
        f.write_str(match self.place {
            Place::Xdp(Some(Mode::Native)) => " (native",
            Place::Xdp(Some(Mode::Generic)) => " (generic",
            Place::Xdp(Some(Mode::Tc) | None) => " (in hardware or several modes",
            Place::Ingress => " (ingress",
            Place::Egress => " (egress",
        })?;
        match self.link {
            Some(link) => write!(f, ", by link {link}")?,
            None => f.write_str(", by netlink")?,
        }
        if let Some(uid) = self.created_by_uid {
            write!(f, ", loaded by user {uid}")?;
        }
        if let Some(at) = self.loaded_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            // The kernel counts from boot, so finer than a second would only pretend.
            write!(f, " at {}", clock::rfc3339_seconds(Duration::from_secs(at.as_secs())))?;
        }
        f.write_str(")")
    }
}

/// Why the program could not be taken off an interface.
#[derive(Debug)]
pub struct DetachError {
    /// Index of the interface.
    pub index: u32,
    /// The kernel's answer.
    pub source: io::Error,
}

impl fmt::Display for DetachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "taking the program and the guard off interface #{} failed; 'arpwarden unload' does it when the daemon \
             has ended",
            self.index
        )
    }
}

impl Error for DetachError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Why a map could not be read or written.
#[derive(Debug)]
pub struct TableError {
    /// The map's name.
    pub map: &'static str,
    /// It was to be written.
    pub writing: bool,
    /// The kernel's answer.
    pub source: MapError,
}

impl TableError {
    pub(super) const fn read(map: &'static str, source: MapError) -> Self {
        Self { map, writing: false, source }
    }

    pub(super) const fn write(map: &'static str, source: MapError) -> Self {
        Self { map, writing: true, source }
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = if self.writing { "writing to" } else { "reading from" };
        write!(f, "{doing} the program's map {} failed", self.map)?;
        let MapError::SyscallError(error) = &self.source else { return Ok(()) };
        if error.io_error.raw_os_error() == Some(libc::E2BIG) {
            f.write_str(": it is full")?;
        }
        Ok(())
    }
}

impl Error for TableError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Why an address could not be made known to the program.
#[derive(Debug)]
pub enum InstallError {
    /// There is no room.
    Full {
        /// The address.
        key: AddressKey,
        /// How many there are.
        capacity: u32,
    },
    /// A map could not be read or written.
    Table {
        /// The address.
        key: AddressKey,
        /// Which, and why.
        source: TableError,
    },
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { key, capacity } => write!(
                f,
                "making {} known to the program: all {capacity} places are taken; give addresses up first \
                 ('offline', 'unwatch'), or unload and run with a larger 'capacity' ([daemon] of the configuration)",
                key.address
            ),
            Self::Table { key, .. } => write!(f, "making {} known to the program", key.address),
        }
    }
}

impl Error for InstallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Full { .. } => None,
            Self::Table { source, .. } => Some(source),
        }
    }
}

/// The program does not know the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownAddress {
    /// Which one.
    pub key: AddressKey,
}

impl fmt::Display for UnknownAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "storing the state of {}: the program does not know it on interface #{}",
            self.key.address, self.key.interface
        )
    }
}

impl Error for UnknownAddress {}

/// An error and its sources in one line.
pub(super) struct Chain<'a>(pub(super) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}
