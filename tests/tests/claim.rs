//! Claiming: what stands in the way is found before anything is done, or undone and repaired at once.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Barrier, time::Duration};

use arpwarden_common::{
    net::{MacAddr, Vlan},
    wire::arp::{Form, Outgoing, REQUEST},
};
use arpwarden_tests::{
    ms,
    netns::{Host, Net, ip, stranger},
    node::{Done, Node, finish, program},
    tools::{addresses, decode, has_address, learn, neighbour, neighbours, snapshot},
    wait_for,
    wire::{Captured, announcement, boot_ns, bytes, probe, reply, request},
};

/// Gives a plain Linux host an address, without a word on the wire.
fn hold(host: &Host, address: Ipv4Addr) {
    host.ns.ip(&format!("address add {address}/24 dev eth0"));
}

/// Frames by which this host says that it has the address.
fn claims(seen: &[Captured], host: &Host, address: Ipv4Addr) -> usize {
    seen.iter().filter(|frame| !frame.outgoing && frame.says(address, host.mac)).count()
}

fn refused_without_a_trace(arguments: &[&str]) {
    let net = Net::new(4);
    let node = Node::start(net.host(0));
    let (holder, thirds) = (net.host(1), [net.host(2), net.host(3)]);
    let address = ip(100);
    hold(holder, address);
    learn(&thirds[0].ns, address, holder.mac);
    learn(&thirds[1].ns, address, holder.mac);
    let caches = thirds.map(|third| neighbours(&third.ns));
    let host = snapshot(&node.host.ns);
    let tap = net.tap(0);

    let done = node.try_online(100, arguments).expect(3).naming(holder.mac);
    let text = [done.out, done.err].concat();
    let first_mac = text.split(|c: char| c.is_whitespace() || "(),;'\"".contains(c)).find(|word| {
        let word = word.trim_end_matches(['.', ':']);
        word.len() == 17 && word.split(':').count() == 6
    });
    assert_eq!(
        first_mac.map(|word| word.trim_end_matches(['.', ':'])),
        Some(&*holder.mac.to_string()),
        "{text}"
    );

    let seen = node.settled(&tap);
    assert_eq!(claims(&seen, node.host, address), 0, "{seen:?}");
    assert_eq!(snapshot(&node.host.ns), host, "something was configured");
    assert_eq!(thirds.map(|third| neighbours(&third.ns)), caches, "a third host's cache changed");
    assert_eq!(node.state(address).as_deref(), Some("refused"));
    let status = node.address(address).expect("still listed");
    assert_eq!(status["may_answer"], false);
    assert_eq!(status["owner"], holder.mac.to_string());
}

#[test]
fn an_address_that_a_linux_host_holds_is_refused_by_probing_and_no_cache_changes() {
    refused_without_a_trace(&[]);
}

#[test]
fn an_address_that_a_linux_host_holds_is_refused_by_the_rfcs_own_timing() {
    refused_without_a_trace(&["--profile", "rfc5227"]);
}

#[test]
fn an_address_that_a_linux_host_holds_is_refused_by_the_check_of_immediate() {
    refused_without_a_trace(&["--claim", "immediate"]);
}

#[test]
fn without_a_check_the_claim_is_rolled_back_and_every_cache_is_right_again() {
    let net = Net::new(4);
    let node = Node::start(net.host(0));
    let (holder, thirds) = (net.host(1), [net.host(2), net.host(3)]);
    let address = ip(100);
    hold(holder, address);
    for third in thirds {
        learn(&third.ns, address, holder.mac);
    }
    let before = snapshot(&node.host.ns);
    let tap = net.tap(0);
    let events = node.events();

    node.try_online(100, &["--claim", "immediate", "--check", "0"]).expect(0);
    let repair = tap.wait_for("the first frame of the repair", ms(2_000), |frame| {
        !frame.outgoing && frame.says(address, holder.mac)
    });
    for third in thirds {
        wait_for("a cache to be right again", ms(2_000), || {
            (neighbour(&third.ns, address) == Some(holder.mac)).then_some(())
        });
    }
    let healed = Duration::from_nanos(boot_ns() - repair.boot_ns);
    assert!(healed <= ms(100), "right again {healed:?} after the first frame of the repair");

    let event = events.wait_for("the roll-back", ms(2_000), |event| event["event"] == "rolled_back");
    assert_eq!(event.json["claimant"], holder.mac.to_string());
    events.wait_for("the state", ms(2_000), |event| {
        event["event"] == "state" && event["to"] == "refused" && event["reason"] == "rolled_back"
    });
    assert_eq!(node.state(address).as_deref(), Some("refused"));
    assert_eq!(snapshot(&node.host.ns), before, "what was configured is gone again");

    // Three in all, 1.1 s apart, with the owner's MAC inside and ours outside.
    let mut repairs = vec![repair];
    while repairs.len() < 3 {
        repairs.push(tap.wait_for("the next repair", ms(2_000), |frame| {
            !frame.outgoing && frame.says(address, holder.mac)
        }));
    }
    for pair in repairs.windows(2) {
        let gap = ms_between(&pair[0], &pair[1]);
        assert!((990..=1_260).contains(&gap), "{gap} ms between two repairs");
    }
    for frame in decode(&repairs) {
        assert_eq!(frame.operation, "1");
        assert_eq!(frame.source, node.host.mac.to_string());
        assert_eq!(frame.sender_mac, holder.mac.to_string());
        assert_eq!((frame.sender_ip.as_str(), frame.target_ip.as_str()), ("10.7.0.100", "10.7.0.100"));
        assert_eq!(frame.destination, "ff:ff:ff:ff:ff:ff");
    }
    let seen = node.settled(&tap);
    assert_eq!(claims(&seen, node.host, address), 0, "nothing of ours after the roll-back: {seen:?}");
    for third in thirds {
        assert_eq!(neighbour(&third.ns, address), Some(holder.mac));
    }
}

