//! What an earlier run of the daemon has left: the program went by the words all the time, so each address goes on
//! from its word.

use core::time::Duration;

use arpwarden_common::{
    abi::AddressKey,
    state::{Policy, State},
};

use super::{
    Managed, Slot,
    announce::Window,
    link::Resume,
    registration::{Registration, Target},
    turn::Turn,
};
use crate::{
    action::{EventKind, Reason},
    input::{Claim, Defend, Kept, MonoTime, OnRemoved, OnlineSpec, Profile, Register},
};

impl Managed {
    pub(crate) fn adopted(key: AddressKey, kept: &Kept, turn: &mut Turn<'_>) -> Self {
        // A word that says nothing known answers nothing either: what it stands for is given up.
        let state = kept.word.state().unwrap_or(State::Yielding);
        let mut address = Self::new(key, state, Reason::Adopted, turn);
        address.recall(kept, turn);
        let (to, reason) = address.judge(kept, turn);
        address.resume = match (to, state) {
            (State::Suspended, _) if reason == Reason::LeaseExpired => Resume::Never,
            (State::Suspended, State::Probing) => Resume::Claim,
            (State::Suspended, State::Suspended) if !address.was_ours() => Resume::Claim,
            (State::Suspended, _) => Resume::Probe,
            _ => Resume::Never,
        };
        if to.may_answer() {
            address.remember(turn);
        }
        address.enter(to, reason, turn);
        turn.event(key, EventKind::Adopted { untold: kept.untold });
        if to != state {
            if reason == Reason::LeaseExpired {
                turn.event(key, EventKind::LeaseExpired);
            }
            if reason == Reason::AddressRemoved {
                turn.event(key, EventKind::AddressRemoved);
            }
            turn.event(key, EventKind::State { from: kept.word.state(), to: Some(to), reason });
        }
        if kept.local && !kept.word.is_local() && address.registration == Registration::Absent {
            turn.event(key, EventKind::AddressAdded);
        }
        address.remember(turn);
        address.carry_on(kept, turn);
        address
    }

    /// Takes in what is known.
    fn recall(&mut self, kept: &Kept, turn: &mut Turn<'_>) {
        self.work.slot = Slot::Installed;
        self.word = kept.word;
        self.generation = kept.word.generation();
        self.generation_since = MonoTime::default();
        self.local = kept.local;
        self.owner = kept.owner.map(Box::new);
        for at in &kept.defences {
            self.trouble.defended.record((*at).min(turn.now), None);
        }
        self.spec = kept.spec.map(|spec| turn.specs.share(spec));
        self.remembered = self.spec.clone();
        if self.spec.is_none() && self.state != State::Watched {
            let spec = OnlineSpec {
                prefix_length: kept.registered.unwrap_or(32),
                claim: Claim::Probe,
                profile: Profile::default(),
                defend: match kept.word.policy() {
                    Policy::Yield => Defend::Yield,
                    Policy::Once => Defend::Once,
                    Policy::Hold | Policy::Leave => Defend::Hold,
                },
                wait: Duration::ZERO,
                adopt: false,
                lease: kept.lease_until.map(|until| until.since(turn.now)),
                register: Register::default(),
                on_removed: OnRemoved::default(),
                joint: false,
            };
            self.spec = Some(turn.specs.share(spec));
        }
        (self.lease.until, self.lease.told) = (kept.lease_until, kept.lease_until);
        let Some(spec) = self.spec().copied() else { return };
        if spec.lease.is_some() && self.lease.until.is_none() && self.state != State::Watched {
            // Written down, but the datapath was never told: the end came in between, and when it is is not known.
            self.lease.until = Some(turn.now);
        }
        self.registered_prefix = kept.registered.unwrap_or(spec.prefix_length);
        // What was taken over with --adopt is in no journal, and neither is what is ours all the same.
        let taken_over =
            kept.local && spec.register == Register::Address && (spec.adopt || kept.word.may_answer());
        if kept.registered.is_some() || taken_over {
            self.registration = Registration::Present;
        }
    }

    /// Whether a suspended address was ours before, and not just about to be claimed.
    fn was_ours(&self) -> bool {
        self.registration != Registration::Absent
            || self.spec().is_some_and(|spec| spec.register == Register::None)
    }

    /// It is to be on the interface and is not.
    pub(super) fn is_missing(&self) -> bool {
        !self.local && self.spec().is_some_and(|spec| spec.register == Register::Address)
    }

    fn gives_up_if_removed(&self) -> bool {
        self.spec().is_some_and(|spec| spec.on_removed == OnRemoved::GiveUp)
    }

    /// Where the address stands by what is so now.
    fn judge(&self, kept: &Kept, turn: &Turn<'_>) -> (State, Reason) {
        let state = self.state;
        let claimed = state.may_answer() || matches!(state, State::Probing | State::Suspended);
        if kept.fallen && state.may_answer() {
            (State::Lost, Reason::DefendPolicy)
        } else if claimed && self.lease.until.is_some_and(|until| until <= turn.now) {
            (State::Suspended, Reason::LeaseExpired)
        } else if state.may_answer() && self.is_missing() && self.gives_up_if_removed() {
            (State::Lost, Reason::AddressRemoved)
        } else if claimed && !turn.interface.up {
            (State::Suspended, Reason::LinkDown)
        } else if state == State::Watched && self.registration != Registration::Absent {
            (State::Yielding, Reason::Adopted) // never shielded while it is watched
        } else {
            (state, Reason::Adopted)
        }
    }

    fn carry_on(&mut self, kept: &Kept, turn: &mut Turn<'_>) {
        match self.state {
            State::Watched => {}
            State::Probing => {
                // How far it was is not known, nor what was heard.
                self.deregister(turn);
                self.begin(Reason::Adopted, turn);
            }
            State::Announcing | State::Online | State::Contested => self.hold_on(kept, turn),
            State::Yielding => {
                self.target = if kept.word.is(State::Watched) {
                    Target::Watched(Reason::Adopted)
                } else {
                    Target::Gone(Reason::Deregistered)
                };
                if self.registration == Registration::Absent {
                    self.arrive(Reason::Adopted, turn);
                } else {
                    self.deregister(turn);
                }
            }
            State::Suspended => {
                if !kept.local && self.resume != Resume::Never {
                    self.registration = Registration::Absent;
                }
                if self.resume == Resume::Never {
                    self.deregister(turn);
                } else if turn.interface.up {
                    self.recheck = self.resume == Resume::Probe;
                    self.begin(Reason::LinkUp, turn);
                }
            }
            State::Refused | State::Lost => self.deregister(turn),
        }
    }

    /// It was ours, and nothing says that it is not.
    fn hold_on(&mut self, kept: &Kept, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec().copied() else { return };
        self.announced = true;
        if self.is_missing() {
            self.registration = Registration::Present;
            self.removed(turn);
        }
        let moved = kept.word.mac() != turn.interface.mac;
        match self.state {
            State::Announcing => {
                if spec.adopt || spec.claim == (Claim::Immediate { check: Duration::ZERO }) {
                    self.want_question();
                }
                self.start_plan_if_installed(turn);
            }
            State::Online if self.work.window != Window::None => {
                self.announce_again(Reason::Adopted, turn);
            }
            State::Online if moved => self.announce_again(Reason::MacChanged, turn),
            State::Contested => {
                if moved {
                    self.start_plan_if_installed(turn);
                }
                self.uncontest(turn);
            }
            State::Online
            | State::Watched
            | State::Probing
            | State::Yielding
            | State::Suspended
            | State::Refused
            | State::Lost => {}
        }
    }
}
