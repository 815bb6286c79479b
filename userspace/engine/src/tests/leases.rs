//! Leases: nothing is done in the name of one that is past.

use super::*;

const LOCAL: u8 = StateWord::LOCAL;
const LEASED: OnlineSpec = OnlineSpec { lease: Some(secs(30)), ..SPEC };

fn end(rig: &Rig, lease: Duration) -> MonoTime {
    rig.now.after(lease - ms(10))
}

fn renew(rig: &mut Rig, lease: Duration) -> Vec<Answer> {
    let request = rig.request();
    rig.input(Input::Renew { request, key: KEY, lease });
    rig.answers(request)
}

fn lease_actions(rig: &Rig) -> Vec<Option<MonoTime>> {
    let leases = rig.trace.iter().filter_map(|(_, action)| match action {
        Action::Lease { until, .. } => Some(*until),
        _ => None,
    });
    leases.collect()
}

fn expired(kind: &EventKind) -> bool {
    *kind == EventKind::LeaseExpired
}

/// Ours under a lease of 1,000 s, 900 of which are left.
fn leased() -> Rig {
    Rig::held(OnlineSpec { lease: Some(secs(1_000)), ..SPEC })
}

#[test]
fn a_lease_counts_from_the_command_on_and_is_told_a_jiffy_early_before_the_word_that_answers() {
    let mut rig = Rig::new();
    let until = end(&rig, secs(30));
    rig.online(LEASED);
    rig.until(State::Announcing);
    assert_eq!(rig.managed().lease_until(), Some(until));
    let news = rig.news();
    assert_eq!(news[0], remember(LEASED));
    let told = news.iter().position(|action| *action == Action::Lease { key: KEY, until: Some(until) });
    let answers = news.iter().position(|action| *action == store(State::Announcing, LOCAL, 1));
    assert!(told.unwrap() < answers.unwrap());
}

#[test]
fn an_adopted_address_with_a_lease_answers_only_once_the_lease_is_told() {
    let mut rig = Rig::new();
    let until = Some(end(&rig, secs(30)));
    rig.online(OnlineSpec { adopt: true, ..LEASED });
    let words: Vec<Action> = rig
        .news()
        .into_iter()
        .filter(|action| {
            matches!(action, Action::Install { .. } | Action::Store { .. } | Action::Lease { .. })
        })
        .collect();
    let expected = vec![
        // Never shielded: its kernel answers until then.
        Action::Install { key: KEY, word: StateWord::new(OWN, State::Watched, LOCAL, 1) },
        Action::Lease { key: KEY, until },
        store(State::Announcing, LOCAL, 1),
    ];
    assert_eq!(words, expected);
}

#[test]
fn at_the_end_of_its_lease_an_address_is_silent_first_and_then_off_the_interface() {
    let mut rig = leased();
    rig.pass(secs(900));
    let expected = vec![
        store(State::Suspended, LOCAL, 1),
        event(EventKind::LeaseExpired),
        stepped(Some(State::Online), Some(State::Suspended), Reason::LeaseExpired),
        Action::Deregister { key: KEY, prefix_length: 24 },
        store(State::Suspended, 0, 1),
    ];
    assert_eq!(rig.news(), expected);
    assert_eq!((rig.engine.poll_timeout(), rig.managed().reason()), (None, Reason::LeaseExpired));
}

#[test]
fn a_lease_that_is_renewed_in_time_never_ends() {
    let mut rig = Rig::held(OnlineSpec { lease: Some(secs(1_000)), ..SPEC });
    for _ in 0..100 {
        assert_eq!(renew(&mut rig, secs(3)), vec![Answer::Done]);
        rig.pass(secs(2));
    }
    assert_eq!(rig.state(), Some(State::Online));
    assert_eq!(rig.count(expired), 0);
    let told = rig.news();
    assert!(told.iter().all(|action| matches!(action, Action::Lease { .. } | Action::Answer { .. })));
    rig.pass(secs(1));
    assert_eq!(rig.state(), Some(State::Suspended));
}

