//! The configuration file applied: the difference to what is there at the start, and after that the difference
//! between the file as it is and as it was applied last, and nothing else.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    os::unix::fs::{PermissionsExt as _, chown},
    rc::Rc,
};

use arpwarden_common::{abi::AddressKey, state::State};
use arpwarden_engine::{Input, Reason, RequestId};

use super::{Client, Daemon, Pending, Verb, find_link, start::group_id};
use crate::{
    config::{Address, Config, Place, Start, Unusable},
    exit::Exit,
    io::link,
    protocol::{ClaimWay, GroupName, How},
};

/// What is still to be done when all that had to be given up first has been.
pub(super) struct Changing {
    client: Rc<Client>,
    /// Commands whose answers are waited for.
    pub(super) open: BTreeSet<RequestId>,
    then: Vec<Step>,
}

/// What comes behind it, in this order.
enum Step {
    /// Run on an interface no more.
    Leave(String),
    /// Watch an address.
    Watch(Place),
    /// Claim an address.
    Claim(Place, Address),
    /// Claim what is missing of a group.
    Group(GroupName),
}

/// How what is in force of an address differs from what is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Distance {
    /// In nothing, or only in how the next claim is made.
    None,
    /// In what can be changed while it is answered.
    Adjust,
    /// In what it has with the kernel, or in its group.
    Anew,
}

/// How a claim that is in force differs from one that is to be.
fn distance(present: (u8, How), wanted: (u8, How)) -> Distance {
    let ((prefix_length, present), (wanted_length, wanted)) = (present, wanted);
    let check = |how: How| (how.claim == ClaimWay::Immediate).then_some(how.check_ms);
    let lasting = |how: How| (how.claim, check(how), how.profile, how.defend, how.on_removed);
    let kernel = |how: How| (how.register, how.group);
    if prefix_length != wanted_length || kernel(present) != kernel(wanted) {
        Distance::Anew
    } else if lasting(present) != lasting(wanted) {
        Distance::Adjust
    } else {
        Distance::None
    }
}

/// What differs between two files, by place: removed, added and changed ones.
fn differences<'a>(
    before: &'a Config,
    now: &'a Config,
) -> Vec<(&'a Place, Option<&'a Address>, Option<&'a Address>)> {
    let places: BTreeSet<&Place> = before.addresses.keys().chain(now.addresses.keys()).collect();
    let both = places.into_iter().map(|place| (place, before.addresses.get(place), now.addresses.get(place)));
    both.filter(|(_, before, now)| before != now).collect()
}

impl Daemon {
    /// Whether the file in force names an address.
    pub(super) fn is_from_file(&self, interface: &str, address: Ipv4Addr) -> bool {
        self.settings.file.addresses.contains_key(&(interface.to_owned(), address))
    }

    /// Ours or claimed, also if only its link is down.
    pub(super) fn is_in_force(&self, key: &AddressKey) -> bool {
        self.engine.get(key).is_some_and(|managed| match managed.state() {
            State::Probing | State::Announcing | State::Online | State::Contested => true,
            State::Suspended => managed.reason() == Reason::LinkDown,
            State::Watched | State::Yielding | State::Refused | State::Lost => false,
        })
    }

    fn key_at(&self, (interface, address): &Place) -> Option<AddressKey> {
        link::find(interface, &self.links).ok().map(|link| Self::key(link.index, *address))
    }

    /// Applies the file as the difference to what is there.
    pub(super) fn apply_at_start(&mut self) {
        if self.settings.flags.config.is_none() {
            return;
        }
        let client = Client::of_the_log();
        let mut changing = Changing { client: Rc::clone(&client), open: BTreeSet::new(), then: Vec::new() };
        // What an earlier run had from its file, and the file has no more.
        let stale: Vec<AddressKey> = self
            .engine
            .addresses()
            .filter(|(key, _)| self.notes.get(key).is_some_and(|notes| notes.from_file))
            .filter(|(key, _)| !self.is_from_file(&self.interface_name(key.interface), key.address.into()))
            .map(|(key, _)| *key)
            .collect();
        for key in stale {
            self.drop_address(&mut changing, key, false);
        }
        let file = self.settings.file.clone();
        for (place, address) in &file.addresses {
            self.add_address(&mut changing, place, address);
        }
        changing.then.sort_by_key(Step::rank);
        self.changing = Some(changing);
    }

