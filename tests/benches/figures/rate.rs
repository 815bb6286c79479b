//! Answers per second over veth, with real frames, all on one core.

use std::{os::fd::AsFd as _, time::Duration};

use arpwarden_common::{
    abi::{AddressKey, DEFAULT_CAPACITY, Port},
    golden::{Kind, OUR_MAC},
    names,
    net::{MacAddr, Vlan},
};
use arpwarden_tests::{
    figures::{
        plot::{Curve, Plot},
        stats::{Spread, in_turn, ratios},
        table::{Row, Section, Target},
    },
    prog_run::Loaded,
};

use crate::{
    lane::{Lane, takes_frames},
    per_frame::golden_row,
    references::{Frames, addresses, bounce, least_responder},
};

/// Runs of each responder at each number of addresses.
const ROUNDS: usize = 5;
/// How long a run is to take.
const RUN: Duration = Duration::from_millis(250);
/// Frames from which the length of a run is reckoned, and the most in one.
const FEW: u32 = 100_000;
const MOST: u32 = 4_000_000;
/// The kernel carries so many as addresses; beyond it, as adding takes it time that grows with the square, as local routes,
/// which is all of an address that its ARP looks at.
const KERNEL_ADDRESSES: u32 = 1_000;

/// Responders.
const US: usize = 0;
const LEAST: usize = 1;
const KERNEL: usize = 2;
const BOUNCE: usize = 3;
const US_BY_ONE: usize = 4;
const WHO: [&str; 5] = [
    "arpwarden, asked by 256 hosts",
    "the least possible responder",
    "the kernel's own ARP",
    "a bounce, which no answer can be quicker than",
    "arpwarden, asked by one host",
];

/// Measures, and draws.
pub(crate) fn measure() -> (Section, Plot) {
    let mut rows = Vec::new();
    let mut curves = ["arpwarden", "the least possible responder", "Linux's own ARP"]
        .map(|name| Curve { name: name.into(), points: Vec::new() });
    for count in [1, 1_000, 10_000, 100_000, 1_000_000] {
        eprintln!("  {count} addresses");
        let runs = at(count);
        for who in [US, US_BY_ONE, LEAST, KERNEL, BOUNCE] {
            let what = format!("{count} addresses: {}", WHO[who]);
            let spread = Spread::of(&runs[who]);
            if let Some(curve) = curves.get_mut(who) {
                curve.points.push((count.into(), spread));
            }
            rows.push(Row::new(what, "answers/s", spread));
        }
        let target = match count {
            1 => Some(0.95),
            1_000 => Some(0.9),
            100_000 => Some(0.85),
            _ => None,
        };
        let over = [
            (US, LEAST, target),
            (US_BY_ONE, LEAST, target),
            // Targets at the same numbers of addresses.
            (US, KERNEL, target.map(|_| 5.0)),
        ];
        for (we, they, target) in over {
            let what = format!("{count} addresses: {} over {}", WHO[we], WHO[they]);
            let row = Row::new(what, "", Spread::of(&ratios(&runs[we], &runs[they])));
            rows.push(Row { target: target.map(Target::AtLeast), ..row });
        }
    }
    let plot = Plot {
        title: "Answers per second".into(),
        subtitle:
            "native XDP over veth; sender, responder and receiver all on one core; median, lowest, highest"
                .into(),
        x_label: "managed addresses, asked for at random".into(),
        y_label: "answers per second".into(),
        curves: curves.into(),
    };
    let section = Section {
        name: "rate",
        about: "answers a second, native on veth, live frames; sender, responder and receiver share one core, so the \
                ratios hold for all three together",
        rows,
    };
    (section, plot)
}

/// What each responder gave in each round.
fn at(count: u32) -> Vec<Vec<f64>> {
    let lanes = [us(count), least(count), kernel(count), bounced()];
    // Who is asked by how many decides how much the program remembers; all others remember nothing.
    let subjects = [
        (US, Frames::Requests),
        (LEAST, Frames::Requests),
        (KERNEL, Frames::Requests),
        (BOUNCE, Frames::Requests),
        (US, Frames::RequestsOfOne),
    ];
    let ready = subjects.map(|(who, frames)| {
        let lane = &lanes[who];
        let generator = lane.generator(frames, count);
        // The rate in thousands is small enough for whole numbers, and exact enough.
        let thousands = (lane.answers(&generator, FEW) * RUN.as_secs_f64() / 1e3).min(1e6);
        let frames =
            (FEW / 1_000..MOST / 1_000).find(|&n| f64::from(n) >= thousands).map_or(MOST, |n| n * 1_000);
        (lane, generator, frames)
    });
    in_turn(ROUNDS, ready.len(), |subject| {
        let (lane, generator, frames) = &ready[subject];
        lane.answers(generator, *frames)
    })
}

/// The program as it is attached in service, every feature on, no messages, its maps filled as the daemon fills them.
fn us(count: u32) -> Lane {
    let mut lane = Lane::new(1, 2);
    let capacity = count.max(DEFAULT_CAPACITY);
    let mut program = Loaded::load_for(arpwarden::io::bpf::OBJECT, names::XDP_FRAGS, 0, 0, capacity);
    let mut world = golden_row(Kind::Request, "").world;
    let value = world.addresses.first().expect("an address").value;
    world.addresses.clear();
    program.enter(&world);
    let interface = lane.node.ns.index_of("eth0").expect("the node's end");
    program.put_port(interface, Port::accepting(MacAddr::new(OUR_MAC), interface));
    for (slot, address) in (0..).zip(addresses(count)) {
        program.put(AddressKey { interface, vlan: Vlan::UNTAGGED, address: address.into() }, slot, value);
    }
    lane.attach(program.fd());
    lane.keep(program);
    lane
}

fn least(count: u32) -> Lane {
    let mut lane = Lane::new(1, 2);
    let (program, map) = least_responder(addresses(count).map(|address| address.octets()), OUR_MAC);
    lane.attach(program.as_fd());
    lane.keep((program, map));
    lane
}

/// The kernel itself answers, with no program in its way.
fn kernel(count: u32) -> Lane {
    let lane = Lane::new(1, 2);
    takes_frames(&lane.node.ns);
    let line = |address| {
        if count <= KERNEL_ADDRESSES {
            format!("address add {address}/32 dev eth0\n")
        } else {
            format!("route add local {address} dev eth0\n")
        }
    };
    lane.node.ns.ip(&addresses(count).map(line).collect::<String>());
    lane
}

fn bounced() -> Lane {
    let mut lane = Lane::new(1, 1);
    lane.attach(bounce().as_fd());
    lane
}
