//! Defending: RFC 5227 §2.4, the move budget, what is loud.

use super::*;
use crate::input::MoveBudget;

const fn policy(defend: Defend) -> OnlineSpec {
    OnlineSpec { defend, ..SPEC }
}

fn loud(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Conflict { loud: true, .. })
}

#[test]
fn a_claim_is_answered_with_one_announcement_at_once() {
    let mut rig = Rig::held(SPEC);
    let sighting = rig.claim_by(RIVAL);
    let expected = vec![
        event(EventKind::Conflict { sighting, loud: false }),
        Action::Send { key: KEY, purpose: Purpose::Defence, frame: request_form() },
        event(EventKind::Defended { claimant: claimant(RIVAL), own_mac: OWN }),
    ];
    assert_eq!(rig.news(), expected);
    assert_eq!((rig.managed().conflicts(), rig.managed().defences()), (1, 1));
}

#[test]
fn yield_gives_the_address_up_silent_first() {
    // RFC 5227 §2.4 (a)
    let mut rig = Rig::held(policy(Defend::Yield));
    rig.deregister = None;
    let sighting = rig.claim_by(RIVAL);
    let expected = vec![
        store(State::Lost, StateWord::LOCAL, 1),
        event(EventKind::Conflict { sighting, loud: false }),
        stepped(Some(State::Online), Some(State::Lost), Reason::DefendPolicy),
        Action::Deregister { key: KEY, prefix_length: 24 },
    ];
    assert_eq!(rig.news(), expected);
    rig.input(Input::Deregistered { key: KEY, result: Ok(()) });
    assert_eq!(rig.news(), vec![store(State::Lost, 0, 1)]);
    assert_eq!(rig.frames(Purpose::Defence), vec![]);
}

#[test]
fn second_conflict_within_ten_seconds_gives_it_up() {
    // RFC 5227 §2.4 (b); and a holding rival's next defence comes just after the interval.
    let mut rig = Rig::held(policy(Defend::Once));
    rig.claim_by(RIVAL);
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
    rig.pass(Duration::from_nanos(10_999_999_999));
    rig.claim_by(OTHER);
    assert_eq!(rig.state(), Some(State::Lost));
}

#[test]
fn a_conflict_well_after_the_interval_is_defended_again() {
    // RFC 5227 §2.4 (b)
    let mut rig = Rig::held(policy(Defend::Once));
    for _ in 0..5 {
        rig.claim_by(RIVAL);
        rig.pass(secs(11));
    }
    assert_eq!(rig.state(), Some(State::Online));
    assert_eq!(rig.frames(Purpose::Defence).len(), 5);
}

#[test]
fn a_repeated_claimant_counts_for_the_policy_though_no_event_comes_of_it() {
    let mut rig = Rig::held(policy(Defend::Once));
    rig.claim_by(RIVAL);
    rig.pass(secs(3));
    let sighting = Sighting { repeat: true, ..rig.sighting(SightingKind::Claim, RIVAL) };
    rig.seen(sighting);
    assert_eq!(rig.state(), Some(State::Lost));
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::Conflict { .. })), 1);
    assert_eq!(rig.managed().conflicts(), 2);
}

#[test]
fn nothing_is_done_about_the_claim_of_a_host_that_may() {
    for defend in [Defend::Yield, Defend::Once, Defend::Hold] {
        let mut rig = Rig::held(policy(defend));
        for _ in 0..3 {
            let sighting = Sighting { allowed: true, ..rig.sighting(SightingKind::Claim, RIVAL) };
            rig.seen(sighting);
            rig.pass(secs(1));
        }
        assert_eq!(rig.state(), Some(State::Online));
        assert_eq!((rig.frames(Purpose::Defence).len(), rig.managed().conflicts()), (0, 0));
        assert_eq!(rig.managed().owner().unwrap().claimant.mac, RIVAL);
        // It is no accomplice of others, nor has it used up a defence.
        rig.claim_by(OTHER);
        assert_eq!(rig.state(), Some(if defend == Defend::Yield { State::Lost } else { State::Online }));
    }
}

