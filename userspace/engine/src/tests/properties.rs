//! What holds whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    input::{Kept, MoveBudget, Neighbour},
    sim::{Host, Net, address, key as key_of},
};

const VIP: u8 = 10;

/// 256 cases each; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

fn specs() -> impl Strategy<Value = OnlineSpec> {
    let claims =
        vec![Claim::Probe, Claim::Immediate { check: ms(20) }, Claim::Immediate { check: Duration::ZERO }];
    let waits = vec![Duration::ZERO, ms(300), secs(5), secs(100), Duration::MAX];
    (
        select(claims),
        select(vec![Profile::Fast, Profile::Rfc5227]),
        select(vec![Defend::Yield, Defend::Once, Defend::Hold]),
        select(waits),
        prop::bool::weighted(0.1),
        select(vec![24, 32]),
        leases(),
        prop::bool::weighted(0.1),
        select(vec![OnRemoved::Restore, OnRemoved::GiveUp, OnRemoved::Report]),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(claim, profile, defend, wait, adopt, prefix_length, lease, unregistered, on_removed, joint)| {
                OnlineSpec {
                    prefix_length,
                    claim,
                    profile,
                    defend,
                    wait,
                    adopt,
                    lease,
                    register: if unregistered { Register::None } else { Register::Address },
                    on_removed,
                    joint,
                }
            },
        )
}

fn leases() -> impl Strategy<Value = Option<Duration>> {
    let some = vec![Duration::ZERO, ms(5), ms(200), secs(2), secs(30), secs(1_000), Duration::MAX];
    prop::option::weighted(0.3, select(some))
}

fn interfaces() -> impl Strategy<Value = Interface> {
    let moves = vec![
        None,
        Some(MoveBudget::EVPN),
        Some(MoveBudget { moves: 1, window: secs(15) }),
        Some(MoveBudget { moves: 0, window: Duration::MAX }),
        Some(MoveBudget { moves: 2, window: Duration::ZERO }),
    ];
    let paces = select(vec![Pace::Plain, Pace::Inspected, Pace::Unlimited]);
    (select(vec![OWN, OTHER]), paces, select(moves), prop::bool::weighted(0.7), select(vec![0, 3, 4]))
        .prop_map(|(mac, pace, moves, up, path)| Interface { mac, pace, moves, up, path })
}

/// What may happen to an engine.
#[derive(Clone, Debug)]
enum Step {
    Online(u8, OnlineSpec),
    Offline(u8, bool),
    Watch(u8),
    Unwatch(u8),
    Announce(u8),
    /// The caller of one of the commands so far goes away.
    Forget(usize),
    Interface(Interface),
    /// The link goes down, or comes up, and nothing else.
    Link(bool),
    /// The interface goes away and comes back.
    Gone,
    ProgramMissing,
    Renew(u8, Option<Duration>),
    Repair(u8, u8),
    Seen(u8, SightingKind, MacAddr, u64, bool, bool, Duration),
    /// The program has defended an address, or has given it up (the second `true`), and reports it (the first).
    Program(u8, bool, bool),
    /// The daemon is killed when it has done so many more actions, and started again.
    Crash(usize),
    Local(u8, bool),
    /// The outcome of one of the open actions, not always the oldest.
    Outcome(usize, bool),
    /// An outcome that nobody asked for.
    Unasked(u8, u8, bool),
    Pass(Duration),
    /// On to the next deadline.
    Next,
    /// The clock goes on without a call.
    Hang(Duration),
}

