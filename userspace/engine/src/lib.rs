//! The protocol engine of arpwarden.
//!
//! It never waits, reads a clock, draws a number or opens anything: [`Input`]s, the time and [`Dice`] come in,
//! [`Action`]s go out. The daemon performs the actions and reports their outcomes back as inputs.

pub mod action;
mod address;
pub mod input;
mod limits;
mod pace;
pub mod params;
mod plan;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arpwarden_common::{
    abi::AddressKey,
    net::{Ipv4, Vlan},
};

pub use action::{Action, Answer, Event, EventKind, Purpose, Reason};
pub use address::Managed;
pub use input::{Dice, Input, Interface, Kept, MonoTime, OnlineSpec, Owner, RequestId};

use address::{Open, OpenOutcomes, Specs, Turn};
use pace::{Outbox, Wish};

/// Moves what a tree has together: one that grew in the order of its keys is half empty, and what has come and gone
/// meanwhile has left holes between its parts. Several that do so each in the `meanwhile` of another leave none.
pub fn close_ranks<K: Ord, V>(tree: &mut BTreeMap<K, V>, meanwhile: impl FnOnce()) {
    let all: Vec<(K, V)> = core::mem::take(tree).into_iter().collect();
    meanwhile();
    *tree = all.into_iter().collect();
}

/// All addresses of a daemon.
///
/// After a pause, feed what came in meanwhile before calling [`Engine::handle_timeout`]: a claim that waits in a
/// queue must be heard before the silence that it broke is taken for consent.
#[derive(Debug, Default)]
pub struct Engine {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<AddressKey, Managed>,
    /// Of them those with which something is under way.
    busy: usize,
    timers: BTreeSet<(MonoTime, Timer)>,
    actions: VecDeque<Action>,
    /// Commands that wait for their answer.
    requests: BTreeMap<RequestId, AddressKey>,
    tags: u64,
    open: OpenOutcomes,
    specs: Specs,
}

/// Who wants to be called.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// The outbox of an interface.
    Outbox(u32),
    /// An address.
    Address(AddressKey),
}

#[derive(Debug)]
struct Link {
    interface: Interface,
    outbox: Outbox,
    armed: Option<MonoTime>,
}

