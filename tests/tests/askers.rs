//! Who asked for an address lately is known, can be told, and is seen to follow.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_common::wire::arp::REQUEST;
use arpwarden_tests::{
    ms,
    netns::{Host, Net, ip, stranger},
    node::Node,
    tools::{arping, learn, neighbour, wait_for_neighbour},
    wait_for,
    wire::{Captured, bytes, request},
};
use serde_json::Value;

/// How long a change may take to be noticed and acted on, on two cores with other tests on them.
const SOON: Duration = Duration::from_secs(5);

/// What the status says of the asker with this address.
fn asker(node: &Node<'_>, address: Ipv4Addr, who: Ipv4Addr) -> Option<Value> {
    let entry = node.address(address).unwrap_or_else(|| panic!("{address} is not managed"));
    let askers = entry["askers"].as_array().unwrap_or_else(|| panic!("no askers in {entry}")).clone();
    askers.into_iter().find(|asker| asker["address"] == who.to_string())
}

fn seconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number of seconds"))
}

/// Lets a host's kernel ask for an address, and use it.
fn ping(host: &Host, address: Ipv4Addr) {
    let mut command = host.ns.command("ping");
    command.args(["-n", "-c", "1", "-W", "2", &address.to_string()]);
    arpwarden_tests::tools::run(command);
}

#[test]
fn the_status_tells_who_asked_lately_for_an_address_of_ours() {
    let net = Net::new(3);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    assert_eq!(node.address(address).expect("managed")["askers"], serde_json::json!([]));
    ping(net.host(1), address);
    let first = asker(&node, address, net.host(1).ip).expect("host 1 among the askers");
    assert_eq!(first["mac"], net.host(1).mac.to_string());
    assert!(seconds(&first["asked_ago"]) < 5.0, "{first}");
    assert_eq!(first["told_ago"], Value::Null);

    ping(net.host(2), address);
    assert!(asker(&node, address, net.host(2).ip).is_some());
    assert!(asker(&node, address, net.host(1).ip).is_some());
    // A probe is nobody's question (RFC 5227 §1.1: its sender has no address yet).
    assert_eq!(arping(net.host(1), &["-D", "-c", "1", "-w", "1"], address).code, 1);
    assert!(asker(&node, address, Ipv4Addr::UNSPECIFIED).is_none());
    // Four are remembered; who asked longest ago is forgotten first, though not within a second.
    let wire = net.host(1).wire();
    for last in 50..54 {
        wait_for("the asker", SOON, || {
            wire.send(&bytes(&request(stranger(last.into()), ip(last), address)));
            asker(&node, address, ip(last))
        });
    }
    let entry = node.address(address).expect("managed");
    let mut askers: Vec<&str> = entry["askers"]
        .as_array()
        .expect("askers")
        .iter()
        .filter_map(|one| one["address"].as_str())
        .collect();
    askers.sort_unstable();
    assert_eq!(askers, ["10.7.0.50", "10.7.0.51", "10.7.0.52", "10.7.0.53"]);
}

#[test]
fn a_watcher_knows_the_askers_as_well_and_takes_them_along_when_it_takes_over() {
    let net = Net::new(3);
    let node = Node::start(net.host(0));
    let address = ip(100);
    node.cli(&["watch", "10.7.0.100", "--iface", "eth0"]).expect(0);
    let (owner, client) = (net.host(1), net.host(2));
    owner.ns.ip(&format!("address add {address}/24 dev eth0"));
    ping(client, address);
    let before = asker(&node, address, client.ip).expect("the client among the askers");
    assert_eq!(before["mac"], client.mac.to_string());
    assert_eq!(before["followed"], false);

    owner.ns.ip(&format!("address delete {address}/24 dev eth0"));
    node.online(100);
    let after = asker(&node, address, client.ip).expect("the client among the askers still");
    assert_eq!(after["mac"], client.mac.to_string());
}

/// Frames that ask a host by unicast in the address's name.
fn asked<'a>(seen: &'a [Captured], node: &Node<'_>, address: Ipv4Addr, whom: &Host) -> Vec<&'a Captured> {
    let wanted = |frame: &&Captured| {
        !frame.outgoing
            && frame.says(address, node.host.mac)
            && frame.is_arp(|arp| {
                arp.operation == REQUEST && arp.destination == whom.mac && arp.target_ip == whom.ip.into()
            })
    };
    seen.iter().filter(wanted).collect()
}

