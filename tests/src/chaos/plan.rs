//! What happens in a story, step by step, from a seed: drawn from what is possible by the script's own model of who
//! has what. The script acts as a sane cluster manager would: it lets a host claim an address only where nobody
//! has it, or where the owner can be heard and the claim has to fail.

use std::{fmt, net::Ipv4Addr};

use super::dice::Dice;
use crate::netns::ip;

/// Hosts 0 to 2 run the daemon.
pub(super) const NODES: usize = 3;
/// A plain Linux host that has an address at times.
pub const PLAIN: usize = 3;
/// The other plain host, which asks, and from whose cable strangers speak.
pub(super) const STRANGER: usize = 4;
/// Hosts in all.
pub const HOSTS: usize = 5;
/// Addresses in play.
pub(super) const ADDRESSES: usize = 6;

/// The address with this number.
pub const fn address(number: usize) -> Ipv4Addr {
    #[expect(clippy::cast_possible_truncation, reason = "there are six")]
    ip(100 + number as u8)
}

/// All addresses in play.
pub(super) fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (0..ADDRESSES).map(address)
}

/// Whether a node's daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Daemon {
    /// It does.
    Running,
    /// It stands still (SIGSTOP).
    Stopped,
    /// It was killed.
    Dead,
}

/// `--claim`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// `probe`.
    Probe,
    /// `immediate`.
    Immediate,
}

/// `--defend`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defend {
    /// `yield`: the first claim by somebody else takes the address away.
    Yield,
    /// `once`: the second within ten seconds does.
    Once,
    /// `hold`: none does.
    Hold,
}

impl Defend {
    /// How many claims in a row take the address away.
    pub const fn lost_at(self) -> Option<usize> {
        match self {
            Self::Yield => Some(1),
            Self::Once => Some(2),
            Self::Hold => None,
        }
    }

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yield => "yield",
            Self::Once => "once",
            Self::Hold => "hold",
        }
    }
}

/// How a stranger puts its claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A gratuitous request.
    Announcement,
    /// A gratuitous reply.
    AnnouncementReply,
    /// A reply to the owner.
    Reply,
    /// A request for something else, from the address.
    Request,
}

/// A step of a story. Nodes and addresses by their numbers.
#[expect(missing_docs, reason = "the fields say by their names what each step is about")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nobody has the address: the node gets it.
    Claim { node: usize, address: usize, way: Way, defend: Defend, leased: bool },
    /// Somebody has it: the node is refused.
    ClaimTaken { node: usize, address: usize, way: Way },
    /// A node takes an address that somebody holds without asking, and has to give it back.
    Overreach { node: usize, address: usize },
    /// The node gives the address up, or forgets that it was refused or lost.
    Offline { node: usize, address: usize, watch: bool },
    /// Given up here, claimed there.
    HandOver { from: usize, to: usize, address: usize, way: Way },
    /// The node announces the address anew.
    Announce { node: usize, address: usize },
    /// The lease is prolonged, beyond the end of any story.
    Renew { node: usize, address: usize },
    /// The lease runs out while the daemon runs, stands still or is dead; so it stays.
    LeaseEnds { node: usize, address: usize, daemon: Daemon },
    /// `kill -9`.
    Kill { node: usize },
    /// A daemon starts where one was killed.
    Restart { node: usize },
    /// `kill -9` in the middle of a claim, or of giving up, and a new start.
    KillWhile { node: usize, address: usize, claiming: bool, after_ms: u64 },
    /// SIGSTOP.
    Stop { node: usize },
    /// SIGCONT.
    Continue { node: usize },
    /// SIGTERM, which keeps everything, and a new start.
    Upgrade { node: usize },
    /// `unload`, also where the daemon is dead, and a new start.
    Unload { node: usize },
    /// The node's cable is pulled and plugged in. While it is out another node may take an address over.
    Flap { node: usize, down_ms: u64, taken: Option<(usize, usize)> },
    /// The node's interface gets another MAC.
    ChangeMac { node: usize },
    /// Somebody takes an address of the node's off its interface.
    RemoveByHand { node: usize, address: usize },
    /// Somebody puts an address on the node's interface that may not answer there.
    AddByHand { node: usize, address: usize },
    /// … and takes it off.
    DeleteByHand { node: usize, address: usize },
    /// The plain host gets an address that nobody has.
    PlainTakes { address: usize },
    /// … and gives it up.
    PlainLeaves { address: usize },
    /// A stranger claims an address, as often as it takes to get it from an owner who would not hold it.
    StrangerClaims { address: usize, form: Form },
    /// A stranger probes for an address.
    StrangerProbes { address: usize },
    /// Many strangers claim an address.
    Flood { address: usize, frames: usize },
    /// The node's machine sleeps, the daemon with it.
    Jump { node: usize, seconds: u64 },
    /// The node's own host speaks in the name of an address that may not answer there.
    SpeakWithoutRight { node: usize, address: usize },
}

