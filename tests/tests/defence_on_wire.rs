//! The program itself defends: from the frame that makes the conflict, with the daemon alive, standing still or dead.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use arpwarden_common::{
    abi::Control,
    net::{MacAddr, Vlan},
    wire::arp::{Form, REQUEST},
};
use arpwarden_tests::{
    asks::{answers_to, ask, quiet, sent_as, speak_as},
    ms,
    netns::{Host, Net, ip, stranger},
    node::{Events, Node},
    pins::Pins,
    tools::{decode, has_address, learn, wait_for_neighbour},
    wait_for,
    wire::{Captured, Wire, announcement, boot_ns, bytes},
};

const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];
const GENERIC: &[&str] = &["--iface", "eth0", "--attach", "generic"];
const TC: &[&str] = &["--iface", "eth0", "--attach", "tc"];
/// How long the plan of announcements may take, on two cores with other tests on them.
const PLAN: Duration = Duration::from_secs(20);
const SECOND: u64 = 1_000_000_000;

/// The address 10.8.x.y of a number.
fn numbered(number: u16) -> Ipv4Addr {
    let [x, y] = number.to_be_bytes();
    Ipv4Addr::new(10, 8, x, y)
}

/// Brings `count` addresses online and waits until their plans are over, so that every announcement is a defence.
fn settled(node: &Node<'_>, count: u16, arguments: &[&str]) -> Vec<Ipv4Addr> {
    let addresses: Vec<Ipv4Addr> = (1..=count).map(numbered).collect();
    let lines: String = addresses.iter().map(|address| format!("{address}/32\n")).collect();
    let command = [&["online", "-", "--iface", "eth0"], arguments].concat();
    node.cli_with_input(&command, &lines).expect(0);
    wait_for("all plans to be over", PLAN, || {
        let status = node.status();
        let entries = status["addresses"].as_array().expect("addresses");
        entries.iter().all(|entry| entry["state"] == "online").then_some(())
    });
    addresses
}

/// Announcements for an address by the host on whose cable the tap was.
fn defences(seen: &[Captured], address: Ipv4Addr, mac: MacAddr) -> Vec<Captured> {
    let sent = seen.iter().filter(|frame| sent_as(frame, address, mac));
    sent.filter(|frame| frame.is_arp(|arp| arp.form() == Form::Announcement)).cloned().collect()
}

/// Claims an address, and returns the announcements with which the host has answered, once all is over.
fn claim(host: &Host, tap: &Wire, address: Ipv4Addr, claimant: u16) -> Vec<Captured> {
    tap.send(&bytes(&announcement(stranger(claimant), address)));
    defences(&quiet(host, tap), address, host.mac)
}

fn names(events: &[arpwarden_tests::node::Event], name: &str) -> usize {
    events.iter().filter(|event| event.json["event"] == name).count()
}

/// Claims each address once, and returns how long each defence took on the wire.
fn claim_all(net: &Net, host: &Host, addresses: &[Ipv4Addr], claimant: u16) -> Vec<Duration> {
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let mut took = Vec::new();
    for &address in addresses {
        wire.send(&bytes(&announcement(stranger(claimant), address)));
        let mut claimed_ns = None;
        let seen = tap.collect_until("the defence", ms(2_000), |frame| {
            if frame.outgoing && frame.says(address, stranger(claimant)) {
                claimed_ns = Some(frame.boot_ns);
            }
            sent_as(frame, address, host.mac)
        });
        let defence = seen.last().expect("waited for");
        let claimed_ns = claimed_ns.expect("the claim comes before its defence");
        took.push(Duration::from_nanos(defence.boot_ns.saturating_sub(claimed_ns)));
    }
    took.sort_unstable();
    took
}

