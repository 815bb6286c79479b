//! Claiming: RFC 5227 §2.1, the immediate way, refusal, retries.

use super::*;

const LOCAL: u8 = StateWord::LOCAL;
const IMMEDIATE: OnlineSpec = OnlineSpec { claim: Claim::Immediate { check: ms(20) }, ..SPEC };
const UNCHECKED: OnlineSpec = OnlineSpec { claim: Claim::Immediate { check: Duration::ZERO }, ..SPEC };

#[test]
fn a_free_address_is_probed_for_then_shielded_then_registered_then_announced() {
    let mut rig = Rig::new();
    let request = rig.online(SPEC);
    rig.until(State::Announcing);
    let probe = Outgoing::probe(OWN, Vlan::UNTAGGED, KEY.address);
    let probe = Action::Send { key: KEY, purpose: Purpose::Probe, frame: probe };
    let expected = vec![
        remember(SPEC),
        Action::Install { key: KEY, word: StateWord::new(OWN, State::Probing, 0, 1) },
        stepped(None, Some(State::Probing), Reason::Commanded),
        probe.clone(),
        probe.clone(),
        probe,
        store(State::Probing, LOCAL, 1),
        Action::Register { key: KEY, prefix_length: 24 },
        store(State::Announcing, LOCAL, 1),
        stepped(Some(State::Probing), Some(State::Announcing), Reason::ProbesUnanswered),
        Action::Send { key: KEY, purpose: Purpose::Announcement, frame: request_form() },
        Action::Send { key: KEY, purpose: Purpose::Announcement, frame: reply_form() },
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
}

#[test]
fn fast_probing_takes_140_to_200_ms_and_the_long_profile_4_to_7_s() {
    // RFC 5227 §2.1.1: up to PROBE_WAIT, two gaps, ANNOUNCE_WAIT.
    for (profile, least, most) in
        [(Profile::Fast, ms(140), ms(200)), (Profile::Rfc5227, ms(4_000), ms(7_000))]
    {
        for seed in 0..200 {
            let mut rig = Rig::new();
            rig.dice = Seeded(seed);
            let start = rig.now;
            rig.online(OnlineSpec { profile, ..SPEC });
            rig.until(State::Announcing);
            let took = rig.now.since(start);
            assert!(least <= took && took <= most, "{profile:?} took {took:?}");
            let probes = rig.frames(Purpose::Probe);
            let (min, max) = if profile == Profile::Fast { (ms(40), ms(60)) } else { (secs(1), secs(2)) };
            for pair in probes.windows(2) {
                let gap = pair[1].0.since(pair[0].0);
                assert!(min <= gap && gap <= max, "{profile:?}: {gap:?} between two probes");
            }
        }
    }
}

#[test]
fn a_probe_that_could_not_be_sent_does_not_count() {
    let mut rig = Rig::new();
    rig.send = Some(Err("no buffer space".into()));
    rig.online(SPEC);
    rig.pass(ms(100));
    assert_eq!(rig.state(), Some(State::Probing));
    let failed = rig.frames(Purpose::Probe).len();
    assert!((2..5).contains(&failed), "{failed} attempts in 100 ms");
    rig.send = Some(Ok(()));
    rig.until(State::Announcing);
    assert_eq!(rig.frames(Purpose::Probe).len(), failed + 3);
}

#[test]
fn five_probes_in_a_row_that_could_not_be_sent_end_the_claim() {
    let mut rig = Rig::new();
    rig.send = Some(Err("the link is down".into()));
    let request = rig.online(SPEC);
    rig.pass(secs(1));
    assert_eq!(rig.frames(Purpose::Probe).len(), 5);
    let answers = rig.answers(request);
    assert!(matches!(&answers[..], [Answer::Failed(why)] if why.contains("the link is down")), "{answers:?}");
    assert_eq!(rig.state(), None);
    assert!(rig.trace.iter().any(|(_, action)| *action == Action::Remove { key: KEY }));
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn a_claim_while_probing_frees_the_address_without_defending() {
    // RFC 5227 §2.1.1
    let mut rig = Rig::new();
    let request = rig.online(SPEC);
    rig.pass(ms(50));
    rig.news();
    let sighting = rig.claim_by(RIVAL);
    let refused = vec![
        store(State::Refused, 0, 1),
        event(EventKind::Conflict { sighting, loud: false }),
        stepped(Some(State::Probing), Some(State::Refused), Reason::Claimed),
        Action::Answer {
            request,
            answer: Answer::Taken { claimant: claimant(RIVAL), reason: Reason::Claimed },
        },
    ];
    assert_eq!(rig.news(), refused);
    rig.pass(secs(100));
    assert_eq!(rig.news(), vec![]);
    assert_eq!(rig.managed().owner().unwrap().claimant.mac, RIVAL);
}

#[test]
fn another_hosts_probe_while_probing_is_a_conflict() {
    // RFC 5227 §2.1.1: "some other host's ARP Probe" for the same address.
    let mut rig = Rig::new();
    let request = rig.online(SPEC);
    let sighting = rig.sighting(SightingKind::Probe, RIVAL);
    rig.seen(sighting);
    assert_eq!(rig.state(), Some(State::Refused));
    assert_eq!(
        rig.answers(request),
        vec![Answer::Taken { claimant: claimant(RIVAL), reason: Reason::ProbedByAnother }]
    );
    assert_eq!(rig.managed().owner(), None, "who only asks owns nothing");
}

#[test]
fn who_may_claim_keeps_nobody_from_claiming_and_is_written_down() {
    let mut rig = Rig::new();
    let request = rig.online(SPEC);
    let sighting = Sighting { allowed: true, ..rig.sighting(SightingKind::Claim, RIVAL) };
    rig.seen(sighting);
    rig.pass(secs(1));
    assert_eq!(rig.state(), Some(State::Announcing));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(rig.managed().owner().unwrap().claimant.mac, RIVAL);
    assert_eq!(rig.managed().conflicts(), 0);
}

#[test]
fn a_claim_in_the_silence_after_the_last_probe_still_counts() {
    // RFC 5227 §2.1.1: until ANNOUNCE_WAIT after the last probe.
    let mut rig = Rig::new();
    rig.online(SPEC);
    while rig.frames(Purpose::Probe).len() < 3 {
        rig.pass(ms(1));
    }
    rig.pass(ms(50));
    rig.claim_by(RIVAL);
    rig.pass(secs(10));
    assert_eq!(rig.state(), Some(State::Refused));
    assert!(!rig.trace.iter().any(|(_, action)| matches!(action, Action::Register { .. })));
}

#[test]
fn a_claim_that_waited_in_a_queue_is_heard_before_the_silence_is_over() {
    let mut rig = Rig::new();
    rig.online(SPEC);
    while rig.frames(Purpose::Probe).len() < 3 {
        rig.pass(ms(1));
    }
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    // The daemon was held up: time went on, but nobody called handle_timeout.
    rig.now = rig.now.after(secs(5));
    rig.seen(sighting);
    rig.pass(secs(10));
    assert_eq!(rig.state(), Some(State::Refused));
}

#[test]
fn a_claim_while_the_kernel_registers_leads_to_deregistration_behind_the_shield() {
    let (mut rig, request) = Rig::registering(SPEC);
    rig.claim_by(RIVAL);
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Refused, LOCAL, 1)));
    assert_eq!(rig.answers(request).len(), 1);
    rig.news();
    rig.deregister = None;
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    assert_eq!(rig.news(), vec![Action::Deregister { key: KEY, prefix_length: 24 }]);
    rig.input(Input::Deregistered { key: KEY, result: Ok(()) });
    assert_eq!(rig.news(), vec![store(State::Refused, 0, 1)]);
}

