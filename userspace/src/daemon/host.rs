//! Interfaces and addresses of this host: where the program is, which MACs are ours, what is configured.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::anyhow;
use arpwarden_common::{
    abi::{AddressKey, Port},
    net::{MacAddr, Vlan},
};
use arpwarden_engine::{Input, Interface, input::Pace};
use tracing::{info, warn};

use super::{Carrier, Daemon, Stop};
use crate::{
    cli,
    io::{
        bpf::Mode,
        link::{self, Link},
        netlink::Change,
    },
};

impl Daemon {
    /// Puts the program on an interface.
    pub(super) fn carry(&mut self, index: u32) -> Result<(), Stop> {
        if self.carriers.contains_key(&index) {
            return Ok(());
        }
        let Some(link) = self.links.get(&index) else {
            return Err(Stop::failed(anyhow!("interface #{index} has gone")));
        };
        let name = link.name.clone();
        let (mode, price) = match self.attach {
            cli::Attach::Auto => link::auto_mode(link, link::driver(link).as_deref()),
            cli::Attach::Native if link.kind.as_deref() == Some("veth") => (
                Mode::Native,
                Some("native on a veth: its answers are lost unless the peer carries an XDP program too"),
            ),
            cli::Attach::Native => (Mode::Native, None),
            cli::Attach::Generic => (Mode::Generic, None),
        };
        let Some(mac) = link.mac else {
            return Err(Stop::failed(anyhow!("{name} has no MAC")));
        };
        let mut vlan_tags = link::vlan_tags(link, &self.links);
        let mut offload = None;
        if let Err(refusal) = link::tags_permit(link, &self.links, &vlan_tags) {
            match self.vlan_offload {
                None => return Err(Stop::failed(refusal)),
                Some(cli::VlanOffload::Ignore) => {
                    warn!(interface = name, "attached all the same, as told: {refusal}")
                }
                Some(cli::VlanOffload::Disable) => {
                    offload = Some(link::disable_vlan_offload(link, &self.links).map_err(Stop::failed)?);
                    vlan_tags = link::vlan_tags(link, &self.links);
                }
            }
        }
        // From here on what is done is undone by `drop_carrier`.
        self.carriers
            .insert(index, Carrier { name: name.clone(), mode, vlan_tags: vlan_tags.name(), offload });
        let port = Port::accepting(mac, index);
        let attached = self.datapath.set_port(index, port).map_err(Stop::failed);
        let attached = attached.and_then(|()| self.datapath.attach(index, &name, mode).map_err(Stop::failed));
        if let Err(stop) = attached {
            self.drop_carrier(index);
            return Err(stop);
        }
        if let Some(price) = price {
            warn!(interface = name, mode = mode.name(), "{price}");
        }
        info!(interface = name, mode = mode.name(), vlan_tags = vlan_tags.name(), "attached");
        self.tell(Input::Interface { index, interface: Interface { mac, pace: Pace::Plain, moves: None } });
        Ok(())
    }

    pub(super) fn drop_carrier(&mut self, index: u32) {
        let Some(carrier) = self.carriers.remove(&index) else { return };
        if let Err(error) = self.datapath.detach(index) {
            warn!(interface = carrier.name, "detaching the program: {error}");
        }
        self.remove_port(index);
        if let Some(offload) = carrier.offload
            && let Err(error) = offload.restore()
        {
            warn!(interface = carrier.name, "restoring the VLAN offload: {error}");
        }
    }

    fn remove_port(&mut self, index: u32) {
        if let Err(error) = self.datapath.remove_port(index) {
            warn!("taking port #{index} out of the program's maps: {error}");
        }
    }

    /// Tells the program all MACs of this namespace.
    pub(super) fn tell_macs(&mut self) -> Result<(), Stop> {
        // A virtual router's MAC is ours only while we answer with it, and we answer with interface MACs.
        let macs: BTreeSet<MacAddr> = self
            .links
            .values()
            .flat_map(|link| [link.mac, link.permanent_mac])
            .flatten()
            .filter(|mac| !mac.is_zero() && !mac.is_virtual_router())
            .collect();
        self.datapath.set_own_macs(&macs).map_err(Stop::failed)
    }

