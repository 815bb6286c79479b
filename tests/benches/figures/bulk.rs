//! Bulk TCP into an interface that carries the program, by iperf3 between two namespaces.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use arpwarden_tests::{
    figures::{
        stats::{Spread, in_turn, ratios},
        table::{Row, Section, Target},
    },
    netns::Host,
    node::Node,
    wait_for,
};
use serde_json::Value;

use crate::lane::cable;

/// Runs of each mode.
const ROUNDS: usize = 5;
/// Seconds of one run: long enough for the window to open, short enough for twenty of them.
const SECONDS: &str = "2";
/// `none` is without a program.
const MODES: [&str; 4] = ["none", "auto", "generic", "native"];

/// Measures.
pub(crate) fn measure() -> Section {
    let (node, peer) = cable(1);
    let mut picked = String::new();
    let runs = in_turn(ROUNDS, MODES.len(), |mode| {
        let mode = MODES[mode];
        let daemon =
            (mode != "none").then(|| Node::start_with(&node, &["--iface", "eth0", "--attach", mode]));
        if let Some(daemon) = daemon.as_ref().filter(|_| mode == "auto") {
            let status = daemon.status();
            picked = status["interfaces"][0]["attach_mode"].as_str().expect("a mode").to_owned();
        }
        gigabits(&node, &peer)
    });
    let mut rows = Vec::new();
    for (mode, speeds) in MODES.into_iter().zip(&runs) {
        let name = if mode == "auto" { format!("{picked}, which auto picks here") } else { mode.into() };
        rows.push(Row::new(format!("{name}, speed"), "Gbit/s", Spread::of(speeds)));
        if mode != "none" {
            let row = Row::new(format!("{name}, over none"), "", Spread::of(&ratios(speeds, &runs[0])));
            rows.push(if mode == "auto" { row.target(Target::AtLeast(0.95)) } else { row });
        }
    }
    Section {
        name: "bulk",
        about: "TCP by iperf3 into an interface with the daemon on it, veth, MTU 1500, offloads as they are",
        rows,
    }
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
