//! Given this input at this time, expect exactly these actions.
#![expect(clippy::wildcard_enum_match_arm, reason = "a test picks out what it is about")]

mod adopting;
mod announcing;
mod claiming;
mod defending;
mod giving_up;
mod golden;
mod joint;
mod leases;
mod links;
mod many;
mod program;
mod properties;
mod removal;
mod repairing;
mod stories;
mod watching;

use core::time::Duration;

use arpwarden_common::{
    abi::AddressKey,
    net::{Ipv4, MacAddr, Vlan},
    state::{Policy, State, StateWord},
    wire::arp::{Form, Outgoing, REPLY, REQUEST},
};

use crate::{
    Action, Answer, Dice, Engine, Event, EventKind, Input, Interface, Managed, MonoTime, OnlineSpec, Purpose,
    Reason, RequestId,
    input::{Claim, Claimant, Defend, OnRemoved, Pace, Profile, Register, Sighting, SightingKind},
};

pub(crate) const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
pub(crate) const RIVAL: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);
pub(crate) const OTHER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 8]);
pub(crate) const KEY: AddressKey =
    AddressKey { interface: 3, vlan: Vlan::UNTAGGED, address: Ipv4::new([192, 0, 2, 10]) };
pub(crate) const INTERFACE: Interface =
    Interface { mac: OWN, pace: Pace::Plain, moves: None, up: true, path: 0 };
pub(crate) const SPEC: OnlineSpec = OnlineSpec {
    prefix_length: 24,
    claim: Claim::Probe,
    profile: Profile::Fast,
    defend: Defend::Hold,
    wait: Duration::ZERO,
    adopt: false,
    lease: None,
    register: Register::Address,
    on_removed: OnRemoved::Restore,
    joint: false,
};

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) const fn claimant(mac: MacAddr) -> Claimant {
    Claimant { mac, ethernet_source: mac }
}

/// A small generator (SplitMix64): the same seed gives the same run.
#[derive(Clone, Debug)]
pub(crate) struct Seeded(pub(crate) u64);

impl Dice for Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        if bound == 0 { 0 } else { z % bound }
    }
}

/// An engine, the time, and everything it has asked for so far.
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) now: MonoTime,
    pub(crate) dice: Seeded,
    /// All actions so far with their times.
    pub(crate) trace: Vec<(MonoTime, Action)>,
    /// Looked at by [`Rig::news`].
    read: usize,
    /// Done by [`Rig::settle`].
    done: usize,
    /// What the kernel and the wire say; `None`: nothing yet.
    pub(crate) register: Option<Result<(), String>>,
    pub(crate) deregister: Option<Result<(), String>>,
    pub(crate) send: Option<Result<(), String>>,
    requests: u64,
}

impl Rig {
    /// An engine with the interface of [`KEY`], at second 1,000, where everything works at once.
    pub(crate) fn new() -> Self {
        Self::with(INTERFACE)
    }

    pub(crate) fn with(interface: Interface) -> Self {
        let mut rig = Self {
            engine: Engine::new(),
            now: MonoTime(1_000_000_000_000),
            dice: Seeded(1),
            trace: Vec::new(),
            read: 0,
            done: 0,
            register: Some(Ok(())),
            deregister: Some(Ok(())),
            send: Some(Ok(())),
            requests: 0,
        };
        rig.input(Input::Interface { index: KEY.interface, interface });
        rig
    }

    /// Feeds an input and the outcomes of what it leads to.
    pub(crate) fn input(&mut self, input: Input) {
        self.engine.handle(self.now, input, &mut self.dice);
        self.settle();
    }

    /// Collects actions and reports the outcomes that are set.
    pub(crate) fn settle(&mut self) {
        loop {
            while let Some(action) = self.engine.poll_action() {
                self.trace.push((self.now, action));
            }
            let Some((_, action)) = self.trace.get(self.done).cloned() else { return };
            self.done += 1;
            let outcome = match action {
                Action::Install { key, .. } => Some(Input::Installed { key, result: Ok(()) }),
                Action::Register { key, .. } => {
                    self.register.clone().map(|result| Input::Registered { key, result })
                }
                Action::Deregister { key, .. } => {
                    self.deregister.clone().map(|result| Input::Deregistered { key, result })
                }
                Action::Send { key, purpose, frame } => {
                    self.send.clone().map(|result| Input::Sent { key, purpose, frame, result })
                }
                Action::Store { .. }
                | Action::Lease { .. }
                | Action::Remember { .. }
                | Action::Remove { .. }
                | Action::Event(_)
                | Action::Answer { .. }
                | Action::Held { .. }
                | Action::Flip { .. } => None,
            };
            if let Some(outcome) = outcome {
                self.engine.handle(self.now, outcome, &mut self.dice);
            }
        }
    }