    pub(super) async fn take_change(&mut self, change: Change) -> Result<(), Stop> {
        match change {
            Change::Link(link) => self.take_link(link)?,
            Change::LinkGone { index, .. } => {
                // What was on it is nowhere now: nothing is left to be answered or announced.
                let keys: Vec<AddressKey> = self
                    .engine
                    .addresses()
                    .map(|(key, _)| *key)
                    .filter(|key| key.interface == index)
                    .collect();
                for key in keys {
                    let request = self.new_request();
                    self.tell(Input::Offline { request, key, watch: false });
                }
                self.perform();
                if self.carriers.contains_key(&index) {
                    let name = self.interface_name(index);
                    self.journal.link("program_missing", &name, None);
                    self.drop_carrier(index);
                }
                if let Some(link) = self.links.remove(&index) {
                    info!(interface = link.name, "the interface has gone");
                }
                let gone: Vec<Ipv4Addr> = self.locals.keys().copied().collect();
                for address in gone {
                    self.set_local(address, index, None);
                }
                self.tell_macs()?;
            }
            Change::Address { index, address, prefix_length, present } => {
                self.set_local(address, index, present.then_some(prefix_length));
            }
            Change::Overrun => {
                warn!("the netlink watch lost messages; reading everything anew");
                let links = self.netlink.links().await.map_err(Stop::failed)?;
                let gone: Vec<u32> =
                    self.links.keys().filter(|index| !links.contains_key(index)).copied().collect();
                for index in gone {
                    Box::pin(self.take_change(Change::LinkGone { index, moved: false })).await?;
                }
                for link in links.into_values() {
                    self.take_link(link)?;
                }
                self.resync_addresses().await?;
            }
        }
        Ok(())
    }

    fn take_link(&mut self, link: Link) -> Result<(), Stop> {
        let index = link.index;
        let before = self.links.insert(index, link.clone());
        if let Some(carrier) = self.carriers.get_mut(&index) {
            carrier.name.clone_from(&link.name);
            if let Some(before) = &before
                && before.running != link.running
            {
                self.journal.link(if link.running { "link_up" } else { "link_down" }, &link.name, None);
            }
            let changed = before.as_ref().and_then(|before| before.mac) != link.mac;
            if let Some(mac) = link.mac
                && changed
            {
                self.journal.link("mac_changed", &link.name, Some(mac));
                self.datapath.set_port(index, Port::accepting(mac, index)).map_err(Stop::failed)?;
                self.tell(Input::Interface {
                    index,
                    interface: Interface { mac, pace: Pace::Plain, moves: None },
                });
            }
        }
        let macs = |link: &Link| (link.mac, link.permanent_mac);
        if before.as_ref().map(macs) != Some(macs(&link)) {
            self.tell_macs()?;
        }
        Ok(())
    }

    /// Notes that an address is on an interface with this prefix length, or no more.
    fn set_local(&mut self, address: Ipv4Addr, index: u32, prefix_length: Option<u8>) {
        let before = self.locals.contains_key(&address);
        let places = self.locals.entry(address).or_default();
        match prefix_length {
            Some(length) => _ = places.insert(index, length),
            None => _ = places.remove(&index),
        }
        let local = !places.is_empty();
        if !local {
            self.locals.remove(&address);
        }
        if local != before {
            for key in self.keys_of(address, None) {
                self.tell(Input::Local { key, local });
            }
        }
    }

    pub(super) async fn resync_addresses(&mut self) -> Result<(), Stop> {
        let now = self.netlink.addresses().await.map_err(Stop::failed)?;
        let there: BTreeSet<(Ipv4Addr, u32)> = now.iter().map(|local| (local.address, local.index)).collect();
        let gone: Vec<(Ipv4Addr, u32)> = self
            .locals
            .iter()
            .flat_map(|(address, places)| places.keys().map(|index| (*address, *index)))
            .filter(|place| !there.contains(place))
            .collect();
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
            None => self.carriers.keys().copied().collect(),
        };
        indices
            .into_iter()
            .map(|interface| AddressKey { interface, vlan: Vlan::UNTAGGED, address: address.into() })
            .filter(|key| self.engine.get(key).is_some())
            .collect()
    }
}
