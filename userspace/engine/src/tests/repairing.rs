//! Asking those whose caches should be right.

use super::*;
use crate::input::Neighbour;

fn neighbour(last: u8) -> Neighbour {
    Neighbour { mac: MacAddr::new([2, 0, 0, 0, 3, last]), address: Ipv4::new([192, 0, 2, last]) }
}

fn repair(rig: &mut Rig, hosts: core::ops::Range<u8>) -> RequestId {
    let request = rig.request();
    rig.input(Input::Repair { request, key: KEY, neighbours: hosts.map(neighbour).collect() });
    request
}

fn repaired(rig: &Rig) -> Vec<u64> {
    let events = rig.events().into_iter().filter_map(|kind| match kind {
        EventKind::Repaired { claimant: None, count } => Some(count),
        _ => None,
    });
    events.collect()
}

#[test]
fn each_neighbour_is_asked_by_unicast_with_the_address_as_sender() {
    let mut rig = Rig::held(SPEC);
    let request = repair(&mut rig, 100..102);
    let question = |last| Action::Send {
        key: KEY,
        purpose: Purpose::Ask,
        frame: Outgoing {
            destination: neighbour(last).mac,
            source: OWN,
            vlan: Vlan::UNTAGGED,
            operation: REQUEST,
            sender_mac: OWN,
            sender_ip: KEY.address,
            target_mac: MacAddr::ZERO,
            target_ip: neighbour(last).address,
        },
    };
    let expected = vec![
        question(100),
        question(101),
        event(EventKind::Repaired { claimant: None, count: 2 }),
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
}

#[test]
fn nobody_to_ask_is_done_at_once() {
    let mut rig = Rig::held(SPEC);
    let request = repair(&mut rig, 0..0);
    assert_eq!(rig.news(), vec![Action::Answer { request, answer: Answer::Done }]);
}

#[test]
fn questions_keep_to_the_pace_and_let_defences_go_first() {
    let mut rig = Rig::held_on(Interface { pace: Pace::Inspected, ..INTERFACE }, SPEC);
    let start = rig.now;
    let request = repair(&mut rig, 100..110);
    rig.pass(ms(150));
    rig.claim_by(RIVAL);
    rig.pass(ms(100));
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
    assert_eq!(rig.answers(request), vec![]);
    rig.pass(secs(2));
    let asked = rig.frames(Purpose::Ask);
    assert_eq!(asked.len(), 10);
    assert_eq!(asked[9].0.since(start), ms(1_000));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn an_address_that_may_not_answer_is_never_asked_with() {
    let mut rig = Rig::new();
    let request = repair(&mut rig, 100..101);
    assert_eq!(rig.answers(request), vec![Answer::Unknown]);
    rig.watch();
    let request = repair(&mut rig, 100..101);
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Watched)]);
    let mut rig = Rig::held_on(Interface { pace: Pace::Inspected, ..INTERFACE }, SPEC);
    let request = repair(&mut rig, 100..110);
    rig.pass(ms(250));
    let asked = rig.frames(Purpose::Ask).len();
    rig.deregister = None;
    rig.offline(true);
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Yielding)]);
    assert_eq!(repaired(&rig), vec![u64::try_from(asked).unwrap()]);
    rig.input(Input::Deregistered { key: KEY, result: Ok(()) });
    rig.pass(secs(60));
    assert_eq!(rig.frames(Purpose::Ask).len(), asked);
}

#[test]
fn a_question_that_could_not_be_sent_is_asked_again_and_in_the_end_the_command_fails() {
    let mut rig = Rig::held(SPEC);
    rig.send = Some(Err("no buffer space".into()));
    let request = repair(&mut rig, 100..103);
    rig.pass(ms(60));
    rig.send = Some(Ok(()));
    rig.pass(secs(1));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(repaired(&rig), vec![3]);
    rig.send = Some(Err("no buffer space".into()));
    let request = repair(&mut rig, 100..103);
    rig.pass(secs(1));
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)]
        if why.contains("no buffer space") && why.contains("3 hosts")));
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn two_repairs_at_once_are_both_answered_when_all_are_asked() {
    let mut rig = Rig::held_on(Interface { pace: Pace::Inspected, ..INTERFACE }, SPEC);
    let first = repair(&mut rig, 100..105);
    let second = repair(&mut rig, 103..108);
    rig.pass(secs(5));
    assert_eq!((rig.answers(first), rig.answers(second)), (vec![Answer::Done], vec![Answer::Done]));
    assert_eq!(rig.frames(Purpose::Ask).len(), 8);
}
