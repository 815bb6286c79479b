//! Names of the program and the maps in the BPF object, spelt once.

/// The XDP program for kernels and modes with multi-buffer frames (native: Linux 5.18).
pub const XDP_FRAGS: &str = "arpwarden_frags";
/// The XDP program without multi-buffer support.
pub const XDP: &str = "arpwarden";
/// The XDP program without atomic operations that have a result (Linux 5.12), either.
pub const XDP_BASIC: &str = "arpwarden_basic";
/// The tc program that answers, at what comes in.
pub const TC: &str = "arpwarden_tc";
/// The same without atomic operations that have a result.
pub const TC_BASIC: &str = "arpwarden_tc_basic";
/// The guard: the tc program for what leaves an interface.
pub const GUARD: &str = "arpwarden_guard";
/// All programs.
pub const PROGRAMS: [&str; 6] = [XDP_FRAGS, XDP, XDP_BASIC, TC, TC_BASIC, GUARD];
/// Mmapable array of [`crate::index::Bucket`]: [`crate::abi::AddressKey`] → slot number. Only user space writes it.
pub const INDEX: &str = "INDEX";
/// Mmapable array: slot number → [`crate::abi::Slot`], whose fields say who writes them.
pub const SLOTS: &str = "SLOTS";
/// Mmapable array: slot number → [`crate::abi::Claims`].
pub const CLAIMS: &str = "CLAIMS";
/// Hash: slot number of an address with a budget → [`crate::abi::Moves`]. Made by user space, written by whoever defends.
pub const MOVES: &str = "MOVES";
/// Mmapable array: [`crate::abi::AddressCounters::place`] → [`crate::abi::AddressCounters`]. Only the program writes it: each
/// CPU its own part, so that it need not be atomic.
pub const ADDRESS_COUNTERS: &str = "ADDRESS_COUNTERS";
/// LRU hash: [`crate::abi::ClaimantKey`] → [`crate::abi::Claimant`]. The program writes it; a daemon that starts says what it has told.
pub const CLAIMANTS: &str = "CLAIMANTS";
/// Array of [`crate::abi::PortPlace`], where the ports are by their index.
pub const PORTS: &str = "PORTS";
/// Hash: a MAC of this network namespace, or one that is answered with ([`crate::net::MacAddr`]) → 1 (`u8`).
pub const OWN_MACS: &str = "OWN_MACS";
/// Hash: [`crate::abi::AllowedKey`] → 1 (`u8`).
pub const ALLOWED: &str = "ALLOWED";
/// Per-CPU array: [`crate::abi::Counter`] → frames.
pub const COUNTERS: &str = "COUNTERS";
/// Ring buffer of [`crate::abi::Event`].
pub const EVENTS: &str = "EVENTS";
/// Mmapable array: group → [`crate::abi::Group`]. Only user space writes it.
pub const GROUPS: &str = "GROUPS";
/// Mmapable array with one [`crate::abi::Control`]. Only user space writes it.
pub const CONTROL: &str = "CONTROL";
/// All maps that are pinned: the program's messages have a map of their own for each load.
pub const PINNED: [&str; 13] = [
    INDEX,
    SLOTS,
    CLAIMS,
    MOVES,
    ADDRESS_COUNTERS,
    CLAIMANTS,
    PORTS,
    OWN_MACS,
    ALLOWED,
    COUNTERS,
    EVENTS,
    GROUPS,
    CONTROL,
];
/// Read-only global: how many addresses the maps hold.
pub const CAPACITY: &str = "CAPACITY";
/// Read-only global: how many buckets the index has ([`crate::index::buckets`] of the capacity).
pub const INDEX_BUCKETS: &str = "INDEX_BUCKETS";
/// The maps that have a place for each address, and how many in maps for `capacity` of them on `cpus` possible CPUs.
pub const fn sizes(capacity: u32, cpus: u32) -> [(&'static str, u32); 4] {
    [
        (INDEX, crate::index::buckets(capacity)),
        (SLOTS, capacity),
        (CLAIMS, capacity),
        (ADDRESS_COUNTERS, capacity.saturating_mul(cpus)),
    ]
}
/// Read-only global: bits of [`crate::abi::omit`], 0 unless a test says otherwise.
pub const OMIT: &str = "OMIT";
/// Read-only global with [`crate::abi::ABI_VERSION`], which the loader compares.
pub const ABI_VERSION: &str = "ABI_VERSION";
