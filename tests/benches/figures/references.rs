//! What the program is measured against, and what drives both: none of it is made of our code.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use arpwarden_tests::{live::Table, prog_run::load_instructions};

use crate::assembler::{Program, REDIRECT, Width, XDP_DROP, XDP_PASS, XDP_TX};

/// The first of the addresses that are measured with.
const FIRST: u32 = 0x0a40_0000; // 10.64.0.0
/// ARP for IPv4 on Ethernet, up to the operation (RFC 826).
const ARP_HEAD: u64 = 0x0001_0800_0604;
const REQUEST: u64 = 1;
/// The first two bytes of the MACs that the generators use: no host's.
const ASKER: i32 = 0xbd02;

/// The addresses that are measured with, one after the other.
pub(crate) fn addresses(count: u32) -> impl Iterator<Item = Ipv4Addr> + Clone {
    (FIRST..FIRST + count).map(Ipv4Addr::from)
}

/// Sends everything back as it is.
pub(crate) fn bounce() -> OwnedFd {
    load_instructions("bounce", &Program::default().finish(XDP_TX))
}

/// The least that answers: is it a request for IPv4 on Ethernet, one look-up of the address for the MAC, rewrite. The map
/// has to stay open as long as the program is used.
pub(crate) fn least_responder(
    addresses: impl Iterator<Item = [u8; 4]> + Clone,
    mac: [u8; 6],
) -> (OwnedFd, Table) {
    let count = u32::try_from(addresses.clone().count()).expect("as many as there are addresses");
    let map = Table::hash(8, count);
    let [a, b, c, d, e, f] = mac;
    for address in addresses {
        map.put(address, &[a, b, c, d, e, f, 0, 0]);
    }
    // Offsets of RFC 826 behind an Ethernet header of 14 bytes.
    let program = Program::default()
        .frame_of(42)
        .load(Width::Two, 1, 7, 12)
        .leave_unless(1, i32::from(0x0806_u16.to_be()))
        .load(Width::Eight, 1, 7, 14)
        .set_wide(2, (ARP_HEAD << 16 | REQUEST).to_be())
        .leave_unless_same(1, 2)
        .load(Width::Four, 9, 7, 38) // target address
        .store(Width::Four, 10, -4, 9)
        .look_up(map.as_fd().as_raw_fd())
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
    (load_instructions("least_responder", &program), map)
}

/// Drops everything, and counts the ARP frames of one operation.
pub(crate) struct Sink {
    pub(crate) program: OwnedFd,
    count: Table,
}

impl Sink {
    /// Of requests (1) or of replies (2).
    pub(crate) fn counting(operation: u16) -> Self {
        let count = Table::array(8, 1);
        let program = Program::default()
            .frame_of(42)
            .load(Width::Two, 1, 7, 12)
            .leave_unless(1, i32::from(0x0806_u16.to_be()))
            .load(Width::Two, 1, 7, 20)
            .leave_unless(1, i32::from(operation.to_be()))
            .put(Width::Four, 10, -4, 0)
            .look_up(count.as_fd().as_raw_fd())
            // One CPU at a time comes here, so that nothing needs to be atomic.
            .load(Width::Eight, 1, 0, 0)
            .plus(1, 1)
            .store(Width::Eight, 0, 0, 1)
            .act(XDP_DROP)
            .finish(XDP_DROP);
        Self { program: load_instructions("sink", &program), count }
    }

    /// How many so far.
    pub(crate) fn seen(&self) -> u64 {
        u64::from_ne_bytes(self.count.get([0; 4]).try_into().expect("eight bytes"))
    }
}

/// What a generator writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frames {
    /// Requests, all by one host.
    RequestsOfOne,
    /// Requests by 256 hosts.
    Requests,
    /// Claims in the form of announcements, each by another host.
    Claims,
}

/// Writes ARP frames, each for one of the first `addresses` addresses at random, and sends them out by an interface.
pub(crate) struct Generator {
    pub(crate) program: OwnedFd,
    _state: Table,
}

impl Generator {
    pub(crate) fn new(frames: Frames, addresses: u32, interface: u32) -> Self {
        let state = Table::array(8, 1);
        let mut program = Program::default();
        program
            .frame_of(60)
            .put(Width::Four, 10, -4, 0)
            .look_up(state.as_fd().as_raw_fd())
            // A linear congruential generator (Knuth, MMIX): random enough to be beyond any cache's guess, and cheap.
            .load(Width::Eight, 6, 0, 0)
            .set_wide(2, 6_364_136_223_846_793_005)
            .times(6, 2)
            .set_wide(2, 1_442_695_040_888_963_407)
            .plus_register(6, 2)
            .store(Width::Eight, 0, 0, 6)
            // r9: the address, from the upper half.
            .copy(9, 6)
            .shift_right(9, 32)
            .set_wide(2, addresses.into())
            .times(9, 2)
            .shift_right(9, 32)
            .set_wide(2, FIRST.into())
            .plus_register(9, 2)
            .network_order(9)
            // r5: the last four bytes of the sender's MAC, the random ones last.
            .copy(5, 6)
            .shift_right(5, 16);
        match frames {
            Frames::RequestsOfOne => program.set(5, 0),
            Frames::Requests => program.and(5, 0xff).shift_left(5, 24),
            Frames::Claims => &mut program,
        };
        program
            .put(Width::Four, 7, 0, -1)
            .put(Width::Two, 7, 4, -1)
            .put(Width::Two, 7, 6, ASKER)
            .store(Width::Four, 7, 8, 5)
            .put(Width::Two, 7, 12, i32::from(0x0806_u16.to_be()))
            .set_wide(2, (ARP_HEAD << 16 | REQUEST).to_be())
            .store(Width::Eight, 7, 14, 2)
            .put(Width::Two, 7, 22, ASKER)
            .store(Width::Four, 7, 24, 5)
            .put(Width::Four, 7, 32, 0)
            .put(Width::Two, 7, 36, 0)
            .store(Width::Four, 7, 38, 9);
        match frames {
            // 10.7.1.n, where n is the last byte of its MAC: r5 has only that.
            Frames::RequestsOfOne | Frames::Requests => {
                program.or(5, 0x0001_070a).store(Width::Four, 7, 28, 5)
            }
            Frames::Claims => program.store(Width::Four, 7, 28, 9),
        };
        let program =
            program.set(1, interface.cast_signed()).set(2, 0).call(REDIRECT).leave().finish(XDP_DROP);
        Self { program: load_instructions("generator", &program), _state: state }
    }
}