#[test]
fn the_defence_leaves_from_the_conflicting_frame_itself() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let addresses = settled(&node, 400, &[]);
    let events = node.events();
    let tap = net.tap(0);
    let (alive, still) = addresses.split_at(200);
    let with_daemon = claim_all(&net, node.host, alive, 1);
    node.freeze();
    let without = claim_all(&net, node.host, still, 1);
    node.signal(libc::SIGCONT);
    for (what, took) in [("daemon alive", &with_daemon), ("daemon standing still", &without)] {
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!("claim to defence, {what}: p50 {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
        // Microseconds; the bounds are for two cores with other tests on them.
        assert!(at(50) < ms(1), "p50 with the {what}: {:?}", at(50));
        assert!(at(99) < ms(50), "p99 with the {what}: {:?}", at(99));
    }

    // Each is a broadcast announcement in request form, and one event.
    let mut left = addresses.len();
    let seen = events.collect_until("an event for each", Duration::from_secs(20), |event| {
        left -= usize::from(event["event"] == "defended");
        left == 0
    });
    for event in seen.iter().filter(|event| event.json["event"] == "defended") {
        assert_eq!(event.json["claimant"], stranger(1).to_string());
        assert_eq!(event.json["own_mac"], node.host.mac.to_string());
    }
    let wire = node.settled(&tap);
    for &address in &addresses {
        let on_the_wire = defences(&wire, address, node.host.mac);
        assert_eq!(on_the_wire.len(), 1, "{address} was defended by {on_the_wire:#?}");
    }
    let all: Vec<Captured> =
        addresses.iter().flat_map(|address| defences(&wire, *address, node.host.mac)).collect();
    for frame in decode(&all) {
        assert_eq!((frame.operation.as_str(), frame.destination.as_str()), ("1", "ff:ff:ff:ff:ff:ff"));
        assert_eq!(frame.source, node.host.mac.to_string());
        assert_eq!(frame.sender_ip, frame.target_ip);
        assert_eq!(frame.is, ["gratuitous", "announcement"]);
    }
    // No more events came than frames have left, and the counters say the same.
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    let late = events.collect_until("the watched address", ms(5_000), |event| event["to"] == "watched");
    assert_eq!(names(&late, "defended"), 0);
    let status = node.status();
    let counted: u64 = status["addresses"]
        .as_array()
        .expect("addresses")
        .iter()
        .filter_map(|entry| entry["counters"]["defences"].as_u64())
        .sum();
    assert_eq!(counted, 400);
    assert_eq!(status["counters"]["defended"], 400, "{}", status["counters"]);
}

#[test]
fn third_hosts_that_believed_the_claim_are_ours_again_at_once() {
    let net = Net::new(3);
    let node = Node::start(net.host(0));
    let address = settled(&node, 1, &[])[0];
    let third = net.host(2);
    third.ns.ip("route add 10.8.0.0/16 dev eth0");
    learn(&third.ns, address, node.host.mac);
    node.freeze();
    net.host(1).wire().send(&bytes(&announcement(stranger(1), address)));
    wait_for_neighbour(&third.ns, address, node.host.mac, ms(1_000));
}

#[test]
fn a_defence_never_leaves_in_another_vlan() {
    let net = Net::cable();
    let node = Node::start(net.host(0));
    let addresses = settled(&node, 2, &[]);
    let tap = net.tap(0);
    for vlan in [5, 6] {
        let mut tagged = announcement(stranger(1), addresses[0]);
        tagged.vlan = Vlan { outer: vlan, inner: 0 };
        tap.send(&bytes(&tagged));
        let seen = quiet(node.host, &tap);
        assert_eq!(
            defences(&seen, addresses[0], node.host.mac),
            [],
            "a claim in VLAN {vlan} is none of ours"
        );
    }
    assert_eq!(node.counter(addresses[0], "claims"), 0);
    // VID 0 with priority 5 names no VLAN (IEEE 802.1Q §6.9), and the defence keeps the tag.
    let mut tagged = bytes(&announcement(stranger(1), addresses[1]));
    tagged.splice(12..12, [0x81, 0x00, 0xa0, 0x00]);
    tap.send(&tagged);
    let seen = defences(&quiet(node.host, &tap), addresses[1], node.host.mac);
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert_eq!(seen[0].bytes[12..16], [0x81, 0x00, 0xa0, 0x00]);
    // An untagged one is defended without a tag.
    let seen = claim(node.host, &tap, addresses[0], 1);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].bytes[12..14], [0x08, 0x06]);
}

#[test]
fn claims_on_two_processors_get_one_defence_in_an_interval_whoever_sends_it() {
    one_defence_in_an_interval(GENERIC);
}

#[test]
fn so_they_do_in_tc_mode() {
    one_defence_in_an_interval(TC);
}

