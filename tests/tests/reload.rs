//! `reload` of what is in use: interfaces, the group of the control socket, groups of addresses; and a daemon that dies
//! while it brings a group online.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use arpwarden_common::{abi::Group, state::State};
use arpwarden_tests::{
    config_file::{ConfigFile, HEAD, address, is_ours, started, started_from},
    flood::{Answers, Asked, Flood, Flooded, Tapped, ask, settled},
    for_all::ForAll,
    kernel::{Groups, Slots, XdpPass, egress_programs, ingress_programs},
    ms,
    netns::{Net, ip},
    node::{Done, Node},
    tools::{addresses_on, has_address, snapshot, traffic_control, xdp_program},
    wait_for,
    wire::Wire,
};

/// An address on the cable of [`second_cable`].
const THERE: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 100);

/// Joins `eth1` of the two hosts by a cable of its own. Host 1 carries a program that passes everything there.
fn second_cable(net: &Net) -> XdpPass {
    let [host, peer] = [&net.host(0).ns, &net.host(1).ns];
    let path = peer.path();
    host.ip(&format!("link add eth1 type veth peer name eth1 netns {}\nlink set eth1 up", path.display()));
    peer.ip("link set eth1 up");
    XdpPass::attach(peer, "eth1")
}

/// The section of `eth1`, attached in this mode.
fn eth1(mode: &str) -> String {
    format!("[[interface]]\nname = \"eth1\"\nattach = \"{mode}\"\n")
}

/// 10.8.0.`last`/24 on `eth1`, and lines with more about it.
fn address_there(last: u8, more: &str) -> String {
    format!("[[address]]\naddress = \"10.8.0.{last}/24\"\ninterface = \"eth1\"\n{more}\n")
}

/// Waits until an address is not managed any more, and asserts that it is not on `eth0` either.
#[track_caller]
fn is_gone(node: &Node, last: u8) {
    wait_for("the address to be given up", ms(5_000), || node.state(ip(last)).is_none().then_some(()));
    assert!(!has_address(&node.host.ns, ip(last)), "{last}");
}

/// The requests of a flood for one of its addresses.
fn to(asked: &[Asked], last: u8) -> impl Iterator<Item = &Asked> {
    asked.iter().filter(move |asked| asked.address == ip(last))
}

/// The line that a command has said of an address of the group.
#[track_caller]
fn line(done: &Done, last: u8) -> String {
    let text = format!("{}{}", done.out, done.err);
    let line = text.lines().find(|line| line.contains(&format!("{} on eth0", ip(last))));
    line.unwrap_or_else(|| panic!("nothing of {}: {text}", ip(last))).to_owned()
}

