//! Packet sockets: one that puts ARP frames on any interface, one that listens on a single interface for
//! commands that have no daemon.

use std::{
    array, io, iter, mem,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
};

use arpwarden_common::wire::{
    arp::{Frame, Outgoing, Parsed, parse},
    ethernet::{ETHERTYPE_ARP, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthernetHeader, VlanTag},
};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

/// Bytes asked for frames that wait in the sending socket. The pace of an interface allows bursts of 500 frames;
/// the kernel charges 768 bytes for a frame this small (`SKB_TRUESIZE`) and doubles what is asked for, so two
/// interfaces may burst at the same time.
const SEND_BUFFER: usize = 500 * 768;

/// Frames handed to the kernel in one call: 180,000 frames of 20,000 addresses took 2,814 calls. Their buffers take 11 KiB of
/// stack.
pub const SENT_AT_ONCE: usize = 64;

/// Sends ARP frames on any interface. Frames pass the traffic control of the interface, as the kernel's own do.
#[derive(Debug)]
pub struct ArpSocket {
    socket: Socket,
}

impl ArpSocket {
    /// A socket that receives nothing: packet sockets of protocol 0 are not hooked into the receive path
    /// (packet(7)).
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] without CAP_NET_RAW in the user namespace that owns this network
    /// namespace.
    pub fn open() -> io::Result<Self> {
        let socket = open()?;
        // Beyond `wmem_max` only with CAP_NET_ADMIN; without it as much as there is, and a frame that finds no
        // room is reported as failed.
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            socket.set_send_buffer_size(SEND_BUFFER)?;
        }
        Ok(Self { socket })
    }

    /// Puts `frame` on the interface with this index. Never waits.
    ///
    /// # Errors
    /// The kernel's: ENETDOWN while the interface is down, ENXIO when there is none, ENOBUFS or EAGAIN when
    /// its queue is full.
    pub fn send(&self, index: u32, frame: &Outgoing) -> io::Result<()> {
        self.send_all(&[(index, *frame)]).pop().unwrap_or(Ok(()))
    }

    /// Puts frames on the interfaces with these indices, in this order; says of each how that went ([`ArpSocket::send`]).
    pub fn send_all(&self, frames: &[(u32, Outgoing)]) -> Vec<io::Result<()>> {
        let mut results = Vec::with_capacity(frames.len());
        for some in frames.chunks(SENT_AT_ONCE) {
            self.send_some(some, &mut results);
        }
        results
    }

    /// The same for at most [`SENT_AT_ONCE`], in one call of the kernel if it takes all of them.
    #[expect(clippy::cast_possible_truncation, reason = "a few frames, and sizes of an address and a frame")]
    fn send_some(&self, frames: &[(u32, Outgoing)], results: &mut Vec<io::Result<()>>) {
        let mut buffers = [[0; Outgoing::MAX_LEN]; SENT_AT_ONCE];
        let mut addresses: [libc::sockaddr_ll; SENT_AT_ONCE] = array::from_fn(|_| link_level(0, 0));
        // SAFETY: `iovec` and `mmsghdr` are integers and pointers, for which zero is a value.
        let (mut vectors, mut messages): ([libc::iovec; SENT_AT_ONCE], [libc::mmsghdr; SENT_AT_ONCE]) =
            unsafe { mem::zeroed() };
        let places = iter::zip(&mut buffers, &mut addresses).zip(iter::zip(&mut vectors, &mut messages));
        for ((index, frame), ((buffer, address), (vector, message))) in frames.iter().zip(places) {
            let length = frame.emit(buffer);
            // What the first tag, if any, says the frame is: the kernel's own frames look the same to tc filters.
            *address = link_level(*index, u16::from_be_bytes([buffer[12], buffer[13]]));
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: length };
            message.msg_hdr.msg_name = ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut left = messages.get_mut(..frames.len()).unwrap_or_default();
        while !left.is_empty() {
            // SAFETY: the descriptor is open; each message names a buffer and an address of this function's own, as long
            // as it says, and the kernel writes to the messages alone.
            let sent = unsafe {
                libc::sendmmsg(self.socket.as_raw_fd(), left.as_mut_ptr(), left.len() as libc::c_uint, 0)
            };
            // It ends before the first message that fails, and with that one's error if that is the first.
            let (done, result): (usize, fn() -> io::Result<()>) = match usize::try_from(sent) {
                Ok(sent @ 1..) => (sent, || Ok(())),
                Ok(0) => (1, || Err(io::ErrorKind::WriteZero.into())),
                Err(_) => (1, || Err(io::Error::last_os_error())),
            };
            let done = done.min(left.len());
            results.extend(iter::repeat_with(result).take(done));
            left = left.split_at_mut(done).1;
        }
    }
}