#[test]
fn a_registration_that_fails_backs_out() {
    let (mut rig, request) = Rig::registering(SPEC);
    rig.input(Input::Registered { key: KEY, result: Err("no permission".into()) });
    assert_eq!(rig.state(), None);
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("no permission")));
    let news = rig.news();
    assert!(news.contains(&Action::Remove { key: KEY }));
    assert!(news.contains(&stepped(Some(State::Probing), None, Reason::Failed)));
    assert_eq!(rig.frames(Purpose::Announcement), vec![]);
}

#[test]
fn a_registration_that_fails_goes_back_to_watching() {
    let mut rig = Rig::new();
    rig.watch();
    rig.claim_by(RIVAL);
    rig.register = Some(Err("no".into()));
    let request = rig.online(SPEC);
    rig.pass(secs(1));
    assert_eq!(rig.state(), Some(State::Watched));
    assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]));
    assert_eq!(rig.managed().owner().unwrap().claimant.mac, RIVAL);
    assert_eq!(rig.word(), Some(StateWord::new(OWN, State::Watched, 0, 1)));
}

#[test]
fn an_installation_that_fails_leaves_nothing_behind() {
    let mut engine = Engine::new();
    let (mut dice, now) = (Seeded(1), MonoTime(5));
    engine.handle(now, Input::Interface { index: 3, interface: INTERFACE }, &mut dice);
    let request = RequestId(7);
    engine.handle(now, Input::Online { request, key: KEY, spec: SPEC }, &mut dice);
    engine.handle(now, Input::Installed { key: KEY, result: Err("map full".into()) }, &mut dice);
    let actions: Vec<Action> = core::iter::from_fn(|| engine.poll_action()).collect();
    assert!(!actions.contains(&Action::Remove { key: KEY }), "it was never there");
    let answered = |action: &&Action| matches!(action, Action::Answer { answer: Answer::Failed(_), .. });
    assert_eq!(actions.iter().filter(answered).count(), 1);
    assert!(engine.get(&KEY).is_none() && engine.poll_timeout().is_none());
}