#[test]
fn the_same_claim_again_with_a_lease_renews_it_and_without_one_leaves_it_as_it_is() {
    let mut rig = leased();
    let request = rig.online(OnlineSpec { lease: Some(secs(5)), ..SPEC });
    let until = end(&rig, secs(5));
    assert_eq!(rig.answers(request), vec![Answer::Already(State::Online)]);
    assert_eq!(rig.managed().lease_until(), Some(until));
    let request = rig.online(SPEC);
    assert_eq!(rig.answers(request), vec![Answer::Already(State::Online)]);
    assert_eq!(rig.managed().lease_until(), Some(until));
}

#[test]
fn renew_gives_an_address_without_a_lease_one_and_that_is_written_down() {
    let mut rig = Rig::held(SPEC);
    assert_eq!(renew(&mut rig, secs(7)), vec![Answer::Done]);
    let until = Some(end(&rig, secs(7)));
    let news = rig.news();
    let spec = OnlineSpec { lease: Some(secs(7)), ..SPEC };
    assert_eq!(news[..2], [Action::Lease { key: KEY, until }, remember(spec)]);
    rig.pass(secs(7));
    assert_eq!(rig.state(), Some(State::Suspended));
}

#[test]
fn a_lease_that_is_past_is_not_renewed_but_claimed_again() {
    let mut rig = leased();
    rig.now = rig.now.after(secs(2_000)); // the machine slept: nothing was called
    assert!(matches!(&renew(&mut rig, secs(30))[..], [Answer::Failed(why)] if why.contains("past")));
    assert_eq!(rig.state(), Some(State::Suspended));
    let spec = OnlineSpec { defend: Defend::Once, ..SPEC };
    let request = rig.online(spec);
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(rig.managed().generation(), 2);
    assert_eq!(lease_actions(&rig).last(), Some(&None), "another claim, another lease: none");
}

#[test]
fn renew_is_not_for_addresses_that_are_not_ours() {
    let mut rig = Rig::new();
    assert_eq!(renew(&mut rig, secs(3)), vec![Answer::Unknown]);
    rig.watch();
    assert_eq!(renew(&mut rig, secs(3)), vec![Answer::WrongState(State::Watched)]);
    rig.online(SPEC);
    assert_eq!(renew(&mut rig, secs(300)), vec![Answer::Done], "a claim under way is bounded too");
    rig.claim_by(RIVAL);
    assert_eq!(renew(&mut rig, secs(3)), vec![Answer::WrongState(State::Refused)]);
}

#[test]
fn a_lease_that_is_over_before_it_begins_is_refused() {
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { lease: Some(ms(10)), ..SPEC });
    assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]));
    assert_eq!(rig.state(), None);
    let mut rig = leased();
    assert!(matches!(renew(&mut rig, Duration::ZERO)[..], [Answer::Failed(_)]));
    assert_eq!(rig.state(), Some(State::Online));
}

#[test]
fn whatever_comes_first_after_a_sleep_finds_the_address_silent() {
    let inputs: [fn(&Rig) -> Input; 5] = [
        |rig| Input::Seen { key: KEY, sighting: rig.sighting(SightingKind::Claim, RIVAL) },
        |_| Input::Announce { request: RequestId(50), key: KEY },
        |_| Input::Repair { request: RequestId(50), key: KEY, neighbours: vec![] },
        |_| Input::Interface { index: KEY.interface, interface: Interface { mac: OTHER, ..INTERFACE } },
        |_| Input::Local { key: KEY, local: false },
    ];
    for input in inputs {
        let mut rig = leased();
        rig.now = rig.now.after(secs(2_000));
        let input = input(&rig);
        rig.input(input);
        let news = rig.news();
        assert!(matches!(news[0], Action::Store { word, .. } if word.is(State::Suspended)), "{news:?}");
        rig.pass(secs(60));
        assert!(!rig.news().iter().any(|action| matches!(action, Action::Send { .. })));
    }
}

