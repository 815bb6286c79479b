//! Bonds: one answer to a request at every moment, whichever member is used, and announced where that changes. A kernel
//! without bonding skips these, and says so.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_common::{
    net::{MacAddr, Vlan},
    wire::arp::{Outgoing, REPLY},
};
use arpwarden_tests::{
    flood::{Answers, Asked, Flood, settled},
    kernel::{XdpPass, egress_programs},
    ms,
    netns::{Net, ip, stranger},
    node::Node,
    pins::Pins,
    tools::{addresses_on, kernel_makes, mac_of, neighbour, pings_from, run},
    wait_for,
    wire::{Captured, Wire, announcement, boot_ns, bytes, marker, request},
};

const HELD: Ipv4Addr = ip(100);
const HELD_24: &str = "10.7.0.100/24";
/// Between two requests of a flood.
const GAP: Duration = ms(2);
/// Within which a switch-over is one in the kernel: it stops using one member and begins to use the other under one lock,
/// but not in one step, and two copies of a request may come in on either side of it.
const SWITCHING_NS: u64 = 20_000_000;

/// A host with `bond0` over `eth0` and `eth1`, each on a port of one switch, and a client on a third.
struct Bonded {
    net: Net,
    _pass: XdpPass,
}

impl Bonded {
    /// `None` if the kernel has no bonds.
    fn active_backup(options: &str) -> Option<Self> {
        let bonded = Self::with(&format!("mode active-backup miimon 10 {options}"))?;
        bonded.wait_for_use_of("eth0");
        Some(bonded)
    }

    fn with(options: &str) -> Option<Self> {
        kernel_makes("bonds (bonding)", "link add probe type bond\n").then(|| {
            let net = Net::new(2);
            let host = net.host(0);
            let pass = net.second_cable(0, MacAddr::new([0x02, 0xaa, 0, 0, 1, 1]));
            host.ns.ip(&format!(
                "link add bond0 type bond {options}\n\
                 link set eth0 down\n\
                 address flush dev eth0\n\
                 link set eth0 master bond0\n\
                 link set eth1 master bond0\n\
                 link set bond0 up\n\
                 address add {}/24 dev bond0\n",
                host.ip
            ));
            Self { net, _pass: pass }
        })
    }

    /// The member that the bond uses.
    fn active(&self) -> Option<String> {
        let mut command = self.net.host(0).ns.command("ip");
        command.args(["-json", "-details", "link", "show", "bond0"]);
        let links: serde_json::Value = serde_json::from_str(&run(command)).expect("JSON of ip");
        Some(links[0]["linkinfo"]["info_data"]["active_slave"].as_str()?.to_owned())
    }

    /// Waits until the bond uses this member.
    fn wait_for_use_of(&self, member: &str) {
        wait_for("the bond to use it", ms(10_000), || {
            (self.active().as_deref() == Some(member)).then_some(())
        });
        self.wait_until_heard();
    }

    /// Waits until the switch forwards what the bond sends, and the bond hears the client.
    fn wait_until_heard(&self) {
        let (bond, client) = (Wire::open(&self.net.host(0).ns, "bond0"), self.net.host(1).wire());
        for (from, to, mac) in [(&bond, &client, self.mac()), (&client, &bond, self.net.host(1).mac)] {
            wait_for("the switch to forward", ms(10_000), || {
                let frame = marker(mac);
                from.send(&frame);
                to.drain().into_iter().any(|seen| seen.bytes == frame && !seen.outgoing).then_some(())
            });
        }
    }

    /// Makes the bond use this member; gives the time from which on it may have, and until when it has.
    fn switch_to(&self, member: &str) -> (u64, u64) {
        let before = boot_ns();
        self.net.host(0).ns.ip(&format!("link set bond0 type bond active_slave {member}\n"));
        (before, boot_ns())
    }

    fn mac(&self) -> MacAddr {
        mac_of(&self.net.host(0).ns, "bond0")
    }

