//! What the fixture asks of the kernel beside namespaces: the least XDP program, what is attached to an interface,
//! and another process's maps.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use arpwarden_common::{
    abi::{Claims, Control, DEFAULT_CAPACITY, Group, MAX_GROUPS, Slot},
    names,
    state::{State, StateWord},
};
use aya::{
    maps::{MapData, MapInfo},
    util::KernelVersion,
};

use crate::{
    bpf::{self, MapCreate, ProgLoad},
    netns::Netns,
    tools::filter_programs,
};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of linux/if_link.h.
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;

/// Whether the running kernel is this version or a later one.
pub fn is_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().expect("the version of the kernel") >= KernelVersion::new(major, minor, 0)
}

/// A program that passes every frame, on one interface until dropped.
#[derive(Debug)]
pub struct XdpPass {
    /// The program's name in the kernel.
    pub name: &'static str,
    program: OwnedFd,
    /// Attached as long as it is open.
    _link: OwnedFd,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

impl XdpPass {
    /// Attaches one in native mode.
    pub fn attach(ns: &Netns, interface: &str) -> Self {
        Self::attach_in(ns, interface, DRV_MODE, 0)
    }

    /// Attaches one in native mode that takes frames in several buffers, so that the MTU may be as large as it likes
    /// (Linux 5.18).
    pub fn attach_for_jumbo_frames(ns: &Netns, interface: &str) -> Self {
        Self::attach_in(ns, interface, DRV_MODE, bpf::XDP_HAS_FRAGS)
    }

    /// Attaches one in generic mode.
    pub fn attach_generic(ns: &Netns, interface: &str) -> Self {
        Self::attach_in(ns, interface, SKB_MODE, 0)
    }

    fn attach_in(ns: &Netns, interface: &str, flags: u32, prog_flags: u32) -> Self {
        // r0 = XDP_PASS; exit (linux/bpf.h: BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT).
        let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let name = "foreign_pass";
        // Without an expected type, as others load theirs.
        let mut load = ProgLoad::of(bpf::PROG_TYPE_XDP, &instructions).named(name);
        load.prog_flags = prog_flags;
        let program = bpf::open(bpf::PROG_LOAD, load);
        let link = attach(ns, interface, program.as_fd(), flags);
        Self { name, program, _link: link }
    }

    /// Its number in the kernel.
    pub fn id(&self) -> u32 {
        let info = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        field(&fs::read_to_string(info).expect("information on the program"), "prog_id")
            .expect("the number of the program")
    }
}

/// Attaches a program to an interface of a namespace, in native or generic mode, until the link is closed.
pub fn attach_xdp(ns: &Netns, interface: &str, program: BorrowedFd<'_>, native: bool) -> OwnedFd {
    attach(ns, interface, program, if native { DRV_MODE } else { SKB_MODE })
}

/// Attaches a tc program to what comes in on an interface of a namespace, behind those that are there, until the link is
/// closed (Linux 6.6).
pub fn attach_ingress(ns: &Netns, interface: &str, program: BorrowedFd<'_>) -> OwnedFd {
    attach_as(ns, interface, program, bpf::ATTACH_TCX_INGRESS, 0)
}

/// Attaches a tc program to what leaves an interface of a namespace, until the link is closed (Linux 6.6).
pub fn attach_egress(ns: &Netns, interface: &str, program: BorrowedFd<'_>) -> OwnedFd {
    attach_as(ns, interface, program, bpf::ATTACH_TCX_EGRESS, 0)
}

fn attach(ns: &Netns, interface: &str, program: BorrowedFd<'_>, flags: u32) -> OwnedFd {
    attach_as(ns, interface, program, bpf::ATTACH_XDP, flags)
}

fn attach_as(ns: &Netns, interface: &str, program: BorrowedFd<'_>, attach_type: u32, flags: u32) -> OwnedFd {
    let target_ifindex = ns.index_of(interface).expect("an interface to attach to");
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let attributes = LinkCreate { prog_fd, target_ifindex, attach_type, flags };
    ns.enter(|| bpf::open(bpf::LINK_CREATE, attributes))
}

/// Numbers of the programs that look at what leaves an interface (tcx, or filters before Linux 6.6), in their order.
pub fn egress_programs(ns: &Netns, interface: &str) -> Vec<u32> {
    tcx_programs(ns, interface, bpf::ATTACH_TCX_EGRESS)
}

/// Numbers of those that look at what comes in.
pub fn ingress_programs(ns: &Netns, interface: &str) -> Vec<u32> {
    tcx_programs(ns, interface, bpf::ATTACH_TCX_INGRESS)
}

fn tcx_programs(ns: &Netns, interface: &str, attach_type: u32) -> Vec<u32> {
    #[repr(C)]
    struct Query {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        pad: u32,
        rest: [u64; 4],
    }
    let Some(target_ifindex) = ns.index_of(interface) else { return Vec::new() };
    // As many as the kernel takes on one interface (linux/bpf_mprog.h).
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target_ifindex,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr().addr() as u64,
        count: 64,
        pad: 0,
        rest: [0; 4],
    };
    match ns.enter(|| bpf::call(bpf::PROG_QUERY, &mut query)) {
        Ok(_) => ids.into_iter().take_while(|id| *id != 0).collect(),
        // Nothing was ever there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
        // Before Linux 6.6 it is a filter.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let side = if attach_type == bpf::ATTACH_TCX_EGRESS { "egress" } else { "ingress" };
            filter_programs(ns, interface, side)
        }
        Err(error) => panic!("asking for the tc programs of {interface}: {error}"),
    }
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Takes a program off its interface by its pinned link, as whoever may use bpf(2) can.
///
/// # Panics
/// If it is not there.
pub fn detach_pinned(link: &Path) {
    let path = std::ffi::CString::new(link.as_os_str().as_bytes()).expect("a path without zero bytes");
    let link =
        bpf::open(bpf::OBJ_GET, Object { pathname: path.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 });
    bpf::call(bpf::LINK_DETACH, &mut link.as_raw_fd()).expect("the link is detached");
}

