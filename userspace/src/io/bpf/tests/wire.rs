//! Both ends of a veth: what a neighbour of interface `a` sends and hears on `b`.

use std::{
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use arpwarden_common::{
    net::{Ipv4, MacAddr, Vlan},
    wire::arp::{Frame, Outgoing, Parsed, REPLY, REQUEST, parse},
};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::io::arp_socket::{ArpSocket, link_address};

const ARP: u16 = 0x0806;
/// The neighbour.
pub(super) const NEIGHBOUR: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);

/// The neighbour's end.
pub(super) struct Wire {
    hears: Socket,
    sends: ArpSocket,
    index: u32,
}

impl Wire {
    /// On the interface of this name in this thread's network namespace.
    pub(super) fn on(name: &str) -> Self {
        let index = if_nametoindex(name).unwrap();
        let protocol = Protocol::from(i32::from(ARP.to_be()));
        let hears = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
        hears.bind(&link_address(index, ARP)).unwrap();
        Self { hears, sends: ArpSocket::open().unwrap(), index }
    }

    pub(super) fn send(&self, frame: &Outgoing) {
        self.sends.send(self.index, frame).unwrap();
    }

    /// The next ARP frame that `wanted` takes, within `patience`.
    pub(super) fn hear(&self, patience: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        self.hears.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 2048];
        loop {
            let length = (&self.hears).read(&mut buffer).ok()?;
            if let Parsed::Arp(frame) = parse(&buffer[..length])
                && wanted(&frame)
            {
                return Some(frame);
            }
        }
    }

    /// Asks for `address` by an ordinary request, and says whether an answer comes.
    pub(super) fn asks(&self, address: Ipv4) -> bool {
        self.send(&who_has(address));
        self.hear(PATIENCE, |frame| is_answer(frame, address)).is_some()
    }

    /// Asks for `address` `WINDOW` times at once, and gives the number of answers.
    fn asks_often(&self, address: Ipv4) -> u64 {
        for _ in 0..WINDOW {
            self.send(&who_has(address));
        }
        let answers = (0..WINDOW).map_while(|_| self.hear(PATIENCE, |frame| is_answer(frame, address)));
        answers.count() as u64
    }

    /// Asks without end, until told to stop; gives the numbers of requests and answers.
    pub(super) fn flood(self, address: Ipv4) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut requests, mut answers) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                requests += WINDOW;
                answers += self.asks_often(address);
            }
            (requests, answers)
        });
        Flood { stop, thread }
    }
}

/// Far more than an answer takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// Fewer than wait in a veth or a socket at the same time.
const WINDOW: u64 = 32;

/// A flood under way.
pub(super) struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Flood {
    /// Ends it; gives the numbers of requests and answers.
    pub(super) fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// An ordinary request of the neighbour.
pub(super) fn who_has(address: Ipv4) -> Outgoing {
    Outgoing {
        destination: MacAddr::BROADCAST,
        source: NEIGHBOUR,
        vlan: Vlan::UNTAGGED,
        operation: REQUEST,
        sender_mac: NEIGHBOUR,
        sender_ip: Ipv4::new([10, 0, 255, 9]),
        target_mac: MacAddr::ZERO,
        target_ip: address,
    }
}

fn is_answer(frame: &Frame, address: Ipv4) -> bool {
    frame.operation == REPLY && frame.sender_ip == address
}
