//! The maps and typed look-ups in them. The statics are named as in [`arpwarden_common::names`].

use arpwarden_common::{
    abi::{
        AddressCounters, AddressKey, Claimant, ClaimantKey, Control, Counter, Group, Hint, MAX_ADDRESSES,
        MAX_CLAIMANTS, MAX_GROUPS, MAX_OWN_MACS, MAX_PORTS, Port, PortPlace, RING_BYTES, Record, Slot,
    },
    net::{Ipv4, MacAddr},
    state::StateWord,
    verdict::{Entry, Tables},
};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};

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
pub(crate) static GROUPS: Array<Group> = Array::with_max_entries(MAX_GROUPS, BPF_F_MMAPABLE);
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PORTS: Array<PortPlace> = Array::with_max_entries(MAX_PORTS, 0);
#[map]
static OWN_MACS: HashMap<MacAddr, u8> = HashMap::with_max_entries(MAX_OWN_MACS, 0);
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

/// The record of the address in `slot`, shared by all CPUs.
#[inline(always)]
pub(crate) fn record(slot: u32) -> Option<*mut Record> {
    RECORDS.get_ptr_mut(slot)
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

/// The maps, as the verdict sees them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<Entry> {
        let hint = HINTS.get_ptr(Hint::place(key.address))?;
        // SAFETY: a valid aligned value; a plain integer, so whatever is read is one.
        let hint = unsafe { hint.read_volatile() };
        if hint == Hint::NONE {
            return None;
        }
        // A hint that leads to another address is no proof that this one is not managed: the hash is.
        hint.named().and_then(|slot| entry(slot, key)).or_else(|| {
            // SAFETY: a `u32` that user space replaces as a whole; a stale one leads to a slot that says so.
            let slot = *unsafe { ADDRESSES.get(&Aligned::new(key).0) }?;
            entry(slot, key)
        })
    }

    #[inline(always)]
    fn is_own(&self, mac: MacAddr) -> bool {
        OWN_MACS.get_ptr(mac).is_some()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }
}

/// What the slot says, if it is that of `key`.
#[inline(always)]
fn entry(slot: u32, key: &AddressKey) -> Option<Entry> {
    let place = SLOTS.get_ptr(slot)?;
    // SAFETY: `place` is a valid aligned `Slot`. User space writes it meanwhile, so each field is read once, the word
    // first and the key last: a slot that is reused is made vacant, gets its new key, then its lease, then its word,
    // so a word and a lease that belong to another address are found out.
    let (word, lease_until_ns, interface, vlan, address) = unsafe {
        (
            (&raw const (*place).word).read_volatile(),
            (&raw const (*place).lease_until_ns).read_volatile(),
            (&raw const (*place).interface).read_volatile(),
            (&raw const (*place).vlan).read_volatile(),
            (&raw const (*place).address).read_volatile(),
        )
    };
    let word = StateWord::from_bits(word);
    if (AddressKey { interface, vlan, address }) != *key || word == StateWord::VACANT {
        return None;
    }
    Some(Entry { slot, word, lease_until_ns })
}