#[test]
fn with_wait_a_rolled_back_claim_ends_with_3() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    hold(net.host(1), ip(100));
    let arguments = ["--claim", "immediate", "--check", "0", "--wait", "0.5"];
    node.try_online(100, &arguments).expect(3).naming(net.host(1).mac);
    assert_eq!(node.state(ip(100)).as_deref(), Some("refused"));
}

#[test]
fn with_wait_an_immediate_claim_that_stands_returns_after_the_window() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let begun = boot_ns();
    node.online_with(100, &["--claim", "immediate", "--wait", "5"]);
    let took = Duration::from_nanos(boot_ns() - begun);
    assert!((ms(1_100)..ms(3_000)).contains(&took), "returned after {took:?}");
}

#[test]
fn a_claim_in_the_window_after_the_first_announcement_rolls_back() {
    let net = Net::new(3);
    let node = Node::start(net.host(0));
    let events = node.events();
    let address = node.online_with(100, &["--claim", "immediate"]);
    let tap = net.tap(0);
    // A rival that only ever answers others: heard because its reply is flooded.
    let mut lie = reply(stranger(4), address, net.host(2).mac, ip(3));
    lie.destination = MacAddr::BROADCAST;
    net.host(1).wire().send(&bytes(&lie));
    let event = events.wait_for("the roll-back", ms(2_000), |event| event["event"] == "rolled_back");
    assert_eq!(event.json["claimant"], stranger(4).to_string());
    events.wait_for_state(address, "refused", ms(2_000));
    wait_for("the address to be gone", ms(2_000), || (!has_address(&node.host.ns, address)).then_some(()));
    tap.wait_for("the repair", ms(2_000), |frame| !frame.outgoing && frame.says(address, stranger(4)));
    let _ = node.settled(&tap);
    // Silent now: a request is answered for another address only.
    let other = node.online_with(101, &["--claim", "immediate"]);
    let asker = net.host(1).wire();
    for asked in [address, other] {
        asker.send(&bytes(&request(net.host(1).mac, ip(2), asked)));
    }
    let answers = asker.collect_until("the other's answer", ms(2_000), |frame| {
        !frame.outgoing && frame.is_arp(|arp| arp.sender_ip == other.into() && arp.operation != REQUEST)
    });
    assert_eq!(answers.iter().filter(|frame| frame.says(address, node.host.mac)).count(), 0, "{answers:?}");
}

