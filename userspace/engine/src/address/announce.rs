//! Announcing: the plan (RFC 5227 §2.3), the probe behind it, and the time in which a claim takes it all back.

use arpwarden_common::{net::MacAddr, state::State, wire::arp::Outgoing};

use super::{
    Managed, Slot,
    turn::{Flight, Turn},
    waiting::Waiting,
};
use crate::{
    action::{Answer, EventKind, Purpose, Reason},
    input::MonoTime,
    pace::Wish,
    params::{self, FIRST_ROUND, ROLL_BACK_WINDOW, SEND_FAILURES, SEND_RETRY},
    plan::{Failure, Plan},
};

/// A probe behind the first announcement: of a claim that did not wait for silence, or of an adopted address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
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
pub(super) enum Window {
    /// There is none (any more).
    None,
    /// The first announcement has not left yet.
    Ahead,
    /// Until then.
    Until(MonoTime),
}

impl Managed {
    /// Starts the plan anew.
    pub(super) fn announce_again(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        if self.state == State::Online {
            self.step(State::Announcing, reason, turn);
        }
        self.start_plan_if_installed(turn);
    }

    pub(super) fn start_plan_if_installed(&mut self, turn: &mut Turn<'_>) {
        self.start_plan(false, turn);
    }

    /// `link_up`: its link has just come up.
    pub(super) fn start_plan(&mut self, link_up: bool, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec().copied() else { return };
        if self.work.slot != Slot::Installed {
            return; // the first frame comes after the word
        }
        self.work.plan = Some(Plan::new(turn.tag(), params::rounds(spec.profile, link_up)));
        self.queue_plan(turn);
    }

    pub(super) fn queue_plan(&self, turn: &mut Turn<'_>) {
        if self.state != State::Announcing {
            return; // contested: the plan goes on when the address may be defended again
        }
        for number in self.work.plan.iter().flat_map(Plan::queued) {
            turn.outbox.push(Wish::Announcement(self.key, number));
        }
    }

    pub(super) fn announcement(&self, turn: &Turn<'_>) -> Outgoing {
        let mac = turn.interface.mac;
        Outgoing::announcement(mac, mac, self.key.vlan, self.key.address)
    }

    pub(super) fn launch_announcement(&mut self, number: u8, turn: &mut Turn<'_>) -> bool {
        if self.state != State::Announcing {
            return false;
        }
        let Some(plan) = &mut self.work.plan else { return false };
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
        if self.work.question == Question::Wanted {
            self.ask_behind(turn);
        }
        true
    }

    /// A frame of the plan has left.
    pub(super) fn frame_left(&mut self, flight: &Flight, turn: &mut Turn<'_>) {
        let Some(plan) = self.work.plan.as_mut().filter(|plan| plan.tag == flight.tag) else { return };
        plan.landed(flight.number, turn.now, turn.dice);
        let first = plan.sent == 1;
        if first {
            self.announced = true;
            if self.work.window == Window::Ahead {
                self.work.window = Window::Until(turn.now.after(ROLL_BACK_WINDOW));
            }
            self.answer_all(turn, |what| matches!(what, Waiting::Announce), &Answer::Done);
        }
        let open = self.work.window != Window::None;
        let done = |what: &Waiting| matches!(what, Waiting::Online { patient, .. } if !(open && *patient));
        self.answer_all(turn, done, &Answer::Done);
        self.finish_plan(flight.frame.sender_mac, turn);
    }

    pub(super) fn finish_plan(&mut self, own_mac: MacAddr, turn: &mut Turn<'_>) {
        let Some(count) = self.work.plan.as_ref().filter(|plan| plan.is_done()).map(|plan| plan.sent) else {
            return;
        };
        self.work.plan = None;
        turn.event(self.key, EventKind::Announced { count, own_mac });
        if self.state == State::Announcing {
            self.step(State::Online, Reason::PlanDone, turn);
        }
    }

    /// A frame of the plan could not be sent.
    pub(super) fn frame_failed(&mut self, flight: &Flight, why: &str, turn: &mut Turn<'_>) {
        let Some(plan) = self.work.plan.as_mut().filter(|plan| plan.tag == flight.tag) else { return };
        match plan.failed(flight.number, turn.now) {
            Failure::Retried => {}
            Failure::Persistent => {
                let what = format!(
                    "announcing {}: {SEND_FAILURES} announcements in a row could not be sent: {why}",
                    self.key.address
                );
                let adopted = self.spec().is_some_and(|spec| spec.adopt);
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
    pub(super) fn close_window(&mut self, turn: &mut Turn<'_>) {
        self.work.window = Window::None;
        self.publish(turn); // the program may defend it now
        self.trouble.refusals = 0;
        self.answer_online(turn, &Answer::Done);
    }

    /// A probe leaves behind the first announcement.
    pub(super) fn want_question(&mut self) {
        self.work.question = Question::Wanted;
        self.work.question_failures = 0;
    }

    pub(super) fn ask_behind(&mut self, turn: &mut Turn<'_>) {
        self.work.question = Question::Queued;
        turn.outbox.push(Wish::Question(self.key, turn.now.after(FIRST_ROUND)));
    }

    pub(super) fn question_sent(&mut self, result: Result<(), String>, turn: &mut Turn<'_>) {
        self.work.question = Question::None;
        let Err(why) = result else { return };
        self.work.question_failures = self.work.question_failures.saturating_add(1);
        if self.work.question_failures < SEND_FAILURES {
            self.work.question = Question::Due { due: turn.now.after(SEND_RETRY) };
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