#[test]
fn an_interface_that_is_not_known_is_an_error_of_the_command() {
    let mut rig = Rig::new();
    let key = AddressKey { interface: 99, ..KEY };
    for input in [
        Input::Online { request: RequestId(100), key, spec: SPEC },
        Input::Watch { request: RequestId(101), key },
    ] {
        rig.input(input);
    }
    assert!(matches!(rig.answers(RequestId(100))[..], [Answer::Failed(_)]));
    assert!(matches!(rig.answers(RequestId(101))[..], [Answer::Failed(_)]));
}

#[test]
fn with_wait_a_refused_claim_is_tried_again_until_it_succeeds() {
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { wait: secs(30), ..SPEC });
    rig.claim_by(RIVAL);
    let refused = rig.now;
    assert_eq!(rig.state(), Some(State::Refused));
    assert_eq!(rig.answers(request), vec![]);
    rig.until(State::Probing);
    let waited = rig.now.since(refused);
    assert!(ms(250) <= waited && waited <= secs(2), "{waited:?}");
    assert_eq!(rig.managed().reason(), Reason::Retry);
    assert_eq!(rig.managed().generation(), 2, "every attempt is a claim of its own");
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn retries_of_the_long_profile_are_2_to_20_s_apart() {
    for seed in 0..50 {
        let mut rig = Rig::new();
        rig.dice = Seeded(seed);
        rig.online(OnlineSpec { wait: secs(60), profile: Profile::Rfc5227, ..SPEC });
        rig.claim_by(RIVAL);
        let refused = rig.now;
        rig.until(State::Probing);
        let waited = rig.now.since(refused);
        assert!(secs(2) <= waited && waited <= secs(20), "{waited:?}");
    }
}

