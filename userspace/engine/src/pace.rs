//! What waits to leave an interface: how fast, and in which order.

use std::collections::{BTreeSet, VecDeque};

use arpwarden_common::abi::AddressKey;

use crate::{
    input::{MonoTime, Pace, nanoseconds},
    params,
};

/// Items for which a queue that has become empty keeps its room.
const KEPT: usize = 256;

/// The first of a queue. What a burst has made of its room is given back with the last one.
pub(crate) fn take<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
    first
}

/// A token bucket, as the time at which it would be full again (the generic cell rate algorithm).
#[derive(Clone, Debug, Default)]
struct Bucket {
    full: MonoTime,
}

impl Bucket {
    /// From when on a frame may leave.
    fn ready(&self, pace: Pace) -> MonoTime {
        let (each, burst) = params::pace(pace);
        let credit = each.saturating_mul(burst.saturating_sub(1));
        MonoTime(self.full.0.saturating_sub(nanoseconds(credit)))
    }

    fn take(&mut self, now: MonoTime, pace: Pace) {
        let (each, _) = params::pace(pace);
        self.full = self.full.max(now).after(each);
    }
}

/// What may leave next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// A defence or a repair.
    Urgent(AddressKey, Urgent),
    /// See [`crate::action::Purpose::Ask`].
    Ask(AddressKey),
    /// A probe.
    Probe(AddressKey),
    /// The probe behind a first announcement, and from when on it goes before those of others.
    Question(AddressKey, MonoTime),
    /// A frame of the plan of an address, with its number (see [`crate::plan`]).
    Announcement(AddressKey, u8),
}

/// What goes before all else, because caches are wrong now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Urgent {
    /// See [`crate::action::Purpose::Defence`].
    Defence,
    /// See [`crate::action::Purpose::Repair`].
    Repair,
}

/// The queue of an interface. All frames share the bucket, because a switch counts them all; defences and repairs
/// go first, then probes, then announcements: first rounds before later ones, requests before replies, addresses
/// in the order of their keys. Of many that are claimed together all first announcements go first, also where the kernel
/// is not done yet with some of them: what comes behind waits for that, but not for long
/// ([`params::FIRST_ROUND`]). Questions to single hosts come behind the first round: they are many, and what they
/// mend is less than what a claim or a defence that waited for them would leave wrong.
///
/// An address that changed its mind leaves its wishes in place; it is asked again when their turn comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox {
    bucket: Bucket,
    urgent: VecDeque<(AddressKey, Urgent)>,
    probes: VecDeque<AddressKey>,
    /// In the order of their times, which are all as long after they were pushed.
    questions: VecDeque<(MonoTime, AddressKey)>,
    asks: VecDeque<AddressKey>,
    announcements: BTreeSet<(u8, AddressKey)>,
    /// Addresses that are being installed or registered, and may be announced next.
    coming: usize,
    /// For how long the rest waits for those.
    hold_until: MonoTime,
}

impl Outbox {
    pub(crate) fn push(&mut self, wish: Wish) {
        match wish {
            Wish::Urgent(key, urgent) => self.urgent.push_back((key, urgent)),
            Wish::Probe(key) => self.probes.push_back(key),
            Wish::Question(key, due) => self.questions.push_back((due, key)),
            Wish::Ask(key) => self.asks.push_back(key),
            Wish::Announcement(key, number) => {
                self.announcements.insert((number, key));
            }
        }
    }

    /// One more address may soon be announced.
    pub(crate) fn comes(&mut self, now: MonoTime) {
        if self.coming == 0 {
            self.hold_until = now.after(params::FIRST_ROUND);
        }
        self.coming += 1;
    }

    /// It has come, or will not.
    pub(crate) const fn came(&mut self) {
        // An interface that went and came back may hear of what was begun before.
        self.coming = self.coming.saturating_sub(1);
    }

    /// What is no first announcement has to wait.
    fn holds(&self, now: MonoTime) -> bool {
        self.coming > 0 && now < self.hold_until
    }

    fn has_first_form(&self) -> bool {
        self.announcements.first().is_some_and(|(number, _)| *number == 0)
    }

    pub(crate) fn pop(&mut self, now: MonoTime) -> Option<Wish> {
        if let Some((key, urgent)) = take(&mut self.urgent) {
            return Some(Wish::Urgent(key, urgent));
        }
        if let Some(key) = take(&mut self.probes) {
            return Some(Wish::Probe(key));
        }
        let first_form = self.has_first_form();
        if self.holds(now) && !first_form {
            return None;
        }
        if self.questions.front().is_some_and(|(due, _)| !first_form || *due <= now)
            && let Some((due, key)) = take(&mut self.questions)
        {
            return Some(Wish::Question(key, due));
        }
        let first_round = self.announcements.first().is_some_and(|(number, _)| *number < 2);
        if !first_round && let Some(key) = take(&mut self.asks) {
            return Some(Wish::Ask(key));
        }
        self.announcements.pop_first().map(|(number, key)| Wish::Announcement(key, number))
    }

    /// When, at `now`, the next frame may leave; `None` if none waits.
    pub(crate) fn ready(&self, pace: Pace, now: MonoTime) -> Option<MonoTime> {
        let empty = self.urgent.is_empty()
            && self.probes.is_empty()
            && self.questions.is_empty()
            && self.asks.is_empty()
            && self.announcements.is_empty();
        let waits =
            self.holds(now) && self.urgent.is_empty() && self.probes.is_empty() && !self.has_first_form();
        let hold = if waits { self.hold_until } else { MonoTime(0) };
        (!empty).then(|| self.bucket.ready(pace).max(hold))
    }

    /// A frame left at `now`.
    pub(crate) fn left(&mut self, now: MonoTime, pace: Pace) {
        self.bucket.take(now, pace);
    }
}