    /// Lets time pass, doing what comes due.
    pub(crate) fn pass(&mut self, wait: Duration) {
        let end = self.now.after(wait);
        while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.engine.handle_timeout(self.now, &mut self.dice);
            self.settle();
        }
        self.now = end;
    }

    /// Lets time pass until the state is that one.
    #[track_caller]
    pub(crate) fn until(&mut self, state: State) {
        for _ in 0..1_000 {
            if self.state() == Some(state) {
                return;
            }
            let due = self.engine.poll_timeout();
            let due = due.unwrap_or_else(|| panic!("nothing to wait for in {:?}", self.state()));
            self.pass(due.since(self.now));
        }
        panic!("not {state:?} but {:?}", self.state());
    }

    pub(crate) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub(crate) fn online(&mut self, spec: OnlineSpec) -> RequestId {
        let request = self.request();
        self.input(Input::Online { request, key: KEY, spec });
        request
    }

    pub(crate) fn offline(&mut self, watch: bool) -> RequestId {
        let request = self.request();
        self.input(Input::Offline { request, key: KEY, watch });
        request
    }

    pub(crate) fn watch(&mut self) -> RequestId {
        let request = self.request();
        self.input(Input::Watch { request, key: KEY });
        request
    }

    pub(crate) fn announce(&mut self) -> RequestId {
        let request = self.request();
        self.input(Input::Announce { request, key: KEY });
        request
    }

    pub(crate) fn seen(&mut self, sighting: Sighting) {
        self.input(Input::Seen { key: KEY, sighting });
    }

    /// A claim by `mac` now, reported for the first time.
    pub(crate) fn claim_by(&mut self, mac: MacAddr) -> Sighting {
        let sighting = self.sighting(SightingKind::Claim, mac);
        self.seen(sighting);
        sighting
    }

    pub(crate) fn sighting(&self, kind: SightingKind, mac: MacAddr) -> Sighting {
        Sighting {
            kind,
            claimant: claimant(mac),
            form: if kind == SightingKind::Probe { Form::Probe } else { Form::Announcement },
            operation: REQUEST,
            count: 1,
            repeat: false,
            owner_changed: kind == SightingKind::Claim,
            at: self.now,
            defended: false,
            fell: false,
            allowed: false,
        }
    }

    pub(crate) fn state(&self) -> Option<State> {
        self.engine.get(&KEY).map(Managed::state)
    }

    pub(crate) fn managed(&self) -> &Managed {
        self.engine.get(&KEY).expect("the address is managed")
    }

    /// Actions since the last call.
    pub(crate) fn news(&mut self) -> Vec<Action> {
        let news = self.trace[self.read..].iter().map(|(_, action)| action.clone()).collect();
        self.read = self.trace.len();
        news
    }

    pub(crate) fn answers(&self, request: RequestId) -> Vec<Answer> {
        let answers = self.trace.iter().filter_map(|(_, action)| match action {
            Action::Answer { request: answered, answer } if *answered == request => Some(answer.clone()),
            _ => None,
        });
        answers.collect()
    }

    /// Frames of that purpose so far, with their times.
    pub(crate) fn frames(&self, wanted: Purpose) -> Vec<(MonoTime, Outgoing)> {
        let frames = self.trace.iter().filter_map(|(at, action)| match action {
            Action::Send { purpose, frame, .. } if *purpose == wanted => Some((*at, *frame)),
            _ => None,
        });
        frames.collect()
    }

    /// Events so far.
    pub(crate) fn events(&self) -> Vec<EventKind> {
        let events = self.trace.iter().filter_map(|(_, action)| match action {
            Action::Event(Event { kind, .. }) => Some(kind.clone()),
            _ => None,
        });
        events.collect()
    }

    pub(crate) fn count(&self, which: impl Fn(&EventKind) -> bool) -> usize {
        self.events().iter().filter(|kind| which(kind)).count()
    }

    /// The word that the datapath was told last.
    pub(crate) fn word(&self) -> Option<StateWord> {
        self.trace.iter().rev().find_map(|(_, action)| match action {
            Action::Install { word, .. } | Action::Store { word, .. } => Some(*word),
            _ => None,
        })
    }

    /// An address that is ours and announced.
    pub(crate) fn held(spec: OnlineSpec) -> Self {
        Self::held_on(INTERFACE, spec)
    }

    pub(crate) fn held_on(interface: Interface, spec: OnlineSpec) -> Self {
        let mut rig = Self::with(interface);
        rig.online(spec);
        rig.until(State::Online);
        rig.pass(secs(100));
        rig.news();
        rig
    }

    /// An address whose probes have gone unanswered, with the kernel at work on the registration.
    pub(crate) fn registering(spec: OnlineSpec) -> (Self, RequestId) {
        let mut rig = Self::new();
        rig.register = None;
        let request = rig.online(spec);
        while !matches!(rig.trace.last(), Some((_, Action::Register { .. }))) {
            let due = rig.engine.poll_timeout().expect("something to wait for");
            rig.pass(due.since(rig.now));
        }
        rig.news();
        (rig, request)
    }
}

/// A word whose policy is that of [`SPEC`], outside the time in which a claim is taken back.
pub(crate) fn word(state: State, flags: u8, generation: u8) -> StateWord {
    let policy = if state.may_answer() { Policy::Hold } else { Policy::Leave };
    StateWord::new(OWN, state, flags | policy.flags(), generation)
}

pub(crate) fn store(state: State, flags: u8, generation: u8) -> Action {
    Action::Store { key: KEY, word: word(state, flags, generation) }
}

pub(crate) fn remember(spec: OnlineSpec) -> Action {
    Action::Remember { key: KEY, spec: Some(spec) }
}

pub(crate) fn stepped(from: Option<State>, to: Option<State>, reason: Reason) -> Action {
    Action::Event(Event { key: KEY, kind: EventKind::State { from, to, reason } })
}

pub(crate) fn event(kind: EventKind) -> Action {
    Action::Event(Event { key: KEY, kind })
}

pub(crate) fn request_form() -> Outgoing {
    Outgoing::announcement(OWN, OWN, Vlan::UNTAGGED, KEY.address)
}

pub(crate) fn reply_form() -> Outgoing {
    Outgoing::announcement_reply(OWN, Vlan::UNTAGGED, KEY.address)
}

pub(crate) fn is_reply(frame: &Outgoing) -> bool {
    frame.operation == REPLY
}
