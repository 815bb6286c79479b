//! What `online` of a free address puts on the wire: exactly the plan, and nothing else.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_common::wire::arp::{Form, REPLY, REQUEST};
use arpwarden_tests::{
    ms,
    netns::{Net, ip, stranger},
    node::Node,
    tools::{decode, learn, neighbour, run, wait_for_neighbour},
    wire::Captured,
};

/// The rounds of the plan in milliseconds.
const ROUNDS: [u64; 4] = [0, 1_100, 2_200, 5_000];
/// How late a timer and a packet socket may be on two cores with eight tests on them.
const LATE: u64 = 50;
/// The whole plan with its tenth.
const PLAN: Duration = Duration::from_secs(8);

fn sent_by_the_host(seen: Vec<Captured>) -> Vec<Captured> {
    seen.into_iter().filter(|frame| !frame.outgoing).collect()
}

/// Asserts that these are the frames of one whole plan for an address.
fn assert_plan(frames: &[Captured], address: Ipv4Addr, mac: &str) {
    assert_eq!(frames.len(), 8, "four rounds of two frames: {frames:#?}");
    let decoded = decode(frames);
    for (frame, (number, seen)) in decoded.iter().zip(frames.iter().enumerate()) {
        // One request, then one reply, whose target MAC repeats the sender's: Linux ignores it otherwise.
        let reply = number % 2 == 1;
        assert_eq!(frame.operation, if reply { "2" } else { "1" });
        assert_eq!(frame.target_mac, if reply { mac } else { "00:00:00:00:00:00" });
        assert_eq!((frame.source.as_str(), frame.sender_mac.as_str()), (mac, mac));
        assert_eq!(frame.destination, "ff:ff:ff:ff:ff:ff");
        assert_eq!(frame.sender_ip, address.to_string());
        assert_eq!(frame.target_ip, address.to_string());
        assert!(frame.is.contains(&"gratuitous"), "{frame:?}");
        assert!(frame.vlans.is_empty());
        let due = ROUNDS[number / 2];
        let at = (seen.boot_ns - frames[0].boot_ns) / 1_000_000;
        assert!(
            (due * 9 / 10..=due * 11 / 10 + LATE).contains(&at),
            "frame {number} came after {at} ms, its round is due at {due} ms"
        );
    }
}

#[test]
fn a_probed_address_is_announced_by_plan_and_nothing_else_leaves() {
    let net = Net::new(4);
    let node = Node::start(net.host(0));
    let address = ip(100);
    let [elsewhere, stale, ignorant] = [net.host(1), net.host(2), net.host(3)];
    learn(&elsewhere.ns, address, stranger(1));
    stale.ns.ip(&format!("neighbour replace {address} lladdr {} dev eth0 nud stale", stranger(2)));
    let events = node.events();
    let tap = net.tap(0);

    node.online(100);
    for third in [elsewhere, stale] {
        wait_for_neighbour(&third.ns, address, node.host.mac, ms(1_000));
    }
    assert_eq!(node.state(address).as_deref(), Some("announcing"));
    events.wait_for_state(address, "online", PLAN);
    let sent = sent_by_the_host(node.settled(&tap));
    let (probes, announced) = sent.split_at(3);
    for frame in probes {
        let of_ours = frame.is_arp(|arp| arp.form() == Form::Probe && arp.target_ip == address.into());
        assert!(of_ours, "the fast profile's three probes come first: {sent:#?}");
    }
    assert_plan(announced, address, &node.host.mac.to_string());

    // A host that had no entry asks and learns.
    let mut ping = ignorant.ns.command("ping");
    ping.args(["-n", "-c", "1", "-W", "2", &address.to_string()]);
    run(ping);
    for third in [elsewhere, stale, ignorant] {
        assert_eq!(neighbour(&third.ns, address), Some(node.host.mac));
    }
}

#[test]
fn an_immediate_claim_is_one_probe_and_the_same_plan() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = ip(100);
    learn(&net.host(1).ns, address, stranger(1));
    let tap = net.tap(0);
    node.online_with(100, &["--claim", "immediate"]);
    wait_for_neighbour(&net.host(1).ns, address, node.host.mac, ms(1_000));
    node.wait_for_state(address, "online", PLAN);
    let sent = sent_by_the_host(node.settled(&tap));
    assert!(sent[0].is_arp(|arp| arp.form() == Form::Probe), "{sent:#?}");
    let check = (sent[1].boot_ns - sent[0].boot_ns) / 1_000_000;
    assert!((19..=20 + LATE + 20).contains(&check), "the default check is 20 ms, it took {check} ms");
    assert_plan(&sent[1..], address, &node.host.mac.to_string());
}

