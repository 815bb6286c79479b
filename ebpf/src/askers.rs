//! Remembers who asks for an address.

use arpwarden_common::{
    abi::{ASKERS, Asker, Coarse, Slot},
    askers,
    net::{Ipv4, MacAddr},
    verdict::Asking,
};

use crate::{
    atomic,
    maps::{self, Place},
};

/// Writes down what a frame shows of its ARP sender at `now_ns` (CLOCK_BOOTTIME).
#[inline(always)]
pub(crate) fn note<const EXCHANGES: bool>(
    asking: &Asking<Place>,
    (mac, address): (MacAddr, Ipv4),
    now_ns: u64,
) {
    let (slot, now) = (asking.place.at, Coarse::of(now_ns));
    // SAFETY: fields of a valid aligned map value, each read once.
    let known =
        askers::known(|place| unsafe { (mac_of(slot, place), address_of(slot, place)) }, mac, address);
    match known {
        Some(place) => {
            let asker = asker(slot, place);
            // SAFETY: fields of a valid aligned map value. CPUs that race write the same, or times a unit apart; what
            // is right already is not written, so that CPUs do not take the line from each other for each frame.
            unsafe {
                let seen = &raw mut (*asker).seen;
                if seen.read_volatile() != now {
                    seen.write_volatile(now);
                }
                if asking.followed != 0 && asker.read_volatile().followed() != asking.followed {
                    followed(slot, place).write_volatile(now);
                    asker.cast::<u64>().write_volatile(Asker::head(mac, asking.followed));
                }
            }
        }
        None if asking.asks => meet::<EXCHANGES>(slot, mac, address, asking.followed, now),
        None => {}
    }
}

/// Gives a newcomer a place, unless it is another port of this host.
#[inline(never)]
fn meet<const EXCHANGES: bool>(slot: *mut Slot, mac: MacAddr, address: Ipv4, follows: u16, now: Coarse) {
    // SAFETY: a field of a valid aligned map value.
    let seen = |place| unsafe { (&raw const (*asker(slot, place)).seen).read_volatile() };
    let Some(place) = askers::place_for_newcomer(seen, now) else { return };
    if maps::is_own(mac) {
        return;
    }
    // SAFETY: parts of a valid aligned map value. Of CPUs that want the same place for different hosts the one that
    // exchanges address and time writes the rest; the other host asks again, or was one of too many. Without exchanges the
    // MAC of one may stand beside the address of the other: who is then asked in the address's name takes no notice.
    unsafe {
        let asker = asker(slot, place).cast::<u64>();
        let tail = Asker::tail(address, now);
        if EXCHANGES {
            let there = asker.add(1).read_volatile();
            if !atomic::exchange_if(asker.add(1), there, tail) {
                return;
            }
        } else {
            asker.add(1).write_volatile(tail);
        }
        asker.write_volatile(Asker::head(mac, follows));
        followed(slot, place).write_volatile(if follows == 0 { Coarse::NEVER } else { now });
    }
}

/// # Safety
/// `slot` is a valid map value.
#[inline(always)]
unsafe fn mac_of(slot: *mut Slot, place: usize) -> MacAddr {
    // SAFETY: the first field of a valid aligned `Asker`.
    MacAddr::from_bits(unsafe { asker(slot, place).cast::<u64>().read_volatile() })
}

/// # Safety
/// `slot` is a valid map value.
#[inline(always)]
unsafe fn address_of(slot: *mut Slot, place: usize) -> Ipv4 {
    // SAFETY: a field of a valid aligned `Asker`.
    unsafe { (&raw const (*asker(slot, place)).address).read_volatile() }
}

/// The asker in a place, which is less than [`ASKERS`].
#[inline(always)]
fn asker(slot: *mut Slot, place: usize) -> *mut Asker {
    // SAFETY: `slot` is a valid map value and the place is within its array.
    unsafe { (&raw mut (*slot).askers).cast::<Asker>().add(place & (ASKERS - 1)) }
}

/// When the asker in a place, which is less than [`ASKERS`], was found to follow.
#[inline(always)]
fn followed(slot: *mut Slot, place: usize) -> *mut Coarse {
    // SAFETY: as above.
    unsafe { (&raw mut (*slot).followed).cast::<Coarse>().add(place & (ASKERS - 1)) }
}
const _: () = assert!(ASKERS.is_power_of_two());
