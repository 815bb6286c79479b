//! The one loop: wait for the ring buffer, the timer, netlink, clients and signals; feed the engine; carry out
//! what it wants.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use arpwarden_common::{
    abi::{self, AddressKey, Counter, Port},
    net::{MacAddr, Vlan},
    state::State,
    wire::arp::Form,
};
use arpwarden_engine::{
    Action, Answer, Engine, Input, Interface, Reason, RequestId,
    input::{Claimant, Pace, Sighting, SightingKind},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{debug, error, info, warn};

use crate::{
    cli,
    events::{Journal, vlan_ids},
    exit::Exit,
    instance::{self, Instance, Lock},
    io::{
        arp_socket::ArpSocket,
        bpf::{Datapath, EventReader, Mode},
        clock::{self, Timer},
        control::{self, Command, Reply},
        dice::KernelDice,
        link::{self, Link, VlanTags},
        netlink::{Change, Changes, Netlink},
    },
    protocol::{AddressStatus, AddressStatusCounters, InterfaceStatus, Request, Response, Status},
};

/// Why the daemon did not start or did not end well.
#[derive(Debug)]
pub struct Stop {
    /// The exit code.
    pub exit: Exit,
    /// In words, with causes.
    pub error: anyhow::Error,
    /// Addresses are still on interfaces: the journal must stay for the next start.
    left: bool,
}

impl Stop {
    /// A stop with this exit code.
    pub fn new(exit: Exit, error: anyhow::Error) -> Self {
        Self { exit, error, left: false }
    }

    /// A failure; exit code 5 if a permission is behind it, else 1.
    pub fn failed(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let denied = error.chain().any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
        });
        Self::new(if denied { Exit::NotPermitted } else { Exit::Failed }, error)
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(error)
    }
}

/// Ring-buffer items taken before the loop looks at anything else: 64 µs of work at 1 µs each.
const EVENTS_AT_ONCE: usize = 64;
/// Commands that wait for the loop; a client waits beyond it.
const COMMANDS: usize = 16;
/// How long an orderly end waits for the kernel to take addresses off, in seconds.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// A registration to be done, in order.
#[derive(Debug)]
enum Order {
    Register(AddressKey, u8),
    Deregister(AddressKey, u8),
}

/// How it went.
#[derive(Debug)]
struct Done {
    order: Order,
    result: Result<(), String>,
}

/// The client of a request. The last one to let go of it says the end of the request.
struct Client {
    replies: mpsc::Sender<Reply>,
    end: RefCell<(Exit, Option<String>)>,
}

impl Client {
    fn new(replies: mpsc::Sender<Reply>) -> Rc<Self> {
        Rc::new(Self { replies, end: RefCell::new((Exit::Done, None)) })
    }

    fn say(&self, reply: Reply) {
        // The channel has room for all answers of its request; a client that is gone wants none.
        let _ = self.replies.try_send(reply);
    }

    fn result(&self, address: Ipv4Addr, interface: Option<&str>, (exit, message): (Exit, String)) {
        let interface = interface.map(str::to_owned);
        self.say(Reply::Line(Response::Result { address, interface, exit, message }));
    }

    fn end_with(&self, exit: Exit, message: String) {
        self.end.replace((exit, Some(message)));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let (exit, message) = self.end.replace((Exit::Done, None));
        self.say(Reply::Line(Response::End { exit, message }));
    }
}

/// A command that waits for the engine.
struct Pending {
    client: Rc<Client>,
    key: AddressKey,
    verb: Verb,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Online,
    Offline { watch: bool },
    Watch,
    Unwatch,
    Announce,
}

/// An interface that carries the program.
struct Carrier {
    name: String,
    mode: Mode,
    vlan_tags: &'static str,
}

struct Daemon {
    instance: Instance,
    attach: cli::Attach,
    vlan_offload: Option<cli::VlanOffload>,
    engine: Engine,
    dice: KernelDice,
    datapath: Datapath,
    socket: ArpSocket,
    netlink: Netlink,
    journal: Journal,
    links: BTreeMap<u32, Link>,
    /// Where each address of this namespace is configured.
    locals: BTreeMap<Ipv4Addr, BTreeMap<u32, u8>>,
    carriers: BTreeMap<u32, Carrier>,
    orders: mpsc::UnboundedSender<(Order, String)>,
    pending: BTreeMap<RequestId, Pending>,
    next_request: u64,
    /// Who is told when everything is released.
    unloading: Vec<Rc<Client>>,
    ending: bool,
}

