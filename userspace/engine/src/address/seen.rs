//! What the datapath saw.

use arpwarden_common::{state::State, wire::arp::Form};

use super::{
    Managed, Slot,
    announce::Window,
    repair::{RepairStep, Repairs},
    turn::Turn,
};
use crate::{
    action::{Answer, EventKind, Reason},
    input::{Defend, Owner, Sighting, SightingKind},
    pace::{Urgent, Wish},
    params::{DEFEND_INTERVAL, LEASE_MARGIN, ONCE_MARGIN},
    plan::Plan,
};

impl Managed {
    pub(crate) fn seen(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        if self.work.slot != Slot::Installed {
            return; // of an earlier life: the datapath does not look out for this one yet
        }
        match sighting.kind {
            SightingKind::Echo { sibling: _ } => {
                if !sighting.repeat {
                    turn.event(self.key, EventKind::Echo { sighting: *sighting });
                }
            }
            SightingKind::Probe => self.seen_probe(sighting, turn),
            // Probes beyond those reported one by one. A host that asks claims nothing, and of an address that is probed
            // for each is reported.
            SightingKind::Flood if sighting.form == Form::Probe => {
                turn.event(self.key, EventKind::ClaimantFlood { sighting: *sighting });
            }
            SightingKind::Claim | SightingKind::Flood => self.seen_claim(sighting, turn),
        }
    }

    pub(super) fn seen_probe(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
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

    pub(super) fn seen_claim(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        let first_owner = self.owner.is_none();
        self.owner = Some(Box::new(Owner { claimant: sighting.claimant, seen: sighting.at }));
        // Not under an earlier generation, which the word has left since. The stamp is up to a jiffy early.
        let fell = sighting.fell && sighting.at.after(LEASE_MARGIN) >= self.generation_since;
        match self.state {
            State::Probing | State::Announcing | State::Online | State::Contested if sighting.allowed => {
                return;
            }
            State::Probing => self.refused(sighting, Reason::Claimed, turn),
            State::Announcing | State::Online | State::Contested => {
                if self.work.window != Window::None {
                    self.roll_back(sighting, turn);
                } else if fell {
                    self.lose(sighting, Reason::DefendPolicy, turn);
                } else {
                    self.challenged(sighting, turn);
                    return; // that tells of a defence itself
                }
            }
            State::Suspended if fell && self.keeps_registration() => {
                self.lose(sighting, Reason::DefendPolicy, turn);
            }
            State::Watched | State::Yielding | State::Suspended | State::Refused | State::Lost => {
                self.owner_seen(sighting, first_owner, turn);
            }
        }
        // Another MAC speaks for the address now: the one that the repairs tell may be yesterday's.
        if self.work.repairs.is_some_and(|repairs| repairs.owner.mac != sighting.claimant.mac) {
            self.stop_repairs(turn);
            self.settle(turn);
        }
        if sighting.defended {
            self.defended_by_program(sighting, turn);
        }
    }

    /// Counts a conflict and tells of it.
    pub(super) fn tell_conflict(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        self.trouble.conflicts = self.trouble.conflicts.saturating_add(sighting.count);
        let loud = match sighting.kind {
            SightingKind::Claim | SightingKind::Flood => {
                self.trouble.loudness.add(sighting.at, sighting.count)
            }
            SightingKind::Probe | SightingKind::Echo { .. } => self.trouble.loudness.is_loud(sighting.at),
        };
        if sighting.kind == SightingKind::Flood {
            turn.event(self.key, EventKind::ClaimantFlood { sighting: *sighting });
        } else if !sighting.repeat {
            turn.event(self.key, EventKind::Conflict { sighting: *sighting, loud });
        }
    }

    pub(super) fn refused(&mut self, sighting: &Sighting, reason: Reason, turn: &mut Turn<'_>) {
        if self.recheck {
            self.lose(sighting, reason, turn);
            return;
        }
        let from = self.enter(State::Refused, reason, turn);
        self.tell_conflict(sighting, turn);
        turn.event(self.key, EventKind::State { from: Some(from), to: Some(State::Refused), reason });
        self.refuse(sighting.claimant, reason, turn);
        self.deregister(turn);
    }

    /// It was ours and is another host's.
    fn lose(&mut self, sighting: &Sighting, reason: Reason, turn: &mut Turn<'_>) {
        self.work.attempt = None;
        self.recheck = false;
        let from = self.enter(State::Lost, reason, turn);
        self.tell_conflict(sighting, turn);
        turn.event(self.key, EventKind::State { from: Some(from), to: Some(State::Lost), reason });
        let answer = Answer::Taken { claimant: sighting.claimant, reason };
        self.answer_online(turn, &answer);
        self.deregister(turn);
    }

    /// Takes an `immediate` claim back: silent first, then the kernel, then everybody hears of the owner again.
    pub(super) fn roll_back(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        let (claimant, reason) = (sighting.claimant, Reason::RolledBack);
        let harmed = self.announced || self.work.plan.as_ref().is_some_and(Plan::is_flying);
        let from = self.enter(State::Refused, reason, turn);
        self.tell_conflict(sighting, turn);
        turn.event(self.key, EventKind::RolledBack { claimant });
        turn.event(self.key, EventKind::State { from: Some(from), to: Some(State::Refused), reason });
        self.refuse(claimant, reason, turn);
        self.deregister(turn);
        if harmed {
            let step = RepairStep::Queued;
            self.work.repairs = Some(Repairs { owner: claimant, step, done: 0, sent: 0, failures: 0 });
            turn.outbox.push(Wish::Urgent(self.key, Urgent::Repair));
        }
    }

    /// A claim for an address that is ours (RFC 5227 §2.4).
    pub(super) fn challenged(&mut self, sighting: &Sighting, turn: &mut Turn<'_>) {
        let Some(spec) = self.spec().copied() else { return };
        let interval = DEFEND_INTERVAL.saturating_add(ONCE_MARGIN);
        let recent = self.trouble.conflict.is_some_and(|earlier| sighting.at.since(earlier) < interval);
        self.trouble.conflict = Some(sighting.at);
        let lost = match spec.defend {
            Defend::Yield => true,
            // The program counts too, and exactly: what it has defended against was no second conflict.
            Defend::Once => recent && !sighting.defended,
            Defend::Hold => false,
        };
        if lost {
            self.lose(sighting, Reason::DefendPolicy, turn);
            return;
        }
        self.tell_conflict(sighting, turn);
        if sighting.defended {
            self.defended_by_program(sighting, turn);
        } else if self.state == State::Contested {
            self.trouble.challenger = Some(sighting.claimant);
        } else {
            self.defend(sighting.claimant, turn);
        }
    }

    /// A claim for an address that is not ours is news only if the owner changes.
    pub(super) fn owner_seen(&mut self, sighting: &Sighting, first_owner: bool, turn: &mut Turn<'_>) {
        if sighting.kind == SightingKind::Flood {
            turn.event(self.key, EventKind::ClaimantFlood { sighting: *sighting });
        } else if sighting.owner_changed {
            turn.event(self.key, EventKind::OwnerChanged { sighting: *sighting });
        }
        if self.state == State::Watched
            && sighting.owner_changed
            && !first_owner
            && self.trouble.flaps.add(sighting.at, sighting.repeat)
        {
            self.trouble.conflicts = self.trouble.conflicts.saturating_add(sighting.count);
            let loud = self.trouble.loudness.add(sighting.at, sighting.count);
            turn.event(self.key, EventKind::Conflict { sighting: *sighting, loud });
        }
    }
}
