//! Whether the kernel has the address because of us, and giving it up.

use core::time::Duration;

use arpwarden_common::state::State;

use super::{
    Managed, Slot,
    claim::Step,
    link::Resume,
    turn::{Open, Turn},
    waiting::Waiting,
};
use crate::{
    action::{Action, Answer, EventKind, Reason},
    input::{MonoTime, OnRemoved},
    params::{BACKOFF_MAX, BACKOFF_MIN, REPORT_DELAY, RESTORATIONS, RESTORATIONS_WINDOW},
};

/// Whether the kernel has the address because of us. What of it is open is an [`Errand`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Registration {
    /// No.
    Absent,
    /// Asked for.
    Registering,
    /// Yes.
    Present,
    /// Asked to delete it.
    Deregistering,
    /// The kernel refused to delete it.
    Refused,
}

/// What the kernel is asked for, or has refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Errand {
    /// Tells its outcome from that of an earlier one.
    tag: u64,
    /// Of a registration: somebody else had taken it off.
    again: bool,
    /// When the kernel was asked.
    asked: MonoTime,
    /// Of a deletion: before it is asked for again, if it is refused.
    pub(super) wait: Duration,
    /// A refused deletion is tried again then.
    retry: Option<MonoTime>,
}

impl Errand {
    /// Nothing is asked for.
    pub(super) const NONE: Self =
        Self { tag: 0, again: false, asked: MonoTime(0), wait: Duration::ZERO, retry: None };
}

/// Where an address goes when it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Gone(Reason),
    Watched(Reason),
}

/// A report of the netlink watch that may be of the time before our latest change: it counts if nothing says
/// otherwise until then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doubt {
    /// Everything is clear.
    None,
    /// That it was taken off the interface.
    Removed(MonoTime),
    /// That somebody else has put it there.
    Added(MonoTime),
}

impl Managed {
    /// When a deletion that the kernel refused is tried again.
    pub(super) fn deletion_retry(&self) -> Option<MonoTime> {
        self.work.errand.retry.filter(|_| self.registration == Registration::Refused)
    }

