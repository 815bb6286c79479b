//! One address: the states of the contract ("The life of an address") and nothing else.
//!
//! Three things run side by side in an address: its state (what the datapath is told), its registration with the
//! kernel (at most one request open at a time; what it is *wanted* to be follows from the state), and what waits
//! to be sent. Every wait has a deadline ([`Managed::deadline`]) or an outcome to come.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use arpwarden_common::{
    abi::AddressKey,
    net::MacAddr,
    state::{State, StateWord},
    wire::arp::Outgoing,
};

use crate::{
    action::{Action, Answer, Event, EventKind, Purpose, Reason},
    input::{
        Claim, Claimant, Defend, Dice, Interface, MonoTime, OnlineSpec, Owner, RequestId, Sighting,
        SightingKind, nanoseconds,
    },
    limits::{Defences, Loudness, OwnerFlaps, Permit},
    pace::{Outbox, Urgent, Wish},
    params::{
        self, BACKOFF_MAX, BACKOFF_MIN, DEFEND_INTERVAL, MAX_CONFLICTS, ONCE_MARGIN, RATE_LIMIT_INTERVAL,
        REPAIR_GAP, REPAIRS, ROLL_BACK_WINDOW, SEND_FAILURES, SEND_RETRY,
    },
    plan::{Failure, Plan},
};

/// What an address may use while it handles something.
pub(crate) struct Turn<'a> {
    pub(crate) now: MonoTime,
    pub(crate) dice: &'a mut dyn Dice,
    pub(crate) interface: Interface,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) actions: &'a mut VecDeque<Action>,
    pub(crate) requests: &'a mut BTreeMap<RequestId, AddressKey>,
    /// The last tag that was given out.
    pub(crate) tags: &'a mut u64,
    pub(crate) open: &'a mut OpenOutcomes,
}

/// Outcomes that have not come yet. They outlive the address: an outcome that comes late must not be taken for
/// one of the address's next life.
pub(crate) type OpenOutcomes = BTreeMap<AddressKey, VecDeque<Open>>;

/// An outcome to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Open {
    /// Of an installation.
    Install {
        /// Of which life.
        tag: u64,
    },
    /// Of a registration.
    Register {
        /// See above.
        tag: u64,
    },
    /// Of a deregistration.
    Deregister {
        /// See above.
        tag: u64,
    },
    /// Of a frame.
    Frame(Flight),
}

/// A frame whose outcome has not come yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flight {
    pub(crate) purpose: Purpose,
    pub(crate) frame: Outgoing,
    /// What it belongs to; the address compares it with what it waits for.
    pub(crate) tag: u64,
    /// Number in the plan.
    pub(crate) number: u8,
}

impl Turn<'_> {
    fn tag(&mut self) -> u64 {
        *self.tags += 1;
        *self.tags
    }

    fn open(&mut self, key: AddressKey, outcome: Open) {
        self.open.entry(key).or_default().push_back(outcome);
    }

    fn event(&mut self, key: AddressKey, kind: EventKind) {
        self.actions.push_back(Action::Event(Event { key, kind }));
    }

    pub(crate) fn answer(&mut self, request: RequestId, answer: Answer) {
        self.requests.remove(&request);
        self.actions.push_back(Action::Answer { request, answer });
    }

    fn after(&mut self, least: Duration, most: Duration) -> MonoTime {
        let spread = nanoseconds(most.saturating_sub(least));
        self.now.after(least).after(Duration::from_nanos(self.dice.below(spread.saturating_add(1))))
    }

    fn send(&mut self, key: AddressKey, purpose: Purpose, frame: Outgoing, tag: u64, number: u8) {
        self.open(key, Open::Frame(Flight { purpose, frame, tag, number }));
        self.actions.push_back(Action::Send { key, purpose, frame });
    }
}

/// Whether the datapath has the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    /// Asked for.
    Installing { tag: u64 },
    /// Yes.
    Installed,
}

/// Whether the kernel has the address because of us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Registration {
    /// No.
    Absent,
    /// Asked for.
    Registering { tag: u64 },
    /// Yes.
    Present,
    /// Asked to delete it; `wait` before it is asked again.
    Deregistering { tag: u64, wait: Duration },
    /// The kernel refused to delete it.
    Refused { retry: MonoTime, wait: Duration },
}

/// How far a claim is; it exists in state `probing` only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The slot, an earlier registration or the first repair of a roll-back is not settled yet.
    Settling,
    /// The next probe comes at `due`.
    Waiting { due: MonoTime, sent: u8 },
    /// The probe waits for its turn in the outbox.
    Queued { sent: u8 },
    /// The probe's outcome is open.
    Flying { sent: u8, tag: u64 },
    /// All probes have left; silence until then.
    Listening { until: MonoTime },
    /// The kernel was asked to add the address.
    Registering,
}

/// A claim: every attempt of it and the waits between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Attempt {
    step: Step,
    /// Probes that failed in a row.
    failures: u8,
}

/// A defence on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defence {
    /// None.
    None,
    /// Waits for its turn in the outbox.
    Queued { claimant: Claimant },
    /// Its outcome is open.
    Flying { claimant: Claimant, tag: u64 },
    /// It failed, or the interval forbade it: at `due`.
    Due { claimant: Claimant, due: MonoTime },
}

/// A probe behind the first announcement: of a claim that did not wait for silence, or of an adopted address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    /// None.
    None,
    /// Once the first announcement has left.
    Wanted,
    /// Waits for its turn in the outbox.
    Queued,
    /// Its outcome is open.
    Flying { tag: u64 },
    /// It failed; again at `due`.
    Due { due: MonoTime },
}

/// The time after the first announcement of an `immediate` claim in which any claim takes it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Window {
    /// There is none (any more).
    None,
    /// The first announcement has not left yet.
    Ahead,
    /// Until then.
    Until(MonoTime),
}

/// The repairs of a roll-back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Repairs {
    owner: Claimant,
    step: RepairStep,
    /// Tried, successfully or not.
    done: u8,
    /// Have left.
    sent: u8,
    failures: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RepairStep {
    Queued,
    Flying { tag: u64 },
    Due { due: MonoTime },
}

/// Who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiter {
    /// `None`: nobody any more, but the command goes on.
    request: Option<RequestId>,
    what: Waiting,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    /// For the address, retrying until then; `patient`: it asked for retries.
    Online { until: MonoTime, patient: bool },
    /// For its end.
    Release,
    /// For the slot.
    Watch,
    /// For the first frame of the plan.
    Announce,
}

/// Where an address goes when it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Gone(Reason),
    Watched(Reason),
}

