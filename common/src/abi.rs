//! Layout of every map and of the events: the contract between the program and the daemon.
//!
//! All integers are in host order unless a field says otherwise. Any change of a type here raises
//! [`ABI_VERSION`]; the daemon compares it with the loaded object and refuses a mismatch.

use crate::{
    net::{Ipv4, MacAddr, Vlan},
    state::State,
    wire::arp::{Form, REPLY, REQUEST},
};

/// Version of the layouts in this module.
pub const ABI_VERSION: u32 = 5;

/// Addresses that the maps hold unless another capacity is asked for; registration is refused beyond it. 16,384 of
/// 128 + 56 + 8 bytes and 16 bytes a CPU take 3.5 MiB on two CPUs, allocated once.
pub const DEFAULT_CAPACITY: u32 = 16_384;
/// The most addresses that maps can be made for: an entry of [`crate::index`] has 20 bits for a slot.
pub const MAX_CAPACITY: u32 = (1 << 20) - 1;
/// Groups of addresses, the one that stands for none included.
pub const MAX_GROUPS: u32 = 1_024;
/// Interfaces, bond members included, that can carry the program.
pub const MAX_PORTS: u32 = 1_024;
/// MACs of one network namespace.
pub const MAX_OWN_MACS: u32 = 4_096;
/// MACs that may claim ([`AllowedKey`]): 64 for each of 64 interfaces.
pub const MAX_ALLOWED: u32 = 4_096;
/// Claimants remembered at the same time. A flood adds at most 64 a minute for each address, so this is
/// 1,024 flooded addresses before the least recent claimant is forgotten (and reported again, no more).
pub const MAX_CLAIMANTS: u32 = 65_536;
/// Bytes of the event ring: 4,096 events of 56 + 8 bytes, all that 64 flooded addresses may report at once.
pub const RING_BYTES: u32 = 256 * 1024;

/// A managed address, as [`crate::index`] finds it and its [`Slot`] repeats it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct AddressKey {
    /// Index of the logical interface ([`Port::interface`]).
    pub interface: u32,
    /// Tags of the frame.
    pub vlan: Vlan,
    /// The address.
    pub address: Ipv4,
}
const _: () = assert!(size_of::<AddressKey>() == 12);

impl AddressKey {
    /// Interface and tags as they are one after the other in memory, and the address likewise.
    #[inline(always)]
    pub const fn words(&self) -> (u64, u32) {
        let Vlan { outer, inner } = self.vlan;
        let vlan = joined(outer as u64, inner as u64, 16);
        (joined(self.interface as u64, vlan, 32), u32::from_ne_bytes(self.address.octets()))
    }
}

/// The integer that is `first` and then `second` in memory, of `bits` bits each.
#[inline(always)]
const fn joined(first: u64, second: u64, bits: u32) -> u64 {
    if cfg!(target_endian = "little") { first | second << bits } else { first << bits | second }
}

/// Key of [`crate::names::ALLOWED`]: a host whose claims are no conflict where it makes them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct AllowedKey {
    /// Its MAC: the ARP sender hardware address.
    pub mac: MacAddr,
    /// Index of the logical interface ([`Port::interface`]).
    pub interface: u32,
    /// Tags of the frame.
    pub vlan: Vlan,
}
const _: () = assert!(size_of::<AllowedKey>() == 16);

/// CLOCK_BOOTTIME in units of 2^24 ns, some 17 ms: what is kept of many hosts and need not be exact takes half the room,
/// and is written so seldom that CPUs do not take the line from each other for each frame. It comes round after 2.3
/// years; what was that long ago counts as recent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Coarse(u32);

impl Coarse {
    /// No time.
    pub const NEVER: Self = Self(0);
    /// A unit, in nanoseconds.
    pub const UNIT_NS: u64 = 1 << 24;

    /// From the integer as it is in memory.
    pub const fn from_units(units: u32) -> Self {
        Self(units)
    }

    /// `now_ns` (CLOCK_BOOTTIME), rounded down.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it comes round")]
    pub const fn of(now_ns: u64) -> Self {
        let units = (now_ns / Self::UNIT_NS) as u32;
        Self(if units == 0 { 1 } else { units })
    }

