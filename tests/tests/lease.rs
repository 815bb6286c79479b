//! Leases: an address is answered until the end of its lease and not a frame after, whatever the daemon does.
//!
//! Whether a request came before or after the end is known from when it was sent, so that a machine which is
//! slow to carry it, or to say when it saw the answer, proves nothing wrong.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arpwarden_common::{abi::Group, wire::arp::Form};
use arpwarden_tests::{
    flood::{Answers, Asked, Flood, Flooded, ask, settled},
    kernel::{Groups, Slots},
    ms,
    netns::{Net, ip, stranger},
    node::Node,
    tools::{addresses, arping, has_address},
    wait_for,
    wire::{Captured, announcement, boot_ns, bytes},
};

const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];

/// The program's clock may be one jiffy late, 10 ms at the coarsest tick that Linux knows; the daemon lets leases
/// end so much earlier.
const TICK_NS: u64 = 10_000_000;

const fn ns(milliseconds: u64) -> u64 {
    milliseconds * 1_000_000
}

/// Threads that do nothing but keep the processors busy; one such set at a time.
struct Busy {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _alone: MutexGuard<'static, ()>,
}

static BUSY: Mutex<()> = Mutex::new(());

impl Busy {
    fn with(loops: usize) -> Self {
        // A test that failed while it was busy is busy no more.
        let alone = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Arc::new(AtomicBool::new(false));
        let one = || {
            let end = Arc::clone(&end);
            std::thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..loops).map(|_| one()).collect();
        Self { end, threads, _alone: alone }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a loop does not panic");
        }
    }
}

fn lease_until_ns(node: &Node, address: Ipv4Addr) -> u64 {
    Slots::pinned(&node.instance).lease_until_ns(address)
}

fn wait_until_ns(time_ns: u64) {
    let left = Duration::from_nanos(time_ns.saturating_sub(boot_ns()));
    wait_for("the end of a lease", left + ms(2_000), || (boot_ns() > time_ns).then_some(()));
}

/// Floods the node with requests for an address with a lease across its end, and asserts that those sent before it
/// are answered (but for the last `slack_ms`, which may have been on their way) and those sent after it are not.
fn answered_until_the_end(
    net: &Net,
    node: &mut Node,
    slack_ms: u64,
    act: impl FnOnce(&mut Node),
) -> Ipv4Addr {
    const LEASE_MS: u64 = 3_000;
    let tap = net.tap(0);
    let begun_ns = boot_ns();
    let address = node.online_with(100, &["--lease", "3", "--claim", "immediate"]);
    let done_ns = boot_ns();
    let until_ns = lease_until_ns(node, address);
    let right = begun_ns + ns(LEASE_MS) - TICK_NS..=done_ns + ns(LEASE_MS) - TICK_NS;
    assert!(right.contains(&until_ns), "a lease until {until_ns} is not in {right:?}");

    let flood = Flood::start(net.host(1), &[address], ms(1), [tap]);
    act(node);
    wait_until_ns(until_ns + ns(300));
    let Flooded { asked, taps: [tap] } = flood.stop();
    let seen = tap.settled(&net.host(1).wire(), node.host.ip);
    let answers = Answers::among(&seen);
    answers.one_each(asked.iter().filter(|asked| asked.sent_ns < until_ns - ns(slack_ms)));
    answers.none(asked.iter().filter(|asked| asked.sent_ns > until_ns + TICK_NS));
    // Nor is anything else said in its name, but for what a slow machine was late to see.
    let late_ns = until_ns + TICK_NS + ns(slack_ms);
    let late: Vec<&Captured> = seen
        .iter()
        .filter(|frame| !frame.outgoing && frame.boot_ns > late_ns && frame.says(address, node.host.mac))
        .collect();
    assert!(late.is_empty(), "past the lease, which ended at {until_ns}: {late:#?}");
    address
}

/// The daemon has noticed: the address is suspended and off the interface.
fn is_suspended(node: &Node, address: Ipv4Addr) {
    node.wait_for_state(address, "suspended", ms(5_000));
    wait_for("the address to be gone", ms(5_000), || (!has_address(&node.host.ns, address)).then_some(()));
    let entry = node.address(address).expect("a suspended address stays listed");
    assert_eq!(entry["may_answer"], false);
    assert_eq!(entry["lease_left"], 0.0);
}

