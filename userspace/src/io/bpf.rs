//! The program in the kernel: loading, attaching, its maps as typed handles, its events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error,
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use arpwarden_common::{
    abi::{
        self, AddressCounters, AddressKey, Counter, Event, Hint, MAX_ADDRESSES, Port, PortPlace, Record, Slot,
    },
    names,
    net::{MacAddr, Vlan},
    state::StateWord,
};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{
        Program, ProgramError, Xdp, XdpError, XdpMode,
        links::{Link as _, LinkType},
        loaded_links, loaded_programs,
        xdp::XdpLink,
    },
    sys::SyscallError,
    util::KernelVersion,
};
use aya_log::EbpfLogger;
use log::Log;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::{clock, link::XdpAttached, netlink};

/// The compiled program, as `build.rs` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/arpwarden-ebpf"));

/// How the program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Run by the driver, before the kernel makes a packet of the frame.
    Native,
    /// Run by the kernel, whatever the driver.
    Generic,
}

impl Mode {
    /// The name used in commands and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Driver,
            Mode::Generic => Self::Skb,
        }
    }
}

/// The loaded program with its maps. Dropping it detaches and unloads everything.
pub struct Datapath {
    ebpf: Ebpf,
    /// Which of the two programs is loaded.
    program: &'static str,
    addresses: HashMap<MapData, AddressKey, u32>,
    slots: Slots,
    records: Array<MapData, Record>,
    address_counters: PerCpuArray<MapData, AddressCounters>,
    hints: Array<MapData, Hint>,
    ports: Array<MapData, PortPlace>,
    own_macs: HashMap<MapData, MacAddr, u8>,
    counters: PerCpuArray<MapData, u64>,
    events: Option<RingBuf<MapData>>,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    installed: BTreeMap<AddressKey, Installed>,
    /// The slots that share a hint's place.
    hinted: BTreeMap<u32, Vec<u32>>,
    /// Slots that nothing leads to, the one left longest ago first: what the program still remembers of an
    /// earlier address in the same slot is then as old as can be.
    free: VecDeque<u32>,
    own: BTreeSet<MacAddr>,
    links: BTreeMap<u32, XdpLink>,
}

