//! The daemon is killed, ends and keeps everything, or is started anew: what may be answered goes on being answered,
//! nothing else is, and the next start goes on where the last one stopped.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use arpwarden_common::{abi::ABI_VERSION, names, net::MacAddr, state::State, wire::arp::Form};
use arpwarden_tests::{
    flood::{Answers, Asked, Flood, Flooded, ask, settled},
    kernel::{Slots, claim_other_layout, egress_programs, ingress_programs, replace_pinned_map},
    ms,
    netns::{Host, Net, ip, stranger},
    node::{Node, finish, program},
    tools::{
        addresses, arping, has_address, learn, snapshot, traffic_control, wait_for_neighbour, xdp_program,
    },
    wait_for,
    wire::{Captured, announcement, boot_ns, bytes},
};

const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];
const TC: &[&str] = &["--iface", "eth0", "--attach", "tc"];
const KEEP: &[&str] = &["--iface", "eth0", "--attach", "native", "--on-exit", "keep"];

/// The program's clock may be one jiffy late.
const SLACK_NS: u64 = 10_000_000;

fn claims(host: &Host, claimant: MacAddr, address: Ipv4Addr) {
    host.wire().send(&bytes(&announcement(claimant, address)));
}

/// Brings an address online so that its plan is over soon.
fn settled_online(node: &Node, last: u8, arguments: &[&str]) -> Ipv4Addr {
    let way = ["--claim", "immediate", "--profile", "rfc5227"];
    let address = node.online_with(last, &[&way, arguments].concat());
    node.wait_for_state(address, "online", ms(10_000));
    address
}

/// Asks for an address, and says whether the node answers.
fn answers(net: &Net, node: &Node, address: Ipv4Addr) -> bool {
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let asked = ask(&wire, address);
    !Answers::among(&settled(&wire, node.host.ip, &tap)).to(&asked).is_empty()
}

fn program_of(host: &Host) -> u32 {
    xdp_program(&host.ns, "eth0").expect("the program is on eth0")
}

/// All events so far of one kind, about one address.
fn past_events(node: &Node, kind: &str, address: Ipv4Addr) -> Vec<serde_json::Value> {
    let past = node.cli(&["events", "--json"]).expect(0).out;
    let events = past.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let about = address.to_string();
    events
        .filter(|event: &serde_json::Value| event["event"] == kind && event["address"] == about.as_str())
        .collect()
}

#[test]
fn killed_in_every_state_what_may_be_answered_is_and_nothing_else_and_the_next_start_goes_on() {
    killed_in_every_state(NATIVE);
}

#[test]
fn so_it_does_in_tc_mode() {
    killed_in_every_state(TC);
}

fn killed_in_every_state(arguments: &[&str]) {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start_with(host, arguments);
    let watched = ip(150);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    net.host(1).ns.ip("address add 10.7.0.110/24 dev eth0");
    node.try_online(110, &[]).expect(3);
    let refused = ip(110);
    let lost = node.online_with(111, &["--defend", "yield"]);
    claims(net.host(1), stranger(1), lost);
    node.wait_for_state(lost, "lost", ms(5_000));
    let suspended = node.online_with(112, &["--lease", "0.3"]);
    node.wait_for_state(suspended, "suspended", ms(5_000));
    let online = settled_online(&node, 113, &[]);
    let announcing = node.online(114);
    let contested = node.online(115);
    let yielding = node.online(116);
    let probing = ip(117);
    let claim = node.begin(&["online", "10.7.0.117/24", "--iface", "eth0", "--profile", "rfc5227"]);
    wait_for("the claim", ms(5_000), || (node.state(probing).as_deref() == Some("probing")).then_some(()));

    let all = [watched, refused, lost, suspended, online, announcing, contested, yielding, probing];
    let flood = Flood::start(net.host(1), &all, ms(1), [net.tap(0)]);
    node.kill();
    drop(claim);
    // As if it had been killed in these two.
    let slots = Slots::pinned(&node.instance);
    slots.put_into(contested, State::Contested);
    slots.put_into(yielding, State::Yielding);
    let yielding_ns = boot_ns();
    drop(slots);
    node.run(arguments);
    wait_for("the address to be given up", ms(5_000), || {
        (node.state(yielding).is_none() && !has_address(&host.ns, yielding)).then_some(())
    });
    let [state_of_online, state_of_announcing, state_of_contested, state_of_probing] =
        [online, announcing, contested, probing].map(|address| node.state(address).expect("managed"));
    let Flooded { asked, taps: [tap] } = flood.stop();

    assert_eq!(state_of_online, "online");
    assert!(["announcing", "online"].contains(&state_of_announcing.as_str()), "{state_of_announcing}");
    assert_ne!(state_of_contested, "lost");
    assert_eq!(state_of_probing, "probing");
    for (address, state) in
        [(watched, "watched"), (refused, "refused"), (lost, "lost"), (suspended, "suspended")]
    {
        assert_eq!(node.state(address).as_deref(), Some(state), "{address}");
        assert!(!has_address(&host.ns, address), "{address}");
    }
    let given = Answers::among(&tap.settled(&net.host(1).wire(), host.ip));
    let to = |address| asked.iter().filter(move |asked: &&Asked| asked.address == address);
    for address in [online, announcing, contested] {
        given.one_each(to(address));
        assert!(has_address(&host.ns, address), "{address}");
    }
    for address in [watched, refused, lost, suspended, probing] {
        given.none(to(address));
    }
    given.none(to(yielding).filter(|asked| asked.sent_ns > yielding_ns));
    for address in all {
        assert_eq!(past_events(&node, "adopted", address).len(), 1, "{address}");
    }
    // The half-done claim is done.
    node.wait_for_state(probing, "announcing", Duration::from_secs(15));
    assert!(has_address(&host.ns, probing));
    assert!(answers(&net, &node, probing));
}

