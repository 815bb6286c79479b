//! Floods: frames by the million, from hosts that nobody has seen before, while somebody asks all the time. What is
//! judged are counts and bounds, never how fast it went.

use std::{fs, time::Duration};

use arpwarden_common::{abi::Counter, report::CLAIMANTS_PER_MINUTE};
use arpwarden_tests::{
    kernel::{Said, Slots},
    lane::Lane,
    live::{Stream, cpus},
    ms,
    node::{Event, Events, Node},
    storm::{Frames, addresses},
    wait_for,
    wire::boot_ns,
};

/// Frames of the floods of claims and of requests, and of each of those that are malformed.
const FLOOD: u32 = 2_000_000;
const MALFORMED: u32 = 300_000;
/// Questions at once, without a pause between that and the next ones; and for how long at most.
const QUESTIONS: (u32, Duration) = (20_000, Duration::ZERO);
const AT_MOST: Duration = Duration::from_secs(120);
/// Addresses that are answered without being configured.
const CLAIMED: [&str; 6] = ["online", "-", "--iface", "eth0", "--register", "none"];
/// By how much the daemon may grow meanwhile, in KiB. What it keeps of floods is bounded, however many addresses they
/// are about: 1,024 events of some 300 bytes, and as much for each reader, and 8,192 lines of its log that wait to be written.
const GROWTH: u64 = 8 * 1024;

/// A cable with a queue for each CPU, so that what one sends is taken in on the same, and nothing is lost.
fn lane() -> Lane {
    let lane = Lane::new(u8::try_from(cpus().len().min(64)).expect("at most 64"), 2);
    // The kernel must not answer beside the program.
    lane.node.ns.sysctl("ipv4/conf/all/arp_ignore", "1");
    lane
}

/// Brings so many addresses online.
fn claim(node: &Node<'_>, count: u32) {
    let lines: String = addresses(count).map(|address| format!("{address}/32\n")).collect();
    node.cli_with_input(&[&CLAIMED[..], &["--blackhole-ok"]].concat(), &lines).expect(0);
}

/// Asks by another core all the time while `flood` goes on, and asserts that every question was answered.
fn while_all_is_answered<T>(lane: &Lane, asked_for: u32, flood: impl FnOnce() -> T) -> (T, u64) {
    let questions = lane.generator(Frames::Requests, asked_for);
    let before = lane.seen();
    let cpu = *cpus().last().expect("a CPU");
    let asking = Stream::start(&lane.peer.ns, &questions, cpu, QUESTIONS, AT_MOST);
    wait_for("the first answer", ms(10_000), || (lane.seen() > before).then_some(()));
    let done = flood();
    let asked = asking.stop().frames;
    wait_for_answers(lane, before + asked);
    (done, asked)
}

/// Waits until so many answers have come back in all.
fn wait_for_answers(lane: &Lane, answers: u64) {
    let mut seen = 0;
    for _ in 0..1_000 {
        seen = lane.seen();
        if seen >= answers {
            break;
        }
        std::thread::sleep(ms(2));
    }
    assert_eq!(seen, answers, "answers to all questions of the lane");
}

/// What `status` counts of all frames.
fn counted(node: &Node<'_>) -> impl Fn(Counter) -> u64 {
    let status = node.status();
    move |counter| status["counters"][counter.name()].as_u64().expect("a counter")
}

/// The sum of a counter over all addresses.
fn summed(node: &Node<'_>, counter: &str) -> u64 {
    let status = node.status();
    let addresses = status["addresses"].as_array().expect("addresses");
    addresses.iter().map(|entry| entry["counters"][counter].as_u64().expect("a counter")).sum()
}

/// Runs `flood` and asserts that the daemon does not grow much meanwhile.
fn without_growth<T>(node: &Node<'_>, flood: impl FnOnce() -> T) -> T {
    let pid = node.pid();
    // From here on the highest there has been is the highest since (proc_pid_clear_refs(5)): loading takes more.
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a process of ours");
    let most = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a size");
        line.split_whitespace().next().and_then(|size| size.parse::<u64>().ok()).expect("a number")
    };
    let before = most();
    let done = flood();
    let after = most();
    assert!(after < before + GROWTH, "{after} KiB, before {before}");
    done
}

/// Events that tell of somebody else's frames.
const OF_OTHERS: [&str; 6] =
    ["conflict", "claimant_flood", "probe_seen", "owner_changed", "echo", "defended"];

/// Takes events until those of claims stand for so many frames.
fn until_told(events: &Events, frames: impl Fn() -> u64) -> Vec<Event> {
    let mut seen = Vec::new();
    wait_for("events of all claims", ms(10_000), || {
        seen.extend(events.drain());
        let told: u64 = seen.iter().filter_map(told).sum();
        assert!(told <= frames(), "{told} claims told of {}", frames());
        (told == frames()).then_some(())
    });
    seen
}

