//! Packet sockets: raw frames out and in, with the kernel's time and the tags where they belong.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use arpwarden_common::{
    net::{Ipv4, MacAddr, Vlan},
    wire::arp::{self, Frame, Outgoing, Parsed, REPLY, REQUEST},
};

use crate::netns::{Netns, unique};

/// The first EtherType for local experiments (IEEE 802, clause 9.2.3.5): the fixture's own frames.
const ETHERTYPE_LOCAL: [u8; 2] = [0x88, 0xb5];
/// `TP_STATUS_VLAN_VALID` and `TP_STATUS_VLAN_TPID_VALID` of linux/if_packet.h.
const VLAN_VALID: u32 = 1 << 4;
const VLAN_TYPE_VALID: u32 = 1 << 6;

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
}

/// A frame as it was on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Captured {
    /// The whole frame; a tag that the kernel keeps beside it is put back.
    pub bytes: Vec<u8>,
    /// CLOCK_BOOTTIME in nanoseconds, taken by the kernel (on the real-time clock, converted).
    pub boot_ns: u64,
    /// Sent by the host on which the socket is, not received.
    pub outgoing: bool,
}

impl Captured {
    /// The ARP fields, if it is ARP for IPv4 on Ethernet.
    pub fn arp(&self) -> Option<Frame> {
        match arp::parse(self.bytes.as_slice()) {
            Parsed::Arp(frame) => Some(frame),
            Parsed::NotArp | Parsed::Truncated | Parsed::BadHeader => None,
        }
    }

    /// Whether it is ARP and `wanted` likes its fields.
    pub fn is_arp(&self, wanted: impl FnOnce(&Frame) -> bool) -> bool {
        self.arp().is_some_and(|frame| wanted(&frame))
    }

    /// Whether it is an ARP frame that says that an address belongs to a MAC.
    pub fn says(&self, address: impl Into<Ipv4>, mac: MacAddr) -> bool {
        let address = address.into();
        self.is_arp(|frame| frame.sender_ip == address && frame.sender_mac == mac)
    }
}

impl std::fmt::Debug for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = if self.outgoing { "out" } else { "in" };
        let [seconds, micros] = [self.boot_ns / 1_000_000_000, self.boot_ns / 1_000 % 1_000_000];
        write!(f, "{seconds}.{micros:06} {direction} ")?;
        match self.arp() {
            Some(frame) => write!(f, "{frame:?}"),
            None => write!(f, "{:02x?}", self.bytes),
        }
    }
}

thread_local! {
    /// Room for any frame: captures keep what a frame has, not what it might have had.
    static SCRATCH: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; 65_536]);
}

impl Wire {
    /// A socket on `interface` that sees everything, both ways.
    ///
    /// # Panics
    /// If there is no such interface.
    pub fn open(ns: &Netns, interface: &str) -> Self {
        ns.enter(|| Self::open_here(interface, libc::ETH_P_ALL))
    }

    /// A socket on `interface` that sees the ARP that came in as the kernel's own ARP sees it: behind the program, in
    /// whichever mode that is.
    ///
    /// # Panics
    /// If there is no such interface.
    pub fn behind(ns: &Netns, interface: &str) -> Self {
        ns.enter(|| Self::open_here(interface, libc::ETH_P_ARP))
    }

    /// A socket on `interface` that hears nothing, for who only speaks.
    ///
    /// # Panics
    /// If there is no such interface.
    pub fn deaf(ns: &Netns, interface: &str) -> Self {
        ns.enter(|| Self::open_here(interface, 0))
    }

