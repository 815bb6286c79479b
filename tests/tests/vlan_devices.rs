//! Addresses on VLAN devices: registered there, answered on what they stand on under their tags, and in no other VLAN.
//! A kernel without VLAN devices (8021q) skips these, and says so.

use std::net::Ipv4Addr;

use arpwarden_common::{
    net::{MacAddr, SERVICE_TAG, Vlan},
    wire::arp::{Outgoing, REPLY, REQUEST},
};
use arpwarden_tests::{
    ms,
    netns::{Net, Netns, stranger},
    node::Node,
    pins::Pins,
    tools::{addresses_on, kernel_makes, mac_of, pings_from, run},
    wait_for,
    wire::{Captured, Wire, announcement, bytes, marker, probe, request},
};

/// The subnet of the VLANs: the other host's address, one that nobody has, and the one that is held.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 9);
const HELD: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 100);
const HELD_24: &str = "10.8.0.100/24";

/// A VLAN device over `eth0`, and what it takes to make it.
struct Device {
    name: &'static str,
    lines: &'static str,
    vlan: Vlan,
}

const CUSTOMER: Device = Device {
    name: "eth0.100",
    lines: "link add link eth0 name eth0.100 type vlan id 100\n",
    vlan: Vlan { outer: 100, inner: 0 },
};
const OTHER_CUSTOMER: Device = Device {
    name: "eth0.200",
    lines: "link add link eth0 name eth0.200 type vlan id 200\n",
    vlan: Vlan { outer: 200, inner: 0 },
};
const SERVICE: Device = Device {
    name: "svc",
    lines: "link add link eth0 name svc type vlan protocol 802.1ad id 100\n",
    vlan: Vlan { outer: 100 | SERVICE_TAG, inner: 0 },
};
const STACKED: Device = Device {
    name: "inner",
    lines: "link add link eth0 name outer type vlan protocol 802.1ad id 300\n\
            link set outer up\n\
            link add link outer name inner type vlan id 100\n",
    vlan: Vlan { outer: 300 | SERVICE_TAG, inner: 100 },
};
/// Whose tags are told apart.
const ALL: [Vlan; 7] = [
    Vlan::UNTAGGED,
    CUSTOMER.vlan,
    OTHER_CUSTOMER.vlan,
    SERVICE.vlan,
    STACKED.vlan,
    Vlan { outer: 100, inner: 100 },
    Vlan { outer: 100 | SERVICE_TAG, inner: 100 },
];

/// Whether the running kernel has VLAN devices; says so if not.
fn kernel_has_them() -> bool {
    let lines = "link add v0 type veth peer name v1\nlink add link v0 name v0.1 type vlan id 1\n";
    kernel_makes("VLAN devices (8021q)", lines)
}

/// Makes these devices on a host, each with the host's address of the VLANs' subnet. Its kernel answers for an address
/// only where that is: by itself it would also answer for it in every other VLAN.
fn make(ns: &Netns, devices: &[&Device], last: u8) {
    ns.sysctl("ipv4/conf/all/arp_ignore", "1");
    for Device { name, lines, .. } in devices {
        ns.ip(&format!("{lines}link set {name} up\naddress add 10.8.0.{last}/24 dev {name}\n"));
    }
}

/// Two hosts on a cable, tags in the frames, with these devices on both. A host can't see what its peer does with tags, so
/// a program that needs them in the frames is attached with `--vlan-offload ignore`.
fn trunk(devices: &[&Device]) -> Option<Net> {
    kernel_has_them().then(|| {
        let net = Net::cable();
        make(&net.host(0).ns, devices, 1);
        make(&net.host(1).ns, devices, 2);
        net
    })
}

fn behind(vlan: Vlan, frame: Outgoing) -> Vec<u8> {
    bytes(&Outgoing { vlan, ..frame })
}

/// The answer of `mac` to a question by `asker`; the plan has replies too, which nobody asked for.
fn is_answer(frame: &Captured, mac: MacAddr, asker: MacAddr) -> bool {
    !frame.outgoing
        && frame.says(HELD, mac)
        && frame.is_arp(|arp| arp.operation == REPLY && arp.destination == asker)
}

