//! The fixture itself, with plain Linux hosts: what it measures must be right before anything is proved with it.

use std::time::Instant;

use arpwarden_tests::{
    flood::{Answers, Flood, Flooded},
    ms,
    netns::{Net, ip, stranger},
    tools::{Ping, addresses, arping, decode, has_address, neighbour, other_arping, wait_for_neighbour},
    wait_for,
    wire::{announcement, bytes, marker, request},
};

#[test]
fn plain_hosts_answer_each_other_and_both_arpings_tell_taken_from_free() {
    let begun = Instant::now();
    let net = Net::new(3);
    println!("a bridge and three hosts in {:?}", begun.elapsed());
    assert_eq!(addresses(&net.host(1).ns), [(ip(2), 24)]);
    assert!(!has_address(&net.host(1).ns, ip(3)));

    assert_eq!(arping(net.host(0), &["-D", "-c", "1", "-w", "1"], ip(2)).code, 1);
    assert_eq!(arping(net.host(0), &["-D", "-c", "1", "-w", "1"], ip(99)).code, 0);
    assert_eq!(other_arping(net.host(0), &["-c", "1", "-w", "1", "-0"], ip(2)).code, 0);
    assert_eq!(other_arping(net.host(0), &["-c", "1", "-w", "1", "-0"], ip(99)).code, 1);
}

#[test]
fn a_tap_sees_request_and_answer_of_a_plain_host_and_nothing_else() {
    let net = Net::new(2);
    let tap = net.tap(1);
    let asker = net.host(0).wire();
    asker.send(&bytes(&request(net.host(0).mac, ip(1), ip(2))));
    tap.wait_for("the answer", ms(1_000), |frame| !frame.outgoing && frame.says(ip(2), net.host(1).mac));
    let last = marker(stranger(1));
    asker.send(&last);
    let rest = tap.collect_until("the marker", ms(1_000), |frame| frame.bytes == last);
    assert_eq!(rest.len(), 1, "{rest:?}");
    // An answer teaches the asker only who had asked in earnest.
    assert_eq!(neighbour(&net.host(0).ns, ip(2)), None);
}

#[test]
fn tshark_decodes_what_a_packet_socket_captured() {
    let net = Net::cable();
    let receiver = net.host(0).wire();
    let mut frame = announcement(stranger(7), ip(50));
    frame.vlan.outer = 5;
    net.host(1).wire().send(&bytes(&frame));
    let seen = receiver.wait_for("the frame", ms(1_000), |seen| seen.bytes == bytes(&frame));
    let decoded = decode(&[seen]);
    assert_eq!(decoded.len(), 1);
    assert_eq!(decoded[0].vlans, ["5"]);
    assert_eq!(decoded[0].sender_mac, "02:bb:00:00:00:07");
    assert_eq!(decoded[0].sender_ip, "10.7.0.50");
    assert_eq!(decoded[0].is, ["gratuitous", "announcement"]);
}

#[test]
fn a_ping_counts_what_is_lost() {
    let net = Net::new(2);
    let tap = net.tap(1);
    let ping = Ping::start(net.host(0), ip(2));
    let echo = |frame: &arpwarden_tests::wire::Captured| frame.outgoing && frame.bytes.get(23) == Some(&1);
    for _ in 0..5 {
        tap.wait_for("an echo request", ms(1_000), echo);
    }
    net.host(1).ns.sysctl("ipv4/icmp_echo_ignore_all", "1");
    let _ = tap.drain();
    for _ in 0..5 {
        tap.wait_for("an echo request", ms(1_000), echo);
    }
    net.host(1).ns.sysctl("ipv4/icmp_echo_ignore_all", "0");
    for _ in 0..5 {
        tap.wait_for("an echo request", ms(1_000), echo);
    }
    let pinged = ping.stop();
    assert!(pinged.sent >= 12, "{pinged:?}");
    assert!((4..pinged.sent - 6).contains(&pinged.lost), "{pinged:?}");
    wait_for_neighbour(&net.host(0).ns, ip(2), net.host(1).mac, ms(100));
}

#[test]
fn each_request_of_a_flood_has_its_own_answer_and_who_made_it_is_known() {
    let net = Net::new(2);
    let flood = Flood::start(net.host(1), &[ip(1), ip(99)], ms(1), [net.tap(0)]);
    wait_for("some of the flood", ms(5_000), || (flood.sent() > 200).then_some(()));
    let Flooded { asked, taps: [tap] } = flood.stop();
    let answers = Answers::among(&tap.settled(&net.host(1).wire(), ip(1)));
    for asked in &asked {
        let answers = answers.to(asked);
        assert_eq!(answers.len(), usize::from(asked.address == ip(1)), "{asked:?}: {answers:?}");
        assert!(answers.iter().all(|answer| answer.by_kernel));
    }
}