#[test]
fn two_hosts_that_probe_at_the_same_moment_never_both_get_it() {
    let net = Net::new(2);
    let nodes = [Node::start(net.host(0)), Node::start(net.host(1))];
    for round in 0..6 {
        let last = 100 + round;
        let codes = at_once(&nodes, last, &[]);
        let owners = nodes.iter().filter(|node| has_address(&node.host.ns, ip(last))).count();
        assert!(owners <= 1, "both have it; exit codes {codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), owners, "{codes:?}");
        assert!(codes.iter().all(|code| [0, 3].contains(code)), "{codes:?}");
    }
}

#[test]
fn of_two_hosts_that_probe_at_the_same_moment_one_gets_it_with_wait() {
    let net = Net::new(2);
    let nodes = [Node::start(net.host(0)), Node::start(net.host(1))];
    let mut codes = at_once(&nodes, 100, &["--wait", "12"]);
    codes.sort_unstable();
    assert_eq!(codes, [0, 3]);
    let may_answer = |node: &Node| node.address(ip(100)).expect("listed")["may_answer"] == true;
    assert_eq!(nodes.iter().filter(|node| may_answer(node)).count(), 1);
    assert_eq!(nodes.iter().filter(|node| has_address(&node.host.ns, ip(100))).count(), 1);
}

#[test]
fn two_hosts_that_claim_immediately_at_the_same_moment_do_not_both_keep_it() {
    let net = Net::new(2);
    let nodes = [Node::start(net.host(0)), Node::start(net.host(1))];
    for (last, check) in [(100, "20"), (101, "0")] {
        at_once(&nodes, last, &["--claim", "immediate", "--check", check, "--wait", "0.1"]);
        // A claim that was rolled back is over; one that stands is past its window, as `--wait` covers it.
        let may_answer =
            |node: &Node| node.address(ip(last)).is_some_and(|entry| entry["may_answer"] == true);
        let owners = nodes.iter().filter(|node| may_answer(node)).count();
        assert!(owners <= 1, "both keep 10.7.0.{last}");
    }
}

fn at_once(nodes: &[Node<'_>; 2], last: u8, arguments: &[&str]) -> Vec<i32> {
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let run = |node| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                Node::try_online(node, last, arguments).code
            })
        };
        let both = nodes.each_ref().map(run);
        both.into_iter().map(|thread| thread.join().expect("a thread that does not panic")).collect()
    })
}

#[test]
fn another_hosts_probe_while_ours_are_under_way_is_a_conflict() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let tap = net.tap(0);
    std::thread::scope(|scope| {
        let claim = scope.spawn(|| node.try_online(100, &["--profile", "rfc5227"]));
        tap.wait_for("our probe", ms(5_000), |frame| {
            !frame.outgoing && frame.is_arp(|arp| arp.form() == Form::Probe)
        });
        net.host(1).wire().send(&bytes(&probe(stranger(2), ip(100))));
        claim.join().expect("a thread that does not panic").expect(3).naming(stranger(2));
    });
    assert!(!has_address(&node.host.ns, ip(100)));
    // Whoever only probes has nothing to answer with.
    assert_eq!(claims(&node.settled(&tap), node.host, ip(100)), 0);
}

#[test]
fn somebody_who_only_asks_for_the_address_while_we_probe_is_no_conflict() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let tap = net.tap(0);
    std::thread::scope(|scope| {
        let claim = scope.spawn(|| node.try_online(100, &["--profile", "rfc5227"]));
        tap.wait_for("our probe", ms(5_000), |frame| {
            !frame.outgoing && frame.is_arp(|arp| arp.form() == Form::Probe)
        });
        net.host(1).wire().send(&bytes(&request(net.host(1).mac, ip(2), ip(100))));
        claim.join().expect("a thread that does not panic").expect(0);
    });
    let seen = node.settled(&tap);
    let first_claim = seen.iter().position(|frame| !frame.outgoing && frame.says(ip(100), node.host.mac));
    let asked =
        seen.iter().position(|frame| frame.outgoing && frame.is_arp(|arp| arp.target_ip == ip(100).into()));
    assert!(asked < first_claim, "asked before the claim: {seen:?}");
    let first = &seen[first_claim.expect("announced by now")];
    assert!(first.is_arp(|arp| arp.form() == Form::Announcement), "answered before the claim: {first:?}");
}

/// Sends these frames as soon as the node's first probe for 10.7.0.100 is seen, with seconds left until it has sent its
/// last one; how the claim ends, and what it was after the frames.
fn claim_meanwhile(net: &Net, node: &Node<'_>, frames: &[Outgoing]) -> (Done, Option<String>) {
    let tap = net.tap(0);
    std::thread::scope(|scope| {
        let claim = scope.spawn(|| node.try_online(100, &["--profile", "rfc5227"]));
        tap.wait_for("our probe", ms(5_000), |frame| {
            !frame.outgoing && frame.is_arp(|arp| arp.form() == Form::Probe)
        });
        for frame in frames {
            tap.send(&bytes(frame));
        }
        node.settled(&tap);
        let state = node.state(ip(100));
        (claim.join().expect("a thread that does not panic"), state)
    })
}