/// Asks for the address behind these tags, and gives the tags of each answer.
fn answers_to_a_request_behind(wire: &Wire, node: &Node<'_>, vlan: Vlan) -> Vec<Vlan> {
    let asker = stranger(7);
    let here = node.host.wire();
    wire.drain();
    wire.send(&behind(vlan, request(asker, NOBODY, HELD)));
    // What is never answered is known by what comes in later, and by what leaves after that.
    let last = marker(asker);
    wire.send(&last);
    here.wait_for("the marker to get through", ms(5_000), |seen| seen.bytes == last);
    let seen = node.settled(wire);
    let answers = seen.iter().filter(|frame| is_answer(frame, node.host.mac, asker));
    answers.filter_map(Captured::arp).map(|arp| arp.vlan).collect()
}

fn held_under_its_tags_and_under_no_others(device: &Device, mode: &str) {
    let Some(net) = trunk(&[device]) else { return };
    let host = net.host(0);
    let wire = net.host(1).wire();
    let node =
        Node::start_with(host, &["--iface", device.name, "--attach", mode, "--vlan-offload", "ignore"]);
    node.cli(&["online", HELD_24, "--iface", device.name]).expect(0);

    assert!(addresses_on(&host.ns, device.name).contains(&(HELD, 24)), "registered on the device");
    assert!(!addresses_on(&host.ns, "eth0").iter().any(|(address, _)| *address == HELD), "and nowhere else");
    let announced = node.settled(&wire);
    let ours: Vec<_> =
        announced.iter().filter_map(Captured::arp).filter(|arp| arp.sender_ip == HELD.into()).collect();
    assert!(!ours.is_empty() && ours.iter().all(|arp| arp.vlan == device.vlan), "{ours:#?}");
    let probes: Vec<_> =
        announced.iter().filter_map(Captured::arp).filter(|arp| arp.sender_ip.is_unspecified()).collect();
    assert!(!probes.is_empty() && probes.iter().all(|arp| arp.vlan == device.vlan), "{probes:#?}");

    for vlan in ALL {
        let expected = if vlan == device.vlan { vec![vlan] } else { vec![] };
        assert_eq!(answers_to_a_request_behind(&wire, &node, vlan), expected, "asked behind {vlan:?}");
    }
    assert_eq!(node.counter(HELD, "answered"), 1);
    assert!(pings_from(&net.host(1).ns, OTHER, HELD), "a Linux host in the VLAN reaches it");

    let status = node.status();
    let interface = &status["interfaces"][0];
    assert_eq!(interface["interface"], device.name);
    assert_eq!(interface["carrier"], "eth0");
    let ids: Vec<u16> = device.vlan.ids().into_iter().filter(|id| *id != 0).collect();
    assert_eq!(interface["vlan"], serde_json::json!(ids));
    assert_eq!(node.address(HELD).expect("managed")["vlan"], serde_json::json!(ids));
    node.cli(&["explain", &HELD.to_string()])
        .expect(0)
        .naming("answered by the program")
        .naming("attached to eth0");

    node.cli(&["offline", &HELD.to_string()]).expect(0);
    assert!(!addresses_on(&host.ns, device.name).iter().any(|(address, _)| *address == HELD));
    assert_eq!(answers_to_a_request_behind(&wire, &node, device.vlan), []);
    node.cli(&["unload"]).expect(0);
}

#[test]
fn an_address_is_registered_on_its_device_and_answered_under_its_tag_only() {
    held_under_its_tags_and_under_no_others(&CUSTOMER, "native");
}

#[test]
fn the_same_holds_under_a_service_tag() {
    held_under_its_tags_and_under_no_others(&SERVICE, "native");
}

#[test]
fn the_same_holds_under_two_tags() {
    held_under_its_tags_and_under_no_others(&STACKED, "native");
}

#[test]
fn the_same_holds_in_generic_mode() {
    held_under_its_tags_and_under_no_others(&STACKED, "generic");
}

