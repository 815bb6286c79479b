//! Ten thousand addresses.

use super::*;

fn nth(n: u32) -> AddressKey {
    let [_, _, high, low] = n.to_be_bytes();
    AddressKey { address: Ipv4::new([10, 1, high, low]), ..KEY }
}

#[test]
fn ten_thousand_addresses_cost_no_more_than_their_own_work() {
    const COUNT: u32 = 10_000;
    let mut rig = Rig::new();
    for n in 0..COUNT {
        let request = rig.request();
        rig.input(Input::Online { request, key: nth(n), spec: SPEC });
    }
    rig.pass(secs(30));
    let online = rig.engine.addresses().filter(|(_, address)| address.state() == State::Online).count();
    assert_eq!(online, 10_000);
    assert_eq!(rig.engine.poll_timeout(), None);
    // 3 probes, 8 announcements each.
    let sent = rig.trace.iter().filter(|(_, action)| matches!(action, Action::Send { .. })).count();
    assert_eq!(sent, 110_000);
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    for n in 0..COUNT {
        rig.input(Input::Seen { key: nth(n), sighting });
    }
    rig.pass(secs(2));
    assert_eq!(rig.frames(Purpose::Defence).len(), 10_000);
    for n in 0..COUNT {
        let request = rig.request();
        rig.input(Input::Offline { request, key: nth(n), watch: false });
    }
    assert_eq!(rig.engine.addresses().count(), 0);
}

#[test]
fn of_an_address_that_is_online_and_left_alone_nothing_is_kept_of_its_claim() {
    let mut rig = Rig::new();
    rig.online(SPEC);
    assert_eq!(rig.engine.busy(), 1);
    rig.until(State::Online);
    assert_eq!(rig.engine.busy(), 0);
    rig.input(Input::Interface { index: KEY.interface, interface: Interface { up: false, ..INTERFACE } });
    rig.input(Input::Interface { index: KEY.interface, interface: INTERFACE });
    assert_eq!(rig.engine.busy(), 1, "it is announced again");
    rig.until(State::Online);
    rig.offline(false);
    assert_eq!((rig.engine.busy(), rig.engine.count()), (0, 0));
}

#[test]
fn addresses_that_move_together_are_the_same_as_before() {
    let mut rig = Rig::new();
    for n in 0..100 {
        let request = rig.request();
        rig.input(Input::Online { request, key: nth(n), spec: SPEC });
    }
    rig.engine.close_ranks(|| ());
    let keys: Vec<AddressKey> = rig.engine.addresses().map(|(key, _)| *key).collect();
    assert_eq!(keys, (0..100).map(nth).collect::<Vec<_>>());
    rig.pass(secs(30));
    assert!(rig.engine.addresses().all(|(_, address)| address.state() == State::Online));
    assert_eq!((rig.engine.busy(), rig.engine.count()), (0, 100));
}

/// When the first announcement of each of `count` immediate claims left, and the probe behind it, in seconds. The kernel
/// registers one in 20 µs.
fn unchecked(count: u32) -> Vec<(f64, f64)> {
    let mut rig = Rig::new();
    rig.register = None;
    let spec = OnlineSpec { claim: Claim::Immediate { check: Duration::ZERO }, ..SPEC };
    let start = rig.now;
    for n in 0..count {
        let request = rig.request();
        rig.input(Input::Online { request, key: nth(n), spec });
    }
    for n in 0..count {
        rig.pass(Duration::from_micros(20));
        rig.input(Input::Registered { key: nth(n), result: Ok(()) });
    }
    rig.pass(secs(30));
    let first = |frames: Vec<(MonoTime, Outgoing)>| {
        let mut first = std::collections::BTreeMap::new();
        for (at, frame) in frames {
            first.entry(frame.target_ip.octets()).or_insert(at.since(start).as_secs_f64());
        }
        first
    };
    let (announced, asked) = (first(rig.frames(Purpose::Announcement)), first(rig.frames(Purpose::Probe)));
    assert_eq!(announced.len(), asked.len(), "each is asked about");
    announced.into_iter().map(|(address, at)| (at, asked[&address])).collect()
}

#[test]
fn a_thousand_immediate_claims_are_all_announced_before_the_first_probe_behind_them() {
    let seen = unchecked(1_000);
    assert_eq!(seen.len(), 1_000);
    let last_announced = seen.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    let first_asked = seen.iter().map(|(_, at)| *at).fold(f64::MAX, f64::min);
    assert!(last_announced <= first_asked, "{last_announced} {first_asked}");
    // A burst of 500, and 500 more at 10,000 a second.
    assert!(last_announced <= 0.051, "{last_announced}");
}

#[test]
fn no_probe_behind_an_announcement_waits_for_more_than_a_moment_however_many_there_are() {
    for (announced, asked) in unchecked(10_000) {
        // What is due goes first, and at most as many are due as have left before it.
        assert!(asked > announced && asked - announced < 0.25, "{announced} {asked}");
    }
}

#[test]
fn what_is_planned_for_a_claim_of_many_is_what_it_takes() {
    let unchecked = OnlineSpec { claim: Claim::Immediate { check: Duration::ZERO }, ..SPEC };
    let rfc5227 = OnlineSpec { profile: Profile::Rfc5227, ..SPEC };
    for (spec, pace, count) in [
        (SPEC, Pace::Plain, 2),
        (SPEC, Pace::Plain, 5_000),
        (SPEC, Pace::Inspected, 20),
        (unchecked, Pace::Plain, 3_000),
        (unchecked, Pace::Inspected, 20),
        (SPEC, Pace::Unlimited, 5_000),
        (unchecked, Pace::Unlimited, 3_000),
        (rfc5227, Pace::Plain, 100),
    ] {
        let mut rig = Rig::with(Interface { pace, ..INTERFACE });
        let start = rig.now;
        // Claims begin together: the kernel is not done with the first one when the last one is begun.
        rig.register = None;
        for n in 0..count {
            let request = rig.request();
            rig.input(Input::Online { request, key: nth(n), spec });
        }
        rig.register = Some(Ok(()));
        if spec == unchecked {
            for n in 0..count {
                rig.input(Input::Registered { key: nth(n), result: Ok(()) });
            }
        }
        rig.pass(secs(100));
        let announced = rig.frames(Purpose::Announcement);
        let mut first = std::collections::BTreeMap::new();
        for (at, frame) in &announced {
            first.entry(frame.target_ip.octets()).or_insert(*at);
        }
        let took = |at: Option<MonoTime>| at.expect("a frame").since(start).as_secs_f64();
        let planned = crate::params::planned(&spec, pace, usize::try_from(count).unwrap());
        for (planned, took) in [
            (planned.announced, took(first.values().max().copied())),
            (planned.done, took(announced.last().map(|(at, _)| *at))),
        ] {
            let (planned, why) = (planned.as_secs_f64(), format!("{spec:?} {pace:?} {count}"));
            assert!(
                (planned * 0.6 - 0.05..planned * 1.2 + 0.05).contains(&took),
                "{took} of {planned}: {why}"
            );
        }
    }
}
