//! One address goes from host to host, in order and out of order.

use std::net::Ipv4Addr;

use arpwarden_common::{net::MacAddr, state::State, wire::arp::REPLY};
use arpwarden_tests::{
    kernel::Slots,
    ms,
    netns::{Net, ip, stranger},
    node::Node,
    tools::{Ping, arping, has_address, learn, neighbour, wait_for_neighbour},
    wire::{Captured, announcement, bytes, request},
};

fn answers(frame: &Captured, address: Ipv4Addr, mac: MacAddr) -> bool {
    frame.says(address, mac) && frame.is_arp(|arp| arp.operation == REPLY && arp.target_ip != arp.sender_ip)
}

fn a_frozen_owner_is_silent(net: &Net, arguments: &[&str]) {
    let a = Node::start_with(net.host(0), arguments);
    let b = Node::start_with(net.host(1), arguments);
    let client = net.host(2);
    let address = a.online(100);
    let ping = Ping::start(client, address);

    // The daemon stands still just after it has begun to yield: its address is still on the interface.
    a.freeze();
    Slots::of_process(a.pid()).put_into(address, State::Yielding);
    assert!(has_address(&a.host.ns, address));
    let taps = [net.tap(0), net.tap(1)];
    b.online_with(100, &["--claim", "immediate"]);
    let first = taps[1].wait_for("the first announcement of the new owner", ms(2_000), |frame| {
        !frame.outgoing && frame.says(address, b.host.mac)
    });

    let asker = client.wire();
    for _ in 0..20 {
        asker.send(&bytes(&request(stranger(1), ip(3), address)));
        asker.wait_for("the new owner's answer", ms(2_000), |frame| {
            !frame.outgoing && answers(frame, address, b.host.mac)
        });
    }
    wait_for_neighbour(&client.ns, address, b.host.mac, ms(1_000));
    // Half a second of traffic with the new owner.
    std::thread::sleep(ms(500));
    let pinged = ping.stop();
    assert!(pinged.lost <= 3, "{pinged:?}");
    assert!(pinged.sent >= 20, "{pinged:?}");

    let seen = b.settled(&taps[1]);
    assert!(!seen.is_empty());
    let from_a: Vec<Captured> = taps[0]
        .drain()
        .into_iter()
        .filter(|frame| !frame.outgoing && frame.boot_ns >= first.boot_ns)
        .collect();
    let wrong: Vec<&Captured> = from_a.iter().filter(|frame| frame.says(address, a.host.mac)).collect();
    assert!(wrong.is_empty(), "the frozen owner spoke for the address: {wrong:#?}");
    assert_eq!(neighbour(&client.ns, address), Some(b.host.mac));
    assert!(has_address(&a.host.ns, address), "it was still configured there all the time");
    // It still answers for its own address: the shield covers no more than it must.
    assert_eq!(arping(client, &["-c", "1", "-w", "2"], a.host.ip).code, 0);
}

#[test]
fn an_owner_frozen_while_yielding_answers_nothing_and_the_next_one_loses_three_pings_at_most() {
    a_frozen_owner_is_silent(&Net::new(3), &["--iface", "eth0", "--attach", "native"]);
}

#[test]
fn the_same_holds_in_tc_mode() {
    a_frozen_owner_is_silent(&Net::without_peer_programs(3), &["--iface", "eth0", "--attach", "tc"]);
}

#[test]
fn the_same_holds_in_generic_mode() {
    a_frozen_owner_is_silent(&Net::without_peer_programs(3), &["--iface", "eth0", "--attach", "generic"]);
}

#[test]
fn after_offline_nothing_is_answered_and_the_next_owner_gets_it_by_probing() {
    let net = Net::new(3);
    let (a, b) = (Node::start(net.host(0)), Node::start(net.host(1)));
    let client = net.host(2);
    let address = a.online(100);
    learn(&client.ns, address, a.host.mac);
    let tap = net.tap(0);
    a.cli(&["offline", &address.to_string()]).expect(0);
    assert!(!has_address(&a.host.ns, address));
    assert_eq!(a.state(address), None);
    assert_eq!(arping(client, &["-D", "-c", "1", "-w", "1"], address).code, 0, "nobody has it now");
    let seen = a.settled(&tap);
    assert!(!seen.iter().any(|frame| !frame.outgoing && frame.says(address, a.host.mac)), "{seen:#?}");
    b.online(100);
    wait_for_neighbour(&client.ns, address, b.host.mac, ms(1_000));
}

#[test]
fn offline_with_watch_goes_on_telling_who_has_it() {
    let net = Net::new(2);
    let (a, b) = (Node::start(net.host(0)), Node::start(net.host(1)));
    let address = a.online(100);
    a.cli(&["offline", &address.to_string(), "--watch"]).expect(0);
    assert_eq!(a.state(address).as_deref(), Some("watched"));
    assert!(!has_address(&a.host.ns, address));
    let events = a.events();
    b.online(100);
    let event = events.wait_for("the new owner", ms(2_000), |event| event["event"] == "owner_changed");
    assert_eq!(event.json["claimant"], b.host.mac.to_string());
    assert_eq!(a.address(address).expect("watched")["owner"], b.host.mac.to_string());
}

#[test]
fn after_the_owners_cable_is_cut_the_next_one_takes_over_and_traffic_goes_on() {
    let net = Net::new(3);
    let (a, b) = (Node::start(net.host(0)), Node::start(net.host(1)));
    let client = net.host(2);
    let address = a.online(100);
    learn(&client.ns, address, a.host.mac);
    let events = a.events();
    net.plug(0, false);
    events.wait_for("the link", ms(2_000), |event| event["event"] == "link_down");
    b.online_with(100, &["--claim", "immediate"]);
    wait_for_neighbour(&client.ns, address, b.host.mac, ms(1_000));
    let pinged = {
        let ping = Ping::start(client, address);
        std::thread::sleep(ms(300));
        ping.stop()
    };
    assert_eq!(pinged.lost, 0, "{pinged:?}");
}

#[test]
fn a_changed_mac_is_answered_with_and_announced_at_once() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let client = net.host(1);
    learn(&client.ns, address, node.host.mac);
    let events = node.events();
    let new = MacAddr::new([0x02, 0xcc, 0, 0, 0, 1]);
    node.host.ns.ip(&format!("link set eth0 address {new}"));
    let event = events.wait_for("the new MAC", ms(2_000), |event| event["event"] == "mac_changed");
    assert_eq!(event.json["own_mac"], new.to_string());
    wait_for_neighbour(&client.ns, address, new, ms(2_000));
    let asker = client.wire();
    asker.send(&bytes(&request(stranger(1), ip(2), address)));
    asker.wait_for("an answer", ms(2_000), |frame| !frame.outgoing && answers(frame, address, new));
    // The old one come back from the wire is no rival for a while; a stranger is.
    assert_eq!(node.counter(address, "conflicts"), 0);
    asker.send(&bytes(&announcement(stranger(2), address)));
    events.wait_for("the conflict", ms(2_000), |event| event["event"] == "conflict");
}

#[test]
fn an_address_taken_off_by_somebody_else_is_noticed_and_no_longer_answered() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let events = node.events();
    node.host.ns.ip(&format!("address delete {address}/24 dev eth0"));
    let event = events.wait_for("the removal", ms(2_000), |event| event["event"] == "address_removed");
    assert_eq!(event.json["address"], address.to_string());
}
