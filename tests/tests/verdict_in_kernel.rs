//! The golden frames through the loaded program: action, frame, counters, record and event of each row are those
//! of the table, and so those of the verdict on the host. Then what one frame cannot show: bounds and totals.

use arpwarden::io::bpf::OBJECT;
use arpwarden_common::{
    abi::{
        ASKERS, AddressKey, Asker, Claims, Coarse, Counter, DEFAULT_CAPACITY, Event, EventKind, MAX_CAPACITY,
        Slot,
    },
    golden::{self, Kind, Managed, Row, SLOT, Sees, Tags, World},
    names,
    net::{Ipv4, MacAddr, Vlan},
    report::{CLAIMANTS_PER_MINUTE, REPEATS_PER_SECOND},
    state::{State, StateWord},
};
use arpwarden_tests::{
    kernel::is_at_least,
    prog_run::{Loaded, Ran, clocks, tc_action, xdp_action},
};

const SECOND_NS: u64 = 1_000_000_000;
const MINUTE_NS: u64 = 60 * SECOND_NS;
/// The clock of the bounds may be a jiffy behind that of the events: 10 ms at most (HZ is 100 or more).
const JIFFY_NS: u64 = 10_000_000;

#[test]
fn the_program_does_with_each_golden_frame_what_the_table_says() {
    agree(names::XDP);
}

#[test]
fn the_program_for_multi_buffer_frames_does_the_same() {
    agree(names::XDP_FRAGS);
}

#[test]
fn the_program_for_tc_does_what_the_table_says_with_tags_in_the_frame() {
    agree(names::TC);
}

#[test]
fn the_program_for_tc_does_what_the_table_says_with_the_first_tag_beside_the_frame() {
    agree_beside(names::TC);
}

#[test]
fn the_programs_for_older_kernels_do_what_the_table_says_but_for_defending() {
    agree(names::XDP_BASIC);
    agree(names::TC_BASIC);
    agree_beside(names::TC_BASIC);
}

/// The rows of the table for a program, or none and a word where this kernel lacks what it needs.
fn rows_for(program: &str) -> Vec<Row> {
    match program {
        names::XDP_BASIC | names::TC_BASIC => golden::rows_without_exchanges(),
        names::XDP_FRAGS if !is_at_least(5, 18) => skipped(program),
        _ if !is_at_least(5, 12) => skipped(program),
        _ => golden::rows(),
    }
}

fn skipped(program: &str) -> Vec<Row> {
    println!("skipped: this kernel does not take {program}");
    Vec::new()
}

fn agree_beside(program: &'static str) {
    let mut rows = rows_for(program);
    rows.retain(|row| matches!(row.frame[12..14], [0x81, 0x00] | [0x88, 0xa8]));
    let mut rows: Vec<Row> = rows.into_iter().step_by(share()).collect();
    if rows.is_empty() {
        return;
    }
    let mut loaded = Loaded::load(OBJECT, program, 0);
    rows.sort_by_cached_key(|row| format!("{:?}", row.world));
    for row in &mut rows {
        loaded.enter(&row.world);
        let mut tag = [0; 4];
        tag.copy_from_slice(&row.frame[12..16]);
        // It stays where it is: nothing of it is in the bytes.
        row.frame.drain(12..16);
        row.out.drain(12..16);
        let ran = loaded.run_beside(&row.frame, Some(tag));
        check(&mut loaded, row, &ran);
    }
}

#[test]
fn the_guard_keeps_in_what_the_table_says_and_nothing_else() {
    // The program beside it is one that every kernel takes.
    let mut loaded = Loaded::load(OBJECT, names::XDP_BASIC, 0);
    let mut rows: Vec<_> = golden::guard::rows().into_iter().step_by(share()).collect();
    rows.sort_by_cached_key(|row| format!("{:?}", row.world));
    let mut world = None;
    let mut kept = 0;
    for row in &rows {
        let name = row.name();
        // It changes nothing but its counts, so a world is good for all its rows.
        if world != Some(&row.world) {
            loaded.enter(&row.world);
            (world, kept) = (Some(&row.world), 0);
        }
        kept += u64::from(row.kept);
        let dropped = row.kept && !row.column.observed;
        let action = if dropped { tc_action::SHOT } else { tc_action::UNSPEC };
        assert_eq!(loaded.run_guard(&row.frame, row.beside), action, "{name}");
        for counter in Counter::ALL {
            let counted = if counter == Counter::Guarded { kept } else { 0 };
            assert_eq!(loaded.counter(counter), counted, "{counter:?} of {name}");
        }
        assert_eq!(loaded.claims(SLOT).guarded, kept, "{name}");
        assert_eq!(loaded.claims(SLOT + 1), Claims::default(), "{name}");
    }
    assert!(loaded.events().is_empty());
}

