//! Frames against rights: what was said that may not be said, and what was not said that has to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use arpwarden_common::{
    net::MacAddr,
    wire::arp::{Form, REPLY},
};

use super::{
    machine::Machine,
    rights::{Right, Rights},
    segment::{Seen, asks},
};

/// What may be wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// An ARP frame pairs an address with a MAC of a host that may not answer for it.
    Spoke,
    /// A request got more than one answer.
    SecondAnswer,
    /// A reply that nobody had asked for.
    Unasked,
    /// The rightful owner did not answer.
    NoAnswer,
    /// The rightful owner answered too late.
    Late,
    /// The rightful owner answered with a MAC that it no longer has.
    OldMac,
    /// A repair names a host that is the owner no more, although another one has announced itself.
    WrongRepair,
    /// A claim that had to be defended was not.
    NotDefended,
    /// A defence that was not due: too soon behind the last one, or by a node that must not defend.
    WrongDefence,
    /// A counter or an event of a node is not what the capture says.
    Miscounted,
    /// A command or a state is not what the script knows.
    Unexpected,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What.
    pub kind: Kind,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub at_ns: u64,
    /// The address.
    pub address: Option<Ipv4Addr>,
    /// In words.
    pub what: String,
    /// The frames that show it.
    pub frames: Vec<Seen>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [seconds, micros] = [self.at_ns / 1_000_000_000, self.at_ns / 1_000 % 1_000_000];
        write!(f, "{seconds}.{micros:06} {:?}: {}", self.kind, self.what)?;
        self.frames.iter().try_for_each(|frame| write!(f, "\n    {frame}"))
    }
}

/// An owner answers a request within so many nanoseconds of its arrival on the owner's cable.
pub const ANSWER_NS: u64 = 5_000_000;
/// A frame is seen at the far end of the cable so long after the decision to send it, or the other way round.
pub const IN_FLIGHT_NS: u64 = 5_000_000;
/// Then a question is closed. What comes later is late by any measure, and nobody had asked.
const CLOSED_NS: u64 = 300_000_000;
/// What has been announced for so long is known to every host.
const KNOWN_NS: u64 = 100_000_000;
/// DEFEND_INTERVAL (RFC 5227 §1.1).
const DEFEND_INTERVAL_NS: u64 = 10_000_000_000;
/// The program's clock is up to a jiffy late, twice.
const INTERVAL_SLACK_NS: u64 = 20_000_000;
/// A claim is defended within so long: by the program at once, by the daemon when it gets the processor.
const DEFENCE_NS: u64 = 200_000_000;
/// The two halves of a round of announcements, the request and the reply, leave one behind the other.
const ROUND_NS: u64 = 250_000_000;

/// Whether a host has to defend an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duty {
    /// It has to, if the interval allows it.
    Defend,
    /// It may.
    Perhaps,
    /// It must not.
    Refrain,
}

/// What passed on a host's cable about an address, from the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    /// Answers that the host sent.
    pub answers: u64,
    /// Claims by others that were sent to it.
    pub claims: u64,
    /// Frames sent to it from the address with a MAC that it has had: an echo or a claim, as it still knows it or not.
    pub own: u64,
    /// Broadcast probes by others that were sent to it.
    pub probes: u64,
    /// Requests that were sent to it, gratuitous ones not counted.
    pub requests: u64,
    /// Gratuitous requests that it sent.
    pub announced: u64,
    /// Gratuitous replies that it sent.
    pub announced_replies: u64,
}

/// A request for an address.
#[derive(Debug)]
struct Question {
    asked: Seen,
    address: Ipv4Addr,
    /// When it was on whose cable.
    delivered: BTreeMap<usize, u64>,
    answers: Vec<Seen>,
    /// Nobody has to answer it: it is a claim as well, which a defence takes the place of.
    excused: bool,
}

/// A claim that has come to a host that holds the address.
#[derive(Debug)]
struct Challenge {
    host: usize,
    address: Ipv4Addr,
    claim: Seen,
}

/// Gratuitous frames of a host for an address, lately, in order of time.
#[derive(Debug, Default)]
struct Announcements {
    /// Requests that no reply has followed yet, or that were defences.
    lone: Vec<Seen>,
    /// Time of the latest that was found to be a defence.
    defended_ns: Option<u64>,
    /// Time of the latest that may have been one.
    unclear_ns: Option<u64>,
    /// Defences found so far, from the beginning.
    defences: u64,
    /// Requests that may have been defences, or rounds that were cut in the middle.
    unclear: u64,
}

