//! From a claim on the wire to the event that tells of it.

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use arpwarden_common::net::MacAddr;
use arpwarden_tests::{
    figures::{
        stats::{Spread, percentile},
        table::{Row, Section, Target},
    },
    live::{Stream, cpus},
    ms,
    netns::{Net, Netns, stranger},
    node::{Events, Node},
    wire::{Wire, announcement, boot_ns, bytes},
};

use crate::{
    lane::takes_frames,
    many::{UNREGISTERED, all_online, lines, without_registration},
    peers::Tool,
    process::Processes,
    references::{self, Frames, Generator},
};

/// Claims in a run, each for an address of its own.
const CLAIMS: usize = 100;
const ROUNDS: usize = 3;
/// Between two claims: much longer than an event takes.
const APART: Duration = ms(5);
/// The flood is of claims for so many addresses, which nobody asks about.
const FLOODED: u32 = 64;
/// As fast as it goes, in runs that are long beside the 20 ms that the kernel takes around each.
const ENDLESS: (u32, Duration) = (300_000, Duration::ZERO);
/// The same for both watchers: 100,000 claims a second, in bursts.
const STEADY: (u32, Duration) = (10_000, ms(100));
const STEADY_FOR: Duration = Duration::from_secs(3);
/// How long an event is waited for.
const PATIENCE: Duration = ms(500);
/// No stream lasts longer.
const AT_MOST: Duration = Duration::from_secs(30);

/// Measures.
pub(crate) fn measure() -> Section {
    let mut rows = ours();
    rows.extend(arpalerts());
    Section {
        name: "claim",
        about: "claim on the wire to its event read: by `events --follow --json` and a pipe; by arpalert, the line in its log \
                file. Native on veth; processor time is the process's own",
        rows,
    }
}

fn ours() -> Vec<Row> {
    let net = Net::new(2);
    without_registration(&net);
    let node = Node::start(net.host(0));
    let quiet = u32::try_from(2 * ROUNDS * CLAIMS).expect("some hundreds");
    let addresses: Vec<Ipv4Addr> = references::addresses(FLOODED + quiet).collect();
    let arguments = [&["online", "-", "--iface", "eth0"], &UNREGISTERED[..]].concat();
    node.cli_with_input(&arguments, &lines(&addresses)).expect(0);
    all_online(&node, addresses.len());
    let events = node.events();
    let wire = net.host(1).wire();
    let mut runs = addresses[FLOODED as usize..].chunks_exact(CLAIMS);
    let mut rows = vec![Row::new(
        "idle, three wake-ups and nothing else: a byte through two cat, p50",
        "µs",
        Spread::of(&[(); ROUNDS].map(|()| percentile(&wake_ups(), 50))),
    )];

    let idle: Vec<_> = runs.by_ref().take(ROUNDS).map(|run| claim_all(&wire, &events, run)).collect();
    rows.extend(latencies("idle", &idle, [Some(100.0), Some(1_000.0)]));

    let generator = flood(&net);
    let processes = Processes::of(node.pid());
    let stream = Stream::start(net.bridge(), &generator, cpus()[0], ENDLESS, AT_MOST);
    let under_it: Vec<_> = runs.by_ref().take(ROUNDS).collect();
    let flooded: Vec<_> = under_it.iter().map(|run| claim_all(&wire, &events, run)).collect();
    let streamed = stream.stop();
    // Where the cable's queue was full of the flood a claim has come to nobody.
    let arrived = claimed(&node);
    let came = |run: &[Ipv4Addr], took: Vec<Option<f64>>| -> Vec<Option<f64>> {
        let arrived = |address: &Ipv4Addr| arrived.contains(address);
        run.iter().zip(took).filter(|(address, _)| arrived(address)).map(|(_, took)| took).collect()
    };
    let flooded: Vec<_> = under_it.into_iter().zip(flooded).map(|(run, took)| came(run, took)).collect();
    let arrived = flooded.iter().map(Vec::len).sum::<usize>();
    rows.extend(latencies("under a flood", &flooded, [None, Some(10_000.0)]));
    rows.push(Row::new("the flood, claims from random MACs", "claims/s", Spread::once(streamed.rate())));
    rows.push(Row::new("claims that arrived under it", "", Spread::once(arrived as f64)));
    rows.push(Row::new("of them without an event", "", Spread::once(lost(&flooded))));
    drop(events);

    let (share, rate) = steady(&net, &generator, &processes);
    rows.push(Row::new(format!("the daemon under {rate:.0} claims/s"), "% of a core", Spread::once(share)));
    rows
}

