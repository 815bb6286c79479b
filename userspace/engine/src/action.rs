//! What the engine wants done, in this order.

use arpwarden_common::{
    abi::AddressKey,
    net::MacAddr,
    state::{State, StateWord},
    wire::arp::Outgoing,
};

use crate::input::{Claimant, MonoTime, OnlineSpec, RequestId, Sighting};

/// What the engine wants done. Actions are carried out in the order in which they come; those with an outcome
/// report it back as an [`crate::Input`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Make the address known to the datapath with this word. Outcome: `Installed`.
    Install {
        /// Which one.
        key: AddressKey,
        /// Its first word.
        word: StateWord,
    },
    /// Store the word of an installed address: one store, seen from the next frame on.
    Store {
        /// Which one.
        key: AddressKey,
        /// The word.
        word: StateWord,
    },
    /// Store the end of the lease of an installed address. It comes before the word that makes the address answer.
    Lease {
        /// Which one.
        key: AddressKey,
        /// From then on it may not answer, whatever its word says; `None`: no lease.
        until: Option<MonoTime>,
    },
    /// Write down how an address is claimed, before what follows is done; `None`: it is only watched. Outlives the
    /// daemon, so that [`crate::Input::Adopt`] can tell it.
    Remember {
        /// Which one.
        key: AddressKey,
        /// How.
        spec: Option<OnlineSpec>,
    },
    /// Take the address out of the datapath.
    Remove {
        /// Which one.
        key: AddressKey,
    },
    /// Put the address on the interface (rtnetlink). Outcome: `Registered`.
    Register {
        /// Which one.
        key: AddressKey,
        /// 1..=32.
        prefix_length: u8,
    },
    /// Take exactly this address with this prefix off the interface. Outcome: `Deregistered`.
    Deregister {
        /// Which one.
        key: AddressKey,
        /// 1..=32.
        prefix_length: u8,
    },
    /// A joint claim has got as far as it gets alone: nobody objected, and the kernel has the address. It stays shielded,
    /// and a claim still refuses it.
    Held {
        /// Which one.
        key: AddressKey,
    },
    /// All words of a joint claim say that they may answer: let the group answer, before the frames that follow.
    Flip {
        /// As [`crate::Input::TakeAll`] named it.
        group: u32,
    },
    /// Put a frame on the wire. Outcome: `Sent`.
    Send {
        /// For which address; its interface is where the frame leaves.
        key: AddressKey,
        /// What for.
        purpose: Purpose,
        /// The frame.
        frame: Outgoing,
    },
    /// Tell the world what happened.
    Event(Event),
    /// Answer a command; each is answered exactly once, unless forgotten.
    Answer {
        /// Which one.
        request: RequestId,
        /// How it went.
        answer: Answer,
    },
}

/// What a frame is sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Is it free? (RFC 5227 §2.1.1)
    Probe,
    /// A frame of the plan.
    Announcement,
    /// Because of a conflict (RFC 5227 §2.4). The sender takes the permit to defend that it shares with the program
    /// first; refused, the frame has not left.
    Defence,
    /// The owner's MAC told again after a roll-back.
    Repair,
    /// An ordinary question with the address as sender, so that the cache of the host asked follows.
    Ask,
}

/// How a command went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Done. `online`: at the first announcement.
    Done,
    /// It was so already.
    Already(State),
    /// The address is not managed; for `offline` and `unwatch` that is as good as done.
    Unknown,
    /// Claimed or probed for by another host.
    Taken {
        /// By whom.
        claimant: Claimant,
        /// How it was found out.
        reason: Reason,
    },
    /// Managed with other parameters.
    Differs {
        /// What is in force.
        present: OnlineSpec,
    },
    /// Not possible in this state, for example `announce` for an address that is not ours.
    WrongState(State),
    /// Something failed, in words: what was tried and why it failed.
    Failed(String),
    /// Another command took the address elsewhere meanwhile.
    Superseded,
}

/// Something that happened to an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Which one.
    pub key: AddressKey,
    /// What.
    pub kind: EventKind,
}