#[test]
fn the_end_of_the_wait_names_the_last_claimant() {
    let mut rig = Rig::new();
    let start = rig.now;
    let request = rig.online(OnlineSpec { wait: secs(3), ..SPEC });
    rig.claim_by(RIVAL);
    rig.until(State::Probing);
    rig.claim_by(OTHER);
    while rig.answers(request).is_empty() {
        if rig.state() == Some(State::Probing) {
            rig.claim_by(OTHER);
        }
        rig.pass(ms(10));
    }
    let taken = Answer::Taken { claimant: claimant(OTHER), reason: Reason::Claimed };
    assert_eq!(rig.answers(request), vec![taken]);
    assert!(rig.now.since(start) >= secs(3) && rig.now.since(start) < ms(3_500));
    rig.pass(secs(100));
    assert_eq!(rig.state(), Some(State::Refused), "nobody waits, nobody retries");
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn after_ten_refusals_retries_are_a_minute_apart() {
    // RFC 5227 §2.1.1: MAX_CONFLICTS, RATE_LIMIT_INTERVAL.
    let mut rig = Rig::new();
    rig.online(OnlineSpec { wait: secs(3_600), ..SPEC });
    for round in 1..=12 {
        rig.until(State::Probing);
        rig.claim_by(RIVAL);
        let refused = rig.now;
        rig.until(State::Probing);
        let waited = rig.now.since(refused);
        if round < 10 {
            assert!(waited <= secs(2), "refusal {round}: {waited:?}");
        } else {
            assert_eq!(waited, secs(60), "refusal {round}");
        }
    }
}

#[test]
fn the_same_command_while_probing_gets_the_same_answer() {
    let mut rig = Rig::new();
    let first = rig.online(SPEC);
    rig.pass(ms(30));
    let second = rig.online(SPEC);
    rig.until(State::Online);
    assert_eq!((rig.answers(first), rig.answers(second)), (vec![Answer::Done], vec![Answer::Done]));
    assert_eq!(rig.frames(Purpose::Probe).len(), 3);

    let mut rig = Rig::new();
    let first = rig.online(SPEC);
    let patient = rig.online(OnlineSpec { wait: secs(20), ..SPEC });
    rig.claim_by(RIVAL);
    assert!(matches!(rig.answers(first)[..], [Answer::Taken { .. }]));
    assert_eq!(rig.answers(patient), vec![], "each has its own patience");
    rig.until(State::Online);
    assert_eq!(rig.answers(patient), vec![Answer::Done]);
}

#[test]
fn other_parameters_for_a_managed_address_are_named() {
    let other = OnlineSpec { defend: Defend::Yield, ..SPEC };
    let mut rig = Rig::new();
    rig.online(SPEC);
    let request = rig.online(other);
    assert_eq!(rig.answers(request), vec![Answer::Differs { present: SPEC }]);
    rig.until(State::Online);
    let request = rig.online(other);
    assert_eq!(rig.answers(request), vec![Answer::Differs { present: SPEC }]);
    let request = rig.online(OnlineSpec { wait: secs(5), ..SPEC });
    assert_eq!(rig.answers(request), vec![Answer::Already(State::Online)], "patience is no difference");
}

#[test]
fn online_on_a_refused_or_lost_address_is_a_new_claim() {
    let mut rig = Rig::new();
    rig.online(SPEC);
    rig.claim_by(RIVAL);
    let request = rig.online(OnlineSpec { defend: Defend::Yield, ..SPEC });
    assert_eq!(rig.managed().generation(), 2);
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Lost));
    let request = rig.online(SPEC);
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(rig.managed().generation(), 3);
}

#[test]
fn a_new_claim_waits_until_the_kernel_has_let_go_of_the_old_one() {
    let mut rig = Rig::held(OnlineSpec { defend: Defend::Yield, ..SPEC });
    rig.deregister = Some(Err("busy".into()));
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Lost));
    let probes = rig.frames(Purpose::Probe).len();
    rig.online(OnlineSpec { prefix_length: 32, ..SPEC });
    assert_eq!(rig.state(), Some(State::Probing));
    assert!(rig.word().unwrap().is_local(), "shielded until then");
    rig.pass(ms(900));
    assert_eq!(rig.frames(Purpose::Probe).len(), probes, "the kernel would answer our own probes' askers");
    rig.deregister = Some(Ok(()));
    rig.until(State::Online);
    let deleted = |prefix| move |(_, action): &&(MonoTime, Action)| matches!(action, Action::Deregister { prefix_length, .. } if *prefix_length == prefix);
    assert_eq!(rig.trace.iter().filter(deleted(24)).count(), 2, "with the prefix that it was added with");
    assert_eq!(rig.trace.iter().filter(deleted(32)).count(), 0);
}

