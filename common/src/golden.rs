//! The golden frames: one table of frame kind × state, with one cell for each pair, and every cell behind each
//! kind of tag. It is run through the verdict on the host, through the loaded program and over veth, and the
//! three have to agree with it.
//!
//! What is expected is written down here and built byte by byte; nothing in this file calls the code under test.

pub mod guard;

use crate::{
    abi::{
        AddressKey, AllowedKey, Asker, Coarse, Control, Counter, Event, EventKind, Group, Moves, Port, Slot,
    },
    net::{Ipv4, MacAddr, SERVICE_TAG, Vlan},
    state::{Policy, State, StateWord},
    verdict::{Entry, Standing, Tables},
    wire::arp::Form,
};

/// The address that the rows are about.
pub const ADDRESS: [u8; 4] = [192, 0, 2, 10];
/// A second managed address, online and local wherever [`ADDRESS`] is managed.
pub const SECOND: [u8; 4] = [192, 0, 2, 11];
/// An address that nobody manages: the asker's.
pub const ASKER: [u8; 4] = [192, 0, 2, 77];
/// Another one.
pub const GATEWAY: [u8; 4] = [192, 0, 2, 1];
/// The MAC that the state word says to answer with. It is not the port's, as on a bond member.
pub const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The port's MAC.
pub const PORT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The MAC of another port of this host.
pub const SIBLING_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
/// Whoever asks, claims or probes.
pub const STRANGER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// A host that puts other hosts' ARP on the wire.
pub const PROXY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x55];
/// A host that may claim.
pub const ALLOWED_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
/// Somebody else, to whom a frame was flooded.
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x44];
/// Broadcast.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Index of the port that the frames come in on: that of the loopback interface, which the kernel's test-run
/// names when it is not told otherwise.
pub const PORT_INDEX: u32 = 1;
/// Index of the logical interface of that port.
pub const INTERFACE: u32 = 9;
/// Slot of [`ADDRESS`]; that of [`SECOND`] is the next.
pub const SLOT: u32 = 5;
/// Generation in the state words.
pub const GENERATION: u8 = 0xa5;
/// What padding is filled with: it has to come back as it was.
const PADDING: u8 = 0x5a;

/// Kinds of frames: each branch of the rules for the datapath has at least one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "the table says what each is")]
pub enum Kind {
    Request,
    RequestUnpadded,
    RequestToOurMac,
    RequestToPortMac,
    RequestFlooded,
    RequestToGroup,
    RequestIeee802,
    RequestProxied,
    Probe,
    Poll,
    PollFlooded,
    ProbeProxied,
    ProbeEchoed,
    ProbeBySibling,
    ClaimByRequestForm,
    ClaimByReplyForm,
    ClaimByPlainReply,
    ClaimAskingElsewhere,
    ClaimAskingSecond,
    ClaimProxied,
    AllowedClaim,
    AllowedReply,
    AllowedProbe,
    EchoAsking,
    EchoOfPortAsking,
    EchoAnnouncing,
    EchoOfPortAnnouncing,
    EchoReplying,
    SiblingAsking,
    SiblingAnnouncing,
    SiblingReplying,
    ZeroSenderMac,
    GroupSenderMac,
    ZeroSource,
    GroupSource,
    MulticastSender,
    LoopbackSender,
    BroadcastSender,
    ReservedSender,
    ProbeByZeroMac,
    AnnouncementByZeroMac,
    ReplyByZeroMac,
    ReplyOfNobody,
    ReplyOfOthers,
    AnnouncementOfNobody,
    RequestForOthers,
    Truncated,
    WrongHardware,
    WrongProtocol,
    WrongHardwareLength,
    WrongProtocolLength,
    WrongOperation,
    InactivePort,
    InactivePortToOurMac,
    InactivePortProbe,
    InactivePortFlooded,
    InactivePortClaim,
    InactivePortReply,
    InactivePortByZeroMac,
    Member,
    MemberOfTheDead,
    UnknownPort,
    NotArp,
    BehindThreeTags,
}

/// States of [`ADDRESS`] and what stands around it, one for each column of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    /// What the columns are about that go beyond state, `local` and the address's own lease; else empty.
    pub name: &'static str,
    /// State; `None` where neither address is managed.
    pub state: Option<State>,
    /// Whether the address is configured in this network namespace.
    pub local: bool,
    /// The lease: 0 for none; else one that is past, or will never be.
    pub lease_until_ns: u64,
    /// What its group says, if it is in one.
    pub group: Option<Group>,
    /// Generation under which it has fallen.
    pub fallen: Option<u8>,
    /// Policy in its state word.
    pub policy: Policy,
    /// How many seconds ago the daemon was heard, if ever.
    heard: Option<u64>,
    /// Whether the machine has slept since.
    slept: bool,
    /// How many seconds ago it was defended, latest first.
    defended: &'static [u64],
    /// How many seconds ago it was challenged, and under which generation.
    challenged: Option<(u64, u8)>,
    /// Whether its port has a [budget of moves](BUDGET).
    budget: bool,
    /// Whether its port is only observed.
    pub observed: bool,
}

const PAST: u64 = 1;
const STANDS: u64 = u64::MAX;
/// The time in a [`World`]. All others are relative to it, but for leases, which are past or will never be.
pub const NOW: u64 = 1_000 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;
/// How far a world's past goes back, in nanoseconds.
pub const PAST_NS: u64 = 60 * SECOND_NS;
/// How long the machine has slept since it booted, at [`NOW`].
pub const SLEPT_NS: u64 = 7 * SECOND_NS;
/// Moves, and seconds.
const BUDGET: (u32, u32) = (3, 20);
/// The group of [`ADDRESS`] where it has one.
pub const GROUP: u16 = 3;
const SILENT: u64 = Group::SILENT;
const ANSWERS: u64 = Group::ANSWERS;

/// Builds the columns; each method adds one thing.
impl Column {
    const fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    const fn in_group(self, word: u64, lease_until_ns: u64) -> Self {
        Self { group: Some(Group { word, lease_until_ns }), ..self }
    }

    const fn fallen(self, generation: u8) -> Self {
        Self { fallen: Some(generation), ..self }
    }

    const fn policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    const fn armed(self) -> Self {
        self.heard(1)
    }

    const fn heard(self, seconds_ago: u64) -> Self {
        Self { heard: Some(seconds_ago), ..self }
    }

    const fn slept(self) -> Self {
        Self { slept: true, ..self }
    }

    const fn defended(self, seconds_ago: &'static [u64]) -> Self {
        Self { defended: seconds_ago, ..self }
    }

    const fn budget(self) -> Self {
        Self { budget: true, ..self }
    }

    const fn challenged(self, seconds_ago: u64, generation: u8) -> Self {
        Self { challenged: Some((seconds_ago, generation)), ..self }
    }

    const fn observed(self) -> Self {
        Self { observed: true, ..self }
    }

    /// Name for messages.
    fn title(&self) -> String {
        let Self { name, state, local, lease_until_ns, .. } = *self;
        let state = state.map_or("unmanaged", State::name);
        let local = if local { ", local" } else { "" };
        let lease = match lease_until_ns {
            0 => "",
            PAST => ", lease past",
            _ => ", lease stands",
        };
        let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
        format!("{state}{local}{lease}{name}")
    }

    /// What the program remembers of the address, beside what user space says of it.
    fn remembered(&self, said: Slot) -> Slot {
        Slot {
            fallen: self.fallen.map_or(0, |generation| 256 + u16::from(generation)),
            conflict: self
                .challenged
                .map_or(0, |(seconds, generation)| ago(seconds) & !0xff | u64::from(generation)),
            defended_ns: self.defended.first().map_or(0, |seconds| ago(*seconds)),
            ..said
        }
    }

    /// Its moves, if they are counted.
    fn moves(&self) -> Option<Moves> {
        let mut moves = Moves::default();
        for (place, seconds) in moves.iter_mut().zip(self.defended) {
            *place = ago(*seconds);
        }
        self.budget.then_some(moves)
    }
}

/// So many seconds before [`NOW`].
const fn ago(seconds: u64) -> u64 {
    NOW - seconds * SECOND_NS
}

const UNMANAGED: Column = Column {
    name: "",
    state: None,
    local: false,
    lease_until_ns: 0,
    group: None,
    fallen: None,
    policy: Policy::Leave,
    heard: None,
    slept: false,
    defended: &[],
    challenged: None,
    budget: false,
    observed: false,
};

const fn column(state: State, local: bool, lease_until_ns: u64) -> Column {
    Column { state: Some(state), local, lease_until_ns, ..UNMANAGED }
}

const fn online(local: bool) -> Column {
    column(State::Online, local, 0)
}

/// How many columns are about state, `local` and the address's own lease alone, and how many have a name.
const PLAIN: usize = 27;
const NAMED: usize = COLUMNS.len() - PLAIN;

