//! Several hosts on one simulated segment, with a clock that jumps: engines with the real verdict function in front
//! of a kernel that behaves as Linux does with ARP, and plain Linux hosts.
//!
//! Every frame that leaves a host with an engine is held against the first promise: no frame pairs a managed
//! address that may not answer with an own MAC as sender.

use core::{cell::Cell, time::Duration};
use std::collections::{BTreeMap, BTreeSet};

use arpwarden_common::{
    abi::{AddressKey, AllowedKey, Port},
    defence::Reaction,
    net::{Ipv4, MacAddr, Vlan},
    state::{State, StateWord},
    verdict::{self, Asking, Entry, Outcome, Tables, Witness, verdict},
    wire::arp::{Form, Frame, Outgoing, Parsed, REPLY, REQUEST, parse},
};

use crate::{
    Action, Answer, Dice, Engine, EventKind, Input, Interface, MonoTime, OnlineSpec, RequestId,
    input::{Claimant, Kept, Sighting, SightingKind},
    tests::Seeded,
};

/// From one host to all others.
const WIRE: Duration = Duration::from_micros(30);
/// A neighbour entry of Linux that is younger follows announcements only (`locktime`, 1 s by default).
const LOCK_TIME: Duration = Duration::from_secs(1);
/// The one interface of every host.
const INTERFACE: u32 = 2;

/// Names a host of a [`Net`].
pub(crate) type Host = usize;

pub(crate) fn address(last: u8) -> Ipv4 {
    Ipv4::new([192, 0, 2, last])
}

pub(crate) fn key(address: Ipv4) -> AddressKey {
    AddressKey { interface: INTERFACE, vlan: Vlan::UNTAGGED, address }
}

/// ARP as Linux does it (`net/ipv4/arp.c`).
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) mac: MacAddr,
    pub(crate) addresses: BTreeSet<Ipv4>,
    neighbours: BTreeMap<Ipv4, (MacAddr, MonoTime)>,
}

impl Kernel {
    fn new(mac: MacAddr) -> Self {
        Self { mac, addresses: BTreeSet::new(), neighbours: BTreeMap::new() }
    }

    /// Takes a frame in; the answer, if it has one.
    fn receive(&mut self, now: MonoTime, frame: &Frame, target_mac: MacAddr) -> Option<Outgoing> {
        let for_us = frame.destination == self.mac;
        if frame.destination != MacAddr::BROADCAST && !for_us {
            return None;
        }
        let form = frame.form();
        let announced =
            form == Form::Announcement && (frame.operation == REQUEST || target_mac == frame.sender_mac);
        if let Some((mac, updated)) = self.neighbours.get_mut(&frame.sender_ip)
            && (announced || now.since(*updated) > LOCK_TIME || (for_us && form == Form::Reply))
            && (announced || for_us || frame.operation == REQUEST)
        {
            (*mac, *updated) = (frame.sender_mac, now);
        }
        // A request with sender = target has a martian source for a host that has the address: no answer.
        let asked = frame.operation == REQUEST
            && form != Form::Announcement
            && self.addresses.contains(&frame.target_ip);
        if !asked {
            return None;
        }
        if !frame.sender_ip.is_unspecified() {
            self.neighbours.insert(frame.sender_ip, (frame.sender_mac, now));
        }
        Some(Outgoing {
            destination: frame.source,
            source: self.mac,
            vlan: frame.vlan,
            operation: REPLY,
            sender_mac: self.mac,
            sender_ip: frame.target_ip,
            target_mac: frame.sender_mac,
            target_ip: frame.sender_ip,
        })
    }
}

