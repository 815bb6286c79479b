//! What an address takes, in the kernel and in the daemon.

use std::{fs, net::Ipv4Addr};

use arpwarden_common::{abi::DEFAULT_CAPACITY, names};
use arpwarden_tests::{
    figures::{
        stats::Spread,
        table::{Row, Section, Target},
    },
    netns::Net,
    node::Node,
};
use aya::{maps::MapInfo, util::nr_cpus};

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
    let node = Node::start(net.host(0));
    let maps = maps(node.pid());
    let of = |wanted: &dyn Fn(&Map) -> bool| maps.iter().filter(|map| wanted(map)).map(|map| map.bytes).sum();
    // Those that have a place for each address. The kernel keeps 15 bytes of a map's name.
    let cpus = nr_cpus().expect("the number of CPUs");
    let sizes = names::sizes(DEFAULT_CAPACITY, u32::try_from(cpus).expect("a few"));
    let of_addresses: f64 =
        of(&|map| sizes.iter().any(|(name, entries)| name.starts_with(&map.name) && *entries == map.entries));
    let all: f64 = of(&|_| true);
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
        about: "kernel: what the maps lock (fdinfo), shared out over the addresses that they have places for; daemon: \
                resident, its mapped part of the maps included, once all plans are over",
        rows: vec![
            Row::new(
                format!("kernel, an address, {cpus} possible CPUs"),
                "bytes",
                Spread::once(of_addresses / f64::from(DEFAULT_CAPACITY)),
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

struct Map {
    name: String,
    entries: u32,
    bytes: f64,
}

/// The maps that a process has open.
fn maps(pid: u32) -> Vec<Map> {
    let mut maps = std::collections::BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the daemon's descriptors").flatten() {
        // A descriptor may be closed between listing and reading.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
        };
        let number = |name| field(name).and_then(|value| u32::try_from(value).ok());
        if let (Some(id), Some(entries), Some(bytes)) =
            (number("map_id"), number("max_entries"), field("memlock"))
        {
            let info = MapInfo::from_id(id).expect("an open map");
            let name = info.name_as_str().unwrap_or_default().to_owned();
            maps.insert(id, Map { name, entries, bytes: bytes as f64 });
        }
    }
    maps.into_values().collect()
}