#[test]
fn a_restart_under_a_flood_swaps_the_program_and_loses_no_answer() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = node.online(100);
    let mut program = program_of(node.host);
    let flood = Flood::start(net.host(1), &[address], Duration::from_micros(200), [net.tap(0)]);
    let before = node.counter(address, "answered");
    for _ in 0..3 {
        node.kill();
        node.run(NATIVE);
        let swapped = program_of(node.host);
        assert_ne!(swapped, program, "the same program goes on: {}", node.log());
        program = swapped;
    }
    let Flooded { asked, taps: [tap] } = flood.stop();
    let given = Answers::among(&tap.settled(&net.host(1).wire(), node.host.ip));
    given.one_each(&asked);
    assert!(asked.len() > 1_000, "that was no flood: {} requests", asked.len());
    // The counters went on, too; the first of the flood were before they were read.
    let counted = node.counter(address, "answered") - before;
    assert!(counted <= asked.len() as u64 && counted + 1_000 > asked.len() as u64, "{counted}");
    assert_eq!(egress_programs(&node.host.ns, "eth0").len(), 1);
}

#[test]
fn keep_leaves_everything_answered_and_the_next_start_goes_on() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start_with(host, KEEP);
    let address = settled_online(&node, 100, &[]);
    let (before, program) = (snapshot(&host.ns), program_of(host));
    let flood = Flood::start(net.host(1), &[address], ms(1), [net.tap(0)]);
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0);
    assert_eq!(snapshot(&host.ns), before);
    assert_eq!(program_of(host), program);
    assert_eq!(egress_programs(&host.ns, "eth0").len(), 1);
    node.cli(&["status"]).expect(4);
    node.run(KEEP);
    let Flooded { asked, taps: [tap] } = flood.stop();
    Answers::among(&tap.settled(&net.host(1).wire(), host.ip)).one_each(&asked);
    assert_ne!(program_of(host), program);
    assert_eq!(node.state(address).as_deref(), Some("online"));
    assert_eq!(past_events(&node, "adopted", address).len(), 1);
    // It was announced by the run before; nothing has happened since.
    let tap = net.tap(0);
    let spoken = node.settled(&tap);
    assert!(!spoken.iter().any(|frame| !frame.outgoing && frame.says(address, host.mac)), "{spoken:#?}");
}

#[test]
fn keep_ends_a_claim_under_way_and_the_next_start_resumes_it() {
    let net = Net::new(2);
    let mut node = Node::start_with(net.host(0), KEEP);
    let _claim = node.begin(&["online", "10.7.0.100/24", "--iface", "eth0", "--profile", "rfc5227"]);
    wait_for("the claim", ms(5_000), || (node.state(ip(100)).as_deref() == Some("probing")).then_some(()));
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0);
    assert!(!has_address(&node.host.ns, ip(100)));
    node.run(KEEP);
    node.wait_for_state(ip(100), "announcing", Duration::from_secs(15));
    assert!(has_address(&node.host.ns, ip(100)));
}

#[test]
fn how_an_address_was_claimed_outlives_the_daemon() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let how = ["--claim", "immediate", "--check", "30", "--defend", "once", "--on-removed", "report"];
    node.online_with(100, &how);
    node.kill();
    node.run(NATIVE);
    let tap = net.tap(0);
    let again = node.try_online(100, &how).expect(0);
    assert_ne!(again.out + &again.err, "", "it says so");
    let seen = node.settled(&tap);
    let probed = seen.iter().any(|frame| !frame.outgoing && frame.is_arp(|arp| arp.form() == Form::Probe));
    assert!(!probed, "it was claimed again");
    node.try_online(100, &["--claim", "immediate", "--check", "30", "--defend", "hold"])
        .expect(1)
        .naming("once")
        .naming("hold");
    assert_eq!(node.address(ip(100)).expect("managed")["prefix_length"], 24);
    // It goes as one that was brought up by this run.
    node.cli(&["offline", "10.7.0.100"]).expect(0);
    assert!(!has_address(&node.host.ns, ip(100)));
    assert!(!answers(&net, &node, ip(100)));
}

