//! What is not ours to answer passes byte for byte; what is malformed passes and is counted.

use arpwarden_common::{abi::Counter, net::MacAddr, wire::arp::MIN_FRAME};
use arpwarden_tests::{
    ms,
    netns::{Net, ip, stranger},
    node::Node,
    tools::arping,
    wait_for,
    wire::{announcement, bytes, request},
};

/// Where the fields of an untagged ARP frame begin (RFC 826).
const HARDWARE_TYPE: usize = 14;
const PROTOCOL_TYPE: usize = 16;
const HARDWARE_LENGTH: usize = 18;
const PROTOCOL_LENGTH: usize = 19;
const OPERATION: usize = 20;
const SENDER_MAC: usize = 22;
const SENDER_IP: usize = 28;

/// Makes a broken frame of a good one.
type Break<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

fn with(mut frame: Vec<u8>, at: usize, field: &[u8]) -> Vec<u8> {
    frame[at..at + field.len()].copy_from_slice(field);
    frame
}

#[test]
fn every_malformed_frame_passes_byte_for_byte_and_is_counted_by_what_is_wrong_with_it() {
    let net = Net::cable();
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let (wire, behind_the_program) = (net.host(1).wire(), node.host.wire());
    // A question and a claim, so that a program which forgot a check would answer or report.
    let good = [bytes(&request(stranger(1), ip(2), address)), bytes(&announcement(stranger(1), address))];
    let broken: &[(Counter, Break)] = &[
        (Counter::Truncated, &|frame| frame[..14].to_vec()),
        (Counter::Truncated, &|frame| frame[..15].to_vec()),
        (Counter::Truncated, &|frame| frame[..28].to_vec()),
        (Counter::Truncated, &|frame| frame[..41].to_vec()),
        (Counter::BadHeader, &|frame| with(frame.to_vec(), HARDWARE_TYPE, &[0, 32])),
        // ARP as on InfiniBand (RFC 4391 §6): hardware addresses of 20 bytes.
        (Counter::BadHeader, &|frame| {
            let long = |mac: &[u8]| [&[0, 0, 0, 1, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0][..], mac].concat();
            let header = [&frame[..14], &[0, 32, 8, 0, 20, 4], &frame[20..22]].concat();
            let sender = [long(&frame[22..28]), frame[28..32].to_vec()].concat();
            [header, sender, long(&frame[32..38]), frame[38..42].to_vec()].concat()
        }),
        (Counter::BadHeader, &|frame| with(frame.to_vec(), PROTOCOL_TYPE, &[0x86, 0xdd])),
        (Counter::BadHeader, &|frame| with(frame.to_vec(), HARDWARE_LENGTH, &[8])),
        (Counter::BadHeader, &|frame| with(frame.to_vec(), PROTOCOL_LENGTH, &[16])),
        (Counter::BadHeader, &|frame| with(frame.to_vec(), OPERATION, &[0, 0])),
        (Counter::BadHeader, &|frame| with(frame.to_vec(), OPERATION, &[0, 3])),
        (Counter::BadHeader, &|frame| with(frame.to_vec(), OPERATION, &[1, 1])),
        (Counter::BadSender, &|frame| with(frame.to_vec(), SENDER_MAC, &[0; 6])),
        (Counter::BadSender, &|frame| with(frame.to_vec(), SENDER_MAC, &[0xff; 6])),
        (Counter::BadSender, &|frame| with(frame.to_vec(), SENDER_MAC, &[1, 0, 0x5e, 0, 0, 1])),
        (Counter::BadSender, &|frame| with(frame.to_vec(), SENDER_IP, &[224, 0, 0, 1])),
        (Counter::BadSender, &|frame| with(frame.to_vec(), SENDER_IP, &[255, 255, 255, 255])),
        (Counter::BadSender, &|frame| with(frame.to_vec(), SENDER_IP, &[127, 0, 0, 1])),
    ];
    let counter = |name: &str| node.status()["counters"][name].as_u64().expect("a counter");
    let names = [Counter::Truncated, Counter::BadHeader, Counter::BadSender].map(Counter::name);
    let before = names.map(counter);
    let mut sent = [0; 3];
    for (what, break_it) in broken {
        for frame in &good {
            let frame = break_it(frame);
            wire.send(&frame);
            behind_the_program.wait_for("the frame behind the program", ms(1_000), |seen| {
                !seen.outgoing && seen.bytes == frame
            });
            sent[*what as usize] += 1;
        }
    }
    assert_eq!(names.map(counter), [before[0] + sent[0], before[1] + sent[1], before[2] + sent[2]]);
    assert_eq!(node.counter(address, "claims"), 0);
    assert_eq!(node.counter(address, "answered"), 0);
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0, "and it goes on answering");
}

