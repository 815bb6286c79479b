//! Nanoseconds per frame, by BPF_PROG_TEST_RUN.

use std::os::fd::AsFd;

use arpwarden_common::{
    golden::{self, ADDRESS, Kind, OUR_MAC, Row as GoldenRow, Tags},
    names,
    state::State,
};
use arpwarden_tests::{
    figures::{
        stats::{Spread, in_turn, ratios},
        table::{Row, Section, Target},
    },
    prog_run::{Loaded, Repeater, empty_program, ns_per_frame},
};

use crate::references::{bounce, least_responder};

/// Frames in a run: a tenth of a second for a program of 100 ns.
const FRAMES: u32 = 1_000_000;
/// Runs of each program.
const ROUNDS: usize = 11;

/// The golden row of a kind of frame that meets the address online, in a column of this name.
pub(crate) fn golden_row(kind: Kind, name: &str) -> GoldenRow {
    let of_interest = |row: &GoldenRow| {
        row.kind == kind
            && row.tags == Tags::None
            && row.column.name == name
            && row.column.local
            && row.column.state == Some(State::Online)
    };
    golden::rows().into_iter().find(of_interest).expect("a golden row for each kind and state")
}

/// Measures.
pub(crate) fn measure() -> Section {
    let [other, request, claim] =
        [Kind::NotArp, Kind::Request, Kind::ClaimByRequestForm].map(|kind| golden_row(kind, ""));
    let leased = golden_row(Kind::Request, "a group whose lease stands");
    // A program called by tail has to be of its caller's kind: the one without multi-buffer frames. No messages, as
    // in service.
    let mut ours = Loaded::load(arpwarden::io::bpf::OBJECT, names::XDP, 0);
    ours.enter(&request.world);
    let mut ours_leased = Loaded::load(arpwarden::io::bpf::OBJECT, names::XDP, 0);
    ours_leased.enter(&leased.world);
    let (empty, bounce) = (empty_program(), bounce());
    let (least, _addresses) = least_responder([ADDRESS].into_iter(), OUR_MAC);

    let programs = [
        ("an empty program, with the harness", empty.as_fd(), &request),
        ("the least possible responder, answered", least.as_fd(), &request),
        ("a bounce", bounce.as_fd(), &request),
        ("arpwarden, not ARP", ours.fd(), &other),
        ("arpwarden, answered", ours.fd(), &request),
        ("arpwarden, answered, a group with a lease", ours_leased.fd(), &leased),
        ("arpwarden, claim", ours.fd(), &claim),
    ];
    for (_, program, row) in &programs {
        // Panics unless the thousandth frame fares as the first.
        ns_per_frame(*program, &row.frame, 1_000);
    }
    let repeaters = programs.each_ref().map(|(_, program, row)| Repeater::new(*program, &row.frame));
    let runs = in_turn(ROUNDS, programs.len(), |subject| repeaters[subject].ns_per_frame(FRAMES));
    let [empty, net @ ..] = runs.as_slice() else { panic!("the empty program comes first") };
    let net: Vec<Vec<f64>> =
        net.iter().map(|runs| runs.iter().zip(empty).map(|(time, empty)| time - empty).collect()).collect();
    let [_, names @ ..] = programs.each_ref().map(|(name, ..)| *name);
    let mut rows = vec![Row::new(programs[0].0, "ns", Spread::of(empty))];
    for (name, times) in names.into_iter().zip(&net) {
        let row = Row::new(format!("{name}, net of that"), "ns", Spread::of(times));
        rows.push(if name.ends_with("not ARP") { row.target(Target::AtMost(2.0)) } else { row });
    }
    let least = &net[0];
    let over_least = |what: &str, times: &[f64], most| {
        Row::new(what, "", Spread::of(&ratios(times, least))).target(Target::AtMost(most))
    };
    rows.push(over_least("answered, over the least possible responder", &net[3], 1.25));
    rows.push(over_least("answered with a lease, over it", &net[4], 1.4));
    Section {
        name: "frame",
        about: "one frame of 60 bytes by test-run, one address; processor time of a million frames, restored each time",
        rows,
    }
}
