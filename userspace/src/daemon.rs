//! The one loop: wait for the ring buffer, the timer, netlink, clients and signals; feed the engine; carry out
//! what it wants.

mod commands;
mod explain;
mod groups;
mod host;
mod registrar;
mod reload;
mod settings;
mod start;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io, mem,
    net::Ipv4Addr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use arpwarden_common::{
    abi::{self, AddressKey, Port},
    defence,
    net::MacAddr,
    wire::arp::{Form, Outgoing},
};
use arpwarden_engine::{
    Action, Engine, Input, MonoTime, OnlineSpec, Purpose, RequestId,
    input::{Claimant, Sighting, SightingKind},
};
use tokio::{signal::unix::Signal, sync::mpsc};
use tracing::{debug, error, info, warn};

use crate::{
    alike::Alike,
    cli, client,
    config::Config,
    events::{Journal, vlan_ids},
    exit::Exit,
    instance::{Instance, Lock},
    io::{
        arp_socket::{self, ArpSocket},
        bpf::{self, Datapath, EventReader, Mode, Presence},
        clock::{self, Timer},
        control::{Command, Reply},
        dice::KernelDice,
        link::{self, DisabledOffload, Link, VlanTags},
        memory,
        netlink::{Changes, Netlink, PIPELINED, routes::RouteChanges},
    },
    protocol::{GroupName, How, Response},
    state_file::{Claimed, StateFile},
};

use commands::Verb;
pub use commands::taken;
use groups::JointClaim;
pub use registrar::remove_leftovers;
use registrar::{Done, Order};
use reload::Changing;
use settings::Settings;

/// Why the daemon did not start or did not end well.
#[derive(Debug)]
pub struct Stop {
    /// The exit code.
    pub exit: Exit,
    /// In words, with causes.
    pub error: anyhow::Error,
    /// Something is left for the next start: its state file must stay.
    leaves: bool,
}

impl Stop {
    /// A stop with this exit code.
    pub fn new(exit: Exit, error: anyhow::Error) -> Self {
        Self { exit, error, leaves: false }
    }

