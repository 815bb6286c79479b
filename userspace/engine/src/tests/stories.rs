//! Several hosts on one segment: what each of them and everybody else ends up with.

use super::*;
use crate::sim::{Host, Net, address};

const CONTESTED: u8 = 10;
const UNCHECKED: OnlineSpec = OnlineSpec { claim: Claim::Immediate { check: Duration::ZERO }, ..SPEC };
const CHECKED: OnlineSpec = OnlineSpec { claim: Claim::Immediate { check: ms(20) }, ..SPEC };

fn vip() -> Ipv4 {
    address(CONTESTED)
}

/// A third host that has asked for the address.
fn client(net: &mut Net) -> Host {
    let client = net.linux(&[address(100)]);
    net.ask(client, vip());
    net.pass(ms(10));
    client
}

#[test]
fn an_address_of_a_linux_host_is_found_taken_and_no_cache_changes() {
    for spec in [SPEC, CHECKED] {
        let mut net = Net::new(1);
        let owner = net.linux(&[vip()]);
        let client = client(&mut net);
        let host = net.warden(INTERFACE);
        let request = net.online(host, vip(), spec);
        net.pass(secs(10));
        let taken = Answer::Taken { claimant: claimant(net.mac(owner)), reason: Reason::Claimed };
        assert_eq!(net.answers(host, request), [taken]);
        assert_eq!(net.neighbour(client, vip()), Some(net.mac(owner)));
        assert!(net.kernel(host).addresses.is_empty());
        let own = net.mac(host);
        let claims =
            net.log.iter().filter(|(_, _, frame)| frame.sender_mac == own && frame.sender_ip == vip());
        assert_eq!(claims.count(), 0);
    }
}

#[test]
fn a_claim_without_a_check_is_rolled_back_and_every_cache_is_right_again_within_100_ms() {
    for seed in 0..50 {
        let mut net = Net::new(seed);
        let owner = net.linux(&[vip()]);
        let client = client(&mut net);
        let host = net.warden(INTERFACE);
        net.pass(secs(5));
        net.online(host, vip(), UNCHECKED);
        let mut wrong = MonoTime::default();
        for _ in 0..1_000 {
            net.pass(Duration::from_micros(100));
            if net.neighbour(client, vip()) == Some(net.mac(host)) {
                wrong = net.now;
            }
        }
        let repairs =
            net.log.iter().find(|(_, from, frame)| *from == host && frame.sender_mac == net.mac(owner));
        let first = repairs.expect("it repairs").0;
        assert!(wrong.since(first) <= ms(1), "wrong until {:?} after the first repair", wrong.since(first));
        net.pass(secs(60));
        assert_eq!(net.neighbour(client, vip()), Some(net.mac(owner)));
        assert_eq!(net.state(host, vip()), Some(State::Refused));
        assert!(net.kernel(host).addresses.is_empty());
        let told = |kind: &EventKind| matches!(kind, EventKind::Repaired { count: 3, .. });
        assert_eq!(net.at(host).events.iter().filter(|(_, kind)| told(kind)).count(), 1);
    }
}

#[test]
fn a_free_address_is_taken_and_caches_that_pointed_elsewhere_follow() {
    let mut net = Net::new(3);
    let former = net.linux(&[vip()]);
    let client = client(&mut net);
    net.kernel_mut(former).addresses.clear();
    let host = net.warden(INTERFACE);
    let request = net.online(host, vip(), SPEC);
    net.pass(secs(10));
    assert_eq!(net.answers(host, request), [Answer::Done]);
    assert_eq!(net.neighbour(client, vip()), Some(net.mac(host)));
    let other = net.linux(&[address(101)]);
    net.ask(other, vip());
    net.pass(ms(1));
    assert_eq!(net.neighbour(other, vip()), Some(net.mac(host)));
}

