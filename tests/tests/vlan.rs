//! Tags: the same address in two VLANs is two addresses, and an answer never changes VLAN.

use arpwarden_common::{
    net::{SERVICE_TAG, Vlan},
    wire::arp::REPLY,
};
use arpwarden_tests::{
    ms,
    netns::{Net, ip, stranger},
    node::Node,
    tools::decode,
    wire::{announcement, bytes, probe, request},
};

const TAGS: [Vlan; 4] = [
    Vlan { outer: 5, inner: 0 },
    Vlan { outer: 5 | SERVICE_TAG, inner: 0 },
    Vlan { outer: 5 | SERVICE_TAG, inner: 7 },
    Vlan { outer: 5, inner: 7 },
];

#[test]
fn tagged_claims_are_no_event_and_tagged_requests_no_question_for_an_untagged_address() {
    another_vlan_is_another_address(&Net::cable());
}

#[test]
fn the_same_holds_behind_a_bridge_whose_ports_put_the_tags_into_the_frames() {
    let net = Net::new(2);
    net.ports_put_tags_into_the_frames();
    another_vlan_is_another_address(&net);
}

fn another_vlan_is_another_address(net: &Net) {
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let events = node.events();
    let wire = net.host(1).wire();
    let behind_the_program = node.host.wire();
    for vlan in TAGS {
        for mut frame in [
            announcement(stranger(1), address),
            probe(stranger(1), address),
            request(stranger(1), ip(2), address),
            request(stranger(1), address, ip(7)),
        ] {
            frame.vlan = vlan;
            wire.send(&bytes(&frame));
            // It got as far as the program, tag and all, and went on untouched.
            behind_the_program.wait_for("the tagged frame", ms(1_000), |seen| seen.bytes == bytes(&frame));
        }
    }
    wire.send(&bytes(&announcement(stranger(2), address)));
    let seen = events.collect_until("the untagged claim", ms(2_000), |event| {
        event["event"] == "conflict" && event["claimant"] == stranger(2).to_string()
    });
    let strange: Vec<String> = seen
        .iter()
        .map(|event| event.json.to_string())
        .filter(|text| text.contains(&stranger(1).to_string()))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(node.counter(address, "claims"), 1);
    assert_eq!(node.counter(address, "answered"), 0);
    let answers = wire.drain();
    assert!(
        !answers.iter().any(|frame| !frame.outgoing
            && frame.is_arp(|arp| arp.operation == REPLY && arp.target_ip == ip(2).into())),
        "{answers:?}"
    );
}

#[test]
fn a_priority_tag_names_no_vlan_and_the_answer_stays_inside_it() {
    let net = Net::cable();
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let wire = net.host(1).wire();
    // VID 0 with priority 5 (IEEE 802.1Q §6.9), in a customer's and in a service tag.
    for tag in [[0x81, 0x00, 0xa0, 0x00], [0x88, 0xa8, 0xa0, 0x00]] {
        let mut question = bytes(&request(net.host(1).mac, ip(2), address));
        question.splice(12..12, tag);
        wire.send(&question);
        let answer = wire.wait_for("the answer", ms(2_000), |frame| {
            !frame.outgoing
                && frame.says(address, node.host.mac)
                && frame.is_arp(|arp| arp.operation == REPLY && arp.target_ip == ip(2).into())
        });
        assert_eq!(answer.bytes[12..16], tag);
        if tag[0] == 0x81 {
            assert_eq!(decode(&[answer])[0].vlans, ["0"]);
        }
    }
}

#[test]
fn the_status_says_whether_tags_reach_the_program() {
    let net = Net::cable();
    let of = |node: &Node| {
        let status = node.status();
        status["interfaces"][0]["vlan_tags"].as_str().expect("a word").to_owned()
    };
    let mut node = Node::start(net.host(0));
    // This host cannot see what a veth's peer does with its tags; whatever it says, it must not be wrong.
    let word = of(&node);
    assert!(["visible", "hidden", "unknown"].contains(&word.as_str()), "{word}");
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0);

    net.host(1).tags_beside_the_frame(true);
    let node = Node::start(net.host(0));
    let word = of(&node);
    assert_ne!(word, "visible", "the peer keeps its tags beside the frames");
}
