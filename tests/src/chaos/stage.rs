//! Performs the steps of a story, and tells the checker what the script knows.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    process::Stdio,
    time::Duration,
};

use arpwarden_common::{
    abi::Counter,
    net::{MacAddr, Vlan},
    wire::arp::Outgoing,
};

use super::{
    asker::{Asker, Processors},
    books::{Books, Bounds},
    dice::Dice,
    maps::Maps,
    plan::{
        ADDRESSES, Daemon, Defend, Entry, Form, HOSTS, LEASE_S, LONG_MS, Model, NODES, PLAIN, STRANGER, Step,
        Way, address as ip_of, addresses,
    },
};
use crate::{
    checker::{Checker, Duty, IN_FLIGHT_NS, Kind, LeaseEnd, Ledger, Right, Seen, Violation},
    ms,
    netns::{Net, ip},
    node::{Done, Events, Node},
    tools,
    wire::{Wire, announcement, boot_ns, bytes, probe, reply, request},
};

/// How the daemons run.
const RUN: [&str; 6] = ["--iface", "eth0", "--attach", "native", "--on-exit", "keep"];
/// A lease that runs out before our eyes, in seconds.
const SHORT_LEASE: &str = "0.6";
const SHORT_LEASE_NS: u64 = 600_000_000;
/// The end that the program is told is a jiffy early, and its clock up to a jiffy late.
const LEASE_MARGIN_NS: u64 = 20_000_000;
/// For so long after an `immediate` claim's first announcement any claim takes it back.
const ROLL_BACK_NS: u64 = 1_150_000_000;
/// How long a daemon may take to do what it has been told by an event: far more than it takes, far less than a story.
const SOON: Duration = ms(5_000);

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("less than five centuries")
}

/// What a step comes to.
type Went = Result<(), Violation>;

/// A network on which a story is played.
#[derive(Debug)]
pub struct Stage<'net> {
    net: &'net Net,
    /// The nodes.
    pub nodes: Vec<Node<'net>>,
    events: Vec<Option<Events>>,
    /// What watches.
    pub checker: Checker,
    /// What the script knows.
    pub model: Model,
    asker: Asker,
    books: Books,
    stranger: Wire,
    strangers: u16,
    macs: [MacAddr; HOSTS],
    new_macs: u8,
    /// Until when any claim takes back an `immediate` one.
    calm_ns: [[u64; ADDRESSES]; NODES],
    /// The link was down while the daemon stood still.
    flapped: [bool; NODES],
}