fn steps() -> impl Strategy<Value = Step> {
    let last = 1..=3_u8;
    let kinds = vec![
        SightingKind::Claim,
        SightingKind::Claim,
        SightingKind::Probe,
        SightingKind::Echo { sibling: true },
        SightingKind::Flood,
    ];
    let waits = vec![Duration::ZERO, ms(1), ms(60), ms(1_100), secs(3), secs(11), secs(200)];
    let seen = (
        last.clone(),
        select(kinds),
        select(vec![RIVAL, OTHER]),
        select(vec![0, 1, 7, u64::MAX]),
        any::<bool>(),
        any::<bool>(),
        select(waits.clone()),
    );
    prop_oneof![
        4 => (last.clone(), specs()).prop_map(|(n, spec)| Step::Online(n, spec)),
        2 => (last.clone(), any::<bool>()).prop_map(|(n, watch)| Step::Offline(n, watch)),
        1 => last.clone().prop_map(Step::Watch),
        1 => last.clone().prop_map(Step::Unwatch),
        1 => last.clone().prop_map(Step::Announce),
        1 => any::<usize>().prop_map(Step::Forget),
        1 => interfaces().prop_map(Step::Interface),
        2 => any::<bool>().prop_map(Step::Link),
        1 => prop_oneof![1 => Just(Step::Gone), 3 => Just(Step::ProgramMissing)],
        2 => (last.clone(), leases()).prop_map(|(n, lease)| Step::Renew(n, lease)),
        1 => (last.clone(), 0..4_u8).prop_map(|(n, hosts)| Step::Repair(n, hosts)),
        2 => (last.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(n, told, fell)| Step::Program(n, told, fell)),
        2 => (0..20_usize).prop_map(Step::Crash),
        4 => seen.prop_map(|(n, kind, mac, count, repeat, changed, age)| {
            Step::Seen(n, kind, mac, count, repeat, changed, age)
        }),
        1 => (last.clone(), any::<bool>()).prop_map(|(n, local)| Step::Local(n, local)),
        20 => (prop_oneof![4 => Just(0_usize), 1 => any::<usize>()], prop::bool::weighted(0.8))
            .prop_map(|(which, ok)| Step::Outcome(which, ok)),
        1 => (last, 0..6_u8, any::<bool>()).prop_map(|(n, which, ok)| Step::Unasked(n, which, ok)),
        3 => select(waits.clone()).prop_map(Step::Pass),
        8 => Just(Step::Next),
        1 => select(waits).prop_map(Step::Hang),
    ]
}

/// An engine under test, with the world that it asks things of.
struct Bench {
    engine: Engine,
    now: MonoTime,
    dice: Seeded,
    interface: Interface,
    open: Vec<Action>,
    /// Actions that are still done before the daemon is killed.
    crash: Option<usize>,
    /// What outlives the daemon: leases beside the words, the state file, the journal of registrations, and what the
    /// program has given up itself.
    leases: BTreeMap<AddressKey, Option<MonoTime>>,
    specs: BTreeMap<AddressKey, OnlineSpec>,
    journal: BTreeMap<AddressKey, u8>,
    fallen: BTreeMap<AddressKey, u8>,
    /// Installations that are going to fail, oldest first: what the datapath does it does at once.
    failing: BTreeMap<AddressKey, Vec<bool>>,
    /// Addresses whose installation failed, unknown to the engine so far.
    ghosts: BTreeSet<AddressKey>,
    commands: Vec<RequestId>,
    /// What each command was about.
    asked: BTreeMap<RequestId, AddressKey>,
    forgotten: BTreeSet<RequestId>,
    answers: BTreeMap<RequestId, u32>,
    words: BTreeMap<AddressKey, StateWord>,
    registered: BTreeSet<AddressKey>,
    events: Vec<EventKind>,
}

fn numbered(n: u8) -> AddressKey {
    AddressKey { address: Ipv4::new([192, 0, 2, n]), ..KEY }
}

fn outcome(action: &Action, ok: bool) -> Option<Input> {
    let result = if ok { Ok(()) } else { Err("told so".into()) };
    match *action {
        Action::Install { key, .. } => Some(Input::Installed { key, result }),
        Action::Register { key, .. } => Some(Input::Registered { key, result }),
        Action::Deregister { key, .. } => Some(Input::Deregistered { key, result }),
        Action::Send { key, purpose, frame } => Some(Input::Sent { key, purpose, frame, result }),
        Action::Held { key } => Some(Input::TakeAll { group: 1, keys: vec![key] }),
        Action::Store { .. }
        | Action::Lease { .. }
        | Action::Remember { .. }
        | Action::Remove { .. }
        | Action::Event(_)
        | Action::Flip { .. }
        | Action::Answer { .. } => None,
    }
}