    fn open_here(interface: &str, protocol: i32) -> Self {
        let protocol = short(protocol).to_be();
        // SAFETY: takes no pointer.
        let number = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                i32::from(protocol),
            )
        };
        assert!(number >= 0, "a packet socket (needs root): {}", io::Error::last_os_error());
        // SAFETY: just opened, nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let name = std::ffi::CString::new(interface).expect("an interface name without zero bytes");
        // SAFETY: a string that ends in a zero byte, alive during the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "no interface {interface} in this namespace");
        // SAFETY: all zeros is a value of this plain C struct.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = short(libc::AF_PACKET);
        address.sll_protocol = protocol;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: pointer and length belong to `address`, alive during the call.
        let bound =
            unsafe { libc::bind(number, (&raw const address).cast(), length_of::<libc::sockaddr_ll>()) };
        assert_eq!(bound, 0, "binding to {interface}: {}", io::Error::last_os_error());
        // Room for a whole flood of a test, so that "not seen" never means "not received".
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20);
        set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
        set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1);
        let membership = libc::packet_mreq {
            mr_ifindex: index.cast_signed(),
            mr_type: short(libc::PACKET_MR_PROMISC),
            mr_alen: 0,
            mr_address: [0; 8],
        };
        // SAFETY: pointer and length belong to `membership`, alive during the call.
        let joined = unsafe {
            libc::setsockopt(
                number,
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const membership).cast(),
                length_of::<libc::packet_mreq>(),
            )
        };
        assert_eq!(joined, 0, "promiscuous {interface}: {}", io::Error::last_os_error());
        let wire = Self { socket };
        wire.drain();
        wire
    }

    /// Sends a frame as it is, and returns CLOCK_BOOTTIME in nanoseconds just before.
    ///
    /// # Panics
    /// If the kernel does not take it.
    pub fn send(&self, frame: &[u8]) -> u64 {
        let before = boot_ns();
        self.offer(frame).unwrap_or_else(|error| panic!("sending a frame: {error}"));
        before
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// The kernel's; ENOBUFS where a program on the way out has dropped the frame.
    pub fn offer(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length belong to `frame`.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent == frame.len().cast_signed() { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The next frame, waited for until `deadline`.
    pub fn next(&self, deadline: Instant) -> Option<Captured> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
            // SAFETY: one pollfd, alive during the call.
            unsafe { libc::poll(&raw mut poll, 1, timeout) };
        }
    }

    /// The first of those that are waiting.
    pub fn drain_at_most(&self, most: usize) -> Vec<Captured> {
        std::iter::from_fn(|| self.take()).take(most).collect()
    }

    /// All frames that are waiting.
    pub fn drain(&self) -> Vec<Captured> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// The first frame that `wanted` likes.
    ///
    /// # Panics
    /// After `within`, with what came instead.
    pub fn wait_for(&self, what: &str, within: Duration, wanted: impl FnMut(&Captured) -> bool) -> Captured {
        self.collect_until(what, within, wanted).pop().expect("the frame waited for is the last one")
    }

    /// All frames up to and with the first one that `wanted` likes.
    ///
    /// # Panics
    /// After `within`, with what came instead.
    pub fn collect_until(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Captured) -> bool,
    ) -> Vec<Captured> {
        let deadline = Instant::now() + within;
        let mut seen = Vec::new();
        while let Some(frame) = self.next(deadline) {
            seen.push(frame);
            if seen.last().is_some_and(&mut wanted) {
                return seen;
            }
        }
        panic!("waited {within:?} in vain for {what}; seen instead: {seen:#?}");
    }

    /// All frames that come in `period`. For what must be there for a while; what must *not* come is bounded
    /// by a later frame, with [`Wire::collect_until`].
    pub fn collect_for(&self, period: Duration) -> Vec<Captured> {
        let deadline = Instant::now() + period;
        std::iter::from_fn(|| self.next(deadline)).collect()
    }

    /// How many frames there was no room for since the last call, as nobody took those that were waiting.
    pub fn lost(&self) -> u32 {
        self.counted().tp_drops
    }

    /// How many frames came by since the last call, those included that there was no room for.
    pub fn passed(&self) -> u32 {
        self.counted().tp_packets
    }

    /// What the kernel has counted since it was asked last.
    fn counted(&self) -> libc::tpacket_stats {
        // SAFETY: all zeros is a value of this plain C struct.
        let mut counted: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut length = length_of::<libc::tpacket_stats>();
        // SAFETY: pointer and length belong to `counted`, alive during the call.
        let told = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counted).cast(),
                &raw mut length,
            )
        };
        assert_eq!(told, 0, "the counters of a packet socket: {}", io::Error::last_os_error());
        counted
    }

    fn take(&self) -> Option<Captured> {
        SCRATCH.with_borrow_mut(|scratch| self.take_by(scratch))
    }

    fn take_by(&self, scratch: &mut [u8]) -> Option<Captured> {
        let mut control = [0_u64; 32];
        // SAFETY: all zeros is a value of these plain C structs.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut part = libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: scratch.len() };
        // SAFETY: as above.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = length_of::<libc::sockaddr_ll>();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in `message` leads to a live buffer of the length beside it.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN) => None,
                // Told once when the interface goes down, before what came in until then.
                Some(libc::ENETDOWN | libc::EINTR) => self.take_by(scratch),
                _ => panic!("receiving a frame: {error}"),
            };
        };
        let mut bytes = scratch[..length].to_vec();
        let mut real_ns = 0;
        // SAFETY: `message` was filled by recvmsg, its control buffer is alive.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !header.is_null() {
            // SAFETY: not null, and inside the control buffer by CMSG_FIRSTHDR's and CMSG_NXTHDR's promise.
            let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(header) };
            if (level, kind) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
                // SAFETY: the kernel put a timespec there; read without an assumption about alignment.
                real_ns = nanoseconds(unsafe { data.cast::<libc::timespec>().read_unaligned() });
            } else if (level, kind) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                // SAFETY: the kernel put a tpacket_auxdata there.
                let beside = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
                if beside.tp_status & VLAN_VALID != 0 && bytes.len() >= 12 {
                    let known = beside.tp_status & VLAN_TYPE_VALID != 0;
                    let tag_type = if known { beside.tp_vlan_tpid } else { 0x8100 };
                    let tag = [tag_type.to_be_bytes(), beside.tp_vlan_tci.to_be_bytes()].concat();
                    bytes.splice(12..12, tag);
                }
            }
            // SAFETY: `header` is inside the control buffer of `message`.
            header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
        }
        let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
        Some(Captured { bytes, boot_ns: real_ns - boot_offset_ns(), outgoing })
    }
}