/// The columns, in the order of the table, whose head names them by letters: an `l` says local, `+` a lease that
/// stands, `-` one that is past. Behind them stand those that have a name.
#[rustfmt::skip]
pub const COLUMNS: [Column; 64] = [
    UNMANAGED,
    column(State::Watched, false, 0),
    column(State::Watched, true, 0),
    column(State::Probing, false, 0),
    column(State::Probing, true, 0),
    column(State::Announcing, false, 0),
    column(State::Announcing, true, 0),
    column(State::Online, false, 0),
    column(State::Online, true, 0),
    column(State::Contested, false, 0),
    column(State::Contested, true, 0),
    column(State::Yielding, false, 0),
    column(State::Yielding, true, 0),
    column(State::Suspended, false, 0),
    column(State::Suspended, true, 0),
    column(State::Refused, false, 0),
    column(State::Refused, true, 0),
    column(State::Lost, false, 0),
    column(State::Lost, true, 0),
    column(State::Online, false, STANDS),
    column(State::Online, true, STANDS),
    column(State::Announcing, false, PAST),
    column(State::Announcing, true, PAST),
    column(State::Online, false, PAST),
    column(State::Online, true, PAST),
    column(State::Contested, false, PAST),
    column(State::Contested, true, PAST),
    online(false).in_group(SILENT, 0).named("a silent group"),
    online(true).in_group(SILENT, 0).named("a silent group"),
    online(true).in_group(ANSWERS, 0).named("a group that answers"),
    online(true).in_group(ANSWERS, STANDS).named("a group whose lease stands"),
    online(true).in_group(ANSWERS, PAST).named("a group whose lease is past"),
    column(State::Watched, true, 0).in_group(SILENT, 0).named("a silent group"),
    column(State::Probing, true, 0).in_group(SILENT, 0).named("a silent group"),
    online(false).fallen(GENERATION).named("fallen"),
    online(true).fallen(GENERATION).named("fallen"),
    online(true).fallen(GENERATION - 1).named("fallen under another generation"),
    online(true).observed().named("observed"),
    column(State::Yielding, true, 0).observed().named("observed"),
    online(true).policy(Policy::Hold).named("hold, not armed"),
    online(true).policy(Policy::Hold).armed().named("hold, armed"),
    column(State::Contested, true, 0).policy(Policy::Hold).armed().named("hold, armed"),
    column(State::Online, true, STANDS).policy(Policy::Hold).named("hold, armed by a lease"),
    online(true).in_group(ANSWERS, STANDS).policy(Policy::Hold).named("hold, armed by its group's lease"),
    online(true).policy(Policy::Hold).armed().slept().named("hold, slept since"),
    column(State::Online, true, STANDS).policy(Policy::Hold).slept().named("hold, slept since, lease"),
    online(true).policy(Policy::Hold).armed().heard(31).named("hold, heartbeat too old"),
    online(true).policy(Policy::Hold).armed().defended(&[5]).named("hold, armed, within the interval"),
    online(true).policy(Policy::Hold).armed().defended(&[11]).named("hold, armed, interval over"),
    online(true).policy(Policy::Hold).armed().defended(&[11, 12, 13]).budget().named("hold, armed, moves spent"),
    online(true).policy(Policy::Hold).armed().defended(&[11, 12, 31]).budget().named("hold, armed, one move left"),
    column(State::Online, true, PAST).policy(Policy::Hold).armed().named("hold, armed, lease past"),
    column(State::Probing, true, 0).policy(Policy::Hold).armed().named("hold, armed, probing"),
    online(true).policy(Policy::Hold).armed().observed().named("hold, armed, observed"),
    online(true).armed().named("leave, armed"),
    online(true).policy(Policy::Once).armed().named("once, armed"),
    online(true).policy(Policy::Once).named("once, not armed"),
    online(true).policy(Policy::Once).challenged(5, GENERATION).named("once, challenged 5 s ago"),
    online(true).policy(Policy::Once).challenged(12, GENERATION).armed().named("once, challenged 12 s ago, armed"),
    online(true).policy(Policy::Once).challenged(5, GENERATION - 1).armed().named("once, challenged under another generation, armed"),
    online(true).policy(Policy::Once).challenged(5, GENERATION).observed().named("once, challenged 5 s ago, observed"),
    online(false).policy(Policy::Yield).named("yield"),
    online(true).policy(Policy::Yield).named("yield"),
    online(true).policy(Policy::Yield).fallen(GENERATION).named("yield, fallen"),
];

