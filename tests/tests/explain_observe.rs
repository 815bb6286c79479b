//! `explain` gives the reason, whatever it is; `run --observe` looks on and changes nothing.

use std::{process::Stdio, time::Duration};

use arpwarden_common::wire::arp::{Form, REPLY};
use arpwarden_tests::{
    asks::{Asking, answers_to, ask, quiet, sent_as, speak_as},
    netns::{Net, ip, stranger},
    node::{Done, Node},
    pins::Pins,
    tools::{addresses, arping, has_address, snapshot},
    wait_for,
    wire::{Captured, announcement, bytes},
};

/// How long a change may take to be noticed and acted on, on two cores with other tests on them.
const SOON: Duration = Duration::from_secs(5);

/// What `explain` says; the conclusion is its first line.
fn explain(node: &Node<'_>, last: u8) -> Done {
    node.cli(&["explain", &ip(last).to_string()]).expect(0)
}

/// Asserts that the conclusion has all these words.
#[track_caller]
fn concludes(node: &Node<'_>, last: u8, words: &[&str]) {
    let done = explain(node, last);
    let first = done.out.lines().next().expect("a conclusion");
    for word in words {
        assert!(first.contains(word), "{word:?} is missing in the conclusion of:\n{}", done.out);
    }
}

#[test]
fn every_state_has_its_own_reason() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let mac = node.host.mac.to_string();
    concludes(&node, 100, &["10.7.0.100", "not managed"]);
    explain(&node, 1).naming("not managed").naming("configured on eth0");

    node.online(100);
    concludes(&node, 100, &["eth0", "answered", &mac]);
    explain(&node, 100).naming("announcing").naming("native").naming("nobody has asked");
    node.wait_for_state(ip(100), "online", Duration::from_secs(15));
    ask(&net, 0, ip(100));
    explain(&node, 100)
        .naming("online")
        .naming("plan_done")
        .naming("answered 1")
        .naming("asked last by 10.7.0.254");

    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    concludes(&node, 150, &["passed", "watched"]);

    let mut command = node.command(&["online", "10.7.0.101/24", "--iface", "eth0", "--profile", "rfc5227"]);
    let mut claim = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the command starts");
    node.wait_for_state(ip(101), "probing", SOON);
    concludes(&node, 101, &["probed for"]);
    node.cli(&["offline", "10.7.0.101"]).expect(0);
    claim.wait().expect("the command ends");

    net.host(1).ns.ip("address add 10.7.0.102/24 dev eth0");
    node.try_online(102, &[]).expect(3);
    concludes(&node, 102, &[&net.host(1).mac.to_string(), "has it"]);
    explain(&node, 102).naming("refused").naming("claimed last by");

    node.online_with(103, &["--defend", "yield"]);
    net.host(1).wire().send(&bytes(&announcement(stranger(1), ip(103))));
    node.wait_for_state(ip(103), "lost", SOON);
    concludes(&node, 103, &[&stranger(1).to_string(), "has it"]);
    explain(&node, 103).naming("lost").naming("defend_policy");

    node.online_with(104, &["--lease", "1"]);
    explain(&node, 104).naming("its lease stands");
    node.wait_for_state(ip(104), "suspended", SOON);
    concludes(&node, 104, &["its lease is past"]);

    net.plug(0, false);
    node.wait_for_state(ip(100), "suspended", SOON);
    concludes(&node, 100, &["link of eth0 is down"]);
    explain(&node, 100).naming("down or without carrier");
}

#[test]
fn a_missing_program_is_the_reason_and_so_is_no_interface() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    node.online(100);
    Pins::of(&node).detach_program();
    // It looks every ten seconds.
    wait_for("the daemon to notice", Duration::from_secs(15), || {
        (node.status()["interfaces"][0]["program"] == false).then_some(())
    });
    concludes(&node, 100, &["passed to the kernel", "program is missing from eth0"]);
    node.cli(&["unload"]).expect(0);
    assert_eq!(node.wait_for_end(Duration::from_secs(10)), 0);

    node.run(&[]);
    concludes(&node, 100, &["not managed"]);
    explain(&node, 100).naming("runs on no interface");
}

#[test]
fn hidden_tags_are_told() {
    let net = Net::cable();
    net.host(1).tags_beside_the_frame(true);
    let node = Node::start(net.host(0));
    node.online(100);
    let tags = node.status()["interfaces"][0]["vlan_tags"].as_str().expect("a word").to_owned();
    assert_ne!(tags, "visible");
    explain(&node, 100).naming(format!("VLAN tags {tags}"));
}

const OBSERVING: &[&str] = &["--iface", "eth0", "--attach", "native", "--observe"];

