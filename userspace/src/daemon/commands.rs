//! Commands and their answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    rc::Rc,
    time::Duration,
};

use anyhow::anyhow;
use arpwarden_common::{
    abi::{AddressKey, Counter},
    net::MacAddr,
    state::State,
};
use arpwarden_engine::{
    Answer, Input, Managed, MonoTime, OnlineSpec, Reason, RequestId,
    input::{Claimant, Neighbour},
    params::{self, LEASE_MARGIN, Planned},
};
use tracing::{debug, info, warn};

use super::{Client, Daemon, Pending, Stop, find_link};
use crate::{
    address::Cidr,
    events::vlan_ids,
    exit::Exit,
    io::{
        bpf::kernel_release,
        clock,
        control::{Command, Reply},
        link::{self, Link},
        netlink::{self, LocalAddress, now::Gateway},
    },
    protocol::{
        self, AddressStatus, AddressStatusCounters, AskerStatus, GroupName, How, InterfaceStatus,
        KernelStatus, MissingFeature, RegisterWay, Request, Response, Status,
    },
};

/// A claim of many that takes longer is worth a line in the log.
const TOLD_FROM: Duration = Duration::from_secs(1);

impl Daemon {
    pub(super) async fn take_command(&mut self, command: Command) {
        let Command { request, peer, replies } = command;
        if let Some(peer) = peer {
            let words = summary(&request);
            match request {
                Request::Status { .. } | Request::Explain { .. } | Request::Events { .. } => {
                    debug!(uid = peer.uid(), pid = peer.pid(), "asked for {words}");
                }
                Request::Online { .. }
                | Request::OnlineGroups { .. }
                | Request::Reload {}
                | Request::Offline { .. }
                | Request::Watch { .. }
                | Request::Unwatch { .. }
                | Request::Announce { .. }
                | Request::Repair { .. }
                | Request::Unload {} => info!(uid = peer.uid(), pid = peer.pid(), "commanded: {words}"),
                // Once a second for each lease of whoever decides.
                Request::Renew { .. } => debug!(uid = peer.uid(), pid = peer.pid(), "commanded: {words}"),
            }
        }
        let client = Client::new(replies);
        let looks = matches!(
            request,
            Request::Status { .. } | Request::Explain { .. } | Request::Events { .. } | Request::Unload {}
        );
        if self.ending && !looks {
            client.end_with(Exit::NoDaemon, "the daemon is ending; nothing was done".to_owned());
            return;
        }
        match request {
            Request::Online { addresses, interface, how, attach_now } => {
                let Some(index) = self.interface_for(&client, &interface, attach_now) else { return };
                self.tell_plan(&client, index, addresses.len(), how);
                for cidr in addresses {
                    self.online(&client, &interface, index, cidr, how).await;
                }
            }
            Request::OnlineGroups { groups } => {
                for name in groups {
                    self.bring_group_online(&client, name, true).await;
                }
            }
            Request::Reload {} => self.reload(&client),
            Request::Offline { addresses, groups, interface, watch } => {
                for name in &groups {
                    self.give_up_group(&client, *name, watch);
                }
                if addresses.is_empty() && !groups.is_empty() {
                    return;
                }
                self.forget_awaited(&addresses, interface.as_deref(), Verb::Offline { watch });
                let addresses = if addresses.is_empty() {
                    // `--all` gives up what is ours or claimed; what is only watched stays so.
                    let mut all = self.addresses_where(|_, managed| managed.state() != State::Watched);
                    // Last come, first gone, as at the end of the daemon.
                    all.reverse();
                    all
                } else {
                    addresses
                };
                self.on_managed(
                    &client,
                    &addresses,
                    interface.as_deref(),
                    Verb::Offline { watch },
                    |request, key| Input::Offline { request, key, watch },
                );
            }
            Request::Watch { addresses, interface } => {
                let Some(index) = self.interface_for(&client, &interface, false) else { return };
                for address in addresses {
                    self.watch_address(&client, index, address);
                }
            }
            Request::Unwatch { addresses, interface } => {
                self.forget_awaited(&addresses, interface.as_deref(), Verb::Unwatch);
                self.on_managed(&client, &addresses, interface.as_deref(), Verb::Unwatch, |request, key| {
                    Input::Unwatch { request, key }
                });
            }
            Request::Announce { addresses, interface } => {
                self.on_managed(&client, &addresses, interface.as_deref(), Verb::Announce, |request, key| {
                    Input::Announce { request, key }
                });
            }
            Request::Renew { addresses, groups, interface, lease_ms } => {
                let lease = Duration::from_millis(lease_ms);
                let all = addresses.is_empty() && groups.is_empty();
                let groups = if all { self.groups.keys().copied().collect() } else { groups };
                for name in &groups {
                    self.renew_members(&client, *name, lease);
                }
                let addresses = if all {
                    self.addresses_where(|key, managed| {
                        managed.lease_until().is_some() && self.group_of(key).is_none()
                    })
                } else {
                    addresses
                };
                let verb = Verb::Renew(lease);
                self.on_managed(&client, &addresses, interface.as_deref(), verb, |request, key| {
                    Input::Renew { request, key, lease }
                });
            }
            Request::Repair { addresses, interface } => {
                let mut neighbours = BTreeMap::new();
                for address in &addresses {
                    for key in self.keys_of(*address, None) {
                        neighbours.insert(key, self.neighbours(&key));
                    }
                }
                self.on_managed(&client, &addresses, interface.as_deref(), Verb::Repair, |request, key| {
                    let neighbours = neighbours.get(&key).cloned().unwrap_or_default();
                    Input::Repair { request, key, neighbours }
                });
            }
            Request::Explain { address } => {
                let facts = self.explain(address).await;
                client.say(Reply::Line(Response::Explanation { facts }));
            }
            Request::Status { address } => match self.status(address) {
                Ok(status) => client.say(Reply::Line(Response::Status { status })),
                Err(error) => client.end_with(Exit::Failed, format!("reading the counters: {error:#}")),
            },
            Request::Events { follow } => {
                let (recent, receiver) = self.journal.subscribe();
                client.say(Reply::Events { recent, follow: follow.then_some(receiver) });
            }
            Request::Unload {} => {
                self.unloading.push(client);
                self.end("unload");
            }
        }
    }