/// A host with an engine.
#[derive(Debug)]
pub(crate) struct Warden {
    pub(crate) engine: Engine,
    pub(crate) kernel: Kernel,
    words: BTreeMap<AddressKey, StateWord>,
    leases: BTreeMap<AddressKey, MonoTime>,
    /// What the state file and the journal of registrations have.
    specs: BTreeMap<AddressKey, OnlineSpec>,
    journal: BTreeMap<AddressKey, u8>,
    interface: Interface,
    owners: BTreeMap<AddressKey, MacAddr>,
    reported: BTreeSet<(AddressKey, MacAddr, u64)>,
    /// No report overtakes an earlier one.
    ring: MonoTime,
    pub(crate) events: Vec<(MonoTime, EventKind)>,
    pub(crate) answers: BTreeMap<RequestId, Vec<Answer>>,
    /// The daemon is stopped (SIGSTOP); what came in meanwhile.
    frozen: Option<Vec<Input>>,
    /// The daemon is dead; what it was told is lost.
    dead: bool,
    requests: u64,
}

impl Warden {
    /// By its word and its lease, whatever the daemon does.
    fn may_answer(&self, key: &AddressKey, now: MonoTime) -> bool {
        self.words.get(key).is_some_and(|word| word.may_answer())
            && self.leases.get(key).is_none_or(|until| now <= *until)
    }
}

struct Maps<'a> {
    warden: &'a Warden,
    now: MonoTime,
}

impl Tables for Maps<'_> {
    type Place = AddressKey;

    fn address(&self, key: &AddressKey) -> Option<Entry<AddressKey>> {
        let may_answer = self.warden.may_answer(key, self.now);
        self.warden.words.get(key).map(|word| Entry { place: *key, word: *word, may_answer })
    }

    fn is_own(&self, mac: MacAddr) -> bool {
        mac == self.warden.kernel.mac
    }

    fn is_allowed(&self, _: &AllowedKey) -> bool {
        false
    }

    fn daemon_lives(&self) -> bool {
        true
    }
}

/// What the verdict has told of a frame.
#[derive(Default)]
struct Told(Cell<Option<verdict::Sighting<AddressKey>>>);

impl Witness<AddressKey> for Told {
    fn saw(&self, sighting: verdict::Sighting<AddressKey>) -> Reaction {
        self.0.set(Some(sighting));
        Reaction::Nothing
    }

    fn asks(&self, _: Asking<AddressKey>) {}
}

#[derive(Debug)]
enum Node {
    Warden(Box<Warden>),
    Linux(Kernel),
}

#[derive(Debug)]
enum Item {
    Frame { to: Host, bytes: Vec<u8> },
    Input { to: Host, input: Input },
    Kernel { to: Host, key: AddressKey, add: bool },
}

/// The segment.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) now: MonoTime,
    pub(crate) dice: Seeded,
    nodes: Vec<Node>,
    /// Hosts whose cable is out.
    unplugged: BTreeSet<Host>,
    queue: BTreeMap<(MonoTime, u64), Item>,
    serial: u64,
    /// Everything that was on the wire.
    pub(crate) log: Vec<(MonoTime, Host, Outgoing)>,
    /// All that happened, in order.
    pub(crate) story: Vec<(MonoTime, Host, Happening)>,
}

