//! Claiming: probes, silence, registration (RFC 5227 §2.1).

use core::time::Duration;

use arpwarden_common::{state::State, wire::arp::Outgoing};

use super::{
    Managed, Slot,
    announce::{Question, Window},
    link::Resume,
    registration::{Registration, Target},
    turn::Turn,
    waiting::Waiting,
};
use crate::{
    action::{Action, Answer, EventKind, Purpose, Reason},
    input::{Claim, Claimant, MonoTime, OnlineSpec, Profile, Register},
    pace::Wish,
    params::{
        self, BACKOFF_MIN, HELD_LASTS, LINK_SETTLE, MAX_CONFLICTS, RATE_LIMIT_INTERVAL, SEND_FAILURES,
        SEND_RETRY, SILENCE_LASTS,
    },
};

/// How far a claim is; it exists in state `probing` only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
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
    /// A joint claim waits for the others since then.
    Held { since: MonoTime },
}

/// A claim: every attempt of it and the waits between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attempt {
    pub(super) step: Step,
    /// Probes that failed in a row.
    pub(super) failures: u8,
}

impl Managed {
    /// Begins an attempt at a claim.
    pub(super) fn begin(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        if reason != Reason::Commanded {
            self.renew_generation(turn);
        }
        self.work.retry = None;
        if !turn.interface.up {
            self.resume = if self.recheck { Resume::Probe } else { Resume::Claim };
            self.work.attempt = None;
            self.step(State::Suspended, Reason::LinkDown, turn);
            return;
        }
        self.resume = Resume::Never;
        self.work.attempt = Some(Attempt { step: Step::Settling, failures: 0 });
        let from = self.enter(State::Probing, reason, turn);
        if from != State::Probing {
            turn.event(self.key, EventKind::State { from: Some(from), to: Some(State::Probing), reason });
        }
        self.settle(turn);
    }

    pub(super) fn go_to(&mut self, step: Step) {
        if let Some(attempt) = &mut self.work.attempt {
            attempt.step = step;
        }
    }

    pub(super) fn is_at(&self, step: Step) -> bool {
        self.work.attempt.is_some_and(|attempt| attempt.step == step)
    }

    /// Goes on with an attempt as soon as nothing of the address's past is in its way.
    pub(super) fn settle(&mut self, turn: &mut Turn<'_>) {
        let healed = self.work.repairs.is_none_or(|repairs| repairs.done > 0);
        // It is on the interface already, shielded, if its link was down in the meantime.
        let registered = matches!(self.registration, Registration::Absent | Registration::Present);
        let clear = self.work.slot == Slot::Installed && registered && healed;
        if !(clear && self.is_at(Step::Settling)) {
            return;
        }
        let Some(spec) = self.attempted() else { return };
        let questions = params::questions(&spec);
        if questions.probes == 0 {
            self.register(turn);
            return;
        }
        let mut due = turn.after(Duration::ZERO, questions.wait_max);
        if self.reason == Reason::LinkUp {
            due = due.after(LINK_SETTLE); // what the switch does not forward is not answered either
        }
        self.go_to(Step::Waiting { due, sent: 0 });
        self.ask_if_due(turn);
    }

    pub(super) fn ask_if_due(&mut self, turn: &mut Turn<'_>) {
        if let Some(Attempt { step: Step::Waiting { due, sent }, .. }) = self.work.attempt
            && due <= turn.now
        {
            self.go_to(Step::Queued { sent });
            turn.outbox.push(Wish::Probe(self.key));
        }
    }

    pub(super) fn launch_probe(&mut self, turn: &mut Turn<'_>) -> bool {
        let tag = turn.tag();
        if let Some(Attempt { step: Step::Queued { sent }, .. }) = self.work.attempt {
            self.go_to(Step::Flying { sent, tag });
        } else if self.work.question == Question::Queued {
            self.work.question = Question::Flying { tag };
        } else {
            return false;
        }
        let frame = Outgoing::probe(turn.interface.mac, self.key.vlan, self.key.address);
        turn.send(self.key, Purpose::Probe, frame, tag, 0);
        true
    }

    /// A probe of the claim has left, or has not.
    pub(super) fn probed(&mut self, sent: u8, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Some(spec) = self.attempted() else { return };
        let questions = params::questions(&spec);
        match result {
            Ok(()) => {
                let step = if sent + 1 < questions.probes {
                    let due = turn.after(questions.gap_min, questions.gap_max);
                    Step::Waiting { due, sent: sent + 1 }
                } else {
                    Step::Listening { until: turn.now.after(questions.listen) }
                };
                self.work.attempt = Some(Attempt { step, failures: 0 });
            }
            Err(why) => {
                let failures = self.work.attempt.map_or(0, |attempt| attempt.failures).saturating_add(1);
                if failures >= SEND_FAILURES && self.recheck {
                    // It was ours, and nobody says otherwise.
                    let what = format!(
                        "probing for {} after its link came up: {SEND_FAILURES} probes in a row could not be sent: \
                         {why}; it stays silent and is tried again in {} s",
                        self.key.address,
                        BACKOFF_MIN.as_secs()
                    );
                    self.fail(what, turn);
                    let step = Step::Waiting { due: turn.now.after(BACKOFF_MIN), sent };
                    self.work.attempt = Some(Attempt { step, failures: 0 });
                    return;
                }
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
                self.work.attempt = Some(Attempt { step, failures });
            }
        }
    }