#[test]
fn an_old_owner_that_hangs_in_yielding_answers_nobody_though_its_kernel_has_the_address() {
    let mut net = Net::new(4);
    let (a, b) = (net.warden(INTERFACE), net.warden(INTERFACE));
    net.online(a, vip(), SPEC);
    net.pass(secs(10));
    let client = client(&mut net);
    net.offline(a, vip()); // the word is stored at once
    net.freeze(a); // and the kernel's acknowledgement is never seen
    net.kernel_mut(a).addresses.insert(vip());
    let request = net.online(b, vip(), CHECKED);
    net.pass(ms(100));
    assert_eq!(net.answers(b, request), [Answer::Done]);
    for _ in 0..100 {
        net.ask(client, vip());
        net.pass(ms(50));
        assert_eq!(net.neighbour(client, vip()), Some(net.mac(b)));
    }
    net.thaw(a);
    net.pass(secs(10));
    assert_eq!((net.state(a, vip()), net.state(b, vip())), (None, Some(State::Online)));
}

#[test]
fn a_planned_hand_over_has_no_conflict() {
    for seed in 0..20 {
        let mut net = Net::new(seed);
        let (a, b) = (net.warden(INTERFACE), net.warden(INTERFACE));
        net.online(a, vip(), SPEC);
        net.pass(secs(10));
        let request = net.offline(a, vip());
        net.pass(ms(5));
        assert_eq!(net.answers(a, request), [Answer::Done]);
        net.online(b, vip(), CHECKED);
        net.pass(secs(10));
        assert_eq!(net.state(b, vip()), Some(State::Online));
        for host in [a, b] {
            let conflict = |(_, kind): &&(MonoTime, EventKind)| matches!(kind, EventKind::Conflict { .. });
            assert_eq!(net.at(host).events.iter().filter(conflict).count(), 0);
        }
    }
}

#[test]
fn a_stranger_is_answered_back_and_caches_are_ours_again() {
    let mut net = Net::new(5);
    let host = net.warden(INTERFACE);
    net.online(host, vip(), SPEC);
    net.pass(secs(10));
    let client = client(&mut net);
    let stranger = net.linux(&[]);
    for _ in 0..5 {
        net.usurp(stranger, vip());
        net.pass(ms(2));
        assert_eq!(net.neighbour(client, vip()), Some(net.mac(host)));
        net.pass(secs(15));
    }
    // Twice within the interval, then silence: wrong no longer than the interval.
    net.usurp(stranger, vip());
    net.pass(secs(1));
    net.usurp(stranger, vip());
    net.pass(ms(1));
    assert_eq!(net.neighbour(client, vip()), Some(net.mac(stranger)));
    net.pass(secs(10));
    assert_eq!(net.neighbour(client, vip()), Some(net.mac(host)));
}

#[test]
fn an_owner_answers_another_engines_probes_and_keeps_the_address() {
    let mut net = Net::new(6);
    let (a, b) = (net.warden(INTERFACE), net.warden(INTERFACE));
    net.online(a, vip(), OnlineSpec { defend: Defend::Yield, ..SPEC });
    net.pass(secs(10));
    let request = net.online(b, vip(), SPEC);
    net.pass(secs(10));
    let taken = Answer::Taken { claimant: claimant(net.mac(a)), reason: Reason::Claimed };
    assert_eq!(net.answers(b, request), [taken]);
    assert_eq!(net.state(a, vip()), Some(State::Online));
    let probed = |(_, kind): &&(MonoTime, EventKind)| matches!(kind, EventKind::ProbeSeen { .. });
    assert_eq!(net.at(a).events.iter().filter(probed).count(), 1);
}

#[test]
fn a_daemon_that_hung_while_probing_hears_the_answer_before_it_goes_on() {
    let mut net = Net::new(7);
    net.linux(&[vip()]);
    let host = net.warden(INTERFACE);
    let request = net.online(host, vip(), CHECKED);
    net.freeze(host); // the probe is out, its answer on the way
    net.pass(secs(30));
    net.thaw(host);
    net.pass(secs(10));
    assert!(matches!(net.answers(host, request), [Answer::Taken { .. }]));
}