/// An address in the maps.
struct Installed {
    slot: u32,
    /// What the program had counted in this slot for earlier addresses: only the program writes there, so
    /// counting from zero means subtracting this.
    before: (Record, AddressCounters),
}

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

    /// Whether the loaded program takes frames of several buffers (Linux 5.18). Without, native mode is refused
    /// at an MTU above a page or so.
    pub fn multi_buffer(&self) -> bool {
        self.program == names::XDP_FRAGS
    }

    /// The loaded program, for test runs.
    ///
    /// # Errors
    /// None once [`Datapath::load`] has succeeded; the type has room for them.
    pub fn program(&mut self) -> Result<&mut Xdp, ProgramError> {
        let program = self.ebpf.program_mut(self.program).ok_or(ProgramError::NotLoaded)?;
        program.try_into()
    }

    /// The events, once; a second reader gets none and an error when it waits.
    pub fn take_events(&mut self) -> EventReader {
        EventReader { source: self.events.take().map_or(Source::Gone, Source::Idle) }
    }

    /// The program's messages, once; `None` if they are switched off. They go to the [`log::logger`] that was
    /// installed when the program was loaded.
    pub fn take_logger(&mut self) -> Option<Logger> {
        Some(Logger { source: Source::Idle(self.logger.take()?) })
    }

    /// Attaches the program to the interface with this index; `name` is for messages. May take the link down
    /// for a while: some drivers set their rings up anew.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then, and a foreign program is left as it was.
    pub fn attach(&mut self, index: u32, name: &str, mode: Mode) -> Result<(), AttachError> {
        let interface = || name.to_owned();
        // aya attaches by plain netlink where a link is refused with EINVAL, and that would replace what is there.
        let (mtu, foreign) = look_at(index, name)?;
        if let Some(xdp) = foreign {
            return Err(if self.links.contains_key(&index) {
                AttachError::AlreadyAttached { interface: interface() }
            } else {
                AttachError::Foreign { interface: interface(), mode, program: who_is(xdp) }
            });
        }
        let multi_buffer = self.multi_buffer();
        let failed = |source| AttachError::Kernel { interface: interface(), mode, source: Box::new(source) };
        let xdp = self.program().map_err(failed)?;
        let attached = xdp.attach_to_if_index(index, mode.into()).and_then(|id| xdp.take_link(id));
        let source = match attached {
            Ok(link) => {
                // Replaces the link of a program that somebody has taken off, if there is one.
                self.links.insert(index, link);
                return Ok(());
            }
            Err(source) => source,
        };
        match errno(&source) {
            // The same mode, or the other one, was taken meanwhile.
            Some(libc::EBUSY | libc::EEXIST) => match look_at(index, name)? {
                (_, Some(xdp)) => {
                    Err(AttachError::Foreign { interface: interface(), mode, program: who_is(xdp) })
                }
                (_, None) => Err(failed(source)),
            },
            Some(libc::ENODEV) => Err(AttachError::NoSuchInterface { interface: interface() }),
            Some(libc::EPERM) => Err(AttachError::NotPermitted {
                interface: interface(),
                missing: missing_capabilities(),
                source: Box::new(source),
            }),
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::E2BIG) => {
                let source = Box::new(source);
                Err(AttachError::Unsupported { interface: interface(), mode, mtu, multi_buffer, source })
            }
            Some(_) | None => Err(failed(source)),
        }
    }

    /// Takes the program off the interface with this index; done already if it isn't there.
    ///
    /// # Errors
    /// The kernel's. An interface that has gone is none.
    pub fn detach(&mut self, index: u32) -> Result<(), DetachError> {
        match self.links.remove(&index) {
            None => Ok(()),
            Some(link) => link.detach().map_err(|source| DetachError { index, source }),
        }
    }

    /// Makes the program act on frames that come in on `index`, in the name of `port`.
    ///
    /// # Errors
    /// All places where this port can be are taken: four others have indices just like it.
    pub fn set_port(&mut self, index: u32, port: Port) -> Result<(), TableError> {
        let failed = |source| TableError::write(names::PORTS, source);
        let place = match self.port_place(index, index)? {
            Some(place) => place,
            None => self
                .port_place(index, PortPlace::VACANT.index)?
                // As the kernel says it of a hash.
                .ok_or_else(|| {
                    let io_error = io::Error::from_raw_os_error(libc::E2BIG);
                    failed(SyscallError { call: "bpf_map_update_elem", io_error }.into())
                })?,
        };
        self.ports.set(place, PortPlace { port, index, pad: 0 }, 0).map_err(failed)
    }

    /// Makes the program pass and count frames that come in on `index`; done already if it does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_port(&mut self, index: u32) -> Result<(), TableError> {
        let Some(place) = self.port_place(index, index)? else { return Ok(()) };
        self.ports.set(place, PortPlace::VACANT, 0).map_err(|source| TableError::write(names::PORTS, source))
    }

    /// The first of the places for the port `index` that holds the port `there`.
    fn port_place(&self, index: u32, there: u32) -> Result<Option<u32>, TableError> {
        for candidate in PortPlace::candidates(index) {
            let place =
                self.ports.get(&candidate, 0).map_err(|source| TableError::read(names::PORTS, source))?;
            if place.index == there {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    /// Tells the program which MACs are this namespace's; writes only the difference, new ones first.
    ///
    /// # Errors
    /// More than [`abi::MAX_OWN_MACS`]. What was written stays; another call goes on from there.
    pub fn set_own_macs(&mut self, macs: &BTreeSet<MacAddr>) -> Result<(), TableError> {
        let failed = |source| TableError::write(names::OWN_MACS, source);
        for &mac in macs {
            if !self.own.contains(&mac) {
                self.own_macs.insert(mac, 1, 0).map_err(failed)?;
                self.own.insert(mac);
            }
        }
        for mac in self.own.difference(macs).copied().collect::<Vec<_>>() {
            removed(self.own_macs.remove(&mac)).map_err(failed)?;
            self.own.remove(&mac);
        }
        Ok(())
    }

    /// Makes an address known to the program, with `word` from the first frame on, and gives its slot. An address
    /// that is known already only gets the new word.
    ///
    /// # Errors
    /// All [`MAX_ADDRESSES`] slots are taken, or the kernel refuses.
    pub fn install(&mut self, key: AddressKey, word: StateWord) -> Result<u32, InstallError> {
        if let Some(installed) = self.installed.get(&key) {
            self.slots.store(installed.slot, word);
            return Ok(installed.slot);
        }
        let Some(slot) = self.free.pop_front() else { return Err(InstallError::Full { key }) };
        let made = self.counted(slot).and_then(|before| {
            // Before anything leads to it, and before the word: whoever finds the word finds its address.
            self.slots.fill(slot, &key, word);
            self.addresses
                .insert(key, slot, 0)
                .map_err(|source| TableError::write(names::ADDRESSES, source))?;
            self.hint(&key, |slots| slots.push(slot))?;
            Ok(Installed { slot, before })
        });
        match made {
            Ok(installed) => {
                self.installed.insert(key, installed);
                Ok(slot)
            }
            Err(source) => {
                self.slots.store(slot, StateWord::VACANT);
                let unhinted = self.hint(&key, |slots| slots.retain(|there| *there != slot));
                // A slot that something still leads to is not free.
                if removed(self.addresses.remove(&key)).is_ok() && unhinted.is_ok() {
                    self.free.push_front(slot);
                }
                Err(InstallError::Table { key, source })
            }
        }
    }

    /// Stores the word of an address: one store, seen from the next frame on.
    ///
    /// # Errors
    /// The address is not known to the program.
    pub fn store(&mut self, key: &AddressKey, word: StateWord) -> Result<(), UnknownAddress> {
        let installed = self.installed.get(key).ok_or(UnknownAddress { key: *key })?;
        self.slots.store(installed.slot, word);
        Ok(())
    }

    /// Makes the program forget an address; done already if it doesn't know it.
    ///
    /// # Errors
    /// The kernel's; the address is treated as unmanaged all the same, and its slot is not used again.
    pub fn remove(&mut self, key: &AddressKey) -> Result<(), TableError> {
        let Some(Installed { slot, .. }) = self.installed.remove(key) else { return Ok(()) };
        let unhinted = self.hint(key, |slots| slots.retain(|there| *there != slot));
        let unlinked = removed(self.addresses.remove(key));
        self.slots.store(slot, StateWord::VACANT);
        unlinked.map_err(|source| TableError::write(names::ADDRESSES, source)).and(unhinted)?;
        self.free.push_back(slot);
        Ok(())
    }

    /// Changes which slots have the address's hint, and writes that hint.
    fn hint(&mut self, key: &AddressKey, change: impl FnOnce(&mut Vec<u32>)) -> Result<(), TableError> {
        let place = Hint::place(key.address);
        let slots = self.hinted.entry(place).or_default();
        change(slots);
        let hint = match slots[..] {
            [] => Hint::NONE,
            [slot] => Hint::slot(slot),
            [_, _, ..] => Hint::MANY,
        };
        if slots.is_empty() {
            self.hinted.remove(&place);
        }
        self.hints.set(place, hint, 0).map_err(|source| TableError::write(names::HINTS, source))
    }

    /// What the program has counted, over all CPUs, by the number of [`Counter`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<[u64; Counter::ALL.len()], TableError> {
        let mut sums = [0; Counter::ALL.len()];
        for (sum, index) in sums.iter_mut().zip(0..) {
            let values =
                self.counters.get(&index, 0).map_err(|source| TableError::read(names::COUNTERS, source))?;
            *sum = values.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value));
        }
        Ok(sums)
    }

    /// What the program knows of an address and has counted since it was installed; `None` if it doesn't know it.
    pub fn address_counters(&self, key: &AddressKey) -> Option<(Record, AddressCounters)> {
        let Installed { slot, before: (old_record, old_counters) } = self.installed.get(key)?;
        let (record, counters) = match self.counted(*slot) {
            Ok(counted) => counted,
            Err(error) => {
                warn!(address = %key.address, "{}", Chain(&error));
                return None;
            }
        };
        Some((since(record, old_record), since_counted(counters, old_counters)))
    }

    /// What the program has counted in a slot.
    fn counted(&self, slot: u32) -> Result<(Record, AddressCounters), TableError> {
        let record = self.records.get(&slot, 0).map_err(|source| TableError::read(names::RECORDS, source))?;
        let per_cpu = self
            .address_counters
            .get(&slot, 0)
            .map_err(|source| TableError::read(names::ADDRESS_COUNTERS, source))?;
        let counters = per_cpu.iter().fold(AddressCounters::default(), |sum, cpu| AddressCounters {
            answered: sum.answered.wrapping_add(cpu.answered),
            shielded: sum.shielded.wrapping_add(cpu.shielded),
        });
        Ok((record, counters))
    }
}