    /// How many units before `now` this was; [`u32::MAX`] if it was never.
    #[inline(always)]
    pub const fn before(self, now: Self) -> u32 {
        if self.0 == 0 { u32::MAX } else { now.0.wrapping_sub(self.0) }
    }

    /// The latest time in nanoseconds that is this by a clock that is at `now_ns`: at most a unit too early; `None` if it
    /// was never.
    pub const fn at(self, now_ns: u64) -> Option<u64> {
        if self.0 == 0 {
            return None;
        }
        let now = Self::of(now_ns);
        Some((now_ns - now_ns % Self::UNIT_NS).saturating_sub(self.before(now) as u64 * Self::UNIT_NS))
    }
}

/// A host that asked for an address lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Asker {
    /// Its MAC (bits 0–47), and [`crate::state::StateWord::mark`] of the word under which it was found to follow us (bits
    /// 48–56; 0 for none). It follows if it asks us by unicast for the address while that may answer, or answers what we
    /// asked it in the address's name.
    mac_and_mark: u64,
    /// Its address.
    pub address: Ipv4,
    /// When it asked last; never where there is no host.
    pub seen: Coarse,
}
const _: () = assert!(size_of::<Asker>() == 16);

impl Asker {
    /// The host with this MAC and address, which follows under `followed` (0 for none).
    #[inline(always)]
    pub const fn new(mac: MacAddr, followed: u16, address: Ipv4, seen: Coarse) -> Self {
        Self { mac_and_mark: Self::head(mac, followed), address, seen }
    }

    /// The first 64 bits as they are in memory: MAC and mark.
    #[inline(always)]
    pub const fn head(mac: MacAddr, followed: u16) -> u64 {
        mac.bits() | (followed as u64) << 48
    }

    /// The second 64 bits as they are in memory: address and time.
    #[inline(always)]
    pub const fn tail(address: Ipv4, seen: Coarse) -> u64 {
        joined(u32::from_ne_bytes(address.octets()) as u64, seen.0 as u64, 32)
    }

    /// From the two words as they are in memory.
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub const fn of_words(head: u64, tail: u64) -> Self {
        let [address, seen] = if cfg!(target_endian = "little") {
            [tail as u32, (tail >> 32) as u32]
        } else {
            [(tail >> 32) as u32, tail as u32]
        };
        Self { mac_and_mark: head, address: Ipv4::new(address.to_ne_bytes()), seen: Coarse(seen) }
    }

    /// Its MAC; 0 where there is none.
    #[inline(always)]
    pub const fn mac(&self) -> MacAddr {
        MacAddr::from_bits(self.mac_and_mark)
    }

    /// The mark under which it follows; 0 for none.
    #[inline(always)]
    pub const fn followed(&self) -> u16 {
        (self.mac_and_mark >> 48) as u16
    }
}

/// Askers remembered for each address.
pub const ASKERS: usize = 4;
/// Defences remembered for an address with a [budget](Port::moves), so the largest one.
pub const MOVES: usize = 8;
/// Value of [`crate::names::MOVES`]: CLOCK_BOOTTIME in nanoseconds of the latest defences, the latest first. The one who
/// exchanged [`Slot::defended_ns`] moves them on by a place before DEFEND_INTERVAL is over, so nobody else is there.
pub type Moves = [u64; MOVES];
/// Addresses whose moves the program can count. Of those beyond it user space counts them, and defends.
pub const MAX_COUNTED: u32 = 4_096;

