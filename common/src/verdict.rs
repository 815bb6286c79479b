//! The verdict: what becomes of an ARP frame. Pure; the kernel and the tests on the host run this code.

use crate::{
    abi::{AddressKey, AllowedKey, Counter, Group, Port},
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
    /// See [`crate::abi::Slot::fallen`].
    pub fallen: u16,
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

impl<P> Entry<P> {
    /// Whether the address is ours to answer for or probed for, so that a claim is a conflict.
    #[inline(always)]
    pub const fn contested(&self) -> bool {
        self.may_answer || self.word.is(State::Probing)
    }
}

/// What the verdict may look up.
pub trait Tables {
    /// Where an address is.
    type Place: Copy;
    /// The managed address with this key.
    fn address(&self, key: &AddressKey) -> Option<Entry<Self::Place>>;
    /// Whether a MAC belongs to this network namespace or is answered with.
    fn is_own(&self, mac: MacAddr) -> bool;
    /// Whether claims and probes of this host are no conflict where they were made.
    fn is_allowed(&self, key: &AllowedKey) -> bool;
    /// Whether the daemon was heard lately ([`crate::abi::Control::heard`]).
    fn daemon_lives(&self) -> bool;
}

/// Whom the verdict tells what a frame says beside its outcome: at once, because what it need not remember is not in
/// the way of what it has yet to decide.
pub trait Witness<P> {
    /// Told at most once for each frame. Of a [`Sighting::Claim`] for an address that may answer it says how the claim
    /// was met; of everything else [`Reaction::Nothing`].
    fn saw(&self, sighting: Sighting<P>) -> Reaction;
    /// Told of a sender whose MAC is neither the port's nor answered with; it may be another port's of this host.
    fn asks(&self, asking: Asking<P>);
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
    /// Dropped: the port is not acted on, and another one answers.
    Withheld,
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
            Self::Withheld => Counter::Withheld,
            Self::Defended { .. } => Counter::Defended,
        }
    }
}

/// What a frame says of a managed address ([`Frame::concerns`]), beside its outcome. An echo may be about none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sighting<P = u32> {
    /// A claim. If the address is ours or probed for, each is a conflict; else only a change of owner is news.
    Claim(Entry<P>),
    /// A claim by a host that may: whoever has the address, it is recorded as the one who claims it, and that is all.
    Allowed(Entry<P>),
    /// A broadcast probe by another host for an address that may answer or is probed for.
    Probe(Entry<P>),
    /// A frame with this port's MAC, or the MAC that we answer with, as sender: echo, loop or clone.
    Echo(Option<Entry<P>>),
    /// A frame with the MAC of another port of this host as sender.
    Sibling(Option<Entry<P>>),
}

/// The sender as one who asks for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asking<P = u32> {
    /// The address.
    pub place: P,
    /// It asks, so it is to be remembered; else it has answered us.
    pub asks: bool,
    /// [`StateWord::mark`] of the word under which it shows that it follows us; 0 if it doesn't show it.
    pub followed: u16,
}

/// Decides on a frame that came in on `port`.
#[inline(always)]
pub fn verdict<T: Tables, W: Witness<T::Place>>(
    frame: &Frame,
    port: &Port,
    tables: &T,
    witness: &W,
) -> Outcome<T::Place> {
    if port.flags & Port::ACCEPT == 0 || port.flags & Port::MEMBER != 0 && !tables.daemon_lives() {
        return inactive(frame, port, tables);
    }
    let look_up =
        |address: Ipv4| tables.address(&AddressKey { interface: port.interface, vlan: frame.vlan, address });
    let (gist, nonsense) = (frame.gist, frame.gist.is_nonsense());
    let request = frame.operation == REQUEST;

    // What the sender fields say (RFC 826: the sender is looked at before the operation).
    let unspecified = frame.sender_ip.is_unspecified();
    let mut claimed = if nonsense || unspecified { None } else { look_up(frame.sender_ip) };
    if let Some(claimed) = &mut claimed {
        match witness.saw(sender(frame, port, tables, claimed)) {
            Reaction::Nothing => {}
            Reaction::Defend => return Outcome::Defended { mac: claimed.word.mac() },
            Reaction::Fall => claimed.may_answer = false,
        }
    } else if !nonsense && (request || !unspecified) && !gist.is(Form::Probe) && frame.sender_mac == port.mac
    {
        // Of senders that are not managed only an echo of this port is told apart: that is a compare, a sibling would
        // be a look-up for every request on the segment.
        witness.saw(Sighting::Echo(None));
    }

    // What is asked for, or was: a reply to one host alone answers what that host asked. An announcement asks for
    // nothing, but Linux would answer one for a local address.
    let answers = gist.is(Form::Reply) && !nonsense && !unspecified && !frame.destination.is_group();
    let target = if gist.is(Form::Announcement) && !nonsense {
        claimed
    } else if request || answers {
        look_up(frame.target_ip)
    } else {
        None
    };
    let Some(target) = target else {
        if gist.is(Form::Probe) && !nonsense && frame.sender_mac == port.mac {
            witness.saw(Sighting::Echo(None));
        }
        return if nonsense {
            Outcome::BadSender
        } else if !request {
            Outcome::Reply
        } else if gist.is(Form::Announcement) {
            Outcome::Gratuitous
        } else {
            Outcome::Unmanaged
        };
    };
    if gist.is(Form::Probe)
        && !nonsense
        && let Some(sighting) = probe(frame, port, tables, &target)
    {
        witness.saw(sighting);
    }
    let to_us = ours(frame.destination, port, &target);
    let asks = gist.is(Form::Request) && !nonsense;
    if (asks || answers) && !ours(frame.sender_mac, port, &target) {
        let followed = if to_us && target.may_answer { target.word.mark() } else { 0 };
        if asks || followed != 0 {
            witness.asks(Asking { place: target.place, asks, followed });
        }
    }
    if !request {
        if nonsense { Outcome::BadSender } else { Outcome::Reply }
    } else if target.word.is_local() && !target.may_answer && !target.word.is(State::Watched) {
        Outcome::Shielded { place: target.place }
    } else if nonsense {
        Outcome::BadSender
    } else if gist.is(Form::Announcement) {
        Outcome::Gratuitous
    } else if !target.may_answer {
        Outcome::NotAnswering
    } else if frame.destination == MacAddr::BROADCAST || to_us {
        Outcome::Answered { place: target.place, mac: target.word.mac() }
    } else {
        Outcome::OtherDestination
    }
}

