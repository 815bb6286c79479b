//! Frames of every length and in every shape of the kernel's memory, on interfaces for long frames; and what becomes of
//! an interface's own settings while the program is on it.

use std::time::Duration;

use arpwarden_common::{
    net::MacAddr,
    wire::arp::{Form, REPLY},
};
use arpwarden_tests::{
    kernel::XdpPass,
    ms,
    netns::{Host, Net, Netns, ip, stranger},
    node::Node,
    tools::{different, offloads, run},
    wait_for,
    wire::{Captured, Wire, announcement, bytes, marker, offer_in_pieces, request},
};

const SOON: Duration = Duration::from_secs(5);
const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];
const GENERIC: &[&str] = &["--iface", "eth0", "--attach", "generic"];
const TC: &[&str] = &["--iface", "eth0", "--attach", "tc"];
/// What the cables here take, in bytes behind the Ethernet header.
const MTU: usize = 9_000;
/// The header of an Ethernet frame, and what ARP puts behind it.
const ETHERNET: usize = 14;
const ARP: usize = 28;
/// A tag that names no VLAN, with priority 5 (IEEE 802.1Q §6.9).
const PRIORITY: [u8; 4] = [0x81, 0x00, 0xa0, 0x00];

/// A host for a node, and a plain one at the other end of its cable, which takes long frames and leaves tags in them.
struct Jumbo {
    host: Host,
    far: Host,
    /// Without a program at the peer what a native one sends back on a veth is lost.
    _pass: XdpPass,
}

impl Jumbo {
    fn new() -> Self {
        let end = |number: u8| Host {
            ns: Netns::new(),
            mac: MacAddr::new([0x02, 0xaa, 0, 0, 0, number]),
            ip: ip(number),
            port: "eth0".into(),
        };
        let (host, far) = (end(1), end(2));
        host.ns.ip(&format!(
            "link add eth0 mtu {MTU} address {} type veth peer name eth0 mtu {MTU} address {} netns {}",
            host.mac,
            far.mac,
            far.ns.path().display()
        ));
        for end in [&host, &far] {
            end.ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0", end.ip));
            end.tags_beside_the_frame(false);
        }
        let pass = XdpPass::attach_for_jumbo_frames(&far.ns, "eth0");
        let (near, away) = (host.wire(), far.wire());
        wait_for("the cable to carry", SOON, || {
            let frame = marker(far.mac);
            away.send(&frame);
            near.drain().into_iter().any(|seen| seen.bytes == frame).then_some(())
        });
        Self { host, far, _pass: pass }
    }
}

/// The frame with `tags` in it and bytes behind it that tell each place from its neighbours, `length` in all.
fn padded(frame: &[u8], tags: &[[u8; 4]], length: usize) -> Vec<u8> {
    let mut long = frame[..ETHERNET + ARP].to_vec();
    long.splice(12..12, tags.concat());
    let pattern = (0..=250_u8).cycle();
    long.extend(pattern.take(length - long.len()));
    long
}

/// The answer to a request, `behind` bytes of tags further on: nothing else of the frame may differ.
fn answered(question: &[u8], behind: usize, mac: MacAddr) -> Vec<u8> {
    let mut answer = question.to_vec();
    let (asker, arp) = (question[6..12].to_vec(), ETHERNET + behind);
    answer[..6].copy_from_slice(&asker);
    answer[6..12].copy_from_slice(&mac.octets());
    answer[arp + 7] = 2;
    answer[arp + 8..arp + 14].copy_from_slice(&mac.octets());
    answer[arp + 14..arp + 18].copy_from_slice(&question[arp + 24..arp + 28]);
    answer[arp + 18..arp + 28].copy_from_slice(&question[arp + 8..arp + 18]);
    answer
}

fn reply_to(wire: &Wire, asker: MacAddr) -> Captured {
    wire.wait_for("the answer", SOON, |frame| {
        !frame.outgoing && frame.is_arp(|arp| arp.operation == REPLY && arp.destination == asker)
    })
}