    /// Claims an address, unless what the host is forbids it.
    pub(super) async fn online(
        &mut self,
        client: &Rc<Client>,
        interface: &str,
        index: u32,
        cidr: Cidr,
        how: How,
    ) {
        let address = cidr.address();
        let key = Self::key(index, address);
        let Permitted { adopt, warning } = match self.permit(&key, how).await {
            Ok(permitted) => permitted,
            Err(refusal) => return client.result(address, Some(interface), refusal),
        };
        let before = self.group_of(&key);
        let in_force = self
            .engine
            .get(&key)
            .is_some_and(|managed| managed.state().may_answer() || managed.state() == State::Probing);
        if !in_force {
            if let Some(name) = how.group
                && let Err(why) = self.group_that_answers(name)
            {
                return client.result(address, Some(interface), (Exit::Failed, why));
            }
            let from_file = self.is_from_file(interface, cidr.address());
            self.note(key, how, from_file);
            if self.engine.get(&key).is_some() {
                self.join_group(&key);
            }
            if let Some(left) = before.filter(|left| Some(*left) != how.group) {
                self.forget_empty_group(left);
            }
        } else if before != how.group {
            let why = format!(
                "managed in {}; take it offline first to change that",
                before.map_or_else(|| "no group".to_owned(), |name| format!("group '{name}'"))
            );
            return client.result(address, Some(interface), (Exit::Failed, why));
        }
        let spec = how.spec(cidr.prefix_length());
        // The group's lease ends it as well.
        let lease = [spec.lease, how.group.and_then(|name| self.group_lease_left(name))];
        let spec = OnlineSpec { adopt, lease: lease.into_iter().flatten().min(), ..spec };
        let pending = Pending { warning, ..Pending::new(client, key, Verb::Online(spec)) };
        self.submit(pending, |request| Input::Online { request, key, spec });
    }