    /// A failure behind which something is left that the next start, or `unload`, needs the state file for.
    pub fn leaving(error: anyhow::Error) -> Self {
        Self { leaves: true, ..Self::failed(error) }
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
/// How often the daemon says that it lives and looks whether everything is in its place: a third of what a heartbeat
/// is good for ([`abi::Control::HEARTBEAT_LASTS_NS`]).
const HEARTBEAT: Duration = Duration::from_nanos(abi::Control::HEARTBEAT_LASTS_NS / 3);

/// The client of a request. The last one to let go of it says the end of the request.
struct Client {
    /// `None`: nobody but whoever reads the log.
    replies: Option<mpsc::Sender<Reply>>,
    end: RefCell<(Exit, Option<String>)>,
}

impl Client {
    fn new(replies: mpsc::Sender<Reply>) -> Rc<Self> {
        Rc::new(Self { replies: Some(replies), end: RefCell::new((Exit::Done, None)) })
    }

    /// For what is done because of the configuration file: its results go to the log.
    fn of_the_log() -> Rc<Self> {
        Rc::new(Self { replies: None, end: RefCell::new((Exit::Done, None)) })
    }

    fn say(&self, reply: Reply) {
        let Some(replies) = &self.replies else { return log_reply(&reply) };
        // The channel has room for all answers of its request; a client that is gone wants none.
        let _ = replies.try_send(reply);
    }

    /// Something that is not about one address.
    fn note(&self, exit: Exit, message: String) {
        self.say(Reply::Line(Response::Note { exit, message }));
    }

    fn result(&self, address: Ipv4Addr, interface: Option<&str>, (exit, message): (Exit, String)) {
        let interface = interface.map(str::to_owned);
        self.say(Reply::Line(Response::Result { address, interface, exit, message }));
    }

    fn end_with(&self, exit: Exit, message: String) {
        self.end.replace((exit, Some(message)));
    }
}

/// What a client would have been told.
fn log_reply(reply: &Reply) {
    let (exit, message) = match reply {
        Reply::Line(Response::Result { address, interface, exit, message }) => {
            let place = interface.as_ref().map_or_else(String::new, |name| format!(" on {name}"));
            (*exit, format!("{address}{place}: {message}"))
        }
        Reply::Line(Response::Note { exit, message } | Response::End { exit, message: Some(message) }) => {
            (*exit, message.clone())
        }
        Reply::Line(
            Response::End { message: None, .. }
            | Response::Plan { .. }
            | Response::Status { .. }
            | Response::Explanation { .. }
            | Response::Event { .. },
        )
        | Reply::Events { .. } => return,
    };
    if exit == Exit::Done { info!("configuration: {message}") } else { warn!("configuration: {message}") }
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
    /// With the others of this group, or not at all.
    joint: Option<GroupName>,
    /// To be said when it succeeds.
    warning: Option<String>,
}

impl Pending {
    fn new(client: &Rc<Client>, key: AddressKey, verb: Verb) -> Self {
        Self { client: Rc::clone(client), key, verb, joint: None, warning: None }
    }
}

/// An interface that carries the program.
struct Carrier {
    name: String,
    mode: Mode,
    /// The ports of which the program was told: itself, and the members of a bond.
    ports: BTreeMap<u32, Port>,
    /// The member that a bond uses, or used last; 0 where there is none.
    path: u32,
    vlan_tags: &'static str,
    /// Switched off so that VLAN tags are seen; switched on again at the end.
    offload: Option<DisabledOffload>,
    /// Switched off by the kernel when the program came; switched on again at the end.
    lost_offload: Option<DisabledOffload>,
    /// What is on it.
    presence: Presence,
    /// Until then its link may be down because of what we did to it, which nobody is to be told.
    settling_until: Option<MonoTime>,
}

impl Carrier {
    /// An interface of this name, with nothing known of it but that everything is to be on it.
    const fn new(name: String) -> Self {
        Self {
            name,
            mode: Mode::Tc,
            ports: BTreeMap::new(),
            path: 0,
            vlan_tags: VlanTags::Visible.name(),
            offload: None,
            lost_offload: None,
            presence: Presence { program: true, guard: true },
            settling_until: None,
        }
    }
}

/// What has become known of an address that the maps don't tell.
#[derive(Default)]
struct Notes {
    /// When the first announcement of its claim left.
    announced: Option<MonoTime>,
    /// What of its claim is no part of the engine's; `None`: as by default.
    how: Option<Arc<How>>,
    /// The configuration file says that it is to be managed.
    from_file: bool,
}

impl Notes {
    fn how(&self) -> How {
        self.how.as_deref().copied().unwrap_or_default()
    }
}

/// A frame that is to be sent.
struct Leaving {
    key: AddressKey,
    purpose: Purpose,
    frame: Outgoing,
}

/// How a run ended well.
enum Ended {
    /// Everything was released.
    Released,
    /// Everything was left as it is.
    Kept,
}

struct Daemon {
    instance: Instance,
    settings: Settings,
    observe: bool,
    engine: Engine,
    dice: KernelDice,
    datapath: Datapath,
    socket: ArpSocket,
    /// Frames that are about to leave, together.
    leaving: Vec<Leaving>,
    netlink: Netlink,
    journal: Journal,
    state: StateFile,
    notes: BTreeMap<AddressKey, Notes>,
    ways: Alike<How>,
    /// Who was asked in the name of an address, and when.
    told: BTreeMap<AddressKey, BTreeMap<Ipv4Addr, MonoTime>>,
    /// Their numbers in the map.
    groups: BTreeMap<GroupName, u32>,
    links: BTreeMap<u32, Link>,
    /// Where each address of this namespace is configured, with its prefix length.
    locals: BTreeMap<(Ipv4Addr, u32), u8>,
    /// How many of those each subnet of an interface has, by index, prefix length and network.
    subnets: BTreeMap<(u32, u8, Ipv4Addr), usize>,
    /// Addresses that are answered without being configured, and were seen to be reached since routes changed last.
    routed: BTreeSet<AddressKey>,
    /// Open while there are such addresses.
    route_changes: Option<RouteChanges>,
    carriers: BTreeMap<u32, Carrier>,
    /// Interfaces that addresses can be on, each with the carrier that sees its frames: itself, or what a VLAN device
    /// stands on.
    interfaces: BTreeMap<u32, u32>,
    /// Interfaces that are to carry the program, and the addresses that are to be on them, while they are not there.
    awaited: BTreeMap<String, Vec<host::Awaited>>,
    /// MACs that were ours until not long ago, and until when a frame with one is no claim.
    former_macs: BTreeMap<MacAddr, MonoTime>,
    /// When it last said that it lives.
    beat: MonoTime,
    /// [`clock::slept_ns`] at that time.
    slept: u64,
    orders: mpsc::UnboundedSender<(Order, Arc<str>)>,
    /// Of the interfaces in orders.
    names: Alike<str>,
    pending: BTreeMap<RequestId, Pending>,
    next_request: u64,
    /// Of how many addresses what is remembered was moved together last.
    ranks: usize,
    /// Groups that are being brought online, each all or none.
    joint: BTreeMap<GroupName, JointClaim>,
    /// What a changed file asks for, while it waits for what had to be given up first.
    changing: Option<Changing>,
    /// Who is told when everything is released.
    unloading: Vec<Rc<Client>>,
    ending: bool,
    /// Told to end without releasing anything.
    keeping: bool,
}

/// Starts the daemon and runs it until it is told to end.
///
/// # Errors
/// What failed at the start; or, at the end, what is left on the interfaces.
pub async fn run(
    instance: Instance,
    arguments: &cli::Run,
    config: Config,
    log_level: u8,
) -> Result<(), Stop> {
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
    let settings = Settings { flags: arguments.clone(), file: config };
    match start::serve(&instance, settings, log_level, &lock).await {
        Ok(Ended::Kept) => {
            lock.close();
            Ok(())
        }
        Ok(Ended::Released) => {
            lock.remove()?;
            Ok(())
        }
        Err(stop) => {
            if !stop.leaves {
                lock.remove()?;
            }
            Err(stop)
        }
    }
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

/// What ends the daemon in order, and what has it read its file again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// The link of this name, if addresses can be managed on it.
pub fn find_link<'a>(links: &'a BTreeMap<u32, Link>, name: &str) -> Result<&'a Link, Stop> {
    let link = link::find(name, links).map_err(Stop::failed)?;
    link::suitable(link, links).map_err(Stop::failed)?;
    Ok(link)
}

fn outcome(Done { order, result }: Done) -> Input {
    match order {
        Order::Register(key, _) => Input::Registered { key, result },
        Order::Deregister(key, _) => Input::Deregistered { key, result },
    }
}

impl Daemon {
    async fn run(
        mut self,
        mut events: EventReader,
        mut changes: Changes,
        mut outcomes: mpsc::UnboundedReceiver<Done>,
        mut commands: mpsc::Receiver<Command>,
        Signals { mut terminate, mut interrupt, mut hangup }: Signals,
    ) -> Result<Ended, Stop> {
        let mut timer = Timer::new().context("making a timer")?;
        let mut give_up_at = None;
        let mut still_there = usize::MAX;
        loop {
            self.perform();
            self.go_on().await;
            if self.journal.has_unlogged() {
                // Those who write to the followers have their turn first.
                tokio::task::yield_now().await;
                self.journal.log();
            }
            self.close_ranks();
            if self.keeping {
                info!(addresses = self.engine.count(), "ending; everything is left as it is");
                return Ok(Ended::Kept);
            }
            if self.ending {
                let left = self.engine.count();
                if left < still_there {
                    still_there = left;
                    give_up_at = Some(clock::now().after(END_PATIENCE));
                }
                if left == 0 || give_up_at.is_some_and(|at| clock::now() >= at) {
                    break;
                }
            }
            let settled = self.carriers.values().filter_map(|carrier| carrier.settling_until);
            let beat = self.beat.after(HEARTBEAT);
            let wake_at =
                self.engine.poll_timeout().into_iter().chain(give_up_at).chain(settled).chain([beat]);
            timer.set(wake_at.min()).context("setting the timer")?;
            tokio::select! {
                readable = events.readable() => {
                    readable.context("reading the event ring")?;
                    let _more_wait = self.take_events(&mut events);
                }
                () = timer.expired() => {
                    // A claim that waits in the ring must be heard before the silence that it broke is taken
                    // for consent: after a pause both are there at once.
                    while self.take_events(&mut events) {}
                    // So must what happened to links and addresses: what is due now was meant for the world before.
                    if self.was_away() {
                        self.look_around("the daemon did not run for a while").await?;
                    }
                    let now = clock::now();
                    self.engine.handle_timeout(now, &mut self.dice);
                    self.settle_links(now);
                    if now >= beat {
                        self.perform();
                        self.heartbeat().await?;
                    }
                }
                Some(done) = outcomes.recv() => {
                    self.tell(outcome(done));
                    // Those that came with it: what they lead to is done in one go.
                    for _ in 1..PIPELINED {
                        let Ok(done) = outcomes.try_recv() else { break };
                        self.tell(outcome(done));
                    }
                }
                change = changes.next() => match change {
                    Some(change) => self.take_change(change).await?,
                    None => return Err(Stop::failed(anyhow!("the netlink watch has ended"))),
                },
                Some(command) = commands.recv() => self.take_command(command).await,
                _ = terminate.recv() => self.end("SIGTERM"),
                _ = interrupt.recv() => self.end("SIGINT"),
                _ = hangup.recv() => self.reload(&Client::of_the_log()),
            }
        }
        self.finish()
    }