/// A managed address.
#[derive(Clone, Debug)]
pub struct Managed {
    key: AddressKey,
    state: State,
    since: MonoTime,
    reason: Reason,
    spec: Option<OnlineSpec>,
    generation: u8,
    local: bool,
    slot: Slot,
    /// The word that the datapath was told last.
    word: StateWord,
    registration: Registration,
    /// Prefix length of the registration, 1..=32; a later claim may ask for another one.
    registered_prefix: u8,
    attempt: Option<Attempt>,
    /// A refused claim goes on at that time.
    retry: Option<MonoTime>,
    refusals: u32,
    refused_by: Option<(Claimant, Reason)>,
    /// The claim began on a watched address and goes back there if it fails.
    was_watched: bool,
    plan: Option<Plan>,
    /// The first announcement of this claim has left.
    announced: bool,
    question: Question,
    question_failures: u8,
    window: Window,
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
    repairs: Option<Repairs>,
    target: Target,
    owner: Option<Owner>,
    flaps: OwnerFlaps,
    waiters: Vec<Waiter>,
    conflicts: u64,
    defences: u64,
    last_error: Option<String>,
    gone: bool,
    /// The deadline that the engine has in its timer table.
    pub(crate) armed: Option<MonoTime>,
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
        self.spec.as_ref()
    }

    /// The generation of its claim, which the state word carries.
    pub fn generation(&self) -> u8 {
        self.generation
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
        self.owner
    }

    /// Claims and probes that were conflicts, in frames.
    pub fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// Defences that have left.
    pub fn defences(&self) -> u64 {
        self.defences
    }

    /// When it was defended last (CLOCK_BOOTTIME).
    pub fn last_defence(&self) -> Option<MonoTime> {
        self.defended.last()
    }

    /// Refusals since it was ours last.
    pub fn refusals(&self) -> u32 {
        self.refusals
    }

    /// Who refused it last, and how.
    pub fn refused_by(&self) -> Option<(Claimant, Reason)> {
        self.refused_by
    }

    /// What failed last, in words.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// When a refused claim, or a deletion that the kernel refused, is tried again (CLOCK_BOOTTIME).
    pub fn next_retry(&self) -> Option<MonoTime> {
        let deletion = match self.registration {
            Registration::Refused { retry, .. } => Some(retry),
            Registration::Absent
            | Registration::Registering { .. }
            | Registration::Present
            | Registration::Deregistering { .. } => None,
        };
        self.retry.or(deletion)
    }

    /// When the move budget allows a defence again (CLOCK_BOOTTIME); state `contested` only.
    pub fn contested_until(&self) -> Option<MonoTime> {
        self.contested_until
    }
}

/// Births.
impl Managed {
    fn new(key: AddressKey, state: State, reason: Reason, turn: &mut Turn<'_>) -> Self {
        let tag = turn.tag();
        Self {
            key,
            state,
            since: turn.now,
            reason,
            spec: None,
            generation: 0,
            local: false,
            slot: Slot::Installing { tag },
            word: StateWord::VACANT,
            registration: Registration::Absent,
            registered_prefix: 32,
            attempt: None,
            retry: None,
            refusals: 0,
            refused_by: None,
            was_watched: false,
            plan: None,
            announced: false,
            question: Question::None,
            question_failures: 0,
            window: Window::None,
            defence: Defence::None,
            defence_failures: 0,
            defended: Defences::default(),
            conflict: None,
            loudness: Loudness::default(),
            contested_until: None,
            challenger: None,
            repairs: None,
            target: Target::Gone(Reason::Commanded),
            owner: None,
            flaps: OwnerFlaps::default(),
            waiters: Vec::new(),
            conflicts: 0,
            defences: 0,
            last_error: None,
            gone: false,
            armed: None,
        }
    }

    /// Makes the new address known to the datapath.
    fn install(&mut self, turn: &mut Turn<'_>) {
        if let Slot::Installing { tag } = self.slot {
            turn.open(self.key, Open::Install { tag });
        }
        self.word = self.wanted_word(turn);
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
        let (state, reason) = if spec.adopt {
            (State::Announcing, Reason::Adopted)
        } else {
            (State::Probing, Reason::Commanded)
        };
        let mut address = Self::new(key, state, reason, turn);
        address.start_claim(spec);
        address.wait_online(request, spec.wait, turn);
        if spec.adopt {
            address.take_over(spec.prefix_length);
        } else {
            address.attempt = Some(Attempt { step: Step::Settling, failures: 0 });
        }
        address.install(turn);
        address
    }
}

/// Words and steps.
impl Managed {
    /// The word that says what is so now. An address that the kernel has, or may be about to have, is marked local
    /// as soon as it may not answer: silence must not depend on which report comes first.
    fn wanted_word(&self, turn: &Turn<'_>) -> StateWord {
        let shielded = self.registration != Registration::Absent && !self.state.may_answer();
        let flags = if self.local || shielded { StateWord::LOCAL } else { 0 };
        StateWord::new(turn.interface.mac, self.state, flags, self.generation)
    }

    /// Tells the datapath, if there is something new to tell.
    fn publish(&mut self, turn: &mut Turn<'_>) {
        let word = self.wanted_word(turn);
        if self.slot == Slot::Installed && word != self.word && !self.gone {
            self.word = word;
            turn.actions.push_back(Action::Store { key: self.key, word });
        }
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
        if !to.may_answer() {
            self.lay_down(turn);
        }
        self.publish(turn);
        from
    }

    /// Drops all that only an address that may answer does.
    fn lay_down(&mut self, turn: &mut Turn<'_>) {
        self.plan = None;
        self.question = Question::None;
        self.window = Window::None;
        self.defence = Defence::None;
        self.contested_until = None;
        self.challenger = None;
        let state = self.state;
        self.answer_all(turn, |what| matches!(what, Waiting::Announce), &Answer::WrongState(state));
    }

    /// Ends the address.
    fn vanish(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        self.stop_repairs(turn);
        turn.actions.push_back(Action::Remove { key: self.key });
        self.forget_state(reason, turn);
    }

    /// [`Managed::vanish`] for an address that the datapath never had.
    fn forget_state(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        self.gone = true;
        turn.event(self.key, EventKind::State { from: Some(self.state), to: None, reason });
    }

    /// The engine drops it.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    fn fail(&mut self, what: String, turn: &mut Turn<'_>) {
        self.last_error = Some(what.clone());
        turn.event(self.key, EventKind::Failed { what });
    }
}