    /// Tells how long a claim of many addresses will take.
    fn tell_plan(&self, client: &Client, index: u32, count: usize, how: How) {
        if count < 2 {
            return;
        }
        let (pace, _) = self.settings.pace(&self.interface_name(index));
        let Planned { announced, done } = params::planned(&how.spec(32), pace, count);
        let [announced_ms, done_ms] =
            [announced, done].map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        if announced > TOLD_FROM {
            info!(
                addresses = count,
                announced_ms, done_ms, "the pace of the interface makes a claim of many last"
            );
        }
        client.say(Reply::Line(Response::Plan { addresses: count, announced_ms, done_ms }));
    }

    pub(super) fn watch_address(&mut self, client: &Rc<Client>, index: u32, address: Ipv4Addr) {
        let key = Self::key(index, address);
        self.submit(Pending::new(client, key, Verb::Watch), |request| Input::Watch { request, key });
        if self.is_local(address) {
            self.tell(Input::Local { key, local: true });
        }
    }

    /// Whether what the host is allows a claim.
    pub(super) async fn permit(&self, key: &AddressKey, how: How) -> Result<Permitted, (Exit, String)> {
        // In the place of what answers now, which is on the interface already.
        let adopt = how.adopt || self.observe && self.is_local(key.address.into());
        if let Some(refusal) = self.refuse_local(key, adopt) {
            return Err(refusal);
        }
        if how.register == RegisterWay::None {
            if !how.blackhole_ok
                && let Some(why) = self.leads_nowhere(key).await
            {
                return Err((Exit::Failed, format!("{why}; or accept it with --blackhole-ok")));
            }
            return Ok(Permitted { adopt, warning: None });
        }
        let flux = self.flux(key);
        if let Some(flux) = &flux
            && how.lease_ms.is_some()
            && !how.allow_flux
        {
            let why = format!("{flux}, and no lease silences that; or accept it with --allow-flux");
            return Err((Exit::Failed, why));
        }
        Ok(Permitted { adopt, warning: flux })
    }

    /// Gives all addresses of a group up: all are silent before the first of them leaves its interface.
    fn give_up_group(&mut self, client: &Rc<Client>, name: GroupName, watch: bool) {
        let members = self.members(name);
        if members.is_empty() {
            return client.end_with(Exit::Done, format!("group '{name}' has no addresses; nothing to do"));
        }
        self.silence_group(name);
        // Last come, first gone, as at the end of the daemon.
        for key in members.into_iter().rev() {
            self.submit(Pending::new(client, key, Verb::Offline { watch }), |request| Input::Offline {
                request,
                key,
                watch,
            });
        }
    }

    /// Prolongs the lease of a group, and with it what the engine knows of each of its addresses.
    fn renew_members(&mut self, client: &Rc<Client>, name: GroupName, lease: Duration) {
        let members = self.members(name);
        if members.is_empty() {
            let message = format!("group '{name}' has no addresses; see 'arpwarden status'");
            return client.end_with(Exit::Failed, message);
        }
        let now = clock::now();
        let until = now.after(lease.saturating_sub(LEASE_MARGIN));
        if self.renew_group(name, now.0, until.0) {
            for key in members {
                let pending = Pending::new(client, key, Verb::Renew(lease));
                self.submit(pending, |request| Input::Renew { request, key, lease });
            }
            return;
        }
        for key in members {
            let why =
                format!("the lease of its group '{name}' is past: somebody else may own it; claim it anew");
            let interface = self.interface_name(key.interface);
            client.result(key.address.into(), Some(&interface), (Exit::Failed, why));
        }
    }

    /// Which other interfaces of this host would answer for an address once it is configured.
    pub(super) fn flux(&self, key: &AddressKey) -> Option<String> {
        let elsewhere = self.subnets_elsewhere(key.interface);
        let others = link::siblings_that_answer(&self.links, &elsewhere, key.interface, key.address.into());
        let names: Vec<&str> = others.iter().map(|link| link.name.as_str()).collect();
        let first = names.first()?;
        Some(format!(
            "{} may be on the same segment and would answer for it too, with another MAC (arp_ignore is 0 there); set \
             it with 'sysctl -w net.ipv4.conf.{first}.arp_ignore=1'",
            names.join(", ")
        ))
    }

