//! The configuration file: a start from it, `check`, `reload` and SIGHUP, and groups that go online as a whole.

use std::{fs, net::Ipv4Addr, process::Command};

use arpwarden_common::wire::arp::Form;
use arpwarden_tests::{
    config_file::{ConfigFile, HEAD, address, is_ours, started, started_from},
    flood::{Answers, ask, settled},
    ms,
    netns::{Net, ip},
    node::{Event, Node, finish, program},
    tools::has_address,
    wait_for,
    wire::{Captured, announcement, boot_ns, bytes, probe},
};

/// The file with a list of MACs that may claim on the interface, and no address.
fn write_allowing(file: &ConfigFile, macs: &str) {
    file.write_text(&HEAD.replace("\"eth0\"\n", &format!("\"eth0\"\nallow = [{macs}]\n")));
}

/// Probes for an address on the wire.
fn probes(seen: &[Captured], last: u8) -> usize {
    let probe =
        |frame: &&Captured| frame.is_arp(|arp| arp.form() == Form::Probe && arp.target_ip == ip(last).into());
    seen.iter().filter(probe).count()
}

fn answered_by(node: &Node, last: u8) -> u64 {
    node.counter(ip(last), "answered")
}

#[test]
fn check_names_every_mistake_and_needs_neither_root_nor_a_daemon() {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("awt-check-{}.toml", std::process::id()));
    let checked = |text: &str| {
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("a mode");
        let nobody = "65534";
        let mut command = Command::new("setpriv");
        command.args(["--reuid", nobody, "--regid", nobody, "--clear-groups", "--"]).arg(program());
        finish(command.arg("check").arg(&path), "")
    };
    checked(&(HEAD.to_owned() + &address(100, ""))).expect(0).naming("right");
    let wrong = checked(&(HEAD.to_owned() + &address(100, "defend = \"never\"\nfoo = 1"))).expect(2);
    let wrong = wrong.naming(format!("{}:10: address.defend", path.display()));
    wrong.naming(format!("{}:11: address.foo", path.display()));
    fs::remove_file(&path).expect("removed");
    finish(Command::new(program()).arg("check").arg(&path), "").expect(2);
}

#[test]
fn a_daemon_starts_with_what_its_file_says_and_leaves_the_rest_alone() {
    let net = Net::new(1);
    let watch = address(120, "start = \"watch\"");
    let all = [address(100, ""), address(101, "start = \"off\""), watch];
    let (mut node, file) = started(&net, &all);
    is_ours(&node, 100);
    node.wait_for_state(ip(120), "watched", ms(2_000));
    assert_eq!(node.state(ip(101)), None);
    node.cli(&["reload"]).expect(0).naming("nothing to do");
    let by_hand = node.online(130);

    // What is answered already stays as it is: the next start finds it with the same parameters.
    let tap = net.tap(0);
    node.kill();
    file.write(&[address(100, ""), address(102, "")]);
    node.run(&["--config", file.path()]);
    is_ours(&node, 102);
    is_ours(&node, 100);
    assert!(node.state(by_hand).is_some());
    let seen = node.settled(&tap);
    assert_eq!(probes(&seen, 100), 0, "it was claimed anew");
    assert!(probes(&seen, 102) > 0);

    // What was only in the file of the run before is not.
    node.kill();
    file.write(&[address(102, "")]);
    node.run(&["--config", file.path()]);
    wait_for("the address to be given up", ms(5_000), || node.state(ip(100)).is_none().then_some(()));
    assert!(!has_address(&node.host.ns, ip(100)));
    assert!(node.state(by_hand).is_some());
    is_ours(&node, 102);
}

