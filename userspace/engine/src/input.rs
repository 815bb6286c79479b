//! What the engine is told.

use core::time::Duration;

use arpwarden_common::{
    abi::AddressKey,
    net::{Ipv4, MacAddr},
    state::StateWord,
    wire::arp::{Form, Outgoing},
};

use crate::action::Purpose;

/// A point of CLOCK_BOOTTIME in nanoseconds; the kernel's stamps compare with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// `self` + `wait`; stays at the end of time if the sum is beyond it.
    pub const fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(wait)))
    }

    /// The time from `earlier` to `self`, zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// `wait` in nanoseconds, at most 584 years.
pub(crate) const fn nanoseconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_mul(1_000_000_000).saturating_add(wait.subsec_nanos() as u64)
}

/// Where the engine's random waits come from.
pub trait Dice {
    /// A number in `0..bound`, uniformly; 0 if `bound` is 0.
    fn below(&mut self, bound: u64) -> u64;
}

/// Names a command, so that its answer finds the way back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What probing waits for (RFC 5227 §1.1, or shorter where the link allows it: §2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Profile {
    /// PROBE_WAIT 0–20 ms, 3 probes 40–60 ms apart, ANNOUNCE_WAIT 60 ms; retries after 0.25–2 s; the full plan.
    #[default]
    Fast,
    /// The constants of RFC 5227 §1.1; retries after 2–20 s; two announcements 2 s apart, no reply form.
    Rfc5227,
}

/// How an address is claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Probes, silence, and only then register and announce (RFC 5227 §2.1).
    Probe,
    /// One probe, wait `check`, register, announce; zero: register and announce, the probe right behind.
    Immediate {
        /// 0 to 10 s, default 20 ms.
        check: Duration,
    },
}

/// What is done about a conflict (RFC 5227 §2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Defend {
    /// (a): give the address up at once.
    Yield,
    /// (b): defend; a second conflict within DEFEND_INTERVAL loses it.
    Once,
    /// (c): keep it, defend at most once in DEFEND_INTERVAL.
    #[default]
    Hold,
}

/// Whether the kernel is to have the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Register {
    /// It is put on the interface.
    #[default]
    Address,
    /// It is answered, but not configured: something else takes the packets.
    None,
}

/// What is done when somebody else takes an address that is ours off the interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnRemoved {
    /// It is put back, unless that happens too often ([`crate::params::RESTORATIONS`]).
    #[default]
    Restore,
    /// The address is given up.
    GiveUp,
    /// Nothing; it is reported, as in the other cases.
    Report,
}

/// How `online` is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnlineSpec {
    /// 1..=32.
    pub prefix_length: u8,
    /// How to claim.
    pub claim: Claim,
    /// How long to probe.
    pub profile: Profile,
    /// What to do about conflicts.
    pub defend: Defend,
    /// Retry after a conflict for so long; zero: not at all. Never part of the comparison with a managed address.
    pub wait: Duration,
    /// The address is on the interface already: take it over as it is, probe unshielded.
    pub adopt: bool,
    /// The address may be answered for so long from the command on, unless renewed; `None`: without end. Never part
    /// of the comparison with a managed address: the same claim again renews.
    pub lease: Option<Duration>,
    /// Whether the kernel is to have it.
    pub register: Register,
    /// What is done when somebody else takes it off the interface.
    pub on_removed: OnRemoved,
    /// One of several that are to be ours at once or not at all: the claim halts, shielded and listening, where nothing
    /// but [`Input::TakeAll`] is missing. Never part of the comparison with a managed address.
    pub joint: bool,
}

/// A host that claimed or probed for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claimant {
    /// ARP sender hardware address.
    pub mac: MacAddr,
    /// Ethernet source; differs from `mac` behind proxies and with forged frames.
    pub ethernet_source: MacAddr,
}

/// The owner of an address, as far as its claims tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Who claimed it last.
    pub claimant: Claimant,
    /// When (CLOCK_BOOTTIME).
    pub seen: MonoTime,
}

/// A host that asked for an address not long ago, or a gateway: somebody whose cache should be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Where the frame goes.
    pub mac: MacAddr,
    /// Who is asked for.
    pub address: Ipv4,
}

/// What an earlier run of the daemon has left of an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The word that the datapath has of it.
    pub word: StateWord,
    /// How it was claimed last (the latest [`crate::Action::Remember`]); `None` if that is not known.
    pub spec: Option<OnlineSpec>,
    /// Prefix length (1..=32) with which the earlier run has put it on the interface, or was about to.
    pub registered: Option<u8>,
    /// It is configured in this network namespace now.
    pub local: bool,
    /// End of its lease as the datapath has it; `None`: no lease.
    pub lease_until: Option<MonoTime>,
    /// The program has given it up itself.
    pub fallen: bool,
    /// When it was defended, in any order; by the program or by the daemon.
    pub defences: Vec<MonoTime>,
    /// Who claimed it last.
    pub owner: Option<Owner>,
    /// Claims and probes of which no event told.
    pub untold: u64,
}

/// What the datapath saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SightingKind {
    /// A claim.
    Claim,
    /// Another host's broadcast probe.
    Probe,
    /// An own frame come back, or another port's.
    Echo {
        /// It has another port's MAC.
        sibling: bool,
    },
    /// More claimants than are reported one by one.
    Flood,
}