/// Starts the daemon and runs it until it is told to end.
///
/// # Errors
/// What failed at the start; or, at the end, what is left on the interfaces.
pub async fn run(instance: Instance, arguments: &cli::Run, log_level: u8) -> Result<(), Stop> {
    let Some(lock) = instance.lock()? else {
        return Err(Stop::failed(anyhow!(
            "another daemon runs as instance '{}' ({}); end it with 'arpwarden --instance {} unload', or choose another --instance",
            instance.name(),
            instance.socket().display(),
            instance.name(),
        )));
    };
    let result = serve(&instance, arguments, log_level, &lock).await;
    if !result.as_ref().is_err_and(|stop| stop.left) {
        lock.remove()?;
    }
    result
}

/// Takes off the interfaces what a run that did not end in order has left there, and says so.
///
/// # Errors
/// What could not be taken off.
pub async fn remove_leftovers(
    netlink: &Netlink,
    journal: &mut instance::Journal,
    left: Vec<instance::Entry>,
) -> Result<usize, Stop> {
    let mut removed = 0;
    let present = netlink.addresses().await.map_err(|error| Stop { left: true, ..Stop::failed(error) })?;
    for entry in left {
        let is_there = present.iter().any(|local| {
            local.index == entry.index
                && local.address == entry.address
                && local.prefix_length == entry.prefix_length
        });
        if is_there {
            netlink.delete_address(entry.index, entry.address, entry.prefix_length).await.map_err(
                |error| {
                    let error = anyhow::Error::from(error).context(format!(
                        "taking {}/{} off {}, where a run that did not end in order has left it",
                        entry.address, entry.prefix_length, entry.interface
                    ));
                    Stop { left: true, ..Stop::failed(error) }
                },
            )?;
            warn!(
                address = %entry.address,
                interface = entry.interface,
                "taken off the interface: a run that did not end in order had left it there"
            );
            removed += 1;
        }
        journal.remove(&entry)?;
    }
    Ok(removed)
}

async fn serve(instance: &Instance, arguments: &cli::Run, log_level: u8, lock: &Lock) -> Result<(), Stop> {
    let group = arguments.socket_group.as_deref().map(group_id).transpose()?;
    // Subscribed before the first dump, so that no change falls between the two.
    let (netlink, changes) = Netlink::open().context("opening a netlink socket")?;
    let (mut addresses, left) = lock.journal()?;
    remove_leftovers(&netlink, &mut addresses, left).await?;
    let links = netlink.links().await.map_err(Stop::failed)?;
    // Refused interfaces cost nothing: nothing is loaded yet.
    let mut interfaces = Vec::new();
    for name in &arguments.interfaces {
        interfaces.push(find_link(&links, name)?.index);
    }
    let mut datapath = Datapath::load(log_level).map_err(|error| {
        Stop::new(if error.is_permission() { Exit::NotPermitted } else { Exit::Failed }, error.into())
    })?;
    let events = datapath.take_events();
    if let Some(mut logger) = datapath.take_logger() {
        tokio::spawn(async move {
            loop {
                logger.flush_when_readable().await;
            }
        });
    }
    let (orders, orders_to_do) = mpsc::unbounded_channel();
    let (done, outcomes) = mpsc::unbounded_channel();
    tokio::spawn(register(netlink.clone(), addresses, orders_to_do, done));
    let mut daemon = Daemon {
        instance: instance.clone(),
        attach: arguments.attach,
        vlan_offload: arguments.vlan_offload,
        engine: Engine::new(),
        dice: KernelDice,
        datapath,
        socket: ArpSocket::open().context("opening a packet socket")?,
        netlink,
        journal: Journal::default(),
        links,
        locals: BTreeMap::new(),
        carriers: BTreeMap::new(),
        orders,
        pending: BTreeMap::new(),
        next_request: 0,
        unloading: Vec::new(),
        ending: false,
    };
    daemon.resync_addresses().await?;
    daemon.tell_macs()?;
    for index in interfaces {
        daemon.carry(index)?;
    }
    let control = control::bind(&instance.unready_socket(), group)
        .with_context(|| format!("making the control socket {}", instance.unready_socket().display()))?;
    let (commands, waiting) = mpsc::channel(COMMANDS);
    tokio::spawn(control::serve(control, commands));
    control::publish(&instance.unready_socket(), &instance.socket())
        .with_context(|| format!("publishing the control socket {}", instance.socket().display()))?;
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!("telling the service manager that the daemon is ready failed: {error}");
    }
    info!(instance = instance.name(), socket = %instance.socket().display(), "ready");
    daemon.run(events, changes, outcomes, waiting).await
}

