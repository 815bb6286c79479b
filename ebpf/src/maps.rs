//! The maps and typed look-ups in them. The statics are named as in [`arpwarden_common::names`].

use arpwarden_common::{
    abi::{
        AddressCounters, AddressKey, AllowedKey, Claimant, ClaimantKey, Control, Counter, Group, Hint,
        MAX_ADDRESSES, MAX_ALLOWED, MAX_CLAIMANTS, MAX_GROUPS, MAX_OWN_MACS, MAX_PORTS, Port, PortPlace,
        RING_BYTES, Record, Slot, omit,
    },
    defence::Clocks,
    net::{Ipv4, MacAddr},
    state::StateWord,
    verdict::{Entry, Standing, Tables},
};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};

use crate::omits;

#[map]
static ADDRESSES: HashMap<PackedKey, u32> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static HINTS: Array<Hint> = Array::with_max_entries(Hint::PLACES, 0);
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(MAX_ADDRESSES, BPF_F_MMAPABLE);
#[map]
static RECORDS: Array<Record> = Array::with_max_entries(MAX_ADDRESSES, BPF_F_MMAPABLE);
#[map]
pub(crate) static ADDRESS_COUNTERS: PerCpuArray<AddressCounters> =
    PerCpuArray::with_max_entries(MAX_ADDRESSES, 0);
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

/// An [`AddressKey`] whose first two fields are one store: the kernel compares keys eight bytes at a time, and a
/// load that spans several stores has to wait for them.
#[repr(C, packed(4))]
struct PackedKey {
    interface_and_vlan: u64,
    address: Ipv4,
}
const _: () = assert!(size_of::<PackedKey>() == size_of::<AddressKey>());

/// Aligned, or the store would be split again.
#[repr(C, align(8))]
struct Aligned(PackedKey);

impl Aligned {
    #[inline(always)]
    const fn new(key: &AddressKey) -> Self {
        let AddressKey { interface, vlan, address } = *key;
        let vlan = joined(vlan.outer as u64, vlan.inner as u64, 16);
        Self(PackedKey { interface_and_vlan: joined(interface as u64, vlan, 32), address })
    }
}

/// The integer that is `first` and then `second` in memory, of `bits` bits each.
#[inline(always)]
const fn joined(first: u64, second: u64, bits: u32) -> u64 {
    if cfg!(target_endian = "little") { first | second << bits } else { first << bits | second }
}

/// The boot clock as it was read first in a jiffy.
#[repr(C)]
struct Tick {
    jiffy: u64,
    boot_ns: u64,
    /// For [`forgotten`]: in a cache line that is in use anyway.
    through: u64,
}

/// The value, of which the verifier has forgotten what it knew. It walks the rest of the program once for each thing that
/// it knows of a value which is still to be used, and that one look-up is worth a walk.
#[inline(always)]
pub(crate) fn forgotten(value: u64) -> Option<u64> {
    let tick = CLOCK.get_ptr_mut(0)?;
    // SAFETY: an aligned field of this CPU's own value; a program that runs on a CPU is not interrupted there by another
    // run of itself.
    unsafe {
        let through = &raw mut (*tick).through;
        through.write_volatile(value);
        Some(through.read_volatile())
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
    /// Its record, a valid aligned map value shared by all CPUs: looked up once for each frame.
    pub(crate) record: *mut Record,
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

/// CLOCK_BOOTTIME in nanoseconds, at most one jiffy old: reading the clock for each frame would cost more than
/// all the rest, and jiffies alone stand still while the machine is suspended.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    let Some(tick) = CLOCK.get_ptr_mut(0) else { return boot_ns() };
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

/// The maps, as the verdict sees them.
pub(crate) struct Maps;

impl Tables for Maps {
    type Place = Place;

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<Entry<Place>> {
        let hint = HINTS.get_ptr(Hint::place(key.address))?;
        // SAFETY: a valid aligned value; a plain integer, so whatever is read is one.
        let hint = unsafe { hint.read_volatile() };
        if hint == Hint::NONE {
            return None;
        }
        // A hint that leads to another address is no proof that this one is not managed: the hash is. A closure here
        // would be a function of its own, with a frame on the stack.
        if let Some(slot) = hint.named()
            && let Some(entry) = entry(slot, key)
        {
            return Some(entry);
        }
        // SAFETY: a `u32` that user space replaces as a whole; a stale one leads to a slot that says so.
        let slot = *unsafe { ADDRESSES.get(&Aligned::new(key).0) }?;
        entry(slot, key)
    }

    #[inline(always)]
    fn is_own(&self, mac: MacAddr) -> bool {
        OWN_MACS.get_ptr(mac).is_some()
    }

    #[inline(always)]
    fn is_allowed(&self, key: &AllowedKey) -> bool {
        let there = ALLOWED.get_ptr(key).is_some();
        // Without, the verifier has twice the work with the rest: 83,100 instructions in place of 47,400 (6.18, tc).
        forgotten(u64::from(there)).is_some_and(|there| there != 0)
    }

    #[inline(always)]
    fn daemon_lives(&self) -> bool {
        control().heard(now_ns())
    }
}

/// What the slot says, if it is that of `key`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "put together a line before")]
fn entry(slot: u32, key: &AddressKey) -> Option<Entry<Place>> {
    let record = RECORDS.get_ptr_mut(slot)?;
    let place = SLOTS.get_ptr(slot)?;
    let standing = standing(place, record);
    // SAFETY: fields of a valid aligned `Slot`, read after the word and the lease: a slot that is reused is made vacant,
    // gets its new key, then group and lease, then its word, so a standing that belongs to another address is found out.
    let (interface, vlan, address) = unsafe {
        (
            (&raw const (*place).interface).read_volatile(),
            (&raw const (*place).vlan).read_volatile(),
            (&raw const (*place).address).read_volatile(),
        )
    };
    if (AddressKey { interface, vlan, address }) != *key || standing.word == StateWord::VACANT {
        return None;
    }
    // However it was found and decided, what follows is the same.
    let may_answer = standing.may_answer(|| unless_omitted(now_ns()));
    let decided = forgotten(u64::from(slot) | u64::from(may_answer) << 32)?;
    Some(Entry {
        place: Place { slot: decided as u32, record },
        word: standing.word,
        may_answer: decided >> 32 != 0,
    })
}

/// The standing of the address at `place`, whose word was `word` when the frame came, if it is the same still.
#[inline(always)]
pub(crate) fn standing_again(place: Place, word: StateWord) -> Option<Standing> {
    let standing = standing(SLOTS.get_ptr(place.slot)?, place.record);
    (standing.word == word).then_some(standing)
}

/// What decides about an address, each field read once. User space writes the slot meanwhile.
#[inline(always)]
fn standing(slot: *const Slot, record: *const Record) -> Standing {
    // SAFETY: both are valid aligned map values.
    let (word, lease_until_ns, of_group, fallen) = unsafe {
        (
            (&raw const (*slot).word).read_volatile(),
            (&raw const (*slot).lease_until_ns).read_volatile(),
            (&raw const (*slot).group).read_volatile(),
            (&raw const (*record).fallen).read_volatile(),
        )
    };
    let group = if of_group == 0 { Group::NONE } else { group(of_group) };
    let fallen = if fallen != 0 && omits(omit::FALLEN) { 0 } else { fallen };
    Standing { word: StateWord::from_bits(word), fallen, lease_until_ns, group }
}

/// The time for leases: where a test omits them none is ever past.
#[inline(always)]
pub(crate) fn unless_omitted(now_ns: u64) -> u64 {
    if omits(omit::LEASE) { 0 } else { now_ns }
}