/// Sends a frame from an interface with a header that tells the kernel how much of it is to be linear, if it is longer
/// than a page: the rest is in fragments.
///
/// # Errors
/// The kernel's; ENOBUFS where a program on the way out has dropped the frame.
///
/// # Panics
/// If there can be no such socket.
pub fn offer_in_pieces(ns: &Netns, interface: &str, frame: &[u8], linear: u16) -> io::Result<()> {
    /// `PACKET_VNET_HDR` of linux/if_packet.h.
    const HEADER_IN_FRONT: i32 = 15;
    let wire = Wire::open(ns, interface);
    set(&wire.socket, libc::SOL_PACKET, HEADER_IN_FRONT, 1);
    // linux/virtio_net.h, `struct virtio_net_hdr`: flags, gso_type, then hdr_len and three more of 16 bits.
    let [l0, l1] = linear.to_ne_bytes();
    wire.offer(&[&[0, 0, l0, l1, 0, 0, 0, 0, 0, 0][..], frame].concat())
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: i32) {
    // SAFETY: pointer and length belong to `value`, alive during the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length_of::<i32>())
    };
    assert_eq!(done, 0, "socket option {level}/{option}: {}", io::Error::last_os_error());
}

/// Constants that the C headers give a wider type than the structs that carry them.
fn short(constant: i32) -> u16 {
    u16::try_from(constant).expect("a constant of sixteen bits")
}

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a small struct")
}

/// CLOCK_BOOTTIME in nanoseconds.
pub fn boot_ns() -> u64 {
    clock(libc::CLOCK_BOOTTIME)
}

/// How far the real-time clock is ahead of CLOCK_BOOTTIME, in nanoseconds. Taken anew every few milliseconds, as the
/// real-time clock is steered, by milliseconds in an hour; not for each frame, as looking at a clock is slow in a guest.
fn boot_offset_ns() -> u64 {
    const GOOD_FOR_NS: u64 = 50_000_000;
    thread_local! {
        /// When it was taken, and what it was.
        static TAKEN: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) };
    }
    let now_ns = boot_ns();
    let (taken_ns, offset_ns) = TAKEN.get();
    if taken_ns != 0 && now_ns < taken_ns + GOOD_FOR_NS {
        return offset_ns;
    }
    // Whoever loses the processor between two looks gets an offset that is wrong by that time.
    let looks = (0..16).map(|_| {
        let (before, real, after) = (boot_ns(), clock(libc::CLOCK_REALTIME), boot_ns());
        (after - before, real - before)
    });
    let mut best = (u64::MAX, 0);
    for look in looks {
        best = best.min(look);
        if best.0 < 2_000 {
            break;
        }
    }
    TAKEN.set((now_ns, best.1));
    best.1
}

pub(crate) fn clock(which: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a timespec to be written, alive during the call.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    nanoseconds(time)
}

fn nanoseconds(time: libc::timespec) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A broadcast frame of a kind that nothing acts on, unlike every other of this process. Whoever receives it
/// has received all that was sent before it on the same way.
pub fn marker(from: MacAddr) -> Vec<u8> {
    let mut frame = [MacAddr::BROADCAST.octets(), from.octets()].concat();
    frame.extend(ETHERTYPE_LOCAL);
    frame.extend(unique().to_be_bytes());
    frame.resize(arp::MIN_FRAME, 0);
    frame
}

/// The bytes of a frame to be sent.
pub fn bytes(frame: &Outgoing) -> Vec<u8> {
    let mut buffer = [0; Outgoing::MAX_LEN];
    let length = frame.emit(&mut buffer);
    buffer[..length].to_vec()
}

/// A broadcast request: `asker` at `from` wants to know who has `address`.
pub fn request(asker: MacAddr, from: impl Into<Ipv4>, address: impl Into<Ipv4>) -> Outgoing {
    Outgoing {
        destination: MacAddr::BROADCAST,
        source: asker,
        vlan: Vlan::UNTAGGED,
        operation: REQUEST,
        sender_mac: asker,
        sender_ip: from.into(),
        target_mac: MacAddr::ZERO,
        target_ip: address.into(),
    }
}

/// A reply to `asker` that says that `owner` has `address`.
pub fn reply(owner: MacAddr, address: impl Into<Ipv4>, asker: MacAddr, from: impl Into<Ipv4>) -> Outgoing {
    Outgoing {
        destination: asker,
        source: owner,
        vlan: Vlan::UNTAGGED,
        operation: REPLY,
        sender_mac: owner,
        sender_ip: address.into(),
        target_mac: asker,
        target_ip: from.into(),
    }
}

/// An announcement in request form.
pub fn announcement(mac: MacAddr, address: impl Into<Ipv4>) -> Outgoing {
    Outgoing::announcement(mac, mac, Vlan::UNTAGGED, address.into())
}

/// A probe.
pub fn probe(mac: MacAddr, address: impl Into<Ipv4>) -> Outgoing {
    Outgoing::probe(mac, Vlan::UNTAGGED, address.into())
}