fn key_of_action(action: &Action) -> Option<AddressKey> {
    match action {
        Action::Install { key, .. }
        | Action::Register { key, .. }
        | Action::Deregister { key, .. }
        | Action::Send { key, .. }
        | Action::Store { key, .. }
        | Action::Lease { key, .. }
        | Action::Remember { key, .. }
        | Action::Held { key }
        | Action::Remove { key } => Some(*key),
        Action::Event(event) => Some(event.key),
        Action::Answer { .. } | Action::Flip { .. } => None,
    }
}

impl Bench {
    fn new(seed: u64, interface: Interface) -> Self {
        let mut bench = Self {
            engine: Engine::new(),
            now: MonoTime(300_000_000_000),
            dice: Seeded(seed),
            interface,
            open: Vec::new(),
            crash: None,
            leases: BTreeMap::new(),
            specs: BTreeMap::new(),
            journal: BTreeMap::new(),
            fallen: BTreeMap::new(),
            failing: BTreeMap::new(),
            ghosts: BTreeSet::new(),
            commands: Vec::new(),
            asked: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            answers: BTreeMap::new(),
            words: BTreeMap::new(),
            registered: BTreeSet::new(),
            events: Vec::new(),
        };
        bench.input(Input::Interface { index: KEY.interface, interface });
        bench
    }

    fn input(&mut self, input: Input) {
        self.engine.handle(self.now, input, &mut self.dice);
        self.look();
    }

    fn timeout(&mut self) {
        self.engine.handle_timeout(self.now, &mut self.dice);
        self.look();
        for (key, word) in &self.words {
            let past = self.leases[key].is_some_and(|until| until <= self.now);
            assert!(!(past && self.is_heard(key) && word.may_answer()), "the lease of {key:?} is past");
        }
        let next = self.engine.poll_timeout();
        assert!(next.is_none_or(|next| next > self.now), "due {next:?} is not done at {:?}", self.now);
    }

    fn command(&mut self, input: impl FnOnce(RequestId) -> Input) {
        let request = RequestId(u64::try_from(self.commands.len()).unwrap());
        self.commands.push(request);
        let input = input(request);
        let (Input::Online { key, .. }
        | Input::Offline { key, .. }
        | Input::Watch { key, .. }
        | Input::Unwatch { key, .. }
        | Input::Announce { key, .. }
        | Input::Renew { key, .. }
        | Input::Repair { key, .. }) = &input
        else {
            panic!("{input:?} is no command")
        };
        self.asked.insert(request, *key);
        self.input(input);
    }

    /// Takes the actions and checks each.
    fn look(&mut self) {
        let mut touched = BTreeSet::new();
        while let Some(action) = self.engine.poll_action() {
            if self.crash == Some(0) {
                self.crash = None;
                self.restart();
                return;
            }
            self.crash = self.crash.map(|left| left - 1);
            let about = match &action {
                Action::Answer { request, .. } => self.asked.get(request).copied(),
                _ => key_of_action(&action),
            };
            if let Some(key) = about {
                let silences = match &action {
                    Action::Store { word, .. } => !word.may_answer(),
                    Action::Remove { .. } => true,
                    _ => false,
                };
                let answered = self.words.get(&key).is_some_and(|word| word.may_answer());
                let first = touched.insert(key);
                assert!(first || !(silences && answered), "silence does not come first: {action:?}");
            }
            match &action {
                Action::Install { key, word } => {
                    let fails = self.dice.below(10) == 0;
                    self.failing.entry(*key).or_default().push(fails);
                    if fails {
                        self.ghosts.insert(*key);
                    } else {
                        assert_eq!(self.words.insert(*key, *word), None, "installed twice");
                        self.leases.insert(*key, None);
                        self.may_say_so(key, word);
                    }
                }
                Action::Store { key, word } => {
                    assert!(self.words.insert(*key, *word).is_some(), "stored without being installed");
                    self.may_say_so(key, word);
                    let silent = !word.may_answer() && !word.is(State::Watched);
                    assert!(
                        !self.registered.contains(key) || !silent || word.is_local(),
                        "unshielded {word:?}"
                    );
                    assert!(
                        !self.registered.contains(key) || !word.is(State::Watched),
                        "watched and registered"
                    );
                }
                Action::Lease { key, until } => {
                    assert!(self.leases.insert(*key, *until).is_some(), "told without being installed");
                }
                Action::Remember { key, spec } => {
                    match spec {
                        Some(spec) => self.specs.insert(*key, *spec),
                        None => self.specs.remove(key),
                    };
                }
                Action::Remove { key } => {
                    self.leases.remove(key);
                    self.specs.remove(key);
                    self.fallen.remove(key);
                    let known = self.ghosts.remove(key) || self.words.remove(key).is_some();
                    assert!(known, "removed without being installed");
                    assert!(!self.registered.contains(key), "removed while on the interface");
                }
                Action::Register { key, prefix_length } => {
                    assert!(self.words[key].is_local(), "the shield comes first");
                    self.journal.insert(*key, *prefix_length);
                    assert!(self.registered.insert(*key), "registered twice");
                }
                Action::Deregister { key, .. } => {
                    assert!(!self.words[key].may_answer(), "silence comes first");
                }
                Action::Send { key, purpose, frame } => {
                    let own =
                        frame.sender_mac == OWN || frame.sender_mac == OTHER && *purpose != Purpose::Repair;
                    if own && frame.sender_ip == key.address {
                        assert!(self.words[key].may_answer(), "{purpose:?} in {:?}", self.words[key]);
                        let until = self.leases[key];
                        assert!(until.is_none_or(|until| until > self.now), "{purpose:?} beyond the lease");
                    }
                }
                Action::Event(Event { kind, .. }) => self.events.push(kind.clone()),
                Action::Held { .. } | Action::Flip { .. } => {}
                Action::Answer { request, .. } => *self.answers.entry(*request).or_default() += 1,
            }
            if outcome(&action, true).is_some() {
                self.open.push(action);
            }
        }
        for (key, word) in &self.words {
            let silent = self.interface.up || !word.may_answer() || !self.is_heard(key);
            assert!(silent, "{key:?} answers, and its link is down");
        }
        self.nothing_waits_for_ever();
    }