/// The part of a record that is younger than `before`.
fn since(record: Record, before: &Record) -> Record {
    let unseen = record.owner_seen_ns == before.owner_seen_ns;
    Record {
        owner: if unseen { MacAddr::ZERO } else { record.owner },
        owner_seen_ns: if unseen { 0 } else { record.owner_seen_ns },
        claims: record.claims.wrapping_sub(before.claims),
        probes: record.probes.wrapping_sub(before.probes),
        echoes: record.echoes.wrapping_sub(before.echoes),
        flooded: record.flooded.wrapping_sub(before.flooded),
        ..record
    }
}

fn since_counted(counters: AddressCounters, before: &AddressCounters) -> AddressCounters {
    AddressCounters {
        answered: counters.answered.wrapping_sub(before.answered),
        shielded: counters.shielded.wrapping_sub(before.shielded),
    }
}

/// A key that wasn't there is removed.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

/// The values of [`names::SLOTS`], shared with the program.
struct Slots {
    first: NonNull<SharedSlot>,
}

/// A [`Slot`] whose fields another CPU may read at any time.
#[repr(C)]
struct SharedSlot {
    word: AtomicU64,
    lease_until_ns: AtomicU64,
    interface: AtomicU32,
    /// Both halves of a [`Vlan`], as they are in memory.
    vlan: AtomicU32,
    address: AtomicU32,
    group: AtomicU32,
}
const _: () = assert!(
    size_of::<SharedSlot>() == size_of::<Slot>()
        && align_of::<SharedSlot>() == align_of::<Slot>()
        && std::mem::offset_of!(SharedSlot, lease_until_ns) == std::mem::offset_of!(Slot, lease_until_ns)
        && std::mem::offset_of!(SharedSlot, interface) == std::mem::offset_of!(Slot, interface)
        && std::mem::offset_of!(SharedSlot, vlan) == std::mem::offset_of!(Slot, vlan)
        && std::mem::offset_of!(SharedSlot, address) == std::mem::offset_of!(Slot, address)
        && std::mem::offset_of!(SharedSlot, group) == std::mem::offset_of!(Slot, group)
);

impl Slots {
    /// Bytes of the mapping; the kernel rounds both this and the map up to pages.
    const LEN: usize = size_of::<SharedSlot>() * MAX_ADDRESSES as usize;

