//! Interfaces and addresses of this host: where the program is, which MACs are ours, what is configured, and what
//! others do to all that.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    mem,
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::anyhow;
use arpwarden_common::{
    abi::{self, AddressKey, AllowedKey, Port},
    net::{MacAddr, Vlan},
    state::State,
    wire::arp::{Form, REQUEST},
};
use arpwarden_engine::{
    Input, Interface, MonoTime, Reason,
    input::{Claimant, MoveBudget, Register, Sighting, SightingKind},
};
use tracing::{error, info, warn};

use super::{
    Carrier, Daemon, Notes, Stop, Verb, find_link,
    settings::{tighter, with_moves},
};
use crate::{
    cli,
    io::{
        bpf::{Mode, Presence},
        clock,
        link::{self, Link, Segment, VlanTags},
        netlink::{self, Change, routes::RouteChanges},
    },
    protocol::How,
};

/// How long a link may be down because the program was attached or an offload changed: some drivers set their rings
/// up anew and negotiate for some seconds (facts: "Attaching can bounce a link for seconds").
const SETTLING: Duration = Duration::from_secs(10);
/// How long a MAC that the interface had is still ours: what left with it may come back for as long as bridges and
/// bonds take to learn the new one.
const FORMER_MAC: Duration = Duration::from_secs(10);

/// How long it may take from the first address that goes with its interface until the interface itself is gone: one
/// operation of the kernel's, and what the daemon has to read before.
const GOING: Duration = Duration::from_secs(5);

/// An address to be managed again when its interface is there again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaited {
    pub(super) address: Ipv4Addr,
    pub(super) wanted: Wanted,
}

/// What was wanted of an address when its interface went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// To be ours.
    Online {
        prefix_length: u8,
        how: How,
        /// Its lease goes on meanwhile.
        lease_until: Option<MonoTime>,
    },
    /// To be watched.
    Watched,
}

impl Daemon {
    /// A port of `carrier` as the program is told of it.
    pub(super) fn port(&self, carrier: u32, mac: MacAddr) -> Port {
        let observe = if self.observe { Port::OBSERVE } else { 0 };
        let port = Port::accepting(mac, carrier);
        with_moves(Port { flags: port.flags | observe, ..port }, self.moves_of(carrier))
    }

    /// The move budget for frames that come in by an interface, for itself and all that stands on it.
    fn moves_of(&self, carrier: u32) -> Option<MoveBudget> {
        let on_it = self.carried_by(carrier).into_iter().chain([carrier]);
        on_it.map(|index| self.settings.pace(&self.interface_name(index)).1).fold(None, tighter)
    }

    /// The ports of an interface that carries the program: itself, and the members of a bond, in whose names a native
    /// program is run.
    fn ports(&self, carrier: u32) -> Result<BTreeMap<u32, Port>, Stop> {
        let Some(link) = self.links.get(&carrier) else { return Ok(BTreeMap::new()) };
        let mac = link.mac.ok_or_else(|| Stop::failed(anyhow!("{} has no MAC", link.name)))?;
        let own = self.port(carrier, mac);
        let members = link::members(link, &self.links).map(|member| {
            let used = link.active_member.map_or(!member.backup, |active| active == member.index);
            let counts = if used { own.flags } else { own.flags & !Port::ACCEPT };
            (member.index, Port { flags: counts | Port::MEMBER, ..own })
        });
        Ok([(carrier, own)].into_iter().chain(members).collect())
    }

    /// Tells the program of the ports of an interface, if that carries it, as far as they have changed: first those that
    /// count no more, since two members that both count would answer twice.
    pub(super) fn tell_ports(&mut self, carrier: u32) -> Result<(), Stop> {
        if !self.carriers.contains_key(&carrier) {
            return Ok(());
        }
        let ports = self.ports(carrier)?;
        let path = self.links.get(&carrier).and_then(|link| link.active_member);
        let Some(told) = self.carriers.get_mut(&carrier) else { return Ok(()) };
        told.path = path.unwrap_or(told.path);
        let before = mem::replace(&mut told.ports, ports.clone());
        for index in before.keys().filter(|index| !ports.contains_key(index)) {
            self.datapath.remove_port(*index).map_err(Stop::failed)?;
        }
        let changed = ports.iter().filter(|(index, port)| before.get(index) != Some(*port));
        let (counting, silent): (Vec<_>, Vec<_>) =
            changed.partition(|(_, port)| port.flags & Port::ACCEPT != 0);
        for (index, port) in silent.into_iter().chain(counting) {
            if let Err(error) = self.datapath.set_port(*index, *port) {
                if let Some(told) = self.carriers.get_mut(&carrier) {
                    // All of it once more with the next change.
                    told.ports = BTreeMap::new();
                }
                return Err(Stop::failed(error));
            }
        }
        Ok(())
    }