#[test]
fn an_address_is_answered_until_the_end_of_its_lease_and_then_suspended() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let events = node.events();
    let address = answered_until_the_end(&net, &mut node, 50, |_| ());
    let expired = events.wait_for("the end", ms(3_000), |event| event["event"] == "lease_expired");
    assert_eq!(expired.json["address"], address.to_string());
    is_suspended(&node, address);
    let past = node.events();
    let step = past.wait_for_state(address, "suspended", ms(1_000));
    assert_eq!(step.json["reason"], "lease_expired", "{step:?}");
}

#[test]
fn the_lease_of_a_stopped_daemon_ends_and_it_notices_when_it_goes_on() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let events = node.events();
    let address = answered_until_the_end(&net, &mut node, 50, |node| node.freeze());
    assert!(has_address(&node.host.ns, address), "nobody was there to take it off");
    node.signal(libc::SIGCONT);
    let expired = events.wait_for("the end", ms(3_000), |event| event["event"] == "lease_expired");
    assert_eq!(expired.json["address"], address.to_string());
    is_suspended(&node, address);
    // The kernel was not even asked: the guard would have kept its answers in.
    assert!(node.counter(address, "shielded") > 0);
}

#[test]
fn the_lease_of_a_killed_daemon_ends_and_the_next_one_notices() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = answered_until_the_end(&net, &mut node, 50, |node| node.kill());
    assert!(has_address(&node.host.ns, address), "nobody was there to take it off");
    node.run(NATIVE);
    is_suspended(&node, address);
    let past = node.events();
    let step = past.wait_for_state(address, "suspended", ms(1_000));
    assert_eq!(step.json["reason"], "lease_expired", "{step:?}");
}

#[test]
fn a_lease_ends_in_time_on_a_busy_machine() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let busy = Busy::with(2);
    let address = answered_until_the_end(&net, &mut node, 300, |_| ());
    is_suspended(&node, address);
    drop(busy);
}

#[test]
fn a_lease_of_a_stopped_daemon_ends_in_time_on_a_busy_machine() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let busy = Busy::with(2);
    answered_until_the_end(&net, &mut node, 300, |node| node.freeze());
    drop(busy);
}

#[test]
fn an_adopted_address_keeps_the_end_of_its_lease() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = node.online_with(100, &["--lease", "60"]);
    let until_ns = lease_until_ns(&node, address);
    node.kill();
    node.run(NATIVE);
    assert_eq!(lease_until_ns(&node, address), until_ns);
    let left = node.address(address).expect("managed")["lease_left"].as_f64().expect("a lease");
    assert!(left > 0.0 && left < 60.0, "{left}");
    // The daemon, too, knows of it: it can be renewed, and ends.
    node.cli(&["renew", "10.7.0.100", "--lease", "0.5"]).expect(0);
    is_suspended(&node, address);
}

#[test]
fn a_renewed_lease_goes_on_and_the_first_end_is_none() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--lease", "2"]);
    let first_ns = lease_until_ns(&node, address);
    let flood = Flood::start(net.host(1), &[address], ms(1), [net.tap(0)]);
    let begun_ns = boot_ns();
    node.cli(&["renew", "10.7.0.100", "--lease", "60"]).expect(0).naming("10.7.0.100");
    let renewed_ns = lease_until_ns(&node, address);
    let right = begun_ns + ns(60_000) - TICK_NS..=boot_ns() + ns(60_000) - TICK_NS;
    assert!(right.contains(&renewed_ns), "renewed until {renewed_ns}, not in {right:?}");
    let left = node.address(address).expect("managed")["lease_left"].as_f64().expect("a lease");
    assert!(left > 50.0 && left <= 60.0, "{left}");
    wait_until_ns(first_ns + ns(100));
    let Flooded { asked, taps: [tap] } = flood.stop();
    let seen = tap.settled(&net.host(1).wire(), node.host.ip);
    Answers::among(&seen).one_each(&asked);
    assert_eq!(node.address(address).expect("managed")["may_answer"], true);
    assert!(has_address(&node.host.ns, address));

    // A shorter one counts too.
    node.cli(&["renew", "10.7.0.100", "--lease", "0.5"]).expect(0);
    assert!(lease_until_ns(&node, address) < renewed_ns);
    is_suspended(&node, address);
}

#[test]
fn after_its_end_a_lease_cannot_be_renewed_and_nothing_changes() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--lease", "0.5"]);
    is_suspended(&node, address);
    let (until_ns, tap) = (lease_until_ns(&node, address), net.tap(0));
    node.cli(&["renew", "10.7.0.100", "--lease", "5"]).expect(1).naming("10.7.0.100").naming("online");
    is_suspended(&node, address);
    assert_eq!(lease_until_ns(&node, address), until_ns);
    assert_eq!(arping(net.host(1), &["-D", "-c", "1", "-w", "1"], address).code, 0, "nobody answers");
    let spoken: Vec<Captured> = node.settled(&tap);
    assert!(!spoken.iter().any(|frame| !frame.outgoing && frame.says(address, node.host.mac)), "{spoken:?}");
}