fn group_id(name: &str) -> Result<nix::unistd::Gid, Stop> {
    match nix::unistd::Group::from_name(name).context("reading the group database")? {
        Some(group) => Ok(group.gid),
        None => Err(Stop::new(Exit::Usage, anyhow!("--socket-group: there is no group '{name}'"))),
    }
}

/// The link of this name, if addresses can be managed on it.
pub fn find_link<'a>(links: &'a BTreeMap<u32, Link>, name: &str) -> Result<&'a Link, Stop> {
    let link = link::find(name, links).map_err(Stop::failed)?;
    link::suitable(link, links).map_err(Stop::failed)?;
    Ok(link)
}

/// Puts addresses on interfaces and takes them off, in order. Each is written down before it is put there.
async fn register(
    netlink: Netlink,
    mut journal: instance::Journal,
    mut orders: mpsc::UnboundedReceiver<(Order, String)>,
    done: mpsc::UnboundedSender<Done>,
) {
    while let Some((order, interface)) = orders.recv().await {
        let (Order::Register(key, prefix_length) | Order::Deregister(key, prefix_length)) = order;
        let entry =
            instance::Entry { index: key.interface, interface, address: key.address.into(), prefix_length };
        let result = match order {
            Order::Register(..) => match journal.add(&entry) {
                Ok(()) => netlink
                    .add_address(entry.index, entry.address, prefix_length)
                    .await
                    .map_err(|error| format!("{:#}", anyhow::Error::from(error))),
                Err(error) => {
                    Err(format!("{error:#}; an address that is not written down is not registered"))
                }
            },
            Order::Deregister(..) => netlink
                .delete_address(entry.index, entry.address, prefix_length)
                .await
                .map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        };
        let off = match order {
            Order::Register(..) => result.is_err(),
            Order::Deregister(..) => result.is_ok(),
        };
        if off && let Err(error) = journal.remove(&entry) {
            warn!(
                "{error:#}; the next start will look for {}/{prefix_length} and find it gone",
                entry.address
            );
        }
        if done.send(Done { order, result }).is_err() {
            return;
        }
    }
}

impl Daemon {
    async fn run(
        &mut self,
        mut events: EventReader,
        mut changes: Changes,
        mut outcomes: mpsc::UnboundedReceiver<Done>,
        mut commands: mpsc::Receiver<Command>,
    ) -> Result<(), Stop> {
        let mut timer = Timer::new().context("making a timer")?;
        let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
        let mut give_up_at = None;
        loop {
            self.perform();
            if self.ending {
                if self.engine.addresses().next().is_none() {
                    break;
                }
                give_up_at.get_or_insert_with(|| clock::now().after(END_PATIENCE));
            }
            if give_up_at.is_some_and(|at| clock::now() >= at) {
                break;
            }
            let wake_at = self.engine.poll_timeout().into_iter().chain(give_up_at).min();
            timer.set(wake_at).context("setting the timer")?;
            tokio::select! {
                readable = events.readable() => {
                    readable.context("reading the event ring")?;
                    self.take_events(&mut events);
                }
                () = timer.expired() => self.engine.handle_timeout(clock::now(), &mut self.dice),
                Some(Done { order, result }) = outcomes.recv() => self.tell(match order {
                    Order::Register(key, _) => Input::Registered { key, result },
                    Order::Deregister(key, _) => Input::Deregistered { key, result },
                }),
                change = changes.next() => match change {
                    Some(change) => self.take_change(change).await?,
                    None => return Err(Stop::failed(anyhow!("the netlink watch has ended"))),
                },
                Some(command) = commands.recv() => self.take_command(command),
                _ = terminate.recv() => self.end("SIGTERM"),
                _ = interrupt.recv() => self.end("SIGINT"),
            }
        }
        self.finish()
    }

