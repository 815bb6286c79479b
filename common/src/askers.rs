//! Who asked for an address lately: which of the address's few places a host gets. Pure; the program reads and writes
//! the places.

use crate::{
    abi::ASKERS,
    net::{Ipv4, MacAddr},
};

/// The place of the host with this MAC and address among the askers that `asker` reads, if it has one. Hosts that share
/// a MAC have caches of their own, and a host may ask in several names, so both are compared.
#[inline(always)]
pub fn known(asker: impl Fn(usize) -> (MacAddr, Ipv4), mac: MacAddr, address: Ipv4) -> Option<usize> {
    (0..ASKERS).find(|place| asker(*place) == (mac, address))
}

/// The place for a host that has none, at `now_ns` (CLOCK_BOOTTIME, at most one jiffy old): that of the host which asked
/// longest ago, by the times that `seen_ns` reads, so that the most recent ones are kept. None if all of them asked in
/// this very jiffy: they are as recent, and so a flood of askers costs next to nothing.
#[inline(always)]
pub fn place_for_newcomer(seen_ns: impl Fn(usize) -> u64, now_ns: u64) -> Option<(usize, u64)> {
    let mut oldest = (0, seen_ns(0));
    for place in 1..ASKERS {
        let seen = seen_ns(place);
        if seen < oldest.1 {
            oldest = (place, seen);
        }
    }
    (oldest.1 < now_ns).then_some(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn host(last: u8) -> (MacAddr, Ipv4) {
        (MacAddr::new([2, 0, 0, 0, 0, last]), Ipv4::new([192, 0, 2, last]))
    }

    /// What the program does with one asker after the other, each `(time, host)`.
    fn after(asked: &[(u64, u8)]) -> Vec<u8> {
        let mut askers = [((MacAddr::ZERO, Ipv4::UNSPECIFIED), 0); ASKERS];
        for &(now_ns, last) in asked {
            let (mac, address) = host(last);
            if let Some(place) = known(|place| askers[place].0, mac, address) {
                askers[place].1 = now_ns;
            } else if let Some((place, seen_ns)) = place_for_newcomer(|place| askers[place].1, now_ns) {
                assert_eq!(askers[place].1, seen_ns);
                askers[place] = ((mac, address), now_ns);
            }
        }
        let mut hosts: Vec<u8> = askers.iter().map(|((mac, _), _)| mac.octets()[5]).collect();
        hosts.sort_unstable();
        hosts
    }

    #[test]
    fn the_most_recent_askers_are_kept() {
        assert_eq!(after(&[(1, 7)]), [0, 0, 0, 7]);
        assert_eq!(after(&[(1, 7), (2, 7), (2, 7)]), [0, 0, 0, 7], "once each");
        assert_eq!(after(&[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]), [2, 3, 4, 5]);
        assert_eq!(
            after(&[(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 5)]),
            [1, 3, 4, 5],
            "asking again counts"
        );
    }

    #[test]
    fn a_flood_within_a_jiffy_changes_four_places_and_no_more() {
        let flood: Vec<(u64, u8)> = (1..=200).map(|last| (9, last)).collect();
        assert_eq!(after(&flood), [1, 2, 3, 4]);
        let flood: Vec<(u64, u8)> = (1..=200).map(|last| (u64::from(last / 100) + 9, last)).collect();
        assert_eq!(after(&flood), [101, 102, 103, 200], "the next jiffy's are more recent");
    }

    #[test]
    fn hosts_that_share_a_mac_or_an_address_are_told_apart() {
        let (mac, address) = host(1);
        let there = [host(2), (mac, host(2).1), (host(2).0, address), (mac, address)];
        assert_eq!(known(|place| there[place], mac, address), Some(3));
        assert_eq!(known(|place| there[place], mac, host(3).1), None);
    }
}
