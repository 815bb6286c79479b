//! The link under an address goes down, changes its MAC or its name, or goes away; the program on it is taken off.

use std::{net::Ipv4Addr, process::Stdio, time::Duration};

use arpwarden_common::{net::MacAddr, wire::arp::Form};
use arpwarden_tests::{
    asks::{Answered, Asking, answers_to, ask, quiet, sent_as, speak_as},
    kernel::XdpPass,
    ms,
    netns::{Net, Netns, ip, stranger},
    node::{Event, Events, Node},
    pins::Pins,
    tools::{arping, has_address, learn, mac, neighbour, run, wait_for_neighbour},
    wait_for,
    wire::{Captured, announcement, bytes},
};

const GENERIC: &[&str] = &["--iface", "eth0", "--attach", "generic"];
/// How long a change may take to be noticed and acted on, on two cores with other tests on them.
const SOON: Duration = Duration::from_secs(5);

/// How long a program that was taken off may be missed: the kernel tells nobody of a link that was detached, so the
/// daemon finds out when it looks, which it does every ten seconds.
const A_BEAT: Duration = Duration::from_secs(15);

/// A way to take a host's link down, and to bring it up again.
type Cut = fn(&Net, bool);

fn by_the_administrator(net: &Net, up: bool) {
    net.host(0).ns.ip(if up { "link set eth0 up" } else { "link set eth0 down" });
}

/// The other end of the cable goes down, so there is no carrier.
fn at_the_other_end(net: &Net, up: bool) {
    net.plug(0, up);
}

/// A node with an online address whose plan is over, so that every frame in its name has another cause.
fn settled<'net>(net: &'net Net, arguments: &[&str]) -> (Node<'net>, Ipv4Addr) {
    let node = Node::start_with(net.host(0), arguments);
    let address = node.online(100);
    node.wait_for_state(address, "online", Duration::from_secs(15));
    (node, address)
}

const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];

fn step(events: &Events, address: Ipv4Addr, to: &str, reason: &str) -> Event {
    let event = events.wait_for_state(address, to, SOON);
    assert_eq!(event.json["reason"], reason, "{}", event.json);
    event
}

fn named(events: &Events, name: &str) -> Event {
    named_within(events, name, SOON)
}

fn named_within(events: &Events, name: &str, within: Duration) -> Event {
    events.wait_for(name, within, |event| event["event"] == name)
}

/// Frames in the address's name by the host on whose cable the tap was.
fn by(seen: &[Captured], address: Ipv4Addr, mac: MacAddr) -> Vec<Captured> {
    seen.iter().filter(|frame| sent_as(frame, address, mac)).cloned().collect()
}

fn a_link_that_is_down_suspends(cut: Cut) {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let events = node.events();
    cut(&net, false);
    let down = named(&events, "link_down");
    assert_eq!(down.json["interface"], "eth0");
    step(&events, address, "suspended", "link_down");
    let status = node.status();
    assert_eq!(status["interfaces"][0]["running"], false, "{status}");
    let entry = node.address(address).expect("a suspended address stays listed");
    assert_eq!(entry["may_answer"], false, "{entry}");
    assert!(has_address(&node.host.ns, address), "it stays on the interface");

    // Nobody looks at the link that comes back: what holds then is held by the program and the guard alone.
    node.freeze();
    cut(&net, true);
    wait_for("the port to forward", SOON, || {
        (arping(net.host(1), &["-c", "1", "-w", "1"], node.host.ip).code == 0).then_some(())
    });
    assert_eq!(ask(&net, 0, address), [], "answered while suspended");
    assert_eq!(speak_as(&net, 0, address), [], "spoken for while suspended");
    node.signal(libc::SIGCONT);
    events.wait_for_state(address, "online", Duration::from_secs(15));
    assert!(node.counter(address, "guarded") >= 2);
    assert!(node.counter(address, "shielded") >= 1);
    assert_eq!(answers_to(&net, 0, address).len(), 1);
}

#[test]
fn while_its_link_is_down_an_address_is_suspended_and_neither_program_nor_kernel_speak_for_it() {
    a_link_that_is_down_suspends(by_the_administrator);
}

#[test]
fn a_lost_carrier_suspends_as_well() {
    a_link_that_is_down_suspends(at_the_other_end);
}

