//! What one frame cannot show of the loaded program: that a defence is exact however many claims come on however many
//! CPUs, what a fall leaves behind, what is remembered of askers, and what each safety is for.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use arpwarden::io::bpf::OBJECT;
use arpwarden_common::{
    abi::{AddressKey, Asker, Coarse, Control, Counter, Event, Group, MOVES, Slot, omit},
    golden::{
        self, ASKER, GATEWAY, GENERATION, GROUP, Kind, Managed, OUR_MAC, Row, SIBLING_MAC, SLOT,
        STRANGER_MAC, Tags, guard,
    },
    names,
    net::{Ipv4, MacAddr},
    report::{CLAIMANTS_PER_MINUTE, REPEATS_PER_SECOND},
    state::{Policy, State, StateWord},
};
use arpwarden_tests::prog_run::{Loaded, Repeater, clocks, tc_action, xdp_action};

const SECOND_NS: u64 = 1_000_000_000;
/// Longer than a jiffy, with HZ at 100 or more.
const JIFFY: Duration = Duration::from_millis(12);
const MARK: u16 = 256 + GENERATION as u16;
/// Longer than a unit of the clock of the askers.
const UNIT: Duration = Duration::from_millis(30);
/// Longer than a host keeps its place among them.
const KEPT: Duration = Duration::from_millis(1_100);

/// The untagged row of this kind in the column with this name.
fn row(kind: Kind, name: &str) -> Row {
    golden::rows()
        .into_iter()
        .find(|row| (row.kind, row.tags, row.column.name) == (kind, Tags::None, name) && row.column.local)
        .expect("the table is complete")
}

/// The untagged row of this kind for a local address in this state, with nothing else to say of it.
fn plain(kind: Kind, state: State) -> Row {
    golden::rows()
        .into_iter()
        .find(|row| {
            (row.kind, row.tags, row.column.name) == (kind, Tags::None, "")
                && (row.column.state, row.column.local) == (Some(state), true)
                && row.column.lease_until_ns == 0
        })
        .expect("the table is complete")
}

fn enter(row: &Row) -> Loaded {
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    loaded.enter(&row.world);
    loaded
}

/// Lets so much time pass for what the program remembers of the address.
fn age(loaded: &mut Loaded, seconds: u64) {
    let back = |at: u64| at.saturating_sub(seconds * SECOND_NS);
    let slot = loaded.slot(SLOT);
    let conflict = if slot.conflict == 0 { 0 } else { back(slot.conflict) & !0xff | slot.conflict & 0xff };
    loaded.set_slot(SLOT, Slot { conflict, defended_ns: back(slot.defended_ns), ..slot });
    if let Some(moves) = loaded.moves(SLOT) {
        loaded.set_moves(SLOT, moves.map(back));
    }
}

/// Gives the address another word.
fn set_word(loaded: &mut Loaded, row: &Row, word: StateWord) {
    let slot = row.world.addresses[0].slot;
    let there = loaded.slot(slot);
    loaded.set_slot(slot, Slot { word: word.bits(), ..there });
}

/// The daemon is heard.
fn beat(loaded: &mut Loaded) {
    let (heartbeat_ns, slept_ns) = clocks();
    loaded.set_control(Control { layout: 0, heartbeat_ns, slept_ns });
}

/// Held by the test whose threads are first in line: two such would wait for each other.
static BOTH_CPUS: Mutex<()> = Mutex::new(());

/// Keeps this thread on one CPU, and before all others there for its few milliseconds: on a busy machine two threads
/// hardly ever run at the same moment.
fn stay_on(cpu: usize) {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: a set of CPUs is plain bits; it and the parameters are read by the kernel within their own sizes.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
            | libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first)
    };
    assert_eq!(done, 0, "CPU {cpu}: {}", std::io::Error::last_os_error());
}