/// Who waits.
impl Managed {
    fn wait(&mut self, request: Option<RequestId>, what: Waiting, turn: &mut Turn<'_>) {
        if let Some(request) = request {
            turn.requests.insert(request, self.key);
        }
        self.waiters.push(Waiter { request, what });
    }

    fn wait_online(&mut self, request: RequestId, wait: Duration, turn: &mut Turn<'_>) {
        let what = Waiting::Online { until: turn.now.after(wait), patient: !wait.is_zero() };
        self.wait(Some(request), what, turn);
    }

    fn answer_all(&mut self, turn: &mut Turn<'_>, which: impl Fn(&Waiting) -> bool, answer: &Answer) {
        self.waiters.retain(|waiter| {
            let answered = which(&waiter.what);
            if answered && let Some(request) = waiter.request {
                turn.answer(request, answer.clone());
            }
            !answered
        });
    }

    fn answer_online(&mut self, turn: &mut Turn<'_>, answer: &Answer) {
        self.answer_all(turn, |what| matches!(what, Waiting::Online { .. }), answer);
    }

    fn answer_release(&mut self, turn: &mut Turn<'_>, answer: &Answer) {
        self.answer_all(turn, |what| matches!(what, Waiting::Release), answer);
    }

    fn is_awaited(&self) -> bool {
        self.waiters.iter().any(|waiter| matches!(waiter.what, Waiting::Online { .. }))
    }

    /// The caller of `request` has gone away.
    pub(crate) fn forget(&mut self, request: RequestId) {
        for waiter in &mut self.waiters {
            if waiter.request == Some(request) {
                waiter.request = None;
            }
        }
    }
}

/// Commands.
impl Managed {
    pub(crate) fn online(&mut self, request: RequestId, spec: OnlineSpec, turn: &mut Turn<'_>) {
        let same = self.spec.is_some_and(|present| same_claim(&present, &spec));
        match self.state {
            State::Watched => self.claim(request, spec, turn),
            State::Refused | State::Lost if !self.is_awaited() => self.claim(request, spec, turn),
            State::Yielding | State::Suspended => turn.answer(request, Answer::WrongState(self.state)),
            State::Refused
            | State::Lost
            | State::Probing
            | State::Announcing
            | State::Online
            | State::Contested => {
                match self.spec {
                    Some(present) if !same => turn.answer(request, Answer::Differs { present }),
                    _ if self.state.may_answer() && self.announced => {
                        turn.answer(request, Answer::Already(self.state));
                    }
                    _ => {
                        self.wait_online(request, spec.wait, turn);
                        if !self.state.may_answer() && self.state != State::Probing {
                            // Somebody wants it now: no reason to sit out the wait before the next attempt.
                            self.begin(Reason::Retry, turn);
                        }
                    }
                }
            }
        }
    }

    /// A new claim of an address that is managed already.
    fn claim(&mut self, request: RequestId, spec: OnlineSpec, turn: &mut Turn<'_>) {
        if spec.adopt {
            if let Registration::Registering { .. } | Registration::Deregistering { .. } = self.registration {
                turn.answer(request, Answer::WrongState(self.state));
                return;
            }
        } else if self.local && self.registration == Registration::Absent {
            let what = format!(
                "claiming {}: it is on the interface already and was not put there by this daemon; \
                 take it off, or use --adopt",
                self.key.address
            );
            turn.answer(request, Answer::Failed(what));
            return;
        }
        self.was_watched = self.state == State::Watched;
        self.answer_all(turn, |what| matches!(what, Waiting::Watch), &Answer::Superseded);
        self.start_claim(spec);
        self.wait_online(request, spec.wait, turn);
        if !spec.adopt {
            self.begin(Reason::Commanded, turn);
            return;
        }
        self.stop_repairs(turn);
        self.take_over(spec.prefix_length);
        self.step(State::Announcing, Reason::Adopted, turn);
        self.start_plan_if_installed(turn);
    }

    /// Sets what holds for the whole claim.
    fn start_claim(&mut self, spec: OnlineSpec) {
        self.spec = Some(spec);
        self.generation = self.generation.wrapping_add(1);
        self.refused_by = None;
        self.last_error = None;
        self.conflict = None;
        self.announced = false;
        self.retry = None;
    }

    /// The kernel has it already.
    fn take_over(&mut self, prefix_length: u8) {
        self.local = true;
        self.registered_prefix = prefix_length;
        self.registration = Registration::Present;
        self.question = Question::Wanted;
        self.question_failures = 0;
    }

    pub(crate) fn offline(&mut self, request: RequestId, watch: bool, turn: &mut Turn<'_>) {
        let target =
            if watch { Target::Watched(Reason::Commanded) } else { Target::Gone(Reason::Deregistered) };
        match self.state {
            State::Watched if watch => turn.answer(request, Answer::Already(State::Watched)),
            State::Yielding => {
                self.target = target;
                self.wait(Some(request), Waiting::Release, turn);
                if let Registration::Refused { .. } = self.registration {
                    // Somebody may just have removed what stood in the way.
                    self.ask_to_delete(BACKOFF_MIN, turn);
                }
            }
            State::Watched
            | State::Probing
            | State::Announcing
            | State::Online
            | State::Contested
            | State::Suspended
            | State::Refused
            | State::Lost => {
                self.wait(Some(request), Waiting::Release, turn);
                self.answer_online(turn, &Answer::Superseded);
                self.answer_all(turn, |what| matches!(what, Waiting::Watch), &Answer::Superseded);
                self.release(target, Reason::Commanded, turn);
            }
        }
    }

    pub(crate) fn watch(&mut self, request: RequestId, turn: &mut Turn<'_>) {
        match self.state {
            State::Watched if self.slot == Slot::Installed => {
                turn.answer(request, Answer::Already(State::Watched));
            }
            State::Watched => self.wait(Some(request), Waiting::Watch, turn),
            State::Refused | State::Lost => self.offline(request, true, turn),
            State::Probing
            | State::Announcing
            | State::Online
            | State::Contested
            | State::Yielding
            | State::Suspended => turn.answer(request, Answer::WrongState(self.state)),
        }
    }

    pub(crate) fn unwatch(&mut self, request: RequestId, turn: &mut Turn<'_>) {
        if self.state == State::Watched {
            self.offline(request, false, turn);
        } else {
            turn.answer(request, Answer::WrongState(self.state));
        }
    }

    pub(crate) fn announce(&mut self, request: RequestId, turn: &mut Turn<'_>) {
        match self.state {
            State::Announcing | State::Online => {
                self.wait(Some(request), Waiting::Announce, turn);
                self.announce_again(Reason::Commanded, turn);
            }
            State::Watched
            | State::Probing
            | State::Contested
            | State::Yielding
            | State::Suspended
            | State::Refused
            | State::Lost => turn.answer(request, Answer::WrongState(self.state)),
        }
    }