/// Receives the ARP frames of one interface, its own excepted.
#[derive(Debug)]
pub struct ArpListener {
    fd: AsyncFd<OwnedFd>,
}

impl ArpListener {
    /// Listens from now on on the interface with this index. Needs a tokio runtime with its I/O driver.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] without CAP_NET_RAW in the user namespace that owns this network
    /// namespace; ENODEV if there is no such interface, ENETDOWN if it is down.
    pub fn open(index: u32) -> io::Result<Self> {
        let socket = open()?;
        // All protocols, narrowed by the filter: a socket on ETH_P_ARP gets frames of foreign VLANs with the
        // tag taken off and forgotten, one on ETH_P_ALL before that, with the tag beside the frame. The filter
        // comes first, so that nothing else gets in between.
        socket.attach_filter(&arp_filter())?;
        set_packet_option(&socket, libc::PACKET_AUXDATA)?;
        set_packet_option(&socket, libc::PACKET_IGNORE_OUTGOING)?;
        socket.bind(&link_address(index, ETH_P_ALL))?;
        Ok(Self { fd: super::watch(socket.into())? })
    }

    /// The next well-formed ARP frame, its tags included wherever the kernel keeps them. Dropping the future
    /// loses nothing.
    ///
    /// # Errors
    /// ENETDOWN once when the interface goes down.
    pub async fn recv(&mut self) -> io::Result<Frame> {
        loop {
            let mut ready = self.fd.ready(Interest::READABLE | Interest::ERROR).await?;
            match ready.try_io(|fd| receive(fd.get_ref())) {
                Ok(Ok(Some(frame))) => return Ok(frame),
                Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                // Not ARP as we know it, interrupted, or nothing there.
                Ok(Ok(None) | Err(_)) | Err(_) => {}
            }
        }
    }
}

/// Linux's number for frames of any protocol (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 0x0003;

fn open() -> io::Result<Socket> {
    Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(0)))
}

/// Switches an option of packet(7) on.
#[expect(clippy::cast_possible_truncation, reason = "the size of an integer")]
fn set_packet_option(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the kernel reads as many bytes of `on` as it has.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address of an interface on the packet level, for frames of this type.
#[expect(clippy::cast_possible_truncation, reason = "an address family")]
const fn link_level(index: u32, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::sa_family_t,
        sll_protocol: protocol.to_be(),
        // One that the kernel has no room for is an interface that there is not: ENXIO.
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    }
}

/// The address of a packet socket on an interface.
#[expect(clippy::cast_possible_truncation, reason = "the size of an address")]
pub(super) fn link_address(index: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is the address type of AF_PACKET, whose family it carries; the rest of the storage is zero.
    unsafe {
        *storage.view_as::<libc::sockaddr_ll>() = link_level(index, protocol);
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }
}