    /// Reads the file again and applies the difference.
    pub(super) fn reload(&mut self, client: &Rc<Client>) {
        if self.ending {
            return;
        }
        let Some(path) = self.settings.flags.config.clone() else {
            let message = "nothing to reload: the daemon was started without --config FILE".to_owned();
            return client.end_with(Exit::Failed, message);
        };
        if self.changing.is_some() || !self.joint.is_empty() {
            let message = "an earlier change is still being applied; nothing was read, try again".to_owned();
            return client.end_with(Exit::Failed, message);
        }
        match Config::load(&path) {
            Ok(file) => self.apply(client, file),
            Err(error) => {
                if let Unusable::Unread(..) = error {
                    client.note(Exit::Usage, error.to_string());
                } else {
                    for line in error.to_string().lines() {
                        client.note(Exit::Usage, line.to_owned());
                    }
                }
                client.end_with(Exit::Usage, "the file is not right, so nothing was changed".to_owned());
            }
        }
    }

    fn apply(&mut self, client: &Rc<Client>, mut file: Config) {
        let before = self.settings.file.clone();
        if file == before {
            return client.end_with(Exit::Done, "the file says what it said; nothing to do".to_owned());
        }
        let mut changing = Changing { client: Rc::clone(client), open: BTreeSet::new(), then: Vec::new() };
        self.apply_daemon(client, &before, &mut file);
        self.apply_interfaces(&mut changing, &before, &mut file);
        for name in before.groups.keys().filter(|name| !file.groups.contains_key(name)) {
            client.note(Exit::Done, format!("group '{name}': removed"));
        }
        for (name, group) in &file.groups {
            match before.groups.get(name) {
                Some(same) if same == group => {}
                Some(_) => {
                    client.note(Exit::Done, format!("group '{name}': lease changed, from the next claim on"))
                }
                None => client.note(Exit::Done, format!("group '{name}': added")),
            }
        }
        // All of a group at once, before the first of it is taken off its interface.
        for name in before.groups.keys() {
            if before.members(*name).next().is_some() && file.members(*name).next().is_none() {
                self.silence_group(*name);
            }
        }
        for (place, old, new) in differences(&before, &file) {
            match (old, new) {
                (_, None) => match self.key_at(place).filter(|key| self.engine.get(key).is_some()) {
                    Some(key) => self.drop_address(&mut changing, key, false),
                    None => {
                        let (interface, address) = place;
                        self.forget_awaited(&[*address], Some(interface), Verb::Offline { watch: false });
                        self.forget_awaited(&[*address], Some(interface), Verb::Unwatch);
                        client.result(
                            *address,
                            Some(interface),
                            (Exit::Done, "removed; it was not managed".to_owned()),
                        );
                    }
                },
                (None, Some(address)) => self.add_address(&mut changing, place, address),
                (Some(old), Some(address)) => self.change_address(&mut changing, place, old, address),
            }
        }
        changing.then.sort_by_key(Step::rank);
        self.changing = Some(changing);
    }