fn agree(program: &'static str) {
    let mut rows: Vec<Row> = rows_for(program).into_iter().step_by(share()).collect();
    if rows.is_empty() {
        return;
    }
    let mut loaded = Loaded::load(OBJECT, program, 0);
    // One world after the other: entering one costs more than running a frame.
    rows.sort_by_cached_key(|row| format!("{:?}", row.world));
    for row in &rows {
        loaded.enter(&row.world);
        let ran = loaded.run(&row.frame);
        check(&mut loaded, row, &ran);
    }
}

/// Of so many frames one is tried; `ARPWARDEN_GOLDEN_SHARE` says how many, where all would take too long.
fn share() -> usize {
    std::env::var("ARPWARDEN_GOLDEN_SHARE").map_or(1, |share| share.parse().expect("a number from 1 on"))
}

/// That a frame came out as the row says, and that it is counted and reported so.
fn check(loaded: &mut Loaded, row: &Row, ran: &Ran) {
    let name = row.name();
    assert_eq!(ran.action, loaded.returns(row.action), "{name}");
    assert_eq!(ran.frame, row.out, "{name}");

    for counter in Counter::ALL {
        let counted = row.counter == Some(counter) || row.sighting_counter() == Some(counter);
        assert_eq!(loaded.counter(counter), u64::from(counted), "{counter:?} of {name}");
    }
    // A claim may ask for the second address; all other rows are about the first.
    let slot = if row.kind == Kind::ClaimAskingSecond { SLOT + 1 } else { SLOT };
    let counters = loaded.address_counters(slot);
    let counted = |counter| u64::from(row.counter == Some(counter));
    assert_eq!(counters.answered, counted(Counter::Answered), "{name}");
    assert_eq!(counters.shielded, counted(Counter::Shielded), "{name}");

    row.check_reaction(|slot| (loaded.slot(slot), loaded.moves(slot)), clocks().0);
    for slot in [SLOT, SLOT + 1] {
        let Slot { askers: mut there, followed, .. } = loaded.slot(slot);
        let mut expected = [Asker::default(); ASKERS];
        let asker = row.asker.filter(|(asked, _)| *asked == slot);
        assert_eq!(there[0].seen != Coarse::NEVER, asker.is_some(), "{name}");
        let follows = asker.is_some_and(|(_, asker)| asker.followed() != 0);
        assert_eq!(followed[0] != Coarse::NEVER, follows, "{name}");
        assert_eq!(followed[1..], [Coarse::NEVER; ASKERS - 1], "{name}");
        there[0].seen = Coarse::NEVER;
        expected[0] = asker.map_or(expected[0], |(_, asker)| asker);
        assert_eq!(there, expected, "{name}");
    }

    let record = loaded.claims(SLOT);
    let claimed = matches!(row.sees, Sees::Conflict | Sees::Fall | Sees::Claim | Sees::Allowed);
    let echoed = matches!(row.sees, Sees::Echo | Sees::Sibling);
    assert_eq!(record.claims, u64::from(claimed), "{name}");
    assert_eq!(record.probes, u64::from(row.sees == Sees::Probe), "{name}");
    assert_eq!(record.echoes, u32::from(echoed), "{name}");
    let claimant = match row.sees {
        Sees::Allowed => MacAddr::new(golden::ALLOWED_MAC),
        Sees::Conflict | Sees::Fall | Sees::Claim => MacAddr::new(golden::STRANGER_MAC),
        Sees::Nothing | Sees::Probe | Sees::Echo | Sees::EchoOfOthers | Sees::Sibling => MacAddr::ZERO,
    };
    assert_eq!(record.owner, claimant, "{name}");
    assert_eq!(record.owner_seen != Coarse::NEVER, claimed, "{name}");
    assert_eq!(loaded.claims(SLOT + 1), Claims::default(), "{name}");

    let events = loaded.events();
    for event in &events {
        assert_ne!(event.kernel_time_ns, 0, "{name}");
    }
    let timeless: Vec<Event> = events.into_iter().map(|event| Event { kernel_time_ns: 0, ..event }).collect();
    assert_eq!(timeless, Vec::from_iter(row.event), "{name}");
}