impl Engine {
    /// Without interfaces and addresses.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an input in.
    pub fn handle(&mut self, now: MonoTime, input: Input, dice: &mut dyn Dice) {
        if let Input::Online { request, spec: OnlineSpec { lease: Some(lease), .. }, .. }
        | Input::Renew { request, lease, .. } = input
            && let Some(what) = address::no_lease(now, lease)
        {
            self.actions.push_back(Action::Answer { request, answer: Answer::Failed(what) });
            return;
        }
        match input {
            Input::Interface { index, interface } => self.interface(now, index, interface, dice),
            Input::Online { request, key, spec } => {
                if self.addresses.contains_key(&key) {
                    self.with(now, key, dice, |address, turn| address.online(request, spec, turn));
                } else if spec.wait.is_zero()
                    && self.links.get(&key.interface).is_some_and(|link| !link.interface.up)
                {
                    let what = address::link_is_down(&key);
                    self.actions.push_back(Action::Answer { request, answer: Answer::Failed(what) });
                } else {
                    self.add(now, key, request, dice, |turn| Managed::claimed(key, request, spec, turn));
                }
            }
            Input::Watch { request, key } => {
                if self.addresses.contains_key(&key) {
                    self.with(now, key, dice, |address, turn| address.watch(request, turn));
                } else {
                    self.add(now, key, request, dice, |turn| Managed::watched(key, request, turn));
                }
            }
            Input::TakeAll { group, keys } => self.take_all(now, group, &keys, dice),
            Input::Adjust { request, key, spec } => {
                self.command(now, key, request, dice, |address, turn| address.adjust(request, &spec, turn));
            }
            Input::Offline { request, key, watch } => {
                self.command(now, key, request, dice, |address, turn| address.offline(request, watch, turn));
            }
            Input::Unwatch { request, key } => {
                self.command(now, key, request, dice, |address, turn| address.unwatch(request, turn));
            }
            Input::Announce { request, key } => {
                self.command(now, key, request, dice, |address, turn| address.announce(request, turn));
            }
            Input::Renew { request, key, lease } => {
                self.command(now, key, request, dice, |address, turn| address.renew(request, lease, turn));
            }
            Input::Repair { request, key, neighbours } => {
                self.command(now, key, request, dice, |address, turn| {
                    address.repair(request, &neighbours, turn);
                });
            }
            Input::Adopt { key, kept } => self.adopt(now, key, &kept, dice),
            Input::Gone { index } => {
                for key in self.keys_on(index) {
                    self.turn(now, key, dice, Managed::interface_gone);
                }
                if let Some(link) = self.links.remove(&index)
                    && let Some(armed) = link.armed
                {
                    self.timers.remove(&(armed, Timer::Outbox(index)));
                }
            }
            Input::ProgramMissing { index } => {
                for key in self.keys_on(index) {
                    self.turn(now, key, dice, Managed::program_missing);
                }
                self.flush(now, index, dice);
            }
            Input::Forget { request } => {
                if let Some(key) = self.requests.remove(&request)
                    && let Some(address) = self.addresses.get_mut(&key)
                {
                    address.forget(request);
                }
            }
            Input::Seen { key, sighting } => {
                self.with(now, key, dice, |address, turn| {
                    // The policies compare times of frames with each other and with now; none is in the future.
                    let sighting = input::Sighting { at: sighting.at.min(turn.now), ..sighting };
                    address.seen(&sighting, turn);
                });
            }
            Input::Installed { key, result } => {
                let tag = self.outcome(key, |open| match open {
                    Open::Install { tag } => Some(tag),
                    Open::Register { .. } | Open::Deregister { .. } | Open::Frame(_) => None,
                });
                if let Some(tag) = tag {
                    self.with(now, key, dice, |address, turn| address.installed(tag, result, turn));
                }
            }
            Input::Registered { key, result } => {
                let tag = self.outcome(key, |open| match open {
                    Open::Register { tag } => Some(tag),
                    Open::Install { .. } | Open::Deregister { .. } | Open::Frame(_) => None,
                });
                if let Some(tag) = tag {
                    self.with(now, key, dice, |address, turn| address.registered(tag, result, turn));
                }
            }
            Input::Deregistered { key, result } => {
                let tag = self.outcome(key, |open| match open {
                    Open::Deregister { tag } => Some(tag),
                    Open::Install { .. } | Open::Register { .. } | Open::Frame(_) => None,
                });
                if let Some(tag) = tag {
                    self.with(now, key, dice, |address, turn| address.deregistered(tag, result, turn));
                }
            }
            Input::Sent { key, purpose, frame, result } => {
                let flight = self.outcome(key, |open| match open {
                    Open::Frame(flight) if flight.purpose == purpose && flight.frame == frame => Some(flight),
                    Open::Frame(_)
                    | Open::Install { .. }
                    | Open::Register { .. }
                    | Open::Deregister { .. } => None,
                });
                if let Some(flight) = flight {
                    self.with(now, key, dice, |address, turn| address.sent(&flight, result, turn));
                }
            }
            Input::Local { key, local } => {
                self.with(now, key, dice, |address, turn| address.local(local, turn))
            }
        }
    }

    /// Does all that is due at `now`.
    pub fn handle_timeout(&mut self, now: MonoTime, dice: &mut dyn Dice) {
        // What becomes due by this (a wait of no length) is done too. The bound is for a clock that stands at the
        // end of time, where every wait is over at once and for ever.
        for _ in 0..64 {
            let mut due = Vec::new();
            while let Some((at, timer)) = self.timers.first().copied() {
                if at > now {
                    break;
                }
                self.timers.pop_first();
                due.push(timer);
            }
            if due.is_empty() {
                return;
            }
            let mut links = BTreeSet::new();
            for timer in due {
                match timer {
                    Timer::Outbox(index) => {
                        if let Some(link) = self.links.get_mut(&index) {
                            link.armed = None;
                        }
                        links.insert(index);
                    }
                    Timer::Address(key) => {
                        if let Some(address) = self.addresses.get_mut(&key) {
                            address.armed = None;
                        }
                        links.insert(key.interface);
                        self.turn(now, key, dice, |address, turn| address.on_timer(turn));
                    }
                }
            }
            // Only now: of many addresses that are due together, urgent frames and first rounds go first.
            for index in links {
                self.flush(now, index, dice);
            }
        }
    }