#[test]
fn what_does_not_say_that_another_host_has_the_address_ends_no_claim() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let (us, address, events) = (node.host.mac, ip(100), node.events());
    let (done, state) = claim_meanwhile(
        &net,
        &node,
        &[
            // A poll, and one for somebody else.
            Outgoing { destination: us, ..probe(stranger(1), address) },
            Outgoing { destination: stranger(9), ..probe(stranger(2), address) },
            // Nobody's reply, to us and to all.
            reply(stranger(3), Ipv4Addr::UNSPECIFIED, us, address),
            Outgoing {
                destination: MacAddr::BROADCAST,
                ..reply(stranger(3), Ipv4Addr::UNSPECIFIED, us, address)
            },
            // A probe on behalf of another, as broken proxies send it, and one of nobody.
            Outgoing { source: stranger(9), ..probe(stranger(4), address) },
            probe(MacAddr::ZERO, address),
            // Our own MAC: the probe come back, and a router that answers with what it has learnt from it.
            probe(us, address),
            Outgoing { source: stranger(9), ..reply(us, address, us, ip(1)) },
            // Somebody looks for the address.
            request(stranger(5), ip(2), address),
            // What no host can have sent.
            announcement(MacAddr::new([1, 0, 0x5e, 0, 0, 1]), address),
        ],
    );
    assert_eq!(state.as_deref(), Some("probing"), "all of it came in time");
    done.expect(0);
    let seen = events.collect_until("the claim's end", ms(2_000), |event| {
        event["event"] == "state" && event["to"] == "announcing"
    });
    assert!(seen.iter().all(|event| event.json["event"] != "conflict"), "{seen:?}");
}

#[test]
fn whatever_says_that_another_host_has_the_address_ends_the_claim_and_is_named() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let (us, address) = (node.host.mac, ip(100));
    let reply_form = |mac| Outgoing::announcement_reply(mac, Vlan::UNTAGGED, address.into());
    for frame in [
        announcement(stranger(1), address),
        reply_form(stranger(2)),
        Outgoing { target_mac: MacAddr::ZERO, ..reply_form(stranger(3)) },
        // An answer to our probe: of its owner, or of a router that answers for all that it has a route to.
        reply(stranger(4), address, us, Ipv4Addr::UNSPECIFIED),
        // What the owner says to others, and a switch to us.
        reply(stranger(5), address, stranger(9), ip(9)),
        Outgoing { destination: stranger(9), ..request(stranger(6), address, ip(9)) },
        request(stranger(7), address, ip(9)),
        Outgoing { source: stranger(9), ..announcement(stranger(8), address) },
        probe(stranger(10), address),
    ] {
        claim_meanwhile(&net, &node, &[frame]).0.expect(3).naming(frame.sender_mac);
        assert!(!has_address(&node.host.ns, address), "{frame:?}");
    }
}

#[test]
fn of_two_hosts_that_come_up_at_the_same_moment_with_hundreds_of_addresses_one_gets_each() {
    let net = Net::new(2);
    let nodes = [Node::start(net.host(0)), Node::start(net.host(1))];
    let all: Vec<Ipv4Addr> = (1..=200).map(|last| Ipv4Addr::new(10, 8, 0, last)).collect();
    let lines: String = all.iter().map(|address| format!("{address}/24\n")).collect();
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                start.wait();
                let done = node.cli_with_input(&["online", "-", "--iface", "eth0", "--wait", "15"], &lines);
                assert!([0, 3].contains(&done.code), "{done:?}");
            });
        }
    });
    let owned = nodes.each_ref().map(|node| {
        let status = node.status();
        let entries = status["addresses"].as_array().expect("addresses").clone();
        let ours = entries.into_iter().filter(|entry| entry["may_answer"] == true);
        ours.map(|entry| entry["address"].as_str().expect("text").to_owned()).collect::<BTreeSet<_>>()
    });
    let both: Vec<_> = owned[0].intersection(&owned[1]).collect();
    assert!(both.is_empty(), "{both:?}");
    assert_eq!(owned[0].len() + owned[1].len(), all.len(), "none is left over");
}

#[test]
fn the_fast_profile_sends_three_probes_and_waits_for_silence() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let tap = net.tap(0);
    node.online(100);
    let (probes, first) = probes_and_first_announcement(&node.settled(&tap), node.host);
    assert_eq!(probes.len(), 3, "{probes:?}");
    // 40–60 ms apart and 60 ms of silence; timers may be late on a busy machine, never early.
    for pair in probes.windows(2) {
        let gap = ms_between(&pair[0], &pair[1]);
        assert!((39..=110).contains(&gap), "{gap} ms between two probes");
    }
    let silence = ms_between(&probes[2], &first);
    assert!((59..=150).contains(&silence), "{silence} ms of silence before the announcement");
}