#[test]
fn an_address_that_somebody_else_configured_is_not_claimed() {
    let mut rig = Rig::new();
    rig.watch();
    rig.input(Input::Local { key: KEY, local: true });
    let request = rig.online(SPEC);
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("--adopt")));
    assert_eq!(rig.state(), Some(State::Watched));
}

#[test]
fn an_adopted_address_is_answered_at_once_and_probed_for_unshielded() {
    let mut rig = Rig::new();
    let spec = OnlineSpec { adopt: true, ..SPEC };
    let request = rig.online(spec);
    let probe = Outgoing::probe(OWN, Vlan::UNTAGGED, KEY.address);
    let expected = vec![
        remember(spec),
        Action::Install { key: KEY, word: word(State::Announcing, LOCAL, 1) },
        stepped(None, Some(State::Announcing), Reason::Adopted),
        Action::Send { key: KEY, purpose: Purpose::Announcement, frame: request_form() },
        Action::Send { key: KEY, purpose: Purpose::Probe, frame: probe },
        Action::Send { key: KEY, purpose: Purpose::Announcement, frame: reply_form() },
        Action::Answer { request, answer: Answer::Done },
    ];
    assert_eq!(rig.news(), expected);
    // The owner's answer is handled by the policy, not rolled back.
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Announcing));
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
    rig.until(State::Online);
    let request = rig.offline(false);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert!(rig.news().contains(&Action::Deregister { key: KEY, prefix_length: 24 }));
}

#[test]
fn the_immediate_way_asks_once_waits_and_announces() {
    let mut rig = Rig::new();
    let start = rig.now;
    let request = rig.online(IMMEDIATE);
    assert_eq!(rig.frames(Purpose::Probe).len(), 1, "at once");
    rig.pass(ms(19));
    assert_eq!(rig.state(), Some(State::Probing));
    rig.until(State::Announcing);
    assert_eq!(rig.now.since(start), ms(20));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert_eq!(rig.frames(Purpose::Probe).len(), 1);
}

#[test]
fn an_owner_that_answers_within_the_check_is_left_alone() {
    let mut rig = Rig::new();
    let request = rig.online(IMMEDIATE);
    rig.pass(ms(5));
    rig.claim_by(RIVAL);
    assert!(matches!(rig.answers(request)[..], [Answer::Taken { reason: Reason::Claimed, .. }]));
    rig.pass(secs(10));
    assert_eq!(rig.frames(Purpose::Announcement).len() + rig.frames(Purpose::Repair).len(), 0);
}