/// A report of the datapath.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// What it was.
    pub kind: SightingKind,
    /// Who it was; of a flood, the latest one.
    pub claimant: Claimant,
    /// What the frame was for.
    pub form: Form,
    /// 1 request, 2 reply (RFC 826).
    pub operation: u16,
    /// Frames that this stands for.
    pub count: u64,
    /// The claimant was reported in this minute already: policies look at it, no event comes of it.
    pub repeat: bool,
    /// The latest claim before this one came from another MAC.
    pub owner_changed: bool,
    /// When the frame came in.
    pub at: MonoTime,
    /// The program has answered the claim with a defence itself.
    pub defended: bool,
    /// The program has given the address up because of the claim: it is silent already.
    pub fell: bool,
    /// The claimant may claim: it is recorded as the one who does, and that is all.
    pub allowed: bool,
}

/// An interface, as far as the engine needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its MAC.
    pub mac: MacAddr,
    /// How fast announcements may leave.
    pub pace: Pace,
    /// Defences allowed in a window of time; `None`: as many as the interval allows.
    pub moves: Option<MoveBudget>,
    /// The link carries frames (IFF_RUNNING). Down-times that the daemon causes itself are not told.
    pub up: bool,
    /// Which of several ways frames take, where one is taken at a time: the index of the member that a bond uses, or used
    /// last; 0 where there is none. After a change the switches have to be told.
    pub path: u32,
}

/// How fast announcements may leave an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pace {
    /// 10,000 frames a second, bursts of 500.
    #[default]
    Plain,
    /// 10 frames a second, below the 15 at which inspecting switches shut a port.
    Inspected,
    /// As fast as the interface takes them: for tests, and for a segment that carries nothing else.
    Unlimited,
}

/// Defences of an address allowed in any window of this length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MoveBudget {
    /// At least 1.
    pub moves: u32,
    /// More than zero.
    pub window: Duration,
}

impl MoveBudget {
    /// 4 in 180 s: EVPN fabrics freeze an address that moves 5 times in 180 s.
    pub const EVPN: Self = Self { moves: 4, window: Duration::from_secs(180) };
}

/// What the engine is told. Commands are answered by [`crate::action::Action::Answer`] with their request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// An interface that addresses can be managed on, new or changed.
    Interface {
        /// Its index.
        index: u32,
        /// What is known of it.
        interface: Interface,
    },
    /// Claim an address.
    Online {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
        /// How.
        spec: OnlineSpec,
    },
    /// Take addresses on that were claimed jointly, if all of them [are held](crate::action::Action::Held): all words
    /// first, then [`crate::action::Action::Flip`], then frames. Otherwise nothing happens; those that were held for
    /// too long are probed for again and told of anew.
    TakeAll {
        /// For [`crate::action::Action::Flip`].
        group: u32,
        /// Which ones.
        keys: Vec<AddressKey>,
    },
    /// Change what holds for an address without giving it up: all of the parameters but prefix length, registration,
    /// lease and how it began.
    Adjust {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
        /// What holds from now on.
        spec: OnlineSpec,
    },
    /// Give an address up.
    Offline {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
        /// Go on watching it.
        watch: bool,
    },
    /// Watch an address.
    Watch {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
    },
    /// Watch it no more.
    Unwatch {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
    },
    /// Run the plan of announcements again.
    Announce {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
    },
    /// Extend the lease of an address that is ours or claimed; one without a lease gets one.
    Renew {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
        /// From now on.
        lease: Duration,
    },
    /// Ask each of these hosts with the address as sender, so that their caches follow.
    Repair {
        /// Whom to answer.
        request: RequestId,
        /// Which one.
        key: AddressKey,
        /// Whom to ask.
        neighbours: Vec<Neighbour>,
    },
    /// An earlier run has left an address; told before anything else of that address is. Its interface must be known.
    Adopt {
        /// Which one.
        key: AddressKey,
        /// What is left of it.
        kept: Kept,
    },
    /// The interface is no more: its addresses vanish, there is nothing left to take them off.
    Gone {
        /// Its index.
        index: u32,
    },
    /// The program or the guard is missing from an interface: its addresses that may not answer are shielded no more
    /// and must not stay on it.
    ProgramMissing {
        /// Its index.
        index: u32,
    },
    /// The caller of a command has gone away; the command itself goes on.
    Forget {
        /// Which command.
        request: RequestId,
    },
    /// The datapath saw something about a managed address.
    Seen {
        /// Which address.
        key: AddressKey,
        /// What.
        sighting: Sighting,
    },
    /// Outcome of [`crate::action::Action::Install`].
    Installed {
        /// Which address.
        key: AddressKey,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// Outcome of [`crate::action::Action::Register`].
    Registered {
        /// Which address.
        key: AddressKey,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// Outcome of [`crate::action::Action::Deregister`]; an address that was gone already is `Ok`.
    Deregistered {
        /// Which address.
        key: AddressKey,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// Outcome of [`crate::action::Action::Send`]. A frame that failed does not count as sent.
    Sent {
        /// Which address.
        key: AddressKey,
        /// What the frame was for.
        purpose: Purpose,
        /// The frame.
        frame: Outgoing,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// The netlink watch: the address is configured in this network namespace now, or no more.
    Local {
        /// Which address.
        key: AddressKey,
        /// Configured.
        local: bool,
    },
}