    /// Moves together what is remembered of each address when many have come or gone and it has become quiet.
    fn close_ranks(&mut self) {
        /// Addresses for which it is not worth the trouble.
        const FEW: usize = 64;
        let count = self.engine.count();
        if count.abs_diff(self.ranks) <= FEW.max(self.ranks / 8) || self.engine.busy() > count / 64 {
            return;
        }
        self.ranks = count;
        let Self { engine, state, datapath, journal, notes, locals, .. } = self;
        engine.close_ranks(|| {
            state.close_ranks(|| {
                datapath.close_ranks(|| {
                    journal.close_ranks(|| {
                        memory::close_ranks(notes, || memory::close_ranks(locals, memory::give_back));
                    });
                });
            });
        });
        memory::give_back();
    }

    fn end(&mut self, why: &str) {
        if self.ending {
            return;
        }
        // A failed notification changes nothing here.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        if self.settings.on_exit() == cli::OnExit::Keep && self.unloading.is_empty() && !self.observe {
            self.keeping = true;
            return;
        }
        info!(addresses = self.engine.count(), "ending: {why}; releasing everything");
        self.ending = true;
        self.awaited.clear();
        let keys: Vec<AddressKey> = self.engine.addresses().map(|(key, _)| *key).collect();
        // Last come, first gone: the first one of a subnet is its primary, and the kernel moves all the others when that
        // goes (1,000 addresses: 5.1 s in the order of their coming).
        for key in keys.into_iter().rev() {
            let request = self.new_request();
            self.tell(Input::Offline { request, key, watch: false });
        }
    }