/// An address: what decides about it, and what every frame about it looks at, in two cache lines; value of
/// [`crate::names::SLOTS`].
///
/// While something leads to the slot, user space writes only what it says itself, `defended_ns`, and `fallen` when that
/// mark comes round again. Before it gives the slot to another address it clears all of it: what is told of one address
/// (that it has fallen, who asked for it, when it was defended) must not be believed of the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Slot {
    /// User space says it: a [`crate::state::StateWord`].
    pub word: u64,
    /// User space says it: CLOCK_BOOTTIME in nanoseconds after which the address may not answer; 0 for no lease.
    pub lease_until_ns: u64,
    /// User space says it: the key once more. The program trusts a slot only if this is the frame's, so that a look-up
    /// that raced with the slot's reuse answers nothing, and an entry of the index may lead to another address. First the
    /// interface.
    pub interface: u32,
    /// The tags.
    pub vlan: Vlan,
    /// The address.
    pub address: Ipv4,
    /// User space says it: the group of the address, an index into [`crate::names::GROUPS`]; 0 for none.
    pub group: u16,
    /// The program says it: [`crate::state::StateWord::mark`] of the word under which it has given the address up; 0 for
    /// none. Under a word with that mark it may not answer.
    pub fallen: u16,
    /// The program says it: when the asker in the same place of `askers` was found to follow first, under that mark.
    pub followed: [Coarse; ASKERS],
    /// CLOCK_BOOTTIME in nanoseconds of the latest defence; 0 for none. Exact: exchanged by whoever defends, the program
    /// or the daemon, first.
    pub defended_ns: u64,
    /// The program says it: the latest conflict under the policy `once`, [`crate::defence::conflict`]. Exchanged, so that
    /// of two conflicts one is the second. 0 for none.
    pub conflict: u64,
    /// The program says it: hosts that asked lately.
    pub askers: [Asker; ASKERS],
}
const _: () = assert!(
    size_of::<Slot>() == 128
        && core::mem::offset_of!(Slot, interface) == 16
        && core::mem::offset_of!(Slot, address) == 24
        && core::mem::offset_of!(Slot, askers) == 64
        && MAX_GROUPS - 1 <= u16::MAX as u32
);

impl Slot {
    /// No address.
    pub const VACANT: Self = Self {
        word: 0,
        lease_until_ns: 0,
        interface: 0,
        vlan: Vlan::UNTAGGED,
        address: Ipv4::UNSPECIFIED,
        group: 0,
        fallen: 0,
        followed: [Coarse::NEVER; ASKERS],
        defended_ns: 0,
        conflict: 0,
        askers: [Asker::new(MacAddr::ZERO, 0, Ipv4::UNSPECIFIED, Coarse::NEVER); ASKERS],
    };
}

/// What frames have said of an address, beside the questions; value of [`crate::names::CLAIMS`].
///
/// The program writes it; user space clears it before it gives the slot to another address, and says what of the flood
/// was told when it starts. Counts are exact (atomic) and never go down. The rest is kept without locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Claims {
    /// MAC of the latest claim, 0 if there was none: the owner, unless we are.
    pub owner: MacAddr,
    /// Claims, those of [allowed](AllowedKey) hosts too.
    pub claims: u64,
    /// Broadcast probes by others while the address was ours or probed for.
    pub probes: u64,
    /// Frames that the guard kept in.
    pub guarded: u64,
    /// Claims and probes by hosts beyond those reported one by one that no event has told of yet; they are in `claims` and
    /// `probes` too. Below zero (two's complement) while two CPUs have told of the same ones.
    pub flood_untold: u64,
    /// When the latest claim came.
    pub owner_seen: Coarse,
    /// Frames from the address, or probes for it, with an own MAC. It comes round after 2^32.
    pub echoes: u32,
    /// What was reported lately.
    pub windows: Windows,
}
const _: () = assert!(size_of::<Claims>() == 56);

/// What was reported of an address lately, for the bounds of [`crate::report`].
///
/// CPUs that race over the same address may each report one frame more than the bounds say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Windows {
    /// Number of the second of CLOCK_BOOTTIME that the rest is about, and so of its minute.
    pub second: u32,
    /// Claimants reported in that minute.
    pub claimants: u8,
    /// Repeated claims reported in that second.
    pub claim_repeats: u8,
    /// Repeated probes and echoes reported in it.
    pub other_repeats: u8,
    /// 1 if a flood was reported in it.
    pub flood: u8,
}
const _: () = assert!(size_of::<Windows>() == 8);

/// Addresses that flip together; value of [`crate::names::GROUPS`]. Only user space writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Group {
    /// [`Group::SILENT`] or [`Group::ANSWERS`]: one store silences all of them.
    pub word: u64,
    /// CLOCK_BOOTTIME in nanoseconds after which none of them may answer; 0 for no lease.
    pub lease_until_ns: u64,
}
const _: () = assert!(size_of::<Group>() == 16);