/// Kind, why the row is as it is, and a cell for each of [`COLUMNS`], the plain ones and those that have a name: first what becomes of the frame (see
/// [`outcome`]), then what it tells (see [`sees`]).
#[rustfmt::skip]
const TABLE: [(Kind, &str, &str, &str); 64] = [
    //   -- w  wl p  pl a  al o  ol c  cl y  yl s  sl r  rl x  xl o+ l+ a- l- o- l- c- l-   (x: lost)
    //   group: o- l- l+ l+ l- wl pl  fallen: o l l  observed  hold: - F F F F - - - - F - F - - -  leave  once: F - X F F -  yield: X X -
    (Kind::Request, "whoever asks for an address that may answer gets an answer; where it may not, a local one is silent",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::RequestUnpadded, "the shortest frame that holds a request is answered in its own length",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::RequestToOurMac, "a unicast request refreshes a cache entry (RFC 1122 2.3.2.1) and is answered",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::RequestToPortMac, "the port's own MAC is ours too, whatever MAC the address is answered with",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::RequestFlooded, "a request to somebody else's MAC is not for us to answer; the shield drops it all the same",
        "U. N. N. N. D. O. O. O. O. O. O. N. D. N. D. N. D. N. D. O. O. N. D. N. D. N. D.",
        "N. D. O. O. D. N. D. N. D. O. O. D. O. O. O. O. O. O. O. O. O. O. O. O. D. D. O. O. O. O. O. O. O. O. O. O. D."),
    (Kind::RequestToGroup, "a group that is not broadcast is not our MAC",
        "U. N. N. N. D. O. O. O. O. O. O. N. D. N. D. N. D. N. D. O. O. N. D. N. D. N. D.",
        "N. D. O. O. D. N. D. N. D. O. O. D. O. O. O. O. O. O. O. O. O. O. O. O. D. D. O. O. O. O. O. O. O. O. O. O. D."),
    (Kind::RequestIeee802, "Linux takes hardware type 6 for Ethernet, so it is answered and shielded; the reply keeps the type (RFC 826)",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::RequestProxied, "the answer goes to the Ethernet source, and inside to the ARP sender",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::Probe, "a probe is answered and reported where the address is ours, and a conflict while we probe too (RFC 5227 2.1.1)",
        "U. N. N. NP DP AP AP AP AP AP AP N. D. N. D. N. D. N. D. AP AP N. D. N. D. N. D.",
        "N. D. AP AP D. N. DP N. D. AP AP D. AP AP AP AP AP AP AP AP AP AP AP AP D. DP AP AP AP AP AP AP AP AP AP AP D."),
    (Kind::Poll, "a unicast probe is a poll: answered, no conflict",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::PollFlooded, "somebody else's poll",
        "U. N. N. N. D. O. O. O. O. O. O. N. D. N. D. N. D. N. D. O. O. N. D. N. D. N. D.",
        "N. D. O. O. D. N. D. N. D. O. O. D. O. O. O. O. O. O. O. O. O. O. O. O. D. D. O. O. O. O. O. O. O. O. O. O. D."),
    (Kind::ProbeProxied, "a probe whose two sources differ was not sent by a host that probes for itself: answered, no conflict",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::ProbeEchoed, "our own probe that comes back is no conflict (RFC 5227 2.1.1, note)",
        "Ue NE NE NE DE AE AE AE AE AE AE NE DE NE DE NE DE NE DE AE AE NE DE NE DE NE DE",
        "NE DE AE AE DE NE DE NE DE AE AE DE AE AE AE AE AE AE AE AE AE AE AE AE DE DE AE AE AE AE AE AE AE AE AE AE DE"),
    (Kind::ProbeBySibling, "this host's other port probes: no conflict",
        "U. NS NS NS DS AS AS AS AS AS AS NS DS NS DS NS DS NS DS AS AS NS DS NS DS NS DS",
        "NS DS AS AS DS NS DS NS DS AS AS DS AS AS AS AS AS AS AS AS AS AS AS AS DS DS AS AS AS AS AS AS AS AS AS AS DS"),
    (Kind::ClaimByRequestForm, "a gratuitous request claims and asks nothing, but Linux would answer it for a local address",
        "G. Gc Gc GC DC GC GC GC GC GC GC Gc Dc Gc Dc Gc Dc Gc Dc GC GC Gc Dc Gc Dc Gc Dc",
        "Gc Dc GC GC Dc Gc DC Gc Dc GC GC Dc GC FC FC FC FC GC GC GC GC FC GC FC Dc DC GC GC FC GC DX FC FC GC GX DX Dc"),
    (Kind::ClaimByReplyForm, "a gratuitous reply claims; no host answers a reply",
        "R. Rc Rc RC RC RC RC RC RC RC RC Rc Rc Rc Rc Rc Rc Rc Rc RC RC Rc Rc Rc Rc Rc Rc",
        "Rc Rc RC RC Rc Rc RC Rc Rc RC RC Rc RC FC FC FC FC RC RC RC RC FC RC FC Rc RC RC RC FC RC RX FC FC RC RX RX Rc"),
    (Kind::ClaimByPlainReply, "an answer to us from the address claims it (RFC 5227 2.1.1, 2.4)",
        "R. Rc Rc RC RC RC RC RC RC RC RC Rc Rc Rc Rc Rc Rc Rc Rc RC RC Rc Rc Rc Rc Rc Rc",
        "Rc Rc RC RC Rc Rc RC Rc Rc RC RC Rc RC FC FC FC FC RC RC RC RC FC RC FC Rc RC RC RC FC RC RX FC FC RC RX RX Rc"),
    (Kind::ClaimAskingElsewhere, "a request from the address claims it, whatever it asks for",
        "U. Uc Uc UC UC UC UC UC UC UC UC Uc Uc Uc Uc Uc Uc Uc Uc UC UC Uc Uc Uc Uc Uc Uc",
        "Uc Uc UC UC Uc Uc UC Uc Uc UC UC Uc UC FC FC FC FC UC UC UC UC FC UC FC Uc UC UC UC FC UC UX FC FC UC UX UX Uc"),
    (Kind::ClaimAskingSecond, "a claim that asks for another address of ours is a question too",
        "U. Ac Ac AC AC AC AC AC AC AC AC Ac Ac Ac Ac Ac Ac Ac Ac AC AC Ac Ac Ac Ac Ac Ac",
        "Ac Ac AC AC Ac Ac AC Ac Ac AC AC Ac AC FC FC FC FC AC AC AC AC FC AC FC Ac AC AC AC FC AC AX FC FC AC AX AX Ac"),
    (Kind::ClaimProxied, "a claim on behalf of another host is one; both MACs are told",
        "G. Gc Gc GC DC GC GC GC GC GC GC Gc Dc Gc Dc Gc Dc Gc Dc GC GC Gc Dc Gc Dc Gc Dc",
        "Gc Dc GC GC Dc Gc DC Gc Dc GC GC Dc GC FC FC FC FC GC GC GC GC FC GC FC Dc DC GC GC FC GC DX FC FC GC GX DX Dc"),
    (Kind::AllowedClaim, "a host that may claim: recorded, and neither a conflict nor defended against",
        "G. Ga Ga Ga Da Ga Ga Ga Ga Ga Ga Ga Da Ga Da Ga Da Ga Da Ga Ga Ga Da Ga Da Ga Da",
        "Ga Da Ga Ga Da Ga Da Ga Da Ga Ga Da Ga Ga Ga Ga Ga Ga Ga Ga Ga Ga Ga Ga Da Da Ga Ga Ga Ga Ga Ga Ga Ga Ga Ga Da"),
    (Kind::AllowedReply, "the same of an answer, as a proxy gives it to a host that probes",
        "R. Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra",
        "Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra Ra"),
    (Kind::AllowedProbe, "its probe is answered and is no conflict either",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::EchoAsking, "our own who-has from the address comes back: an echo, no conflict",
        "U. UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE",
        "UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE UE"),
    (Kind::EchoOfPortAsking, "with the port's MAC as sender it is an echo whoever it is from, and a request still",
        "Ue Ne Ne Ne De Ae Ae Ae Ae Ae Ae Ne De Ne De Ne De Ne De Ae Ae Ne De Ne De Ne De",
        "Ne De Ae Ae De Ne De Ne De Ae Ae De Ae Ae Ae Ae Ae Ae Ae Ae Ae Ae Ae Ae De De Ae Ae Ae Ae Ae Ae Ae Ae Ae Ae De"),
    (Kind::EchoAnnouncing, "our own announcement comes back: an echo, no conflict",
        "G. GE GE GE DE GE GE GE GE GE GE GE DE GE DE GE DE GE DE GE GE GE DE GE DE GE DE",
        "GE DE GE GE DE GE DE GE DE GE GE DE GE GE GE GE GE GE GE GE GE GE GE GE DE DE GE GE GE GE GE GE GE GE GE GE DE"),
    (Kind::EchoOfPortAnnouncing, "the same with the port's MAC",
        "Ge GE GE GE DE GE GE GE GE GE GE GE DE GE DE GE DE GE DE GE GE GE DE GE DE GE DE",
        "GE DE GE GE DE GE DE GE DE GE GE DE GE GE GE GE GE GE GE GE GE GE GE GE DE DE GE GE GE GE GE GE GE GE GE GE DE"),
    (Kind::EchoReplying, "our own reply comes back",
        "R. RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE",
        "RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE RE"),
    (Kind::SiblingAsking, "this host's other port asks: a request like any other",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::SiblingAnnouncing, "this host's other port announces: no conflict",
        "G. GS GS GS DS GS GS GS GS GS GS GS DS GS DS GS DS GS DS GS GS GS DS GS DS GS DS",
        "GS DS GS GS DS GS DS GS DS GS GS DS GS GS GS GS GS GS GS GS GS GS GS GS DS DS GS GS GS GS GS GS GS GS GS GS DS"),
    (Kind::SiblingReplying, "this host's other port replies: no conflict",
        "R. RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS",
        "RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS RS"),
    (Kind::ZeroSenderMac, "no host has MAC zero; Linux would answer it",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::GroupSenderMac, "no host has a group MAC; Linux would answer it",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::ZeroSource, "no host sends from MAC zero",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::GroupSource, "no host sends from a group MAC",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::MulticastSender, "no host has a multicast address",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::LoopbackSender, "127/8 never leaves a host",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::BroadcastSender, "no host has the broadcast address",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::ReservedSender, "the rest of 240/4 is in use in places: a request like any other",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::ProbeByZeroMac, "a probe that no host can have sent: no conflict",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::AnnouncementByZeroMac, "a claim that no host can have made: no conflict",
        "B. B. B. B. D. B. B. B. B. B. B. B. D. B. D. B. D. B. D. B. B. B. D. B. D. B. D.",
        "B. D. B. B. D. B. D. B. D. B. B. D. B. B. B. B. B. B. B. B. B. B. B. B. D. D. B. B. B. B. B. B. B. B. B. B. D."),
    (Kind::ReplyByZeroMac, "the same as a reply",
        "B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B.",
        "B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B. B."),
    (Kind::ReplyOfNobody, "a reply from 0.0.0.0 means nothing",
        "R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R.",
        "R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R."),
    (Kind::ReplyOfOthers, "an answer to us from an address that is not managed",
        "R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R.",
        "R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R. R."),
    (Kind::AnnouncementOfNobody, "an announcement of 0.0.0.0 means nothing",
        "G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G.",
        "G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G. G."),
    (Kind::RequestForOthers, "what is not managed is left alone",
        "U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U.",
        "U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U. U."),
    (Kind::Truncated, "one byte is missing: nothing of it can be trusted, and Linux drops it too",
        "T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T.",
        "T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T. T."),
    (Kind::WrongHardware, "ARP for InfiniBand (type 32)",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H.",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H."),
    (Kind::WrongProtocol, "ARP for something that is not IPv4",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H.",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H."),
    (Kind::WrongHardwareLength, "hardware addresses of eight bytes",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H.",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H."),
    (Kind::WrongProtocolLength, "protocol addresses of sixteen bytes",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H.",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H."),
    (Kind::WrongOperation, "neither request nor reply: RARP's request",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H.",
        "H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H. H."),
    (Kind::InactivePort, "an inactive bond member must not answer a second time, nor its kernel while a daemon lives that says who does; the shield is everywhere",
        "I. I. I. I. D. I. I. I. I. I. I. I. D. I. D. I. D. I. D. I. I. I. D. I. D. I. D.",
        "I. D. I. I. D. I. D. I. D. I. I. D. I. W. W. I. I. W. I. I. W. W. W. W. D. D. W. W. W. I. I. W. W. I. I. I. D."),
    (Kind::InactivePortToOurMac, "the same of one to us alone",
        "I. I. I. I. D. I. I. I. I. I. I. I. D. I. D. I. D. I. D. I. I. I. D. I. D. I. D.",
        "I. D. I. I. D. I. D. I. D. I. I. D. I. W. W. I. I. W. I. I. W. W. W. W. D. D. W. W. W. I. I. W. W. I. I. I. D."),
    (Kind::InactivePortProbe, "the same of a probe, which the active member reports",
        "I. I. I. I. D. I. I. I. I. I. I. I. D. I. D. I. D. I. D. I. I. I. D. I. D. I. D.",
        "I. D. I. I. D. I. D. I. D. I. I. D. I. W. W. I. I. W. I. I. W. W. W. W. D. D. W. W. W. I. I. W. W. I. I. I. D."),
    (Kind::InactivePortFlooded, "what is for somebody else is not ours to keep from the kernel",
        "I. I. I. I. D. I. I. I. I. I. I. I. D. I. D. I. D. I. D. I. I. I. D. I. D. I. D.",
        "I. D. I. I. D. I. D. I. D. I. I. D. I. I. I. I. I. I. I. I. I. I. I. I. D. D. I. I. I. I. I. I. I. I. I. I. D."),
    (Kind::InactivePortClaim, "a claim is met and recorded where the active member sees it",
        "I. I. I. I. D. I. I. I. I. I. I. I. D. I. D. I. D. I. D. I. I. I. D. I. D. I. D.",
        "I. D. I. I. D. I. D. I. D. I. I. D. I. I. I. I. I. I. I. I. I. I. I. I. D. D. I. I. I. I. I. I. I. I. I. I. D."),
    (Kind::InactivePortReply, "so is one by a reply",
        "I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I.",
        "I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I."),
    (Kind::InactivePortByZeroMac, "what the program would not answer elsewhere it does not keep from the kernel here",
        "I. I. I. I. D. I. I. I. I. I. I. I. D. I. D. I. D. I. D. I. I. I. D. I. D. I. D.",
        "I. D. I. I. D. I. D. I. D. I. I. D. I. I. I. I. I. I. I. I. I. I. I. I. D. D. I. I. I. I. I. I. I. I. I. I. D."),
    (Kind::Member, "an active bond member answers like every port while a daemon lives",
        "U. N. N. N. D. A. A. A. A. A. A. N. D. N. D. N. D. N. D. A. A. N. D. N. D. N. D.",
        "N. D. A. A. D. N. D. N. D. A. A. D. A. A. A. A. A. A. A. A. A. A. A. A. D. D. A. A. A. A. A. A. A. A. A. A. D."),
    (Kind::MemberOfTheDead, "which member is the active one a dead daemon does not tell, so the kernel answers",
        "I. I. I. I. D. I. I. I. I. I. I. I. D. I. D. I. D. I. D. I. I. I. D. I. D. I. D.",
        "I. D. I. I. D. I. D. I. D. I. I. D. I. I. I. I. I. I. I. I. I. I. I. I. D. D. I. I. I. I. I. I. I. I. I. I. D."),
    (Kind::UnknownPort, "a port that user space has not named is not acted on",
        "I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I.",
        "I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I. I."),
    (Kind::NotArp, "other traffic passes, uncounted",
        "-. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -.",
        "-. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -."),
    (Kind::BehindThreeTags, "ARP behind more than two tags is other traffic",
        "-. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -.",
        "-. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -. -."),
];