    fn end(&mut self, why: &str) {
        if self.ending {
            return;
        }
        info!("ending: {why}; releasing {} addresses", self.engine.addresses().count());
        // A failed notification changes nothing here.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.ending = true;
        let keys: Vec<AddressKey> = self.engine.addresses().map(|(key, _)| *key).collect();
        for key in keys {
            let request = self.new_request();
            self.tell(Input::Offline { request, key, watch: false });
        }
    }

    fn finish(&mut self) -> Result<(), Stop> {
        let left: Vec<String> = self.engine.addresses().map(|(key, _)| key.address.to_string()).collect();
        for index in self.carriers.keys().copied().collect::<Vec<_>>() {
            self.drop_carrier(index);
        }
        if left.is_empty() {
            info!("released everything");
            return Ok(());
        }
        let error = anyhow!(
            "still on their interfaces after {} s of trying: {}; take them off with 'arpwarden --instance {} unload'",
            END_PATIENCE.as_secs(),
            left.join(", "),
            self.instance.name()
        );
        for client in &self.unloading {
            client.end_with(Exit::Failed, format!("{error:#}"));
        }
        Err(Stop { left: true, ..Stop::failed(error) })
    }

    fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle(clock::now(), input, &mut self.dice);
    }

    /// Carries out what the engine wants, until it wants nothing more.
    fn perform(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Install { key, word } => {
                    let result =
                        self.datapath.install(key, word).map(|_| ()).map_err(|error| error.to_string());
                    self.tell(Input::Installed { key, result });
                }
                Action::Store { key, word } => {
                    if let Err(error) = self.datapath.store(&key, word) {
                        error!(address = %key.address, "storing the state {:?}: {error}", word.state());
                    }
                }
                Action::Remove { key } => {
                    if let Err(error) = self.datapath.remove(&key) {
                        error!(address = %key.address, "taking the address out of the program's maps: {error}");
                    }
                }
                Action::Register { key, prefix_length } => self.order(Order::Register(key, prefix_length)),
                Action::Deregister { key, prefix_length } => {
                    self.order(Order::Deregister(key, prefix_length))
                }
                Action::Send { key, purpose, frame } => {
                    let result = self.socket.send(key.interface, &frame).map_err(|error| {
                        format!("sending on {} failed: {error}", self.interface_name(key.interface))
                    });
                    if let Err(error) = &result {
                        debug!(address = %key.address, ?purpose, "{error}");
                    }
                    self.tell(Input::Sent { key, purpose, frame, result });
                }
                Action::Event(event) => {
                    let interface = self.interface_name(event.key.interface);
                    self.journal.engine(&event, &interface);
                }
                Action::Answer { request, answer } => self.answer(request, &answer),
            }
        }
    }

    fn order(&self, order: Order) {
        let (Order::Register(key, _) | Order::Deregister(key, _)) = order;
        // The engine has at most one order out for each address, so the channel is bounded by MAX_ADDRESSES; the
        // other side ends with this one.
        let _ = self.orders.send((order, self.interface_name(key.interface)));
    }

    fn interface_name(&self, index: u32) -> String {
        self.links.get(&index).map_or_else(|| format!("#{index}"), |link| link.name.clone())
    }

    fn take_events(&mut self, events: &mut EventReader) {
        for _ in 0..EVENTS_AT_ONCE {
            let event = match events.next() {
                None => return,
                Some(Ok(event)) => event,
                Some(Err(error)) => {
                    error!("an item of the event ring is not understood: {error}");
                    continue;
                }
            };
            // `decode` has checked both numbers.
            let (Some(kind), Some(form)) =
                (abi::EventKind::from_number(event.kind), Form::from_number(event.form))
            else {
                continue;
            };
            let kind = match kind {
                abi::EventKind::Claim => SightingKind::Claim,
                abi::EventKind::Probe => SightingKind::Probe,
                abi::EventKind::Echo => {
                    SightingKind::Echo { sibling: event.flags & abi::Event::SIBLING != 0 }
                }
                abi::EventKind::Flood => SightingKind::Flood,
            };
            let sighting = Sighting {
                kind,
                claimant: Claimant {
                    mac: MacAddr::new(event.claimant),
                    ethernet_source: MacAddr::new(event.ethernet_source),
                },
                form,
                operation: u16::from(event.operation),
                count: event.count,
                repeat: event.flags & abi::Event::REPEAT != 0,
                owner_changed: event.flags & abi::Event::OWNER_CHANGED != 0,
                at: arpwarden_engine::MonoTime(event.kernel_time_ns),
            };
            let key = AddressKey { interface: event.interface, vlan: event.vlan, address: event.address };
            self.tell(Input::Seen { key, sighting });
            // The answer to a conflict must not wait for the rest of a flood.
            self.perform();
        }
    }
}