impl Group {
    /// Its addresses may not answer. A place of the map that was never written says so too.
    pub const SILENT: u64 = 0;
    /// Its addresses answer as their own words say.
    pub const ANSWERS: u64 = 1;
    /// What an address in no group is treated as being in. A group whose place is not in the map is silent.
    pub const NONE: Self = Self { word: Self::ANSWERS, lease_until_ns: 0 };
}

/// What user space says of itself and of the clock; the only value of [`crate::names::CONTROL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Control {
    /// [`ABI_VERSION`] of the maps that are pinned beside it; 0 until they are ready.
    pub layout: u64,
    /// CLOCK_BOOTTIME in nanoseconds at which the daemon said last that it lives and has looked at the world; 0:
    /// never.
    pub heartbeat_ns: u64,
    /// CLOCK_BOOTTIME − CLOCK_MONOTONIC in nanoseconds at that time: how long the machine has slept since it
    /// booted. Another value means that it has slept since.
    pub slept_ns: u64,
}
const _: () = assert!(size_of::<Control>() == 24);

impl Control {
    /// A heartbeat older than this no longer arms the defence (design: "Who may answer").
    pub const HEARTBEAT_LASTS_NS: u64 = 30_000_000_000;
    /// A sleep that is longer disarms it. Two reads of two clocks are microseconds apart, and no machine
    /// sleeps for so short a time.
    pub const SLEEP_NS: u64 = 100_000_000;

    /// Whether the daemon was heard lately, at `now_ns` (CLOCK_BOOTTIME).
    #[inline(always)]
    pub const fn heard(&self, now_ns: u64) -> bool {
        // A heartbeat may be younger than the clock that was read a moment before it.
        self.heartbeat_ns != 0 && now_ns.saturating_sub(self.heartbeat_ns) < Self::HEARTBEAT_LASTS_NS
    }
}

/// What a CPU has counted of an address; value of [`crate::names::ADDRESS_COUNTERS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct AddressCounters {
    /// Requests answered by the program.
    pub answered: u64,
    /// Requests dropped by the shield.
    pub shielded: u64,
}
const _: () = assert!(size_of::<AddressCounters>() == 16);

/// Key of [`crate::names::CLAIMANTS`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct ClaimantKey {
    /// Sender hardware address (bits 0–47) and the [`EventKind`] (bits 48–55).
    pub mac_and_kind: u64,
    /// Slot number.
    pub slot: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<ClaimantKey>() == 16);

impl AddressCounters {
    /// Where those of the address in `slot` and of the CPU `cpu` are, in maps for `capacity` addresses.
    #[inline(always)]
    pub const fn place(slot: u32, cpu: u32, capacity: u32) -> u32 {
        cpu * capacity + slot
    }
}

impl ClaimantKey {
    /// The key of these parts.
    #[inline(always)]
    pub const fn new(slot: u32, mac: MacAddr, kind: EventKind) -> Self {
        Self { mac_and_kind: mac.bits() | (kind as u64) << 48, slot, pad: 0 }
    }
}

/// A claimant of an address; value of [`crate::names::CLAIMANTS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Claimant {
    /// Its frames of that kind, exact (atomic).
    pub frames: u64,
    /// Number of the minute of CLOCK_BOOTTIME in which it was reported one by one. It stands between the two
    /// counts so that no 16 bytes in a row begin as 0: LLVM calls memset for them, and Linux 6.1 refuses the
    /// program for a third frame on its stack.
    pub minute: u32,
    /// Always 0.
    pub pad: u32,
    /// How many of the frames no event has told of yet. Below zero (two's complement) while two CPUs have told of the
    /// same ones.
    pub untold: u64,
}
const _: () = assert!(size_of::<Claimant>() == 24);

/// An interface that carries the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Port {
    /// Its current MAC.
    pub mac: MacAddr,
    /// Index of the logical interface, the one in [`AddressKey`]: the bond for a bond member, else itself.
    pub interface: u32,
    /// [`Port::ACCEPT`], [`Port::OBSERVE`], [`Port::MEMBER`].
    pub flags: u32,
    /// The move budget: defences of an address allowed in `moves_window_s`, 1..=[`MOVES`]; 0 for no budget.
    pub moves: u32,
    /// Seconds.
    pub moves_window_s: u32,
}
const _: () = assert!(size_of::<Port>() == 24);

