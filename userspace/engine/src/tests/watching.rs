//! Watching, and what is learnt of owners.

use super::*;

fn unwatch(rig: &mut Rig) -> RequestId {
    let request = rig.request();
    rig.input(Input::Unwatch { request, key: KEY });
    request
}

#[test]
fn watch_is_done_when_the_datapath_knows_the_address() {
    let mut rig = Rig::new();
    let request = rig.watch();
    let expected = vec![
        Action::Install { key: KEY, word: StateWord::new(OWN, State::Watched, 0, 0) },
        stepped(None, Some(State::Watched), Reason::Commanded),
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    let again = rig.watch();
    assert_eq!(rig.answers(again), vec![Answer::Already(State::Watched)]);
    rig.news();
    let request = unwatch(&mut rig);
    let expected = vec![
        Action::Remove { key: KEY },
        stepped(Some(State::Watched), None, Reason::Commanded),
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    let request = unwatch(&mut rig);
    assert_eq!(rig.answers(request), vec![Answer::Unknown]);
}

#[test]
fn watch_and_unwatch_are_not_for_addresses_of_ours() {
    let mut rig = Rig::held(SPEC);
    let request = rig.watch();
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Online)]);
    let request = unwatch(&mut rig);
    assert_eq!(rig.answers(request), vec![Answer::WrongState(State::Online)]);
    assert_eq!(rig.news().len(), 2, "and change nothing");
}

#[test]
fn watch_on_a_refused_address_goes_on_watching_it() {
    let mut rig = Rig::new();
    rig.online(SPEC);
    rig.claim_by(RIVAL);
    let request = rig.watch();
    assert_eq!(rig.state(), Some(State::Watched));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn the_first_owner_and_every_change_are_reported() {
    let mut rig = Rig::new();
    rig.watch();
    let first = rig.claim_by(RIVAL);
    rig.pass(secs(100));
    rig.seen(Sighting { owner_changed: false, repeat: true, ..rig.sighting(SightingKind::Claim, RIVAL) });
    let second = rig.claim_by(OTHER);
    let changes: Vec<EventKind> =
        rig.events().into_iter().filter(|kind| !matches!(kind, EventKind::State { .. })).collect();
    assert_eq!(
        changes,
        vec![EventKind::OwnerChanged { sighting: first }, EventKind::OwnerChanged { sighting: second }]
    );
    assert_eq!(rig.managed().owner().unwrap().claimant.mac, OTHER);
}

#[test]
fn two_changes_of_owner_within_ten_seconds_are_a_conflict() {
    let conflicts = |rig: &Rig| rig.count(|kind| matches!(kind, EventKind::Conflict { .. }));
    let mut rig = Rig::new();
    rig.watch();
    rig.claim_by(RIVAL);
    rig.claim_by(OTHER);
    assert_eq!(conflicts(&rig), 0, "the first owner is no change");
    rig.pass(secs(9));
    rig.claim_by(RIVAL);
    assert_eq!(conflicts(&rig), 1);
    rig.pass(secs(10));
    rig.claim_by(OTHER);
    assert_eq!(conflicts(&rig), 1, "a hand-over now and then is none");
}

#[test]
fn a_quarrel_between_known_hosts_is_told_once_in_ten_seconds() {
    let mut rig = Rig::new();
    rig.watch();
    for n in 0..100 {
        let mac = if n % 2 == 0 { RIVAL } else { OTHER };
        let sighting = rig.sighting(SightingKind::Claim, mac);
        rig.seen(Sighting { repeat: n > 1, ..sighting });
        rig.pass(ms(200));
    }
    let conflicts = rig.count(|kind| matches!(kind, EventKind::Conflict { .. }));
    assert_eq!(conflicts, 2, "20 s of it");
}

#[test]
fn what_was_learnt_while_watching_is_kept_when_it_is_claimed() {
    let mut rig = Rig::new();
    rig.watch();
    rig.claim_by(RIVAL);
    rig.news();
    rig.online(SPEC);
    let news = rig.news();
    assert_eq!(news[0], remember(SPEC));
    assert_eq!(news[1], store(State::Probing, 0, 1));
    assert_eq!(news[2], stepped(Some(State::Watched), Some(State::Probing), Reason::Commanded));
    rig.until(State::Online);
    assert_eq!(rig.managed().owner().unwrap().claimant.mac, RIVAL);
}

#[test]
fn the_successor_of_a_lost_or_yielding_address_is_reported_and_not_fought() {
    let mut rig = Rig::held(SPEC);
    rig.deregister = None;
    rig.offline(false);
    let sighting = rig.claim_by(RIVAL);
    assert_eq!(rig.news().last(), Some(&event(EventKind::OwnerChanged { sighting })));
    rig.pass(secs(60));
    assert_eq!(rig.frames(Purpose::Defence), vec![]);
}

#[test]
fn a_flood_at_a_watched_address_is_passed_on() {
    let mut rig = Rig::new();
    rig.watch();
    rig.news();
    let sighting = Sighting { count: 500, ..rig.sighting(SightingKind::Flood, RIVAL) };
    rig.seen(sighting);
    assert_eq!(rig.news(), vec![event(EventKind::ClaimantFlood { sighting })]);
}

#[test]
fn sightings_of_unmanaged_addresses_mean_nothing() {
    let mut rig = Rig::new();
    rig.claim_by(RIVAL);
    rig.input(Input::Local { key: KEY, local: true });
    rig.input(Input::Installed { key: KEY, result: Ok(()) });
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    rig.input(Input::Deregistered { key: KEY, result: Err("?".into()) });
    rig.input(Input::Forget { request: RequestId(77) });
    assert_eq!(rig.trace, vec![]);
}
