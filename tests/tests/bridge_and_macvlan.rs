//! Interfaces made of other interfaces: a bridge of this host's, a macvlan of it, and a second card on the segment. What
//! this host itself says by another of its MACs is never somebody else's word.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_common::{
    net::MacAddr,
    wire::arp::{Form, REPLY},
};
use arpwarden_tests::{
    kernel::XdpPass,
    netns::{Host, Net, Netns, ip, stranger},
    node::{Event, Events, Node},
    tools::{addresses_on, has_address, learn, mac_of, run, wait_for_neighbour},
    wait_for,
    wire::{Captured, Wire, announcement, bytes, marker, probe, reply, request},
};

/// How long a change may take to be noticed and acted on, on two cores with other tests on them.
const SOON: Duration = Duration::from_secs(5);
/// The plan of the profile `rfc5227` ends after two seconds.
const PLAN: Duration = Duration::from_secs(10);

const ON_BRIDGE: &[&str] = &["--iface", "br0", "--attach"];
const ON_MACVLAN: &[&str] = &["--iface", "m0", "--attach"];
/// Of a virtual router (RFC 9568 §7.3), as a macvlan made by keepalived's `use_vmac` has it.
const VIRTUAL: MacAddr = MacAddr::new([0, 0, 0x5e, 0, 1, 0x33]);
const MACVLAN: MacAddr = MacAddr::new([0x02, 0xaa, 0, 0, 7, 1]);

/// A host whose interface is a bridge, with a plain host behind each of its ports.
struct Bridged {
    /// The one with the bridge `br0`, which has its MAC and its address.
    host: Host,
    /// Those behind `p0`, `p1`, …
    far: Vec<Host>,
}

impl Bridged {
    /// The bridge's MAC is fixed.
    fn new(count: u8) -> Self {
        Self::with(count, "address 02:aa:00:00:00:01")
    }

    /// The bridge's MAC is the lowest of its ports', as the kernel has it where nobody says otherwise.
    fn with_a_mac_of_its_ports(count: u8) -> Self {
        Self::with(count, "")
    }

    fn with(count: u8, setting: &str) -> Self {
        let ns = Netns::new();
        ns.ip(&format!("link add br0 {setting} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"));
        let far: Vec<Host> = (0..count).map(|n| behind_a_port(&ns, n)).collect();
        ns.ip("link set br0 up\naddress add 10.7.0.1/24 dev br0");
        let mac = mac_of(&ns, "br0");
        let bridged = Self { host: Host { ns, mac, ip: ip(1), port: "br0".into() }, far };
        bridged.far.iter().for_each(|far| bridged.wait_until_heard(far));
        bridged
    }

    fn wire(&self) -> Wire {
        Wire::open(&self.host.ns, "br0")
    }

    fn wait_until_heard(&self, far: &Host) {
        hear(&self.wire(), self.host.mac, &far.wire());
        hear(&far.wire(), far.mac, &self.wire());
    }

    /// A node on the bridge whose address 10.7.0.100 has gone through its plan.
    fn settled(&self, defend: &str) -> (Node<'_>, Ipv4Addr) {
        settled(&self.host, &[ON_BRIDGE, &["tc"]].concat(), "br0", defend)
    }
}

/// A plain host on the port `p{number}` of the bridge `br0`.
fn behind_a_port(bridge: &Netns, number: u8) -> Host {
    let host = Host {
        ns: Netns::new(),
        mac: MacAddr::new([0x02, 0xaa, 0, 0, 1, number + 2]),
        ip: ip(number + 2),
        port: format!("p{number}"),
    };
    bridge.ip(&format!(
        "link add p{number} address 02:dd:00:00:00:{:02x} type veth peer name eth0 address {} netns {}\n\
         link set p{number} master br0 up",
        0x10 + number,
        host.mac,
        host.ns.path().display()
    ));
    host.ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0", host.ip));
    host
}

/// Waits until what one sends comes to the other: ports forward only some time after they are up.
fn hear(from: &Wire, mac: MacAddr, to: &Wire) {
    let frame = marker(mac);
    wait_for("the way to be open", SOON, || {
        from.send(&frame);
        to.drain().into_iter().any(|seen| seen.bytes == frame && !seen.outgoing).then_some(())
    });
}