    /// The engine can change the word.
    fn is_heard(&self, key: &AddressKey) -> bool {
        let installing = |action: &Action| matches!(action, Action::Install { key: new, .. } if new == key);
        self.engine.get(key).is_some() && !self.open.iter().any(installing)
    }

    /// A word that answers has been told the end of its lease before, and has it written down how it is claimed.
    fn may_say_so(&self, key: &AddressKey, word: &StateWord) {
        if !word.may_answer() {
            assert_eq!(word.policy(), Policy::Leave);
            return;
        }
        let spec = &self.specs[key];
        let until = self.leases[key];
        assert!(spec.lease.is_none() || until.is_some(), "it answers before its lease is told");
        assert!(until.is_none_or(|until| until > self.now), "it answers, and its lease is past");
    }

    /// Another daemon takes on what the one before has left.
    fn restart(&mut self) {
        self.engine = Engine::new();
        for action in core::mem::take(&mut self.open) {
            // What the kernel was asked for it has done, or has not.
            let done = self.dice.below(2) == 0;
            match action {
                Action::Register { key, .. } if !done => _ = self.registered.remove(&key),
                Action::Deregister { key, .. } if done => _ = self.registered.remove(&key),
                _ => {}
            }
        }
        self.failing.clear();
        self.ghosts.clear();
        for request in &self.commands {
            if !self.answers.contains_key(request) {
                self.forgotten.insert(*request);
            }
        }
        let (index, interface) = (KEY.interface, self.interface);
        self.input(Input::Interface { index, interface });
        for (key, word) in self.words.clone() {
            let kept = Kept {
                word,
                // Now and then the state file is lost.
                spec: self.specs.get(&key).copied().filter(|_| self.dice.below(10) > 0),
                registered: self.journal.get(&key).copied(),
                local: self.registered.contains(&key),
                lease_until: self.leases[&key],
                fallen: self.fallen.get(&key) == Some(&word.generation()),
                defences: vec![MonoTime(self.now.0 - self.dice.below(20_000_000_000)); 2],
                owner: None,
                untold: 3,
            };
            if kept.spec.is_none() {
                self.specs.remove(&key);
            }
            let fallen = kept.fallen;
            self.input(Input::Adopt { key, kept });
            if fallen && let Some(word) = self.words.get(&key) {
                let same = self.fallen.get(&key) == Some(&word.generation());
                assert!(!(word.may_answer() && same), "the program is silent for ever");
            }
        }
    }

