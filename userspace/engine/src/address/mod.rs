//! One address: the states of the contract ("The life of an address") and nothing else.
//!
//! Three things run side by side in an address: its state (what the datapath is told), its registration with the
//! kernel (at most one request open at a time; what it is *wanted* to be follows from the state), and what waits
//! to be sent. Every wait has a deadline ([`Managed::deadline`]) or an outcome to come.

mod adopt;
mod announce;
mod ask;
mod claim;
mod command;
mod defend;
mod lease;
mod link;
mod rare;
mod registration;
mod repair;
mod seen;
mod timing;
mod turn;
mod waiting;

pub(crate) use lease::no_lease;
pub(crate) use link::link_is_down;
pub(crate) use turn::{Open, OpenOutcomes, Turn};

use std::rc::Rc;

use arpwarden_common::{
    abi::AddressKey,
    state::{Policy, State, StateWord},
};

use self::{
    announce::{Question, Window},
    ask::Asks,
    claim::{Attempt, Step},
    defend::Defence,
    link::Resume,
    rare::{Rare, Usual},
    registration::{Doubt, Errand, Registration, Target},
    repair::Repairs,
    waiting::{Waiter, Waiting},
};
use crate::{
    action::{Action, Answer, EventKind, Reason},
    input::{Claimant, Defend, Interface, MonoTime, OnlineSpec, Owner, RequestId},
    limits::{Defences, Loudness, OwnerFlaps, Restorations},
    plan::Plan,
};

/// Whether the datapath has the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    /// Asked for.
    Installing { tag: u64 },
    /// Yes.
    Installed,
}

/// A managed address. There may be very many, and with most of them nothing is going on: what only some need has a
/// place of its own.
#[derive(Clone, Debug)]
pub struct Managed {
    key: AddressKey,
    state: State,
    since: MonoTime,
    reason: Reason,
    spec: Option<Rc<OnlineSpec>>,
    /// What was written down of `spec`.
    remembered: Option<Rc<OnlineSpec>>,
    generation: u8,
    /// Since when the word carries it.
    generation_since: MonoTime,
    lease: Rare<Lease>,
    local: bool,
    /// When the kernel acknowledged the latest change that we asked for, or when this life of the address began.
    acknowledged: MonoTime,
    /// The word that the datapath was told last.
    word: StateWord,
    registration: Registration,
    /// Prefix length of the registration, 1..=32; a later claim may ask for another one.
    registered_prefix: u8,
    /// How a suspended address goes on.
    resume: Resume,
    /// The address was ours before its link went down and is probed for again: a conflict loses it.
    recheck: bool,
    /// The claim began on a watched address and goes back there if it fails.
    was_watched: bool,
    /// The first announcement of this claim has left.
    announced: bool,
    target: Target,
    owner: Option<Box<Owner>>,
    work: Rare<Work>,
    trouble: Rare<Trouble>,
    gone: bool,
    /// The deadline that the engine has in its timer table.
    pub(crate) armed: Option<MonoTime>,
}

/// Until when an address may be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lease {
    until: Option<MonoTime>,
    /// The one that the datapath was told last.
    told: Option<MonoTime>,
}

/// What is under way with an address: claiming it, announcing it, giving it up.
#[derive(Clone, PartialEq, Debug)]
struct Work {
    slot: Slot,
    errand: Errand,
    doubt: Doubt,
    attempt: Option<Attempt>,
    /// A refused claim goes on at that time.
    retry: Option<MonoTime>,
    plan: Option<Plan>,
    question: Question,
    question_failures: u8,
    window: Window,
    repairs: Option<Repairs>,
    asks: Option<Asks>,
    waiters: Vec<Waiter>,
}

/// What others have done to an address, and what was done about it.
#[derive(Clone, PartialEq, Debug)]
struct Trouble {
    refusals: u32,
    refused_by: Option<(Claimant, Reason)>,
    restorations: Restorations,
    defence: Defence,
    defence_failures: u8,
    defended: Defences,
    /// Time of the latest conflict, for `once`.
    conflict: Option<MonoTime>,
    loudness: Loudness,
    /// When the move budget allows a defence again (state `contested`).
    contested_until: Option<MonoTime>,
    /// The latest claim that was not answered by a defence (state `contested`).
    challenger: Option<Claimant>,
    flaps: OwnerFlaps,
    conflicts: u64,
    defences: u64,
    last_error: Option<String>,
}

impl Usual for Lease {
    const USUAL: &'static Self = &Self { until: None, told: None };
}