/// A node whose address 10.7.0.100 has gone through its plan, so that every frame in its name has another cause.
fn settled<'net>(host: &'net Host, run: &[&str], interface: &str, defend: &str) -> (Node<'net>, Ipv4Addr) {
    let node = Node::start_with(host, run);
    let online =
        ["online", "10.7.0.100/24", "--iface", interface, "--profile", "rfc5227", "--defend", defend];
    node.cli(&online).expect(0);
    node.wait_for_state(ip(100), "online", PLAN);
    (node, ip(100))
}

/// Every answer that a host gets to one question for an address. What may come late has come when the kernel of the one
/// asked has answered a second question, for an address of its own.
fn answers(asker: &Host, address: Ipv4Addr, of_the_kernel: Ipv4Addr) -> Vec<Captured> {
    let wire = asker.wire();
    wire.send(&bytes(&request(asker.mac, asker.ip, address)));
    wire.send(&bytes(&request(asker.mac, asker.ip, of_the_kernel)));
    let answer_for = |frame: &Captured, address: Ipv4Addr| {
        !frame.outgoing
            && frame.is_arp(|arp| arp.operation == REPLY && arp.sender_ip == address.into())
            && frame.is_arp(|arp| arp.form() == Form::Reply)
    };
    let seen = wire.collect_until("the kernel's answer", SOON, |frame| answer_for(frame, of_the_kernel));
    seen.into_iter().filter(|frame| answer_for(frame, address)).collect()
}

/// Asserts that a host gets one answer, and that it names this MAC inside and outside.
#[track_caller]
fn one_answer(asker: &Host, address: Ipv4Addr, of_the_kernel: Ipv4Addr, mac: MacAddr) {
    let answers = answers(asker, address, of_the_kernel);
    let by: Vec<_> =
        answers.iter().filter_map(Captured::arp).map(|arp| (arp.source, arp.sender_mac)).collect();
    assert_eq!(by, [(mac, mac)], "{answers:?}");
}

fn announces(frame: &Captured, address: Ipv4Addr, mac: MacAddr) -> bool {
    !frame.outgoing && frame.says(address, mac) && frame.is_arp(|arp| arp.form() == Form::Announcement)
}

/// What the next frame of this sender was taken for.
fn of(events: &Events, claimant: MacAddr) -> Event {
    let claimant = claimant.to_string();
    events.wait_for("an event of the claimant", SOON, |event| {
        event["claimant"] == claimant.as_str() && event["event"] != "defended"
    })
}

#[track_caller]
fn assert_conflict(events: &Events, claimant: MacAddr) {
    let event = of(events, claimant).json;
    assert_eq!(event["event"], "conflict", "{event}");
}

#[track_caller]
fn assert_echo(events: &Events, claimant: MacAddr, reason: &str) {
    let event = of(events, claimant).json;
    assert_eq!((event["event"].as_str(), event["reason"].as_str()), (Some("echo"), Some(reason)), "{event}");
}

#[track_caller]
fn assert_undisturbed(node: &Node<'_>, address: Ipv4Addr) {
    assert_eq!(node.address(address).expect("managed")["may_answer"], true);
    assert_eq!(node.counter(address, "claims"), 0);
    assert_eq!(node.counter(address, "conflicts"), 0);
}

#[test]
fn an_address_on_a_bridge_is_registered_there_answered_and_announced_out_of_every_port() {
    announced_out_of_every_port("tc");
}

#[test]
fn an_address_on_a_bridge_is_registered_there_answered_and_announced_in_generic_mode() {
    announced_out_of_every_port("generic");
}

