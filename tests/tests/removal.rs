//! Somebody else takes an address of ours off the interface, or puts one there that is not ours to answer.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_tests::{
    asks::{Asking, answers_to, ask, sent_as, speak_as},
    netns::{Host, Net, ip, stranger},
    node::{Events, Node},
    tools::{arping, has_address},
    wait_for,
    wire::{announcement, bytes},
};

/// How long a change may take to be noticed and acted on, on two cores with other tests on them.
const SOON: Duration = Duration::from_secs(5);

fn by_hand(host: &Host, word: &str, address: Ipv4Addr) {
    host.ns.ip(&format!("address {word} {address}/24 dev eth0"));
}

fn event(events: &Events, name: &str, address: Ipv4Addr) {
    let address = address.to_string();
    let what = format!("{name} of {address}");
    events.wait_for(&what, SOON, |event| event["event"] == name && event["address"] == address.as_str());
}

/// The names of all events about addresses that have come or gone by somebody else's hand, up to now.
fn by_others(node: &Node<'_>) -> Vec<String> {
    let recent = node.cli(&["events", "--json"]).expect(0).out;
    let lines = recent.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    lines
        .map(|event: serde_json::Value| event["event"].as_str().expect("a name").to_owned())
        .filter(|name| ["address_removed", "address_restored", "address_added"].contains(&name.as_str()))
        .collect()
}

#[test]
fn an_address_that_was_taken_off_is_put_back_and_no_answer_is_lost() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let events = node.events();
    let asking = Asking::start(net.host(1), address, node.host.mac);
    for _ in 0..3 {
        by_hand(node.host, "delete", address);
        event(&events, "address_removed", address);
        event(&events, "address_restored", address);
        assert!(has_address(&node.host.ns, address));
    }
    let answered = asking.stop();
    assert!(answered.asked > 0 && answered.once == answered.asked, "{answered:?}");
    // Connections as well: it is there for the kernel.
    let mut ping = net.host(1).ns.command("ping");
    ping.args(["-n", "-c", "1", "-W", "2", &address.to_string()]);
    arpwarden_tests::tools::run(ping);
    assert_eq!(by_others(&node).len(), 6);
}

#[test]
fn the_fourth_removal_within_a_minute_is_obeyed() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let events = node.events();
    for _ in 0..3 {
        by_hand(node.host, "delete", address);
        event(&events, "address_restored", address);
    }
    by_hand(node.host, "delete", address);
    event(&events, "address_removed", address);
    let lost = events.wait_for_state(address, "lost", SOON);
    assert_eq!(lost.json["reason"], "address_removed", "{}", lost.json);
    assert_eq!(ask(&net, 0, address), []);
    assert!(!has_address(&node.host.ns, address));
    // Another address has its own count.
    let other = node.online(101);
    by_hand(node.host, "delete", other);
    event(&events, "address_restored", other);
}

#[test]
fn give_up_means_that_a_removal_is_obeyed_at_once() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--on-removed", "give-up"]);
    let events = node.events();
    let tap = net.tap(0);
    by_hand(node.host, "delete", address);
    event(&events, "address_removed", address);
    let lost = events.wait_for_state(address, "lost", SOON);
    assert_eq!(lost.json["reason"], "address_removed", "{}", lost.json);
    tap.drain();
    assert_eq!(arping(net.host(1), &["-D", "-c", "1", "-w", "1"], address).code, 0, "nobody answers");
    let seen = node.settled(&tap);
    assert!(!seen.iter().any(|frame| sent_as(frame, address, node.host.mac)), "{seen:#?}");
    assert!(!has_address(&node.host.ns, address));
    assert_eq!(node.address(address).expect("listed")["may_answer"], false);
}

#[test]
fn report_means_that_it_is_answered_on_and_not_put_back() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online_with(100, &["--on-removed", "report"]);
    let events = node.events();
    by_hand(node.host, "delete", address);
    event(&events, "address_removed", address);
    let state = node.state(address).expect("managed");
    assert!(["announcing", "online"].contains(&state.as_str()), "{state}");
    // What it says now is an answer: it announces nothing any more.
    node.wait_for_state(address, "online", 2 * SOON);
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    assert!(!has_address(&node.host.ns, address));
    assert_eq!(by_others(&node), ["address_removed"]);
    // Somebody puts it back: it is as it was.
    by_hand(node.host, "add", address);
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    node.cli(&["offline", &address.to_string()]).expect(0);
    assert_eq!(node.state(address), None);
}

