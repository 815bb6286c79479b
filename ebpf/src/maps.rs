//! The maps and typed look-ups in them. The statics are named as in [`arpwarden_common::names`].

use arpwarden_common::{
    abi::{
        AddressCounters, AddressKey, AllowedKey, Claimant, ClaimantKey, Claims, Control, Counter,
        DEFAULT_CAPACITY, Group, MAX_ALLOWED, MAX_CLAIMANTS, MAX_COUNTED, MAX_GROUPS, MAX_OWN_MACS,
        MAX_PORTS, Moves, Port, PortPlace, RING_BYTES, Slot, omit,
    },
    defence::Clocks,
    index::{self, Bucket, Hash, Pairs},
    net::MacAddr,
    state::StateWord,
    verdict::{Entry, Standing, Tables},
    wire::{arp::ArpPacket, ethernet::EthernetHeader},
};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};

use crate::{CAPACITY, INDEX_BUCKETS, omits};

// Those that have a place for each address are made larger or smaller when they are loaded: see `CAPACITY`.
#[map]
static INDEX: Array<Bucket> = Array::with_max_entries(index::buckets(DEFAULT_CAPACITY), BPF_F_MMAPABLE);
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(DEFAULT_CAPACITY, BPF_F_MMAPABLE);
#[map]
static CLAIMS: Array<Claims> = Array::with_max_entries(DEFAULT_CAPACITY, BPF_F_MMAPABLE);
#[map]
static ADDRESS_COUNTERS: Array<AddressCounters> = Array::with_max_entries(DEFAULT_CAPACITY, BPF_F_MMAPABLE);
#[map]
pub(crate) static MOVES: HashMap<u32, Moves> = HashMap::with_max_entries(MAX_COUNTED, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static CLAIMANTS: LruHashMap<ClaimantKey, Claimant> =
    LruHashMap::with_max_entries(MAX_CLAIMANTS, 0);
#[map]
static GROUPS: Array<Group> = Array::with_max_entries(MAX_GROUPS, BPF_F_MMAPABLE);
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PORTS: Array<PortPlace> = Array::with_max_entries(MAX_PORTS, 0);
#[map]
static OWN_MACS: HashMap<MacAddr, u8> = HashMap::with_max_entries(MAX_OWN_MACS, 0);
#[map]
static ALLOWED: HashMap<AllowedKey, u8> = HashMap::with_max_entries(MAX_ALLOWED, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
/// The clock of each CPU as of its current jiffy.
#[map]
static CLOCK: PerCpuArray<Tick> = PerCpuArray::with_max_entries(1, 0);

/// What a CPU has for itself: the boot clock as it was read first in a jiffy, and room.
#[repr(C)]
struct Tick {
    jiffy: u64,
    boot_ns: u64,
    /// For [`Cpu::forgotten`]: in a cache line that is in use anyway.
    through: u64,
    headers: Headers,
}

/// Headers that are put together.
#[repr(C)]
pub(crate) struct Headers {
    pub(crate) ethernet: EthernetHeader,
    pad: [u8; 2],
    pub(crate) arp: ArpPacket,
    pad_end: [u8; 4],
}
const _: () = assert!(size_of::<Headers>() == 48);

/// What this CPU has for itself: looked up once for each frame.
#[derive(Clone, Copy)]
pub(crate) struct Cpu(*mut Tick);

impl Cpu {
    /// This one. It is never `None`, which the verifier does not know.
    #[inline(always)]
    pub(crate) fn this() -> Option<Self> {
        CLOCK.get_ptr_mut(0).map(Self)
    }

    /// The value, of which the verifier has forgotten what it knew. It walks the rest of the program once for each thing that
    /// it knows of a value which is still to be used, and that one store is worth a walk.
    #[inline(always)]
    pub(crate) fn forgotten(self, value: u64) -> u64 {
        // SAFETY: an aligned field of this CPU's own value; a program that runs on a CPU is not interrupted there by another
        // run of itself.
        unsafe {
            let through = &raw mut (*self.0).through;
            through.write_volatile(value);
            through.read_volatile()
        }
    }

    /// Room for headers, with whatever was put together there last.
    #[inline(always)]
    pub(crate) fn headers<'a>(self) -> &'a mut Headers {
        // SAFETY: this CPU's own value, valid for the whole run, and the only place where a run has this reference; bytes only.
        unsafe { &mut (*self.0).headers }
    }

    /// CLOCK_BOOTTIME in nanoseconds, at most one jiffy old: reading the clock for each frame would cost more than
    /// all the rest, and jiffies alone stand still while the machine is suspended.
    #[inline(always)]
    pub(crate) fn now_ns(self) -> u64 {
        let Self(tick) = self;
        // SAFETY: the helper only reads; `tick` is this CPU's own value.
        unsafe {
            let jiffy = bpf_jiffies64();
            if (*tick).jiffy != jiffy {
                (*tick).boot_ns = bpf_ktime_get_boot_ns();
                (*tick).jiffy = jiffy;
            }
            (*tick).boot_ns
        }
    }
}

/// The port whose interface has this index.
#[inline(always)]
pub(crate) fn port(index: u32) -> Option<Port> {
    PortPlace::candidates(index).into_iter().find_map(|candidate| {
        let place = PORTS.get_ptr(candidate)?;
        // SAFETY: `place` is a valid aligned `PortPlace`. User space writes it meanwhile: a port that is just being
        // set or removed may be read in parts, and then a frame passes or is answered as a moment before.
        unsafe {
            let there = (&raw const (*place).index).read_volatile() == index;
            there.then(|| (&raw const (*place).port).read_volatile())
        }
    })
}

/// Where an address is in the maps.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Its slot number.
    pub(crate) slot: u32,
    /// Its slot, a valid aligned map value shared by all CPUs and user space: looked up once for each frame.
    pub(crate) at: *mut Slot,
}

impl Place {
    /// What frames have said of the address: a valid aligned map value, shared likewise.
    #[inline(always)]
    pub(crate) fn claims(self) -> Option<*mut Claims> {
        CLAIMS.get_ptr_mut(self.slot)
    }

    /// What this CPU has counted of it.
    #[inline(always)]
    pub(crate) fn counters(self) -> Option<*mut AddressCounters> {
        // SAFETY: the helper takes nothing and only reads.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        ADDRESS_COUNTERS.get_ptr_mut(AddressCounters::place(self.slot, cpu, CAPACITY.load()))
    }
}

/// What the group says; one that is not in the map is silent.
#[inline(always)]
fn group(number: u32) -> Group {
    let Some(place) = GROUPS.get_ptr(number) else { return Group::default() };
    // SAFETY: a valid aligned `Group`. User space writes it meanwhile, so each field is read once, the word first: it
    // is written last when a group begins to answer.
    unsafe {
        let word = (&raw const (*place).word).read_volatile();
        Group { word, lease_until_ns: (&raw const (*place).lease_until_ns).read_volatile() }
    }
}

/// What the daemon says of itself.
#[inline(always)]
pub(crate) fn control() -> Control {
    let Some(place) = CONTROL.get_ptr(0) else { return Control::default() };
    // SAFETY: a valid aligned `Control`. User space writes it meanwhile: the heartbeat last, so that a fresh one comes
    // with the sleep that it has looked at.
    unsafe {
        let heartbeat_ns = (&raw const (*place).heartbeat_ns).read_volatile();
        let slept_ns = (&raw const (*place).slept_ns).read_volatile();
        Control { heartbeat_ns, slept_ns, layout: 0 }
    }
}

/// CLOCK_BOOTTIME in nanoseconds, now.
#[inline(always)]
pub(crate) fn boot_ns() -> u64 {
    // SAFETY: the helper takes nothing and only reads.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Both clocks, now.
#[inline(always)]
pub(crate) fn clocks() -> Clocks {
    // SAFETY: the helper takes nothing and only reads.
    Clocks { boot_ns: boot_ns(), monotonic_ns: unsafe { bpf_ktime_get_ns() } }
}

/// The maps, as the verdict sees them at one moment.
pub(crate) struct Maps {
    cpu: Cpu,
    /// CLOCK_BOOTTIME in nanoseconds, at most one jiffy old.
    pub(crate) now_ns: u64,
}

impl Maps {
    /// Now.
    #[inline(always)]
    pub(crate) fn now(cpu: Cpu) -> Self {
        Self { cpu, now_ns: cpu.now_ns() }
    }

    /// What the slot at `place` says, if it is that of this key.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "put together a line before")]
    fn entry(&self, place: Place, interface_and_vlan: u64, address: u32) -> Option<Entry<Place>> {
        let Place { slot, at } = place;
        let standing = standing(at);
        // The key is read again, after the word and the lease: a slot that is reused is made vacant, gets its new key, then
        // group and lease, then its word, so a standing that belongs to another address is found out.
        if !has_key(at, interface_and_vlan, address) || standing.word == StateWord::VACANT {
            return None;
        }
        // However it was found and decided, what follows is the same.
        let may_answer = standing.may_answer(|| unless_omitted(self.now_ns));
        let decided = self.cpu.forgotten(u64::from(slot) | u64::from(may_answer) << 32);
        Some(Entry {
            place: Place { slot: decided as u32, at },
            word: standing.word,
            may_answer: decided >> 32 != 0,
        })
    }
}

impl Tables for Maps {
    type Place = Place;

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<Entry<Place>> {
        let (interface_and_vlan, address) = key.words();
        let hash = Hash::of_words(interface_and_vlan, address);
        let look = |slot| {
            let at = SLOTS.get_ptr_mut(slot)?;
            has_key(at, interface_and_vlan, address).then_some(Place { slot, at })
        };
        let behind = || look(find_behind(interface_and_vlan, address).checked_sub(1)?);
        let place = index::find(hash, INDEX_BUCKETS.load(), bucket, look, behind)?;
        self.entry(place, interface_and_vlan, address)
    }

    #[inline(always)]
    fn is_own(&self, mac: MacAddr) -> bool {
        is_own(mac)
    }

    #[inline(always)]
    fn is_allowed(&self, key: &AllowedKey) -> bool {
        let there = ALLOWED.get_ptr(key).is_some();
        // Without, the verifier has the rest to walk twice.
        self.cpu.forgotten(u64::from(there)) != 0
    }

    #[inline(always)]
    fn daemon_lives(&self) -> bool {
        control().heard(self.now_ns)
    }
}

/// Whether a MAC belongs to this network namespace or is answered with.
#[inline(always)]
pub(crate) fn is_own(mac: MacAddr) -> bool {
    OWN_MACS.get_ptr(mac).is_some()
}

/// A bucket in the map.
#[derive(Clone, Copy)]
struct InMap(*const Bucket);

impl Pairs for InMap {
    #[inline(always)]
    fn pair(self, n: usize) -> u64 {
        // SAFETY: a valid aligned `Bucket`, whose entries user space writes meanwhile, each at once.
        unsafe { self.0.cast::<u64>().add(n).read_volatile() }
    }
}

#[inline(always)]
fn bucket(number: u32) -> Option<InMap> {
    INDEX.get_ptr(number).map(InMap)
}

/// The number of the slot of an address whose first bucket is full, plus one; 0 if it is not managed. A function of its own,
/// all its arguments in registers: to return from one takes a processor that guards its returns 10 ns.
#[inline(never)]
fn find_behind(interface_and_vlan: u64, address: u32) -> u32 {
    let look = |slot| has_key(SLOTS.get_ptr(slot)?, interface_and_vlan, address).then_some(slot + 1);
    let hash = Hash::of_words(interface_and_vlan, address);
    index::find_behind(hash, INDEX_BUCKETS.load(), bucket, look).unwrap_or(0)
}

/// Whether a slot is that of this key.
#[inline(always)]
fn has_key(place: *const Slot, interface_and_vlan: u64, address: u32) -> bool {
    // SAFETY: fields of a valid aligned `Slot`, which user space writes meanwhile; interface and tags are one after the
    // other and aligned as one.
    unsafe {
        (&raw const (*place).interface).cast::<u64>().read_volatile() == interface_and_vlan
            && (&raw const (*place).address).cast::<u32>().read_volatile() == address
    }
}

/// The standing of the address in the slot `at`, whose word was `word` when the frame came, if it is the same still.
#[inline(always)]
pub(crate) fn standing_again(at: *const Slot, word: StateWord) -> Option<Standing> {
    let standing = standing(at);
    (standing.word == word).then_some(standing)
}

/// What decides about an address, each field read once. User space writes the slot meanwhile.
#[inline(always)]
fn standing(slot: *const Slot) -> Standing {
    // SAFETY: a valid aligned map value.
    let (word, lease_until_ns, of_group, fallen) = unsafe {
        (
            (&raw const (*slot).word).read_volatile(),
            (&raw const (*slot).lease_until_ns).read_volatile(),
            (&raw const (*slot).group).read_volatile(),
            (&raw const (*slot).fallen).read_volatile(),
        )
    };
    let group = if of_group == 0 { Group::NONE } else { group(of_group.into()) };
    let fallen = if fallen != 0 && omits(omit::FALLEN) { 0 } else { fallen };
    Standing { word: StateWord::from_bits(word), fallen, lease_until_ns, group }
}

/// The time for leases: where a test omits them none is ever past.
#[inline(always)]
pub(crate) fn unless_omitted(now_ns: u64) -> u64 {
    if omits(omit::LEASE) { 0 } else { now_ns }
}