    fn finish(mut self) -> Result<Ended, Stop> {
        let left: Vec<String> = self.engine.addresses().map(|(key, _)| key.address.to_string()).collect();
        if left.is_empty() {
            for index in self.carriers.keys().copied().collect::<Vec<_>>() {
                self.drop_carrier(index);
            }
            if let Err(error) = self.datapath.remove_all() {
                let error = anyhow::Error::from(error);
                for client in &self.unloading {
                    client.end_with(Exit::Failed, format!("{error:#}"));
                }
                return Err(Stop::leaving(error));
            }
            info!("released everything");
            return Ok(Ended::Released);
        }
        // The program stays: it keeps the kernel silent about them.
        let error = anyhow!(
            "still on their interfaces, and none taken off for {} s: {}; take them off with 'arpwarden --instance {} unload'",
            END_PATIENCE.as_secs(),
            left.join(", "),
            self.instance.name()
        );
        for client in &self.unloading {
            client.end_with(Exit::Failed, format!("{error:#}"));
        }
        Err(Stop::leaving(error))
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
        loop {
            let Some(action) = self.engine.poll_action() else {
                if self.leaving.is_empty() {
                    return;
                }
                self.send();
                continue;
            };
            if self.decides_about_leaving(&action) {
                self.send();
            }
            match action {
                Action::Install { key, word } => {
                    let result =
                        self.datapath.install(key, word).map(|_| ()).map_err(|error| error.to_string());
                    // Into its group before a word follows that may answer.
                    if result.is_ok() && self.group_of(&key).is_some() {
                        self.join_group(&key);
                    }
                    self.tell(Input::Installed { key, result });
                }
                Action::Lease { key, until } => {
                    if let Err(error) = self.datapath.store_lease(&key, until.map_or(0, |until| until.0)) {
                        error!(address = %key.address, "storing the lease: {error}");
                    }
                }
                Action::Remember { key, spec } => self.remember(key, spec),
                Action::Store { key, word } => {
                    if let Err(error) = self.datapath.store(&key, word) {
                        error!(address = %key.address, "storing the state {:?}: {error}", word.state());
                    }
                    if !word.may_answer()
                        && let Some(notes) = self.notes.get_mut(&key)
                    {
                        notes.announced = None;
                    }
                }
                Action::Remove { key } => {
                    if let Err(error) = self.datapath.remove(&key) {
                        error!(address = %key.address, "taking the address out of the program's maps: {error}");
                    }
                    self.remember(key, None);
                    self.told.remove(&key);
                    if let Some(name) = self.notes.remove(&key).and_then(|notes| notes.how().group) {
                        self.forget_empty_group(name);
                    }
                }
                Action::Register { key, prefix_length } => self.order(Order::Register(key, prefix_length)),
                Action::Deregister { key, prefix_length } => {
                    self.order(Order::Deregister(key, prefix_length))
                }
                Action::Send { key, purpose, frame } => {
                    if let Err(why) = self.may_leave(&key, purpose, &frame) {
                        self.sent(key, purpose, frame, Err(why));
                        continue;
                    }
                    self.leaving.push(Leaving { key, purpose, frame });
                    // What mends caches waits for nothing.
                    if matches!(purpose, Purpose::Defence | Purpose::Repair)
                        || self.leaving.len() == arp_socket::SENT_AT_ONCE
                    {
                        self.send();
                    }
                }
                Action::Event(event) => {
                    let interface = self.interface_name(event.key.interface);
                    let vlan = vlan_ids(self.datapath.segment(event.key.interface).vlan);
                    self.journal.engine(&event, &interface, vlan);
                }
                Action::Held { key } => self.held(&key),
                Action::Flip { group } => self.flip_group(group),
                Action::Answer { request, answer } => self.answer(request, &answer),
            }
        }
    }

