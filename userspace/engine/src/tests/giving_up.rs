//! Yielding, and what the kernel may do meanwhile.

use super::*;

const LOCAL: u8 = StateWord::LOCAL;

#[test]
fn offline_is_silent_first_then_off_the_interface_then_gone() {
    let mut rig = Rig::held(SPEC);
    let request = rig.offline(false);
    let expected = vec![
        store(State::Yielding, LOCAL, 1),
        stepped(Some(State::Online), Some(State::Yielding), Reason::Commanded),
        Action::Deregister { key: KEY, prefix_length: 24 },
        Action::Remove { key: KEY },
        stepped(Some(State::Yielding), None, Reason::Deregistered),
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn offline_with_watch_goes_on_watching() {
    let mut rig = Rig::held(SPEC);
    let request = rig.offline(true);
    let expected = vec![
        store(State::Yielding, LOCAL, 1),
        stepped(Some(State::Online), Some(State::Yielding), Reason::Commanded),
        Action::Deregister { key: KEY, prefix_length: 24 },
        store(State::Watched, 0, 1),
        stepped(Some(State::Yielding), Some(State::Watched), Reason::Commanded),
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    let request = rig.offline(true);
    assert_eq!(rig.answers(request), vec![Answer::Already(State::Watched)]);
    let request = rig.offline(false);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(rig.state(), None);
    let request = rig.offline(false);
    assert_eq!(rig.answers(request), vec![Answer::Unknown]);
}

#[test]
fn an_address_that_the_kernel_will_not_delete_stays_yielding_and_is_tried_again() {
    let mut rig = Rig::held(SPEC);
    rig.deregister = Some(Err("device busy".into()));
    let request = rig.offline(false);
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("device busy")));
    let start = rig.now;
    rig.pass(secs(130));
    assert_eq!(rig.state(), Some(State::Yielding));
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Yielding, LOCAL, 1)));
    let asked: Vec<u64> = rig
        .trace
        .iter()
        .filter(|(_, action)| matches!(action, Action::Deregister { .. }))
        .map(|(at, _)| at.since(start).as_secs())
        .collect();
    assert_eq!(asked, vec![0, 1, 3, 7, 15, 31, 61, 91, 121]);
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::Failed { .. })), asked.len());
    let online = rig.online(SPEC);
    assert_eq!(rig.answers(online), vec![Answer::WrongState(State::Yielding)]);
    rig.deregister = Some(Ok(()));
    let again = rig.offline(false);
    assert_eq!(rig.answers(again), vec![Answer::Done], "asked again, tried at once");
    assert_eq!(rig.state(), None);
    assert_eq!(rig.answers(request).len(), 1);
}

#[test]
fn offline_while_probing_answers_both_commands() {
    let mut rig = Rig::new();
    let online = rig.online(SPEC);
    rig.pass(ms(50));
    rig.news();
    let offline = rig.offline(false);
    let expected = vec![
        Action::Remove { key: KEY },
        stepped(Some(State::Probing), None, Reason::Commanded),
        Action::Answer { request: offline, answer: Answer::Done },
        Action::Answer { request: online, answer: Answer::Superseded },
    ];
    assert_eq!(rig.news(), expected);
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn offline_while_the_kernel_registers_waits_for_it_and_takes_it_back() {
    let (mut rig, online) = Rig::registering(SPEC);
    let offline = rig.offline(false);
    assert_eq!(rig.state(), Some(State::Yielding));
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Yielding, LOCAL, 1)));
    assert_eq!(rig.answers(online), vec![Answer::Superseded]);
    assert_eq!(rig.answers(offline), vec![]);
    rig.news();
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    let expected = vec![
        Action::Deregister { key: KEY, prefix_length: 24 },
        Action::Remove { key: KEY },
        stepped(Some(State::Yielding), None, Reason::Deregistered),
        Action::Answer { request: offline, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
}

#[test]
fn offline_of_a_refused_address_ends_its_retries() {
    let mut rig = Rig::new();
    let online = rig.online(OnlineSpec { wait: secs(60), ..SPEC });
    rig.claim_by(RIVAL);
    let offline = rig.offline(false);
    assert_eq!(rig.answers(online), vec![Answer::Superseded]);
    assert_eq!(rig.answers(offline), vec![Answer::Done]);
    assert_eq!((rig.state(), rig.engine.poll_timeout()), (None, None));
}

#[test]
fn watching_a_lost_address_that_is_still_on_the_interface_does_not_lift_its_shield() {
    // `watched` is never shielded, so the kernel would answer for what is another host's.
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    rig.deregister = Some(Err("busy".into()));
    rig.claim_by(RIVAL);
    let request = rig.watch();
    assert_eq!(rig.state(), Some(State::Yielding));
    rig.deregister = Some(Ok(()));
    rig.until(State::Watched);
    assert!(!rig.word().unwrap().is_local());
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn a_lost_address_that_the_kernel_will_not_delete_is_shielded_and_tried_again() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    rig.deregister = Some(Err("busy".into()));
    rig.claim_by(RIVAL);
    rig.pass(secs(20));
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Lost, LOCAL, 1)));
    rig.deregister = Some(Ok(()));
    rig.pass(secs(20));
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Lost, 0, 1)));
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn an_old_report_of_a_deletion_does_not_take_the_shield_down() {
    let (mut rig, _) = Rig::registering(SPEC);
    rig.input(Input::Local { key: KEY, local: false });
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Probing, LOCAL, 1)));
    assert_eq!(rig.news(), vec![]);
}

#[test]
fn an_address_that_somebody_else_took_off_the_interface_is_only_reported_where_that_is_asked_for() {
    let mut rig = Rig::held(OnlineSpec { on_removed: OnRemoved::Report, ..SPEC });
    rig.input(Input::Local { key: KEY, local: false });
    assert_eq!(rig.news(), vec![store(State::Online, 0, 1), event(EventKind::AddressRemoved)]);
    rig.input(Input::Local { key: KEY, local: false });
    assert_eq!(rig.news(), vec![]);
    let request = rig.offline(false);
    assert!(rig.news().contains(&Action::Deregister { key: KEY, prefix_length: 24 }), "to be sure");
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn frames_that_waited_for_their_turn_do_not_leave_after_the_end() {
    let mut rig = Rig::with(Interface { pace: Pace::Inspected, ..INTERFACE });
    rig.online(OnlineSpec { adopt: true, ..SPEC });
    rig.claim_by(RIVAL);
    rig.news();
    rig.offline(true);
    rig.pass(secs(60));
    assert!(!rig.news().iter().any(|action| matches!(action, Action::Send { .. })));
}