    /// The same while the daemon runs, which goes on for all others if there is no room for one: its frames pass.
    fn tell_changed_ports(&mut self, carrier: u32) {
        if let Err(stop) = self.tell_ports(carrier) {
            error!(
                interface = self.interface_name(carrier),
                "not answered on as it should be: {:#}", stop.error
            );
        }
    }

    /// The same of hosts that may claim: one more is a rival.
    fn tell_changed_allowed(&mut self) {
        if let Err(stop) = self.tell_allowed() {
            error!("not everybody who may claim is known to the program: {:#}", stop.error);
        }
    }

    /// Tells the program whose claims are no conflict, and where.
    pub(super) fn tell_allowed(&mut self) -> Result<(), Stop> {
        let keys = self.links.values().flat_map(|link| {
            let Segment { carrier, vlan } = self.datapath.segment(link.index);
            let key = move |mac| AllowedKey { mac, interface: carrier, vlan };
            self.settings.allowed(&link.name).map(key)
        });
        let keys = keys.collect();
        self.datapath.set_allowed(&keys).map_err(Stop::failed)
    }

    /// Which interface carries the program for addresses of this one.
    pub(super) fn carrier_of(&self, index: u32) -> Option<(u32, &Carrier)> {
        let carrier = *self.interfaces.get(&index)?;
        Some((carrier, self.carriers.get(&carrier)?))
    }

    /// The interfaces whose frames this one carries.
    pub(super) fn carried_by(&self, carrier: u32) -> Vec<u32> {
        let on = self.interfaces.iter().filter(|(_, under)| **under == carrier);
        on.map(|(index, _)| *index).collect()
    }

    /// Tells the engine of an interface as it is now.
    pub(super) fn tell_interface(&mut self, index: u32) {
        let Some(up) = self.links.get(&index).map(Link::carries) else { return };
        self.tell_interface_as(index, up);
    }

    /// Tells the engine of an interface, with this to say of its link.
    fn tell_interface_as(&mut self, index: u32, up: bool) {
        let mac = self.links.get(&index).and_then(|link| link.mac);
        let Some((mac, (_, carrier))) = mac.zip(self.carrier_of(index)) else { return };
        let up = up || carrier.settling_until.is_some();
        let (path, (pace, moves)) = (carrier.path, self.settings.pace(&self.interface_name(index)));
        let interface = Interface { mac, pace, moves, up, path };
        self.tell(Input::Interface { index, interface });
    }

    /// Makes an interface one that addresses can be on.
    pub(super) fn carry(&mut self, index: u32) -> Result<(), Stop> {
        if self.interfaces.contains_key(&index) {
            return Ok(());
        }
        let Some(link) = self.links.get(&index) else {
            return Err(Stop::failed(anyhow!("interface #{index} has gone")));
        };
        let Segment { carrier, .. } = link::segment(link, &self.links).map_err(Stop::failed)?;
        let name = link.name.clone();
        self.attach_to(carrier, &name)?;
        self.interfaces.insert(index, carrier);
        // What stands on it may have a move budget of its own.
        self.tell_ports(carrier)?;
        self.tell_interface(index);
        Ok(())
    }