    /// Nobody objected: shield first, then the kernel.
    pub(super) fn register(&mut self, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec().copied() else { return };
        if spec.register == Register::None || self.registration == Registration::Present {
            self.take(turn);
            return;
        }
        self.go_to(Step::Registering);
        if let Registration::Registering = self.registration {
            return; // it is being put back already
        }
        self.registered_prefix = spec.prefix_length;
        self.ask_to_add(false, turn);
    }

    /// Nobody objected, but that was too long ago to take the address on. An `immediate` claim has other means: any
    /// claim takes it back.
    pub(super) fn is_silence_old(&self, asked: MonoTime, turn: &Turn<'_>) -> bool {
        self.attempted().is_some_and(|spec| spec.claim == Claim::Probe)
            && turn.now.since(asked) > SILENCE_LASTS
    }

    /// How the attempt under way asks.
    fn attempted(&self) -> Option<OnlineSpec> {
        let spec = *self.spec()?;
        Some(if self.recheck {
            OnlineSpec { claim: Claim::Probe, profile: Profile::Fast, ..spec }
        } else {
            spec
        })
    }

    /// The kernel has it: ours, or held for those that it was claimed together with.
    pub(super) fn take(&mut self, turn: &mut Turn<'_>) {
        let Some(spec) = self.attempted() else { return };
        if spec.joint
            && !self.recheck
            && !matches!(self.work.attempt, Some(Attempt { step: Step::Held { .. }, .. }))
        {
            self.go_to(Step::Held { since: turn.now });
            self.publish(turn);
            turn.actions.push_back(Action::Held { key: self.key });
            return;
        }
        self.change_spec(|spec| spec.joint = false, turn);
        self.work.attempt = None;
        self.recheck = false;
        self.stop_repairs(turn);
        let mut reason = Reason::ProbesUnanswered;
        if let Claim::Immediate { check } = spec.claim {
            self.work.window = Window::Ahead;
            if check.is_zero() {
                reason = Reason::Commanded;
                self.want_question();
            }
        }
        if self.work.window == Window::None {
            self.trouble.refusals = 0;
        }
        self.step(State::Announcing, reason, turn);
        self.start_plan_if_installed(turn);
    }

    /// A joint claim that waits for the others.
    pub fn is_held(&self) -> bool {
        matches!(self.work.attempt, Some(Attempt { step: Step::Held { .. }, .. }))
    }

    /// Whether the silence before was too long ago to take the address on.
    pub(crate) fn is_held_too_long(&self, now: MonoTime) -> bool {
        matches!(self.work.attempt, Some(Attempt { step: Step::Held { since }, .. }) if now.since(since) > HELD_LASTS)
    }

    /// The others are there too.
    pub(crate) fn take_held(&mut self, turn: &mut Turn<'_>) {
        if self.is_held() {
            self.take(turn);
        }
    }

    /// Asks for it again, shielded.
    pub(crate) fn probe_again(&mut self, turn: &mut Turn<'_>) {
        self.go_to(Step::Settling);
        self.settle(turn);
    }

    /// Another host was there first, or at the same time (RFC 5227 §2.1.1).
    pub(super) fn refuse(&mut self, claimant: Claimant, reason: Reason, turn: &mut Turn<'_>) {
        self.work.attempt = None;
        self.trouble.refusals = self.trouble.refusals.saturating_add(1);
        self.trouble.refused_by = Some((claimant, reason));
        let now = turn.now;
        let over = |what: &Waiting| matches!(what, Waiting::Online { until, .. } if *until <= now);
        self.answer_all(turn, over, &Answer::Taken { claimant, reason });
        let Some(spec) = self.spec().copied() else { return };
        if self.is_awaited() {
            let (least, most) = params::retry_wait(spec.profile);
            self.work.retry = Some(if self.trouble.refusals >= MAX_CONFLICTS {
                turn.now.after(RATE_LIMIT_INTERVAL)
            } else {
                turn.after(least, most)
            });
        }
    }

    /// The wait of a refused claim is over.
    pub(super) fn give_up_waiting(&mut self, turn: &mut Turn<'_>) {
        let Some((claimant, reason)) = self.trouble.refused_by else { return };
        let now = turn.now;
        let over = |what: &Waiting| matches!(what, Waiting::Online { until, .. } if *until <= now);
        self.answer_all(turn, over, &Answer::Taken { claimant, reason });
        if !self.is_awaited() {
            self.work.retry = None;
        }
    }

    /// The claim can't be carried out.
    pub(super) fn fail_claim(&mut self, what: String, turn: &mut Turn<'_>) {
        let target =
            if self.was_watched { Target::Watched(Reason::Failed) } else { Target::Gone(Reason::Failed) };
        self.release(target, Reason::Failed, turn);
        self.fail(what.clone(), turn);
        self.answer_online(turn, &Answer::Failed(what));
    }
}