/// What a letter of the table says of the frame: the counter, and what the program returns.
fn outcome(letter: u8) -> (Option<Counter>, Action) {
    match letter {
        b'A' => (Some(Counter::Answered), Action::Answer),
        b'D' => (Some(Counter::Shielded), Action::Drop),
        b'T' => (Some(Counter::Truncated), Action::Pass),
        b'H' => (Some(Counter::BadHeader), Action::Pass),
        b'B' => (Some(Counter::BadSender), Action::Pass),
        b'G' => (Some(Counter::Gratuitous), Action::Pass),
        b'R' => (Some(Counter::Reply), Action::Pass),
        b'O' => (Some(Counter::OtherDestination), Action::Pass),
        b'N' => (Some(Counter::NotAnswering), Action::Pass),
        b'U' => (Some(Counter::Unmanaged), Action::Pass),
        b'I' => (Some(Counter::InactivePort), Action::Pass),
        b'W' => (Some(Counter::Withheld), Action::Drop),
        b'F' => (Some(Counter::Defended), Action::Answer),
        b'-' => (None, Action::Pass),
        other => panic!("{:?} is no outcome", char::from(other)),
    }
}

/// What a letter of the table says that the frame tells.
fn sees(letter: u8) -> Sees {
    match letter {
        b'.' => Sees::Nothing,
        b'C' => Sees::Conflict,
        b'X' => Sees::Fall,
        b'c' => Sees::Claim,
        b'a' => Sees::Allowed,
        b'P' => Sees::Probe,
        b'E' => Sees::Echo,
        b'e' => Sees::EchoOfOthers,
        b'S' => Sees::Sibling,
        other => panic!("{:?} is no sighting", char::from(other)),
    }
}

/// What the program returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// XDP_PASS, the frame as it was.
    Pass,
    /// XDP_DROP.
    Drop,
    /// XDP_TX, the frame turned into its answer, or into our defence.
    Answer,
}

/// What a frame tells of [`ADDRESS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sees {
    /// Nothing.
    Nothing,
    /// A claim for an address that is ours or probed for.
    Conflict,
    /// The same, for which the address is given up.
    Fall,
    /// A claim for another one.
    Claim,
    /// A claim by a host that may.
    Allowed,
    /// Another host's probe that matters.
    Probe,
    /// An echo from the address, or of a probe for it.
    Echo,
    /// An echo of this port that has nothing to do with a managed address.
    EchoOfOthers,
    /// A frame of another port of this host.
    Sibling,
}

/// The tags of the frame, and the VLAN of the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Tags {
    None,
    Priority,
    Customer,
    Service,
    Stacked,
    PriorityThenCustomer,
    OtherId,
    OtherType,
    OtherInner,
    FrameOnlyTagged,
    AddressOnlyTagged,
}

impl Tags {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Priority,
        Self::Customer,
        Self::Service,
        Self::Stacked,
        Self::PriorityThenCustomer,
        Self::OtherId,
        Self::OtherType,
        Self::OtherInner,
        Self::FrameOnlyTagged,
        Self::AddressOnlyTagged,
    ];

    /// The ones for columns that have a name: none, as many as there can be, and those of another VLAN.
    pub const SOME: [Self; 3] = [Self::None, Self::Stacked, Self::OtherInner];

    /// The tags as on the wire (priority bits included), the VLAN that they mean, and that of the address.
    fn parts(self) -> (&'static [[u8; 4]], Vlan, Vlan) {
        const PRIORITY: [u8; 4] = [0x81, 0x00, 0xa0, 0x00];
        const CUSTOMER_100: [u8; 4] = [0x81, 0x00, 0x60, 0x64];
        const CUSTOMER_200: [u8; 4] = [0x81, 0x00, 0x00, 0xc8];
        const SERVICE_100: [u8; 4] = [0x88, 0xa8, 0xe0, 0x64];
        const UNTAGGED: Vlan = Vlan { outer: 0, inner: 0 };
        const C100: Vlan = Vlan { outer: 100, inner: 0 };
        const C200: Vlan = Vlan { outer: 200, inner: 0 };
        const S100: Vlan = Vlan { outer: 100 | SERVICE_TAG, inner: 0 };
        const S100_C200: Vlan = Vlan { outer: 100 | SERVICE_TAG, inner: 200 };
        match self {
            Self::None => (&[], UNTAGGED, UNTAGGED),
            Self::Priority => (&[PRIORITY], UNTAGGED, UNTAGGED),
            Self::Customer => (&[CUSTOMER_100], C100, C100),
            Self::Service => (&[SERVICE_100], S100, S100),
            Self::Stacked => (&[SERVICE_100, CUSTOMER_200], S100_C200, S100_C200),
            Self::PriorityThenCustomer => (&[PRIORITY, CUSTOMER_100], C100, C100),
            Self::OtherId => (&[CUSTOMER_200], C200, C100),
            Self::OtherType => (&[SERVICE_100], S100, C100),
            Self::OtherInner => (&[SERVICE_100, CUSTOMER_200], S100_C200, S100),
            Self::FrameOnlyTagged => (&[CUSTOMER_100], C100, UNTAGGED),
            Self::AddressOnlyTagged => (&[], UNTAGGED, C100),
        }
    }
}

/// What the maps hold when the frame comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct World {
    /// The managed addresses.
    pub addresses: Vec<Managed>,
    /// What [`GROUP`] says.
    pub group: Group,
    /// What the daemon says of itself, at [`NOW`]; nothing if it was never heard.
    pub control: Control,
    /// The port with index [`PORT_INDEX`], if user space has named it.
    pub port: Option<Port>,
    /// MACs of this host.
    pub own_macs: Vec<MacAddr>,
    /// Hosts that may claim, and where.
    pub allowed: Vec<AllowedKey>,
}

/// A managed address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Managed {
    /// Its key.
    pub key: AddressKey,
    /// Its slot number.
    pub slot: u32,
    /// What user space says of it.
    pub value: Slot,
    /// Its moves, if they are counted.
    pub moves: Option<Moves>,
}

impl World {
    /// The address in this slot, which has one.
    #[cfg(test)]
    fn in_slot(&mut self, slot: u32) -> &mut Managed {
        self.addresses.iter_mut().find(|managed| managed.slot == slot).expect("a managed address")
    }

    fn standing(&self, managed: &Managed) -> Standing {
        let Slot { word, lease_until_ns, group, fallen, .. } = managed.value;
        Standing {
            word: StateWord::from_bits(word),
            fallen,
            lease_until_ns,
            group: if group == GROUP { self.group } else { Group::NONE },
        }
    }
}

impl Tables for World {
    type Place = u32;

    fn address(&self, key: &AddressKey) -> Option<Entry> {
        let managed = self.addresses.iter().find(|managed| managed.key == *key)?;
        let standing = self.standing(managed);
        let may_answer = standing.may_answer(|| NOW);
        Some(Entry { place: managed.slot, word: standing.word, may_answer })
    }

    fn is_own(&self, mac: MacAddr) -> bool {
        self.own_macs.contains(&mac)
    }

    fn is_allowed(&self, key: &AllowedKey) -> bool {
        self.allowed.contains(key)
    }

    fn daemon_lives(&self) -> bool {
        self.control.heard(NOW)
    }
}

/// A cell of the table behind one kind of tags: a frame, a world, and what has to come of the two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Kind of the frame.
    pub kind: Kind,
    /// State of the address.
    pub column: Column,
    /// Tags.
    pub tags: Tags,
    /// Why it is so.
    pub why: &'static str,
    /// The frame.
    pub frame: Vec<u8>,
    /// What the maps hold.
    pub world: World,
    /// What the program returns.
    pub action: Action,
    /// The frame afterwards.
    pub out: Vec<u8>,
    /// The counter of its outcome; ARP alone has one.
    pub counter: Option<Counter>,
    /// What it tells.
    pub sees: Sees,
    /// The event of it, if it is the first frame ever seen of the address; its time is 0 here.
    pub event: Option<Event>,
    /// Whether the claim has used up a defence.
    pub defended: bool,
    /// Whether the program counts conflicts: without atomic operations that have a result it does not.
    exchanges: bool,
    /// Who is remembered as asking, and in which slot; its times are 0 here.
    pub asker: Option<(u32, Asker)>,
}

impl Row {
    /// Name for messages.
    pub fn name(&self) -> String {
        format!("{:?}, {}, tags {:?}: {}", self.kind, self.column.title(), self.tags, self.why)
    }