/// Addresses for which claims have come.
fn claimed(node: &Node<'_>) -> HashSet<Ipv4Addr> {
    let status = node.status();
    let entries = status["addresses"].as_array().expect("addresses").iter();
    let claimed = entries.filter(|entry| entry["counters"]["claims"].as_u64() > Some(0));
    claimed.filter_map(|entry| entry["address"].as_str()?.parse().ok()).collect()
}

/// What an event cannot be quicker than on this machine: microseconds until a byte has gone through two processes to a
/// thread that waits for it, as an event goes through the daemon and the command.
fn wake_ups() -> Vec<f64> {
    let cat = |from: Stdio| {
        let mut cat = Command::new("cat");
        cat.stdin(from).stdout(Stdio::piped()).spawn().expect("cat starts")
    };
    let mut first = cat(Stdio::piped());
    let mut second = cat(first.stdout.take().expect("a pipe").into());
    let (mut into, mut out) = (first.stdin.take().expect("a pipe"), second.stdout.take().expect("a pipe"));
    let (sender, read) = channel();
    let reader = std::thread::spawn(move || {
        while let Ok(1) = out.read(&mut [0]) {
            sender.send(boot_ns()).expect("somebody who waits for it");
        }
    });
    let one = |_| {
        std::thread::sleep(APART);
        let sent_ns = boot_ns();
        into.write_all(&[0]).expect("cat reads");
        let read_ns = read.recv_timeout(PATIENCE).expect("the byte comes through");
        micros(read_ns - sent_ns)
    };
    let took = (0..CLAIMS).map(one).collect();
    drop(into);
    for mut cat in [first, second] {
        cat.wait().expect("a child");
    }
    reader.join().expect("a thread that ends with the pipe");
    took
}

fn flood(net: &Net) -> Generator {
    let port = net.bridge().index_of(&net.host(0).port).expect("the port of the node");
    Generator::new(Frames::Claims, FLOODED, port)
}

/// Processor time that the processes take while 100,000 claims a second come, and how many really came.
fn steady(net: &Net, generator: &Generator, processes: &Processes) -> (f64, f64) {
    let before = processes.cpu();
    let stream = Stream::start(net.bridge(), generator, cpus()[0], STEADY, AT_MOST);
    std::thread::sleep(STEADY_FOR);
    let streamed = stream.stop();
    let cpu = processes.cpu() - before;
    (100.0 * cpu.as_secs_f64() / streamed.took.as_secs_f64(), streamed.rate())
}

/// Microseconds from the claim to its event; nothing where none came.
fn claim_all(wire: &Wire, events: &Events, addresses: &[Ipv4Addr]) -> Vec<Option<f64>> {
    let one = |(number, &address): (u16, &Ipv4Addr)| {
        std::thread::sleep(APART);
        // What the flood has caused is not waited for.
        events.drain();
        let claimant = stranger(0x1000 + number);
        let sent_ns = wire.send(&bytes(&announcement(claimant, address)));
        let address = address.to_string();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let found = events.next(deadline)?;
            if found.json["event"] == "conflict" && found.json["address"] == address.as_str() {
                return Some(micros(found.read_ns.saturating_sub(sent_ns)));
            }
        }
        None
    };
    (0..).zip(addresses).map(one).collect()
}

fn micros(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6
}

fn lost(runs: &[Vec<Option<f64>>]) -> f64 {
    runs.iter().flatten().filter(|took| took.is_none()).count() as f64
}