/// Decides on a frame that came in on a port that is not acted on: a bond's member that is not its active one, as far as
/// the daemon has told, or any once it tells no more.
///
/// It may have become the active one a moment ago, so the kernel behind it may answer while the other one's program still
/// does. As long as a daemon lives, which says before long which port counts, what would be answered on such a port is
/// kept from the kernel; later the kernel alone knows it. Nothing is recorded, as the active port sees it too.
#[inline(always)]
fn inactive<T: Tables>(frame: &Frame, port: &Port, tables: &T) -> Outcome<T::Place> {
    if frame.operation != REQUEST {
        return Outcome::InactivePort;
    }
    let key = AddressKey { interface: port.interface, vlan: frame.vlan, address: frame.target_ip };
    let Some(target) = tables.address(&key) else { return Outcome::InactivePort };
    if !target.may_answer {
        return if target.word.is_local() && !target.word.is(State::Watched) {
            Outcome::Shielded { place: target.place }
        } else {
            Outcome::InactivePort
        };
    }
    let for_us = frame.destination == MacAddr::BROADCAST || ours(frame.destination, port, &target);
    if for_us && !frame.gist.is(Form::Announcement) && !frame.gist.is_nonsense() && tables.daemon_lives() {
        Outcome::Withheld
    } else {
        Outcome::InactivePort
    }
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

/// Whether the sender may claim on this port, behind these tags.
#[inline(always)]
fn is_allowed<T: Tables>(frame: &Frame, port: &Port, tables: &T) -> bool {
    tables.is_allowed(&AllowedKey { mac: frame.sender_mac, interface: port.interface, vlan: frame.vlan })
}

/// What a frame with a managed sender address says: claim, echo or sibling.
#[inline(always)]
fn sender<T: Tables>(frame: &Frame, port: &Port, tables: &T, entry: &Entry<T::Place>) -> Sighting<T::Place> {
    if ours(frame.sender_mac, port, entry) {
        Sighting::Echo(Some(*entry))
    } else if tables.is_own(frame.sender_mac) {
        Sighting::Sibling(Some(*entry))
    } else if is_allowed(frame, port, tables) {
        Sighting::Allowed(*entry)
    } else {
        Sighting::Claim(*entry)
    }
}

/// What a request with sender 0.0.0.0 for a managed address says, if it says anything.
#[inline(always)]
fn probe<T: Tables>(
    frame: &Frame,
    port: &Port,
    tables: &T,
    target: &Entry<T::Place>,
) -> Option<Sighting<T::Place>> {
    if ours(frame.sender_mac, port, target) {
        return Some(Sighting::Echo(Some(*target)));
    }
    if tables.is_own(frame.sender_mac) {
        return Some(Sighting::Sibling(Some(*target)));
    }
    // A unicast one is a poll, no probe (RFC 1122 §2.3.2.1). One whose two sources differ was not sent by a host
    // that probes for itself: broken proxies made hosts give up their addresses that way.
    let probes = target.contested()
        && frame.destination == MacAddr::BROADCAST
        && frame.source == frame.sender_mac
        && !is_allowed(frame, port, tables);
    probes.then_some(Sighting::Probe(*target))
}
