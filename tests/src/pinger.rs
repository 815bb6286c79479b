//! A pinger that asks so often that a gap of milliseconds shows.

use std::{
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use crate::{background::Background, netns::Netns, wire::boot_ns};

/// An echo request goes out this often.
const EVERY: Duration = Duration::from_millis(1);

/// Echo requests under way.
#[derive(Debug)]
pub struct Pinger(Background<Vec<u64>>);

impl Pinger {
    /// Begins, from a namespace.
    pub fn start(ns: &Netns, to: Ipv4Addr) -> Self {
        let socket = ns.enter(|| Socket::open(to));
        Self(Background::start(move |ended| {
            let (mut answered_ns, mut due, mut sequence) = (Vec::new(), Instant::now(), 0_u16);
            while !ended.now() {
                socket.ask(sequence);
                sequence = sequence.wrapping_add(1);
                due += EVERY;
                while let Some(left) = due.checked_duration_since(Instant::now()) {
                    if socket.answered_within(left) {
                        answered_ns.push(boot_ns());
                    }
                }
            }
            answered_ns
        }))
    }

    /// Ends it, and returns when the answers came: CLOCK_BOOTTIME in nanoseconds.
    pub fn stop(self) -> Vec<u64> {
        self.0.stop()
    }
}

/// The longest time without an answer, from the first of them to the last.
///
/// # Panics
/// If there were fewer than two.
pub fn longest_gap(answered_ns: &[u64]) -> Duration {
    let gaps = answered_ns.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    Duration::from_nanos(gaps.max().expect("two answers or more"))
}

struct Socket {
    socket: OwnedFd,
    to: libc::sockaddr_in,
}

impl Socket {
    fn open(to: Ipv4Addr) -> Self {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes no pointer.
        let number = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP) };
        assert!(number >= 0, "a raw socket (needs root): {}", io::Error::last_os_error());
        // SAFETY: just opened, nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        // SAFETY: all zeros is a value of this plain C struct.
        let mut address: libc::sockaddr_in = unsafe { mem::zeroed() };
        address.sin_family = libc::AF_INET.try_into().expect("a small constant");
        address.sin_addr.s_addr = u32::from(to).to_be();
        Self { socket, to: address }
    }

    fn ask(&self, sequence: u16) {
        let mut request = [8, 0, 0, 0, 0xa2, 0x57, 0, 0];
        request[6..].copy_from_slice(&sequence.to_be_bytes());
        let checksum = checksum(&request);
        request[2..4].copy_from_slice(&checksum.to_be_bytes());
        let length = libc::socklen_t::try_from(size_of_val(&self.to)).expect("a small struct");
        // A request that cannot leave, as nobody says who has the address, is a request without an answer.
        // SAFETY: both pointers lead to values that live during the call, of the lengths beside them.
        unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                request.as_ptr().cast(),
                request.len(),
                0,
                (&raw const self.to).cast(),
                length,
            )
        };
    }

    /// Whether an answer comes in this time.
    fn answered_within(&self, time: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout =
            libc::timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: i64::from(time.subsec_nanos()) };
        // SAFETY: one pollfd and a timespec, alive during the call; no set of signals.
        unsafe { libc::ppoll(&raw mut poll, 1, &raw const timeout, std::ptr::null()) };
        let mut packet = [0_u8; 128];
        // SAFETY: pointer and length belong to `packet`.
        let length =
            unsafe { libc::recv(self.socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
        // An IPv4 header without options, then type 0: echo reply.
        length >= 28 && packet[20] == 0
    }
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    // Eight bytes carry at most twice.
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).expect("folded into sixteen bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_what_carries_its_checksum_is_zero() {
        let mut request = [8, 0, 0, 0, 0xa2, 0x57, 0xff, 0xfe];
        let sum = checksum(&request);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&request), 0);
    }

    #[test]
    fn the_longest_gap_is_between_two_answers() {
        assert_eq!(longest_gap(&[1_000, 2_000, 9_000, 10_000]), Duration::from_nanos(7_000));
    }
}
