//! The real program, run on single frames by `BPF_PROG_TEST_RUN`, with its maps at hand. Needs root.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use crate::{
    bpf::{self, MapCreate, ProgLoad},
    wire::{boot_ns, clock},
};
use arpwarden_common::{
    abi::{
        AddressCounters, AddressKey, AllowedKey, Claimant, ClaimantKey, Claims, Control, Counter,
        DEFAULT_CAPACITY, Event, Group, Moves, Port, PortPlace, Slot,
    },
    golden::{Action, GROUP, Managed, NOW, PAST_NS, PORT_INDEX, SLEPT_NS, World},
    index::{self, Bucket, ENTRIES, Hash, Index},
    names,
    net::MacAddr,
};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::{Program, SchedClassifier},
    util::nr_cpus,
};

/// What an XDP program returns (linux/bpf.h, `enum xdp_action`).
pub mod xdp_action {
    /// Drop the frame.
    pub const DROP: u32 = 1;
    /// Give it to the kernel.
    pub const PASS: u32 = 2;
    /// Send it back.
    pub const TX: u32 = 3;
}

/// What a tc program returns (linux/pkt_cls.h).
pub mod tc_action {
    /// Drop the frame (`TC_ACT_SHOT`).
    pub const SHOT: i32 = 2;
    /// No opinion (`TC_ACT_UNSPEC`).
    pub const UNSPEC: i32 = -1;
    /// Send it where the program has said (`TC_ACT_REDIRECT`).
    pub const REDIRECT: i32 = 7;
}

/// The map with the program's messages, as aya-log names it.
const AYA_LOGS: &str = "AYA_LOGS";
/// The longest frame that is run here, in bytes.
const MAX_FRAME: usize = 2_048;

/// The loaded program and its maps.
pub struct Loaded {
    ebpf: Ebpf,
    name: &'static str,
    capacity: u32,
    cpus: u32,
    /// What was put there.
    addresses: BTreeMap<AddressKey, u32>,
    index: Buckets,
    slots: Array<MapData, Slot>,
    claims: Array<MapData, Claims>,
    moves: HashMap<MapData, u32, Moves>,
    address_counters: Array<MapData, AddressCounters>,
    claimants: HashMap<MapData, ClaimantKey, Claimant>,
    groups: Array<MapData, Group>,
    control: Array<MapData, Control>,
    ports: Array<MapData, PortPlace>,
    own_macs: HashMap<MapData, MacAddr, u8>,
    allowed: HashMap<MapData, AllowedKey, u8>,
    counters: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    messages: RingBuf<MapData>,
}

/// The map of the index, an entry at a time.
pub struct Buckets(pub Array<MapData, Bucket>);

impl Index for Buckets {
    fn buckets(&self) -> u32 {
        self.0.len()
    }

    fn read(&self, bucket: u32) -> [u32; ENTRIES] {
        self.0.get(&bucket, 0).expect("a bucket").0
    }

    fn write(&mut self, bucket: u32, n: usize, entry: u32) {
        let mut entries = self.read(bucket);
        entries[n] = entry;
        self.0.set(bucket, Bucket(entries), 0).expect("a bucket");
    }
}

/// How a frame came out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// What the program returned.
    pub action: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

impl Loaded {
    /// Loads the program `name` of `object`, and the guard, with messages up to `log_level` (0 none … 5 all).
    pub fn load(object: &[u8], name: &'static str, log_level: u8) -> Self {
        Self::load_without(object, name, log_level, 0)
    }

    /// The same without the safeties `omitted` ([`arpwarden_common::abi::omit`]).
    pub fn load_without(object: &[u8], name: &'static str, log_level: u8, omitted: u32) -> Self {
        Self::load_for(object, name, log_level, omitted, DEFAULT_CAPACITY)
    }