    /// The subnets on other interfaces, as if each had one address there: a claim of thousands of addresses asks for each
    /// of them, and thousands may be configured.
    fn subnets_elsewhere(&self, index: u32) -> Vec<LocalAddress> {
        // A single address makes no subnet.
        let elsewhere = self.subnets.keys().filter(|(at, length, _)| *at != index && *length < 32);
        let one_of = |(index, prefix_length, address): &(u32, u8, Ipv4Addr)| LocalAddress {
            index: *index,
            address: *address,
            prefix_length: *prefix_length,
            protocol: None,
        };
        elsewhere.map(one_of).collect()
    }

    /// Addresses with this property, in the order of their keys.
    fn addresses_where(&self, which: impl Fn(&AddressKey, &Managed) -> bool) -> Vec<Ipv4Addr> {
        let found: BTreeSet<Ipv4Addr> = self
            .engine
            .addresses()
            .filter(|(key, managed)| which(key, managed))
            .map(|(key, _)| key.address.into())
            .collect();
        found.into_iter().collect()
    }

    /// Who should know where an address is: the hosts that asked for it lately, and the gateway.
    fn neighbours(&self, key: &AddressKey) -> Vec<Neighbour> {
        let asked = self.datapath.askers(key, clock::now().0).into_iter();
        let mut neighbours: Vec<Neighbour> =
            asked.map(|asker| Neighbour { mac: asker.mac, address: asker.address }).collect();
        match netlink::now::gateway(key.interface) {
            Ok(Some(Gateway { address, mac }))
                if neighbours.iter().all(|there| there.address != address.into()) =>
            {
                // One whose MAC is not known is asked by broadcast, as anybody would.
                let mac = mac.unwrap_or(MacAddr::BROADCAST);
                neighbours.push(Neighbour { mac, address: address.into() });
            }
            Ok(_) => {}
            Err(error) => warn!("looking for the gateway, which is not asked: {error}"),
        }
        neighbours
    }

    /// The interface of a claim or a watch, carrying the program; or the request ends with the reason.
    fn interface_for(&mut self, client: &Client, name: &str, attach_now: bool) -> Option<u32> {
        let found = find_link(&self.links, name).map(|link| link.index).and_then(|index| {
            match self.carrier_of(index) {
                Some((carrier, there)) if attach_now && !there.presence.program => {
                    return self.put_back(carrier).map(|()| index);
                }
                Some(_) => return Ok(index),
                None if attach_now => return self.carry(index).map(|()| index),
                None => {}
            }
            Err(Stop::failed(anyhow!(
                "the daemon does not run on {name}; start it with 'run --iface {name}', or add --attach-now (which can \
                 bounce the link for seconds)"
            )))
        });
        match found {
            Ok(index) => Some(index),
            Err(stop) => {
                client.end_with(stop.exit, format!("{:#}", stop.error));
                None
            }
        }
    }

    /// Refuses what somebody else has configured on this host.
    fn refuse_local(&self, key: &AddressKey, adopt: bool) -> Option<(Exit, String)> {
        let ours = self.engine.get(key).is_some_and(|managed| {
            // An address that is ours, or on its way to or from being it, is on the interface because of us.
            !matches!(managed.state(), State::Watched | State::Refused | State::Lost)
        });
        if ours {
            return None;
        }
        let address = key.address.into();
        if !self.is_local(address) {
            return None;
        }
        if !self.locals.contains_key(&(address, key.interface)) {
            // In another VLAN it is another address.
            let names: Vec<String> = self
                .places_of(address)
                .filter(|(index, _)| !link::vlans_apart(*index, key.interface, &self.links))
                .map(|(index, _)| self.interface_name(index))
                .collect();
            if names.is_empty() {
                return None;
            }
            let elsewhere = names.join(", ");
            return Some((
                Exit::Taken,
                format!("configured on {elsewhere} of this host already; remove it there first"),
            ));
        }
        (!adopt).then(|| {
            (
                Exit::Taken,
                "on the interface already; remove it first, or take it over with --adopt".to_owned(),
            )
        })
    }

    pub(super) fn submit(&mut self, pending: Pending, input: impl FnOnce(RequestId) -> Input) -> RequestId {
        let request = self.new_request();
        self.pending.insert(request, pending);
        self.tell(input(request));
        request
    }