    /// Checks what the claim has changed in the slots and moves that `read` gives, beside the counts: what it was met with, at
    /// `now_ns` or, with a clock that moves, within a second before it. The times of the world are those of [`NOW`]
    /// shifted by as much.
    ///
    /// # Panics
    /// If it is not what the table says.
    pub fn check_reaction(&self, mut read: impl FnMut(u32) -> (Slot, Option<Moves>), now_ns: u64) {
        let name = self.name();
        let recent = |at: u64| now_ns.abs_diff(at) < SECOND_NS;
        for Managed { slot, value: before, moves: moves_before, .. } in &self.world.addresses {
            let (after, moves) = read(*slot);
            let ours = *slot == SLOT;
            let word = StateWord::from_bits(before.word);
            let fallen = if ours && self.sees == Sees::Fall { word.mark() } else { before.fallen };
            assert_eq!(after.fallen, fallen, "{name}");
            let defended = ours && self.defended;
            assert_eq!(recent(after.defended_ns), defended, "{name}");
            let count = |moves: &Moves| moves.iter().filter(|at| **at != 0).count();
            let expected = moves_before.as_ref().map(|before| count(before) + usize::from(defended));
            assert_eq!(moves.as_ref().map(count), expected, "a place was free: {name}");
            assert!(moves.is_none_or(|moves| moves[0] == after.defended_ns), "{name}");
            let challenged = ours
                && self.exchanges
                && !self.column.observed
                && matches!(self.sees, Sees::Conflict | Sees::Fall)
                && self.column.policy == Policy::Once;
            assert_eq!(recent(after.conflict), challenged, "{name}");
            if challenged {
                assert_eq!(after.conflict & 0xff, u64::from(GENERATION), "{name}");
            }
        }
    }

    /// The counter of what it tells.
    pub const fn sighting_counter(&self) -> Option<Counter> {
        match self.sees {
            Sees::Nothing => None,
            Sees::Conflict | Sees::Fall | Sees::Claim => Some(Counter::Claims),
            Sees::Allowed => Some(Counter::Allowed),
            Sees::Probe => Some(Counter::Probes),
            Sees::Echo | Sees::EchoOfOthers => Some(Counter::Echoes),
            Sees::Sibling => Some(Counter::Siblings),
        }
    }
}

/// All rows: each cell of the table behind each kind of tags; those of columns that have a name behind some, since they
/// are about the address, which tags only lead to.
///
/// # Panics
/// If a kind has not exactly one cell for each column.
pub fn rows() -> Vec<Row> {
    rows_of(true)
}

/// The rows for the programs without atomic operations that have a result: they neither defend nor count conflicts, and
/// leave that to the daemon as where they are not armed.
///
/// # Panics
/// As [`rows`].
pub fn rows_without_exchanges() -> Vec<Row> {
    rows_of(false)
}

fn rows_of(exchanges: bool) -> Vec<Row> {
    let unarmed = COLUMNS.iter().position(|column| column.name == "hold, not armed").expect("a column");
    let mut rows = Vec::with_capacity(TABLE.len() * (PLAIN * Tags::ALL.len() + NAMED * Tags::SOME.len()));
    for (kind, why, plain, named) in TABLE {
        let cells: Vec<&str> = plain.split(' ').chain(named.split(' ')).collect();
        assert_eq!(cells.len(), COLUMNS.len(), "{kind:?} has a cell for each column");
        for (n, (cell, column)) in cells.iter().zip(COLUMNS).enumerate() {
            let all = if n < PLAIN { &Tags::ALL[..] } else { &Tags::SOME };
            for &tags in all {
                let (_, frame_vlan, address_vlan) = tags.parts();
                // In another VLAN the address is not managed, whatever its state in its own.
                let cell = if frame_vlan == address_vlan { cell } else { cells[0] };
                let reacts = cell.starts_with('F') || cell.ends_with('X');
                let cell = match column.policy {
                    Policy::Once | Policy::Hold if reacts && !exchanges => cells[unarmed],
                    Policy::Leave | Policy::Yield | Policy::Once | Policy::Hold => cell,
                };
                rows.push(Row { exchanges, ..row(kind, why, column, tags, cell) });
            }
        }
    }
    rows
}

fn row(kind: Kind, why: &'static str, column: Column, tags: Tags, cell: &str) -> Row {
    let recipe = recipe(kind);
    let (wire_tags, vlan, address_vlan) = tags.parts();
    let frame = recipe.bytes(wire_tags);
    let [first, second] = *cell.as_bytes() else { panic!("{kind:?}: a cell is two letters, not {cell:?}") };
    let (counter, action) = outcome(first);
    let defended = first == b'F';
    let action = if column.observed { Action::Pass } else { action };
    let sees = sees(second);
    let out = match action {
        Action::Answer if defended => recipe.defence().bytes(wire_tags),
        Action::Answer => recipe.answer().bytes(wire_tags),
        Action::Pass | Action::Drop => frame.clone(),
    };
    let event = match sees {
        Sees::Nothing | Sees::EchoOfOthers => None,
        Sees::Conflict if defended => Some((EventKind::Claim, Event::OWNER_CHANGED | Event::DEFENDED)),
        Sees::Conflict | Sees::Claim => Some((EventKind::Claim, Event::OWNER_CHANGED)),
        Sees::Fall => Some((EventKind::Claim, Event::OWNER_CHANGED | Event::FELL)),
        Sees::Allowed => Some((EventKind::Claim, Event::OWNER_CHANGED | Event::ALLOWED)),
        Sees::Probe => Some((EventKind::Probe, 0)),
        Sees::Echo => Some((EventKind::Echo, 0)),
        Sees::Sibling => Some((EventKind::Echo, Event::SIBLING)),
    }
    .map(|(event_kind, flags)| Event {
        kernel_time_ns: 0,
        count: 1,
        slot: SLOT,
        interface: INTERFACE,
        vlan,
        address: Ipv4::new(ADDRESS),
        claimant: recipe.sender_mac,
        ethernet_source: recipe.source,
        kind: event_kind as u8,
        form: form(kind) as u8,
        operation: recipe.operation,
        flags,
        generation: GENERATION,
        state: column.state.map_or(0, |state| state as u8),
        pad: 0,
        pad_end: 0,
    });
    let flags = if matches!(kind, Kind::Member | Kind::MemberOfTheDead) {
        Port::ACCEPT | Port::MEMBER
    } else if is_on_inactive_port(kind) {
        0
    } else {
        Port::ACCEPT
    };
    let port = (kind != Kind::UnknownPort).then_some(flags);
    let heard = match kind == Kind::Member {
        true => Some(1),
        false => column.heard.filter(|_| kind != Kind::MemberOfTheDead),
    };
    let world = world(port, Column { heard, ..column }, address_vlan);
    let asker =
        asks(kind).filter(|_| column.state.is_some() && vlan == address_vlan && !defended).map(|asks| {
            let follows = asks.by_unicast && first == b'A';
            let followed = if follows { 256 + u16::from(GENERATION) } else { 0 };
            let (mac, address) = (MacAddr::new(recipe.sender_mac), Ipv4::new(recipe.sender_ip));
            let asker = Asker::new(mac, followed, address, Coarse::NEVER);
            (if asks.second { SLOT + 1 } else { SLOT }, asker)
        });
    Row {
        kind,
        column,
        tags,
        why,
        frame,
        world,
        action,
        out,
        counter,
        sees,
        event,
        defended,
        exchanges: true,
        asker,
    }
}

/// What the maps hold for an address in this column and VLAN, and a port with these flags, if it is named.
fn world(port: Option<u32>, column: Column, vlan: Vlan) -> World {
    let port = port.map(|flags| Port {
        mac: MacAddr::new(PORT_MAC),
        interface: INTERFACE,
        flags: flags | if column.observed { Port::OBSERVE } else { 0 },
        moves: if column.budget { BUDGET.0 } else { 0 },
        moves_window_s: if column.budget { BUDGET.1 } else { 0 },
    });
    let managed = |address, slot, state, column: &Column| {
        let key = AddressKey { interface: INTERFACE, vlan, address: Ipv4::new(address) };
        let AddressKey { interface, vlan, address } = key;
        let flags = column.policy.flags() | if column.local { StateWord::LOCAL } else { 0 };
        let word = StateWord::new(MacAddr::new(OUR_MAC), state, flags, GENERATION).bits();
        let group = if column.group.is_some() { GROUP } else { 0 };
        let said = Slot {
            word,
            lease_until_ns: column.lease_until_ns,
            interface,
            vlan,
            address,
            group,
            ..Slot::VACANT
        };
        Managed { key, slot, value: column.remembered(said), moves: column.moves() }
    };
    World {
        addresses: column.state.map_or(Vec::new(), |state| {
            vec![
                managed(ADDRESS, SLOT, state, &column),
                managed(SECOND, SLOT + 1, State::Online, &online(true)),
            ]
        }),
        group: column.group.unwrap_or_default(),
        control: Control {
            layout: 0,
            heartbeat_ns: column.heard.map_or(0, |seconds| NOW - seconds * SECOND_NS),
            slept_ns: if column.slept { SLEPT_NS - SECOND_NS } else { SLEPT_NS },
        },
        port,
        own_macs: [OUR_MAC, PORT_MAC, SIBLING_MAC].map(MacAddr::new).to_vec(),
        // The stranger may claim, but neither here nor behind these tags.
        allowed: [
            (ALLOWED_MAC, INTERFACE, vlan),
            (STRANGER_MAC, INTERFACE + 1, vlan),
            (STRANGER_MAC, INTERFACE, Vlan { outer: vlan.outer + 1, ..vlan }),
        ]
        .map(|(mac, interface, vlan)| AllowedKey { mac: MacAddr::new(mac), interface, vlan })
        .to_vec(),
    }
}