    /// A state that waits has a timer or an outcome to come.
    fn nothing_waits_for_ever(&self) {
        for (key, address) in self.engine.addresses() {
            let open = self.open.iter().any(|action| key_of_action(action) == Some(*key));
            let timer = self.engine.poll_timeout().is_some();
            let waiting = match address.state() {
                State::Probing | State::Announcing | State::Contested | State::Yielding => true,
                State::Refused | State::Lost => address.is_registered() || address.next_retry().is_some(),
                State::Suspended => address.is_registered() && address.reason() == Reason::LeaseExpired,
                State::Watched | State::Online => false,
            };
            assert!(!waiting || open || timer, "{address:?} waits for ever");
            let asked = self.engine.is_awaited(key);
            assert!(!asked || open || timer, "a command about {address:?} waits for ever");
        }
    }

    fn outcome(&mut self, which: usize, ok: bool) {
        if self.open.is_empty() {
            return;
        }
        // Outcomes of one kind about one address come in the order of the actions; others mix.
        let chosen = &self.open[which % self.open.len()];
        let kind = core::mem::discriminant(chosen);
        let key = key_of_action(chosen);
        let same = |action: &Action| core::mem::discriminant(action) == kind && key_of_action(action) == key;
        let at = self.open.iter().position(same).unwrap();
        let action = self.open.remove(at);
        let mut ok = ok;
        if let Action::Install { key, .. } = &action {
            ok = !self.failing.get_mut(key).unwrap().remove(0);
        }
        match &action {
            Action::Register { key, .. } if !ok => {
                self.registered.remove(key);
                self.journal.remove(key);
            }
            Action::Deregister { key, .. } if ok => {
                self.registered.remove(key);
                self.journal.remove(key);
            }
            _ => {}
        }
        let input = outcome(&action, ok).unwrap();
        self.engine.handle(self.now, input, &mut self.dice);
        if let Action::Install { key, .. } = &action
            && self.engine.get(key).is_none()
        {
            self.ghosts.remove(key);
        }
        self.look();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Online(n, spec) => {
                self.command(|request| Input::Online { request, key: numbered(n), spec });
            }
            Step::Offline(n, watch) => {
                self.command(|request| Input::Offline { request, key: numbered(n), watch });
            }
            Step::Watch(n) => self.command(|request| Input::Watch { request, key: numbered(n) }),
            Step::Unwatch(n) => self.command(|request| Input::Unwatch { request, key: numbered(n) }),
            Step::Announce(n) => self.command(|request| Input::Announce { request, key: numbered(n) }),
            Step::Forget(which) => {
                if !self.commands.is_empty() {
                    let request = self.commands[which % self.commands.len()];
                    if !self.answers.contains_key(&request) {
                        self.forgotten.insert(request);
                    }
                    self.input(Input::Forget { request });
                }
            }
            Step::Interface(interface) => {
                self.interface = interface;
                self.input(Input::Interface { index: KEY.interface, interface });
            }
            Step::Link(up) => self.step(Step::Interface(Interface { up, ..self.interface })),
            Step::Gone => {
                self.registered.clear();
                self.input(Input::Gone { index: KEY.interface });
                self.step(Step::Interface(self.interface));
            }
            Step::ProgramMissing => {
                let killed = self.crash.is_some();
                self.input(Input::ProgramMissing { index: KEY.interface });
                if killed {
                    return; // perhaps before it was done; the next daemon attaches the program first
                }
                for (key, address) in self.engine.addresses() {
                    let open = self.open.iter().any(|action| key_of_action(action) == Some(*key));
                    assert!(address.state().may_answer() || !address.is_registered() || open, "{address:?}");
                }
            }
            Step::Renew(n, lease) => self.command(|request| Input::Renew {
                request,
                key: numbered(n),
                lease: lease.unwrap_or(secs(3)),
            }),
            Step::Repair(n, hosts) => {
                let host = |last: u8| Neighbour { mac: RIVAL, address: Ipv4::new([192, 0, 2, 200 + last]) };
                let neighbours = (0..hosts).map(host).collect();
                self.command(|request| Input::Repair { request, key: numbered(n), neighbours });
            }
            Step::Program(n, told, fell) => {
                let key = numbered(n);
                let Some(word) = self.words.get(&key).filter(|word| word.may_answer()) else { return };
                if fell {
                    self.fallen.insert(key, word.generation());
                }
                if told {
                    let sighting = Sighting {
                        kind: SightingKind::Claim,
                        claimant: claimant(RIVAL),
                        form: Form::Announcement,
                        operation: REQUEST,
                        count: 1,
                        repeat: false,
                        owner_changed: true,
                        at: self.now,
                        defended: !fell,
                        fell,
                        allowed: false,
                    };
                    self.input(Input::Seen { key, sighting });
                    let word = self.words.get(&key).copied().unwrap_or(StateWord::VACANT);
                    assert!(!(fell && self.is_heard(&key) && word.may_answer()), "it fell and was told so");
                }
            }
            Step::Crash(left) => self.crash = Some(left),
            Step::Seen(n, kind, mac, count, repeat, owner_changed, age) => {
                let sighting = Sighting {
                    kind,
                    claimant: claimant(mac),
                    form: Form::Announcement,
                    operation: REQUEST,
                    count,
                    repeat,
                    owner_changed,
                    // Mostly of the past, now and then of the future.
                    at: if count == 7 { self.now.after(age) } else { MonoTime(self.now.0 - nanos(age)) },
                    defended: false,
                    fell: false,
                    allowed: false,
                };
                self.input(Input::Seen { key: numbered(n), sighting });
            }
            Step::Local(n, local) => {
                let key = numbered(n);
                let adding = |action: &Action| matches!(action, Action::Register { key: adding, .. } if *adding == key);
                if !local && !self.open.iter().any(adding) {
                    self.registered.remove(&key);
                }
                self.input(Input::Local { key, local });
            }
            Step::Outcome(which, ok) => self.outcome(which, ok),
            Step::Unasked(n, which, ok) => {
                let (key, result) = (numbered(n), if ok { Ok(()) } else { Err("unasked".into()) });
                // Never one that could be the answer to an open action.
                if self.open.iter().any(|action| key_of_action(action) == Some(key)) {
                    return;
                }
                let frame = Outgoing::announcement(OWN, OWN, Vlan::UNTAGGED, key.address);
                self.input(match which {
                    0 => Input::Installed { key, result },
                    1 => Input::Registered { key, result },
                    2 => Input::Deregistered { key, result },
                    3 => Input::Sent { key, purpose: Purpose::Announcement, frame, result },
                    4 => Input::Sent { key, purpose: Purpose::Defence, frame, result },
                    _ => Input::Sent { key, purpose: Purpose::Probe, frame, result },
                });
            }
            Step::Pass(wait) => {
                let end = self.now.after(wait);
                while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= end) {
                    self.now = self.now.max(due);
                    self.timeout();
                }
                self.now = end;
            }
            Step::Next => {
                if let Some(due) = self.engine.poll_timeout()
                    && due.since(self.now) < secs(1_000)
                {
                    self.now = self.now.max(due);
                    self.timeout();
                }
            }
            Step::Hang(wait) => self.now = self.now.after(wait),
        }
    }
}