#[test]
fn a_renewal_that_a_stopped_daemon_reads_too_late_is_refused() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--lease", "1"]);
    node.freeze();
    let until_ns = lease_until_ns(&node, address);
    std::thread::scope(|scope| {
        let renewal = scope.spawn(|| node.cli(&["renew", "10.7.0.100", "--lease", "60"]));
        wait_until_ns(until_ns + TICK_NS);
        // The first thing it finds is a command in time to the one who sent it.
        node.signal(libc::SIGCONT);
        renewal.join().expect("a command that ends").expect(1).naming("10.7.0.100");
    });
    is_suspended(&node, address);
    assert_eq!(arping(net.host(1), &["-D", "-c", "1", "-w", "1"], address).code, 0, "nobody answers");
}

#[test]
fn renewals_say_what_cannot_be_renewed() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.online(100);
    net.host(1).ns.ip("address add 10.7.0.101/24 dev eth0");
    node.try_online(101, &[]).expect(3);
    node.cli(&["renew", "10.7.0.250", "--lease", "5"]).expect(1).naming("10.7.0.250");
    node.cli(&["renew", "10.7.0.101", "--lease", "5"]).expect(1).naming("10.7.0.101").naming("refused");
    node.cli(&["renew", "10.7.0.100", "--lease", "0"]).expect(2);
    node.cli(&["renew", "10.7.0.100"]).expect(2);
    // One without a lease gets one.
    assert!(node.address(ip(100)).expect("managed")["lease_left"].is_null());
    node.cli(&["renew", "10.7.0.100", "--lease", "5"]).expect(0);
    assert!(node.address(ip(100)).expect("managed")["lease_left"].is_number());
}

#[test]
fn renew_all_renews_what_has_a_lease_and_no_more() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    node.online_with(100, &["--lease", "30"]);
    node.online_with(101, &["--lease", "30"]);
    node.online(102);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    let done = node.cli(&["renew", "--all", "--lease", "300"]).expect(0).naming("10.7.0.100");
    let said = done.naming("10.7.0.101");
    assert!(!said.out.contains("10.7.0.102") && !said.out.contains("10.7.0.150"), "{said:?}");
    for (last, renewed) in [(100, true), (101, true), (102, false)] {
        let left = node.address(ip(last)).expect("managed")["lease_left"].as_f64();
        assert_eq!(left.is_some_and(|left| left > 200.0), renewed, "{last}: {left:?}");
    }
}

#[test]
fn online_again_renews_a_standing_lease_and_claims_anew_past_it() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--lease", "30"]);
    let (first_ns, tap) = (lease_until_ns(&node, address), net.tap(0));
    let probes = |seen: &[Captured]| {
        seen.iter().filter(|frame| !frame.outgoing && frame.is_arp(|arp| arp.form() == Form::Probe)).count()
    };
    node.online_with(100, &["--lease", "60"]);
    assert!(lease_until_ns(&node, address) > first_ns + ns(20_000));
    assert_eq!(probes(&node.settled(&tap)), 0, "it was not claimed again");

    node.online_with(100, &["--lease", "0.5"]);
    is_suspended(&node, address);
    node.settled(&tap);
    node.online_with(100, &["--lease", "60"]);
    assert_eq!(probes(&node.settled(&tap)), 3, "it was claimed again");
    assert!(has_address(&node.host.ns, address));
    assert!(lease_until_ns(&node, address) > boot_ns() + ns(50_000));
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
}

#[test]
fn a_lease_out_of_bounds_is_refused() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    for lease in ["0", "0.05", "86401", "-1", "soon"] {
        node.try_online(100, &[&format!("--lease={lease}")]).expect(2);
    }
    assert_eq!(addresses(&node.host.ns).len(), 1);
}