/// Runs the frame on two CPUs at once, `times` on each; how often each action came.
fn on_two_cpus(loaded: &Loaded, frame: &[u8], times: usize) -> [usize; 4] {
    let ready = AtomicUsize::new(0);
    let run = |cpu| {
        stay_on(cpu);
        ready.fetch_add(1, Ordering::SeqCst);
        // Spun, because a thread that has to be woken comes late.
        while ready.load(Ordering::SeqCst) < 2 {
            std::hint::spin_loop();
        }
        (0..times).map(|_| loaded.run(frame).action).collect::<Vec<_>>()
    };
    let actions = thread::scope(|scope| {
        let others = scope.spawn(|| run(1));
        let here = scope.spawn(|| run(0));
        [here, others].map(|thread| thread.join().expect("the runs")).concat()
    });
    let mut counts = [0; 4];
    for action in actions {
        counts[action as usize] += 1;
    }
    counts
}

const DROP: usize = xdp_action::DROP as usize;
const TX: usize = xdp_action::TX as usize;

#[test]
fn a_storm_of_claims_is_defended_once_in_an_interval() {
    let row = row(Kind::ClaimByReplyForm, "hold, armed");
    let mut loaded = enter(&row);
    let before = clocks().0;
    let actions: Vec<u32> = (0..1_000).map(|_| loaded.run(&row.frame).action).collect();
    assert_eq!(actions[0], xdp_action::TX, "the first claim is answered");
    assert!(actions[1..].iter().all(|action| *action == xdp_action::PASS));
    assert_eq!((loaded.counter(Counter::Defended), loaded.counter(Counter::Claims)), (1, 1_000));
    let slot = loaded.slot(SLOT);
    assert!((before..clocks().0).contains(&slot.defended_ns), "by the boot clock, not by the jiffy");
    assert_eq!(loaded.moves(SLOT), None, "there is no budget");
    let defended: Vec<bool> =
        loaded.events().iter().map(|event| event.flags & Event::DEFENDED != 0).collect();
    assert!(defended[0] && !defended[1..].contains(&true));

    age(&mut loaded, 9);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::PASS, "the interval is 10 s");
    age(&mut loaded, 1);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::TX);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::PASS);
}

#[test]
fn of_two_cpus_that_see_claims_at_the_moment_when_one_is_due_one_defends() {
    const ROUNDS: u64 = 100;
    let _both = BOTH_CPUS.lock().unwrap_or_else(PoisonError::into_inner);
    let row = row(Kind::ClaimByReplyForm, "hold, armed");
    let mut loaded = enter(&row);
    let storms = [0, 1].map(|cpu| (cpu, Repeater::new(loaded.fd(), &row.frame)));
    for round in 1..=ROUNDS {
        beat(&mut loaded);
        // Both are in the middle of a storm of claims, some 100 ns apart, when the interval is over.
        let due_ns = clocks().0 + 4_000_000;
        let slot = loaded.slot(SLOT);
        loaded.set_slot(SLOT, Slot { defended_ns: due_ns - 10 * SECOND_NS, ..slot });
        thread::scope(|scope| {
            for (cpu, claims) in &storms {
                scope.spawn(move || {
                    stay_on(*cpu);
                    while clocks().0 < due_ns + 1_000_000 {
                        claims.run(5_000);
                    }
                    claims.run(1);
                });
            }
        });
        assert_eq!(loaded.counter(Counter::Defended), round);
        let defended_ns = loaded.slot(SLOT).defended_ns;
        assert!(defended_ns >= due_ns, "{} ns early in round {round}", due_ns - defended_ns);
    }
    assert_eq!(loaded.claims(SLOT).claims, loaded.counter(Counter::Claims));
}

#[test]
fn of_two_conflicts_at_the_same_moment_one_is_the_second() {
    const ROUNDS: usize = 300;
    let _both = BOTH_CPUS.lock().unwrap_or_else(PoisonError::into_inner);
    let row = row(Kind::ClaimByRequestForm, "once, armed");
    let mut loaded = enter(&row);
    for round in 0..ROUNDS {
        loaded.enter(&row.world);
        // The first is defended, the second makes the address fall, and a request for it stays here.
        let mut expected = [0; 4];
        (expected[TX], expected[DROP]) = (1, 1);
        assert_eq!(on_two_cpus(&loaded, &row.frame, 1), expected, "round {round}");
        assert_eq!(loaded.slot(SLOT).fallen, MARK, "round {round}");
        let mut flags: Vec<u8> = loaded.events().iter().map(|event| event.flags).collect();
        flags.sort_unstable();
        assert!(flags.iter().any(|flags| flags & Event::DEFENDED != 0), "round {round}: {flags:?}");
        assert!(flags.iter().any(|flags| flags & Event::FELL != 0), "round {round}: {flags:?}");
    }
}