#[test]
fn the_time_of_the_frame_counts_not_that_of_the_report() {
    let mut rig = Rig::held(policy(Defend::Once));
    rig.claim_by(RIVAL);
    rig.pass(secs(9));
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    rig.pass(secs(2)); // the report lay in the ring for 2 s
    rig.seen(sighting);
    assert_eq!(rig.state(), Some(State::Lost));
}

#[test]
fn a_frame_that_claims_to_be_of_the_future_does_not_spoil_the_policy() {
    let mut rig = Rig::held(policy(Defend::Once));
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    rig.seen(Sighting { at: rig.now.after(secs(1_000)), ..sighting });
    rig.pass(secs(20));
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Online));
}

#[test]
fn hold_defends_once_in_an_interval_and_never_gives_up() {
    // RFC 5227 §2.4 (c)
    let mut rig = Rig::held(SPEC);
    let start = rig.now;
    for _ in 0..1_000 {
        let sighting = Sighting { repeat: true, ..rig.sighting(SightingKind::Claim, RIVAL) };
        rig.seen(sighting);
        rig.pass(ms(100));
    }
    assert_eq!(rig.state(), Some(State::Online));
    let defences = rig.frames(Purpose::Defence);
    assert_eq!(defences[0].0, start);
    assert!(defences.windows(2).all(|pair| pair[1].0.since(pair[0].0) >= secs(10)));
    assert_eq!(defences.len(), 10 + usize::from(rig.now.since(defences[9].0) >= secs(10)));
}

#[test]
fn a_rival_that_falls_silent_within_the_interval_is_answered_when_it_is_over() {
    // Third hosts' caches follow the rival's last frame until then.
    let mut rig = Rig::held(SPEC);
    rig.claim_by(RIVAL);
    rig.pass(secs(4));
    rig.claim_by(OTHER);
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
    rig.pass(ms(5_999));
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
    rig.pass(ms(1));
    assert_eq!(rig.frames(Purpose::Defence).len(), 2);
    assert!(rig.news().contains(&event(EventKind::Defended { claimant: claimant(OTHER), own_mac: OWN })));
    rig.pass(secs(100));
    assert_eq!(rig.frames(Purpose::Defence).len(), 2);
}

#[test]
fn a_defence_that_could_not_be_sent_is_tried_again_and_does_not_count() {
    let mut rig = Rig::held(SPEC);
    rig.send = Some(Err("no buffer space".into()));
    rig.claim_by(RIVAL);
    assert_eq!(rig.managed().defences(), 0);
    rig.send = Some(Ok(()));
    rig.pass(ms(50));
    assert_eq!(rig.managed().defences(), 1);
    assert_eq!(rig.frames(Purpose::Defence).len(), 2);
}

#[test]
fn a_claim_while_a_defence_is_on_its_way_is_answered_after_the_interval() {
    let mut rig = Rig::held(SPEC);
    rig.send = None;
    rig.claim_by(RIVAL);
    rig.claim_by(OTHER);
    let (_, frame) = rig.frames(Purpose::Defence)[0];
    rig.send = Some(Ok(()));
    rig.input(Input::Sent { key: KEY, purpose: Purpose::Defence, frame, result: Ok(()) });
    rig.pass(secs(10));
    assert_eq!(rig.frames(Purpose::Defence).len(), 2);
}

#[test]
fn conflicts_during_the_announcements_of_a_probed_claim_follow_the_policy() {
    for (defend, state) in
        [(Defend::Yield, State::Lost), (Defend::Once, State::Announcing), (Defend::Hold, State::Announcing)]
    {
        let mut rig = Rig::new();
        rig.online(policy(defend));
        rig.until(State::Announcing);
        rig.claim_by(RIVAL);
        assert_eq!(rig.state(), Some(state), "{defend:?}");
    }
}