    /// `[daemon]`; what can't be changed while it runs stays as it was in `file`.
    fn apply_daemon(&mut self, client: &Client, before: &Config, file: &mut Config) {
        let (old, new) = (before.daemon.clone(), &mut file.daemon);
        let refuse = |key: &str, why: &str| {
            client.note(Exit::Failed, format!("daemon.{key}: not changed: {why}; restart the daemon"));
        };
        let attaching = "attaching anew takes the program off for a moment and may take the link down";
        if old.attach != new.attach {
            refuse("attach", attaching);
            new.attach = old.attach;
        }
        if old.vlan_offload != new.vlan_offload {
            refuse("vlan_offload", attaching);
            new.vlan_offload = old.vlan_offload;
        }
        if old.capacity != new.capacity {
            refuse("capacity", "the maps are made once");
            new.capacity = old.capacity;
        }
        if old.observe != new.observe {
            refuse("observe", "what was answered or only observed so far can't be both");
            new.observe = old.observe;
        }
        if old.log != new.log {
            refuse("log", "the program is loaded for one level");
            new.log = old.log;
        }
        let changed = |key: &str, option: &str, given: bool| {
            let but =
                if given { format!(" in the file; {option} of 'run' goes before it") } else { String::new() };
            client.note(Exit::Done, format!("daemon.{key}: changed{but}"));
        };
        let flags = &self.settings.flags;
        let (on_exit, users) = (flags.on_exit.is_some(), flags.socket_group.is_some());
        if old.on_exit != new.on_exit {
            changed("on_exit", "--on-exit", on_exit);
        }
        if old.socket_group != new.socket_group {
            self.settings.file.daemon.socket_group.clone_from(&new.socket_group);
            match self.give_socket_to_group() {
                Ok(()) => changed("socket_group", "--socket-group", users),
                Err(why) => {
                    client.note(Exit::Failed, format!("daemon.socket_group: not changed: {why}"));
                    new.socket_group = old.socket_group;
                }
            }
        }
    }

    /// Lets the members of the group in that is in force, and nobody else but root.
    fn give_socket_to_group(&self) -> Result<(), String> {
        let group = self.settings.socket_group().map(group_id).transpose();
        let group = group.map_err(|stop| format!("{:#}", stop.error))?;
        let socket = self.instance.socket();
        let mode = |mode| fs::set_permissions(&socket, fs::Permissions::from_mode(mode));
        // Nobody in between.
        let done = mode(0o600)
            .and_then(|()| chown(&socket, None, Some(group.map_or(0, nix::unistd::Gid::as_raw))))
            .and_then(|()| if group.is_some() { mode(0o660) } else { Ok(()) });
        done.map_err(|error| format!("{}: {error}", socket.display()))
    }

    fn apply_interfaces(&mut self, changing: &mut Changing, before: &Config, file: &mut Config) {
        let client = Rc::clone(&changing.client);
        for (name, interface) in &mut file.interfaces {
            let Some(old) = before.interfaces.get(name) else { continue };
            let refuse = |key: &str| {
                let why = "attaching anew takes the program off for a moment and may take the link down";
                client.note(
                    Exit::Failed,
                    format!("interface {name}: {key}: not changed: {why}; restart the daemon"),
                );
            };
            if old.attach != interface.attach {
                refuse("attach");
                interface.attach = old.attach;
            }
            if old.vlan_offload != interface.vlan_offload {
                refuse("vlan_offload");
                interface.vlan_offload = old.vlan_offload;
            }
        }
        // What follows reads it.
        self.settings.file = file.clone();
        let mut missing = Vec::new();
        for (name, interface) in &file.interfaces {
            let old = before.interfaces.get(name);
            if old == Some(interface) {
                continue;
            }
            let found = find_link(&self.links, name).map(|link| link.index);
            let carried = found.and_then(|index| self.carry(index).map(|()| index));
            match carried {
                Ok(index) => {
                    self.tell_section(&client, name, index);
                    let what = if old.is_some() { "changed" } else { "added" };
                    client.note(Exit::Done, format!("interface {name}: {what}"));
                }
                // It gets what is new when it is back.
                Err(_) if old.is_some() => client.note(Exit::Done, format!("interface {name}: changed")),
                Err(stop) => {
                    client.note(stop.exit, format!("interface {name}: not added: {:#}", stop.error));
                    missing.push(name.clone());
                }
            }
        }
        for name in missing {
            // Not applied, so the next reload tries it again.
            file.interfaces.remove(&name);
            let addresses = std::mem::take(&mut file.addresses);
            let (lost, rest) = addresses.into_iter().partition(|((interface, _), _)| *interface == name);
            file.addresses = rest;
            let lost: std::collections::BTreeMap<Place, Address> = lost;
            for (interface, address) in lost.keys() {
                let why = (Exit::Failed, "not added: its interface was not".to_owned());
                client.result(*address, Some(interface), why);
            }
            // What is new of a group waits for all of it.
            let groups: BTreeSet<GroupName> = lost.values().filter_map(|address| address.how.group).collect();
            file.addresses.retain(|place, address| {
                let Some(group) = address.how.group.filter(|group| groups.contains(group)) else {
                    return true;
                };
                let old = before.addresses.get(place);
                if old != Some(address) {
                    let what = if old.is_some() { "changed" } else { "added" };
                    let why = format!("not {what}: its group '{group}' goes online as a whole or not at all");
                    client.result(place.1, Some(&place.0), (Exit::Failed, why));
                }
                if let Some(old) = old {
                    address.clone_from(old);
                }
                old.is_some()
            });
            self.settings.file = file.clone();
        }
        if let Err(stop) = self.tell_allowed() {
            client.note(stop.exit, format!("interface: allow: not all of it is in force: {:#}", stop.error));
        }
        for name in before.interfaces.keys().filter(|name| !file.interfaces.contains_key(*name)) {
            if !self.settings.flags.interfaces.contains(name) {
                changing.then.push(Step::Leave(name.clone()));
                continue;
            }
            if let Some(index) = link::find(name, &self.links).ok().map(|link| link.index) {
                self.tell_section(&client, name, index);
            }
            let why = "changed: as without a section; --iface of 'run' names it, so it stays";
            client.note(Exit::Done, format!("interface {name}: {why}"));
        }
    }