#[test]
fn the_move_budget_is_kept_over_its_window() {
    let row = row(Kind::ClaimByReplyForm, "hold, armed");
    let mut loaded = enter(&row);
    let mut port = row.world.port.expect("the row has a port");
    (port.moves, port.moves_window_s) = (2, 28);
    loaded.put_port(golden::PORT_INDEX, port);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::PASS, "what is not counted is left to user space");
    loaded.set_moves(SLOT, [0; MOVES]);
    let mut defends = |seconds_later| {
        age(&mut loaded, seconds_later);
        loaded.run(&row.frame).action == xdp_action::TX
    };
    assert!(defends(0) && defends(16), "two moves");
    assert!(!defends(11), "no third within 28 s of the first");
    assert!(defends(2), "29 s after the first");
    assert!(!defends(11), "24 s after the second");
    assert!(defends(5), "29 s after the second");
}

#[test]
fn a_claim_that_is_defended_is_reported_beyond_all_bounds() {
    let row = row(Kind::ClaimByReplyForm, "hold, not armed");
    let mut loaded = enter(&row);
    let claimed_by = |host: u32| {
        let mut frame = row.frame.clone();
        let [a, b, c, d] = host.to_be_bytes();
        frame[22..28].copy_from_slice(&[2, 1, a, b, c, d]);
        frame
    };
    for host in 0..2 * CLAIMANTS_PER_MINUTE {
        for _ in 0..2 * REPEATS_PER_SECOND {
            loaded.run(&claimed_by(host.into()));
        }
    }
    for host in [0, 2 * CLAIMANTS_PER_MINUTE] {
        loaded.events();
        beat(&mut loaded);
        let frame = claimed_by(host.into());
        assert_eq!(loaded.run(&frame).action, xdp_action::TX);
        let events = loaded.events();
        let [event] = events[..] else { panic!("one event: {events:?}") };
        assert_eq!(event.flags & Event::DEFENDED, Event::DEFENDED);
        assert_eq!(event.claimant, frame[22..28], "and says by whom");
        age(&mut loaded, 10);
    }
}

#[test]
fn an_address_that_has_fallen_is_silent_in_every_way_until_it_is_claimed_anew() {
    let row = row(Kind::ClaimByRequestForm, "yield");
    let mut loaded = enter(&row);
    beat(&mut loaded);
    let request = plain(Kind::Request, State::Online).frame;
    let leaving = guard::rows().into_iter().find(|row| row.kind == guard::Kind::Asking).expect("there").frame;
    assert_eq!(loaded.run(&request).action, xdp_action::TX);
    assert_eq!(loaded.run_guard(&leaving, None), tc_action::UNSPEC);

    assert_eq!(loaded.run(&row.frame).action, xdp_action::DROP, "Linux would answer it");
    assert_eq!(loaded.slot(SLOT).fallen, MARK);
    let flags: Vec<u8> = loaded.events().iter().map(|event| event.flags).collect();
    assert_eq!(flags, [Event::OWNER_CHANGED | Event::FELL]);
    for _ in 0..3 {
        assert_eq!(loaded.run(&request).action, xdp_action::DROP);
        assert_eq!(loaded.run(&row.frame).action, xdp_action::DROP);
        assert_eq!(loaded.run_guard(&leaving, None), tc_action::SHOT);
    }
    assert_eq!(loaded.counter(Counter::Defended), 0);
    assert!(loaded.events().iter().all(|event| event.flags & Event::FELL == 0), "it falls once");

    let mac = MacAddr::new(OUR_MAC);
    let flags = StateWord::LOCAL | Policy::Hold.flags();
    set_word(&mut loaded, &row, StateWord::new(mac, State::Announcing, flags, GENERATION + 1));
    assert_eq!(loaded.run(&request).action, xdp_action::TX, "another generation is another claim");
    assert_eq!(loaded.run_guard(&leaving, None), tc_action::UNSPEC);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::TX, "which is defended by its own policy");
}