    /// The same with maps for `capacity` addresses.
    pub fn load_for(object: &[u8], name: &'static str, log_level: u8, omitted: u32, capacity: u32) -> Self {
        let cpus = u32::try_from(nr_cpus().expect("the number of CPUs")).expect("a few");
        let buckets = index::buckets(capacity);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("AYA_LOG_LEVEL", &log_level, true)
            .override_global(names::CAPACITY, &capacity, true)
            .override_global(names::INDEX_BUCKETS, &buckets, true)
            .override_global(names::OMIT, &omitted, true);
        for (map, entries) in names::sizes(capacity, cpus) {
            loader.map_max_entries(map, entries);
        }
        let mut ebpf = loader.load(object).expect("the object and its maps load (needs root)");
        for name in [name, names::GUARD] {
            let program = ebpf.program_mut(name).expect("in the object");
            let loaded = if let Program::Xdp(program) = program {
                program.load()
            } else {
                <&mut SchedClassifier>::try_from(program).expect("a tc program").load()
            };
            loaded.unwrap_or_else(|error| panic!("the verifier takes {name}: {error}"));
        }
        let mut map = |name: &str| ebpf.take_map(name).unwrap_or_else(|| panic!("no map {name}"));
        Self {
            name,
            capacity,
            cpus,
            addresses: BTreeMap::new(),
            index: Buckets(map(names::INDEX).try_into().expect("an array")),
            slots: map(names::SLOTS).try_into().expect("an array"),
            claims: map(names::CLAIMS).try_into().expect("an array"),
            moves: map(names::MOVES).try_into().expect("a hash"),
            address_counters: map(names::ADDRESS_COUNTERS).try_into().expect("an array"),
            claimants: map(names::CLAIMANTS).try_into().expect("a hash"),
            groups: map(names::GROUPS).try_into().expect("an array"),
            control: map(names::CONTROL).try_into().expect("an array"),
            ports: map(names::PORTS).try_into().expect("an array"),
            own_macs: map(names::OWN_MACS).try_into().expect("a hash"),
            allowed: map(names::ALLOWED).try_into().expect("a hash"),
            counters: map(names::COUNTERS).try_into().expect("a per-CPU array"),
            events: map(names::EVENTS).try_into().expect("a ring buffer"),
            messages: map(AYA_LOGS).try_into().expect("a ring buffer"),
            ebpf,
        }
    }