#[test]
fn the_same_holds_in_tc() {
    for device in [&CUSTOMER, &SERVICE, &STACKED] {
        held_under_its_tags_and_under_no_others(device, "tc");
    }
}

#[test]
fn the_same_holds_in_tc_where_tags_are_beside_the_frames() {
    if !kernel_has_them() {
        return;
    }
    let net = Net::cable();
    for host in &net.hosts {
        host.tags_beside_the_frame(true);
        make(&host.ns, &[&CUSTOMER, &OTHER_CUSTOMER], host.ip.octets()[3]);
    }
    let (host, wire) = (net.host(0), net.host(1).wire());
    // What would not see the tags is refused, with the command that would show them.
    for mode in ["native", "generic"] {
        let node = Node::new(host);
        node.cli(&["run", "--iface", "eth0.100", "--attach", mode]).expect(1).naming("ethtool -K");
    }
    let node = Node::start_with(host, &["--iface", "eth0.100"]);
    assert_eq!(node.status()["interfaces"][0]["attach_mode"], "tc", "what auto picks");
    node.cli(&["online", HELD_24, "--iface", "eth0.100"]).expect(0);
    assert!(pings_from(&net.host(1).ns, OTHER, HELD));
    for vlan in ALL {
        let expected = if vlan == CUSTOMER.vlan { vec![vlan] } else { vec![] };
        assert_eq!(answers_to_a_request_behind(&wire, &node, vlan), expected, "asked behind {vlan:?}");
    }
}

#[test]
fn the_same_address_in_two_vlans_is_two_addresses() {
    let devices = [&CUSTOMER, &OTHER_CUSTOMER];
    let Some(net) = trunk(&devices) else { return };
    let wire = net.host(1).wire();
    let node = Node::start_with(
        net.host(0),
        &["--iface", "eth0.100", "--iface", "eth0.200", "--attach", "native", "--vlan-offload", "ignore"],
    );
    for device in devices {
        node.cli(&["online", HELD_24, "--iface", device.name]).expect(0);
        assert!(addresses_on(&node.host.ns, device.name).contains(&(HELD, 24)));
    }
    for device in devices {
        assert_eq!(answers_to_a_request_behind(&wire, &node, device.vlan), [device.vlan]);
    }
    node.cli(&["probe", &HELD.to_string(), "--iface", "eth0.200"]).expect(3).naming("eth0.200 of this host");
    node.cli(&["offline", &HELD.to_string()]).expect(2).naming("eth0.100 and eth0.200").naming("--iface");
    node.cli(&["offline", &HELD.to_string(), "--iface", "eth0.200"]).expect(0);
    assert!(!addresses_on(&node.host.ns, "eth0.200").iter().any(|(address, _)| *address == HELD));
    assert_eq!(answers_to_a_request_behind(&wire, &node, OTHER_CUSTOMER.vlan), []);
    assert_eq!(answers_to_a_request_behind(&wire, &node, CUSTOMER.vlan), [CUSTOMER.vlan]);
    // What is ours in one VLAN may be free in the other.
    node.cli(&["probe", &HELD.to_string(), "--iface", "eth0.200"]).expect(0).naming("free");
}