/// Frames that the kernel of a host has not sent by itself: announcements, probes, repairs.
fn ours(seen: &[Captured]) -> Vec<&Captured> {
    let not_the_kernels = |frame: &&Captured| {
        !frame.outgoing && frame.is_arp(|arp| matches!(arp.form(), Form::Announcement | Form::Probe))
    };
    seen.iter().filter(not_the_kernels).collect()
}

#[test]
fn an_observer_beside_a_kernel_that_has_the_address_leaves_no_trace_on_the_wire() {
    let net = Net::new(2);
    let host = net.host(0);
    // Another tool's: it stays that tool's.
    host.ns.ip("address add 10.7.0.100/24 dev eth0");
    let tap = net.tap(0);
    let before = addresses(&host.ns);
    let mut node = Node::start_with(host, OBSERVING);
    let events = node.events();
    assert_eq!(node.status()["observe"], true);
    node.online(100);
    events.wait_for_state(ip(100), "online", Duration::from_secs(15));
    // One that is not there is not put there.
    node.online(101);
    assert_eq!(addresses(&host.ns), before);
    let entry = node.address(ip(100)).expect("managed");
    assert_eq!(entry["may_answer"], false, "{entry}");
    concludes(&node, 100, &["would be answered", "observes"]);

    // A question has the kernel's one answer; what would have been answered is counted.
    let asking = Asking::start(net.host(1), ip(100), host.mac);
    wait_for("some questions", SOON, || (node.counter(ip(100), "answered") >= 20).then_some(()));
    let answered = asking.stop();
    assert_eq!(answered.once, answered.asked, "{answered:?}");
    assert_eq!(ask(&net, 0, ip(101)), [], "an answer of the program's");

    // A conflict is reported and left alone.
    net.host(1).wire().send(&bytes(&announcement(stranger(1), ip(100))));
    events.wait_for("the conflict", SOON, |event| event["event"] == "conflict");
    node.cli(&["announce", "10.7.0.100"]).expect(0);
    node.cli(&["repair", "10.7.0.100"]).expect(0);

    node.cli(&["offline", "10.7.0.100"]).expect(0);
    assert_eq!(addresses(&host.ns), before);
    let seen = node.settled(&tap);
    assert_eq!(ours(&seen), Vec::<&Captured>::new());
    let answers = seen
        .iter()
        .filter(|frame| sent_as(frame, ip(100), host.mac) && frame.is_arp(|arp| arp.operation == REPLY));
    assert_eq!(answers.count() as u64, answered.asked, "one answer to each question, by the kernel");
    let log = node.log();
    assert!(log.contains("would be sent"), "{log}");
    assert!(log.contains("would be done"), "{log}");
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(Duration::from_secs(10)), 0);
    assert_eq!(addresses(&host.ns), before);
    assert!(!snapshot(&host.ns).contains("xdp"));
}

#[test]
fn an_observer_neither_shields_nor_guards_and_counts_what_it_would_have_kept_back() {
    let net = Net::new(2);
    let host = net.host(0);
    host.ns.ip("address add 10.7.0.100/24 dev eth0");
    let node = Node::start_with(host, OBSERVING);
    // Past its lease it would be silent.
    node.online_with(100, &["--lease", "1"]);
    node.wait_for_state(ip(100), "suspended", SOON);
    assert!(has_address(&host.ns, ip(100)));
    assert_eq!(answers_to(&net, 0, ip(100)).len(), 1, "the kernel answers as ever");
    assert!(speak_as(&net, 0, ip(100)).len() >= 2, "and speaks in its name");
    // It would be off the interface by now, so there would be nothing to shield, but something to guard.
    assert_eq!(node.counter(ip(100), "answered"), 0);
    assert!(node.counter(ip(100), "guarded") >= 2);
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], ip(100)).code, 0);
}

#[test]
fn an_observer_lets_a_conflict_pass_as_it_came() {
    let net = Net::new(2);
    let host = net.host(0);
    host.ns.ip("address add 10.7.0.100/24 dev eth0");
    let node = Node::start_with(host, OBSERVING);
    for (last, policy) in [(100, "hold"), (101, "yield"), (102, "once")] {
        node.online_with(last, &["--defend", policy]);
    }
    node.wait_for_state(ip(102), "online", Duration::from_secs(15));
    let tap = net.tap(0);
    let behind_the_program = host.wire();
    for last in [100, 101, 102, 102] {
        let claim = bytes(&announcement(stranger(1), ip(last)));
        tap.send(&claim);
        behind_the_program.wait_for("the claim at the host", SOON, |frame| frame.bytes == claim);
    }
    let seen = quiet(host, &tap);
    assert_eq!(ours(&seen), Vec::<&Captured>::new());
    assert!(has_address(&host.ns, ip(100)));
    wait_for("the claims to be counted", SOON, || (node.counter(ip(102), "claims") == 2).then_some(()));
}
