//! Addresses that are to be ours together or not at all.

use super::*;

const JOINT: OnlineSpec = OnlineSpec { joint: true, ..SPEC };
const SECOND: AddressKey = AddressKey { address: Ipv4::new([192, 0, 2, 11]), ..KEY };
const GROUP: u32 = 5;

/// A joint claim of both, and its requests.
fn claimed(spec: OnlineSpec) -> (Rig, [RequestId; 2]) {
    let mut rig = Rig::new();
    let requests = [KEY, SECOND].map(|key| {
        let request = rig.request();
        rig.input(Input::Online { request, key, spec });
        request
    });
    (rig, requests)
}

fn take_all(rig: &mut Rig) {
    rig.input(Input::TakeAll { group: GROUP, keys: vec![KEY, SECOND] });
}

fn held(rig: &Rig) -> [bool; 2] {
    [KEY, SECOND].map(|key| rig.engine.get(&key).is_some_and(Managed::is_held))
}

fn states(rig: &Rig) -> [Option<State>; 2] {
    [KEY, SECOND].map(|key| rig.engine.get(&key).map(Managed::state))
}

fn at(rig: &Rig, what: impl Fn(&Action) -> bool) -> Vec<usize> {
    let found = rig.trace.iter().enumerate().filter(|(_, (_, action))| what(action));
    found.map(|(at, _)| at).collect()
}

#[test]
fn a_joint_claim_halts_registered_and_shielded_before_its_first_announcement() {
    for claim in
        [Claim::Probe, Claim::Immediate { check: ms(20) }, Claim::Immediate { check: Duration::ZERO }]
    {
        let (mut rig, requests) = claimed(OnlineSpec { claim, ..JOINT });
        rig.pass(secs(5));
        assert_eq!(held(&rig), [true, true], "{claim:?}");
        assert_eq!(states(&rig), [Some(State::Probing); 2]);
        assert_eq!(rig.frames(Purpose::Announcement), []);
        assert_eq!(at(&rig, |action| matches!(action, Action::Held { .. })).len(), 2);
        assert_eq!(at(&rig, |action| matches!(action, Action::Answer { .. })), [0; 0]);
        let words = rig.trace.iter().rev().find_map(|(_, action)| match action {
            Action::Store { word, .. } => Some(*word),
            _ => None,
        });
        assert!(words.is_some_and(|word| word.is_local() && !word.may_answer()), "{words:?}");
        let _ = requests;
    }
}

#[test]
fn all_words_come_first_then_the_flip_then_frames() {
    let (mut rig, _) = claimed(JOINT);
    rig.pass(secs(1));
    take_all(&mut rig);
    rig.pass(ms(1));
    let words = at(&rig, |action| matches!(action, Action::Store { word, .. } if word.may_answer()));
    let flip = at(&rig, |action| *action == Action::Flip { group: GROUP });
    let frames = at(&rig, |action| matches!(action, Action::Send { purpose: Purpose::Announcement, .. }));
    assert_eq!((words.len(), flip.len()), (2, 1));
    assert!(words[1] < flip[0] && flip[0] < frames[0], "{words:?} {flip:?} {frames:?}");
    rig.pass(secs(10));
    assert_eq!(states(&rig), [Some(State::Online); 2]);
    assert_eq!(at(&rig, |action| matches!(action, Action::Answer { answer: Answer::Done, .. })).len(), 2);
}

#[test]
fn one_that_is_refused_while_the_others_are_held_leaves_nothing_to_take() {
    let (mut rig, requests) = claimed(JOINT);
    rig.pass(secs(1));
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    rig.input(Input::Seen { key: SECOND, sighting });
    let taken = |action: &Action| matches!(action, Action::Answer { request, answer: Answer::Taken { .. } } if *request == requests[1]);
    assert_eq!(at(&rig, taken).len(), 1);
    take_all(&mut rig);
    rig.pass(secs(1));
    assert_eq!(states(&rig), [Some(State::Probing), Some(State::Refused)]);
    assert_eq!(at(&rig, |action| matches!(action, Action::Flip { .. })), [0; 0]);
    assert_eq!(rig.frames(Purpose::Announcement), []);
    // What was done is taken back without a frame.
    rig.offline(false);
    assert_eq!(states(&rig), [None, Some(State::Refused)]);
    let off = at(&rig, |action| matches!(action, Action::Deregister { .. }));
    assert_eq!(off.len(), 2);
}