// Interfaces and addresses of this host.
impl Daemon {
    /// Puts the program on an interface.
    fn carry(&mut self, index: u32) -> Result<(), Stop> {
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
        let vlan_tags = link::vlan_tags(link, &self.links);
        if let VlanTags::Hidden { cure } = &vlan_tags
            && link::carries_vlans(link, &self.links)
        {
            match self.vlan_offload {
                None => {
                    return Err(Stop::failed(anyhow!(
                        "{name} carries VLANs, and their tags are taken off before XDP sees the frames: an answer \
                         could go to the wrong VLAN; run '{cure}', or let arpwarden do it with --vlan-offload disable"
                    )));
                }
                Some(cli::VlanOffload::Ignore) => {
                    warn!(
                        interface = name,
                        "tags of VLANs are hidden from XDP; attached all the same, as told"
                    );
                }
                Some(cli::VlanOffload::Disable) => {
                    link::disable_vlan_offload(link).map_err(Stop::failed)?;
                }
            }
        }
        let Some(mac) = link.mac else {
            return Err(Stop::failed(anyhow!("{name} has no MAC")));
        };
        self.datapath
            .set_port(index, Port { mac, interface: index, flags: Port::ACCEPT })
            .map_err(Stop::failed)?;
        if let Err(error) = self.datapath.attach(index, &name, mode) {
            self.remove_port(index);
            return Err(Stop::failed(error));
        }
        if let Some(price) = price {
            warn!(interface = name, mode = mode.name(), "{price}");
        }
        info!(interface = name, mode = mode.name(), vlan_tags = vlan_tags.name(), "attached");
        self.carriers.insert(index, Carrier { name, mode, vlan_tags: vlan_tags.name() });
        self.tell(Input::Interface { index, interface: Interface { mac, pace: Pace::Plain, moves: None } });
        Ok(())
    }