    fn of(map: &Map) -> Result<Self, LoadError> {
        let Map::Array(data) = map else { return Err(LoadError::Incomplete { lacks: names::SLOTS }) };
        let array = Array::<_, Slot>::try_from(map)
            .map_err(|source| LoadError::Shape { map: names::SLOTS, source })?;
        if array.len() != MAX_ADDRESSES {
            return Err(LoadError::Incomplete { lacks: names::SLOTS });
        }
        Self::map(data.fd().as_fd()).map_err(|source| LoadError::Mapping { source })
    }

    fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use; the
        // descriptor is open, and the mapping outlives it by itself.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Self { first })
    }

    fn all(&self) -> &[SharedSlot] {
        // SAFETY: `first` begins a mapping of LEN bytes, page-aligned, that lives until `self` is dropped. The
        // kernel lays the array's values end to end (32 bytes, a multiple of 8) and backs all of them; every
        // bit pattern is a value, and both sides touch them by atomic or single aligned accesses only.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), MAX_ADDRESSES as usize) }
    }

    fn store(&self, slot: u32, word: StateWord) {
        if let Some(place) = self.all().get(slot as usize) {
            place.word.store(word.bits(), Ordering::Release);
        }
    }

    /// Gives a vacant slot to an address: without lease and group, the word last.
    fn fill(&self, slot: u32, key: &AddressKey, word: StateWord) {
        if let Some(place) = self.all().get(slot as usize) {
            let AddressKey { interface, vlan: Vlan { outer, inner }, address } = *key;
            let ([a, b], [c, d]) = (outer.to_ne_bytes(), inner.to_ne_bytes());
            place.interface.store(interface, Ordering::Relaxed);
            place.vlan.store(u32::from_ne_bytes([a, b, c, d]), Ordering::Relaxed);
            place.address.store(u32::from_ne_bytes(address.octets()), Ordering::Relaxed);
            place.group.store(0, Ordering::Relaxed);
            // The program reads word, lease, key in this order, so the key has to be there before the others.
            place.lease_until_ns.store(0, Ordering::Release);
            place.word.store(word.bits(), Ordering::Release);
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.first.as_ptr().cast(), Self::LEN) };
    }
}

/// The program's events.
pub struct EventReader {
    source: Source<RingBuf<MapData>>,
}

/// A descriptor that the runtime watches from the first time on that somebody waits for it.
enum Source<T: AsFd + std::os::fd::AsRawFd> {
    Idle(T),
    Watched(AsyncFd<T>),
    Gone,
}

impl<T: AsFd + std::os::fd::AsRawFd> Source<T> {
    fn watched(&mut self) -> io::Result<&mut AsyncFd<T>> {
        if let Self::Idle(_) = self
            && let Self::Idle(owner) = std::mem::replace(self, Self::Gone)
        {
            *self = Self::Watched(super::watch(owner)?);
        }
        match self {
            Self::Watched(fd) => Ok(fd),
            Self::Idle(_) | Self::Gone => Err(io::Error::other("there is only one reader, and it is taken")),
        }
    }
}

impl EventReader {
    /// Waits until there may be an event. Dropping the future loses nothing. After this, [`EventReader::next`]
    /// until it gives none, or come back at once.
    ///
    /// # Errors
    /// There is a reader already, or the runtime is ending.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its I/O driver.
    pub async fn readable(&mut self) -> io::Result<()> {
        let mut ready = self.source.watched()?.readable_mut().await?;
        ready.retain_ready();
        Ok(())
    }

    /// The next event, if there is one now.
    #[expect(clippy::should_implement_trait, reason = "after the last one now, more will come")]
    pub fn next(&mut self) -> Option<Result<Event, Undecodable>> {
        match &mut self.source {
            Source::Idle(ring) => next(ring),
            Source::Watched(fd) => {
                // Would block: forgets the readiness, unless the kernel has told of more since the look.
                let look = |ring: &mut RingBuf<MapData>| next(ring).ok_or(io::ErrorKind::WouldBlock.into());
                fd.try_io_mut(tokio::io::Interest::READABLE, look).ok()
            }
            Source::Gone => None,
        }
    }
}

fn next(ring: &mut RingBuf<MapData>) -> Option<Result<Event, Undecodable>> {
    let item = ring.next()?;
    Some(Event::decode(&item).ok_or(Undecodable { length: item.len() }))
}

/// An item of the ring that is no event of this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undecodable {
    /// Its bytes.
    pub length: usize,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "reading an event of the program: an item of {} bytes is none of layout version {}; it is skipped. \
             Program and daemon come from one build, so please report this",
            self.length,
            abi::ABI_VERSION
        )
    }
}

impl Error for Undecodable {}

/// The program's messages.
pub struct Logger {
    source: Source<EbpfLogger<&'static dyn Log>>,
}

impl Logger {
    /// Waits for messages and hands them to the log. Dropping the future loses nothing. Call it again and again;
    /// where there is no runtime left it never comes back.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its I/O driver.
    pub async fn flush_when_readable(&mut self) {
        let Ok(fd) = self.source.watched() else { return std::future::pending().await };
        let Ok(mut ready) = fd.readable_mut().await else { return std::future::pending().await };
        // Before the look: what comes during it makes it readable again.
        ready.clear_ready();
        ready.get_inner_mut().flush();
    }
}