fn nanos(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos()).unwrap()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_sequence_of_inputs_panics_or_leaves_something_that_waits_for_ever(
        seed: u64,
        interface in interfaces(),
        steps in vec(steps(), 1..80),
    ) {
        let mut bench = Bench::new(seed, interface);
        for step in steps {
            bench.step(step);
        }
        // Then all goes well: every command gets its answer.
        bench.crash = None;
        for n in 1..=3 {
            bench.step(Step::Offline(n, false));
        }
        for _ in 0..60 {
            while !bench.open.is_empty() {
                bench.outcome(0, true);
            }
            bench.step(Step::Pass(secs(1)));
        }
        prop_assert_eq!(bench.engine.addresses().count(), 0);
        prop_assert_eq!(bench.engine.poll_timeout(), None);
        prop_assert_eq!(&bench.words, &BTreeMap::new());
        for request in &bench.commands {
            let answers = bench.answers.get(request).copied().unwrap_or(0);
            let expected = u32::from(!bench.forgotten.contains(request));
            prop_assert_eq!(answers, expected, "answers to {:?}", request);
        }
    }

    #[test]
    fn the_end_of_time_neither_panics_nor_hangs(seed: u64, steps in vec(steps(), 1..60)) {
        let mut bench = Bench::new(seed, INTERFACE);
        bench.now = MonoTime(u64::MAX - 1);
        for step in steps {
            match step {
                Step::Pass(_) | Step::Next => {
                    bench.engine.handle_timeout(bench.now, &mut bench.dice);
                    bench.look();
                }
                _ => bench.step(step),
            }
        }
    }
}