/// Puts an array of `entries` values of `value_size` bytes in the place of a pinned map.
pub fn replace_pinned_map(map: &Path, value_size: u32, entries: u32) {
    let map_type = bpf::MAP_TYPE_ARRAY;
    let new =
        bpf::open(bpf::MAP_CREATE, MapCreate { map_type, key_size: 4, value_size, max_entries: entries });
    fs::remove_file(map).unwrap_or_else(|error| panic!("{}: {error}", map.display()));
    let path = std::ffi::CString::new(map.as_os_str().as_bytes()).expect("a path without zero bytes");
    let bpf_fd = new.as_raw_fd().cast_unsigned();
    bpf::call(bpf::OBJ_PIN, &mut Object { pathname: path.as_ptr().addr() as u64, bpf_fd, file_flags: 0 })
        .unwrap_or_else(|error| panic!("pinning {}: {error}", map.display()));
}

/// Where the maps, links and programs of an instance are pinned.
pub fn pins(instance: &str) -> PathBuf {
    PathBuf::from("/sys/fs/bpf/arpwarden").join(instance)
}

/// The values of a map that can be mapped into memory.
#[derive(Debug)]
struct Mapped<T> {
    at: *mut T,
    values: usize,
}

// SAFETY: the mapping is valid from every thread; what is written in it is written atomically.
unsafe impl<T> Send for Mapped<T> {}

impl<T> Mapped<T> {
    fn of(map: BorrowedFd<'_>, values: u32) -> Self {
        let values = values as usize;
        // SAFETY: no address asked for; the length is the map's, as its layout says.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                values * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "mapping a map: {}", io::Error::last_os_error());
        Self { at: at.cast(), values }
    }

    fn pinned(instance: &str, name: &str, values: u32) -> Self {
        let path = pins(instance).join("maps").join(name);
        let map = MapData::from_pin(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::of(map.fd().as_fd(), values)
    }

    fn pointer(&self, number: usize) -> *mut T {
        assert!(number < self.values);
        // SAFETY: inside the mapping, which holds so many values.
        unsafe { self.at.add(number) }
    }

    fn read(&self, number: usize) -> T
    where
        T: Copy,
    {
        // SAFETY: inside the mapping; all types used are plain integers, of which every bit pattern is a value.
        unsafe { self.pointer(number).read_volatile() }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `of`, and nothing borrows from it any more.
        unsafe { libc::munmap(self.at.cast(), self.values * size_of::<T>()) };
    }
}

/// What user space says of the addresses, mapped here: a test writes into it what the daemon would have written
/// at that moment.
#[derive(Debug)]
pub struct Slots(Mapped<Slot>);

impl Slots {
    /// Those of the process `pid`, whose instance is not known.
    ///
    /// # Panics
    /// If it has no such map open.
    pub fn of_process(pid: u32) -> Self {
        let info = descriptors(pid)
            .into_iter()
            .filter_map(|text| field(&text, "map_id"))
            .filter_map(|id| MapInfo::from_id(id).ok())
            .find(|info| info.name_as_str() == Some(names::SLOTS))
            .expect("the slots map among the daemon's descriptors");
        let map = info.fd().expect("a descriptor of the slots map");
        Self(Mapped::of(map.as_fd(), DEFAULT_CAPACITY))
    }

    /// Those that an instance has pinned, whether its daemon lives or not.
    ///
    /// # Panics
    /// If there are none.
    pub fn pinned(instance: &str) -> Self {
        Self(Mapped::pinned(instance, names::SLOTS, DEFAULT_CAPACITY))
    }

