//! The start: afresh, or from what an earlier run has left in the pinned maps, on the interfaces and in the state
//! file. Until the end of it an earlier run's addresses are answered as that run has left them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context as _, anyhow};
use arpwarden_common::{
    abi::AddressKey,
    net::Vlan,
    state::{State, StateWord},
};
use arpwarden_engine::{
    Engine, Input, MonoTime,
    input::{Claimant, Kept, Owner},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

use super::{
    COMMANDS, Carrier, Daemon, Ended, Signals, Stop, find_link,
    host::{Awaited, Wanted},
    registrar, remove_leftovers,
    settings::Settings,
};
use crate::{
    alike::Alike,
    cli,
    events::Journal,
    exit::Exit,
    instance::{Instance, Lock},
    io::{
        arp_socket::ArpSocket,
        bpf::{Datapath, Found, KeptAddress, Leftover, LinkState, Mode, Pins, Presence},
        clock, control,
        dice::KernelDice,
        link, memory,
        netlink::{ADDRESS_PROTOCOL, Netlink},
    },
    state_file::{Left, Registered},
};

pub(super) async fn serve(
    instance: &Instance,
    settings: Settings,
    log_level: u8,
    lock: &Lock,
) -> Result<Ended, Stop> {
    // Caught from here on: whatever is done below is undone in order.
    let signals = Signals {
        terminate: signal(SignalKind::terminate()).context("watching for SIGTERM")?,
        interrupt: signal(SignalKind::interrupt()).context("watching for SIGINT")?,
        hangup: signal(SignalKind::hangup()).context("watching for SIGHUP")?,
    };
    // Subscribed before the first dump, so that no change falls between the two.
    let (netlink, changes) = Netlink::open().context("opening a netlink socket")?;
    let pins = Pins::new(instance.name());
    // Before the state file, which is written anew for the namespace where it is opened.
    pins.are_here().map_err(|error| Stop::leaving(error.into()))?;
    let (state, left) = lock.state_file().map_err(Stop::leaving)?;
    // Where an earlier run has left something, a start that fails leaves it as it is.
    let kept = |stop: Stop| Stop { leaves: stop.leaves || pins.exists() || !left.is_empty(), ..stop };
    let group = settings.socket_group().map(group_id).transpose().map_err(kept)?;
    if !pins.exists() {
        // Nothing keeps the kernel silent about what is left on the interfaces.
        remove_leftovers(&netlink, &state, left.registered()).await?;
    } else if settings.observe() {
        let error = anyhow!(
            "an earlier run of instance '{0}' has left addresses that are being answered, and --observe answers \
             none; run 'arpwarden --instance {0} unload' first, or choose another --instance",
            instance.name()
        );
        return Err(kept(Stop::failed(error)));
    }
    let links = netlink.links().await.map_err(|error| kept(Stop::failed(error)))?;
    // Refused interfaces cost nothing: nothing is loaded yet.
    let mut interfaces = Vec::new();
    let names = settings.interfaces();
    for name in &names {
        interfaces.push(find_link(&links, name).map_err(kept)?.index);
    }
    let (mut datapath, found) = Datapath::open(&pins, log_level, settings.capacity()).map_err(|error| {
        kept(Stop::new(if error.is_permission() { Exit::NotPermitted } else { Exit::Failed }, error.into()))
    })?;
    if let Some(warning) = pins.vanish() {
        warn!("{warning}");
    }
    if datapath.capacity() != settings.capacity() {
        warn!(
            capacity = datapath.capacity(),
            asked = settings.capacity(),
            "the maps of the earlier run keep their capacity; 'arpwarden --instance {} unload' and run again for another",
            instance.name()
        );
    }
    #[cfg_attr(not(feature = "omit"), expect(unused_mut, reason = "only a test's build skips events"))]
    let mut events = datapath.take_events();
    #[cfg(feature = "omit")]
    if crate::omit::omission() == Some(crate::omit::Omission::Adoption) {
        // What was told meanwhile would give up what has fallen.
        while events.next().is_some() {}
    }
    if let Some(mut logger) = datapath.take_logger() {
        tokio::spawn(async move {
            loop {
                logger.flush_when_readable().await;
            }
        });
    }
    let (orders, orders_to_do) = mpsc::unbounded_channel();
    let (done, outcomes) = mpsc::unbounded_channel();
    registrar::start(state.clone(), orders_to_do, done).map_err(|error| kept(error.into()))?;
    let fresh = matches!(found, Found::Nothing);
    let mut daemon = Daemon {
        instance: instance.clone(),
        observe: settings.observe(),
        // The file is applied as the difference to what is there, when that is known.
        settings,
        joint: BTreeMap::new(),
        changing: None,
        engine: Engine::new(),
        dice: KernelDice::default(),
        datapath,
        socket: ArpSocket::open().context("opening a packet socket").map_err(|error| kept(error.into()))?,
        leaving: Vec::new(),
        netlink,
        journal: Journal::default(),
        state,
        notes: BTreeMap::new(),
        ways: Alike::default(),
        told: BTreeMap::new(),
        groups: BTreeMap::new(),
        links,
        locals: BTreeMap::new(),
        subnets: BTreeMap::new(),
        routed: BTreeSet::new(),
        route_changes: None,
        carriers: BTreeMap::new(),
        interfaces: BTreeMap::new(),
        awaited: names.into_iter().map(|name| (name, Vec::new())).collect(),
        former_macs: BTreeMap::new(),
        beat: MonoTime(0),
        slept: 0,
        orders,
        names: Alike::default(),
        pending: BTreeMap::new(),
        next_request: 0,
        ranks: 0,
        unloading: Vec::new(),
        ending: false,
        keeping: false,
    };
    let (commands, waiting) = mpsc::channel(COMMANDS);
    if let Err(stop) = daemon.begin(found, &left, interfaces, group, commands).await {
        if !fresh {
            return Err(Stop { leaves: true, ..stop });
        }
        for index in daemon.carriers.keys().copied().collect::<Vec<_>>() {
            daemon.drop_carrier(index);
        }
        if let Err(error) = daemon.datapath.remove_all() {
            warn!("{:#}", anyhow::Error::from(error));
        }
        return Err(stop);
    }
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!("telling the service manager that the daemon is ready failed: {error}");
    }
    info!(instance = instance.name(), socket = %instance.socket().display(), "ready");
    // What it says is known to the daemon by now, and what loading has taken is not needed any more.
    drop(left);
    memory::give_back();
    daemon.apply_at_start();
    daemon.run(events, changes, outcomes, waiting, signals).await
}