#[test]
fn an_interface_that_is_new_in_the_file_gets_the_program_and_one_that_has_gone_from_it_keeps_nothing() {
    let net = Net::new(2);
    let _pass = second_cable(&net);
    let (node, file) = started(&net, &[address(100, "")]);
    let ns = &node.host.ns;
    is_ours(&node, 100);
    // Attaching is for a start, for what the file asks for, and for --attach-now.
    node.cli(&["online", "10.8.0.101/24", "--iface", "eth1"]).expect(1).naming("--attach-now");
    let number = ns.index_of("eth1").expect("eth1");
    let pinned = || {
        let links = fs::read_dir(node.pins().join("links")).expect("the pins of links");
        links.filter(|link| {
            let name = link.as_ref().expect("a pin").file_name();
            name.to_string_lossy().ends_with(&format!("-{number}"))
        })
    };
    let programs = || {
        let xdp: Vec<u32> = xdp_program(ns, "eth1").into_iter().collect();
        [xdp, ingress_programs(ns, "eth1"), egress_programs(ns, "eth1")].map(|programs| programs.len())
    };
    let state = || [snapshot(ns), traffic_control(ns, "eth1")];
    let before = state();
    let flood = Flood::start(net.host(1), &[ip(100)], ms(1), [net.tap(0)]);
    for (mode, attached) in [("native", [1, 0, 1]), ("tc", [0, 1, 1])] {
        file.write_text(&[HEAD, &eth1(mode), &address(100, ""), &address_there(100, "")].concat());
        let done = node.cli(&["reload"]).expect(0).naming("interface eth1: added");
        done.naming("10.8.0.100 on eth1: online");
        assert_eq!(programs(), attached, "{mode}");
        assert_eq!(node.status()["interfaces"][1]["attach_mode"], mode);
        assert!(addresses_on(ns, "eth1").contains(&(THERE, 24)), "{mode}");
        let (wire, tap) = (Wire::open(&net.host(1).ns, "eth1"), Wire::open(&net.host(1).ns, "eth1"));
        let asked = ask(&wire, THERE);
        Answers::among(&settled(&wire, THERE, &tap)).one_each([&asked]);

        file.write(&[address(100, "")]);
        let done = node.cli(&["reload"]).expect(0).naming("10.8.0.100 on eth1: offline");
        done.naming("interface eth1: removed");
        assert_eq!(node.state(THERE), None, "{mode}");
        assert_eq!(programs(), [0, 0, 0], "{mode}");
        assert_eq!(pinned().count(), 0, "{mode}");
        assert_eq!(state(), before, "{mode}");
        assert_eq!(node.status()["interfaces"].as_array().map(Vec::len), Some(1), "{mode}");
    }
    let Flooded { asked, taps: [tap] } = flood.stop();
    Answers::among(&tap.settled(&net.host(1).wire(), ip(100))).one_each(&asked);
}

#[test]
fn an_interface_with_something_claimed_by_hand_stays_until_that_has_gone() {
    let net = Net::new(2);
    let _pass = second_cable(&net);
    let (node, file) = started_from(&net, &(HEAD.to_owned() + &eth1("native")));
    node.cli(&["online", "10.8.0.100/24", "--iface", "eth1"]).expect(0);
    file.write(&[]);
    for _ in 0..2 {
        let done = node.cli(&["reload"]).expect(1).naming("interface eth1: not removed");
        done.naming(THERE);
        assert!(xdp_program(&node.host.ns, "eth1").is_some());
        assert_eq!(node.address(THERE).expect("managed")["may_answer"], true);
    }
    node.cli(&["offline", &THERE.to_string()]).expect(0);
    node.cli(&["reload"]).expect(0).naming("interface eth1: removed");
    assert!(xdp_program(&node.host.ns, "eth1").is_none());
}

#[test]
fn an_interface_that_is_not_there_is_not_added_nor_half_of_a_group_that_needs_it() {
    let net = Net::new(2);
    let (node, file) = started(&net, &[address(100, "")]);
    is_ours(&node, 100);
    let web = "group = \"web\"";
    let group = [address(101, web), address_there(100, web)].concat();
    file.write_text(&[HEAD, &eth1("native"), &address(100, ""), &address(102, ""), &group].concat());
    let refused = node.cli(&["reload"]).expect(1).naming("interface eth1: not added");
    assert!(line(&refused, 101).contains("not added"), "{refused:?}");
    let refused = refused.naming("10.8.0.100 on eth1: not added");
    // All else of the file counts.
    refused.naming("10.7.0.102 on eth0: online");
    assert_eq!((node.state(ip(101)), node.state(THERE)), (None, None));
    node.cli(&["reload"]).expect(1).naming("interface eth1: not added");

    let _pass = second_cable(&net);
    let done = wait_for("the daemon to see the interface", ms(5_000), || {
        Some(node.cli(&["reload"])).filter(|done| done.code == 0)
    });
    let done = done.naming("interface eth1: added").naming("10.7.0.101 on eth0: online");
    done.naming("10.8.0.100 on eth1: online");
    is_ours(&node, 101);
    for last in [100, 102] {
        is_ours(&node, last);
    }
}