    /// Puts the program on an interface, for addresses on the one of this name.
    fn attach_to(&mut self, index: u32, asked: &str) -> Result<(), Stop> {
        if self.carriers.contains_key(&index) {
            return Ok(());
        }
        let Some(link) = self.links.get(&index) else {
            return Err(Stop::failed(anyhow!("interface #{index} has gone")));
        };
        let name = link.name.clone();
        let names = [name.as_str(), asked];
        let (attach, on_hidden) = (self.settings.attach(&names), self.settings.vlan_offload(&names));
        let (mut mode, mut price) = match attach {
            cli::Attach::Auto => link::auto_mode(link, link::driver(link).as_deref()),
            cli::Attach::Native if link.kind.as_deref() == Some("veth") => (
                Mode::Native,
                Some("native on a veth: its answers are lost unless the peer carries an XDP program too"),
            ),
            cli::Attach::Native => (Mode::Native, None),
            cli::Attach::Generic => (Mode::Generic, None),
            cli::Attach::Tc => (Mode::Tc, None),
        };
        let mut vlan_tags = link::vlan_tags(mode, link, &self.links);
        let mut offload = None;
        if let Err(refusal) = link::tags_permit(link, &self.links, &vlan_tags) {
            match (on_hidden, attach) {
                (None, cli::Attach::Auto) => {
                    (mode, price) = (
                        Mode::Tc,
                        Some(
                            "tc, because VLAN tags are taken off before XDP sees the frames; without that offload it \
                             would be native (--vlan-offload disable)",
                        ),
                    );
                    vlan_tags = link::vlan_tags(mode, link, &self.links);
                }
                (None, cli::Attach::Native | cli::Attach::Generic | cli::Attach::Tc) => {
                    return Err(Stop::failed(refusal));
                }
                (Some(cli::VlanOffload::Ignore), _) => {
                    warn!(interface = name, "attached all the same, as told: {refusal}")
                }
                (Some(cli::VlanOffload::Disable), _) => {
                    offload = Some(link::disable_vlan_offload(link, &self.links).map_err(Stop::failed)?);
                    vlan_tags = link::vlan_tags(mode, link, &self.links);
                }
            }
        }
        // Drivers of hardware set their rings up anew for a native program or an offload; nothing else loses its link.
        let hardware = |link: &Link| link.kind.is_none();
        let rebuilt = hardware(link) || link::members(link, &self.links).any(hardware);
        let bounces = rebuilt && (mode == Mode::Native || offload.is_some());
        // From here on what is done is undone by `drop_carrier`.
        let carrier = Carrier {
            mode,
            vlan_tags: vlan_tags.name(),
            offload,
            settling_until: bounces.then(|| clock::now().after(SETTLING)),
            ..Carrier::new(name.clone())
        };
        self.carriers.insert(index, carrier);
        let joins_packets = link::joins_packets(&name);
        let attached = self.tell_ports(index).and_then(|()| {
            let mut attached = self.datapath.attach(index, &name, mode);
            // Drivers learn it with some kernel (igc with 5.13), and may not do it at this MTU or with these queues.
            if attach == cli::Attach::Auto
                && attached.as_ref().is_err_and(|error| error.is_unsupported())
            {
                (mode, price) = (
                    Mode::Tc,
                    Some(
                        "tc, because the driver takes no native program on this kernel, or not as the interface is set \
                         up now: --attach native tells which",
                    ),
                );
                vlan_tags = self.links.get(&index).map_or(VlanTags::Visible, |link| {
                    link::vlan_tags(mode, link, &self.links)
                });
                if let Some(carrier) = self.carriers.get_mut(&index) {
                    (carrier.mode, carrier.vlan_tags) = (mode, vlan_tags.name());
                }
                attached = self.datapath.attach(index, &name, mode);
            }
            attached.map_err(Stop::failed)
        });
        if let Some(carrier) = self.carriers.get_mut(&index) {
            carrier.lost_offload = joins_packets.lost();
        }
        if let Err(stop) = attached {
            self.drop_carrier(index);
            return Err(stop);
        }
        if let Some(price) = price {
            warn!(interface = name, mode = mode.name(), "{price}");
        }
        info!(interface = name, mode = mode.name(), vlan_tags = vlan_tags.name(), "attached");
        Ok(())
    }

    /// Puts the program back on an interface that it was taken off, although that may take the link down.
    pub(super) fn put_back(&mut self, index: u32) -> Result<(), Stop> {
        let Some(Carrier { name, mode, .. }) = self.carriers.get(&index) else { return Ok(()) };
        self.datapath.attach(index, name, *mode).map_err(Stop::failed)?;
        self.look_at_carrier(index);
        Ok(())
    }