#[test]
fn a_claim_killed_at_any_moment_is_finished_or_was_never_begun() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start(host);
    // The whole claim takes some 250 ms.
    for moment in [0, 20, 60, 120, 180, 220, 260] {
        let claim = node.begin(&["online", "10.7.0.100/24", "--iface", "eth0"]);
        std::thread::sleep(ms(moment));
        node.kill();
        drop(claim);
        let on_interface = has_address(&host.ns, ip(100));
        let answering = answers(&net, &node, ip(100));
        node.run(NATIVE);
        if node.state(ip(100)).is_none() {
            assert!(!on_interface && !answering, "killed after {moment} ms");
            continue;
        }
        node.wait_for_state(ip(100), "announcing", ms(5_000));
        assert!(has_address(&host.ns, ip(100)), "killed after {moment} ms");
        assert!(answers(&net, &node, ip(100)), "killed after {moment} ms");
        node.cli(&["offline", "10.7.0.100"]).expect(0);
        assert!(!has_address(&host.ns, ip(100)), "killed after {moment} ms");
        assert!(!answers(&net, &node, ip(100)), "killed after {moment} ms");
    }
    assert_eq!(addresses(&host.ns).len(), 1);
}

#[test]
fn a_daemon_killed_while_it_gives_up_many_addresses_is_silent_and_the_next_one_finishes() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start(host);
    let many: Vec<Ipv4Addr> = (0..600_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            Ipv4Addr::new(10, 8, high, low)
        })
        .collect();
    let lines: String = many.iter().map(|address| format!("{address}/32\n")).collect();
    node.cli_with_input(&["online", "-", "--iface", "eth0", "--claim", "immediate"], &lines).expect(0);
    let slots = Slots::pinned(&node.instance);
    let numbers: Vec<usize> = many.iter().map(|address| slots.number_of(*address)).collect();
    let command = node.begin(&["offline", "--all"]);
    wait_for("the first address to be given up", ms(10_000), || {
        numbers.iter().any(|number| slots.state_at(*number) == Some(State::Yielding)).then_some(())
    });
    node.kill();
    drop(command);
    let silent: Vec<Ipv4Addr> = many
        .iter()
        .zip(&numbers)
        .filter(|(_, number)| slots.state_at(**number) == Some(State::Yielding))
        .map(|(address, _)| *address)
        .collect();
    let left = addresses(&host.ns);
    let both = silent.iter().filter(|address| left.iter().any(|(there, _)| there == *address)).count();
    println!("{} of {} were silent, {both} of them still on the interface", silent.len(), many.len());
    let (wire, tap) = (net.host(1).wire(), net.tap(0));
    let asked: Vec<Asked> = silent.iter().map(|address| ask(&wire, *address)).collect();
    if !asked.is_empty() {
        Answers::among(&settled(&wire, host.ip, &tap)).none(&asked);
    }
    node.run(NATIVE);
    let may_answer = |entry: &serde_json::Value| entry["may_answer"] == true;
    wait_for("the rest to be given up", ms(10_000), || {
        let status = node.status();
        let entries = status["addresses"].as_array().expect("addresses");
        let settled = entries.iter().all(may_answer);
        (settled && addresses(&host.ns).len() == entries.len() + 1).then_some(())
    });
    for address in &silent {
        assert!(node.state(address).is_none(), "{address} was being given up");
        if node.status()["addresses"].as_array().is_some_and(Vec::is_empty) {
            break;
        }
    }
    node.cli(&["offline", "--all"]).expect(0);
    assert_eq!(addresses(&host.ns).len(), 1);
}

#[test]
fn what_others_claimed_while_the_daemon_was_away_is_told_once() {
    const CLAIMANTS: u16 = 80;
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = settled_online(&node, 100, &[]);
    node.kill();
    let tap = net.tap(0);
    // More than are reported one by one in a minute.
    for claimant in 1..=CLAIMANTS {
        claims(net.host(1), stranger(claimant), address);
    }
    // The program defends by itself for as long as the last heartbeat counts.
    tap.wait_for("the defence", ms(2_000), |frame| !frame.outgoing && frame.says(address, node.host.mac));
    settled(&net.host(1).wire(), node.host.ip, &tap);
    node.run(NATIVE);
    assert_eq!(node.counter(address, "claims"), u64::from(CLAIMANTS));
    let adopted = past_events(&node, "adopted", address);
    assert_eq!(adopted.len(), 1, "{adopted:?}");
    let untold = adopted[0]["count"].as_u64().expect("a count");
    // What the program had room for is read after the start.
    let told = |node: &Node<'_>| -> u64 {
        let events = ["conflict", "claimant_flood"].map(|kind| past_events(node, kind, address));
        events.iter().flatten().map(|event| event["count"].as_u64().expect("a count")).sum()
    };
    let all = u64::from(CLAIMANTS);
    wait_for("all claims to be told", ms(5_000), || (untold + told(&node) >= all).then_some(()));
    assert_eq!(untold + told(&node), all, "{adopted:?}");
    assert_eq!(node.address(address).expect("managed")["may_answer"], true);
    assert!(answers(&net, &node, address));
    // And not again at the next start.
    node.kill();
    node.run(NATIVE);
    let adopted = past_events(&node, "adopted", address);
    assert_eq!(adopted[0]["count"], 0, "{adopted:?}");
    assert_eq!(told(&node), 0);
}

