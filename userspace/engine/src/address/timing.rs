//! Time and the wire: what is due, and frames whose turn has come.

use arpwarden_common::state::State;

use super::{
    Managed,
    announce::{Question, Window},
    claim::{Attempt, Step},
    defend::Defence,
    registration::Doubt,
    repair::RepairStep,
    turn::{Flight, Turn},
};
use crate::{
    action::{Purpose, Reason},
    input::MonoTime,
    pace::{Urgent, Wish},
    plan::Plan,
};

impl Managed {
    /// When it wants to be looked at next.
    pub(crate) fn deadline(&self) -> Option<MonoTime> {
        let attempt = match self.work.attempt.map(|attempt| attempt.step) {
            Some(Step::Waiting { due, .. }) => Some(due),
            Some(Step::Listening { until }) => Some(until),
            Some(
                Step::Settling
                | Step::Queued { .. }
                | Step::Flying { .. }
                | Step::Registering
                | Step::Held { .. },
            )
            | None => None,
        };
        let waits = match self.state {
            State::Refused | State::Suspended => self.first_wait_over(),
            State::Watched
            | State::Probing
            | State::Announcing
            | State::Online
            | State::Contested
            | State::Yielding
            | State::Lost => None,
        };
        let doubt = match self.work.doubt {
            Doubt::None => None,
            Doubt::Removed(until) | Doubt::Added(until) => Some(until),
        };
        let plan = if self.state == State::Announcing {
            self.work.plan.as_ref().and_then(Plan::deadline)
        } else {
            None
        };
        let question = match self.work.question {
            Question::Due { due } => Some(due),
            Question::None | Question::Wanted | Question::Queued | Question::Flying { .. } => None,
        };
        let window = match self.work.window {
            Window::Until(until) => Some(until),
            Window::None | Window::Ahead => None,
        };
        let defence = match self.trouble.defence {
            Defence::Due { due, .. } => Some(due),
            Defence::None | Defence::Queued { .. } | Defence::Flying { .. } => None,
        };
        let repair = match self.work.repairs.map(|repairs| repairs.step) {
            Some(RepairStep::Due { due }) => Some(due),
            Some(RepairStep::Queued | RepairStep::Flying { .. }) | None => None,
        };
        let all = [
            attempt,
            self.deletion_retry(),
            self.work.retry,
            waits,
            plan,
            question,
            window,
            defence,
            self.trouble.contested_until,
            repair,
            self.work.asks.as_ref().and_then(|asks| asks.retry),
            doubt,
            self.lease_deadline(),
        ];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub(crate) fn on_timer(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        if self.deletion_retry().is_some_and(|retry| retry <= now) {
            self.ask_to_delete(self.work.errand.wait, turn);
        }
        if let Some(mut repairs) = self.work.repairs
            && let RepairStep::Due { due } = repairs.step
            && due <= now
        {
            repairs.step = RepairStep::Queued;
            self.work.repairs = Some(repairs);
            turn.outbox.push(Wish::Urgent(self.key, Urgent::Repair));
        }
        if let Doubt::Removed(until) | Doubt::Added(until) = self.work.doubt
            && until <= now
        {
            self.settle_doubt(turn);
        }
        if self.state == State::Suspended && self.first_wait_over().is_some_and(|end| end <= now) {
            self.give_up_the_link(turn);
            if self.gone {
                return;
            }
        }
        if self.work.asks.as_ref().and_then(|asks| asks.retry).is_some_and(|retry| retry <= now) {
            self.ask_again(turn);
        }
        if self.state == State::Refused {
            if self.first_wait_over().is_some_and(|end| end <= now) {
                self.give_up_waiting(turn);
            }
            if self.work.retry.is_some_and(|retry| retry <= now) {
                self.begin(Reason::Retry, turn);
            }
        }
        self.ask_if_due(turn);
        if let Some(Attempt { step: Step::Listening { until }, .. }) = self.work.attempt
            && until <= now
        {
            self.register(turn);
        }
        if let Window::Until(until) = self.work.window
            && until <= now
        {
            self.close_window(turn);
        }
        if self.trouble.contested_until.is_some_and(|until| until <= now) {
            self.uncontest(turn);
        }
        if let Defence::Due { claimant, due } = self.trouble.defence
            && due <= now
        {
            self.defend(claimant, turn);
        }
        if let Question::Due { due } = self.work.question
            && due <= now
        {
            self.ask_behind(turn);
        }
        if self.state == State::Announcing
            && let Some(plan) = &mut self.work.plan
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
            Wish::Probe(_) | Wish::Question(..) => self.launch_probe(turn),
            Wish::Ask(_) => self.launch_ask(turn),
            Wish::Announcement(_, number) => self.launch_announcement(number, turn),
        }
    }

    /// A frame has left, or has not.
    pub(crate) fn sent(&mut self, flight: &Flight, result: Result<(), String>, turn: &mut Turn<'_>) {
        match flight.purpose {
            Purpose::Probe => {
                if let Some(Attempt { step: Step::Flying { sent, tag }, .. }) = self.work.attempt
                    && tag == flight.tag
                {
                    self.probed(sent, result, turn);
                } else if self.work.question == (Question::Flying { tag: flight.tag }) {
                    self.question_sent(result, turn);
                }
            }
            Purpose::Announcement => match result {
                Ok(()) => self.frame_left(flight, turn),
                Err(why) => self.frame_failed(flight, &why, turn),
            },
            Purpose::Defence => self.defence_sent(flight, result, turn),
            Purpose::Repair => self.repair_sent(flight.tag, result, turn),
            Purpose::Ask => self.asked(flight, result, turn),
        }
    }
}
