//! Defending (RFC 5227 §2.4).

use arpwarden_common::state::State;

use super::{
    Managed,
    turn::{Flight, Turn},
    waiting::Waiting,
};
use crate::{
    action::{Answer, EventKind, Purpose, Reason},
    input::{Claimant, MonoTime, Sighting},
    limits::Permit,
    pace::{Urgent, Wish},
    params::{SEND_FAILURES, SEND_RETRY},
};

/// A defence on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Defence {
    /// None.
    None,
    /// Waits for its turn in the outbox.
    Queued { claimant: Claimant },
    /// Its outcome is open.
    Flying { claimant: Claimant, tag: u64, at: MonoTime },
    /// It failed, or the interval forbade it: at `due`.
    Due { claimant: Claimant, due: MonoTime },
}

impl Managed {
    /// Defends against `claimant` as soon as the limits allow it.
    pub(super) fn defend(&mut self, claimant: Claimant, turn: &mut Turn<'_>) {
        match self.trouble.defence {
            // It leaves after this claim and answers it too.
            Defence::Queued { .. } => self.trouble.defence = Defence::Queued { claimant },
            Defence::Due { due, .. } if due > turn.now => {
                self.trouble.defence = Defence::Due { claimant, due }
            }
            Defence::None | Defence::Flying { .. } | Defence::Due { .. } => {
                match self.trouble.defended.permit(turn.now, turn.interface.moves) {
                    Permit::Now => {
                        self.trouble.defence = Defence::Queued { claimant };
                        turn.outbox.push(Wish::Urgent(self.key, Urgent::Defence));
                    }
                    // Caches follow the last announcement that they heard. If the rival falls silent now, they
                    // would stay with it for as long as they like, so one defence makes up for it as soon as the
                    // interval allows (RFC 5227 §2.4 (c): one in each).
                    Permit::After(due) => {
                        if let Defence::Flying { .. } = self.trouble.defence {
                            self.trouble.challenger = Some(claimant); // looked at when the outcome is there
                        } else {
                            self.trouble.defence = Defence::Due { claimant, due };
                        }
                    }
                    Permit::Spent(free) => {
                        self.trouble.defence = Defence::None;
                        self.trouble.challenger = Some(claimant);
                        self.trouble.contested_until = Some(free);
                        self.step(State::Contested, Reason::MoveBudgetSpent, turn);
                        let answer = Answer::WrongState(State::Contested);
                        self.answer_all(turn, |what| matches!(what, Waiting::Announce), &answer);
                    }
                }
            }
        }
    }

    pub(super) fn launch_defence(&mut self, turn: &mut Turn<'_>) -> bool {
        let Defence::Queued { claimant } = self.trouble.defence else { return false };
        let tag = turn.tag();
        self.trouble.defence = Defence::Flying { claimant, tag, at: turn.now };
        self.trouble.challenger = None;
        self.trouble.defended.record(turn.now, turn.interface.moves);
        turn.send(self.key, Purpose::Defence, self.announcement(turn), tag, 0);
        true
    }

    pub(super) fn defence_sent(&mut self, flight: &Flight, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Defence::Flying { claimant, tag, at } = self.trouble.defence else { return };
        if tag != flight.tag {
            return;
        }
        self.trouble.defence = Defence::None;
        match result {
            Ok(()) => {
                self.trouble.defence_failures = 0;
                self.trouble.defences += 1;
                let own_mac = flight.frame.sender_mac;
                turn.event(self.key, EventKind::Defended { claimant, own_mac });
                if self.state != State::Contested
                    && let Some(challenger) = self.trouble.challenger.take()
                {
                    self.defend(challenger, turn);
                }
            }
            Err(why) => {
                let claimant = self.trouble.challenger.take().unwrap_or(claimant);
                self.trouble.defended.take_back(at);
                if self.state == State::Contested {
                    // It spent nothing after all.
                    self.trouble.challenger = Some(claimant);
                    self.trouble.contested_until = Some(turn.now.after(SEND_RETRY));
                    return;
                }
                self.trouble.defence_failures = self.trouble.defence_failures.saturating_add(1);
                if self.trouble.defence_failures < SEND_FAILURES {
                    self.trouble.defence = Defence::Due { claimant, due: turn.now.after(SEND_RETRY) };
                    return;
                }
                self.trouble.defence_failures = 0;
                let what = format!(
                    "defending {} against {}: {SEND_FAILURES} announcements in a row could not be sent: {why}; \
                     the next claim is answered again",
                    self.key.address, claimant.mac
                );
                self.fail(what, turn);
            }
        }
    }

    /// The program has defended it: nothing is left to be answered to.
    pub(super) fn defended_by_program(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        self.trouble.defended.record(sighting.at, turn.interface.moves);
        self.trouble.defences += 1;
        match self.trouble.defence {
            // Its outcome will tell: of the two only one has left.
            Defence::Flying { .. } => {}
            Defence::None | Defence::Queued { .. } | Defence::Due { .. } => {
                self.trouble.defence = Defence::None
            }
        }
        self.trouble.challenger = None;
        let (claimant, own_mac) = (sighting.claimant, self.word.mac());
        turn.event(self.key, EventKind::Defended { claimant, own_mac });
    }

    /// The move budget allows a defence again.
    pub(super) fn uncontest(&mut self, turn: &mut Turn<'_>) {
        if let Some(free) = self.trouble.defended.spent_until(turn.now, turn.interface.moves) {
            self.trouble.contested_until = Some(free); // the budget was changed meanwhile
            return;
        }
        self.trouble.contested_until = None;
        if let Some(plan) = &mut self.work.plan {
            plan.resume(turn.now.since(self.since));
        }
        let to = if self.work.plan.is_some() { State::Announcing } else { State::Online };
        self.step(to, Reason::MoveBudgetFree, turn);
        self.queue_plan(turn);
        // The claim that spent the budget was not answered either, unless the program has done it meanwhile.
        if let Some(challenger) = self.trouble.challenger.take() {
            self.defend(challenger, turn);
        }
    }
}
