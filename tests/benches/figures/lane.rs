//! A cable between two hosts, and frames that are driven through it in the kernel.

use std::{
    any::Any,
    os::fd::{AsFd as _, BorrowedFd},
    time::Instant,
};

use arpwarden_common::{golden::OUR_MAC, net::MacAddr};
use arpwarden_tests::{
    kernel::attach_xdp,
    live::{cpus, pin_to, run_live},
    netns::{Host, Netns, ip},
};

use crate::references::{Frames, Generator, Sink};

/// Two hosts at the ends of one cable with so many queues each way, and nothing on it.
pub(crate) fn cable(queues: u8) -> (Host, Host) {
    let host = |number: u8, mac: [u8; 6]| Host {
        ns: Netns::new(),
        mac: MacAddr::new(mac),
        ip: ip(number),
        port: "eth0".into(),
    };
    // The golden rows' own MAC, so that their world holds here.
    let (node, peer) = (host(1, OUR_MAC), host(2, [0x02, 0xaa, 0, 0, 0, 2]));
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    node.ns.ip(&format!(
        "link add eth0 address {} {queues} type veth peer name eth0 address {} {queues} netns {}",
        node.mac,
        peer.mac,
        peer.ns.path().display()
    ));
    for end in [&node, &peer] {
        end.ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0", end.ip));
    }
    (node, peer)
}

/// Such a cable with a responder at one end. What the generator at the other end sends goes in there; what comes back is
/// counted and dropped.
pub(crate) struct Lane {
    pub(crate) node: Host,
    pub(crate) peer: Host,
    sink: Sink,
    /// Attached as long as they are here.
    keep: Vec<Box<dyn Any>>,
}

impl Lane {
    /// One on which frames of this operation are counted when they come back.
    pub(crate) fn new(queues: u8, operation: u16) -> Self {
        let (node, peer) = cable(queues);
        let sink = Sink::counting(operation);
        let link = attach_xdp(&peer.ns, "eth0", sink.program.as_fd(), true);
        Self { node, peer, sink, keep: vec![Box::new(link)] }
    }

    /// With a native program at the node.
    pub(crate) fn attach(&mut self, program: BorrowedFd<'_>) {
        let link = attach_xdp(&self.node.ns, "eth0", program, true);
        self.keep(link);
    }

    /// Keeps something as long as the lane.
    pub(crate) fn keep(&mut self, thing: impl Any) {
        self.keep.push(Box::new(thing));
    }

    /// A generator whose frames come in at the node.
    pub(crate) fn generator(&self, frames: Frames, addresses: u32) -> Generator {
        let interface = self.peer.ns.index_of("eth0").expect("the peer's end");
        Generator::new(frames, addresses, interface)
    }

    /// Answers in a second, while so many frames are sent on the last of our CPUs, which does all the work.
    pub(crate) fn answers(&self, generator: &Generator, frames: u32) -> f64 {
        let cpu = *cpus().last().expect("a CPU");
        let Self { peer, sink, .. } = self;
        peer.ns.enter(|| {
            pin_to(cpu);
            let (before, begun) = (sink.seen(), Instant::now());
            run_live(generator.program.as_fd(), frames);
            let took = begun.elapsed();
            (sink.seen() - before) as f64 / took.as_secs_f64()
        })
    }
}
