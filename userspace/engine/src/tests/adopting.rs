//! What an earlier run has left, state by state.

use super::*;
use crate::input::{Kept, MoveBudget, Owner};

const LOCAL: u8 = StateWord::LOCAL;
const DOWN: Interface = Interface { up: false, ..INTERFACE };

/// A registered address in that state, under [`SPEC`].
fn kept(state: State) -> Kept {
    Kept {
        word: word(state, LOCAL, 7),
        spec: Some(SPEC),
        registered: Some(24),
        local: true,
        lease_until: None,
        fallen: false,
        defences: Vec::new(),
        owner: None,
        untold: 0,
    }
}

fn adopted_on(interface: Interface, kept: Kept) -> Rig {
    let mut rig = Rig::with(interface);
    rig.input(Input::Adopt { key: KEY, kept });
    rig
}

fn adopted(kept: Kept) -> Rig {
    adopted_on(INTERFACE, kept)
}

fn told(untold: u64) -> Action {
    event(EventKind::Adopted { untold })
}

const DEREGISTER: Action = Action::Deregister { key: KEY, prefix_length: 24 };

#[test]
fn an_address_that_was_online_is_online_and_nothing_is_sent() {
    let owner = Owner { claimant: claimant(RIVAL), seen: MonoTime(5) };
    let defences = vec![MonoTime(990_000_000_000), MonoTime(980_000_000_000)];
    let mut rig = adopted(Kept { owner: Some(owner), defences, untold: 9, ..kept(State::Online) });
    assert_eq!(rig.news(), vec![told(9)]);
    rig.pass(secs(600));
    assert_eq!(rig.news(), vec![]);
    let address = rig.managed();
    assert_eq!((address.owner(), address.last_defence()), (Some(owner), Some(MonoTime(990_000_000_000))));
    assert_eq!((address.generation(), address.spec()), (7, Some(&SPEC)));
    let request = rig.online(SPEC);
    assert_eq!(rig.answers(request), vec![Answer::Already(State::Online)]);
    let request = rig.offline(false);
    assert!(rig.news().contains(&DEREGISTER));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn an_address_that_was_being_announced_is_announced_from_the_start() {
    let mut rig = adopted(kept(State::Announcing));
    assert_eq!(rig.news()[0], told(0));
    rig.until(State::Online);
    assert_eq!(rig.frames(Purpose::Announcement).len(), 8);
}

#[test]
fn a_claim_that_any_other_took_back_is_kept_if_nobody_did_and_lost_if_the_program_stepped_aside() {
    let spec = OnlineSpec { claim: Claim::Immediate { check: ms(20) }, ..SPEC };
    let left = StateWord::new(OWN, State::Announcing, LOCAL | Policy::Yield.flags(), 7);
    let kept = Kept { word: left, spec: Some(spec), ..kept(State::Announcing) };
    let mut rig = adopted(kept.clone());
    assert_eq!(rig.word().map(StateWord::policy), Some(Policy::Hold));
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Announcing));

    let rig = adopted(Kept { fallen: true, ..kept });
    assert_eq!(rig.state(), Some(State::Lost));
}