#[test]
fn without_a_check_the_probe_goes_out_right_behind_the_first_announcement() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = ip(100);
    let tap = net.tap(0);
    node.online_with(100, &["--claim", "immediate", "--check", "0"]);
    node.wait_for_state(address, "online", PLAN);
    let mut sent = sent_by_the_host(node.settled(&tap));
    let probe = sent.iter().position(|frame| frame.is_arp(|arp| arp.form() == Form::Probe));
    assert!(matches!(probe, Some(1 | 2)), "first the announcement, then the probe: {sent:#?}");
    sent.remove(probe.expect("there is one"));
    assert_plan(&sent, address, &node.host.mac.to_string());
}

#[test]
fn many_addresses_are_announced_breadth_first() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let tap = net.tap(0);
    let all: Vec<u8> = (100..120).collect();
    let written: Vec<String> = all.iter().map(|last| format!("{}/24", ip(*last))).collect();
    let mut arguments = vec!["online", "--iface", "eth0", "--claim", "immediate", "--check", "0"];
    arguments.extend(written.iter().map(String::as_str));
    node.cli(&arguments).expect(0);
    for last in &all {
        node.wait_for_state(ip(*last), "online", PLAN);
    }
    let sent = sent_by_the_host(node.settled(&tap));
    // How often each address has been announced so far, in either form.
    let mut told = vec![0_usize; all.len()];
    for frame in &sent {
        let arp = frame.arp().expect("nothing but ARP");
        if arp.form() != Form::Announcement {
            continue;
        }
        let number = usize::from(arp.sender_ip.octets()[3] - 100);
        let wanted = if told[number].is_multiple_of(2) { REQUEST } else { REPLY };
        assert_eq!(arp.operation, wanted, "each round is a request, then a reply: {frame:?}");
        let round = told[number] / 2;
        let behind = told.iter().filter(|count| **count < round * 2).count();
        assert_eq!(behind, 0, "round {round} of one address began before another's previous round ended");
        told[number] += 1;
    }
    assert!(told.iter().all(|count| *count == 8), "{told:?}");
}

#[test]
fn announced_is_told_once_for_an_address_and_plan() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    let address = node.online(100);
    let seen =
        events.collect_until("online", PLAN, |event| event["event"] == "state" && event["to"] == "online");
    let announced = seen.iter().filter(|event| event.json["event"] == "announced").count();
    // Either just before or just after the last step.
    let more = if announced == 0 {
        events.wait_for("announced", ms(1_000), |event| event["event"] == "announced");
        1
    } else {
        announced
    };
    assert_eq!(more, 1);
    node.cli(&["announce", &address.to_string()]).expect(0);
    let again = events.wait_for("announced again", PLAN, |event| event["event"] == "announced");
    assert_eq!(again.json["address"], address.to_string());
    assert_eq!(again.json["own_mac"], node.host.mac.to_string());
}

#[test]
fn announce_repeats_the_plan_and_repairs_a_wrong_cache() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--profile", "rfc5227"]);
    node.wait_for_state(address, "online", PLAN);
    learn(&net.host(1).ns, address, stranger(3));
    let tap = net.tap(0);
    node.cli(&["announce", &address.to_string()]).expect(0);
    wait_for_neighbour(&net.host(1).ns, address, node.host.mac, ms(1_000));
    tap.wait_for("an announcement", ms(1_000), |frame| !frame.outgoing && frame.says(address, node.host.mac));
}

#[test]
fn an_address_given_up_in_the_middle_of_its_plan_is_announced_no_more() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let given_up = node.online(100);
    node.cli(&["offline", &given_up.to_string()]).expect(0);
    let tap = net.tap(0);
    // Its second round would have come before the second one of an address that came later.
    let kept = node.online(101);
    let end_of_a_round = |frame: &Captured| {
        !frame.outgoing
            && frame.says(kept, node.host.mac)
            && frame.is_arp(|arp| arp.operation == REPLY && arp.sender_ip == arp.target_ip)
    };
    let first = tap.collect_until("the first round of the other", ms(4_000), end_of_a_round);
    let second = tap.collect_until("the second round of the other", ms(4_000), end_of_a_round);
    let all = [first, second].concat();
    assert!(!all.iter().any(|frame| frame.says(given_up, node.host.mac)), "{all:#?}");
}