#[test]
fn without_a_check_the_probe_is_right_behind_the_first_announcement() {
    let mut rig = Rig::new();
    let start = rig.now;
    let request = rig.online(UNCHECKED);
    assert_eq!(rig.now, start);
    let frames: Vec<(Purpose, bool)> = rig
        .trace
        .iter()
        .filter_map(|(_, action)| match action {
            Action::Send { purpose, frame, .. } => Some((*purpose, is_reply(frame))),
            _ => None,
        })
        .collect();
    let (announcement, probe) = (Purpose::Announcement, Purpose::Probe);
    assert_eq!(frames, vec![(announcement, false), (probe, false), (announcement, true)]);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn a_claim_soon_after_an_immediate_one_rolls_it_back_silent_first() {
    let mut rig = Rig::new();
    rig.online(UNCHECKED);
    rig.pass(ms(2));
    rig.news();
    rig.deregister = None;
    let sighting = rig.claim_by(RIVAL);
    let repair = Outgoing::announcement(OWN, RIVAL, Vlan::UNTAGGED, KEY.address);
    let expected = vec![
        store(State::Refused, LOCAL, 1),
        event(EventKind::Conflict { sighting, loud: false }),
        event(EventKind::RolledBack { claimant: claimant(RIVAL) }),
        stepped(Some(State::Announcing), Some(State::Refused), Reason::RolledBack),
        Action::Deregister { key: KEY, prefix_length: 24 },
        Action::Send { key: KEY, purpose: Purpose::Repair, frame: repair },
    ];
    assert_eq!(rig.news(), expected);
    rig.input(Input::Deregistered { key: KEY, result: Ok(()) });
    assert_eq!(rig.news(), vec![store(State::Refused, 0, 1)]);
    rig.pass(secs(30));
    let repairs = rig.frames(Purpose::Repair);
    assert_eq!(repairs.len(), 3);
    assert!(repairs.windows(2).all(|pair| pair[1].0.since(pair[0].0) == ms(1_100)));
    assert!(repairs.iter().all(|(_, frame)| *frame == repair));
    assert_eq!(
        rig.news().last(),
        Some(&event(EventKind::Repaired { claimant: Some(claimant(RIVAL)), count: 3 }))
    );
    assert_eq!((rig.state(), rig.managed().reason()), (Some(State::Refused), Reason::RolledBack));
    assert_eq!(rig.frames(Purpose::Defence).len(), 0);
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn the_roll_back_window_is_1100_ms_and_then_the_policy_rules() {
    let mut rig = Rig::new();
    rig.online(UNCHECKED);
    rig.pass(ms(1_099));
    let before = rig.now;
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Refused), "{before:?}");

    let mut rig = Rig::new();
    rig.online(UNCHECKED);
    rig.pass(ms(1_100));
    rig.claim_by(RIVAL);
    assert_eq!(rig.state(), Some(State::Announcing));
    assert_eq!(rig.frames(Purpose::Defence).len(), 1);
}

#[test]
fn a_probe_in_the_roll_back_window_is_no_claim() {
    let mut rig = Rig::new();
    rig.online(UNCHECKED);
    let sighting = rig.sighting(SightingKind::Probe, RIVAL);
    rig.seen(sighting);
    assert_eq!(rig.state(), Some(State::Announcing));
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::ProbeSeen { .. })), 1);
}

#[test]
fn with_wait_the_immediate_way_is_done_when_the_window_is_over() {
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { wait: secs(10), ..UNCHECKED });
    rig.pass(ms(1_099));
    assert_eq!(rig.answers(request), vec![]);
    rig.pass(ms(1));
    assert_eq!(rig.answers(request), vec![Answer::Done]);
}

#[test]
fn with_wait_a_roll_back_is_retried_and_ends_with_its_claimant() {
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { wait: secs(8), ..UNCHECKED });
    let mut roll_backs = 0;
    while rig.answers(request).is_empty() {
        if rig.state() == Some(State::Announcing) {
            rig.claim_by(RIVAL);
            roll_backs += 1;
        }
        rig.pass(ms(10));
    }
    assert!(roll_backs > 2);
    let taken = Answer::Taken { claimant: claimant(RIVAL), reason: Reason::RolledBack };
    assert_eq!(rig.answers(request), vec![taken]);
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::RolledBack { .. })), roll_backs);

    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { wait: secs(8), ..UNCHECKED });
    rig.claim_by(RIVAL);
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![Answer::Done], "the owner is gone by the second attempt");
}

#[test]
fn the_retry_after_a_roll_back_waits_for_the_first_repair() {
    let mut rig = Rig::new();
    rig.online(OnlineSpec { wait: secs(30), ..UNCHECKED });
    rig.send = None;
    rig.claim_by(RIVAL);
    rig.pass(secs(5));
    assert_eq!(rig.state(), Some(State::Probing));
    assert!(rig.word().unwrap().state() == Some(State::Probing));
    let (_, frame) = rig.frames(Purpose::Repair)[0];
    let registered =
        |rig: &Rig| rig.trace.iter().filter(|(_, action)| matches!(action, Action::Register { .. })).count();
    assert_eq!(registered(&rig), 1);
    rig.send = Some(Ok(()));
    rig.input(Input::Sent { key: KEY, purpose: Purpose::Repair, frame, result: Ok(()) });
    assert_eq!(registered(&rig), 2);
    let after = rig.frames(Purpose::Repair).len();
    rig.pass(secs(30));
    assert_eq!(rig.frames(Purpose::Repair).len(), after, "what is ours now is not repaired for another");
    assert_eq!(rig.count(|kind| matches!(kind, EventKind::Repaired { count: 1, .. })), 1);
}