    pub(super) fn drop_carrier(&mut self, index: u32) {
        let Some(carrier) = self.carriers.remove(&index) else { return };
        if let Err(error) = self.datapath.detach(index) {
            warn!(interface = carrier.name, "detaching the program: {error}");
        }
        for port in carrier.ports.keys() {
            if let Err(error) = self.datapath.remove_port(*port) {
                warn!("taking port #{port} out of the program's maps: {error}");
            }
        }
        self.interfaces.retain(|_, under| *under != index);
        for offload in [carrier.offload, carrier.lost_offload].into_iter().flatten() {
            if let Err(error) = offload.restore() {
                warn!(interface = carrier.name, "restoring offloads: {error}");
            }
        }
    }

    /// Tells the program all MACs of this namespace.
    pub(super) fn tell_macs(&mut self) -> Result<(), Stop> {
        let mut macs = link::own_macs(self.links.values());
        macs.extend(self.former_macs.keys().filter(|mac| !mac.is_virtual_router()));
        self.datapath.set_own_macs(&macs).map_err(Stop::failed)
    }

    pub(super) async fn take_change(&mut self, change: Change) -> Result<(), Stop> {
        match change {
            Change::Link(link) => self.take_link(link)?,
            Change::LinkGone { index, moved } => self.link_gone(index, moved)?,
            Change::Address { index, address, prefix_length, present } => {
                self.set_local(address, index, present.then_some(prefix_length));
            }
            Change::Overrun => {
                warn!("the netlink watch lost messages; reading everything anew");
                self.journal.resynchronized("netlink_overrun");
                self.resync().await?;
            }
        }
        Ok(())
    }

    /// Reads links and addresses anew, and takes what differs for changes.
    async fn resync(&mut self) -> Result<(), Stop> {
        let links = self.netlink.links().await.map_err(Stop::failed)?;
        let gone: Vec<u32> = self.links.keys().filter(|index| !links.contains_key(index)).copied().collect();
        for index in gone {
            self.link_gone(index, false)?;
        }
        for link in links.into_values() {
            self.take_link(link)?;
        }
        self.resync_addresses().await
    }

    /// The interface was removed, or moved to another network namespace: what was on it is nowhere now.
    fn link_gone(&mut self, index: u32, moved: bool) -> Result<(), Stop> {
        let reason = if moved { "interface_moved" } else { "interface_gone" };
        // What stands on it is out of reach, also where it is not gone yet.
        let mut affected = self.carried_by(index);
        affected.extend(
            self.interfaces.contains_key(&index).then_some(index).filter(|own| !affected.contains(own)),
        );
        for interface in affected {
            let name = self.interface_name(interface);
            let awaited = self.awaited_of(interface);
            self.journal.link("program_missing", &name, None, Some(reason));
            self.tell(Input::Gone { index: interface });
            self.perform();
            self.interfaces.remove(&interface);
            self.awaited.entry(name).or_default().extend(awaited);
        }
        self.drop_carrier(index);
        let master = self.links.get(&index).and_then(|link| link.master);
        if let Some(link) = self.links.remove(&index) {
            info!(interface = link.name, "the interface has gone");
        }
        self.datapath.set_segment(index, None);
        if let Some(master) = master {
            self.tell_changed_ports(master);
        }
        self.tell_changed_allowed();
        let gone: Vec<Ipv4Addr> =
            self.locals.keys().filter(|(_, at)| *at == index).map(|(address, _)| *address).collect();
        for address in gone {
            self.set_local(address, index, None);
        }
        self.tell_macs()
    }

    /// What is to be claimed again if the interface comes back.
    fn awaited_of(&self, index: u32) -> Vec<Awaited> {
        let here = self.engine.addresses().filter(|(key, _)| key.interface == index);
        here.filter_map(|(key, managed)| {
            // The kernel takes the addresses off before it says that the interface goes.
            let taken_along = managed.state() == State::Lost
                && managed.reason() == Reason::AddressRemoved
                && clock::now().since(managed.since()) < GOING;
            let wanted = match managed.state() {
                State::Watched => Wanted::Watched,
                State::Lost if !taken_along => return None,
                State::Announcing | State::Online | State::Contested | State::Suspended | State::Lost => {
                    let spec = managed.spec()?;
                    let how = self.notes.get(key).map(Notes::how).unwrap_or_default();
                    let How { allow_flux, blackhole_ok, group, .. } = how;
                    let how = How { allow_flux, blackhole_ok, group, ..How::of(spec) };
                    let (prefix_length, lease_until) = (spec.prefix_length, managed.lease_until());
                    Wanted::Online { prefix_length, how, lease_until }
                }
                State::Probing | State::Yielding | State::Refused => return None,
            };
            Some(Awaited { address: key.address.into(), wanted })
        })
        .collect()
    }

