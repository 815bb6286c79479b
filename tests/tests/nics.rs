//! Real drivers of network cards, as far as QEMU plays the cards: which mode `auto` picks, that each mode answers or is
//! refused in words, and that a link which goes down and up again changes nothing. Run by `cargo xtask test --kernel
//! nics-6.12`, whose guest has a pair of cards on one wire for each kind: the card to be tried has an even last byte in its MAC,
//! the virtio card at the other end the next number. Skipped, and said so, where there is no such pair.

use arpwarden_tests::{
    cards::{Plugged, plugged, wait_for_link},
    kernel::is_at_least,
    ms,
    netns::{Host, ip},
    node::Node,
    tell,
    tools::{arping, different, offloads, xdp_program},
    wait_for,
};

/// A card, and what is expected of it.
struct Card {
    driver: &'static str,
    /// Of several queues, as only a card on taps has.
    several_queues: bool,
    /// Whether its driver runs XDP on this kernel.
    native: bool,
    /// What `auto` picks.
    auto: &'static str,
    /// The MTU in bytes.
    mtu: u16,
}

/// One that has no XDP.
const fn without(driver: &'static str) -> Card {
    Card { driver, several_queues: false, native: false, auto: "tc", mtu: 1_500 }
}

/// One that has, and does it right.
const fn with(driver: &'static str, several_queues: bool) -> Card {
    Card { driver, several_queues, native: true, auto: "native", mtu: 1_500 }
}

#[test]
fn e1000_has_no_xdp_and_is_answered_on_by_tc() {
    each_mode_is_as_expected(&without("e1000"));
}

#[test]
fn e1000e_has_no_xdp_and_is_answered_on_by_tc() {
    each_mode_is_as_expected(&without("e1000e"));
}

#[test]
fn igb_is_answered_on_natively() {
    each_mode_is_as_expected(&with("igb", true));
}

/// Its driver takes no native program then, which `auto` learns when it tries.
#[test]
fn igb_with_long_frames_is_answered_on_by_tc() {
    each_mode_is_as_expected(&Card { native: false, auto: "tc", mtu: 9_000, ..with("igb", true) });
}

/// It has XDP since Linux 6.6 ("vmxnet3: Add XDP support"), but loses the program with its link, so `auto` leaves it
/// alone.
#[test]
fn vmxnet3_is_answered_on_by_tc() {
    each_mode_is_as_expected(&Card { native: is_at_least(6, 6), auto: "tc", ..with("vmxnet3", true) });
}

#[test]
fn virtio_with_one_queue_is_answered_on_natively() {
    each_mode_is_as_expected(&with("virtio_net", false));
}

#[test]
fn virtio_with_several_queues_is_answered_on_natively() {
    each_mode_is_as_expected(&with("virtio_net", true));
}

fn each_mode_is_as_expected(card: &Card) {
    for mode in ["auto", "native", "generic", "tc"] {
        // Each time anew: a daemon finds the card as the kernel has made it.
        let cards = plugged(card.driver, card.several_queues, &described(card), card.mtu);
        let Some(Plugged { near: host, far, .. }) = &cards else { return };
        let what = format!("{} in mode {mode}", card.driver);
        let picked = if mode == "auto" { card.auto } else { mode };
        let mut node = Node::new(host);
        if picked == "native" && !card.native {
            node.spawn(&["--iface", "eth0", "--attach", mode]);
            assert_eq!(node.wait_for_end(ms(60_000)), 1, "{what}; the log: {}", node.log());
            assert!(node.log().contains("--attach"), "{what}: {}", node.log());
            assert_eq!(xdp_program(&host.ns, "eth0"), None, "{what}");
            continue;
        }
        let before = offloads(host);
        node.run(&["--iface", "eth0", "--attach", mode]);
        let status = node.status();
        assert_eq!(status["interfaces"][0]["attach_mode"], picked, "{what}: {status}");
        let changed = different(&before, &offloads(host));
        tell(&format!("offloads: {} in mode {picked} changes {changed:?}", described(card)));
        wait_for_link(host);
        let address = node.online(100);
        assert_answered(far, &node, &what);
        if mode == "auto" {
            host.ns.ip("link set eth0 down\n");
            node.wait_for_state(address, "suspended", ms(10_000));
            host.ns.ip("link set eth0 up\n");
            wait_for_link(host);
            wait_for("the address to be answered again", ms(30_000), || {
                let state = node.state(address);
                matches!(state.as_deref(), Some("announcing" | "online")).then_some(())
            });
            assert_answered(far, &node, &format!("{what}, after its link came back"));
            let status = node.status();
            assert!(status["interfaces"][0]["program"] == true, "{what}: {status}");
        }
        let answered = node.counter(address, "answered");
        tell(&format!("card: {} {mode} {picked} answered {answered}", described(card)));
        node.signal(libc::SIGTERM);
        assert_eq!(node.wait_for_end(ms(30_000)), 0, "{what}; the log: {}", node.log());
        assert_eq!(xdp_program(&host.ns, "eth0"), None, "{what}");
        assert_eq!(different(&before, &offloads(host)), [""; 0], "{what}: offloads that did not come back");
    }
}

/// Three requests from the other end, all answered by the program with the card's MAC, and by nobody else.
fn assert_answered(far: &Host, node: &Node<'_>, what: &str) {
    let before = node.counter(ip(100), "answered");
    let ended = arping(far, &["-c", "3", "-w", "10"], ip(100));
    assert_eq!(ended.code, 0, "{what}: {}; the log: {}", ended.said, node.log());
    let mac = node.host.mac.to_string().to_uppercase();
    assert_eq!(ended.said.matches(&mac).count(), 3, "{what}: {}", ended.said);
    assert!(ended.said.contains("Received 3 response(s)"), "{what}: {}", ended.said);
    let by_us = node.counter(ip(100), "answered") - before;
    assert_eq!(by_us, 3, "{what}: answers of the program; {}", node.status());
}

fn described(card: &Card) -> String {
    match (card.driver, card.several_queues, card.mtu) {
        ("virtio_net", true, _) => "virtio_net with several queues".into(),
        (driver, _, 1_500) => driver.into(),
        (driver, _, mtu) => format!("{driver} at an MTU of {mtu}"),
    }
}