impl<'net> Stage<'net> {
    /// Daemons on the nodes of a network with [`HOSTS`] hosts, watched; nobody has any address. `prepare` may change how a
    /// node's daemon is run.
    pub fn set(net: &'net Net, prepare: impl Fn(&mut Node<'net>)) -> Self {
        assert_eq!(net.hosts.len(), HOSTS, "the hosts of a story");
        let processors = Processors::choose();
        let mut nodes: Vec<Node<'net>> = net.hosts[..NODES].iter().map(Node::new).collect();
        nodes.iter_mut().for_each(prepare);
        let mut stage = Self {
            net,
            events: nodes.iter().map(|_| None).collect(),
            nodes,
            checker: Checker::watch(net, addresses()),
            model: Model::default(),
            asker: Asker::start(
                net.host(STRANGER),
                &processors,
                &addresses().collect::<Vec<_>>(),
                net.host(PLAIN),
            ),
            books: Books::default(),
            stranger: Wire::deaf(&net.host(STRANGER).ns, "eth0"),
            strangers: 0,
            macs: std::array::from_fn(|host| net.host(host).mac),
            new_macs: 0,
            calm_ns: [[0; ADDRESSES]; NODES],
            flapped: [false; NODES],
        };
        stage.checker.judge.measure_by(PLAIN, net.host(PLAIN).ip, processors.count());
        // All at once: most of a start is the kernel's look at the program.
        stage.nodes.iter_mut().for_each(|node| node.spawn(&RUN));
        for node in 0..NODES {
            stage.nodes[node].wait_until_it_listens();
            stage.started(node);
        }
        stage
    }

    /// Performs a step and checks what came of it.
    ///
    /// # Errors
    /// What is wrong, the first thing first.
    pub fn perform(&mut self, step: &Step) -> Result<(), Vec<Violation>> {
        assert!(self.model.allows(step), "{step} is not possible now");
        let went = self.act(step);
        self.model.apply(step);
        let went = went.and_then(|()| self.check(step));
        self.checker.look();
        let mut violations: Vec<Violation> = went.err().into_iter().collect();
        violations.extend(self.checker.judge.violations());
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    /// Wakes every daemon, closes the books, has everything released, and looks for what is left.
    ///
    /// # Errors
    /// What is wrong, the first thing first.
    pub fn finish(&mut self) -> Result<(), Vec<Violation>> {
        for node in 0..NODES {
            match self.model.nodes[node].daemon {
                Daemon::Running => {}
                Daemon::Stopped => self.perform(&Step::Continue { node })?,
                Daemon::Dead => self.perform(&Step::Restart { node })?,
            }
            let by_hand = self.model.nodes[node].by_hand;
            for address in (0..ADDRESSES).filter(|&address| by_hand[address]) {
                self.perform(&Step::DeleteByHand { node, address })?;
            }
        }
        let mut went = (0..NODES).try_for_each(|node| self.audit(node));
        for node in 0..NODES {
            went = went.and_then(|()| self.release(node)).and_then(|()| {
                let done = self.nodes[node].cli(&["status"]);
                self.insist(done.code == 4, || format!("after unload status says {done:?}"))
            });
        }
        self.checker.look();
        let mut violations: Vec<Violation> = went.err().into_iter().collect();
        violations.extend(self.checker.judge.violations());
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    fn act(&mut self, step: &Step) -> Went {
        match *step {
            Step::Claim { node, address, way, defend, leased } => {
                self.claim(node, address, way, defend, leased)
            }
            Step::ClaimTaken { node, address, way } => self.claim_taken(node, address, way),
            Step::Overreach { node, address } => self.overreach(node, address),
            Step::Offline { node, address, watch } => self.offline(node, address, watch),
            Step::HandOver { from, to, address, way } => {
                self.offline(from, address, false)?;
                self.claim(to, address, way, Defend::Hold, false)
            }
            Step::Announce { node, address } => {
                self.cli(node, &["announce", &ip_of(address).to_string()], 0).map(drop)
            }
            Step::Renew { node, address } => {
                self.renew(node, address, LEASE_S * 1_000_000_000, &LEASE_S.to_string())
            }
            Step::LeaseEnds { node, address, daemon } => self.lease_ends(node, address, daemon),
            Step::Kill { node } => self.kill(node),
            Step::Restart { node } => {
                self.start(node);
                Ok(())
            }
            Step::KillWhile { node, address, claiming, after_ms } => {
                self.kill_while(node, address, claiming, after_ms)
            }
            Step::Stop { node } => self.stop(node),
            Step::Continue { node } => self.go_on(node),
            Step::Upgrade { node } => self.upgrade(node),
            Step::Unload { node } => {
                self.release(node)?;
                self.start(node);
                Ok(())
            }
            Step::Flap { node, down_ms, taken } => self.flap(node, down_ms, taken),
            Step::ChangeMac { node } => self.change_mac(node),
            Step::RemoveByHand { node, address } | Step::DeleteByHand { node, address } => {
                self.take_off(node, address);
                Ok(())
            }
            Step::AddByHand { node, address } => self.add_by_hand(node, address),
            Step::PlainTakes { address } => {
                self.right(PLAIN, address, Right::May, "being added by hand");
                self.net.host(PLAIN).ns.ip(&format!("address add {}/32 dev eth0", ip_of(address)));
                self.right(PLAIN, address, Right::Must, "added by hand");
                self.ask(address, 2)
            }
            Step::PlainLeaves { address } => {
                self.right(PLAIN, address, Right::May, "being deleted by hand");
                self.net.host(PLAIN).ns.ip(&format!("address delete {}/32 dev eth0", ip_of(address)));
                self.right(PLAIN, address, Right::Silent, "deleted by hand");
                self.ask(address, 2)
            }
            Step::StrangerClaims { address, form } => self.stranger_claims(address, form),
            Step::StrangerProbes { address } => {
                let mac = self.next_stranger();
                self.stranger.send(&bytes(&probe(mac, ip_of(address))));
                self.settle()
            }
            Step::Flood { address, frames } => self.flood(address, frames),
            Step::Jump { node, seconds } => self.jump(node, seconds),
            Step::SpeakWithoutRight { node, address } => self.speak(node, address),
        }
    }

    /// After every step: nodes that run agree with the script, and the books with the wire.
    fn check(&mut self, step: &Step) -> Went {
        let touched = match *step {
            Step::Claim { node, .. }
            | Step::ClaimTaken { node, .. }
            | Step::Overreach { node, .. }
            | Step::Offline { node, .. }
            | Step::HandOver { to: node, .. }
            | Step::Announce { node, .. }
            | Step::Renew { node, .. }
            | Step::LeaseEnds { node, .. }
            | Step::Kill { node }
            | Step::Restart { node }
            | Step::KillWhile { node, .. }
            | Step::Stop { node }
            | Step::Continue { node }
            | Step::Upgrade { node }
            | Step::Unload { node }
            | Step::Flap { node, .. }
            | Step::ChangeMac { node }
            | Step::RemoveByHand { node, .. }
            | Step::AddByHand { node, .. }
            | Step::DeleteByHand { node, .. }
            | Step::Jump { node, .. }
            | Step::SpeakWithoutRight { node, .. } => Some(node),
            Step::StrangerClaims { address, .. } | Step::Flood { address, .. } => {
                // Whoever lost the address has it no more, so all are looked at.
                (0..NODES).find(|&node| self.model.nodes[node].entries[address] != Entry::Unmanaged)
            }
            Step::PlainTakes { .. } | Step::PlainLeaves { .. } | Step::StrangerProbes { .. } => None,
        };
        if let Some(node) = touched.filter(|&node| self.runs(node)) {
            self.agree(node)?;
            self.audit(node)?;
        }
        Ok(())
    }

    fn runs(&self, node: usize) -> bool {
        self.model.nodes[node].daemon == Daemon::Running
    }

    fn violation(&self, kind: Kind, address: Option<usize>, what: String) -> Violation {
        Violation { kind, at_ns: boot_ns(), address: address.map(ip_of), what, frames: Vec::new() }
    }

    fn insist(&self, holds: bool, what: impl FnOnce() -> String) -> Went {
        if holds { Ok(()) } else { Err(self.violation(Kind::Unexpected, None, what())) }
    }

    fn right(&mut self, host: usize, address: usize, right: Right, why: &'static str) {
        self.checker.judge.rights.set(host, ip_of(address), boot_ns(), right, why);
    }

    /// Runs a command that has to end with this code.
    fn cli(&mut self, node: usize, arguments: &[&str], code: i32) -> Result<Done, Violation> {
        let done = self.nodes[node].cli(arguments);
        self.insist(done.code == code, || {
            let Done { code: ended, out, err } = &done;
            format!(
                "node {node}: `{}` ended with {ended}, not {code}: {}{}",
                arguments.join(" "),
                out.trim(),
                err.trim()
            )
        })?;
        Ok(done)
    }

    /// Looks again and again, and has the checker look in between, until `is_so`.
    fn until(&mut self, within: Duration, mut is_so: impl FnMut(&mut Self) -> Result<(), String>) -> Went {
        let deadline = boot_ns() + nanoseconds(within);
        loop {
            self.checker.look();
            let Err(what) = is_so(self) else { return Ok(()) };
            if boot_ns() > deadline {
                return Err(self.violation(Kind::Unexpected, None, what));
            }
            std::thread::sleep(ms(5));
        }
    }

    /// Lets time pass up to a moment that the script knows.
    fn pass_until(&mut self, ns: u64) {
        while boot_ns() < ns {
            self.checker.look();
            std::thread::sleep(ms(5));
        }
    }

    /// Every host has acted on what was sent to it, and the checker has seen it.
    fn settle(&mut self) -> Went {
        self.checker.settle(0..HOSTS).map_err(|host| {
            self.violation(Kind::Unexpected, None, format!("host {host} does not answer for its own address"))
        })
    }

    fn next_stranger(&mut self) -> MacAddr {
        self.strangers = self.strangers.wrapping_add(1);
        crate::netns::stranger(self.strangers)
    }

    /// Asks for an address `times` times.
    fn ask(&mut self, address: usize, times: usize) -> Went {
        for _ in 0..times {
            let mac = self.next_stranger();
            self.stranger.send(&bytes(&request(mac, ip(251), ip_of(address))));
        }
        self.settle()
    }

    /// No claim of this node's can be taken back any more.
    fn calm(&mut self, node: usize) {
        let latest = self.model.held(node).into_iter().map(|address| self.calm_ns[node][address]).max();
        self.pass_until(latest.unwrap_or(0));
    }

    /// Says who has to defend what, as things stand.
    fn set_duties(&mut self, node: usize) {
        for address in self.model.held(node) {
            self.set_duty(node, address, self.model.holding(node, address));
        }
    }

    fn set_duty(&mut self, node: usize, address: usize, defend: Option<Defend>) {
        let duty = match defend {
            Some(Defend::Hold) if self.runs(node) => Duty::Defend,
            Some(Defend::Hold | Defend::Once) | None => Duty::Perhaps,
            Some(Defend::Yield) => Duty::Refrain,
        };
        let from_ns = boot_ns().max(self.calm_ns[node][address]);
        self.checker.judge.set_duty(node, ip_of(address), boot_ns(), Duty::Perhaps);
        self.checker.judge.set_duty(node, ip_of(address), from_ns, duty);
    }

    /// Starts the node's daemon and waits until it listens.
    fn start(&mut self, node: usize) {
        self.set_all_perhaps(node);
        self.nodes[node].run(&RUN);
        self.started(node);
    }

    /// The node's daemon listens.
    fn started(&mut self, node: usize) {
        self.events[node] = Some(self.nodes[node].events());
        self.books.started(node);
        self.model.nodes[node].daemon = Daemon::Running;
        self.set_duties(node);
    }

    fn claim(&mut self, node: usize, address: usize, way: Way, defend: Defend, leased: bool) -> Went {
        let cidr = format!("{}/24", ip_of(address));
        let lease = LEASE_S.to_string();
        let mut arguments = vec!["online", &cidr, "--iface", "eth0", "--defend", defend.name()];
        if way == Way::Immediate {
            arguments.extend(["--claim", "immediate"]);
        }
        if leased {
            arguments.extend(["--lease", &lease]);
        }
        let begun_ns = boot_ns();
        self.right(node, address, Right::May, "claim begun");
        self.books.forget(node, address);
        self.cli(node, &arguments, 0)?;
        let done_ns = boot_ns();
        self.right(node, address, Right::Must, "online");
        if leased {
            let lease_ns = LEASE_S * 1_000_000_000;
            let end =
                LeaseEnd { sure_ns: begun_ns + lease_ns - LEASE_MARGIN_NS, latest_ns: done_ns + lease_ns };
            self.checker.judge.rights.set_lease(node, ip_of(address), done_ns, Some(end));
        }
        self.calm_ns[node][address] = if way == Way::Immediate { done_ns + ROLL_BACK_NS } else { done_ns };
        self.set_duty(node, address, Some(defend));
        self.ask(address, 1)
    }

    fn claim_taken(&mut self, node: usize, address: usize, way: Way) -> Went {
        let holder = self.model.holder(address).expect("somebody has it");
        let cidr = format!("{}/24", ip_of(address));
        let mut arguments = vec!["online", &cidr, "--iface", "eth0"];
        if way == Way::Immediate {
            arguments.extend(["--claim", "immediate"]);
        }
        self.books.forget(node, address);
        let done = self.cli(node, &arguments, 3)?;
        let owner = self.macs[holder].to_string();
        self.insist(done.err.contains(&owner), || format!("the refusal does not name {owner}: {}", done.err))
    }

    fn overreach(&mut self, node: usize, address: usize) -> Went {
        let holder = self.model.holder(address).expect("somebody has it");
        if holder < NODES {
            self.pass_until(self.calm_ns[holder][address]);
        }
        let begun_ns = boot_ns();
        self.checker.judge.share(ip_of(address), begun_ns, u64::MAX);
        self.right(node, address, Right::May, "claims without a check");
        self.books.forget(node, address);
        let cidr = format!("{}/24", ip_of(address));
        let done = self.nodes[node].cli(&[
            "online",
            &cidr,
            "--iface",
            "eth0",
            "--claim",
            "immediate",
            "--check",
            "0",
        ]);
        // It has come back before the objection or after it.
        self.insist(matches!(done.code, 0 | 3), || format!("a claim without a check: {done:?}"))?;
        self.until(ms(2_000), |stage| {
            let state = stage.nodes[node].state(ip_of(address));
            if state.as_deref() == Some("refused") {
                Ok(())
            } else {
                Err(format!(
                    "node {node} goes on with {}, which host {holder} has: {state:?}",
                    ip_of(address)
                ))
            }
        })?;
        self.right(node, address, Right::Silent, "rolled back");
        self.checker.judge.share(ip_of(address), begun_ns, boot_ns() + IN_FLIGHT_NS);
        self.ask(address, 2)
    }

    fn offline(&mut self, node: usize, address: usize, watch: bool) -> Went {
        let text = ip_of(address).to_string();
        let mut arguments = vec!["offline", text.as_str()];
        if watch {
            arguments.push("--watch");
        }
        if self.model.holding(node, address).is_some() {
            self.right(node, address, Right::May, "being given up");
        }
        self.cli(node, &arguments, 0)?;
        self.right(node, address, Right::Silent, "given up");
        self.books.forget(node, address);
        self.insist(!tools::has_address(&self.nodes[node].host.ns, ip_of(address)), || {
            format!("after `offline` {text} is still on the interface of node {node}")
        })?;
        self.ask(address, 1)
    }

    fn renew(&mut self, node: usize, address: usize, lease_ns: u64, lease: &str) -> Went {
        let begun_ns = boot_ns();
        self.cli(node, &["renew", &ip_of(address).to_string(), "--lease", lease], 0)?;
        let end =
            LeaseEnd { sure_ns: begun_ns + lease_ns - LEASE_MARGIN_NS, latest_ns: boot_ns() + lease_ns };
        self.checker.judge.rights.set_lease(node, ip_of(address), begun_ns, Some(end));
        Ok(())
    }

    fn lease_ends(&mut self, node: usize, address: usize, daemon: Daemon) -> Went {
        self.calm(node);
        self.renew(node, address, SHORT_LEASE_NS, SHORT_LEASE)?;
        let over_ns = boot_ns() + SHORT_LEASE_NS;
        match daemon {
            Daemon::Running => {}
            Daemon::Stopped => self.stop(node)?,
            Daemon::Dead => self.kill(node)?,
        }
        self.pass_until(over_ns + IN_FLIGHT_NS);
        self.right(node, address, Right::Silent, "its lease is past");
        if daemon == Daemon::Running {
            // Taking it off is what the check behind this step waits for.
            return self.ask(address, 3);
        }
        self.is_shielded(node, address)?;
        self.speak_raw(node, address)?;
        self.speak_through_the_kernel(node, address)
    }

    /// An address that may not answer and is on the interface: requests for it are dropped and counted.
    fn is_shielded(&mut self, node: usize, address: usize) -> Went {
        const ASKED: u64 = 3;
        let _quiet = self.asker.pause();
        self.settle()?;
        let maps = Maps::of(&self.nodes[node].instance);
        let counted = || maps.address(ip_of(address)).map(|counters| counters.shielded);
        let (before, guarded) = (counted(), maps.total(Counter::Guarded));
        self.ask(address, 3)?;
        let (after, guarded) = (counted(), maps.total(Counter::Guarded) - guarded);
        let difference = after.zip(before).map(|(after, before)| after - before);
        if difference == Some(ASKED) && guarded == 0 {
            return Ok(());
        }
        let what = format!(
            "node {node} was asked {ASKED} times for {}, which is on its interface and may not answer: its \
             counter `shielded` went up by {difference:?}, `guarded` by {guarded}",
            ip_of(address)
        );
        Err(self.violation(Kind::Miscounted, Some(address), what))
    }

    fn kill(&mut self, node: usize) -> Went {
        self.calm(node);
        self.kill_now(node);
        Ok(())
    }

    fn kill_now(&mut self, node: usize) {
        self.nodes[node].kill();
        self.hear_out(node);
        self.flapped[node] = false;
        self.model.nodes[node].daemon = Daemon::Dead;
        self.set_duties(node);
    }

    /// The daemon has ended: notes what it has told up to then.
    fn hear_out(&mut self, node: usize) {
        if let Some(events) = self.events[node].take() {
            self.books.heard(node, &events.rest());
        }
    }

    fn kill_while(&mut self, node: usize, address: usize, claiming: bool, after_ms: u64) -> Went {
        let text = ip_of(address).to_string();
        let cidr = format!("{text}/24");
        let online = ["online", &cidr, "--iface", "eth0"];
        let offline = ["offline", &text];
        let why = if claiming { "claim begun" } else { "being given up" };
        self.right(node, address, Right::May, why);
        self.books.forget(node, address);
        let mut command = self.nodes[node].command(if claiming { &online } else { &offline });
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut client = command.spawn().expect("the command line starts");
        self.pass_until(boot_ns() + after_ms * 1_000_000);
        self.kill_now(node);
        // How it ends is of no interest: its daemon is gone.
        drop(client.wait());
        self.start(node);
        self.until(SOON, |stage| {
            let state = stage.nodes[node].state(ip_of(address));
            match state.as_deref() {
                Some(state @ ("probing" | "yielding")) => Err(format!("node {node}: {text} stays {state}")),
                Some(_) | None => Ok(()),
            }
        })?;
        // Either way is right; from here on the script knows again.
        self.cli(node, &["offline", &text], 0)?;
        self.right(node, address, Right::Silent, "given up");
        self.insist(!tools::has_address(&self.nodes[node].host.ns, ip_of(address)), || {
            format!("after `offline` {text} is still on the interface of node {node}")
        })?;
        self.ask(address, 1)
    }

    fn stop(&mut self, node: usize) -> Went {
        self.calm(node);
        self.nodes[node].freeze();
        self.model.nodes[node].daemon = Daemon::Stopped;
        self.set_duties(node);
        Ok(())
    }

    fn go_on(&mut self, node: usize) -> Went {
        let flapped = std::mem::take(&mut self.flapped[node]);
        if flapped {
            // It hears only now that the link was down.
            for address in self.model.held(node) {
                self.right(node, address, Right::May, "its daemon hears of a flap");
            }
        }
        self.set_all_perhaps(node);
        self.nodes[node].signal(libc::SIGCONT);
        self.model.nodes[node].daemon = Daemon::Running;
        if flapped {
            self.answers_again(node, None)?;
        }
        self.set_duties(node);
        Ok(())
    }

    /// Waits until all that the node has may answer again.
    fn answers_again(&mut self, node: usize, but: Option<usize>) -> Went {
        let held: Vec<usize> =
            self.model.held(node).into_iter().filter(|address| Some(*address) != but).collect();
        self.until(SOON, |stage| {
            let status = stage.nodes[node].status();
            for &address in &held {
                let text = ip_of(address).to_string();
                let entry = status["addresses"]
                    .as_array()
                    .and_then(|all| all.iter().find(|entry| entry["address"] == text.as_str()));
                if entry.is_none_or(|entry| entry["may_answer"] != true) {
                    return Err(format!("node {node} does not come back with {text}: {entry:?}"));
                }
            }
            Ok(())
        })?;
        for address in held {
            self.right(node, address, Right::Must, "its link is up again");
        }
        Ok(())
    }

    fn upgrade(&mut self, node: usize) -> Went {
        self.audit(node)?;
        self.nodes[node].signal(libc::SIGTERM);
        let code = self.nodes[node].wait_for_end(Duration::from_secs(10));
        self.hear_out(node);
        self.insist(code == 0, || format!("node {node}: SIGTERM ended it with {code}"))?;
        self.start(node);
        Ok(())
    }

    /// `unload`: everything is given up.
    fn release(&mut self, node: usize) -> Went {
        let held = self.model.held(node);
        for &address in &held {
            self.right(node, address, Right::May, "being unloaded");
        }
        let ran = self.model.nodes[node].daemon == Daemon::Running;
        self.cli(node, &["unload"], 0)?;
        if ran {
            self.nodes[node].wait_for_end(Duration::from_secs(10));
        }
        self.hear_out(node);
        for address in 0..ADDRESSES {
            self.right(node, address, Right::Silent, "unloaded");
            self.books.forget(node, address);
            self.insist(!tools::has_address(&self.nodes[node].host.ns, ip_of(address)), || {
                format!("after `unload` {} is still on the interface of node {node}", ip_of(address))
            })?;
        }
        self.books.unloaded(node);
        let pins = self.nodes[node].pins();
        self.insist(!pins.exists(), || format!("after `unload` there still is {}", pins.display()))?;
        let links = tools::snapshot(&self.nodes[node].host.ns);
        self.insist(!links.contains("xdp"), || format!("after `unload` a program is still there: {links}"))
    }

    fn flap(&mut self, node: usize, down_ms: u64, taken: Option<(usize, usize)>) -> Went {
        let runs = self.runs(node);
        if runs {
            self.calm(node);
            for address in self.model.held(node) {
                self.right(node, address, Right::May, "its link is down");
            }
            self.set_all_perhaps(node);
        } else if self.model.nodes[node].daemon == Daemon::Stopped {
            self.flapped[node] = true;
        }
        let down_ns = boot_ns();
        self.net.plug(node, false);
        if let Some((address, to)) = taken {
            self.pass_until(down_ns + (LONG_MS + 150) * 1_000_000);
            self.right(node, address, Right::Silent, "taken over while its link was down");
            let defend = self.model.holding(node, address).expect("it had it");
            self.claim_from_cut(to, address, defend, node)?;
        }
        self.pass_until(down_ns + down_ms * 1_000_000);
        self.net.plug(node, true);
        self.settle()?;
        if runs {
            self.answers_again(node, taken.map(|(address, _)| address))?;
            self.set_duties(node);
        }
        Ok(())
    }

    /// [`Stage::claim`] while another host cannot be reached.
    fn claim_from_cut(&mut self, to: usize, address: usize, defend: Defend, _cut: usize) -> Went {
        let cidr = format!("{}/24", ip_of(address));
        self.right(to, address, Right::May, "claim begun");
        self.books.forget(to, address);
        self.cli(to, &["online", &cidr, "--iface", "eth0", "--defend", defend.name()], 0)?;
        self.right(to, address, Right::Must, "online");
        self.calm_ns[to][address] = boot_ns();
        self.set_duty(to, address, Some(defend));
        Ok(())
    }

    /// It may defend what it has, or not: it is about to look at the world.
    fn set_all_perhaps(&mut self, node: usize) {
        for address in self.model.held(node) {
            self.checker.judge.set_duty(node, ip_of(address), boot_ns(), Duty::Perhaps);
        }
    }

    fn change_mac(&mut self, node: usize) -> Went {
        self.new_macs = self.new_macs.wrapping_add(1);
        let number = u8::try_from(node).expect("a few nodes");
        let mac = MacAddr::new([0x02, 0xcc, 0, 0, number, self.new_macs]);
        self.checker.judge.add_mac(node, mac);
        let since_ns = boot_ns();
        self.nodes[node].host.ns.ip(&format!("link set eth0 address {mac}"));
        self.macs[node] = mac;
        for address in self.model.held(node) {
            self.until(SOON, |stage| {
                let announced = |seen: &Seen| {
                    seen.host == node
                        && seen.from_host
                        && seen.at_ns >= since_ns
                        && seen.frame.sender_mac == mac
                        && seen.frame.sender_ip == ip_of(address).into()
                        && seen.frame.target_ip == seen.frame.sender_ip
                };
                let found = stage.checker.segment.find(announced);
                found
                    .map(drop)
                    .ok_or_else(|| format!("node {node} does not announce {} at {mac}", ip_of(address)))
            })?;
        }
        self.checker.judge.settle_mac(node, mac, boot_ns());
        Ok(())
    }

    /// Somebody takes an address off a node's interface.
    fn take_off(&mut self, node: usize, address: usize) {
        let ns = &self.nodes[node].host.ns;
        for (present, length) in tools::addresses(ns) {
            if present == ip_of(address) {
                ns.ip(&format!("address delete {present}/{length} dev eth0"));
            }
        }
    }

    fn add_by_hand(&mut self, node: usize, address: usize) -> Went {
        self.nodes[node].host.ns.ip(&format!("address add {}/32 dev eth0", ip_of(address)));
        self.ask(address, 2)?;
        if !self.runs(node) {
            return Ok(());
        }
        // The daemon hears of it and shields it.
        let mut last = Ok(());
        self.until(SOON, |stage| {
            last = stage.is_shielded(node, address);
            last.as_ref().map(drop).map_err(|violation| violation.what.clone())
        })
        .or(last)
    }

    /// A frame in which a stranger claims an address of `owner`.
    fn claim_of(&mut self, address: usize, form: Form, owner: MacAddr) -> Vec<u8> {
        let mac = self.next_stranger();
        let address = ip_of(address);
        bytes(&match form {
            Form::Announcement => announcement(mac, address),
            Form::AnnouncementReply => Outgoing::announcement_reply(mac, Vlan::UNTAGGED, address.into()),
            Form::Reply => reply(mac, address, owner, ip(1)),
            Form::Request => request(mac, address, self.net.host(STRANGER).ip),
        })
    }

    /// When a frame was on a host's cable.
    fn delivery(&mut self, host: usize, frame: &[u8]) -> Result<u64, Violation> {
        let mut at_ns = 0;
        self.until(SOON, |stage| {
            let arrived = |seen: &Seen| seen.host == host && !seen.from_host && seen.bytes == frame;
            let seen = stage.checker.segment.find(arrived).ok_or("a frame does not arrive")?;
            at_ns = seen.at_ns;
            Ok(())
        })?;
        Ok(at_ns)
    }

    /// The rule of the wire: `holder` has the address until the claim arrived that takes it away.
    fn lost(&mut self, holder: usize, address: usize, claim: &[u8]) -> Went {
        let at_ns = self.delivery(holder, claim)?;
        let rights = &mut self.checker.judge.rights;
        rights.set(holder, ip_of(address), at_ns, Right::May, "being challenged");
        rights.set(holder, ip_of(address), at_ns + IN_FLIGHT_NS, Right::Silent, "lost to a stranger");
        Ok(())
    }

    fn stranger_claims(&mut self, address: usize, form: Form) -> Went {
        let holder = self.model.holder(address);
        let defend = holder.filter(|host| *host < NODES).and_then(|node| self.model.holding(node, address));
        if let Some(node) = holder.filter(|host| *host < NODES) {
            self.pass_until(self.calm_ns[node][address]);
        }
        let owner = self.macs[holder.unwrap_or(PLAIN)];
        let lost_at = defend.and_then(Defend::lost_at);
        for number in 1..=lost_at.unwrap_or(1) {
            let claim = self.claim_of(address, form, owner);
            self.stranger.send(&claim);
            if let Some(holder) = holder
                && lost_at == Some(number)
            {
                self.lost(holder, address, &claim)?;
            }
            self.ask(address, 1)?;
        }
        Ok(())
    }

    fn flood(&mut self, address: usize, frames: usize) -> Went {
        let holder = self.model.holder(address);
        let node = holder.filter(|host| *host < NODES);
        if let Some(node) = node {
            self.pass_until(self.calm_ns[node][address]);
        }
        let lost_at = node.and_then(|node| self.model.holding(node, address)).and_then(Defend::lost_at);
        let owner = self.macs[holder.unwrap_or(PLAIN)];
        let mut dice = Dice::new(u64::from(self.strangers));
        for number in 1..=frames {
            let forms = [Form::Announcement, Form::AnnouncementReply, Form::Reply, Form::Request];
            let claim = self.claim_of(address, dice.one_of(&forms), owner);
            self.stranger.send(&claim);
            if let Some(node) = node
                && lost_at == Some(number)
            {
                self.lost(node, address, &claim)?;
            }
            // A veth holds 256 frames; what does not fit is lost without a trace.
            if number % 64 == 0 {
                self.ask(address, 1)?;
            }
        }
        self.ask(address, 2)
    }

    fn jump(&mut self, node: usize, seconds: u64) -> Went {
        let was = self.model.nodes[node].daemon;
        if was == Daemon::Running {
            self.stop(node)?;
        }
        let held = self.model.held(node);
        let ends: Vec<usize> = held
            .iter()
            .copied()
            .filter(|&address| self.model.ends_in_sleep(node, address, seconds))
            .collect();
        for &address in &ends {
            self.right(node, address, Right::May, "its machine sleeps");
        }
        Maps::of(&self.nodes[node].instance).sleep(seconds * 1_000_000_000);
        let woken_ns = boot_ns() + IN_FLIGHT_NS;
        for &address in &ends {
            let rights = &mut self.checker.judge.rights;
            rights.set(
                node,
                ip_of(address),
                woken_ns,
                Right::Silent,
                "its lease ended while its machine slept",
            );
        }
        self.pass_until(woken_ns);
        for &address in &held {
            self.checker.judge.set_duty(node, ip_of(address), woken_ns, Duty::Refrain);
        }
        for &address in &held {
            self.ask(address, 1)?;
        }
        for &address in &ends {
            self.speak_raw(node, address)?;
            self.speak_through_the_kernel(node, address)?;
        }
        // A paused owner that wakes up must not fight its successor.
        let fights =
            held.iter().copied().find(|&address| self.model.holding(node, address) == Some(Defend::Hold));
        if let Some(address) = fights.filter(|address| !ends.contains(address)) {
            let claim = self.claim_of(address, Form::Announcement, self.macs[node]);
            self.stranger.send(&claim);
            self.ask(address, 1)?;
        }
        if was == Daemon::Dead {
            return Ok(());
        }
        if ends.is_empty() {
            return if was == Daemon::Running { self.go_on(node) } else { Ok(()) };
        }
        // The daemon's own memory did not sleep: a new one believes the maps.
        self.kill_now(node);
        self.start(node);
        Ok(())
    }

    fn speak(&mut self, node: usize, address: usize) -> Went {
        self.speak_raw(node, address)?;
        if self.model.is_configured(node, address) {
            self.speak_through_the_kernel(node, address)?;
        }
        Ok(())
    }

    /// The node's own host sends frames in the name of an address, through a packet socket.
    fn speak_raw(&mut self, node: usize, address: usize) -> Went {
        let (mac, address) = (self.macs[node], ip_of(address));
        let wire = self.nodes[node].host.wire();
        let frames = [
            announcement(mac, address),
            Outgoing::announcement_reply(mac, Vlan::UNTAGGED, address.into()),
            request(mac, address, ip(251)),
            reply(mac, address, self.macs[STRANGER], self.net.host(STRANGER).ip),
        ];
        let maps = Maps::of(&self.nodes[node].instance);
        let before = maps.total(Counter::Guarded);
        for frame in &frames {
            // The guard drops it, and the kernel says so; whether it does is what the wire and the counter tell.
            drop(wire.offer(&bytes(frame)));
        }
        self.settle()?;
        let guarded = maps.total(Counter::Guarded) - before;
        if guarded >= frames.len() as u64 {
            return Ok(());
        }
        let what = format!(
            "node {node} sent {} frames in the name of {address}: `guarded` went up by {guarded}",
            frames.len()
        );
        Err(Violation {
            kind: Kind::Miscounted,
            at_ns: boot_ns(),
            address: Some(address),
            what,
            frames: Vec::new(),
        })
    }

    /// A program on the node's host sends a datagram from an address to a host that is not there, so that its kernel
    /// asks for it in the address's name.
    fn speak_through_the_kernel(&mut self, node: usize, address: usize) -> Went {
        self.strangers = self.strangers.wrapping_add(1);
        let [_, low] = self.strangers.to_be_bytes();
        let nobody = Ipv4Addr::new(10, 7, 0, 200 + low % 40);
        let sent = self.nodes[node].host.ns.enter(|| {
            let socket = UdpSocket::bind((ip_of(address), 0))?;
            socket.send_to(b"hello", (nobody, 9))
        });
        // Somebody has taken it off the interface, and no daemon was there to put it back: its kernel can say nothing.
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable) {
            return Ok(());
        }
        self.insist(sent.is_ok(), || format!("node {node} cannot send from {}: {sent:?}", ip_of(address)))?;
        self.settle()
    }

    /// What a node says of every address, and what is on its interface, is what the script knows.
    fn agree(&mut self, node: usize) -> Went {
        self.until(SOON, |stage| {
            let status = stage.nodes[node].status();
            let present = tools::addresses(&stage.nodes[node].host.ns);
            for address in 0..ADDRESSES {
                let text = ip_of(address).to_string();
                let entry = status["addresses"]
                    .as_array()
                    .and_then(|all| all.iter().find(|entry| entry["address"] == text.as_str()));
                let state = entry.and_then(|entry| entry["state"].as_str());
                let may_answer = entry.is_some_and(|entry| entry["may_answer"] == true);
                let known = stage.model.nodes[node].entries[address];
                let agrees = match known {
                    Entry::Unmanaged => state.is_none(),
                    Entry::Watched => state == Some("watched"),
                    Entry::Silent { .. } => {
                        matches!(state, Some("refused" | "lost" | "suspended")) && !may_answer
                    }
                    Entry::Holding { .. } => may_answer,
                };
                if !agrees {
                    return Err(format!("node {node} says {text} is {state:?}, the script {known:?}"));
                }
                let configured = present.iter().any(|(on, _)| *on == ip_of(address));
                if configured != stage.model.is_configured(node, address) {
                    let is = if configured { "is" } else { "is not" };
                    return Err(format!(
                        "{text} {is} on the interface of node {node}, the script has {known:?}"
                    ));
                }
            }
            Ok(())
        })
    }

    fn ledgers(&self, node: usize) -> [Ledger; ADDRESSES] {
        std::array::from_fn(|address| self.checker.judge.ledger(node, ip_of(address)))
    }

    /// The counters of a node against what passed on its cable.
    fn audit(&mut self, node: usize) -> Went {
        let _quiet = self.asker.pause();
        self.settle()?;
        let before = self.ledgers(node);
        let status = self.nodes[node].status();
        self.settle()?;
        let after = self.ledgers(node);
        let entries = self.model.nodes[node].entries;
        let seen = std::array::from_fn(|address| Bounds {
            before: before[address],
            after: after[address],
            managed: entries[address] != Entry::Unmanaged,
        });
        self.books
            .audit(node, &status, &seen)
            .map_err(|(address, what)| self.violation(Kind::Miscounted, address, what))?;
        // An event comes some milliseconds behind its frame.
        self.until(SOON, |stage| {
            let events = stage.events[node].as_ref().map(Events::drain).unwrap_or_default();
            stage.books.heard(node, &events);
            let defences = std::array::from_fn(|address| stage.checker.judge.defences(node, ip_of(address)));
            stage.books.audit_defences(node, &defences)
        })
        .map_err(|violation| Violation { kind: Kind::Miscounted, ..violation })
    }
}
