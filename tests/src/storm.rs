//! Frames that come by the million: programs that write them, and one that counts what comes back.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use crate::{
    assembler::{Program, REDIRECT, Width, XDP_DROP},
    live::{MIN_FRAME, Table, run_live},
    prog_run::load_instructions,
};

/// The first of the addresses that are asked for and claimed.
const FIRST: u32 = 0x0a40_0000; // 10.64.0.0
/// ARP for IPv4 on Ethernet, up to the operation (RFC 826).
pub const ARP_HEAD: u64 = 0x0001_0800_0604;
/// The operation of a question.
pub const REQUEST: u64 = 1;
/// An operation that RFC 826 has not.
const NO_OPERATION: u64 = 3;
/// The first two bytes of the MACs that the generators use: no host's.
const ASKER: i32 = 0xbd02;
/// Bytes of a frame that ends one byte before its ARP packet does.
const ONE_TOO_SHORT: u32 = 41;

/// The addresses that are asked for and claimed, one after the other.
pub fn addresses(count: u32) -> impl Iterator<Item = Ipv4Addr> + Clone {
    (FIRST..FIRST + count).map(Ipv4Addr::from)
}

/// Drops everything, and counts the ARP frames of one operation, announcements aside.
#[derive(Debug)]
pub struct Sink {
    /// To be attached where what is counted comes in.
    pub program: OwnedFd,
    count: Table,
}

impl Sink {
    /// Of requests (1) or of replies (2).
    pub fn counting(operation: u16) -> Self {
        let count = Table::array(8, 1);
        let program = Program::default()
            .frame_of(42)
            .load(Width::Two, 1, 7, 12)
            .leave_unless(1, i32::from(0x0806_u16.to_be()))
            .load(Width::Two, 1, 7, 20)
            .leave_unless(1, i32::from(operation.to_be()))
            .load(Width::Four, 1, 7, 28)
            .load(Width::Four, 2, 7, 38)
            .leave_if_same(1, 2)
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
    pub fn seen(&self) -> u64 {
        u64::from_ne_bytes(self.count.get([0; 4]).try_into().expect("eight bytes"))
    }
}

/// What a generator writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frames {
    /// Requests, all by one host.
    RequestsOfOne,
    /// Requests by 256 hosts.
    Requests,
    /// Requests, each by another host.
    RequestsOfAll,
    /// Claims in the form of announcements, each by another host.
    Claims,
    /// The same, but for the last byte, which is not there.
    TooShort,
    /// The same with an operation that there is none of.
    BadHeader,
    /// The same, by the MAC of no host.
    BadSender,
}

/// Writes ARP frames, each for one of the first `addresses` addresses at random, and sends them out by an interface.
#[derive(Debug)]
pub struct Generator {
    program: OwnedFd,
    /// Bytes of each frame.
    length: u32,
    _state: Table,
}

impl Generator {
    /// # Panics
    /// Without privilege.
    pub fn new(frames: Frames, addresses: u32, interface: u32) -> Self {
        let length = if frames == Frames::TooShort { ONE_TOO_SHORT } else { MIN_FRAME };
        let operation = if frames == Frames::BadHeader { NO_OPERATION } else { REQUEST };
        let state = Table::array(8, 1);
        let mut program = Program::default();
        program
            .frame_of(length.cast_signed())
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
            // r5: the last four bytes of the sender's MAC.
            .copy(5, 6);
        match frames {
            Frames::RequestsOfOne => program.set(5, 0),
            Frames::Requests => program.shift_right(5, 16).and(5, 0xff).shift_left(5, 24),
            // The lower half of the generator's state is one that comes by each of its 2^32 values once in a round.
            Frames::RequestsOfAll
            | Frames::Claims
            | Frames::TooShort
            | Frames::BadHeader
            | Frames::BadSender => &mut program,
        };
        program
            .put(Width::Four, 7, 0, -1)
            .put(Width::Two, 7, 4, -1)
            .put(Width::Two, 7, 6, ASKER)
            .store(Width::Four, 7, 8, 5)
            .put(Width::Two, 7, 12, i32::from(0x0806_u16.to_be()))
            .set_wide(2, (ARP_HEAD << 16 | operation).to_be())
            .store(Width::Eight, 7, 14, 2)
            .put(Width::Two, 7, 22, ASKER)
            .store(Width::Four, 7, 24, 5)
            .put(Width::Four, 7, 32, 0)
            .put(Width::Two, 7, 36, 0);
        match frames {
            // 10.7.1.n, where n is the last byte of its MAC: r5 has only that.
            Frames::RequestsOfOne | Frames::Requests => {
                program.or(5, 0x0001_070a).store(Width::Four, 7, 28, 5)
            }
            // 172.n.n.n, as the last three bytes of its MAC are: none of the addresses.
            Frames::RequestsOfAll => {
                program.shift_right(5, 8).shift_left(5, 8).or(5, 172).store(Width::Four, 7, 28, 5)
            }
            Frames::BadSender => {
                program.put(Width::Four, 7, 22, 0).put(Width::Two, 7, 26, 0).store(Width::Four, 7, 28, 9)
            }
            Frames::Claims | Frames::TooShort | Frames::BadHeader => program.store(Width::Four, 7, 28, 9),
        };
        if frames != Frames::TooShort {
            program.store(Width::Four, 7, 38, 9);
        }
        let program =
            program.set(1, interface.cast_signed()).set(2, 0).call(REDIRECT).leave().finish(XDP_DROP);
        Self { program: load_instructions("generator", &program), length, _state: state }
    }

    /// Writes and sends so many, on this CPU and in this thread's network namespace, as fast as it goes.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn run(&self, frames: u32) {
        run_live(self.program.as_fd(), self.length, frames);
    }

    /// The same one, for another thread.
    pub(crate) fn program(&self) -> (OwnedFd, u32) {
        (self.program.try_clone().expect("a descriptor"), self.length)
    }
}