fn announced_out_of_every_port(mode: &str) {
    let bridged = Bridged::new(3);
    let node = Node::start_with(&bridged.host, &[ON_BRIDGE, &[mode]].concat());
    assert_eq!(node.status()["interfaces"][0]["attach_mode"], mode);
    let wires: Vec<Wire> = bridged.far.iter().map(Host::wire).collect();
    node.cli(&["online", "10.7.0.100/24", "--iface", "br0"]).expect(0);
    assert!(addresses_on(&bridged.host.ns, "br0").contains(&(ip(100), 24)));
    let mac = bridged.host.mac;
    for (far, wire) in bridged.far.iter().zip(&wires) {
        wire.wait_for("a probe", SOON, |frame| {
            !frame.outgoing && frame.is_arp(|arp| arp.form() == Form::Probe && arp.sender_mac == mac)
        });
        wire.wait_for("an announcement", SOON, |frame| announces(frame, ip(100), mac));
        one_answer(far, ip(100), bridged.host.ip, mac);
        let mut ping = far.ns.command("ping");
        ping.args(["-n", "-c", "1", "-W", "2", "10.7.0.100"]);
        run(ping);
    }
    assert!(node.counter(ip(100), "answered") >= 3, "the program answers, not the kernel");
    node.cli(&["offline", "10.7.0.100"]).expect(0);
    assert_eq!(answers(&bridged.far[0], ip(100), bridged.host.ip), []);
}

#[test]
fn a_claim_behind_one_port_of_a_bridge_is_defended_out_of_all_of_them() {
    let bridged = Bridged::new(2);
    let (node, address) = bridged.settled("hold");
    let [claims_here, hears_it] = [&bridged.far[0], &bridged.far[1]];
    learn(&hears_it.ns, address, bridged.host.mac);
    let events = node.events();
    let wires = [claims_here.wire(), hears_it.wire()];
    wires[0].send(&bytes(&announcement(stranger(1), address)));
    assert_conflict(&events, stranger(1));
    for wire in &wires {
        wire.wait_for("the defence", SOON, |frame| announces(frame, address, bridged.host.mac));
    }
    wait_for_neighbour(&hears_it.ns, address, bridged.host.mac, SOON);
}

#[test]
fn a_bridge_that_changes_its_mac_with_its_ports_is_answered_with_the_new_one() {
    let bridged = Bridged::with_a_mac_of_its_ports(2);
    let old = bridged.host.mac;
    let (node, address) = bridged.settled("yield");
    let far = &bridged.far[0];
    learn(&far.ns, address, old);
    let events = node.events();
    // A port with a lower MAC than all others.
    let behind = Netns::new();
    bridged.host.ns.ip(&format!(
        "link add q9 address 02:dd:00:00:00:01 type veth peer name eth0 netns {}\n\
         link set q9 master br0 up",
        behind.path().display()
    ));
    let new = mac_of(&bridged.host.ns, "br0");
    assert_ne!(new, old, "the kernel gives a bridge the lowest MAC of its ports");
    let event = events.wait_for("the new MAC", SOON, |event| event["event"] == "mac_changed");
    assert_eq!(event.json["own_mac"], new.to_string());
    // The program was told before that event: no answer has the old one from here on.
    one_answer(far, address, bridged.host.ip, new);
    wait_for_neighbour(&far.ns, address, new, SOON);
    far.wire().send(&bytes(&announcement(old, address)));
    assert_echo(&events, old, "sibling");
    assert_undisturbed(&node, address);
}

#[test]
fn a_container_behind_our_bridge_that_has_the_address_is_a_rival() {
    let bridged = Bridged::new(1);
    let container = behind_a_port(&bridged.host.ns, 8);
    container.ns.ip("address add 10.7.0.100/24 dev eth0");
    bridged.wait_until_heard(&container);
    let node = Node::start_with(&bridged.host, &[ON_BRIDGE, &["tc"]].concat());
    node.cli(&["online", "10.7.0.100/24", "--iface", "br0"]).expect(3).naming(container.mac);
    assert!(!addresses_on(&bridged.host.ns, "br0").contains(&(ip(100), 24)));
    // Nor does it get one unnoticed that is ours.
    node.cli(&["online", "10.7.0.101/24", "--iface", "br0"]).expect(0);
    let events = node.events();
    container.ns.ip("address add 10.7.0.101/24 dev eth0");
    let mut announce = container.ns.command("arping");
    announce.args(["-U", "-c", "1", "-I", "eth0", "10.7.0.101"]);
    announce.output().expect("arping runs");
    assert_conflict(&events, container.mac);
}

