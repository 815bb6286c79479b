//! What the program itself does about a claim for an address that may answer (RFC 5227 §2.4). Pure, like the verdict:
//! the program brings what it has read and exchanged, and performs what comes of it.

use crate::{
    abi::{Control, MOVES},
    state::{Policy, StateWord},
    verdict::Standing,
};

/// DEFEND_INTERVAL (RFC 5227 §1.1), in nanoseconds.
pub const INTERVAL_NS: u64 = 10_000_000_000;
/// A conflict counts as the second under `once` for this much longer, in nanoseconds. A rival that follows (c)
/// defends exactly when its interval is over, which is the moment when ours is; without a margin both could go on for
/// ever. Giving up is always allowed (§2.4 (a)).
pub const ONCE_MARGIN_NS: u64 = 1_000_000_000;

/// What becomes of the claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Nothing: it is reported, and user space defends if it is to be defended.
    Nothing,
    /// It is turned into the announcement that answers it.
    Defend,
    /// The address is given up.
    Fall,
}

/// Two clocks, read one right after the other, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clocks {
    /// CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// CLOCK_MONOTONIC, which stands still while the machine sleeps.
    pub monotonic_ns: u64,
}

/// Whether the program may defend by itself: a lease stands, or the daemon has looked at the world lately, and the
/// machine has not slept since. A host that was stopped and wakes up must not fight its successor.
///
/// `standing` is that of an address which [may answer](Standing::may_answer) by the same clock, so a lease that is set
/// stands.
#[inline(always)]
pub fn armed(standing: &Standing, control: &Control, clocks: Clocks) -> bool {
    // On a machine that never slept the clocks are one, and the one that was read later is ahead.
    let slept_ns = clocks.boot_ns.saturating_sub(clocks.monotonic_ns);
    let awake = slept_ns.abs_diff(control.slept_ns) <= Control::SLEEP_NS;
    awake && (standing.has_lease() || control.heard(clocks.boot_ns))
}

/// Whether [`INTERVAL_NS`] allows a defence at `now_ns` (CLOCK_BOOTTIME) after the one at `defended_ns`.
#[inline(always)]
pub const fn due(defended_ns: u64, now_ns: u64) -> bool {
    defended_ns == 0 || now_ns.saturating_sub(defended_ns) >= INTERVAL_NS
}

/// Whether a budget of `moves` in `window_s` seconds ([`crate::abi::Port::moves`]; 0 for none, at most [`MOVES`]) forbids
/// a defence at `now_ns` (CLOCK_BOOTTIME). `move_ns` reads the time of a latest defence, the latest being 0: as many
/// defences as are allowed were made within the window if the first of them was, so one look is enough.
#[inline(always)]
pub fn spent(moves: u32, window_s: u32, move_ns: impl FnOnce(usize) -> u64, now_ns: u64) -> bool {
    if moves == 0 {
        return false;
    }
    let first = move_ns((moves as usize - 1).min(MOVES - 1));
    first != 0 && now_ns.saturating_sub(first) < window_s as u64 * 1_000_000_000
}

/// A conflict at `now_ns` (CLOCK_BOOTTIME) over an address with this word, as [`crate::abi::Slot::conflict`] has it:
/// the lowest byte of the time is the generation instead.
#[inline(always)]
pub const fn conflict(word: StateWord, now_ns: u64) -> u64 {
    now_ns & !0xff | word.generation() as u64
}

/// Whether a conflict at `now_ns` is the second one under `once`, `earlier` being the one before it.
#[inline(always)]
const fn is_second(word: StateWord, earlier: u64, now_ns: u64) -> bool {
    earlier != 0
        && earlier & 0xff == word.generation() as u64
        && now_ns.saturating_sub(earlier & !0xff) < INTERVAL_NS + ONCE_MARGIN_NS
}