    /// Gives up, or watches no more, what is not there to be told so: otherwise it would be back with its interface.
    /// No addresses: all that were to be ours.
    pub(super) fn forget_awaited(&mut self, addresses: &[Ipv4Addr], interface: Option<&str>, verb: Verb) {
        let named = |name: &str| interface.is_none_or(|only| only == name);
        for (_, list) in self.awaited.iter_mut().filter(|(name, _)| named(name)) {
            list.retain_mut(|Awaited { address, wanted }| {
                let meant = addresses.is_empty() || addresses.contains(address);
                match (verb, *wanted) {
                    (Verb::Offline { watch }, Wanted::Online { .. }) if meant => {
                        *wanted = Wanted::Watched;
                        watch
                    }
                    (Verb::Unwatch, Wanted::Watched) => !meant,
                    _ => true,
                }
            });
        }
    }

    fn take_link(&mut self, link: Link) -> Result<(), Stop> {
        let index = link.index;
        let before = self.links.insert(index, link.clone());
        let macs = |link: &Link| (link.mac, link.permanent_mac);
        if let Some(mac) = before.as_ref().and_then(|before| before.mac).filter(|mac| Some(*mac) != link.mac)
        {
            self.former_macs.insert(mac, clock::now().after(FORMER_MAC));
        }
        if before.as_ref().map(macs) != Some(macs(&link)) {
            self.tell_macs()?;
        }
        if link.tag.is_some() {
            self.tell_segment(&link);
        }
        // A bond counts by its members, a member by its bond.
        let masters = [before.as_ref().and_then(|before| before.master), link.master];
        for carrier in masters.into_iter().flatten().chain([index]).collect::<BTreeSet<_>>() {
            self.tell_changed_ports(carrier);
        }
        if link.tag.is_some() || before.as_ref().map(|before| &before.name) != Some(&link.name) {
            self.tell_changed_allowed();
        }
        if let Some(before) = before.as_ref().filter(|_| self.carriers.contains_key(&index)) {
            self.carrier_changed(before, &link);
        }
        if !self.interfaces.contains_key(&index) {
            if self.awaited.contains_key(&link.name) && !self.ending {
                self.returned(&link);
            }
        } else if let Some(before) = before {
            self.interface_changed(&before, &link);
        }
        Ok(())
    }

    /// Tells the datapath where frames of a VLAN device are on the wire.
    fn tell_segment(&mut self, device: &Link) {
        let segment = link::segment(device, &self.links).ok();
        if let Some(Segment { carrier, .. }) = segment
            && let Some(under) = self.carriers.get(&carrier)
            && under.vlan_tags != VlanTags::Visible.name()
            && self.datapath.segment(device.index).carrier != carrier
        {
            warn!(
                interface = under.name,
                "VLAN {} runs over it now, whose tags the program may not see: it may answer in the wrong VLAN; use \
                 --attach tc, or switch the offload off",
                device.name
            );
            self.journal.link("vlan_tags_hidden", &under.name, None, Some(&device.name));
        }
        self.datapath.set_segment(device.index, segment);
    }

    /// Tells the datapath of all VLAN devices.
    pub(super) fn tell_segments(&mut self) {
        for device in self.links.values().filter(|link| link.tag.is_some()).cloned().collect::<Vec<_>>() {
            self.tell_segment(&device);
        }
    }

    /// An interface that carries the program has changed.
    fn carrier_changed(&mut self, before: &Link, link: &Link) {
        let index = link.index;
        if let Some(carrier) = self.carriers.get_mut(&index) {
            carrier.name.clone_from(&link.name);
        }
        if before.active_member != link.active_member {
            let name = link.active_member.map(|index| self.interface_name(index));
            self.journal.link("path_changed", &link.name, None, name.as_deref());
            for interface in self.carried_by(index) {
                self.tell_interface(interface);
            }
        }
        if before.xdp.map(|xdp| xdp.id) != link.xdp.map(|xdp| xdp.id) {
            self.look_at_carrier(index);
        }
    }