/// Reads the layout version back from the object.
fn check_abi(object: &[u8]) -> Result<(), LoadError> {
    let found = abi_version(object);
    if found == Some(abi::ABI_VERSION) { Ok(()) } else { Err(LoadError::Layout { found }) }
}

fn abi_version(object: &[u8]) -> Option<u32> {
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
enum Memory {
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
const CAP_SYS_ADMIN: u32 = 21;
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

fn missing_from(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective & 1 << number != 0;
    CAPABILITIES
        .iter()
        .filter(|(name, number)| !(has(*number) || SYS_ADMIN_INCLUDES.contains(name) && has(CAP_SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect()
}

/// Why the program could not be loaded.
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
    /// The state words can't be mapped.
    Mapping {
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
    pub const fn is_permission(&self) -> bool {
        match self {
            Self::NotPermitted { .. } => true,
            Self::LockedMemory { .. }
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

    fn of_object(error: EbpfError, memory: &Memory) -> Self {
        let EbpfError::MapError(MapError::CreateError { name, io_error }) = error else {
            return Self::Object { source: error };
        };
        if io_error.raw_os_error() == Some(libc::EPERM) {
            return Self::refused(io_error, memory);
        }
        Self::Map { map: name, source: io_error }
    }

    fn of_program(error: ProgramError, memory: &Memory) -> Self {
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
        f.write_str("loading the XDP program: ")?;
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
            Self::Mapping { .. } => write!(
                f,
                "mapping the {} bytes of {} into memory failed: it needs Linux 5.5 and as much address space",
                Slots::LEN,
                names::SLOTS
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
            | Self::Mapping { source } => Some(source),
            // Its text is the verifier's log, of which the message has the end.
            Self::Rejected { source: ProgramError::LoadError { io_error, .. } } => Some(io_error),
            Self::Rejected { source } => Some(source),
            Self::Shape { source, .. } => Some(source),
            Self::Messages { source } => Some(source),
            Self::Object { source } => Some(source),
            Self::Layout { .. } | Self::Incomplete { .. } => None,
        }
    }
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
    /// Somebody else's program is there. It was left as it was.
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
        /// [`Datapath::multi_buffer`].
        multi_buffer: bool,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// The kernel does not permit it.
    NotPermitted {
        /// The interface's name.
        interface: String,
        /// Capabilities that this process lacks; empty if it has all that can be checked.
        missing: Vec<&'static str>,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// Something else.
    Kernel {
        /// The interface's name.
        interface: String,
        /// The mode asked for.
        mode: Mode,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
}

impl AttachError {
    /// Whether a missing permission is the reason, so that the command ends with 5.
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }

    /// Whether generic mode may do where this failed.
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { mode: Mode::Native, .. })
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchInterface { interface } => write!(
                f,
                "attaching the XDP program to {interface}: there is no such interface (any more); see 'ip link'"
            ),
            Self::Unseen { interface, .. } => write!(
                f,
                "attaching the XDP program to {interface}: asking rtnetlink what it carries failed, so it was \
                 not touched; try again"
            ),
            Self::AlreadyAttached { interface } => {
                write!(f, "attaching the XDP program to {interface}: this daemon's program is there already")
            }
            Self::Foreign { interface, mode, program } => {
                let off = match program.mode {
                    Some(Mode::Native) => "xdpdrv",
                    Some(Mode::Generic) => "xdpgeneric",
                    None => "xdp",
                };
                write!(
                    f,
                    "attaching the XDP program to {interface} in {} mode: {program} is there; it is not \
                     arpwarden's of this instance and was left as it is. Stop what owns it",
                    mode.name()
                )?;
                match program.link {
                    Some(link) => write!(f, " (or 'bpftool link detach id {link}')"),
                    None => write!(f, " (or 'ip link set dev {interface} {off} off')"),
                }?;
                f.write_str(", or choose another interface")
            }
            Self::Unsupported { interface, mode, mtu, multi_buffer, .. } => {
                write!(
                    f,
                    "attaching the XDP program to {interface} in {} mode: the driver does not take it, as the \
                     interface is set up now (MTU {mtu})",
                    mode.name()
                )?;
                match (mode, multi_buffer) {
                    (Mode::Native, true) => {
                        f.write_str("; use --attach generic, or a smaller MTU, fewer queues, no LRO")
                    }
                    (Mode::Native, false) => f.write_str(
                        "; use --attach generic, or a smaller MTU: before Linux 5.18 there is none above a page",
                    ),
                    (Mode::Generic, _) => f.write_str("; choose another interface"),
                }
            }
            Self::NotPermitted { interface, missing, .. } => {
                write!(f, "attaching the XDP program to {interface}: ")?;
                permission(f, missing)
            }
            Self::Kernel { interface, mode, .. } => write!(
                f,
                "attaching the XDP program to {interface} in {} mode failed; see the kernel's log for a reason",
                mode.name()
            ),
        }
    }
}

impl Error for AttachError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unseen { source, .. } => Some(source),
            Self::Unsupported { source, .. }
            | Self::NotPermitted { source, .. }
            | Self::Kernel { source, .. } => Some(source.as_ref()),
            Self::NoSuchInterface { .. } | Self::AlreadyAttached { .. } | Self::Foreign { .. } => None,
        }
    }
}

/// Somebody else's XDP program on an interface, as far as the kernel tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignProgram {
    /// The kernel's identifier of it.
    pub id: u32,
    /// Its name; the kernel keeps 15 bytes.
    pub name: Option<String>,
    /// How it is attached; `None`: in hardware, or in several modes at once.
    pub mode: Option<Mode>,
    /// The user who loaded it.
    pub created_by_uid: Option<u32>,
    /// When it was loaded.
    pub loaded_at: Option<SystemTime>,
    /// The identifier of the link that holds it there; `None` if it was attached by netlink, as `ip link` does.
    pub link: Option<u32>,
}

impl fmt::Display for ForeignProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XDP program {}", self.id)?;
        if let Some(name) = &self.name {
            write!(f, " '{name}'")?;
        }
        f.write_str(match self.mode {
            Some(Mode::Native) => " (native",
            Some(Mode::Generic) => " (generic",
            None => " (in hardware or several modes",
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

/// What is known of the program with this identifier.
fn who_is(xdp: XdpAttached) -> ForeignProgram {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == xdp.id);
    let link = loaded_links().filter_map(Result::ok).find(|link| {
        link.program_id() == xdp.id && link.link_type().is_ok_and(|kind| matches!(kind, LinkType::Xdp))
    });
    ForeignProgram {
        id: xdp.id,
        name: info.as_ref().and_then(|info| info.name_as_str()).map(str::to_owned),
        mode: xdp.mode,
        created_by_uid: info.as_ref().and_then(|info| info.created_by_uid()),
        loaded_at: info.as_ref().and_then(|info| info.loaded_at()),
        link: link.map(|link| link.id()),
    }
}

/// MTU of an interface and the XDP program on it.
fn look_at(index: u32, name: &str) -> Result<(u32, Option<XdpAttached>), AttachError> {
    match netlink::link_now(index) {
        Ok(Some(link)) => Ok((link.mtu, link.xdp)),
        Ok(None) => Err(AttachError::NoSuchInterface { interface: name.to_owned() }),
        Err(source) => Err(AttachError::Unseen { interface: name.to_owned(), source }),
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(XdpError::NetlinkError(error)) | ProgramError::NetlinkError(error) => {
            error.raw_os_error()
        }
        ProgramError::IOError(error) => error.raw_os_error(),
        _ => None,
    }
}

/// Why the program could not be taken off an interface.
#[derive(Debug)]
pub struct DetachError {
    /// Index of the interface.
    pub index: u32,
    /// The kernel's answer.
    pub source: ProgramError,
}

impl fmt::Display for DetachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "taking the XDP program off interface #{} failed; it goes when this process ends",
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
    const fn read(map: &'static str, source: MapError) -> Self {
        Self { map, writing: false, source }
    }

    const fn write(map: &'static str, source: MapError) -> Self {
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
            Self::Full { key } => write!(
                f,
                "making {} known to the XDP program: all {MAX_ADDRESSES} places are taken; give addresses up \
                 first ('offline', 'unwatch')",
                key.address
            ),
            Self::Table { key, .. } => write!(f, "making {} known to the XDP program", key.address),
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
            "storing the state of {}: the XDP program does not know it on interface #{}",
            self.key.address, self.key.interface
        )
    }
}