fn a_short_break_is_announced(flap: impl FnOnce(&Net)) {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let client = net.host(1);
    learn(&client.ns, address, stranger(1));
    let (events, tap) = (node.events(), net.tap(0));
    flap(&net);
    step(&events, address, "suspended", "link_down");
    step(&events, address, "announcing", "link_up");
    let wanted = |frame: &Captured| {
        sent_as(frame, address, node.host.mac) && frame.is_arp(|arp| arp.form() == Form::Announcement)
    };
    let first = tap.wait_for("the announcement at once", SOON, wanted);
    let second = tap.wait_for("the one behind it", SOON, |frame| {
        // Behind those of the first round, which leave together.
        wanted(frame) && frame.boot_ns > first.boot_ns + 50_000_000
    });
    let gap = (second.boot_ns - first.boot_ns) / 1_000_000;
    assert!((80..400).contains(&gap), "announced again after {gap} ms");
    // A bridge port that has just come up loses the first one; the second arrives.
    wait_for_neighbour(&client.ns, address, node.host.mac, ms(2_000));
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    let probes = tap.drain().into_iter().filter(|frame| {
        !frame.outgoing
            && frame.is_arp(|arp| arp.sender_ip.is_unspecified() && arp.target_ip == address.into())
    });
    assert_eq!(probes.count(), 0, "a short break is no reason to probe");
    events.wait_for_state(address, "online", Duration::from_secs(15));
}

#[test]
fn a_link_that_is_up_again_within_half_a_second_is_announced_at_once_and_once_more() {
    a_short_break_is_announced(|net| net.host(0).ns.ip("link set eth0 down\nlink set eth0 up"));
}

#[test]
fn a_carrier_that_is_back_within_half_a_second_is_announced_at_once_and_once_more() {
    // So short that the kernel's link watch may find it over.
    a_short_break_is_announced(|net| net.bridge().ip("link set p0 down\nlink set p0 up"));
}

/// Takes the link down for longer than half a second.
fn long_break(net: &Net, cut: Cut, events: &Events, address: Ipv4Addr, meanwhile: impl FnOnce()) {
    cut(net, false);
    let down = step(events, address, "suspended", "link_down");
    meanwhile();
    // The daemon has told of it after it knew, so its half second has begun before.
    wait_for("half a second to pass", SOON, || {
        (arpwarden_tests::wire::boot_ns() > down.read_ns + 600_000_000).then_some(())
    });
    cut(net, true);
}

fn a_long_break_is_probed(cut: Cut) {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let events = node.events();
    let tap = net.tap(0);
    long_break(&net, cut, &events, address, || {});
    step(&events, address, "probing", "link_up");
    step(&events, address, "announcing", "probes_unanswered");
    let seen = tap
        .collect_until("the first frame in its name", SOON, |frame| sent_as(frame, address, node.host.mac));
    let probes = seen.iter().filter(|frame| {
        !frame.outgoing
            && frame.is_arp(|arp| arp.sender_ip.is_unspecified() && arp.target_ip == address.into())
    });
    assert_eq!(probes.count(), 3, "{seen:#?}");
    events.wait_for_state(address, "online", Duration::from_secs(15));
    assert!(has_address(&node.host.ns, address));
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
}

#[test]
fn a_link_that_was_down_for_longer_is_probed_before_anything_is_said() {
    a_long_break_is_probed(by_the_administrator);
}

#[test]
fn a_carrier_that_was_lost_for_longer_is_probed_before_anything_is_said() {
    a_long_break_is_probed(at_the_other_end);
}

fn somebody_has_it_meanwhile(cut: Cut) {
    let net = Net::new(3);
    let (node, address) = settled(&net, NATIVE);
    let (owner, client) = (net.host(1), net.host(2));
    let events = node.events();
    let tap = net.tap(0);
    long_break(&net, cut, &events, address, || {
        owner.ns.ip(&format!("address add {address}/24 dev eth0"));
        learn(&client.ns, address, owner.mac);
    });
    let lost = step(&events, address, "lost", "claimed");
    assert_eq!(lost.json["from"], "probing", "{}", lost.json);
    wait_for("the address to be gone", SOON, || (!has_address(&node.host.ns, address)).then_some(()));
    let seen = node.settled(&tap);
    assert_eq!(by(&seen, address, node.host.mac), [], "spoken for beside the owner");
    assert_eq!(neighbour(&client.ns, address), Some(owner.mac));
    let entry = node.address(address).expect("a lost address stays listed");
    assert_eq!(entry["owner"], owner.mac.to_string(), "{entry}");
}

#[test]
fn an_address_that_somebody_has_when_the_link_is_back_is_lost_without_a_word() {
    somebody_has_it_meanwhile(by_the_administrator);
}