    /// An interface that addresses can be on has changed.
    fn interface_changed(&mut self, before: &Link, link: &Link) {
        let index = link.index;
        if before.name != link.name {
            self.journal.link("interface_renamed", &link.name, None, Some(&before.name));
            if let Some(addresses) = self.awaited.remove(&before.name) {
                self.awaited.insert(link.name.clone(), addresses);
            }
        }
        let ours = self.carrier_of(index).is_some_and(|(_, carrier)| carrier.settling_until.is_some());
        if before.carries() != link.carries() {
            let (event, reason) =
                (if link.carries() { "link_up" } else { "link_down" }, ours.then_some("attaching"));
            self.journal.link(event, &link.name, None, reason);
        } else if before.carrier_losses != link.carrier_losses && link.carries() && !ours {
            self.journal.link("link_down", &link.name, None, None);
            self.tell_interface_as(index, false);
            self.journal.link("link_up", &link.name, None, None);
        }
        if before.mac != link.mac && link.mac.is_some() {
            self.journal.link("mac_changed", &link.name, link.mac, None);
        }
        self.tell_interface(index);
    }

    /// A link that is still down when it should have settled is down for another reason.
    pub(super) fn settle_links(&mut self, now: MonoTime) {
        let mut settled = Vec::new();
        for (index, carrier) in &mut self.carriers {
            if carrier.settling_until.is_some_and(|until| until <= now) {
                carrier.settling_until = None;
                settled.push(*index);
            }
        }
        for interface in settled.into_iter().flat_map(|carrier| self.carried_by(carrier)).collect::<Vec<_>>()
        {
            self.tell_interface(interface);
        }
    }

    /// An interface that is to carry the program is there (again).
    fn returned(&mut self, link: &Link) {
        let Some(addresses) = self.awaited.get_mut(&link.name).map(mem::take) else { return };
        let carried = find_link(&self.links, &link.name).map(|link| link.index);
        if let Err(stop) = carried.and_then(|index| self.carry(index)) {
            warn!("{:#}; it is tried again when the interface changes", stop.error);
            self.awaited.insert(link.name.clone(), addresses);
            return;
        }
        self.journal.link("interface_returned", &link.name, None, None);
        let now = clock::now();
        for Awaited { address, wanted } in addresses {
            let key = Self::key(link.index, address);
            let request = self.new_request();
            let Wanted::Online { prefix_length, how, lease_until } = wanted else {
                self.tell(Input::Watch { request, key });
                continue;
            };
            let lease = match lease_until {
                None => None,
                Some(until) if until > now => Some(until.since(now)),
                Some(_) => continue,
            };
            let from_file = self.notes.get(&key).is_some_and(|notes| notes.from_file);
            self.note(key, how, from_file);
            if let Some(name) = how.group
                && let Err(error) = self.group_that_answers(name)
            {
                warn!(address = %key.address, "claimed again without its group: {error}");
            }
            // Its link may need a while; nobody waits for the answer.
            let how = How { wait_ms: cli::MAX_WAIT_MS, adopt: false, ..how };
            let spec = arpwarden_engine::OnlineSpec { lease, ..how.spec(prefix_length) };
            self.tell(Input::Online { request, key, spec });
        }
    }

    /// Whether the daemon, or the machine, has not run for longer than a heartbeat is good for.
    pub(super) fn was_away(&self) -> bool {
        let lasts = Duration::from_nanos(abi::Control::HEARTBEAT_LASTS_NS);
        clock::now().since(self.beat) >= lasts
            || self.slept.abs_diff(clock::slept_ns()) > abi::Control::SLEEP_NS
    }

    /// Looks at the world again before anything is done that was meant for the world before.
    pub(super) async fn look_around(&mut self, why: &str) -> Result<(), Stop> {
        if self.beat != MonoTime(0) {
            warn!("{why}; looking at everything anew");
            self.journal.resynchronized("was_away");
        }
        self.resync().await?;
        self.heartbeat().await
    }

