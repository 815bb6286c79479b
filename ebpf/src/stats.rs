//! Counters: per CPU where each frame counts, atomic where a total must be exact across CPUs.

use arpwarden_common::abi::Counter;

use crate::maps::{COUNTERS, Place};

/// Counts one frame (or lost event).
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(place) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map's value is an aligned `u64`. It is this CPU's own, and a program that runs on a CPU
        // is not interrupted there by another run of itself.
        unsafe { *place += 1 }
    }
}

/// Counts an answer for the address.
#[inline(always)]
pub(crate) fn answered(place: Place) {
    if let Some(counters) = place.counters() {
        // SAFETY: as in `count`; the value is an `AddressCounters`.
        unsafe { (*counters).answered += 1 }
    }
}

/// Counts a drop by the shield for the address.
#[inline(always)]
pub(crate) fn shielded(place: Place) {
    if let Some(counters) = place.counters() {
        // SAFETY: as in `count`.
        unsafe { (*counters).shielded += 1 }
    }
}