fn requests_of_every_length(arguments: &[&str]) {
    let jumbo = Jumbo::new();
    let node = Node::start_with(&jumbo.host, arguments);
    let address = node.online(100);
    let wire = jumbo.far.wire();
    let question = bytes(&request(stranger(1), ip(2), address));
    let mut asked = 0;
    for tags in [&[][..], &[PRIORITY], &[PRIORITY, PRIORITY]] {
        let behind = 4 * tags.len();
        for length in [42, 43, 59, 60, 61, 64, 128, 590, 1_514, 1_515, 3_000, 4_096, 4_097, 8_900, 9_010] {
            let question = padded(&question, tags, length.max(42) + behind);
            wire.send(&question);
            let answer = reply_to(&wire, stranger(1));
            let expected = answered(&question, behind, jumbo.host.mac);
            assert!(answer.bytes == expected, "{length} bytes, {} tags: {answer:?}", tags.len());
            asked += 1;
        }
    }
    assert_eq!(node.counter(address, "answered"), asked, "by the program");
}

#[test]
fn a_request_of_any_length_is_answered_in_its_own_length_and_padding_in_native_mode() {
    requests_of_every_length(NATIVE);
}

#[test]
fn a_request_of_any_length_is_answered_in_its_own_length_and_padding_in_generic_mode() {
    requests_of_every_length(GENERIC);
}

#[test]
fn a_request_of_any_length_is_answered_in_its_own_length_and_padding_in_tc_mode() {
    requests_of_every_length(TC);
}

fn requests_in_pieces(arguments: &[&str]) {
    let jumbo = Jumbo::new();
    let node = Node::start_with(&jumbo.host, arguments);
    let address = node.online(100);
    let wire = jumbo.far.wire();
    let question = bytes(&request(stranger(1), ip(2), address));
    let mut asked = 0;
    for linear in [14, 15, 20, 28, 41, 42, 60, 1_000] {
        for length in [5_000, 6_000, 8_900] {
            let question = padded(&question, &[], length);
            offer_in_pieces(&jumbo.far.ns, "eth0", &question, linear).expect("sent");
            let answer = reply_to(&wire, stranger(1));
            let expected = answered(&question, 0, jumbo.host.mac);
            assert!(answer.bytes == expected, "{linear} of {length} bytes linear: {answer:?}");
            asked += 1;
        }
    }
    assert_eq!(node.counter(address, "answered"), asked, "by the program");
}

#[test]
fn a_request_whose_arp_is_in_a_fragment_is_answered_in_native_mode() {
    requests_in_pieces(NATIVE);
}

#[test]
fn a_request_whose_arp_is_in_a_fragment_is_answered_in_generic_mode() {
    requests_in_pieces(GENERIC);
}

#[test]
fn a_request_whose_arp_is_in_a_fragment_is_answered_in_tc_mode() {
    requests_in_pieces(TC);
}

fn long_claims(arguments: &[&str]) {
    let jumbo = Jumbo::new();
    let node = Node::start_with(&jumbo.host, arguments);
    let claim = ["--profile", "rfc5227", "--defend", "hold"];
    let addresses = [(100, 42), (101, 3_000), (102, 8_900)];
    for (last, _) in addresses {
        node.online_with(last, &claim);
    }
    let events = node.events();
    for (last, length) in addresses {
        node.wait_for_state(ip(last), "online", Duration::from_secs(10));
        let wire = jumbo.far.wire();
        wire.send(&padded(&bytes(&announcement(stranger(1), ip(last))), &[], length));
        let event = events.wait_for("the conflict", SOON, |event| event["event"] == "conflict").json;
        assert_eq!(event["claimant"], stranger(1).to_string(), "{event}");
        wire.wait_for("the defence", SOON, |frame| {
            !frame.outgoing
                && frame.says(ip(last), jumbo.host.mac)
                && frame.is_arp(|arp| arp.form() == Form::Announcement)
        });
    }
}

#[test]
fn a_claim_of_any_length_is_reported_and_defended_in_native_mode() {
    long_claims(NATIVE);
}

#[test]
fn a_claim_of_any_length_is_reported_and_defended_in_generic_mode() {
    long_claims(GENERIC);
}