    /// Looks whether everything is in its place, then says that the daemon lives.
    pub(super) async fn heartbeat(&mut self) -> Result<(), Stop> {
        for index in self.carriers.keys().copied().collect::<Vec<_>>() {
            self.look_at_carrier(index);
        }
        self.look_at_falls();
        self.look_at_routes().await;
        let now = clock::now();
        let known = self.former_macs.len();
        self.former_macs.retain(|_, until| *until > now);
        if self.former_macs.len() != known {
            self.tell_macs()?;
        }
        self.beat = now;
        self.slept = clock::slept_ns();
        self.datapath.beat(now.0, self.slept);
        Ok(())
    }

    /// Looks whether the program and the guard are where they were put, and puts back what can be put back without a
    /// risk for the link.
    fn look_at_carrier(&mut self, index: u32) {
        let Some(carrier) = self.carriers.get(&index) else { return };
        let (name, mode, before) = (carrier.name.clone(), carrier.mode, carrier.presence);
        let Some(mut presence) = self.verify(index) else { return };
        let lost =
            [(before.program && !presence.program, "program"), (before.guard && !presence.guard, "guard")];
        for what in lost.into_iter().filter_map(|(lost, what)| lost.then_some(what)) {
            self.journal.link("program_missing", &name, None, Some(what));
        }
        if !presence.program || !presence.guard {
            if presence != before {
                for index in self.carried_by(index) {
                    self.tell(Input::ProgramMissing { index });
                }
                self.perform();
            }
            // A native program may take the link down: that is for `--attach-now` to say.
            if !presence.guard && presence.program {
                if let Err(error) = self.datapath.reattach_guard(index, &name) {
                    warn!(interface = name, "{:#}", anyhow::Error::from(error));
                }
            } else if mode != Mode::Native
                && let Err(error) = self.datapath.attach(index, &name, mode)
            {
                warn!(interface = name, "{:#}", anyhow::Error::from(error));
            }
            presence = self.verify(index).unwrap_or(presence);
            if presence.program && presence.guard {
                self.journal.link("program_restored", &name, None, None);
            }
        }
        if let Some(carrier) = self.carriers.get_mut(&index) {
            carrier.presence = presence;
        }
    }

    /// Looks for addresses that the program has given up: the ring may have had no room for the event.
    fn look_at_falls(&mut self) {
        let fallen: Vec<AddressKey> = self
            .engine
            .addresses()
            .filter(|(key, managed)| managed.state().may_answer() && self.datapath.has_fallen(key))
            .map(|(key, _)| *key)
            .collect();
        for key in fallen {
            let mac = self.datapath.owner(&key).unwrap_or(MacAddr::ZERO);
            let claimant = Claimant { mac, ethernet_source: mac };
            let sighting = Sighting {
                kind: SightingKind::Claim,
                claimant,
                form: Form::Announcement,
                operation: REQUEST,
                count: 1,
                repeat: false,
                owner_changed: true,
                defended: false,
                fell: true,
                allowed: false,
                at: clock::now(),
            };
            self.tell(Input::Seen { key, sighting });
            self.perform();
        }
    }

    fn verify(&self, index: u32) -> Option<Presence> {
        match self.datapath.verify(index) {
            Ok(presence) => Some(presence),
            Err(error) => {
                warn!(
                    interface = self.interface_name(index),
                    "looking for the program and the guard: {error}"
                );
                None
            }
        }
    }

    /// Whether answering for an address that is not configured leads anywhere: to a route that says local, with a kernel
    /// that does not answer by itself for what the route covers.
    pub(super) async fn leads_nowhere(&self, key: &AddressKey) -> Option<String> {
        let address: Ipv4Addr = key.address.into();
        let name = self.interface_name(key.interface);
        match link::arp_ignore(&name) {
            Ok(0) => {
                return Some(format!(
                    "arp_ignore is 0 on {name}, so its kernel answers for all that a local route covers; set it with \
                     'sysctl -w net.ipv4.conf.{name}.arp_ignore=1'"
                ));
            }
            Ok(_) => {}
            Err(error) => return Some(format!("reading arp_ignore of {name}: {error}")),
        }
        match self.netlink.route_says_local(address).await {
            Ok(Some(_)) => None,
            Ok(None) => Some(format!(
                "no route says that {address} is local, so what is sent to it is lost; add one with 'ip route add \
                 local {address} dev lo'"
            )),
            Err(error) => Some(format!("asking for the route to {address}: {error}")),
        }
    }

