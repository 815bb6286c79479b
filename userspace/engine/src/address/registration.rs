//! Whether the kernel has the address because of us, and giving it up.

use core::time::Duration;

use arpwarden_common::state::State;

use super::{
    Managed, Slot,
    claim::Step,
    turn::{Open, Turn},
    waiting::Waiting,
};
use crate::{
    action::{Action, Answer, EventKind, Reason},
    input::MonoTime,
    params::{BACKOFF_MAX, BACKOFF_MIN},
};

/// Whether the kernel has the address because of us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Registration {
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

/// Where an address goes when it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Gone(Reason),
    Watched(Reason),
}

impl Managed {
    /// Goes to `target` without a detour if the kernel does not have the address, else by way of `yielding`.
    pub(super) fn release(&mut self, target: Target, reason: Reason, turn: &mut Turn<'_>) {
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
    pub(super) fn arrive(&mut self, reason: Reason, turn: &mut Turn<'_>) {
        match self.target {
            Target::Gone(_) => self.vanish(reason, turn),
            Target::Watched(_) => self.step(State::Watched, reason, turn),
        }
        let state = self.state;
        self.answer_all(turn, |what| matches!(what, Waiting::Announce), &Answer::WrongState(state));
        self.answer_release(turn, &Answer::Done);
    }

    /// Takes it off the interface, if we put it there. A request that is open already is waited for.
    pub(super) fn deregister(&mut self, turn: &mut Turn<'_>) {
        if self.registration == Registration::Present && self.slot == Slot::Installed {
            self.ask_to_delete(BACKOFF_MIN, turn);
        }
    }

    pub(super) fn ask_to_delete(&mut self, wait: Duration, turn: &mut Turn<'_>) {
        let tag = turn.tag();
        self.registration = Registration::Deregistering { tag, wait };
        turn.open(self.key, Open::Deregister { tag });
        let prefix_length = self.registered_prefix;
        turn.actions.push_back(Action::Deregister { key: self.key, prefix_length });
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
    pub(super) fn off_the_interface(&mut self, turn: &mut Turn<'_>) {
        if self.state == State::Yielding {
            let (Target::Gone(reason) | Target::Watched(reason)) = self.target;
            self.arrive(reason, turn);
        } else {
            self.publish(turn);
            self.settle(turn);
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
}
