//! Nanoseconds per frame, by BPF_PROG_TEST_RUN.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use arpwarden_common::{
    golden::{self, ADDRESS, Kind, OUR_MAC, Row, Tags},
    names,
    state::State,
};
use arpwarden_tests::prog_run::{Loaded, empty_program, ns_per_frame};

use crate::{
    assembler::{MAP_LOOKUP_ELEM, Program, Width, XDP_PASS, XDP_TX},
    report::Figure,
};

/// Frames in a run: a tenth of a second for a program of 100 ns, so that the kernel's whole nanoseconds per frame
/// are no coarser than the noise.
const FRAMES: u32 = 1_000_000;
/// Runs of each program, in turn, so that a change of the processor's speed meets all of them.
const ROUNDS: usize = 9;

/// Measures and returns: the empty program with its harness, then each row net of that.
pub(crate) fn measure() -> (Figure, Vec<(&'static str, Figure)>) {
    let rows = golden::rows();
    let row = |kind| {
        let of_interest = |row: &&Row| {
            row.kind == kind
                && row.tags == Tags::None
                && row.column.local
                && row.column.state == Some(State::Online)
        };
        rows.iter().find(of_interest).expect("a golden row for each kind and state")
    };
    let (other, request, claim) = (row(Kind::NotArp), row(Kind::Request), row(Kind::ClaimByRequestForm));
    // A program called by tail has to be of its caller's kind: the one without multi-buffer frames. No messages, as
    // in service.
    let mut ours = Loaded::load(arpwarden::io::bpf::OBJECT, names::XDP, 0);
    ours.enter(&request.world);
    let empty = empty_program();
    let (least, _addresses) = least_responder();

    let programs = [
        ("empty program", empty.as_fd(), request),
        ("least possible responder, answered", least.as_fd(), request),
        ("arpwarden, not ARP", ours.fd(), other),
        ("arpwarden, answered", ours.fd(), request),
        ("arpwarden, claim", ours.fd(), claim),
    ];
    let mut figures = programs.map(|(name, ..)| (name, Vec::with_capacity(ROUNDS)));
    for _ in 0..ROUNDS {
        for ((_, times), (_, program, row)) in figures.iter_mut().zip(&programs) {
            times.push(ns_per_frame(*program, &row.frame, FRAMES));
        }
    }
    let [(_, empty), measured @ ..] = figures;
    let empty = Figure::of(empty);
    let net = measured
        .map(|(name, times)| (name, Figure::of(times.into_iter().map(|time| time - empty.median).collect())));
    (empty, net.into())
}

/// The least that answers: is it a request for IPv4 on Ethernet, one look-up of the address for the MAC, rewrite.
fn least_responder() -> (OwnedFd, OwnedFd) {
    let addresses = create_map(MAP_TYPE_HASH, 4, 8, 1);
    let [a, b, c, d, e, f] = OUR_MAC;
    update(&addresses, &ADDRESS, &[a, b, c, d, e, f, 0, 0]);
    // Offsets of RFC 826 behind an Ethernet header of 14 bytes.
    let program = Program::default()
        .load(Width::Four, 7, 1, 0) // xdp_md.data
        .load(Width::Four, 8, 1, 4) // xdp_md.data_end
        .copy(1, 7)
        .plus(1, 42)
        .leave_if_above(1, 8)
        .load(Width::Two, 1, 7, 12)
        .leave_unless(1, i32::from(0x0806_u16.to_be()))
        .load(Width::Eight, 1, 7, 14)
        .set_wide(2, 0x0001_0800_0604_0001_u64.to_be()) // Ethernet, IPv4, 6, 4, request
        .leave_unless_same(1, 2)
        .load(Width::Four, 9, 7, 38) // target address
        .store(Width::Four, 10, -4, 9)
        .set_map(1, addresses.as_raw_fd())
        .copy(2, 10)
        .plus(2, -4)
        .call(MAP_LOOKUP_ELEM)
        .leave_if_null(0)
        .load(Width::Eight, 3, 0, 0) // our MAC
        .copy(4, 3)
        .shift_right(4, 32)
        .load(Width::Four, 1, 7, 6) // Ethernet source becomes destination
        .store(Width::Four, 7, 0, 1)
        .load(Width::Two, 1, 7, 10)
        .store(Width::Two, 7, 4, 1)
        .store(Width::Four, 7, 6, 3)
        .store(Width::Two, 7, 10, 4)
        .set(1, i32::from(2_u16.to_be())) // reply
        .store(Width::Two, 7, 20, 1)
        .load(Width::Four, 1, 7, 22) // sender becomes target
        .store(Width::Four, 7, 32, 1)
        .load(Width::Two, 1, 7, 26)
        .store(Width::Two, 7, 36, 1)
        .load(Width::Four, 1, 7, 28)
        .store(Width::Four, 7, 38, 1)
        .store(Width::Four, 7, 22, 3) // we become sender
        .store(Width::Two, 7, 26, 4)
        .store(Width::Four, 7, 28, 9)
        .act(XDP_TX)
        .finish(XDP_PASS);
    (load(&program), addresses)
}

/// `bpf_cmd`, `bpf_map_type` and `bpf_prog_type` of linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const MAP_TYPE_HASH: u32 = 1;
const PROG_TYPE_XDP: u32 = 6;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
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
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> i32 {
    let length = libc::c_uint::try_from(size_of::<T>()).expect("a small struct");
    // SAFETY: pointer and length belong to `attributes`, which the kernel may write; its own pointers lead to
    // buffers that the callers keep alive during the call; the kernel reads absent attributes as zero.
    let number = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), length) };
    assert!(number >= 0, "bpf({command}) (needs root): {}", io::Error::last_os_error());
    i32::try_from(number).expect("a descriptor or 0")
}

fn create_map(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> OwnedFd {
    let map = bpf(BPF_MAP_CREATE, &mut MapCreate { map_type, key_size, value_size, max_entries });
    // SAFETY: a new descriptor.
    unsafe { OwnedFd::from_raw_fd(map) }
}

fn update(map: &OwnedFd, key: &[u8], value: &[u8]) {
    let map_fd = map.as_raw_fd().cast_unsigned();
    let (key, value) = (key.as_ptr().addr() as u64, value.as_ptr().addr() as u64);
    bpf(BPF_MAP_UPDATE_ELEM, &mut MapUpdate { map_fd, pad: 0, key, value, flags: 0 });
}

fn load(instructions: &[[u8; 8]]) -> OwnedFd {
    let mut log = vec![0_u8; 64 * 1024];
    let mut attributes = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        insn_cnt: u32::try_from(instructions.len()).expect("a short program"),
        insns: instructions.as_ptr().addr() as u64,
        license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len()).expect("a small log"),
        log_buf: log.as_mut_ptr().addr() as u64,
    };
    let length = libc::c_uint::try_from(size_of::<ProgLoad>()).expect("a small struct");
    // SAFETY: as in `bpf`; the log's length goes along.
    let number = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut attributes, length) };
    let error = io::Error::last_os_error();
    assert!(number >= 0, "loading a reference program: {error}\n{}", String::from_utf8_lossy(&log));
    // SAFETY: a new descriptor.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(number).expect("a descriptor")) }
}