    /// The program's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd_of(self.name)
    }

    /// The guard's descriptor.
    pub fn guard(&self) -> BorrowedFd<'_> {
        self.fd_of(names::GUARD)
    }

    fn fd_of(&self, name: &str) -> BorrowedFd<'_> {
        let program = self.ebpf.program(name).expect("loaded");
        let fd = if let Program::Xdp(program) = program {
            program.fd()
        } else {
            <&SchedClassifier>::try_from(program).expect("a tc program").fd()
        };
        fd.expect("loaded").as_fd()
    }

    /// What the program returns for this.
    pub fn returns(&self, action: Action) -> u32 {
        match (self.name, action) {
            (names::TC | names::TC_BASIC, Action::Pass) => tc_action::UNSPEC.cast_unsigned(),
            (names::TC | names::TC_BASIC, Action::Drop) => tc_action::SHOT.cast_unsigned(),
            (names::TC | names::TC_BASIC, Action::Answer) => tc_action::REDIRECT.cast_unsigned(),
            (_, Action::Pass) => xdp_action::PASS,
            (_, Action::Drop) => xdp_action::DROP,
            (_, Action::Answer) => xdp_action::TX,
        }
    }

    /// Runs the guard on a frame that leaves by the loopback interface, with the tag `beside` it (type and control
    /// information, as on the wire), if there is one; what it returns.
    pub fn run_guard(&self, frame: &[u8], beside: Option<[u8; 4]>) -> i32 {
        run_beside(self.guard(), frame, beside).action.cast_signed()
    }

    /// Runs the program, which is one for tc, on a frame with the tag `beside` it, likewise.
    pub fn run_beside(&self, frame: &[u8], beside: Option<[u8; 4]>) -> Ran {
        run_beside(self.fd(), frame, beside)
    }

    /// Makes the maps those of `world`, whose [`NOW`] is now, and forgets what the program has counted, remembered and
    /// reported.
    pub fn enter(&mut self, world: &World) {
        self.clear();
        let (boot_ns, slept_ns) = clocks();
        let shifted = |at: u64| if at == 0 { 0 } else { boot_ns - (NOW - at) };
        for Managed { key, slot, value, moves } in &world.addresses {
            let value = Slot {
                conflict: shifted(value.conflict) & !0xff | value.conflict & 0xff,
                defended_ns: shifted(value.defended_ns),
                ..*value
            };
            self.put(*key, *slot, value);
            if let Some(moves) = moves {
                self.set_moves(*slot, moves.map(shifted));
            }
        }
        self.set_group(GROUP.into(), world.group);
        let Control { layout, heartbeat_ns, slept_ns: world_slept_ns } = world.control;
        self.set_control(Control {
            layout,
            heartbeat_ns: shifted(heartbeat_ns),
            slept_ns: slept_ns.wrapping_add(world_slept_ns.wrapping_sub(SLEPT_NS)),
        });
        if let Some(port) = world.port {
            self.put_port(PORT_INDEX, port);
        }
        for mac in &world.own_macs {
            self.own_macs.insert(*mac, 1, 0).expect("room for a MAC");
        }
        for key in &world.allowed {
            self.allowed.insert(key, 1, 0).expect("room for a MAC");
        }
    }

    /// Puts an address into the maps: `value` in `slot`, with `key` inside and leading to it.
    pub fn put(&mut self, key: AddressKey, slot: u32, value: Slot) {
        let AddressKey { interface, vlan, address } = key;
        self.set_slot(slot, Slot { interface, vlan, address, ..value });
        if self.addresses.insert(key, slot) != Some(slot) {
            self.lead(key, slot);
        }
    }

    /// Makes a key lead to a slot, whatever is there, for ever.
    pub fn lead(&mut self, key: AddressKey, slot: u32) {
        assert!(index::insert(&mut self.index, Hash::of(&key), slot), "room for an address");
    }

    /// Writes a slot, whatever leads to it.
    pub fn set_slot(&mut self, slot: u32, value: Slot) {
        self.slots.set(slot, value, 0).expect("a slot");
    }

    /// Writes what a group says.
    pub fn set_group(&mut self, number: u32, group: Group) {
        self.groups.set(number, group, 0).expect("a group");
    }

    /// Writes what the daemon says of itself.
    pub fn set_control(&mut self, control: Control) {
        self.control.set(0, control, 0).expect("the one value");
    }

    /// Writes when an address was defended.
    pub fn set_moves(&mut self, slot: u32, moves: Moves) {
        self.moves.insert(slot, moves, 0).expect("room for a budget");
    }

    /// Names a port, wherever the frames come in.
    pub fn put_port(&mut self, index: u32, port: Port) {
        self.put_port_at(index, port, 0);
    }

    /// Names a port in the `nth` (0–3) of its places, and strangers in those before.
    pub fn put_port_at(&mut self, index: u32, port: Port, nth: usize) {
        let stranger = PortPlace { index: u32::MAX, ..PortPlace::VACANT };
        for (n, place) in PortPlace::candidates(index).into_iter().enumerate() {
            let value = match n.cmp(&nth) {
                Ordering::Less => stranger,
                Ordering::Equal => PortPlace { port, index, pad: 0 },
                Ordering::Greater => PortPlace::VACANT,
            };
            self.ports.set(place, value, 0).expect("a place");
        }
    }

    /// Takes the messages out of their ring, as bytes.
    pub fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Some(item) = self.messages.next() {
            messages.push(item.to_vec());
        }
        messages
    }

    fn clear(&mut self) {
        for (key, slot) in std::mem::take(&mut self.addresses) {
            // All go, so none is waited for.
            index::remove(&mut self.index, Hash::of(&key), slot, |_| None);
            self.set_slot(slot, Slot::VACANT);
            self.claims.set(slot, Claims::default(), 0).expect("a slot");
            for cpu in 0..self.cpus {
                let place = AddressCounters::place(slot, cpu, self.capacity);
                self.address_counters.set(place, AddressCounters::default(), 0).expect("a slot");
            }
        }
        for slot in keys(&self.moves) {
            self.moves.remove(&slot).expect("listed");
        }
        for key in keys(&self.claimants) {
            self.claimants.remove(&key).expect("listed");
        }
        for place in PortPlace::candidates(PORT_INDEX) {
            self.ports.set(place, PortPlace::VACANT, 0).expect("a place");
        }
        for key in keys(&self.own_macs) {
            self.own_macs.remove(&key).expect("listed");
        }
        for key in keys(&self.allowed) {
            self.allowed.remove(&key).expect("listed");
        }
        for counter in Counter::ALL {
            self.counters.set(counter as u32, per_cpu(0), 0).expect("a counter");
        }
        self.events();
    }

    /// Runs the program on `frame`.
    pub fn run(&self, frame: &[u8]) -> Ran {
        test_run(self.fd(), frame, 1).0
    }

    /// A counter's total.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).expect("a counter").iter().sum()
    }

    /// A slot.
    pub fn slot(&self, slot: u32) -> Slot {
        self.slots.get(&slot, 0).expect("a slot")
    }

    /// What frames have said of the address in a slot.
    pub fn claims(&self, slot: u32) -> Claims {
        self.claims.get(&slot, 0).expect("a slot")
    }

    /// The latest defences of the address in a slot, if they are counted.
    pub fn moves(&self, slot: u32) -> Option<Moves> {
        self.moves.get(&slot, 0).ok()
    }

    /// The counters of a slot, summed over the CPUs.
    pub fn address_counters(&self, slot: u32) -> AddressCounters {
        (0..self.cpus).fold(AddressCounters::default(), |sum, cpu| {
            let place = AddressCounters::place(slot, cpu, self.capacity);
            let of_cpu = self.address_counters.get(&place, 0).expect("a slot");
            AddressCounters {
                answered: sum.answered + of_cpu.answered,
                shielded: sum.shielded + of_cpu.shielded,
            }
        })
    }

    /// The claimants that are remembered.
    pub fn claimants(&self) -> Vec<(ClaimantKey, Claimant)> {
        self.claimants.iter().map(|item| item.expect("a claimant")).collect()
    }

    /// Takes the events out of the ring.
    ///
    /// # Panics
    /// If an item is no event.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(Event::decode(&item).unwrap_or_else(|| panic!("no event: {:?}", &*item)));
        }
        events
    }
}