#[test]
fn two_unchecked_claims_at_the_same_moment_leave_at_most_one() {
    for seed in 0..100 {
        let mut net = Net::new(seed);
        let (a, b) = (net.warden(INTERFACE), net.warden(INTERFACE));
        net.online(a, vip(), UNCHECKED);
        net.pass(Duration::from_micros(10 * seed));
        net.online(b, vip(), UNCHECKED);
        net.pass(secs(30));
        assert!(!(net.may_answer(a, vip()) && net.may_answer(b, vip())), "seed {seed}");
    }
}

/// When `host` said last, and when it said first, that the address is its own.
fn spoke(net: &Net, host: Host) -> Option<(MonoTime, MonoTime)> {
    let own = net.mac(host);
    let said = |(_, from, frame): &&(MonoTime, Host, Outgoing)| {
        *from == host && frame.sender_mac == own && frame.sender_ip == vip()
    };
    let first = net.log.iter().find(said)?.0;
    let last = net.log.iter().rfind(said)?.0;
    Some((first, last))
}

/// A client that asks all the time, every 7 ms.
fn asked_for(net: &mut Net, client: Host, wait: Duration) {
    let end = net.now.after(wait);
    while net.now < end {
        net.ask(client, vip());
        net.pass(ms(7));
    }
}

const LEASED: OnlineSpec = OnlineSpec { lease: Some(secs(3)), ..SPEC };

#[test]
fn when_a_lease_runs_out_its_successor_takes_over_and_at_no_time_do_both_speak() {
    for seed in 0..30 {
        let mut net = Net::new(seed);
        let (a, b) = (net.warden(INTERFACE), net.warden(INTERFACE));
        net.online(a, vip(), LEASED);
        net.pass(secs(1));
        let client = client(&mut net);
        let request = net.online(b, vip(), OnlineSpec { wait: secs(60), ..LEASED });
        match seed % 3 {
            0 => {}
            1 => net.freeze(a),
            _ => net.kill(a),
        }
        for _ in 0..5 {
            asked_for(&mut net, client, secs(2));
            net.renew(b, vip(), secs(3));
        }
        assert_eq!(net.answers(b, request), [Answer::Done], "seed {seed}");
        assert!(spoke(&net, a).unwrap().1 < spoke(&net, b).unwrap().0, "seed {seed}");
        assert_eq!(net.neighbour(client, vip()), Some(net.mac(b)));
    }
}

#[test]
fn an_owner_that_wakes_up_after_its_lease_does_not_fight_its_successor() {
    for seed in 0..30 {
        let mut net = Net::new(seed);
        let (a, b) = (net.warden(INTERFACE), net.warden(INTERFACE));
        net.online(a, vip(), LEASED);
        net.pass(secs(2));
        let client = client(&mut net);
        net.freeze(a);
        net.pass(secs(2));
        net.online(b, vip(), CHECKED); // its announcements wait for the one that sleeps
        net.pass(ms(100 + seed * 100));
        net.thaw(a);
        asked_for(&mut net, client, secs(20));
        assert_eq!((net.state(a, vip()), net.state(b, vip())), (Some(State::Suspended), Some(State::Online)));
        assert!(spoke(&net, a).unwrap().1 < spoke(&net, b).unwrap().0, "seed {seed}");
        assert!(net.kernel(a).addresses.is_empty());
        assert_eq!(net.neighbour(client, vip()), Some(net.mac(b)));
        let conflict = |(_, kind): &&(MonoTime, EventKind)| matches!(kind, EventKind::Conflict { .. });
        assert_eq!(net.at(a).events.iter().filter(conflict).count(), 0);
    }
}

#[test]
fn a_link_that_flaps_is_announced_on_and_one_that_was_down_for_longer_is_asked_on_first() {
    for down in [ms(1), ms(300), ms(500), ms(501), secs(5)] {
        let mut net = Net::new(8);
        let host = net.warden(INTERFACE);
        net.online(host, vip(), SPEC);
        net.pass(secs(10));
        let client = client(&mut net);
        let before = net.log.len();
        net.link(host, false);
        net.pass(down);
        assert!(!net.may_answer(host, vip()));
        net.link(host, true);
        let flap = down <= ms(500);
        assert_eq!(net.may_answer(host, vip()), flap, "{down:?}");
        net.pass(secs(10));
        let probes = net.log[before..].iter().filter(|(_, _, frame)| frame.sender_ip.is_unspecified());
        assert_eq!(probes.count(), if flap { 0 } else { 3 });
        assert_eq!(net.state(host, vip()), Some(State::Online));
        assert_eq!(net.neighbour(client, vip()), Some(net.mac(host)));
    }
}