#[test]
fn the_group_that_may_use_the_socket_changes_at_once_and_one_that_does_not_exist_changes_nothing() {
    let net = Net::new(1);
    let text = |group: &str| HEAD.replace("native\"\n", &format!("native\"\n{group}\n"));
    let [first, second] = ["daemon", "nogroup"].map(|name| {
        let groups = fs::read_to_string("/etc/group").expect("the groups of this host");
        let found = groups.lines().find(|line| line.starts_with(&format!("{name}:")));
        found.and_then(|line| line.split(':').nth(2)).expect("a usual group").to_owned()
    });
    let (node, file) = started_from(&net, &text("socket_group = \"daemon\""));
    let copy = ForAll::new(&node);
    let member = |group: &str, code: i32| {
        let less = ["--reuid", "65534", "--regid", group, "--clear-groups"];
        copy.run(&node, &less, &["status"]).expect(code);
    };
    let socket = || {
        let there = fs::metadata(node.folder().join("control.sock")).expect("a socket");
        (there.uid(), there.gid(), there.permissions().mode() & 0o777)
    };
    let number = |group: &str| group.parse::<u32>().expect("a number");
    member(&first, 0);
    member(&second, 5);

    file.write_text(&text("socket_group = \"nogroup\""));
    node.cli(&["reload"]).expect(0).naming("daemon.socket_group: changed");
    assert_eq!(socket(), (0, number(&second), 0o660));
    member(&first, 5);
    member(&second, 0);

    file.write_text(&(text("socket_group = \"no-such-group\"") + &address(100, "")));
    let refused = node.cli(&["reload"]).expect(1).naming("daemon.socket_group: not changed");
    refused.naming("no-such-group").naming("10.7.0.100 on eth0: online");
    node.cli(&["reload"]).expect(1).naming("daemon.socket_group: not changed");
    assert_eq!(socket(), (0, number(&second), 0o660));
    member(&second, 0);

    file.write(&[address(100, "")]);
    node.cli(&["reload"]).expect(0).naming("daemon.socket_group: changed");
    assert_eq!(socket(), (0, 0, 0o600));
    member(&second, 5);
}

#[test]
fn what_run_was_told_goes_before_a_changed_file_and_reload_says_so() {
    let net = Net::new(1);
    let mut node = Node::new(net.host(0));
    let file = ConfigFile::new(&node);
    let text = HEAD.replace("native\"\n", "native\"\nsocket_group = \"daemon\"\non_exit = \"keep\"\n");
    file.write_text(&text.replace("\"eth0\"\n", "\"eth0\"\npace = \"inspected\"\n"));
    let options = ["--iface", "eth0", "--socket-group", "nogroup", "--on-exit", "release"];
    node.run(&[&["--config", file.path()], &options[..]].concat());
    let group = || fs::metadata(node.folder().join("control.sock")).expect("a socket").gid();
    let before = group();
    file.write_text(&HEAD.replace("[[interface]]\nname = \"eth0\"\n", ""));
    let done = node.cli(&["reload"]).expect(0).naming("interface eth0: changed").naming("--iface");
    done.naming("daemon.socket_group: changed in the file; --socket-group").naming("--on-exit");
    assert_eq!(group(), before);
    // At ten frames a second these take fifteen at least; without that bound far less, however busy the machine is.
    let tap = net.tap(0);
    let many: String = (100..250).map(|last| format!("{}/24\n", ip(last))).collect();
    let unchecked = ["online", "-", "--iface", "eth0", "--claim", "immediate", "--check", "0"];
    node.cli_with_input(&unchecked, &many).expect(0);
    let sent: Vec<u64> =
        tap.drain().iter().filter(|frame| !frame.outgoing).map(|frame| frame.boot_ns).collect();
    let lasted_ns = sent[149] - sent[0];
    assert!(lasted_ns < 10_000_000_000, "{lasted_ns} ns");
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(15_000)), 0);
    assert!(!node.pins().exists(), "released, as run was told");
}