fn one_defence_in_an_interval(arguments: &[&str]) {
    let net = Net::without_peer_programs(3);
    // In these modes the program runs on the processor of whoever sends.
    let node = Node::start_with(net.host(0), arguments);
    let address = settled(&node, 1, &[])[0];
    let events = node.events();
    let tap = net.tap(0);
    let end = Instant::now() + Duration::from_millis(11_500);
    std::thread::scope(|scope| {
        for (number, host) in [1, 2].map(|host| net.host(host)).into_iter().enumerate() {
            scope.spawn(move || {
                stay_on(number);
                let wire = host.wire();
                let mut claimant = 0_u16;
                while Instant::now() < end {
                    let number = u16::try_from(number).expect("0 or 1");
                    wire.send(&bytes(&announcement(
                        stranger(0x1000 + 0x1000 * number + claimant % 50),
                        address,
                    )));
                    claimant = claimant.wrapping_add(1);
                    if claimant.is_multiple_of(64) {
                        // Some 30,000 claims a second from each, and what it sends is not kept.
                        wire.drain();
                        std::thread::sleep(ms(2));
                    }
                }
            });
        }
        let mut seen = Vec::new();
        while Instant::now() < end {
            seen.extend(tap.next(end).filter(|frame| sent_as(frame, address, node.host.mac)));
        }
        seen.extend(defences(&quiet(node.host, &tap), address, node.host.mac));
        assert_eq!(seen.len(), 2, "{seen:#?}");
        let gap = seen[1].boot_ns - seen[0].boot_ns;
        // The program's clock may be one jiffy late, 10 ms at the coarsest tick that Linux knows.
        assert!((9_990_000_000..11_000_000_000).contains(&gap), "defended again after {gap} ns");
    });
    assert!(node.counter(address, "claims") > 1_000);
    wait_for("both to be told", ms(5_000), || (node.counter(address, "defences") == 2).then_some(()));
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    let seen = events.collect_until("the watched address", ms(10_000), |event| event["to"] == "watched");
    assert_eq!(names(&seen, "defended"), 2);
}

/// Keeps this thread on a processor, if there are as many.
fn stay_on(processor: usize) {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is alive; processors beyond its size are ignored by the macro's bounds.
    unsafe { libc::CPU_SET(processor % libc::CPU_SETSIZE as usize, &mut set) };
    // SAFETY: pointer and length belong to the set. Where there is no such processor it stays where it is.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
}

#[test]
fn a_daemon_that_stands_still_leaves_the_program_armed_for_thirty_seconds_or_its_lease() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let plain = settled(&node, 4, &[]);
    let leased = ip(100);
    node.online_with(100, &["--lease", "300"]);
    let leased_again = ip(101);
    node.online_with(101, &["--lease", "300"]);
    node.wait_for_state(leased_again, "online", PLAN);
    let (pins, tap) = (Pins::of(&node), net.tap(0));
    node.freeze();
    assert_eq!(claim(node.host, &tap, plain[0], 1).len(), 1, "the heartbeat is fresh");

    let age = |seconds: u64| move |control: &mut Control| control.heartbeat_ns = boot_ns() - seconds * SECOND;
    pins.change_control(age(20));
    assert_eq!(claim(node.host, &tap, plain[1], 1).len(), 1, "the heartbeat is young enough");
    pins.change_control(age(31));
    assert_eq!(claim(node.host, &tap, plain[2], 1), [], "nobody has looked at the world for too long");
    assert_eq!(answers_to(&net, 0, plain[2]).len(), 1, "but it is answered all the same");
    assert_eq!(claim(node.host, &tap, leased, 1).len(), 1, "a lease is as good as a heartbeat");

    // The machine has slept for a second since the daemon looked last.
    pins.change_control(|control| {
        control.heartbeat_ns = boot_ns();
        control.slept_ns = control.slept_ns.wrapping_sub(SECOND);
    });
    assert_eq!(claim(node.host, &tap, plain[3], 1), [], "the machine has slept");
    assert_eq!(claim(node.host, &tap, leased_again, 1), [], "the machine has slept, lease or not");

    // The daemon looks, and the program is armed again.
    node.signal(libc::SIGCONT);
    let slept = |control: &Control| control.slept_ns;
    let mut before = 0;
    pins.change_control(|control| before = slept(control));
    wait_for("a heartbeat", Duration::from_secs(15), || {
        let mut now = 0;
        pins.change_control(|control| now = slept(control));
        (now != before).then_some(())
    });
    // Those that were not defended then are due now: by the daemon that was told of the claim, or by the program.
    let seen = claim(node.host, &tap, plain[3], 2);
    let defended = || node.counter(plain[3], "defences");
    assert!(seen.len() == 1 || defended() == 1, "neither has defended: {seen:?}");
}

