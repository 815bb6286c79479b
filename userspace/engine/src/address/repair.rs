//! The repairs of a roll-back: everybody hears of the owner again.

use arpwarden_common::wire::arp::Outgoing;

use super::{Managed, turn::Turn};
use crate::{
    action::{EventKind, Purpose},
    input::{Claimant, MonoTime},
    params::{REPAIR_GAP, REPAIRS, SEND_FAILURES, SEND_RETRY},
};

/// The repairs of a roll-back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Repairs {
    pub(super) owner: Claimant,
    pub(super) step: RepairStep,
    /// Tried, successfully or not.
    pub(super) done: u8,
    /// Have left.
    pub(super) sent: u8,
    pub(super) failures: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RepairStep {
    Queued,
    Flying { tag: u64 },
    Due { due: MonoTime },
}

impl Managed {
    pub(super) fn launch_repair(&mut self, turn: &mut Turn<'_>) -> bool {
        let Some(mut repairs) = self.work.repairs.filter(|repairs| repairs.step == RepairStep::Queued) else {
            return false;
        };
        let tag = turn.tag();
        repairs.step = RepairStep::Flying { tag };
        self.work.repairs = Some(repairs);
        let owner = repairs.owner.mac;
        let frame = Outgoing::announcement(turn.interface.mac, owner, self.key.vlan, self.key.address);
        turn.send(self.key, Purpose::Repair, frame, tag, 0);
        true
    }

    pub(super) fn repair_sent(&mut self, tag: u64, result: Result<(), String>, turn: &mut Turn<'_>) {
        let Some(mut repairs) = self.work.repairs else { return };
        if repairs.step != (RepairStep::Flying { tag }) {
            return;
        }
        let next = match result {
            Ok(()) => {
                repairs.failures = 0;
                repairs.sent += 1;
                repairs.done += 1;
                REPAIR_GAP
            }
            Err(why) => {
                repairs.failures += 1;
                if repairs.failures < SEND_FAILURES {
                    SEND_RETRY
                } else {
                    repairs.failures = 0;
                    repairs.done += 1;
                    let what = format!(
                        "telling everybody again that {} has {}: {SEND_FAILURES} repairs in a row could not be \
                         sent: {why}; hosts that heard this one's announcement may be wrong until it speaks",
                        repairs.owner.mac, self.key.address
                    );
                    self.fail(what, turn);
                    REPAIR_GAP
                }
            }
        };
        repairs.step = RepairStep::Due { due: turn.now.after(next) };
        self.work.repairs = Some(repairs);
        if repairs.done >= REPAIRS {
            self.stop_repairs(turn);
        }
        self.settle(turn);
    }

    pub(super) fn stop_repairs(&mut self, turn: &mut Turn<'_>) {
        if let Some(repairs) = self.work.repairs.take()
            && repairs.sent > 0
        {
            let count = u64::from(repairs.sent);
            turn.event(self.key, EventKind::Repaired { claimant: Some(repairs.owner), count });
        }
    }
}
