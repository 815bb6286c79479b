//! From a claim on the wire to the defence on the wire, on the claimed host's own cable.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_tests::{
    asks::sent_as,
    ms,
    netns::{Net, stranger},
    node::Node,
    wait_for,
    wire::{announcement, bytes},
};

/// Claims of each way: the second highest is p99.
const CLAIMS: u16 = 200;

/// Microseconds of a way's claims.
pub(crate) struct Took {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) longest: f64,
}

/// With the daemon alive, and with the daemon standing still: the program defends in both cases. Each claim is for an
/// address of its own, because none is defended twice in DEFEND_INTERVAL.
pub(crate) fn measure() -> [(&'static str, Took); 2] {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let addresses: Vec<Ipv4Addr> =
        (1..=2 * CLAIMS).map(|n| Ipv4Addr::from(0x0a08_0000 + u32::from(n))).collect();
    let lines: String = addresses.iter().map(|address| format!("{address}/32\n")).collect();
    node.cli_with_input(&["online", "-", "--iface", "eth0"], &lines).expect(0);
    wait_for("all plans to be over", Duration::from_secs(20), || {
        let status = node.status();
        let entries = status["addresses"].as_array().expect("addresses");
        entries.iter().all(|entry| entry["state"] == "online").then_some(())
    });
    let (alive, still) = addresses.split_at(CLAIMS.into());
    let with_daemon = claim_all(&net, &node, alive);
    node.freeze();
    let without = claim_all(&net, &node, still);
    node.signal(libc::SIGCONT);
    [("daemon alive", with_daemon), ("daemon standing still", without)]
}

fn claim_all(net: &Net, node: &Node<'_>, addresses: &[Ipv4Addr]) -> Took {
    let (wire, tap, claimant) = (net.host(1).wire(), net.tap(0), stranger(1));
    let mut took: Vec<f64> = addresses
        .iter()
        .map(|&address| {
            wire.send(&bytes(&announcement(claimant, address)));
            let seen =
                tap.collect_until("the defence", ms(2_000), |frame| sent_as(frame, address, node.host.mac));
            let claim = seen.iter().find(|frame| frame.outgoing && frame.says(address, claimant));
            let (claim, defence) = claim.zip(seen.last()).expect("the claim comes before its defence");
            Duration::from_nanos(defence.boot_ns.saturating_sub(claim.boot_ns)).as_secs_f64() * 1e6
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    Took { p50: at(50), p99: at(99), longest: at(100) }
}
