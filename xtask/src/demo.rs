//! The main job, live: two nodes, a client, a router and a stranger on one bridge.

use std::io::IsTerminal as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::lab::{self, Lab, Node, Running, pause, wait_for};
use crate::{leftovers, process};

/// The address that moves.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

/// Name, MAC and own address of each host.
const HOSTS: [(&str, &str, Ipv4Addr); 5] = [
    (A, "02:00:00:00:00:0a", Ipv4Addr::new(10, 77, 0, 11)),
    (B, "02:00:00:00:00:0b", Ipv4Addr::new(10, 77, 0, 12)),
    (CLIENT, "02:00:00:00:00:c1", Ipv4Addr::new(10, 77, 0, 21)),
    (ROUTER, "02:00:00:00:00:01", Ipv4Addr::new(10, 77, 0, 1)),
    (STRANGER, "02:00:00:00:00:ee", Ipv4Addr::new(10, 77, 0, 66)),
];
const A: &str = "A";
const B: &str = "B";
const CLIENT: &str = "client";
const ROUTER: &str = "router";
const STRANGER: &str = "stranger";

/// How long the script lets pass before it believes that a node is gone: what an elector with a heartbeat of
/// 100 ms would wait, two of them missed and a little more.
const ELECTOR_PATIENCE: Duration = Duration::from_millis(250);

/// Tells the story. Needs root; `daemon` is the binary to show.
pub(crate) fn run(daemon: &Path) -> Result<()> {
    lab::catch_interrupts()?;
    leftovers::clean_up(lab::PREFIX)?;
    let shown = tell(daemon);
    if shown.is_ok() {
        println!("\nThat was all; namespaces, daemons and files are gone again.");
    }
    shown
}

fn tell(daemon: &Path) -> Result<()> {
    let screen = Screen { terminal: std::io::stdout().is_terminal() };
    println!(
        "arpwarden: two nodes, a client, a router and a stranger, each a network namespace, on one bridge."
    );
    println!("The address is {ADDRESS}. A Linux kernel plays each host; only A and B run arpwarden.\n");
    for (host, mac, address) in HOSTS {
        println!("  {host:<9} {mac}   {address}");
    }

    let mut lab = Lab::new()?;
    for (host, mac, address) in HOSTS {
        lab.add_host(host, mac, address)?;
    }
    let a = Node::start(&lab, A, daemon)?;
    let b = Node::start(&lab, B, daemon)?;
    // A bridge port learns and forwards only some 75 ms after its link came up.
    pause(Duration::from_millis(100))?;
    let online = format!("online {ADDRESS}/24 --iface eth0");
    let take_over = format!("{online} --claim immediate");
    let offline = format!("offline {ADDRESS}");

    screen.step(1, "A takes the address")?;
    let took = screen.node(&a, A, &online)?;
    println!("    probed, nobody objected; registered and announced after {} ms", took.as_millis());
    let ping = Ping::start(&lab)?;
    let _one_answer =
        process::output(lab.within(ROUTER, "ping").args(["-n", "-c1", "-W2", &ADDRESS.to_string()]))
            .context("the router cannot reach the address")?;
    let since = Instant::now();
    ping.wait_until_steady(since)?;
    screen.caches(&lab, A)?;
    ping.report(since);
    println!("    A's kernel never saw the question who has {ADDRESS}: {}", answered(&a)?);

    screen.step(2, "A stranger claims it")?;
    // Lets the stranger speak for an address that it does not have, as a forged or misconfigured host does.
    process::output(lab.within(STRANGER, "sysctl").args(["-q", "net.ipv4.ip_nonlocal_bind=1"]))?;
    let events = a.events()?;
    let caches = [CacheWatch::start(&lab, CLIENT)?, CacheWatch::start(&lab, ROUTER)?];
    // A monitor says nothing when it has begun to listen; starting one takes some ten milliseconds.
    pause(Duration::from_millis(200))?;
    let since = Instant::now();
    let address = ADDRESS.to_string();
    let words = ["-U", "-c1", "-I", "eth0", "-s", &address, &address];
    println!("  stranger$ arping {}", words.join(" "));
    // Its exit code says whether somebody replied, which nobody has to.
    let arping =
        crate::setup::Arping::Iputils.find().context("the arping of iputils is gone: cargo xtask setup")?;
    lab.within(STRANGER, arping).args(words).output().context("starting arping")?;
    let conflict = events.wait_for("A's report of the conflict", |event| event["event"] == "conflict")?;
    let claimant = conflict["claimant"].as_str().context("a conflict without a claimant")?;
    println!("    A reports: {ADDRESS} claimed by {}", named(claimant));
    events.wait_for("A's defence", |event| event["event"] == "defended")?;
    println!("    A answered back at once, with an announcement of its own");
    ping.wait_until_steady(since)?;
    for cache in caches {
        cache.report(A);
    }
    screen.caches(&lab, A)?;
    ping.report(since);
    drop(events);

    screen.step(3, "A yields, B takes over, and back, under running traffic")?;
    for (from, from_name, to, to_name) in [(&a, A, &b, B), (&b, B, &a, A)] {
        let since = Instant::now();
        screen.node(from, from_name, &offline)?;
        screen.node(to, to_name, &take_over)?;
        ping.wait_until_steady(since)?;
        screen.caches(&lab, to_name)?;
        ping.report(since);
        screen.breathe()?;
    }

    screen.step(4, "A's cable is cut, B takes over")?;
    println!(
        "  (This script plays the elector: who should have the address is for etcd, Pacemaker or the like to"
    );
    println!("  decide. It waits {} ms before it believes that A is gone.)", ELECTOR_PATIENCE.as_millis());
    let since = Instant::now();
    lab.ip("bridge", "link set A down")?;
    println!("    cut");
    pause(ELECTOR_PATIENCE)?;
    screen.node(&b, B, &take_over)?;
    ping.wait_until_steady(since)?;
    screen.caches(&lab, B)?;
    ping.report(since);
    screen.breathe()?;
    println!(
        "  (A cannot know yet; the elector sees to it that A gives the address up before its cable is back.)"
    );
    let since = Instant::now();
    screen.node(&a, A, &offline)?;
    lab.ip("bridge", "link set A up")?;
    println!("    the cable is plugged in again");
    // Time for a port to forward, and for anything that A might have to say.
    pause(Duration::from_millis(500))?;
    ping.wait_until_steady(since)?;
    screen.caches(&lab, B)?;
    ping.report(since);
    screen.breathe()
}