    /// Submits a command for each managed key of the addresses.
    fn on_managed(
        &mut self,
        client: &Rc<Client>,
        addresses: &[Ipv4Addr],
        interface: Option<&str>,
        verb: Verb,
        input: impl Fn(RequestId, AddressKey) -> Input,
    ) {
        let index = match interface {
            None => None,
            Some(name) => match link::find(name, &self.links) {
                Ok(link) => Some(link.index),
                Err(error) => return client.end_with(Exit::Failed, error.to_string()),
            },
        };
        for &address in addresses {
            match *self.keys_of(address, index) {
                [key] if matches!(verb, Verb::Renew(_)) && self.group_of(&key).is_some() => {
                    let name = self.group_of(&key).map_or_else(String::new, String::from);
                    let message = format!("its lease is that of its group: renew @{name}");
                    client.result(address, interface, (Exit::Failed, message));
                }
                [key] => {
                    self.submit(Pending::new(client, key, verb), |request| input(request, key));
                }
                [] => client.result(address, interface, verb.unknown()),
                ref keys => {
                    let names = keys.iter().map(|key| self.interface_name(key.interface)).collect::<Vec<_>>();
                    let message = format!("managed on {}; say which with --iface", names.join(" and "));
                    client.result(address, None, (Exit::Usage, message));
                }
            }
        }
    }

    pub(super) fn answer(&mut self, request: RequestId, answer: &Answer) {
        if let Some(changing) = &mut self.changing {
            changing.open.remove(&request);
        }
        let Some(Pending { client, key, verb, joint, warning }) = self.pending.remove(&request) else {
            return;
        };
        let alone = match joint {
            Some(name) => self.joint_answer(name, key, answer),
            None => true,
        };
        let interface = self.interface_name(key.interface);
        let own = self.links.get(&key.interface).and_then(|link| link.mac);
        let (exit, mut words) = verb.words(answer, own);
        if let Some(warning) = warning.filter(|_| exit == Exit::Done) {
            words += "; warning: ";
            words += &warning;
        }
        if alone {
            client.result(key.address.into(), Some(&interface), (exit, words));
        }
    }

    fn status(&self, only: Option<Ipv4Addr>) -> anyhow::Result<Status> {
        let totals = self.datapath.counters()?;
        let counters = Counter::ALL
            .iter()
            .map(|counter| (counter.name().to_owned(), totals[*counter as usize]))
            .collect();
        let interfaces = self
            .interfaces
            .iter()
            .filter_map(|(index, carrier)| Some((index, self.links.get(index), self.carriers.get(carrier)?)))
            .map(|(index, link, carrier)| InterfaceStatus {
                interface: self.interface_name(*index),
                carrier: carrier.name.clone(),
                vlan: vlan_ids(self.datapath.segment(*index).vlan),
                attach_mode: carrier.mode.name().to_owned(),
                vlan_tags: carrier.vlan_tags.to_owned(),
                running: link.is_some_and(Link::carries),
                program: carrier.presence.program,
                guard: carrier.presence.guard,
            })
            .collect();
        let now = clock::now();
        let mut addresses = Vec::new();
        for (key, managed) in self.engine.addresses() {
            if only.is_some_and(|address| address != Ipv4Addr::from(key.address)) {
                continue;
            }
            let (claims, seen) = self.datapath.address_counters(key).unwrap_or_default();
            let state = managed.state();
            let may_answer = !self.observe
                && self.datapath.standing(key).is_some_and(|standing| standing.may_answer(|| now.0));
            let own = self.links.get(&key.interface).and_then(|link| link.mac);
            let owner = if may_answer { own } else { Some(claims.owner).filter(|mac| !mac.is_zero()) };
            addresses.push(AddressStatus {
                address: key.address.into(),
                prefix_length: managed.spec().map(|spec| spec.prefix_length),
                interface: self.interface_name(key.interface),
                vlan: vlan_ids(self.datapath.segment(key.interface).vlan),
                group: self.group_of(key),
                state: state.name().to_owned(),
                may_answer,
                owner: owner.map(|mac| mac.to_string()),
                lease_left: managed.lease_until().map(|until| until.since(now).as_secs_f64()),
                announced_ago: self.announced(key).map(|at| now.since(at).as_secs_f64()),
                askers: self.askers(key, managed, now),
                counters: AddressStatusCounters {
                    answered: seen.answered,
                    shielded: seen.shielded,
                    claims: claims.claims,
                    probes: claims.probes,
                    echoes: claims.echoes.into(),
                    conflicts: managed.conflicts(),
                    defences: managed.defences(),
                    guarded: claims.guarded,
                },
            });
        }
        let missing = self.datapath.lacks().into_iter().map(|lack| MissingFeature {
            feature: lack.feature.to_owned(),
            since: lack.since.to_owned(),
            instead: lack.instead.to_owned(),
        });
        let kernel = KernelStatus { release: kernel_release(), missing: missing.collect() };
        Ok(Status {
            instance: self.instance.name().to_owned(),
            observe: self.observe,
            interfaces,
            addresses,
            counters,
            kernel,
        })
    }

