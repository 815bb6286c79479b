//! Nanoseconds per frame, by BPF_PROG_TEST_RUN.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use arpwarden_common::{
    golden::{self, ADDRESS, Kind, OUR_MAC, Row, Tags},
    names,
    state::State,
};
use arpwarden_tests::prog_run::{Loaded, empty_program, hash_map_with, load_instructions, ns_per_frame};

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
    let row_of = |kind, name| {
        let of_interest = |row: &&Row| {
            row.kind == kind
                && row.tags == Tags::None
                && row.column.name == name
                && row.column.local
                && row.column.state == Some(State::Online)
        };
        rows.iter().find(of_interest).expect("a golden row for each kind and state")
    };
    let row = |kind| row_of(kind, "");
    let (other, request, claim) = (row(Kind::NotArp), row(Kind::Request), row(Kind::ClaimByRequestForm));
    let leased = row_of(Kind::Request, "a group whose lease stands");
    // A program called by tail has to be of its caller's kind: the one without multi-buffer frames. No messages, as
    // in service.
    let mut ours = Loaded::load(arpwarden::io::bpf::OBJECT, names::XDP, 0);
    ours.enter(&request.world);
    let mut ours_leased = Loaded::load(arpwarden::io::bpf::OBJECT, names::XDP, 0);
    ours_leased.enter(&leased.world);
    let empty = empty_program();
    let (least, _addresses) = least_responder();

    let programs = [
        ("empty program", empty.as_fd(), request),
        ("least possible responder, answered", least.as_fd(), request),
        ("arpwarden, not ARP", ours.fd(), other),
        ("arpwarden, answered", ours.fd(), request),
        ("arpwarden, answered, group with a lease", ours_leased.fd(), leased),
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
    let [a, b, c, d, e, f] = OUR_MAC;
    let addresses = hash_map_with(&ADDRESS, &[a, b, c, d, e, f, 0, 0]);
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
    (load_instructions("least_responder", &program), addresses)
}