/// Runs a tc program on a frame with the tag `beside` it.
fn run_beside(program: BorrowedFd<'_>, frame: &[u8], beside: Option<[u8; 4]>) -> Ran {
    let Some([t0, t1, c0, c1]) = beside else { return test_run(program, frame, 1).0 };
    // The kernel's test-run lets nobody set a tag, but a program may.
    let chain = ProgramArray::of(program);
    let tag = [u16::from_ne_bytes([t0, t1]), u16::from_be_bytes([c0, c1])];
    let fd = chain.0.as_raw_fd().cast_unsigned();
    let tagger = load_for_tc(
        "tag_beside",
        &[
            insn(MOV64_REG, 6, 1, 0, 0),
            insn(MOV64_IMM, 2, 0, 0, u32::from(tag[0])),
            insn(MOV64_IMM, 3, 0, 0, u32::from(tag[1])),
            insn(CALL, 0, 0, 0, SKB_VLAN_PUSH),
            insn(MOV64_REG, 1, 6, 0, 0),
            insn(LOAD_IMM64, 2, PSEUDO_MAP_FD, 0, fd),
            insn(0, 0, 0, 0, 0),
            insn(MOV64_IMM, 3, 0, 0, 0),
            insn(CALL, 0, 0, 0, TAIL_CALL),
            // Only reached if the tail call fails: an action that no program here returns.
            insn(MOV64_IMM, 0, 0, 0, 0),
            insn(EXIT, 0, 0, 0, 0),
        ],
    );
    test_run(tagger.as_fd(), frame, 1).0
}

/// A tc program that sends every frame out by the interface with this index.
pub fn redirector(index: u32) -> OwnedFd {
    load_for_tc(
        "foreign_redir",
        &[
            insn(MOV64_IMM, 1, 0, 0, index),
            insn(MOV64_IMM, 2, 0, 0, 0),
            insn(CALL, 0, 0, 0, REDIRECT),
            insn(EXIT, 0, 0, 0, 0),
        ],
    )
}

/// A tc program without an opinion.
pub fn tc_pass() -> OwnedFd {
    let unspec = tc_action::UNSPEC.cast_unsigned();
    load_for_tc("foreign_tc", &[insn(MOV64_IMM, 0, 0, 0, unspec), insn(EXIT, 0, 0, 0, 0)])
}

