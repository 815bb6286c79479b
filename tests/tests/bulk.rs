//! Many addresses in one call.

use std::{collections::BTreeMap, net::Ipv4Addr};

use arpwarden_common::wire::arp::Form;
use arpwarden_tests::{
    ms,
    netns::Net,
    node::Node,
    tools::has_address,
    wait_for,
    wire::{Captured, Wire},
};

/// The `n`th address of a call, in the subnet of the hosts but above theirs.
fn nth(n: u32) -> Ipv4Addr {
    let [.., high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 7, 16 + high, low)
}

fn lines(addresses: impl Iterator<Item = u32>) -> String {
    addresses.map(|n| format!("{}/16\n", nth(n))).collect()
}

/// What the daemon's host says of each address, by the order of its frames.
fn frames_by_address(tap: &Wire) -> BTreeMap<Ipv4Addr, Vec<Form>> {
    let mut seen: BTreeMap<Ipv4Addr, Vec<Form>> = BTreeMap::new();
    for frame in tap.drain().iter().filter(|frame| !frame.outgoing).filter_map(Captured::arp) {
        seen.entry(Ipv4Addr::from(frame.target_ip.octets())).or_default().push(frame.form());
    }
    seen
}

#[test]
fn of_many_each_succeeds_or_fails_by_itself_and_the_worst_counts() {
    const COUNT: u32 = 500;
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let (held, configured) = (nth(77), nth(78));
    net.host(1).ns.ip(&format!("address add {held}/16 dev eth0"));
    node.host.ns.ip(&format!("address add {configured}/16 dev eth0"));
    let done = node.cli_with_input(&["online", "-", "--iface", "eth0"], &lines(0..COUNT)).expect(3);
    assert_eq!(done.out.lines().count(), COUNT as usize - 2, "{}", done.err);
    let refused: Vec<&str> = done.err.lines().filter(|line| line.contains("10.7.")).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused.iter().any(|line| line.contains(&net.host(1).mac.to_string())), "{refused:?}");
    assert!(refused.iter().any(|line| line.contains("--adopt")), "{refused:?}");
    for n in [0, 76, 79, COUNT - 1] {
        assert!(
            has_address(&node.host.ns, nth(n)) && node.state(nth(n)).is_some_and(|state| state != "refused")
        );
    }
    assert!(!has_address(&node.host.ns, held));
    // The same again is done already.
    let again = node.cli_with_input(&["online", "-", "--iface", "eth0"], &lines(100..200)).expect(0);
    assert_eq!(again.out.lines().filter(|line| line.contains("already")).count(), 100, "{}", again.out);
    let gone = node.cli(&["offline", "--all"]).expect(0);
    assert!(gone.out.lines().count() >= COUNT as usize - 2);
    assert!(!has_address(&node.host.ns, nth(0)) && has_address(&node.host.ns, configured));
}

#[test]
fn of_many_unchecked_claims_each_is_announced_and_then_asked_about() {
    const COUNT: u32 = 300;
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let tap = net.tap(0);
    let unchecked = ["online", "-", "--iface", "eth0", "--claim", "immediate", "--check", "0"];
    let done = node.cli_with_input(&unchecked, &lines(0..COUNT)).expect(0);
    assert_eq!(done.out.lines().count(), COUNT as usize);
    let mut seen: BTreeMap<Ipv4Addr, Vec<Form>> = BTreeMap::new();
    wait_for("each to be asked about", ms(5_000), || {
        for (address, forms) in frames_by_address(&tap) {
            seen.entry(address).or_default().extend(forms);
        }
        let asked = seen.values().filter(|forms| forms.contains(&Form::Probe)).count();
        (asked == COUNT as usize).then_some(())
    });
    for (address, forms) in seen {
        assert_eq!(forms.first(), Some(&Form::Announcement), "{address}: {forms:?}");
    }
}
