//! `probe`: is an address free? The engine's claim, ended where it would register.

use std::{cell::Cell, collections::BTreeSet};

use anyhow::{Context as _, anyhow};
use arpwarden_common::{
    abi::{AddressKey, AllowedKey, Port},
    defence::Reaction,
    net::{MacAddr, Vlan},
    state::StateWord,
    verdict::{self, Asking, Entry, Tables, Witness},
    wire::arp::Frame,
};
use arpwarden_engine::{
    Action, Answer, Engine, Input, Interface, OnlineSpec, RequestId,
    input::{Claim, Claimant, Defend, OnRemoved, Pace, Register, Sighting, SightingKind},
};

use crate::{
    address::parse_bare,
    cli,
    client::complain,
    daemon::{Stop, find_link, taken},
    exit::Exit,
    io::{
        arp_socket::{ArpListener, ArpSocket},
        bpf::missing_capabilities,
        clock::{self, Timer},
        dice::KernelDice,
        link,
        netlink::{LocalAddress, Netlink},
    },
};

/// Performs `probe`: 0 free, 3 taken, 1 could not tell.
pub async fn run(arguments: &cli::Probe) -> Exit {
    match probe(arguments).await {
        Ok(exit) => exit,
        Err(stop) => {
            complain(format_args!("{:#}", stop.error));
            stop.exit
        }
    }
}

/// The one address in question, for the verdict.
struct Question {
    key: AddressKey,
    word: StateWord,
    own_macs: BTreeSet<MacAddr>,
}

impl Tables for Question {
    type Place = u32;

    fn address(&self, key: &AddressKey) -> Option<Entry> {
        (*key == self.key).then_some(Entry { place: 0, word: self.word, may_answer: self.word.may_answer() })
    }

    fn is_own(&self, mac: MacAddr) -> bool {
        self.own_macs.contains(&mac)
    }

    fn is_allowed(&self, _: &AllowedKey) -> bool {
        false
    }

    fn daemon_lives(&self) -> bool {
        false
    }
}

/// What the verdict has told of a frame, as far as it matters here.
#[derive(Default)]
struct Told(Cell<Option<SightingKind>>);

impl Witness<u32> for Told {
    fn saw(&self, sighting: verdict::Sighting) -> Reaction {
        self.0.set(match sighting {
            verdict::Sighting::Claim(_) => Some(SightingKind::Claim),
            verdict::Sighting::Probe(_) => Some(SightingKind::Probe),
            verdict::Sighting::Allowed(_) | verdict::Sighting::Echo(_) | verdict::Sighting::Sibling(_) => {
                None
            }
        });
        Reaction::Nothing
    }

    fn asks(&self, _: Asking) {}
}

impl Question {
    fn sighting(&self, frame: &Frame, port: &Port) -> Option<Sighting> {
        let told = Told::default();
        verdict::verdict(frame, port, self, &told);
        Some(Sighting {
            kind: told.0.get()?,
            claimant: Claimant { mac: frame.sender_mac, ethernet_source: frame.source },
            form: frame.form(),
            operation: frame.operation,
            count: 1,
            repeat: false,
            owner_changed: false,
            defended: false,
            fell: false,
            allowed: false,
            at: clock::now(),
        })
    }
}