    fn flood(&self) -> Flood<1> {
        let client = self.net.host(1);
        Flood::start(client, &[HELD], GAP, [client.wire()])
    }

    /// What was asked, and who answered: all that reaches the client, from whichever member.
    fn told(&self, flood: Flood<1>) -> (Vec<Asked>, Answers) {
        let client = self.net.host(1).wire();
        let flooded = flood.stop();
        let [tap] = flooded.taps;
        (flooded.asked, Answers::among(&tap.settled(&client, HELD)))
    }
}

/// Asserts that each request was answered once, but at a switch-over: there the kernel uses no member for as long as the
/// switch takes it, and of one request a copy may come in on either side of it.
#[track_caller]
fn one_answer_each(asked: &[Asked], answers: &Answers, switches: &[(u64, u64)]) {
    let at =
        |sent: u64| switches.iter().position(|(from, until)| (*from..*until + SWITCHING_NS).contains(&sent));
    let mut twice = vec![0; switches.len()];
    for request in asked {
        let count = answers.to(request).len();
        match at(request.sent_ns) {
            None => assert_eq!(count, 1, "of {} requests one at {} ns", asked.len(), request.sent_ns),
            Some(_) if count < 2 => {}
            Some(switch) => {
                assert_eq!(count, 2, "one from each side");
                twice[switch] += 1;
            }
        }
    }
    assert!(twice.iter().all(|count| *count <= 1), "answered twice at the switches: {twice:?}");
}

fn each_request_is_answered_once_while_the_bond_switches(mode: &str) {
    let Some(bonded) = Bonded::active_backup("fail_over_mac none") else { return };
    let node = Node::start_with(bonded.net.host(0), &["--iface", "bond0", "--attach", mode]);
    node.cli(&["online", HELD_24, "--iface", "bond0"]).expect(0);
    node.wait_for_state(HELD, "online", ms(30_000));
    let events = node.events();
    let flood = bonded.flood();
    let mut switches = Vec::new();
    for (number, member) in ["eth1", "eth0", "eth1"].into_iter().enumerate() {
        let enough = flood.sent() + 40;
        wait_for("requests before the next one", ms(30_000), || (flood.sent() >= enough).then_some(()));
        switches.push(bonded.switch_to(member));
        // Announced again: the switch learns the way, and it is said why.
        let seen = events.collect_until("the new way", ms(20_000), |event| {
            event["event"] == "path_changed" && event["reason"] == member
        });
        assert!(seen.iter().all(|event| event.json["event"] != "conflict"), "{number}: {seen:?}");
        wait_for("the announcement after it", ms(20_000), || {
            let now = events.drain();
            now.iter().any(|event| event.json["event"] == "announced").then_some(())
        });
    }
    let enough = flood.sent() + 40;
    wait_for("requests after the last one", ms(30_000), || (flood.sent() >= enough).then_some(()));
    let (asked, answers) = bonded.told(flood);
    one_answer_each(&asked, &answers, &switches);
    assert_eq!(neighbour_is(&bonded), Some(bonded.mac()));
}

/// Whom the client takes for the owner once it has talked to the address.
fn neighbour_is(bonded: &Bonded) -> Option<MacAddr> {
    let client = bonded.net.host(1);
    assert!(pings_from(&client.ns, client.ip, HELD), "the client reaches the address");
    neighbour(&client.ns, HELD)
}

#[test]
fn each_request_is_answered_once_while_the_bond_switches_in_tc() {
    each_request_is_answered_once_while_the_bond_switches("tc");
}

#[test]
fn the_same_holds_for_a_native_program_on_both_members() {
    each_request_is_answered_once_while_the_bond_switches("native");
}

#[test]
fn auto_takes_tc_on_a_bond() {
    let Some(bonded) = Bonded::active_backup("") else { return };
    let node = Node::start_with(bonded.net.host(0), &["--iface", "bond0"]);
    assert_eq!(node.status()["interfaces"][0]["attach_mode"], "tc");
    for member in ["eth0", "eth1"] {
        node.cli(&["online", HELD_24, "--iface", member, "--attach-now"]).expect(1).naming("use bond0");
        assert!(egress_programs(&bonded.net.host(0).ns, member).is_empty(), "nothing on {member}");
    }
}

