//! What it costs to have addresses while nothing happens.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use arpwarden_tests::{
    figures::{
        stats::Spread,
        table::{Row, Section, Target},
    },
    ms,
    netns::Net,
    node::Node,
    tools::addresses,
    wait_for,
};

use crate::{
    many::{all_online, lines},
    peers::{Keepalived, Tool},
    process::Processes,
    references,
};

/// How long each is looked at.
const LOOK: Duration = Duration::from_secs(12);
/// keepalived's interval between advertisements unless it is told otherwise, in seconds.
const USUAL: &str = "1";
const MIB: f64 = 1024.0 * 1024.0;

/// Measures.
pub(crate) fn measure() -> Section {
    let mut rows = Vec::new();
    for count in [1_000, 10_000] {
        let net = Net::new(2);
        let node = Node::start(net.host(0));
        let addresses: Vec<Ipv4Addr> = references::addresses(count).collect();
        node.cli_with_input(&["online", "-", "--iface", "eth0"], &lines(&addresses)).expect(0);
        all_online(&node, addresses.len());
        let [share, switches, memory] = look(&format!("arpwarden, {count} addresses"), node.pid());
        rows.push(if count == 10_000 { share.target(Target::AtMost(0.1)) } else { share });
        rows.extend([switches, memory]);
    }
    rows.extend(keepaliveds());
    Section {
        name: "idle",
        about: "registered addresses, all plans over, nothing on the wire, 12 s: processor time of the process and its \
                children, context switches, resident memory; keepalived advertises once a second",
        rows,
    }
}

fn look(who: &str, pid: u32) -> [Row; 3] {
    let processes = Processes::of(pid);
    let (cpu, switches, begun) = (processes.cpu(), processes.switches(), Instant::now());
    std::thread::sleep(LOOK);
    let (cpu, switches) = (processes.cpu() - cpu, processes.switches() - switches);
    let seconds = begun.elapsed().as_secs_f64();
    [
        Row::new(
            format!("{who}, processor"),
            "% of a core",
            Spread::once(100.0 * cpu.as_secs_f64() / seconds),
        ),
        Row::new(format!("{who}, wake-ups"), "a second", Spread::once(switches as f64 / seconds)),
        Row::new(format!("{who}, resident"), "MiB", Spread::once(processes.resident() / MIB)),
    ]
}

fn keepaliveds() -> Vec<Row> {
    let who = "keepalived, 1,000 addresses";
    let program = match Tool::Keepalived.find() {
        Ok(program) => program,
        Err(why) => return vec![Row::missing(who, "", why)],
    };
    let net = Net::new(2);
    let held: Vec<Ipv4Addr> = references::addresses(1_000).collect();
    let keepalived = Keepalived::start(net.host(0), &program, &held, USUAL);
    wait_for("keepalived to be master of all", ms(30_000), || {
        (addresses(&net.host(0).ns).len() > held.len()).then_some(())
    });
    // Its second round of announcements is 5 s after the first.
    std::thread::sleep(ms(6_000));
    look(who, keepalived.pid()).into()
}
