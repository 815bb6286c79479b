//! What is put on an interface, what comes along with it, and what goes with it; and addresses that are answered without
//! being there.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_tests::{
    asks::{answers_to, ask},
    kernel::XdpPass,
    netns::{Net, ip},
    node::Node,
    tools::{addresses, arping, has_address, run},
    wait_for,
    wire::{bytes, request},
};

/// How long a change may take to be noticed and acted on, on two cores with other tests on them.
const SOON: Duration = Duration::from_secs(5);

/// The main routing table.
fn routes(net: &Net) -> Vec<String> {
    let mut show = net.host(0).ns.command("ip");
    show.args(["-4", "route", "show"]);
    run(show).lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_prefix_that_is_connected_already_gets_no_second_route() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    // Connected by an address, and by somebody's hand.
    node.host.ns.ip("route add 10.8.0.0/24 dev eth0 scope link");
    let before = routes(&net);
    node.cli(&["online", "10.7.0.100/24", "10.8.0.100/24", "--iface", "eth0"]).expect(0);
    assert_eq!(routes(&net), before);
    let present = addresses(&node.host.ns);
    assert!(present.contains(&(Ipv4Addr::new(10, 8, 0, 100), 24)), "{present:?}");
    assert_eq!(answers_to(&net, 0, Ipv4Addr::new(10, 8, 0, 100)).len(), 1);
    node.cli(&["offline", "--all"]).expect(0);
    assert_eq!(routes(&net), before, "the connected routes stay");
}

#[test]
fn a_prefix_that_another_interface_connects_keeps_its_way() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.host.ns.ip("link add a7 type veth peer name b7\n\
         link set a7 up\n\
         link set b7 up\n\
         address add 10.8.0.1/24 dev a7");
    let way = || {
        let mut get = node.host.ns.command("ip");
        get.args(["route", "get", "10.8.0.9"]);
        run(get)
    };
    wait_for("the route", SOON, || way().contains("dev a7").then_some(()));
    node.cli(&["online", "10.8.0.100/24", "--iface", "eth0"]).expect(0);
    assert!(way().contains("dev a7 src 10.8.0.1"), "{}", way());
    node.cli(&["offline", "10.8.0.100"]).expect(0);
    assert!(way().contains("dev a7 src 10.8.0.1"), "{}", way());
}

#[test]
fn a_prefix_that_is_not_connected_gets_its_route_and_loses_it_again() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let before = routes(&net);
    node.cli(&["online", "10.8.0.1/24", "--iface", "eth0"]).expect(0);
    let added: Vec<String> = routes(&net).into_iter().filter(|line| !before.contains(line)).collect();
    assert_eq!(added.len(), 1, "{added:?}");
    assert!(added[0].starts_with("10.8.0.0/24 dev eth0"), "{added:?}");
    node.cli(&["offline", "10.8.0.1"]).expect(0);
    assert_eq!(routes(&net), before);
}

#[test]
fn a_slash_32_is_reached_and_adds_no_route() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let before = routes(&net);
    node.cli(&["online", "10.7.0.100/32", "--iface", "eth0"]).expect(0);
    assert_eq!(routes(&net), before);
    assert!(addresses(&node.host.ns).contains(&(ip(100), 32)));
    let mut ping = net.host(1).ns.command("ping");
    ping.args(["-n", "-c", "1", "-W", "2", "10.7.0.100"]);
    run(ping);
}

#[test]
fn exactly_what_was_put_there_is_taken_off() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    node.cli(&["online", "10.7.0.100/32", "--iface", "eth0"]).expect(0);
    // The same address with another prefix length is another entry of the kernel's, and somebody else's.
    node.host.ns.ip("address add 10.7.0.100/24 dev eth0\naddress add 10.7.0.100/25 dev eth0");
    node.cli(&["offline", "10.7.0.100"]).expect(0);
    let left: Vec<(Ipv4Addr, u64)> =
        addresses(&node.host.ns).into_iter().filter(|(address, _)| *address == ip(100)).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&(ip(100), 24)) && left.contains(&(ip(100), 25)), "{left:?}");
}