    /// Whether a frame that is about to leave must have left before this is done.
    fn decides_about_leaving(&self, action: &Action) -> bool {
        let (Action::Store { key, .. }
        | Action::Lease { key, .. }
        | Action::Remove { key }
        | Action::Register { key, .. }
        | Action::Deregister { key, .. }) = action
        else {
            return matches!(action, Action::Flip { .. });
        };
        self.leaving.iter().any(|leaving| leaving.key == *key)
    }

    /// Sends what is about to leave.
    fn send(&mut self) {
        let leaving = mem::take(&mut self.leaving);
        let now = clock::now();
        let results = if self.observe {
            leaving.iter().map(|_| Ok(())).collect()
        } else {
            let frames: Vec<(u32, Outgoing)> =
                leaving.iter().map(|Leaving { key, frame, .. }| (key.interface, *frame)).collect();
            self.socket.send_all(&frames)
        };
        for (Leaving { key, purpose, frame }, result) in leaving.into_iter().zip(results) {
            let result = result.map_err(|error| {
                format!("sending on {} failed: {error}", self.interface_name(key.interface))
            });
            if result.is_ok() {
                self.has_left(key, purpose, &frame, now);
            }
            self.sent(key, purpose, frame, result);
        }
    }

    /// Tells the engine what became of a frame.
    fn sent(&mut self, key: AddressKey, purpose: Purpose, frame: Outgoing, result: Result<(), String>) {
        if let Err(error) = &result {
            debug!(address = %key.address, ?purpose, "{error}");
        }
        self.tell(Input::Sent { key, purpose, frame, result });
    }