fn given_up_while_dead(defend: &str, conflicts: u16) {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = settled_online(&node, 100, &["--defend", defend]);
    let other = settled_online(&node, 101, &[]);
    node.kill();
    let slots = Slots::pinned(&node.instance);
    let tap = net.tap(0);
    for claimant in 1..=conflicts {
        assert_eq!(slots.fallen(address), 0);
        claims(net.host(1), stranger(claimant), address);
        if claimant < conflicts {
            let defence = |frame: &Captured| !frame.outgoing && frame.says(address, node.host.mac);
            tap.wait_for("the defence", ms(2_000), defence);
        }
    }
    wait_for("the program to give up", ms(2_000), || (slots.fallen(address) != 0).then_some(()));
    assert!(has_address(&node.host.ns, address), "nobody is there to take it off");
    assert!(!answers(&net, &node, address));
    assert!(answers(&net, &node, other));
    node.run(NATIVE);
    assert_eq!(node.state(address).as_deref(), Some("lost"));
    wait_for("the address to be gone", ms(5_000), || (!has_address(&node.host.ns, address)).then_some(()));
    let entry = node.address(address).expect("a lost address stays listed");
    assert_eq!(entry["may_answer"], false);
    assert_eq!(entry["owner"], stranger(conflicts).to_string());
    assert!(!answers(&net, &node, address));
    // A new claim is another generation, of which the program has given up nothing.
    node.online_with(100, &["--defend", defend]);
    assert!(answers(&net, &node, address));
}

#[test]
fn yield_gives_up_in_the_kernel_while_the_daemon_is_dead_and_the_next_one_finds_it_lost() {
    given_up_while_dead("yield", 1);
}

#[test]
fn once_gives_up_in_the_kernel_while_the_daemon_is_dead_and_the_next_one_finds_it_lost() {
    given_up_while_dead("once", 2);
}

/// Files of the pins with their inodes, to see that nothing was touched.
fn pinned_files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind of file");
            if kind.is_dir() {
                folders.push(entry.path());
            } else {
                files.push((entry.path(), entry.metadata().expect("a file").ino()));
            }
        }
    }
    files.sort();
    files
}

/// Asserts that `run` is refused with these words and leaves everything as it is and answered.
fn start_is_refused(net: &Net, node: &Node, address: Ipv4Addr, words: &[&str]) {
    let host = node.host;
    let before = (snapshot(&host.ns), program_of(host), pinned_files(&node.pins()));
    let flood = Flood::start(net.host(1), &[address], ms(1), [net.tap(0)]);
    // A start that is refused may take less than a millisecond.
    wait_for("the first request", ms(2_000), || (flood.sent() > 0).then_some(()));
    let mut done = node.cli(&[&["run"], NATIVE].concat()).expect(1);
    for word in words {
        done = done.naming(word);
    }
    let Flooded { asked, taps: [tap] } = flood.stop();
    Answers::among(&tap.settled(&net.host(1).wire(), host.ip)).one_each(&asked);
    assert_eq!((snapshot(&host.ns), program_of(host), pinned_files(&node.pins())), before);
    assert!(!node.folder().join("control.sock").exists() || node.cli(&["status"]).code == 4);
}

#[test]
fn pins_of_another_layout_are_refused_in_words_and_nothing_changes() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = node.online(100);
    node.kill();
    claim_other_layout(&node.instance, 99);
    start_is_refused(&net, &node, address, &["layout", "99", "unload"]);
    claim_other_layout(&node.instance, ABI_VERSION.into());
    node.run(NATIVE);
    assert_eq!(past_events(&node, "adopted", address).len(), 1);
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_by_name_and_unload_takes_it_all_off() {
    let net = Net::new(2);
    let host = net.host(0);
    let before = (snapshot(&host.ns), traffic_control(&host.ns, "eth0"));
    let mut node = Node::start(host);
    let address = node.online(100);
    node.kill();
    replace_pinned_map(&node.pins().join("maps").join(names::CLAIMS), 64, 16_384);
    start_is_refused(&net, &node, address, &[names::CLAIMS, "unload"]);
    node.cli(&["unload"]).expect(0).naming("10.7.0.100");
    nothing_is_left(&node, &before);
}