#[test]
fn an_address_that_somebody_has_when_the_carrier_is_back_is_lost_without_a_word() {
    somebody_has_it_meanwhile(at_the_other_end);
}

/// `online` in the background.
fn claiming(node: &Node<'_>, arguments: &[&str]) -> std::process::Child {
    let address = format!("{}/24", ip(100));
    let mut command = node.command(&["online", &address, "--iface", "eth0"]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the command starts")
}

#[test]
fn a_link_that_goes_down_while_probing_ends_the_claim_unless_it_waits() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    let mut claim = claiming(&node, &["--profile", "rfc5227"]);
    events.wait_for_state(ip(100), "probing", SOON);
    net.plug(0, false);
    let code = claim.wait().expect("the command ends").code();
    assert_eq!(code, Some(1), "the claim ended with {code:?}");
    assert!(!has_address(&node.host.ns, ip(100)));
    // Nor does one begin without a link.
    node.try_online(101, &[]).expect(1).naming("eth0").naming("down");
    assert!(!has_address(&node.host.ns, ip(101)));

    let mut claim = claiming(&node, &["--wait", "60"]);
    events.wait_for_state(ip(100), "suspended", SOON);
    net.plug(0, true);
    events.wait_for_state(ip(100), "probing", SOON);
    events.wait_for_state(ip(100), "announcing", SOON);
    assert_eq!(claim.wait().expect("the command ends").code(), Some(0));
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], ip(100)).code, 0);
}

#[test]
fn a_link_that_goes_down_while_announcing_begins_the_plan_anew() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let events = node.events();
    assert_eq!(node.state(address).as_deref(), Some("announcing"));
    net.plug(0, false);
    net.plug(0, true);
    step(&events, address, "suspended", "link_down");
    step(&events, address, "announcing", "link_up");
    let over = events.wait_for_state(address, "online", Duration::from_secs(15));
    assert_eq!(over.json["reason"], "plan_done", "{}", over.json);
    assert!(has_address(&node.host.ns, address));
    assert_eq!(answers_to(&net, 0, address).len(), 1);
}

#[test]
fn an_address_can_be_given_up_while_its_link_is_down_and_stays_gone_when_it_is_back() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    node.online(101);
    let events = node.events();
    let tap = net.tap(0);
    net.plug(0, false);
    events.wait_for_state(ip(101), "suspended", SOON);
    node.cli(&["offline", &address.to_string()]).expect(0);
    assert!(!has_address(&node.host.ns, address));
    assert_eq!(node.state(address), None);
    // And while it flaps.
    let mut command = node.command(&["offline", &ip(101).to_string()]);
    let mut offline = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the command starts");
    for up in [true, false, true] {
        net.plug(0, up);
    }
    assert_eq!(offline.wait().expect("the command ends").code(), Some(0));
    wait_for("the address to be gone", SOON, || (!has_address(&node.host.ns, ip(101))).then_some(()));
    wait_for("the link", SOON, || (node.status()["interfaces"][0]["running"] == true).then_some(()));
    assert_eq!(node.state(ip(101)), None);
    // A packet socket whose link has gone down says so once before it goes on.
    let mut seen = tap.drain();
    seen.extend(quiet(node.host, &tap));
    assert_eq!(by(&seen, address, node.host.mac), []);
}

#[test]
fn a_link_that_goes_down_right_after_the_start_is_noticed_as_well() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let events = node.events();
    net.plug(0, false);
    step(&events, address, "suspended", "link_down");
    assert_eq!(node.address(address).expect("managed")["may_answer"], false);
}