impl Error for UnknownAddress {}

/// An error and its sources in one line.
struct Chain<'a>(&'a dyn Error);

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

#[cfg(test)]
mod tests {
    use arpwarden_common::{abi::EventKind, net::Ipv4, state::State, wire::arp::Outgoing};
    use aya::{TestRun as _, programs::TestRunOptions};

    use super::{super::own_network, *};

    #[test]
    fn each_missing_capability_is_named() {
        let bit = |number: u32| 1_u64 << number;
        let all = bit(39) | bit(12) | bit(13) | bit(38);
        assert_eq!(missing_from(all), [""; 0]);
        assert_eq!(missing_from(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]);
        assert_eq!(missing_from(all & !bit(39)), ["CAP_BPF"]);
        assert_eq!(missing_from(all & !bit(12)), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_from(all & !bit(13)), ["CAP_NET_RAW"]);
        assert_eq!(missing_from(all & !bit(38)), ["CAP_PERFMON"]);
        // Before Linux 5.8 there was nothing finer, and it still counts.
        assert_eq!(missing_from(bit(CAP_SYS_ADMIN)), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    }

    #[test]
    fn the_object_says_which_layout_it_was_built_for() {
        assert_eq!(abi_version(OBJECT), Some(abi::ABI_VERSION));
        assert_eq!(abi_version(b"not an object"), None);
    }

    #[test]
    fn what_a_slot_counted_before_is_left_out() {
        let before = Record {
            owner: MacAddr::new([2, 0, 0, 0, 0, 9]),
            owner_seen_ns: 500,
            claims: 10,
            probes: 20,
            echoes: 30,
            flooded: 40,
            ..Record::default()
        };
        let same = since(before, &before);
        assert_eq!(same, Record::default());

        let other = MacAddr::new([2, 0, 0, 0, 0, 8]);
        let now = Record { owner: other, owner_seen_ns: 900, claims: 13, ..before };
        let young = Record { owner: other, owner_seen_ns: 900, claims: 3, ..Record::default() };
        assert_eq!(since(now, &before), young);
    }

    const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const STRANGER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);
    /// A test run's frames come in on the loopback interface, which is the first of every namespace.
    const INDEX: u32 = 1;

