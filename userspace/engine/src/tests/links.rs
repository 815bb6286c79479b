//! Links that go down and come up, interfaces that go away, programs that are missing.

use super::*;

const LOCAL: u8 = StateWord::LOCAL;
const DOWN: Interface = Interface { up: false, ..INTERFACE };

fn set(rig: &mut Rig, interface: Interface) {
    rig.input(Input::Interface { index: KEY.interface, interface });
}

#[test]
fn a_link_that_goes_down_silences_its_addresses_and_leaves_them_on_the_interface() {
    let mut rig = Rig::held(SPEC);
    set(&mut rig, DOWN);
    let expected = vec![
        store(State::Suspended, LOCAL, 1),
        stepped(Some(State::Online), Some(State::Suspended), Reason::LinkDown),
    ];
    assert_eq!(rig.news(), expected);
    assert!(rig.managed().is_registered());
    rig.pass(secs(600));
    assert_eq!(rig.news(), vec![]);
}

#[test]
fn a_link_that_is_up_again_within_500_ms_is_announced_on_at_once_and_once_more_after_100_ms() {
    let mut rig = Rig::held(SPEC);
    set(&mut rig, DOWN);
    rig.pass(ms(500));
    rig.news();
    set(&mut rig, INTERFACE);
    let up = rig.now;
    let news = rig.news();
    assert_eq!(news[0], store(State::Announcing, LOCAL, 1));
    assert_eq!(news[1], stepped(Some(State::Suspended), Some(State::Announcing), Reason::LinkUp));
    assert!(matches!(news[2], Action::Send { purpose: Purpose::Announcement, .. }));
    rig.until(State::Online);
    let sent: Vec<u64> = rig
        .frames(Purpose::Announcement)
        .iter()
        .filter(|(at, frame)| *at >= up && !is_reply(frame))
        .map(|(at, _)| u64::try_from(at.since(up).as_millis()).unwrap())
        .collect();
    assert_eq!(sent.len(), 5);
    assert_eq!(sent[0], 0);
    assert!((90..=110).contains(&sent[1]), "{sent:?}");
    assert_eq!(rig.frames(Purpose::Probe).len(), 3, "those of the claim");
}

#[test]
fn the_long_profile_too_is_announced_once_more_after_a_flap() {
    let mut rig = Rig::held(OnlineSpec { profile: Profile::Rfc5227, ..SPEC });
    set(&mut rig, DOWN);
    set(&mut rig, INTERFACE);
    rig.until(State::Online);
    assert_eq!(rig.frames(Purpose::Announcement).len(), 2 + 3);
}

#[test]
fn a_link_that_was_down_for_longer_is_probed_on_shielded_and_then_announced_on() {
    let mut rig = Rig::held(OnlineSpec { profile: Profile::Rfc5227, ..SPEC });
    set(&mut rig, DOWN);
    rig.pass(ms(501));
    rig.news();
    let up = rig.now;
    set(&mut rig, INTERFACE);
    let news = rig.news();
    assert_eq!(news[0], store(State::Probing, LOCAL, 2));
    assert_eq!(news[1], stepped(Some(State::Suspended), Some(State::Probing), Reason::LinkUp));
    rig.until(State::Announcing);
    assert!(rig.now.since(up) < ms(350), "the fast probes, whatever the profile");
    let first = rig.frames(Purpose::Probe)[3].0;
    assert!(first.since(up) >= ms(100), "what the switch does not forward yet is not answered either");
    let news = rig.news();
    assert!(!news.iter().any(|action| matches!(action, Action::Register { .. })), "it is there already");
    assert!(news.contains(&store(State::Announcing, LOCAL, 2)));
    rig.until(State::Online);
}

#[test]
fn an_address_that_another_host_took_while_the_link_was_down_is_lost() {
    for kind in [SightingKind::Claim, SightingKind::Probe] {
        let mut rig = Rig::held(SPEC);
        set(&mut rig, DOWN);
        rig.pass(secs(5));
        set(&mut rig, INTERFACE);
        rig.pass(ms(120));
        rig.news();
        rig.seen(rig.sighting(kind, RIVAL));
        let news = rig.news();
        assert_eq!(news[0], store(State::Lost, LOCAL, 2));
        assert!(news.contains(&Action::Deregister { key: KEY, prefix_length: 24 }));
        assert_eq!(rig.state(), Some(State::Lost));
        assert_eq!(rig.engine.poll_timeout(), None, "and that is that");
    }
}

#[test]
fn a_link_that_goes_down_again_while_it_is_probed_on_is_probed_on_again_even_after_a_moment() {
    let mut rig = Rig::held(SPEC);
    set(&mut rig, DOWN);
    rig.pass(secs(5));
    set(&mut rig, INTERFACE);
    rig.pass(ms(120));
    set(&mut rig, DOWN);
    rig.pass(ms(10));
    set(&mut rig, INTERFACE);
    assert_eq!(rig.state(), Some(State::Probing));
    rig.until(State::Online);
}

