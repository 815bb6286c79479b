//! A planned hand-over between two hosts, as a client sees it that asks every millisecond.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    process::Stdio,
    time::{Duration, Instant},
};

use arpwarden_tests::{
    figures::{
        stats::Spread,
        table::{Row, Section, Target},
    },
    ms,
    netns::{Net, ip},
    node::Node,
    pinger::{Pinger, longest_gap},
    tools::has_address,
    wait_for,
};

use crate::peers::{Keepalived, Tool};

const ROUNDS: usize = 7;
/// The address that is handed over, and its number.
const LAST: u8 = 100;
const ADDRESS: Ipv4Addr = ip(LAST);
/// keepalived's shortest interval between advertisements, in seconds.
const SHORTEST: &str = "0.01";
/// How long the client asks before and after.
const AROUND: Duration = ms(400);

/// Measures.
pub(crate) fn measure() -> Section {
    let mut rows = vec![ours().target(Target::AtMost(5.0))];
    rows.push(keepaliveds());
    Section {
        name: "handover",
        about: "longest time without an echo reply at a client that asks every millisecond; arpwarden: a shell runs `offline` for one \
                host, then `online --claim immediate --check 0` for the other; keepalived: SIGTERM to the master, advertisements each \
                10 ms, priority 254",
        rows,
    }
}

fn ours() -> Row {
    let net = Net::new(3);
    let nodes = [0, 1].map(|host| Node::start(net.host(host)));
    nodes[0].online(LAST);
    let gaps: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            let commands = Commands::ready(&nodes[round % 2], &nodes[(round + 1) % 2]);
            gap(&net, || commands.run())
        })
        .collect();
    Row::new("arpwarden, longest gap", "ms", Spread::of(&gaps))
}

/// A shell that waits to run both commands. A script starts them in service; started by this process, of many megabytes
/// and threads, each would wait for its copy first.
struct Commands(std::process::Child);

impl Commands {
    const SCRIPT: &str = "read -r go && \"$1\" --instance \"$2\" offline \"$4\" && \
                          \"$1\" --instance \"$3\" online \"$4/24\" --iface eth0 --claim immediate --check 0";

    /// Ready to hand the address over.
    fn ready(from: &Node<'_>, to: &Node<'_>) -> Self {
        let mut shell = from.host.ns.command("sh");
        shell.args(["-c", Self::SCRIPT, "sh"]).arg(&from.program);
        shell.args([&from.instance, &to.instance, &ADDRESS.to_string()]);
        let started = shell.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self(started.expect("a shell"))
    }

    /// Runs them, one after the other.
    fn run(mut self) {
        let mut go = self.0.stdin.take().expect("a pipe");
        go.write_all(b"\n").expect("the shell waits");
        let status = self.0.wait().expect("a child");
        assert!(status.success(), "the hand-over ended with {status}");
    }
}

fn keepaliveds() -> Row {
    let what = "keepalived, longest gap";
    let program = match Tool::Keepalived.find() {
        Ok(program) => program,
        Err(why) => return Row::missing(what, "ms", why),
    };
    let net = Net::new(3);
    let start = |host: usize| Keepalived::start(net.host(host), &program, &[ADDRESS], SHORTEST);
    let mut master = (0, start(0));
    let is_master = |host: usize| {
        wait_for("keepalived to be master", ms(10_000), || {
            has_address(&net.host(host).ns, ADDRESS).then_some(())
        })
    };
    is_master(0);
    let mut gaps = Vec::new();
    for _ in 0..ROUNDS {
        let other = 1 - master.0;
        let backup = start(other);
        // It listens before it may take over.
        std::thread::sleep(ms(1_000));
        gaps.push(gap(&net, || {
            master.1.stop();
            is_master(other);
        }));
        master = (other, backup);
    }
    Row::new(what, "ms", Spread::of(&gaps))
}

/// Milliseconds of the longest gap around what is done.
fn gap(net: &Net, hand_over: impl FnOnce()) -> f64 {
    let pinger = Pinger::start(&net.host(2).ns, ADDRESS);
    let begun = Instant::now();
    std::thread::sleep(AROUND);
    hand_over();
    std::thread::sleep(AROUND);
    let answers = pinger.stop();
    assert!(answers.len() > 10, "{} answers in {:?}", answers.len(), begun.elapsed());
    longest_gap(&answers).as_secs_f64() * 1e3
}