/// Claims that an event stands for.
fn told(event: &Event) -> Option<u64> {
    let claims = matches!(event.json["event"].as_str()?, "conflict" | "claimant_flood");
    if claims { event.json["count"].as_u64() } else { None }
}

fn named(events: &[Event], name: &str) -> u64 {
    events.iter().filter(|event| event.json["event"] == name).count() as u64
}

/// How many spans of so many seconds of CLOCK_BOOTTIME a time has a part in.
fn spans(seconds: u64, from_ns: u64, to_ns: u64) -> u64 {
    let span = seconds * 1_000_000_000;
    to_ns / span - from_ns / span + 1
}

#[test]
fn claims_by_two_million_hosts_stop_no_answer_and_are_counted_exactly_in_few_events() {
    let lane = lane();
    let node = Node::start(&lane.node);
    claim(&node, 1);
    let address = addresses(1).next().expect("an address");
    let events = node.events();
    let lines = node.log().lines().count() as u64;
    let claims = lane.generator(Frames::Claims, 1);
    let from_ns = boot_ns();
    without_growth(&node, || while_all_is_answered(&lane, 1, || lane.send(&claims, FLOOD)));
    let to_ns = boot_ns();

    assert_eq!(counted(&node)(Counter::Claims), u64::from(FLOOD));
    assert_eq!(node.counter(address, "claims"), u64::from(FLOOD));
    assert_eq!(counted(&node)(Counter::EventsLost), 0);
    // What was not told yet is in the maps, for the next event to tell.
    let slot = Slots::pinned(&node.instance).number_of(address);
    let untold = Said::pinned(&node.instance).of(slot).flood_untold;
    let seen = until_told(&events, || u64::from(FLOOD) - untold);

    let defences = spans(10, from_ns, to_ns) + 1;
    let one_by_one = named(&seen, "conflict");
    let most = u64::from(CLAIMANTS_PER_MINUTE) * spans(60, from_ns, to_ns) + defences;
    assert!((u64::from(CLAIMANTS_PER_MINUTE)..=most).contains(&one_by_one), "{one_by_one} of {most}");
    let floods = named(&seen, "claimant_flood");
    assert!((1..=spans(1, from_ns, to_ns)).contains(&floods), "{floods} events of the flood");
    let defended = named(&seen, "defended");
    assert!((1..=defences).contains(&defended), "{defended} defences");
    // One line for an event, and one for the message of the program about it.
    let told = node.log().lines().count() as u64 - lines;
    let of_the_plan = 8;
    assert!(told <= 2 * (one_by_one + floods + defended) + of_the_plan, "{told} lines in the log");
    assert!(["announcing", "online"].contains(&&*node.state(address).expect("managed")));
}

#[test]
fn no_address_of_a_thousand_is_given_up_or_silent_when_all_are_claimed_by_two_million_hosts() {
    const COUNT: u32 = 1_000;
    let lane = lane();
    let node = Node::start(&lane.node);
    claim(&node, COUNT);
    let claims = lane.generator(Frames::Claims, COUNT);
    let from_ns = boot_ns();
    let flood = || while_all_is_answered(&lane, COUNT, || lane.send(&claims, FLOOD));
    let ((), asked) = without_growth(&node, flood);
    let defences = spans(10, from_ns, boot_ns()) + 1;
    assert_eq!(summed(&node, "answered"), asked);
    assert_eq!(counted(&node)(Counter::Claims), u64::from(FLOOD));
    assert_eq!(summed(&node, "claims"), u64::from(FLOOD));
    // By the program itself: the daemon does not hear of all of that, as the ring has no room for it.
    let defended = counted(&node)(Counter::Defended);
    assert!((u64::from(COUNT)..=u64::from(COUNT) * defences).contains(&defended), "{defended} defences");
    let before = lane.seen();
    // Each of them a hundred times or so.
    lane.send(&lane.generator(Frames::Requests, COUNT), 100 * COUNT);
    wait_for_answers(&lane, before + u64::from(100 * COUNT));
    let status = node.status();
    let entries = status["addresses"].as_array().expect("addresses");
    assert_eq!(entries.len(), COUNT as usize);
    for (entry, address) in entries.iter().zip(addresses(COUNT)) {
        assert_eq!(entry["address"].as_str(), Some(&*address.to_string()));
        assert_eq!(entry["may_answer"], true, "{entry}");
        assert!(["announcing", "online"].contains(&entry["state"].as_str().expect("a state")), "{entry}");
        assert!(entry["counters"]["answered"].as_u64() > Some(0), "{entry}");
    }
}

