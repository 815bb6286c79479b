//! The stories of `tests/scenarios`: what is done, and all that comes of it.
//!
//! A `story.txt` is a line that says why, steps, `---`, and the trace. `ARPWARDEN_WRITE_STORIES=1` writes the traces
//! anew; the difference is then for the reviewer.
//!
//! Steps: `a: engine`, `a: engine 2 moves in 60s`, `o: linux 10 100` (its addresses in 192.0.2.0/24), `pass 10ms`,
//! `a asks 10`, `a usurps 10`, `a online 10 [probe|immediate] [hold|once|yield] [rfc5227] [wait 5s] [check 20ms]`,
//! (and `lease 3s`), `a offline|announce|watch 10`, `a renew 10 3s`, `a unplug|plug` (of the cable, which nobody notices),
//! `a link down|up`, `a freeze|thaw` (the daemon is stopped and goes on), `a kill|start` (it dies and another one starts).

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use super::*;
use crate::{
    input::MoveBudget,
    sim::{Happening, Host, Net, address},
};

fn time(word: &str) -> Duration {
    let (number, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).expect("a unit"));
    let number = number.parse().expect("a number");
    match unit {
        "us" => Duration::from_micros(number),
        "ms" => ms(number),
        "s" => secs(number),
        _ => panic!("unit {unit:?}"),
    }
}

fn host_of(words: &[&str]) -> Ipv4 {
    address(words.first().expect("an address").parse().expect("the last byte of an address"))
}

fn spec(words: &[&str]) -> OnlineSpec {
    let mut spec = SPEC;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut next = || time(words.next().expect("a time"));
        match *word {
            "probe" => spec.claim = Claim::Probe,
            "immediate" => spec.claim = Claim::Immediate { check: ms(20) },
            "check" => spec.claim = Claim::Immediate { check: next() },
            "hold" => spec.defend = Defend::Hold,
            "once" => spec.defend = Defend::Once,
            "yield" => spec.defend = Defend::Yield,
            "rfc5227" => spec.profile = Profile::Rfc5227,
            "wait" => spec.wait = next(),
            "lease" => spec.lease = Some(next()),
            _ => panic!("{word:?} in an online step"),
        }
    }
    spec
}

/// Runs the steps; the trace.
fn run(steps: &str) -> String {
    let mut net = Net::new(1);
    let start = net.now;
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for line in steps.lines().filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [name, kind, ref rest @ ..] if name.ends_with(':') => {
                let host = match (kind, rest) {
                    ("engine", []) => net.warden(INTERFACE),
                    ("engine", [moves, "moves", "in", window]) => {
                        let budget =
                            MoveBudget { moves: moves.parse().expect("moves"), window: time(window) };
                        net.warden(Interface { moves: Some(budget), ..INTERFACE })
                    }
                    ("linux", addresses) => {
                        let addresses: Vec<Ipv4> = addresses.iter().map(|word| host_of(&[word])).collect();
                        net.linux(&addresses)
                    }
                    _ => panic!("{line:?}"),
                };
                hosts.insert(name.trim_end_matches(':').into(), host);
            }
            ["pass", wait] => net.pass(time(wait)),
            [name, verb, ref rest @ ..] => {
                let host = hosts[name];
                match verb {
                    "asks" => net.ask(host, host_of(rest)),
                    "usurps" => net.usurp(host, host_of(rest)),
                    "unplug" => net.unplug(host),
                    "plug" => net.plug(host),
                    "link" => net.link(host, rest == ["up"]),
                    "freeze" => net.freeze(host),
                    "thaw" => net.thaw(host),
                    "kill" => net.kill(host),
                    "start" => net.start(host),
                    "renew" => drop(net.renew(host, host_of(rest), time(rest[1]))),
                    "online" => drop(net.online(host, host_of(rest), spec(&rest[1..]))),
                    "offline" => drop(net.offline(host, host_of(rest))),
                    "announce" => drop(net.announce(host, host_of(rest))),
                    "watch" => drop(net.watch(host, host_of(rest))),
                    _ => panic!("{line:?}"),
                }
            }
            _ => panic!("{line:?}"),
        }
    }
    let names: BTreeMap<MacAddr, &str> =
        hosts.iter().map(|(name, host)| (net.mac(*host), name.as_str())).collect();
    let name = |mac: MacAddr| names.get(&mac).copied().unwrap_or("everybody");
    let mut trace = String::new();
    for (at, host, happening) in &net.story {
        let at = at.since(start);
        let seconds = format!("{}.{:06}", at.as_secs(), at.subsec_micros());
        writeln!(trace, "{seconds:>11} {} {}", name(net.mac(*host)), tell(happening, &name)).unwrap();
    }
    trace
}

