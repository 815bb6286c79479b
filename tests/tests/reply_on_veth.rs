//! An online address is answered by the program, on real interfaces, for hosts and tools that we did not write.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use arpwarden_common::{
    net::MacAddr,
    wire::arp::{REPLY, REQUEST},
};
use arpwarden_tests::{
    ms,
    netns::{Net, ip, stranger},
    node::Node,
    tools::{arping, decode, neighbour, other_arping, run},
    wire::{Captured, Wire, bytes, probe, request},
};

const GENERIC: &[&str] = &["--iface", "eth0", "--attach", "generic"];
const TC: &[&str] = &["--iface", "eth0", "--attach", "tc"];
const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];

fn arpings_tell_taken_from_free(net: &Net, arguments: &[&str]) {
    let node = Node::start_with(net.host(0), arguments);
    let taken = node.online(100);
    let client = net.host(1);

    // iputils: 1 for "somebody has it", 0 for "nobody answered". The other one: 0 for an answer.
    assert_eq!(arping(client, &["-D", "-c", "1", "-w", "2"], taken).code, 1);
    assert_eq!(arping(client, &["-D", "-c", "1", "-w", "1"], ip(101)).code, 0);
    assert_eq!(arping(client, &["-c", "2", "-w", "2"], taken).code, 0);
    let found = other_arping(client, &["-c", "1", "-w", "2", "-0"], taken);
    assert_eq!(found.code, 0, "{found:?}");
    assert!(found.said.contains(&net.host(0).mac.to_string()), "{found:?}");
    assert_eq!(other_arping(client, &["-c", "1", "-w", "1", "-0"], ip(101)).code, 1);
    let counted = node.counter(taken, "answered");
    assert!(counted >= 4, "{counted} answers counted");
}

#[test]
fn both_arpings_find_an_online_address_taken_and_a_free_one_free_in_native_mode() {
    arpings_tell_taken_from_free(&Net::new(2), NATIVE);
}

#[test]
fn both_arpings_find_an_online_address_taken_and_a_free_one_free_in_generic_mode() {
    arpings_tell_taken_from_free(&Net::without_peer_programs(2), GENERIC);
}

#[test]
fn both_arpings_find_an_online_address_taken_and_a_free_one_free_in_tc_mode() {
    arpings_tell_taken_from_free(&Net::without_peer_programs(2), TC);
}

fn ping_and_tcp_work_and_the_kernel_is_not_asked(net: &Net, arguments: &[&str]) {
    let node = Node::start_with(net.host(0), arguments);
    let address = node.online(100);
    let client = net.host(1);
    let behind_the_program = Wire::behind(&node.host.ns, "eth0");
    let tap = net.tap(0);
    let before = node.counter(address, "answered");

    let mut ping = client.ns.command("ping");
    ping.args(["-n", "-c", "3", "-i", "0.05", "-W", "2", &address.to_string()]);
    run(ping);
    let listener = node.host.ns.enter(|| TcpListener::bind((address, 0))).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let mut calling = client.ns.enter(|| TcpStream::connect((address, port))).expect("a connection");
    let (mut called, _) = listener.accept().expect("a caller");
    calling.write_all(b"hello").expect("sent");
    let mut heard = [0; 5];
    called.read_exact(&mut heard).expect("received");
    assert_eq!(&heard, b"hello");
    assert_eq!(neighbour(&client.ns, address), Some(net.host(0).mac));

    let seen = node.settled(&tap);
    let asked = count(&seen, |frame| frame.outgoing && asks_for(frame, address));
    let answers = count(&seen, |frame| !frame.outgoing && answers_for(frame, address, node.host.mac));
    assert!(asked >= 1, "the client had to ask: {seen:?}");
    assert_eq!(asked, answers, "one answer for each request: {seen:?}");
    assert_eq!(node.counter(address, "answered") - before, answers as u64);
    let passed = behind_the_program.drain();
    assert_eq!(count(&passed, |frame| !frame.outgoing && asks_for(frame, address)), 0, "{passed:?}");
}

#[test]
fn ping_and_tcp_work_and_the_answer_came_from_the_program_not_the_kernel_in_native_mode() {
    ping_and_tcp_work_and_the_kernel_is_not_asked(&Net::new(2), NATIVE);
}

