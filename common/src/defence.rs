//! What the program itself does about a claim for an address that may answer (RFC 5227 §2.4). Pure, like the verdict:
//! the program brings what it has read and exchanged, and performs what comes of it.

use crate::{
    abi::Control,
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
    // A heartbeat may be younger than the clock that was read a moment before it.
    let heard = control.heartbeat_ns != 0
        && clocks.boot_ns.saturating_sub(control.heartbeat_ns) < Control::HEARTBEAT_LASTS_NS;
    awake && (standing.has_lease() || heard)
}

/// Whether [`INTERVAL_NS`] allows a defence at `now_ns` (CLOCK_BOOTTIME) after the one at `defended_ns`.
#[inline(always)]
pub const fn due(defended_ns: u64, now_ns: u64) -> bool {
    defended_ns == 0 || now_ns.saturating_sub(defended_ns) >= INTERVAL_NS
}

/// Whether a budget of `moves` in `window_s` seconds ([`crate::abi::Port::moves`]; 0 for none) forbids a defence at
/// `now_ns` (CLOCK_BOOTTIME), the latest ones being `moves_ns`.
#[inline(always)]
pub fn spent(moves: u32, window_s: u32, moves_ns: impl Iterator<Item = u64>, now_ns: u64) -> bool {
    if moves == 0 {
        return false;
    }
    let window_ns = window_s as u64 * 1_000_000_000;
    let mut within = 0;
    for move_ns in moves_ns {
        if move_ns != 0 && now_ns.saturating_sub(move_ns) < window_ns {
            within += 1;
        }
    }
    within >= moves
}

/// The place of the oldest of `moves_ns`, which the next one is written over.
#[inline(always)]
pub fn oldest(moves_ns: impl Iterator<Item = u64>) -> usize {
    let mut oldest = (0, u64::MAX);
    for (place, move_ns) in moves_ns.enumerate() {
        if move_ns < oldest.1 {
            oldest = (place, move_ns);
        }
    }
    oldest.0
}

/// A conflict at `now_ns` (CLOCK_BOOTTIME) over an address with this word, as [`crate::abi::Record::conflict`] has it:
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
/// `earlier` is the conflict before this one, which only `once` asks for; `defended_ns` is that of the address's record,
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

    const HOUR: u64 = 3_600_000_000_000;

    fn armed_with(lease_until_ns: u64, control: Control, boot_ns: u64, monotonic_ns: u64) -> bool {
        let word = StateWord::new(MacAddr::BROADCAST, State::Online, 0, 1);
        let standing = Standing { word, fallen: 0, lease_until_ns, group: Group::NONE };
        armed(&standing, &control, Clocks { boot_ns, monotonic_ns })
    }

    #[test]
    fn two_clocks_read_in_either_order_are_no_sleep() {
        let control = Control { layout: 0, heartbeat_ns: HOUR, slept_ns: 90 };
        for monotonic_ns in [HOUR + 500, HOUR, HOUR - 500] {
            assert!(armed_with(0, control, HOUR, monotonic_ns));
        }
        let slept = Control { slept_ns: HOUR, ..control };
        assert!(armed_with(0, slept, HOUR, 500) && armed_with(0, slept, HOUR, 0));
    }

    #[test]
    fn a_sleep_since_the_heartbeat_disarms_although_a_lease_stands() {
        let control = Control { layout: 0, heartbeat_ns: HOUR, slept_ns: 0 };
        assert!(armed_with(2 * HOUR, control, HOUR, HOUR));
        assert!(!armed_with(2 * HOUR, control, HOUR, HOUR - 2 * Control::SLEEP_NS));
    }

    #[test]
    fn without_a_lease_a_heartbeat_arms_for_as_long_as_it_lasts() {
        let control = Control { layout: 0, heartbeat_ns: HOUR, slept_ns: 0 };
        let at = |boot_ns| armed_with(0, control, boot_ns, boot_ns);
        assert!(at(HOUR - 1) && at(HOUR + Control::HEARTBEAT_LASTS_NS - 1));
        assert!(!at(HOUR + Control::HEARTBEAT_LASTS_NS));
        assert!(!armed_with(0, Control::default(), HOUR, HOUR));
    }
}