#[test]
fn maps_that_were_left_keep_the_room_that_they_have_until_they_are_unloaded() {
    let net = Net::new(2);
    let with_room_for = |n| [NATIVE, &["--capacity", n]].concat();
    let mut node = Node::start_with(net.host(0), &with_room_for("2"));
    let address = node.online(100);
    node.kill();
    node.run(&with_room_for("3"));
    let said = || node.log().contains("the maps of the earlier run keep their capacity").then_some(());
    wait_for("the word of the log", ms(2_000), said);
    assert!(answers(&net, &node, address));
    node.online(101);
    node.try_online(102, &[]).expect(1).naming("all 2 places are taken").naming("capacity");
    node.cli(&["unload"]).expect(0);
    node.wait_for_end(ms(5_000));
    node.run(&with_room_for("3"));
    for last in 100..103 {
        node.online(last);
    }
    node.try_online(103, &[]).expect(1).naming("all 3 places are taken");
}

#[test]
fn a_missing_map_among_the_pins_is_refused_by_name() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = node.online(100);
    node.kill();
    fs::remove_file(node.pins().join("maps").join(names::INDEX)).expect("a pinned map");
    start_is_refused(&net, &node, address, &[names::INDEX, "unload"]);
}

#[test]
fn pins_of_another_network_namespace_are_refused_and_left() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = node.online(100);
    node.kill();
    let state = node.folder().join("state");
    let before = (pinned_files(&node.pins()), fs::read_to_string(&state).expect("a state file"));
    let there = |arguments: &[&str]| {
        let mut command = net.host(1).ns.command(program());
        command.args(["--instance", &node.instance]).args(arguments);
        finish(&mut command, "").expect(1).naming("network namespace");
    };
    let refused = || {
        there(&[&["run"], NATIVE].concat());
        there(&["unload"]);
        assert_eq!(pinned_files(&node.pins()), before.0);
        assert_eq!(xdp_program(&net.host(1).ns, "eth0"), None);
        assert!(egress_programs(&net.host(1).ns, "eth0").is_empty());
        assert!(answers(&net, &node, address));
    };
    // Nobody is in that namespace, but a program answers there.
    refused();
    assert_eq!(fs::read_to_string(&state).expect("a state file"), before.1);
    // Without the state file the pins alone say so.
    let aside = node.folder().join("aside");
    fs::rename(&state, &aside).expect("a state file");
    refused();
    fs::rename(&aside, &state).expect("a state file");
    node.run(NATIVE);
    assert_eq!(past_events(&node, "adopted", address).len(), 1);
}

#[test]
fn a_second_daemon_is_refused_and_disturbs_nothing() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let program = program_of(node.host);
    let flood = Flood::start(net.host(1), &[address], ms(1), [net.tap(0)]);
    node.cli(&[&["run"], NATIVE].concat()).expect(1);
    // Nor may one of another name take the interface.
    let other = Node::new(node.host);
    other.cli(&[&["run"], NATIVE].concat()).expect(1).naming("eth0");
    assert!(!other.pins().exists(), "the refused daemon has left pins");
    let Flooded { asked, taps: [tap] } = flood.stop();
    Answers::among(&tap.settled(&net.host(1).wire(), node.host.ip)).one_each(&asked);
    assert_eq!(program_of(node.host), program);
    assert_eq!(egress_programs(&node.host.ns, "eth0").len(), 1);
    assert_eq!(node.address(address).expect("managed")["may_answer"], true);
}

#[test]
fn an_interface_that_went_while_the_daemon_was_away_is_reported_and_the_rest_goes_on() {
    let net = Net::new(2);
    let host = net.host(0);
    host.ns.ip("link add a7 type veth peer name b7\nlink set a7 up\nlink set b7 up");
    let both = ["--iface", "eth0", "--iface", "a7", "--attach", "generic"];
    let mut node = Node::start_with(host, &both);
    let address = node.online(100);
    node.cli(&["online", "10.7.9.100/32", "--iface", "a7"]).expect(0);
    let index = host.ns.index_of("a7").expect("a7");
    node.kill();
    host.ns.ip("link delete a7");
    node.run(&["--iface", "eth0", "--attach", "generic"]);
    assert!(answers(&net, &node, address));
    assert!(node.address("10.7.9.100").is_none_or(|entry| entry["may_answer"] == false));
    assert!(!node.pins().join("links").join(format!("xdp-{index}")).exists());
    assert!(!node.pins().join("links").join(format!("guard-{index}")).exists());
    let past = node.cli(&["events", "--json"]).expect(0).out;
    assert!(past.lines().any(|line| line.contains("interface_gone")), "not a word of it:\n{past}");
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0);
}