#[test]
fn what_a_hairpin_port_sends_back_is_an_echo_from_the_first_probe_on() {
    let net = Net::new(2);
    net.bridge().ip("link set p0 type bridge_slave hairpin on");
    let node = Node::start(net.host(0));
    let events = node.events();
    let address = node.online_with(100, &["--defend", "yield"]);
    assert_echo(&events, node.host.mac, "own_mac");
    node.wait_for_state(address, "online", PLAN);
    // The plan alone is eight frames, all of which came back.
    wait_for("the echoes", SOON, || (node.counter(address, "echoes") >= 8).then_some(()));
    assert_undisturbed(&node, address);
}

/// Puts the macvlan `m0` on the host's `eth0`, with its own address 10.7.0.51.
fn macvlan(host: &Host, mac: MacAddr) {
    macvlan_in_mode("bridge", host, mac);
}

fn macvlan_in_mode(mode: &str, host: &Host, mac: MacAddr) {
    host.ns.ip(&format!(
        "link add link eth0 name m0 address {mac} type macvlan mode {mode}\n\
         link set m0 up\n\
         address add 10.7.0.51/24 dev m0"
    ));
}

/// [`macvlan`] as keepalived's `use_vmac` makes it: private, so that it hears peers with the same MAC (one in mode
/// bridge takes them for itself), and the interface below is silent about what is on it.
fn virtual_router(host: &Host) {
    macvlan_in_mode("private", host, VIRTUAL);
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "1");
    host.ns.sysctl("ipv4/conf/m0/arp_ignore", "1");
}

#[test]
fn an_address_on_a_macvlan_is_registered_there_answered_and_announced_with_its_mac() {
    let net = Net::new(2);
    let host = net.host(0);
    macvlan(host, MACVLAN);
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "1");
    answered_on_the_macvlan(&net, MACVLAN, "tc");
}

#[test]
fn an_address_on_a_macvlan_is_registered_there_answered_and_announced_in_generic_mode() {
    let net = Net::new(2);
    let host = net.host(0);
    macvlan(host, MACVLAN);
    host.ns.sysctl("ipv4/conf/eth0/arp_ignore", "1");
    answered_on_the_macvlan(&net, MACVLAN, "generic");
}

#[test]
fn an_address_on_a_macvlan_with_a_virtual_routers_mac_is_answered_and_announced_with_that() {
    let net = Net::new(2);
    virtual_router(net.host(0));
    answered_on_the_macvlan(&net, VIRTUAL, "tc");
}

fn answered_on_the_macvlan(net: &Net, mac: MacAddr, mode: &str) {
    let (host, client) = (net.host(0), net.host(1));
    let node = Node::start_with(host, &[ON_MACVLAN, &[mode]].concat());
    let wire = client.wire();
    let done = node.cli(&["online", "10.7.0.100/24", "--iface", "m0"]).expect(0).naming(mac);
    assert!(!done.err.contains("arp_ignore"), "{done:?}");
    assert!(addresses_on(&host.ns, "m0").contains(&(ip(100), 24)));
    wire.wait_for("an announcement", SOON, |frame| announces(frame, ip(100), mac));
    one_answer(client, ip(100), ip(51), mac);
    assert!(node.counter(ip(100), "answered") >= 1, "the program answers, not the kernel");
    let mut ping = client.ns.command("ping");
    ping.args(["-n", "-c", "1", "-W", "2", "10.7.0.100"]);
    run(ping);
}

#[test]
fn the_interface_below_a_macvlan_would_answer_too_and_is_named() {
    let net = Net::new(2);
    let host = net.host(0);
    macvlan(host, MACVLAN);
    // It is on the same wire, whether it has an address of the same subnet or none.
    host.ns.ip("address flush dev eth0");
    let node = Node::start_with(host, &[ON_MACVLAN, &["tc"]].concat());
    node.cli(&["online", "10.7.0.100/24", "--iface", "m0"]).expect(0).naming("eth0").naming("arp_ignore");
    let lease = ["online", "10.7.0.101/24", "--iface", "m0", "--lease", "30"];
    node.cli(&lease).expect(1).naming("eth0").naming("--allow-flux");
}