/// In one line.
fn tell<'a>(happening: &Happening, name: &impl Fn(MacAddr) -> &'a str) -> String {
    let state = |state: &Option<State>| state.map_or("-", State::name);
    match happening {
        Happening::Sent(frame) => {
            let to = name(frame.destination);
            let (owner, from, target) = (name(frame.sender_mac), frame.sender_ip, frame.target_ip);
            if frame.operation == REPLY && from == target {
                format!("> {to}: reply form, {from} is {owner}")
            } else if frame.operation == REPLY {
                format!("> {to}: {from} is {owner}")
            } else if from == target {
                format!("> {to}: announcement, {from} is {owner}")
            } else if from.is_unspecified() {
                format!("> {to}: probe for {target}")
            } else {
                format!("> {to}: who has {target}? {from} is {owner}")
            }
        }
        Happening::Event(_, kind) => match kind {
            EventKind::State { from, to, reason } => {
                format!("* {} -> {} ({})", state(from), state(to), reason.name())
            }
            EventKind::Conflict { sighting, loud } => {
                let loud = if *loud { ", loud" } else { "" };
                format!("* conflict with {}{loud}", name(sighting.claimant.mac))
            }
            EventKind::Defended { claimant, .. } => format!("* defended against {}", name(claimant.mac)),
            EventKind::ProbeSeen { sighting } => format!("* probed by {}", name(sighting.claimant.mac)),
            EventKind::Announced { count, .. } => format!("* announced, {count} frames"),
            EventKind::OwnerChanged { sighting } => format!("* owner is {}", name(sighting.claimant.mac)),
            EventKind::RolledBack { claimant } => format!("* rolled back for {}", name(claimant.mac)),
            EventKind::Repaired { claimant: Some(claimant), count } => {
                format!("* repaired for {}, {count} frames", name(claimant.mac))
            }
            EventKind::Repaired { claimant: None, count } => format!("* repaired, {count} frames"),
            EventKind::Echo { sighting } => format!("* echo of {}", name(sighting.claimant.mac)),
            EventKind::ClaimantFlood { sighting } => format!("* flood of {}", sighting.count),
            EventKind::AddressRemoved => "* address removed".into(),
            EventKind::AddressRestored => "* address restored".into(),
            EventKind::AddressAdded => "* address added".into(),
            EventKind::LeaseExpired => "* lease expired".into(),
            EventKind::Adopted { untold } => format!("* adopted, {untold} frames untold"),
            EventKind::Failed { what } => format!("* failed: {what}"),
        },
        Happening::Answer(_, answer) => match answer {
            Answer::Done => "= done".into(),
            Answer::Already(state) => format!("= already {}", state.name()),
            Answer::Unknown => "= unknown".into(),
            Answer::Taken { claimant, reason } => {
                format!("= taken by {} ({})", name(claimant.mac), reason.name())
            }
            Answer::Differs { .. } => "= differs".into(),
            Answer::WrongState(state) => format!("= not in state {}", state.name()),
            Answer::Failed(why) => format!("= failed: {why}"),
            Answer::Superseded => "= superseded".into(),
        },
    }
}

#[test]
fn every_story_of_the_scenarios_goes_as_it_is_told() {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let write = std::env::var_os("ARPWARDEN_WRITE_STORIES").is_some();
    let mut stories = 0;
    for scenario in fs::read_dir(&scenarios).expect("tests/scenarios can be listed") {
        let path = scenario.expect("an entry").path().join("story.txt");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {path:?}: {error}"));
        let (head, told) = text.split_once("---\n").expect("a line with --- before the trace");
        let (why, steps) = head.split_once('\n').expect("a line that says why");
        assert!(!why.is_empty(), "{path:?} does not say why");
        let trace = run(steps);
        if write {
            fs::write(&path, format!("{head}---\n{trace}")).expect("the story can be written");
        } else {
            assert_eq!(trace, told, "{path:?}");
        }
        stories += 1;
    }
    assert!(stories >= 7, "only {stories} stories were found");
}