#[test]
fn ping_and_tcp_work_and_the_answer_came_from_the_program_not_the_kernel_in_generic_mode() {
    ping_and_tcp_work_and_the_kernel_is_not_asked(&Net::without_peer_programs(2), GENERIC);
}

#[test]
fn ping_and_tcp_work_and_the_answer_came_from_the_program_not_the_kernel_in_tc_mode() {
    ping_and_tcp_work_and_the_kernel_is_not_asked(&Net::without_peer_programs(2), TC);
}

#[test]
fn tshark_sees_an_ordinary_reply_and_the_reply_to_a_probe() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let asker = net.host(1).wire();
    let mut answers = Vec::new();
    for question in [request(stranger(1), ip(2), address), probe(stranger(1), address)] {
        asker.send(&bytes(&question));
        answers.push(asker.wait_for("the answer", ms(2_000), |frame| {
            !frame.outgoing && answers_for(frame, address, node.host.mac)
        }));
    }
    let decoded = decode(&answers);
    for (answer, target) in decoded.iter().zip(["10.7.0.2", "0.0.0.0"]) {
        assert_eq!(answer.operation, "2");
        assert_eq!(answer.source, "02:aa:00:00:00:01");
        assert_eq!(answer.destination, "02:bb:00:00:00:01");
        assert_eq!(answer.sender_mac, "02:aa:00:00:00:01");
        assert_eq!(answer.sender_ip, "10.7.0.100");
        assert_eq!(answer.target_mac, "02:bb:00:00:00:01");
        assert_eq!(answer.target_ip, target);
        assert!(answer.vlans.is_empty());
    }
    assert_eq!(decoded.len(), 2);
}

#[test]
fn each_of_a_thousand_requests_gets_exactly_one_answer() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let before = node.counter(address, "answered");
    let asker = net.host(1).wire();
    let question = bytes(&request(net.host(1).mac, ip(2), address));
    let mut answers = 0;
    for batch in 1..=20 {
        for _ in 0..50 {
            asker.send(&question);
        }
        // In batches, so that no queue on the way overflows.
        while answers < batch * 50 {
            asker.wait_for("an answer", ms(2_000), |frame| {
                !frame.outgoing && answers_for(frame, address, node.host.mac)
            });
            answers += 1;
        }
    }
    let rest = node.settled(&asker);
    assert_eq!(count(&rest, |frame| answers_for(frame, address, node.host.mac)), 0);
    assert_eq!(node.counter(address, "answered") - before, 1000);
}

#[test]
fn a_request_flooded_to_somebody_elses_mac_is_not_answered() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let tap = net.tap(0);
    let mut question = request(net.host(1).mac, ip(2), address);
    question.destination = stranger(9);
    // Straight onto the cable, as a switch floods a frame whose destination it has forgotten.
    tap.send(&bytes(&question));
    question.destination = node.host.mac;
    tap.send(&bytes(&question));
    let seen = tap.collect_until("the second one's answer", ms(2_000), |frame| {
        !frame.outgoing && answers_for(frame, address, node.host.mac)
    });
    assert_eq!(count(&seen, |frame| !frame.outgoing), 1, "{seen:?}");
    assert_eq!(node.counter(address, "answered"), 1);
}

#[test]
fn an_address_answers_while_the_daemon_stands_still() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    node.freeze();
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
    node.signal(libc::SIGCONT);
    assert_eq!(node.state(address).as_deref(), Some("announcing"), "the plan takes five seconds");
    node.wait_for_state(address, "online", Duration::from_secs(8));
}

fn count(frames: &[Captured], wanted: impl Fn(&Captured) -> bool) -> usize {
    frames.iter().filter(|frame| wanted(frame)).count()
}

fn asks_for(frame: &Captured, address: Ipv4Addr) -> bool {
    frame.is_arp(|arp| {
        arp.operation == REQUEST && arp.target_ip == address.into() && arp.sender_ip != arp.target_ip
    })
}

fn answers_for(frame: &Captured, address: Ipv4Addr, mac: MacAddr) -> bool {
    frame.says(address, mac) && frame.is_arp(|arp| arp.operation == REPLY && arp.target_ip != arp.sender_ip)
}
