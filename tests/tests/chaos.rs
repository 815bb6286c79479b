//! Everything goes wrong that may, and a checker that believes nobody watches the wire. That it can fail is proved as well:
//! by what somebody does by hand, and by daemons that leave one of their safeties out.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use arpwarden_tests::{
    chaos::{ALL, Daemon, Defend, Form, HOSTS, PLAIN, Report, Stage, Step, Way, address, omit, play, story},
    checker::{Kind, Right, Violation},
    netns::Net,
    node::program,
    tell,
    wire::boot_ns,
};

/// One story at a time: an owner answers within 5 ms, which it could not on two processors with four stories.
static ALONE: Mutex<()> = Mutex::new(());

fn hosts() -> Net {
    Net::new(u8::try_from(HOSTS).expect("a handful"))
}

/// Plays a story of this seed, which must go well.
fn play_story(seed: u64, steps: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let replay = format!("cargo xtask chaos --steps {steps} --seed {seed}");
    println!("seed {seed}, {steps} steps; again: {replay}");
    match play(&hosts(), &story(seed, steps, &ALL), |_| {}) {
        // Past the capture of the test harness: how much the machine let it prove.
        Ok(summary) => tell(&format!("seed {seed}, {steps} steps: {summary}")),
        Err(report) => panic!("{report}\nagain: {replay}"),
    }
}

#[test]
fn a_story_of_a_known_seed_breaks_no_promise() {
    play_story(1, 200);
}

/// `cargo xtask chaos` runs this one with the length and the seed that it was given.
#[test]
fn a_story_of_a_new_seed_breaks_no_promise() {
    let given = |name: &str| Some(std::env::var(name).ok()?.parse().expect("a number"));
    let new = || RandomState::new().build_hasher().finish();
    let steps = given("ARPWARDEN_CHAOS_STEPS").map_or(200, |steps| usize::try_from(steps).expect("64 bits"));
    // Short enough to be typed.
    play_story(given("ARPWARDEN_CHAOS_SEED").unwrap_or_else(|| new() % 1_000_000), steps);
}

const CLAIM: Step = Step::Claim { node: 0, address: 0, way: Way::Probe, defend: Defend::Hold, leased: true };

#[track_caller]
fn noticed(violations: &[Violation], kind: Kind) {
    assert!(violations.iter().any(|violation| violation.kind == kind), "no {kind:?} in {violations:#?}");
}

/// Has a stranger probe for address 0 until this is noticed: an answer counts from 5 ms after its right has ended, and
/// a question is closed, its answers counted, after 300 ms.
#[track_caller]
fn probed_until(stage: &mut Stage<'_>, kind: Kind) -> Vec<Violation> {
    let deadline = boot_ns() + 2_000_000_000;
    let mut violations = Vec::new();
    while boot_ns() < deadline {
        violations.extend(stage.perform(&Step::StrangerProbes { address: 0 }).err().into_iter().flatten());
        if violations.iter().any(|violation: &Violation| violation.kind == kind) {
            return violations;
        }
    }
    panic!("no {kind:?} in {violations:#?}");
}

#[test]
fn an_owner_that_somebody_made_by_hand_is_noticed_as_a_second_answer() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let net = hosts();
    let mut stage = Stage::set(&net, |_| {});
    stage.perform(&CLAIM).expect("a free address");
    net.host(PLAIN).ns.ip(&format!("address add {}/32 dev eth0", address(0)));
    let violations = probed_until(&mut stage, Kind::SecondAnswer);
    noticed(&violations, Kind::Spoke);
}

#[test]
fn a_dead_daemons_kernel_that_answers_is_noticed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let net = hosts();
    let mut stage = Stage::set(&net, |_| {});
    stage.perform(&CLAIM).expect("a free address");
    stage.perform(&Step::Kill { node: 0 }).expect("it goes on without its daemon");
    // What a crash would leave if nothing were pinned: the address on the interface, and nobody before the kernel.
    stage.nodes[0].unpin();
    stage.checker.judge.rights.set(0, address(0), boot_ns(), Right::Silent, "taken away");
    probed_until(&mut stage, Kind::Spoke);
}