#[test]
fn past_its_lease_an_address_is_neither_answered_nor_asked_in_the_name_of_nor_defended() {
    let row = row(Kind::ClaimByReplyForm, "hold, armed");
    let mut loaded = enter(&row);
    let request = plain(Kind::Request, State::Online).frame;
    let leaving = guard::rows().into_iter().find(|row| row.kind == guard::Kind::Asking).expect("there").frame;
    let Managed { slot, value, .. } = row.world.addresses[0];
    let until_ns = clocks().0 + 300_000_000;
    loaded.set_slot(slot, Slot { lease_until_ns: until_ns, ..value });
    let mut after = 0;
    while after < 20 {
        let before_ns = clocks().0;
        let answered = loaded.run(&request).action == xdp_action::TX;
        let after_ns = clocks().0;
        // The program's clock may be a jiffy late; it is never early.
        let late_ns = u64::try_from(JIFFY.as_nanos()).expect("short");
        assert!(answered || after_ns > until_ns, "{} ns early", until_ns - after_ns);
        assert!(!answered || before_ns <= until_ns + late_ns, "{} ns late", before_ns - until_ns);
        after += u32::from(before_ns > until_ns + late_ns);
    }
    beat(&mut loaded);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::PASS);
    assert_eq!(loaded.slot(SLOT).defended_ns, 0);
    assert_eq!(loaded.run_guard(&leaving, None), tc_action::SHOT);
}

#[test]
fn a_group_flips_all_its_addresses_in_one_store() {
    let row = row(Kind::Request, "a group that answers");
    let mut loaded = enter(&row);
    let Managed { key, value, .. } = row.world.addresses[0];
    let asked_for = |last: u8| {
        let mut frame = row.frame.clone();
        frame[38..42].copy_from_slice(&[198, 51, 100, last]);
        frame
    };
    for last in 1..=20 {
        let key = AddressKey { address: Ipv4::new([198, 51, 100, last]), ..key };
        loaded.put(key, 100 + u32::from(last), value);
    }
    let mut all = |group| {
        loaded.set_group(GROUP.into(), group);
        let mut actions: Vec<u32> = (1..=20).map(|last| loaded.run(&asked_for(last)).action).collect();
        actions.dedup();
        let [action] = actions[..] else { panic!("all of them alike: {actions:?}") };
        action
    };
    let past = clocks().0 - SECOND_NS;
    let stands = clocks().0 + 3_600 * SECOND_NS;
    for _ in 0..2 {
        assert_eq!(all(Group { word: Group::ANSWERS, lease_until_ns: 0 }), xdp_action::TX);
        assert_eq!(all(Group { word: Group::SILENT, lease_until_ns: 0 }), xdp_action::DROP);
        assert_eq!(all(Group { word: Group::ANSWERS, lease_until_ns: stands }), xdp_action::TX);
        assert_eq!(all(Group { word: Group::ANSWERS, lease_until_ns: past }), xdp_action::DROP);
        assert_eq!(all(Group { word: 7, lease_until_ns: 0 }), xdp_action::DROP, "an unknown word");
    }
    // A group that is not in the map.
    loaded.set_slot(SLOT, Slot { group: u16::MAX, ..value });
    assert_eq!(loaded.run(&row.frame).action, xdp_action::DROP);
}

/// The untagged request of the golden table by another host.
fn asked_by(frame: &[u8], host: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mac = [2, 2, 0, 0, 0, host];
    frame[6..12].copy_from_slice(&mac);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&[198, 51, 100, host]);
    frame
}

/// The hosts that are remembered, in no order.
fn remembered(loaded: &Loaded) -> Vec<u8> {
    let askers = loaded.slot(SLOT).askers;
    let mut hosts: Vec<u8> = askers
        .iter()
        .filter(|asker| asker.seen != Coarse::NEVER)
        .map(|asker| asker.address.octets()[3])
        .collect();
    hosts.sort_unstable();
    hosts
}