impl Usual for Work {
    const USUAL: &'static Self = &Self {
        slot: Slot::Installed,
        errand: Errand::NONE,
        doubt: Doubt::None,
        attempt: None,
        retry: None,
        plan: None,
        question: Question::None,
        question_failures: 0,
        window: Window::None,
        repairs: None,
        asks: None,
        waiters: Vec::new(),
    };
}

impl Usual for Trouble {
    const USUAL: &'static Self = &Self {
        refusals: 0,
        refused_by: None,
        restorations: Restorations::NONE,
        defence: Defence::None,
        defence_failures: 0,
        defended: Defences::NONE,
        conflict: None,
        loudness: Loudness::NONE,
        contested_until: None,
        challenger: None,
        flaps: OwnerFlaps::NONE,
        conflicts: 0,
        defences: 0,
        last_error: None,
    };
}

// On 64-bit machines: most of what the daemon remembers of an address.
const _: () = assert!(size_of::<usize>() != 8 || size_of::<Managed>() <= 128);

/// How addresses are claimed. Mostly they are claimed alike, many in a row: those share it.
#[derive(Debug, Default)]
pub(crate) struct Specs {
    latest: Option<Rc<OnlineSpec>>,
}

impl Specs {
    fn share(&mut self, spec: OnlineSpec) -> Rc<OnlineSpec> {
        match &self.latest {
            Some(latest) if **latest == spec => Rc::clone(latest),
            Some(_) | None => Rc::clone(self.latest.insert(Rc::new(spec))),
        }
    }
}

/// What others may read.
impl Managed {
    /// Its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when (CLOCK_BOOTTIME).
    pub fn since(&self) -> MonoTime {
        self.since
    }

    /// Why it is in this state.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How it was claimed last; `None` if it has only been watched.
    pub fn spec(&self) -> Option<&OnlineSpec> {
        self.spec.as_deref()
    }

    /// The generation of its claim, which the state word carries.
    pub fn generation(&self) -> u8 {
        self.generation
    }

    /// End of its lease (CLOCK_BOOTTIME), past or to come; `None`: no lease.
    pub fn lease_until(&self) -> Option<MonoTime> {
        self.lease.until
    }

    /// Configured in this network namespace, as far as the engine knows.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// On the interface because of us, or about to be, or not yet off it.
    pub fn is_registered(&self) -> bool {
        self.registration != Registration::Absent
    }

    /// Who claimed it last.
    pub fn owner(&self) -> Option<Owner> {
        self.owner.as_deref().copied()
    }

    /// Claims and probes that were conflicts, in frames.
    pub fn conflicts(&self) -> u64 {
        self.trouble.conflicts
    }

    /// Defences that have left.
    pub fn defences(&self) -> u64 {
        self.trouble.defences
    }

    /// When it was defended last (CLOCK_BOOTTIME).
    pub fn last_defence(&self) -> Option<MonoTime> {
        self.trouble.defended.last()
    }

    /// Refusals since it was ours last.
    pub fn refusals(&self) -> u32 {
        self.trouble.refusals
    }

    /// Who refused it last, and how.
    pub fn refused_by(&self) -> Option<(Claimant, Reason)> {
        self.trouble.refused_by
    }

    /// What failed last, in words.
    pub fn last_error(&self) -> Option<&str> {
        self.trouble.last_error.as_deref()
    }

    /// When a refused claim, or a deletion that the kernel refused, is tried again (CLOCK_BOOTTIME).
    pub fn next_retry(&self) -> Option<MonoTime> {
        self.work.retry.or_else(|| self.deletion_retry())
    }

    /// When the move budget allows a defence again (CLOCK_BOOTTIME); state `contested` only.
    pub fn contested_until(&self) -> Option<MonoTime> {
        self.trouble.contested_until
    }
}

/// Births.
impl Managed {
    fn new(key: AddressKey, state: State, reason: Reason, turn: &mut Turn<'_>) -> Self {
        let mut address = Self {
            key,
            state,
            since: turn.now,
            reason,
            spec: None,
            remembered: None,
            generation: 0,
            generation_since: turn.now,
            lease: Rare::usual(),
            local: false,
            acknowledged: turn.now,
            word: StateWord::VACANT,
            registration: Registration::Absent,
            registered_prefix: 32,
            resume: Resume::Never,
            recheck: false,
            was_watched: false,
            announced: false,
            target: Target::Gone(Reason::Commanded),
            owner: None,
            work: Rare::usual(),
            trouble: Rare::usual(),
            gone: false,
            armed: None,
        };
        address.work.slot = Slot::Installing { tag: turn.tag() };
        address
    }