/// Two hosts that both have the address because they did not hear each other, together again.
fn reunited(net: &mut Net, specs: [OnlineSpec; 2], interface: Interface) -> [Host; 2] {
    let hosts = [net.warden(interface), net.warden(interface)];
    net.unplug(hosts[1]);
    for (host, spec) in hosts.into_iter().zip(specs) {
        net.online(host, address(VIP), spec);
        let wait = net.dice.below(8_000);
        net.pass(ms(wait));
    }
    net.pass(secs(30));
    for host in hosts {
        assert!(net.may_answer(host, address(VIP)));
    }
    net.plug(hosts[1]);
    let wait = net.dice.below(30_000);
    net.pass(ms(wait));
    hosts
}

fn conflicts(net: &Net, host: Host) -> usize {
    let conflict = |(_, kind): &&(MonoTime, EventKind)| matches!(kind, EventKind::Conflict { .. });
    net.at(host).events.iter().filter(conflict).count()
}

fn fast_specs() -> impl Strategy<Value = OnlineSpec> {
    specs().prop_map(|spec| OnlineSpec { wait: Duration::ZERO, adopt: false, lease: None, ..spec })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn of_two_of_which_at_most_one_holds_at_most_one_has_it_after_an_announcement_and_a_quiet_interval(
        seed: u64,
        one in fast_specs(),
        other in fast_specs(),
        by in 0..2_usize,
    ) {
        let both = one.defend == Defend::Hold && other.defend == Defend::Hold;
        let other = if both { OnlineSpec { defend: Defend::Once, ..other } } else { other };
        let mut net = Net::new(seed);
        let hosts = reunited(&mut net, [one, other], INTERFACE);
        net.announce(hosts[by], address(VIP));
        net.pass(secs(11));
        net.pass(crate::params::DEFEND_INTERVAL);
        let holding = hosts.into_iter().filter(|host| net.may_answer(*host, address(VIP))).count();
        prop_assert!(holding <= 1);
        if one.defend == Defend::Hold || other.defend == Defend::Hold {
            prop_assert_eq!(holding, 1, "who holds keeps it");
        }
        for host in hosts {
            if !net.may_answer(host, address(VIP)) {
                prop_assert!(net.kernel(host).addresses.is_empty());
            }
        }
    }

    #[test]
    fn if_both_hold_both_report_it_and_defences_keep_to_the_interval_and_the_budget(
        seed: u64,
        one in fast_specs(),
        other in fast_specs(),
        budget in select(vec![None, Some(MoveBudget::EVPN), Some(MoveBudget { moves: 2, window: secs(60) })]),
        by in 0..2_usize,
    ) {
        let hold = |spec| OnlineSpec { defend: Defend::Hold, ..spec };
        let interface = Interface { moves: budget, ..INTERFACE };
        let mut net = Net::new(seed);
        let hosts = reunited(&mut net, [hold(one), hold(other)], interface);
        net.announce(hosts[by], address(VIP));
        net.pass(secs(600));
        for host in hosts {
            prop_assert!(conflicts(&net, host) > 0);
            prop_assert!(net.may_answer(host, address(VIP)));
            let at: Vec<MonoTime> = net
                .at(host)
                .events
                .iter()
                .filter(|(_, kind)| matches!(kind, EventKind::Defended { .. }))
                .map(|(at, _)| *at)
                .collect();
            prop_assert!(at.windows(2).all(|pair| pair[1].since(pair[0]) >= secs(10)));
            if let Some(MoveBudget { moves, window }) = budget {
                let moves = usize::try_from(moves).unwrap();
                prop_assert!(at.windows(moves + 1).all(|some| some[moves].since(some[0]) >= window));
            }
        }
    }

    #[test]
    fn two_that_probe_at_the_same_moment_never_both_get_it(
        seed: u64,
        apart in 0..400_u64,
        profile in select(vec![Profile::Fast, Profile::Rfc5227]),
        waits in prop::bool::ANY,
    ) {
        let wait = if waits { secs(600) } else { Duration::ZERO };
        let spec = OnlineSpec { profile, wait, ..SPEC };
        let mut net = Net::new(seed);
        let hosts = [net.warden(INTERFACE), net.warden(INTERFACE)];
        let first = net.online(hosts[0], address(VIP), spec);
        net.pass(Duration::from_micros(apart * 1_000));
        let second = net.online(hosts[1], address(VIP), spec);
        for _ in 0..700 {
            net.pass(secs(1));
            prop_assert!(!hosts.into_iter().all(|host| net.may_answer(host, address(VIP))));
        }
        let got = hosts.into_iter().filter(|host| net.may_answer(*host, address(VIP))).count();
        if waits {
            prop_assert_eq!(got, 1);
        }
        for (host, request) in hosts.into_iter().zip([first, second]) {
            let done = net.answers(host, request) == [Answer::Done];
            prop_assert_eq!(net.answers(host, request).len(), 1);
            prop_assert_eq!(done, net.may_answer(host, address(VIP)));
            prop_assert!(net.at(host).engine.get(&key_of(address(VIP))).is_some());
        }
    }
}

