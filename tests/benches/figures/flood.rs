//! Answers while a flood of claims comes in beside the requests.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_tests::{
    figures::{
        stats::{Spread, in_turn, ratios},
        table::{Row, Section, Target},
    },
    live::{Stream, cpus},
    ms,
    node::Node,
};

use crate::{
    lane::Lane,
    many::{UNREGISTERED, all_online, lines},
    process::Processes,
    references::{self, Frames},
};

const ADDRESSES: u32 = 1_000;
const ROUNDS: usize = 5;
/// Requests of a run: some tenths of a second.
const REQUESTS: u32 = 1_000_000;
/// As fast as it goes, in runs that are long beside the 20 ms that the kernel takes around each.
const ENDLESS: (u32, Duration) = (300_000, Duration::ZERO);
const AT_MOST: Duration = Duration::from_secs(10);
/// What the daemon is flooded with, about how many of the addresses.
const FLOODS: [(&str, Frames, u32); 6] = [
    ("claims/s for one address", Frames::Claims, 1),
    ("claims/s for all of them", Frames::Claims, ADDRESSES),
    ("requests/s", Frames::RequestsOfAll, ADDRESSES),
    ("frames/s that are too short", Frames::TooShort, ADDRESSES),
    ("frames/s with a bad header", Frames::BadHeader, ADDRESSES),
    ("frames/s with a bad sender", Frames::BadSender, ADDRESSES),
];
const FLOODED_FOR: Duration = Duration::from_secs(3);

/// Measures.
pub(crate) fn measure() -> Section {
    let about = "answers a second by one core, the daemon alive, native, 1,000 addresses: alone, and while another core takes \
                 in claims for the same addresses from random MACs as fast as it can, by a receive queue of its own; then the \
                 processor time of the daemon's process while such frames come";
    let name = "flood";
    let what = "answers during the flood, over none";
    let all = cpus();
    let [first, .., _] = all[..] else {
        let row = Row::missing(what, "", "one CPU cannot do both").target(Target::AtLeast(0.8));
        return Section { name, about, rows: vec![row] };
    };
    // A queue for each CPU: a veth's receiver takes the one of the sending CPU.
    let lane = Lane::new(u8::try_from(all.len().min(64)).expect("at most 64"), 2);
    lane.node.ns.sysctl("ipv4/conf/all/arp_ignore", "1");
    let node = Node::start(&lane.node);
    let addresses: Vec<Ipv4Addr> = references::addresses(ADDRESSES).collect();
    let arguments = [&["online", "-", "--iface", "eth0"], &UNREGISTERED[..]].concat();
    node.cli_with_input(&arguments, &lines(&addresses)).expect(0);
    all_online(&node, addresses.len());

    let requests = lane.generator(Frames::Requests, ADDRESSES);
    let claims = lane.generator(Frames::Claims, ADDRESSES);
    let mut floods = Vec::new();
    let runs = in_turn(ROUNDS, 2, |flooded| {
        if flooded == 0 {
            return lane.answers(&requests, REQUESTS);
        }
        let stream = Stream::start(&lane.peer.ns, &claims, first, ENDLESS, AT_MOST);
        // Until it runs.
        std::thread::sleep(ms(50));
        let answers = lane.answers(&requests, REQUESTS);
        floods.push(stream.stop().rate());
        answers
    });
    let mut rows = vec![
        Row::new("answers without a flood", "answers/s", Spread::of(&runs[0])),
        Row::new("answers during it", "answers/s", Spread::of(&runs[1])),
        Row::new("the flood", "claims/s", Spread::of(&floods)),
        Row::new(what, "", Spread::of(&ratios(&runs[1], &runs[0]))).target(Target::AtLeast(0.8)),
    ];
    let processes = Processes::of(node.pid());
    rows.extend(FLOODS.map(|(what, frames, addresses)| {
        let generator = lane.generator(frames, addresses);
        let before = processes.cpu();
        let stream = Stream::start(&lane.peer.ns, &generator, first, ENDLESS, AT_MOST);
        std::thread::sleep(FLOODED_FOR);
        let streamed = stream.stop();
        let share = 100.0 * (processes.cpu() - before).as_secs_f64() / streamed.took.as_secs_f64();
        let what = format!("the daemon under {:.0} {what}", streamed.rate());
        Row::new(what, "% of a core", Spread::once(share)).target(Target::AtMost(5.0))
    }));
    let resident = Spread::once(processes.resident() / f64::from(1 << 20));
    rows.push(Row::new("the daemon after all that", "MiB", resident).target(Target::AtMost(32.0)));
    Section { name, about, rows }
}