    fn key(number: u32) -> AddressKey {
        let address = Ipv4::new((0x0a00_0000 + number).to_be_bytes());
        AddressKey { interface: INDEX, vlan: Vlan::UNTAGGED, address }
    }

    fn online(generation: u8) -> StateWord {
        StateWord::new(OWN, State::Online, StateWord::LOCAL, generation)
    }

    /// One that acts on test runs.
    fn datapath() -> Datapath {
        let mut datapath = Datapath::load(0).unwrap();
        datapath.set_port(INDEX, Port::accepting(OWN, INDEX)).unwrap();
        datapath.set_own_macs(&BTreeSet::from([OWN])).unwrap();
        datapath
    }

    /// Shows the program a frame; gives its XDP action.
    fn show(datapath: &mut Datapath, frame: &Outgoing) -> u32 {
        let mut bytes = [0; Outgoing::MAX_LEN];
        let length = frame.emit(&mut bytes);
        let options = TestRunOptions { data_in: Some(&bytes[..length]), ..TestRunOptions::default() };
        datapath.program().unwrap().test_run(options).unwrap().return_value
    }

    fn who_has(number: u32) -> Outgoing {
        Outgoing::probe(STRANGER, Vlan::UNTAGGED, key(number).address)
    }

    fn claim(number: u32) -> Outgoing {
        Outgoing::announcement(STRANGER, STRANGER, Vlan::UNTAGGED, key(number).address)
    }

    const PASS: u32 = 2;
    const TX: u32 = 3;

    #[test]
    fn the_program_is_attached_in_both_modes_and_taken_off_again() {
        if !own_network::with(&own_network::PAIR) {
            return;
        }
        let index = nix::net::if_::if_nametoindex("a").unwrap();
        let there = || netlink::link_now(index).unwrap().unwrap().xdp;
        let mut datapath = Datapath::load(0).unwrap();
        for mode in [Mode::Generic, Mode::Native] {
            datapath.attach(index, "a", mode).unwrap();
            assert_eq!(there().map(|xdp| xdp.mode), Some(Some(mode)));
            let again = datapath.attach(index, "a", mode);
            assert!(matches!(again, Err(AttachError::AlreadyAttached { .. })), "{again:?}");
            datapath.detach(index).unwrap();
            assert_eq!(there(), None);
            datapath.detach(index).unwrap();
        }
        datapath.attach(index, "a", Mode::Generic).unwrap();
        drop(datapath);
        assert_eq!(there(), None);
    }