    /// Starts the plan anew.
    fn announce_again(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        if self.state == State::Online {
            self.step(State::Announcing, reason, turn);
        }
        self.start_plan_if_installed(turn);
    }
}

/// Claiming.
impl Managed {
    /// Begins an attempt at a claim.
    fn begin(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        if reason == Reason::Retry {
            self.generation = self.generation.wrapping_add(1);
        }
        self.retry = None;
        self.attempt = Some(Attempt { step: Step::Settling, failures: 0 });
        self.step(State::Probing, reason, turn);
        self.settle(turn);
    }

    fn go_to(&mut self, step: Step) {
        if let Some(attempt) = &mut self.attempt {
            attempt.step = step;
        }
    }

    fn is_at(&self, step: Step) -> bool {
        self.attempt.is_some_and(|attempt| attempt.step == step)
    }

    /// Goes on with an attempt as soon as nothing of the address's past is in its way.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        let healed = self.repairs.is_none_or(|repairs| repairs.done > 0);
        let clear = self.slot == Slot::Installed && self.registration == Registration::Absent && healed;
        if !(clear && self.is_at(Step::Settling)) {
            return;
        }
        let Some(spec) = self.spec else { return };
        let questions = params::questions(&spec);
        if questions.probes == 0 {
            self.register(turn);
            return;
        }
        let due = turn.after(Duration::ZERO, questions.wait_max);
        self.go_to(Step::Waiting { due, sent: 0 });
        self.ask_if_due(turn);
    }

    fn ask_if_due(&mut self, turn: &mut Turn<'_>) {
        if let Some(Attempt { step: Step::Waiting { due, sent }, .. }) = self.attempt
            && due <= turn.now
        {
            self.go_to(Step::Queued { sent });
            turn.outbox.push(Wish::Probe(self.key));
        }
    }

    /// A probe of the claim has left, or has not.
    fn probed(&mut self, sent: u8, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec else { return };
        let questions = params::questions(&spec);
        match result {
            Ok(()) => {
                let step = if sent + 1 < questions.probes {
                    let due = turn.after(questions.gap_min, questions.gap_max);
                    Step::Waiting { due, sent: sent + 1 }
                } else {
                    Step::Listening { until: turn.now.after(questions.listen) }
                };
                self.attempt = Some(Attempt { step, failures: 0 });
            }
            Err(why) => {
                let failures = self.attempt.map_or(0, |attempt| attempt.failures).saturating_add(1);
                if failures >= SEND_FAILURES {
                    let what = format!(
                        "probing for {}: {SEND_FAILURES} probes in a row could not be sent: {why}; \
                         nothing was registered",
                        self.key.address
                    );
                    self.fail_claim(what, turn);
                    return;
                }
                let step = Step::Waiting { due: turn.now.after(SEND_RETRY), sent };
                self.attempt = Some(Attempt { step, failures });
            }
        }
    }

    /// Nobody objected: shield first, then the kernel.
    fn register(&mut self, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec else { return };
        self.go_to(Step::Registering);
        let tag = turn.tag();
        self.registration = Registration::Registering { tag };
        self.registered_prefix = spec.prefix_length;
        self.publish(turn);
        turn.open(self.key, Open::Register { tag });
        turn.actions.push_back(Action::Register { key: self.key, prefix_length: spec.prefix_length });
    }

    /// The kernel has it: ours.
    fn take(&mut self, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec else { return };
        self.attempt = None;
        self.stop_repairs(turn);
        let mut reason = Reason::ProbesUnanswered;
        if let Claim::Immediate { check } = spec.claim {
            self.window = Window::Ahead;
            if check.is_zero() {
                reason = Reason::Commanded;
                self.question = Question::Wanted;
                self.question_failures = 0;
            }
        }
        if self.window == Window::None {
            self.refusals = 0;
        }
        self.step(State::Announcing, reason, turn);
        self.start_plan_if_installed(turn);
    }

    /// Another host was there first, or at the same time (RFC 5227 §2.1.1).
    fn refuse(&mut self, claimant: Claimant, reason: Reason, turn: &mut Turn<'_>) {
        self.attempt = None;
        self.refusals = self.refusals.saturating_add(1);
        self.refused_by = Some((claimant, reason));
        let now = turn.now;
        let over = |what: &Waiting| matches!(what, Waiting::Online { until, .. } if *until <= now);
        self.answer_all(turn, over, &Answer::Taken { claimant, reason });
        let Some(spec) = self.spec else { return };
        if self.is_awaited() {
            let (least, most) = params::retry_wait(spec.profile);
            self.retry = Some(if self.refusals >= MAX_CONFLICTS {
                turn.now.after(RATE_LIMIT_INTERVAL)
            } else {
                turn.after(least, most)
            });
        }
    }

    /// The wait of a refused claim is over.
    fn give_up_waiting(&mut self, turn: &mut Turn<'_>) {
        let Some((claimant, reason)) = self.refused_by else { return };
        let now = turn.now;
        let over = |what: &Waiting| matches!(what, Waiting::Online { until, .. } if *until <= now);
        self.answer_all(turn, over, &Answer::Taken { claimant, reason });
        if !self.is_awaited() {
            self.retry = None;
        }
    }

    /// The claim can't be carried out.
    fn fail_claim(&mut self, what: String, turn: &mut Turn<'_>) {
        self.attempt = None;
        self.fail(what.clone(), turn);
        self.answer_online(turn, &Answer::Failed(what));
        let target =
            if self.was_watched { Target::Watched(Reason::Failed) } else { Target::Gone(Reason::Failed) };
        self.release(target, Reason::Failed, turn);
    }
}

/// Announcing.
impl Managed {
    fn start_plan_if_installed(&mut self, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec else { return };
        if self.slot != Slot::Installed {
            return; // the first frame comes after the word
        }
        self.plan = Some(Plan::new(turn.tag(), spec.profile));
        self.queue_plan(turn);
    }

    fn queue_plan(&self, turn: &mut Turn<'_>) {
        if self.state != State::Announcing {
            return; // contested: the plan goes on when the address may be defended again
        }
        for number in self.plan.iter().flat_map(Plan::queued) {
            turn.outbox.push(Wish::Announcement(self.key, number));
        }
    }

