//! Meets a claim for an address of ours: turns it into our announcement, or gives the address up.

use arpwarden_common::{
    abi::{MOVES, Port, Slot},
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
    let Place { slot, at } = claimed.place;
    decide::<EXCHANGES>(slot, at, claimed.word, ingress)
}

/// Claims are rare, so the clocks are read: the interval is exact, and a lease is not a jiffy late. All arguments are in
/// registers: what is on the stack of the caller stays there, and two frames have to fit.
#[inline(never)]
fn decide<const EXCHANGES: bool>(slot: u32, at: *mut Slot, word: StateWord, ingress: u32) -> Reaction {
    let Some(Port { moves: allowed, moves_window_s, .. }) = maps::port(ingress) else {
        return Reaction::Nothing;
    };
    let moves = maps::MOVES.get_ptr_mut(slot).map(<*mut _>::cast::<u64>);
    // SAFETY: a field of a valid aligned map value, read once: before the clock, so that no later defence is in it.
    let defended_ns = unsafe { (&raw const (*at).defended_ns).read_volatile() };
    let clocks = maps::clocks();
    let now_ns = clocks.boot_ns;
    let Some(standing) = maps::standing_again(at, word) else { return Reaction::Nothing };
    if !standing.may_answer(|| maps::unless_omitted(now_ns)) {
        return Reaction::Nothing;
    }
    let armed = defence::armed(&standing, &maps::control(), clocks);
    let earlier = || {
        if !EXCHANGES {
            return 0;
        }
        // SAFETY: a field of a valid aligned map value.
        unsafe { atomic::exchange(&raw mut (*at).conflict, defence::conflict(word, now_ns)) }
    };
    let spent = || match moves {
        Some(moves) => {
            // SAFETY: a place in a valid aligned map value.
            let a_move = |n| unsafe { a_move(moves, n).read_volatile() };
            defence::spent(allowed, moves_window_s, a_move, now_ns)
        }
        // User space counts them, if they are to be counted.
        None => allowed != 0,
    };
    let reaction = defence::react(word, armed, earlier, defended_ns, spent, now_ns);
    match reaction {
        Reaction::Nothing => {}
        Reaction::Defend if !EXCHANGES => return Reaction::Nothing,
        Reaction::Defend => {
            // SAFETY: a field of a valid aligned map value.
            if !unsafe { atomic::exchange_if(&raw mut (*at).defended_ns, defended_ns, now_ns) } {
                // Another CPU, or the daemon, has defended meanwhile.
                return Reaction::Nothing;
            }
            if let Some(moves) = moves {
                // SAFETY: as above; the exchange gave the moves to this CPU for the interval.
                unsafe {
                    for place in (1..MOVES).rev() {
                        a_move(moves, place).write_volatile(a_move(moves, place - 1).read_volatile());
                    }
                    a_move(moves, 0).write_volatile(now_ns);
                }
            }
        }
        Reaction::Fall => {
            // SAFETY: a field of a valid aligned map value; CPUs that race write the same.
            unsafe { (&raw mut (*at).fallen).write_volatile(word.mark()) };
        }
    }
    reaction
}

/// The time in a place, which is less than [`MOVES`].
#[inline(always)]
fn a_move(moves: *mut u64, place: usize) -> *mut u64 {
    // SAFETY: `moves` begins a valid map value, and the place is within it.
    unsafe { moves.add(place & (MOVES - 1)) }
}
const _: () = assert!(MOVES.is_power_of_two());