#[test]
fn a_flood_does_not_make_a_host_deaf_to_the_owner_whom_it_probes_for() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = |way| Step::ClaimTaken { node: 1, address: 0, way };
    let steps = [
        Step::PlainTakes { address: 0 },
        taken(Way::Probe),
        // More claimants than are reported one by one in a minute, and the owner none of them.
        Step::Flood { address: 0, frames: 200 },
        Step::PlainLeaves { address: 0 },
        CLAIM,
        taken(Way::Immediate),
        taken(Way::Probe),
        Step::Overreach { node: 1, address: 0 },
    ];
    if let Err(report) = play(&hosts(), &steps, |_| {}) {
        panic!("{report}");
    }
}

/// The daemon of a test build that leaves out the safety that its environment names: beside the shipped one, or where
/// `cargo xtask test` says.
fn daemon_that_omits() -> PathBuf {
    let beside = || program().ancestors().nth(2).expect("target/PROFILE/arpwarden").join("omit/arpwarden");
    let path = std::env::var_os("ARPWARDEN_OMITTING").map_or_else(beside, PathBuf::from);
    assert!(path.exists(), "{} is missing: `cargo xtask test` builds it", path.display());
    path
}

/// Plays steps that have to go well, and once more with a safety left out.
fn without(safety: &str, steps: &[Step]) -> Box<Report> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = daemon_that_omits();
    if let Err(report) = play(&hosts(), steps, |_| {}) {
        panic!("with every safety in place: {report}");
    }
    match play(&hosts(), steps, omit(&program, safety)) {
        Ok(_) => panic!("nothing was noticed without the {safety}"),
        Err(report) => report,
    }
}

/// A daemon stands still beyond the lease of its address, which stays on the interface; its host goes on to speak.
const HUNG_BEYOND_THE_LEASE: [Step; 2] =
    [CLAIM, Step::LeaseEnds { node: 0, address: 0, daemon: Daemon::Stopped }];

#[test]
fn without_the_guard_the_kernel_of_a_silent_owner_is_heard() {
    let report = without("guard", &HUNG_BEYOND_THE_LEASE);
    noticed(&report.violations, Kind::Spoke);
}

#[test]
fn without_the_shield_requests_come_to_the_kernel_of_a_silent_owner() {
    // The guard keeps its answers in, so only the counters show it.
    let report = without("shield", &HUNG_BEYOND_THE_LEASE);
    noticed(&report.violations, Kind::Miscounted);
}

#[test]
fn without_the_lease_check_a_hung_owner_answers_for_ever() {
    let report = without("lease", &HUNG_BEYOND_THE_LEASE);
    let answers = |violation: &Violation| {
        violation.kind == Kind::Spoke && violation.frames.iter().any(|seen| seen.is_answer())
    };
    assert!(report.violations.iter().any(answers), "{report}");
}

#[test]
fn without_the_word_that_it_has_fallen_a_dead_daemons_program_goes_on_to_answer() {
    let claim = Step::Claim { node: 0, address: 1, way: Way::Probe, defend: Defend::Yield, leased: false };
    let lost = Step::StrangerClaims { address: 1, form: Form::Reply };
    let report = without("fallen", &[claim, Step::Kill { node: 0 }, lost]);
    noticed(&report.violations, Kind::Spoke);
}

#[test]
fn without_the_adoption_check_a_new_start_answers_for_what_was_lost_meanwhile() {
    let claim = Step::Claim { node: 0, address: 1, way: Way::Probe, defend: Defend::Yield, leased: false };
    let report = without(
        "adoption",
        &[
            claim,
            Step::Kill { node: 0 },
            Step::StrangerClaims { address: 1, form: Form::Announcement },
            Step::Claim { node: 1, address: 1, way: Way::Probe, defend: Defend::Hold, leased: false },
            Step::Restart { node: 0 },
        ],
    );
    noticed(&report.violations, Kind::Spoke);
}

#[test]
fn without_the_adoption_check_a_new_start_answers_beyond_the_lease() {
    let claim = Step::Claim { node: 1, address: 0, way: Way::Probe, defend: Defend::Hold, leased: false };
    let report = without(
        "adoption",
        &[
            CLAIM,
            Step::LeaseEnds { node: 0, address: 0, daemon: Daemon::Dead },
            claim,
            Step::Restart { node: 0 },
        ],
    );
    noticed(&report.violations, Kind::Spoke);
}