/// The kinds that come in on a port that is not acted on.
const fn is_on_inactive_port(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::InactivePort
            | Kind::InactivePortToOurMac
            | Kind::InactivePortProbe
            | Kind::InactivePortFlooded
            | Kind::InactivePortClaim
            | Kind::InactivePortReply
            | Kind::InactivePortByZeroMac
    )
}

/// How a frame asks.
struct Asks {
    /// For [`SECOND`], else for [`ADDRESS`].
    second: bool,
    /// Of this host alone.
    by_unicast: bool,
}

/// The kinds that ask for an address in the name of another host and its address.
fn asks(kind: Kind) -> Option<Asks> {
    let (second, by_unicast) = match kind {
        Kind::RequestToOurMac | Kind::RequestToPortMac => (false, true),
        Kind::Request
        | Kind::Member
        | Kind::RequestUnpadded
        | Kind::RequestFlooded
        | Kind::RequestToGroup
        | Kind::RequestIeee802
        | Kind::RequestProxied
        | Kind::ReservedSender => (false, false),
        Kind::ClaimAskingSecond => (true, false),
        Kind::Probe
        | Kind::Poll
        | Kind::PollFlooded
        | Kind::ProbeProxied
        | Kind::ProbeEchoed
        | Kind::ProbeBySibling
        | Kind::ClaimByRequestForm
        | Kind::ClaimByReplyForm
        | Kind::ClaimByPlainReply
        | Kind::ClaimAskingElsewhere
        | Kind::ClaimProxied
        | Kind::AllowedClaim
        | Kind::AllowedReply
        | Kind::AllowedProbe
        | Kind::EchoAsking
        | Kind::EchoOfPortAsking
        | Kind::EchoAnnouncing
        | Kind::EchoOfPortAnnouncing
        | Kind::EchoReplying
        | Kind::SiblingAsking
        | Kind::SiblingAnnouncing
        | Kind::SiblingReplying
        | Kind::ZeroSenderMac
        | Kind::GroupSenderMac
        | Kind::ZeroSource
        | Kind::GroupSource
        | Kind::MulticastSender
        | Kind::LoopbackSender
        | Kind::BroadcastSender
        | Kind::ProbeByZeroMac
        | Kind::AnnouncementByZeroMac
        | Kind::ReplyByZeroMac
        | Kind::ReplyOfNobody
        | Kind::ReplyOfOthers
        | Kind::AnnouncementOfNobody
        | Kind::RequestForOthers
        | Kind::Truncated
        | Kind::WrongHardware
        | Kind::WrongProtocol
        | Kind::WrongHardwareLength
        | Kind::WrongProtocolLength
        | Kind::WrongOperation
        | Kind::InactivePort
        | Kind::InactivePortToOurMac
        | Kind::InactivePortProbe
        | Kind::InactivePortFlooded
        | Kind::InactivePortClaim
        | Kind::InactivePortReply
        | Kind::InactivePortByZeroMac
        | Kind::MemberOfTheDead
        | Kind::UnknownPort
        | Kind::NotArp
        | Kind::BehindThreeTags => return None,
    };
    Some(Asks { second, by_unicast })
}

/// The form that events name for the kinds that have events.
fn form(kind: Kind) -> Form {
    match kind {
        Kind::Probe | Kind::ProbeEchoed | Kind::ProbeBySibling => Form::Probe,
        Kind::ClaimByPlainReply | Kind::AllowedReply | Kind::EchoReplying | Kind::SiblingReplying => {
            Form::Reply
        }
        Kind::ClaimAskingElsewhere | Kind::ClaimAskingSecond | Kind::EchoAsking => Form::Request,
        Kind::ClaimByRequestForm
        | Kind::ClaimByReplyForm
        | Kind::ClaimProxied
        | Kind::AllowedClaim
        | Kind::EchoAnnouncing
        | Kind::EchoOfPortAnnouncing
        | Kind::SiblingAnnouncing => Form::Announcement,
        Kind::Request
        | Kind::Member
        | Kind::RequestUnpadded
        | Kind::RequestToOurMac
        | Kind::RequestToPortMac
        | Kind::RequestFlooded
        | Kind::RequestToGroup
        | Kind::RequestIeee802
        | Kind::RequestProxied
        | Kind::Poll
        | Kind::PollFlooded
        | Kind::ProbeProxied
        | Kind::AllowedProbe
        | Kind::EchoOfPortAsking
        | Kind::SiblingAsking
        | Kind::ZeroSenderMac
        | Kind::GroupSenderMac
        | Kind::ZeroSource
        | Kind::GroupSource
        | Kind::MulticastSender
        | Kind::LoopbackSender
        | Kind::BroadcastSender
        | Kind::ReservedSender
        | Kind::ProbeByZeroMac
        | Kind::AnnouncementByZeroMac
        | Kind::ReplyByZeroMac
        | Kind::ReplyOfNobody
        | Kind::ReplyOfOthers
        | Kind::AnnouncementOfNobody
        | Kind::RequestForOthers
        | Kind::Truncated
        | Kind::WrongHardware
        | Kind::WrongProtocol
        | Kind::WrongHardwareLength
        | Kind::WrongProtocolLength
        | Kind::WrongOperation
        | Kind::InactivePort
        | Kind::InactivePortToOurMac
        | Kind::InactivePortProbe
        | Kind::InactivePortFlooded
        | Kind::InactivePortClaim
        | Kind::InactivePortReply
        | Kind::InactivePortByZeroMac
        | Kind::MemberOfTheDead
        | Kind::UnknownPort
        | Kind::NotArp
        | Kind::BehindThreeTags => panic!("{kind:?} has no event"),
    }
}

/// The fields of a frame.
#[derive(Clone, Copy)]
struct Recipe {
    destination: [u8; 6],
    source: [u8; 6],
    /// Tags beside those of the row.
    more_tags: &'static [[u8; 4]],
    ethertype: [u8; 2],
    hardware: u8,
    protocol: [u8; 2],
    hardware_len: u8,
    protocol_len: u8,
    operation: u8,
    sender_mac: [u8; 6],
    sender_ip: [u8; 4],
    target_mac: [u8; 6],
    target_ip: [u8; 4],
    /// Length without tags.
    len: usize,
}

impl Recipe {
    fn bytes(&self, tags: &[[u8; 4]]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(72);
        frame.extend(self.destination);
        frame.extend(self.source);
        for tag in tags.iter().chain(self.more_tags) {
            frame.extend(tag);
        }
        let before = frame.len() - 12;
        frame.extend(self.ethertype);
        frame.extend([0, self.hardware]);
        frame.extend(self.protocol);
        frame.extend([self.hardware_len, self.protocol_len, 0, self.operation]);
        frame.extend(self.sender_mac);
        frame.extend(self.sender_ip);
        frame.extend(self.target_mac);
        frame.extend(self.target_ip);
        frame.resize(self.len + before, PADDING);
        frame
    }

    /// The answer to it (RFC 826): [`OUR_MAC`] has the target address.
    fn answer(&self) -> Self {
        Self {
            destination: self.source,
            source: OUR_MAC,
            operation: 2,
            sender_mac: OUR_MAC,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
            ..*self
        }
    }

    /// The announcement that defends [`ADDRESS`] against it, in its own length: broadcast and in request form.
    fn defence(&self) -> Self {
        Self {
            destination: BROADCAST,
            source: OUR_MAC,
            hardware: 1,
            operation: 1,
            sender_mac: OUR_MAC,
            target_mac: [0; 6],
            target_ip: ADDRESS,
            ..*self
        }
    }
}

/// A broadcast request of the stranger for [`ADDRESS`].
const REQUEST: Recipe = Recipe {
    destination: BROADCAST,
    source: STRANGER_MAC,
    more_tags: &[],
    ethertype: [0x08, 0x06],
    hardware: 1,
    protocol: [0x08, 0x00],
    hardware_len: 6,
    protocol_len: 4,
    operation: 1,
    sender_mac: STRANGER_MAC,
    sender_ip: ASKER,
    target_mac: [0; 6],
    target_ip: ADDRESS,
    len: 60,
};
const PROBE: Recipe = Recipe { sender_ip: [0; 4], ..REQUEST };
const ANNOUNCEMENT: Recipe = Recipe { sender_ip: ADDRESS, ..REQUEST };
/// An answer of the stranger to us: it has [`ADDRESS`].
const REPLY: Recipe = Recipe {
    destination: OUR_MAC,
    operation: 2,
    sender_ip: ADDRESS,
    target_mac: OUR_MAC,
    target_ip: ASKER,
    ..REQUEST
};
const ZERO: [u8; 6] = [0; 6];
const GROUP_MAC: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 1];