/// Decides on a claim at `now_ns` (CLOCK_BOOTTIME) for an address with this word that may answer.
///
/// `earlier` is the conflict before this one, which only `once` asks for; `defended_ns` is that of the address's slot,
/// and `spent` whether its moves are. Who defends has to exchange that `defended_ns` for `now_ns` first, and does nothing where it finds
/// another one: somebody else has defended.
#[inline(always)]
pub fn react(
    word: StateWord,
    armed: bool,
    earlier: impl FnOnce() -> u64,
    defended_ns: u64,
    spent: impl FnOnce() -> bool,
    now_ns: u64,
) -> Reaction {
    match word.policy() {
        Policy::Leave => return Reaction::Nothing,
        Policy::Yield => return Reaction::Fall,
        Policy::Once if is_second(word, earlier(), now_ns) => return Reaction::Fall,
        Policy::Once | Policy::Hold => {}
    }
    if armed && due(defended_ns, now_ns) && !spent() { Reaction::Defend } else { Reaction::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{abi::Group, net::MacAddr, state::State};

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1_000 * SECOND;
    const GENERATION: u8 = 0xa5;

    fn word(policy: Policy) -> StateWord {
        StateWord::new(MacAddr::new([2, 0, 0, 0, 0, 1]), State::Online, policy.flags(), GENERATION)
    }

    fn standing(lease_until_ns: u64, group_lease_until_ns: u64) -> Standing {
        let group = Group { lease_until_ns: group_lease_until_ns, ..Group::NONE };
        Standing { word: word(Policy::Hold), fallen: 0, lease_until_ns, group }
    }

    #[test]
    fn a_lease_or_a_daemon_that_was_heard_lately_arms_and_a_sleep_disarms() {
        let slept = 7 * SECOND;
        let clocks = Clocks { boot_ns: NOW, monotonic_ns: NOW - slept };
        let control = |heartbeat_ns, slept_ns| Control { layout: 0, heartbeat_ns, slept_ns };
        let heard = |ago: u64| control(NOW - ago, slept);
        let (leased, free) = (standing(NOW, 0), standing(0, 0));
        assert!(armed(&free, &heard(Control::HEARTBEAT_LASTS_NS - 1), clocks));
        assert!(!armed(&free, &heard(Control::HEARTBEAT_LASTS_NS), clocks));
        assert!(!armed(&free, &control(0, slept), clocks), "never heard");
        assert!(armed(&free, &control(NOW + 1, slept), clocks), "heard a moment after the clock was read");
        for leased in [leased, standing(0, NOW)] {
            assert!(armed(&leased, &control(0, slept), clocks));
            for off in [Control::SLEEP_NS, 0] {
                assert!(armed(&leased, &control(0, slept - off), clocks));
                assert!(armed(&leased, &control(0, slept + off), clocks));
            }
            for off in [Control::SLEEP_NS + 1, 3_600 * SECOND] {
                assert!(!armed(&leased, &control(NOW - 1, slept.saturating_sub(off)), clocks));
                assert!(!armed(&leased, &control(NOW - 1, slept + off), clocks));
            }
        }
        // Two reads of one clock: the second is later.
        let never_slept = Clocks { boot_ns: NOW, monotonic_ns: NOW + 90 };
        assert!(armed(&free, &control(NOW - 1, 0), never_slept));
    }

    #[test]
    fn one_defence_is_due_in_an_interval() {
        assert!(due(0, 1));
        assert!(!due(NOW, NOW));
        assert!(!due(NOW, NOW - 1), "by a clock that was read before");
        assert!(!due(NOW, NOW + 10 * SECOND - 1));
        assert!(due(NOW, NOW + 10 * SECOND));
    }

    #[test]
    fn a_budget_is_spent_by_as_many_moves_within_its_window() {
        let moves = [NOW, NOW - 10 * SECOND, NOW - 20 * SECOND, 0, 0, 0, 0, 0];
        for (allowed, window_s, expected) in [
            (0, 180, false),
            (3, 21, true),
            (3, 20, false),
            (4, 180, false),
            (1, 1, true),
            (8, u32::MAX, false),
        ] {
            assert_eq!(spent(allowed, window_s, |n| moves[n], NOW), expected, "{allowed}/{window_s}s");
        }
        let all: [u64; MOVES] = std::array::from_fn(|n| NOW - n as u64 * SECOND);
        assert!(spent(8, 180, |n| all[n], NOW));
        assert!(spent(u32::MAX, 180, |n| all[n], NOW), "more than are remembered");
    }

    #[test]
    fn once_gives_up_at_the_second_conflict_within_the_interval_and_its_margin() {
        let once = word(Policy::Once);
        let after = |earlier: u64, now_ns: u64| react(once, true, || earlier, 0, || false, now_ns);
        let first = conflict(once, NOW);
        assert!(NOW.abs_diff(first) < 256 && first & 0xff == u64::from(GENERATION));
        assert_eq!(after(0, NOW), Reaction::Defend);
        for (later, expected) in [
            (0, Reaction::Fall),
            (10 * SECOND, Reaction::Fall),
            (11 * SECOND - 512, Reaction::Fall),
            (11 * SECOND, Reaction::Defend),
        ] {
            assert_eq!(after(first, NOW + later), expected, "{later} ns later");
        }
        assert_eq!(after(first, NOW - 1), Reaction::Fall, "by a clock that was read before");
        let other = StateWord::new(once.mac(), State::Online, Policy::Once.flags(), GENERATION - 1);
        assert_eq!(after(conflict(other, NOW), NOW), Reaction::Defend, "a conflict of an earlier claim");
        assert_eq!(
            react(once, false, || first, NOW, || true, NOW),
            Reaction::Fall,
            "giving up needs nothing"
        );
    }

    #[test]
    fn each_policy_does_what_it_says_and_no_other_is_asked_for_the_earlier_conflict() {
        let never = || panic!("only `once` counts conflicts");
        let react =
            |policy, armed, defended_ns, spent| react(word(policy), armed, never, defended_ns, || spent, NOW);
        for armed in [false, true] {
            assert_eq!(react(Policy::Leave, armed, 0, false), Reaction::Nothing);
            assert_eq!(react(Policy::Yield, armed, 0, false), Reaction::Fall);
        }
        assert_eq!(react(Policy::Hold, true, 0, false), Reaction::Defend);
        assert_eq!(react(Policy::Hold, false, 0, false), Reaction::Nothing);
        assert_eq!(react(Policy::Hold, true, NOW - SECOND, false), Reaction::Nothing);
        assert_eq!(react(Policy::Hold, true, 0, true), Reaction::Nothing);
    }
}