#[test]
fn probes_after_link_up_that_can_not_be_sent_do_not_give_the_address_up() {
    let mut rig = Rig::held(SPEC);
    set(&mut rig, DOWN);
    rig.pass(secs(5));
    rig.send = Some(Err("network is down".into()));
    set(&mut rig, INTERFACE);
    rig.pass(secs(20));
    assert_eq!(rig.state(), Some(State::Probing));
    assert!(rig.count(|kind| matches!(kind, EventKind::Failed { .. })) > 5, "and is loud about it");
    rig.send = Some(Ok(()));
    rig.until(State::Online);
}

#[test]
fn a_lease_holds_while_the_link_is_down_and_ends_there_too() {
    let mut rig = Rig::held(OnlineSpec { lease: Some(secs(1_000)), ..SPEC });
    set(&mut rig, DOWN);
    let request = rig.request();
    rig.input(Input::Renew { request, key: KEY, lease: secs(60) });
    assert_eq!(rig.answers(request), vec![Answer::Done], "who decides still says that it is ours");
    rig.pass(secs(59));
    rig.news();
    rig.pass(secs(1));
    let expected = vec![
        event(EventKind::LeaseExpired),
        Action::Deregister { key: KEY, prefix_length: 24 },
        store(State::Suspended, 0, 1),
    ];
    assert_eq!(rig.news(), expected);
    set(&mut rig, INTERFACE);
    rig.pass(secs(60));
    assert_eq!(rig.state(), Some(State::Suspended), "nobody claimed it again");
}

#[test]
fn a_claim_on_a_link_that_is_down_fails_without_wait_and_leaves_nothing() {
    let mut rig = Rig::with(DOWN);
    let request = rig.online(SPEC);
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("link is down")));
    assert_eq!(rig.state(), None);
    rig.watch();
    let request = rig.online(SPEC);
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("link is down")));
    assert_eq!(rig.state(), Some(State::Watched));
}

#[test]
fn a_claim_with_wait_is_suspended_until_the_link_is_up() {
    let mut rig = Rig::with(DOWN);
    let request = rig.online(OnlineSpec { wait: secs(60), ..SPEC });
    rig.pass(secs(30));
    assert_eq!((rig.state(), rig.managed().reason()), (Some(State::Suspended), Reason::LinkDown));
    set(&mut rig, INTERFACE);
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn a_claim_that_waits_for_the_link_in_vain_ends() {
    let mut rig = Rig::with(DOWN);
    let request = rig.online(OnlineSpec { wait: secs(60), ..SPEC });
    rig.pass(secs(60));
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("link is down")));
    assert_eq!((rig.state(), rig.engine.poll_timeout()), (None, None));
}

#[test]
fn a_link_that_goes_down_under_a_claim_ends_it_or_suspends_it_as_the_wait_says() {
    for step in [ms(5), ms(70), ms(180)] {
        let mut rig = Rig::new();
        let request = rig.online(SPEC);
        rig.pass(step.min(ms(100)));
        set(&mut rig, DOWN);
        assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]));
        assert_eq!(rig.state(), None);

        let mut rig = Rig::new();
        let request = rig.online(OnlineSpec { wait: secs(60), ..SPEC });
        rig.pass(step.min(ms(100)));
        set(&mut rig, DOWN);
        assert_eq!(rig.state(), Some(State::Suspended));
        set(&mut rig, INTERFACE);
        assert_eq!(rig.state(), Some(State::Probing), "however short: it was not ours");
        rig.claim_by(RIVAL);
        assert_eq!(rig.state(), Some(State::Refused));
        rig.until(State::Online);
        assert_eq!(rig.answers(request), vec![Answer::Done]);
    }
}

#[test]
fn an_address_put_on_the_interface_while_the_link_went_down_stays_there_shielded() {
    let mut rig = Rig::new();
    rig.register = None;
    let request = rig.online(OnlineSpec { wait: secs(60), ..SPEC });
    rig.pass(secs(10));
    set(&mut rig, DOWN);
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Suspended, LOCAL, 1)));
    rig.news();
    set(&mut rig, INTERFACE);
    rig.until(State::Announcing);
    assert!(!rig.news().iter().any(|action| matches!(action, Action::Register { .. })));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn a_retry_that_comes_due_while_the_link_is_down_waits_for_it() {
    let mut rig = Rig::new();
    rig.online(OnlineSpec { wait: secs(60), ..SPEC });
    rig.claim_by(RIVAL);
    set(&mut rig, DOWN);
    rig.pass(secs(5));
    assert_eq!(rig.state(), Some(State::Suspended));
    set(&mut rig, INTERFACE);
    rig.until(State::Online);
}