#[test]
fn a_defence_that_waits_for_its_interval_does_not_leave_after_the_lease() {
    let mut rig = Rig::held(SPEC);
    rig.claim_by(RIVAL);
    renew(&mut rig, secs(5));
    rig.pass(secs(1));
    rig.claim_by(RIVAL);
    rig.pass(secs(60));
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
}

#[test]
fn a_claim_whose_lease_runs_out_ends_and_takes_back_what_the_kernel_does_meanwhile() {
    let mut rig = Rig::new();
    rig.register = None;
    let request = rig.online(OnlineSpec { lease: Some(secs(10)), ..SPEC });
    rig.pass(secs(20)); // the kernel takes its time
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("ran out")));
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Suspended, LOCAL, 1)));
    rig.news();
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    let expected = vec![Action::Deregister { key: KEY, prefix_length: 24 }, store(State::Suspended, 0, 1)];
    assert_eq!(rig.news(), expected);
}

#[test]
fn a_refused_claim_is_not_tried_again_after_its_lease() {
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { wait: secs(600), lease: Some(ms(200)), ..SPEC });
    rig.claim_by(RIVAL);
    rig.pass(secs(600));
    assert_eq!(rig.state(), Some(State::Refused));
    assert!(matches!(rig.answers(request)[..], [Answer::Taken { .. }]));
    assert_eq!(rig.frames(Purpose::Probe), vec![]);
    assert_eq!(rig.count(expired), 1);
}

#[test]
fn a_lease_that_ends_in_the_roll_back_window_ends_the_wait_for_it() {
    let claim = Claim::Immediate { check: ms(20) };
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { claim, wait: secs(60), lease: Some(ms(500)), ..SPEC });
    rig.pass(ms(100));
    assert_eq!(rig.state(), Some(State::Announcing));
    rig.pass(secs(5));
    assert_eq!(rig.state(), Some(State::Suspended));
    assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]));
    let sent = rig.frames(Purpose::Announcement);
    assert!(sent.iter().all(|(at, _)| at.since(sent[0].0) < ms(500)));
}

#[test]
fn the_repairs_of_a_roll_back_go_on_after_the_lease_for_they_are_in_the_owners_name() {
    let claim = Claim::Immediate { check: Duration::ZERO };
    let mut rig = Rig::new();
    rig.online(OnlineSpec { claim, wait: secs(60), lease: Some(ms(200)), ..SPEC });
    rig.claim_by(RIVAL);
    rig.pass(secs(30));
    let repairs = rig.frames(Purpose::Repair);
    assert_eq!(repairs.len(), 3);
    assert!(repairs.iter().all(|(_, frame)| frame.sender_mac == RIVAL));
    assert_eq!(rig.state(), Some(State::Refused));
}

#[test]
fn an_address_whose_lease_is_past_can_be_watched_or_given_up() {
    let mut rig = leased();
    rig.pass(secs(1_000));
    let request = rig.watch();
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(rig.state(), Some(State::Watched));
    let request = rig.offline(false);
    assert_eq!((rig.answers(request), rig.state()), (vec![Answer::Done], None));
}

#[test]
fn the_kernel_is_asked_again_if_it_will_not_delete_an_address_whose_lease_is_past() {
    let mut rig = leased();
    rig.deregister = Some(Err("busy".into()));
    rig.pass(secs(901));
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Suspended, LOCAL, 1)), "shielded");
    rig.deregister = Some(Ok(()));
    rig.pass(secs(30));
    assert!(!rig.managed().is_registered());
}

#[test]
fn a_claim_that_waits_for_another_owner_to_go_is_renewed_meanwhile() {
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { wait: secs(600), lease: Some(secs(3)), ..SPEC });
    rig.pass(ms(30));
    for _ in 0..20 {
        rig.claim_by(RIVAL);
        assert_eq!(renew(&mut rig, secs(3)), vec![Answer::Done]);
        rig.pass(ms(100));
    }
    renew(&mut rig, secs(300));
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}