    /// Goes to `target` without a detour if the kernel does not have the address, else by way of `yielding`.
    pub(super) fn release(&mut self, target: Target, reason: Reason, turn: &mut Turn<'_>) {
        self.work.attempt = None;
        self.work.retry = None;
        self.resume = Resume::Never;
        self.recheck = false;
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
    pub(super) fn arrive(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        match self.target {
            Target::Gone(_) => self.vanish(reason, turn),
            Target::Watched(_) => self.step(State::Watched, reason, turn),
        }
        let state = self.state;
        let over = |what: &Waiting| matches!(what, Waiting::Announce | Waiting::Repair);
        self.answer_all(turn, over, &Answer::WrongState(state));
        self.answer_release(turn, &Answer::Done);
    }

    /// Takes it off the interface, if we put it there. A request that is open already is waited for.
    pub(super) fn deregister(&mut self, turn: &mut Turn<'_>) {
        if self.registration == Registration::Present && self.work.slot == Slot::Installed {
            self.ask_to_delete(BACKOFF_MIN, turn);
        }
    }

    /// Shield first, then the kernel.
    pub(super) fn ask_to_add(&mut self, again: bool, turn: &mut Turn<'_>) {
        let tag = turn.tag();
        self.registration = Registration::Registering;
        self.work.errand = Errand { tag, again, asked: turn.now, ..Errand::NONE };
        self.publish(turn);
        turn.open(self.key, Open::Register { tag });
        let prefix_length = self.registered_prefix;
        turn.actions.push_back(Action::Register { key: self.key, prefix_length });
    }

    pub(super) fn ask_to_delete(&mut self, wait: Duration, turn: &mut Turn<'_>) {
        let tag = turn.tag();
        self.registration = Registration::Deregistering;
        self.work.errand = Errand { tag, wait, asked: turn.now, ..Errand::NONE };
        turn.open(self.key, Open::Deregister { tag });
        let prefix_length = self.registered_prefix;
        turn.actions.push_back(Action::Deregister { key: self.key, prefix_length });
    }

    pub(crate) fn registered(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        if self.registration != Registration::Registering || self.work.errand.tag != tag {
            return;
        }
        let Errand { again, asked, .. } = core::mem::replace(&mut self.work.errand, Errand::NONE);
        match result {
            Ok(()) => {
                self.registration = Registration::Present;
                self.local = true;
                self.acknowledged = turn.now;
                self.work.doubt = Doubt::None;
                if self.is_at(Step::Registering) && self.is_silence_old(asked, turn) {
                    self.go_to(Step::Settling);
                    self.settle(turn);
                } else if self.is_at(Step::Registering) {
                    self.take(turn);
                } else if self.keeps_registration() {
                    self.publish(turn);
                    if again {
                        turn.event(self.key, EventKind::AddressRestored);
                    }
                    self.settle(turn);
                } else {
                    // Given up or refused while the kernel was at work.
                    self.deregister(turn);
                    self.publish(turn);
                }
            }
            Err(_) if again && self.local && self.keeps_registration() => {
                // Somebody was faster; what counts is that it is there.
                self.registration = Registration::Present;
                self.publish(turn);
                turn.event(self.key, EventKind::AddressRestored);
                self.settle(turn);
            }
            Err(why) => {
                self.registration = Registration::Absent;
                let what = format!("registering {} with the kernel: {why}", self.key.address);
                if self.is_at(Step::Registering) {
                    self.fail_claim(what, turn);
                } else if again && self.keeps_registration() {
                    self.lose_to_removal(what, None, turn);
                } else {
                    self.off_the_interface(turn);
                }
            }
        }
    }

    pub(crate) fn deregistered(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        if self.registration != Registration::Deregistering || self.work.errand.tag != tag {
            return;
        }
        let Errand { wait, .. } = core::mem::replace(&mut self.work.errand, Errand::NONE);
        match result {
            Ok(()) => {
                self.registration = Registration::Absent;
                self.local = false;
                self.acknowledged = turn.now;
                self.work.doubt = Doubt::None;
                self.off_the_interface(turn);
            }
            Err(why) => {
                self.registration = Registration::Refused;
                let next = wait.saturating_mul(2).min(BACKOFF_MAX);
                self.work.errand = Errand { wait: next, retry: Some(turn.now.after(wait)), ..Errand::NONE };
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
    pub(super) fn off_the_interface(&mut self, turn: &mut Turn<'_>) {
        if self.state == State::Yielding {
            let (Target::Gone(reason) | Target::Watched(reason)) = self.target;
            self.arrive(reason, turn);
        } else {
            self.publish(turn);
            self.settle(turn);
        }
    }

    /// The netlink watch says whether the address is configured. It is another socket than the one that our own
    /// changes are acknowledged on, so what it says may be older than the latest of them. Where that would cost
    /// answers it is not believed at once; where it would cost the shield, it is.
    pub(crate) fn local(&mut self, local: bool, turn: &mut Turn<'_>) {
        let settled = self.acknowledged.after(REPORT_DELAY);
        let recent = turn.now < settled;
        match self.work.doubt {
            Doubt::Removed(_) if local => self.work.doubt = Doubt::None,
            Doubt::Added(_) if !local => self.work.doubt = Doubt::None,
            Doubt::None | Doubt::Removed(_) | Doubt::Added(_) => {}
        }
        if local == self.local {
            return;
        }
        if local {
            self.local = true;
            self.publish(turn);
            match self.registration {
                Registration::Absent if recent => self.work.doubt = Doubt::Added(settled),
                Registration::Absent => turn.event(self.key, EventKind::AddressAdded),
                Registration::Present if self.keeps_registration() => {
                    turn.event(self.key, EventKind::AddressAdded);
                }
                Registration::Registering
                | Registration::Present
                | Registration::Deregistering
                | Registration::Refused => {}
            }
            return;
        }
        if self.registration == Registration::Present && self.keeps_registration() {
            if recent || self.work.slot != Slot::Installed {
                self.work.doubt = Doubt::Removed(settled.max(turn.now));
            } else {
                self.removed(turn);
            }
            return;
        }
        if self.registration == Registration::Present && self.state == State::Probing {
            self.registration = Registration::Absent; // it is put there again at the end
        }
        self.local = false;
        self.publish(turn);
        if self.is_held() && self.registration == Registration::Absent && self.is_missing() {
            self.probe_again(turn);
        }
    }

    /// Nothing has contradicted the report.
    pub(super) fn settle_doubt(&mut self, turn: &mut Turn<'_>) {
        if self.work.slot != Slot::Installed {
            // Nothing is put back that no word shields yet.
            if let Doubt::Removed(until) | Doubt::Added(until) = &mut self.work.doubt {
                *until = turn.now.after(REPORT_DELAY);
            }
            return;
        }
        let doubt = core::mem::replace(&mut self.work.doubt, Doubt::None);
        match doubt {
            Doubt::None => {}
            Doubt::Removed(_) if self.registration == Registration::Present => {
                if self.keeps_registration() {
                    self.removed(turn);
                } else {
                    self.local = false;
                    self.publish(turn);
                }
            }
            Doubt::Added(_) if self.local && self.registration == Registration::Absent => {
                turn.event(self.key, EventKind::AddressAdded);
            }
            Doubt::Removed(_) | Doubt::Added(_) => {}
        }
    }

    /// Somebody else took it off the interface while it was ours.
    pub(super) fn removed(&mut self, turn: &mut Turn<'_>) {
        self.local = false;
        let Some(spec) = self.spec().copied() else { return };
        let restore = match spec.on_removed {
            OnRemoved::Report => {
                self.publish(turn);
                turn.event(self.key, EventKind::AddressRemoved);
                return;
            }
            OnRemoved::GiveUp => Err(format!("{} was taken off the interface", self.key.address)),
            OnRemoved::Restore if self.trouble.restorations.allow(turn.now) => Ok(()),
            OnRemoved::Restore => Err(format!(
                "{} was taken off the interface again: it was put back {RESTORATIONS} times in {} s, and somebody seems \
                 to mean it",
                self.key.address,
                RESTORATIONS_WINDOW.as_secs()
            )),
        };
        match restore {
            Ok(()) => {
                turn.event(self.key, EventKind::AddressRemoved);
                self.ask_to_add(true, turn);
            }
            Err(what) => {
                self.registration = Registration::Absent;
                self.lose_to_removal(what, Some(EventKind::AddressRemoved), turn);
            }
        }
    }

    /// It is on the interface no more and is not put back; `news`: what has not been told yet.
    fn lose_to_removal(&mut self, what: String, news: Option<EventKind>, turn: &mut Turn<'_>) {
        self.work.attempt = None;
        self.recheck = false;
        let from = self.enter(State::Lost, Reason::AddressRemoved, turn);
        if let Some(news) = news {
            turn.event(self.key, news);
        }
        self.fail(what.clone(), turn);
        let (to, reason) = (Some(State::Lost), Reason::AddressRemoved);
        turn.event(self.key, EventKind::State { from: Some(from), to, reason });
        self.answer_online(turn, &Answer::Failed(what));
    }
}