/// Something worth telling.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Happening {
    Sent(Outgoing),
    Event(AddressKey, EventKind),
    Answer(RequestId, Answer),
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: MonoTime(7_000_000_000),
            dice: Seeded(seed),
            nodes: Vec::new(),
            unplugged: BTreeSet::new(),
            queue: BTreeMap::new(),
            serial: 0,
            log: Vec::new(),
            story: Vec::new(),
        }
    }

    /// Adds a Linux host with `addresses`.
    pub(crate) fn linux(&mut self, addresses: &[Ipv4]) -> Host {
        let mut kernel = Kernel::new(mac_of(self.nodes.len()));
        kernel.addresses.extend(addresses);
        self.nodes.push(Node::Linux(kernel));
        self.nodes.len() - 1
    }

    /// Adds a host with an engine; its MAC is set here.
    pub(crate) fn warden(&mut self, interface: Interface) -> Host {
        let mac = mac_of(self.nodes.len());
        let host = self.nodes.len();
        self.nodes.push(Node::Warden(Box::new(Warden {
            engine: Engine::new(),
            kernel: Kernel::new(mac),
            words: BTreeMap::new(),
            leases: BTreeMap::new(),
            specs: BTreeMap::new(),
            journal: BTreeMap::new(),
            interface: Interface { mac, ..interface },
            owners: BTreeMap::new(),
            reported: BTreeSet::new(),
            ring: self.now,
            events: Vec::new(),
            answers: BTreeMap::new(),
            frozen: None,
            dead: false,
            requests: 0,
        })));
        let interface = Interface { mac, ..interface };
        self.tell(host, Input::Interface { index: INTERFACE, interface });
        host
    }

    pub(crate) fn mac(&self, host: Host) -> MacAddr {
        self.kernel(host).mac
    }

    #[track_caller]
    pub(crate) fn at(&self, host: Host) -> &Warden {
        match &self.nodes[host] {
            Node::Warden(warden) => warden,
            Node::Linux(_) => panic!("host {host} has no engine"),
        }
    }

    #[track_caller]
    fn at_mut(&mut self, host: Host) -> &mut Warden {
        match &mut self.nodes[host] {
            Node::Warden(warden) => warden,
            Node::Linux(_) => panic!("host {host} has no engine"),
        }
    }

    pub(crate) fn kernel(&self, host: Host) -> &Kernel {
        match &self.nodes[host] {
            Node::Warden(warden) => &warden.kernel,
            Node::Linux(kernel) => kernel,
        }
    }

    pub(crate) fn kernel_mut(&mut self, host: Host) -> &mut Kernel {
        match &mut self.nodes[host] {
            Node::Warden(warden) => &mut warden.kernel,
            Node::Linux(kernel) => kernel,
        }
    }

    pub(crate) fn state(&self, host: Host, address: Ipv4) -> Option<State> {
        self.at(host).engine.get(&key(address)).map(|address| address.state())
    }

    pub(crate) fn may_answer(&self, host: Host, address: Ipv4) -> bool {
        self.state(host, address).is_some_and(State::may_answer)
    }

    /// Its program would answer, whatever its daemon knows.
    pub(crate) fn answers_for(&self, host: Host, address: Ipv4) -> bool {
        self.at(host).may_answer(&key(address), self.now)
    }

    /// Whom `host` would send packets for `address` to.
    pub(crate) fn neighbour(&self, host: Host, address: Ipv4) -> Option<MacAddr> {
        self.kernel(host).neighbours.get(&address).map(|(mac, _)| *mac)
    }

    pub(crate) fn online(&mut self, host: Host, address: Ipv4, spec: OnlineSpec) -> RequestId {
        self.command(host, |request| Input::Online { request, key: key(address), spec })
    }

    pub(crate) fn offline(&mut self, host: Host, address: Ipv4) -> RequestId {
        self.command(host, |request| Input::Offline { request, key: key(address), watch: false })
    }

    pub(crate) fn watch(&mut self, host: Host, address: Ipv4) -> RequestId {
        self.command(host, |request| Input::Watch { request, key: key(address) })
    }

    pub(crate) fn announce(&mut self, host: Host, address: Ipv4) -> RequestId {
        self.command(host, |request| Input::Announce { request, key: key(address) })
    }

    fn command(&mut self, host: Host, input: impl FnOnce(RequestId) -> Input) -> RequestId {
        let warden = self.at_mut(host);
        warden.requests += 1;
        let request = RequestId(warden.requests);
        self.tell(host, input(request));
        request
    }

    pub(crate) fn answers(&self, host: Host, request: RequestId) -> &[Answer] {
        self.at(host).answers.get(&request).map_or(&[], Vec::as_slice)
    }

    /// `host` asks everybody who has `address`, with an address of its own.
    pub(crate) fn ask(&mut self, host: Host, address: Ipv4) {
        let kernel = self.kernel_mut(host);
        let own = kernel.addresses.first().copied().expect("the asker has an address");
        let mac = kernel.mac;
        // The entry is there, waiting for an answer; nothing locks it.
        let unlocked = MonoTime(0);
        kernel.neighbours.entry(address).or_insert((MacAddr::ZERO, unlocked));
        let question = Outgoing { sender_ip: own, ..Outgoing::probe(mac, Vlan::UNTAGGED, address) };
        self.transmit(host, question);
    }

    /// `host` says that it has `address`, whatever is so.
    pub(crate) fn usurp(&mut self, host: Host, address: Ipv4) {
        let mac = self.mac(host);
        self.transmit(host, Outgoing::announcement(mac, mac, Vlan::UNTAGGED, address));
    }

    pub(crate) fn unplug(&mut self, host: Host) {
        self.unplugged.insert(host);
    }

    pub(crate) fn plug(&mut self, host: Host) {
        self.unplugged.remove(&host);
    }

    /// The link of a host with an engine goes down or comes up, cable and all.
    pub(crate) fn link(&mut self, host: Host, up: bool) {
        if up {
            self.plug(host);
        } else {
            self.unplug(host);
        }
        let warden = self.at_mut(host);
        warden.interface.up = up;
        let interface = warden.interface;
        self.tell(host, Input::Interface { index: INTERFACE, interface });
    }

    pub(crate) fn renew(&mut self, host: Host, address: Ipv4, lease: Duration) -> RequestId {
        self.command(host, |request| Input::Renew { request, key: key(address), lease })
    }

    /// Kills the daemon; its program goes on, and the kernel with what it was asked for.
    pub(crate) fn kill(&mut self, host: Host) {
        let warden = self.at_mut(host);
        warden.engine = Engine::new();
        warden.frozen = None;
        warden.dead = true;
        self.queue.retain(|_, item| !matches!(item, Item::Input { to, .. } if *to == host));
    }

    /// Starts the daemon again.
    pub(crate) fn start(&mut self, host: Host) {
        let warden = self.at_mut(host);
        warden.dead = false;
        let interface = warden.interface;
        let kept = warden.words.iter().map(|(key, word)| {
            let kept = Kept {
                word: *word,
                spec: warden.specs.get(key).copied(),
                registered: warden.journal.get(key).copied(),
                local: warden.kernel.addresses.contains(&key.address),
                lease_until: warden.leases.get(key).copied(),
                fallen: false,
                defences: Vec::new(),
                owner: None,
                untold: 0,
            };
            (*key, kept)
        });
        let kept: Vec<(AddressKey, Kept)> = kept.collect();
        self.tell(host, Input::Interface { index: INTERFACE, interface });
        for (key, kept) in kept {
            self.tell(host, Input::Adopt { key, kept });
        }
    }

    /// Stops the daemon; its program goes on.
    pub(crate) fn freeze(&mut self, host: Host) {
        self.at_mut(host).frozen = Some(Vec::new());
    }

    /// Lets the daemon go on: what came in first, timers second.
    pub(crate) fn thaw(&mut self, host: Host) {
        for input in self.at_mut(host).frozen.take().unwrap_or_default() {
            self.tell(host, input);
        }
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, wait: Duration) {
        let end = self.now.after(wait);
        loop {
            let timer = self.nodes.iter().enumerate().filter_map(|(host, node)| match node {
                Node::Warden(warden) if warden.frozen.is_none() => {
                    Some((warden.engine.poll_timeout()?, host))
                }
                Node::Warden(_) | Node::Linux(_) => None,
            });
            let timer = timer.min();
            let item = self.queue.first_key_value().map(|((at, _), _)| *at);
            let next = [timer.map(|(at, _)| at), item].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            // What has come in is heard before time is.
            if item == Some(next) {
                if let Some((_, item)) = self.queue.pop_first() {
                    self.deliver(item);
                }
            } else if let Some((_, host)) = timer {
                let (now, mut dice) = (self.now, self.dice.clone());
                self.at_mut(host).engine.handle_timeout(now, &mut dice);
                self.dice = dice;
                self.perform(host);
            }
        }
        self.now = end;
    }

    fn later(&mut self, wait: Duration, item: Item) {
        self.serial += 1;
        self.queue.insert((self.now.after(wait), self.serial), item);
    }

    /// A wait drawn from `least..most` microseconds.
    fn draw(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(least + self.dice.below(most - least))
    }

    fn deliver(&mut self, item: Item) {
        match item {
            Item::Frame { to, bytes } => self.receive(to, bytes),
            Item::Input { to, input } => self.tell(to, input),
            Item::Kernel { to, key, add } => {
                let (addresses, result) = (&mut self.at_mut(to).kernel.addresses, Ok(()));
                if add {
                    addresses.insert(key.address);
                    self.tell(to, Input::Registered { key, result });
                } else {
                    addresses.remove(&key.address);
                    self.at_mut(to).journal.remove(&key);
                    self.tell(to, Input::Deregistered { key, result });
                }
                // The watch is another socket: its report comes later.
                let wait = self.draw(10, 500);
                self.later(wait, Item::Input { to, input: Input::Local { key, local: add } });
            }
        }
    }

    fn tell(&mut self, host: Host, input: Input) {
        let (now, mut dice) = (self.now, self.dice.clone());
        let warden = self.at_mut(host);
        if warden.dead {
            return;
        }
        if let Some(waiting) = &mut warden.frozen {
            waiting.push(input);
            return;
        }
        warden.engine.handle(now, input, &mut dice);
        self.dice = dice;
        self.perform(host);
    }

    fn perform(&mut self, host: Host) {
        while let Some(action) = self.at_mut(host).engine.poll_action() {
            let now = self.now;
            match action {
                Action::Install { key, word } => {
                    let before = self.at_mut(host).words.insert(key, word);
                    assert_eq!(before, None, "installed twice");
                    self.tell(host, Input::Installed { key, result: Ok(()) });
                }
                Action::Store { key, word } => {
                    let before = self.at_mut(host).words.insert(key, word);
                    assert!(before.is_some(), "stored without being installed");
                }
                Action::Lease { key, until } => {
                    let leases = &mut self.at_mut(host).leases;
                    match until {
                        Some(until) => leases.insert(key, until),
                        None => leases.remove(&key),
                    };
                }
                Action::Remember { key, spec } => {
                    let specs = &mut self.at_mut(host).specs;
                    match spec {
                        Some(spec) => specs.insert(key, spec),
                        None => specs.remove(&key),
                    };
                }
                Action::Remove { key } => {
                    let warden = self.at_mut(host);
                    warden.leases.remove(&key);
                    warden.specs.remove(&key);
                    assert!(warden.words.remove(&key).is_some(), "removed without being installed");
                    assert!(!warden.kernel.addresses.contains(&key.address), "still on the interface");
                    warden.owners.remove(&key);
                }
                Action::Register { key, prefix_length } => {
                    self.at_mut(host).journal.insert(key, prefix_length);
                    assert!(self.at(host).words[&key].is_local(), "the shield comes first");
                    let wait = self.draw(100, 2_000);
                    self.later(wait, Item::Kernel { to: host, key, add: true });
                }
                Action::Deregister { key, .. } => {
                    assert!(!self.at(host).words[&key].may_answer(), "silence comes first");
                    let wait = self.draw(100, 2_000);
                    self.later(wait, Item::Kernel { to: host, key, add: false });
                }
                Action::Send { key, purpose, frame } => {
                    self.transmit(host, frame);
                    self.tell(host, Input::Sent { key, purpose, frame, result: Ok(()) });
                }
                Action::Held { key } => self.tell(host, Input::TakeAll { group: 0, keys: vec![key] }),
                Action::Flip { .. } => {}
                Action::Event(event) => {
                    self.story.push((now, host, Happening::Event(event.key, event.kind.clone())));
                    self.at_mut(host).events.push((now, event.kind));
                }
                Action::Answer { request, answer } => {
                    self.story.push((now, host, Happening::Answer(request, answer.clone())));
                    self.at_mut(host).answers.entry(request).or_default().push(answer);
                }
            }
        }
    }

    fn transmit(&mut self, from: Host, frame: Outgoing) {
        if let Node::Warden(warden) = &self.nodes[from]
            && let Some(word) = warden.words.get(&key(frame.sender_ip))
        {
            let own = frame.sender_mac == warden.kernel.mac;
            assert!(
                !own || warden.may_answer(&key(frame.sender_ip), self.now) || word.is(State::Watched),
                "{:?} leaves a host whose word is {word:?}",
                frame
            );
        }
        self.log.push((self.now, from, frame));
        self.story.push((self.now, from, Happening::Sent(frame)));
        if self.unplugged.contains(&from) {
            return;
        }
        let mut buffer = [0; Outgoing::MAX_LEN];
        let len = frame.emit(&mut buffer);
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            let bytes = buffer[..len].to_vec();
            self.later(WIRE, Item::Frame { to, bytes });
        }
    }

    fn receive(&mut self, to: Host, bytes: Vec<u8>) {
        if self.unplugged.contains(&to) {
            return;
        }
        let Parsed::Arp(frame) = parse(&bytes[..]) else { panic!("{bytes:02x?} is not ARP") };
        let target_mac = &bytes[frame.arp_at + 18..frame.arp_at + 24];
        let target_mac = MacAddr::new(target_mac.try_into().expect("six bytes"));
        let now = self.now;
        let answer = match &mut self.nodes[to] {
            Node::Linux(kernel) => kernel.receive(now, &frame, target_mac),
            Node::Warden(warden) => {
                let mac = warden.kernel.mac;
                let port = Port::accepting(mac, INTERFACE);
                let told = Told::default();
                let answer = match verdict(&frame, &port, &Maps { warden, now }, &told) {
                    Outcome::Answered { mac, .. } => Some(Outgoing {
                        destination: frame.source,
                        source: mac,
                        vlan: frame.vlan,
                        operation: REPLY,
                        sender_mac: mac,
                        sender_ip: frame.target_ip,
                        target_mac: frame.sender_mac,
                        target_ip: frame.sender_ip,
                    }),
                    Outcome::Shielded { .. } | Outcome::Withheld => None,
                    Outcome::Truncated
                    | Outcome::BadHeader
                    | Outcome::BadSender
                    | Outcome::Gratuitous
                    | Outcome::Reply
                    | Outcome::OtherDestination
                    | Outcome::NotAnswering
                    | Outcome::Unmanaged
                    | Outcome::Defended { .. }
                    | Outcome::InactivePort => warden.kernel.receive(now, &frame, target_mac),
                };
                if let Some(sighting) = told.0.get() {
                    self.report(to, &frame, sighting);
                }
                answer
            }
        };
        if let Some(answer) = answer {
            self.transmit(to, answer);
        }
    }

    fn report(&mut self, to: Host, frame: &Frame, sighting: verdict::Sighting<AddressKey>) {
        let (kind, seen) = match sighting {
            verdict::Sighting::Echo(None)
            | verdict::Sighting::Sibling(None)
            | verdict::Sighting::Allowed(_) => return,
            verdict::Sighting::Claim(seen) => (SightingKind::Claim, seen),
            verdict::Sighting::Probe(seen) => (SightingKind::Probe, seen),
            verdict::Sighting::Echo(Some(seen)) => (SightingKind::Echo { sibling: false }, seen),
            verdict::Sighting::Sibling(Some(seen)) => (SightingKind::Echo { sibling: true }, seen),
        };
        let (now, key, wait) = (self.now, seen.place, self.draw(20, 200));
        let warden = self.at_mut(to);
        let claim = kind == SightingKind::Claim;
        let owner_changed = claim && warden.owners.insert(key, frame.sender_mac) != Some(frame.sender_mac);
        if claim && !seen.contested() && !owner_changed {
            return;
        }
        let repeat = !warden.reported.insert((key, frame.sender_mac, now.0 / 60_000_000_000));
        let sighting = Sighting {
            kind,
            claimant: Claimant { mac: frame.sender_mac, ethernet_source: frame.source },
            form: frame.form(),
            operation: frame.operation,
            count: 1,
            repeat,
            owner_changed,
            at: now,
            defended: false,
            fell: false,
            allowed: false,
        };
        warden.ring = warden.ring.max(now.after(wait));
        let wait = warden.ring.since(now);
        self.later(wait, Item::Input { to, input: Input::Seen { key, sighting } });
    }
}

fn mac_of(host: Host) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 1, u8::try_from(host).expect("a small segment") + 1])
}