    /// When [`Engine::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<MonoTime> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next action, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        pace::take(&mut self.actions)
    }

    /// All managed addresses, in the order of their keys.
    pub fn addresses(&self) -> impl Iterator<Item = (&AddressKey, &Managed)> {
        self.addresses.iter()
    }

    /// How many addresses are managed.
    pub fn count(&self) -> usize {
        self.addresses.len()
    }

    /// With how many of them something is under way: they are being claimed, announced or given up.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Moves the addresses together in memory ([`close_ranks`]). For when many have come or gone, and there is time.
    pub fn close_ranks(&mut self, meanwhile: impl FnOnce()) {
        close_ranks(&mut self.addresses, meanwhile);
    }

    /// A managed address.
    pub fn get(&self, key: &AddressKey) -> Option<&Managed> {
        self.addresses.get(key)
    }

    /// Whether a command about the address waits for its answer.
    #[cfg(test)]
    fn is_awaited(&self, key: &AddressKey) -> bool {
        self.requests.values().any(|awaited| awaited == key)
    }

    fn interface(&mut self, now: MonoTime, index: u32, interface: Interface, dice: &mut dyn Dice) {
        let link =
            self.links.entry(index).or_insert(Link { interface, outbox: Outbox::default(), armed: None });
        let before = core::mem::replace(&mut link.interface, interface);
        if before == interface {
            return;
        }
        for key in self.keys_on(index) {
            self.turn(now, key, dice, |address, turn| address.interface_changed(&before, turn));
        }
        self.flush(now, index, dice);
    }

    /// Takes addresses on that were claimed jointly: all or none.
    fn take_all(&mut self, now: MonoTime, group: u32, keys: &[AddressKey], dice: &mut dyn Dice) {
        let mut held = true;
        let mut stale = Vec::new();
        for key in keys {
            // A lease that is past ends a claim here.
            held &= self.turn(now, *key, dice, |address, _| address.is_held()) == Some(true);
            if self.addresses.get(key).is_some_and(|address| address.is_held_too_long(now)) {
                stale.push(*key);
            }
        }
        if held && stale.is_empty() {
            for key in keys {
                self.turn(now, *key, dice, Managed::take_held);
            }
            self.actions.push_back(Action::Flip { group });
        }
        for key in stale {
            self.turn(now, key, dice, Managed::probe_again);
        }
        for index in keys.iter().map(|key| key.interface).collect::<BTreeSet<_>>() {
            self.flush(now, index, dice);
        }
    }

    /// The addresses of an interface.
    fn keys_on(&self, index: u32) -> Vec<AddressKey> {
        let first = AddressKey { interface: index, vlan: Vlan::UNTAGGED, address: Ipv4::UNSPECIFIED };
        let keys = self.addresses.range(first..).map(|(key, _)| *key);
        keys.take_while(|key| key.interface == index).collect()
    }

    /// Takes on what an earlier run has left of an address. One that is managed already is left alone, and one whose
    /// interface is not known is nowhere.
    fn adopt(&mut self, now: MonoTime, key: AddressKey, kept: &Kept, dice: &mut dyn Dice) {
        if self.addresses.contains_key(&key) {
            return;
        }
        if !self.links.contains_key(&key.interface) {
            self.actions.push_back(Action::Remove { key });
            let (from, reason) = (kept.word.state(), Reason::InterfaceGone);
            let kind = EventKind::State { from, to: None, reason };
            self.actions.push_back(Action::Event(Event { key, kind }));
            return;
        }
        self.insert(now, key, dice, |turn| Managed::adopted(key, kept, turn));
    }

    /// A command for an address that may be unknown.
    fn command(
        &mut self,
        now: MonoTime,
        key: AddressKey,
        request: RequestId,
        dice: &mut dyn Dice,
        what: impl FnOnce(&mut Managed, &mut Turn<'_>),
    ) {
        if self.addresses.contains_key(&key) {
            self.with(now, key, dice, what);
        } else {
            self.actions.push_back(Action::Answer { request, answer: Answer::Unknown });
        }
    }

    fn add(
        &mut self,
        now: MonoTime,
        key: AddressKey,
        request: RequestId,
        dice: &mut dyn Dice,
        make: impl FnOnce(&mut Turn<'_>) -> Managed,
    ) {
        if !self.links.contains_key(&key.interface) {
            let what = format!(
                "managing {}: the interface with index {} is not one that this daemon runs on",
                key.address, key.interface
            );
            self.actions.push_back(Action::Answer { request, answer: Answer::Failed(what) });
            return;
        }
        self.insert(now, key, dice, make);
    }

    /// Adds an address on a link that is known.
    fn insert(
        &mut self,
        now: MonoTime,
        key: AddressKey,
        dice: &mut dyn Dice,
        make: impl FnOnce(&mut Turn<'_>) -> Managed,
    ) {
        let Some(link) = self.links.get_mut(&key.interface) else { return };
        let mut turn = Turn {
            now,
            dice: &mut *dice,
            interface: link.interface,
            outbox: &mut link.outbox,
            actions: &mut self.actions,
            requests: &mut self.requests,
            tags: &mut self.tags,
            open: &mut self.open,
            specs: &mut self.specs,
        };
        let address = make(&mut turn);
        self.busy += usize::from(address.is_busy());
        self.addresses.insert(key, address);
        self.with(now, key, dice, |_, _| ());
    }

    /// Takes the first open outcome out that `which` knows.
    fn outcome<T>(&mut self, key: AddressKey, which: impl Fn(Open) -> Option<T>) -> Option<T> {
        let open = self.open.get_mut(&key)?;
        let (at, found) = open.iter().enumerate().find_map(|(at, open)| Some((at, which(*open)?)))?;
        if let Some(Open::Install { .. } | Open::Register { .. }) = open.remove(at)
            && let Some(link) = self.links.get_mut(&key.interface)
        {
            link.outbox.came();
        }
        if open.is_empty() {
            self.open.remove(&key);
        }
        Some(found)
    }

    /// Lets an address do something, and what it wants to send leave.
    fn with(
        &mut self,
        now: MonoTime,
        key: AddressKey,
        dice: &mut dyn Dice,
        what: impl FnOnce(&mut Managed, &mut Turn<'_>),
    ) {
        self.turn(now, key, dice, what);
        self.flush(now, key.interface, dice);
    }

    fn turn<T>(
        &mut self,
        now: MonoTime,
        key: AddressKey,
        dice: &mut dyn Dice,
        what: impl FnOnce(&mut Managed, &mut Turn<'_>) -> T,
    ) -> Option<T> {
        let link = self.links.get_mut(&key.interface)?;
        let address = self.addresses.get_mut(&key)?;
        let mut turn = Turn {
            now,
            dice,
            interface: link.interface,
            outbox: &mut link.outbox,
            actions: &mut self.actions,
            requests: &mut self.requests,
            tags: &mut self.tags,
            open: &mut self.open,
            specs: &mut self.specs,
        };
        let was_busy = address.is_busy();
        address.heed_lease(&mut turn);
        let result = what(address, &mut turn);
        let deadline = if address.is_gone() { None } else { address.deadline() };
        if address.armed != deadline {
            if let Some(armed) = address.armed {
                self.timers.remove(&(armed, Timer::Address(key)));
            }
            if let Some(deadline) = deadline {
                self.timers.insert((deadline, Timer::Address(key)));
            }
            address.armed = deadline;
        }
        address.tidy();
        let gone = address.is_gone();
        self.busy += usize::from(!gone && address.is_busy());
        self.busy -= usize::from(was_busy);
        if gone {
            self.addresses.remove(&key);
        }
        Some(result)
    }

    /// Lets leave what the pace allows, and arms the timer for the rest.
    fn flush(&mut self, now: MonoTime, index: u32, dice: &mut dyn Dice) {
        loop {
            let Some(link) = self.links.get_mut(&index) else { return };
            let pace = link.interface.pace;
            let ready = link.outbox.ready(pace, now);
            if ready.is_some_and(|ready| ready <= now)
                && let Some(wish) = link.outbox.pop(now)
            {
                let (Wish::Urgent(key, _)
                | Wish::Probe(key)
                | Wish::Question(key, _)
                | Wish::Ask(key)
                | Wish::Announcement(key, _)) = wish;
                let left = self.turn(now, key, dice, |address, turn| address.launch(wish, turn));
                if left == Some(true)
                    && let Some(link) = self.links.get_mut(&index)
                {
                    link.outbox.left(now, pace);
                }
                continue;
            }
            if link.armed != ready {
                if let Some(armed) = link.armed {
                    self.timers.remove(&(armed, Timer::Outbox(index)));
                }
                if let Some(ready) = ready {
                    self.timers.insert((ready, Timer::Outbox(index)));
                }
                link.armed = ready;
            }
            return;
        }
    }
}