async fn probe(arguments: &cli::Probe) -> Result<Exit, Stop> {
    let address = parse_bare(&arguments.address).map_err(|error| Stop::new(Exit::Usage, error.into()))?;
    let name = &arguments.interface;
    let (netlink, _changes) = Netlink::open().context("opening a netlink socket")?;
    let links = netlink.links().await.map_err(Stop::failed)?;
    let link = find_link(&links, name)?;
    let mac = link.mac.ok_or_else(|| Stop::failed(anyhow!("{name} has no MAC")))?;
    let here = netlink.addresses().await.map_err(Stop::failed)?;
    let is_taken = |local: &&LocalAddress| {
        local.address == address && !link::vlans_apart(local.index, link.index, &links)
    };
    if let Some(local) = here.iter().find(is_taken) {
        let place = links.get(&local.index).map_or("an interface", |link| &link.name);
        println!("{address} on {name}: taken: configured on {place} of this host");
        return Ok(Exit::Taken);
    }
    if !link.running {
        return Err(Stop::failed(anyhow!(
            "could not tell whether {address} is free: {name} is down or has no carrier; see 'ip link show {name}'"
        )));
    }
    let key = AddressKey { interface: link.index, vlan: Vlan::UNTAGGED, address: address.into() };
    let spec = OnlineSpec {
        prefix_length: 32,
        claim: Claim::Probe,
        profile: arguments.profile.into(),
        defend: Defend::Yield,
        wait: std::time::Duration::ZERO,
        adopt: false,
        lease: None,
        register: Register::Address,
        on_removed: OnRemoved::Restore,
        joint: false,
    };
    let port = Port::accepting(mac, link.index);
    let own_macs = link::own_macs(links.values());
    let mut question = Question { key, word: StateWord::VACANT, own_macs };
    if missing_capabilities().contains(&"CAP_NET_RAW") {
        return Err(Stop::new(
            Exit::NotPermitted,
            anyhow!("not permitted to probe for {address}: CAP_NET_RAW missing; run as root, or grant it"),
        ));
    }
    let could_not_listen = || format!("listening for ARP on {name}");
    let mut listener = ArpListener::open(link.index).with_context(could_not_listen)?;
    let socket = ArpSocket::open().context("opening a packet socket")?;
    let mut timer = Timer::new().context("making a timer")?;
    let (mut engine, mut dice) = (Engine::new(), KernelDice::default());
    let interface = Interface { mac, pace: Pace::Plain, moves: None, up: true, path: 0 };
    engine.handle(clock::now(), Input::Interface { index: link.index, interface }, &mut dice);
    engine.handle(clock::now(), Input::Online { request: RequestId(0), key, spec }, &mut dice);
    loop {
        while let Some(action) = engine.poll_action() {
            let outcome = match action {
                Action::Install { key, word } => {
                    question.word = word;
                    Some(Input::Installed { key, result: Ok(()) })
                }
                Action::Store { word, .. } => {
                    question.word = word;
                    None
                }
                Action::Send { key, purpose, frame } => {
                    let result = socket
                        .send(key.interface, &frame)
                        .map_err(|error| format!("sending on {name}: {error}"));
                    Some(Input::Sent { key, purpose, frame, result })
                }
                // Here a claim would begin to be seen: nobody objected.
                Action::Register { .. } => {
                    println!("{address} on {name}: free");
                    return Ok(Exit::Done);
                }
                Action::Answer { answer, .. } => return ended(arguments, &answer),
                Action::Event(_)
                | Action::Remove { .. }
                | Action::Deregister { .. }
                | Action::Lease { .. }
                | Action::Remember { .. }
                | Action::Held { .. }
                | Action::Flip { .. } => None,
            };
            if let Some(outcome) = outcome {
                engine.handle(clock::now(), outcome, &mut dice);
            }
        }
        timer.set(engine.poll_timeout()).context("setting the timer")?;
        tokio::select! {
            frame = listener.recv() => {
                let frame = frame.with_context(could_not_listen)?;
                if let Some(sighting) = question.sighting(&frame, &port) {
                    engine.handle(clock::now(), Input::Seen { key, sighting }, &mut dice);
                }
            }
            () = timer.expired() => engine.handle_timeout(clock::now(), &mut dice),
        }
    }
}

fn ended(arguments: &cli::Probe, answer: &Answer) -> Result<Exit, Stop> {
    let (address, name) = (&arguments.address, &arguments.interface);
    match answer {
        Answer::Taken { claimant, reason } => {
            println!("{address} on {name}: taken: {}", taken(claimant, *reason));
            Ok(Exit::Taken)
        }
        Answer::Done
        | Answer::Already(_)
        | Answer::Unknown
        | Answer::Differs { .. }
        | Answer::WrongState(_)
        | Answer::Failed(_)
        | Answer::Superseded => {
            let why = if let Answer::Failed(what) = answer {
                what.as_str()
            } else {
                "the claim ended unexpectedly"
            };
            Err(Stop::failed(anyhow!("could not tell whether {address} is free: {why}")))
        }
    }
}