impl Port {
    /// Flag: frames of this port are acted on. Clear on an inactive bond member.
    pub const ACCEPT: u32 = 1;
    /// Flag: everything is decided, counted and reported, and every frame passes as it was, in and out. Conflicts
    /// are left to user space: the program cannot have defended what it does not answer for.
    pub const OBSERVE: u32 = 2;
    /// Flag: one of several of its interface, of which one may be used at a time. Once the daemon was not [heard
    /// lately](Control::heard) nobody tells the program which, so frames are not acted on: the kernel behind it knows.
    pub const MEMBER: u32 = 4;
    /// No port.
    pub const VACANT: Self = Self { mac: MacAddr::ZERO, interface: 0, flags: 0, moves: 0, moves_window_s: 0 };

    /// A port of the logical interface `interface` that is acted on, without a move budget.
    pub const fn accepting(mac: MacAddr, interface: u32) -> Self {
        Self { mac, interface, flags: Self::ACCEPT, ..Self::VACANT }
    }
}

/// A place of [`crate::names::PORTS`], which user space looks after as a hash: a look-up in the kernel's own would
/// be the dearest part of many a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortPlace {
    /// The port.
    pub port: Port,
    /// Index of its interface; 0 where there is none.
    pub index: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<PortPlace>() == 32);

impl PortPlace {
    /// No port.
    pub const VACANT: Self = Self { port: Port::VACANT, index: 0, pad: 0 };

    /// The places where the port with this index may be, whichever is vacant first. Indices that are handed out one
    /// after the other get places apart; a fifth port whose places are all taken is refused.
    #[inline(always)]
    pub const fn candidates(index: u32) -> [u32; 4] {
        const { assert!(MAX_PORTS.is_power_of_two()) };
        let mask = MAX_PORTS - 1;
        [index & mask, (index + 1) & mask, (index + 2) & mask, (index + 3) & mask]
    }
}

/// Safeties that [`crate::names::OMIT`] leaves out, so that tests can show what each of them is for. No daemon that is
/// shipped sets any.
pub mod omit {
    /// The guard lets everything out.
    pub const GUARD: u32 = 1 << 0;
    /// The shield lets requests through to the kernel.
    pub const SHIELD: u32 = 1 << 1;
    /// Leases stand for ever, as far as the program is concerned.
    pub const LEASE: u32 = 1 << 2;
    /// An address that the program has given up goes on answering.
    pub const FALLEN: u32 = 1 << 3;
}

/// What an [`Event`] reports. The numbers are part of the layout.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// A claim.
    Claim = 1,
    /// Another host's probe.
    Probe = 2,
    /// A frame from the address with an own MAC.
    Echo = 3,
    /// Claims or probes by more hosts than are reported one by one; `count` says how many frames.
    Flood = 4,
}

impl EventKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Claim),
            2 => Some(Self::Probe),
            3 => Some(Self::Echo),
            4 => Some(Self::Flood),
            _ => None,
        }
    }
}

/// An item of [`crate::names::EVENTS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Event {
    /// CLOCK_BOOTTIME of the frame in nanoseconds.
    pub kernel_time_ns: u64,
    /// Frames that this event stands for: this one and those of the same claimant folded since its last event.
    pub count: u64,
    /// Slot number.
    pub slot: u32,
    /// Index of the logical interface.
    pub interface: u32,
    /// Tags of the frame.
    pub vlan: Vlan,
    /// The managed address.
    pub address: Ipv4,
    /// Sender hardware address, as on the wire.
    pub claimant: [u8; 6],
    /// Ethernet source, as on the wire.
    pub ethernet_source: [u8; 6],
    /// An [`EventKind`]; readers reject values they do not know.
    pub kind: u8,
    /// A [`crate::wire::arp::Form`].
    pub form: u8,
    /// 1 request, 2 reply.
    pub operation: u8,
    /// [`Event::REPEAT`], [`Event::OWNER_CHANGED`], [`Event::SIBLING`], [`Event::DEFENDED`], [`Event::FELL`],
    /// [`Event::ALLOWED`].
    pub flags: u8,
    /// The [`crate::state::StateWord`]'s generation when the frame came.
    pub generation: u8,
    /// The number of the state when the frame came.
    pub state: u8,
    /// Always 0.
    pub pad: u16,
    /// Always 0. Two integers, because LLVM calls memset for an array of 6 bytes.
    pub pad_end: u32,
}
const _: () = assert!(size_of::<Event>() == 56);