    /// Gives up what is answered for without being configured, and leads nowhere any more. Routes are asked for again only
    /// when some have changed: there may be one for each of thousands of addresses.
    async fn look_at_routes(&mut self) {
        let unregistered: Vec<AddressKey> = self
            .engine
            .addresses()
            .filter(|(key, managed)| {
                managed.spec().is_some_and(|spec| spec.register == Register::None)
                    && managed.state().may_answer()
                    && !self.notes.get(key).is_some_and(|notes| notes.how().blackhole_ok)
            })
            .map(|(key, _)| *key)
            .collect();
        let before = mem::take(&mut self.routed);
        if unregistered.is_empty() {
            self.route_changes = None;
            return;
        }
        let changed = match &mut self.route_changes {
            Some(changes) => changes.any(),
            None => {
                // Before they are looked at, so that no change is missed in between.
                match RouteChanges::open() {
                    Ok(changes) => self.route_changes = Some(changes),
                    Err(error) => {
                        warn!("listening for changes of routes, which are asked for each time: {error}")
                    }
                }
                true
            }
        };
        let interfaces: BTreeSet<u32> = unregistered.iter().map(|key| key.interface).collect();
        let answering: BTreeSet<u32> = interfaces
            .into_iter()
            .filter(|index| !matches!(link::arp_ignore(&self.interface_name(*index)), Ok(1..)))
            .collect();
        for key in unregistered {
            let doubtful = changed || answering.contains(&key.interface) || !before.contains(&key);
            if doubtful && let Some(why) = self.leads_nowhere(&key).await {
                warn!(address = %key.address, "given up, since it is answered but not reached: {why}");
                let request = self.new_request();
                self.tell(Input::Offline { request, key, watch: true });
                self.perform();
            } else {
                self.routed.insert(key);
            }
        }
    }

    /// Notes that an address is on an interface with this prefix length, or no more.
    fn set_local(&mut self, address: Ipv4Addr, index: u32, prefix_length: Option<u8>) {
        let before = self.is_local(address);
        let former = match prefix_length {
            Some(length) => self.locals.insert((address, index), length),
            None => self.locals.remove(&(address, index)),
        };
        if former != prefix_length {
            let subnet = |length| (index, length, netlink::network(address, length));
            if let Some(length) = former
                && let Entry::Occupied(mut count) = self.subnets.entry(subnet(length))
            {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
            if let Some(length) = prefix_length {
                *self.subnets.entry(subnet(length)).or_default() += 1;
            }
        }
        let local = self.is_local(address);
        if local != before && !self.observe {
            for key in self.keys_of(address, None) {
                self.tell(Input::Local { key, local });
            }
        }
    }

    /// Whether an address is configured in this namespace.
    pub(super) fn is_local(&self, address: Ipv4Addr) -> bool {
        self.places_of(address).next().is_some()
    }

    /// The interfaces that an address is on, with its prefix length there.
    pub(super) fn places_of(&self, address: Ipv4Addr) -> impl Iterator<Item = (u32, u8)> {
        let places = self.locals.range((address, 0)..=(address, u32::MAX));
        places.map(|((_, index), length)| (*index, *length))
    }

    pub(super) async fn resync_addresses(&mut self) -> Result<(), Stop> {
        let now = self.netlink.addresses().await.map_err(Stop::failed)?;
        let there: BTreeSet<(Ipv4Addr, u32)> = now.iter().map(|local| (local.address, local.index)).collect();
        let gone: Vec<(Ipv4Addr, u32)> =
            self.locals.keys().copied().filter(|place| !there.contains(place)).collect();
        for (address, index) in gone {
            self.set_local(address, index, None);
        }
        for local in now {
            self.set_local(local.address, local.index, Some(local.prefix_length));
        }
        Ok(())
    }

    /// The managed keys of an address, on one interface or on all.
    pub(super) fn keys_of(&self, address: Ipv4Addr, index: Option<u32>) -> Vec<AddressKey> {
        // Few interfaces carry the program, so this is a few look-ups, however many addresses there are.
        let indices: BTreeSet<u32> = match index {
            Some(index) => BTreeSet::from([index]),
            None => self.interfaces.keys().copied().collect(),
        };
        indices
            .into_iter()
            .map(|interface| AddressKey { interface, vlan: Vlan::UNTAGGED, address: address.into() })
            .filter(|key| self.engine.get(key).is_some())
            .collect()
    }
}