#[test]
fn a_claim_of_any_length_is_reported_and_defended_in_tc_mode() {
    long_claims(TC);
}

fn frames_cut_short(arguments: &[&str]) {
    let net = Net::cable();
    let node = Node::start_with(net.host(0), arguments);
    let address = node.online(100);
    let (wire, behind_the_program) = (net.host(1).wire(), node.host.wire());
    let truncated = || node.status()["counters"]["truncated"].as_u64().expect("a counter");
    let before = truncated();
    let mut sent = 0;
    for whole in [bytes(&request(stranger(1), ip(2), address)), bytes(&announcement(stranger(1), address))] {
        for tags in [&[][..], &[PRIORITY], &[PRIORITY, PRIORITY]] {
            let end = ETHERNET + ARP + 4 * tags.len();
            let whole = padded(&whole, tags, end);
            // Of a tagged frame Linux drops what ends right behind the tag.
            let shortest = end - ARP + if tags.is_empty() { 0 } else { 2 };
            for length in shortest..end {
                let frame = &whole[..length];
                wire.send(frame);
                behind_the_program.wait_for("the frame behind the program", SOON, |seen| {
                    !seen.outgoing && seen.bytes == frame
                });
                sent += 1;
            }
        }
    }
    assert_eq!(truncated(), before + sent);
    assert_eq!(node.counter(address, "claims"), 0);
    assert_eq!(node.counter(address, "answered"), 0);
    // One byte more, and it is a question.
    let question = padded(&bytes(&request(stranger(1), ip(2), address)), &[], ETHERNET + ARP);
    wire.send(&question);
    let answer = reply_to(&wire, stranger(1));
    assert_eq!(answer.bytes, answered(&question, 0, node.host.mac));
}

#[test]
fn a_frame_cut_at_any_place_inside_the_arp_packet_passes_as_it_is_in_native_mode() {
    frames_cut_short(NATIVE);
}

#[test]
fn a_frame_cut_at_any_place_inside_the_arp_packet_passes_as_it_is_in_generic_mode() {
    frames_cut_short(GENERIC);
}

#[test]
fn a_frame_cut_at_any_place_inside_the_arp_packet_passes_as_it_is_in_tc_mode() {
    frames_cut_short(TC);
}

fn settings_stay(arguments: &[&str], of_the_peer: impl Fn(&str) -> bool) {
    for receive_offload in ["on", "off"] {
        let jumbo = Jumbo::new();
        let hosts = [&jumbo.host, &jumbo.far];
        let mut set = jumbo.host.ns.command("ethtool");
        set.args(["-K", "eth0", "gro", receive_offload]);
        run(set);
        let before = hosts.map(offloads);
        assert_eq!(before[0]["generic-receive-offload"], receive_offload);
        let mut node = Node::start_with(&jumbo.host, arguments);
        node.online(100);
        let during = hosts.map(offloads);
        assert_eq!(different(&before[0], &during[0]), [""; 0], "while the program is there");
        let at_the_peer = different(&before[1], &during[1]);
        assert!(at_the_peer.iter().all(|name| of_the_peer(name)), "at the peer: {at_the_peer:?}");
        println!("at the peer, with receive offload {receive_offload}: {at_the_peer:?}");
        node.signal(libc::SIGTERM);
        assert_eq!(node.wait_for_end(ms(10_000)), 0);
        assert_eq!(hosts.map(offloads), before, "when it has gone");
    }
}

#[test]
fn receive_offloads_are_left_alone_in_native_mode() {
    // The kernel lets the peer of a veth with a native program send no segments to be cut up later: what it switches
    // off there (`veth_xdp_set`) is about sending and comes back with the end of the program.
    settings_stay(NATIVE, |name| {
        name == "tcp-segmentation-offload"
            || name == "generic-segmentation-offload"
            || name.starts_with("tx-") && (name.ends_with("-segmentation") || name == "tx-gso-list")
    });
}

#[test]
fn receive_offloads_are_left_alone_in_generic_mode() {
    settings_stay(GENERIC, |_| false);
}

#[test]
fn receive_offloads_are_left_alone_in_tc_mode() {
    settings_stay(TC, |_| false);
}
