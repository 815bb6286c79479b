//! The plan of announcements of one address (RFC 5227 §2.3, and why more than its two: design, "Announcing").
//!
//! Frames are numbered in the order in which they leave: round × 2, plus 1 for the reply form.

use core::time::Duration;

use crate::{
    input::{Dice, MonoTime, nanoseconds},
    params::{BACKOFF_MAX, BACKOFF_MIN, Rounds, SEND_FAILURES, SEND_RETRY},
};

/// A set of frame numbers, one bit each.
type Frames = u16;

/// What a failed frame means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// Tried again soon.
    Retried,
    /// It failed so often in a row that somebody should know; tried again later.
    Persistent,
}

/// A plan under way.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    /// Tells its frames from those of an earlier plan.
    pub(crate) tag: u64,
    rounds: Rounds,
    /// When its first frame left.
    started: Option<MonoTime>,
    /// Round that comes due next.
    next: usize,
    /// When.
    due: Option<MonoTime>,
    /// Wait for their turn in the outbox.
    queued: Frames,
    /// Left, outcome open.
    flying: Frames,
    /// To be queued again at `retry`.
    failed: Frames,
    retry: Option<MonoTime>,
    failures: u8,
    backoff: Duration,
    /// Frames that have left.
    pub(crate) sent: u64,
}

impl Plan {
    /// A plan whose first round is due now.
    pub(crate) fn new(tag: u64, rounds: Rounds) -> Self {
        let mut plan = Self {
            tag,
            rounds,
            started: None,
            next: 0,
            due: None,
            queued: 0,
            flying: 0,
            failed: 0,
            retry: None,
            failures: 0,
            backoff: BACKOFF_MIN,
            sent: 0,
        };
        plan.queue_round();
        plan
    }

    fn queue_round(&mut self) {
        let frames: Frames = if self.rounds.replies { 0b11 } else { 0b01 };
        self.queued |= frames << (2 * self.next);
        self.next += 1;
    }

    /// Draws when the next round comes, counted from the first frame, so that lateness does not add up.
    fn schedule(&mut self, dice: &mut dyn Dice) {
        self.due = match (self.started, self.rounds.offsets.get(self.next)) {
            (Some(started), Some(offset)) => {
                let percent = self.rounds.jitter_percent;
                let spread = nanoseconds(*offset) / 100 * percent;
                let least = offset.saturating_sub(Duration::from_nanos(spread));
                Some(started.after(least).after(Duration::from_nanos(dice.below(2 * spread + 1))))
            }
            _ => None,
        };
    }

    /// Frames that wait for their turn, by number.
    pub(crate) fn queued(&self) -> impl Iterator<Item = u8> + use<> {
        let queued = self.queued;
        (0..10).filter(move |number| queued & 1 << number != 0)
    }

    /// Takes frame `number` out for sending at `now`; false if it is not wanted (any more).
    pub(crate) fn launch(&mut self, number: u8, now: MonoTime, dice: &mut dyn Dice) -> bool {
        let bit = 1_u16.checked_shl(u32::from(number)).unwrap_or(0);
        if self.queued & bit == 0 {
            return false;
        }
        self.queued &= !bit;
        self.flying |= bit;
        if self.started.is_none() {
            self.started = Some(now);
            self.schedule(dice);
        }
        true
    }

    /// Frame `number` has left.
    pub(crate) fn landed(&mut self, number: u8, now: MonoTime, dice: &mut dyn Dice) {
        self.flying &= !(1_u16.checked_shl(u32::from(number)).unwrap_or(0));
        self.sent += 1;
        self.failures = 0;
        self.backoff = BACKOFF_MIN;
        if self.started.is_none() {
            self.started = Some(now);
            self.schedule(dice);
        }
    }

    /// Frame `number` could not be sent.
    pub(crate) fn failed(&mut self, number: u8, now: MonoTime) -> Failure {
        let bit = 1_u16.checked_shl(u32::from(number)).unwrap_or(0);
        self.flying &= !bit;
        self.failed |= bit;
        if self.retry.is_some() {
            return Failure::Retried; // with the one before it; it is the attempts that count
        }
        self.failures = self.failures.saturating_add(1);
        if self.sent == 0 && self.next == 1 {
            // The rounds count from the first frame that left.
            self.started = None;
            self.due = None;
        }
        if self.failures < SEND_FAILURES {
            self.retry = Some(now.after(SEND_RETRY));
            return Failure::Retried;
        }
        self.retry = Some(now.after(self.backoff));
        self.backoff = self.backoff.saturating_mul(2).min(BACKOFF_MAX);
        Failure::Persistent
    }

    /// It was held for `pause`: what is left of it keeps its spacing instead of leaving in a lump.
    pub(crate) fn resume(&mut self, pause: Duration) {
        for time in [&mut self.started, &mut self.due, &mut self.retry] {
            *time = time.map(|time| time.after(pause));
        }
    }

    /// When it wants to be looked at next.
    pub(crate) fn deadline(&self) -> Option<MonoTime> {
        [self.due, self.retry].into_iter().flatten().min()
    }

    /// Queues what is due at `now`; true if there is something new in [`Plan::queued`].
    pub(crate) fn on_timer(&mut self, now: MonoTime, dice: &mut dyn Dice) -> bool {
        let before = self.queued;
        if self.retry.is_some_and(|retry| retry <= now) {
            self.retry = None;
            self.queued |= self.failed;
            self.failed = 0;
        }
        if self.due.is_some_and(|due| due <= now) {
            self.queue_round();
            self.schedule(dice);
        }
        self.queued != before
    }

    /// All its frames have left.
    pub(crate) fn is_done(&self) -> bool {
        let open = self.queued | self.flying | self.failed;
        open == 0 && self.due.is_none() && self.next == self.rounds.offsets.len()
    }

    /// Frames of it are on their way.
    pub(crate) fn is_flying(&self) -> bool {
        self.flying != 0
    }
}
