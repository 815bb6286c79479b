//! Bulk TCP into an interface that carries the program, by iperf3 between two namespaces.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use arpwarden_common::net::MacAddr;
use arpwarden_tests::{
    netns::{Host, Netns, ip},
    node::Node,
    wait_for,
};
use serde_json::Value;

use crate::report::Figure;

/// Runs of each mode, in turn.
const ROUNDS: usize = 5;
/// Seconds of one run: long enough for the window to open, short enough for twenty of them.
const SECONDS: &str = "2";

/// Gbit/s without a program, and in each mode.
pub(crate) fn measure() -> [(&'static str, Figure); 4] {
    let (node, peer) = cable();
    let mut figures = ["none", "tc", "generic", "native"].map(|mode| (mode, Vec::with_capacity(ROUNDS)));
    for _ in 0..ROUNDS {
        for (mode, speeds) in &mut figures {
            let _daemon =
                (*mode != "none").then(|| Node::start_with(&node, &["--iface", "eth0", "--attach", mode]));
            speeds.push(gigabits(&node, &peer));
        }
    }
    figures.map(|(mode, speeds)| (mode, Figure::of(speeds)))
}

/// Two hosts at the ends of one cable, nothing on it: a program at the far end would cost as well.
fn cable() -> (Host, Host) {
    let host = |number: u8| Host {
        ns: Netns::new(),
        mac: MacAddr::new([0x02, 0xaa, 0, 0, 0, number]),
        ip: ip(number),
        port: "eth0".into(),
    };
    let (node, peer) = (host(1), host(2));
    let far = peer.ns.path();
    node.ns.ip(&format!(
        "link add eth0 address {} type veth peer name eth0 address {} netns {}",
        node.mac,
        peer.mac,
        far.display()
    ));
    for end in [&node, &peer] {
        end.ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0", end.ip));
    }
    (node, peer)
}

fn gigabits(node: &Host, peer: &Host) -> f64 {
    let mut server = quiet(node, &["-s", "-1"]);
    let result = wait_for("iperf3 to reach its server", Duration::from_secs(10), || {
        let mut client = peer.ns.command("iperf3");
        client.args(["-c", &node.ip.to_string(), "-t", SECONDS, "-J"]).stderr(Stdio::null());
        let output = client.output().expect("iperf3 starts");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        result["end"]["sum_received"]["bits_per_second"].as_f64()
    });
    drop(server.kill());
    drop(server.wait());
    result / 1e9
}

fn quiet(host: &Host, arguments: &[&str]) -> Child {
    let mut command: Command = host.ns.command("iperf3");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("iperf3 starts")
}