#[test]
fn secondaries_stay_when_their_primary_goes_ours_and_those_of_others() {
    let net = Net::new(2);
    let host = net.host(0);
    host.ns.sysctl("ipv4/conf/all/promote_secondaries", "0");
    host.ns.sysctl("ipv4/conf/eth0/promote_secondaries", "0");
    let node = Node::start(host);
    let in_subnet = |last: u8| Ipv4Addr::new(10, 8, 0, last);
    node.cli(&["online", "10.8.0.1/24", "--iface", "eth0"]).expect(0);
    node.cli(&["online", "10.8.0.2/24", "--iface", "eth0"]).expect(0);
    host.ns.ip("address add 10.8.0.3/24 dev eth0");
    node.cli(&["offline", "10.8.0.1"]).expect(0);
    assert!(!has_address(&host.ns, in_subnet(1)));
    assert!(has_address(&host.ns, in_subnet(2)) && has_address(&host.ns, in_subnet(3)));
    assert_eq!(answers_to(&net, 0, in_subnet(2)).len(), 1);
    let recent = node.cli(&["events", "--json"]).expect(0).out;
    assert!(!recent.contains("address_removed"), "{recent}");
    // As it was before.
    let setting =
        host.ns.enter(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/promote_secondaries"));
    assert_eq!(setting.expect("a setting").trim(), "0");
}

fn unregistered<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["online", "10.7.0.100/24", "--iface", "eth0", "--register", "none"], more].concat()
}

#[test]
fn register_none_wants_a_silent_kernel_and_a_local_route() {
    let net = Net::new(2);
    let host = net.host(0);
    let node = Node::start(host);
    let address = ip(100);
    let refused = |word: &str| {
        node.cli(&unregistered(&[])).expect(1).naming(word).naming("--blackhole-ok");
        assert_eq!(node.state(address), None);
        assert_eq!(ask(&net, 0, address), []);
    };
    refused("arp_ignore");
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "1");
    refused("ip route add local");
    // A route alone is no good either.
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "0");
    host.ns.ip("route add local 10.7.0.100 dev lo");
    node.cli(&unregistered(&[])).expect(1).naming("arp_ignore");
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "1");
    node.cli(&unregistered(&[])).expect(0);
    assert!(!has_address(&host.ns, address));
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    assert_eq!(node.counter(address, "answered"), 1);
    // What is sent to it arrives.
    let mut ping = net.host(1).ns.command("ping");
    ping.args(["-n", "-c", "1", "-W", "2", "10.7.0.100"]);
    run(ping);
    node.cli(&["offline", "10.7.0.100"]).expect(0);
    assert_eq!(ask(&net, 0, address), []);
}

#[test]
fn register_none_is_given_up_when_its_route_goes_or_its_kernel_begins_to_answer() {
    let net = Net::new(2);
    let host = net.host(0);
    let node = Node::start(host);
    let addresses = [100, 101, 102].map(ip);
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "1");
    for address in addresses {
        host.ns.ip(&format!("route add local {address} dev lo"));
        node.cli(&["online", &format!("{address}/24"), "--iface", "eth0", "--register", "none"]).expect(0);
    }
    let wait_given_up = |address: Ipv4Addr| {
        wait_for("the address to be given up", Duration::from_secs(15), || {
            node.address(address).is_none_or(|entry| entry["may_answer"] == false).then_some(())
        });
        let (log, text) = (node.log(), address.to_string());
        let said = log.lines().any(|line| line.contains("given up") && line.contains(&text));
        assert!(said, "not a word of {address} in the log:\n{log}");
    };
    // Before the routes have been looked at once, and after, when the daemon knows from the kernel that some have changed.
    host.ns.ip(&format!("route delete local {} dev lo", addresses[0]));
    wait_given_up(addresses[0]);
    assert_eq!(ask(&net, 0, addresses[0]), []);
    host.ns.ip(&format!("route delete local {} dev lo", addresses[1]));
    wait_given_up(addresses[1]);
    assert_eq!(ask(&net, 0, addresses[1]), []);
    assert_eq!(answers_to(&net, 0, addresses[2]).len(), 1);
    // No route tells of this.
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "0");
    wait_given_up(addresses[2]);
}

#[test]
fn blackhole_ok_waives_both_conditions() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.cli(&unregistered(&["--blackhole-ok"])).expect(0);
    assert!(!has_address(&node.host.ns, ip(100)));
    assert_eq!(answers_to(&net, 0, ip(100)).len(), 1);
}

/// A second interface of host 0 on the same segment.
fn second_interface(net: &Net) -> XdpPass {
    let host = net.host(0);
    net.bridge().ip(&format!(
        "link add p9 type veth peer name eth9 address 02:aa:00:00:09:01 netns {}\nlink set p9 master br0 up",
        host.ns.path().display()
    ));
    host.ns.ip("link set eth9 up\naddress add 10.7.0.91/24 dev eth9");
    XdpPass::attach(net.bridge(), "p9")
}