#[test]
fn requests_by_two_million_hosts_are_answered_and_counted_exactly_and_reported_to_nobody() {
    const MANAGED: u32 = 100;
    let lane = lane();
    let node = Node::start(&lane.node);
    claim(&node, MANAGED);
    let events = node.events();
    let lines = node.log().lines().count();
    // Every second one is for an address that is not managed.
    lane.send(&lane.generator(Frames::RequestsOfAll, 2 * MANAGED), FLOOD);
    let counter = counted(&node);
    let (answered, others) = (counter(Counter::Answered), counter(Counter::Unmanaged));
    assert_eq!(answered + others, u64::from(FLOOD));
    assert!(answered > u64::from(FLOOD) / 3 && others > u64::from(FLOOD) / 3, "{answered} and {others}");
    wait_for_answers(&lane, answered);
    assert_eq!(summed(&node, "answered"), answered);
    for counter in ["claims", "probes", "echoes", "conflicts"] {
        assert_eq!(summed(&node, counter), 0, "{counter}");
    }
    // Each address may enter `online` meanwhile.
    let logged = node.log().lines().count() - lines;
    assert!(logged <= 2 * MANAGED as usize + 2, "{logged} lines in the log");
    let told = told_so_far(&lane, &events);
    assert!(told.is_empty(), "{told:#?}");
}

/// What was told of others' frames, up to a claim that is made now.
fn told_so_far(lane: &Lane, events: &Events) -> Vec<Event> {
    lane.send(&lane.generator(Frames::Claims, 1), 1);
    let mut seen = events.collect_until("a claim", ms(10_000), |event| event["event"] == "conflict");
    seen.pop();
    seen.retain(|event| event.json["event"].as_str().is_some_and(|name| OF_OTHERS.contains(&name)));
    seen
}

#[test]
fn malformed_frames_by_the_hundred_thousand_pass_and_are_counted_and_stop_no_answer() {
    let lane = lane();
    let node = Node::start(&lane.node);
    claim(&node, 1);
    let events = node.events();
    let behind_the_program = lane.node.wire();
    let kinds = [
        (Frames::TooShort, Counter::Truncated),
        (Frames::BadHeader, Counter::BadHeader),
        (Frames::BadSender, Counter::BadSender),
    ];
    for (frames, counter) in kinds {
        let before = counted(&node)(counter);
        behind_the_program.passed();
        let malformed = lane.generator(frames, 1);
        while_all_is_answered(&lane, 1, || lane.send(&malformed, MALFORMED));
        assert_eq!(counted(&node)(counter) - before, u64::from(MALFORMED), "{frames:?}");
        let passed = behind_the_program.passed();
        // What the node itself sends meanwhile comes by there as well: its plan.
        assert!((MALFORMED..MALFORMED + 20).contains(&passed), "{passed} of {frames:?}");
    }
    for counter in ["claims", "probes", "echoes", "conflicts"] {
        assert_eq!(summed(&node, counter), 0, "{counter}");
    }
    let told = told_so_far(&lane, &events);
    assert!(told.is_empty(), "{told:#?}");
}

#[test]
fn one_address_more_than_there_is_room_for_is_refused_and_takes_nothing_from_the_others() {
    const ROOM: u32 = 100;
    let lane = lane();
    let capacity = ROOM.to_string();
    let run = ["--iface", "eth0", "--attach", "native", "--capacity", &*capacity];
    let node = Node::start_with(&lane.node, &run);
    claim(&node, ROOM);
    let more = |n: u32| format!("{}/32", addresses(ROOM + n + 1).last().expect("an address"));
    let one_more = |n: u32| {
        let at = ["--iface", "eth0", "--register", "none", "--blackhole-ok"];
        node.cli(&[&["online", &*more(n)], &at[..]].concat())
    };
    one_more(0).expect(1).naming(format!("all {ROOM} places are taken")).naming("give addresses up first");
    assert_eq!(answering(&node), ROOM as usize);
    let questions = 4 * ROOM;
    lane.send(&lane.generator(Frames::Requests, ROOM), questions);
    wait_for_answers(&lane, questions.into());

    let given_up = addresses(1).next().expect("an address").to_string();
    node.cli(&["offline", &given_up]).expect(0);
    one_more(1).expect(0);
    one_more(2).expect(1);
    assert_eq!(answering(&node), ROOM as usize);
}

/// How many addresses may be answered for.
fn answering(node: &Node<'_>) -> usize {
    let status = node.status();
    status["addresses"]
        .as_array()
        .expect("addresses")
        .iter()
        .filter(|entry| entry["may_answer"] == true)
        .count()
}
