//! The verdict: what becomes of an ARP frame. Pure; the kernel and the tests on the host run this code.

use crate::{
    abi::{AddressKey, Counter, Group, Port},
    defence::Reaction,
    net::{Ipv4, MacAddr},
    state::{State, StateWord},
    wire::arp::{Form, Frame, REQUEST},
};

/// All that decides whether this host may answer for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The state word, read once.
    pub word: StateWord,
    /// See [`crate::abi::Record::fallen`].
    pub fallen: u32,
    /// See [`crate::abi::Slot::lease_until_ns`].
    pub lease_until_ns: u64,
    /// Its group; [`Group::NONE`] if it is in none.
    pub group: Group,
}

impl Standing {
    /// Whether this host may answer for the address: its own word and its group's say so, it has not fallen since, and
    /// no lease is past at `now_ns` (CLOCK_BOOTTIME in nanoseconds), which is asked only where there is one.
    ///
    /// Everything that depends on it comes from here: the answer, the shield, the guard, the defence.
    #[inline(always)]
    pub fn may_answer(&self, now_ns: impl Fn() -> u64) -> bool {
        let stands = |lease_until_ns: u64| lease_until_ns == 0 || now_ns() <= lease_until_ns;
        self.word.may_answer()
            && self.fallen != self.word.mark()
            && self.group.word == Group::ANSWERS
            && stands(self.lease_until_ns)
            && stands(self.group.lease_until_ns)
    }

    /// Whether a lease is set, its own or its group's.
    #[inline(always)]
    pub const fn has_lease(&self) -> bool {
        self.lease_until_ns != 0 || self.group.lease_until_ns != 0
    }
}

/// A managed address as the maps have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<P = u32> {
    /// Where they have it: the slot number, with whatever spares the caller another look-up.
    pub place: P,
    /// The state word, read once.
    pub word: StateWord,
    /// [`Standing::may_answer`] now, by a clock that is at most one jiffy late.
    pub may_answer: bool,
}

/// What the verdict may look up.
pub trait Tables {
    /// Where an address is.
    type Place: Copy;
    /// The managed address with this key.
    fn address(&self, key: &AddressKey) -> Option<Entry<Self::Place>>;
    /// Whether a MAC belongs to this network namespace or is answered with.
    fn is_own(&self, mac: MacAddr) -> bool;
}

/// What becomes of the frame, with the reason. Each ARP frame has exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<P = u32> {
    /// Passed: the frame ends inside the ARP packet.
    Truncated,
    /// Passed: not ARP for IPv4 on Ethernet.
    BadHeader,
    /// Passed: nonsense sender.
    BadSender,
    /// Rewritten into the reply of `mac` and sent back.
    Answered {
        /// The address.
        place: P,
        /// The MAC to answer with.
        mac: MacAddr,
    },
    /// Dropped: local, but may not answer.
    Shielded {
        /// The address.
        place: P,
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
    /// A claim, rewritten into the announcement of `mac` that answers it, and sent back.
    Defended {
        /// The MAC to announce.
        mac: MacAddr,
    },
}

impl<P> Outcome<P> {
    /// The counter of this outcome.
    #[inline(always)]
    pub const fn counter(&self) -> Counter {
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
            Self::Defended { .. } => Counter::Defended,
        }
    }
}

/// What a frame says of a managed address, beside its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sighting<P = u32> {
    /// Nothing.
    None,
    /// A claim. If the address is ours or probed for, each is a conflict; else only a change of owner is news.
    Claim(Seen<P>),
    /// A broadcast probe by another host for an address that may answer or is probed for.
    Probe(Seen<P>),
    /// A frame with this port's MAC, or the MAC that we answer with, as sender: echo, loop or clone.
    Echo(Option<Seen<P>>),
    /// A frame with the MAC of another port of this host as sender.
    Sibling(Option<Seen<P>>),
}

/// The address that a [`Sighting`] is about; an echo may be about none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen<P = u32> {
    /// The address.
    pub address: Ipv4,
    /// What the maps have of it.
    pub entry: Entry<P>,
}

impl<P> Seen<P> {
    /// Whether the address is ours to answer for or probed for, so that a claim is a conflict.
    #[inline(always)]
    pub const fn contested(&self) -> bool {
        self.entry.may_answer || self.entry.word.is(State::Probing)
    }
}

/// The sender as one who asks for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asking<P = u32> {
    /// The address.
    pub place: P,
    /// It asks, so it is to be remembered; else it has answered us.
    pub asks: bool,
    /// [`StateWord::mark`] of the word under which it shows that it follows us; 0 if it doesn't show it.
    pub followed: u32,
}

/// Outcome and sighting of one frame, and who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict<P = u32> {
    /// What becomes of it.
    pub outcome: Outcome<P>,
    /// What it tells.
    pub sighting: Sighting<P>,
    /// Who asks; a host whose MAC is neither the port's nor answered with, but it may be another port's of this host.
    pub asking: Option<Asking<P>>,
}

impl<P: Copy> Verdict<P> {
    const fn of(outcome: Outcome<P>) -> Self {
        Self { outcome, sighting: Sighting::None, asking: None }
    }

    /// What becomes of the frame once the claim in it was met by `reaction`.
    #[inline(always)]
    pub const fn after(&self, reaction: Reaction) -> Outcome<P> {
        match (reaction, &self.sighting, &self.outcome) {
            (Reaction::Defend, Sighting::Claim(seen), _) => Outcome::Defended { mac: seen.entry.word.mac() },
            // The one request in which a claim asks for the very address that it claims.
            (Reaction::Fall, Sighting::Claim(seen), Outcome::Gratuitous) if seen.entry.word.is_local() => {
                Outcome::Shielded { place: seen.entry.place }
            }
            (_, _, outcome) => *outcome,
        }
    }
}

