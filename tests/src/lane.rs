//! A cable between two hosts, and frames that are driven through it in the kernel.

use std::{
    any::Any,
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use arpwarden_common::{golden::OUR_MAC, net::MacAddr};

use crate::{
    kernel::attach_xdp,
    live::{cpus, pin_to},
    netns::{Host, Netns, ip},
    storm::{Frames, Generator, Sink},
    tools::run,
};

/// How often the count is looked at during a run.
const LOOK: Duration = Duration::from_millis(2);

/// Two hosts at the ends of one cable with so many queues each way, and nothing on it.
pub fn cable(queues: u8) -> (Host, Host) {
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

/// Lets a host without a program of its own take what generators send: only with GRO does its end of a veth take frames that
/// were never packets.
pub fn takes_frames(ns: &Netns) {
    let mut gro = ns.command("ethtool");
    gro.args(["-K", "eth0", "gro", "on"]);
    run(gro);
}

/// Such a cable with a responder at one end. What the generator at the other end sends goes in there; what comes back is
/// counted and dropped.
#[derive(Debug)]
pub struct Lane {
    /// Where the responder is.
    pub node: Host,
    /// Where the generator is.
    pub peer: Host,
    sink: Sink,
    /// Attached as long as they are here.
    keep: Vec<Box<dyn Any>>,
}

impl Lane {
    /// One on which frames of this operation are counted when they come back.
    pub fn new(queues: u8, operation: u16) -> Self {
        let (node, peer) = cable(queues);
        let sink = Sink::counting(operation);
        let link = attach_xdp(&peer.ns, "eth0", sink.program.as_fd(), true);
        Self { node, peer, sink, keep: vec![Box::new(link)] }
    }

    /// Frames of that operation so far.
    pub fn seen(&self) -> u64 {
        self.sink.seen()
    }

    /// With a native program at the node.
    pub fn attach(&mut self, program: BorrowedFd<'_>) {
        let link = attach_xdp(&self.node.ns, "eth0", program, true);
        self.keep(link);
    }

    /// Keeps something as long as the lane.
    pub fn keep(&mut self, thing: impl Any) {
        self.keep.push(Box::new(thing));
    }

    /// A generator whose frames come in at the node.
    pub fn generator(&self, frames: Frames, addresses: u32) -> Generator {
        let interface = self.peer.ns.index_of("eth0").expect("the peer's end");
        Generator::new(frames, addresses, interface)
    }

    /// Sends so many frames on the first of our CPUs, and comes back when the node has acted on all of them.
    pub fn send(&self, generator: &Generator, frames: u32) {
        self.peer.ns.enter(|| {
            pin_to(cpus()[0]);
            generator.run(frames);
        });
    }

    /// Answers in a second, while so many frames are sent on the last of our CPUs, which does all the work. Counted
    /// between two looks while they are under way: before the first frame and after the last one the kernel takes some
    /// 20 ms to get ready and to tidy up.
    ///
    /// # Panics
    /// If the run is over before the count was looked at.
    pub fn answers(&self, generator: &Generator, frames: u32) -> f64 {
        let cpu = *cpus().last().expect("a CPU");
        let Self { peer, sink, .. } = self;
        let mut looks = Vec::new();
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                peer.ns.enter(|| {
                    pin_to(cpu);
                    generator.run(frames);
                });
            });
            while !run.is_finished() {
                looks.push((Instant::now(), sink.seen()));
                std::thread::sleep(LOOK);
            }
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        let (before, after) = (looks[0].1, sink.seen());
        let mut under_way = looks.iter().filter(|(_, seen)| *seen > before && *seen < after);
        let (first, last) = (under_way.next(), under_way.next_back());
        let (first, last) = first.zip(last).expect("a run of more than a few looks");
        (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64()
    }
}
