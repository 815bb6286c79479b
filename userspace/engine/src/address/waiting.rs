//! Who waits for an answer about an address. Each command is answered once.

use core::time::Duration;

use super::{Managed, turn::Turn};
use crate::{
    action::Answer,
    input::{MonoTime, RequestId},
};

/// Who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Waiter {
    /// `None`: nobody any more, but the command goes on.
    pub(super) request: Option<RequestId>,
    pub(super) what: Waiting,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    /// For the address, retrying until then; `patient`: it asked for retries.
    Online { until: MonoTime, patient: bool },
    /// For its end.
    Release,
    /// For the slot.
    Watch,
    /// For the first frame of the plan.
    Announce,
    /// For the questions to its neighbours.
    Repair,
}

impl Managed {
    pub(super) fn wait(&mut self, request: Option<RequestId>, what: Waiting, turn: &mut Turn<'_>) {
        if let Some(request) = request {
            turn.requests.insert(request, self.key);
        }
        self.work.waiters.push(Waiter { request, what });
    }

    pub(super) fn wait_online(&mut self, request: RequestId, wait: Duration, turn: &mut Turn<'_>) {
        let what = Waiting::Online { until: turn.now.after(wait), patient: !wait.is_zero() };
        self.wait(Some(request), what, turn);
    }

    pub(super) fn answer_all(
        &mut self,
        turn: &mut Turn<'_>,
        which: impl Fn(&Waiting) -> bool,
        answer: &Answer,
    ) {
        if self.work.waiters.is_empty() {
            return;
        }
        self.work.waiters.retain(|waiter| {
            let answered = which(&waiter.what);
            if answered && let Some(request) = waiter.request {
                turn.answer(request, answer.clone());
            }
            !answered
        });
    }

    pub(super) fn answer_online(&mut self, turn: &mut Turn<'_>, answer: &Answer) {
        self.answer_all(turn, |what| matches!(what, Waiting::Online { .. }), answer);
    }

    pub(super) fn answer_release(&mut self, turn: &mut Turn<'_>, answer: &Answer) {
        self.answer_all(turn, |what| matches!(what, Waiting::Release), answer);
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.work.waiters.iter().any(|waiter| matches!(waiter.what, Waiting::Online { .. }))
    }

    /// The caller of `request` has gone away.
    pub(crate) fn forget(&mut self, request: RequestId) {
        if self.work.waiters.is_empty() {
            return;
        }
        for waiter in &mut self.work.waiters {
            if waiter.request == Some(request) {
                waiter.request = None;
            }
        }
    }

    pub(super) fn first_wait_over(&self) -> Option<MonoTime> {
        let ends = self.work.waiters.iter().filter_map(|waiter| match waiter.what {
            Waiting::Online { until, .. } => Some(until),
            Waiting::Release | Waiting::Watch | Waiting::Announce | Waiting::Repair => None,
        });
        ends.min()
    }
}