#[test]
fn repair_asks_every_asker_and_the_gateway_and_their_caches_follow_within_the_lock_time() {
    let net = Net::new(4);
    let node = Node::start(net.host(0));
    let (client, other, gateway) = (net.host(1), net.host(2), net.host(3));
    node.host.ns.ip(&format!("route add default via {}", gateway.ip));
    learn(&node.host.ns, gateway.ip, gateway.mac);
    let address = node.online(100);
    node.wait_for_state(address, "online", Duration::from_secs(15));
    for host in [client, other] {
        ping(host, address);
        wait_for("the asker", SOON, || asker(&node, address, host.ip));
    }
    let events = node.events();
    let tap = net.tap(0);
    for host in [client, other, gateway] {
        learn(&host.ns, address, stranger(1));
    }
    node.cli(&["repair", &address.to_string()]).expect(0);
    // A reply or an announcement in reply form would be ignored in an entry's first second.
    for host in [client, other, gateway] {
        wait_for_neighbour(&host.ns, address, node.host.mac, ms(900));
    }
    let event = events.wait_for("the repair", SOON, |event| event["event"] == "repaired");
    assert_eq!(event.json["count"], 3, "{}", event.json);
    assert_eq!(event.json["address"], address.to_string());
    let seen = node.settled(&tap);
    for host in [client, other, gateway] {
        let frames = asked(&seen, &node, address, host);
        assert_eq!(frames.len(), 1, "{} was asked by {frames:#?}", host.ip);
    }
    // They answered, so they are known to follow.
    for host in [client, other] {
        let entry = wait_for("the answer to be seen", SOON, || {
            asker(&node, address, host.ip).filter(|entry| entry["followed"] == true)
        });
        assert!(seconds(&entry["told_ago"]) < 10.0, "{entry}");
        assert!(seconds(&entry["followed_after"]) < 10.0, "{entry}");
    }
}

#[test]
fn repair_of_an_address_that_may_not_answer_is_refused_and_says_nothing_in_its_name() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = ip(100);
    node.cli(&["watch", "10.7.0.100", "--iface", "eth0"]).expect(0);
    arping(net.host(1), &["-c", "1", "-w", "1"], address);
    let tap = net.tap(0);
    node.cli(&["repair", "10.7.0.100"]).expect(1).naming("watched");
    node.cli(&["repair", "10.7.0.101"]).expect(1).naming("not managed");
    let seen = node.settled(&tap);
    assert!(!seen.iter().any(|frame| !frame.outgoing && frame.says(address, node.host.mac)), "{seen:#?}");
}

#[test]
fn who_asks_us_by_unicast_has_followed_and_the_status_says_after_how_long() {
    let net = Net::new(3);
    let node = Node::start(net.host(0));
    let (owner, client) = (net.host(1), net.host(2));
    let address = ip(100);
    node.cli(&["watch", "10.7.0.100", "--iface", "eth0"]).expect(0);
    owner.ns.ip(&format!("address add {address}/24 dev eth0"));
    ping(client, address);
    wait_for("the asker", SOON, || asker(&node, address, client.ip));
    owner.ns.ip(&format!("address delete {address}/24 dev eth0"));
    node.online(100);
    wait_for_neighbour(&client.ns, address, node.host.mac, ms(2_000));
    let before = asker(&node, address, client.ip).expect("an asker");
    assert_eq!((&before["followed"], &before["followed_after"]), (&false.into(), &Value::Null), "{before}");
    // What a kernel does with an entry that has become stale.
    let mut poll = request(client.mac, client.ip, address);
    poll.destination = node.host.mac;
    client.wire().send(&bytes(&poll));
    let entry = wait_for("the client to be seen to follow", SOON, || {
        asker(&node, address, client.ip).filter(|entry| entry["followed"] == true)
    });
    let after = seconds(&entry["followed_after"]);
    assert!((0.0..20.0).contains(&after), "{entry}");
    assert_eq!(entry["told_ago"], Value::Null, "nobody was told by repair");
    // The first time counts.
    client.wire().send(&bytes(&poll));
    node.status();
    let again = asker(&node, address, client.ip).expect("an asker");
    assert!((seconds(&again["followed_after"]) - after).abs() < 0.001, "{again}");
    assert_eq!(neighbour(&client.ns, address), Some(node.host.mac));

    // A new claim is a new time to follow.
    node.cli(&["offline", "10.7.0.100", "--watch"]).expect(0);
    node.online(100);
    let anew = asker(&node, address, client.ip).expect("an asker");
    assert_eq!(anew["followed"], false, "{anew}");
}
