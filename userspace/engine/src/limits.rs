//! How often an address may be defended, and when conflicts are too many.

use std::collections::VecDeque;

use crate::{
    input::{MonoTime, MoveBudget},
    params::{DEFEND_INTERVAL, LOUD_CLAIMS, LOUD_WINDOW, OWNER_FLAPS, RESTORATIONS, RESTORATIONS_WINDOW},
};

/// Defences remembered where no budget is set, so that one that is set later finds a past: four EVPN budgets.
const REMEMBERED: usize = 16;

/// Whether a defence may leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Permit {
    /// Now.
    Now,
    /// The interval forbids it until then (RFC 5227 §2.4).
    After(MonoTime),
    /// The move budget forbids it until then.
    Spent(MonoTime),
}

/// When an address was defended.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Defences {
    /// Oldest first.
    left: VecDeque<MonoTime>,
}

impl Defences {
    /// Never.
    pub(crate) const NONE: Self = Self { left: VecDeque::new() };

    /// Whether one may leave at `now`.
    pub(crate) fn permit(&self, now: MonoTime, budget: Option<MoveBudget>) -> Permit {
        if let Some(last) = self.left.back()
            && now.since(*last) < DEFEND_INTERVAL
        {
            return Permit::After(last.after(DEFEND_INTERVAL));
        }
        match self.spent_until(now, budget) {
            Some(free) => Permit::Spent(free),
            None => Permit::Now,
        }
    }

    /// When the budget allows one again, if it allows none at `now`.
    pub(crate) fn spent_until(&self, now: MonoTime, budget: Option<MoveBudget>) -> Option<MonoTime> {
        let MoveBudget { moves, window } = budget?;
        // A budget of no moves would forbid the defence for ever; its documentation says at least one.
        let moves = usize::try_from(moves.max(1)).unwrap_or(usize::MAX);
        let oldest = self.left.len().checked_sub(moves)?;
        let oldest = *self.left.get(oldest)?;
        (now.since(oldest) < window).then(|| oldest.after(window))
    }

    /// One leaves, or was seen to leave: reports of the program come after the fact, and not always in order.
    pub(crate) fn record(&mut self, at: MonoTime, budget: Option<MoveBudget>) {
        let place = self.left.iter().rposition(|earlier| *earlier <= at).map_or(0, |place| place + 1);
        self.left.insert(place, at);
        let now = self.left.back().copied().unwrap_or(at);
        match budget {
            Some(MoveBudget { window, .. }) => {
                while self.left.front().is_some_and(|oldest| now.since(*oldest) >= window)
                    && self.left.len() > 1
                {
                    self.left.pop_front();
                }
            }
            None => {
                if self.left.len() > REMEMBERED {
                    self.left.pop_front();
                }
            }
        }
    }

    /// The one recorded at `at` did not leave.
    pub(crate) fn take_back(&mut self, at: MonoTime) {
        if let Some(place) = self.left.iter().rposition(|left| *left == at) {
            self.left.remove(place);
        }
    }

    /// When the last one left.
    pub(crate) fn last(&self) -> Option<MonoTime> {
        self.left.back().copied()
    }
}

/// How often an address was put back on its interface lately.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Restorations {
    /// Oldest first.
    done: VecDeque<MonoTime>,
}

impl Restorations {
    /// Never.
    pub(crate) const NONE: Self = Self { done: VecDeque::new() };

    /// Counts one at `now`; false if there were [`RESTORATIONS`] in [`RESTORATIONS_WINDOW`] already.
    pub(crate) fn allow(&mut self, now: MonoTime) -> bool {
        self.done.retain(|earlier| now.since(*earlier) < RESTORATIONS_WINDOW);
        let allowed = self.done.len() < RESTORATIONS;
        if allowed {
            self.done.push_back(now);
        }
        allowed
    }
}

/// Tells when claims are so many that somebody should be woken.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Loudness {
    /// The latest claims, oldest first; one more than the bound is enough to know.
    latest: VecDeque<MonoTime>,
}

impl Loudness {
    /// No claims.
    pub(crate) const NONE: Self = Self { latest: VecDeque::new() };

    /// Adds `count` claims seen at `at`; true if more than [`LOUD_CLAIMS`] came in [`LOUD_WINDOW`].
    pub(crate) fn add(&mut self, at: MonoTime, count: u64) -> bool {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(LOUD_CLAIMS + 1);
        for _ in 0..count {
            self.latest.push_back(at);
        }
        while self.latest.len() > LOUD_CLAIMS + 1 {
            self.latest.pop_front();
        }
        self.is_loud(at)
    }

    /// Whether it is loud at `now`.
    pub(crate) fn is_loud(&self, now: MonoTime) -> bool {
        self.latest.len() > LOUD_CLAIMS
            && self.latest.front().is_some_and(|oldest| now.since(*oldest) < LOUD_WINDOW)
    }
}

/// Tells when the owners of a watched address quarrel.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct OwnerFlaps {
    changed: Option<MonoTime>,
    told: Option<MonoTime>,
}

impl OwnerFlaps {
    /// No quarrel.
    pub(crate) const NONE: Self = Self { changed: None, told: None };

    /// The owner changed at `at`. True if that is a conflict: the second change within [`OWNER_FLAPS`]. A quarrel
    /// between hosts that were all reported before (`repeat`) is told once in that time.
    pub(crate) fn add(&mut self, at: MonoTime, repeat: bool) -> bool {
        let within =
            |earlier: Option<MonoTime>| earlier.is_some_and(|earlier| at.since(earlier) < OWNER_FLAPS);
        let conflict = within(self.changed) && !(repeat && within(self.told));
        self.changed = Some(at);
        if conflict {
            self.told = Some(at);
        }
        conflict
    }
}