#[test]
fn a_claim_that_was_probing_begins_anew_with_nothing_on_the_interface() {
    let mut rig = adopted(Kept { word: word(State::Probing, LOCAL, 7), ..kept(State::Probing) });
    let news = rig.news();
    assert_eq!(news[..3], [told(0), DEREGISTER, store(State::Probing, LOCAL, 8)]);
    rig.until(State::Online);
    assert_eq!(rig.frames(Purpose::Probe).len(), 3);
    let mut rig = adopted(Kept { registered: None, local: false, ..kept(State::Probing) });
    rig.claim_by(RIVAL);
    rig.pass(secs(600));
    assert_eq!(rig.state(), Some(State::Refused), "nobody waits for it: not tried again");
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn an_address_that_was_contested_stays_so_as_long_as_its_budget_says() {
    let interface = Interface { moves: Some(MoveBudget { moves: 2, window: secs(60) }), ..INTERFACE };
    let defences = vec![MonoTime(960_000_000_000), MonoTime(980_000_000_000)];
    let mut rig = adopted_on(interface, Kept { defences, ..kept(State::Contested) });
    assert_eq!((rig.state(), rig.news()), (Some(State::Contested), vec![told(0)]));
    rig.pass(secs(20));
    assert_eq!(rig.state(), Some(State::Online));
    let rig = adopted_on(interface, kept(State::Contested));
    assert_eq!(rig.state(), Some(State::Online));
}

#[test]
fn what_was_being_given_up_is_given_up() {
    let mut rig = adopted(kept(State::Yielding));
    let expected = vec![
        told(0),
        DEREGISTER,
        Action::Remove { key: KEY },
        stepped(Some(State::Yielding), None, Reason::Deregistered),
    ];
    assert_eq!(rig.news(), expected);
    let rig = adopted(Kept { registered: None, local: false, ..kept(State::Yielding) });
    assert_eq!(rig.state(), None);
}

#[test]
fn refused_and_lost_ones_are_listed_and_leave_the_interface() {
    for state in [State::Refused, State::Lost] {
        let mut rig = adopted(kept(state));
        assert_eq!(rig.news(), vec![told(0), DEREGISTER, store(state, 0, 7)]);
        let mut rig = adopted(Kept { registered: None, local: true, ..kept(state) });
        assert_eq!(rig.news(), vec![told(0)], "somebody else's stays, shielded");
        assert!(rig.word().is_none_or(StateWord::is_local));
    }
}

#[test]
fn a_watched_one_is_watched_with_or_without_a_spec() {
    for spec in [None, Some(SPEC)] {
        let left = StateWord::new(OWN, State::Watched, 0, 7);
        let kept = Kept { word: left, spec, registered: None, local: false, ..kept(State::Watched) };
        let mut rig = adopted(kept);
        assert_eq!((rig.state(), rig.news()), (Some(State::Watched), vec![told(0)]));
        rig.pass(secs(5));
        let sighting = rig.claim_by(RIVAL);
        assert_eq!(rig.news(), vec![event(EventKind::OwnerChanged { sighting })]);
    }
}

#[test]
fn an_address_that_the_program_has_given_up_is_lost() {
    let mut rig = adopted(Kept { fallen: true, ..kept(State::Online) });
    let expected = vec![
        store(State::Lost, LOCAL, 7),
        told(0),
        stepped(Some(State::Online), Some(State::Lost), Reason::DefendPolicy),
        DEREGISTER,
        store(State::Lost, 0, 7),
    ];
    assert_eq!(rig.news(), expected);
    let request = rig.online(SPEC);
    rig.until(State::Online);
    assert_eq!((rig.answers(request), rig.managed().generation()), (vec![Answer::Done], 8));
}

#[test]
fn an_address_whose_lease_ran_out_meanwhile_is_suspended_and_leaves_the_interface() {
    for state in [State::Probing, State::Announcing, State::Online, State::Contested] {
        let lease_until = Some(MonoTime(999_999_999_999));
        let mut rig = adopted(Kept { lease_until, ..kept(state) });
        let news = rig.news();
        let expected = vec![
            store(State::Suspended, LOCAL, 7),
            told(0),
            event(EventKind::LeaseExpired),
            stepped(Some(state), Some(State::Suspended), Reason::LeaseExpired),
            DEREGISTER,
            store(State::Suspended, 0, 7),
        ];
        assert_eq!(news, expected);
        rig.pass(secs(600));
        assert_eq!(rig.news(), vec![]);
    }
}

#[test]
fn a_lease_that_stands_goes_on() {
    let spec = Some(OnlineSpec { lease: Some(secs(30)), ..SPEC });
    let lease_until = Some(MonoTime(1_005_000_000_000));
    let mut rig = adopted(Kept { spec, lease_until, ..kept(State::Online) });
    rig.pass(ms(4_999));
    assert_eq!(rig.state(), Some(State::Online));
    rig.pass(ms(1));
    assert_eq!((rig.state(), rig.managed().reason()), (Some(State::Suspended), Reason::LeaseExpired));
}

#[test]
fn a_lease_that_was_written_down_and_never_told_is_taken_for_past() {
    let spec = Some(OnlineSpec { lease: Some(secs(30)), ..SPEC });
    let mut rig = adopted(Kept { spec, registered: None, local: false, ..kept(State::Probing) });
    rig.pass(secs(60));
    assert_eq!((rig.state(), rig.managed().reason()), (Some(State::Suspended), Reason::LeaseExpired));
    assert_eq!(rig.frames(Purpose::Probe), vec![]);
}

#[test]
fn an_address_taken_off_the_interface_meanwhile_counts_as_taken_off_just_now() {
    let gone = |on_removed| Kept {
        local: false,
        spec: Some(OnlineSpec { on_removed, ..SPEC }),
        ..kept(State::Online)
    };
    let mut rig = adopted(gone(OnRemoved::Restore));
    let news = rig.news();
    assert!(
        news.contains(&event(EventKind::AddressRemoved)) && news.contains(&event(EventKind::AddressRestored))
    );
    assert_eq!(rig.state(), Some(State::Online));
    let mut rig = adopted(gone(OnRemoved::GiveUp));
    let expected = [
        store(State::Lost, 0, 7),
        told(0),
        event(EventKind::AddressRemoved),
        stepped(Some(State::Online), Some(State::Lost), Reason::AddressRemoved),
    ];
    // The journal may have it still, so it is taken off to be sure.
    assert_eq!(rig.news()[1..4], expected[1..]);
    assert_eq!(rig.state(), Some(State::Lost));
    let mut rig = adopted(gone(OnRemoved::Report));
    assert_eq!(rig.news()[..3], [store(State::Online, 0, 7), told(0), event(EventKind::AddressRemoved)]);
}

#[test]
fn an_address_that_is_not_to_be_registered_is_not_missed_on_the_interface() {
    let spec = Some(OnlineSpec { register: Register::None, ..SPEC });
    let left = word(State::Online, 0, 7);
    let kept = Kept { word: left, spec, registered: None, local: false, ..kept(State::Online) };
    let mut rig = adopted(kept);
    assert_eq!(rig.news(), vec![told(0)]);
}

#[test]
fn an_address_whose_link_is_down_is_suspended_and_probed_for_when_it_is_up() {
    for state in [State::Announcing, State::Online, State::Contested, State::Suspended] {
        let mut rig = adopted_on(DOWN, kept(state));
        assert_eq!((rig.state(), rig.managed().reason()), (Some(State::Suspended), Reason::LinkDown));
        assert!(rig.managed().is_registered());
        rig.news();
        rig.input(Input::Interface { index: KEY.interface, interface: INTERFACE });
        assert_eq!(rig.state(), Some(State::Probing), "how long it was down is not known");
        rig.claim_by(RIVAL);
        assert_eq!(rig.state(), Some(State::Lost));
    }
    let mut rig = adopted_on(DOWN, kept(State::Probing));
    rig.input(Input::Interface { index: KEY.interface, interface: INTERFACE });
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Refused), "it never was ours");
}