#[test]
fn a_flap_in_the_roll_back_window_opens_it_again() {
    let claim = Claim::Immediate { check: Duration::ZERO };
    let mut rig = Rig::new();
    rig.online(OnlineSpec { claim, ..SPEC });
    rig.pass(ms(500));
    set(&mut rig, DOWN);
    rig.pass(ms(100));
    rig.news();
    set(&mut rig, INTERFACE);
    let news = rig.news();
    let word = StateWord::new(OWN, State::Announcing, LOCAL | Policy::Yield.flags(), 1);
    assert_eq!(news[0], Action::Store { key: KEY, word });
    rig.pass(ms(1_000));
    rig.claim_by(RIVAL);
    assert_eq!((rig.state(), rig.managed().reason()), (Some(State::Refused), Reason::RolledBack));
}

#[test]
fn an_adopted_address_whose_link_is_down_is_not_taken_off_the_interface_when_the_wait_ends() {
    let mut rig = Rig::with(DOWN);
    let request = rig.online(OnlineSpec { adopt: true, wait: secs(5), ..SPEC });
    rig.pass(secs(5));
    assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]));
    assert!(!rig.news().iter().any(|action| matches!(action, Action::Deregister { .. })));
    let request = rig.online(OnlineSpec { adopt: true, wait: secs(5), ..SPEC });
    set(&mut rig, INTERFACE);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    rig.until(State::Online);
}

#[test]
fn commands_about_an_address_whose_link_is_down_wait_or_fail() {
    let mut rig = Rig::held(SPEC);
    set(&mut rig, DOWN);
    let request = rig.online(SPEC);
    assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]));
    let request = rig.announce();
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Suspended)]);
    let patient = rig.online(OnlineSpec { wait: secs(60), ..SPEC });
    let impatient = rig.online(OnlineSpec { wait: secs(1), ..SPEC });
    rig.pass(secs(2));
    assert!(matches!(rig.answers(impatient)[..], [Answer::Failed(_)]));
    assert_eq!(rig.state(), Some(State::Suspended), "it is still ours");
    set(&mut rig, INTERFACE);
    rig.until(State::Online);
    assert_eq!(rig.answers(patient), vec![Answer::Done]);
}

#[test]
fn an_address_is_given_up_while_its_link_is_down() {
    let mut rig = Rig::held(SPEC);
    set(&mut rig, DOWN);
    let request = rig.offline(false);
    assert_eq!((rig.answers(request), rig.state()), (vec![Answer::Done], None));
}

#[test]
fn an_interface_that_is_gone_takes_its_addresses_along_and_answers_every_command() {
    let mut rig = Rig::held(SPEC);
    let announce = rig.announce();
    rig.deregister = None;
    let offline = rig.offline(false);
    rig.news();
    rig.input(Input::Gone { index: KEY.interface });
    let expected = vec![
        Action::Remove { key: KEY },
        stepped(Some(State::Yielding), None, Reason::InterfaceGone),
        Action::Answer { request: offline, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    assert_eq!(rig.answers(announce), vec![Answer::Done]);
    assert_eq!((rig.state(), rig.engine.poll_timeout()), (None, None));
    let request = rig.online(SPEC);
    assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]), "it is unknown now");
    let mut rig = Rig::new();
    let online = rig.online(SPEC);
    rig.input(Input::Gone { index: KEY.interface });
    assert!(matches!(rig.answers(online)[..], [Answer::Failed(_)]));
    rig.pass(secs(60));
    assert_eq!(rig.frames(Purpose::Probe), vec![]);
}

#[test]
fn without_the_program_what_may_not_answer_leaves_the_interface_and_what_may_stays() {
    let mut rig = Rig::held(SPEC);
    rig.input(Input::ProgramMissing { index: KEY.interface });
    assert_eq!(rig.news(), vec![]);
    set(&mut rig, DOWN);
    rig.news();
    rig.input(Input::ProgramMissing { index: KEY.interface });
    let expected = vec![Action::Deregister { key: KEY, prefix_length: 24 }, store(State::Suspended, 0, 1)];
    assert_eq!(rig.news(), expected);
    rig.pass(ms(100));
    set(&mut rig, INTERFACE);
    assert_eq!(rig.state(), Some(State::Probing), "however short: it was not on the interface");
    rig.until(State::Announcing);
    assert!(rig.news().contains(&Action::Register { key: KEY, prefix_length: 24 }));
}

#[test]
fn without_the_program_a_deletion_that_failed_is_tried_at_once() {
    let mut rig = Rig::held(SPEC);
    rig.deregister = Some(Err("busy".into()));
    rig.offline(false);
    rig.deregister = Some(Ok(()));
    rig.input(Input::ProgramMissing { index: KEY.interface });
    assert_eq!(rig.state(), None);
}

#[test]
fn an_address_to_be_adopted_that_has_left_the_interface_before_the_link_is_up_is_not_answered() {
    let mut rig = Rig::with(DOWN);
    let request = rig.online(OnlineSpec { adopt: true, wait: secs(60), ..SPEC });
    rig.input(Input::Local { key: KEY, local: false });
    set(&mut rig, INTERFACE);
    assert!(
        matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("not on the interface"))
    );
    assert_eq!(rig.state(), None);
}