#[test]
fn a_mac_changed_while_the_daemon_was_away_is_answered_with_and_announced() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = settled_online(&node, 100, &[]);
    let client = net.host(1);
    learn(&client.ns, address, node.host.mac);
    node.kill();
    let new = MacAddr::new([0x02, 0xcc, 0, 0, 0, 1]);
    node.host.ns.ip(&format!("link set eth0 address {new}"));
    node.run(NATIVE);
    wait_for_neighbour(&client.ns, address, new, ms(3_000));
    let (wire, tap) = (client.wire(), net.tap(0));
    let asked = ask(&wire, address);
    let seen = settled(&wire, node.host.ip, &tap);
    Answers::among(&seen).one_each([&asked]);
    assert!(seen.iter().any(|frame| !frame.outgoing && frame.says(address, new)));
    assert_eq!(node.counter(address, "conflicts"), 0);
}

#[test]
fn an_address_removed_by_hand_while_the_daemon_was_away_is_dealt_with_as_told() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start(host);
    let restored = node.online_with(100, &["--on-removed", "restore"]);
    let given_up = node.online_with(101, &["--on-removed", "give-up"]);
    let reported = node.online_with(102, &["--on-removed", "report"]);
    node.kill();
    for address in [restored, given_up, reported] {
        host.ns.ip(&format!("address delete {address}/24 dev eth0"));
    }
    node.run(NATIVE);
    wait_for("the address to be back", ms(5_000), || has_address(&host.ns, restored).then_some(()));
    node.wait_for_state(given_up, "lost", ms(5_000));
    for address in [restored, given_up, reported] {
        assert_eq!(past_events(&node, "address_removed", address).len(), 1, "{address}");
    }
    assert_eq!(past_events(&node, "address_restored", restored).len(), 1);
    assert!(!has_address(&host.ns, given_up) && !has_address(&host.ns, reported));
    assert!(answers(&net, &node, restored));
    assert!(!answers(&net, &node, given_up));
    assert!(answers(&net, &node, reported));
}

#[test]
fn an_address_added_by_hand_while_the_daemon_was_away_is_told_and_not_answered() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start(host);
    let lost = node.online_with(100, &["--defend", "yield"]);
    claims(net.host(1), stranger(1), lost);
    node.wait_for_state(lost, "lost", ms(5_000));
    let watched = ip(150);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    node.kill();
    for address in [lost, watched] {
        host.ns.ip(&format!("address add {address}/24 dev eth0"));
    }
    node.run(NATIVE);
    for address in [lost, watched] {
        assert_eq!(past_events(&node, "address_added", address).len(), 1, "{address}");
        assert!(has_address(&host.ns, address), "it is not ours to take off");
    }
    assert!(!answers(&net, &node, lost));
    assert!(answers(&net, &node, watched), "a watched address is never shielded");
}

#[test]
fn a_link_that_went_down_while_the_daemon_was_away_suspends_until_it_is_up() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = settled_online(&node, 100, &[]);
    node.kill();
    net.plug(0, false);
    node.run(NATIVE);
    node.wait_for_state(address, "suspended", ms(3_000));
    let entry = node.address(address).expect("managed");
    assert_eq!(entry["may_answer"], false);
    assert!(has_address(&node.host.ns, address), "a link that is down takes nothing off");
    let events = node.events();
    net.plug(0, true);
    events.wait_for_state(address, "probing", ms(5_000));
    events.wait_for_state(address, "announcing", ms(5_000));
    wait_for("an answer", ms(5_000), || {
        (arping(net.host(1), &["-c", "1", "-w", "1"], address).code == 0).then_some(())
    });
}

#[test]
fn without_its_state_file_an_address_goes_on_being_answered() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = settled_online(&node, 100, &[]);
    node.kill();
    fs::remove_file(node.folder().join("state")).expect("a state file");
    let flood = Flood::start(net.host(1), &[address], ms(1), [net.tap(0)]);
    node.run(NATIVE);
    assert_eq!(node.address(address).expect("managed")["may_answer"], true);
    let Flooded { asked, taps: [tap] } = flood.stop();
    Answers::among(&tap.settled(&net.host(1).wire(), node.host.ip)).one_each(&asked);
    node.cli(&["offline", "10.7.0.100"]).expect(0);
    assert!(!answers(&net, &node, address), "offline is silent, whoever put the address there");
}

#[test]
fn a_damaged_state_file_is_refused_by_name_and_nothing_changes() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = node.online(100);
    node.kill();
    let state = node.folder().join("state");
    let text = fs::read_to_string(&state).expect("a state file");
    let name = state.display().to_string();
    for damaged in
        [format!("{text}nonsense\n"), "\0\0\0\n".to_owned(), text.replacen("version", "virsion", 1)]
    {
        fs::write(&state, damaged).expect("written");
        start_is_refused(&net, &node, address, &[&name]);
    }
    // A last line that was not written whole is what a crash leaves, and no damage.
    fs::write(&state, format!("{text}{{\"add\":{{\"index\"")).expect("written");
    node.run(NATIVE);
    assert_eq!(node.address(address).expect("managed")["may_answer"], true);
    node.cli(&["offline", "--all"]).expect(0);
    assert_eq!(addresses(&node.host.ns).len(), 1);
}

