//! What the fixture asks of the kernel beside namespaces: the least XDP program, and another process's maps.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use arpwarden_common::{
    abi::{MAX_ADDRESSES, Slot},
    names,
    state::{State, StateWord},
};
use aya::maps::MapInfo;

use crate::netns::Netns;

/// `bpf_cmd` of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_XDP`, `BPF_XDP`, `BPF_TCX_EGRESS`.
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const ATTACH_TCX_EGRESS: u32 = 47;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of linux/if_link.h.
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;

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
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
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
        Self::attach_in(ns, interface, DRV_MODE)
    }

    /// Attaches one in generic mode.
    pub fn attach_generic(ns: &Netns, interface: &str) -> Self {
        Self::attach_in(ns, interface, SKB_MODE)
    }

    fn attach_in(ns: &Netns, interface: &str, flags: u32) -> Self {
        // r0 = XDP_PASS; exit (linux/bpf.h: BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT).
        let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let name = "foreign_pass";
        let mut prog_name = [0; 16];
        prog_name[..name.len()].copy_from_slice(name.as_bytes());
        let program = bpf(
            BPF_PROG_LOAD,
            &ProgLoad {
                prog_type: PROG_TYPE_XDP,
                insn_cnt: 2,
                insns: instructions.as_ptr().addr() as u64,
                license: c"GPL".as_ptr().addr() as u64,
                log_level: 0,
                log_size: 0,
                log_buf: 0,
                kern_version: 0,
                prog_flags: 0,
                prog_name,
            },
        );
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

/// Attaches a tc program to what leaves an interface of a namespace, until the link is closed (Linux 6.6).
pub fn attach_egress(ns: &Netns, interface: &str, program: BorrowedFd<'_>) -> OwnedFd {
    attach_as(ns, interface, program, ATTACH_TCX_EGRESS, 0)
}

fn attach(ns: &Netns, interface: &str, program: BorrowedFd<'_>, flags: u32) -> OwnedFd {
    attach_as(ns, interface, program, ATTACH_XDP, flags)
}

fn attach_as(ns: &Netns, interface: &str, program: BorrowedFd<'_>, attach_type: u32, flags: u32) -> OwnedFd {
    let target_ifindex = ns.index_of(interface).expect("an interface to attach to");
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let attributes = LinkCreate { prog_fd, target_ifindex, attach_type, flags };
    ns.enter(|| bpf(BPF_LINK_CREATE, &attributes))
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> OwnedFd {
    let length = libc::c_uint::try_from(size_of::<T>()).expect("a small struct");
    // SAFETY: pointer and length belong to `attributes`, whose own pointers lead to buffers that the caller
    // keeps alive during the call; the kernel reads absent attributes as zero.
    let number = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), length) };
    assert!(number >= 0, "bpf({command}) (needs root): {}", io::Error::last_os_error());
    // SAFETY: both commands return a new descriptor.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(number).expect("a descriptor")) }
}

/// The state words of a running daemon, whoever it is: its slots map, found by its number and mapped here.
#[derive(Debug)]
pub struct Slots {
    at: *mut Slot,
}

// SAFETY: the mapping is valid from every thread; words are read and written atomically.
unsafe impl Send for Slots {}

const SLOTS_BYTES: usize = MAX_ADDRESSES as usize * size_of::<Slot>();

impl Slots {
    /// Those of the process `pid`.
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
        // SAFETY: no address asked for; the length is the map's, as its layout says.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SLOTS_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "mapping the slots: {}", io::Error::last_os_error());
        Self { at: at.cast() }
    }

    fn slot(&self, number: usize) -> *mut Slot {
        assert!(number < MAX_ADDRESSES as usize);
        // SAFETY: inside the mapping, which holds MAX_ADDRESSES slots.
        unsafe { self.at.add(number) }
    }

    fn word(&self, number: usize) -> &AtomicU64 {
        // SAFETY: `word` is the first, aligned field of a slot inside the mapping, which lives as long as
        // `self`; everybody writes it in one store.
        unsafe { AtomicU64::from_ptr((&raw mut (*self.slot(number)).word).cast()) }
    }

    /// Stores a state into the word of an address, all else left as it is.
    ///
    /// # Panics
    /// If the address is in no slot.
    pub fn put_into(&self, address: std::net::Ipv4Addr, state: State) {
        let number = (0..MAX_ADDRESSES as usize)
            .find(|&number| {
                let word = StateWord::from_bits(self.word(number).load(Ordering::Relaxed));
                // SAFETY: inside the mapping; a plain value that the daemon does not change while it stands.
                let of = unsafe { (*self.slot(number)).address };
                word.state().is_some() && of == address.into()
            })
            .unwrap_or_else(|| panic!("{address} is in no slot"));
        let word = StateWord::from_bits(self.word(number).load(Ordering::Relaxed));
        let flags = if word.is_local() { StateWord::LOCAL } else { 0 };
        let new = StateWord::new(word.mac(), state, flags, word.generation());
        self.word(number).store(new.bits(), Ordering::Release);
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `of_process`, and nothing borrows from it any more.
        unsafe { libc::munmap(self.at.cast(), SLOTS_BYTES) };
    }
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
