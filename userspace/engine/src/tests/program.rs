//! What the program does about conflicts by itself, and what the engine makes of it.

use super::*;
use crate::{input::MoveBudget, params::DEFEND_INTERVAL};

fn policy(rig: &Rig) -> Policy {
    rig.word().unwrap().policy()
}

fn by_program(rig: &Rig, fell: bool) -> Sighting {
    Sighting { defended: !fell, fell, ..rig.sighting(SightingKind::Claim, RIVAL) }
}

fn defended(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Defended { .. })
}

#[test]
fn the_word_carries_the_policy_while_the_address_may_answer() {
    for (defend, expected) in
        [(Defend::Yield, Policy::Yield), (Defend::Once, Policy::Once), (Defend::Hold, Policy::Hold)]
    {
        let mut rig = Rig::new();
        rig.online(OnlineSpec { defend, ..SPEC });
        assert_eq!(policy(&rig), Policy::Leave);
        rig.until(State::Announcing);
        assert_eq!(policy(&rig), expected);
        rig.until(State::Online);
        assert_eq!(policy(&rig), expected);
        rig.deregister = None;
        rig.offline(false);
        assert_eq!(policy(&rig), Policy::Leave);
    }
}

#[test]
fn the_program_steps_aside_while_any_claim_takes_ours_back() {
    let mut rig = Rig::new();
    rig.online(OnlineSpec { claim: Claim::Immediate { check: ms(20) }, ..SPEC });
    rig.until(State::Announcing);
    assert_eq!(policy(&rig), Policy::Yield);
    let start = rig.now;
    rig.pass(ms(1_099));
    assert_eq!(policy(&rig), Policy::Yield);
    rig.pass(ms(1));
    assert_eq!((policy(&rig), rig.now.since(start)), (Policy::Hold, ms(1_100)));
}

#[test]
fn what_the_program_has_defended_is_told_and_not_defended_again() {
    let mut rig = Rig::held(SPEC);
    rig.news();
    let sighting = by_program(&rig, false);
    rig.seen(sighting);
    let expected = vec![
        event(EventKind::Conflict { sighting, loud: false }),
        event(EventKind::Defended { claimant: claimant(RIVAL), own_mac: OWN }),
    ];
    assert_eq!(rig.news(), expected);
    rig.pass(secs(60));
    assert_eq!(rig.frames(Purpose::Defence), vec![]);
    assert_eq!((rig.managed().defences(), rig.managed().last_defence()), (1, Some(sighting.at)));
}

#[test]
fn a_defence_of_the_program_counts_for_the_interval_and_makes_ours_superfluous() {
    let mut rig = Rig::held(SPEC);
    let first = by_program(&rig, false);
    rig.seen(first);
    rig.pass(secs(2));
    rig.claim_by(RIVAL); // too early for both: ours waits
    rig.pass(secs(7));
    assert_eq!(rig.frames(Purpose::Defence), vec![]);
    rig.pass(ms(1_000));
    let ours = rig.frames(Purpose::Defence);
    assert_eq!(ours.len(), 1);
    assert_eq!(ours[0].0.since(first.at), DEFEND_INTERVAL);
    rig.pass(secs(2));
    rig.claim_by(RIVAL);
    rig.pass(secs(7));
    rig.now = rig.now.after(ms(1_500)); // the program was faster
    rig.seen(by_program(&rig, false));
    rig.pass(secs(60));
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
}

#[test]
fn a_defence_that_the_program_was_faster_with_is_not_counted_twice() {
    let moves = Some(MoveBudget { moves: 2, window: secs(60) });
    let mut rig = Rig::held_on(Interface { moves, ..INTERFACE }, SPEC);
    rig.send = None;
    rig.claim_by(RIVAL);
    let frame = rig.frames(Purpose::Defence)[0].1;
    rig.pass(ms(1));
    let by_program = by_program(&rig, false);
    rig.seen(by_program);
    let result = Err("the program has defended it".into());
    rig.input(Input::Sent { key: KEY, purpose: Purpose::Defence, frame, result });
    assert_eq!(rig.managed().last_defence(), Some(by_program.at));
    rig.send = Some(Ok(()));
    rig.pass(secs(11));
    rig.claim_by(RIVAL);
    rig.pass(secs(1));
    assert_eq!(rig.state(), Some(State::Online), "two moves, not three");
    assert_eq!(rig.managed().defences(), 2);
}

#[test]
fn the_move_budget_counts_what_the_program_has_spent() {
    let mut rig = Rig::held_on(Interface { moves: Some(MoveBudget::EVPN), ..INTERFACE }, SPEC);
    for _ in 0..4 {
        rig.seen(by_program(&rig, false));
        rig.pass(secs(11));
    }
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Contested));
    assert_eq!(rig.frames(Purpose::Defence), vec![]);
    assert_eq!(rig.count(defended), 4);
}

#[test]
fn an_address_that_the_program_has_given_up_is_lost_whatever_the_engine_has_counted() {
    for defend in [Defend::Yield, Defend::Once, Defend::Hold] {
        let mut rig = Rig::held(OnlineSpec { defend, ..SPEC });
        rig.seen(by_program(&rig, true));
        assert_eq!(rig.news()[0], store(State::Lost, StateWord::LOCAL, 1));
        assert_eq!(rig.managed().reason(), Reason::DefendPolicy);
        assert!(!rig.managed().is_registered());
    }
}

#[test]
fn under_once_what_the_program_has_defended_was_no_second_conflict() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Once, ..SPEC });
    rig.seen(by_program(&rig, false));
    rig.pass(ms(10_500));
    rig.seen(by_program(&rig, false));
    assert_eq!(rig.state(), Some(State::Online));
}

#[test]
fn an_address_that_the_program_gave_up_just_before_its_link_went_down_is_lost() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    let sighting = by_program(&rig, true);
    for up in [false, true] {
        rig.input(Input::Interface { index: KEY.interface, interface: Interface { up, ..INTERFACE } });
    }
    assert_eq!(rig.state(), Some(State::Announcing), "the report is late");
    rig.pass(ms(1));
    rig.seen(sighting);
    assert_eq!(rig.state(), Some(State::Lost));
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    let sighting = by_program(&rig, true);
    rig.input(Input::Interface { index: KEY.interface, interface: Interface { up: false, ..INTERFACE } });
    rig.seen(sighting);
    assert_eq!(rig.state(), Some(State::Lost));
}

#[test]
fn what_the_program_gave_up_under_an_earlier_claim_is_not_lost_again() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    let sighting = by_program(&rig, true);
    rig.seen(sighting);
    rig.pass(secs(1));
    rig.online(SPEC);
    rig.until(State::Online);
    rig.seen(sighting); // the report once more
    assert_eq!(rig.state(), Some(State::Online));
}

#[test]
fn a_defence_reported_after_the_end_is_told_all_the_same() {
    let mut rig = Rig::held(SPEC);
    rig.deregister = None;
    rig.offline(false);
    rig.seen(by_program(&rig, false));
    assert_eq!(rig.count(defended), 1);
    assert_eq!(rig.state(), Some(State::Yielding));
}
