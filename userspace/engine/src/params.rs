//! Every number of the protocol, with its source.

use core::time::Duration;

use crate::input::{Claim, OnlineSpec, Pace, Profile};

/// MAX_CONFLICTS (RFC 5227 §1.1): after so many refusals retries become rare.
pub const MAX_CONFLICTS: u32 = 10;
/// RATE_LIMIT_INTERVAL (RFC 5227 §1.1): the least time between retries after that.
pub const RATE_LIMIT_INTERVAL: Duration = Duration::from_secs(60);
/// DEFEND_INTERVAL (RFC 5227 §1.1): the least time between two defences of an address.
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// `once` takes a conflict for the second one for so long beyond DEFEND_INTERVAL. A rival that holds the address by
/// RFC 5227 §2.4 (c) defends it again exactly when its own interval is over, which is the moment when ours is; which
/// of the two ends first is chance, and without a margin both would go on for ever. Giving up is always
/// allowed (§2.4 (a)). 1 s is far beyond the lateness of a timer and of a report.
pub const ONCE_MARGIN: Duration = Duration::from_secs(1);
/// Two changes of a watched address's owner within this time are a conflict (design: "Words").
pub const OWNER_FLAPS: Duration = Duration::from_secs(10);
/// More than [`LOUD_CLAIMS`] claims in this time are loud: one less freezes no address in an EVPN fabric
/// (RFC 7432 §15.1: 5 moves in 180 s).
pub const LOUD_WINDOW: Duration = Duration::from_secs(180);
/// See [`LOUD_WINDOW`].
pub const LOUD_CLAIMS: usize = 4;
/// After the first announcement of an `immediate` claim any claim takes it back for so long. Linux follows no
/// other host for the first second of a neighbour entry (`locktime`), and an owner that was asked by the probe
/// has long answered by then.
pub const ROLL_BACK_WINDOW: Duration = Duration::from_millis(1_100);
/// Of many addresses that are claimed together the first announcements leave before replies, later rounds and the probes
/// that belong behind them, for so long at the most: a thousand take a twentieth of a second at [`Pace::Plain`], and an owner that is asked this much later still
/// answers well within [`ROLL_BACK_WINDOW`].
pub const FIRST_ROUND: Duration = Duration::from_millis(100);
/// Repairs of a roll-back, apart by [`REPAIR_GAP`].
pub const REPAIRS: u8 = 3;
/// Beyond Linux's `locktime` of 1 s, so that a cache that ignored one repair takes the next.
pub const REPAIR_GAP: Duration = Duration::from_millis(1_100);
/// A frame that could not be sent is tried again after this time: a queue that was full is empty by then.
pub const SEND_RETRY: Duration = Duration::from_millis(50);
/// Failures in a row after which a probe or a first announcement is given up, and with it the claim.
pub const SEND_FAILURES: u8 = 5;
/// First wait before a step that the kernel refused, or a frame of a plan that failed [`SEND_FAILURES`] times, is
/// tried again; it doubles up to [`BACKOFF_MAX`].
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// An address that somebody else takes off the interface is put back so many times in [`RESTORATIONS_WINDOW`]; then
/// somebody means it, or another tool is at war with us.
pub const RESTORATIONS: usize = 3;
/// See [`RESTORATIONS`].
pub const RESTORATIONS_WINDOW: Duration = Duration::from_secs(60);
/// The program reads a clock that is late by up to a jiffy (10 ms at HZ=100); the end that it is told is earlier by as
/// much, so that it never answers beyond the lease.
pub const LEASE_MARGIN: Duration = Duration::from_millis(10);
/// A link that is up again within this time is announced on at once (design: "Links"): a cable that was moved, a switch
/// port that renegotiated. A rival that was quick enough to take the address meanwhile is a conflict like any other.
pub const LINK_FLAP: Duration = Duration::from_millis(500);
/// The netlink watch is another socket than the one that changes are acknowledged on: what it says of the time
/// before an own change may come after the acknowledgement, by so long at most.
pub const REPORT_DELAY: Duration = Duration::from_secs(1);
/// Silence after the probes says nothing of what came later. If the kernel has taken longer than this to register the
/// address, or this process or the machine has slept that long, the probes are repeated, shielded. A thousand
/// registrations in a row take a fifth of it.
pub const SILENCE_LASTS: Duration = Duration::from_secs(1);
/// How long a joint claim may wait for the others, listening, before it is probed for again: longer than probes of the
/// slowest profile can lag behind those of the fastest (7 s, RFC 5227 §2.1.1), so that all can be held at once.
pub const HELD_LASTS: Duration = Duration::from_secs(10);
/// After a link came up its announcements are repeated once after this time, and the first probe waits for it: a switch
/// port forwards only some 30–75 ms after link up.
pub const LINK_SETTLE: Duration = Duration::from_millis(100);

/// When the rounds of a plan begin, from its first frame on: the second round is beyond Linux's `locktime`, the
/// last one reaches what was still booting or converging (keepalived repeats at 5 s too).
const FAST_ROUNDS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(1_100), Duration::from_millis(2_200), Duration::from_secs(5)];
/// The same after a link came up, with a round for switches that did not forward the first one.
const FAST_LINK_ROUNDS: [Duration; 5] = [
    Duration::ZERO,
    LINK_SETTLE,
    Duration::from_millis(1_100),
    Duration::from_millis(2_200),
    Duration::from_secs(5),
];
/// ANNOUNCE_NUM 2, ANNOUNCE_INTERVAL 2 s (RFC 5227 §1.1).
const RFC5227_ROUNDS: [Duration; 2] = [Duration::ZERO, Duration::from_secs(2)];
/// See [`FAST_LINK_ROUNDS`].
const RFC5227_LINK_ROUNDS: [Duration; 3] = [Duration::ZERO, LINK_SETTLE, Duration::from_secs(2)];

