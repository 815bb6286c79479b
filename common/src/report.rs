//! How many of the sightings of an address become events.
//!
//! In each minute the first 64 claimants of an address are reported one by one. Their repeats are folded into
//! a count; a few repeats a second still pass, marked as such, because the engine's policies depend on when
//! the *second* conflict comes. Everything else becomes one flood event a second. Counts stay exact: they are
//! kept apart from these bounds, as totals and how much of them was told.

use crate::abi::{Claimant, EventKind, Windows};

/// Claimants reported one by one for each address and minute (the contract of `claimant_flood`).
pub const CLAIMANTS_PER_MINUTE: u8 = 64;
/// Repeated claims let through for each address and second, and as many repeated probes and echoes, which
/// must not use up what the claims need. Two would do for "the second conflict within DEFEND_INTERVAL"
/// (RFC 5227 §2.4); a few more show the pace of an attack. 16 × 64 bytes a second are far below what the
/// reader takes (422,903 events of 141,000 a second were read without a loss).
pub const REPEATS_PER_SECOND: u8 = 8;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// What becomes of one sighting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// An event of its own.
    Report {
        /// The claimant was reported in this minute already.
        repeat: bool,
    },
    /// Counted with the claimant, whose next event tells. An echo may have none; then it counts no further.
    Fold,
    /// Counted as flood.
    Flood {
        /// An event of the flood is due.
        due: bool,
    },
}

/// The minute of a [`Claimant`] at `now_ns` (CLOCK_BOOTTIME), which is that of [`Windows::second`].
///
/// Wraps after 136 years of uptime.
#[inline(always)]
pub const fn minute(now_ns: u64) -> u32 {
    second(now_ns) / 60
}

/// Decides what becomes of a sighting at `now_ns` (CLOCK_BOOTTIME) of an address with these `windows`, by a
/// host that is remembered as `claimant`, or is not. Returns the windows as they are after it. What the program itself
/// has done about a claim has to be known, so that is reported (`due`) beyond all bounds: there is one defence in
/// DEFEND_INTERVAL and one fall in the life of a claim. So has what takes away an address that is only just being claimed
/// ([`crate::state::StateWord::is_provisional`]), or a flood would make a host deaf to the owner whom it asks; the first
/// one ends that.
///
/// The caller counts the frame: with [`Admission::Flood`] in the record's flood, else with the claimant. With
/// [`Admission::Report`] the claimant's minute becomes [`minute`], and a host that was not remembered is now.
#[inline(always)]
pub fn admit(
    windows: Windows,
    claimant: Option<Claimant>,
    kind: EventKind,
    due: impl Fn() -> bool,
    now_ns: u64,
) -> (Windows, Admission) {
    let mut windows = windows;
    let second = second(now_ns);
    if windows.second != second {
        if windows.second / 60 != second / 60 {
            windows.claimants = 0;
        }
        windows.second = second;
        windows.claim_repeats = 0;
        windows.other_repeats = 0;
        windows.flood = 0;
    }
    if claimant.is_some_and(|claimant| claimant.minute == minute(now_ns)) {
        let claim = matches!(kind, EventKind::Claim);
        let repeats = if claim { &mut windows.claim_repeats } else { &mut windows.other_repeats };
        if *repeats >= REPEATS_PER_SECOND && !due() {
            return (windows, Admission::Fold);
        }
        *repeats = repeats.saturating_add(1);
        return (windows, Admission::Report { repeat: true });
    }
    if windows.claimants < CLAIMANTS_PER_MINUTE || due() {
        windows.claimants = windows.claimants.saturating_add(1);
        return (windows, Admission::Report { repeat: false });
    }
    if matches!(kind, EventKind::Echo) {
        return (windows, Admission::Fold);
    }
    let due = windows.flood == 0;
    windows.flood = 1;
    (windows, Admission::Flood { due })
}