#[test]
fn the_rfc_profile_keeps_the_constants_of_the_rfc() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let tap = net.tap(0);
    node.online_with(100, &["--profile", "rfc5227"]);
    let mut seen = tap.drain();
    let (probes, first) = probes_and_first_announcement(&seen, node.host);
    assert_eq!(probes.len(), 3, "{probes:?}");
    for pair in probes.windows(2) {
        let gap = ms_between(&pair[0], &pair[1]);
        assert!((999..=2_100).contains(&gap), "{gap} ms between two probes (PROBE_MIN 1 s, PROBE_MAX 2 s)");
    }
    let silence = ms_between(&probes[2], &first);
    assert!((1_999..=2_100).contains(&silence), "{silence} ms of silence (ANNOUNCE_WAIT 2 s)");

    let second = tap.wait_for("the second announcement", ms(4_000), |frame| {
        !frame.outgoing && frame.says(ip(100), node.host.mac)
    });
    let gap = ms_between(&first, &second);
    assert!((1_800..=2_250).contains(&gap), "{gap} ms between two announcements (ANNOUNCE_INTERVAL 2 s)");
    node.wait_for_state(ip(100), "online", ms(3_000));
    seen.push(second);
    seen.extend(node.settled(&tap));
    let announced: Vec<&Captured> =
        seen.iter().filter(|frame| !frame.outgoing && frame.says(ip(100), node.host.mac)).collect();
    assert_eq!(announced.len(), 2, "ANNOUNCE_NUM: {announced:?}");
    assert!(announced.iter().all(|frame| frame.is_arp(|arp| arp.operation == REQUEST)), "{announced:?}");
}

fn probes_and_first_announcement(seen: &[Captured], host: &Host) -> (Vec<Captured>, Captured) {
    let ours: Vec<&Captured> =
        seen.iter().filter(|frame| !frame.outgoing && frame.is_arp(|arp| arp.source == host.mac)).collect();
    let probes = ours.iter().take_while(|frame| frame.is_arp(|arp| arp.form() == Form::Probe));
    let probes: Vec<Captured> = probes.map(|frame| (*frame).clone()).collect();
    let first = ours.get(probes.len()).expect("an announcement after the probes");
    assert!(first.is_arp(|arp| arp.form() == Form::Announcement && arp.operation == REQUEST), "{first:?}");
    (probes, (*first).clone())
}

fn ms_between(earlier: &Captured, later: &Captured) -> u64 {
    (later.boot_ns - earlier.boot_ns) / 1_000_000
}

#[test]
fn with_wait_the_address_is_taken_as_soon_as_its_holder_lets_go() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = ip(100);
    hold(net.host(1), address);
    let events = node.events();
    std::thread::scope(|scope| {
        let claim = scope.spawn(|| node.try_online(100, &["--wait", "20"]));
        events.wait_for("a conflict", ms(5_000), |event| event["event"] == "conflict");
        assert_eq!(addresses(&node.host.ns).len(), 1);
        net.host(1).ns.ip(&format!("address delete {address}/24 dev eth0"));
        claim.join().expect("a thread that does not panic").expect(0);
    });
    assert!(has_address(&node.host.ns, address));
}

#[test]
fn online_on_a_refused_address_is_a_new_claim() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = ip(100);
    hold(net.host(1), address);
    node.try_online(100, &[]).expect(3);
    node.try_online(100, &[]).expect(3).naming(net.host(1).mac);
    net.host(1).ns.ip(&format!("address delete {address}/24 dev eth0"));
    node.online(100);
    assert!(has_address(&node.host.ns, address));
}

#[test]
fn probe_tells_free_from_taken_and_needs_no_daemon() {
    let net = Net::new(2);
    let host = net.host(0);
    let ask = |address: Ipv4Addr, interface: &str| {
        let mut command = host.ns.command(program());
        finish(command.args(["probe", &address.to_string(), "--iface", interface]), "")
    };
    let before = snapshot(&host.ns);
    ask(ip(100), "eth0").expect(0);
    ask(ip(2), "eth0").expect(3).naming(net.host(1).mac);
    // A local one is taken, by this host.
    ask(ip(1), "eth0").expect(3);
    ask(ip(100), "eth7").expect(1).naming("eth7");
    assert_eq!(snapshot(&host.ns), before);
}

#[test]
fn probe_hears_another_hosts_online_address() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let mut command = net.host(1).ns.command(program());
    finish(command.args(["probe", &address.to_string(), "--iface", "eth0"]), "")
        .expect(3)
        .naming(node.host.mac);
}