/// What happened; the names in `events` are those of the variants in snake case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A step from state to state; `None` is an address that is not managed.
    State {
        /// Before.
        from: Option<State>,
        /// After.
        to: Option<State>,
        /// Why.
        reason: Reason,
    },
    /// A claim, or a probe against ours, for an address that is ours or probed for.
    Conflict {
        /// The frame.
        sighting: Sighting,
        /// More than 4 claims in 180 s: worth waking somebody.
        loud: bool,
    },
    /// A defence has left.
    Defended {
        /// Against whom.
        claimant: Claimant,
        /// The MAC that was announced.
        own_mac: MacAddr,
    },
    /// Another host probed for an address that is ours; it got an answer.
    ProbeSeen {
        /// The frame.
        sighting: Sighting,
    },
    /// The last frame of a plan has left.
    Announced {
        /// Frames of the plan.
        count: u64,
        /// The MAC that was announced.
        own_mac: MacAddr,
    },
    /// The owner of a watched, refused, lost or yielding address is another MAC than before.
    OwnerChanged {
        /// The frame.
        sighting: Sighting,
    },
    /// A claim by the immediate way was taken back.
    RolledBack {
        /// For whom.
        claimant: Claimant,
    },
    /// The repairs of a roll-back, or those that a command asked for, have left.
    Repaired {
        /// Whose MAC was told after a roll-back; `None`: our own.
        claimant: Option<Claimant>,
        /// Frames.
        count: u64,
    },
    /// An own frame came back, or another port's.
    Echo {
        /// The frame.
        sighting: Sighting,
    },
    /// More claimants than are reported one by one.
    ClaimantFlood {
        /// The latest, and the number of frames.
        sighting: Sighting,
    },
    /// Somebody else took the address off the interface.
    AddressRemoved,
    /// It was put back.
    AddressRestored,
    /// Somebody else has configured an address that may not answer, is watched, or is not to be configured.
    AddressAdded,
    /// The lease is past: silent from now on.
    LeaseExpired,
    /// Taken on from an earlier run of the daemon.
    Adopted {
        /// Claims and probes meanwhile of which no event told.
        untold: u64,
    },
    /// Something that the engine asked for failed; it is tried again where that makes sense.
    Failed {
        /// In words.
        what: String,
    },
}

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Somebody said so.
    Commanded,
    /// Nobody objected to the probes.
    ProbesUnanswered,
    /// It was on the interface already.
    Adopted,
    /// The plan is done.
    PlanDone,
    /// Another host claims it.
    Claimed,
    /// Another host probes for it at the same time (RFC 5227 §2.1.1).
    ProbedByAnother,
    /// A claim within 1.1 s after the first announcement.
    RolledBack,
    /// The policy says so: `yield`, or the second conflict under `once`.
    DefendPolicy,
    /// No defence is left in the move budget.
    MoveBudgetSpent,
    /// The move budget allows a defence again.
    MoveBudgetFree,
    /// A retry after a refusal.
    Retry,
    /// The kernel took it off the interface.
    Deregistered,
    /// The interface has another MAC, which is announced.
    MacChanged,
    /// Its bond uses another member.
    PathChanged,
    /// The lease is past.
    LeaseExpired,
    /// The link carries no frames.
    LinkDown,
    /// The link carries frames again.
    LinkUp,
    /// The interface is no more.
    InterfaceGone,
    /// Somebody else took it off the interface.
    AddressRemoved,
    /// A step failed.
    Failed,
}

impl Reason {
    /// The name used in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commanded => "commanded",
            Self::ProbesUnanswered => "probes_unanswered",
            Self::Adopted => "adopted",
            Self::PlanDone => "plan_done",
            Self::Claimed => "claimed",
            Self::ProbedByAnother => "probed_by_another",
            Self::RolledBack => "rolled_back",
            Self::DefendPolicy => "defend_policy",
            Self::MoveBudgetSpent => "move_budget_spent",
            Self::MoveBudgetFree => "move_budget_free",
            Self::Retry => "retry",
            Self::Deregistered => "deregistered",
            Self::MacChanged => "mac_changed",
            Self::PathChanged => "path_changed",
            Self::LeaseExpired => "lease_expired",
            Self::LinkDown => "link_down",
            Self::LinkUp => "link_up",
            Self::InterfaceGone => "interface_gone",
            Self::AddressRemoved => "address_removed",
            Self::Failed => "failed",
        }
    }
}
