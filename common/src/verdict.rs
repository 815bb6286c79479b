//! The verdict: what becomes of an ARP frame. Pure; the kernel and the tests on the host run this code.

use crate::{
    abi::{AddressKey, Counter, Port},
    net::{Ipv4, MacAddr},
    state::{State, StateWord},
    wire::arp::{Form, Frame, REQUEST},
};

/// A managed address as the maps have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Slot number.
    pub slot: u32,
    /// The state word, read once.
    pub word: StateWord,
    /// See [`crate::abi::Slot::lease_until_ns`].
    pub lease_until_ns: u64,
}

/// What the verdict may look up.
pub trait Tables {
    /// The managed address with this key.
    fn address(&self, key: &AddressKey) -> Option<Entry>;
    /// Whether a MAC belongs to this network namespace or is answered with.
    fn is_own(&self, mac: MacAddr) -> bool;
    /// CLOCK_BOOTTIME in nanoseconds, at most one jiffy old. Asked only where a lease is set.
    fn now_ns(&self) -> u64;
}

/// What becomes of the frame, with the reason. Each ARP frame has exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Passed: the frame ends inside the ARP packet.
    Truncated,
    /// Passed: not ARP for IPv4 on Ethernet.
    BadHeader,
    /// Passed: nonsense sender.
    BadSender,
    /// Rewritten into the reply of `mac` and sent back.
    Answered {
        /// Slot of the address.
        slot: u32,
        /// The MAC to answer with.
        mac: MacAddr,
    },
    /// Dropped: local, but may not answer.
    Shielded {
        /// Slot of the address.
        slot: u32,
    },
    /// Passed: a request with sender = target.
    Gratuitous,
    /// Passed: a reply.
    Reply,
    /// Passed: ours, but flooded to somebody else's MAC.
    OtherDestination,
    /// Passed: managed, but neither answered nor shielded.
    NotAnswering,
    /// Passed: nothing of ours is asked for.
    Unmanaged,
    /// Passed: the port is not acted on.
    InactivePort,
}

impl Outcome {
    /// The counter of this outcome.
    #[inline(always)]
    pub const fn counter(self) -> Counter {
        match self {
            Self::Truncated => Counter::Truncated,
            Self::BadHeader => Counter::BadHeader,
            Self::BadSender => Counter::BadSender,
            Self::Answered { .. } => Counter::Answered,
            Self::Shielded { .. } => Counter::Shielded,
            Self::Gratuitous => Counter::Gratuitous,
            Self::Reply => Counter::Reply,
            Self::OtherDestination => Counter::OtherDestination,
            Self::NotAnswering => Counter::NotAnswering,
            Self::Unmanaged => Counter::Unmanaged,
            Self::InactivePort => Counter::InactivePort,
        }
    }
}

/// What a frame says of a managed address, beside its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sighting {
    /// Nothing.
    None,
    /// A claim. If the address is ours or probed for, each is a conflict; else only a change of owner is news.
    Claim(Seen),
    /// A broadcast probe by another host for an address that may answer or is probed for.
    Probe(Seen),
    /// A frame with this port's MAC, or the MAC that we answer with, as sender: echo, loop or clone.
    Echo(Option<Seen>),
    /// A frame with the MAC of another port of this host as sender.
    Sibling(Option<Seen>),
}

/// The address that a [`Sighting`] is about; an echo may be about none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The address.
    pub address: Ipv4,
    /// What the maps have of it.
    pub entry: Entry,
    /// Whether the address was ours to answer for or probed for, so that a claim is a conflict.
    pub contested: bool,
}

/// Outcome and sighting of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// What becomes of it.
    pub outcome: Outcome,
    /// What it tells.
    pub sighting: Sighting,
}

impl Verdict {
    const fn of(outcome: Outcome) -> Self {
        Self { outcome, sighting: Sighting::None }
    }
}