/// A plan of announcements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rounds {
    /// Offsets from the first frame; at most 5.
    pub offsets: &'static [Duration],
    /// Each offset is drawn from so many percent around it, lest many hosts fall into step.
    pub jitter_percent: u64,
    /// Each round has a reply form behind the request form: some hosts follow only that one.
    pub replies: bool,
}

/// The plan of a profile; `link_up`: the link has just come up.
pub const fn rounds(profile: Profile, link_up: bool) -> Rounds {
    match profile {
        Profile::Fast => Rounds {
            offsets: if link_up { &FAST_LINK_ROUNDS } else { &FAST_ROUNDS },
            jitter_percent: 10,
            replies: true,
        },
        Profile::Rfc5227 => Rounds {
            offsets: if link_up { &RFC5227_LINK_ROUNDS } else { &RFC5227_ROUNDS },
            jitter_percent: 0,
            replies: false,
        },
    }
}

/// How a claim asks and how long it listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Questions {
    /// The first probe leaves after a random time up to this one (PROBE_WAIT).
    pub wait_max: Duration,
    /// Probes (PROBE_NUM); 0: nothing is asked before the claim.
    pub probes: u8,
    /// Least time between two (PROBE_MIN).
    pub gap_min: Duration,
    /// Longest time between two (PROBE_MAX).
    pub gap_max: Duration,
    /// Silence wanted after the last one (ANNOUNCE_WAIT).
    pub listen: Duration,
}

/// How to ask for the address: RFC 5227 §1.1, about 200 ms where the link allows it (§2.2; the values of
/// systemd-networkd and NetworkManager), or the one probe of the immediate way.
pub const fn questions(spec: &OnlineSpec) -> Questions {
    match (spec.claim, spec.profile) {
        (Claim::Immediate { check }, _) => Questions {
            wait_max: Duration::ZERO,
            probes: if check.is_zero() { 0 } else { 1 },
            gap_min: Duration::ZERO,
            gap_max: Duration::ZERO,
            listen: check,
        },
        (Claim::Probe, Profile::Fast) => Questions {
            wait_max: Duration::from_millis(20),
            probes: 3,
            gap_min: Duration::from_millis(40),
            gap_max: Duration::from_millis(60),
            listen: Duration::from_millis(60),
        },
        (Claim::Probe, Profile::Rfc5227) => Questions {
            wait_max: Duration::from_secs(1),
            probes: 3,
            gap_min: Duration::from_secs(1),
            gap_max: Duration::from_secs(2),
            listen: Duration::from_secs(2),
        },
    }
}

/// How long claims of several addresses that begin together will take, if nobody objects and nothing else leaves the
/// interface: an estimate, since waits are drawn and the kernel takes its time to register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// Until the last one has been announced once.
    pub announced: Duration,
    /// Until the last frame of its plan has left.
    pub done: Duration,
}

/// See [`Planned`].
pub fn planned(spec: &OnlineSpec, pace: Pace, count: usize) -> Planned {
    let Questions { wait_max, probes, gap_max, listen, .. } = questions(spec);
    let Rounds { offsets, jitter_percent, replies } = rounds(spec.profile, false);
    let (each, burst) = self::pace(pace);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let frames = |of_each: u32| each.saturating_mul(count.saturating_mul(of_each).saturating_sub(burst));
    let gaps = gap_max.saturating_mul(u32::from(probes).saturating_sub(1));
    let listening = wait_max.saturating_add(gaps).saturating_add(listen);
    let asked = u32::from(probes);
    let announced = match probes {
        // Its probe comes behind the announcement, and goes before those of others when it has waited.
        0 => frames(1).max(frames(2).saturating_sub(FIRST_ROUND / 2)),
        _ => listening.max(frames(asked).saturating_add(listen)).saturating_add(frames(1)),
    };
    let all = asked.max(1) + (if replies { 2 } else { 1 }) * u32::try_from(offsets.len()).unwrap_or(u32::MAX);
    let last = offsets.last().copied().unwrap_or_default();
    let latest = last.saturating_add(last.saturating_mul(u32::try_from(jitter_percent).unwrap_or(0)) / 100);
    Planned { announced, done: announced.saturating_add(latest).max(frames(all)) }
}

/// Least and longest wait before a retry: two hosts that probed at the same moment must not meet again, so the
/// spread is ten times as long as the probing (`fast`) or as a probe's gap (`rfc5227`).
pub const fn retry_wait(profile: Profile) -> (Duration, Duration) {
    match profile {
        Profile::Fast => (Duration::from_millis(250), Duration::from_secs(2)),
        Profile::Rfc5227 => (Duration::from_secs(2), Duration::from_secs(20)),
    }
}

/// Time for each frame, and frames that may leave at once.
pub const fn pace(pace: Pace) -> (Duration, u32) {
    match pace {
        // A switch takes far more; 10,000/s keeps the receivers' queues short (keepalived's 5,000 frames in 80 ms
        // are six times as dense).
        Pace::Plain => (Duration::from_micros(100), 500),
        // Dynamic ARP inspection shuts a port at 15 frames a second.
        Pace::Inspected => (Duration::from_millis(100), 1),
        // Ten times what a daemon sends (900,000 frames of 100,000 addresses took it 9 s), so no bound but on bursts: between
        // two of them it looks at what else there is, a conflict say.
        Pace::Unlimited => (Duration::from_micros(1), 512),
    }
}