/// A kind of step: the name of a variant of [`Step`].
#[expect(missing_docs, reason = "each is said at the step of the same name")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Claim,
    ClaimTaken,
    Overreach,
    Offline,
    HandOver,
    Announce,
    Renew,
    LeaseEnds,
    Kill,
    Restart,
    KillWhile,
    Stop,
    Continue,
    Upgrade,
    Unload,
    Flap,
    ChangeMac,
    RemoveByHand,
    AddByHand,
    DeleteByHand,
    PlainTakes,
    PlainLeaves,
    StrangerClaims,
    StrangerProbes,
    Flood,
    Jump,
    SpeakWithoutRight,
}

/// All kinds, and how often each is drawn.
pub const ALL: [(Kind, usize); 27] = [
    (Kind::Claim, 20),
    (Kind::ClaimTaken, 8),
    (Kind::Overreach, 2),
    (Kind::Offline, 5),
    (Kind::HandOver, 5),
    (Kind::Announce, 2),
    (Kind::Renew, 3),
    (Kind::LeaseEnds, 8),
    (Kind::Kill, 5),
    (Kind::Restart, 8),
    (Kind::KillWhile, 3),
    (Kind::Stop, 4),
    (Kind::Continue, 8),
    (Kind::Upgrade, 3),
    (Kind::Unload, 1),
    (Kind::Flap, 5),
    (Kind::ChangeMac, 2),
    (Kind::RemoveByHand, 3),
    (Kind::AddByHand, 4),
    (Kind::DeleteByHand, 4),
    (Kind::PlainTakes, 3),
    (Kind::PlainLeaves, 3),
    (Kind::StrangerClaims, 10),
    (Kind::StrangerProbes, 3),
    (Kind::Flood, 3),
    (Kind::Jump, 4),
    (Kind::SpeakWithoutRight, 8),
];

/// The lease of an address that has one, in seconds: beyond the end of any story, but not of a long sleep.
pub(super) const LEASE_S: u64 = 80_000;
/// A sleep after which every lease stands, but no heartbeat counts, in seconds.
const SHORT_SLEEP_S: u64 = 60;
/// One after which none stands.
const LONG_SLEEP_S: u64 = 100_000;
/// A downtime after which a link has only flapped, and one after which it was gone, in milliseconds: the bound of 500
/// is between them by far.
const FLAPS_MS: [u64; 3] = [60, 200, 800];
/// Downtimes from here on are long.
pub(super) const LONG_MS: u64 = 500;
/// An address is put back three times a minute; a minute has at most so many steps.
const STEPS_A_MINUTE: usize = 600;
/// See [`STEPS_A_MINUTE`].
const RESTORATIONS: usize = 3;

/// What a node has to do with an address.
#[expect(missing_docs, reason = "fields are told at their variant")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing.
    Unmanaged,
    /// It watches it.
    Watched,
    /// It is refused, lost or suspended: listed, and must be silent. Whether it still is on the interface, because the
    /// daemon could not take it off.
    Silent { configured: bool },
    /// It has it, on its interface unless somebody took it off.
    Holding { defend: Defend, leased: bool, configured: bool },
}