#[test]
fn a_macvlan_on_our_interface_would_answer_too_and_is_named() {
    let net = Net::new(2);
    let host = net.host(0);
    macvlan(host, MACVLAN);
    host.ns.ip("address flush dev m0");
    let node = Node::start(host);
    node.try_online(100, &[]).expect(0).naming("m0").naming("arp_ignore");
    node.try_online(101, &["--lease", "30"]).expect(1).naming("m0").naming("--allow-flux");
    node.try_online(101, &["--lease", "30", "--allow-flux"]).expect(0).naming("m0");
}

/// Waits until the daemon takes a MAC for this host's, by probes: one of another host for an address of ours is
/// answered and no more, so that nothing is lost by asking too early.
fn wait_until_own(net: &Net, node: &Node<'_>, address: Ipv4Addr, mac: MacAddr) {
    let tap = net.tap(0);
    let siblings = || node.status()["counters"]["siblings"].as_u64().expect("a counter");
    let before = siblings();
    wait_for("a MAC to be known", SOON, || {
        tap.send(&bytes(&probe(mac, address)));
        node.settled(&tap);
        (siblings() > before).then_some(())
    });
}

#[test]
fn a_macvlan_that_comes_to_our_interface_later_is_a_sibling_and_no_rival_until_it_goes() {
    let net = Net::new(2);
    let (node, address) = settled(net.host(0), &["--iface", "eth0", "--attach", "native"], "eth0", "yield");
    let (events, tap) = (node.events(), net.tap(0));
    macvlan(net.host(0), MACVLAN);
    wait_until_own(&net, &node, address, MACVLAN);
    // From the far end of the cable, as a switch sends it back.
    for claim in [
        announcement(MACVLAN, address),
        reply(MACVLAN, address, node.host.mac, ip(1)),
        request(MACVLAN, address, ip(2)),
    ] {
        tap.send(&bytes(&claim));
    }
    assert_echo(&events, MACVLAN, "sibling");
    node.settled(&tap);
    assert_undisturbed(&node, address);

    // A MAC that is ours no more is a rival's.
    node.host.ns.ip("link delete m0");
    wait_for("the address to be lost", SOON, || {
        tap.send(&bytes(&announcement(MACVLAN, address)));
        (node.state(address).as_deref() == Some("lost")).then_some(())
    });
}

#[test]
fn the_second_card_on_the_segment_is_a_sibling_and_no_rival() {
    let net = Net::new(2);
    let host = net.host(0);
    let second = MacAddr::new([0x02, 0xaa, 0, 0, 9, 1]);
    net.bridge().ip(&format!(
        "link add p9 type veth peer name eth9 address {second} netns {}\nlink set p9 master br0 up",
        host.ns.path().display()
    ));
    host.ns.ip("link set eth9 up\naddress add 10.7.0.91/24 dev eth9");
    let _pass = XdpPass::attach(net.bridge(), "p9");
    let nine = Wire::open(&host.ns, "eth9");
    hear(&nine, second, &net.host(1).wire());
    let (node, address) = settled(host, &["--iface", "eth0", "--attach", "native"], "eth0", "yield");
    let events = node.events();
    // With arp_ignore 0 its kernel answers as well: this is what `online` has warned of.
    let wire = net.host(1).wire();
    wire.send(&bytes(&request(net.host(1).mac, ip(2), address)));
    wire.wait_for("the second answer", SOON, |frame| !frame.outgoing && frame.says(address, second));
    // What it says to all comes in on our own interface.
    let mut announce = host.ns.command("arping");
    announce.args(["-U", "-c", "1", "-I", "eth9", &address.to_string()]);
    announce.output().expect("arping runs");
    assert_echo(&events, second, "sibling");
    // A probe of its own is no conflict either.
    nine.send(&bytes(&probe(second, address)));
    hear(&nine, second, &node.host.wire());
    assert_undisturbed(&node, address);
    assert_eq!(node.counter(address, "probes"), 0);
    assert!(has_address(&host.ns, address));
}