    /// Tells the program and the engine what the file says of an interface.
    fn tell_section(&mut self, client: &Client, name: &str, index: u32) {
        let told = self.interfaces.get(&index).copied().map(|carrier| self.tell_ports(carrier));
        if let Some(Err(stop)) = told {
            client.note(stop.exit, format!("interface {name}: {:#}", stop.error));
        }
        self.tell_interface(index);
    }

    /// Gives an address up.
    fn drop_address(&mut self, changing: &mut Changing, key: AddressKey, watch: bool) {
        let watched = self.engine.get(&key).is_some_and(|managed| managed.state() == State::Watched);
        let unwatch = watched && !watch;
        let verb = if unwatch { Verb::Unwatch } else { Verb::Offline { watch } };
        let pending = Pending::new(&changing.client, key, verb);
        let request = self.submit(pending, |request| match unwatch {
            true => Input::Unwatch { request, key },
            false => Input::Offline { request, key, watch },
        });
        changing.open.insert(request);
    }

    fn add_address(&mut self, changing: &mut Changing, place: &Place, address: &Address) {
        match address.start {
            Start::Online => self.bring_online(changing, place, address),
            Start::Watch => self.bring_to_watch(changing, place),
            Start::Off => {
                let (interface, ip) = place;
                changing.client.result(*ip, Some(interface), (Exit::Done, "off".to_owned()));
            }
        }
    }

    /// What the file says of an address has changed.
    fn change_address(&mut self, changing: &mut Changing, place: &Place, old: &Address, address: &Address) {
        let key = self.key_at(place).filter(|key| self.engine.get(key).is_some());
        let (interface, ip) = place;
        if old.start != address.start {
            match (address.start, key) {
                (Start::Online, _) => return self.bring_online(changing, place, address),
                (Start::Watch, _) => return self.bring_to_watch(changing, place),
                (Start::Off, Some(key)) => return self.drop_address(changing, key, false),
                (Start::Off, None) => {}
            }
        } else if let Some(key) = key.filter(|key| self.is_in_force(key)) {
            return self.move_to(changing, key, place, address);
        }
        let words = "changed; it counts from the next claim on".to_owned();
        changing.client.result(*ip, Some(interface), (Exit::Done, words));
    }

    fn bring_to_watch(&mut self, changing: &mut Changing, place: &Place) {
        let key = self.key_at(place);
        let state = key.and_then(|key| self.engine.get(&key)).map(arpwarden_engine::Managed::state);
        match (state, key) {
            (Some(State::Watched) | None, _) => changing.then.push(Step::Watch(place.clone())),
            (Some(_), Some(key)) => self.drop_address(changing, key, true),
            (Some(_), None) => {}
        }
    }