/// The row of this kind for an untagged online address that is local.
fn row(kind: Kind) -> Row {
    row_in(kind, State::Online)
}

fn row_in(kind: Kind, state: State) -> Row {
    row_named(kind, state, "")
}

/// Of an address that is ours for good: of one that may still be taken back every claim is told.
fn held(kind: Kind) -> Row {
    row_named(kind, State::Online, "hold, not armed")
}

fn row_named(kind: Kind, state: State, name: &str) -> Row {
    golden::rows()
        .into_iter()
        .find(|row| {
            (row.kind, row.tags, row.column.name, row.column.state) == (kind, Tags::None, name, Some(state))
                && (row.column.local, row.column.lease_until_ns) == (true, 0)
        })
        .expect("the table is complete")
}

/// The untagged frame with another ARP sender MAC.
fn claimed_by(frame: &[u8], host: u32) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let [a, b, c, d] = host.to_be_bytes();
    frame[22..28].copy_from_slice(&[2, 1, a, b, c, d]);
    frame
}

#[test]
fn a_claim_for_a_watched_address_is_news_only_when_the_owner_changes() {
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = row_in(Kind::ClaimByRequestForm, State::Watched);
    loaded.enter(&row.world);
    for host in [1, 1, 1, 2, 2, 1] {
        loaded.run(&claimed_by(&row.frame, host));
    }
    let events = loaded.events();
    let claimants: Vec<u8> = events.iter().map(|event| event.claimant[5]).collect();
    assert_eq!(claimants, [1, 2, 1]);
    assert!(events.iter().all(|event| event.flags & Event::OWNER_CHANGED != 0));
    assert_eq!(loaded.claims(SLOT).claims, 6);
}

#[test]
fn repeats_of_a_conflict_are_folded_and_none_is_lost() {
    const CLAIMS: u64 = 1_000;
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = held(Kind::ClaimByRequestForm);
    loaded.enter(&row.world);
    for _ in 0..CLAIMS {
        loaded.run(&row.frame);
    }
    let events = loaded.events();
    assert_eq!((events[0].flags, events[1].flags), (Event::OWNER_CHANGED, Event::REPEAT));
    assert!(events[1..].iter().all(|event| event.flags == Event::REPEAT));
    let told: u64 = events.iter().map(|event| event.count).sum();
    let [(_, claimant)] = loaded.claimants()[..] else { panic!("one claimant is remembered") };
    assert_eq!((claimant.frames, claimant.untold), (CLAIMS, CLAIMS - told));
    assert_eq!(loaded.claims(SLOT).claims, CLAIMS);
    assert_eq!(loaded.counter(Counter::Claims), CLAIMS);
    let (first, last) = (events[0].kernel_time_ns - JIFFY_NS, events[events.len() - 1].kernel_time_ns);
    let seconds = 1 + last / SECOND_NS - first / SECOND_NS;
    assert!(events.len() as u64 <= (1 + u64::from(REPEATS_PER_SECOND)) * seconds, "{} events", events.len());
}

#[test]
fn a_flood_of_claimants_is_64_events_and_then_one_a_second() {
    const HOSTS: u32 = 20_000;
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = held(Kind::ClaimByRequestForm);
    loaded.enter(&row.world);
    let mut events = Vec::new();
    for host in 0..HOSTS {
        loaded.run(&claimed_by(&row.frame, host));
        events.append(&mut loaded.events());
    }
    let (first, last) = (events[0].kernel_time_ns - JIFFY_NS, events[events.len() - 1].kernel_time_ns);
    let (floods, claims): (Vec<Event>, Vec<Event>) =
        events.into_iter().partition(|event| event.kind == EventKind::Flood as u8);
    let minutes = 1 + last / MINUTE_NS - first / MINUTE_NS;
    let seconds = 1 + last / SECOND_NS - first / SECOND_NS;
    assert!(claims.len() as u64 <= u64::from(CLAIMANTS_PER_MINUTE) * minutes, "{} claims", claims.len());
    assert!(claims.len() >= usize::from(CLAIMANTS_PER_MINUTE));
    assert!(!floods.is_empty() && floods.len() as u64 <= seconds, "{} floods in {seconds} s", floods.len());
    let record = loaded.claims(SLOT);
    assert_eq!(record.claims, u64::from(HOSTS));
    let told: u64 = floods.iter().map(|event| event.count).sum();
    assert_eq!(told + record.flood_untold + claims.len() as u64, u64::from(HOSTS));
    assert_eq!(loaded.claimants().len(), claims.len());
}

