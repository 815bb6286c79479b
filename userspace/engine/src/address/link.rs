//! The link goes down and comes up; the interface goes away; the program is missing from it.

use arpwarden_common::{abi::AddressKey, state::State};

use super::{
    Managed,
    announce::{Question, Window},
    claim::Step,
    registration::Registration,
    turn::Turn,
    waiting::Waiting,
};
use crate::{
    action::{Answer, Reason},
    params::{BACKOFF_MIN, LINK_FLAP},
};

/// How a suspended address goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resume {
    /// Not by itself: its lease is past.
    Never,
    /// It was answered when the link went down.
    Announce {
        /// Within the time in which any claim takes the claim back.
        window: bool,
        /// Before its probe had left.
        question: bool,
    },
    /// It was ours, too long ago to be so still without a look.
    Probe,
    /// With its claim, from the start.
    Claim,
}

/// Why a claim fails, in words.
pub(crate) fn link_is_down(key: &AddressKey) -> String {
    format!("claiming {}: the link is down; with --wait the claim waits for it", key.address)
}

impl Managed {
    /// Registered, or to be, because it is ours or will be as soon as its link allows it.
    pub(super) fn keeps_registration(&self) -> bool {
        match self.state {
            State::Announcing | State::Online | State::Contested => true,
            State::Probing => self.recheck,
            State::Suspended => self.resume != Resume::Never,
            State::Watched | State::Yielding | State::Refused | State::Lost => false,
        }
    }

    /// A claim goes on without those who wait for it only if somebody else does, or if nobody ever did.
    fn outlasts(&mut self, turn: &mut Turn<'_>) -> bool {
        let now = turn.now;
        let commanded = self.is_awaited();
        let over =
            |what: &Waiting| matches!(what, Waiting::Online { until, patient } if !patient || *until <= now);
        let what = Answer::Failed(link_is_down(&self.key));
        self.answer_all(turn, over, &what);
        !commanded || self.is_awaited()
    }

    pub(super) fn link_down(&mut self, turn: &mut Turn<'_>) {
        match self.state {
            State::Announcing | State::Online | State::Contested => {
                let (window, question) =
                    (self.work.window != Window::None, self.work.question != Question::None);
                self.resume = Resume::Announce { window, question };
                self.step(State::Suspended, Reason::LinkDown, turn);
                self.outlasts(turn);
            }
            State::Probing if self.recheck => {
                self.resume = Resume::Probe;
                self.work.attempt = None;
                self.step(State::Suspended, Reason::LinkDown, turn);
                self.outlasts(turn);
            }
            State::Probing => {
                if self.outlasts(turn) {
                    self.resume = Resume::Claim;
                    self.work.attempt = None;
                    self.step(State::Suspended, Reason::LinkDown, turn);
                } else {
                    let what = link_is_down(&self.key);
                    self.fail_claim(what, turn);
                }
            }
            State::Watched | State::Yielding | State::Suspended | State::Refused | State::Lost => {}
        }
    }

    pub(super) fn link_up(&mut self, turn: &mut Turn<'_>) {
        if self.state != State::Suspended {
            return;
        }
        match self.resume {
            Resume::Never => {}
            Resume::Announce { window, question } if turn.now.since(self.since) <= LINK_FLAP => {
                if window {
                    self.work.window = Window::Ahead;
                }
                if question {
                    self.want_question();
                }
                self.resume = Resume::Never;
                self.step(State::Announcing, Reason::LinkUp, turn);
                self.start_plan(true, turn);
            }
            Resume::Announce { .. } | Resume::Probe => {
                self.recheck = true;
                self.begin(Reason::LinkUp, turn);
            }
            Resume::Claim => match self.spec().copied() {
                Some(spec) if spec.adopt => {
                    if self.local {
                        self.take_over(&spec);
                        self.step(State::Announcing, Reason::Adopted, turn);
                        self.start_plan(true, turn);
                    } else {
                        let what =
                            format!("taking {} over: it is not on the interface any more", self.key.address);
                        self.fail_claim(what, turn);
                    }
                }
                _ => self.begin(Reason::LinkUp, turn),
            },
        }
    }

    /// The wait of a command about an address whose link is down is over.
    pub(super) fn give_up_the_link(&mut self, turn: &mut Turn<'_>) {
        if !self.outlasts(turn) && self.resume == Resume::Claim {
            let what = link_is_down(&self.key);
            self.fail_claim(what, turn);
        }
    }

    /// The interface is no more, and the address with it.
    pub(crate) fn interface_gone(&mut self, turn: &mut Turn<'_>) {
        self.vanish(Reason::InterfaceGone, turn);
        self.answer_release(turn, &Answer::Done);
        let what = format!("the interface of {} is gone, and the address with it", self.key.address);
        self.answer_all(turn, |_| true, &Answer::Failed(what));
    }

    /// Nothing shields the address any more: what may not answer must not stay on the interface.
    pub(crate) fn program_missing(&mut self, turn: &mut Turn<'_>) {
        if self.state.may_answer() {
            return; // its kernel answers, and it may
        }
        if let Registration::Refused = self.registration {
            self.ask_to_delete(BACKOFF_MIN, turn);
        }
        if self.registration != Registration::Present {
            return;
        }
        if let Resume::Announce { .. } = self.resume {
            self.resume = Resume::Probe;
        }
        if self.state == State::Probing {
            self.go_to(Step::Settling);
        }
        self.deregister(turn);
    }
}
