//! Loading the programs, and what the kernel wants for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    os::fd::BorrowedFd,
    sync::atomic::Ordering,
};

use arpwarden_common::{abi, index, names};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::Program,
    util::KernelVersion,
};
use aya_log::EbpfLogger;

use super::{
    Datapath, Mode, OBJECT, Responder,
    adopt::Found,
    attach::TcWay,
    error::LoadError,
    layout,
    pins::{Pinned, Pins, PinsError},
    sys,
    tables::{Tables, possible_cpus},
};

impl Datapath {
    /// Loads the guard, and the program of each mode in which one is attached, with messages up to `log_level`: 0 none,
    /// 1 errors … 5 everything (beyond: as 5). A program of another mode is loaded when it is attached for the first
    /// time: to verify one takes the kernel a fifth of a second. What an earlier run has left behind the
    /// pins is taken over: its maps are used, and its programs replaced where they are attached, each between two
    /// frames. Nothing else is attached. New maps hold `capacity` addresses, 1..=[`abi::MAX_CAPACITY`]; those of an earlier
    /// run hold what they held then ([`Self::capacity`]).
    ///
    /// # Errors
    /// [`LoadError`] says what is missing: a capability, memory that may be locked, a feature of the kernel, a place
    /// for the pins; or what is different in the maps of the earlier run, which is left as it was then.
    pub fn open(pins: &Pins, log_level: u8, capacity: u32) -> Result<(Self, Found), LoadError> {
        layout::check(OBJECT)?;
        pins.prepare().map_err(LoadError::pins)?;
        let adopting = match pins.pinned()? {
            Pinned::All => true,
            Pinned::Nothing => false,
            Pinned::Part => {
                pins.clear().and_then(|()| pins.prepare()).map_err(LoadError::pins)?;
                false
            }
        };
        pins.settle().map_err(LoadError::pins)?;
        let capacity = if adopting { pins.capacity()? } else { capacity.clamp(1, abi::MAX_CAPACITY) };
        let opened = Self::load(pins, log_level, capacity).and_then(|mut datapath| {
            let found = match adopting {
                true => Found::Adopted(datapath.adopt()?),
                false => Found::Nothing,
            };
            let guard = datapath.guard_fd().map_err(|source| datapath.unpinned("guard", source));
            guard.and_then(|fd| datapath.pin_program("guard", fd)).map_err(LoadError::pins)?;
            // From here on there is something that another run can take over.
            if let Some(control) = datapath.tables.control() {
                control.layout.store(abi::ABI_VERSION.into(), Ordering::Release);
            }
            Ok((datapath, found))
        });
        if opened.is_err()
            && !adopting
            && let Err(error) = pins.clear()
        {
            tracing::warn!("removing what was pinned: {error}");
        }
        opened
    }