#[test]
fn everything_unmanaged_passes_byte_for_byte() {
    let net = Net::cable();
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let (wire, behind_the_program) = (net.host(1).wire(), node.host.wire());
    let [us, them] = [node.host.mac, net.host(1).mac].map(MacAddr::octets);
    let ethernet = |destination: [u8; 6], ethertype: [u8; 2], payload: &[u8]| {
        let mut frame = [destination, them].concat();
        frame.extend(ethertype);
        frame.extend(payload);
        frame
    };
    let pattern: Vec<u8> = (0..=255).cycle().take(1_500).collect();
    let double_tag = [&[0, 5, 0x81, 0, 0, 7, 0x08, 0x00], &pattern[..60]].concat();
    let three_tags = [&[0, 5, 0x81, 0, 0, 7, 0x81, 0, 0, 8, 0x08, 0x06], &pattern[..60]].concat();
    let unmanaged = vec![
        // ARP of others: questions, answers, announcements, our own host's address included.
        bytes(&request(net.host(1).mac, ip(2), ip(77))),
        bytes(&request(net.host(1).mac, ip(2), ip(1))),
        bytes(&announcement(stranger(1), ip(77))),
        // Longer than it must be.
        [bytes(&request(net.host(1).mac, ip(2), ip(77))), pattern[..200].to_vec()].concat(),
        // IPv4 to the managed address, IPv6, LLDP, spanning tree (a length, no type), something unknown.
        ethernet(us, [0x08, 0x00], &ipv4(net.host(1).ip.octets(), address.octets(), &pattern[..64])),
        ethernet([0x33, 0x33, 0, 0, 0, 1], [0x86, 0xdd], &pattern[..80]),
        ethernet([0x01, 0x80, 0xc2, 0, 0, 0x0e], [0x88, 0xcc], &pattern[..46]),
        ethernet([0x01, 0x80, 0xc2, 0, 0, 0], [0, 38], &pattern[..46]),
        ethernet(us, [0x12, 0x34], &pattern),
        ethernet(us, [0x08, 0x05], &pattern[..46]),
        // Tags around something else, and more tags than are looked behind.
        ethernet(us, [0x81, 0x00], &double_tag),
        ethernet(us, [0x88, 0xa8], &double_tag),
        ethernet(us, [0x81, 0x00], &three_tags),
        // A tag and hardly anything behind it; Linux drops what is shorter.
        ethernet(us, [0x81, 0x00], &[0, 5, 0x12, 0x34, 0, 0]),
    ];
    for frame in &unmanaged {
        wire.send(frame);
        behind_the_program.wait_for("the frame behind the program", ms(1_000), |seen| {
            !seen.outgoing && seen.bytes == *frame
        });
    }
    assert!(unmanaged.iter().any(|frame| frame.len() > MIN_FRAME));
    assert_eq!(node.counter(address, "claims"), 0);
    assert_eq!(node.counter(address, "answered"), 0);
}

#[test]
fn the_kernels_own_addresses_are_answered_by_the_kernel_as_before() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.online(100);
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], net.host(0).ip).code, 0);
    wait_for("the counters", ms(1_000), || {
        (node.status()["counters"]["unmanaged"].as_u64()? >= 1).then_some(())
    });
}

/// An IPv4 header (RFC 791) of a protocol for experiments (RFC 3692), and a payload.
fn ipv4(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("a short packet");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 253, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}
