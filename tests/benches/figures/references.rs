//! What the program is measured against: none of it is made of our code, and what drives both is not either.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

pub(crate) use arpwarden_tests::storm::{Frames, Generator, addresses};
use arpwarden_tests::{
    assembler::{Program, Width, XDP_PASS, XDP_TX},
    live::Table,
    prog_run::load_instructions,
    storm::{ARP_HEAD, REQUEST},
};

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