#[test]
fn what_a_full_ring_cannot_take_is_counted_and_told_later() {
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = row(Kind::ClaimByRequestForm);
    loaded.enter(&row.world);
    // Enough addresses to fill the ring at 64 claimants each: it holds 4,096 events.
    let Managed { key, value, .. } = row.world.addresses[0];
    let addresses: u8 = 70;
    for n in 0..addresses {
        let address = Ipv4::new([198, 51, 100, n]);
        let key = AddressKey { address, ..key };
        loaded.put(key, 100 + u32::from(n), value);
    }
    let mut claims = 0;
    for n in 0..addresses {
        for host in 0..u32::from(CLAIMANTS_PER_MINUTE) {
            let mut frame = claimed_by(&row.frame, host);
            frame[28..32].copy_from_slice(&[198, 51, 100, n]);
            frame[38..42].copy_from_slice(&[198, 51, 100, n]);
            loaded.run(&frame);
            claims += 1;
        }
    }
    let lost = loaded.counter(Counter::EventsLost);
    let events = loaded.events();
    assert!(lost > 0 && events.len() >= 4_000, "{lost} lost, {} there", events.len());
    assert_eq!(loaded.counter(Counter::Claims), claims);
    assert!(events.len() as u64 + lost <= claims);

    // The last host was lost; now that there is room its next claim stands for both.
    let mut frame = claimed_by(&row.frame, u32::from(CLAIMANTS_PER_MINUTE) - 1);
    frame[28..32].copy_from_slice(&[198, 51, 100, addresses - 1]);
    frame[38..42].copy_from_slice(&[198, 51, 100, addresses - 1]);
    loaded.run(&frame);
    let [event] = loaded.events()[..] else { panic!("one event") };
    assert_eq!(event.count, 2);
}

#[test]
fn two_cpus_that_see_the_same_claims_report_each_claimant_once_and_count_every_frame() {
    const HOSTS: u32 = 50;
    const ROUNDS: u32 = 200;
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = row(Kind::ClaimByRequestForm);
    loaded.enter(&row.world);
    let frames: Vec<Vec<u8>> = (0..HOSTS).map(|host| claimed_by(&row.frame, host)).collect();
    let threads = 4;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for frame in &frames {
                    for _ in 0..ROUNDS {
                        loaded.run(frame);
                    }
                }
            });
        }
    });
    let claims = u64::from(HOSTS * ROUNDS * threads);
    assert_eq!(loaded.counter(Counter::Claims), claims);
    assert_eq!(loaded.claims(SLOT).claims, claims);
    let mut firsts: Vec<_> = loaded
        .events()
        .iter()
        .filter(|event| event.flags & Event::REPEAT == 0)
        // By the clock of the bounds it may still have been the minute before.
        .filter(|event| event.kernel_time_ns % MINUTE_NS >= JIFFY_NS)
        .map(|event| (event.claimant, event.kernel_time_ns / MINUTE_NS))
        .collect();
    assert_eq!(loaded.claimants().len(), HOSTS as usize);
    firsts.sort_unstable();
    let all = firsts.len();
    firsts.dedup();
    assert_eq!(firsts.len(), all, "a claimant was introduced twice in a minute");
    let frames: u64 = loaded.claimants().iter().map(|(_, claimant)| claimant.frames).sum();
    assert_eq!(frames, claims);
}

#[test]
fn each_of_many_addresses_is_found_and_no_other() {
    const MANY: u32 = 3_000;
    let mut loaded = Loaded::load_for(OBJECT, names::XDP, 0, 0, MANY);
    let row = row(Kind::Request);
    loaded.enter(&row.world);
    let Managed { key, value, .. } = row.world.addresses[0];
    let address = |n: u32| [10, 7, (n >> 8).to_be_bytes()[3], n.to_be_bytes()[3]];
    let slots: Vec<u32> = (0..MANY).filter(|slot| ![SLOT, SLOT + 1].contains(slot)).collect();
    for &slot in &slots {
        loaded.put(AddressKey { address: Ipv4::new(address(slot)), ..key }, slot, value);
    }
    let asked_for = |address: [u8; 4]| {
        let mut frame = row.frame.clone();
        frame[38..42].copy_from_slice(&address);
        frame
    };
    for &slot in &slots {
        assert_eq!(loaded.run(&asked_for(address(slot))).action, xdp_action::TX, "{slot}");
        assert_eq!(loaded.address_counters(slot).answered, 1, "{slot}");
    }
    assert_eq!(loaded.run(&row.frame).action, xdp_action::TX);
    for &slot in &slots {
        let [a, _, c, d] = address(slot);
        assert_eq!(loaded.run(&asked_for([a, 8, c, d])).action, xdp_action::PASS, "{slot}");
    }
    assert_eq!(loaded.counter(Counter::Unmanaged), slots.len() as u64);
}