#[test]
fn when_the_cable_of_the_used_member_is_cut_the_other_one_answers_and_announces() {
    let Some(bonded) = Bonded::active_backup("fail_over_mac none") else { return };
    for mode in ["tc", "native"] {
        let node = Node::start_with(bonded.net.host(0), &["--iface", "bond0", "--attach", mode]);
        node.cli(&["online", HELD_24, "--iface", "bond0"]).expect(0);
        node.wait_for_state(HELD, "online", ms(30_000));
        let flood = bonded.flood();
        let other = Wire::open(bonded.net.bridge(), "q0");
        let cut = boot_ns();
        bonded.net.plug(0, false);
        other.wait_for("the announcement on the other member's cable", ms(10_000), |frame| {
            !frame.outgoing && frame.boot_ns > cut && frame.says(HELD, bonded.mac())
        });
        bonded.wait_for_use_of("eth1");
        let over = boot_ns();
        let enough = flood.sent() + 40;
        wait_for("requests after it", ms(30_000), || (flood.sent() >= enough).then_some(()));
        let (asked, answers) = bonded.told(flood);
        let outside = |asked: &&Asked| asked.sent_ns < cut - SWITCHING_NS || asked.sent_ns > over;
        let outside: Vec<Asked> = asked.iter().filter(outside).copied().collect();
        one_answer_each(&outside, &answers, &[]);
        assert!(asked.iter().all(|asked| answers.to(asked).len() <= 1), "never two");
        assert_eq!(neighbour_is(&bonded), Some(bonded.mac()));
        bonded.net.plug(0, true);
        node.cli(&["unload"]).expect(0);
        bonded.switch_back();
    }
}

impl Bonded {
    /// To the first member, once its cable carries frames again.
    fn switch_back(&self) {
        wait_for("the first member to be up", ms(10_000), || {
            let mut command = self.net.host(0).ns.command("ip");
            let switched =
                command.args(["link", "set", "bond0", "type", "bond", "active_slave", "eth0"]).output();
            switched.expect("ip runs").status.success().then_some(())
        });
        self.wait_for_use_of("eth0");
    }
}

#[test]
fn a_mac_that_follows_the_member_is_answered_with_and_the_former_one_not_accused() {
    let Some(bonded) = Bonded::active_backup("fail_over_mac active") else { return };
    for mode in ["tc", "native"] {
        let node = Node::start_with(bonded.net.host(0), &["--iface", "bond0", "--attach", mode]);
        node.cli(&["online", HELD_24, "--iface", "bond0"]).expect(0);
        node.wait_for_state(HELD, "online", ms(30_000));
        let events = node.events();
        let client = bonded.net.host(1).wire();
        let former = bonded.mac();
        bonded.switch_to("eth1");
        let now = wait_for("the other MAC", ms(10_000), || Some(bonded.mac()).filter(|mac| *mac != former));
        client.wait_for("the announcement of the new MAC", ms(20_000), |frame| frame.says(HELD, now));
        // What left with the former MAC may come back: it was ours.
        client.send(&bytes(&announcement(former, HELD)));
        client.send(&bytes(&announcement(stranger(1), HELD)));
        let seen = events.collect_until("the stranger's conflict", ms(20_000), |event| {
            event["event"] == "conflict" && event["claimant"] == stranger(1).to_string()
        });
        let accused = seen
            .iter()
            .any(|event| event.json["claimant"] == former.to_string() && event.json["event"] == "conflict");
        assert!(!accused, "{seen:?}");
        assert_eq!(node.address(HELD).expect("managed")["owner"], now.to_string());
        assert_eq!(neighbour_is(&bonded), Some(now));
        node.cli(&["unload"]).expect(0);
        bonded.switch_to("eth0");
        bonded.wait_for_use_of("eth0");
    }
}