/// Gives this thread, and what it starts, a mount namespace in which the folder is a file system of a few pages.
fn mount_tiny(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()).expect("a path");
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: all strings end in a zero byte and live during the calls; null where mount(2) reads nothing.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "{}", std::io::Error::last_os_error());
        let done = libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null());
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        let size = c"size=32k,mode=755".as_ptr().cast();
        let done = libc::mount(c"tiny".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, size);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn with_a_full_disk_nothing_new_is_claimed_and_what_there_is_goes_on() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::new(host);
    mount_tiny(&node.folder());
    node.run(NATIVE);
    let (first, second) = (node.online(100), node.online(101));
    let filler = node.folder().join("filler");
    // As much as fits, and then the rest of the state file's last page.
    drop(fs::write(&filler, vec![0; 1 << 20]));
    let refused = (110..250).map(|last| (last, node.try_online(last, &["--claim", "immediate"])));
    let (last, done) =
        refused.into_iter().find(|(_, done)| done.code != 0).expect("the disk is full at some time");
    done.expect(1).naming("No space left").naming("state");
    assert!(!has_address(&host.ns, ip(last)));
    assert!(!answers(&net, &node, ip(last)));
    assert!(answers(&net, &node, first) && answers(&net, &node, second));
    // Giving up needs no disk.
    node.cli(&["offline", "10.7.0.100"]).expect(0);
    assert!(!has_address(&host.ns, first));
    assert!(!answers(&net, &node, first));
    // Nor does going on after a crash, or at least it says so and disturbs nothing.
    node.kill();
    let start = node.cli(&["status"]);
    assert_eq!(start.code, 4);
    assert!(answers(&net, &node, second));
    fs::remove_file(&filler).expect("the filler");
    node.run(NATIVE);
    assert!(answers(&net, &node, second));
    node.online(last);
    node.cli(&["unload"]).expect(0);
    assert_eq!(addresses(&host.ns).len(), 1);
}

#[test]
fn after_a_reboot_nothing_is_assumed() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start(host);
    let address = node.online(100);
    node.kill();
    // What a boot takes away: programs, maps, configured addresses. What may be left: a file.
    fs::remove_dir_all(node.pins()).expect("pins");
    wait_for("the program to go with its pins", ms(5_000), || {
        xdp_program(&host.ns, "eth0").is_none().then_some(())
    });
    host.ns.ip(&format!("address delete {address}/24 dev eth0"));
    let state = node.folder().join("state");
    let text = fs::read_to_string(&state).expect("a state file");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the kernel's");
    let other = text.replace(boot_id.trim(), "00000000-0000-4000-8000-000000000000");
    assert_ne!(other, text, "the state file names the boot");
    fs::write(&state, other).expect("written");
    // Whoever configures the host by other means has put this one there, on purpose.
    host.ns.ip(&format!("address add {address}/24 dev eth0"));
    node.run(NATIVE);
    assert!(node.address(address).is_none());
    assert!(past_events(&node, "adopted", address).is_empty());
    assert!(has_address(&host.ns, address), "it is not ours to take off");
    node.try_online(100, &[]).expect(3).naming("--adopt");
}

/// Asserts that nothing of the instance is left: by rtnetlink, tc, bpf(2), and in the file systems.
fn nothing_is_left(node: &Node, before: &(String, String)) {
    let ns = &node.host.ns;
    assert_eq!(xdp_program(ns, "eth0"), None);
    assert!(egress_programs(ns, "eth0").is_empty() && ingress_programs(ns, "eth0").is_empty());
    assert_eq!(&(snapshot(ns), traffic_control(ns, "eth0")), before);
    assert!(!node.pins().exists(), "left: {:?}", pinned_files(&node.pins()));
    assert!(!node.folder().exists(), "left: {:?}", pinned_files(&node.folder()));
}

fn unload_after(arguments: &[&str], end: impl Fn(&mut Node), words: &[&str]) {
    let net = Net::new(2);
    let host = net.host(0);
    // Somebody else's, which stays.
    host.ns.ip("address add 10.9.0.1/16 dev eth0");
    let before = (snapshot(&host.ns), traffic_control(&host.ns, "eth0"));
    let mut node = Node::start_with(host, arguments);
    let lost = node.online_with(101, &["--defend", "yield"]);
    claims(net.host(1), stranger(1), lost);
    node.wait_for_state(lost, "lost", ms(5_000));
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    let address = node.online(100);
    node.cli(&["online", "10.9.0.9/32", "--iface", "eth0"]).expect(0);
    end(&mut node);
    let flood = Flood::start(net.host(1), &[address], ms(1), [net.tap(0)]);
    let begun_ns = boot_ns();
    let mut done = node.cli(&["unload"]).expect(0);
    for word in words {
        done = done.naming(word);
    }
    let Flooded { asked, taps: [tap] } = flood.stop();
    nothing_is_left(&node, &before);
    // It was silent before it left the interface: at no time did the kernel answer for it.
    let given = Answers::among(&tap.settled(&net.host(1).wire(), host.ip));
    let last = asked.iter().rposition(|asked| !given.to(asked).is_empty());
    if let Some(last) = last {
        given.one_each(&asked[..=last]);
    }
    assert!(last.is_none_or(|last| last + 1 < asked.len()), "still answered");
    assert!(asked.iter().all(|asked| asked.sent_ns + SLACK_NS > begun_ns));
    // A second time there is nothing to do, and it can all be begun again.
    node.cli(&["unload"]).expect(0);
    assert!(!node.folder().exists() && !node.pins().exists());
    node.run(arguments);
    node.online(100);
    assert!(answers(&net, &node, address));
}