    /// Why a frame is not sent, if it is not.
    fn may_leave(&mut self, key: &AddressKey, purpose: Purpose, frame: &Outgoing) -> Result<(), String> {
        if self.observe {
            info!(address = %key.address, ?purpose, target = %frame.target_ip, "would be sent");
            return Ok(());
        }
        // The program defends as well; whoever takes the permit does.
        if purpose == Purpose::Defence
            && !self.datapath.take_defence(key, clock::now().0, defence::INTERVAL_NS)
        {
            return Err("the program has defended it in this interval".to_owned());
        }
        Ok(())
    }

    /// Notes that a frame has left.
    fn has_left(&mut self, key: AddressKey, purpose: Purpose, frame: &Outgoing, now: MonoTime) {
        match purpose {
            _ if self.observe => {}
            Purpose::Announcement => {
                self.notes.entry(key).or_default().announced.get_or_insert(now);
            }
            Purpose::Ask => _ = self.told.entry(key).or_default().insert(frame.target_ip.into(), now),
            Purpose::Probe | Purpose::Defence | Purpose::Repair => {}
        }
    }

    /// Notes how an address is claimed.
    fn note(&mut self, key: AddressKey, how: How, from_file: bool) {
        let how = self.ways.share(how);
        let notes = self.notes.entry(key).or_default();
        (notes.how, notes.from_file) = (Some(how), from_file);
    }

    /// Writes down how an address is claimed.
    fn remember(&self, key: AddressKey, spec: Option<OnlineSpec>) {
        if self.observe {
            return;
        }
        let claimed = spec.map(|spec| {
            let (flags, from_file) =
                self.notes.get(&key).map(|notes| (notes.how(), notes.from_file)).unwrap_or_default();
            let How { allow_flux, blackhole_ok, group, .. } = flags;
            Claimed {
                prefix_length: spec.prefix_length,
                how: How { allow_flux, blackhole_ok, group, ..How::of(&spec) },
                from_file,
            }
        });
        if let Err(error) = self.state.claim(key, claimed) {
            warn!(address = %key.address, "{error:#}; the next start may take it for claimed as before");
        }
    }

    fn order(&mut self, order: Order) {
        let (Order::Register(key, _) | Order::Deregister(key, _)) = order;
        if self.observe {
            info!(address = %key.address, ?order, "would be done");
            self.tell(outcome(Done { order, result: Ok(()) }));
            return;
        }
        // The engine has at most one order out for each address, so the channel is bounded by the maps' capacity; the
        // other side ends with this one.
        let name = self.names.share(self.interface_name(key.interface));
        let _ = self.orders.send((order, name));
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
                defended: event.flags & abi::Event::DEFENDED != 0,
                fell: event.flags & abi::Event::FELL != 0,
                allowed: event.flags & abi::Event::ALLOWED != 0,
                at: MonoTime(event.kernel_time_ns),
            };
            let key = self.datapath.key_of(event.interface, event.vlan, event.address);
            self.tell(Input::Seen { key, sighting });
            // The answer to a conflict must not wait for the rest of a flood.
            self.perform();
        }
        true
    }
}