#[test]
fn macs_that_members_exchange_change_nothing_for_the_address() {
    let Some(bonded) = Bonded::active_backup("fail_over_mac follow") else { return };
    let node = Node::start_with(bonded.net.host(0), &["--iface", "bond0"]);
    node.cli(&["online", HELD_24, "--iface", "bond0"]).expect(0);
    node.wait_for_state(HELD, "online", ms(30_000));
    let (mac, events) = (bonded.mac(), node.events());
    let flood = bonded.flood();
    let switch = bonded.switch_to("eth1");
    bonded.wait_for_use_of("eth1");
    let enough = flood.sent() + 40;
    wait_for("requests after it", ms(30_000), || (flood.sent() >= enough).then_some(()));
    let (asked, answers) = bonded.told(flood);
    assert_eq!(bonded.mac(), mac);
    // The members' MACs are set one after the other: the switch may send a frame the wrong way meanwhile.
    let late =
        asked.iter().filter(|asked| asked.sent_ns > switch.1 + 1_000_000_000).copied().collect::<Vec<_>>();
    if !late.is_empty() {
        one_answer_each(&late, &answers, &[]);
    }
    assert!(asked.iter().all(|asked| answers.to(asked).len() <= 1), "never two");
    assert!(events.drain().iter().all(|event| event.json["event"] != "conflict"));
    assert_eq!(neighbour_is(&bonded), Some(mac));
}

#[test]
fn after_the_daemons_death_the_kernel_decides_which_member_answers() {
    let Some(bonded) = Bonded::active_backup("fail_over_mac none") else { return };
    for mode in ["tc", "native"] {
        let mut node = Node::start_with(bonded.net.host(0), &["--iface", "bond0", "--attach", mode]);
        node.cli(&["online", HELD_24, "--iface", "bond0"]).expect(0);
        node.wait_for_state(HELD, "online", ms(30_000));
        node.kill();
        // As if it had been dead for longer than its last word is good for.
        Pins::on(&node, "bond0").change_control(|control| control.heartbeat_ns = 1);
        let switch = bonded.switch_to("eth1");
        bonded.wait_for_use_of("eth1");
        let flood = bonded.flood();
        wait_for("requests", ms(30_000), || (flood.sent() >= 40).then_some(()));
        let (asked, answers) = bonded.told(flood);
        assert!(asked[0].sent_ns > switch.1);
        one_answer_each(&asked, &answers, &[]);
        node.cli(&["unload"]).expect(0);
        bonded.switch_to("eth0");
        bonded.wait_for_use_of("eth0");
    }
}

#[test]
fn a_member_that_joins_or_leaves_is_a_port_or_none() {
    let Some(bonded) = Bonded::active_backup("fail_over_mac none") else { return };
    let host = bonded.net.host(0);
    let node = Node::start_with(host, &["--iface", "bond0", "--attach", "native"]);
    node.cli(&["online", HELD_24, "--iface", "bond0"]).expect(0);
    let client = bonded.net.host(1).wire();
    let asked_once = |what: &str| {
        let flood = bonded.flood();
        wait_for("requests", ms(30_000), || (flood.sent() >= 40).then_some(()));
        let (asked, answers) = bonded.told(flood);
        let counts: Vec<usize> = asked.iter().map(|asked| answers.to(asked).len()).collect();
        assert!(counts.iter().all(|count| *count == 1), "{what}: {counts:?}");
    };
    asked_once("with both");
    host.ns.ip("link set eth0 nomaster\n");
    bonded.wait_for_use_of("eth1");
    settled(&client, HELD, &bonded.net.host(1).wire());
    asked_once("with the other one alone");
    host.ns.ip("link set eth0 down\nlink set eth0 master bond0\n");
    wait_for("the member to be back", ms(10_000), || {
        let mut command = host.ns.command("ip");
        let switched =
            command.args(["link", "set", "bond0", "type", "bond", "active_slave", "eth0"]).output();
        switched.expect("ip runs").status.success().then_some(())
    });
    bonded.wait_for_use_of("eth0");
    settled(&client, HELD, &bonded.net.host(1).wire());
    asked_once("with both again");
}

