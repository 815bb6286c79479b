//! Teams: one answer to a request, whichever port is used. A kernel without teams skips these, and says so.

use std::net::Ipv4Addr;

use arpwarden_common::{net::MacAddr, wire::arp::REQUEST};
use arpwarden_tests::{
    flood::{Answers, Flood},
    kernel::XdpPass,
    ms,
    netlink::{TeamOption, set_team_option},
    netns::{Host, Net, ip},
    node::Node,
    tools::{addresses_on, kernel_makes, mac_of, neighbour, pings_from},
    wait_for,
    wire::{Captured, Wire, marker},
};

const HELD: Ipv4Addr = ip(100);

fn kernel_has_them() -> bool {
    kernel_makes("teams", "link add team0 type team\n")
}

/// A host with `team0` over `eth0` and `eth1`, each on a port of one switch, and a client on a third.
struct Teamed {
    net: Net,
    _pass: XdpPass,
}

impl Teamed {
    /// As teamd's runner `activebackup` sets a team up: all have one MAC (its policy `same_all`), or a port would take what
    /// is sent to the team for somebody else's.
    fn active_backup() -> Option<Self> {
        kernel_has_them().then(|| {
            let net = Net::new(2);
            let pass = net.second_cable(0, MacAddr::new([0x02, 0xaa, 0, 0, 1, 1]));
            let Host { ns, ip, mac, .. } = net.host(0);
            ns.ip(&format!(
                "link add team0 address {mac} type team\n\
                 link set eth1 address {mac}\n\
                 link set eth0 down\n\
                 address flush dev eth0\n"
            ));
            set_team_option(ns, "team0", "mode", TeamOption::Text("activebackup"));
            ns.ip(&format!(
                "link set eth0 master team0\n\
                 link set eth1 master team0\n\
                 link set team0 up\n\
                 address add {ip}/24 dev team0\n"
            ));
            let teamed = Self { net, _pass: pass };
            teamed.switch_to("eth0");
            teamed
        })
    }

    /// Has the team use this port, and waits until the switch forwards what the team sends, and the team hears the
    /// client.
    fn switch_to(&self, port: &str) {
        let (host, client) = (self.net.host(0), self.net.host(1));
        let index = host.ns.index_of(port).expect("a port");
        set_team_option(&host.ns, "team0", "activeport", TeamOption::Number(index));
        let (team, far) = (Wire::open(&host.ns, "team0"), client.wire());
        for (from, to, mac) in [(&team, &far, mac_of(&host.ns, "team0")), (&far, &team, client.mac)] {
            wait_for("the switch to forward", ms(10_000), || {
                let frame = marker(mac);
                from.send(&frame);
                to.drain().into_iter().any(|seen| seen.bytes == frame && !seen.outgoing).then_some(())
            });
        }
    }

    /// Each of a flood of requests is answered once, by the program.
    fn answers_once_each(&self) {
        let client = self.net.host(1);
        let flood = Flood::start(client, &[HELD], ms(2), [client.wire()]);
        wait_for("requests", ms(30_000), || (flood.sent() >= 40).then_some(()));
        let flooded = flood.stop();
        let [tap] = flooded.taps;
        Answers::among(&tap.settled(&client.wire(), HELD)).one_each(&flooded.asked);
    }
}

#[test]
fn a_team_answers_once_with_its_mac_whichever_port_it_uses() {
    let Some(teamed) = Teamed::active_backup() else { return };
    let (host, client) = (teamed.net.host(0), teamed.net.host(1));
    let mac = mac_of(&host.ns, "team0");
    let node = Node::start_with(host, &["--iface", "team0"]);
    let status = node.status();
    assert_eq!(status["interfaces"][0]["attach_mode"], "tc", "what auto picks: {status}");
    assert_eq!(status["interfaces"][0]["carrier"], "team0", "{status}");
    node.cli(&["online", "10.7.0.100/24", "--iface", "team0"]).expect(0);
    node.wait_for_state(HELD, "online", ms(30_000));
    assert!(addresses_on(&host.ns, "team0").contains(&(HELD, 24)));
    let events = node.events();
    for port in ["eth0", "eth1", "eth0"] {
        teamed.switch_to(port);
        teamed.answers_once_each();
        wait_for("an answer to a ping", ms(10_000), || pings_from(&client.ns, client.ip, HELD).then_some(()));
        assert_eq!(neighbour(&client.ns, HELD), Some(mac), "by {port}");
    }
    // As README says: nothing that the daemon reads tells of it.
    let told = events.drain();
    assert!(!told.iter().any(|event| event.json["event"] == "path_changed"), "{told:#?}");
    node.cli(&["offline", "10.7.0.100"]).expect(0);
    assert!(!addresses_on(&host.ns, "team0").iter().any(|(address, _)| *address == HELD));
    node.cli(&["unload"]).expect(0);
}

/// The kernel tells of the port that a team uses by a family of its own alone, but teamd has it say `notify_peers` when a
/// port is enabled: then it announces the addresses of the team by itself, through the guard.
#[test]
fn a_team_that_is_told_to_notify_its_peers_announces_what_it_holds_and_nothing_else() {
    let Some(teamed) = Teamed::active_backup() else { return };
    let (host, client) = (teamed.net.host(0), teamed.net.host(1));
    let mac = mac_of(&host.ns, "team0");
    let node = Node::start_with(host, &["--iface", "team0"]);
    node.cli(&["online", "10.7.0.100/24", "--iface", "team0"]).expect(0);
    node.cli(&["online", "10.7.0.101/24", "--iface", "team0", "--lease", "3"]).expect(0);
    for address in [HELD, ip(101)] {
        node.wait_for_state(address, if address == HELD { "online" } else { "suspended" }, ms(30_000));
    }
    // As somebody would put it back.
    host.ns.ip("address replace 10.7.0.101/24 dev team0\n");
    let wire = client.wire();
    set_team_option(&host.ns, "team0", "notify_peers_count", TeamOption::Number(1));
    let announces = |seen: &Captured, address: Ipv4Addr| {
        !seen.outgoing
            && seen.says(address, mac)
            && seen.is_arp(|arp| arp.operation == REQUEST && arp.target_ip == arp.sender_ip)
    };
    host.ns.ip("link set eth1 nomaster\nlink set eth1 down\nlink set eth1 master team0\n");
    let seen = wire.collect_until("the announcement", ms(10_000), |seen| announces(seen, HELD));
    let seen = [seen, node.settled(&wire)].concat();
    assert!(!seen.iter().any(|seen| seen.says(ip(101), mac)), "what may not answer: {seen:#?}");
}

#[test]
fn a_port_of_a_team_is_refused_and_the_team_is_named() {
    if !kernel_has_them() {
        return;
    }
    let net = Net::new(1);
    let host = net.host(0);
    host.ns.ip("link add team0 type team\nlink add a7 type veth peer name b7\nlink set a7 master team0");
    let node = Node::start(host);
    node.cli(&["online", "10.7.0.100/24", "--iface", "a7"]).expect(1).naming("team0");
}