#[test]
fn a_claim_in_another_vlan_is_no_conflict_and_a_defence_stays_in_its_own() {
    let Some(net) = trunk(&[&CUSTOMER]) else { return };
    let wire = net.host(1).wire();
    let node = Node::start_with(
        net.host(0),
        &["--iface", "eth0.100", "--attach", "native", "--vlan-offload", "ignore"],
    );
    node.cli(&["online", HELD_24, "--iface", "eth0.100"]).expect(0);
    node.wait_for_state(HELD, "online", ms(10_000));
    let events = node.events();
    for vlan in ALL.into_iter().filter(|vlan| *vlan != CUSTOMER.vlan) {
        for frame in
            [announcement(stranger(1), HELD), probe(stranger(1), HELD), request(stranger(1), HELD, NOBODY)]
        {
            wire.send(&behind(vlan, frame));
        }
    }
    wire.send(&behind(CUSTOMER.vlan, announcement(stranger(2), HELD)));
    let seen = events
        .collect_until("the conflict in its own VLAN", ms(10_000), |event| event["event"] == "conflict");
    let conflict = seen.last().expect("the conflict");
    assert_eq!(conflict.json["claimant"], stranger(2).to_string());
    assert_eq!(conflict.json["vlan"], serde_json::json!([100]));
    assert_eq!(conflict.json["interface"], "eth0.100");
    assert!(!seen.iter().any(|event| event.json.to_string().contains(&stranger(1).to_string())), "{seen:#?}");
    assert_eq!(node.counter(HELD, "claims"), 1);
    let defences: Vec<_> = node
        .settled(&wire)
        .iter()
        .filter(|frame| !frame.outgoing && frame.says(HELD, node.host.mac))
        .filter_map(Captured::arp)
        .filter(|arp| arp.operation == REQUEST)
        .map(|arp| arp.vlan)
        .collect();
    assert!(!defences.is_empty() && defences.iter().all(|vlan| *vlan == CUSTOMER.vlan), "{defences:?}");
}

#[test]
fn the_guard_keeps_in_what_leaves_through_a_vlan_device() {
    let Some(net) = trunk(&[&CUSTOMER]) else { return };
    let wire = net.host(1).wire();
    let node = Node::start_with(
        net.host(0),
        &["--iface", "eth0.100", "--attach", "native", "--vlan-offload", "ignore"],
    );
    node.cli(&["online", HELD_24, "--iface", "eth0.100", "--lease", "5"]).expect(0);
    node.wait_for_state(HELD, "suspended", ms(20_000));
    let is_there = || addresses_on(&node.host.ns, "eth0.100").iter().any(|(address, _)| *address == HELD);
    wait_for("the address to be gone", ms(10_000), || (!is_there()).then_some(()));
    // By hand, in the address's name, as its kernel would ask for a neighbour. Before the daemon has heard of it, its kernel
    // is asked too, and the guard keeps in what that says.
    let events = node.events();
    node.host.ns.ip(&format!("address add {HELD_24} dev eth0.100\n"));
    events.wait_for("the daemon to hear of it", ms(10_000), |event| event["event"] == "address_added");
    node.settled(&wire);
    let on_device = Wire::open(&node.host.ns, "eth0.100");
    assert!(on_device.offer(&bytes(&request(node.host.mac, HELD, NOBODY))).is_err(), "the guard drops it");
    // The other VLAN's frames are another's business, and so is what its MAC does not say.
    let on_carrier = node.host.wire();
    on_carrier.send(&behind(OTHER_CUSTOMER.vlan, request(node.host.mac, HELD, NOBODY)));
    let said: Vec<Vlan> = node
        .settled(&wire)
        .iter()
        .filter(|frame| !frame.outgoing && frame.says(HELD, node.host.mac))
        .filter_map(Captured::arp)
        .map(|arp| arp.vlan)
        .collect();
    assert_eq!(said, [OTHER_CUSTOMER.vlan]);
    assert_eq!(answers_to_a_request_behind(&wire, &node, CUSTOMER.vlan), [], "and is shielded");
    assert_eq!(node.counter(HELD, "guarded"), 1);
}

#[test]
fn an_address_on_a_vlan_device_outlives_its_daemon() {
    let Some(net) = trunk(&[&CUSTOMER]) else { return };
    let wire = net.host(1).wire();
    let arguments = ["--iface", "eth0.100", "--attach", "native", "--vlan-offload", "ignore"];
    let mut node = Node::start_with(net.host(0), &arguments);
    node.cli(&["online", HELD_24, "--iface", "eth0.100"]).expect(0);
    node.wait_for_state(HELD, "online", ms(10_000));
    node.kill();
    assert!(pings_from(&net.host(1).ns, OTHER, HELD));
    node.run(&arguments);
    assert_eq!(node.state(HELD).as_deref(), Some("online"));
    assert_eq!(node.address(HELD).expect("managed")["interface"], "eth0.100");
    assert_eq!(answers_to_a_request_behind(&wire, &node, CUSTOMER.vlan), [CUSTOMER.vlan]);

    // Without its device the address is nowhere; with a new one it is claimed again.
    node.kill();
    node.host.ns.ip("link delete eth0.100\n");
    node.run(&["--iface", "eth0", "--attach", "native", "--vlan-offload", "ignore"]);
    assert_eq!(node.state(HELD), None);
    make(&node.host.ns, &[&CUSTOMER], 1);
    wait_for("the address to be claimed again", ms(20_000), || {
        (node.state(HELD).as_deref() == Some("online")).then_some(())
    });
    assert_eq!(answers_to_a_request_behind(&wire, &node, CUSTOMER.vlan), [CUSTOMER.vlan]);
    node.cli(&["unload"]).expect(0);
    assert!(!addresses_on(&node.host.ns, "eth0.100").iter().any(|(address, _)| *address == HELD));
}