#[test]
fn a_flood_of_probes_claims_nothing() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Once, ..SPEC });
    for _ in 0..3 {
        let sighting = Sighting { form: Form::Probe, count: 100, ..rig.sighting(SightingKind::Flood, RIVAL) };
        rig.input(Input::Seen { key: KEY, sighting });
        rig.pass(secs(1));
    }
    assert_eq!(rig.state(), Some(State::Online));
    assert_eq!(rig.frames(Purpose::Defence).len(), 0);
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::ClaimantFlood { .. })), 3);
}

#[test]
fn a_flood_of_claimants_is_a_conflict_too() {
    let mut rig = Rig::held(policy(Defend::Yield));
    let sighting = Sighting { count: 1_000, ..rig.sighting(SightingKind::Flood, RIVAL) };
    rig.seen(sighting);
    assert_eq!(rig.state(), Some(State::Lost));
    assert_eq!(rig.count(|kind| *kind == EventKind::ClaimantFlood { sighting }), 1);
    assert_eq!(rig.managed().conflicts(), 1_000);
}

#[test]
fn more_than_four_claims_in_180_s_are_loud() {
    let mut rig = Rig::held(SPEC);
    for n in 1..=4_u8 {
        rig.claim_by(MacAddr::new([2, 0, 0, 0, 1, n]));
        rig.pass(secs(40));
    }
    assert_eq!(rig.count(loud), 0);
    rig.claim_by(RIVAL);
    assert_eq!(rig.count(loud), 1, "the fifth within 160 s");
    rig.pass(secs(181));
    rig.claim_by(RIVAL);
    assert_eq!(rig.count(loud), 1);
    let sighting = Sighting { count: 5, ..rig.sighting(SightingKind::Claim, RIVAL) };
    rig.pass(secs(200));
    rig.seen(Sighting { at: rig.now, ..sighting });
    assert_eq!(rig.count(loud), 2, "five frames in one report");
}

#[test]
fn our_own_frame_echoed_back_is_not_a_conflict() {
    let mut rig = Rig::held(policy(Defend::Yield));
    for sibling in [false, true] {
        let sighting = rig.sighting(SightingKind::Echo { sibling }, OWN);
        rig.seen(sighting);
        assert_eq!(rig.news(), vec![event(EventKind::Echo { sighting })]);
    }
    assert_eq!(rig.state(), Some(State::Online));
}

#[test]
fn a_probe_for_an_address_of_ours_is_reported_and_no_conflict() {
    let mut rig = Rig::held(policy(Defend::Yield));
    let sighting = rig.sighting(SightingKind::Probe, RIVAL);
    rig.seen(sighting);
    assert_eq!(rig.news(), vec![event(EventKind::ProbeSeen { sighting })]);
    rig.seen(Sighting { repeat: true, ..sighting });
    assert_eq!(rig.news(), vec![]);
}

const BUDGET: MoveBudget = MoveBudget { moves: 2, window: secs(60) };
const METERED: Interface = Interface { moves: Some(BUDGET), ..INTERFACE };

#[test]
fn a_defence_beyond_the_move_budget_makes_the_address_contested() {
    let mut rig = Rig::held_on(METERED, SPEC);
    let start = rig.now;
    for _ in 0..2 {
        rig.claim_by(RIVAL);
        rig.pass(secs(10));
    }
    assert_eq!(rig.state(), Some(State::Online));
    rig.news();
    let sighting = rig.claim_by(RIVAL);
    let expected = vec![
        event(EventKind::Conflict { sighting, loud: false }),
        store(State::Contested, StateWord::LOCAL, 1),
        stepped(Some(State::Online), Some(State::Contested), Reason::MoveBudgetSpent),
    ];
    assert_eq!(rig.news(), expected);
    assert!(rig.word().unwrap().may_answer(), "still answered");
    rig.until(State::Online);
    assert_eq!(rig.now.since(start), secs(60));
    let expected = vec![
        store(State::Online, StateWord::LOCAL, 1),
        stepped(Some(State::Contested), Some(State::Online), Reason::MoveBudgetFree),
        Action::Send { key: KEY, purpose: Purpose::Defence, frame: request_form() },
        event(EventKind::Defended { claimant: claimant(RIVAL), own_mac: OWN }),
    ];
    assert_eq!(rig.news(), expected);
}

