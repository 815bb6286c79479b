//! Tools that we did not write: iproute2, iputils, the other arping, tshark.

use std::{
    collections::BTreeMap,
    io::Write,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use arpwarden_common::net::MacAddr;
use serde_json::Value;

use crate::{netns::Host, netns::Netns, tell, wait_for, wire::Captured};

/// Runs a command to its end.
///
/// # Panics
/// If it fails, with what it said.
pub fn run(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    checked(&command, output)
}

/// [`run`] with text on standard input.
pub fn run_with_input(mut command: Command, input: &str) -> String {
    let output = output_with_input(&mut command, input.as_bytes());
    checked(&command, output)
}

/// How long a command may take that ends by itself. The longest waits of the tests are some twenty seconds.
const ENDLESS: Duration = Duration::from_secs(90);

pub(crate) fn output_with_input(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut standard_input = child.stdin.take().expect("a pipe");
    let process = child.id();
    let (ended, still_runs) = channel::<()>();
    std::thread::scope(|scope| {
        // On a thread, because the child may fill its output before it has read everything. A child that
        // does not want to read is its own business.
        scope.spawn(move || drop(standard_input.write_all(input)));
        let watch = scope.spawn(move || {
            let hangs = still_runs.recv_timeout(ENDLESS) == Err(RecvTimeoutError::Timeout);
            if hangs {
                signal(process, libc::SIGKILL);
            }
            hangs
        });
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("{error}"));
        drop(ended);
        let hung = watch.join().expect("a thread that does not panic");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!hung, "{command:?} did not end in {ENDLESS:?}; it said: {said}");
        output
    })
}

fn checked(command: &Command, output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let wrote = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {}\n{said}{wrote}", output.status);
    wrote.into_owned()
}

fn json(ns: &Netns, program: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = ns.command(program);
    command.arg("-json").args(arguments);
    let text = run(command);
    // `ip -json` writes nothing at all where there is nothing.
    if text.trim().is_empty() {
        return Vec::new();
    }
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    value.as_array().expect("an array").clone()
}

/// Whether the running kernel can make what these lines of `ip -batch` make; says loudly what it lacks if not.
pub fn kernel_makes(what: &str, lines: &str) -> bool {
    let ns = Netns::new();
    let mut command = ns.command("ip");
    command.args(["-batch", "-"]);
    let made = output_with_input(&mut command, lines.as_bytes()).status.success();
    if !made {
        tell(&format!("skipped: the running kernel has no {what}"));
    }
    made
}

/// Addresses on `eth0` with their prefix length, in order.
pub fn addresses(ns: &Netns) -> Vec<(Ipv4Addr, u64)> {
    addresses_on(ns, "eth0")
}

/// Addresses on an interface with their prefix length, in order.
pub fn addresses_on(ns: &Netns, interface: &str) -> Vec<(Ipv4Addr, u64)> {
    let links = json(ns, "ip", &["-4", "address", "show", "dev", interface]);
    let entries = links.iter().filter_map(|link| link["addr_info"].as_array()).flatten();
    entries
        .map(|entry| {
            let address = entry["local"].as_str().expect("an address").parse().expect("IPv4");
            (address, entry["prefixlen"].as_u64().expect("a prefix length"))
        })
        .collect()
}

/// The MAC that an interface has now.
///
/// # Panics
/// If there is no such interface.
pub fn mac_of(ns: &Netns, interface: &str) -> MacAddr {
    let link = json(ns, "ip", &["link", "show", "dev", interface]);
    mac(link.first().and_then(|link| link["address"].as_str()).expect("a MAC"))
}

/// The offloads of a host's `eth0`, as ethtool tells them: `on` or `off`.
pub fn offloads(host: &Host) -> BTreeMap<String, String> {
    let mut command = host.ns.command("ethtool");
    command.args(["-k", "eth0"]);
    let text = run(command);
    let one = |line: &str| {
        let (name, value) = line.trim().split_once(": ")?;
        Some((name.to_owned(), value.split(' ').next()?.to_owned()))
    };
    let all: BTreeMap<_, _> = text.lines().filter_map(one).collect();
    assert!(["generic-receive-offload", "large-receive-offload"].iter().all(|name| all.contains_key(*name)));
    all
}