impl Event {
    /// Flag: the claimant was reported in this minute already; the event keeps the engine's timing exact.
    pub const REPEAT: u8 = 1;
    /// Flag: the latest claim before this one came from another MAC, or there was none.
    pub const OWNER_CHANGED: u8 = 2;
    /// Flag: the own MAC of the echo belongs to another port of this host.
    pub const SIBLING: u8 = 4;
    /// Flag: the program has answered this claim with our announcement.
    pub const DEFENDED: u8 = 8;
    /// Flag: the program has given the address up because of this claim ([`Slot::fallen`]).
    pub const FELL: u8 = 16;
    /// Flag: the claimant is [allowed](AllowedKey), so this is no conflict.
    pub const ALLOWED: u8 = 32;

    /// Decodes an item of the ring by copy. `None` for a wrong length or a kind, form, operation or state that is
    /// none.
    pub fn decode(item: &[u8]) -> Option<Self> {
        let bytes: &[u8; size_of::<Self>()] = item.try_into().ok()?;
        let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let event = Self {
            kernel_time_ns: u64_at(0)?,
            count: u64_at(8)?,
            slot: u32_at(16)?,
            interface: u32_at(20)?,
            vlan: Vlan { outer: u16_at(24)?, inner: u16_at(26)? },
            address: Ipv4::new(bytes.get(28..32)?.try_into().ok()?),
            claimant: bytes.get(32..38)?.try_into().ok()?,
            ethernet_source: bytes.get(38..44)?.try_into().ok()?,
            kind: bytes[44],
            form: bytes[45],
            operation: bytes[46],
            flags: bytes[47],
            generation: bytes[48],
            state: bytes[49],
            pad: 0,
            pad_end: 0,
        };
        EventKind::from_number(event.kind)?;
        Form::from_number(event.form)?;
        State::from_number(event.state)?;
        matches!(u16::from(event.operation), REQUEST | REPLY).then_some(event)
    }
}
const _: () = assert!(
    core::mem::offset_of!(Event, vlan) == 24
        && core::mem::offset_of!(Event, claimant) == 32
        && core::mem::offset_of!(Event, kind) == 44
        && core::mem::offset_of!(Event, pad_end) + 4 == size_of::<Event>()
);

/// Index into [`crate::names::COUNTERS`]: first one per [`crate::verdict::Outcome`] (each ARP frame counts
/// once), then what may happen beside it. The numbers are part of the layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Passed: the frame ends inside the ARP packet.
    Truncated = 0,
    /// Passed: not ARP for IPv4 on Ethernet.
    BadHeader = 1,
    /// Passed: sender MAC zero or group, or sender address multicast, broadcast or 127/8.
    BadSender = 2,
    /// Answered.
    Answered = 3,
    /// Dropped: a request for an address that is local but may not answer.
    Shielded = 4,
    /// Passed: a request with sender = target.
    Gratuitous = 5,
    /// Passed: a reply.
    Reply = 6,
    /// Passed: a request for one of our addresses, flooded to somebody else's MAC.
    OtherDestination = 7,
    /// Passed: a request for a managed address that may not answer and is not local, or is watched.
    NotAnswering = 8,
    /// Passed: a request for an address that is not managed.
    Unmanaged = 9,
    /// Passed: came in on a port that is not acted on, and it is not [withheld](Self::Withheld).
    InactivePort = 10,
    /// A claim turned into the announcement that answers it, and sent back.
    Defended = 11,
    /// Claims, but for the [allowed](Self::Allowed) ones.
    Claims = 12,
    /// Broadcast probes by others for managed addresses.
    Probes = 13,
    /// Frames that come back with this port's MAC as sender: echo, loop or clone.
    Echoes = 14,
    /// Frames with the MAC of another port of this host as sender.
    Siblings = 15,
    /// Events that the ring had no room for.
    EventsLost = 16,
    /// On the way out: dropped by the guard.
    Guarded = 17,
    /// Dropped: a request for an address that may answer, on a port that is not acted on: another one answers it. One per
    /// outcome as well.
    Withheld = 18,
    /// Claims by hosts that may.
    Allowed = 19,
}