    fn drop_carrier(&mut self, index: u32) {
        let Some(carrier) = self.carriers.remove(&index) else { return };
        if let Err(error) = self.datapath.detach(index) {
            warn!(interface = carrier.name, "detaching the program: {error}");
        }
        self.remove_port(index);
        if let Some(link) = self.links.get(&index)
            && let Err(error) = link::restore_vlan_offload(link)
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
    fn tell_macs(&mut self) -> Result<(), Stop> {
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

    async fn take_change(&mut self, change: Change) -> Result<(), Stop> {
        match change {
            Change::Link(link) => self.take_link(link)?,
            Change::LinkGone(index) => {
                if let Some(link) = self.links.remove(&index) {
                    info!(interface = link.name, "the interface has gone");
                    if self.carriers.contains_key(&index) {
                        self.journal.link("program_missing", &link.name, None);
                        self.drop_carrier(index);
                    }
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
                    Box::pin(self.take_change(Change::LinkGone(index))).await?;
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
                self.datapath
                    .set_port(index, Port { mac, interface: index, flags: Port::ACCEPT })
                    .map_err(Stop::failed)?;
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

    async fn resync_addresses(&mut self) -> Result<(), Stop> {
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
    fn keys_of(&self, address: Ipv4Addr, index: Option<u32>) -> Vec<AddressKey> {
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

// Commands and their answers.
impl Daemon {
    fn take_command(&mut self, command: Command) {
        let Command { request, peer, replies } = command;
        if let Some(peer) = peer {
            let words = summary(&request);
            match request {
                Request::Status { .. } | Request::Events { .. } => {
                    debug!(uid = peer.uid(), pid = peer.pid(), "asked for {words}");
                }
                Request::Online { .. }
                | Request::Offline { .. }
                | Request::Watch { .. }
                | Request::Unwatch { .. }
                | Request::Announce { .. }
                | Request::Unload {} => info!(uid = peer.uid(), pid = peer.pid(), "commanded: {words}"),
            }
        }
        let client = Client::new(replies);
        if self.ending
            && !matches!(request, Request::Status { .. } | Request::Events { .. } | Request::Unload {})
        {
            client.end_with(Exit::NoDaemon, "the daemon is ending; nothing was done".to_owned());
            return;
        }
        match request {
            Request::Online { addresses, interface, how, attach_now } => {
                let Some(index) = self.interface_for(&client, &interface, attach_now) else { return };
                for cidr in addresses {
                    let address = cidr.address();
                    let key = AddressKey { interface: index, vlan: Vlan::UNTAGGED, address: address.into() };
                    if let Some(refusal) = self.refuse_local(&key, how.adopt) {
                        client.result(address, Some(&interface), refusal);
                        continue;
                    }
                    let spec = how.spec(cidr.prefix_length());
                    self.submit(&client, key, Verb::Online, |request| Input::Online { request, key, spec });
                }
            }
            Request::Offline { addresses, interface, watch } => {
                let addresses = if addresses.is_empty() {
                    let all: BTreeSet<Ipv4Addr> = self
                        .engine
                        .addresses()
                        // `--all` gives up what is ours or claimed; what is only watched stays so.
                        .filter(|(_, managed)| managed.state() != State::Watched)
                        .map(|(key, _)| key.address.into())
                        .collect();
                    all.into_iter().collect()
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
                    let key = AddressKey { interface: index, vlan: Vlan::UNTAGGED, address: address.into() };
                    self.submit(&client, key, Verb::Watch, |request| Input::Watch { request, key });
                    if self.locals.contains_key(&address) {
                        self.tell(Input::Local { key, local: true });
                    }
                }
            }
            Request::Unwatch { addresses, interface } => {
                self.on_managed(&client, &addresses, interface.as_deref(), Verb::Unwatch, |request, key| {
                    Input::Unwatch { request, key }
                });
            }
            Request::Announce { addresses, interface } => {
                self.on_managed(&client, &addresses, interface.as_deref(), Verb::Announce, |request, key| {
                    Input::Announce { request, key }
                });
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

    /// The interface of a claim or a watch, carrying the program; or the request ends with the reason.
    fn interface_for(&mut self, client: &Client, name: &str, attach_now: bool) -> Option<u32> {
        let found = find_link(&self.links, name).map(|link| link.index).and_then(|index| {
            if self.carriers.contains_key(&index) {
                return Ok(index);
            }
            if attach_now {
                return self.carry(index).map(|()| index);
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
        let places = self.locals.get(&key.address.into())?;
        if !places.contains_key(&key.interface) {
            let elsewhere =
                places.keys().map(|index| self.interface_name(*index)).collect::<Vec<_>>().join(", ");
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

    fn submit(
        &mut self,
        client: &Rc<Client>,
        key: AddressKey,
        verb: Verb,
        input: impl FnOnce(RequestId) -> Input,
    ) {
        let request = self.new_request();
        self.pending.insert(request, Pending { client: Rc::clone(client), key, verb });
        self.tell(input(request));
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
                [key] => self.submit(client, key, verb, |request| input(request, key)),
                [] => client.result(address, interface, verb.unknown()),
                [..] => client.result(
                    address,
                    None,
                    (Exit::Usage, "managed on more than one interface; say which with --iface".to_owned()),
                ),
            }
        }
    }

    fn answer(&mut self, request: RequestId, answer: &Answer) {
        let Some(Pending { client, key, verb }) = self.pending.remove(&request) else { return };
        let interface = self.interface_name(key.interface);
        let own = self.links.get(&key.interface).and_then(|link| link.mac);
        client.result(key.address.into(), Some(&interface), verb.words(answer, own));
    }

    fn status(&self, only: Option<Ipv4Addr>) -> anyhow::Result<Status> {
        let totals = self.datapath.counters()?;
        let counters = Counter::ALL
            .iter()
            .map(|counter| (counter.name().to_owned(), totals[*counter as usize]))
            .collect();
        let interfaces = self
            .carriers
            .values()
            .map(|carrier| InterfaceStatus {
                interface: carrier.name.clone(),
                attach_mode: carrier.mode.name().to_owned(),
                vlan_tags: carrier.vlan_tags.to_owned(),
            })
            .collect();
        let mut addresses = Vec::new();
        for (key, managed) in self.engine.addresses() {
            if only.is_some_and(|address| address != Ipv4Addr::from(key.address)) {
                continue;
            }
            let (record, seen) = self.datapath.address_counters(key).unwrap_or_default();
            let state = managed.state();
            let own = self.links.get(&key.interface).and_then(|link| link.mac);
            let owner =
                if state.may_answer() { own } else { Some(record.owner).filter(|mac| !mac.is_zero()) };
            addresses.push(AddressStatus {
                address: key.address.into(),
                prefix_length: managed.spec().map(|spec| spec.prefix_length),
                interface: self.interface_name(key.interface),
                vlan: vlan_ids(key),
                state: state.name().to_owned(),
                may_answer: state.may_answer(),
                owner: owner.map(|mac| mac.to_string()),
                lease_left: None,
                counters: AddressStatusCounters {
                    answered: seen.answered,
                    shielded: seen.shielded,
                    claims: record.claims,
                    probes: record.probes,
                    echoes: record.echoes,
                    conflicts: managed.conflicts(),
                    defences: managed.defences(),
                },
            });
        }
        let mut degraded = Vec::new();
        if !self.datapath.multi_buffer() {
            degraded.push(
                "multi-buffer XDP (Linux 5.18): native attach is refused at an MTU above a page".to_owned(),
            );
        }
        Ok(Status { instance: self.instance.name().to_owned(), interfaces, addresses, counters, degraded })
    }
}

fn summary(request: &Request) -> String {
    let many = |what: &str, n: usize| format!("{what} of {n} addresses");
    match request {
        Request::Online { addresses, interface, .. } => {
            format!("{} on {interface}", many("online", addresses.len()))
        }
        Request::Offline { addresses, .. } if addresses.is_empty() => "offline of all addresses".to_owned(),
        Request::Offline { addresses, .. } => many("offline", addresses.len()),
        Request::Watch { addresses, .. } => many("watch", addresses.len()),
        Request::Unwatch { addresses, .. } => many("unwatch", addresses.len()),
        Request::Announce { addresses, .. } => many("announce", addresses.len()),
        Request::Status { .. } => "status".to_owned(),
        Request::Events { .. } => "events".to_owned(),
        Request::Unload {} => "unload".to_owned(),
    }
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline { .. } => "offline",
            Self::Watch => "watch",
            Self::Unwatch => "unwatch",
            Self::Announce => "announce",
        }
    }

    /// For an address that is not managed: giving it up is done, announcing it is not.
    fn unknown(self) -> (Exit, String) {
        match self {
            Self::Offline { .. } | Self::Unwatch => (Exit::Done, "not managed; nothing to do".to_owned()),
            Self::Online | Self::Watch | Self::Announce => (
                Exit::Failed,
                format!("not managed, so there is nothing to {}; see 'arpwarden status'", self.name()),
            ),
        }
    }

    /// Exit code and words of an answer.
    fn words(self, answer: &Answer, own: Option<MacAddr>) -> (Exit, String) {
        let own = own.map_or_else(String::new, |mac| format!(" as {mac}"));
        match answer {
            Answer::Done => (
                Exit::Done,
                match self {
                    Self::Online => format!("online, announced{own}"),
                    Self::Offline { watch: false } => "offline".to_owned(),
                    Self::Offline { watch: true } => "offline, watched from now on".to_owned(),
                    Self::Watch => "watched".to_owned(),
                    Self::Unwatch => "watched no more".to_owned(),
                    Self::Announce => format!("announced{own}"),
                },
            ),
            Answer::Already(state) => (Exit::Done, format!("{} already; nothing to do", state.name())),
            Answer::Unknown => self.unknown(),
            Answer::Taken { claimant, reason } => (Exit::Taken, taken(claimant, *reason)),
            Answer::Differs { present } => (
                Exit::Failed,
                format!(
                    "managed with other parameters: {}; take it offline first to change them",
                    crate::protocol::describe(present)
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
        | Reason::Failed => format!("{mac}{via} has it; nothing was registered; --wait SECONDS retries"),
    }
}