/// Wraps after 136 years of uptime.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "only equality matters")]
const fn second(now_ns: u64) -> u32 {
    (now_ns / NS_PER_SECOND) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const SECOND: u64 = NS_PER_SECOND;
    /// Some time after boot, at the start of a minute.
    const START: u64 = 7 * 60 * SECOND;

    /// What the program keeps of one address.
    #[derive(Default)]
    struct Kept {
        windows: Windows,
        claimants: HashMap<(u64, EventKind), Claimant>,
    }

    impl Kept {
        fn sighting(&mut self, host: u64, kind: EventKind, now_ns: u64) -> Admission {
            self.handled(host, kind, false, now_ns)
        }

        fn handled(&mut self, host: u64, kind: EventKind, due: bool, now_ns: u64) -> Admission {
            let remembered = self.claimants.get(&(host, kind)).copied();
            let (windows, admission) = admit(self.windows, remembered, kind, || due, now_ns);
            self.windows = windows;
            if matches!(admission, Admission::Report { .. }) {
                let claimant = Claimant { frames: 1, minute: minute(now_ns), pad: 0, untold: 0 };
                self.claimants.insert((host, kind), claimant);
            }
            admission
        }
    }

    #[test]
    fn the_first_64_claimants_of_a_minute_are_reported_and_the_rest_are_one_flood_a_second() {
        let mut kept = Kept::default();
        for host in 0..64 {
            assert_eq!(kept.sighting(host, EventKind::Claim, START), Admission::Report { repeat: false });
        }
        for second in 0..60 {
            let now = START + second * SECOND;
            assert_eq!(kept.sighting(64, EventKind::Claim, now), Admission::Flood { due: true });
            for host in 65..1_000 {
                assert_eq!(
                    kept.sighting(host, EventKind::Claim, now + host),
                    Admission::Flood { due: false }
                );
            }
        }
        let next = START + 60 * SECOND;
        assert_eq!(kept.sighting(64, EventKind::Claim, next), Admission::Report { repeat: false });
    }

    #[test]
    fn a_claimant_of_an_earlier_minute_is_reported_anew() {
        let mut kept = Kept::default();
        assert_eq!(kept.sighting(1, EventKind::Claim, START), Admission::Report { repeat: false });
        assert_eq!(kept.sighting(1, EventKind::Claim, START + SECOND), Admission::Report { repeat: true });
        let next = START + 60 * SECOND;
        assert_eq!(kept.sighting(1, EventKind::Claim, next), Admission::Report { repeat: false });
    }

    #[test]
    fn the_second_conflict_passes_as_a_repeat_and_later_ones_are_folded() {
        let mut kept = Kept::default();
        kept.sighting(1, EventKind::Claim, START);
        for _ in 0..REPEATS_PER_SECOND {
            assert_eq!(kept.sighting(1, EventKind::Claim, START), Admission::Report { repeat: true });
        }
        assert_eq!(kept.sighting(1, EventKind::Claim, START), Admission::Fold);
        assert_eq!(kept.sighting(1, EventKind::Claim, START + SECOND), Admission::Report { repeat: true });
    }

    #[test]
    fn what_the_program_has_done_about_a_claim_is_reported_beyond_all_bounds() {
        let mut kept = Kept::default();
        for host in 0..=64 {
            for _ in 0..=REPEATS_PER_SECOND {
                kept.sighting(host, EventKind::Claim, START);
            }
        }
        assert_eq!(kept.sighting(1, EventKind::Claim, START), Admission::Fold);
        assert_eq!(kept.sighting(65, EventKind::Claim, START), Admission::Flood { due: false });
        assert_eq!(kept.handled(1, EventKind::Claim, true, START), Admission::Report { repeat: true });
        assert_eq!(kept.handled(65, EventKind::Claim, true, START), Admission::Report { repeat: false });
    }

    #[test]
    fn a_storm_of_echoes_and_probes_takes_nothing_from_the_claims() {
        let mut kept = Kept::default();
        kept.sighting(1, EventKind::Claim, START);
        kept.sighting(2, EventKind::Probe, START);
        for _ in 0..100 {
            kept.sighting(3, EventKind::Echo, START);
            kept.sighting(2, EventKind::Probe, START);
        }
        assert_eq!(kept.sighting(1, EventKind::Claim, START), Admission::Report { repeat: true });
    }

    #[test]
    fn echoes_are_never_a_flood() {
        let mut kept = Kept::default();
        for host in 0..64 {
            kept.sighting(host, EventKind::Claim, START);
        }
        assert_eq!(kept.sighting(64, EventKind::Echo, START), Admission::Fold);
        assert_eq!(kept.sighting(64, EventKind::Claim, START), Admission::Flood { due: true });
    }
}
