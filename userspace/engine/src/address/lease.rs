//! The lease: until when an address may be answered. The datapath watches over it too, so that nothing depends on this
//! process being there at its end.

use core::time::Duration;

use arpwarden_common::state::State;

use super::{Managed, link::Resume, turn::Turn};
use crate::{
    action::{Answer, EventKind, Reason},
    input::{MonoTime, RequestId, nanoseconds},
    params::LEASE_MARGIN,
};

/// When a lease of this length ends that begins at `now`, as the program's clock may read it.
fn end(now: MonoTime, lease: Duration) -> MonoTime {
    MonoTime(now.after(lease).0.saturating_sub(nanoseconds(LEASE_MARGIN)))
}

/// Why a lease of this length is none, in words, if it is over before it begins.
pub(crate) fn no_lease(now: MonoTime, lease: Duration) -> Option<String> {
    (end(now, lease) <= now).then(|| {
        format!(
            "a lease of {lease:?} is over before it begins: its end is told to the program {LEASE_MARGIN:?} early, as \
             much as the program's clock may be late"
        )
    })
}

impl Managed {
    /// The lease counts from now on, also where that ends it earlier than before: who decides said so last.
    pub(super) fn set_lease(&mut self, lease: Option<Duration>, turn: &Turn<'_>) {
        self.lease.until = lease.map(|lease| end(turn.now, lease));
    }

    /// Ours, or claimed, so that the end of a lease would end something. While the link is down or a claim waits
    /// for its next attempt, who decides about ownership still means us.
    fn is_leased(&self) -> bool {
        match self.state {
            State::Probing | State::Announcing | State::Online | State::Contested => true,
            State::Suspended => self.resume != Resume::Never,
            State::Refused => self.work.retry.is_some(),
            State::Watched | State::Yielding | State::Lost => false,
        }
    }

    /// The end of the lease, where there is something that ends with it.
    pub(super) fn lease_deadline(&self) -> Option<MonoTime> {
        self.lease.until.filter(|_| self.is_leased())
    }

    /// Nothing is done in the name of a lease that is past; looked at before anything else, because after a pause of
    /// this process or of the machine any input may come first.
    pub(crate) fn heed_lease(&mut self, turn: &mut Turn<'_>) {
        if self.lease_deadline().is_some_and(|until| until <= turn.now) {
            self.expire(turn);
        }
    }

    fn expire(&mut self, turn: &mut Turn<'_>) {
        if self.state == State::Refused {
            self.work.retry = None;
            turn.event(self.key, EventKind::LeaseExpired);
            if let Some((claimant, reason)) = self.trouble.refused_by {
                self.answer_online(turn, &Answer::Taken { claimant, reason });
            }
            return;
        }
        self.work.attempt = None;
        self.recheck = false;
        self.resume = Resume::Never;
        let from = self.enter(State::Suspended, Reason::LeaseExpired, turn);
        turn.event(self.key, EventKind::LeaseExpired);
        if from != State::Suspended {
            let (to, reason) = (Some(State::Suspended), Reason::LeaseExpired);
            turn.event(self.key, EventKind::State { from: Some(from), to, reason });
        }
        let what = format!("the lease of {} ran out", self.key.address);
        self.answer_online(turn, &Answer::Failed(what));
        self.deregister(turn);
    }

    pub(crate) fn renew(&mut self, request: RequestId, lease: Duration, turn: &mut Turn<'_>) {
        if self.state == State::Suspended && !self.is_leased() {
            let what = format!(
                "renewing the lease of {}: it is past, and another host may have the address by now; claim it again \
                 with online",
                self.key.address
            );
            turn.answer(request, Answer::Failed(what));
            return;
        }
        if !self.is_leased() {
            turn.answer(request, Answer::WrongState(self.state));
            return;
        }
        self.extend_lease(lease, turn);
        turn.answer(request, Answer::Done);
    }

    /// A standing lease counts from now on; an address without one gets one.
    pub(super) fn extend_lease(&mut self, lease: Duration, turn: &mut Turn<'_>) {
        self.set_lease(Some(lease), turn);
        self.publish(turn);
        if self.spec().is_some_and(|spec| spec.lease.is_none()) {
            self.change_spec(|spec| spec.lease = Some(lease), turn);
            self.remember(turn);
        }
    }
}