/// Puts an address that may not answer on the interface, and asserts that nothing comes of it on the wire.
fn added_by_hand_it_stays_silent(net: &Net, node: &Node<'_>, events: &Events, address: Ipv4Addr) {
    let before = node.state(address);
    by_hand(node.host, "add", address);
    event(events, "address_added", address);
    // Nobody but program and guard has a say.
    node.freeze();
    assert_eq!(ask(net, 0, address), [], "answered though {before:?}");
    assert_eq!(speak_as(net, 0, address), [], "spoken for though {before:?}");
    node.signal(libc::SIGCONT);
    assert_eq!(node.state(address), before);
    assert!(node.counter(address, "shielded") >= 1);
    assert!(node.counter(address, "guarded") >= 2);
    by_hand(node.host, "delete", address);
    assert_eq!(node.state(address), before);
}

#[test]
fn a_refused_address_that_is_added_by_hand_stays_silent() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    by_hand(net.host(1), "add", ip(100));
    node.try_online(100, &[]).expect(3);
    added_by_hand_it_stays_silent(&net, &node, &events, ip(100));
}

#[test]
fn a_lost_address_that_is_added_by_hand_stays_silent() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    let address = node.online_with(100, &["--defend", "yield"]);
    net.host(1).wire().send(&bytes(&announcement(stranger(1), address)));
    events.wait_for_state(address, "lost", SOON);
    wait_for("the address to be gone", SOON, || (!has_address(&node.host.ns, address)).then_some(()));
    added_by_hand_it_stays_silent(&net, &node, &events, address);
}

#[test]
fn a_suspended_address_that_is_added_by_hand_stays_silent() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    let address = node.online_with(100, &["--lease", "1"]);
    events.wait_for_state(address, "suspended", SOON);
    wait_for("the address to be gone", SOON, || (!has_address(&node.host.ns, address)).then_some(()));
    added_by_hand_it_stays_silent(&net, &node, &events, address);
}

#[test]
fn a_watched_address_that_is_added_by_hand_is_the_kernels() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    node.cli(&["watch", "10.7.0.100", "--iface", "eth0"]).expect(0);
    by_hand(node.host, "add", ip(100));
    event(&events, "address_added", ip(100));
    assert_eq!(node.state(ip(100)).as_deref(), Some("watched"));
    assert_eq!(answers_to(&net, 0, ip(100)).len(), 1);
    assert!(!speak_as(&net, 0, ip(100)).is_empty(), "its kernel may speak for it");
    assert_eq!(node.counter(ip(100), "answered"), 0);
    assert_eq!(node.counter(ip(100), "guarded"), 0);
}

#[test]
fn what_the_daemon_does_itself_is_never_taken_for_somebody_elses() {
    let net = Net::new(2);
    let host = net.host(0);
    // Deleting a primary address makes the kernel delete or move its secondaries.
    host.ns.sysctl("ipv4/conf/eth0/promote_secondaries", "0");
    let node = Node::start(host);
    let written: Vec<String> = (100..140).map(|last| format!("{}/24", ip(last))).collect();
    let mut many = vec!["online", "--iface", "eth0"];
    many.extend(written.iter().map(String::as_str));
    let others = ["online", "10.8.0.1/24", "10.8.0.2/24", "10.8.0.3/24", "--iface", "eth0"];
    for _ in 0..3 {
        node.cli(&many).expect(0);
        node.cli(&others).expect(0);
        // The first one of its subnet: the primary.
        node.cli(&["offline", "10.8.0.1"]).expect(0);
        node.cli(&["offline", "10.7.0.100", "--watch"]).expect(0);
        node.cli(&["offline", "--all"]).expect(0);
        node.cli(&["unwatch", "10.7.0.100"]).expect(0);
    }
    // Given up by a conflict, and by a lease that is past.
    node.online_with(141, &["--defend", "yield"]);
    node.online_with(142, &["--lease", "1"]);
    net.host(1).wire().send(&bytes(&announcement(stranger(1), ip(141))));
    node.wait_for_state(ip(141), "lost", SOON);
    node.wait_for_state(ip(142), "suspended", SOON);
    wait_for("both to be gone", SOON, || {
        (!has_address(&host.ns, ip(141)) && !has_address(&host.ns, ip(142))).then_some(())
    });
    // And by a roll-back: somebody has it.
    by_hand(net.host(1), "add", ip(143));
    node.try_online(143, &["--claim", "immediate", "--check", "0", "--wait", "0.1"]).expect(3);
    wait_for("it to be gone", SOON, || (!has_address(&host.ns, ip(143))).then_some(()));
    // What the kernel has told of all that has been read when this is answered.
    by_hand(host, "add", ip(150));
    node.cli(&["watch", "10.7.0.151", "--iface", "eth0"]).expect(0);
    by_hand(host, "add", ip(151));
    wait_for("the one by hand", SOON, || (!by_others(&node).is_empty()).then_some(()));
    assert_eq!(by_others(&node), ["address_added"]);
    assert!(!node.log().contains("address_removed"), "{}", node.log());
}