/// p50 and p99 of each run. A claim without an event counts as one that took as long as was waited.
fn latencies(when: &str, runs: &[Vec<Option<f64>>], targets: [Option<f64>; 2]) -> Vec<Row> {
    let took: Vec<Vec<f64>> = runs
        .iter()
        .map(|run| run.iter().map(|took| took.unwrap_or(PATIENCE.as_secs_f64() * 1e6)).collect())
        .collect();
    let row = |(percent, target): (usize, Option<f64>)| {
        let of: Vec<f64> = took.iter().map(|took| percentile(took, percent)).collect();
        Row {
            target: target.map(Target::AtMost),
            ..Row::new(format!("{when}, p{percent}"), "µs", Spread::of(&of))
        }
    };
    [50, 99].into_iter().zip(targets).map(row).collect()
}

/// The same for arpalert, which sees every ARP frame on its interface and logs what it has not met before.
fn arpalerts() -> Vec<Row> {
    let rows = ["arpalert, idle, p50", "arpalert, idle, p99", "arpalert under the same claims"];
    let units = ["µs", "µs", "% of a core"];
    let program = match Tool::Arpalert.find() {
        Ok(program) => program,
        Err(why) => {
            return std::iter::zip(rows, units).map(|(row, unit)| Row::missing(row, unit, &why)).collect();
        }
    };
    let net = Net::new(2);
    let host = net.host(0);
    takes_frames(&host.ns);
    let watcher = Arpalert::start(&host.ns, &program);
    let wire = net.host(1).wire();
    let addresses: Vec<Ipv4Addr> = references::addresses(CLAIMS.try_into().expect("some hundreds")).collect();
    let runs: Vec<Vec<Option<f64>>> = (0..ROUNDS)
        .map(|round| {
            let number = |n: usize| u16::try_from(0x2000 + round * CLAIMS + n).expect("a small number");
            let one = |(n, &address): (usize, &Ipv4Addr)| {
                std::thread::sleep(APART);
                watcher.logs(&wire, stranger(number(n)), address)
            };
            addresses.iter().enumerate().map(one).collect()
        })
        .collect();
    let mut rows = latencies("arpalert, idle", &runs, [None, None]);
    let (share, _) = steady(&net, &flood(&net), &Processes::of(watcher.child.id()));
    rows.push(Row::new("arpalert under the same claims", "% of a core", Spread::once(share)));
    rows
}

struct Arpalert {
    child: Child,
    folder: PathBuf,
}

impl Arpalert {
    fn start(ns: &Netns, program: &Path) -> Self {
        let folder = std::env::temp_dir().join(format!("awt-{}-arpalert", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder of our own");
        let path = |name: &str| folder.join(name).display().to_string();
        for list in ["allow", "deny", "leases", "oui", "log"] {
            fs::write(folder.join(list), "").expect("an empty file");
        }
        // As Debian ships it, but for where files are, that it stays root, and that the log is a file.
        let settings = format!(
            "maclist file = \"{}\"\nmaclist alert file = \"{}\"\nmaclist leases file = \"{}\"\nlock file = \"{}\"\n\
             use syslog = false\nlog file = \"{}\"\nlog level = 6\numask = 177\ndaemon = false\ndump inter = 5\n\
             catch only arp = true\nmac vendor file = \"{}\"\nmax entry = 1000000\nmax request = 1000000\n\
             anti flood interval = 5\nanti flood global = 50\n",
            path("allow"),
            path("deny"),
            path("leases"),
            path("lock"),
            path("log"),
            path("oui")
        );
        fs::write(folder.join("conf"), settings).expect("a configuration");
        let mut command = ns.command(program);
        command.args(["-f", &path("conf"), "-i", "eth0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("arpalert starts");
        // Until it listens nothing is logged of what comes.
        std::thread::sleep(ms(500));
        Self { child, folder }
    }

    /// Microseconds from a claim to its line in the log.
    fn logs(&self, wire: &Wire, claimant: MacAddr, address: Ipv4Addr) -> Option<f64> {
        let log = self.folder.join("log");
        let before = fs::metadata(&log).expect("the log").len();
        let sent_ns = wire.send(&bytes(&announcement(claimant, address)));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if fs::metadata(&log).expect("the log").len() > before {
                let took = micros(boot_ns() - sent_ns);
                let text = fs::read_to_string(&log).unwrap_or_default();
                if text.contains(&claimant.to_string()) {
                    return Some(took);
                }
            }
        }
        None
    }
}

impl Drop for Arpalert {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is to be done about it either way.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}