impl Counter {
    /// How many there are.
    pub const COUNT: u32 = Self::Allowed as u32 + 1;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Truncated,
        Self::BadHeader,
        Self::BadSender,
        Self::Answered,
        Self::Shielded,
        Self::Gratuitous,
        Self::Reply,
        Self::OtherDestination,
        Self::NotAnswering,
        Self::Unmanaged,
        Self::InactivePort,
        Self::Defended,
        Self::Claims,
        Self::Probes,
        Self::Echoes,
        Self::Siblings,
        Self::EventsLost,
        Self::Guarded,
        Self::Withheld,
        Self::Allowed,
    ];

    /// The name used in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadHeader => "bad_header",
            Self::BadSender => "bad_sender",
            Self::Answered => "answered",
            Self::Shielded => "shielded",
            Self::Gratuitous => "gratuitous",
            Self::Reply => "reply",
            Self::OtherDestination => "other_destination",
            Self::NotAnswering => "not_answering",
            Self::Unmanaged => "unmanaged",
            Self::InactivePort => "inactive_port",
            Self::Defended => "defended",
            Self::Claims => "claims",
            Self::Probes => "probes",
            Self::Echoes => "echoes",
            Self::Siblings => "siblings",
            Self::EventsLost => "events_lost",
            Self::Guarded => "guarded",
            Self::Withheld => "withheld",
            Self::Allowed => "allowed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    /// The bytes of an event as the program writes them: field after field.
    fn bytes(event: &Event) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(event.kernel_time_ns.to_ne_bytes());
        bytes.extend(event.count.to_ne_bytes());
        bytes.extend(event.slot.to_ne_bytes());
        bytes.extend(event.interface.to_ne_bytes());
        bytes.extend(event.vlan.outer.to_ne_bytes());
        bytes.extend(event.vlan.inner.to_ne_bytes());
        bytes.extend(event.address.octets());
        bytes.extend(event.claimant);
        bytes.extend(event.ethernet_source);
        bytes.extend([event.kind, event.form, event.operation, event.flags, event.generation, event.state]);
        bytes.extend(event.pad.to_ne_bytes());
        bytes.extend(event.pad_end.to_ne_bytes());
        bytes
    }

    #[test]
    fn an_event_is_decoded_field_by_field() {
        let mut kinds = [0; 5];
        for event in golden::rows().into_iter().filter_map(|row| row.event) {
            assert_eq!(Event::decode(&bytes(&event)), Some(event));
            kinds[usize::from(event.kind)] += 1;
        }
        assert!(kinds[1] > 0 && kinds[2] > 0 && kinds[3] > 0);
    }

    #[test]
    fn an_item_of_another_length_or_with_an_unknown_number_is_no_event() {
        let event = golden::rows().into_iter().find_map(|row| row.event).expect("some row has an event");
        let good = bytes(&event);
        assert!(Event::decode(&good).is_some());
        for len in 0..good.len() {
            assert_eq!(Event::decode(&good[..len]), None, "truncated to {len} bytes");
        }
        let mut padded = good.clone();
        padded.push(0);
        assert_eq!(Event::decode(&padded), None);
        // Kind, form, operation, state: where each stands, and the numbers it may have.
        for (at, good_numbers) in [(44, 1..=4), (45, 1..=4), (46, 1..=2), (49, 1..=9)] {
            for number in 0..=255 {
                let mut item = good.clone();
                item[at] = number;
                assert_eq!(
                    Event::decode(&item).is_some(),
                    good_numbers.contains(&number),
                    "{number} at {at}"
                );
            }
        }
    }

    #[test]
    fn counters_are_numbered_in_order_and_named_apart() {
        for (number, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, number);
        }
        let mut names = Counter::ALL.map(Counter::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