#[test]
fn a_new_mac_is_answered_with_from_the_next_frame_on_and_the_old_one_is_no_rival_for_a_while() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let client = net.host(1);
    learn(&client.ns, address, node.host.mac);
    let (events, tap) = (node.events(), net.tap(0));
    let (old, new) = (node.host.mac, mac("02:cc:00:00:00:07"));
    node.host.ns.ip(&format!("link set eth0 address {new}"));
    let event = named(&events, "mac_changed");
    assert_eq!(event.json["own_mac"], new.to_string());
    assert_eq!(event.json["interface"], "eth0");
    // The daemon has told of it, so the program knows: whatever leaves from here on has the new one.
    node.status();
    let from = arpwarden_tests::wire::boot_ns();
    let answer = ask(&net, 0, address);
    assert_eq!(answer, [], "answered with the old MAC");
    let seen = tap.drain();
    let with_new = by(&seen, address, new);
    assert!(
        with_new.iter().any(|frame| frame.is_arp(|arp| arp.operation == 2)),
        "no answer with the new MAC"
    );
    wait_for_neighbour(&client.ns, address, new, ms(2_000));

    // What left with the old one comes back, as from a bridge that has not yet learnt: no conflict.
    tap.send(&bytes(&announcement(old, address)));
    let echo = named(&events, "echo");
    assert_eq!(echo.json["claimant"], old.to_string());
    assert_eq!(node.counter(address, "claims"), 0);
    assert_eq!(node.counter(address, "conflicts"), 0);
    // A stranger's still is.
    tap.send(&bytes(&announcement(stranger(1), address)));
    named(&events, "conflict");
    let defence = tap.wait_for("the defence", SOON, |frame| sent_as(frame, address, new));
    assert_eq!(defence.arp().expect("ARP").source, new);
    let late = tap.drain().into_iter().chain(seen);
    let with_old = late.filter(|frame| sent_as(frame, address, old) && frame.boot_ns > from);
    assert_eq!(with_old.count(), 0);
}

#[test]
fn a_mac_that_was_ours_is_a_rivals_again_when_its_time_is_over() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let (events, tap, old) = (node.events(), net.tap(0), node.host.mac);
    node.host.ns.ip("link set eth0 address 02:cc:00:00:00:07");
    let changed = named(&events, "mac_changed");
    wait_for("the old MAC to be somebody else's", Duration::from_secs(30), || {
        tap.send(&bytes(&announcement(old, address)));
        // A claim is told once; what comes back in the meantime is an echo.
        (node.counter(address, "claims") > 0).then_some(())
    });
    let conflict = named(&events, "conflict");
    assert_eq!(conflict.json["claimant"], old.to_string());
    let after = Duration::from_nanos(conflict.read_ns - changed.read_ns);
    assert!(after > Duration::from_secs(9), "after {after:?}");
}

#[test]
fn a_renamed_interface_goes_on_under_its_new_name() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let events = node.events();
    let asking = Asking::start(net.host(1), address, node.host.mac);
    node.host.ns.ip("link set eth0 name lan0");
    let event = named(&events, "interface_renamed");
    assert_eq!(event.json["interface"], "lan0");
    assert_eq!(event.json["reason"], "eth0");
    let entry = node.address(address).expect("managed");
    assert_eq!((&entry["interface"], &entry["state"]), (&"lan0".into(), &"online".into()));
    assert_eq!(node.status()["interfaces"][0]["interface"], "lan0");
    node.cli(&["online", "10.7.0.101/24", "--iface", "lan0"]).expect(0);
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], ip(101)).code, 0);
    let Answered { asked, once, silent, wrong } = asking.stop();
    assert_eq!((silent, wrong), (0, 0), "of {asked} questions {once} were answered once");
    node.cli(&["offline", "--all", "--iface", "lan0"]).expect(0);
    let mut show = node.host.ns.command("ip");
    show.args(["-4", "address", "show", "dev", "lan0"]);
    let left = run(show);
    assert!(!left.contains("10.7.0.10"), "{left}");
}

/// Lays host 0's cable anew, under the same names.
fn lay_anew(net: &Net) -> XdpPass {
    let host = net.host(0);
    let port = &host.port;
    net.bridge().ip(&format!(
        "link add {port} type veth peer name eth0 address {} netns {}\nlink set {port} master br0 up",
        host.mac,
        host.ns.path().display()
    ));
    let pass = XdpPass::attach(net.bridge(), port);
    host.ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0", host.ip));
    pass
}

fn gone_and_back(arguments: &[&str]) {
    let net = Net::new(2);
    let (node, address) = settled(&net, arguments);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    let events = node.events();
    let before = node.host.ns.index_of("eth0");
    node.host.ns.ip("link delete eth0");
    let missing = named(&events, "program_missing");
    assert_eq!(missing.json["reason"], "interface_gone");
    assert_eq!(missing.json["interface"], "eth0");
    wait_for("the address to be gone", SOON, || node.address(address).is_none().then_some(()));

    let _pass = lay_anew(&net);
    assert_ne!(node.host.ns.index_of("eth0"), before);
    let returned = named(&events, "interface_returned");
    assert_eq!(returned.json["interface"], "eth0");
    events.wait_for_state(address, "probing", SOON);
    step(&events, address, "announcing", "probes_unanswered");
    assert!(has_address(&node.host.ns, address));
    let status = node.status();
    assert_eq!(status["interfaces"][0]["program"], true, "{status}");
    assert_eq!(status["interfaces"][0]["guard"], true, "{status}");
    net.wait_until_all_hear_each_other();
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    assert!(node.counter(address, "answered") >= 1, "answered by the kernel, not by the program");
    // What was watched there is watched again.
    assert_eq!(node.state(ip(150)).as_deref(), Some("watched"));
}

