//! Loading the program, and what the kernel wants for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use arpwarden_common::{
    abi::{self, MAX_ADDRESSES},
    names,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapError},
    programs::Program,
    util::KernelVersion,
};
use aya_log::EbpfLogger;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::{Datapath, OBJECT, error::LoadError, shared::Slots};

impl Datapath {
    /// Loads the program with messages up to `log_level`: 0 none, 1 errors … 5 everything (beyond: as 5). The
    /// program for multi-buffer frames is taken where the kernel has it (Linux 5.18). Nothing is attached.
    ///
    /// # Errors
    /// [`LoadError`] says what is missing: a capability, memory that may be locked, a feature of the kernel.
    pub fn load(log_level: u8) -> Result<Self, LoadError> {
        check_abi(OBJECT)?;
        let memory = raise_memlock();
        let level = log_level.min(5);
        let mut ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &level, false)
            .load(OBJECT)
            .map_err(|error| LoadError::of_object(error, &memory))?;
        let program = load_best(&mut ebpf, &memory)?;
        let slots = ebpf.map(names::SLOTS).ok_or(LoadError::Incomplete { lacks: names::SLOTS })?;
        let slots = Slots::of(slots)?;
        let logger = match level {
            0 => None,
            1.. => Some(EbpfLogger::init(&mut ebpf).map_err(|source| LoadError::Messages { source })?),
        };
        Ok(Self {
            program,
            addresses: take(&mut ebpf, names::ADDRESSES)?,
            slots,
            records: take(&mut ebpf, names::RECORDS)?,
            address_counters: take(&mut ebpf, names::ADDRESS_COUNTERS)?,
            hints: take(&mut ebpf, names::HINTS)?,
            ports: take(&mut ebpf, names::PORTS)?,
            own_macs: take(&mut ebpf, names::OWN_MACS)?,
            counters: take(&mut ebpf, names::COUNTERS)?,
            events: Some(take(&mut ebpf, names::EVENTS)?),
            logger,
            installed: BTreeMap::new(),
            hinted: BTreeMap::new(),
            free: (0..MAX_ADDRESSES).collect(),
            own: BTreeSet::new(),
            links: BTreeMap::new(),
            ebpf,
        })
    }
}

/// Reads the layout version back from the object.
fn check_abi(object: &[u8]) -> Result<(), LoadError> {
    let found = abi_version(object);
    if found == Some(abi::ABI_VERSION) { Ok(()) } else { Err(LoadError::Layout { found }) }
}

pub(super) fn abi_version(object: &[u8]) -> Option<u32> {
    let file = object::File::parse(object).ok()?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(names::ABI_VERSION))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let at = usize::try_from(symbol.address().checked_sub(section.address())?).ok()?;
    let bytes = section.data().ok()?.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Loads the better of the two programs that this kernel takes.
fn load_best(ebpf: &mut Ebpf, memory: &Memory) -> Result<&'static str, LoadError> {
    // The flag for multi-buffer frames is EINVAL before Linux 5.18. If it was something else, the second
    // program meets it as well.
    if load_one(ebpf, names::XDP_FRAGS, memory).is_ok() {
        return Ok(names::XDP_FRAGS);
    }
    load_one(ebpf, names::XDP, memory)?;
    Ok(names::XDP)
}

fn load_one(ebpf: &mut Ebpf, name: &'static str, memory: &Memory) -> Result<(), LoadError> {
    let Some(Program::Xdp(program)) = ebpf.program_mut(name) else {
        return Err(LoadError::Incomplete { lacks: name });
    };
    program.load().map_err(|source| LoadError::of_program(source, memory))
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, map: &'static str) -> Result<T, LoadError> {
    let taken = ebpf.take_map(map).ok_or(LoadError::Incomplete { lacks: map })?;
    T::try_from(taken).map_err(|source| LoadError::Shape { map, source })
}

/// What this process may lock, which kernels before 5.11 count maps against.
pub(super) enum Memory {
    /// Not counted, or without limit.
    Free,
    Limited,
}

/// Takes the limit on locked memory away where the kernel counts maps against it (before Linux 5.11).
fn raise_memlock() -> Memory {
    if KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 11, 0)) {
        return Memory::Free;
    }
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a valid `rlimit` that outlives the call.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    if raised == 0 { Memory::Free } else { Memory::Limited }
}

/// The capabilities that the daemon needs (capabilities(7)), with their numbers: CAP_BPF for programs and maps,
/// CAP_NET_ADMIN for XDP and addresses, CAP_NET_RAW for packet sockets, CAP_PERFMON for what the verifier otherwise
/// forbids around pointers.
const CAPABILITIES: [(&str, u32); 4] =
    [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_PERFMON", 38)];
pub(super) const CAP_SYS_ADMIN: u32 = 21;
/// What CAP_SYS_ADMIN stands for as well.
const SYS_ADMIN_INCLUDES: [&str; 2] = ["CAP_BPF", "CAP_PERFMON"];

/// Those of [`CAPABILITIES`] that this process lacks; none if it can't be told.
pub fn missing_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.map_or_else(Vec::new, missing_from)
}

pub(super) fn missing_from(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective & 1 << number != 0;
    CAPABILITIES
        .iter()
        .filter(|(name, number)| !(has(*number) || SYS_ADMIN_INCLUDES.contains(name) && has(CAP_SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect()
}
