//! Many addresses in one call.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use arpwarden_tests::{
    figures::{
        stats::{Spread, in_turn, ratios},
        table::{Row, Section, Target},
    },
    ms,
    netns::{Net, Netns},
    node::Node,
    tools::run_with_input,
    wait_for,
    wire::boot_ns,
};

use crate::references;

/// How each call claims.
const IMMEDIATE: [&str; 6] = ["--iface", "eth0", "--claim", "immediate", "--check", "0"];
/// A call that has not announced everything after so long has failed.
const AT_MOST: Duration = Duration::from_secs(60);

/// What standard input of `online -` says.
pub(crate) fn lines(addresses: &[Ipv4Addr]) -> String {
    addresses.iter().map(|address| format!("{address}/32\n")).collect()
}

/// Waits until so many addresses are online, their plans over.
pub(crate) fn all_online(node: &Node<'_>, count: usize) {
    wait_for("all plans to be over", AT_MOST, || {
        let status = node.status();
        let entries = status["addresses"].as_array().expect("addresses");
        let done = entries.iter().filter(|entry| entry["state"] == "online").count() == count;
        if !done {
            // A status of ten thousand addresses is work for the daemon too.
            std::thread::sleep(Duration::from_millis(200));
        }
        done.then_some(())
    });
    // Behind the last answer the daemon moves its memory together: it answers again when it has.
    node.status();
}

/// A host for addresses that are answered without being configured: its kernel must not answer beside us.
pub(crate) fn without_registration(net: &Net) {
    for host in &net.hosts {
        host.ns.sysctl("ipv4/conf/all/arp_ignore", "1");
    }
}

/// Arguments with which an address is answered without being configured.
pub(crate) const UNREGISTERED: [&str; 3] = ["--register", "none", "--blackhole-ok"];

/// Measures.
pub(crate) fn measure() -> Section {
    let mut rows = vec![thousand()];
    rows.extend(ten_thousand());
    rows.extend(unregistered());
    Section {
        name: "many",
        about: "online --claim immediate --check 0 of many addresses in one call, from the start of the command to the last \
                address's first announcement on the wire; native on veth, pace plain (10,000 frames/s), without registration pace unlimited",
        rows,
    }
}

fn thousand() -> Row {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let addresses: Vec<Ipv4Addr> = references::addresses(1_000).collect();
    let mut took = Vec::new();
    for _ in 0..5 {
        match announced(&net, &node, &addresses, &[]) {
            Ok(time) => took.push(time.as_secs_f64() * 1e3),
            Err(why) => return Row::missing("1,000 addresses", "ms", why).target(Target::AtMost(100.0)),
        }
        node.cli(&["offline", "--all"]).expect(0);
    }
    Row::new("1,000 addresses", "ms", Spread::of(&took)).target(Target::AtMost(100.0))
}

fn ten_thousand() -> Vec<Row> {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let addresses: Vec<Ipv4Addr> = references::addresses(10_000).collect();
    let adding: String =
        addresses.iter().map(|address| format!("address add {address}/32 dev eth0\n")).collect();
    let mut failed = None;
    let runs = in_turn(3, 2, |who| {
        if who == 1 {
            let kernel = Netns::new();
            kernel.ip("link add eth0 type veth peer name far\nlink set eth0 up\nlink set far up");
            let mut command = kernel.command("ip");
            command.args(["-batch", "-"]);
            let begun = Instant::now();
            run_with_input(command, &adding);
            return begun.elapsed().as_secs_f64();
        }
        if failed.is_some() {
            return 0.0;
        }
        let took = announced(&net, &node, &addresses, &[]);
        node.cli(&["offline", "--all"]).expect(0);
        took.map(|took| took.as_secs_f64()).unwrap_or_else(|why| {
            failed = Some(why);
            0.0
        })
    });
    let target = Target::AtMost(1.15);
    let kernel = Row::new("ip -batch that adds 10,000 addresses", "s", Spread::of(&runs[1]));
    let what = ["10,000 addresses", "10,000 addresses, over ip -batch"];
    let ours = match failed {
        Some(why) => [Row::missing(what[0], "s", &why), Row::missing(what[1], "", &why).target(target)],
        None => [
            Row::new(what[0], "s", Spread::of(&runs[0])),
            Row::new(what[1], "", Spread::of(&ratios(&runs[0], &runs[1]))).target(target),
        ],
    };
    let [ours, over] = ours;
    vec![ours, kernel, over]
}

fn unregistered() -> Vec<Row> {
    const COUNT: u32 = 100_000;
    let net = Net::new(2);
    without_registration(&net);
    let file = std::env::temp_dir().join(format!("arpwarden-bench-{}.toml", std::process::id()));
    let config =
        format!("[daemon]\ncapacity = {COUNT}\n[[interface]]\nname = \"eth0\"\npace = \"unlimited\"\n");
    std::fs::write(&file, config).expect("a file for the configuration");
    let path = file.to_str().expect("a path of plain letters");
    let node = Node::start_with(net.host(0), &["--config", path, "--attach", "native"]);
    std::fs::remove_file(&file).expect("the file is there");
    let addresses: Vec<Ipv4Addr> = references::addresses(COUNT).collect();
    let what = format!("{COUNT} addresses, --register none, pace unlimited");
    let row = match announced(&net, &node, &addresses, &UNREGISTERED) {
        Ok(took) => Row::new(what, "s", Spread::once(took.as_secs_f64())),
        Err(why) => Row::missing(what, "s", why),
    };
    vec![row.target(Target::AtMost(5.0))]
}

/// How long it takes from the start of the command until each address has been announced.
fn announced(
    net: &Net,
    node: &Node<'_>,
    addresses: &[Ipv4Addr],
    arguments: &[&str],
) -> Result<Duration, String> {
    let (tap, mac) = (net.tap(0), node.host.mac);
    let input = lines(addresses);
    let arguments = [&["online", "-"], &IMMEDIATE[..], arguments].concat();
    let begun_ns = boot_ns();
    let (done, last_ns) = std::thread::scope(|scope| {
        let command = scope.spawn(|| node.cli_with_input(&arguments, &input));
        let mut left: HashSet<Ipv4Addr> = addresses.iter().copied().collect();
        let (mut last_ns, begun, mut heard) = (None, Instant::now(), Instant::now());
        while !left.is_empty() && begun.elapsed() < AT_MOST {
            let Some(frame) = tap.next(Instant::now() + ms(100)) else {
                // The pace lets a frame leave every 0.1 ms as long as there are any.
                if command.is_finished() && heard.elapsed() > ms(2_000) {
                    break;
                }
                continue;
            };
            heard = Instant::now();
            if !frame.outgoing
                && let Some(arp) = frame.arp()
                && arp.sender_mac == mac
                && arp.sender_ip == arp.target_ip
                && left.remove(&arp.sender_ip.into())
            {
                last_ns = Some(frame.boot_ns);
            }
        }
        let done = command.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (done, last_ns.filter(|_| left.is_empty()))
    });
    match (done.code, last_ns) {
        (0, Some(last_ns)) => Ok(Duration::from_nanos(last_ns.saturating_sub(begun_ns))),
        (code, _) => {
            let said = done.err.lines().next().or(done.out.lines().last()).unwrap_or_default();
            Err(format!("exit code {code}, not all announced: {said}"))
        }
    }
}