#[test]
fn an_interface_made_anew_under_its_name_gets_program_and_addresses_back() {
    gone_and_back(NATIVE);
}

#[test]
fn the_same_holds_in_generic_mode() {
    gone_and_back(GENERIC);
}

#[test]
fn an_address_that_is_given_up_while_its_interface_is_away_stays_given_up() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    node.online(101);
    let events = node.events();
    node.host.ns.ip("link delete eth0");
    named(&events, "program_missing");
    wait_for("the address to be gone", SOON, || node.address(address).is_none().then_some(()));
    node.cli(&["offline", &address.to_string()]).expect(0);
    node.cli(&["unwatch", "10.7.0.150"]).expect(0);
    let _pass = lay_anew(&net);
    // The other one is back, so this one would be.
    events.wait_for_state(ip(101), "announcing", SOON);
    assert_eq!((node.state(address), node.state(ip(150))), (None, None));
    assert!(!has_address(&node.host.ns, address));
}

#[test]
fn an_interface_that_was_away_in_another_namespace_gets_program_and_addresses_back() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let events = node.events();
    let elsewhere = Netns::new();
    node.host.ns.ip(&format!("link set eth0 netns {}", elsewhere.path().display()));
    let missing = named(&events, "program_missing");
    assert_eq!(missing.json["reason"], "interface_moved");
    // Nothing of ours works in a namespace that is not ours.
    wait_for("the program to be off", SOON, || {
        let mut show = elsewhere.command("ip");
        show.args(["link", "show", "dev", "eth0"]);
        (!run(show).contains("xdp")).then_some(())
    });
    let status = node.status();
    assert_eq!(status["interfaces"], serde_json::json!([]), "{status}");

    elsewhere.ip(&format!("link set eth0 netns {}", node.host.ns.path().display()));
    named(&events, "interface_returned");
    node.host.ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0", node.host.ip));
    events.wait_for_state(address, "announcing", SOON);
    assert!(has_address(&node.host.ns, address));
    net.wait_until_all_hear_each_other();
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
    assert_eq!(node.status()["interfaces"][0]["program"], true);
}

fn program_of(net: &Net) -> Option<u32> {
    let mut show = net.host(0).ns.command("ip");
    show.args(["-json", "-details", "link", "show", "dev", "eth0"]);
    let links: serde_json::Value = serde_json::from_str(&run(show)).expect("JSON");
    links[0]["xdp"]["prog"]["id"].as_u64().and_then(|id| id.try_into().ok())
}

#[test]
fn a_generic_program_that_was_taken_off_is_put_back() {
    let net = Net::without_peer_programs(2);
    let (node, address) = settled(&net, GENERIC);
    let events = node.events();
    Pins::of(&node).detach_program();
    let missing = named_within(&events, "program_missing", A_BEAT);
    assert_eq!(missing.json["reason"], "program");
    assert_eq!(missing.json["interface"], "eth0");
    named(&events, "program_restored");
    assert!(program_of(&net).is_some());
    assert_eq!(node.state(address).as_deref(), Some("online"));
    let before = node.counter(address, "answered");
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    assert_eq!(node.counter(address, "answered"), before + 1);
}

#[test]
fn a_native_program_that_was_taken_off_is_missed_and_not_put_back() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let events = node.events();
    Pins::of(&node).detach_program();
    let missing = named_within(&events, "program_missing", A_BEAT);
    assert_eq!(missing.json["reason"], "program");
    let status = node.status();
    assert_eq!(status["interfaces"][0]["program"], false, "{status}");
    assert_eq!(program_of(&net), None, "attaching it could take the link down");
    // What is rightly ours is not given up for it: the kernel answers.
    assert_eq!(node.state(address).as_deref(), Some("online"));
    assert!(has_address(&node.host.ns, address));
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
    node.cli(&["explain", &address.to_string()]).expect(0).naming("missing");

    // Unless somebody says so.
    node.cli(&["online", &format!("{address}/24"), "--iface", "eth0", "--attach-now"])
        .expect(0)
        .naming("already");
    assert!(program_of(&net).is_some());
    assert_eq!(node.status()["interfaces"][0]["program"], true);
}