    /// A frame of the plan has left.
    fn frame_left(&mut self, flight: &Flight, turn: &mut Turn<'_>) {
        let Some(plan) = self.plan.as_mut().filter(|plan| plan.tag == flight.tag) else { return };
        plan.landed(flight.number, turn.now, turn.dice);
        let first = plan.sent == 1;
        if first {
            self.announced = true;
            if self.window == Window::Ahead {
                self.window = Window::Until(turn.now.after(ROLL_BACK_WINDOW));
            }
            self.answer_all(turn, |what| matches!(what, Waiting::Announce), &Answer::Done);
        }
        let open = self.window != Window::None;
        let done = |what: &Waiting| matches!(what, Waiting::Online { patient, .. } if !(open && *patient));
        self.answer_all(turn, done, &Answer::Done);
        self.finish_plan(flight.frame.sender_mac, turn);
    }

    fn finish_plan(&mut self, own_mac: MacAddr, turn: &mut Turn<'_>) {
        let Some(count) = self.plan.as_ref().filter(|plan| plan.is_done()).map(|plan| plan.sent) else {
            return;
        };
        self.plan = None;
        turn.event(self.key, EventKind::Announced { count, own_mac });
        if self.state == State::Announcing {
            self.step(State::Online, Reason::PlanDone, turn);
        }
    }

    /// A frame of the plan could not be sent.
    fn frame_failed(&mut self, flight: &Flight, why: &str, turn: &mut Turn<'_>) {
        let Some(plan) = self.plan.as_mut().filter(|plan| plan.tag == flight.tag) else { return };
        match plan.failed(flight.number, turn.now) {
            Failure::Retried => {}
            Failure::Persistent => {
                let what = format!(
                    "announcing {}: {SEND_FAILURES} announcements in a row could not be sent: {why}",
                    self.key.address
                );
                let adopted = self.spec.is_some_and(|spec| spec.adopt);
                if self.announced || adopted {
                    // It is answered all the same. An adopted address was in use before us and stays.
                    self.fail(what.clone(), turn);
                    self.answer_online(turn, &Answer::Failed(what.clone()));
                    self.answer_all(turn, |what| matches!(what, Waiting::Announce), &Answer::Failed(what));
                } else {
                    self.fail_claim(what, turn);
                }
            }
        }
    }

    /// 1.1 s without a claim.
    fn close_window(&mut self, turn: &mut Turn<'_>) {
        self.window = Window::None;
        self.refusals = 0;
        self.answer_online(turn, &Answer::Done);
    }

    fn ask_behind(&mut self, turn: &mut Turn<'_>) {
        self.question = Question::Queued;
        turn.outbox.push(Wish::Probe(self.key));
    }

    fn question_sent(&mut self, result: Result<(), String>, turn: &mut Turn<'_>) {
        self.question = Question::None;
        let Err(why) = result else { return };
        self.question_failures = self.question_failures.saturating_add(1);
        if self.question_failures < SEND_FAILURES {
            self.question = Question::Due { due: turn.now.after(SEND_RETRY) };
        } else {
            let what = format!(
                "asking who else has {}: {SEND_FAILURES} probes in a row could not be sent: {why}; \
                 a host that does not announce it goes unnoticed",
                self.key.address
            );
            self.fail(what, turn);
        }
    }
}

/// What the datapath saw.
impl Managed {
    pub(crate) fn seen(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        if self.slot != Slot::Installed {
            return; // of an earlier life: the datapath does not look out for this one yet
        }
        match sighting.kind {
            SightingKind::Echo { sibling: _ } => {
                if !sighting.repeat {
                    turn.event(self.key, EventKind::Echo { sighting: *sighting });
                }
            }
            SightingKind::Probe => self.seen_probe(sighting, turn),
            SightingKind::Claim | SightingKind::Flood => self.seen_claim(sighting, turn),
        }
    }

    fn seen_probe(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        match self.state {
            State::Probing => self.refused(sighting, Reason::ProbedByAnother, turn),
            State::Announcing | State::Online | State::Contested => {
                if !sighting.repeat {
                    turn.event(self.key, EventKind::ProbeSeen { sighting: *sighting });
                }
            }
            State::Watched | State::Yielding | State::Suspended | State::Refused | State::Lost => {}
        }
    }

    fn seen_claim(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        let first_owner = self.owner.is_none();
        self.owner = Some(Owner { claimant: sighting.claimant, seen: sighting.at });
        match self.state {
            State::Probing => self.refused(sighting, Reason::Claimed, turn),
            State::Announcing | State::Online | State::Contested => {
                if self.window == Window::None {
                    self.challenged(sighting, turn);
                } else {
                    self.roll_back(sighting, turn);
                }
            }
            State::Watched | State::Yielding | State::Suspended | State::Refused | State::Lost => {
                self.owner_seen(sighting, first_owner, turn);
            }
        }
    }

    /// Counts a conflict and tells of it.
    fn tell_conflict(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        self.conflicts = self.conflicts.saturating_add(sighting.count);
        let loud = match sighting.kind {
            SightingKind::Claim | SightingKind::Flood => self.loudness.add(sighting.at, sighting.count),
            SightingKind::Probe | SightingKind::Echo { .. } => self.loudness.is_loud(sighting.at),
        };
        if sighting.kind == SightingKind::Flood {
            turn.event(self.key, EventKind::ClaimantFlood { sighting: *sighting });
        } else if !sighting.repeat {
            turn.event(self.key, EventKind::Conflict { sighting: *sighting, loud });
        }
    }

    fn refused(&mut self, sighting: &Sighting, reason: Reason, turn: &mut Turn<'_>) {
        let from = self.enter(State::Refused, reason, turn);
        self.tell_conflict(sighting, turn);
        turn.event(self.key, EventKind::State { from: Some(from), to: Some(State::Refused), reason });
        self.refuse(sighting.claimant, reason, turn);
        self.deregister(turn);
    }

    /// Takes an `immediate` claim back: silent first, then the kernel, then everybody hears of the owner again.
    fn roll_back(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        let (claimant, reason) = (sighting.claimant, Reason::RolledBack);
        let harmed = self.announced || self.plan.as_ref().is_some_and(Plan::is_flying);
        let from = self.enter(State::Refused, reason, turn);
        self.tell_conflict(sighting, turn);
        turn.event(self.key, EventKind::RolledBack { claimant });
        turn.event(self.key, EventKind::State { from: Some(from), to: Some(State::Refused), reason });
        self.refuse(claimant, reason, turn);
        self.deregister(turn);
        if harmed {
            let step = RepairStep::Queued;
            self.repairs = Some(Repairs { owner: claimant, step, done: 0, sent: 0, failures: 0 });
            turn.outbox.push(Wish::Urgent(self.key, Urgent::Repair));
        }
    }