#[test]
fn a_group_that_answers_is_changed_and_those_that_stay_are_answered_on_and_flip_as_a_whole() {
    let net = Net::new(2);
    let web = |last: u8| address(last, "group = \"web\"");
    let (node, file) = started(&net, &[web(100), web(101), web(105)]);
    for last in [100, 101, 105] {
        is_ours(&node, last);
    }
    net.host(1).ns.ip("address add 10.7.0.103/24 dev eth0");
    let all = [100, 102].map(ip);
    let flood = Flood::start(net.host(1), &all, ms(1), [net.tap(0)]);

    // Those that are new go online together or not at all.
    file.write(&[web(100), web(101), web(102), web(103), web(105)]);
    let refused = node.cli(&["reload"]).expect(3);
    for last in [102, 103] {
        let line = line(&refused, last);
        assert!(line.contains(&net.host(1).mac.to_string()), "{line}");
    }
    is_gone(&node, 102);
    let Flooded { asked, taps: [tap] } = flood.stop();
    let answers = Answers::among(&tap.settled(&net.host(1).wire(), ip(100)));
    answers.one_each(to(&asked, 100));
    answers.none(to(&asked, 102));

    let flood = Flood::start(net.host(1), &[ip(100)], ms(1), [net.tap(0)]);
    net.host(1).ns.ip("address delete 10.7.0.103/24 dev eth0");
    node.cli(&["online", "@web"]).expect(0).naming("10.7.0.103 on eth0: online");
    // One goes, one is claimed anew, the policy of one changes, and the lease of all.
    let anew = web(105).replace("/24", "/32");
    let policy = address(102, "group = \"web\"\ndefend = \"once\"");
    let members = [web(100), policy, web(103), anew].concat();
    file.write_text(&[HEAD, "lease = 300\n", &members].concat());
    let done = node.cli(&["reload"]).expect(0).naming("group 'web': lease changed, from the next claim on");
    assert!(line(&done, 101).contains("offline"), "{done:?}");
    assert!(line(&done, 102).contains("it stayed as it was"), "{done:?}");
    assert!(line(&done, 105).contains("offline"), "{done:?}");
    is_gone(&node, 101);
    for last in [100, 102, 103, 105] {
        is_ours(&node, last);
    }
    assert!(node.address(ip(100)).expect("managed")["lease_left"].is_null());
    assert!(node.address(ip(105)).expect("managed")["lease_left"].is_number());
    let Flooded { asked, taps: [tap] } = flood.stop();
    Answers::among(&tap.settled(&net.host(1).wire(), ip(100))).one_each(&asked);

    // One store silences all of it, the new one and the one that was claimed anew as well.
    let members = [100, 102, 103, 105].map(ip);
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    node.freeze();
    let answered = |word: u64| {
        // The first group has the first number.
        Groups::pinned(&node.instance).store(1, word);
        let asked = members.map(|member| ask(&wire, member));
        (asked, Answers::among(&settled(&wire, node.host.ip, &tap)))
    };
    let (asked, answers) = answered(Group::SILENT);
    answers.none(&asked);
    let (asked, answers) = answered(Group::ANSWERS);
    answers.one_each(&asked);
    node.signal(libc::SIGCONT);
    node.cli(&["offline", "@web"]).expect(0);
    for last in [100, 102, 103, 105] {
        is_gone(&node, last);
    }
}

#[test]
fn one_that_joins_a_group_may_answer_no_longer_than_the_others() {
    let net = Net::new(2);
    let web = |last: u8| address(last, "group = \"web\"");
    let text = |addresses: &[String]| HEAD.to_owned() + "lease = 3000\n" + &addresses.concat();
    let (node, file) = started_from(&net, &text(&[web(100)]));
    is_ours(&node, 100);
    node.cli(&["renew", "@web", "--lease", "300"]).expect(0);
    file.write_text(&text(&[web(100), web(101)]));
    node.cli(&["reload"]).expect(0).naming("10.7.0.101 on eth0: online");
    let status = node.status();
    let left = |last: u8| {
        let entries = status["addresses"].as_array().expect("addresses");
        let entry = entries.iter().find(|entry| entry["address"] == ip(last).to_string());
        entry.expect("managed")["lease_left"].as_f64().expect("a lease")
    };
    assert!(left(101) <= left(100), "{} s and {} s", left(101), left(100));
    // Both are past it at once, and both are claimed anew then.
    node.cli(&["renew", "@web", "--lease", "0.5"]).expect(0);
    for last in [100, 101] {
        node.wait_for_state(ip(last), "suspended", ms(5_000));
    }
    node.cli(&["online", "@web"]).expect(0);
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let asked = [100, 101].map(|last| ask(&wire, ip(last)));
    Answers::among(&settled(&wire, node.host.ip, &tap)).one_each(&asked);
}