#[test]
fn a_sibling_interface_that_would_answer_too_is_warned_of_and_refused_with_a_lease() {
    let net = Net::new(2);
    let host = net.host(0);
    let _pass = second_interface(&net);
    let node = Node::start(host);
    // Without a lease: said, done all the same.
    node.online_with(100, &[]);
    node.try_online(101, &[]).expect(0).naming("eth9").naming("arp_ignore");
    node.cli(&["explain", "10.7.0.100"]).expect(0).naming("eth9").naming("arp_ignore");
    // With one nothing may answer past it, and nobody silences a sibling.
    node.try_online(102, &["--lease", "30"]).expect(1).naming("eth9").naming("--allow-flux");
    assert_eq!(node.state(ip(102)), None);
    assert!(!has_address(&host.ns, ip(102)));
    node.try_online(102, &["--lease", "30", "--allow-flux"]).expect(0);

    host.ns.sysctl("ipv4/conf/eth9/arp_ignore", "1");
    let done = node.try_online(103, &["--lease", "30"]).expect(0);
    assert!(!done.out.contains("eth9") && !done.err.contains("eth9"), "{done:?}");
    assert_eq!(answers_to(&net, 0, ip(103)).len(), 1);
}

#[test]
fn with_arp_ignore_one_host_gives_one_answer() {
    let net = Net::new(2);
    let host = net.host(0);
    let _pass = second_interface(&net);
    host.ns.sysctl("ipv4/conf/eth9/arp_ignore", "1");
    let node = Node::start(host);
    node.online(100);
    wait_for("the port to forward", SOON, || {
        (arping(net.host(1), &["-c", "1", "-w", "1"], Ipv4Addr::new(10, 7, 0, 91)).code == 0).then_some(())
    });
    let ended = arping(net.host(1), &["-c", "2", "-w", "3"], ip(100));
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(ended.said.to_lowercase().contains(&host.mac.to_string()), "{}", ended.said);
    assert!(!ended.said.to_lowercase().contains("02:aa:00:00:09:01"), "{}", ended.said);
}

#[test]
fn an_address_that_somebody_moves_to_another_interface_is_answered_there_and_nowhere_else() {
    let net = Net::new(2);
    let host = net.host(0);
    let _pass = second_interface(&net);
    let node = Node::start(host);
    let address = node.online_with(100, &["--on-removed", "give-up", "--profile", "rfc5227"]);
    node.wait_for_state(address, "online", Duration::from_secs(10));
    host.ns.ip("address delete 10.7.0.100/24 dev eth0\naddress add 10.7.0.100/32 dev eth9");
    node.wait_for_state(address, "lost", SOON);
    wait_for("the port to forward", SOON, || {
        (arping(net.host(1), &["-c", "1", "-w", "1"], address).code == 0).then_some(())
    });
    let wire = net.host(1).wire();
    wire.send(&bytes(&request(net.host(1).mac, ip(2), address)));
    // Both interfaces of the kernel have answered this when they have answered what was asked before.
    wire.send(&bytes(&request(net.host(1).mac, ip(2), ip(1))));
    let mut of_the_kernel = 0;
    let seen = wire.collect_until("both answers for its own address", SOON, |frame| {
        of_the_kernel += u8::from(!frame.outgoing && frame.is_arp(|arp| arp.sender_ip == ip(1).into()));
        of_the_kernel == 2
    });
    let by: Vec<String> = seen
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| frame.arp())
        .filter(|arp| arp.sender_ip == address.into())
        .map(|arp| arp.sender_mac.to_string())
        .collect();
    assert_eq!(by, ["02:aa:00:00:09:01"], "{seen:?}");
    assert!(node.counter(address, "shielded") >= 1);
}

#[test]
fn the_hosts_own_primary_address_can_be_taken_over_and_given_up() {
    let net = Net::new(2);
    let host = net.host(0);
    host.ns.ip("address add 10.7.0.90/24 dev eth0");
    let node = Node::start(host);
    node.try_online(1, &[]).expect(3).naming("--adopt");
    node.online_with(1, &["--adopt"]);
    assert_eq!(answers_to(&net, 0, ip(1)).len(), 1);
    assert_eq!(node.counter(ip(1), "answered"), 1, "by the program");
    node.cli(&["offline", "10.7.0.1"]).expect(0);
    assert!(!has_address(&host.ns, ip(1)));
    // The kernel would have taken its secondary along.
    assert!(has_address(&host.ns, ip(90)));
}