    fn word_at(&self, number: usize) -> &AtomicU64 {
        // SAFETY: `word` is an aligned field of a slot inside the mapping, which lives as long as `self`;
        // everybody writes it in one store.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.0.pointer(number)).word) }
    }

    /// The number of the slot of an address.
    ///
    /// # Panics
    /// If it is in none.
    pub fn number_of(&self, address: Ipv4Addr) -> usize {
        (0..DEFAULT_CAPACITY as usize)
            .find(|&number| {
                let slot = self.0.read(number);
                StateWord::from_bits(slot.word).state().is_some() && slot.address == address.into()
            })
            .unwrap_or_else(|| panic!("{address} is in no slot"))
    }

    /// The state in this slot; `None` for a vacant one.
    pub fn state_at(&self, number: usize) -> Option<State> {
        StateWord::from_bits(self.word_at(number).load(Ordering::Acquire)).state()
    }

    /// The state of an address as the program sees it.
    pub fn state(&self, address: Ipv4Addr) -> State {
        self.state_at(self.number_of(address)).expect("a state")
    }

    /// Stores a state into the word of an address, all else left as it is.
    pub fn put_into(&self, address: Ipv4Addr, state: State) {
        let word = self.word_at(self.number_of(address));
        let old = StateWord::from_bits(word.load(Ordering::Relaxed));
        let flags = if old.is_local() { StateWord::LOCAL } else { 0 } | old.policy().flags();
        word.store(StateWord::new(old.mac(), state, flags, old.generation()).bits(), Ordering::Release);
    }

    /// [`Slot::fallen`] of an address.
    pub fn fallen(&self, address: Ipv4Addr) -> u16 {
        self.0.read(self.number_of(address)).fallen
    }

    /// End of the lease of an address, CLOCK_BOOTTIME in nanoseconds; 0 for none.
    pub fn lease_until_ns(&self, address: Ipv4Addr) -> u64 {
        self.0.read(self.number_of(address)).lease_until_ns
    }

    /// Lets the lease of an address end at another time.
    pub fn end_lease_at(&self, address: Ipv4Addr, until_ns: u64) {
        let slot = self.0.pointer(self.number_of(address));
        // SAFETY: an aligned field of a slot inside the mapping, written in one store by everybody.
        unsafe { AtomicU64::from_ptr(&raw mut (*slot).lease_until_ns) }.store(until_ns, Ordering::Release);
    }

    /// Puts an address into a group; 0 for none.
    pub fn put_into_group(&self, address: Ipv4Addr, group: u16) {
        let slot = self.0.pointer(self.number_of(address));
        // SAFETY: an aligned field of a slot inside the mapping, written in one store by everybody.
        let field = unsafe { std::sync::atomic::AtomicU16::from_ptr(&raw mut (*slot).group) };
        field.store(group, Ordering::Release);
    }
}

/// The groups that an instance has pinned.
#[derive(Debug)]
pub struct Groups(Mapped<Group>);

impl Groups {
    /// # Panics
    /// If there are none.
    pub fn pinned(instance: &str) -> Self {
        Self(Mapped::pinned(instance, names::GROUPS, MAX_GROUPS))
    }

    /// Stores the word of a group: [`Group::ANSWERS`] or [`Group::SILENT`].
    pub fn store(&self, group: u32, word: u64) {
        let at = self.0.pointer(group as usize);
        // SAFETY: an aligned field of a group inside the mapping, written in one store by everybody.
        unsafe { AtomicU64::from_ptr(&raw mut (*at).word) }.store(word, Ordering::Release);
    }

    /// Lets the lease of a group end, CLOCK_BOOTTIME in nanoseconds; 0 for no lease.
    pub fn end_lease_at(&self, group: u32, until_ns: u64) {
        let at = self.0.pointer(group as usize);
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*at).lease_until_ns) }.store(until_ns, Ordering::Release);
    }
}

/// What frames have said of the addresses of an instance, whether its daemon lives or not.
#[derive(Debug)]
pub struct Said(Mapped<Claims>);

impl Said {
    /// # Panics
    /// If there are none.
    pub fn pinned(instance: &str) -> Self {
        Self(Mapped::pinned(instance, names::CLAIMS, DEFAULT_CAPACITY))
    }

    /// Of the address in this slot.
    pub fn of(&self, slot: usize) -> Claims {
        self.0.read(slot)
    }
}

/// Says in the maps that an instance has pinned that they are of another layout.
pub fn claim_other_layout(instance: &str, layout: u64) {
    let control: Mapped<Control> = Mapped::pinned(instance, names::CONTROL, 1);
    // SAFETY: an aligned field of the one value inside the mapping.
    unsafe { AtomicU64::from_ptr(&raw mut (*control.pointer(0)).layout) }.store(layout, Ordering::Release);
}

fn descriptors(pid: u32) -> Vec<String> {
    let folder = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    // A descriptor may be closed between listing and reading.
    entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect()
}

fn field(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}