#[test]
fn a_late_outcome_of_an_earlier_life_is_not_taken_for_one_of_this_life() {
    let mut rig = Rig::new();
    rig.send = None;
    rig.online(IMMEDIATE);
    let (_, frame) = rig.frames(Purpose::Probe)[0];
    rig.offline(false);
    assert_eq!(rig.state(), None);
    rig.online(IMMEDIATE);
    assert_eq!(rig.frames(Purpose::Probe).len(), 2);
    // The outcome of the first life's probe: must not start the second life's silence.
    rig.input(Input::Sent { key: KEY, purpose: Purpose::Probe, frame, result: Ok(()) });
    rig.pass(secs(1));
    assert_eq!(rig.state(), Some(State::Probing));
    rig.input(Input::Sent { key: KEY, purpose: Purpose::Probe, frame, result: Ok(()) });
    rig.pass(ms(20));
    assert_eq!(rig.state(), Some(State::Announcing));
}

#[test]
fn a_first_announcement_that_can_not_be_sent_ends_the_claim() {
    let (mut rig, request) = Rig::registering(SPEC);
    rig.send = Some(Err("the link is down".into()));
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    rig.pass(secs(2));
    assert!(matches!(&rig.answers(request)[..], [Answer::Failed(why)] if why.contains("the link is down")));
    assert_eq!(rig.state(), None);
    assert!(rig.news().contains(&Action::Deregister { key: KEY, prefix_length: 24 }));
}

#[test]
fn a_refused_claim_that_nobody_waits_for_any_more_goes_on() {
    let mut rig = Rig::new();
    let request = rig.online(OnlineSpec { wait: secs(30), ..SPEC });
    rig.claim_by(RIVAL);
    rig.input(Input::Forget { request });
    rig.until(State::Online);
    assert_eq!(rig.answers(request), vec![], "the caller is gone, the command is not");
}

#[test]
fn silence_that_is_a_second_old_when_the_kernel_is_done_is_asked_for_again_behind_the_shield() {
    let (mut rig, request) = Rig::registering(SPEC);
    rig.pass(ms(1_001));
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    assert_eq!((rig.state(), rig.word()), (Some(State::Probing), Some(word(State::Probing, LOCAL, 1))));
    rig.news();
    rig.until(State::Announcing);
    assert_eq!(rig.frames(Purpose::Probe).len(), 6);
    assert_eq!(rig.answers(request), vec![Answer::Done]);
    assert!(!rig.news().iter().any(|action| matches!(action, Action::Register { .. })));

    let (mut rig, _) = Rig::registering(SPEC);
    rig.pass(ms(1_001));
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    rig.claim_by(RIVAL); // which waited behind it
    assert_eq!(rig.state(), Some(State::Refused));
    assert!(rig.news().contains(&Action::Deregister { key: KEY, prefix_length: 24 }));
}

#[test]
fn a_claim_whose_announcements_can_not_be_sent_is_silent_before_it_says_so() {
    let (mut rig, request) = Rig::registering(SPEC);
    rig.send = Some(Err("no buffer space".into()));
    rig.input(Input::Registered { key: KEY, result: Ok(()) });
    rig.pass(ms(199));
    rig.news();
    rig.pass(ms(1));
    let news = rig.news();
    let at = |which: fn(&Action) -> bool| news.iter().position(which).unwrap();
    let silent = at(|action| matches!(action, Action::Store { word, .. } if !word.may_answer()));
    let said = at(|action| matches!(action, Action::Event(_) | Action::Answer { .. }));
    assert!(silent < said, "{news:?}");
    assert!(matches!(rig.answers(request)[..], [Answer::Failed(_)]));
    assert_eq!(rig.state(), None);
}