/// Accepts frames whose type, or the type behind one or two tags in the frame, is ARP. A tag that the kernel has
/// already taken off is in neither place and does not matter.
#[expect(clippy::cast_possible_truncation, reason = "codes of instructions and offsets in a header")]
fn arp_filter() -> [SockFilter; 10] {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const TYPE_AT: u32 = (EthernetHeader::LEN - 2) as u32;
    const TAG: u32 = VlanTag::LEN as u32;
    let (arp, vlan, qinq) = (ETHERTYPE_ARP.into(), ETHERTYPE_VLAN.into(), ETHERTYPE_QINQ.into());
    [
        SockFilter::new(LOAD_HALF, 0, 0, TYPE_AT),
        SockFilter::new(JUMP_IF_EQUAL, 6, 0, arp),
        SockFilter::new(JUMP_IF_EQUAL, 1, 0, vlan),
        SockFilter::new(JUMP_IF_EQUAL, 0, 5, qinq),
        SockFilter::new(LOAD_HALF, 0, 0, TYPE_AT + TAG),
        SockFilter::new(JUMP_IF_EQUAL, 2, 0, arp),
        SockFilter::new(LOAD_HALF, 0, 0, TYPE_AT + 2 * TAG),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, arp),
        SockFilter::new(RETURN, 0, 0, u32::MAX), // the whole frame
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Receives one frame; `None` if it is not a well-formed ARP frame.
fn receive(socket: &OwnedFd) -> io::Result<Option<Frame>> {
    const TAG: usize = VlanTag::LEN;
    /// Where a tag goes: behind the two MACs.
    const TAG_AT: usize = EthernetHeader::LEN - 2;
    // Room for a tag in front, then as much as the headers of an ARP frame with two tags can take.
    let mut bytes = [0_u8; TAG + Outgoing::MAX_LEN];
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec { iov_base: bytes[TAG..].as_mut_ptr().cast(), iov_len: bytes.len() - TAG };
    // SAFETY: `msghdr` is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: the descriptor is open; the vector and the control buffer are this function's own and as long as
    // is said; no name is asked for.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;

    let Some([control, ethertype]) = tag_beside(&message) else {
        return Ok(arp(&bytes[TAG..TAG + received]));
    };
    if received < TAG_AT {
        return Ok(None);
    }
    bytes.copy_within(TAG..TAG + TAG_AT, 0);
    bytes[TAG_AT..TAG_AT + 2].copy_from_slice(&ethertype.to_be_bytes());
    bytes[TAG_AT + 2..TAG_AT + TAG].copy_from_slice(&control.to_be_bytes());
    Ok(arp(&bytes[..TAG + received]))
}

fn arp(bytes: &[u8]) -> Option<Frame> {
    match parse(bytes) {
        Parsed::Arp(frame) => Some(frame),
        Parsed::NotArp | Parsed::Truncated | Parsed::BadHeader => None,
    }
}

/// Aligned as control messages are. A `tpacket_auxdata` with its header takes 40 bytes.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Control information and type of the tag that the kernel has taken out of the frame.
fn tag_beside(message: &libc::msghdr) -> Option<[u16; 2]> {
    // SAFETY: `recvmsg` filled the header in; its control buffer is alive and aligned.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null or a header inside the control buffer, which nobody writes now.
    while let Some(header) = unsafe { next.as_ref() } {
        if header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: an item of this type carries a `tpacket_auxdata` (packet(7)), whatever its alignment.
            let auxiliary: libc::tpacket_auxdata =
                unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
            if auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
                return None;
            }
            let told = auxiliary.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let ethertype = if told { auxiliary.tp_vlan_tpid } else { ETHERTYPE_VLAN };
            return Some([auxiliary.tp_vlan_tci, ethertype]);
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    None
}

#[cfg(test)]
mod tests {
    use arpwarden_common::{
        net::{Ipv4, MacAddr, SERVICE_TAG, Vlan},
        wire::arp::REQUEST,
    };
    use nix::net::if_::if_nametoindex;

    use super::{
        super::own_network::{self, PAIR, ip},
        *,
    };

    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const ADDRESS: Ipv4 = Ipv4::new([192, 0, 2, 4]);

    #[tokio::test(flavor = "current_thread")]
    async fn frames_arrive_with_the_tags_that_they_were_sent_with() {
        if !own_network::with(&PAIR) {
            return;
        }
        let (a, b) = (if_nametoindex("a").unwrap(), if_nametoindex("b").unwrap());
        let socket = ArpSocket::open().unwrap();
        let mut listener = ArpListener::open(b).unwrap();
        for (outer, inner) in [(0, 0), (5, 0), (5 | SERVICE_TAG, 0), (5, 7), (5 | SERVICE_TAG, 7), (4094, 1)]
        {
            let vlan = Vlan { outer, inner };
            socket.send(a, &Outgoing::probe(MAC, vlan, ADDRESS)).unwrap();
            let frame = listener.recv().await.unwrap();
            assert_eq!(frame.vlan, vlan);
            assert_eq!(
                frame.arp_at,
                EthernetHeader::LEN + VlanTag::LEN * vlan.ids().iter().filter(|id| **id != 0).count()
            );
            assert_eq!((frame.operation, frame.source, frame.sender_mac), (REQUEST, MAC, MAC));
            assert_eq!((frame.sender_ip, frame.target_ip), (Ipv4::UNSPECIFIED, ADDRESS));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn own_frames_and_other_protocols_are_not_heard() {
        if !own_network::with(&PAIR) {
            return;
        }
        let (a, b) = (if_nametoindex("a").unwrap(), if_nametoindex("b").unwrap());
        let socket = ArpSocket::open().unwrap();
        let mut listener = ArpListener::open(b).unwrap();
        let other = Ipv4::new([192, 0, 2, 5]);
        socket.send(b, &Outgoing::probe(MAC, Vlan::UNTAGGED, other)).unwrap();
        // An LLDP frame.
        let mut lldp = [0; 60];
        lldp[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0x0e]);
        lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
        socket.socket.send_to(&lldp, &link_address(a, 0x88cc)).unwrap();
        socket.send(a, &Outgoing::probe(MAC, Vlan::UNTAGGED, ADDRESS)).unwrap();
        assert_eq!(listener.recv().await.unwrap().target_ip, ADDRESS);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_link_that_is_down_or_gone_is_an_error_of_its_own() {
        if !own_network::with(&PAIR) {
            return;
        }
        let a = if_nametoindex("a").unwrap();
        let socket = ArpSocket::open().unwrap();
        let mut listener = ArpListener::open(a).unwrap();
        let frame = Outgoing::probe(MAC, Vlan::UNTAGGED, ADDRESS);
        ip("link set dev a down");
        assert_eq!(socket.send(a, &frame).unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
        assert_eq!(listener.recv().await.unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
        assert_eq!(socket.send(999, &frame).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        assert_eq!(ArpListener::open(999).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn of_many_frames_each_leaves_or_fails_by_itself_and_in_order() {
        if !own_network::with(&PAIR) {
            return;
        }
        let (a, b) = (if_nametoindex("a").unwrap(), if_nametoindex("b").unwrap());
        let socket = ArpSocket::open().unwrap();
        let mut listener = ArpListener::open(b).unwrap();
        // More than one call takes, with interfaces that there are not at the ends, together and in between.
        let count = u32::try_from(2 * SENT_AT_ONCE + 3).unwrap();
        let missing = |n: u32| matches!(n, 0 | 7 | 8 | 64) || n == count - 1;
        let to = |n: u32| Ipv4::new((0xc000_0200 + n).to_be_bytes());
        let frames: Vec<(u32, Outgoing)> = (0..count)
            .map(|n| (if missing(n) { 999 } else { a }, Outgoing::probe(MAC, Vlan::UNTAGGED, to(n))))
            .collect();
        let results = socket.send_all(&frames);
        assert_eq!(results.len(), frames.len());
        for (n, result) in (0..).zip(results) {
            let error = result.err().and_then(|error| error.raw_os_error());
            assert_eq!(error, missing(n).then_some(libc::ENXIO), "frame {n}");
            if !missing(n) {
                assert_eq!(listener.recv().await.unwrap().target_ip, to(n));
            }
        }
        assert!(socket.send_all(&[]).is_empty());
    }

    #[test]
    fn a_burst_of_two_interfaces_fits() {
        if !own_network::with(&PAIR) {
            return;
        }
        let a = if_nametoindex("a").unwrap();
        let socket = ArpSocket::open().unwrap();
        for _ in 0..1_000 {
            socket.send(a, &Outgoing::announcement(MAC, MAC, Vlan::UNTAGGED, ADDRESS)).unwrap();
        }
    }
}