#[test]
fn an_entry_of_the_index_that_leads_astray_hides_no_address() {
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = row(Kind::Request);
    let Managed { key, .. } = row.world.addresses[0];
    loaded.enter(&World { addresses: Vec::new(), ..row.world.clone() });
    // To a vacant slot, to one that is not there; then the right one, in whatever place is left.
    for slot in [7, DEFAULT_CAPACITY + 1, MAX_CAPACITY - 1, 8, 9] {
        loaded.lead(key, slot);
        assert_eq!(loaded.run(&row.frame).action, xdp_action::PASS, "{slot}");
    }
    loaded.enter(&row.world);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::TX);
}

#[test]
fn a_slot_that_is_vacant_or_another_addresss_answers_nothing() {
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = row(Kind::Request);
    loaded.enter(&row.world);
    let Managed { key: AddressKey { interface, vlan, .. }, value: good, .. } = row.world.addresses[0];
    let others = [
        Slot { word: StateWord::VACANT.bits(), ..good },
        Slot { interface: interface + 1, ..good },
        Slot { vlan: Vlan { outer: 7, ..vlan }, ..good },
        Slot { vlan: Vlan { inner: 7, ..vlan }, ..good },
        Slot { address: Ipv4::new(golden::SECOND), ..good },
    ];
    for (unmanaged, other) in (1..).zip(others) {
        loaded.set_slot(SLOT, other);
        assert_eq!(loaded.run(&row.frame).action, xdp_action::PASS, "{other:?}");
        assert_eq!(loaded.counter(Counter::Unmanaged), unmanaged, "{other:?}");
    }
    loaded.set_slot(SLOT, good);
    assert_eq!(loaded.run(&row.frame).action, xdp_action::TX);
}

#[test]
fn a_port_is_found_in_each_of_its_places() {
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let row = row(Kind::Request);
    loaded.enter(&row.world);
    for nth in 0..4 {
        loaded.put_port_at(golden::PORT_INDEX, row.world.port.expect("the row has a port"), nth);
        assert_eq!(loaded.run(&row.frame).action, xdp_action::TX, "place {nth}");
    }
}

#[test]
fn messages_come_at_their_level_and_none_without() {
    // Off, error, warn, info, debug, trace; conflicts are told at info, drops at debug, answers at trace.
    let info = &["claim", "fight", "yield"][..];
    let debug = &["claim", "fight", "yield", "shielded", "kept in"];
    let trace = &["claim", "fight", "yield", "answered", "shielded", "kept in"];
    for (level, expected) in (0..).zip([&[][..], &[], &[], info, debug, trace]) {
        assert_eq!(said(level), expected, "at level {level}");
    }
}

/// What the programs loaded with messages up to `level` say of some frames: the word of each message.
fn said(level: u8) -> Vec<&'static str> {
    let named = |kind, name| {
        let mut rows = golden::rows().into_iter();
        rows.find(|row| (row.kind, row.column.name) == (kind, name)).expect("the table is complete")
    };
    let mut loaded = Loaded::load(OBJECT, names::XDP, level);
    for row in [
        row(Kind::ClaimByRequestForm),
        named(Kind::ClaimByRequestForm, "hold, armed"),
        named(Kind::ClaimByRequestForm, "yield"),
        row(Kind::Request),
        row_in(Kind::Request, State::Yielding),
    ] {
        loaded.enter(&row.world);
        loaded.run(&row.frame);
    }
    let leaving = golden::guard::rows().into_iter().find(|row| row.kept).expect("the table is complete");
    loaded.enter(&leaving.world);
    loaded.run_guard(&leaving.frame, leaving.beside);

    let word = |message: &Vec<u8>| {
        let has = |word: &str| message.windows(word.len()).any(|part| part == word.as_bytes());
        assert!(has("arpwarden"), "the target");
        let words = ["claim", "fight", "yield", "answered", "shielded", "kept in"];
        // "claimant" is in all messages about conflicts; their first word is a field of its own.
        words.into_iter().rev().find(|word| has(word)).expect("one of these")
    };
    loaded.messages().iter().map(word).collect()
}