fn answered(node: &Node) -> Result<String> {
    let status = node.status()?;
    let count = &status["addresses"][0]["counters"]["answered"];
    let mode = status["interfaces"][0]["attach_mode"].as_str().unwrap_or("unknown");
    Ok(format!("XDP ({mode}) answered it {count} times"))
}

/// A MAC and whose it is.
fn named(mac: &str) -> String {
    match HOSTS.iter().find(|(_, known, _)| *known == mac) {
        Some((host, ..)) => format!("{mac} ({host})"),
        None => mac.to_owned(),
    }
}

/// What a person sees, at a person's speed where there is a terminal.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn step(&self, number: u32, title: &str) -> Result<()> {
        self.breathe()?;
        let (bold, plain) = if self.terminal { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        println!("\n{bold}{number}. {title}{plain}");
        self.breathe()
    }

    fn breathe(&self) -> Result<()> {
        // Long enough to read three lines, and a dozen of them stay below half a minute.
        pause(if self.terminal { Duration::from_millis(2_000) } else { Duration::ZERO })
    }

    /// Runs a command of the program on a node, shown as one would type it there; says how long it took.
    fn node(&self, node: &Node, name: &str, words: &str) -> Result<Duration> {
        println!("  {name}$ arpwarden {words}");
        let begin = Instant::now();
        node.call(words)?;
        Ok(begin.elapsed())
    }

    /// Shows the neighbour caches once both point at the owner.
    fn caches(&self, lab: &Lab, owner: &str) -> Result<()> {
        let expected = HOSTS.iter().find(|(host, ..)| *host == owner).map(|(_, mac, _)| *mac);
        for host in [CLIENT, ROUTER] {
            let what = format!("the {host}'s neighbour cache to point at {owner}");
            let mac = wait_for(&what, Duration::from_secs(5), || {
                Ok(lab.neighbour(host, ADDRESS)?.filter(|mac| Some(mac.as_str()) == expected))
            })?;
            println!("    {host}'s neighbour cache: {ADDRESS} is at {}", named(&mac));
        }
        Ok(())
    }
}

/// A ping from the client every 10 ms, all through the story.
struct Ping {
    /// Sequence number and moment of each answer.
    answers: Arc<Mutex<Vec<(u32, Instant)>>>,
    _running: Running,
}

impl Ping {
    fn start(lab: &Lab) -> Result<Self> {
        let answers: Arc<Mutex<Vec<_>>> = Arc::default();
        let into = Arc::clone(&answers);
        let mut ping = lab.within(CLIENT, "ping");
        ping.args(["-n", "-i", "0.01", &ADDRESS.to_string()]);
        let running = Running::start(ping, move |moment, line| {
            if let Some(sequence) = answer(line) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push((sequence, moment));
            }
        })?;
        Ok(Self { answers, _running: running })
    }

    /// Waits until the answers of half a second in a row have come, all after `since`.
    fn wait_until_steady(&self, since: Instant) -> Result<()> {
        const IN_A_ROW: usize = 50;
        wait_for("steady answers to the client's ping", Duration::from_secs(10), || {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(last) = answers.len().checked_sub(IN_A_ROW).and_then(|from| answers.get(from..)) else {
                return Ok(None);
            };
            let in_a_row = last.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1);
            Ok((in_a_row && last[0].1 > since).then_some(()))
        })
    }

    /// Says what was lost since then.
    fn report(&self, since: Instant) {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (lost, gap) = losses(&answers, since);
        println!(
            "    client's ping every 10 ms: {lost} lost, longest time without an answer {} ms",
            gap.as_millis()
        );
    }
}