    /// Makes the new address known to the datapath.
    fn install(&mut self, turn: &mut Turn<'_>) {
        if let Slot::Installing { tag } = self.work.slot {
            turn.open(self.key, Open::Install { tag });
        }
        self.word = self.wanted_word(turn);
        if self.word.may_answer() && self.lease.until.is_some() {
            // The lease can't be told before the slot is there. An adopted address stays answered by its kernel until
            // then: `watched` is never shielded.
            let flags = if self.local { StateWord::LOCAL } else { 0 };
            self.word = StateWord::new(turn.interface.mac, State::Watched, flags, self.generation);
        }
        turn.actions.push_back(Action::Install { key: self.key, word: self.word });
        let kind = EventKind::State { from: None, to: Some(self.state), reason: self.reason };
        turn.event(self.key, kind);
    }

    /// A new address that is watched.
    pub(crate) fn watched(key: AddressKey, request: RequestId, turn: &mut Turn<'_>) -> Self {
        let mut address = Self::new(key, State::Watched, Reason::Commanded, turn);
        address.install(turn);
        address.wait(Some(request), Waiting::Watch, turn);
        address
    }

    /// A new address that is claimed.
    pub(crate) fn claimed(
        key: AddressKey,
        request: RequestId,
        spec: OnlineSpec,
        turn: &mut Turn<'_>,
    ) -> Self {
        let (state, reason) = if !turn.interface.up {
            (State::Suspended, Reason::LinkDown)
        } else if spec.adopt {
            (State::Announcing, Reason::Adopted)
        } else {
            (State::Probing, Reason::Commanded)
        };
        let mut address = Self::new(key, state, reason, turn);
        address.local = spec.adopt;
        address.start_claim(spec, turn);
        address.wait_online(request, spec.wait, turn);
        match state {
            State::Suspended => address.resume = Resume::Claim,
            State::Announcing => address.take_over(&spec),
            State::Watched
            | State::Probing
            | State::Online
            | State::Contested
            | State::Yielding
            | State::Refused
            | State::Lost => address.work.attempt = Some(Attempt { step: Step::Settling, failures: 0 }),
        }
        address.install(turn);
        address
    }
}

/// Words and steps.
impl Managed {
    /// The word that says what is so now. An address that the kernel has, or may be about to have, is marked local
    /// as soon as it may not answer: silence must not depend on which report comes first. One that is being put
    /// back on its interface is marked too: the program may give it up by itself at any time.
    fn wanted_word(&self, turn: &Turn<'_>) -> StateWord {
        let shielded = match self.registration {
            Registration::Absent => false,
            Registration::Registering => true,
            Registration::Present | Registration::Deregistering | Registration::Refused => {
                !self.state.may_answer()
            }
        };
        let local = if self.local || shielded { StateWord::LOCAL } else { 0 };
        StateWord::new(turn.interface.mac, self.state, local | self.policy().flags(), self.generation)
    }

    /// What the program does about a conflict by itself. While any claim takes ours back it steps aside at once, whether
    /// this daemon still lives or not.
    fn policy(&self) -> Policy {
        match self.spec() {
            Some(_) if self.state.may_answer() && self.work.window != Window::None => Policy::Yield,
            Some(spec) if self.state.may_answer() => match spec.defend {
                Defend::Yield => Policy::Yield,
                Defend::Once => Policy::Once,
                Defend::Hold => Policy::Hold,
            },
            _ => Policy::Leave,
        }
    }

    /// Tells the datapath, if there is something new to tell: silence before all else, a lease before the word that
    /// it bounds.
    fn publish(&mut self, turn: &mut Turn<'_>) {
        if self.work.slot != Slot::Installed || self.gone {
            return;
        }
        let word = self.wanted_word(turn);
        if word.may_answer() {
            self.tell_lease(turn);
        }
        if word != self.word {
            self.word = word;
            turn.actions.push_back(Action::Store { key: self.key, word });
        }
        self.tell_lease(turn);
    }

    fn tell_lease(&mut self, turn: &mut Turn<'_>) {
        if self.lease.told != self.lease.until {
            self.lease.told = self.lease.until;
            turn.actions.push_back(Action::Lease { key: self.key, until: self.lease.until });
        }
    }

    /// Has written down how the address is claimed, if that is new.
    fn remember(&mut self, turn: &mut Turn<'_>) {
        if self.remembered != self.spec {
            self.remembered.clone_from(&self.spec);
            turn.actions.push_back(Action::Remember { key: self.key, spec: self.spec().copied() });
        }
    }

