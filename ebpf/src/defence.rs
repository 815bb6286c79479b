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
#[inline(always)]
pub(crate) fn meet(claimed: &Entry<Place>, ingress: u32) -> Reaction {
    if matches!(claimed.word.policy(), Policy::Leave) {
        return Reaction::Nothing;
    }
    let Place { slot, record } = claimed.place;
    decide(slot, record, claimed.word, ingress)
}

/// Claims are rare, so the clocks are read: the interval is exact, and a lease is not a jiffy late. All arguments are in
/// registers: what is on the stack of the caller stays there, and two frames have to fit.
#[inline(never)]
fn decide(slot: u32, record: *mut Record, word: StateWord, ingress: u32) -> Reaction {
    let Some(Port { moves: allowed, moves_window_s, .. }) = maps::port(ingress) else {
        return Reaction::Nothing;
    };
    // SAFETY: a field of a valid aligned map value, read once: before the clock, so that no later defence is in it.
    let defended_ns = unsafe { (&raw const (*record).defended_ns).read_volatile() };
    let clocks = maps::clocks();
    let now_ns = clocks.boot_ns;
    let Some(standing) = maps::standing_again(Place { slot, record }, word) else { return Reaction::Nothing };
    if !standing.may_answer(|| now_ns) {
        return Reaction::Nothing;
    }
    let armed = defence::armed(&standing, &maps::control(), clocks);
    // SAFETY: a field of a valid aligned map value.
    let earlier =
        || unsafe { atomic::exchange(&raw mut (*record).conflict, defence::conflict(word, now_ns)) };
    let spent = || defence::spent(allowed, moves_window_s, moves(record), now_ns);
    let reaction = defence::react(word, armed, earlier, defended_ns, spent, now_ns);
    match reaction {
        Reaction::Nothing => {}
        Reaction::Defend => {
            // SAFETY: a field of a valid aligned map value.
            if !unsafe { atomic::exchange_if(&raw mut (*record).defended_ns, defended_ns, now_ns) } {
                // Another CPU, or the daemon, has defended meanwhile.
                return Reaction::Nothing;
            }
            let oldest = defence::oldest(moves(record));
            // SAFETY: as above; the exchange gave the moves to this CPU for the interval.
            unsafe { a_move(record, oldest).write_volatile(now_ns) };
        }
        Reaction::Fall => {
            // SAFETY: a field of a valid aligned map value; CPUs that race write the same.
            unsafe { (&raw mut (*record).fallen).write_volatile(word.mark()) };
        }
    }
    reaction
}

/// The times of the latest defences.
#[inline(always)]
fn moves(record: *mut Record) -> impl Iterator<Item = u64> {
    // SAFETY: the places are within the array, which is in a valid aligned map value; each is read once.
    (0..MOVES).map(move |place| unsafe { a_move(record, place).read_volatile() })
}

/// The time in a place, which is less than [`MOVES`].
#[inline(always)]
fn a_move(record: *mut Record, place: usize) -> *mut u64 {
    // SAFETY: `record` is a valid map value and the place is within its array.
    unsafe { (&raw mut (*record).moves_ns).cast::<u64>().add(place & (MOVES - 1)) }
}
const _: () = assert!(MOVES.is_power_of_two());
