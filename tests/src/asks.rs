//! Questions to a host and words in its name, with a proof that everything that follows from them has been seen.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use arpwarden_common::{net::MacAddr, wire::arp::REPLY};

use crate::{
    background::Background,
    ms,
    netns::{Host, Net, PREFIX, ip, stranger, unique},
    wire::{Captured, Wire, bytes, marker, request},
};

/// All that the tap on the host's cable has seen up to now, once what the host was sent before has gone through its
/// program and its kernel. Needs no daemon.
///
/// # Panics
/// If the cable carries nothing.
pub fn quiet(host: &Host, tap: &Wire) -> Vec<Captured> {
    let behind_the_program = host.wire();
    let mut seen = Vec::new();
    // Twice: the program's own frames leave when the batch is over in which it saw the first marker.
    for _ in 0..2 {
        let there = marker(stranger(0xffff));
        tap.send(&there);
        behind_the_program.wait_for("a marker at the host", ms(5_000), |frame| frame.bytes == there);
        let back = marker(host.mac);
        behind_the_program.send(&back);
        seen.extend(tap.collect_until("a marker from the host", ms(5_000), |frame| frame.bytes == back));
    }
    seen
}

/// Whether a frame was sent by the host on whose cable the tap is, and pairs the address with this MAC.
pub fn sent_as(frame: &Captured, address: Ipv4Addr, mac: MacAddr) -> bool {
    !frame.outgoing && frame.says(address, mac)
}

/// Whether a frame answers a question for the address.
pub fn answers(frame: &Captured, address: Ipv4Addr, mac: MacAddr) -> bool {
    frame.says(address, mac) && frame.is_arp(|arp| arp.operation == REPLY && arp.target_ip != arp.sender_ip)
}

/// Who asks in [`ask`]: no host.
const ASKER: (MacAddr, Ipv4Addr) = (stranger(0xfffe), ip(254));

/// Asks for an address from the far end of the host's cable, by broadcast, and returns the answers. What else the host
/// says of the address meanwhile, as the announcements of its plan, is no answer.
pub fn answers_to(net: &Net, host: usize, address: Ipv4Addr) -> Vec<Captured> {
    let mut answers = ask(net, host, address);
    answers.retain(|frame| {
        frame.is_arp(|arp| arp.operation == REPLY && (arp.destination, arp.target_ip.into()) == ASKER)
    });
    answers
}

/// Asks for an address from the far end of the host's cable, by broadcast, and returns every frame in which the host
/// then pairs it with its MAC, whomever that is said to.
pub fn ask(net: &Net, host: usize, address: Ipv4Addr) -> Vec<Captured> {
    let (host, tap) = (net.host(host), net.tap(host));
    tap.send(&bytes(&request(ASKER.0, ASKER.1, address)));
    quiet(host, &tap).into_iter().filter(|frame| sent_as(frame, address, host.mac)).collect()
}

/// Lets the host's kernel ask for a neighbour that nobody has with `address`, which must be local there, as its
/// sender, and a packet socket say that it has it. Returns every frame in which the host then pairs the two.
///
/// # Panics
/// If the address is not local.
pub fn speak_as(net: &Net, host: usize, address: Ipv4Addr) -> Vec<Captured> {
    let (host, tap) = (net.host(host), net.tap(host));
    let [a, b, c] = PREFIX;
    // Another neighbour each time: one that has just been asked for in vain is not asked for again at once.
    let nobody = Ipv4Addr::new(a, b, c, 200 + u8::try_from(unique() % 50).expect("less than 50"));
    host.ns.enter(|| {
        let socket = UdpSocket::bind((address, 0)).unwrap_or_else(|error| panic!("{address}: {error}"));
        socket.send_to(b"?", (nobody, 9)).unwrap_or_else(|error| panic!("{address} to {nobody}: {error}"));
    });
    // The guard may keep it in, which the sender is told.
    drop(host.wire().offer(&bytes(&request(host.mac, address, nobody))));
    quiet(host, &tap).into_iter().filter(|frame| sent_as(frame, address, host.mac)).collect()
}

/// Asks for an address all the time and counts the answers.
#[derive(Debug)]
pub struct Asking(Background<Answered>);

/// What became of the questions of an [`Asking`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answered {
    /// Questions.
    pub asked: u64,
    /// Of them, those with exactly one answer, by the MAC that was expected.
    pub once: u64,
    /// Those with none in time.
    pub silent: u64,
    /// Those with an answer by another MAC, or with more than one.
    pub wrong: u64,
}

impl Asking {
    /// Begins, from the host's `eth0`: one question after the other, each waited for.
    pub fn start(host: &Host, address: Ipv4Addr, owner: MacAddr) -> Self {
        let (wire, mac) = (host.wire(), host.mac);
        Self(Background::start(move |ended| {
            let mut answered = Answered::default();
            while !ended.now() {
                // The asker's address tells the answers apart.
                let [high, low] = u16::try_from(answered.asked % 0xffff).expect("16 bits").to_be_bytes();
                let from = Ipv4Addr::new(10, 200, high, low);
                wire.send(&bytes(&request(mac, from, address)));
                answered.asked += 1;
                let mut mine = Vec::new();
                let mut deadline = std::time::Instant::now() + ms(500);
                while let Some(frame) = wire.next(deadline) {
                    let is_answer = |arp: &arpwarden_common::wire::arp::Frame| {
                        arp.operation == REPLY
                            && arp.target_ip == from.into()
                            && arp.sender_ip == address.into()
                    };
                    if !frame.outgoing
                        && let Some(arp) = frame.arp().filter(is_answer)
                    {
                        mine.push(arp.sender_mac);
                        // A second answer would be close behind.
                        deadline = std::time::Instant::now() + Duration::from_micros(500);
                    }
                }
                match *mine.as_slice() {
                    [] => answered.silent += 1,
                    [only] if only == owner => answered.once += 1,
                    _ => answered.wrong += 1,
                }
            }
            answered
        }))
    }

    /// Ends it.
    pub fn stop(self) -> Answered {
        self.0.stop()
    }
}