fn recipe(kind: Kind) -> Recipe {
    match kind {
        Kind::Request | Kind::InactivePort | Kind::Member | Kind::MemberOfTheDead | Kind::UnknownPort => {
            REQUEST
        }
        Kind::InactivePortToOurMac => Recipe { destination: OUR_MAC, ..REQUEST },
        Kind::InactivePortProbe => PROBE,
        Kind::InactivePortFlooded => Recipe { destination: OTHER_MAC, ..REQUEST },
        Kind::InactivePortClaim => ANNOUNCEMENT,
        Kind::InactivePortReply => REPLY,
        Kind::InactivePortByZeroMac => Recipe { sender_mac: ZERO, ..REQUEST },
        Kind::RequestUnpadded => Recipe { len: 42, ..REQUEST },
        Kind::RequestToOurMac => Recipe { destination: OUR_MAC, ..REQUEST },
        Kind::RequestToPortMac => Recipe { destination: PORT_MAC, ..REQUEST },
        Kind::RequestFlooded => Recipe { destination: OTHER_MAC, ..REQUEST },
        Kind::RequestToGroup => Recipe { destination: GROUP_MAC, ..REQUEST },
        Kind::RequestIeee802 => Recipe { hardware: 6, ..REQUEST },
        Kind::RequestProxied => Recipe { source: PROXY_MAC, ..REQUEST },
        Kind::Probe => PROBE,
        Kind::Poll => Recipe { destination: OUR_MAC, ..PROBE },
        Kind::PollFlooded => Recipe { destination: OTHER_MAC, ..PROBE },
        Kind::ProbeProxied => Recipe { source: PROXY_MAC, ..PROBE },
        Kind::ProbeEchoed => Recipe { source: PORT_MAC, sender_mac: PORT_MAC, ..PROBE },
        Kind::ProbeBySibling => Recipe { source: SIBLING_MAC, sender_mac: SIBLING_MAC, ..PROBE },
        Kind::ClaimByRequestForm => ANNOUNCEMENT,
        Kind::ClaimByReplyForm => Recipe { operation: 2, target_mac: STRANGER_MAC, ..ANNOUNCEMENT },
        Kind::ClaimByPlainReply => REPLY,
        Kind::ClaimAskingElsewhere => Recipe { target_ip: GATEWAY, ..ANNOUNCEMENT },
        Kind::ClaimAskingSecond => Recipe { target_ip: SECOND, ..ANNOUNCEMENT },
        Kind::ClaimProxied => Recipe { source: PROXY_MAC, ..ANNOUNCEMENT },
        Kind::AllowedClaim => Recipe { source: ALLOWED_MAC, sender_mac: ALLOWED_MAC, ..ANNOUNCEMENT },
        Kind::AllowedReply => Recipe { source: ALLOWED_MAC, sender_mac: ALLOWED_MAC, ..REPLY },
        Kind::AllowedProbe => Recipe { source: ALLOWED_MAC, sender_mac: ALLOWED_MAC, ..PROBE },
        Kind::EchoAsking => {
            Recipe { source: OUR_MAC, sender_mac: OUR_MAC, target_ip: GATEWAY, ..ANNOUNCEMENT }
        }
        Kind::EchoOfPortAsking => Recipe { source: PORT_MAC, sender_mac: PORT_MAC, ..REQUEST },
        Kind::EchoAnnouncing => Recipe { source: OUR_MAC, sender_mac: OUR_MAC, ..ANNOUNCEMENT },
        Kind::EchoOfPortAnnouncing => Recipe { source: PORT_MAC, sender_mac: PORT_MAC, ..ANNOUNCEMENT },
        Kind::EchoReplying => Recipe { source: OUR_MAC, sender_mac: OUR_MAC, ..REPLY },
        Kind::SiblingAsking => Recipe { source: SIBLING_MAC, sender_mac: SIBLING_MAC, ..REQUEST },
        Kind::SiblingAnnouncing => Recipe { source: SIBLING_MAC, sender_mac: SIBLING_MAC, ..ANNOUNCEMENT },
        Kind::SiblingReplying => Recipe { source: SIBLING_MAC, sender_mac: SIBLING_MAC, ..REPLY },
        Kind::ZeroSenderMac => Recipe { sender_mac: ZERO, ..REQUEST },
        Kind::GroupSenderMac => Recipe { sender_mac: GROUP_MAC, ..REQUEST },
        Kind::ZeroSource => Recipe { source: ZERO, ..REQUEST },
        Kind::GroupSource => Recipe { source: GROUP_MAC, ..REQUEST },
        Kind::MulticastSender => Recipe { sender_ip: [239, 1, 2, 3], ..REQUEST },
        Kind::LoopbackSender => Recipe { sender_ip: [127, 0, 0, 1], ..REQUEST },
        Kind::BroadcastSender => Recipe { sender_ip: [255; 4], ..REQUEST },
        Kind::ReservedSender => Recipe { sender_ip: [240, 0, 0, 1], ..REQUEST },
        Kind::ProbeByZeroMac => Recipe { sender_mac: ZERO, ..PROBE },
        Kind::AnnouncementByZeroMac => Recipe { sender_mac: ZERO, ..ANNOUNCEMENT },
        Kind::ReplyByZeroMac => Recipe { sender_mac: ZERO, ..REPLY },
        Kind::ReplyOfNobody => Recipe { sender_ip: [0; 4], target_ip: ADDRESS, ..REPLY },
        Kind::ReplyOfOthers => Recipe { sender_ip: GATEWAY, target_ip: ADDRESS, ..REPLY },
        Kind::AnnouncementOfNobody => Recipe { sender_ip: [0; 4], target_ip: [0; 4], ..REQUEST },
        Kind::RequestForOthers => Recipe { target_ip: GATEWAY, ..REQUEST },
        Kind::Truncated => Recipe { len: 41, ..REQUEST },
        Kind::WrongHardware => Recipe { hardware: 32, ..REQUEST },
        Kind::WrongProtocol => Recipe { protocol: [0x86, 0xdd], ..REQUEST },
        Kind::WrongHardwareLength => Recipe { hardware_len: 8, ..REQUEST },
        Kind::WrongProtocolLength => Recipe { protocol_len: 16, ..REQUEST },
        Kind::WrongOperation => Recipe { operation: 3, ..REQUEST },
        Kind::NotArp => Recipe { ethertype: [0x08, 0x00], ..REQUEST },
        Kind::BehindThreeTags => Recipe { more_tags: &[[0x81, 0x00, 0x00, 0x64]; 3], ..REQUEST },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::{
        abi::ASKERS,
        askers,
        defence::{self, Clocks, Reaction},
        verdict::{Asking, Outcome, Sighting, Witness, verdict},
        wire::{
            arp::{self, Outgoing, Parsed, parse},
            view_mut,
        },
    };

    #[test]
    fn every_kind_has_one_row_and_every_cell_is_there_once() {
        let mut kinds: Vec<Kind> = TABLE.iter().map(|(kind, ..)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), TABLE.len(), "no kind has two rows");
        // The last kind's number, and so the number of kinds: `Kind` has no values of its own.
        assert_eq!(kinds.len(), Kind::BehindThreeTags as usize + 1, "each kind has a row");
        for state in State::ALL {
            for local in [false, true] {
                let there = |c: &Column| c.state == Some(state) && c.local == local && c.lease_until_ns == 0;
                let plain = &COLUMNS[..PLAIN];
                assert_eq!(plain.iter().filter(|c| there(c)).count(), 1, "{state:?} has its two columns");
                let past =
                    |c: &Column| c.state == Some(state) && c.local == local && c.lease_until_ns == PAST;
                assert_eq!(plain.iter().filter(|c| past(c)).count(), usize::from(state.may_answer()));
            }
        }
        let named = COLUMNS.iter().filter(|column| !column.name.is_empty());
        assert_eq!(named.count(), NAMED);
        assert_eq!(rows().len(), TABLE.len() * (PLAIN * Tags::ALL.len() + NAMED * Tags::SOME.len()));
    }

    #[test]
    fn every_outcome_and_every_sighting_is_in_the_table() {
        let rows = rows();
        for counter in Counter::ALL {
            let there =
                rows.iter().any(|r| r.counter == Some(counter) || r.sighting_counter() == Some(counter));
            assert_eq!(there, !matches!(counter, Counter::EventsLost | Counter::Guarded), "{counter:?}");
        }
        for sees in [
            Sees::Nothing,
            Sees::Conflict,
            Sees::Fall,
            Sees::Claim,
            Sees::Allowed,
            Sees::Probe,
            Sees::Echo,
            Sees::EchoOfOthers,
            Sees::Sibling,
        ] {
            assert!(rows.iter().any(|r| r.sees == sees), "{sees:?}");
        }
    }

    /// What the program is around the verdict, with plain values for maps.
    struct Host<'a> {
        row: &'a Row,
        world: RefCell<World>,
        frame: arp::Frame,
        sees: Cell<Sees>,
        asker: Cell<Option<(u32, Asker)>>,
    }

    impl Host<'_> {
        fn meet(&self, claimed: &Entry) -> Reaction {
            let mut world = self.world.borrow_mut();
            let (port, control) = (world.port.expect("a frame came in on it"), world.control);
            let managed = *world.in_slot(claimed.place);
            let clocks = Clocks { boot_ns: NOW, monotonic_ns: NOW - SLEPT_NS };
            let armed = defence::armed(&world.standing(&managed), &control, clocks);
            let Managed { value: there, moves, .. } = world.in_slot(claimed.place);
            let earlier = || std::mem::replace(&mut there.conflict, defence::conflict(claimed.word, NOW));
            let spent = || {
                defence::spent(port.moves, port.moves_window_s, |n| moves.map_or(0, |moves| moves[n]), NOW)
            };
            let reaction =
                defence::react(claimed.word, armed, earlier, managed.value.defended_ns, spent, NOW);
            match reaction {
                Reaction::Nothing => {}
                Reaction::Defend => {
                    there.defended_ns = NOW;
                    if let Some(moves) = moves {
                        moves.rotate_right(1);
                        moves[0] = NOW;
                    }
                }
                Reaction::Fall => there.fallen = claimed.word.mark(),
            }
            reaction
        }
    }

    impl Witness<u32> for Host<'_> {
        fn saw(&self, sighting: Sighting) -> Reaction {
            let name = self.row.name();
            assert_eq!(self.sees.get(), Sees::Nothing, "told twice: {name}");
            let (sees, entry, reaction) = match sighting {
                Sighting::Claim(claimed) => {
                    let observes = self.row.column.observed;
                    let reaction =
                        if claimed.may_answer && !observes { self.meet(&claimed) } else { Reaction::Nothing };
                    let sees = match reaction {
                        Reaction::Fall => Sees::Fall,
                        Reaction::Nothing | Reaction::Defend if claimed.contested() => Sees::Conflict,
                        Reaction::Nothing | Reaction::Defend => Sees::Claim,
                    };
                    (sees, Some(claimed), reaction)
                }
                Sighting::Allowed(entry) => (Sees::Allowed, Some(entry), Reaction::Nothing),
                Sighting::Probe(entry) => (Sees::Probe, Some(entry), Reaction::Nothing),
                Sighting::Echo(None) => (Sees::EchoOfOthers, None, Reaction::Nothing),
                Sighting::Echo(entry) => (Sees::Echo, entry, Reaction::Nothing),
                Sighting::Sibling(entry) => (Sees::Sibling, entry, Reaction::Nothing),
            };
            if let Some(entry) = entry {
                assert_eq!((self.frame.concerns(), entry.place), (Ipv4::new(ADDRESS), SLOT), "{name}");
            }
            self.sees.set(sees);
            reaction
        }

        fn asks(&self, asking: Asking) {
            let (mac, address) = (self.frame.sender_mac, self.frame.sender_ip);
            let nobody = [(MacAddr::ZERO, Ipv4::UNSPECIFIED); ASKERS];
            assert_eq!(askers::known(|place| nobody[place], mac, address), None);
            let place = askers::place_for_newcomer(|_| Coarse::NEVER, Coarse::of(NOW));
            if asking.asks && place.is_some() && !self.world.borrow().is_own(mac) {
                let asker = Asker::new(mac, asking.followed, address, Coarse::NEVER);
                self.asker.set(Some((asking.place, asker)));
            }
        }
    }

    #[test]
    fn the_verdict_on_each_golden_frame_is_the_one_in_the_table() {
        for row in rows() {
            let name = row.name();
            let mut out = row.frame.clone();
            let mut told = (Sees::Nothing, None);
            let mut world = row.world.clone();
            let outcome = match parse(row.frame.as_slice()) {
                Parsed::NotArp => None,
                Parsed::Truncated => Some(Outcome::Truncated),
                Parsed::BadHeader => Some(Outcome::BadHeader),
                Parsed::Arp(frame) => Some(row.world.port.map_or(Outcome::InactivePort, |port| {
                    let host = Host {
                        row: &row,
                        world: RefCell::new(row.world.clone()),
                        frame,
                        sees: Cell::new(Sees::Nothing),
                        asker: Cell::new(None),
                    };
                    let outcome = verdict(&frame, &port, &row.world, &host);
                    let (ethernet, packet) = out.split_at_mut(frame.arp_at);
                    let ethernet = view_mut(ethernet, 0).expect("parsed");
                    let packet = view_mut(packet, 0).expect("parsed");
                    if let Outcome::Answered { mac, .. } = outcome
                        && !row.column.observed
                    {
                        arp::reply(ethernet, packet, &frame, mac);
                    } else if let Outcome::Defended { mac } = outcome {
                        arp::announce(ethernet, packet, mac, frame.sender_ip);
                    }
                    told = (host.sees.get(), host.asker.get());
                    world = host.world.into_inner();
                    outcome
                })),
            };
            let action = match &outcome {
                Some(Outcome::Answered { place, mac: _ }) => {
                    let second = row.kind == Kind::ClaimAskingSecond;
                    assert_eq!(*place, SLOT + u32::from(second), "{name}");
                    Action::Answer
                }
                Some(Outcome::Defended { .. }) => Action::Answer,
                Some(Outcome::Shielded { place }) => {
                    assert_eq!(*place, SLOT, "{name}");
                    Action::Drop
                }
                Some(Outcome::Withheld) => Action::Drop,
                None
                | Some(
                    Outcome::Truncated
                    | Outcome::BadHeader
                    | Outcome::BadSender
                    | Outcome::Gratuitous
                    | Outcome::Reply
                    | Outcome::OtherDestination
                    | Outcome::NotAnswering
                    | Outcome::Unmanaged
                    | Outcome::InactivePort,
                ) => Action::Pass,
            };
            let action = if row.column.observed { Action::Pass } else { action };
            assert_eq!(outcome.map(|outcome| outcome.counter()), row.counter, "{name}");
            assert_eq!(action, row.action, "{name}");
            assert_eq!(out, row.out, "{name}");
            assert_eq!(told, (row.sees, row.asker), "{name}");
            row.check_reaction(
                |slot| {
                    let Managed { value, moves, .. } = *world.in_slot(slot);
                    (value, moves)
                },
                NOW,
            );
        }
    }

    /// A probe, as bytes.
    const PROBE_BYTES: [u8; 60] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x77, 0x08,
        0x06, // broadcast, source, ARP
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01, // Ethernet, IPv4, 6, 4, request
        0x02, 0, 0, 0, 0, 0x77, 0, 0, 0, 0, // sender: its MAC, 0.0.0.0
        0, 0, 0, 0, 0, 0, 192, 0, 2, 10, // target: no MAC, the address
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    /// An announcement in request form behind a service tag 100 and a customer tag 200, as bytes.
    const ANNOUNCEMENT_BYTES: [u8; 68] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 1, // broadcast, source
        0x88, 0xa8, 0x00, 0x64, 0x81, 0x00, 0x00, 0xc8, 0x08, 0x06, // tags, ARP
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01, // Ethernet, IPv4, 6, 4, request
        0x02, 0, 0, 0, 0, 1, 192, 0, 2, 10, // sender: its MAC, the address
        0, 0, 0, 0, 0, 0, 192, 0, 2, 10, // target: no MAC, the address
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    /// An announcement in reply form, as bytes.
    const REPLY_BYTES: [u8; 60] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 1, 0x08, 0x06, // broadcast, source, ARP
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x02, // Ethernet, IPv4, 6, 4, reply
        0x02, 0, 0, 0, 0, 1, 192, 0, 2, 10, // sender: its MAC, the address
        0x02, 0, 0, 0, 0, 1, 192, 0, 2, 10, // target: the same
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn emitted_frames_are_these_bytes_and_parse_gives_their_fields_back() {
        let vlan = Vlan { outer: 100 | SERVICE_TAG, inner: 200 };
        let (us, stranger) = (MacAddr::new(OUR_MAC), MacAddr::new(STRANGER_MAC));
        let address = Ipv4::new(ADDRESS);
        for (outgoing, bytes, arp_at, form) in [
            (Outgoing::probe(stranger, Vlan::UNTAGGED, address), &PROBE_BYTES[..], 14, Form::Probe),
            (Outgoing::announcement(us, us, vlan, address), &ANNOUNCEMENT_BYTES[..], 22, Form::Announcement),
            (
                Outgoing::announcement_reply(us, Vlan::UNTAGGED, address),
                &REPLY_BYTES[..],
                14,
                Form::Announcement,
            ),
        ] {
            let mut buffer = [0xee; Outgoing::MAX_LEN];
            let len = outgoing.emit(&mut buffer);
            assert_eq!(&buffer[..len], bytes, "{outgoing:?}");
            let Parsed::Arp(frame) = parse(bytes) else { panic!("{outgoing:?} is ARP") };
            let fields = (frame.destination, frame.source, frame.vlan, frame.operation, frame.sender_mac);
            assert_eq!(
                fields,
                (
                    outgoing.destination,
                    outgoing.source,
                    outgoing.vlan,
                    outgoing.operation,
                    outgoing.sender_mac
                )
            );
            assert_eq!((frame.sender_ip, frame.target_ip), (outgoing.sender_ip, outgoing.target_ip));
            assert_eq!((frame.arp_at, frame.form()), (arp_at, form));
        }
    }

    #[test]
    fn a_reply_is_these_bytes() {
        let row = rows()
            .into_iter()
            .find(|row| {
                (row.kind, row.tags, row.column.state) == (Kind::Probe, Tags::Customer, Some(State::Online))
            })
            .expect("the table is complete");
        let padding = [PADDING; 18];
        let expected: [&[u8]; 8] = [
            &[0x02, 0, 0, 0, 0, 0x77, 0x02, 0, 0, 0, 0, 0x01], // to the asker from us
            &[0x81, 0x00, 0x60, 0x64],                         // the same tag, priority included
            &[0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 0x06, 0x04], // ARP, Ethernet, IPv4, 6, 4
            &[0x00, 0x02],                                     // reply
            &[0x02, 0, 0, 0, 0, 0x01, 192, 0, 2, 10],          // sender: us, the address
            &[0x02, 0, 0, 0, 0, 0x77, 0, 0, 0, 0],             // target: the asker, which has no address yet
            &padding,
            &[],
        ];
        assert_eq!(row.out, expected.concat());
    }
}