    fn change_spec(&mut self, change: impl FnOnce(&mut OnlineSpec), turn: &mut Turn<'_>) {
        if let Some(mut spec) = self.spec().copied() {
            change(&mut spec);
            self.spec = Some(turn.specs.share(spec));
        }
    }

    /// The word gets another generation: what the program gave up under the old one is claimable again.
    fn renew_generation(&mut self, turn: &Turn<'_>) {
        self.generation = self.generation.wrapping_add(1);
        self.generation_since = turn.now;
    }

    /// Goes to another state: the datapath hears of it first, the world second.
    fn step(&mut self, to: State, reason: Reason, turn: &mut Turn<'_>) {
        let from = self.enter(to, reason, turn);
        turn.event(self.key, EventKind::State { from: Some(from), to: Some(to), reason });
    }

    /// [`Managed::step`] without the event, for where another event belongs between; returns the old state.
    fn enter(&mut self, to: State, reason: Reason, turn: &mut Turn<'_>) -> State {
        let from = self.state;
        self.state = to;
        self.since = turn.now;
        self.reason = reason;
        self.publish(turn);
        if !to.may_answer() {
            self.lay_down(turn);
        }
        from
    }

    /// Drops all that only an address that may answer does.
    fn lay_down(&mut self, turn: &mut Turn<'_>) {
        self.work.plan = None;
        self.work.question = Question::None;
        self.work.window = Window::None;
        self.trouble.defence = Defence::None;
        self.trouble.contested_until = None;
        self.trouble.challenger = None;
        self.stop_asking(turn);
        let state = self.state;
        let over = |what: &Waiting| matches!(what, Waiting::Announce | Waiting::Repair);
        self.answer_all(turn, over, &Answer::WrongState(state));
    }

    /// Ends the address.
    fn vanish(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        turn.actions.push_back(Action::Remove { key: self.key });
        self.stop_repairs(turn);
        self.stop_asking(turn);
        self.forget_state(reason, turn);
    }

    /// [`Managed::vanish`] for an address that the datapath never had.
    fn forget_state(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        self.gone = true;
        turn.event(self.key, EventKind::State { from: Some(self.state), to: None, reason });
    }

    /// Gives back the room of what is over.
    pub(crate) fn tidy(&mut self) {
        self.lease.tidy();
        self.work.tidy();
        self.trouble.tidy();
    }

    /// Something is under way with it.
    pub(crate) fn is_busy(&self) -> bool {
        !self.work.is_usual()
    }

    /// The engine drops it.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    fn fail(&mut self, what: String, turn: &mut Turn<'_>) {
        self.trouble.last_error = Some(what.clone());
        turn.event(self.key, EventKind::Failed { what });
    }
}

/// Outcomes.
impl Managed {
    pub(crate) fn installed(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        if self.work.slot != (Slot::Installing { tag }) {
            return;
        }
        match result {
            Ok(()) => {
                self.work.slot = Slot::Installed;
                self.publish(turn);
                self.answer_all(turn, |what| matches!(what, Waiting::Watch), &Answer::Done);
                if self.state.may_answer() {
                    self.start_plan_if_installed(turn);
                } else {
                    // An adopted address may have been given up already.
                    self.deregister(turn);
                }
                self.settle(turn);
            }
            Err(why) => {
                let what =
                    format!("making {} known to the datapath: {why}; it is not managed", self.key.address);
                self.fail(what.clone(), turn);
                self.forget_state(Reason::Failed, turn);
                self.answer_all(turn, |_| true, &Answer::Failed(what));
            }
        }
    }

    /// The interface has changed from what it was `before`.
    pub(crate) fn interface_changed(&mut self, before: &Interface, turn: &mut Turn<'_>) {
        match (before.up, turn.interface.up) {
            (true, false) => self.link_down(turn),
            (false, true) => self.link_up(turn),
            (true, true) | (false, false) => {}
        }
        if self.gone {
            return;
        }
        let mac_changed = before.mac != turn.interface.mac;
        let moved = before.path != turn.interface.path && before.path != 0;
        self.publish(turn);
        if self.state == State::Contested {
            if mac_changed || moved {
                self.start_plan_if_installed(turn);
            }
            self.uncontest(turn);
        } else if (mac_changed || moved) && self.state.may_answer() && before.up {
            let reason = if mac_changed { Reason::MacChanged } else { Reason::PathChanged };
            self.announce_again(reason, turn);
        }
    }
}