#[test]
fn a_vlan_device_that_goes_down_or_away_takes_its_address_along_and_nobody_elses() {
    let devices = [&CUSTOMER, &OTHER_CUSTOMER];
    let Some(net) = trunk(&devices) else { return };
    let wire = net.host(1).wire();
    let node = Node::start_with(
        net.host(0),
        &["--iface", "eth0.100", "--iface", "eth0.200", "--attach", "native", "--vlan-offload", "ignore"],
    );
    for device in devices {
        node.cli(&["online", HELD_24, "--iface", device.name]).expect(0);
    }
    let state = |interface: &str| {
        let status = node.status();
        let all = status["addresses"].as_array().expect("addresses").clone();
        all.into_iter().find(|entry| entry["interface"] == interface).map(|entry| entry["state"].clone())
    };
    let wait = |interface: &str, wanted: Option<&str>| {
        wait_for("the state", ms(20_000), || {
            (state(interface).as_ref().and_then(|state| state.as_str()) == wanted).then_some(())
        });
    };
    wait("eth0.200", Some("online"));
    node.host.ns.ip("link set eth0.100 down\n");
    wait("eth0.100", Some("suspended"));
    assert_eq!(state("eth0.200").expect("managed"), "online");
    assert_eq!(answers_to_a_request_behind(&wire, &node, CUSTOMER.vlan), []);
    assert_eq!(answers_to_a_request_behind(&wire, &node, OTHER_CUSTOMER.vlan), [OTHER_CUSTOMER.vlan]);
    node.host.ns.ip("link set eth0.100 up\n");
    wait("eth0.100", Some("online"));
    node.host.ns.ip("link delete eth0.100\n");
    wait("eth0.100", None);
    assert_eq!(answers_to_a_request_behind(&wire, &node, OTHER_CUSTOMER.vlan), [OTHER_CUSTOMER.vlan]);
    make(&node.host.ns, &[&CUSTOMER], 1);
    wait("eth0.100", Some("online"));
    // What carries them all.
    node.host.ns.ip("link set eth0 down\n");
    wait("eth0.100", Some("suspended"));
    wait("eth0.200", Some("suspended"));
}

#[test]
fn a_vlan_device_that_is_made_where_tags_are_hidden_is_told_of() {
    if !kernel_has_them() {
        return;
    }
    let net = Net::cable();
    net.host(1).tags_beside_the_frame(true);
    let node = Node::start(net.host(0));
    let events = node.events();
    make(&node.host.ns, &[&CUSTOMER], 1);
    let told = events.wait_for("the warning", ms(10_000), |event| event["event"] == "vlan_tags_hidden");
    assert_eq!((&told.json["interface"], &told.json["reason"]), (&"eth0".into(), &"eth0.100".into()));
}

#[test]
fn what_may_not_answer_leaves_its_device_when_the_program_is_taken_off_the_interface_below() {
    let Some(net) = trunk(&[&CUSTOMER]) else { return };
    let arguments = ["--iface", "eth0.100", "--attach", "native", "--vlan-offload", "ignore"];
    let node = Node::start_with(net.host(0), &arguments);
    node.cli(&["online", HELD_24, "--iface", "eth0.100"]).expect(0);
    node.host.ns.ip("link set eth0.100 down\n");
    node.wait_for_state(HELD, "suspended", ms(10_000));
    assert!(addresses_on(&node.host.ns, "eth0.100").contains(&(HELD, 24)), "it waits for its link");
    Pins::on(&node, "eth0").detach_program();
    // Looked at every 10 s.
    wait_for("the address to leave", ms(30_000), || {
        (!addresses_on(&node.host.ns, "eth0.100").contains(&(HELD, 24))).then_some(())
    });
}