/// Decides on a frame that came in on `port`.
#[inline(always)]
pub fn verdict<T: Tables>(frame: &Frame, port: &Port, tables: &T) -> Verdict<T::Place> {
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

    // What the sender fields say (RFC 826: the sender is looked at before the operation).
    let unspecified = frame.sender_ip.is_unspecified();
    let claimed = if nonsense || unspecified { None } else { look_up(frame.sender_ip) };
    let sighting = if nonsense || (unspecified && frame.operation != REQUEST) {
        Sighting::None
    } else {
        sender(frame, port, tables, claimed)
    };
    if frame.operation != REQUEST {
        let outcome = if nonsense { Outcome::BadSender } else { Outcome::Reply };
        // A reply to one host alone answers what that host asked.
        let answers = form == Form::Reply && !nonsense && !unspecified && !frame.destination.is_group();
        let asked = if answers { look_up(frame.target_ip) } else { None };
        let asking = asked.and_then(|asked| {
            let follows = to_us(frame, port, &asked) && asked.may_answer;
            let theirs = !ours(frame.sender_mac, port, &asked);
            let followed = asked.word.mark();
            (follows && theirs).then_some(Asking { place: asked.place, asks: false, followed })
        });
        return Verdict { outcome, sighting, asking };
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
        return Verdict { outcome, sighting, asking: None };
    };
    let may_answer = target.may_answer;
    let to_us = to_us(frame, port, &target);
    let sighting =
        if form == Form::Probe && !nonsense { probe(frame, port, tables, target) } else { sighting };
    let asks = form == Form::Request && !nonsense && !ours(frame.sender_mac, port, &target);
    let followed = if to_us && may_answer { target.word.mark() } else { 0 };
    let asking = asks.then_some(Asking { place: target.place, asks, followed });
    let outcome = if target.word.is_local() && !may_answer && !target.word.is(State::Watched) {
        Outcome::Shielded { place: target.place }
    } else if nonsense {
        Outcome::BadSender
    } else if form == Form::Announcement {
        Outcome::Gratuitous
    } else if !may_answer {
        Outcome::NotAnswering
    } else if frame.destination == MacAddr::BROADCAST || to_us {
        Outcome::Answered { place: target.place, mac: target.word.mac() }
    } else {
        Outcome::OtherDestination
    };
    Verdict { outcome, sighting, asking }
}

/// Decides on a frame that leaves by `port`: the address for which it is kept in, or `None` if it may go.
///
/// What this host may not answer for, it may not ask in the name of either: neighbours learn from both (RFC 826). An
/// address of others that lives behind us is watched at most, or speaks with its own MAC; a repair names its owner's.
#[inline(always)]
pub fn guard<T: Tables>(frame: &Frame, port: &Port, tables: &T) -> Option<T::Place> {
    let address = frame.sender_ip;
    let entry = tables.address(&AddressKey { interface: port.interface, vlan: frame.vlan, address })?;
    if entry.word.is(State::Watched) || entry.may_answer {
        return None;
    }
    let own = ours(frame.sender_mac, port, &entry) || tables.is_own(frame.sender_mac);
    own.then_some(entry.place)
}

/// Whether the MAC is the port's or the one that we answer with. That is two compares; whether it is another port's of
/// this host is a look-up.
#[inline(always)]
fn ours<P>(mac: MacAddr, port: &Port, entry: &Entry<P>) -> bool {
    mac == port.mac || mac == entry.word.mac()
}

/// Whether the frame was sent to this host alone.
#[inline(always)]
fn to_us<P>(frame: &Frame, port: &Port, entry: &Entry<P>) -> bool {
    ours(frame.destination, port, entry)
}

/// What a frame with a sender address says: claim, echo or sibling.
#[inline(always)]
fn sender<T: Tables>(
    frame: &Frame,
    port: &Port,
    tables: &T,
    entry: Option<Entry<T::Place>>,
) -> Sighting<T::Place> {
    let Some(entry) = entry else {
        // Of senders that are not managed only an echo of this port is told apart: that is a compare, a
        // sibling would be a look-up for every request on the segment.
        return if frame.sender_mac == port.mac { Sighting::Echo(None) } else { Sighting::None };
    };
    let seen = Seen { address: frame.sender_ip, entry };
    if ours(frame.sender_mac, port, &entry) {
        Sighting::Echo(Some(seen))
    } else if tables.is_own(frame.sender_mac) {
        Sighting::Sibling(Some(seen))
    } else {
        Sighting::Claim(seen)
    }
}

/// What a request with sender 0.0.0.0 for a managed address says.
#[inline(always)]
fn probe<T: Tables>(frame: &Frame, port: &Port, tables: &T, target: Entry<T::Place>) -> Sighting<T::Place> {
    let seen = Seen { address: frame.target_ip, entry: target };
    if ours(frame.sender_mac, port, &target) {
        return Sighting::Echo(Some(seen));
    }
    if tables.is_own(frame.sender_mac) {
        return Sighting::Sibling(Some(seen));
    }
    // A unicast one is a poll, no probe (RFC 1122 §2.3.2.1). One whose two sources differ was not sent by a host
    // that probes for itself: broken proxies made hosts give up their addresses that way.
    if !seen.contested() || frame.destination != MacAddr::BROADCAST || frame.source != frame.sender_mac {
        return Sighting::None;
    }
    Sighting::Probe(seen)
}