/// A node by the script's model.
#[derive(Clone, Debug)]
pub struct NodeModel {
    /// Its daemon.
    pub daemon: Daemon,
    /// What it has to do with each address.
    pub entries: [Entry; ADDRESSES],
    /// What somebody has put on its interface.
    pub by_hand: [bool; ADDRESSES],
    /// Steps in which somebody took which address off.
    removals: Vec<(usize, usize)>,
}

/// The script's own knowledge.
#[derive(Clone, Debug)]
pub struct Model {
    /// The nodes.
    pub nodes: [NodeModel; NODES],
    /// What the plain host has.
    pub plain: [bool; ADDRESSES],
    /// Steps so far.
    steps: usize,
}

impl Default for Model {
    fn default() -> Self {
        let node = NodeModel {
            daemon: Daemon::Running,
            entries: [Entry::Unmanaged; ADDRESSES],
            by_hand: [false; ADDRESSES],
            removals: Vec::new(),
        };
        Self { nodes: [node.clone(), node.clone(), node], plain: [false; ADDRESSES], steps: 0 }
    }
}

impl Model {
    /// The host that has an address.
    pub fn holder(&self, address: usize) -> Option<usize> {
        let node = (0..NODES).find(|&node| self.holding(node, address).is_some());
        node.or_else(|| self.plain[address].then_some(PLAIN))
    }

    /// How a node defends an address of its own.
    pub fn holding(&self, node: usize, address: usize) -> Option<Defend> {
        match self.nodes[node].entries[address] {
            Entry::Holding { defend, .. } => Some(defend),
            Entry::Unmanaged | Entry::Watched | Entry::Silent { .. } => None,
        }
    }

    /// The addresses that a node has.
    pub fn held(&self, node: usize) -> Vec<usize> {
        (0..ADDRESSES).filter(|&address| self.holding(node, address).is_some()).collect()
    }

    /// Whether the lease that a node has on an address ends while its machine sleeps for so long.
    pub fn ends_in_sleep(&self, node: usize, address: usize, seconds: u64) -> bool {
        self.is_leased(node, address) && seconds > LEASE_S
    }

    fn is_leased(&self, node: usize, address: usize) -> bool {
        matches!(self.nodes[node].entries[address], Entry::Holding { leased: true, .. })
    }

    /// Whether an address is on a node's interface.
    pub fn is_configured(&self, node: usize, address: usize) -> bool {
        let by_daemon = match self.nodes[node].entries[address] {
            Entry::Silent { configured } | Entry::Holding { configured, .. } => configured,
            Entry::Unmanaged | Entry::Watched => false,
        };
        by_daemon || self.nodes[node].by_hand[address]
    }

    fn runs(&self, node: usize) -> bool {
        self.nodes[node].daemon == Daemon::Running
    }

    fn is_silent(&self, node: usize, address: usize) -> bool {
        matches!(self.nodes[node].entries[address], Entry::Silent { .. })
    }

    /// Whether a node can try to claim an address.
    fn can_claim(&self, node: usize, address: usize) -> bool {
        self.runs(node)
            && self.holding(node, address).is_none()
            && !self.nodes[node].by_hand[address]
            && self.holder(address) != Some(node)
    }