#[test]
fn the_most_recent_askers_are_remembered_by_owner_and_watcher_alike() {
    for state in [State::Online, State::Watched, State::Probing, State::Lost] {
        let row = plain(Kind::Request, state);
        let loaded = enter(&row);
        for host in [10, 11, 12, 13, 10, 14] {
            loaded.run(&asked_by(&row.frame, host));
            thread::sleep(UNIT);
        }
        assert_eq!(remembered(&loaded), [10, 11, 12, 13], "{state:?}: within a second nobody loses a place");
        thread::sleep(KEPT);
        loaded.run(&asked_by(&row.frame, 10));
        loaded.run(&asked_by(&row.frame, 14));
        assert_eq!(remembered(&loaded), [10, 12, 13, 14], "{state:?}");
        let before = clocks().0;
        loaded.run(&asked_by(&row.frame, 12));
        let asker = asker(&loaded, 12);
        let seen_ns = asker.seen.at(clocks().0).expect("seen");
        assert!(seen_ns + Coarse::UNIT_NS + 10_000_000 > before, "{state:?}");
        assert_eq!(asker.mac(), MacAddr::new([2, 2, 0, 0, 0, 12]), "{state:?}");
    }
}

fn asker(loaded: &Loaded, host: u8) -> Asker {
    let of = |asker: &&Asker| asker.address == Ipv4::new([198, 51, 100, host]);
    *loaded.slot(SLOT).askers.iter().find(of).expect("remembered")
}

#[test]
fn a_flood_of_askers_leaves_four_and_does_no_more() {
    let row = plain(Kind::Request, State::Online);
    let loaded = enter(&row);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..20 {
                    for host in 1..=250 {
                        let mut frame = asked_by(&row.frame, host);
                        frame[31] = host.wrapping_add(round);
                        frame[27] = frame[31];
                        loaded.run(&frame);
                    }
                }
            });
        }
    });
    let askers = loaded.slot(SLOT).askers;
    for asker in askers {
        assert_eq!(asker.mac().octets()[5], asker.address.octets()[3], "of one host: {asker:?}");
    }
    assert_eq!(loaded.counter(Counter::Answered), 2 * 20 * 250);
}

#[test]
fn an_asker_follows_once_it_asks_or_answers_us_by_unicast() {
    let row = plain(Kind::Request, State::Online);
    let mut loaded = enter(&row);
    // A who-has of this host in the address's name makes it answer, with a reply to us alone.
    let mut answer = plain(Kind::ReplyOfOthers, State::Online).frame;
    answer[22..28].copy_from_slice(&STRANGER_MAC);
    answer[28..32].copy_from_slice(&ASKER);
    loaded.run(&answer);
    assert_eq!(loaded.slot(SLOT).askers, [Asker::default(); 4], "who never asked is not remembered");
    let follows = |loaded: &Loaded| {
        let Slot { askers: [asker, ..], followed: [followed, ..], .. } = loaded.slot(SLOT);
        assert_eq!((asker.mac(), asker.address), (MacAddr::new(STRANGER_MAC), Ipv4::new(ASKER)));
        (asker.followed(), followed)
    };
    loaded.run(&row.frame);
    assert_eq!(follows(&loaded), (0, Coarse::NEVER), "a broadcast request tells nothing of its cache");
    let mut flooded = answer.clone();
    flooded[..6].copy_from_slice(&golden::OTHER_MAC);
    loaded.run(&flooded);
    assert_eq!(follows(&loaded), (0, Coarse::NEVER), "it answered somebody else");
    loaded.run(&answer);
    let (mark, first) = follows(&loaded);
    assert_eq!(mark, MARK);
    assert_ne!(first, Coarse::NEVER);

    thread::sleep(UNIT);
    let unicast = plain(Kind::RequestToOurMac, State::Online).frame;
    loaded.run(&answer);
    loaded.run(&unicast);
    assert_eq!(follows(&loaded), (MARK, first), "when it followed first is kept");

    let word = |state, generation| StateWord::new(MacAddr::new(OUR_MAC), state, StateWord::LOCAL, generation);
    set_word(&mut loaded, &row, word(State::Probing, GENERATION + 1));
    loaded.run(&unicast);
    assert_eq!(follows(&loaded), (MARK, first), "nobody follows what may not answer");
    set_word(&mut loaded, &row, word(State::Online, GENERATION + 1));
    loaded.run(&unicast);
    let (mark, second) = follows(&loaded);
    assert_eq!(mark, MARK + 1);
    assert!(first.before(second) > 0);
}