/// CLOCK_BOOTTIME, and how long the machine has slept since it booted, in nanoseconds. Waits, on a machine that has
/// only just booted, until a world's past fits in between.
pub fn clocks() -> (u64, u64) {
    loop {
        let (monotonic_ns, boot_ns) = (clock(libc::CLOCK_MONOTONIC), boot_ns());
        if boot_ns > PAST_NS {
            return (boot_ns, boot_ns - monotonic_ns);
        }
        thread::sleep(Duration::from_nanos(PAST_NS - boot_ns));
    }
}

fn keys<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> Vec<K> {
    map.keys().map(|key| key.expect("a key")).collect()
}

fn per_cpu<T: Pod>(value: T) -> PerCpuValues<T> {
    let cpus = nr_cpus().expect("the number of CPUs");
    PerCpuValues::try_from(vec![value; cpus]).expect("one for each CPU")
}

/// Nanoseconds that `program` takes for `frame`, mean of `repeat` runs in the kernel, everything around it
/// included: what [`empty_program`] takes in the same way is to be subtracted.
///
/// The kernel's repeat does not restore the frame, so a program that turns a request into a reply would see its
/// own reply from the second run on. Here a small program in front writes the frame anew and then tail-calls
/// `program`, which must not be one for multi-buffer frames.
///
/// # Panics
/// If the kernel refuses, or the program does not end each run as the first one.
pub fn ns_per_frame(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> f64 {
    let repeater = Repeater::new(program, frame);
    let (first, _) = test_run(repeater.restorer.as_fd(), frame, 1);
    let (last, total) = test_run(repeater.restorer.as_fd(), frame, repeat);
    assert_eq!(first, last, "the last of {repeat} frames fared differently from the first");
    total
}

/// Runs a program on the same frame as fast as it goes, as [`ns_per_frame`] does.
pub struct Repeater<'a> {
    frame: &'a [u8],
    restorer: OwnedFd,
    /// The kernel empties it when nobody has it open.
    _chain: ProgramArray,
}

impl<'a> Repeater<'a> {
    /// For this program and frame.
    pub fn new(program: BorrowedFd<'_>, frame: &'a [u8]) -> Self {
        let chain = ProgramArray::of(program);
        let restorer = load_instructions("restore_frame", &restorer(frame, &chain));
        Self { frame, restorer, _chain: chain }
    }

    /// So many times, on this CPU.
    pub fn run(&self, repeat: u32) {
        test_run(self.restorer.as_fd(), self.frame, repeat);
    }

    /// Nanoseconds of this thread's processor time for a frame, mean of `repeat` runs, everything around the program
    /// included. What other processes take away from it does not count, and it is not rounded as the kernel's own is.
    pub fn ns_per_frame(&self, repeat: u32) -> f64 {
        let before = clock(libc::CLOCK_THREAD_CPUTIME_ID);
        self.run(repeat);
        (clock(libc::CLOCK_THREAD_CPUTIME_ID) - before) as f64 / f64::from(repeat)
    }
}

/// A program that passes everything.
pub fn empty_program() -> OwnedFd {
    load_instructions("empty", &[insn(MOV64_IMM, 0, 0, 0, xdp_action::PASS), insn(EXIT, 0, 0, 0, 0)])
}

/// Operation codes (linux/bpf_common.h, linux/bpf.h): class, size or operation, mode or source.
const MOV64_IMM: u8 = 0xb7;
const MOV64_REG: u8 = 0xbf;
const ADD64_IMM: u8 = 0x07;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x62;
const STORE_BYTE: u8 = 0x72;
const STORE_DOUBLE: u8 = 0x7a;
const ATOMIC_DOUBLE: u8 = 0xdb;
const LOAD_IMM64: u8 = 0x18;
const JUMP_IF_GREATER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `BPF_PSEUDO_MAP_FD`, `BPF_FUNC_tail_call`, `BPF_FUNC_skb_vlan_push`, `BPF_FUNC_redirect`.
const PSEUDO_MAP_FD: u8 = 1;
const TAIL_CALL: u32 = 12;
const ATOMIC_ADD: u32 = 0;
const SKB_VLAN_PUSH: u32 = 18;
const REDIRECT: u32 = 23;