#[test]
fn a_successor_takes_over_after_the_lease_of_a_frozen_owner_and_never_two_answer() {
    let net = Net::new(3);
    let (a, b) = (Node::start(net.host(0)), Node::start(net.host(1)));
    let client = net.host(2);
    let address = a.online_with(100, &["--lease", "4", "--claim", "immediate"]);
    let taps = [net.tap(0), net.tap(1)];
    let later = net.tap(0);
    a.freeze();
    let until_ns = lease_until_ns(&a, address);
    let flood = Flood::start(client, &[address], ms(1), taps);
    b.online_with(100, &["--lease", "60", "--wait", "20"]);
    assert!(boot_ns() > until_ns, "while the owner was still answering");
    let begun = flood.sent();
    wait_for("requests to the new owner", ms(5_000), || (flood.sent() > begun + 200).then_some(()));
    let Flooded { asked, taps: [tap_a, tap_b] } = flood.stop();
    let wire = client.wire();
    let [from_a, from_b] = [(&a, tap_a), (&b, tap_b)].map(|(node, tap)| {
        let mut seen = tap.settled(&wire, node.host.ip);
        seen.retain(|frame| !frame.outgoing);
        seen
    });
    let times = |seen: &[Captured], node: &Node| -> Vec<u64> {
        let spoken = seen.iter().filter(|frame| frame.says(address, node.host.mac));
        spoken.map(|frame| frame.boot_ns).collect()
    };
    let last_of_a = times(&from_a, &a).into_iter().max().expect("the first owner spoke");
    let first_of_b = times(&from_b, &b).into_iter().min().expect("the second owner spoke");
    assert!(last_of_a < first_of_b, "the first owner spoke until {last_of_a}, the second from {first_of_b}");
    let (by_a, by_b) = (Answers::among(&from_a), Answers::among(&from_b));
    let twice: Vec<&Asked> =
        asked.iter().filter(|asked| by_a.to(asked).len() + by_b.to(asked).len() > 1).collect();
    assert!(twice.is_empty(), "answered twice: {twice:?}");
    by_b.one_each(&asked[begun..]);

    // The first owner wakes up, finds its lease past and another owner, and leaves it at that. (Its answers to the
    // probes of the second were conflicts.)
    let conflicts = b.counter(address, "conflicts");
    later.drain();
    a.signal(libc::SIGCONT);
    is_suspended(&a, address);
    assert_eq!(arping(client, &["-c", "1", "-w", "2"], address).code, 0);
    assert!(!a.settled(&later).iter().any(|frame| !frame.outgoing && frame.says(address, a.host.mac)));
    assert_eq!(b.counter(address, "conflicts"), conflicts);
}

#[test]
fn past_the_lease_nothing_is_defended() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let stranger_claims = |address| net.host(1).wire().send(&bytes(&announcement(stranger(1), address)));
    let (kept, past) = (ip(100), ip(101));
    node.online_with(100, &["--lease", "60"]);
    node.online_with(101, &["--lease", "1"]);
    node.freeze();
    let until_ns = lease_until_ns(&node, past);
    wait_until_ns(until_ns + TICK_NS);
    let tap = net.tap(0);
    stranger_claims(past);
    stranger_claims(kept);
    // What stands is defended by the program, so the other one had its time.
    tap.collect_until("the defence", ms(2_000), |frame| {
        let spoken = |address| !frame.outgoing && frame.says(address, node.host.mac);
        assert!(!spoken(past), "defended past its lease: {frame:?}");
        spoken(kept)
    });
    node.signal(libc::SIGCONT);
    is_suspended(&node, past);
    stranger_claims(past);
    let seen = node.settled(&tap);
    assert!(!seen.iter().any(|frame| !frame.outgoing && frame.says(past, node.host.mac)), "{seen:#?}");
}

#[test]
fn a_jump_of_boot_time_silences_before_the_first_answer() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--lease", "3600"]);
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let answered = ask(&wire, address);
    Answers::among(&settled(&wire, node.host.ip, &tap)).one_each([&answered]);
    node.freeze();
    // The machine has slept for an hour and a bit: seen from its end, the lease was so much longer ago.
    let slots = Slots::pinned(&node.instance);
    slots.end_lease_at(address, slots.lease_until_ns(address) - ns(3_601_000));
    let asked: Vec<Asked> = (0..20).map(|_| ask(&wire, address)).collect();
    let seen = settled(&wire, node.host.ip, &tap);
    Answers::among(&seen).none(&asked);
    node.signal(libc::SIGCONT);
    assert_eq!(node.address(address).expect("managed")["may_answer"], false);
    let asked = ask(&wire, address);
    Answers::among(&settled(&wire, node.host.ip, &tap)).none([&asked]);
}