    /// Brings an address online that is to be, unless it is as it is to be.
    fn bring_online(&mut self, changing: &mut Changing, place: &Place, address: &Address) {
        if let Some(key) = self.key_at(place) {
            if self.is_in_force(&key) {
                return self.move_to(changing, key, place, address);
            }
            let yielding = self.engine.get(&key).is_some_and(|managed| managed.state() == State::Yielding);
            if yielding {
                self.drop_address(changing, key, false);
            }
        }
        changing.then.push(Step::of(place, address));
    }

    /// Changes what is in force of an address to what is to be.
    fn move_to(&mut self, changing: &mut Changing, key: AddressKey, place: &Place, address: &Address) {
        let Some(spec) = self.engine.get(&key).and_then(arpwarden_engine::Managed::spec).copied() else {
            return changing.then.push(Step::of(place, address));
        };
        let present = (spec.prefix_length, How { group: self.group_of(&key), ..How::of(&spec) });
        let wanted = (address.cidr.prefix_length(), address.how);
        let distance = distance(present, wanted);
        if distance == Distance::Anew {
            self.drop_address(changing, key, false);
            return changing.then.push(Step::of(place, address));
        }
        self.note(key, address.how, true);
        match distance {
            Distance::Adjust => {
                let spec = address.how.spec(address.cidr.prefix_length());
                let pending = Pending::new(&changing.client, key, Verb::Adjust);
                self.submit(pending, |request| Input::Adjust { request, key, spec });
            }
            Distance::None | Distance::Anew => {
                self.remember(key, Some(spec));
                let (interface, ip) = place;
                let state = self.engine.get(&key).map_or("", |managed| managed.state().name());
                let words = format!("{state} already; what may differ counts from the next claim on");
                changing.client.result(*ip, Some(interface), (Exit::Done, words));
            }
        }
    }

    /// Goes on with what a changed file asks for, as soon as what had to be given up first has been.
    pub(super) async fn go_on(&mut self) {
        while self.changing.as_ref().is_some_and(|changing| changing.open.is_empty()) {
            let Some(Changing { client, then, .. }) = self.changing.take() else { return };
            // The watch may be behind what was acknowledged: what has just left its interface is not there any more.
            if let Err(stop) = self.resync_addresses().await {
                tracing::warn!("reading the addresses of this host: {:#}", stop.error);
            }
            let mut groups = BTreeSet::new();
            for step in then {
                if self.ending {
                    return;
                }
                match step {
                    Step::Leave(name) => self.leave(&client, &name),
                    Step::Watch((interface, address)) => {
                        match find_link(&self.links, &interface).map(|link| link.index) {
                            Ok(index) => self.watch_address(&client, index, address),
                            Err(stop) => {
                                let why = (stop.exit, format!("{:#}", stop.error));
                                client.result(address, Some(&interface), why);
                            }
                        }
                    }
                    Step::Claim((interface, ip), Address { cidr, how, .. }) => {
                        match find_link(&self.links, &interface).map(|link| link.index) {
                            Ok(index) if self.carrier_of(index).is_some() => {
                                let patience = self.patience(
                                    &Self::key(index, ip),
                                    std::time::Duration::from_millis(how.wait_ms),
                                );
                                let wait_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
                                self.online(&client, &interface, index, cidr, How { wait_ms, ..how }).await;
                            }
                            Ok(_) => {
                                let why = format!("the daemon does not run on {interface}");
                                client.result(ip, Some(&interface), (Exit::Failed, why));
                            }
                            Err(stop) => {
                                client.result(ip, Some(&interface), (stop.exit, format!("{:#}", stop.error)));
                            }
                        }
                    }
                    Step::Group(name) => {
                        if groups.insert(name) {
                            self.bring_group_online(&client, name, false).await;
                        }
                    }
                }
                self.perform();
            }
        }
    }