#[test]
fn members_that_are_all_used_answer_once_each() {
    let Some(bonded) = Bonded::with("mode 802.3ad miimon 10 lacp_rate fast") else { return };
    // The switch's side of the aggregate.
    bonded.net.bridge().ip("link add agg type bond mode 802.3ad miimon 10 lacp_rate fast\n\
         link set p0 nomaster down\n\
         link set q0 nomaster down\n\
         link set p0 master agg\n\
         link set q0 master agg\n\
         link set agg master br0 up\n");
    wait_for("both sides to agree", ms(30_000), || {
        let mut command = bonded.net.host(0).ns.command("ip");
        command.args(["-json", "-details", "link", "show", "bond0"]);
        let links: serde_json::Value = serde_json::from_str(&run(command)).expect("JSON of ip");
        (links[0]["linkinfo"]["info_data"]["ad_info"]["num_ports"] == 2).then_some(())
    });
    bonded.wait_until_heard();
    for mode in ["tc", "native"] {
        let node = Node::start_with(bonded.net.host(0), &["--iface", "bond0", "--attach", mode]);
        node.cli(&["online", HELD_24, "--iface", "bond0"]).expect(0);
        node.wait_for_state(HELD, "online", ms(30_000));
        let flood = bonded.flood();
        wait_for("requests", ms(30_000), || (flood.sent() >= 100).then_some(()));
        let (asked, answers) = bonded.told(flood);
        one_answer_each(&asked, &answers, &[]);
        node.cli(&["unload"]).expect(0);
    }
}

#[test]
fn a_vlan_on_a_bond_is_answered_under_its_tag_by_the_member_in_use() {
    let Some(bonded) = Bonded::active_backup("fail_over_mac none") else { return };
    let host = bonded.net.host(0);
    host.ns.sysctl("ipv4/conf/all/arp_ignore", "1");
    host.ns.ip("link add link bond0 name bond0.100 type vlan id 100\n\
         link set bond0.100 up\n\
         address add 10.8.0.1/24 dev bond0.100\n");
    let held = Ipv4Addr::new(10, 8, 0, 100);
    let node = Node::start_with(host, &["--iface", "bond0.100"]);
    node.cli(&["online", "10.8.0.100/24", "--iface", "bond0.100"]).expect(0);
    assert!(addresses_on(&host.ns, "bond0.100").contains(&(held, 24)));
    let client = bonded.net.host(1).wire();
    let tags_of_answers = |asked_behind: Vlan, number: u16| {
        let ask = |asker: MacAddr, vlan: Vlan| {
            client.send(&bytes(&Outgoing { vlan, ..request(asker, Ipv4Addr::new(10, 8, 0, 9), held) }));
        };
        ask(stranger(number), asked_behind);
        // The last one is answered in any case.
        ask(stranger(number + 100), Vlan { outer: 100, inner: 0 });
        let is_to = |frame: &Captured, asker: MacAddr| {
            !frame.outgoing && frame.is_arp(|arp| arp.operation == REPLY && arp.destination == asker)
        };
        let seen =
            client.collect_until("the last answer", ms(10_000), |frame| is_to(frame, stranger(number + 100)));
        let answers = seen.iter().filter(|frame| is_to(frame, stranger(number)));
        answers.filter_map(Captured::arp).map(|arp| arp.vlan).collect::<Vec<_>>()
    };
    for member in ["eth0", "eth1"] {
        if member == "eth1" {
            bonded.switch_to(member);
            bonded.wait_for_use_of(member);
        }
        let number = if member == "eth0" { 10 } else { 20 };
        let own = Vlan { outer: 100, inner: 0 };
        assert_eq!(tags_of_answers(own, number), [own]);
        assert_eq!(tags_of_answers(Vlan::UNTAGGED, number + 1), []);
        assert_eq!(tags_of_answers(Vlan { outer: 200, inner: 0 }, number + 2), []);
    }
}