#[test]
fn unload_with_a_daemon_leaves_nothing() {
    unload_after(NATIVE, |_| (), &["released"]);
}

#[test]
fn unload_with_a_daemon_that_would_keep_leaves_nothing() {
    unload_after(KEEP, |_| (), &["released"]);
}

#[test]
fn unload_after_a_kill_leaves_nothing_and_says_what_it_took_off() {
    unload_after(NATIVE, |node| node.kill(), &["10.7.0.100", "10.9.0.9"]);
}

#[test]
fn unload_after_keep_leaves_nothing_and_says_what_it_took_off() {
    let end = |node: &mut Node| {
        node.signal(libc::SIGTERM);
        assert_eq!(node.wait_for_end(ms(10_000)), 0);
    };
    unload_after(KEEP, end, &["10.7.0.100", "10.9.0.9"]);
}

#[test]
fn unload_in_tc_mode_leaves_nothing() {
    unload_after(TC, |_| (), &["released"]);
    unload_after(TC, |node| node.kill(), &["10.7.0.100"]);
}

#[test]
fn unload_in_generic_mode_leaves_nothing() {
    unload_after(&["--iface", "eth0", "--attach", "generic"], |node| node.kill(), &["10.7.0.100"]);
}

fn unload_without_an_interface(with_daemon: bool) {
    let net = Net::new(1);
    let host = net.host(0);
    let before = (snapshot(&host.ns), traffic_control(&host.ns, "eth0"));
    host.ns.ip("link add a7 type veth peer name b7\nlink set a7 up\nlink set b7 up");
    let mut node = Node::start_with(host, &["--iface", "eth0", "--iface", "a7", "--attach", "generic"]);
    node.online(100);
    node.cli(&["online", "10.7.9.100/32", "--iface", "a7"]).expect(0);
    if !with_daemon {
        node.kill();
    }
    host.ns.ip("link delete a7");
    node.cli(&["unload"]).expect(0);
    if with_daemon {
        assert_eq!(node.wait_for_end(ms(10_000)), 0);
    }
    nothing_is_left(&node, &before);
}

#[test]
fn unload_without_a_daemon_and_without_an_interface_leaves_nothing() {
    unload_without_an_interface(false);
}

#[test]
fn unload_with_a_daemon_and_without_an_interface_leaves_nothing() {
    unload_without_an_interface(true);
}

#[test]
fn unload_takes_addresses_off_that_may_not_answer_after_a_crash() {
    let net = Net::new(2);
    let host = net.host(0);
    let before = (snapshot(&host.ns), traffic_control(&host.ns, "eth0"));
    let mut node = Node::start(host);
    let yielding = node.online(100);
    let past = node.online_with(101, &["--lease", "0.3"]);
    node.freeze();
    let slots = Slots::pinned(&node.instance);
    slots.put_into(yielding, State::Yielding);
    let until_ns = slots.lease_until_ns(past);
    wait_for("the end of the lease", ms(3_000), || (boot_ns() > until_ns + SLACK_NS).then_some(()));
    drop(slots);
    node.kill();
    let flood = Flood::start(net.host(1), &[yielding, past], ms(1), [net.tap(0)]);
    node.cli(&["unload"]).expect(0).naming(yielding).naming(past);
    let Flooded { asked, taps: [tap] } = flood.stop();
    Answers::among(&tap.settled(&net.host(1).wire(), host.ip)).none(&asked);
    nothing_is_left(&node, &before);
}

#[test]
fn an_address_that_somebody_else_has_put_there_since_is_not_taken_off() {
    let net = Net::new(1);
    let host = net.host(0);
    let mut node = Node::start(host);
    node.online(100);
    node.kill();
    // The operator repairs by hand, and then puts an address of his own on the interface.
    host.ns.ip("address delete 10.7.0.100/24 dev eth0\naddress add 10.7.0.101/24 dev eth0");
    let before = addresses(&host.ns);
    node.cli(&["unload"]).expect(0);
    assert_eq!(addresses(&host.ns), before);
}