#[test]
fn a_device_on_another_namespaces_interface_or_with_three_tags_is_refused() {
    let Some(net) = trunk(&[&STACKED]) else { return };
    let host = net.host(0);
    host.ns.ip("link add link inner name third type vlan id 5\nlink set third up\n");
    let elsewhere = Netns::new();
    host.ns.ip(&format!(
        "link add link eth0 name moved type vlan id 7\nlink set moved netns {}\n",
        elsewhere.path().display()
    ));
    host.ns.ip("link add link eth0 name zero type vlan id 0\nlink set zero up\n");
    let node = Node::start_with(host, &["--iface", "eth0", "--attach", "native", "--vlan-offload", "ignore"]);
    node.cli(&["online", HELD_24, "--iface", "third"]).expect(1).naming("two tags");
    node.cli(&["online", HELD_24, "--iface", "zero"]).expect(1).naming("VLAN 0");
    node.cli(&["online", HELD_24, "--iface", "moved"]).expect(1).naming("moved");
    node.cli(&["online", HELD_24, "--iface", "inner"]).expect(1).naming("--attach-now");
    node.cli(&["online", HELD_24, "--iface", "inner", "--attach-now"]).expect(0);
}

#[test]
fn a_bridge_that_keeps_vlans_apart_is_answered_behind_the_tag_of_its_device() {
    if !kernel_has_them() {
        return;
    }
    let net = Net::cable();
    let host = net.host(0);
    make(&net.host(1).ns, &[&CUSTOMER, &OTHER_CUSTOMER], 2);
    host.ns.ip("link add br0 type bridge vlan_filtering 1 vlan_default_pvid 0 stp_state 0 forward_delay 0 mcast_snooping 0\n\
         address flush dev eth0\n\
         link set eth0 master br0\n\
         link set br0 up\n\
         link add link br0 name br0.100 type vlan id 100\n\
         link set br0.100 up\n\
         address add 10.8.0.1/24 dev br0.100\n");
    for arguments in
        ["vlan add dev eth0 vid 100", "vlan add dev eth0 vid 200", "vlan add dev br0 vid 100 self"]
    {
        let mut command = host.ns.command("bridge");
        command.args(arguments.split(' '));
        run(command);
    }
    let node = Node::start_with(host, &["--iface", "br0.100"]);
    let status = node.status();
    assert_eq!(status["interfaces"][0]["carrier"], "br0");
    assert_eq!(status["interfaces"][0]["attach_mode"], "tc");
    node.cli(&["online", HELD_24, "--iface", "br0.100"]).expect(0);
    let mac = mac_of(&host.ns, "br0.100");
    let wire = net.host(1).wire();
    wire.send(&behind(CUSTOMER.vlan, request(stranger(7), NOBODY, HELD)));
    let answer = wire.wait_for("the answer", ms(5_000), |frame| is_answer(frame, mac, stranger(7)));
    assert_eq!(answer.arp().expect("ARP").vlan, CUSTOMER.vlan);
    for vlan in ALL.into_iter().filter(|vlan| *vlan != CUSTOMER.vlan) {
        wire.send(&behind(vlan, request(stranger(8), NOBODY, HELD)));
    }
    wire.send(&behind(CUSTOMER.vlan, request(stranger(9), NOBODY, HELD)));
    let seen = wire.collect_until("the last answer", ms(5_000), |frame| is_answer(frame, mac, stranger(9)));
    let wrong = seen.iter().filter(|frame| frame.is_arp(|arp| arp.destination == stranger(8))).count();
    assert_eq!(wrong, 0, "{seen:#?}");
    assert!(pings_from(&net.host(1).ns, OTHER, HELD));
}