#[test]
fn under_constant_attack_defences_stay_within_the_move_budget() {
    let mut rig = Rig::held_on(Interface { moves: Some(MoveBudget::EVPN), ..INTERFACE }, SPEC);
    for _ in 0..3_000 {
        let sighting = Sighting { repeat: true, ..rig.sighting(SightingKind::Claim, RIVAL) };
        rig.seen(sighting);
        rig.pass(ms(333));
    }
    let defences = rig.frames(Purpose::Defence);
    assert!(defences.windows(2).all(|pair| pair[1].0.since(pair[0].0) >= secs(10)));
    assert!(defences.windows(5).all(|five| five[4].0.since(five[0].0) >= secs(180)));
    assert!(defences.len() >= 20, "and it is used: {}", defences.len());
}

#[test]
fn once_gives_up_in_contested_too() {
    let budget = MoveBudget { moves: 1, window: secs(60) };
    let mut rig = Rig::held_on(Interface { moves: Some(budget), ..INTERFACE }, policy(Defend::Once));
    rig.claim_by(RIVAL);
    rig.pass(secs(20));
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Contested));
    rig.pass(secs(5));
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Lost));
}

#[test]
fn a_plan_that_was_contested_goes_on_afterwards() {
    let budget = MoveBudget { moves: 1, window: secs(30) };
    let mut rig = Rig::with(Interface { moves: Some(budget), ..INTERFACE });
    rig.online(SPEC);
    rig.until(State::Announcing);
    rig.claim_by(RIVAL);
    rig.pass(ms(1_500));
    rig.until(State::Online);
    rig.pass(secs(9)); // beyond the interval, within the budget's window
    rig.announce();
    let before = rig.frames(Purpose::Announcement).len();
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Contested));
    rig.pass(secs(10));
    assert_eq!(rig.frames(Purpose::Announcement).len(), before, "announcements are moves as well");
    let request = rig.announce();
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Contested)]);
    rig.until(State::Announcing);
    assert_eq!(rig.managed().reason(), Reason::MoveBudgetFree);
    rig.pass(ms(4_400));
    assert_eq!(rig.state(), Some(State::Announcing), "with the spacing of the plan");
    rig.until(State::Online);
    assert_eq!(rig.frames(Purpose::Announcement).len(), before + 6);
}

#[test]
fn a_budget_that_is_lifted_ends_contested_at_once() {
    let mut rig = Rig::held_on(METERED, SPEC);
    for _ in 0..3 {
        rig.claim_by(RIVAL);
        rig.pass(secs(10));
    }
    assert_eq!(rig.state(), Some(State::Contested));
    rig.input(Input::Interface { index: KEY.interface, interface: INTERFACE });
    assert_eq!(rig.state(), Some(State::Online));
    assert_eq!(rig.frames(Purpose::Defence).len(), 3);
}

#[test]
fn a_frame_of_the_plan_that_waits_for_its_turn_is_held_while_contested() {
    let budget = MoveBudget { moves: 1, window: secs(30) };
    let interface = Interface { pace: Pace::Inspected, moves: Some(budget), ..INTERFACE };
    let mut rig = Rig::held_on(interface, SPEC);
    rig.claim_by(RIVAL);
    rig.pass(secs(15));
    rig.announce();
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Contested));
    rig.news();
    rig.pass(secs(10));
    assert_eq!(rig.news(), vec![], "its reply form was due 100 ms later");
    rig.until(State::Online);
    let replies = rig.frames(Purpose::Announcement).into_iter().filter(|(_, frame)| is_reply(frame));
    assert_eq!(replies.count(), 8);
}