/// Kills the daemon, claims an address until it has fallen, and asserts that it is silent from that frame on, and `lost`
/// when the next daemon looks.
fn falls_without_a_daemon(policy: &str, arguments: &[&str], defended: &[usize]) {
    let net = Net::new(2);
    let mut node = Node::start_with(net.host(0), arguments);
    let address = node.online_with(100, &["--defend", policy]);
    node.wait_for_state(address, "online", PLAN);
    let (pins, tap) = (Pins::of(&node), net.tap(0));
    node.kill();
    assert_eq!(answers_to(&net, 0, address).len(), 1, "answered without a daemon");
    for (number, expected) in defended.iter().enumerate() {
        assert!(!pins.has_fallen(address));
        assert_eq!(claim(node.host, &tap, address, 1).len(), *expected, "claim {number}");
    }
    assert!(pins.has_fallen(address));
    assert!(has_address(&node.host.ns, address), "nobody is there to take it off");
    assert_eq!(ask(&net, 0, address), [], "answered after it had fallen");
    assert_eq!(speak_as(&net, 0, address), [], "spoken for after it had fallen");
    assert_eq!(claim(node.host, &tap, address, 2), [], "defended after it had fallen");

    tap.drain();
    node.run(arguments);
    node.wait_for_state(address, "lost", ms(5_000));
    wait_for("the address to be gone", ms(5_000), || (!has_address(&node.host.ns, address)).then_some(()));
    let entry = node.address(address).expect("listed");
    assert_eq!(entry["owner"], stranger(2).to_string(), "{entry}");
    let events = node.events();
    let adopted = events.wait_for("the adoption", ms(5_000), |event| event["event"] == "adopted");
    assert_eq!(adopted.json["address"], address.to_string());
    let seen = node.settled(&tap);
    let words: Vec<&Captured> = seen.iter().filter(|frame| sent_as(frame, address, node.host.mac)).collect();
    assert!(words.is_empty(), "{words:#?}");
}

#[test]
fn yield_gives_an_address_up_without_a_daemon() {
    falls_without_a_daemon("yield", NATIVE, &[0]);
}

#[test]
fn in_tc_mode_it_is_given_up_so_as_well() {
    falls_without_a_daemon("yield", TC, &[0]);
    falls_without_a_daemon("once", TC, &[1, 0]);
}

#[test]
fn once_gives_it_up_at_the_second_conflict_without_a_daemon() {
    falls_without_a_daemon("once", NATIVE, &[1, 0]);
}

#[test]
fn yield_silences_the_address_from_the_very_frame_on() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--defend", "yield"]);
    node.wait_for_state(address, "online", PLAN);
    let events = node.events();
    node.freeze();
    let tap = net.tap(0);
    assert_eq!(claim(node.host, &tap, address, 1), []);
    assert_eq!(ask(&net, 0, address), []);
    assert_eq!(speak_as(&net, 0, address), []);
    node.signal(libc::SIGCONT);
    let lost = events.wait_for_state(address, "lost", ms(5_000));
    assert_eq!(lost.json["reason"], "defend_policy", "{}", lost.json);
    assert_told_once(&events, &node, address);
    // A new claim has another generation: it is answered again.
    node.online_with(100, &["--defend", "yield"]);
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    assert!(!Pins::of(&node).has_fallen(address));
}

/// Asserts that no defence was told of.
fn assert_told_once(events: &Events, node: &Node<'_>, address: Ipv4Addr) {
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    let seen = events.collect_until("the watched address", ms(5_000), |event| event["to"] == "watched");
    assert_eq!(names(&seen, "defended"), 0);
    assert_eq!(node.counter(address, "defences"), 0);
}

#[test]
fn an_immediate_claim_is_not_defended_as_long_as_it_may_be_rolled_back() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    let tap = net.tap(0);
    let address = node.online_with(100, &["--claim", "immediate"]);
    assert_eq!(answers_to(&net, 0, address).len(), 1, "answered meanwhile");
    tap.drain();
    let claimed_ns = tap.send(&bytes(&announcement(stranger(1), address)));
    events.wait_for("the roll-back", ms(5_000), |event| event["event"] == "rolled_back");
    node.wait_for_state(address, "refused", ms(5_000));
    let seen = node.settled(&tap);
    let late: Vec<Captured> = defences(&seen, address, node.host.mac);
    // A round of the plan may have crossed the claim; a defence would come behind it.
    assert!(late.iter().all(|frame| frame.boot_ns < claimed_ns), "{late:#?}");
    assert!(
        seen.iter().any(|frame| sent_as(frame, address, stranger(1))
            && frame.is_arp(|arp| { arp.operation == REQUEST && arp.source == node.host.mac })),
        "the owner is announced again: {seen:#?}"
    );
    assert_eq!(node.counter(address, "defences"), 0);
}