/// Decides on a frame that came in on `port`.
#[inline(always)]
pub fn verdict<T: Tables>(frame: &Frame, port: &Port, tables: &T) -> Verdict {
    if port.flags & Port::ACCEPT == 0 {
        return Verdict::of(Outcome::InactivePort);
    }
    let look_up =
        |address: Ipv4| tables.address(&AddressKey { interface: port.interface, vlan: frame.vlan, address });
    let nonsense = frame.sender_mac.is_zero()
        || frame.sender_mac.is_group()
        || frame.source.is_zero()
        || frame.source.is_group()
        || frame.sender_ip.is_nonsense_sender();
    let form = frame.form();
    let request = frame.operation == REQUEST;

    // What the sender fields say (RFC 826: the sender is looked at before the operation).
    let unspecified = frame.sender_ip.is_unspecified();
    let claimed = if nonsense || unspecified { None } else { look_up(frame.sender_ip) };
    let sighting = if nonsense || (unspecified && !request) {
        Sighting::None
    } else {
        sender(frame, port, tables, claimed)
    };
    if !request {
        return Verdict { outcome: if nonsense { Outcome::BadSender } else { Outcome::Reply }, sighting };
    }

    // What is asked for. An announcement asks for nothing, but Linux would answer one for a local address.
    let target = if form == Form::Announcement && !nonsense { claimed } else { look_up(frame.target_ip) };
    let Some(target) = target else {
        let outcome = if nonsense {
            Outcome::BadSender
        } else if form == Form::Announcement {
            Outcome::Gratuitous
        } else {
            Outcome::Unmanaged
        };
        return Verdict { outcome, sighting };
    };
    let may_answer = may_answer(&target, tables);
    let sighting = if form == Form::Probe && !nonsense {
        probe(frame, port, tables, target, may_answer)
    } else {
        sighting
    };
    let outcome = if target.word.is_local() && !may_answer && !target.word.is(State::Watched) {
        Outcome::Shielded { slot: target.slot }
    } else if nonsense {
        Outcome::BadSender
    } else if form == Form::Announcement {
        Outcome::Gratuitous
    } else if !may_answer {
        Outcome::NotAnswering
    } else if frame.destination == MacAddr::BROADCAST
        || frame.destination == target.word.mac()
        || frame.destination == port.mac
    {
        Outcome::Answered { slot: target.slot, mac: target.word.mac() }
    } else {
        Outcome::OtherDestination
    };
    Verdict { outcome, sighting }
}

/// State and lease together.
#[inline(always)]
fn may_answer<T: Tables>(entry: &Entry, tables: &T) -> bool {
    entry.word.may_answer() && (entry.lease_until_ns == 0 || tables.now_ns() <= entry.lease_until_ns)
}

/// What a frame with a sender address says: claim, echo or sibling.
#[inline(always)]
fn sender<T: Tables>(frame: &Frame, port: &Port, tables: &T, entry: Option<Entry>) -> Sighting {
    let Some(entry) = entry else {
        // Of senders that are not managed only an echo of this port is told apart: that is a compare, a
        // sibling would be a look-up for every request on the segment.
        return if frame.sender_mac == port.mac { Sighting::Echo(None) } else { Sighting::None };
    };
    let contested = entry.word.is(State::Probing) || may_answer(&entry, tables);
    let seen = Seen { address: frame.sender_ip, entry, contested };
    if frame.sender_mac == port.mac || frame.sender_mac == entry.word.mac() {
        Sighting::Echo(Some(seen))
    } else if tables.is_own(frame.sender_mac) {
        Sighting::Sibling(Some(seen))
    } else {
        Sighting::Claim(seen)
    }
}

/// What a request with sender 0.0.0.0 for a managed address says.
#[inline(always)]
fn probe<T: Tables>(frame: &Frame, port: &Port, tables: &T, target: Entry, may_answer: bool) -> Sighting {
    let contested = may_answer || target.word.is(State::Probing);
    let seen = Seen { address: frame.target_ip, entry: target, contested };
    if frame.sender_mac == port.mac || frame.sender_mac == target.word.mac() {
        return Sighting::Echo(Some(seen));
    }
    if tables.is_own(frame.sender_mac) {
        return Sighting::Sibling(Some(seen));
    }
    // A unicast one is a poll, no probe (RFC 1122 §2.3.2.1). One whose two sources differ was not sent by a host
    // that probes for itself: broken proxies made hosts give up their addresses that way.
    if !contested || frame.destination != MacAddr::BROADCAST || frame.source != frame.sender_mac {
        return Sighting::None;
    }
    Sighting::Probe(seen)
}