#[test]
fn an_address_that_was_taken_while_the_link_was_down_is_left_to_who_has_it() {
    let mut net = Net::new(9);
    let (a, b) = (net.warden(INTERFACE), net.warden(INTERFACE));
    net.online(a, vip(), SPEC);
    net.pass(secs(10));
    net.link(a, false);
    net.online(b, vip(), SPEC);
    net.pass(secs(10));
    net.link(a, true);
    net.pass(secs(10));
    assert_eq!((net.state(a, vip()), net.state(b, vip())), (Some(State::Lost), Some(State::Online)));
    assert!(net.kernel(a).addresses.is_empty());
    assert!(spoke(&net, a).unwrap().1 < spoke(&net, b).unwrap().0);
}

#[test]
fn a_daemon_that_dies_at_any_moment_of_a_claim_is_followed_by_one_that_ends_it_well() {
    for seed in 0..40 {
        for spec in [SPEC, CHECKED, UNCHECKED] {
            let mut net = Net::new(seed);
            let host = net.warden(INTERFACE);
            let client = client(&mut net);
            net.online(host, vip(), spec);
            let wait = Duration::from_micros(seed * 9_731);
            net.pass(wait);
            net.kill(host);
            net.pass(ms(1 + seed * 17));
            net.start(host);
            net.pass(secs(20));
            assert_eq!(net.state(host, vip()), Some(State::Online), "seed {seed}, {spec:?}");
            assert!(net.kernel(host).addresses.contains(&vip()));
            net.ask(client, vip());
            net.pass(ms(1));
            assert_eq!(net.neighbour(client, vip()), Some(net.mac(host)));
            let removed = |(_, kind): &&(MonoTime, EventKind)| *kind == EventKind::AddressRemoved;
            assert_eq!(net.at(host).events.iter().filter(removed).count(), 0);
        }
    }
}

#[test]
fn an_address_is_answered_all_the_time_while_its_daemon_is_dead_and_after_the_next_one_starts() {
    let mut net = Net::new(10);
    let host = net.warden(INTERFACE);
    net.online(host, vip(), SPEC);
    net.pass(secs(10));
    let client = client(&mut net);
    net.kill(host);
    for step in 0..200 {
        if step == 100 {
            net.start(host);
        }
        let before = net.log.len();
        net.ask(client, vip());
        net.pass(ms(5));
        let answered =
            |(_, from, frame): &(MonoTime, Host, Outgoing)| *from == host && frame.operation == REPLY;
        assert!(net.log[before..].iter().any(answered), "step {step}");
    }
    assert_eq!(net.state(host, vip()), Some(State::Online));
}

#[test]
fn a_daemon_that_dies_in_each_way_of_giving_up_leaves_nobody_answering() {
    for seed in 0..20 {
        for defend in [Defend::Yield, Defend::Hold] {
            let mut net = Net::new(seed);
            let host = net.warden(INTERFACE);
            net.online(host, vip(), OnlineSpec { defend, ..SPEC });
            net.pass(secs(10));
            let rival = net.linux(&[]);
            if defend == Defend::Yield {
                net.usurp(rival, vip()); // and it is lost
            } else {
                net.offline(host, vip());
            }
            net.kernel_mut(rival).addresses.insert(vip());
            net.pass(Duration::from_micros(150 + seed * 101));
            net.kill(host);
            let client = client(&mut net);
            asked_for(&mut net, client, ms(200));
            net.start(host);
            asked_for(&mut net, client, secs(1));
            assert!(net.kernel(host).addresses.is_empty(), "seed {seed}");
            assert!(!net.may_answer(host, vip()));
            assert_eq!(net.neighbour(client, vip()), Some(net.mac(rival)));
        }
    }
}