#[test]
fn this_host_is_not_an_asker_of_its_own() {
    let row = plain(Kind::Request, State::Online);
    let loaded = enter(&row);
    for kind in [Kind::SiblingAsking, Kind::EchoOfPortAsking] {
        loaded.run(&plain(kind, State::Online).frame);
    }
    let mut sibling_answers = plain(Kind::ReplyOfOthers, State::Online).frame;
    sibling_answers[22..28].copy_from_slice(&SIBLING_MAC);
    sibling_answers[28..32].copy_from_slice(&GATEWAY);
    loaded.run(&sibling_answers);
    assert_eq!(loaded.slot(SLOT).askers, [Asker::default(); 4]);
}

#[test]
fn each_safety_is_what_makes_its_difference() {
    let request = |state| plain(Kind::Request, state);
    let asking = |name| {
        guard::rows()
            .into_iter()
            .find(move |row| row.kind == guard::Kind::Asking && row.column.name == name && row.kept)
    };
    for omitted in [0, omit::GUARD, omit::SHIELD, omit::LEASE, omit::FALLEN] {
        let mut loaded = Loaded::load_without(OBJECT, names::XDP, 0, omitted);
        let mut action = |row: &Row| {
            loaded.enter(&row.world);
            let action = loaded.run(&row.frame).action;
            assert_eq!(
                loaded.counter(Counter::Shielded) == 1,
                action != xdp_action::TX,
                "counted all the same"
            );
            action
        };
        let pick = |without, there, otherwise| if omitted == without { there } else { otherwise };
        let otherwise = pick(omit::SHIELD, xdp_action::PASS, xdp_action::DROP);
        assert_eq!(action(&request(State::Yielding)), otherwise, "shield, without {omitted}");
        let past = row(Kind::Request, "hold, armed, lease past");
        assert_eq!(action(&past), pick(omit::LEASE, xdp_action::TX, otherwise), "lease, without {omitted}");
        let group = row(Kind::Request, "a group whose lease is past");
        assert_eq!(action(&group), pick(omit::LEASE, xdp_action::TX, otherwise), "lease, without {omitted}");
        let fallen = row(Kind::Request, "fallen");
        assert_eq!(action(&fallen), pick(omit::FALLEN, xdp_action::TX, otherwise), "fall, without {omitted}");
        let leaving = asking("a silent group").expect("the table is complete");
        loaded.enter(&leaving.world);
        assert_eq!(
            loaded.run_guard(&leaving.frame, leaving.beside),
            if omitted == omit::GUARD { tc_action::UNSPEC } else { tc_action::SHOT },
            "guard, without {omitted}"
        );
        assert_eq!(loaded.counter(Counter::Guarded), 1, "counted all the same");
    }
}

#[test]
fn an_observed_port_changes_nothing_in_the_world() {
    let row = row(Kind::ClaimByRequestForm, "hold, armed, observed");
    let loaded = enter(&row);
    for _ in 0..3 {
        assert_eq!(loaded.run(&row.frame).action, xdp_action::PASS);
    }
    let slot = loaded.slot(SLOT);
    assert_eq!((loaded.claims(SLOT).claims, slot.defended_ns, slot.fallen), (3, 0, 0));
    assert_eq!(loaded.run(&plain(Kind::Request, State::Online).frame).action, xdp_action::PASS);
    assert_eq!(loaded.address_counters(SLOT).answered, 1, "it says what it would have done");
}
