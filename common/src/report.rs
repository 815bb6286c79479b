//! How many of the sightings of an address become events.
//!
//! In each minute the first 64 claimants of an address are reported one by one. Their repeats are folded into
//! a count; a few repeats a second still pass, marked as such, because the engine's policies depend on when
//! the *second* conflict comes. Everything else becomes one flood event a second. Counts stay exact.

use crate::abi::{Claimant, Record};

/// Claimants reported one by one for each address and minute (the contract of `claimant_flood`).
pub const CLAIMANTS_PER_MINUTE: u32 = 64;
/// Repeats let through for each address and second. Two would do for "the second conflict within
/// DEFEND_INTERVAL" (RFC 5227 §2.4); a few more show the pace of an attack. 8 × 64 bytes a second are far
/// below what the reader takes (422,903 events of 141,000 a second were read without a loss).
pub const REPEATS_PER_SECOND: u32 = 8;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// What becomes of one sighting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// An event of its own; `count` frames of this claimant since its last event, this one included.
    Report {
        /// Frames.
        count: u64,
        /// The claimant was reported in this minute already.
        repeat: bool,
    },
    /// Counted with the claimant; its next event tells.
    Fold,
    /// The claimant is not remembered: counted as flood; an event of the flood is due if `count` is not 0.
    Flood {
        /// Frames of the flood since its last event, this one included, or 0.
        count: u64,
    },
}

/// Decides what becomes of a sighting at `now_ns` (CLOCK_BOOTTIME) of the address with `record`, by a host that
/// is remembered as `claimant`, or is not.
///
/// With [`Admission::Report`] and no `claimant` the caller adds [`remembered`] to its map.
#[inline(always)]
pub fn admit(record: &mut Record, claimant: Option<&mut Claimant>, now_ns: u64) -> Admission {
    // Wraps after 136 years of uptime, harmless: only equality matters.
    let second = (now_ns / NS_PER_SECOND) as u32;
    let minute = second / 60;
    if record.minute != minute {
        record.minute = minute;
        record.claimants = 0;
    }
    if let Some(claimant) = claimant {
        claimant.unreported += 1;
        if claimant.minute == minute {
            if record.second != second {
                record.second = second;
                record.repeats = 0;
            }
            if record.repeats >= REPEATS_PER_SECOND {
                return Admission::Fold;
            }
            record.repeats += 1;
            let count = claimant.unreported;
            claimant.unreported = 0;
            return Admission::Report { count, repeat: true };
        }
        if record.claimants < CLAIMANTS_PER_MINUTE {
            record.claimants += 1;
            let count = claimant.unreported;
            claimant.unreported = 0;
            claimant.minute = minute;
            return Admission::Report { count, repeat: false };
        }
    } else if record.claimants < CLAIMANTS_PER_MINUTE {
        record.claimants += 1;
        return Admission::Report { count: 1, repeat: false };
    }
    record.flooded += 1;
    if record.flood_second == second {
        return Admission::Flood { count: 0 };
    }
    record.flood_second = second;
    let count = record.flooded;
    record.flooded = 0;
    Admission::Flood { count }
}

/// What to remember of a host that was just reported for the first time, at `now_ns` (CLOCK_BOOTTIME).
#[inline(always)]
pub const fn remembered(now_ns: u64) -> Claimant {
    Claimant { unreported: 0, minute: (now_ns / NS_PER_SECOND / 60) as u32, pad: 0 }
}