/// Names of the offloads that are not as they were.
pub fn different(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    before
        .iter()
        .filter(|(name, value)| now.get(*name) != Some(value))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Links, addresses, routes and attached programs of a namespace, in words that stay the same while they do.
pub fn snapshot(ns: &Netns) -> String {
    let show = |arguments: &[&str]| {
        let mut command = ns.command("ip");
        command.args(arguments);
        run(command)
    };
    // Without details: those of a bridge have running timers.
    [show(&["address", "show"]), show(&["route", "show", "table", "all"]), show(&["rule", "show"])].concat()
}

/// Number of the XDP program on an interface, as rtnetlink tells it.
pub fn xdp_program(ns: &Netns, interface: &str) -> Option<u32> {
    let link = json(ns, "ip", &["link", "show", "dev", interface]);
    let id = link.first()?["xdp"]["prog"]["id"].as_u64()?;
    Some(u32::try_from(id).expect("a number of 32 bits"))
}

/// Queueing disciplines and filters of an interface, as tc tells them.
pub fn traffic_control(ns: &Netns, interface: &str) -> String {
    let show = |arguments: &[&str]| {
        let mut command = ns.command("tc");
        command.args(arguments);
        run(command)
    };
    let disciplines = show(&["qdisc", "show", "dev", interface]);
    // Without a clsact discipline there are no sides to ask for.
    let filters = match disciplines.contains("clsact") {
        true => ["ingress", "egress"].map(|side| show(&["filter", "show", "dev", interface, side])).concat(),
        false => String::new(),
    };
    disciplines + &filters
}

/// Numbers of the programs in the filters of a side of an interface (`ingress`, `egress`), in the order of tc.
pub fn filter_programs(ns: &Netns, interface: &str, side: &str) -> Vec<u32> {
    let mut command = ns.command("tc");
    command.args(["filter", "show", "dev", interface, side]);
    // Without a clsact discipline that is an error.
    let output = command.output().expect("tc runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    // Such as `… bpf chain 0 handle 0x1 arpwarden_guard direct-action not_in_hw id 17 name … tag … jited`.
    words.windows(2).filter(|pair| pair[0] == "id").filter_map(|pair| pair[1].parse().ok()).collect()
}

/// Sends one echo request to `to` with `from` as its source; says whether it was answered in time.
pub fn pings_from(ns: &Netns, from: Ipv4Addr, to: Ipv4Addr) -> bool {
    let mut command = ns.command("ping");
    command.args(["-n", "-q", "-c", "1", "-W", "0.3", "-I", &from.to_string(), &to.to_string()]);
    command.output().expect("ping runs").status.success()
}

/// Whether an address is on `eth0`.
pub fn has_address(ns: &Netns, address: Ipv4Addr) -> bool {
    addresses(ns).iter().any(|(present, _)| *present == address)
}

/// What a host's neighbour table says of an address: its MAC, if the entry has one.
pub fn neighbour(ns: &Netns, address: Ipv4Addr) -> Option<MacAddr> {
    neighbours(ns).into_iter().find(|(known, _)| *known == address).map(|(_, mac)| mac)
}

/// The neighbour table: entries that have a MAC, in order of address. Read from the kernel's own file, which
/// takes less than a millisecond: tests assert how soon an entry is right.
pub fn neighbours(ns: &Netns) -> Vec<(Ipv4Addr, MacAddr)> {
    let file = "/proc/thread-self/net/arp";
    let table = ns.enter(|| std::fs::read_to_string(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let one = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[address, _hardware, _flags, lladdr, _mask, "eth0"] = columns.as_slice() else { return None };
        Some((address.parse().expect("an address"), mac(lladdr)))
    };
    let mut all: Vec<_> = table.lines().skip(1).filter_map(one).filter(|(_, mac)| !mac.is_zero()).collect();
    all.sort_unstable();
    all
}

/// Puts an entry into a host's neighbour table as if it had just been learnt.
pub fn learn(ns: &Netns, address: Ipv4Addr, mac: MacAddr) {
    ns.ip(&format!("neighbour replace {address} lladdr {mac} dev eth0 nud reachable"));
}

/// Waits until a host's neighbour table has this MAC for the address.
///
/// # Panics
/// After `within`.
pub fn wait_for_neighbour(ns: &Netns, address: Ipv4Addr, mac: MacAddr, within: Duration) {
    let mut last = None;
    let what = format!("{address} at {mac} in a neighbour table");
    wait_for(&what, within, || {
        last = neighbour(ns, address);
        (last == Some(mac)).then_some(())
    });
}

/// A MAC from text such as `02:aa:00:00:00:01`.
///
/// # Panics
/// If it is none.
pub fn mac(text: &str) -> MacAddr {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    MacAddr::new(bytes.try_into().expect("six bytes"))
}

/// How often a tool of somebody else asks and how it ends.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Both outputs.
    pub said: String,
}

fn ended(mut command: Command) -> Ended {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ended { code: output.status.code().unwrap_or_else(|| panic!("{command:?}: {said}")), said }
}

/// iputils arping. Where another one is installed in its place, `ARPWARDEN_IPUTILS_ARPING` names it.
pub fn arping(host: &Host, arguments: &[&str], address: Ipv4Addr) -> Ended {
    let program = std::env::var_os("ARPWARDEN_IPUTILS_ARPING");
    let mut command = host.ns.command(program.unwrap_or_else(|| "/usr/bin/arping".into()));
    command.args(["-I", "eth0"]).args(arguments).arg(address.to_string());
    ended(command)
}

/// The other arping (Thomas Habets'), from where setup has put it or `ARPWARDEN_HABETS_ARPING` names it.
///
/// # Panics
/// If it is not there.
pub fn other_arping(host: &Host, arguments: &[&str], address: Ipv4Addr) -> Ended {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/arping-habets/usr/sbin/arping");
    let program = std::env::var_os("ARPWARDEN_HABETS_ARPING").map_or_else(|| unpacked.into(), PathBuf::from);
    assert!(program.exists(), "{} is missing: cargo xtask setup gets it", program.display());
    let mut command = host.ns.command(program);
    command.args(["-i", "eth0"]).args(arguments).arg(address.to_string());
    ended(command)
}

/// A ping under way, one echo request every 10 ms.
#[derive(Debug)]
pub struct Ping(Option<Child>);

/// What became of the echo requests.
#[derive(Clone, Copy, Debug)]
pub struct Pinged {
    /// Requests.
    pub sent: u32,
    /// Of them, those without an answer.
    pub lost: u32,
}

impl Ping {
    /// Begins, and waits for the first answer.
    pub fn start(host: &Host, address: Ipv4Addr) -> Self {
        let mut command = host.ns.command("ping");
        command.args(["-n", "-c", "1", "-W", "5", &address.to_string()]);
        run(command);
        let mut command = host.ns.command("ping");
        command.args(["-n", "-q", "-i", "0.01", &address.to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(Some(command.spawn().expect("ping starts")))
    }

    /// Ends it.
    pub fn stop(mut self) -> Pinged {
        let child = self.0.take().expect("not stopped yet");
        signal(child.id(), libc::SIGINT);
        let output = child.wait_with_output().expect("ping ends");
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |after: &str| -> Option<u32> {
            let words: Vec<&str> = text.split([' ', '\n']).collect();
            let at = words.windows(2).position(|pair| {
                pair[1].trim_end_matches(',') == after || (after == "transmitted" && pair[1] == "packets")
            })?;
            words[at].parse().ok()
        };
        let sent = number("transmitted").unwrap_or_else(|| panic!("ping said: {text}"));
        let received = number("received").unwrap_or_else(|| panic!("ping said: {text}"));
        // The last request may have been on its way.
        Pinged { sent, lost: sent.saturating_sub(received) }
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself; nothing is to be done about it either way.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Sends a signal to a process that this one has started and not yet waited for.
///
/// # Panics
/// If there is no such process.
pub fn signal(process: u32, signal: i32) {
    // SAFETY: takes no pointer; the process is a child not waited for, so the number is not used again.
    let sent = unsafe { libc::kill(process.cast_signed(), signal) };
    assert_eq!(sent, 0, "signal {signal} to {process}: {}", std::io::Error::last_os_error());
}

/// What tshark makes of an ARP frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Ethernet destination.
    pub destination: String,
    /// Ethernet source.
    pub source: String,
    /// VLAN identifiers, outermost first.
    pub vlans: Vec<String>,
    /// 1 request, 2 reply.
    pub operation: String,
    /// Sender hardware address.
    pub sender_mac: String,
    /// Sender protocol address.
    pub sender_ip: String,
    /// Target hardware address.
    pub target_mac: String,
    /// Target protocol address.
    pub target_ip: String,
    /// tshark's own words: `gratuitous`, `probe`, `announcement`.
    pub is: Vec<&'static str>,
}

/// Lets tshark decode frames; those that are not ARP are left out.
pub fn decode(frames: &[Captured]) -> Vec<Decoded> {
    // The classic file format: magic, version 2.4, zone, accuracy, longest frame, Ethernet.
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_ne_bytes());
    }
    for frame in frames {
        let micros = frame.boot_ns / 1_000;
        let length = frame.bytes.len() as u64;
        for word in [micros / 1_000_000, micros % 1_000_000, length, length] {
            file.extend(u32::try_from(word).expect("seconds since boot fit").to_ne_bytes());
        }
        file.extend(&frame.bytes);
    }
    let fields = [
        "eth.dst",
        "eth.src",
        "vlan.id",
        "arp.opcode",
        "arp.src.hw_mac",
        "arp.src.proto_ipv4",
        "arp.dst.hw_mac",
        "arp.dst.proto_ipv4",
        "arp.isgratuitous",
        "arp.isprobe",
        "arp.isannouncement",
    ];
    let mut command = Command::new("tshark");
    command.args(["-n", "-r", "-", "-Y", "arp", "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = output_with_input(&mut command, &file);
    checked(&command, output).lines().map(decoded).collect()
}

fn decoded(line: &str) -> Decoded {
    let parts: Vec<&str> = line.split('\t').collect();
    let [destination, source, vlans, operation, sender_mac, sender_ip, target_mac, target_ip, flags @ ..] =
        parts.as_slice()
    else {
        panic!("tshark wrote {line:?}");
    };
    let words = ["gratuitous", "probe", "announcement"];
    Decoded {
        destination: (*destination).into(),
        source: (*source).into(),
        vlans: vlans.split(',').filter(|id| !id.is_empty()).map(String::from).collect(),
        operation: (*operation).into(),
        sender_mac: (*sender_mac).into(),
        sender_ip: (*sender_ip).into(),
        target_mac: (*target_mac).into(),
        target_ip: (*target_ip).into(),
        is: words.into_iter().zip(flags).filter(|(_, flag)| **flag == "1").map(|(word, _)| word).collect(),
    }
}
