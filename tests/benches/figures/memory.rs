//! What an address takes, in the kernel and in the daemon.

use std::{collections::BTreeMap, fs, net::Ipv4Addr};

use arpwarden_common::abi::DEFAULT_CAPACITY;
use arpwarden_tests::{
    figures::{
        stats::Spread,
        table::{Row, Section, Target},
    },
    netns::Net,
    node::Node,
};
use aya::util::nr_cpus;

use crate::{
    many::{UNREGISTERED, all_online, lines, without_registration},
    process::Processes,
    references,
};

/// The daemon is looked at with so many addresses, and with all of `MANY`.
const FEW: u32 = 1_000;
const MANY: u32 = 11_000;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures.
pub(crate) fn measure() -> Section {
    let net = Net::new(2);
    without_registration(&net);
    let cpus = nr_cpus().expect("the number of CPUs");
    let all_maps = |node: &Node<'_>| -> f64 { maps(node.pid()).values().sum() };
    // With room for twice as many there is so much more: what is there for each, and what is there once is not.
    let twice = {
        let capacity = (2 * DEFAULT_CAPACITY).to_string();
        let arguments = ["--iface", "eth0", "--attach", "native", "--capacity", &capacity];
        all_maps(&Node::start_with(net.host(1), &arguments))
    };
    let node = Node::start(net.host(0));
    let all = all_maps(&node);
    let most = 192.0 + 16.0 * cpus as f64;

    let addresses: Vec<Ipv4Addr> = references::addresses(MANY).collect();
    let (few, rest) = addresses.split_at(FEW as usize);
    let processes = Processes::of(node.pid());
    let empty = processes.resident();
    let arguments = [&["online", "-", "--iface", "eth0"], &UNREGISTERED[..]].concat();
    let with = |more: &[Ipv4Addr], count| {
        node.cli_with_input(&arguments, &lines(more)).expect(0);
        all_online(&node, count);
        processes.resident()
    };
    let at_few = with(few, few.len());
    let at_many = with(rest, addresses.len());
    let each = (at_many - at_few) / rest.len() as f64;
    Section {
        name: "memory",
        about: "kernel: what the maps lock (fdinfo), how much more of it with room for twice as many addresses; daemon: \
                resident, its mapped part of the maps included, once all plans are over",
        rows: vec![
            Row::new(
                format!("kernel, an address, {cpus} possible CPUs"),
                "bytes",
                Spread::once((twice - all) / f64::from(DEFAULT_CAPACITY)),
            )
            .target(Target::AtMost(most)),
            Row::new("kernel, all maps of an instance", "MiB", Spread::once(all / MIB)),
            Row::new(format!("daemon, each of {} more addresses", rest.len()), "bytes", Spread::once(each))
                .target(Target::AtMost(256.0)),
            Row::new("daemon, without an address", "MiB", Spread::once(empty / MIB)),
            Row::new("daemon, 1,000 addresses", "MiB", Spread::once(at_few / MIB))
                .target(Target::AtMost(16.0)),
        ],
    }
}

/// What each map takes that a process has open, in bytes, by its identifier.
fn maps(pid: u32) -> BTreeMap<u64, f64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the daemon's descriptors").flatten() {
        // A descriptor may be closed between listing and reading.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) {
            maps.insert(id, bytes as f64);
        }
    }
    maps
}