    /// Whether a step makes sense now.
    pub fn allows(&self, step: &Step) -> bool {
        match *step {
            Step::Claim { node, address, .. } => {
                self.can_claim(node, address) && self.holder(address).is_none()
            }
            Step::ClaimTaken { node, address, .. } => {
                self.can_claim(node, address) && self.holder(address).is_some()
            }
            // One that would give way to the claim would be gone, and nobody would have the address.
            Step::Overreach { node, address } => {
                self.can_claim(node, address)
                    && self.holder(address).is_some_and(|host| match host {
                        PLAIN => true,
                        holder => self.runs(holder) && self.holding(holder, address) == Some(Defend::Hold),
                    })
            }
            Step::Offline { node, address, .. } => {
                self.runs(node)
                    && self.nodes[node].entries[address] != Entry::Unmanaged
                    && !self.nodes[node].by_hand[address]
            }
            Step::HandOver { from, to, address, .. } => {
                self.runs(from) && self.holding(from, address).is_some() && self.can_claim(to, address)
            }
            Step::Announce { node, address } | Step::Renew { node, address } => {
                self.runs(node) && self.holding(node, address).is_some()
            }
            Step::LeaseEnds { node, address, .. } => self.runs(node) && self.is_leased(node, address),
            Step::Kill { node } | Step::Stop { node } | Step::Upgrade { node } | Step::ChangeMac { node } => {
                self.runs(node)
            }
            Step::Restart { node } => self.nodes[node].daemon == Daemon::Dead,
            Step::Continue { node } => self.nodes[node].daemon == Daemon::Stopped,
            Step::KillWhile { node, address, claiming: true, .. } => {
                self.can_claim(node, address) && self.holder(address).is_none()
            }
            Step::KillWhile { node, address, claiming: false, .. } => {
                self.runs(node) && self.holding(node, address).is_some()
            }
            Step::Unload { node } => {
                self.nodes[node].daemon != Daemon::Stopped && !self.nodes[node].by_hand.contains(&true)
            }
            Step::Flap { node, down_ms, taken } => taken.is_none_or(|(address, to)| {
                // Only a daemon that runs sees that the link was gone for long, and asks before it goes on.
                down_ms > LONG_MS
                    && self.runs(node)
                    && self.holding(node, address).is_some()
                    && to != node
                    && self.can_claim(to, address)
            }),
            Step::RemoveByHand { node, address } => {
                let removals = &self.nodes[node].removals;
                let lately =
                    removals.iter().filter(|(step, of)| *of == address && self.steps - step < STEPS_A_MINUTE);
                matches!(self.nodes[node].entries[address], Entry::Holding { configured: true, .. })
                    && lately.count() < RESTORATIONS
            }
            Step::AddByHand { node, address } => {
                self.is_silent(node, address) && !self.is_configured(node, address)
            }
            Step::DeleteByHand { node, address } => self.nodes[node].by_hand[address],
            Step::PlainTakes { address } => self.holder(address).is_none(),
            Step::PlainLeaves { address } => self.plain[address],
            Step::StrangerClaims { .. }
            | Step::StrangerProbes { .. }
            | Step::Flood { .. }
            | Step::Jump { .. } => true,
            Step::SpeakWithoutRight { node, address } => self.is_silent(node, address),
        }
    }

    /// What the script knows after a step that went as it has to.
    pub fn apply(&mut self, step: &Step) {
        self.steps += 1;
        match *step {
            Step::Claim { node, address, defend, leased, .. } => {
                self.nodes[node].entries[address] = Entry::Holding { defend, leased, configured: true };
            }
            Step::ClaimTaken { node, address, .. } | Step::Overreach { node, address } => {
                self.nodes[node].entries[address] = Entry::Silent { configured: false };
            }
            Step::Offline { node, address, watch } => {
                let entry = if watch { Entry::Watched } else { Entry::Unmanaged };
                self.nodes[node].entries[address] = entry;
            }
            Step::HandOver { from, to, address, .. } => {
                self.nodes[from].entries[address] = Entry::Unmanaged;
                self.nodes[to].entries[address] =
                    Entry::Holding { defend: Defend::Hold, leased: false, configured: true };
            }
            Step::Renew { node, address } => {
                if let Entry::Holding { leased, .. } = &mut self.nodes[node].entries[address] {
                    *leased = true;
                }
            }
            Step::LeaseEnds { node, address, daemon } => {
                self.nodes[node].daemon = daemon;
                self.lose(node, address);
            }
            Step::Kill { node } => self.nodes[node].daemon = Daemon::Dead,
            Step::Stop { node } => self.nodes[node].daemon = Daemon::Stopped,
            Step::Restart { node } | Step::Continue { node } => self.awake(node),
            Step::KillWhile { node, address, .. } => {
                self.nodes[node].entries[address] = Entry::Unmanaged;
                self.awake(node);
            }
            Step::Unload { node } => {
                let by_hand = self.nodes[node].by_hand;
                self.nodes[node] = NodeModel { by_hand, ..Self::default().nodes[0].clone() };
            }
            Step::Flap { node, taken: Some((address, to)), .. } => {
                let entry = self.nodes[node].entries[address];
                self.nodes[to].entries[address] = match entry {
                    Entry::Holding { defend, .. } => {
                        Entry::Holding { defend, leased: false, configured: true }
                    }
                    Entry::Unmanaged | Entry::Watched | Entry::Silent { .. } => entry,
                };
                self.lose(node, address);
            }
            Step::RemoveByHand { node, address } => {
                self.nodes[node].removals.push((self.steps, address));
                let runs = self.runs(node);
                if let Entry::Holding { configured, .. } = &mut self.nodes[node].entries[address] {
                    *configured = runs;
                }
            }
            Step::AddByHand { node, address } => self.nodes[node].by_hand[address] = true,
            Step::DeleteByHand { node, address } => self.nodes[node].by_hand[address] = false,
            Step::PlainTakes { address } => self.plain[address] = true,
            Step::PlainLeaves { address } => self.plain[address] = false,
            Step::StrangerClaims { address, .. } | Step::Flood { address, .. } => {
                for node in 0..NODES {
                    if self.holding(node, address).is_some_and(|defend| defend.lost_at().is_some()) {
                        self.lose(node, address);
                    }
                }
            }
            Step::Jump { node, seconds } => {
                let mut woken = false;
                for address in 0..ADDRESSES {
                    if self.ends_in_sleep(node, address, seconds) {
                        woken = true;
                        self.lose(node, address);
                    }
                }
                // A daemon whose memory is older than its maps is replaced.
                if woken && self.nodes[node].daemon != Daemon::Dead {
                    self.awake(node);
                }
            }
            Step::Announce { .. }
            | Step::Upgrade { .. }
            | Step::Flap { taken: None, .. }
            | Step::ChangeMac { .. }
            | Step::StrangerProbes { .. }
            | Step::SpeakWithoutRight { .. } => {}
        }
    }

