//! The plan and its pace: RFC 5227 §2.3 and the contract's "Announcing".

use super::*;
use crate::params;

#[test]
fn the_plan_is_four_rounds_of_a_request_and_a_reply() {
    for seed in 0..100 {
        let mut rig = Rig::new();
        rig.dice = Seeded(seed);
        rig.online(SPEC);
        rig.until(State::Online);
        let frames = rig.frames(Purpose::Announcement);
        assert_eq!(frames.len(), 8);
        let start = frames[0].0;
        for (round, offset) in [0, 1_100, 2_200, 5_000].into_iter().enumerate() {
            let (at, request) = frames[2 * round];
            let (reply_at, reply) = frames[2 * round + 1];
            assert_eq!((request, reply), (request_form(), reply_form()));
            assert_eq!(reply_at, at);
            let (least, most) = (ms(offset * 9 / 10), ms(offset * 11 / 10));
            let offset = at.since(start);
            assert!(least <= offset && offset <= most, "round {round} after {offset:?}");
        }
        assert_eq!(rig.managed().reason(), Reason::PlanDone);
        assert_eq!(rig.count(|kind| *kind == EventKind::Announced { count: 8, own_mac: OWN }), 1);
        assert_eq!(rig.engine.poll_timeout(), None, "an address that is online waits for nothing");
    }
}

#[test]
fn the_long_profile_announces_twice_two_seconds_apart_in_request_form() {
    // RFC 5227 §2.3: ANNOUNCE_NUM 2, ANNOUNCE_INTERVAL 2 s.
    let mut rig = Rig::new();
    rig.online(OnlineSpec { profile: Profile::Rfc5227, ..SPEC });
    rig.until(State::Online);
    let frames = rig.frames(Purpose::Announcement);
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[1].0.since(frames[0].0), secs(2));
    assert!(frames.iter().all(|(_, frame)| *frame == request_form()));
}

#[test]
fn a_frame_that_failed_is_sent_again_and_only_then_counted() {
    let mut rig = Rig::new();
    rig.online(SPEC);
    rig.until(State::Announcing);
    rig.send = Some(Err("no buffer space".into()));
    rig.pass(ms(1_300));
    assert_eq!(rig.state(), Some(State::Announcing));
    rig.send = Some(Ok(()));
    rig.until(State::Online);
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::Announced { count: 8, .. })), 1);
}

#[test]
fn an_address_whose_announcements_fail_for_long_is_still_answered_and_still_tried() {
    let mut rig = Rig::new();
    rig.online(SPEC);
    rig.until(State::Announcing);
    rig.send = Some(Err("no buffer space".into()));
    rig.pass(secs(600));
    assert_eq!(rig.state(), Some(State::Announcing));
    let failures = rig.count(|kind| matches!(kind, EventKind::Failed { .. }));
    assert!((2..30).contains(&failures), "{failures} failures told in 10 min");
    rig.send = Some(Ok(()));
    rig.until(State::Online);
}

#[test]
fn announce_runs_the_plan_again() {
    let mut rig = Rig::held(SPEC);
    let request = rig.announce();
    let expected = vec![
        store(State::Announcing, StateWord::LOCAL, 1),
        stepped(Some(State::Online), Some(State::Announcing), Reason::Commanded),
        Action::Send { key: KEY, purpose: Purpose::Announcement, frame: request_form() },
        Action::Send { key: KEY, purpose: Purpose::Announcement, frame: reply_form() },
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    rig.pass(secs(3));
    let again = rig.announce();
    assert_eq!(rig.answers(again), vec![Answer::Done]);
    rig.until(State::Online);
    // 8 of the claim, 6 of the plan that was restarted in its third round, 8.
    assert_eq!(rig.frames(Purpose::Announcement).len(), 22);
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::Announced { .. })), 2);
}

#[test]
fn announce_is_for_addresses_that_are_ours() {
    let mut rig = Rig::new();
    let request = rig.announce();
    assert_eq!(rig.answers(request), vec![Answer::Unknown]);
    rig.watch();
    let request = rig.announce();
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Watched)]);
    rig.online(SPEC);
    let request = rig.announce();
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Probing)]);
}

#[test]
fn a_new_mac_is_used_from_the_next_frame_on_and_announced() {
    let mut rig = Rig::held(SPEC);
    let interface = Interface { mac: OTHER, ..INTERFACE };
    rig.input(Input::Interface { index: KEY.interface, interface });
    let news = rig.news();
    let word = StateWord::new(OTHER, State::Online, StateWord::LOCAL | Policy::Hold.flags(), 1);
    assert_eq!(news[0], Action::Store { key: KEY, word });
    assert_eq!(rig.managed().reason(), Reason::MacChanged);
    rig.until(State::Online);
    assert_eq!(rig.count(|kind| *kind == EventKind::Announced { count: 8, own_mac: OTHER }), 1);
    rig.news();
    rig.input(Input::Interface { index: KEY.interface, interface });
    assert_eq!(rig.news(), vec![], "nothing new");
}

#[test]
fn a_bond_that_uses_another_member_is_announced_on_it() {
    let on = |path| Interface { path, ..INTERFACE };
    let mut rig = Rig::held_on(on(3), SPEC);
    rig.until(State::Online);
    rig.news();
    rig.input(Input::Interface { index: KEY.interface, interface: on(4) });
    assert_eq!(rig.managed().reason(), Reason::PathChanged);
    rig.until(State::Online);
    assert_eq!(rig.count(|kind| *kind == EventKind::Announced { count: 8, own_mac: OWN }), 2);
    rig.news();
    rig.input(Input::Interface { index: KEY.interface, interface: on(4) });
    assert_eq!(rig.news(), vec![], "nothing new");
}