/// The MACs that a host's neighbour cache has had for the address, as the kernel tells of each change.
struct CacheWatch {
    host: &'static str,
    seen: Arc<Mutex<Vec<(String, Instant)>>>,
    _running: Running,
}

impl CacheWatch {
    fn start(lab: &Lab, host: &'static str) -> Result<Self> {
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let into = Arc::clone(&seen);
        let mut monitor = lab.within(host, "ip");
        monitor.args(["monitor", "neigh"]);
        let running = Running::start(monitor, move |moment, line| {
            if let Some(mac) = entry(line) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push((mac.to_owned(), moment));
            }
        })?;
        Ok(Self { host, seen, _running: running })
    }

    /// Says for whom the entry was, and how long, when it was not the owner's.
    fn report(&self, owner: &str) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (mac, time) in passages(&seen) {
            let name = named(mac);
            if !name.ends_with(&format!("({owner})")) {
                // Shorter times are those of the monitor and of this program.
                let time = if time < Duration::from_millis(1) {
                    "less than 1 ms".into()
                } else {
                    format!("{} ms", time.as_millis())
                };
                println!("    {}'s neighbour cache was wrong for {time}: at {name}", self.host);
            }
        }
    }
}

/// The MACs that came and went, and how long each stayed.
fn passages(seen: &[(String, Instant)]) -> Vec<(&str, Duration)> {
    let mut changes: Vec<_> = seen.iter().collect();
    changes.dedup_by(|later, earlier| later.0 == earlier.0);
    changes.windows(2).map(|pair| (pair[0].0.as_str(), pair[1].1.duration_since(pair[0].1))).collect()
}

/// The MAC in a line of `ip monitor neigh`, if it is about the address.
fn entry(line: &str) -> Option<&str> {
    let (address, rest) = line.split_once(' ')?;
    let (_, rest) = rest.split_once("lladdr ")?;
    if address == ADDRESS.to_string() { rest.split(' ').next() } else { None }
}

/// How many are missing and the longest time between two answers, from the last answer before `since` on.
fn losses(answers: &[(u32, Instant)], since: Instant) -> (u32, Duration) {
    let first = answers.partition_point(|(_, moment)| *moment < since).saturating_sub(1);
    answers[first..].windows(2).fold((0, Duration::ZERO), |(lost, gap), pair| {
        let [(earlier, left), (later, right)] = [pair[0], pair[1]];
        (lost + later.saturating_sub(earlier + 1), gap.max(right.saturating_duration_since(left)))
    })
}

/// The sequence number in a line of ping, if it is an answer, and the first one.
fn answer(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("bytes from ")?.1.split_once("icmp_seq=")?;
    let (sequence, rest) = rest.split_once(' ')?;
    if rest.contains("DUP!") { None } else { sequence.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_answer_to_a_request_counts() {
        assert_eq!(answer("64 bytes from 10.77.0.100: icmp_seq=12 ttl=64 time=0.021 ms"), Some(12));
        assert_eq!(answer("64 bytes from 10.77.0.100: icmp_seq=12 ttl=64 time=0.021 ms (DUP!)"), None);
        assert_eq!(answer("From 10.77.0.21 icmp_seq=12 Destination Host Unreachable"), None);
        assert_eq!(answer("PING 10.77.0.100 (10.77.0.100) 56(84) bytes of data."), None);
    }

    #[test]
    fn a_neighbour_entry_that_was_wrong_shows_for_how_long() {
        let begin = Instant::now();
        let line = |mac: &str| format!("{ADDRESS} dev eth0 lladdr {mac} STALE ");
        let at = |mac: &str, ms| (entry(&line(mac)).unwrap().to_owned(), begin + Duration::from_millis(ms));
        let seen = [at("a", 0), at("a", 1), at("b", 5), at("a", 7), at("a", 9)];
        assert_eq!(passages(&seen), [("a", Duration::from_millis(5)), ("b", Duration::from_millis(2))]);
        assert_eq!(entry("10.77.0.11 dev eth0 lladdr 02:00:00:00:00:0a REACHABLE "), None);
        assert_eq!(entry("10.77.0.100 dev eth0  FAILED "), None);
    }

    #[test]
    fn losses_are_counted_from_the_last_answer_before_the_moment() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let answers = [(1, at(10)), (3, at(30)), (4, at(40)), (9, at(95)), (10, at(100))];
        assert_eq!(losses(&answers, at(41)), (4, Duration::from_millis(55)));
        assert_eq!(losses(&answers, at(0)), (5, Duration::from_millis(55)));
        assert_eq!(losses(&answers, at(200)), (0, Duration::ZERO));
    }
}