#[test]
fn a_suspended_address_whose_link_is_up_is_probed_for_at_once() {
    let mut rig = adopted(kept(State::Suspended));
    assert_eq!(rig.state(), Some(State::Probing));
    rig.until(State::Online);
    assert!(!rig.news().iter().any(|action| matches!(action, Action::Register { .. })), "it is there");
    let mut rig = adopted(Kept { local: false, ..kept(State::Suspended) });
    rig.until(State::Online);
    assert!(rig.news().iter().any(|action| matches!(action, Action::Register { .. })), "it was not");
}

#[test]
fn without_its_spec_an_address_keeps_its_policy_and_the_prefix_of_the_journal() {
    let left = StateWord::new(OWN, State::Online, LOCAL | Policy::Once.flags(), 7);
    let mut rig = adopted(Kept { word: left, spec: None, registered: Some(28), ..kept(State::Online) });
    let spec = OnlineSpec { prefix_length: 28, defend: Defend::Once, ..SPEC };
    assert_eq!(rig.managed().spec(), Some(&spec));
    assert_eq!(rig.news(), vec![remember(spec), told(0)]);
}

#[test]
fn a_mac_that_changed_meanwhile_is_announced() {
    let left = StateWord::new(OTHER, State::Online, LOCAL | Policy::Hold.flags(), 7);
    let mut rig = adopted(Kept { word: left, ..kept(State::Online) });
    let news = rig.news();
    assert_eq!(news[..2], [store(State::Online, LOCAL, 7), told(0)]);
    assert_eq!(rig.managed().reason(), Reason::MacChanged);
    rig.until(State::Online);
}

#[test]
fn what_was_taken_over_is_taken_off_the_interface_when_it_is_given_up_though_no_journal_has_it() {
    let spec = Some(OnlineSpec { adopt: true, ..SPEC });
    let mut rig = adopted(Kept { spec, registered: None, ..kept(State::Online) });
    rig.offline(false);
    assert!(rig.news().contains(&DEREGISTER));
}

#[test]
fn an_address_of_an_interface_that_is_not_known_leaves_the_datapath() {
    let mut rig = Rig::new();
    let key = AddressKey { interface: 99, ..KEY };
    rig.input(Input::Adopt { key, kept: kept(State::Online) });
    assert_eq!(rig.news()[0], Action::Remove { key });
    assert_eq!(rig.engine.get(&key).map(Managed::state), None);
}

#[test]
fn an_address_that_is_managed_already_is_not_adopted_again() {
    let mut rig = Rig::held(SPEC);
    rig.input(Input::Adopt { key: KEY, kept: kept(State::Yielding) });
    assert_eq!((rig.state(), rig.news()), (Some(State::Online), vec![]));
}

#[test]
fn a_word_that_says_nothing_known_is_given_up() {
    let mut rig = adopted(Kept { word: StateWord::VACANT, ..kept(State::Online) });
    assert!(rig.news().contains(&DEREGISTER));
    assert_eq!(rig.state(), None);
}
