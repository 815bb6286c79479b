//! Commands.

use arpwarden_common::state::State;

use super::{
    Managed, Slot,
    link::{Resume, link_is_down},
    registration::{Errand, Registration, Target},
    turn::Turn,
    waiting::Waiting,
};
use crate::{
    action::{Answer, Reason},
    input::{OnlineSpec, Register, RequestId},
    params::BACKOFF_MIN,
};

impl Managed {
    pub(crate) fn online(&mut self, request: RequestId, spec: OnlineSpec, turn: &mut Turn<'_>) {
        let same = self.spec().is_some_and(|present| same_claim(present, &spec));
        let unclaimed = match self.state {
            State::Watched => true,
            State::Refused | State::Lost => !self.is_awaited(),
            State::Suspended => self.resume == Resume::Never,
            State::Probing | State::Announcing | State::Online | State::Contested | State::Yielding => false,
        };
        match self.state {
            _ if !turn.interface.up && spec.wait.is_zero() && !self.state.may_answer() => {
                let what = link_is_down(&self.key);
                turn.answer(request, Answer::Failed(what));
            }
            _ if unclaimed => self.claim(request, spec, turn),
            State::Yielding => turn.answer(request, Answer::WrongState(self.state)),
            State::Watched
            | State::Refused
            | State::Lost
            | State::Suspended
            | State::Probing
            | State::Announcing
            | State::Online
            | State::Contested => {
                match self.spec().copied() {
                    Some(present) if !same => turn.answer(request, Answer::Differs { present }),
                    _ if self.state.may_answer() && self.announced => {
                        self.renew_if_asked(&spec, turn);
                        turn.answer(request, Answer::Already(self.state));
                    }
                    _ => {
                        self.renew_if_asked(&spec, turn);
                        self.wait_online(request, spec.wait, turn);
                        if let State::Refused | State::Lost = self.state {
                            // Somebody wants it now: no reason to sit out the wait before the next attempt.
                            self.begin(Reason::Retry, turn);
                        }
                    }
                }
            }
        }
    }

    /// The same claim again, with a lease, renews.
    fn renew_if_asked(&mut self, spec: &OnlineSpec, turn: &mut Turn<'_>) {
        if let Some(lease) = spec.lease {
            self.extend_lease(lease, turn);
        }
    }

    /// What holds from now on, without a step.
    pub(crate) fn adjust(&mut self, request: RequestId, spec: &OnlineSpec, turn: &mut Turn<'_>) {
        let Some(present) = self.spec().copied() else {
            turn.answer(request, Answer::WrongState(self.state));
            return;
        };
        let OnlineSpec { prefix_length, register, lease, adopt, joint, .. } = present;
        let spec = OnlineSpec { prefix_length, register, lease, adopt, joint, ..*spec };
        self.spec = Some(turn.specs.share(spec));
        self.remember(turn);
        self.publish(turn);
        turn.answer(request, Answer::Done);
    }

    /// A new claim of an address that is managed already.
    pub(super) fn claim(&mut self, request: RequestId, spec: OnlineSpec, turn: &mut Turn<'_>) {
        if spec.adopt {
            if let Registration::Registering | Registration::Deregistering = self.registration {
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
        self.start_claim(spec, turn);
        self.wait_online(request, spec.wait, turn);
        if !spec.adopt || !turn.interface.up {
            self.begin(Reason::Commanded, turn);
            return;
        }
        self.stop_repairs(turn);
        self.take_over(&spec);
        self.step(State::Announcing, Reason::Adopted, turn);
        self.start_plan_if_installed(turn);
    }

    /// Sets what holds for the whole claim.
    pub(super) fn start_claim(&mut self, spec: OnlineSpec, turn: &mut Turn<'_>) {
        self.spec = Some(turn.specs.share(spec));
        self.remember(turn);
        self.set_lease(spec.lease, turn);
        self.renew_generation(turn);
        self.resume = Resume::Never;
        self.recheck = false;
        self.trouble.refused_by = None;
        self.trouble.last_error = None;
        self.trouble.conflict = None;
        self.announced = false;
        self.work.retry = None;
    }

    /// The kernel has it already.
    pub(super) fn take_over(&mut self, spec: &OnlineSpec) {
        self.local = true;
        self.work.errand = Errand::NONE;
        self.registration = match spec.register {
            Register::Address => {
                self.registered_prefix = spec.prefix_length;
                Registration::Present
            }
            Register::None => Registration::Absent, // whoever has put it there takes it off
        };
        self.want_question();
    }

    pub(crate) fn offline(&mut self, request: RequestId, watch: bool, turn: &mut Turn<'_>) {
        let target =
            if watch { Target::Watched(Reason::Commanded) } else { Target::Gone(Reason::Deregistered) };
        match self.state {
            State::Watched if watch => turn.answer(request, Answer::Already(State::Watched)),
            State::Yielding => {
                self.target = target;
                self.wait(Some(request), Waiting::Release, turn);
                if let Registration::Refused = self.registration {
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
                self.release(target, Reason::Commanded, turn);
                let superseded = |what: &Waiting| matches!(what, Waiting::Online { .. } | Waiting::Watch);
                self.answer_all(turn, superseded, &Answer::Superseded);
            }
        }
    }

    pub(crate) fn watch(&mut self, request: RequestId, turn: &mut Turn<'_>) {
        match self.state {
            State::Watched if self.work.slot == Slot::Installed => {
                turn.answer(request, Answer::Already(State::Watched));
            }
            State::Watched => self.wait(Some(request), Waiting::Watch, turn),
            State::Refused | State::Lost => self.offline(request, true, turn),
            State::Suspended if self.resume == Resume::Never => self.offline(request, true, turn),
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