#[test]
fn reload_adds_removes_and_changes_what_differs_and_touches_nothing_else() {
    let net = Net::new(2);
    let (node, file) = started(&net, &[address(100, ""), address(101, ""), address(102, "")]);
    for last in 100..103 {
        is_ours(&node, last);
    }
    let tap = net.tap(0);
    node.cli(&["offline", &ip(102).to_string()]).expect(0);
    file.write(&[address(100, ""), address(102, ""), address(103, ""), address(104, "start = \"watch\"")]);
    let done = node.cli(&["reload"]).expect(0);
    let done = done.naming("10.7.0.101 on eth0: offline").naming("10.7.0.103 on eth0: online");
    done.naming("10.7.0.104 on eth0: watched");
    is_ours(&node, 103);
    assert_eq!(node.state(ip(101)), None);
    assert!(!has_address(&node.host.ns, ip(101)));
    // Given up by hand, and the file says no more of it than before.
    assert_eq!(node.state(ip(102)), None);

    // A policy changes while the address is answered; a prefix length takes it off the interface.
    let before = answered_by(&node, 100);
    file.write(&[
        address(100, "defend = \"yield\""),
        address(102, ""),
        address(103, "").replace("/24", "/32"),
        address(104, "start = \"watch\""),
    ]);
    node.cli(&["reload"])
        .expect(0)
        .naming("10.7.0.100 on eth0: changed")
        .naming("10.7.0.103 on eth0: online");
    assert_eq!(node.address(ip(103)).expect("managed")["prefix_length"], 32);
    assert_eq!(answered_by(&node, 100), before);
    let seen = node.settled(&tap);
    assert_eq!(probes(&seen, 100), 0, "it was claimed anew");
    assert!(probes(&seen, 103) > 0);
}

#[test]
fn a_broken_file_changes_nothing_and_says_why() {
    let net = Net::new(1);
    let (mut node, file) = started(&net, &[address(100, "")]);
    is_ours(&node, 100);
    file.write(&[address(101, ""), address(102, "defend = 7")]);
    node.cli(&["reload"]).expect(2).naming("address.defend").naming("nothing was changed");
    assert_eq!((node.state(ip(101)), node.state(ip(100)).is_some()), (None, true));
    // Nor does what can't be changed while it runs; the rest of that file counts.
    file.write(&[address(100, ""), address(101, "")]);
    file.write_text(&file.text().replace("native", "generic"));
    node.cli(&["reload"]).expect(1).naming("daemon.attach: not changed").naming("10.7.0.101 on eth0: online");
    assert_eq!(node.status()["interfaces"][0]["attach_mode"], "native");
    node.kill();
    file.write(&[address(101, "start = \"never\"")]);
    node.cli(&["run", "--config", file.path()]).expect(2).naming("address.start");
}

#[test]
fn sighup_reloads_and_without_a_file_changes_nothing() {
    let net = Net::new(1);
    let (node, file) = started(&net, &[address(100, "")]);
    is_ours(&node, 100);
    file.write(&[address(101, "")]);
    node.signal(libc::SIGHUP);
    is_ours(&node, 101);
    wait_for("the other to be given up", ms(5_000), || node.state(ip(100)).is_none().then_some(()));

    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    node.signal(libc::SIGHUP);
    node.cli(&["reload"]).expect(1).naming("--config");
    assert!(node.state(address).is_some());
}

#[test]
fn a_group_goes_online_as_a_whole_or_not_at_all() {
    let net = Net::new(2);
    let off = "group = \"web\"\nstart = \"off\"";
    let members = [100, 101, 102];
    let (node, _file) = started(&net, &members.map(|last| address(last, off)));
    let other = node.online(130);
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let answered = |yes: bool| {
        let asked = members.map(|last| ask(&wire, ip(last)));
        let answers = Answers::among(&settled(&wire, other, &tap));
        if yes { answers.one_each(&asked) } else { answers.none(&asked) }
    };
    // A rival has one of them.
    net.host(1).ns.ip("addr add 10.7.0.102/24 dev eth0");
    let refused = node.cli(&["online", "@web"]);
    let text = format!("{}{}", refused.out, refused.err);
    assert_eq!(refused.code, 3, "{text}");
    let rival = net.host(1).mac.to_string();
    for last in members {
        let line = text.lines().find(|line| line.contains(&format!("{} on eth0", ip(last))));
        assert!(line.is_some_and(|line| line.contains(&rival)), "{last}: {text}");
    }
    for last in [100, 101] {
        wait_for("what was done to be taken back", ms(5_000), || {
            node.state(ip(last)).is_none().then_some(())
        });
        assert!(!has_address(&node.host.ns, ip(last)), "{last}");
    }
    let announced = |last: u8| {
        let address: Ipv4Addr = ip(last);
        node.settled(&tap).iter().any(|frame| !frame.outgoing && frame.says(address, node.host.mac))
    };
    assert!(!members.into_iter().any(announced));

    net.host(1).ns.ip("addr del 10.7.0.102/24 dev eth0");
    node.cli(&["online", "@web"]).expect(0).naming("10.7.0.101 on eth0: online");
    answered(true);
    node.cli(&["online", "@web"]).expect(0).naming("nothing to do");
    node.cli(&["renew", "@web", "--lease", "60"]).expect(0);
    node.cli(&["offline", "@web"]).expect(0);
    answered(false);
    node.cli(&["online", "@nobody"]).expect(1).naming("no addresses");
    node.cli(&["online", "@Web"]).expect(2);
    node.cli(&["online", "10.7.0.140/24"]).expect(2).naming("--iface");
}

