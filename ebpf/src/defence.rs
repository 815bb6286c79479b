//! Meets a claim for an address of ours: turns it into our announcement, or gives the address up.

use arpwarden_common::{
    abi::{MOVES, Port, Record},
    defence::{self, Reaction},
    state::{Policy, StateWord},
    verdict::Entry,
};

use crate::{
    atomic,
    maps::{self, Place},
};

/// Decides on a claim for `claimed`, which may answer, and does in the maps what comes of it. With [`Reaction::Defend`]
/// the caller has the permit and sends the frame back as the defence; with [`Reaction::Fall`] the address is silent
/// from here on.
///
/// Without `EXCHANGES` nothing could be taken in turn with other CPUs and the daemon: that one defends then, and counts
/// conflicts. To give an address up needs neither.
#[inline(always)]
pub(crate) fn meet<const EXCHANGES: bool>(claimed: &Entry<Place>, ingress: u32) -> Reaction {
    match claimed.word.policy() {
        Policy::Leave => return Reaction::Nothing,
        Policy::Once | Policy::Hold if !EXCHANGES => return Reaction::Nothing,
        Policy::Yield | Policy::Once | Policy::Hold => {}
    }
    let Place { slot, record } = claimed.place;
    decide::<EXCHANGES>(slot, record, claimed.word, ingress)
}

/// Claims are rare, so the clocks are read: the interval is exact, and a lease is not a jiffy late. All arguments are in
/// registers: what is on the stack of the caller stays there, and two frames have to fit.
#[inline(never)]
fn decide<const EXCHANGES: bool>(slot: u32, record: *mut Record, word: StateWord, ingress: u32) -> Reaction {
    let Some(Port { moves: allowed, moves_window_s, .. }) = maps::port(ingress) else {
        return Reaction::Nothing;
    };
    // SAFETY: a field of a valid aligned map value, read once: before the clock, so that no later defence is in it.
    let defended_ns = unsafe { (&raw const (*record).defended_ns).read_volatile() };
    let clocks = maps::clocks();
    let now_ns = clocks.boot_ns;
    let Some(standing) = maps::standing_again(Place { slot, record }, word) else { return Reaction::Nothing };
    if !standing.may_answer(|| maps::unless_omitted(now_ns)) {
        return Reaction::Nothing;
    }
    let armed = defence::armed(&standing, &maps::control(), clocks);
    let earlier = || {
        if !EXCHANGES {
            return 0;
        }
        // SAFETY: a field of a valid aligned map value.
        unsafe { atomic::exchange(&raw mut (*record).conflict, defence::conflict(word, now_ns)) }
    };
    // SAFETY: a field of a valid aligned map value.
    let spent =
        || defence::spent(allowed, moves_window_s, |n| unsafe { a_move(record, n).read_volatile() }, now_ns);
    let reaction = defence::react(word, armed, earlier, defended_ns, spent, now_ns);
    match reaction {
        Reaction::Nothing => {}
        Reaction::Defend if !EXCHANGES => return Reaction::Nothing,
        Reaction::Defend => {
            // SAFETY: a field of a valid aligned map value.
            if !unsafe { atomic::exchange_if(&raw mut (*record).defended_ns, defended_ns, now_ns) } {
                // Another CPU, or the daemon, has defended meanwhile.
                return Reaction::Nothing;
            }
            // SAFETY: as above; the exchange gave the moves to this CPU for the interval.
            unsafe {
                for place in (1..MOVES).rev() {
                    a_move(record, place).write_volatile(a_move(record, place - 1).read_volatile());
                }
                a_move(record, 0).write_volatile(now_ns);
            }
        }
        Reaction::Fall => {
            // SAFETY: a field of a valid aligned map value; CPUs that race write the same.
            unsafe { (&raw mut (*record).fallen).write_volatile(word.mark()) };
        }
    }
    reaction
}

/// The time in a place, which is less than [`MOVES`].
#[inline(always)]
fn a_move(record: *mut Record, place: usize) -> *mut u64 {
    // SAFETY: `record` is a valid map value and the place is within its array.
    unsafe { (&raw mut (*record).moves_ns).cast::<u64>().add(place & (MOVES - 1)) }
}
const _: () = assert!(MOVES.is_power_of_two());
