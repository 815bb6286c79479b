//! Addresses that somebody else takes off the interface, or puts there; addresses that are not to be there at all.

use super::*;
use crate::params::{RESTORATIONS, RESTORATIONS_WINDOW};

const LOCAL: u8 = StateWord::LOCAL;
const UNREGISTERED: OnlineSpec = OnlineSpec { register: Register::None, ..SPEC };

fn local(rig: &mut Rig, local: bool) {
    rig.input(Input::Local { key: KEY, local });
}

fn removed(kind: &EventKind) -> bool {
    *kind == EventKind::AddressRemoved
}

fn added(kind: &EventKind) -> bool {
    *kind == EventKind::AddressAdded
}

#[test]
fn an_address_that_somebody_else_took_off_the_interface_is_put_back_and_answered_all_the_time() {
    let mut rig = Rig::held(SPEC);
    rig.register = None;
    local(&mut rig, false);
    let expected = vec![event(EventKind::AddressRemoved), Action::Register { key: KEY, prefix_length: 24 }];
    assert_eq!(rig.news(), expected);
    assert_eq!(rig.word(), Some(word(State::Online, LOCAL, 1)), "shielded in case the program gives it up");
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    local(&mut rig, true);
    assert_eq!(rig.news(), vec![event(EventKind::AddressRestored)]);
    rig.pass(secs(60));
    assert_eq!(rig.news(), vec![]);
}