    fn load(pins: &Pins, log_level: u8, capacity: u32) -> Result<Self, LoadError> {
        let memory = raise_memlock();
        let level = log_level.min(5);
        let buckets = index::buckets(capacity);
        let mut loader = EbpfLoader::new();
        loader.override_global(names::CAPACITY, &capacity, true);
        loader.override_global(names::INDEX_BUCKETS, &buckets, true);
        for (map, entries) in names::sizes(capacity, possible_cpus()?) {
            loader.map_max_entries(map, entries);
        }
        loader.override_global(aya_log::LEVEL, &level, false);
        #[cfg(feature = "omit")]
        let left_out = match crate::omit::omission() {
            Some(crate::omit::Omission::Program(bits)) => bits,
            Some(crate::omit::Omission::Adoption) | None => 0,
        };
        #[cfg(feature = "omit")]
        loader.override_global(names::OMIT, &left_out, true);
        for map in names::PINNED {
            loader.map_pin_path(map, pins.map(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| LoadError::of_object(error, &memory))?;
        let guard = load_one(&mut ebpf, names::GUARD, &memory)?;
        let logger = match level {
            0 => None,
            // By the program: what is loaded later finds the map where it was.
            1.. => Some(EbpfLogger::init_from_id(guard.id).map_err(|source| LoadError::Messages { source })?),
        };
        let events = {
            let map = names::EVENTS;
            let shape = |source| LoadError::Shape { map, source };
            let data = MapData::from_pin(pins.map(map)).map_err(shape)?;
            RingBuf::try_from(Map::from_map_data(data).map_err(shape)?).map_err(shape)?
        };
        Ok(Self {
            pins: pins.clone(),
            xdp: None,
            tc: None,
            guard: guard.id,
            tc_way: TcWay::of_kernel(),
            tables: Tables::open(pins, capacity)?,
            events: Some(events),
            logger,
            installed: BTreeMap::new(),
            segments: BTreeMap::new(),
            budgeted: BTreeSet::new(),
            counted: BTreeSet::new(),
            fresh: 0,
            free: VecDeque::new(),
            left: VecDeque::new(),
            own: BTreeSet::new(),
            allowed: BTreeSet::new(),
            ebpf,
        })
    }

    /// Loads the program for this mode, and pins it in the place of an earlier one; done already if it is loaded. Of
    /// several the best that this kernel takes.
    pub(super) fn want(&mut self, mode: Mode) -> Result<(), LoadError> {
        let (names, pin): (&[_], _) = match mode {
            // The flag for multi-buffer frames is EINVAL before Linux 5.18, and so are atomic operations with a result
            // before 5.12, which the kernel refuses before it has walked a step. If it was something else, the last
            // program meets it as well.
            Mode::Native | Mode::Generic => (&[names::XDP_FRAGS, names::XDP, names::XDP_BASIC], "xdp"),
            Mode::Tc => (&[names::TC, names::TC_BASIC], "tc"),
        };
        if self.responder(mode).is_some() {
            return Ok(());
        }
        let loaded = load_best(&mut self.ebpf, names, &raise_memlock())?;
        match mode {
            Mode::Native | Mode::Generic => self.xdp = Some(loaded),
            Mode::Tc => self.tc = Some(loaded),
        }
        let program = self.responder_fd(mode).map_err(|source| self.unpinned(pin, source));
        program.and_then(|fd| self.pin_program(pin, fd)).map_err(LoadError::pins)
    }

    /// Pins a program in the place of an earlier one.
    fn pin_program(&self, name: &str, program: BorrowedFd<'_>) -> Result<(), PinsError> {
        let path = self.pins.programs().join(name);
        let new = self.pins.programs().join(format!("{name}-new"));
        super::pins::remove_file(&new)?;
        sys::pin(program, &new)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| self.unpinned(name, source))
    }

    fn unpinned(&self, name: &str, source: io::Error) -> PinsError {
        PinsError::File { doing: "pinning the program at", path: self.pins.programs().join(name), source }
    }
}

/// Loads the first of these programs that the kernel takes.
fn load_best(ebpf: &mut Ebpf, names: &[&'static str], memory: &Memory) -> Result<Responder, LoadError> {
    let Some((last, better)) = names.split_last() else {
        return Err(LoadError::Incomplete { lacks: "a program" });
    };
    better
        .iter()
        .find_map(|name| load_one(ebpf, name, memory).ok())
        .map_or_else(|| load_one(ebpf, last, memory), Ok)
}

fn load_one(ebpf: &mut Ebpf, name: &'static str, memory: &Memory) -> Result<Responder, LoadError> {
    let incomplete = LoadError::Incomplete { lacks: name };
    let refused = |source| LoadError::of_program(source, memory);
    let info = match ebpf.program_mut(name) {
        Some(Program::Xdp(program)) => program.load().and_then(|()| program.info()),
        Some(Program::SchedClassifier(program)) => program.load().and_then(|()| program.info()),
        Some(_) | None => return Err(incomplete),
    };
    Ok(Responder { name, id: info.map_err(refused)?.id() })
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
