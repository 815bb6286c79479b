//! Remembers who asks for an address.

use arpwarden_common::{
    abi::{ASKERS, Asker, Record},
    askers,
    net::{Ipv4, MacAddr},
    verdict::{Asking, Tables as _},
    wire::arp::Frame,
};

use crate::{
    atomic,
    maps::{self, Maps, Place},
};

/// Writes down what the frame shows of its sender.
#[inline(always)]
pub(crate) fn note<const EXCHANGES: bool>(asking: &Asking<Place>, frame: &Frame) {
    let record = asking.place.record;
    let now_ns = maps::now_ns();
    let known = askers::known(
        |place| {
            let asker = asker(record, place);
            // SAFETY: fields of a valid aligned map value, each read once.
            unsafe {
                let mac = (&raw const (*asker).mac).read_volatile();
                (mac, (&raw const (*asker).address).read_volatile())
            }
        },
        frame.sender_mac,
        frame.sender_ip,
    );
    match known {
        Some(place) => {
            let asker = asker(record, place);
            // SAFETY: fields of a valid aligned map value. CPUs that race write the same, or times a jiffy apart; what
            // is right already is not written, so that CPUs do not take the line from each other for each frame.
            unsafe {
                let seen_ns = &raw mut (*asker).seen_ns;
                if seen_ns.read_volatile() != now_ns {
                    seen_ns.write_volatile(now_ns);
                }
                let followed = &raw mut (*asker).followed;
                if asking.followed != 0 && followed.read_volatile() != asking.followed {
                    (&raw mut (*asker).followed_ns).write_volatile(now_ns);
                    followed.write_volatile(asking.followed);
                }
            }
        }
        None if asking.asks => {
            meet::<EXCHANGES>(record, frame.sender_mac, frame.sender_ip, asking.followed, now_ns)
        }
        None => {}
    }
}

/// Gives a newcomer a place, unless it is another port of this host.
#[inline(never)]
fn meet<const EXCHANGES: bool>(record: *mut Record, mac: MacAddr, address: Ipv4, followed: u32, now_ns: u64) {
    let seen_ns = |place| {
        // SAFETY: a field of a valid aligned map value.
        unsafe { (&raw const (*asker(record, place)).seen_ns).read_volatile() }
    };
    let Some((place, seen_ns)) = askers::place_for_newcomer(seen_ns, now_ns) else { return };
    if Maps.is_own(mac) {
        return;
    }
    let asker = asker(record, place);
    // SAFETY: fields of a valid aligned map value. Of CPUs that want the same place for different hosts the one that
    // exchanges its time writes the rest; the other host asks again, or was one of too many. Without exchanges the MAC of
    // one may stand beside the address of the other: who is then asked in the address's name takes no notice.
    unsafe {
        if EXCHANGES {
            if !atomic::exchange_if(&raw mut (*asker).seen_ns, seen_ns, now_ns) {
                return;
            }
        } else {
            (&raw mut (*asker).seen_ns).write_volatile(now_ns);
        }
        (&raw mut (*asker).mac).write_volatile(mac);
        (&raw mut (*asker).address).write_volatile(address);
        (&raw mut (*asker).followed).write_volatile(followed);
        (&raw mut (*asker).followed_ns).write_volatile(if followed == 0 { 0 } else { now_ns });
    }
}

/// The asker in a place, which is less than [`ASKERS`].
#[inline(always)]
fn asker(record: *mut Record, place: usize) -> *mut Asker {
    // SAFETY: `record` is a valid map value and the place is within its array.
    unsafe { (&raw mut (*record).askers).cast::<Asker>().add(place & (ASKERS - 1)) }
}
const _: () = assert!(ASKERS.is_power_of_two());