    /// The address is no longer the node's; a daemon that runs takes it off the interface.
    fn lose(&mut self, node: usize, address: usize) {
        let left = self.is_configured(node, address) && !self.runs(node);
        self.nodes[node].entries[address] = Entry::Silent { configured: left };
    }

    /// A daemon runs again, and puts the interface in order.
    fn awake(&mut self, node: usize) {
        self.nodes[node].daemon = Daemon::Running;
        for entry in &mut self.nodes[node].entries {
            match entry {
                Entry::Silent { configured } => *configured = false,
                Entry::Holding { configured, .. } => *configured = true,
                Entry::Unmanaged | Entry::Watched => {}
            }
        }
    }

    /// A step of a kind, if the dice find one that makes sense now.
    fn draw(&self, kind: Kind, dice: &mut Dice) -> Option<Step> {
        // A handful of tries finds one where there are some; where there are none another kind is drawn.
        (0..8).map(|_| self.roll(kind, dice)).find(|step| self.allows(step))
    }

    fn roll(&self, kind: Kind, dice: &mut Dice) -> Step {
        let (node, address) = (dice.below(NODES), dice.below(ADDRESSES));
        let way = if dice.chance(60) { Way::Probe } else { Way::Immediate };
        match kind {
            Kind::Claim => {
                let defend = dice.one_of(&[Defend::Hold, Defend::Hold, Defend::Once, Defend::Yield]);
                let leased = dice.chance(40);
                Step::Claim { node, address, way, defend, leased }
            }
            Kind::ClaimTaken => Step::ClaimTaken { node, address, way },
            Kind::Overreach => Step::Overreach { node, address },
            Kind::Offline => Step::Offline { node, address, watch: dice.chance(20) },
            Kind::HandOver => Step::HandOver { from: node, to: dice.below(NODES), address, way },
            Kind::Announce => Step::Announce { node, address },
            Kind::Renew => Step::Renew { node, address },
            Kind::LeaseEnds => {
                let daemon = dice.one_of(&[Daemon::Running, Daemon::Stopped, Daemon::Dead]);
                Step::LeaseEnds { node, address, daemon }
            }
            Kind::Kill => Step::Kill { node },
            Kind::Restart => Step::Restart { node },
            Kind::KillWhile => {
                let after_ms = dice.one_of(&[0, 2, 5, 20, 80, 170, 230]);
                Step::KillWhile { node, address, claiming: dice.chance(60), after_ms }
            }
            Kind::Stop => Step::Stop { node },
            Kind::Continue => Step::Continue { node },
            Kind::Upgrade => Step::Upgrade { node },
            Kind::Unload => Step::Unload { node },
            Kind::Flap => {
                let down_ms = dice.one_of(&FLAPS_MS);
                let taken = (down_ms > LONG_MS && dice.chance(60)).then(|| (address, dice.below(NODES)));
                Step::Flap { node, down_ms, taken }
            }
            Kind::ChangeMac => Step::ChangeMac { node },
            Kind::RemoveByHand => Step::RemoveByHand { node, address },
            Kind::AddByHand => Step::AddByHand { node, address },
            Kind::DeleteByHand => Step::DeleteByHand { node, address },
            Kind::PlainTakes => Step::PlainTakes { address },
            Kind::PlainLeaves => Step::PlainLeaves { address },
            Kind::StrangerClaims => {
                let forms = [Form::Announcement, Form::AnnouncementReply, Form::Reply, Form::Request];
                Step::StrangerClaims { address, form: dice.one_of(&forms) }
            }
            Kind::StrangerProbes => Step::StrangerProbes { address },
            Kind::Flood => Step::Flood { address, frames: dice.one_of(&[100, 200, 400]) },
            Kind::Jump => Step::Jump { node, seconds: dice.one_of(&[SHORT_SLEEP_S, LONG_SLEEP_S]) },
            Kind::SpeakWithoutRight => Step::SpeakWithoutRight { node, address },
        }
    }
}