/// What happens to a host of two that want the same address, each claiming it by probes only.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Online(Option<Duration>),
    Renew,
    Offline,
    /// Down for longer than a flap.
    LinkDown,
    /// Stopped for so long; longer than silence lasts.
    Freeze(Duration),
    /// Killed, and started again after so long.
    Kill(Duration),
    Sleep,
}

fn fates() -> impl Strategy<Value = Fate> {
    let pauses = || select(vec![ms(1_200), secs(2), secs(5), secs(20)]);
    let leases = prop::option::of(select(vec![ms(400), secs(1), secs(4), secs(30)]));
    prop_oneof![
        4 => leases.prop_map(Fate::Online),
        2 => Just(Fate::Renew),
        1 => Just(Fate::Offline),
        1 => Just(Fate::LinkDown),
        1 => pauses().prop_map(Fate::Freeze),
        1 => pauses().prop_map(Fate::Kill),
        1 => Just(Fate::Sleep),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn of_two_that_claim_by_probes_never_both_may_answer_whatever_becomes_of_their_daemons_and_links(
        seed: u64,
        fates in vec((0..2_usize, fates(), 0..3_000_u64), 1..25),
    ) {
        let mut net = Net::new(seed);
        let hosts = [net.warden(INTERFACE), net.warden(INTERFACE)];
        let vip = address(VIP);
        // When each of them is itself again.
        let mut back: [Option<(MonoTime, Fate)>; 2] = [None, None];
        for (which, fate, wait) in fates {
            let host = hosts[which];
            if back[which].is_none() {
                let until = match fate {
                    Fate::Online(lease) => {
                        net.online(host, vip, OnlineSpec { lease, wait: secs(30), ..SPEC });
                        None
                    }
                    Fate::Renew => {
                        net.renew(host, vip, secs(3));
                        None
                    }
                    Fate::Offline => {
                        net.offline(host, vip);
                        None
                    }
                    Fate::LinkDown => {
                        net.link(host, false);
                        Some(ms(600))
                    }
                    Fate::Freeze(wait) => {
                        net.freeze(host);
                        Some(wait)
                    }
                    Fate::Kill(wait) => {
                        net.kill(host);
                        Some(wait)
                    }
                    Fate::Sleep => None,
                };
                back[which] = until.map(|wait| (net.now.after(wait), fate));
            }
            let end = net.now.after(ms(wait));
            while net.now < end {
                for which in 0..2 {
                    if let Some((_, fate)) = back[which].take_if(|(at, _)| *at <= net.now) {
                        match fate {
                            Fate::LinkDown => net.link(hosts[which], true),
                            Fate::Freeze(_) => net.thaw(hosts[which]),
                            _ => net.start(hosts[which]),
                        }
                    }
                }
                net.pass(ms(5));
                prop_assert!(!hosts.into_iter().all(|host| net.answers_for(host, vip)));
            }
        }
    }
}
