//! What an address may use while it handles something, and the outcomes that it waits for.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use arpwarden_common::{abi::AddressKey, wire::arp::Outgoing};

use super::Specs;
use crate::{
    action::{Action, Answer, Event, EventKind, Purpose},
    input::{Dice, Interface, MonoTime, RequestId, nanoseconds},
    pace::Outbox,
};

/// What an address may use while it handles something.
pub(crate) struct Turn<'a> {
    pub(crate) now: MonoTime,
    pub(crate) dice: &'a mut dyn Dice,
    pub(crate) interface: Interface,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) actions: &'a mut VecDeque<Action>,
    pub(crate) requests: &'a mut BTreeMap<RequestId, AddressKey>,
    /// The last tag that was given out.
    pub(crate) tags: &'a mut u64,
    pub(crate) open: &'a mut OpenOutcomes,
    pub(crate) specs: &'a mut Specs,
}

/// Outcomes that have not come yet. They outlive the address: an outcome that comes late must not be taken for
/// one of the address's next life.
pub(crate) type OpenOutcomes = BTreeMap<AddressKey, VecDeque<Open>>;

/// An outcome to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Open {
    /// Of an installation.
    Install {
        /// Of which life.
        tag: u64,
    },
    /// Of a registration.
    Register {
        /// See above.
        tag: u64,
    },
    /// Of a deregistration.
    Deregister {
        /// See above.
        tag: u64,
    },
    /// Of a frame.
    Frame(Flight),
}

/// A frame whose outcome has not come yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flight {
    pub(crate) purpose: Purpose,
    pub(crate) frame: Outgoing,
    /// What it belongs to; the address compares it with what it waits for.
    pub(crate) tag: u64,
    /// Number in the plan.
    pub(crate) number: u8,
}

impl Turn<'_> {
    pub(super) fn tag(&mut self) -> u64 {
        *self.tags += 1;
        *self.tags
    }

    pub(super) fn open(&mut self, key: AddressKey, outcome: Open) {
        if let Open::Install { .. } | Open::Register { .. } = outcome {
            self.outbox.comes(self.now);
        }
        // Of most addresses one thing at a time is under way, and thousands of addresses may begin together.
        self.open.entry(key).or_insert_with(|| VecDeque::with_capacity(1)).push_back(outcome);
    }

    pub(super) fn event(&mut self, key: AddressKey, kind: EventKind) {
        self.actions.push_back(Action::Event(Event { key, kind }));
    }

    pub(crate) fn answer(&mut self, request: RequestId, answer: Answer) {
        self.requests.remove(&request);
        self.actions.push_back(Action::Answer { request, answer });
    }

    pub(super) fn after(&mut self, least: Duration, most: Duration) -> MonoTime {
        let spread = nanoseconds(most.saturating_sub(least));
        self.now.after(least).after(Duration::from_nanos(self.dice.below(spread.saturating_add(1))))
    }

    pub(super) fn send(&mut self, key: AddressKey, purpose: Purpose, frame: Outgoing, tag: u64, number: u8) {
        self.open(key, Open::Frame(Flight { purpose, frame, tag, number }));
        self.actions.push_back(Action::Send { key, purpose, frame });
    }
}