/// What a tap has seen of the answers of host 0, whose daemon may be dead.
fn answers_of(net: &Net, tap: Tapped) -> Answers {
    Answers::among(&tap.settled(&net.host(1).wire(), net.host(0).ip))
}

#[test]
fn a_daemon_killed_while_it_brings_a_group_online_leaves_none_of_it_and_the_next_one_can() {
    let net = Net::new(2);
    let ns = &net.host(0).ns;
    let off = |last: u8, more: &str| address(last, &format!("group = \"web\"\nstart = \"off\"\n{more}"));
    let members = [100, 101, 102];
    // Two of three have got as far as they get alone, and the one in the middle is still probed for.
    let all = [off(100, ""), off(101, "profile = \"rfc5227\""), off(102, "")];
    let (mut node, file) = started(&net, &all);
    let flood = Flood::start(net.host(1), &members.map(ip), ms(1), [net.tap(0)]);
    let claim = node.begin(&["online", "@web"]);
    wait_for("two to be held", ms(5_000), || {
        [100, 102].iter().all(|last| has_address(ns, ip(*last))).then_some(())
    });
    assert_eq!(node.state(ip(101)).as_deref(), Some("probing"));
    node.kill();
    drop(claim);
    // As if it had been killed when all could be had, and the word of the first said so already.
    Slots::pinned(&node.instance).put_into(ip(100), State::Announcing);
    assert!(has_address(ns, ip(100)), "nobody took it off");
    let without_daemon = flood.sent();
    wait_for("questions while there is no daemon", ms(5_000), || {
        (flood.sent() > without_daemon + members.len()).then_some(())
    });
    node.run(&["--config", file.path()]);
    for last in members {
        is_gone(&node, last);
    }
    let Flooded { asked, taps: [tap] } = flood.stop();
    answers_of(&net, tap).none(&asked);

    node.cli(&["online", "@web"]).expect(0);
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let asked = members.map(|last| ask(&wire, ip(last)));
    Answers::among(&settled(&wire, node.host.ip, &tap)).one_each(&asked);
}

#[test]
fn a_daemon_killed_while_two_join_a_group_goes_on_answering_and_the_next_one_adds_both_or_none() {
    let net = Net::new(2);
    let ns = &net.host(0).ns;
    let web = |last: u8| address(last, "group = \"web\"");
    let (mut node, file) = started(&net, &[web(100)]);
    is_ours(&node, 100);
    let slow = address(103, "group = \"web\"\nprofile = \"rfc5227\"");
    file.write(&[web(100), web(102), slow]);
    let flood = Flood::start(net.host(1), &[100, 102].map(ip), ms(1), [net.tap(0)]);
    let change = node.begin(&["reload"]);
    wait_for("one to be held", ms(5_000), || has_address(ns, ip(102)).then_some(()));
    assert_eq!(node.state(ip(103)).as_deref(), Some("probing"));
    node.kill();
    drop(change);
    net.host(1).ns.ip("address add 10.7.0.103/24 dev eth0");
    node.run(&["--config", file.path()]);
    node.wait_for_state(ip(103), "refused", ms(10_000));
    is_gone(&node, 102);
    let Flooded { asked, taps: [tap] } = flood.stop();
    let answers = answers_of(&net, tap);
    answers.one_each(to(&asked, 100));
    answers.none(to(&asked, 102));

    net.host(1).ns.ip("address delete 10.7.0.103/24 dev eth0");
    node.cli(&["online", "@web"]).expect(0);
    for last in [100, 102, 103] {
        is_ours(&node, last);
    }
}