#[test]
fn one_whose_lease_ran_out_while_it_was_held_leaves_nothing_to_take() {
    let (mut rig, _) = claimed(OnlineSpec { lease: Some(secs(2)), ..JOINT });
    rig.pass(secs(1));
    // The timer has not been looked at yet: after a pause the input may come first.
    rig.now = rig.now.after(secs(3));
    take_all(&mut rig);
    assert_eq!(states(&rig), [Some(State::Suspended); 2]);
    assert_eq!(at(&rig, |action| matches!(action, Action::Flip { .. })), [0; 0]);
}

#[test]
fn silence_of_long_ago_is_not_taken_for_consent() {
    let (mut rig, _) = claimed(JOINT);
    rig.pass(secs(12));
    assert_eq!(held(&rig), [true, true]);
    let probes = rig.frames(Purpose::Probe).len();
    take_all(&mut rig);
    assert_eq!(held(&rig), [false, false]);
    rig.pass(secs(1));
    assert_eq!(held(&rig), [true, true]);
    assert_eq!(at(&rig, |action| matches!(action, Action::Held { .. })).len(), 4);
    assert_eq!(rig.frames(Purpose::Probe).len(), 2 * probes);
    take_all(&mut rig);
    rig.pass(secs(10));
    assert_eq!(states(&rig), [Some(State::Online); 2]);
}

#[test]
fn one_that_was_taken_off_the_interface_while_it_was_held_is_put_there_again() {
    let (mut rig, _) = claimed(JOINT);
    rig.pass(secs(3));
    rig.input(Input::Local { key: KEY, local: false });
    assert_eq!(held(&rig), [false, true]);
    rig.pass(secs(1));
    assert_eq!(held(&rig), [true, true]);
    take_all(&mut rig);
    rig.pass(secs(10));
    assert_eq!(states(&rig), [Some(State::Online); 2]);
    assert!(rig.engine.get(&KEY).is_some_and(Managed::is_local));
}

#[test]
fn a_link_that_comes_up_again_later_does_not_hold_what_was_taken() {
    let (mut rig, _) = claimed(JOINT);
    rig.pass(secs(1));
    take_all(&mut rig);
    rig.pass(secs(10));
    rig.input(Input::Interface { index: KEY.interface, interface: Interface { up: false, ..INTERFACE } });
    rig.pass(secs(5));
    rig.input(Input::Interface { index: KEY.interface, interface: INTERFACE });
    rig.pass(secs(10));
    assert_eq!(states(&rig), [Some(State::Online); 2]);
}

#[test]
fn what_holds_for_an_address_changes_without_a_step_or_a_frame() {
    let mut rig = Rig::held(SPEC);
    rig.pass(secs(10));
    let before = rig.trace.len();
    let request = rig.request();
    let spec = OnlineSpec {
        defend: Defend::Yield,
        on_removed: OnRemoved::GiveUp,
        prefix_length: 32,
        register: Register::None,
        ..SPEC
    };
    rig.input(Input::Adjust { request, key: KEY, spec });
    // What the kernel has stays as it was.
    let spec = OnlineSpec { defend: Defend::Yield, on_removed: OnRemoved::GiveUp, ..SPEC };
    let news: Vec<Action> = rig.trace[before..].iter().map(|(_, action)| action.clone()).collect();
    assert_eq!(news.len(), 3, "{news:?}");
    assert_eq!(news[0], Action::Remember { key: KEY, spec: Some(spec) });
    assert!(
        matches!(news[1], Action::Store { word, .. } if word.may_answer() && word.policy() == Policy::Yield)
    );
    assert_eq!(news[2], Action::Answer { request, answer: Answer::Done });
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    rig.input(Input::Seen { key: KEY, sighting });
    assert_eq!(rig.state(), Some(State::Lost));

    let mut rig = Rig::new();
    let watch = rig.request();
    rig.input(Input::Watch { request: watch, key: KEY });
    let request = rig.request();
    rig.input(Input::Adjust { request, key: KEY, spec });
    assert_eq!(
        rig.trace.last().map(|(_, action)| action.clone()),
        Some(Action::Answer { request, answer: Answer::WrongState(State::Watched) })
    );
}