pub(super) fn group_id(name: &str) -> Result<nix::unistd::Gid, Stop> {
    match nix::unistd::Group::from_name(name).context("reading the group database")? {
        Some(group) => Ok(group.gid),
        None => Err(Stop::new(Exit::Usage, anyhow!("socket group: there is no group '{name}'"))),
    }
}

impl Daemon {
    /// From loaded to listening.
    async fn begin(
        &mut self,
        found: Found,
        left: &Left,
        interfaces: Vec<u32>,
        group: Option<nix::unistd::Gid>,
        commands: mpsc::Sender<control::Command>,
    ) -> Result<(), Stop> {
        self.resync_addresses().await?;
        self.tell_macs()?;
        self.tell_segments();
        self.tell_allowed()?;
        if let Found::Adopted(leftover) = found {
            self.adopt(leftover, left).await?;
        }
        for index in interfaces {
            self.carry(index)?;
        }
        self.perform();
        let control = control::bind(&self.instance.unready_socket(), group).with_context(|| {
            format!("making the control socket {}", self.instance.unready_socket().display())
        })?;
        tokio::spawn(control::serve(control, commands));
        control::publish(&self.instance.unready_socket(), &self.instance.socket())
            .with_context(|| format!("publishing the control socket {}", self.instance.socket().display()))?;
        Ok(())
    }