#[test]
fn without_a_program_what_may_not_answer_leaves_the_interface() {
    let net = Net::without_peer_programs(2);
    let (node, address) = settled(&net, NATIVE);
    let events = node.events();
    net.plug(0, false);
    step(&events, address, "suspended", "link_down");
    assert!(has_address(&node.host.ns, address));
    Pins::of(&node).detach_program();
    named_within(&events, "program_missing", A_BEAT);
    wait_for("the address to be gone", SOON, || (!has_address(&node.host.ns, address)).then_some(()));
    assert_ne!(node.state(address).as_deref(), Some("online"));
}

#[test]
fn a_guard_that_was_taken_off_is_put_back() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    let events = node.events();
    Pins::of(&node).detach_guard();
    let missing = events
        .wait_for("the missing guard", Duration::from_secs(15), |event| event["event"] == "program_missing");
    assert_eq!(missing.json["reason"], "guard");
    named(&events, "program_restored");
    // It guards as before.
    net.plug(0, false);
    step(&events, address, "suspended", "link_down");
    node.freeze();
    net.plug(0, true);
    net.wait_until_all_hear_each_other();
    assert_eq!(speak_as(&net, 0, address), []);
}

#[test]
fn somebody_elses_program_in_the_place_of_ours_is_left_alone_until_it_goes() {
    let net = Net::without_peer_programs(2);
    let (node, address) = settled(&net, GENERIC);
    let events = node.events();
    // Both at once, as far as the daemon can see.
    node.freeze();
    Pins::of(&node).detach_program();
    let foreign = XdpPass::attach_generic(&node.host.ns, "eth0");
    node.signal(libc::SIGCONT);
    let missing = named_within(&events, "program_missing", A_BEAT);
    assert_eq!(missing.json["reason"], "program");
    let status = node.status();
    assert_eq!(status["interfaces"][0]["program"], false, "{status}");
    assert_eq!(program_of(&net), Some(foreign.id()));
    assert!(node.log().contains(foreign.name), "the log names what is there:\n{}", node.log());
    drop(foreign);
    named_within(&events, "program_restored", A_BEAT);
    let before = node.counter(address, "answered");
    assert_eq!(answers_to(&net, 0, address).len(), 1);
    assert_eq!(node.counter(address, "answered"), before + 1);
}

#[test]
fn changes_beyond_what_the_netlink_socket_holds_are_read_anew() {
    let net = Net::new(2);
    let (node, address) = settled(&net, NATIVE);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    node.host.ns.ip("link add a7 type veth peer name b7\nlink set a7 up\nlink set b7 up");
    let events = node.events();
    node.freeze();
    // The watch has room for a change of each of 16,384 addresses twice over; a link's take more of it.
    let mut lines: String =
        (0..8_000).map(|n| format!("link set b7 alias number-{n}-{}\n", "x".repeat(200))).collect();
    // What matters comes when there is no more room.
    let new = mac("02:cc:00:00:00:08");
    lines += &format!(
        "address delete {address}/24 dev eth0\naddress add 10.7.0.150/24 dev eth0\nlink set eth0 address {new}\n"
    );
    node.host.ns.ip(&lines);
    node.signal(libc::SIGCONT);
    let mut left = vec!["mac_changed", "address_removed", "address_restored", "address_added"];
    let mut overrun = false;
    // On a busy machine the daemon may stand still for so long that it looks around for that as well.
    events.collect_until("the overrun and all that has changed", Duration::from_secs(30), |event| {
        overrun |= event["event"] == "resync" && event["reason"] == "netlink_overrun";
        left.retain(|name| event["event"] != *name);
        overrun && left.is_empty()
    });
    assert!(has_address(&node.host.ns, address));
    wait_for_neighbour_of(&net, address, new);
    assert_eq!(node.state(ip(150)).as_deref(), Some("watched"));
}

/// Waits until host 1 gets an answer for the address that names this MAC.
fn wait_for_neighbour_of(net: &Net, address: Ipv4Addr, mac: MacAddr) {
    learn(&net.host(1).ns, address, stranger(1));
    wait_for("an answer with the new MAC", SOON, || {
        let tap = net.tap(0);
        tap.send(&bytes(&arpwarden_tests::wire::request(stranger(2), ip(254), address)));
        let seen = quiet(net.host(0), &tap);
        seen.iter().any(|frame| sent_as(frame, address, mac)).then_some(())
    });
}