    /// Runs on an interface no more.
    fn leave(&mut self, client: &Client, name: &str) {
        self.awaited.remove(name);
        let index = link::find(name, &self.links).ok().map(|link| link.index);
        let Some((index, carrier)) = index.and_then(|index| Some((index, *self.interfaces.get(&index)?)))
        else {
            return client.note(Exit::Done, format!("interface {name}: removed; it was not there"));
        };
        let left: Vec<String> = self
            .engine
            .addresses()
            .filter(|(key, _)| key.interface == index)
            .map(|(key, _)| key.address.to_string())
            .collect();
        if !left.is_empty() {
            // Still in force, so the next reload tries it again.
            self.settings.file.interfaces.entry(name.to_owned()).or_default();
            let message = format!(
                "interface {name}: not removed: {} managed on it; take that offline, then reload again",
                left.join(", ")
            );
            return client.note(Exit::Failed, message);
        }
        self.tell(Input::Gone { index });
        self.interfaces.remove(&index);
        if self.carried_by(carrier).is_empty() {
            self.drop_carrier(carrier);
        }
        client.note(Exit::Done, format!("interface {name}: removed"));
    }
}

impl Step {
    /// Bringing an address online, by itself or with its group.
    fn of(place: &Place, address: &Address) -> Self {
        match address.how.group {
            Some(name) => Self::Group(name),
            None => Self::Claim(place.clone(), address.clone()),
        }
    }

    /// Interfaces are left before anything new begins.
    const fn rank(&self) -> u8 {
        match self {
            Self::Leave(_) => 0,
            Self::Watch(_) => 1,
            Self::Claim(..) | Self::Group(_) => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DefendPolicy, ProfileName, RegisterWay, RemovedPolicy};

    fn file(addresses: &str) -> Config {
        let head = "[[interface]]\nname = \"eth0\"\n[[group]]\nname = \"web\"\n";
        Config::parse(&format!("{head}{addresses}")).expect("a right file")
    }

    fn address(last: u8, more: &str) -> String {
        format!("[[address]]\naddress = \"192.0.2.{last}/24\"\ninterface = \"eth0\"\n{more}\n")
    }

    #[test]
    fn only_what_differs_between_two_files_is_a_difference() {
        let before = file(&[address(1, ""), address(2, ""), address(3, "")].concat());
        let now = file(&[address(2, ""), address(3, "defend = \"once\""), address(4, "")].concat());
        let found: Vec<(u8, bool, bool)> = differences(&before, &now)
            .into_iter()
            .map(|((_, address), old, new)| (address.octets()[3], old.is_some(), new.is_some()))
            .collect();
        assert_eq!(found, [(1, true, false), (3, true, true), (4, false, true)]);
        assert_eq!(differences(&now, &now), []);
        // Defaults that are written out are no difference.
        let written = file(
            &[
                address(2, "start = \"online\"\ndefend = \"hold\""),
                address(3, "defend = \"once\""),
                address(4, ""),
            ]
            .concat(),
        );
        assert_eq!(differences(&now, &written), []);
    }

    #[test]
    fn an_address_is_given_up_only_for_what_cannot_be_changed_while_it_is_answered() {
        let how = How::default();
        let from = |wanted: How| distance((24, how), (24, wanted));
        let adjust = [
            How { defend: DefendPolicy::Once, ..how },
            How { on_removed: RemovedPolicy::Report, ..how },
            How { profile: ProfileName::Rfc5227, ..how },
            How { claim: ClaimWay::Immediate, ..how },
        ];
        for wanted in adjust {
            assert_eq!(from(wanted), Distance::Adjust, "{wanted:?}");
        }
        let anew = [How { register: RegisterWay::None, ..how }, How { group: "web".parse().ok(), ..how }];
        for wanted in anew {
            assert_eq!(from(wanted), Distance::Anew, "{wanted:?}");
        }
        assert_eq!(distance((24, how), (32, how)), Distance::Anew);
        let next = [
            How { wait_ms: 5, ..how },
            How { adopt: true, ..how },
            How { lease_ms: Some(5_000), ..how },
            How { allow_flux: true, ..how },
            How { blackhole_ok: true, ..how },
            How { check_ms: 500, ..how },
        ];
        for wanted in next {
            assert_eq!(from(wanted), Distance::None, "{wanted:?}");
        }
    }
}