    /// Goes on where an earlier run has stopped.
    async fn adopt(&mut self, leftover: Leftover, left: &Left) -> Result<(), Stop> {
        let Leftover { addresses, links, .. } = leftover;
        for kept in links {
            // One that has gone has a name only where we have written it down.
            let name = left
                .registered()
                .find(|entry| entry.index == kept.index && !self.links.contains_key(&kept.index))
                .map_or_else(|| self.interface_name(kept.index), |entry| (*entry.interface).to_owned());
            match (kept.state, kept.mode) {
                (LinkState::Live, Some(mode)) if self.links.contains_key(&kept.index) => {
                    let asked = match self.settings.attach(&[&name]) {
                        cli::Attach::Auto => mode,
                        cli::Attach::Native => Mode::Native,
                        cli::Attach::Generic => Mode::Generic,
                        cli::Attach::Tc => Mode::Tc,
                    };
                    if asked != mode {
                        warn!(
                            interface = name,
                            mode = mode.name(),
                            "what an earlier run has attached there goes on in its mode, not in '{}', which --attach \
                             asks for: 'arpwarden unload' first, if that is meant",
                            asked.name()
                        );
                    }
                    let carrier = Carrier {
                        vlan_tags: link::vlan_tags(mode, &self.links[&kept.index], &self.links).name(),
                        mode,
                        presence: Presence { program: true, guard: kept.guard },
                        ..Carrier::new(name)
                    };
                    self.carriers.insert(kept.index, carrier);
                    self.tell_ports(kept.index)?;
                }
                (LinkState::Live, _) => {}
                (LinkState::Dead(reason), _) => {
                    self.journal.link("program_missing", &name, None, Some(reason.name()));
                }
            }
        }
        // Addresses on an interface that has lost the program get it back, as at any start.
        let key_of = |daemon: &Self, KeptAddress { key, .. }: &KeptAddress| {
            daemon.datapath.key_of(key.interface, key.vlan, key.address)
        };
        let addresses: Vec<KeptAddress> =
            addresses.into_iter().map(|kept| KeptAddress { key: key_of(self, &kept), ..kept }).collect();
        let wanted: BTreeSet<u32> =
            addresses.iter().filter(|kept| has_interface(&kept.key)).map(|kept| kept.key.interface).collect();
        for index in wanted {
            if self.links.contains_key(&index)
                && let Err(stop) = self.carry(index)
            {
                warn!("{:#}; what an earlier run has left there is taken off", stop.error);
            }
        }
        // One without addresses is there for itself.
        for index in self.carriers.keys().copied().collect::<Vec<_>>() {
            if !self.interfaces.values().any(|carrier| *carrier == index) {
                self.carry(index)?;
            }
        }
        let marked = self.marked(left).await?;
        // Numbers that are in use first, so that none is given out again.
        for kept in addresses.iter().filter(|kept| kept.group != 0) {
            let name = left.claimed(&kept.key).and_then(|claimed| claimed.how.group);
            if let Some(name) = name.or_else(|| format!("unnamed-{}", kept.group).parse().ok()) {
                self.groups.insert(name, kept.group);
            }
        }
        for kept in addresses {
            let (key, number) = (kept.key, kept.group);
            if has_interface(&key) && self.interfaces.contains_key(&key.interface) {
                if let Some(claimed) = left.claimed(&key) {
                    self.note(key, claimed.how, claimed.from_file);
                    if let Some(name) = claimed.how.group.filter(|_| number == 0) {
                        match self.group_that_answers(name) {
                            Ok(_) => self.join_group(&key),
                            Err(error) => warn!(address = %key.address, "not in its group: {error}"),
                        }
                    }
                }
                // All of the group were being given up, or claimed; or some were to join others. Who belongs to such a claim
                // is not known any more, so none of it goes on alone: the file says what is claimed anew.
                let joins = number != 0
                    && kept.word.is(State::Probing)
                    && left.claimed(&key).is_some_and(|claimed| claimed.from_file);
                let marked = marked.get(&(key.interface, key.address.into())).copied();
                let kept = self.kept(&kept, left, marked);
                #[cfg(feature = "omit")]
                let kept = self.taken_for_ours(key, kept);
                self.tell(Input::Adopt { key, kept });
                if joins || self.is_silenced(number) {
                    let request = self.new_request();
                    self.tell(Input::Offline { request, key, watch: false });
                }
            } else {
                self.abandon(&kept, left).await?;
            }
        }
        // What was registered but is in no map was being given up, or not yet made known, when the run ended.
        let known = |entry: &Registered| self.engine.get(&Self::key(entry.index, entry.address)).is_some();
        let unknown: Vec<Registered> = left.registered().filter(|entry| !known(entry)).collect();
        remove_leftovers(&self.netlink, &self.state, unknown).await?;
        for key in self.state.claims() {
            if self.engine.get(&key).is_none() {
                self.remember(key, None);
            }
        }
        self.resync_addresses().await
    }