#[test]
fn who_is_on_the_list_may_claim_and_is_recorded_and_whoever_is_taken_off_it_is_a_rival() {
    let net = Net::new(2);
    let proxy = net.host(1);
    // It answers for the address, as a router with proxy ARP does.
    proxy.ns.ip("address add 10.7.0.100/24 dev eth0");
    let (node, file) = started(&net, &[]);
    node.try_online(100, &[]).expect(3).naming(proxy.mac);

    write_allowing(&file, &format!("\"{}\"", proxy.mac));
    node.cli(&["reload"]).expect(0).naming("interface eth0: changed");
    let address = node.online(100);
    node.wait_for_state(address, "online", ms(10_000));
    let (events, tap) = (node.events(), net.tap(0));
    events.wait_for_state(address, "online", ms(2_000));
    let claim = || proxy.wire().send(&bytes(&announcement(proxy.mac, address)));
    let allowed = || node.status()["counters"]["allowed"].as_u64().expect("a counter");
    let before = allowed();
    proxy.wire().send(&bytes(&probe(proxy.mac, address)));
    claim();
    wait_for("the claim to be counted", ms(2_000), || (allowed() > before).then_some(()));

    file.write(&[]);
    node.cli(&["reload"]).expect(0);
    let from_ns = boot_ns();
    claim();
    let is_defence = |frame: &Captured| !frame.outgoing && frame.says(address, node.host.mac);
    let is_announcement = |frame: &Captured| frame.is_arp(|arp| arp.form() == Form::Announcement);
    let defence = |frame: &Captured| is_defence(frame) && is_announcement(frame);
    let frames = tap.collect_until("the defence", ms(2_000), defence);
    assert_eq!(frames.iter().filter(|frame| defence(frame)).count(), 1, "against the last claim alone");
    let seen = events.collect_until("the defence", ms(2_000), |event| event["event"] == "defended");
    // The last claim is an event of its own only if the minute of the clock in which the claimant was introduced, when
    // the address was refused to us, is over.
    let while_allowed = |event: &&Event| {
        ["conflict", "probe_seen"].iter().any(|kind| event.json["event"] == *kind)
            && event.json["kernel_time_ns"].as_u64().is_none_or(|at_ns| at_ns < from_ns)
    };
    assert_eq!(seen.iter().filter(while_allowed).count(), 0, "{seen:?}");
}

#[test]
fn an_inspected_interface_sends_ten_frames_a_second_and_how_long_that_takes_is_said_beforehand() {
    let net = Net::new(1);
    let text = HEAD.replace("\"eth0\"\n", "\"eth0\"\npace = \"inspected\"\n");
    let (node, _file) = started_from(&net, &text);
    let tap = net.tap(0);
    let many: String = (100..112).map(|last| format!("{}/24\n", ip(last))).collect();
    let unchecked = ["online", "-", "--iface", "eth0", "--claim", "immediate", "--check", "0"];
    let done = node.cli_with_input(&unchecked, &many).expect(0);
    // 12 announcements, and a probe behind each that has waited long enough.
    done.naming("12 addresses: all announced once in about 2.");
    let frames: Vec<Captured> = tap.drain().into_iter().filter(|frame| !frame.outgoing).collect();
    assert!(frames.len() >= 12, "{frames:?}");
    // When a frame was captured is at most some milliseconds late, and that does not add up.
    let (first, last) = (frames[0].boot_ns, frames[frames.len() - 1].boot_ns);
    let least = (frames.len() as u64 - 1) * 100_000_000;
    assert!(last - first + 20_000_000 >= least, "{} frames in {} ns", frames.len(), last - first);
}