#[test]
fn one_store_silences_all_addresses_of_a_group_and_so_does_the_end_of_its_lease() {
    const GROUP: u32 = 7;
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let members: Vec<Ipv4Addr> = (100..120).map(ip).collect();
    let lines: String = members.iter().map(|address| format!("{address}/24\n")).collect();
    node.cli_with_input(&["online", "-", "--iface", "eth0"], &lines).expect(0);
    let other = node.online(130);
    node.freeze();
    let (slots, groups) = (Slots::pinned(&node.instance), Groups::pinned(&node.instance));
    groups.store(GROUP, Group::ANSWERS);
    for member in &members {
        slots.put_into_group(*member, u16::try_from(GROUP).expect("one of the first"));
    }
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let all = || -> Vec<Asked> { members.iter().map(|member| ask(&wire, *member)).collect() };
    let answers = || Answers::among(&settled(&wire, other, &tap));
    let asked = all();
    answers().one_each(&asked);

    groups.store(GROUP, Group::SILENT);
    let asked = all();
    answers().none(&asked);
    let own = bytes(&announcement(node.host.mac, members[0]));
    let refused = node.host.wire().offer(&own).expect_err("an announcement of a silent address leaves");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOBUFS));

    groups.store(GROUP, Group::ANSWERS);
    let asked = all();
    answers().one_each(&asked);
    let until_ns = boot_ns() + ns(1_000);
    groups.end_lease_at(GROUP, until_ns);
    let asked = all();
    if boot_ns() < until_ns - ns(100) {
        answers().one_each(&asked);
    }
    wait_until_ns(until_ns + TICK_NS);
    let asked = all();
    answers().none(&asked);
    // A lease of its own that stands does not help a member.
    slots.end_lease_at(members[0], boot_ns() + ns(60_000));
    let asked = ask(&wire, members[0]);
    answers().none([&asked]);
}

#[test]
fn a_group_is_renewed_given_up_and_claimed_anew_by_its_name() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let members = [ip(100), ip(101)];
    let other = node.online(130);
    let both = members.map(|address| format!("{address}/24"));
    let claim = ["online", &both[0], &both[1], "--iface", "eth0", "--group", "web", "--lease", "30"];
    let answered = |yes: bool| {
        let asked = members.map(|member| ask(&wire, member));
        let answers = Answers::among(&settled(&wire, other, &tap));
        if yes { answers.one_each(&asked) } else { answers.none(&asked) }
    };
    node.cli(&claim).expect(0);
    answered(true);
    assert_eq!(node.address(members[1]).expect("managed")["group"], "web");
    // The lease is the group's from now on, so nobody prolongs it for one alone.
    node.cli(&["renew", "@web", "--lease", "60"]).expect(0).naming("60 s");
    node.cli(&["renew", &members[0].to_string(), "--lease", "90"]).expect(1).naming("@web");
    node.cli(&["renew", "@nobody", "--lease", "90"]).expect(1).naming("no addresses");
    node.cli(&["renew", "@Web", "--lease", "90"]).expect(2);
    let left = node.address(members[0]).expect("managed")["lease_left"].as_f64().expect("a lease");
    assert!((30.0..=60.0).contains(&left), "{left}");

    // It outlives the daemon.
    node.kill();
    answered(true);
    node.run(&["--iface", "eth0", "--attach", "native"]);
    assert_eq!(node.address(members[0]).expect("managed")["group"], "web");
    node.cli(&["renew", "@web", "--lease", "60"]).expect(0);

    // Given up: both, and nothing else.
    node.cli(&["offline", "@web"]).expect(0);
    answered(false);
    for member in members {
        assert!(node.address(member).is_none() && !has_address(&node.host.ns, member), "{member}");
    }
    assert_eq!(node.state(other).as_deref().map(|state| state != "yielding"), Some(true));
    node.cli(&["offline", "@web"]).expect(0).naming("nothing to do");

    // Past the lease a renewal is refused, and a new claim begins a new life.
    node.cli(&claim).expect(0);
    node.cli(&["renew", "@web", "--lease", "0.5"]).expect(0);
    for member in members {
        is_suspended(&node, member);
    }
    answered(false);
    node.cli(&["renew", "@web", "--lease", "60"]).expect(1).naming("past");
    answered(false);
    node.cli(&claim).expect(0);
    answered(true);
}

#[test]
fn a_group_that_was_being_given_up_when_the_daemon_died_is_given_up_by_the_next_one() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let members = [ip(100), ip(101)];
    let both = members.map(|address| format!("{address}/24"));
    node.cli(&["online", &both[0], &both[1], "--iface", "eth0", "--group", "web"]).expect(0);
    node.kill();
    // The first group has the first number. As `offline @web` begins.
    Groups::pinned(&node.instance).store(1, Group::SILENT);
    node.run(&["--iface", "eth0", "--attach", "native"]);
    for member in members {
        wait_for("the address to be given up", ms(5_000), || node.address(member).is_none().then_some(()));
        assert!(!has_address(&node.host.ns, member), "{member}");
    }
}