/// The first `count` steps of a seed, of these kinds in these shares.
pub fn story(seed: u64, count: usize, kinds: &[(Kind, usize)]) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let mut model = Model::default();
    let total: usize = kinds.iter().map(|(_, share)| share).sum();
    let mut steps = Vec::with_capacity(count);
    while steps.len() < count {
        let mut at = dice.below(total);
        let (kind, _) = kinds
            .iter()
            .find(|(_, share)| {
                let found = at < *share;
                at = at.saturating_sub(*share);
                found
            })
            .expect("less than the total");
        let Some(step) = model.draw(*kind, &mut dice) else { continue };
        model.apply(&step);
        steps.push(step);
    }
    steps
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Addresses by their last byte, as they stand in frames.
        let text = format!("{self:?}");
        match text.split_once("address: ") {
            Some((before, after)) => {
                let digits = after.chars().take_while(char::is_ascii_digit).count();
                let number: usize = after[..digits].parse().map_err(|_| fmt::Error)?;
                write!(f, "{before}address: {}{}", address(number), &after[digits..])
            }
            None => f.write_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_the_same_story_each_time_and_another_one_another() {
        assert_eq!(story(7, 300, &ALL), story(7, 300, &ALL));
        assert_ne!(story(7, 300, &ALL), story(8, 300, &ALL));
        assert_eq!(story(7, 300, &ALL)[..100], story(7, 100, &ALL), "a shorter one is its beginning");
    }

    #[test]
    fn every_kind_of_step_happens_and_nobody_ever_has_what_another_has() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let mut model = Model::default();
            for step in story(seed, 500, &ALL) {
                assert!(model.allows(&step), "{step} in {model:?}");
                model.apply(&step);
                let text = format!("{step:?}");
                seen.insert(text.split(' ').next().expect("a name").to_owned());
                for address in 0..ADDRESSES {
                    let nodes = (0..NODES).filter(|&node| model.holding(node, address).is_some()).count();
                    assert!(nodes + usize::from(model.plain[address]) <= 1, "{address} after {step}");
                }
            }
        }
        assert_eq!(seen.len(), ALL.len(), "{seen:?}");
    }

    #[test]
    fn a_story_of_two_hundred_steps_has_most_kinds_in_it() {
        let mut seen = std::collections::BTreeSet::new();
        for step in story(1, 200, &ALL) {
            seen.insert(format!("{step:?}").split(' ').next().expect("a name").to_owned());
        }
        assert!(seen.len() > 20, "{seen:?}");
    }
}