#[test]
fn a_first_member_is_no_other_one() {
    let mut rig = Rig::held(SPEC);
    rig.until(State::Online);
    rig.news();
    rig.input(Input::Interface { index: KEY.interface, interface: Interface { path: 4, ..INTERFACE } });
    assert_eq!(rig.news(), vec![]);
}

/// `count` addresses online on one interface, all registered in the same instant.
fn many(interface: Interface, count: u8) -> Rig {
    let mut rig = Rig::with(interface);
    rig.register = None;
    let key = |n: u8| AddressKey { address: Ipv4::new([192, 0, 2, n]), ..KEY };
    let spec = OnlineSpec { claim: Claim::Immediate { check: Duration::ZERO }, adopt: true, ..SPEC };
    for n in 1..=count {
        let request = rig.request();
        // Adopted ones need no registration; the outcome of the installation is held back to align them.
        rig.engine.handle(rig.now, Input::Online { request, key: key(n), spec }, &mut rig.dice);
    }
    rig.settle();
    rig
}

#[test]
fn an_inspecting_switch_never_sees_fifteen_frames_in_a_second() {
    let mut rig = many(Interface { pace: Pace::Inspected, ..INTERFACE }, 20);
    rig.pass(secs(60));
    let sends: Vec<MonoTime> = rig
        .trace
        .iter()
        .filter_map(|(at, action)| matches!(action, Action::Send { .. }).then_some(*at))
        .collect();
    assert_eq!(sends.len(), 20 * 9);
    assert!(sends.windows(2).all(|pair| pair[1].since(pair[0]) >= ms(100)));
    let (first, last) = (sends[0], sends[sends.len() - 1]);
    assert!(last.since(first) <= ms(100) * 180, "and none is wasted");
}

#[test]
fn first_requests_of_all_addresses_leave_before_any_reply() {
    let mut rig = many(Interface { pace: Pace::Inspected, ..INTERFACE }, 20);
    rig.pass(secs(60));
    let frames: Vec<(Purpose, [u8; 4], bool)> = rig
        .trace
        .iter()
        .filter_map(|(_, action)| match action {
            Action::Send { purpose, frame, key } => Some((*purpose, key.address.octets(), is_reply(frame))),
            _ => None,
        })
        .collect();
    let announcements: Vec<_> =
        frames.iter().filter(|(purpose, ..)| *purpose == Purpose::Announcement).collect();
    for (at, (_, address, reply)) in announcements.iter().take(40).enumerate() {
        let n = u8::try_from(at % 20).unwrap() + 1;
        assert_eq!((*address, *reply), ([192, 0, 2, n], at >= 20), "frame {at}");
    }
}

#[test]
fn a_defence_does_not_wait_behind_announcements() {
    let mut rig = many(Interface { pace: Pace::Inspected, ..INTERFACE }, 20);
    rig.pass(ms(500));
    let key = AddressKey { address: Ipv4::new([192, 0, 2, 20]), ..KEY };
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    rig.input(Input::Seen { key, sighting });
    rig.pass(params::pace(Pace::Inspected).0);
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
}

#[test]
fn without_a_pace_what_is_due_leaves_at_once_with_room_for_something_else_every_512_frames() {
    let mut rig = many(Interface { pace: Pace::Unlimited, ..INTERFACE }, 200);
    let sent = |rig: &Rig| {
        let sends = rig.trace.iter().filter_map(|(_, action)| match action {
            Action::Send { purpose, frame, .. } => Some((*purpose, is_reply(frame))),
            _ => None,
        });
        sends.collect::<Vec<_>>()
    };
    assert_eq!(sent(&rig).len(), 512);
    rig.pass(ms(1));
    let first = sent(&rig);
    assert_eq!(first.len(), 600, "a request, a question behind it and a reply of each");
    assert!(first[..200].iter().all(|frame| *frame == (Purpose::Announcement, false)), "breadth first");
    rig.pass(secs(10));
    assert_eq!(sent(&rig).len(), 200 * 9);
}

#[test]
fn a_plain_port_takes_a_burst_of_500_and_then_10_000_a_second() {
    let mut rig = Rig::new();
    let spec = OnlineSpec { adopt: true, ..SPEC };
    for n in 0..1_000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let key = AddressKey { address: Ipv4::new([10, 0, high, low]), ..KEY };
        let request = rig.request();
        rig.engine.handle(rig.now, Input::Online { request, key, spec }, &mut rig.dice);
    }
    let start = rig.now;
    rig.settle();
    let sent =
        |rig: &Rig| rig.trace.iter().filter(|(_, action)| matches!(action, Action::Send { .. })).count();
    assert_eq!(sent(&rig), 500);
    rig.pass(ms(100));
    assert_eq!(sent(&rig), 1_500);
    rig.pass(secs(20));
    assert_eq!(sent(&rig), 9_000);
    let last_first = rig.trace.iter().filter_map(|(at, action)| match action {
        Action::Answer { .. } => Some(*at),
        _ => None,
    });
    let last_first = last_first.max().unwrap().since(start);
    // 1,000 requests, as many probes, and the replies of the 167 whose turn was complete within the burst.
    assert!(last_first <= ms(167), "{last_first:?}");
}