    /// A claim for an address that is ours (RFC 5227 §2.4).
    fn challenged(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec else { return };
        let interval = DEFEND_INTERVAL.saturating_add(ONCE_MARGIN);
        let recent = self.conflict.is_some_and(|earlier| sighting.at.since(earlier) < interval);
        self.conflict = Some(sighting.at);
        let lost = match spec.defend {
            Defend::Yield => true,
            Defend::Once => recent,
            Defend::Hold => false,
        };
        if lost {
            let from = self.enter(State::Lost, Reason::DefendPolicy, turn);
            self.tell_conflict(sighting, turn);
            let (to, reason) = (Some(State::Lost), Reason::DefendPolicy);
            turn.event(self.key, EventKind::State { from: Some(from), to, reason });
            let answer = Answer::Taken { claimant: sighting.claimant, reason };
            self.answer_online(turn, &answer);
            self.deregister(turn);
            return;
        }
        self.tell_conflict(sighting, turn);
        if self.state == State::Contested {
            self.challenger = Some(sighting.claimant);
        } else {
            self.defend(sighting.claimant, turn);
        }
    }

    /// A claim for an address that is not ours is news only if the owner changes.
    fn owner_seen(&mut self, sighting: &Sighting, first_owner: bool, turn: &mut Turn<'_>) {
        if sighting.kind == SightingKind::Flood {
            turn.event(self.key, EventKind::ClaimantFlood { sighting: *sighting });
        } else if sighting.owner_changed {
            turn.event(self.key, EventKind::OwnerChanged { sighting: *sighting });
        }
        if self.state == State::Watched
            && sighting.owner_changed
            && !first_owner
            && self.flaps.add(sighting.at, sighting.repeat)
        {
            self.conflicts = self.conflicts.saturating_add(sighting.count);
            let loud = self.loudness.add(sighting.at, sighting.count);
            turn.event(self.key, EventKind::Conflict { sighting: *sighting, loud });
        }
    }
}

/// Defending.
impl Managed {
    /// Defends against `claimant` as soon as the limits allow it.
    fn defend(&mut self, claimant: Claimant, turn: &mut Turn<'_>) {
        match self.defence {
            // It leaves after this claim and answers it too.
            Defence::Queued { .. } => self.defence = Defence::Queued { claimant },
            Defence::Due { due, .. } if due > turn.now => self.defence = Defence::Due { claimant, due },
            Defence::None | Defence::Flying { .. } | Defence::Due { .. } => {
                match self.defended.permit(turn.now, turn.interface.moves) {
                    Permit::Now => {
                        self.defence = Defence::Queued { claimant };
                        turn.outbox.push(Wish::Urgent(self.key, Urgent::Defence));
                    }
                    // Caches follow the last announcement that they heard. If the rival falls silent now, they
                    // would stay with it for as long as they like, so one defence makes up for it as soon as the
                    // interval allows (RFC 5227 §2.4 (c): one in each).
                    Permit::After(due) => {
                        if let Defence::Flying { .. } = self.defence {
                            self.challenger = Some(claimant); // looked at when the outcome is there
                        } else {
                            self.defence = Defence::Due { claimant, due };
                        }
                    }
                    Permit::Spent(free) => {
                        self.defence = Defence::None;
                        self.challenger = Some(claimant);
                        self.contested_until = Some(free);
                        self.step(State::Contested, Reason::MoveBudgetSpent, turn);
                        let answer = Answer::WrongState(State::Contested);
                        self.answer_all(turn, |what| matches!(what, Waiting::Announce), &answer);
                    }
                }
            }
        }
    }

    fn defence_sent(&mut self, flight: &Flight, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Defence::Flying { claimant, tag } = self.defence else { return };
        if tag != flight.tag {
            return;
        }
        self.defence = Defence::None;
        match result {
            Ok(()) => {
                self.defence_failures = 0;
                self.defences += 1;
                let own_mac = flight.frame.sender_mac;
                turn.event(self.key, EventKind::Defended { claimant, own_mac });
                if self.state != State::Contested
                    && let Some(challenger) = self.challenger.take()
                {
                    self.defend(challenger, turn);
                }
            }
            Err(why) => {
                let claimant = self.challenger.take().unwrap_or(claimant);
                self.defended.take_back();
                if self.state == State::Contested {
                    // It spent nothing after all.
                    self.challenger = Some(claimant);
                    self.contested_until = Some(turn.now.after(SEND_RETRY));
                    return;
                }
                self.defence_failures = self.defence_failures.saturating_add(1);
                if self.defence_failures < SEND_FAILURES {
                    self.defence = Defence::Due { claimant, due: turn.now.after(SEND_RETRY) };
                    return;
                }
                self.defence_failures = 0;
                let what = format!(
                    "defending {} against {}: {SEND_FAILURES} announcements in a row could not be sent: {why}; \
                     the next claim is answered again",
                    self.key.address, claimant.mac
                );
                self.fail(what, turn);
            }
        }
    }

    /// The move budget allows a defence again.
    fn uncontest(&mut self, turn: &mut Turn<'_>) {
        if let Some(free) = self.defended.spent_until(turn.now, turn.interface.moves) {
            self.contested_until = Some(free); // the budget was changed meanwhile
            return;
        }
        self.contested_until = None;
        if let Some(plan) = &mut self.plan {
            plan.resume(turn.now.since(self.since));
        }
        let to = if self.plan.is_some() { State::Announcing } else { State::Online };
        self.step(to, Reason::MoveBudgetFree, turn);
        self.queue_plan(turn);
        // The claim that spent the budget was not answered either, so there always is one.
        if let Some(challenger) = self.challenger.take() {
            self.defend(challenger, turn);
        }
    }
}

/// Giving up.
impl Managed {
    /// Goes to `target` without a detour if the kernel does not have the address, else by way of `yielding`.
    fn release(&mut self, target: Target, reason: Reason, turn: &mut Turn<'_>) {
        self.attempt = None;
        self.retry = None;
        self.target = target;
        if self.registration == Registration::Absent {
            let reason = match target {
                // It was never on the interface, so nothing was deregistered.
                Target::Gone(Reason::Deregistered) => Reason::Commanded,
                Target::Gone(reason) | Target::Watched(reason) => reason,
            };
            self.arrive(reason, turn);
            return;
        }
        self.step(State::Yielding, reason, turn);
        self.deregister(turn);
    }