    fn announced(&self, key: &AddressKey) -> Option<MonoTime> {
        self.notes.get(key).and_then(|notes| notes.announced)
    }

    /// Who asked lately, who was told, who has followed.
    fn askers(&self, key: &AddressKey, managed: &Managed, now: MonoTime) -> Vec<AskerStatus> {
        let followed = u16::from(managed.generation()) + 256;
        let told = self.told.get(key);
        let askers = self.datapath.askers(key, now.0).into_iter().map(|asker| {
            let address: Ipv4Addr = asker.address.into();
            let told = told.and_then(|told| told.get(&address)).copied();
            let follows = managed.state().may_answer() && asker.followed == followed;
            let at = MonoTime(asker.followed_ns);
            // It may have followed the announcement before it was asked.
            let since = told.filter(|told| *told <= at).or_else(|| self.announced(key));
            AskerStatus {
                mac: asker.mac.to_string(),
                address,
                asked_ago: now.since(MonoTime(asker.seen_ns)).as_secs_f64(),
                told_ago: told.map(|told| now.since(told).as_secs_f64()),
                followed: follows,
                followed_after: since.filter(|_| follows).map(|since| at.since(since).as_secs_f64()),
            }
        });
        askers.collect()
    }
}

fn summary(request: &Request) -> String {
    let many = |what: &str, n: usize| format!("{what} of {n} address{}", if n == 1 { "" } else { "es" });
    match request {
        Request::Online { addresses, interface, .. } => {
            format!("{} on {interface}", many("online", addresses.len()))
        }
        Request::OnlineGroups { groups } => format!("online of groups {groups:?}"),
        Request::Reload {} => "reload".to_owned(),
        Request::Offline { groups, .. } if !groups.is_empty() => format!("offline of groups {groups:?}"),
        Request::Renew { groups, .. } if !groups.is_empty() => format!("renew of groups {groups:?}"),
        Request::Offline { addresses, .. } if addresses.is_empty() => "offline of all addresses".to_owned(),
        Request::Offline { addresses, .. } => many("offline", addresses.len()),
        Request::Watch { addresses, .. } => many("watch", addresses.len()),
        Request::Unwatch { addresses, .. } => many("unwatch", addresses.len()),
        Request::Announce { addresses, .. } => many("announce", addresses.len()),
        Request::Renew { addresses, .. } if addresses.is_empty() => "renew of all leases".to_owned(),
        Request::Renew { addresses, .. } => many("renew", addresses.len()),
        Request::Repair { addresses, .. } => many("repair", addresses.len()),
        Request::Explain { .. } => "explain".to_owned(),
        Request::Status { .. } => "status".to_owned(),
        Request::Events { .. } => "events".to_owned(),
        Request::Unload {} => "unload".to_owned(),
    }
}

/// A claim that what the host is allows.
pub(super) struct Permitted {
    /// Take over what is on the interface already.
    pub(super) adopt: bool,
    /// What should be said of it.
    pub(super) warning: Option<String>,
}

