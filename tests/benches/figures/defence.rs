//! From a claim on the wire to the defence on the wire, on the claimed host's own cable.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_tests::{
    asks::sent_as,
    figures::{
        stats::{Spread, percentile},
        table::{Row, Section, Target},
    },
    ms,
    netns::{Net, stranger},
    node::Node,
    wire::{announcement, bytes},
};

use crate::many::{all_online, lines};

/// Claims in a run: the second highest is p99. Each is for an address of its own, because none is defended twice in
/// DEFEND_INTERVAL.
const CLAIMS: usize = 100;
/// Runs with the daemon alive, and as many with it standing still.
const ROUNDS: usize = 3;

/// Measures.
pub(crate) fn measure() -> Section {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let count = u32::try_from(2 * ROUNDS * CLAIMS).expect("some hundreds");
    let addresses: Vec<Ipv4Addr> = crate::references::addresses(count).collect();
    node.cli_with_input(&["online", "-", "--iface", "eth0"], &lines(&addresses)).expect(0);
    all_online(&node, addresses.len());
    let mut runs = addresses.chunks_exact(CLAIMS);
    let mut rows = Vec::new();
    for (way, still) in [("daemon alive", false), ("daemon standing still", true)] {
        if still {
            node.freeze();
        }
        let took: Vec<Vec<f64>> =
            runs.by_ref().take(ROUNDS).map(|addresses| claim_all(&net, &node, addresses)).collect();
        let of = |percent| -> Vec<f64> { took.iter().map(|took| percentile(took, percent)).collect() };
        rows.push(Row::new(format!("{way}, p50"), "µs", Spread::of(&of(50))));
        let p99 = Row::new(format!("{way}, p99"), "µs", Spread::of(&of(99)));
        rows.push(p99.target(Target::AtMost(50.0)));
    }
    node.signal(libc::SIGCONT);
    Section {
        name: "defence",
        about: "claim on the wire to defence on the wire, both as the far end of the node's cable sees them; native",
        rows,
    }
}

fn claim_all(net: &Net, node: &Node<'_>, addresses: &[Ipv4Addr]) -> Vec<f64> {
    let (wire, tap, claimant) = (net.host(1).wire(), net.tap(0), stranger(1));
    addresses
        .iter()
        .map(|&address| {
            wire.send(&bytes(&announcement(claimant, address)));
            let seen =
                tap.collect_until("the defence", ms(2_000), |frame| sent_as(frame, address, node.host.mac));
            let claim = seen.iter().find(|frame| frame.outgoing && frame.says(address, claimant));
            let (claim, defence) = claim.zip(seen.last()).expect("the claim comes before its defence");
            Duration::from_nanos(defence.boot_ns.saturating_sub(claim.boot_ns)).as_secs_f64() * 1e6
        })
        .collect()
}