#[test]
fn a_peer_with_the_same_virtual_mac_is_an_echo_and_a_physical_mac_is_a_rival() {
    let net = Net::new(2);
    virtual_router(net.host(0));
    let (node, address) = settled(net.host(0), &[ON_MACVLAN, &["tc"]].concat(), "m0", "hold");
    let events = node.events();
    let wire = net.host(1).wire();
    for claim in [announcement(VIRTUAL, address), request(VIRTUAL, address, ip(2)), probe(VIRTUAL, address)] {
        wire.send(&bytes(&claim));
    }
    assert_echo(&events, VIRTUAL, "own_mac");
    wait_for("all three", SOON, || (node.counter(address, "echoes") == 3).then_some(()));
    assert_undisturbed(&node, address);
    // Another router's is another router's, and so is a MAC that is nobody's virtual one.
    for claimant in [MacAddr::new([0, 0, 0x5e, 0, 1, 0x34]), net.host(1).mac] {
        wire.send(&bytes(&announcement(claimant, address)));
        assert_conflict(&events, claimant);
    }
    // The interface below is this host's.
    wire.send(&bytes(&announcement(node.host.mac, address)));
    assert_echo(&events, node.host.mac, "sibling");
}

#[test]
fn a_virtual_mac_is_a_rival_of_an_address_with_a_physical_one_though_another_of_ours_has_it() {
    let net = Net::new(2);
    let host = net.host(0);
    virtual_router(host);
    let both = ["--iface", "eth0", "--iface", "m0", "--attach", "tc"];
    let (node, physical) = settled(host, &both, "eth0", "hold");
    node.cli(&["online", "10.7.0.101/24", "--iface", "m0", "--profile", "rfc5227"]).expect(0);
    let events = node.events();
    let wire = net.host(1).wire();
    one_answer(net.host(1), physical, ip(51), host.mac);
    one_answer(net.host(1), ip(101), ip(51), VIRTUAL);
    wire.send(&bytes(&announcement(VIRTUAL, physical)));
    assert_conflict(&events, VIRTUAL);
    wire.send(&bytes(&announcement(VIRTUAL, ip(101))));
    assert_echo(&events, VIRTUAL, "own_mac");
    assert_eq!((node.counter(physical, "claims"), node.counter(ip(101), "claims")), (1, 0));
}

#[test]
fn an_address_that_a_virtual_router_elsewhere_has_is_taken_though_a_macvlan_here_has_its_mac() {
    let net = Net::new(2);
    let [host, peer] = [net.host(0), net.host(1)];
    virtual_router(host);
    virtual_router(peer);
    // The peer is the active one. Two addresses: the ones that it has for itself are not the same.
    peer.ns.ip("address delete 10.7.0.51/24 dev m0\naddress add 10.7.0.100/24 dev m0");
    let node = Node::start(host);
    node.cli(&["probe", "10.7.0.100", "--iface", "eth0"]).expect(3).naming(VIRTUAL);
    node.try_online(100, &[]).expect(3).naming(VIRTUAL);
    assert!(!has_address(&host.ns, ip(100)));
}

#[test]
fn a_container_on_a_macvlan_of_our_interface_does_not_answer_a_second_time() {
    for mode in ["native", "tc"] {
        let net = Net::new(2);
        let (host, container) = (net.host(0), Netns::new());
        host.ns.ip(&format!(
            "link add link eth0 name m0 address {MACVLAN} type macvlan mode bridge\n\
             link set m0 netns {} name eth0",
            container.path().display()
        ));
        container.ip("link set eth0 up\naddress add 10.7.0.100/24 dev eth0");
        let client = net.host(1);
        wait_for("the container to answer", SOON, || {
            let wire = client.wire();
            wire.send(&bytes(&request(client.mac, client.ip, ip(100))));
            wire.next(std::time::Instant::now() + SOON / 50).filter(|frame| frame.says(ip(100), MACVLAN))
        });
        // The kernel lets an interface and what stands on it not hear each other, so the claim is not heard to be one.
        let node = Node::start_with(host, &["--iface", "eth0", "--attach", mode]);
        node.online(100);
        one_answer(client, ip(100), host.ip, host.mac);
    }
}