/// What a command wants of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Online(OnlineSpec),
    Offline {
        watch: bool,
    },
    Watch,
    Unwatch,
    Announce,
    Renew(Duration),
    Repair,
    /// Other parameters for what is managed already.
    Adjust,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::Online(_) => "online",
            Self::Offline { .. } => "offline",
            Self::Watch => "watch",
            Self::Unwatch => "unwatch",
            Self::Announce => "announce",
            Self::Renew(_) => "renew",
            Self::Repair => "repair",
            Self::Adjust => "change",
        }
    }

    fn difference(self, present: &OnlineSpec) -> String {
        match self {
            Self::Online(asked) => protocol::difference(present, &asked),
            Self::Offline { .. }
            | Self::Watch
            | Self::Unwatch
            | Self::Announce
            | Self::Renew(_)
            | Self::Repair
            | Self::Adjust => String::new(),
        }
    }

    /// For an address that is not managed: giving it up is done, announcing it is not.
    fn unknown(self) -> (Exit, String) {
        match self {
            Self::Offline { .. } | Self::Unwatch => (Exit::Done, "not managed; nothing to do".to_owned()),
            Self::Online(_) | Self::Watch | Self::Announce | Self::Renew(_) | Self::Repair | Self::Adjust => {
                (
                    Exit::Failed,
                    format!("not managed, so there is nothing to {}; see 'arpwarden status'", self.name()),
                )
            }
        }
    }

    /// Exit code and words of an answer.
    fn words(self, answer: &Answer, own: Option<MacAddr>) -> (Exit, String) {
        let own = own.map_or_else(String::new, |mac| format!(" as {mac}"));
        match answer {
            Answer::Done => (
                Exit::Done,
                match self {
                    Self::Online(_) => format!("online, announced{own}"),
                    Self::Offline { watch: false } => "offline".to_owned(),
                    Self::Offline { watch: true } => "offline, watched from now on".to_owned(),
                    Self::Watch => "watched".to_owned(),
                    Self::Adjust => "changed; it stayed as it was on the network".to_owned(),
                    Self::Unwatch => "watched no more".to_owned(),
                    Self::Announce => format!("announced{own}"),
                    Self::Renew(lease) => format!("may answer for {} s from now", lease.as_secs_f64()),
                    Self::Repair => format!("asked{own} whoever asked for it lately, and the gateway"),
                },
            ),
            Answer::Already(state) => (Exit::Done, format!("{} already; nothing to do", state.name())),
            Answer::Unknown => self.unknown(),
            Answer::Taken { claimant, reason } => (Exit::Taken, taken(claimant, *reason)),
            Answer::Differs { present } => (
                Exit::Failed,
                format!(
                    "managed with other parameters: {}; take it offline first to change them",
                    self.difference(present)
                ),
            ),
            Answer::WrongState(state) => (
                Exit::Failed,
                format!(
                    "{} is not possible while it is {}; see 'arpwarden status'",
                    self.name(),
                    state.name()
                ),
            ),
            Answer::Failed(what) => (Exit::Failed, what.clone()),
            Answer::Superseded => {
                (Exit::Failed, "another command came in between; see 'arpwarden status'".to_owned())
            }
        }
    }
}

/// Who has an address that could not be had. The claimant's MAC comes before any other.
pub fn taken(claimant: &Claimant, reason: Reason) -> String {
    let via = if claimant.ethernet_source == claimant.mac {
        String::new()
    } else {
        format!(" (sent by {})", claimant.ethernet_source)
    };
    let mac = claimant.mac;
    match reason {
        Reason::ProbedByAnother => format!(
            "{mac}{via} probes for it at the same time; both give way (RFC 5227 §2.1.1); retry with --wait SECONDS"
        ),
        Reason::RolledBack => format!("{mac}{via} has it; rolled back, and the owner announced again to all"),
        Reason::Commanded
        | Reason::ProbesUnanswered
        | Reason::Adopted
        | Reason::PlanDone
        | Reason::Claimed
        | Reason::DefendPolicy
        | Reason::MoveBudgetSpent
        | Reason::MoveBudgetFree
        | Reason::Retry
        | Reason::Deregistered
        | Reason::MacChanged
        | Reason::PathChanged
        | Reason::LeaseExpired
        | Reason::LinkDown
        | Reason::LinkUp
        | Reason::InterfaceGone
        | Reason::AddressRemoved
        | Reason::Failed => format!("{mac}{via} has it; nothing was registered; --wait SECONDS retries"),
    }
}