    /// Addresses that are on an interface with our mark, and their prefix lengths: what the state file would have told, had
    /// it not been lost.
    async fn marked(&self, left: &Left) -> Result<BTreeMap<(u32, Ipv4Addr), u8>, Stop> {
        if !left.is_empty() {
            return Ok(BTreeMap::new());
        }
        let there = self.netlink.addresses().await.map_err(Stop::failed)?;
        let ours = there.into_iter().filter(|local| local.protocol == Some(ADDRESS_PROTOCOL));
        Ok(ours.map(|local| ((local.index, local.address), local.prefix_length)).collect())
    }

    fn kept(&self, kept: &KeptAddress, left: &Left, marked: Option<u8>) -> Kept {
        let KeptAddress { key, word, lease_until_ns, fallen, defended_ns, claims, untold, .. } = kept;
        let at = |ns: u64| Some(MonoTime(ns)).filter(|at| at.0 != 0);
        let owner = claims.owner_seen.at(clock::now().0).map(|seen_ns| Owner {
            claimant: Claimant { mac: claims.owner, ethernet_source: claims.owner },
            seen: MonoTime(seen_ns),
        });
        Kept {
            word: *word,
            spec: left.claimed(key).map(|claimed| claimed.how.spec(claimed.prefix_length)),
            registered: left.prefix_length(key).or(marked),
            local: self.is_local(key.address.into()),
            lease_until: at(*lease_until_ns),
            fallen: *fallen,
            defences: defended_ns.iter().filter_map(|ns| at(*ns)).collect(),
            owner,
            untold: *untold,
        }
    }

    /// What is kept, as if nothing had become of it.
    #[cfg(feature = "omit")]
    fn taken_for_ours(&mut self, key: AddressKey, kept: Kept) -> Kept {
        if crate::omit::omission() != Some(crate::omit::Omission::Adoption) {
            return kept;
        }
        // A generation that has not fallen.
        let generation = kept.word.generation().wrapping_add(1);
        let word = StateWord::new(kept.word.mac(), State::Online, 0, generation);
        if let Err(error) = self.datapath.store_lease(&key, 0).and_then(|()| self.datapath.store(&key, word))
        {
            warn!("{error}");
        }
        let spec = kept.spec.map(|spec| arpwarden_engine::OnlineSpec { lease: None, ..spec });
        Kept { word, spec, lease_until: None, fallen: false, ..kept }
    }

    /// Gives up what an earlier run has left where the program is not: first the words, then the interface. If its
    /// interface was only made anew, it is claimed there.
    async fn abandon(&mut self, kept: &KeptAddress, left: &Left) -> Result<(), Stop> {
        let key = kept.key;
        let has_gone = |index: &u32| !self.links.contains_key(index);
        let entries = left.registered().filter(|entry| {
            let here =
                if has_interface(&key) { entry.index == key.interface } else { has_gone(&entry.index) };
            here && entry.address == Ipv4Addr::from(key.address)
        });
        let entries: Vec<Registered> = entries.collect();
        if let Some(entry) = entries.first()
            && has_gone(&entry.index)
            && kept.word.may_answer()
            && let Some(claimed) = left.claimed(&Self::key(entry.index, entry.address))
        {
            let lease_until = Some(MonoTime(kept.lease_until_ns)).filter(|until| until.0 != 0);
            let (prefix_length, how) = (claimed.prefix_length, claimed.how);
            let wanted = Wanted::Online { prefix_length, how, lease_until };
            let awaited = Awaited { address: entry.address, wanted };
            self.awaited.entry((*entry.interface).to_owned()).or_default().push(awaited);
        }
        if self.datapath.store(&key, StateWord::VACANT).is_err() {
            return Ok(()); // the map has lost it already
        }
        remove_leftovers(&self.netlink, &self.state, entries).await?;
        if let Err(error) = self.datapath.remove(&key) {
            warn!(address = %key.address, "taking the address out of the program's maps: {error}");
        }
        Ok(())
    }

    /// An address's key on an interface, untagged.
    pub(super) const fn key(index: u32, address: Ipv4Addr) -> AddressKey {
        AddressKey {
            interface: index,
            vlan: Vlan::UNTAGGED,
            address: arpwarden_common::net::Ipv4::new(address.octets()),
        }
    }
}

/// Whether the interface of a key is known: of a VLAN device that has gone only the tags are left.
fn has_interface(key: &AddressKey) -> bool {
    key.vlan == Vlan::UNTAGGED
}
