//! The one loop: wait for the ring buffer, the timer, netlink, clients and signals; feed the engine; carry out
//! what it wants.

mod commands;
mod host;

use std::{cell::RefCell, collections::BTreeMap, io, net::Ipv4Addr, rc::Rc, time::Duration};

use anyhow::{Context as _, anyhow};
use arpwarden_common::{
    abi::{self, AddressKey},
    net::MacAddr,
    wire::arp::Form,
};
use arpwarden_engine::{
    Action, Engine, Input, RequestId,
    input::{Claimant, Sighting, SightingKind},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tracing::{debug, error, info, warn};

use crate::{
    cli, client,
    events::Journal,
    exit::Exit,
    instance::{self, Instance, Lock},
    io::{
        arp_socket::ArpSocket,
        bpf::{self, Datapath, EventReader, Found, LoadError, Mode, Pins},
        clock::{self, Timer},
        control::{self, Command, Reply},
        dice::KernelDice,
        link::{self, DisabledOffload, Link},
        netlink::{Changes, Netlink},
    },
    protocol::Response,
};

use commands::Verb;
pub use commands::taken;

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

/// How long a killed process may hold its lock: its kernel side takes the program off the interfaces first, which
/// can wait for tens of milliseconds on a busy machine.
pub const DYING: Duration = Duration::from_secs(1);
/// Ring-buffer items taken before the loop looks at anything else: 64 µs of work at 1 µs each.
const EVENTS_AT_ONCE: usize = 64;
/// Commands that wait for the loop; a client waits beyond it.
const COMMANDS: usize = 16;
/// How long an orderly end waits for the kernel to take one more address off.
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

/// An interface that carries the program.
struct Carrier {
    name: String,
    mode: Mode,
    vlan_tags: &'static str,
    /// Switched off so that VLAN tags are seen; switched on again at the end.
    offload: Option<DisabledOffload>,
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
    let missing = bpf::missing_capabilities();
    if !missing.is_empty() {
        return Err(Stop::new(
            Exit::NotPermitted,
            anyhow!(
                "not permitted to run: {} missing; run as root, or grant what dist/arpwarden.service grants",
                missing.join(", ")
            ),
        ));
    }
    // A daemon that answers is there to stay; one that does not may be on its way out.
    let patience = if client::connect(&instance).is_ok() { Duration::ZERO } else { DYING };
    let Some(lock) = wait_for_lock(&instance, patience).await? else {
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

/// Takes the instance, trying for as long as `patience`; `None` if another process keeps it.
///
/// # Errors
/// Those of [`Instance::lock`].
pub async fn wait_for_lock(instance: &Instance, patience: Duration) -> Result<Option<Lock>, Stop> {
    /// How often the lock of an ending daemon is tried.
    const AGAIN: Duration = Duration::from_millis(20);
    let give_up = clock::now().after(patience);
    let mut timer = Timer::new().context("making a timer")?;
    loop {
        let lock = instance.lock()?;
        if lock.is_some() || clock::now() >= give_up {
            return Ok(lock);
        }
        timer.set(Some(clock::now().after(AGAIN))).context("setting the timer")?;
        timer.expired().await;
    }
}

/// Takes off the interfaces what a run that did not end in order has left there, and names it.
///
/// # Errors
/// What could not be taken off.
pub async fn remove_leftovers(
    netlink: &Netlink,
    journal: &mut instance::Journal,
    left: Vec<instance::Entry>,
) -> Result<Vec<String>, Stop> {
    let mut removed = Vec::new();
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
            removed.push(format!("{}/{} from {}", entry.address, entry.prefix_length, entry.interface));
        }
        journal.remove(&entry)?;
    }
    Ok(removed)
}

/// What ends the daemon in order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

async fn serve(instance: &Instance, arguments: &cli::Run, log_level: u8, lock: &Lock) -> Result<(), Stop> {
    // Caught from here on: whatever is done below is undone in order.
    let signals = Signals {
        terminate: signal(SignalKind::terminate()).context("watching for SIGTERM")?,
        interrupt: signal(SignalKind::interrupt()).context("watching for SIGINT")?,
    };
    let group = arguments.socket_group.as_deref().map(group_id).transpose()?;
    // Subscribed before the first dump, so that no change falls between the two.
    let (netlink, changes) = Netlink::open().context("opening a netlink socket")?;
    let (mut addresses, left) = lock.journal().map_err(|error| Stop { left: true, ..Stop::failed(error) })?;
    remove_leftovers(&netlink, &mut addresses, left).await?;
    let links = netlink.links().await.map_err(Stop::failed)?;
    // Refused interfaces cost nothing: nothing is loaded yet.
    let mut interfaces = Vec::new();
    for name in &arguments.interfaces {
        interfaces.push(find_link(&links, name)?.index);
    }
    let socket = ArpSocket::open().context("opening a packet socket")?;
    let mut datapath = open_datapath(&Pins::new(instance.name()), log_level)?;
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
        socket,
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
    let result = async {
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
        daemon.run(events, changes, outcomes, waiting, signals).await
    }
    .await;
    let left = result.as_ref().is_err_and(|stop| stop.left);
    result.and(daemon.datapath.remove_all().map_err(|error| Stop { left, ..Stop::failed(error) }))
}

/// Loads the program anew: what a run that did not end in order has left attached goes first.
fn open_datapath(pins: &Pins, log_level: u8) -> Result<Datapath, Stop> {
    let failed = |error: LoadError| {
        Stop::new(if error.is_permission() { Exit::NotPermitted } else { Exit::Failed }, error.into())
    };
    match Datapath::open(pins, log_level).map_err(failed)? {
        (datapath, Found::Nothing) => Ok(datapath),
        (datapath, Found::Adopted(_)) => {
            warn!("a run that did not end in order had left its program attached; it is taken off");
            datapath.remove_all().map_err(Stop::failed)?;
            Ok(Datapath::open(pins, log_level).map_err(failed)?.0)
        }
    }
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
        Signals { mut terminate, mut interrupt }: Signals,
    ) -> Result<(), Stop> {
        let mut timer = Timer::new().context("making a timer")?;
        let mut give_up_at = None;
        let mut still_there = usize::MAX;
        loop {
            self.perform();
            if self.ending {
                let left = self.engine.addresses().count();
                if left < still_there {
                    still_there = left;
                    give_up_at = Some(clock::now().after(END_PATIENCE));
                }
                if left == 0 || give_up_at.is_some_and(|at| clock::now() >= at) {
                    break;
                }
            }
            let wake_at = self.engine.poll_timeout().into_iter().chain(give_up_at).min();
            timer.set(wake_at).context("setting the timer")?;
            tokio::select! {
                readable = events.readable() => {
                    readable.context("reading the event ring")?;
                    let _more_wait = self.take_events(&mut events);
                }
                () = timer.expired() => {
                    // A claim that waits in the ring must be heard before the silence that it broke is taken
                    // for consent: after a pause both are there at once.
                    while self.take_events(&mut events) {}
                    self.engine.handle_timeout(clock::now(), &mut self.dice);
                }
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
        info!(addresses = self.engine.addresses().count(), "ending: {why}; releasing everything");
        // A failed notification changes nothing here.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.ending = true;
        let keys: Vec<AddressKey> = self.engine.addresses().map(|(key, _)| *key).collect();
        // Last come, first gone: the first one of a subnet is its primary, and the kernel moves all the others when that
        // goes (1,000 addresses: 5.1 s in the order of their coming).
        for key in keys.into_iter().rev() {
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
            "still on their interfaces, and none taken off for {} s: {}; take them off with 'arpwarden --instance {} unload'",
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

    /// Takes some items of the event ring; says whether more may wait.
    fn take_events(&mut self, events: &mut EventReader) -> bool {
        for _ in 0..EVENTS_AT_ONCE {
            let event = match events.next() {
                None => return false,
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
        true
    }
}