/// Compares what is seen with what is right.
#[derive(Debug)]
pub struct Judge {
    /// Who may, and who has to.
    pub rights: Rights,
    /// The addresses that it is about.
    addresses: BTreeSet<Ipv4Addr>,
    /// Every MAC that a host has or had, and whose it is.
    macs: BTreeMap<MacAddr, usize>,
    /// Since when a host has to answer with which MAC.
    current: BTreeMap<usize, (u64, MacAddr)>,
    /// In order of time.
    questions: Vec<Question>,
    machine: Machine,
    challenges: Vec<Challenge>,
    duties: BTreeMap<(usize, Ipv4Addr), Vec<(u64, Duty)>>,
    /// Until when two may answer, by design.
    shared: BTreeMap<Ipv4Addr, (u64, u64)>,
    announcements: BTreeMap<(usize, Ipv4Addr), Announcements>,
    ledger: BTreeMap<(usize, Ipv4Addr), Ledger>,
    /// How long owners took, in nanoseconds.
    pub took: Vec<u64>,
    violations: Vec<Violation>,
}

impl Judge {
    /// One for these addresses and hosts with these MACs.
    pub fn new(
        addresses: impl IntoIterator<Item = Ipv4Addr>,
        macs: impl IntoIterator<Item = MacAddr>,
    ) -> Self {
        let macs = macs.into_iter().enumerate().map(|(host, mac)| (mac, host)).collect();
        Self {
            rights: Rights::default(),
            addresses: addresses.into_iter().collect(),
            macs,
            current: BTreeMap::new(),
            questions: Vec::new(),
            machine: Machine::default(),
            challenges: Vec::new(),
            duties: BTreeMap::new(),
            shared: BTreeMap::new(),
            announcements: BTreeMap::new(),
            ledger: BTreeMap::new(),
            took: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// This address is its host's own, and the host a plain one, which so many processors ask for it every few
    /// milliseconds, each for itself. A processor of a busy machine may do nothing for longer than an owner has to answer,
    /// so an owner is late, or silent, only if the plain host was asked after it by every processor and has answered
    /// before it; and where time is given for something, that in which a processor stood still does not count.
    pub fn measure_by(&mut self, host: usize, own: Ipv4Addr, processors: u8) {
        self.machine.measure_by(host, own, processors);
    }

    /// For how long one processor or another stood still so far, in nanoseconds.
    pub fn stood_ns(&self) -> u64 {
        self.machine.stood_ns
    }

    /// The host is about to get another MAC; both are its own from now on.
    pub fn add_mac(&mut self, host: usize, mac: MacAddr) {
        self.macs.insert(mac, host);
        self.current.remove(&host);
    }

    /// From now on it answers with this one alone.
    pub fn settle_mac(&mut self, host: usize, mac: MacAddr, from_ns: u64) {
        self.current.insert(host, (from_ns, mac));
    }

    /// From a moment on the host has this duty to defend the address, as far as it owns it.
    pub fn set_duty(&mut self, host: usize, address: Ipv4Addr, from_ns: u64, duty: Duty) {
        let duties = self.duties.entry((host, address)).or_default();
        duties.retain(|(earlier, _)| *earlier < from_ns);
        if duties.len() == 64 {
            duties.drain(..32);
        }
        duties.push((from_ns, duty));
    }

    /// In this period every host that may speak for the address may answer.
    pub fn share(&mut self, address: Ipv4Addr, from_ns: u64, to_ns: u64) {
        self.shared.insert(address, (from_ns, to_ns));
    }

    /// What passed on a host's cable about an address.
    pub fn ledger(&self, host: usize, address: Ipv4Addr) -> Ledger {
        self.ledger.get(&(host, address)).copied().unwrap_or_default()
    }

    /// How many defences of an address a host has sent at least, and how many at most.
    pub fn defences(&self, host: usize, address: Ipv4Addr) -> (u64, u64) {
        self.announcements.get(&(host, address)).map_or(
            (0, 0),
            |Announcements { lone, defences, unclear, .. }| {
                (*defences, defences + unclear + lone.len() as u64)
            },
        )
    }

    /// Says that something is wrong.
    pub fn report(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// What was wrong since the last call.
    pub fn violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Takes frames, in order of time over all cables, and the time up to which none is missing.
    pub fn take(&mut self, frames: Vec<Seen>, until_ns: u64) {
        for seen in frames {
            if seen.from_host {
                self.sent(seen);
            } else {
                self.delivered(&seen);
            }
        }
        // What has not been acted upon, as a processor stands still, may still come.
        let until_ns = until_ns.min(self.machine.caught_up_ns());
        self.close_questions(until_ns);
        self.close_challenges(until_ns);
        self.close_announcements(until_ns);
    }

    /// Whether what has begun at a moment is over.
    fn is_over(&self, at_ns: u64, until_ns: u64) -> bool {
        self.machine.after(at_ns, CLOSED_NS) <= until_ns
    }

    fn managed(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        self.addresses.contains(&address).then_some(address)
    }

    fn sent(&mut self, seen: Seen) {
        self.machine.take(&seen);
        let frame = seen.frame;
        let spoken_for = self.managed(frame.sender_ip.into());
        if let Some(address) = spoken_for
            && let Some(&owner) = self.macs.get(&frame.sender_mac)
        {
            if owner == seen.host {
                self.spoken(&seen, address);
            } else {
                self.repaired(&seen, address, owner);
            }
        }
        if let Some(address) = self.managed(frame.target_ip.into())
            && asks(&frame)
        {
            let excused = spoken_for.is_some() || frame.sender_ip.is_nonsense_sender();
            self.questions.push(Question {
                asked: seen,
                address,
                delivered: BTreeMap::new(),
                answers: Vec::new(),
                excused,
            });
        }
    }

    /// A host says that an address is at a MAC of another one.
    fn repaired(&mut self, seen: &Seen, address: Ipv4Addr, owner: usize) {
        let Seen { host, at_ns, frame, .. } = seen.clone();
        let known = self.machine.before(at_ns, KNOWN_NS);
        let successor = self.rights.entitled(address, at_ns, at_ns).into_iter().find(|&other| {
            other != owner && self.rights.during(other, address, known, at_ns).0 == Right::Must
        });
        let moved =
            self.current.get(&owner).filter(|(since, mac)| *since < known && *mac != frame.sender_mac);
        let owns = self.rights.during(owner, address, known, at_ns).0 == Right::Must;
        let now = match (successor, moved) {
            (Some(other), _) => format!("host {other} has it"),
            (None, Some((_, mac))) if owns => format!("it has {mac}"),
            (None, Some(_) | None) => return,
        };
        self.report(Violation {
            kind: Kind::WrongRepair,
            at_ns,
            address: Some(address),
            what: format!(
                "host {host} said that {address} is at {} of host {owner}; {now}",
                frame.sender_mac
            ),
            frames: vec![seen.clone()],
        });
    }

    /// A host says that an address is at a MAC of its own.
    fn spoken(&mut self, seen: &Seen, address: Ipv4Addr) {
        let Seen { host, at_ns, frame, .. } = seen.clone();
        let since = self.machine.before(at_ns, IN_FLIGHT_NS);
        if self.rights.during(host, address, since, at_ns).1 == Right::Silent {
            let why = self.rights.explain(host, address, at_ns);
            self.report(Violation {
                kind: Kind::Spoke,
                at_ns,
                address: Some(address),
                what: format!("host {host} said that {address} is at its {}: {why}", frame.sender_mac),
                frames: vec![seen.clone()],
            });
        }
        if frame.form() == Form::Announcement {
            self.announced(seen, address);
            return;
        }
        if frame.operation != REPLY {
            return;
        }
        self.ledger.entry((host, address)).or_default().answers += 1;
        if let Some(&(from_ns, mac)) = self.current.get(&host)
            && since > from_ns
            && mac != frame.sender_mac
        {
            self.report(Violation {
                kind: Kind::OldMac,
                at_ns,
                address: Some(address),
                what: format!("host {host} answered for {address} with {}; it has {mac}", frame.sender_mac),
                frames: vec![seen.clone()],
            });
        }
        let question =
            self.questions.iter_mut().rev().find(|question| {
                question.address == address && question.asked.frame.source == frame.destination
            });
        match question {
            Some(question) => question.answers.push(seen.clone()),
            None => self.report(Violation {
                kind: Kind::Unasked,
                at_ns,
                address: Some(address),
                what: format!(
                    "host {host} answered for {address}, which {} had not asked for",
                    frame.destination
                ),
                frames: vec![seen.clone()],
            }),
        }
    }

    fn announced(&mut self, seen: &Seen, address: Ipv4Addr) {
        let ledger = self.ledger.entry((seen.host, address)).or_default();
        let lone = &mut self.announcements.entry((seen.host, address)).or_default().lone;
        if seen.frame.operation == REPLY {
            ledger.announced_replies += 1;
            // It is the second half of the latest request, which then was the first half of a round.
            let machine = &self.machine;
            if lone.last().is_some_and(|request| seen.at_ns < machine.after(request.at_ns, ROUND_NS)) {
                lone.pop();
            }
        } else {
            ledger.announced += 1;
            lone.push(seen.clone());
        }
    }

    fn delivered(&mut self, seen: &Seen) {
        let Seen { host, at_ns, frame, .. } = seen.clone();
        let own = self.macs.get(&frame.sender_mac) == Some(&host);
        if let Some(address) = self.managed(frame.sender_ip.into()) {
            let ledger = self.ledger.entry((host, address)).or_default();
            if own {
                ledger.own += 1;
            } else {
                ledger.claims += 1;
                self.challenges.push(Challenge { host, address, claim: seen.clone() });
            }
        }
        let Some(address) = self.managed(frame.target_ip.into()) else { return };
        if !asks(&frame) {
            return;
        }
        let ledger = self.ledger.entry((host, address)).or_default();
        let to_all = frame.destination == MacAddr::BROADCAST;
        if !to_all && self.macs.get(&frame.destination) != Some(&host) {
            // Flooded by the bridge.
            return;
        }
        ledger.requests += 1;
        if frame.form() == Form::Probe && to_all && !own {
            ledger.probes += 1;
        }
        // The latest: what was asked in the same words before may have been lost on the way to this host.
        let question =
            self.questions.iter_mut().rev().find(|question| {
                !question.delivered.contains_key(&host) && question.asked.bytes == seen.bytes
            });
        if let Some(question) = question {
            question.delivered.insert(host, at_ns);
        }
    }

    fn close_questions(&mut self, until_ns: u64) {
        let at = self.questions.partition_point(|question| self.is_over(question.asked.at_ns, until_ns));
        for question in self.questions.drain(..at).collect::<Vec<_>>() {
            self.close_question(question);
        }
    }

    fn close_question(&mut self, question: Question) {
        let Question { asked, address, delivered, answers, excused } = question;
        let violation = |kind, what: String, frames: &[Seen]| Violation {
            kind,
            at_ns: asked.at_ns,
            address: Some(address),
            what,
            frames: std::iter::once(&asked).chain(frames).cloned().collect(),
        };
        if answers.len() > 1 {
            let by: Vec<usize> = answers.iter().map(|answer| answer.host).collect();
            let apart = by.iter().collect::<BTreeSet<_>>().len() == by.len();
            let shared = self.shared.get(&address);
            let shared = shared.is_some_and(|(from, to)| (*from..*to).contains(&asked.at_ns));
            if !(apart && shared) {
                let what = format!("a request for {address} got {} answers, by hosts {by:?}", answers.len());
                self.violations.push(violation(Kind::SecondAnswer, what, &answers));
            }
        }
        if excused {
            return;
        }
        for (host, at_ns) in delivered {
            let could_ns = self.machine.could_answer_by(at_ns).unwrap_or(u64::MAX);
            // As long as it had no chance to answer it may lose its right as well.
            let chance_ns = could_ns.max(self.machine.after(at_ns, ANSWER_NS));
            let must = |to_ns| self.rights.during(host, address, at_ns, to_ns).0 == Right::Must;
            match answers.iter().find(|answer| answer.host == host) {
                None if chance_ns > self.machine.after(at_ns, CLOSED_NS) || !must(chance_ns) => {}
                None => {
                    let why = self.rights.explain(host, address, at_ns);
                    let what = format!("host {host} did not answer for {address}: {why}");
                    self.violations.push(violation(Kind::NoAnswer, what, &answers));
                }
                Some(_) if !must(at_ns + ANSWER_NS) => {}
                Some(answer) => {
                    let took = answer.at_ns.saturating_sub(at_ns);
                    self.took.push(took);
                    if took > ANSWER_NS && could_ns < answer.at_ns {
                        let what = format!("host {host} took {} µs to answer for {address}", took / 1_000);
                        self.violations.push(violation(Kind::Late, what, &answers));
                    }
                }
            }
        }
    }

    fn duty(&self, host: usize, address: Ipv4Addr, ns: u64) -> Duty {
        let duties = self.duties.get(&(host, address)).map_or(&[][..], Vec::as_slice);
        duties.iter().rev().find(|(from, _)| *from <= ns).map_or(Duty::Perhaps, |(_, duty)| *duty)
    }

    /// Whether the duty is the same all the time from one moment to another.
    fn has_duty(&self, host: usize, address: Ipv4Addr, from_ns: u64, to_ns: u64, duty: Duty) -> bool {
        let duties = self.duties.get(&(host, address)).map_or(&[][..], Vec::as_slice);
        let between = duties.iter().filter(|(at, _)| from_ns < *at && *at <= to_ns);
        self.duty(host, address, from_ns) == duty && between.into_iter().all(|(_, other)| *other == duty)
    }

    fn close_challenges(&mut self, until_ns: u64) {
        let at = self.challenges.partition_point(|challenge| self.is_over(challenge.claim.at_ns, until_ns));
        for Challenge { host, address, claim } in self.challenges.drain(..at).collect::<Vec<_>>() {
            let at_ns = claim.at_ns;
            let by_ns = self.machine.after(at_ns, DEFENCE_NS);
            let owns = self.rights.during(host, address, at_ns, by_ns).0 == Right::Must;
            if !owns || !self.has_duty(host, address, at_ns, by_ns, Duty::Defend) {
                continue;
            }
            let Announcements { lone, defended_ns, unclear_ns, .. } =
                self.announcements.entry((host, address)).or_default();
            let interval = DEFEND_INTERVAL_NS + INTERVAL_SLACK_NS;
            let lately = |ns: u64| ns <= by_ns && at_ns < ns + interval;
            // One that may have been a defence may have begun the interval.
            let closed = [*defended_ns, *unclear_ns].into_iter().flatten().any(lately);
            let defended = closed || lone.iter().any(|seen| lately(seen.at_ns));
            if !defended {
                self.report(Violation {
                    kind: Kind::NotDefended,
                    at_ns,
                    address: Some(address),
                    what: format!("host {host} did not defend {address}"),
                    frames: vec![claim],
                });
            }
        }
    }

    /// Requests that no reply has followed for long were defences, unless the plan was cut between the two.
    fn close_announcements(&mut self, until_ns: u64) {
        let mut found = Vec::new();
        for (&(host, address), Announcements { lone, defended_ns, unclear_ns, defences, unclear }) in
            &mut self.announcements
        {
            let at = lone.partition_point(|seen| self.machine.after(seen.at_ns, CLOSED_NS) <= until_ns);
            for seen in lone.drain(..at) {
                let at_ns = seen.at_ns;
                let round_ns = self.machine.after(at_ns, ROUND_NS);
                if self.rights.during(host, address, at_ns, round_ns).0 != Right::Must {
                    *unclear += 1;
                    *unclear_ns = Some(at_ns);
                    continue;
                }
                *defences += 1;
                found.push((host, address, seen, *defended_ns));
                *defended_ns = Some(at_ns);
            }
        }
        for (host, address, seen, before) in found {
            let at_ns = seen.at_ns;
            let least = DEFEND_INTERVAL_NS - INTERVAL_SLACK_NS;
            // Of an earlier ownership nothing follows.
            let too_soon = before.filter(|before| {
                at_ns - before < least && self.rights.during(host, address, *before, at_ns).0 == Right::Must
            });
            let since = self.machine.before(at_ns, IN_FLIGHT_NS);
            let what = if let Some(before) = too_soon {
                format!(
                    "host {host} defended {address} {} ms after the last time",
                    (at_ns - before) / 1_000_000
                )
            } else if self.has_duty(host, address, since, at_ns, Duty::Refrain) {
                format!("host {host} defended {address} unarmed")
            } else {
                continue;
            };
            self.report(Violation {
                kind: Kind::WrongDefence,
                at_ns,
                address: Some(address),
                what,
                frames: vec![seen],
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use arpwarden_common::{
        net::Vlan,
        wire::arp::{Outgoing, Parsed, parse},
    };

    use super::*;
    use crate::{
        checker::{LeaseEnd, asker},
        netns::{ip, stranger},
        wire::{announcement, bytes, probe, reply, request},
    };

    const A: Ipv4Addr = ip(100);
    const SECOND: u64 = 1_000_000_000;
    const MS: u64 = 1_000_000;
    /// Long after the last frame of a test.
    const LATER: u64 = 1_000 * SECOND;

    fn mac(host: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, host])
    }

    /// Host 1's own address.
    const OWN: Ipv4Addr = ip(2);

    /// Three hosts; host 0 has the address from 1 s on. The machine counts as one that always works.
    fn judge() -> Judge {
        let mut judge = Judge::new([A], [mac(0), mac(1), mac(2)]);
        judge.rights.set(0, A, SECOND, Right::Must, "has it");
        judge
    }

    fn seen(host: usize, from_host: bool, at_ns: u64, frame: &Outgoing) -> Seen {
        let bytes = bytes(frame);
        let Parsed::Arp(frame) = parse(bytes.as_slice()) else { panic!("{bytes:?} is no ARP") };
        Seen { host, from_host, at_ns, frame, bytes }
    }

    /// Host 2 sends a frame, which arrives at host 0 right after.
    fn asked(at_ns: u64, frame: &Outgoing) -> [Seen; 2] {
        [seen(2, true, at_ns, frame), seen(0, false, at_ns + 10_000, frame)]
    }

    fn question() -> Outgoing {
        request(stranger(1), ip(9), A)
    }

    fn answer(host: u8) -> Outgoing {
        reply(mac(host), A, stranger(1), ip(9))
    }

    /// The kinds of what is wrong with these frames.
    fn kinds(mut judge: Judge, frames: impl IntoIterator<Item = Seen>) -> Vec<Kind> {
        judge.take(frames.into_iter().collect(), LATER);
        judge.violations().into_iter().map(|violation| violation.kind).collect()
    }

    #[test]
    fn an_owner_that_answers_once_and_in_time_is_right() {
        let [asked, arrived] = asked(2 * SECOND, &question());
        let answered = seen(0, true, 2 * SECOND + 30_000, &answer(0));
        let mut judge = judge();
        judge.take(vec![asked, arrived, answered], LATER);
        assert_eq!(judge.violations(), []);
        assert_eq!(judge.took, [20_000]);
        assert_eq!(judge.ledger(0, A), Ledger { answers: 1, requests: 1, ..Ledger::default() });
    }

    #[test]
    fn an_owner_that_is_silent_or_late_is_wrong_but_only_if_it_was_asked_and_has_to() {
        let [sent, arrived] = asked(2 * SECOND, &question());
        assert_eq!(kinds(judge(), [sent.clone(), arrived.clone()]), [Kind::NoAnswer]);
        assert_eq!(kinds(judge(), [sent.clone()]), [], "its cable was out");
        let late = seen(0, true, 2 * SECOND + 10_001 + ANSWER_NS, &answer(0));
        assert_eq!(kinds(judge(), [sent.clone(), arrived.clone(), late]), [Kind::Late]);
        let mut leaves = judge();
        leaves.rights.set(0, A, 2 * SECOND + MS, Right::May, "being given up");
        assert_eq!(kinds(leaves, [sent, arrived]), []);
        let claim = asked(2 * SECOND, &request(stranger(1), A, A));
        assert_eq!(kinds(judge(), claim), [], "gratuitous");
        let claim = asked(2 * SECOND, &Outgoing { sender_ip: A.into(), ..question() });
        assert_eq!(kinds(judge(), claim), [], "a claim, whose place a defence may take");
    }

    /// [`judge`] on a machine with two processors, which ask host 1.
    fn measured() -> Judge {
        let mut judge = judge();
        judge.measure_by(1, OWN, 2);
        judge
    }

    /// A question of a processor for host 1's own address, and its answer after so long.
    fn measure(processor: u8, asked_ns: u64, took: u64) -> [Seen; 2] {
        let number = u16::try_from(asked_ns / MS % 60_000).expect("16 bits");
        let from = asker(processor, number);
        let asked = seen(2, true, asked_ns, &request(from, ip(9), OWN));
        [asked, seen(1, true, asked_ns + took, &reply(mac(1), OWN, from, ip(9)))]
    }

    /// A machine that works for a second around a moment, but for the time in which both processors, or the second one,
    /// stand still.
    fn works(around_ns: u64, stands: std::ops::Range<u64>, both: bool) -> Vec<Seen> {
        let at = (0..1_000).step_by(3).map(|number| around_ns - 100 * MS + number * MS);
        let questions = at.flat_map(|at| [(0, at), (1, at + 10_000)]);
        let stands = |processor, at| stands.contains(&at) && (both || processor == 1);
        let asked = questions.filter(|(processor, at)| !stands(*processor, *at));
        asked.flat_map(|(processor, at)| measure(processor, at, 20_000)).collect()
    }

    fn kinds_in_order(judge: Judge, mut frames: Vec<Seen>) -> Vec<Kind> {
        frames.sort_by_key(|seen| seen.at_ns);
        kinds(judge, frames)
    }

    #[test]
    fn an_owner_is_late_only_if_a_plain_host_was_asked_after_it_by_every_processor_and_was_faster() {
        const AT: u64 = 2 * SECOND;
        let told = |both, measured: &[(u64, u64)], answered_ns: Option<u64>| {
            let mut frames = works(AT, AT - MS..AT + 12 * MS, both);
            frames.extend(asked(AT, &question()));
            frames.extend(measured.iter().flat_map(|(asked_ns, took)| measure(1, *asked_ns, *took)));
            if both {
                frames.extend(measured.iter().flat_map(|(asked_ns, took)| measure(0, *asked_ns, *took)));
            }
            frames.extend(answered_ns.map(|at_ns| seen(0, true, at_ns, &answer(0))));
            kinds_in_order(self::measured(), frames)
        };
        let late = Some(AT + 9 * MS);
        for both in [true, false] {
            assert_eq!(told(both, &[(AT + 3 * MS, MS / 2)], late), [Kind::Late], "overtaken");
            assert_eq!(told(both, &[(AT + 3 * MS, 2 * MS)], late), [], "the machine was slow");
            assert_eq!(
                told(both, &[(AT + 8 * MS, MS / 2)], late),
                [],
                "both were answered at the same moment"
            );
            assert_eq!(told(both, &[], late), [], "a processor stood still");
            assert_eq!(told(both, &[], None), [Kind::NoAnswer], "the machine has worked since");
        }
    }

    #[test]
    fn what_comes_late_as_a_processor_stood_still_is_no_fault_and_what_comes_later_is() {
        const AT: u64 = 2 * SECOND;
        let stands = AT - 5 * MS..AT + 500 * MS;
        let told = |judge: Judge, both, frames: &[Seen]| {
            let mut all = works(AT, stands.clone(), both);
            all.extend(frames.iter().cloned());
            kinds_in_order(judge, all)
        };
        let [sent, arrived] = asked(AT, &question());
        let answered = |at_ns| [sent.clone(), arrived.clone(), seen(0, true, at_ns, &answer(0))];
        let given_up = |at_ns| {
            let mut judge = measured();
            judge.rights.set(0, A, at_ns, Right::Silent, "given up");
            judge
        };
        let announced = |at_ns| [seen(0, true, at_ns, &announcement(mac(0), A))];
        for both in [true, false] {
            assert_eq!(told(measured(), both, &answered(AT + 490 * MS)), []);
            assert_eq!(told(measured(), both, &answered(AT + 510 * MS)), [Kind::Late]);
            let silent = [sent.clone(), arrived.clone()];
            assert_eq!(told(given_up(AT + 400 * MS), both, &silent), [], "it had no chance to answer");
            assert_eq!(told(given_up(AT + 520 * MS), both, &silent), [Kind::NoAnswer]);
            assert_eq!(told(given_up(AT + 10 * MS), both, &announced(AT + 499 * MS)), [], "in flight");
            assert_eq!(told(given_up(AT + 10 * MS), both, &announced(AT + 507 * MS)), [Kind::Spoke]);
            assert_eq!(told(given_up(AT - 50 * MS), both, &announced(AT)), [Kind::Spoke], "long before it");
        }
        let unseen = |both| {
            let mut judge = measured();
            let mut frames = works(AT, AT..AT + SECOND, both);
            frames.extend(asked(AT, &question()));
            frames.sort_by_key(|seen| seen.at_ns);
            judge.take(frames, AT + SECOND);
            judge.violations().len()
        };
        assert_eq!([unseen(true), unseen(false)], [0, 0], "as long as it stands nothing is late");
    }

    #[test]
    fn a_defence_and_a_round_have_the_time_that_the_machine_works() {
        const AT: u64 = 2 * SECOND;
        let told = |frames: [Seen; 2]| {
            let mut judge = measured();
            judge.set_duty(0, A, SECOND, Duty::Defend);
            let mut all = works(AT, AT - 5 * MS..AT + 400 * MS, false);
            all.extend(frames);
            kinds_in_order(judge, all)
        };
        let claim = || seen(0, false, AT, &announcement(stranger(7), A));
        let announced = |at_ns| seen(0, true, at_ns, &announcement(mac(0), A));
        assert_eq!(told([claim(), announced(AT + 500 * MS)]), []);
        assert_eq!(told([claim(), announced(AT + 700 * MS)]), [Kind::NotDefended]);
        let replied =
            |at_ns| seen(0, true, at_ns, &Outgoing::announcement_reply(mac(0), Vlan::UNTAGGED, A.into()));
        let defences = |replied_ns| {
            let mut judge = measured();
            let mut all = works(AT, AT - 5 * MS..AT + 400 * MS, false);
            all.extend([announced(AT), replied(replied_ns)]);
            all.sort_by_key(|seen| seen.at_ns);
            judge.take(all, LATER);
            judge.defences(0, A)
        };
        assert_eq!(defences(AT + 500 * MS), (0, 0), "the two halves of a round");
        assert_eq!(defences(AT + 700 * MS), (1, 1), "a defence");
    }

    #[test]
    fn two_answers_are_one_too_many_unless_the_script_says_so() {
        let [sent, arrived] = asked(2 * SECOND, &question());
        let first = seen(0, true, 2 * SECOND + 30_000, &answer(0));
        let again = seen(0, true, 2 * SECOND + 40_000, &answer(0));
        let other = seen(1, true, 2 * SECOND + 40_000, &answer(1));
        let frames = [sent, arrived, first];
        assert_eq!(kinds(judge(), frames.clone().into_iter().chain([again.clone()])), [Kind::SecondAnswer]);
        let mut shared = judge();
        shared.rights.set(1, A, SECOND, Right::May, "claims without a check");
        let two = || frames.clone().into_iter().chain([other.clone()]);
        assert_eq!(kinds(shared, two()), [Kind::SecondAnswer]);
        let mut shared = judge();
        shared.rights.set(1, A, SECOND, Right::May, "claims without a check");
        shared.share(A, SECOND, 3 * SECOND);
        assert_eq!(kinds(shared, two()), []);
        let mut shared = judge();
        shared.share(A, SECOND, 3 * SECOND);
        assert_eq!(kinds(shared, frames.into_iter().chain([again])), [Kind::SecondAnswer], "by one host");
    }

    #[test]
    fn whoever_has_no_right_is_heard_in_every_form_of_frame() {
        let frames = [
            announcement(mac(1), A),
            Outgoing::announcement_reply(mac(1), Vlan::UNTAGGED, A.into()),
            request(mac(1), A, ip(9)),
            Outgoing { destination: mac(2), ..request(mac(1), A, ip(9)) },
        ];
        for frame in frames {
            assert_eq!(kinds(judge(), [seen(1, true, 2 * SECOND, &frame)]), [Kind::Spoke], "{frame:?}");
        }
        let reply = seen(1, true, 2 * SECOND, &answer(1));
        assert_eq!(kinds(judge(), [reply]), [Kind::Spoke, Kind::Unasked]);
        assert_eq!(
            kinds(judge(), [seen(1, true, 2 * SECOND, &probe(mac(1), A))]),
            [],
            "a probe claims nothing"
        );
        let foreign = announcement(stranger(7), A);
        assert_eq!(kinds(judge(), [seen(2, true, 2 * SECOND, &foreign)]), [], "a stranger's is no host's");
    }

    #[test]
    fn a_right_that_has_just_ended_covers_what_is_in_flight_and_no_more() {
        let spoken = |at_ns| seen(0, true, at_ns, &announcement(mac(0), A));
        let mut ended = judge();
        ended.rights.set(0, A, 2 * SECOND, Right::Silent, "given up");
        assert_eq!(kinds(ended, [spoken(2 * SECOND + IN_FLIGHT_NS - 1)]), []);
        let mut ended = judge();
        ended.rights.set(0, A, 2 * SECOND, Right::Silent, "given up");
        assert_eq!(kinds(ended, [spoken(2 * SECOND + IN_FLIGHT_NS + 1)]), [Kind::Spoke]);
        let mut leased = judge();
        let end = LeaseEnd { sure_ns: 2 * SECOND, latest_ns: 3 * SECOND };
        leased.rights.set_lease(0, A, SECOND, Some(end));
        assert_eq!(kinds(leased, [spoken(3 * SECOND + IN_FLIGHT_NS + 1)]), [Kind::Spoke]);
    }

    #[test]
    fn a_repair_may_name_another_host_but_not_one_that_has_been_followed() {
        let repair = Outgoing::announcement(mac(1), mac(0), Vlan::UNTAGGED, A.into());
        let repaired = || seen(1, true, 5 * SECOND, &repair);
        assert_eq!(kinds(judge(), [repaired()]), []);
        let mut given_up = judge();
        given_up.rights.set(0, A, 2 * SECOND, Right::Silent, "given up");
        assert_eq!(kinds(given_up, [repaired()]), [], "nobody can know");
        let mut followed = judge();
        followed.rights.set(0, A, 2 * SECOND, Right::Silent, "given up");
        followed.rights.set(2, A, 3 * SECOND, Right::Must, "online");
        assert_eq!(kinds(followed, [repaired()]), [Kind::WrongRepair]);
        let mut moved = judge();
        moved.add_mac(0, mac(10));
        moved.settle_mac(0, mac(10), 3 * SECOND);
        assert_eq!(kinds(moved, [repaired()]), [Kind::WrongRepair]);
    }

    #[test]
    fn an_answer_with_a_mac_that_the_owner_has_no_longer_is_wrong() {
        let mut moved = judge();
        moved.add_mac(0, mac(10));
        let [sent, arrived] = asked(2 * SECOND, &question());
        let answered = seen(0, true, 2 * SECOND + 30_000, &answer(0));
        assert_eq!(kinds(moved, [sent.clone(), arrived.clone(), answered.clone()]), [], "while it changes");
        let mut moved = judge();
        moved.add_mac(0, mac(10));
        moved.settle_mac(0, mac(10), SECOND);
        assert_eq!(kinds(moved, [sent, arrived, answered]), [Kind::OldMac]);
    }

    #[test]
    fn a_claim_is_defended_if_it_has_to_be_once_in_ten_seconds() {
        let claim = |at_ns| seen(0, false, at_ns, &announcement(stranger(7), A));
        let defence = |at_ns| seen(0, true, at_ns, &announcement(mac(0), A));
        let armed = || {
            let mut judge = judge();
            judge.set_duty(0, A, SECOND, Duty::Defend);
            judge
        };
        assert_eq!(kinds(judge(), [claim(2 * SECOND)]), [], "no duty");
        assert_eq!(kinds(armed(), [claim(2 * SECOND)]), [Kind::NotDefended]);
        let defended = [claim(2 * SECOND), defence(2 * SECOND + MS)];
        assert_eq!(kinds(armed(), defended.clone()), []);
        let again = defended.clone().into_iter().chain([claim(11 * SECOND)]);
        assert_eq!(kinds(armed(), again), [], "the interval forbids a second one");
        let again = defended.clone().into_iter().chain([claim(13 * SECOND)]);
        assert_eq!(kinds(armed(), again), [Kind::NotDefended]);
        let again = defended.into_iter().chain([claim(9 * SECOND), defence(9 * SECOND + MS)]);
        assert_eq!(kinds(armed(), again), [Kind::WrongDefence]);
        let mut cut = armed();
        cut.rights.set(0, A, 2 * SECOND + 240 * MS, Right::May, "its link is down");
        let defended = [claim(2 * SECOND), defence(2 * SECOND + MS)];
        assert_eq!(kinds(cut, defended), [], "a defence, or half a round");
        let mut unarmed = judge();
        unarmed.set_duty(0, A, SECOND, Duty::Refrain);
        assert_eq!(kinds(unarmed, [claim(2 * SECOND), defence(2 * SECOND + MS)]), [Kind::WrongDefence]);
    }

    #[test]
    fn a_round_of_announcements_is_no_defence_and_a_defence_in_the_middle_of_one_counts() {
        let request = |at_ns| seen(0, true, at_ns, &announcement(mac(0), A));
        let reply =
            |at_ns| seen(0, true, at_ns, &Outgoing::announcement_reply(mac(0), Vlan::UNTAGGED, A.into()));
        let mut rounds = judge();
        let plan =
            [2, 3, 4].into_iter().flat_map(|second| [request(second * SECOND), reply(second * SECOND + MS)]);
        rounds.take(plan.collect(), LATER);
        assert_eq!(rounds.violations(), []);
        assert_eq!(rounds.defences(0, A), (0, 0));
        let mut middle = judge();
        middle.take(vec![request(2 * SECOND), request(2 * SECOND + 1), reply(2 * SECOND + MS)], LATER);
        assert_eq!(middle.defences(0, A), (1, 1));
        let mut cut = judge();
        cut.rights.set(0, A, 2 * SECOND + MS, Right::Silent, "given up");
        cut.take(vec![request(2 * SECOND)], LATER);
        assert_eq!(cut.defences(0, A), (0, 1), "a round that was cut, or a defence");
    }
}