    /// At the end of giving up.
    fn arrive(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        match self.target {
            Target::Gone(_) => self.vanish(reason, turn),
            Target::Watched(_) => self.step(State::Watched, reason, turn),
        }
        let state = self.state;
        self.answer_all(turn, |what| matches!(what, Waiting::Announce), &Answer::WrongState(state));
        self.answer_release(turn, &Answer::Done);
    }

    /// Takes it off the interface, if we put it there. A request that is open already is waited for.
    fn deregister(&mut self, turn: &mut Turn<'_>) {
        if self.registration == Registration::Present && self.slot == Slot::Installed {
            self.ask_to_delete(BACKOFF_MIN, turn);
        }
    }

    fn ask_to_delete(&mut self, wait: Duration, turn: &mut Turn<'_>) {
        let tag = turn.tag();
        self.registration = Registration::Deregistering { tag, wait };
        turn.open(self.key, Open::Deregister { tag });
        let prefix_length = self.registered_prefix;
        turn.actions.push_back(Action::Deregister { key: self.key, prefix_length });
    }

    fn stop_repairs(&mut self, turn: &mut Turn<'_>) {
        if let Some(repairs) = self.repairs.take()
            && repairs.sent > 0
        {
            let count = u64::from(repairs.sent);
            turn.event(self.key, EventKind::Repaired { claimant: Some(repairs.owner), count });
        }
    }

    fn repair_sent(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Some(mut repairs) = self.repairs else { return };
        if repairs.step != (RepairStep::Flying { tag }) {
            return;
        }
        let next = match result {
            Ok(()) => {
                repairs.failures = 0;
                repairs.sent += 1;
                repairs.done += 1;
                REPAIR_GAP
            }
            Err(why) => {
                repairs.failures += 1;
                if repairs.failures < SEND_FAILURES {
                    SEND_RETRY
                } else {
                    repairs.failures = 0;
                    repairs.done += 1;
                    let what = format!(
                        "telling everybody again that {} has {}: {SEND_FAILURES} repairs in a row could not be \
                         sent: {why}; hosts that heard this one's announcement may be wrong until it speaks",
                        repairs.owner.mac, self.key.address
                    );
                    self.fail(what, turn);
                    REPAIR_GAP
                }
            }
        };
        repairs.step = RepairStep::Due { due: turn.now.after(next) };
        self.repairs = Some(repairs);
        if repairs.done >= REPAIRS {
            self.stop_repairs(turn);
        }
        self.settle(turn);
    }
}