#[test]
fn an_address_that_can_not_be_put_back_is_lost() {
    let mut rig = Rig::held(SPEC);
    rig.register = Some(Err("no such device".into()));
    local(&mut rig, false);
    let news = rig.news();
    assert_eq!(news[2], store(State::Lost, 0, 1));
    assert!(matches!(&news[3], Action::Event(Event { kind: EventKind::Failed { what }, .. })
        if what.contains("no such device")));
    assert_eq!(news[4], stepped(Some(State::Online), Some(State::Lost), Reason::AddressRemoved));
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn an_address_that_somebody_else_has_put_back_meanwhile_is_kept() {
    let mut rig = Rig::held(SPEC);
    rig.register = None;
    local(&mut rig, false);
    local(&mut rig, true);
    rig.input(Input::Registered { key: KEY, result: Err("exists".into()) });
    rig.pass(secs(5));
    assert_eq!(rig.state(), Some(State::Online));
    let request = rig.offline(false);
    assert!(rig.news().contains(&Action::Deregister { key: KEY, prefix_length: 24 }));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn an_address_that_is_taken_off_again_and_again_is_given_up_in_the_end() {
    let mut rig = Rig::held(SPEC);
    for _ in 0..RESTORATIONS {
        local(&mut rig, false);
        local(&mut rig, true);
        rig.pass(secs(2));
        assert_eq!(rig.state(), Some(State::Online));
    }
    rig.news();
    local(&mut rig, false);
    let news = rig.news();
    assert_eq!(news[0], store(State::Lost, 0, 1));
    assert_eq!(news[1], event(EventKind::AddressRemoved));
    assert_eq!((rig.state(), rig.managed().reason()), (Some(State::Lost), Reason::AddressRemoved));

    let mut rig = Rig::held(SPEC);
    for _ in 0..10 {
        local(&mut rig, false);
        local(&mut rig, true);
        rig.pass(RESTORATIONS_WINDOW / 3 + ms(1));
    }
    assert_eq!(rig.state(), Some(State::Online), "seldom enough to be an accident");
}

#[test]
fn an_address_is_given_up_at_once_where_that_is_asked_for() {
    let mut rig = Rig::held(OnlineSpec { on_removed: OnRemoved::GiveUp, ..SPEC });
    local(&mut rig, false);
    let news = rig.news();
    assert_eq!(news[0], store(State::Lost, 0, 1));
    assert_eq!(news[1], event(EventKind::AddressRemoved));
    assert!(!news.iter().any(|action| matches!(action, Action::Register { .. } | Action::Deregister { .. })));
}

#[test]
fn a_late_report_of_an_old_deletion_is_no_removal() {
    // Given up and claimed again: the deletion is acknowledged, its report is still on its way.
    let mut rig = Rig::held(SPEC);
    rig.offline(true);
    rig.online(SPEC);
    rig.until(State::Announcing);
    rig.news();
    for report in [true, false] {
        local(&mut rig, report); // of the first registration and of its deletion
    }
    rig.pass(ms(50));
    local(&mut rig, true); // of the second one
    rig.pass(secs(30));
    assert_eq!(rig.count(removed), 0);
    assert!(!rig.news().iter().any(|action| matches!(action, Action::Register { .. })));
    assert_eq!(rig.state(), Some(State::Online));
}

#[test]
fn a_removal_right_after_the_registration_is_found_out_a_second_later() {
    let mut rig = Rig::new();
    rig.online(SPEC);
    rig.until(State::Announcing);
    rig.news();
    local(&mut rig, true);
    local(&mut rig, false);
    rig.pass(ms(999));
    assert_eq!(rig.count(removed), 0);
    rig.pass(ms(2));
    assert_eq!(rig.count(removed), 1);
    assert!(rig.news().contains(&event(EventKind::AddressRestored)));
}

#[test]
fn somebody_else_who_configures_a_watched_or_a_silent_address_is_reported_and_the_silent_one_is_shielded() {
    let mut rig = Rig::new();
    rig.watch();
    rig.pass(secs(5));
    local(&mut rig, true);
    assert_eq!(rig.count(added), 1);
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    rig.claim_by(RIVAL);
    rig.pass(secs(5));
    rig.news();
    local(&mut rig, true);
    assert_eq!(rig.news(), vec![store(State::Lost, LOCAL, 1), event(EventKind::AddressAdded)]);
    local(&mut rig, false);
    assert_eq!(rig.news(), vec![store(State::Lost, 0, 1)]);
}

#[test]
fn reports_of_our_own_registration_and_deletion_are_no_additions() {
    let mut rig = Rig::held(SPEC);
    rig.offline(true);
    for report in [true, false] {
        local(&mut rig, report); // both late
    }
    rig.pass(secs(5));
    assert_eq!(rig.count(added), 0);
    rig.online(SPEC);
    rig.until(State::Announcing);
    rig.offline(true);
    local(&mut rig, true);
    rig.pass(secs(5));
    assert_eq!(rig.count(added), 1, "but one that stays is");
}

#[test]
fn an_address_that_is_not_to_be_registered_never_touches_the_kernel() {
    let mut rig = Rig::new();
    let request = rig.online(UNREGISTERED);
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(rig.word(), Some(word(State::Online, 0, 1)));
    rig.news();
    let request = rig.offline(false);
    let expected = vec![
        Action::Remove { key: KEY },
        stepped(Some(State::Online), None, Reason::Commanded),
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    let kernel = |(_, action): &&(MonoTime, Action)| {
        matches!(action, Action::Register { .. } | Action::Deregister { .. })
    };
    assert_eq!(rig.trace.iter().filter(kernel).count(), 0);
}

#[test]
fn an_address_that_is_not_to_be_registered_and_is_configured_after_all_is_reported() {
    let mut rig = Rig::held(UNREGISTERED);
    local(&mut rig, true);
    assert_eq!(rig.news(), vec![store(State::Online, LOCAL, 1), event(EventKind::AddressAdded)]);
    local(&mut rig, false);
    assert_eq!(rig.news(), vec![store(State::Online, 0, 1)]);
    assert_eq!(rig.count(removed), 0);
}

#[test]
fn a_rival_of_an_address_that_is_not_registered_takes_it_at_once() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..UNREGISTERED });
    rig.claim_by(RIVAL);
    assert_eq!(rig.news()[0], store(State::Lost, 0, 1));
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn register_and_on_removed_are_lasting_parameters() {
    let mut rig = Rig::held(SPEC);
    for spec in [UNREGISTERED, OnlineSpec { on_removed: OnRemoved::Report, ..SPEC }] {
        let request = rig.online(spec);
        assert_eq!(rig.answers(request), vec![Answer::Differs { present: SPEC }]);
    }
}

#[test]
fn an_address_that_the_kernel_still_has_is_left_to_others_if_it_is_adopted_without_registration() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    rig.deregister = Some(Err("busy".into()));
    rig.claim_by(RIVAL);
    rig.online(OnlineSpec { adopt: true, ..UNREGISTERED });
    rig.news();
    rig.pass(secs(60));
    assert_eq!(rig.state(), Some(State::Online));
    assert!(!rig.news().iter().any(|action| matches!(action, Action::Deregister { .. })));
}

#[test]
fn an_address_taken_off_while_its_link_is_down_is_put_back() {
    let mut rig = Rig::held(SPEC);
    rig.input(Input::Interface { index: KEY.interface, interface: Interface { up: false, ..INTERFACE } });
    rig.news();
    local(&mut rig, false);
    let expected = vec![
        event(EventKind::AddressRemoved),
        Action::Register { key: KEY, prefix_length: 24 },
        event(EventKind::AddressRestored),
    ];
    assert_eq!(rig.news(), expected);
    assert_eq!(rig.state(), Some(State::Suspended));
}