fn insn(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    [code, destination | source << 4, o0, o1, i0, i1, i2, i3]
}

/// Writes `frame` into the packet, then runs the program in `chain`.
fn restorer(frame: &[u8], chain: &ProgramArray) -> Vec<[u8; 8]> {
    let at = |n: usize| i16::try_from(n).expect("a short frame");
    let words = frame.chunks_exact(4);
    let rest = words.remainder();
    let mut stores = Vec::new();
    for word in words {
        let value = u32::from_ne_bytes(word.try_into().expect("four bytes"));
        stores.push(insn(STORE_WORD, 2, 0, at(4 * stores.len()), value));
    }
    for (n, byte) in rest.iter().enumerate() {
        stores.push(insn(STORE_BYTE, 2, 0, at(frame.len() - rest.len() + n), u32::from(*byte)));
    }
    // A locked instruction waits until all that was stored is in the cache, where the frames of a network card are: a load
    // that finds its bytes on their way there, in parts, takes longer than all the rest of a program.
    stores.push(insn(STORE_DOUBLE, 10, 0, -8, 0));
    stores.push(insn(MOV64_IMM, 0, 0, 0, 0));
    stores.push(insn(ATOMIC_DOUBLE, 10, 0, -8, ATOMIC_ADD));
    let len = u32::try_from(frame.len()).expect("a short frame");
    let fd = chain.0.as_raw_fd().cast_unsigned();
    let call = [
        insn(LOAD_IMM64, 2, PSEUDO_MAP_FD, 0, fd),
        insn(0, 0, 0, 0, 0),
        insn(MOV64_IMM, 3, 0, 0, 0),
        insn(CALL, 0, 0, 0, TAIL_CALL),
    ];
    let head = [
        insn(LOAD_WORD, 2, 1, 0, 0), // xdp_md.data
        insn(LOAD_WORD, 3, 1, 4, 0), // xdp_md.data_end
        insn(MOV64_REG, 4, 2, 0, 0),
        insn(ADD64_IMM, 4, 0, 0, len),
        insn(JUMP_IF_GREATER, 4, 3, at(stores.len() + call.len()), 0),
    ];
    // Only reached if the frame is too short or the tail call fails: an action that no program here returns.
    let end = [insn(MOV64_IMM, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)];
    [&head[..], &stores, &call, &end].concat()
}

/// A map with one program to tail-call.
struct ProgramArray(OwnedFd);

impl ProgramArray {
    fn of(program: BorrowedFd<'_>) -> Self {
        Self(map_with(bpf::MAP_TYPE_PROG_ARRAY, &0_u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes()))
    }
}

fn map_with(map_type: u32, key: &[u8], value: &[u8]) -> OwnedFd {
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a small entry");
    let create = MapCreate { map_type, key_size: size(key), value_size: size(value), max_entries: 1 };
    let map = bpf::open(bpf::MAP_CREATE, create);
    bpf::update(map.as_fd(), key, value);
    map
}

/// An XDP program of these instructions.
pub fn load_instructions(name: &str, instructions: &[[u8; 8]]) -> OwnedFd {
    bpf::open(bpf::PROG_LOAD, ProgLoad::xdp(name, instructions))
}

fn load_for_tc(name: &str, instructions: &[[u8; 8]]) -> OwnedFd {
    bpf::open(bpf::PROG_LOAD, ProgLoad::of(bpf::PROG_TYPE_SCHED_CLS, instructions).named(name))
}

/// How the last frame came out, and the mean time of a run in nanoseconds, which the kernel rounds down.
fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> (Ran, f64) {
    let mut out = [0_u8; MAX_FRAME];
    let mut run = bpf::TestRun {
        data_size_out: u32::try_from(out.len()).expect("a short frame"),
        data_out: out.as_mut_ptr().expose_provenance() as u64,
        repeat,
        ..bpf::TestRun::of(program, frame)
    };
    bpf::call(bpf::PROG_TEST_RUN, &mut run).expect("a run on a frame (needs root)");
    let length = usize::try_from(run.data_size_out).expect("a frame's length");
    (Ran { action: run.retval, frame: out[..length].to_vec() }, f64::from(run.duration))
}