    #[test]
    fn a_foreign_program_is_named_and_left_alone() {
        if !own_network::with(&own_network::PAIR) {
            return;
        }
        let index = nix::net::if_::if_nametoindex("a").unwrap();
        let there = || netlink::link_now(index).unwrap().unwrap().xdp;
        let (mut theirs, mut ours) = (Datapath::load(0).unwrap(), Datapath::load(0).unwrap());
        for (their_mode, our_mode) in
            [(Mode::Generic, Mode::Generic), (Mode::Native, Mode::Generic), (Mode::Generic, Mode::Native)]
        {
            theirs.attach(index, "a", their_mode).unwrap();
            let before = there();
            let error = ours.attach(index, "a", our_mode).unwrap_err();
            let AttachError::Foreign { program, .. } = &error else { panic!("{error:?}") };
            assert_eq!(Some(program.id), before.map(|xdp| xdp.id));
            assert_eq!(program.name.as_deref(), Some(theirs.program));
            assert_eq!(program.mode, Some(their_mode));
            assert_eq!(program.created_by_uid, Some(0));
            assert!(program.link.is_some() && program.loaded_at.is_some());
            let text = error.to_string();
            assert!(text.contains(theirs.program) && text.contains(&program.id.to_string()), "{text}");
            assert_eq!(there(), before);
            theirs.detach(index).unwrap();
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        if !own_network::with(&[]) {
            return;
        }
        let error = Datapath::load(0).unwrap().attach(77, "gone0", Mode::Generic).unwrap_err();
        assert!(matches!(error, AttachError::NoSuchInterface { .. }), "{error:?}");
        assert!(error.to_string().contains("gone0"));
    }

    #[test]
    fn a_driver_without_native_mode_is_told_from_other_failures() {
        if !own_network::with(&["link add dev br type bridge"]) {
            return;
        }
        let index = nix::net::if_::if_nametoindex("br").unwrap();
        let error = Datapath::load(0).unwrap().attach(index, "br", Mode::Native).unwrap_err();
        assert!(error.is_unsupported(), "{error:?}");
        assert!(error.to_string().contains("--attach generic"));
    }

    #[test]
    fn the_word_alone_decides_whether_an_address_is_answered() {
        if !own_network::with(&[]) {
            return;
        }
        let mut datapath = datapath();
        assert_eq!(show(&mut datapath, &who_has(5)), PASS);
        assert!(datapath.store(&key(5), online(1)).is_err());

        datapath.install(key(5), online(1)).unwrap();
        assert_eq!(show(&mut datapath, &who_has(5)), TX);
        assert_eq!(show(&mut datapath, &who_has(6)), PASS);

        let silent = StateWord::new(OWN, State::Yielding, 0, 1);
        datapath.store(&key(5), silent).unwrap();
        assert_eq!(show(&mut datapath, &who_has(5)), PASS);
        datapath.store(&key(5), online(2)).unwrap();
        assert_eq!(show(&mut datapath, &who_has(5)), TX);

        let (_, counters) = datapath.address_counters(&key(5)).unwrap();
        assert_eq!(counters.answered, 2);
        assert_eq!(datapath.counters().unwrap()[Counter::Answered as usize], 2);

        datapath.remove(&key(5)).unwrap();
        assert_eq!(show(&mut datapath, &who_has(5)), PASS);
        assert!(datapath.address_counters(&key(5)).is_none());
        datapath.remove(&key(5)).unwrap();
    }

    #[test]
    fn the_own_macs_are_those_told_last() {
        if !own_network::with(&[]) {
            return;
        }
        let mut datapath = datapath();
        datapath.install(key(5), online(1)).unwrap();
        let claims = |datapath: &Datapath| datapath.counters().unwrap()[Counter::Claims as usize];
        show(&mut datapath, &claim(5));
        assert_eq!(claims(&datapath), 1);
        datapath.set_own_macs(&BTreeSet::from([OWN, STRANGER])).unwrap();
        show(&mut datapath, &claim(5));
        assert_eq!(claims(&datapath), 1);
        datapath.set_own_macs(&BTreeSet::from([OWN])).unwrap();
        show(&mut datapath, &claim(5));
        assert_eq!(claims(&datapath), 2);
    }

    #[test]
    fn a_slot_that_is_used_again_counts_from_zero() {
        if !own_network::with(&[]) {
            return;
        }
        let mut datapath = datapath();
        datapath.free.truncate(1);
        let slot = datapath.install(key(5), online(1)).unwrap();
        show(&mut datapath, &who_has(5));
        show(&mut datapath, &claim(5));
        let (record, counters) = datapath.address_counters(&key(5)).unwrap();
        assert_eq!((record.claims, record.owner, counters.answered), (1, STRANGER, 1));

        datapath.remove(&key(5)).unwrap();
        assert_eq!(datapath.install(key(6), online(1)).unwrap(), slot);
        let (record, counters) = datapath.address_counters(&key(6)).unwrap();
        assert_eq!((record.claims, record.owner, counters.answered), (0, MacAddr::ZERO, 0));
        // What leads to the slot no more does not speak for its new address.
        assert_eq!(show(&mut datapath, &who_has(5)), PASS);
        assert_eq!(show(&mut datapath, &who_has(6)), TX);
        assert_eq!(datapath.address_counters(&key(6)).unwrap().1.answered, 1);
    }

    #[test]
    fn the_limit_on_addresses_is_said_and_leaves_the_others_as_they_are() {
        if !own_network::with(&[]) {
            return;
        }
        let mut datapath = datapath();
        for number in 0..MAX_ADDRESSES {
            datapath.install(key(number), online(1)).unwrap();
        }
        // Known already: needs no room.
        datapath.install(key(7), online(2)).unwrap();
        let error = datapath.install(key(MAX_ADDRESSES), online(1)).unwrap_err();
        assert!(matches!(error, InstallError::Full { .. }), "{error:?}");
        assert!(error.to_string().contains("16384"));
        assert_eq!(show(&mut datapath, &who_has(MAX_ADDRESSES - 1)), TX);
        datapath.remove(&key(0)).unwrap();
        datapath.install(key(MAX_ADDRESSES), online(1)).unwrap();
        assert_eq!(show(&mut datapath, &who_has(MAX_ADDRESSES)), TX);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn events_are_waited_for_and_read_to_the_end() {
        if !own_network::with(&[]) {
            return;
        }
        let mut datapath = datapath();
        let mut events = datapath.take_events();
        assert!(datapath.take_events().readable().await.is_err());
        datapath.install(key(5), online(3)).unwrap();
        for _ in 0..3 {
            show(&mut datapath, &claim(5));
            events.readable().await.unwrap();
            let event = events.next().unwrap().unwrap();
            assert_eq!(EventKind::from_number(event.kind), Some(EventKind::Claim));
            assert_eq!((event.address, event.generation), (key(5).address, 3));
            assert_eq!(event.claimant, STRANGER.octets());
            assert!(events.next().is_none());
            // Read to the end: there is nothing to wake up for.
            tokio::select! {
                biased;
                _ = events.readable() => panic!("woken for nothing"),
                () = tokio::task::yield_now() => {}
            }
        }
        // Several at once, looked at before anybody has waited.
        show(&mut datapath, &claim(5));
        show(&mut datapath, &claim(5));
        events.readable().await.unwrap();
        assert!(events.next().is_some());
        events.readable().await.unwrap();
        assert!(events.next().is_some());
        assert!(events.next().is_none());
    }
}