/// Outcomes.
impl Managed {
    pub(crate) fn installed(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        if self.slot != (Slot::Installing { tag }) {
            return;
        }
        match result {
            Ok(()) => {
                self.slot = Slot::Installed;
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

    pub(crate) fn registered(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        if self.registration != (Registration::Registering { tag }) {
            return;
        }
        match result {
            Ok(()) => {
                self.registration = Registration::Present;
                self.local = true;
                if self.is_at(Step::Registering) {
                    self.take(turn);
                } else {
                    // Given up or refused while the kernel was at work.
                    self.deregister(turn);
                    self.publish(turn);
                }
            }
            Err(why) => {
                self.registration = Registration::Absent;
                if self.is_at(Step::Registering) {
                    let what = format!("registering {} with the kernel: {why}", self.key.address);
                    self.fail_claim(what, turn);
                } else {
                    self.off_the_interface(turn);
                }
            }
        }
    }

    pub(crate) fn deregistered(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Registration::Deregistering { tag: wanted, wait } = self.registration else { return };
        if wanted != tag {
            return;
        }
        match result {
            Ok(()) => {
                self.registration = Registration::Absent;
                self.local = false;
                self.off_the_interface(turn);
            }
            Err(why) => {
                self.registration = Registration::Refused {
                    retry: turn.now.after(wait),
                    wait: wait.saturating_mul(2).min(BACKOFF_MAX),
                };
                let what = format!(
                    "taking {} off the interface: {why}; it stays silent and is tried again in {} s",
                    self.key.address,
                    wait.as_secs()
                );
                self.fail(what.clone(), turn);
                self.answer_release(turn, &Answer::Failed(what));
            }
        }
    }

    /// The kernel does not have it (any more).
    fn off_the_interface(&mut self, turn: &mut Turn<'_>) {
        if self.state == State::Yielding {
            let (Target::Gone(reason) | Target::Watched(reason)) = self.target;
            self.arrive(reason, turn);
        } else {
            self.publish(turn);
            self.settle(turn);
        }
    }

    /// A frame has left, or has not.
    pub(crate) fn sent(&mut self, flight: &Flight, result: Result<(), String>, turn: &mut Turn<'_>) {
        match flight.purpose {
            Purpose::Probe => {
                if let Some(Attempt { step: Step::Flying { sent, tag }, .. }) = self.attempt
                    && tag == flight.tag
                {
                    self.probed(sent, result, turn);
                } else if self.question == (Question::Flying { tag: flight.tag }) {
                    self.question_sent(result, turn);
                }
            }
            Purpose::Announcement => match result {
                Ok(()) => self.frame_left(flight, turn),
                Err(why) => self.frame_failed(flight, &why, turn),
            },
            Purpose::Defence => self.defence_sent(flight, result, turn),
            Purpose::Repair => self.repair_sent(flight.tag, result, turn),
            Purpose::Ask => {}
        }
    }

    /// The netlink watch says whether the address is configured.
    pub(crate) fn local(&mut self, local: bool, turn: &mut Turn<'_>) {
        // A report of an earlier deletion may still be on its way: `wanted_word` keeps the shield up all the same.
        let removed = self.local && !local && self.state.may_answer();
        self.local = local;
        self.publish(turn);
        if removed {
            turn.event(self.key, EventKind::AddressRemoved);
        }
    }

    /// The interface has changed; `mac_changed`: it has another MAC.
    pub(crate) fn interface_changed(&mut self, mac_changed: bool, turn: &mut Turn<'_>) {
        self.publish(turn);
        if self.state == State::Contested {
            if mac_changed {
                self.start_plan_if_installed(turn);
            }
            self.uncontest(turn);
        } else if mac_changed && self.state.may_answer() {
            self.announce_again(Reason::MacChanged, turn);
        }
    }
}

/// Time and the wire.
impl Managed {
    /// When it wants to be looked at next.
    pub(crate) fn deadline(&self) -> Option<MonoTime> {
        let attempt = match self.attempt.map(|attempt| attempt.step) {
            Some(Step::Waiting { due, .. }) => Some(due),
            Some(Step::Listening { until }) => Some(until),
            Some(Step::Settling | Step::Queued { .. } | Step::Flying { .. } | Step::Registering) | None => {
                None
            }
        };
        let registration = match self.registration {
            Registration::Refused { retry, .. } => Some(retry),
            Registration::Absent
            | Registration::Registering { .. }
            | Registration::Present
            | Registration::Deregistering { .. } => None,
        };
        let waits = if self.state == State::Refused { self.first_wait_over() } else { None };
        let plan =
            if self.state == State::Announcing { self.plan.as_ref().and_then(Plan::deadline) } else { None };
        let question = match self.question {
            Question::Due { due } => Some(due),
            Question::None | Question::Wanted | Question::Queued | Question::Flying { .. } => None,
        };
        let window = match self.window {
            Window::Until(until) => Some(until),
            Window::None | Window::Ahead => None,
        };
        let defence = match self.defence {
            Defence::Due { due, .. } => Some(due),
            Defence::None | Defence::Queued { .. } | Defence::Flying { .. } => None,
        };
        let repair = match self.repairs.map(|repairs| repairs.step) {
            Some(RepairStep::Due { due }) => Some(due),
            Some(RepairStep::Queued | RepairStep::Flying { .. }) | None => None,
        };
        let all = [
            attempt,
            registration,
            self.retry,
            waits,
            plan,
            question,
            window,
            defence,
            self.contested_until,
            repair,
        ];
        all.into_iter().flatten().min()
    }

    fn first_wait_over(&self) -> Option<MonoTime> {
        let ends = self.waiters.iter().filter_map(|waiter| match waiter.what {
            Waiting::Online { until, .. } => Some(until),
            Waiting::Release | Waiting::Watch | Waiting::Announce => None,
        });
        ends.min()
    }

    /// Does what is due.
    pub(crate) fn on_timer(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        if let Registration::Refused { retry, wait } = self.registration
            && retry <= now
        {
            self.ask_to_delete(wait, turn);
        }
        if let Some(mut repairs) = self.repairs
            && let RepairStep::Due { due } = repairs.step
            && due <= now
        {
            repairs.step = RepairStep::Queued;
            self.repairs = Some(repairs);
            turn.outbox.push(Wish::Urgent(self.key, Urgent::Repair));
        }
        if self.state == State::Refused {
            if self.first_wait_over().is_some_and(|end| end <= now) {
                self.give_up_waiting(turn);
            }
            if self.retry.is_some_and(|retry| retry <= now) {
                self.begin(Reason::Retry, turn);
            }
        }
        self.ask_if_due(turn);
        if let Some(Attempt { step: Step::Listening { until }, .. }) = self.attempt
            && until <= now
        {
            self.register(turn);
        }
        if let Window::Until(until) = self.window
            && until <= now
        {
            self.close_window(turn);
        }
        if self.contested_until.is_some_and(|until| until <= now) {
            self.uncontest(turn);
        }
        if let Defence::Due { claimant, due } = self.defence
            && due <= now
        {
            self.defend(claimant, turn);
        }
        if let Question::Due { due } = self.question
            && due <= now
        {
            self.ask_behind(turn);
        }
        if self.state == State::Announcing
            && let Some(plan) = &mut self.plan
            && plan.on_timer(now, turn.dice)
        {
            self.queue_plan(turn);
        }
    }

    /// The turn of a frame has come; false if it is not wanted any more.
    pub(crate) fn launch(&mut self, wish: Wish, turn: &mut Turn<'_>) -> bool {
        match wish {
            Wish::Urgent(_, Urgent::Defence) => self.launch_defence(turn),
            Wish::Urgent(_, Urgent::Repair) => self.launch_repair(turn),
            Wish::Probe(_) => self.launch_probe(turn),
            Wish::Announcement(_, number) => self.launch_announcement(number, turn),
        }
    }

    fn announcement(&self, turn: &Turn<'_>) -> Outgoing {
        let mac = turn.interface.mac;
        Outgoing::announcement(mac, mac, self.key.vlan, self.key.address)
    }

    fn launch_defence(&mut self, turn: &mut Turn<'_>) -> bool {
        let Defence::Queued { claimant } = self.defence else { return false };
        let tag = turn.tag();
        self.defence = Defence::Flying { claimant, tag };
        self.challenger = None;
        self.defended.record(turn.now, turn.interface.moves);
        turn.send(self.key, Purpose::Defence, self.announcement(turn), tag, 0);
        true
    }

    fn launch_repair(&mut self, turn: &mut Turn<'_>) -> bool {
        let Some(mut repairs) = self.repairs.filter(|repairs| repairs.step == RepairStep::Queued) else {
            return false;
        };
        let tag = turn.tag();
        repairs.step = RepairStep::Flying { tag };
        self.repairs = Some(repairs);
        let owner = repairs.owner.mac;
        let frame = Outgoing::announcement(turn.interface.mac, owner, self.key.vlan, self.key.address);
        turn.send(self.key, Purpose::Repair, frame, tag, 0);
        true
    }

    fn launch_probe(&mut self, turn: &mut Turn<'_>) -> bool {
        let tag = turn.tag();
        if let Some(Attempt { step: Step::Queued { sent }, .. }) = self.attempt {
            self.go_to(Step::Flying { sent, tag });
        } else if self.question == Question::Queued {
            self.question = Question::Flying { tag };
        } else {
            return false;
        }
        let frame = Outgoing::probe(turn.interface.mac, self.key.vlan, self.key.address);
        turn.send(self.key, Purpose::Probe, frame, tag, 0);
        true
    }

    fn launch_announcement(&mut self, number: u8, turn: &mut Turn<'_>) -> bool {
        if self.state != State::Announcing {
            return false;
        }
        let Some(plan) = &mut self.plan else { return false };
        if !plan.launch(number, turn.now, turn.dice) {
            return false;
        }
        let tag = plan.tag;
        let reply = number % 2 == 1;
        let frame = if reply {
            Outgoing::announcement_reply(turn.interface.mac, self.key.vlan, self.key.address)
        } else {
            self.announcement(turn)
        };
        turn.send(self.key, Purpose::Announcement, frame, tag, number);
        if self.question == Question::Wanted {
            self.ask_behind(turn);
        }
        true
    }
}

/// Whether two claims ask for the same thing. Neither the patience nor where the address came from is a lasting
/// parameter: a script that says `--adopt` again after its own restart asks for nothing new.
fn same_claim(a: &OnlineSpec, b: &OnlineSpec) -> bool {
    a.prefix_length == b.prefix_length
        && a.claim == b.claim
        && a.profile == b.profile
        && a.defend == b.defend
        && a.register == b.register
        && a.on_removed == b.on_removed
}
