//! Who asked for an address lately: which of the address's few places a host gets. Pure; the program reads and writes
//! the places.

use crate::{
    abi::{ASKERS, Coarse},
    net::{Ipv4, MacAddr},
};

/// Units of [`Coarse`] for which a host keeps its place though another one asks: a second. Where more hosts ask than
/// there are places, they would otherwise take them from each other with each question, and what is remembered would be
/// as random.
pub const KEEPS: u32 = 60;

/// The place of the host with this MAC and address among the askers that `asker` reads, if it has one. Hosts that share
/// a MAC have caches of their own, and a host may ask in several names, so both are compared.
#[inline(always)]
pub fn known(asker: impl Fn(usize) -> (MacAddr, Ipv4), mac: MacAddr, address: Ipv4) -> Option<usize> {
    (0..ASKERS).find(|place| asker(*place) == (mac, address))
}

/// The place for a host that has none: that of the host which asked longest ago, by the times that `seen` reads. None if
/// all of them asked within the last [`KEEPS`]: they are as recent, and so a flood of askers costs next to nothing.
#[inline(always)]
pub fn place_for_newcomer(seen: impl Fn(usize) -> Coarse, now: Coarse) -> Option<usize> {
    let mut oldest = (0, seen(0).before(now));
    for place in 1..ASKERS {
        let before = seen(place).before(now);
        if before > oldest.1 {
            oldest = (place, before);
        }
    }
    (oldest.1 > KEEPS).then_some(oldest.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn host(last: u8) -> (MacAddr, Ipv4) {
        (MacAddr::new([2, 0, 0, 0, 0, last]), Ipv4::new([192, 0, 2, last]))
    }

    /// What the program does with one asker after the other, each `(time in tenths of a second, host)`.
    fn after(asked: &[(u64, u8)]) -> Vec<u8> {
        let mut askers = [((MacAddr::ZERO, Ipv4::UNSPECIFIED), Coarse::NEVER); ASKERS];
        for &(tenths, last) in asked {
            let (mac, address) = host(last);
            let now = Coarse::of(tenths * 100_000_000);
            if let Some(place) = known(|place| askers[place].0, mac, address) {
                askers[place].1 = now;
            } else if let Some(place) = place_for_newcomer(|place| askers[place].1, now) {
                askers[place] = ((mac, address), now);
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
        assert_eq!(after(&[(0, 1), (1, 2), (2, 3), (3, 4), (15, 5)]), [2, 3, 4, 5]);
        assert_eq!(
            after(&[(0, 1), (1, 2), (2, 3), (3, 4), (10, 1), (20, 5)]),
            [1, 3, 4, 5],
            "asking again counts"
        );
    }

    #[test]
    fn a_flood_takes_no_place_of_a_host_that_asked_within_a_second() {
        let flood: Vec<(u64, u8)> = (1..=200).map(|last| (9, last)).collect();
        assert_eq!(after(&flood), [1, 2, 3, 4]);
        let flood: Vec<(u64, u8)> = (1..=200).map(|last| (9 + u64::from(last >= 100) * 9, last)).collect();
        assert_eq!(after(&flood), [1, 2, 3, 4], "nor nine tenths later");
        let flood: Vec<(u64, u8)> = (1..=200).map(|last| (9 + u64::from(last >= 100) * 11, last)).collect();
        assert_eq!(after(&flood), [100, 101, 102, 103], "more than a second later these are more recent");
    }

    #[test]
    fn the_clock_of_the_askers_may_come_round() {
        let round = u64::from(u32::MAX) * Coarse::UNIT_NS;
        let [before, after] = [round - 3 * Coarse::UNIT_NS, round + 3 * Coarse::UNIT_NS].map(Coarse::of);
        assert_eq!(before.before(after), 6);
        assert_eq!(place_for_newcomer(|_| before, after), None);
        let later = Coarse::of(round + 100 * Coarse::UNIT_NS);
        assert_eq!(place_for_newcomer(|place| if place == 2 { before } else { after }, later), Some(2));
        assert_eq!(before.at(round + 4 * Coarse::UNIT_NS), Some(round - 3 * Coarse::UNIT_NS));
    }

    #[test]
    fn hosts_that_share_a_mac_or_an_address_are_told_apart() {
        let (mac, address) = host(1);
        let there = [host(2), (mac, host(2).1), (host(2).0, address), (mac, address)];
        assert_eq!(known(|place| there[place], mac, address), Some(3));
        assert_eq!(known(|place| there[place], mac, host(3).1), None);
    }
}
