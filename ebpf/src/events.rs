//! Records what a frame says of a managed address and reports as much of it as [`report`] admits.

use arpwarden_common::{
    abi::{Claimant, ClaimantKey, Counter, Event, EventKind, Port, Record},
    defence::Reaction,
    net::MacAddr,
    report::{self, Admission},
    verdict::{Seen, Sighting},
    wire::arp::Frame,
};
use aya_ebpf::{bindings::BPF_NOEXIST, programs::XdpContext};
use aya_log_ebpf::info;

use crate::{
    atomic,
    maps::{self, CLAIMANTS, EVENTS, Place},
    stats,
};

/// Counts, records and reports a sighting; a claim was met by `reaction`.
#[inline(never)]
pub(crate) fn report(
    ctx: &XdpContext,
    port: &Port,
    frame: &Frame,
    sighting: &Sighting<Place>,
    reaction: Reaction,
) {
    let (counter, kind, seen, flags) = match sighting {
        Sighting::None => return,
        Sighting::Claim(seen) => (Counter::Claims, EventKind::Claim, Some(seen), 0),
        Sighting::Probe(seen) => (Counter::Probes, EventKind::Probe, Some(seen), 0),
        Sighting::Echo(seen) => (Counter::Echoes, EventKind::Echo, seen.as_ref(), 0),
        Sighting::Sibling(seen) => (Counter::Siblings, EventKind::Echo, seen.as_ref(), Event::SIBLING),
    };
    stats::count(counter);
    let Some(seen) = seen else { return };
    let record = seen.entry.place.record;
    let now_ns = maps::now_ns();
    let owner_changed = write_down(record, kind, frame.sender_mac, now_ns);
    if matches!(kind, EventKind::Claim) && !seen.contested() && !owner_changed {
        return;
    }
    let flags = if owner_changed { flags | Event::OWNER_CHANGED } else { flags };
    let flags = flags
        | match reaction {
            Reaction::Nothing => 0,
            Reaction::Defend => Event::DEFENDED,
            Reaction::Fall => Event::FELL,
        };
    admit(ctx, record, &Facts { port, frame, seen, kind, flags, now_ns });
}

/// What an event is made of.
struct Facts<'a> {
    port: &'a Port,
    frame: &'a Frame,
    seen: &'a Seen<Place>,
    kind: EventKind,
    flags: u8,
    now_ns: u64,
}

impl Facts<'_> {
    /// Whether the program has done something about the claim.
    const fn due(&self) -> bool {
        self.flags & (Event::DEFENDED | Event::FELL) != 0
    }
}

/// Adds the frame to the record; tells whether it is a claim by another host than the latest one was.
#[inline(always)]
fn write_down(record: *mut Record, kind: EventKind, sender: MacAddr, now_ns: u64) -> bool {
    // SAFETY: `record` is a valid aligned map value. Other CPUs write it meanwhile, so counts are atomic and
    // the other fields are read and written once each; of two claims at the same moment either may be the last.
    unsafe {
        match kind {
            EventKind::Claim => {
                atomic::add_one(&raw mut (*record).claims);
                let owner = (&raw const (*record).owner).read_volatile();
                (&raw mut (*record).owner).write_volatile(sender);
                (&raw mut (*record).owner_seen_ns).write_volatile(now_ns);
                owner != sender
            }
            EventKind::Probe => {
                atomic::add_one(&raw mut (*record).probes);
                false
            }
            EventKind::Echo | EventKind::Flood => {
                atomic::add_one(&raw mut (*record).echoes);
                false
            }
        }
    }
}

/// Reports the frame, folds it or adds it to the flood.
#[inline(always)]
fn admit(ctx: &XdpContext, record: *mut Record, facts: &Facts<'_>) {
    let key = ClaimantKey::new(facts.seen.entry.place.slot, facts.frame.sender_mac, facts.kind);
    let claimant = CLAIMANTS.get_ptr_mut(key);
    // SAFETY: both pointers are valid aligned map values. They are copied and written as a whole; what CPUs that
    // race lose that way are bounds, never counts (`Windows`).
    let admission = unsafe {
        let windows = (&raw const (*record).windows).read();
        let claimant = claimant.map(|place| place.read());
        let (windows, admission) = report::admit(windows, claimant, facts.kind, facts.due(), facts.now_ns);
        (&raw mut (*record).windows).write(windows);
        admission
    };
    // Where the frame counts, and the event that is due.
    let (total, told, event) = match admission {
        Admission::Flood { due } => {
            // SAFETY: fields of a valid aligned map value.
            let (total, told) = unsafe { (&raw mut (*record).flooded, &raw mut (*record).flood_told) };
            (total, told, due.then_some((EventKind::Flood, facts.flags)))
        }
        Admission::Fold | Admission::Report { .. } => {
            let (claimant, event) = match (claimant, admission) {
                (Some(claimant), Admission::Report { repeat: true }) => {
                    (claimant, Some((facts.kind, facts.flags | Event::REPEAT)))
                }
                (Some(claimant), Admission::Report { repeat: false }) => {
                    // SAFETY: a valid aligned map value; CPUs that race write the same.
                    unsafe { (&raw mut (*claimant).minute).write_volatile(report::minute(facts.now_ns)) };
                    (claimant, Some((facts.kind, facts.flags)))
                }
                (None, Admission::Report { .. }) => {
                    let first = remember(&key, facts.now_ns);
                    let Some(claimant) = CLAIMANTS.get_ptr_mut(key) else {
                        return stats::count(Counter::EventsLost);
                    };
                    (claimant, (first || facts.due()).then_some((facts.kind, facts.flags)))
                }
                (Some(claimant), Admission::Fold | Admission::Flood { .. }) => (claimant, None),
                (None, Admission::Fold | Admission::Flood { .. }) => return,
            };
            // SAFETY: fields of a valid aligned map value.
            let (total, told) = unsafe { (&raw mut (*claimant).frames, &raw mut (*claimant).told) };
            (total, told, event)
        }
    };
    // SAFETY: a counter in a valid aligned map value.
    unsafe { atomic::add_one(total) };
    if let Some((kind, flags)) = event {
        send(ctx, total, told, facts, kind, flags);
    }
}

/// Remembers a host that is reported for the first time. Where two CPUs see its first frames at the same moment
/// the map lets one of them in, and that one reports; false for the other.
#[inline(always)]
fn remember(key: &ClaimantKey, now_ns: u64) -> bool {
    let claimant = Claimant { frames: 0, told: 0, minute: report::minute(now_ns), pad: 0 };
    CLAIMANTS.insert(key, claimant, u64::from(BPF_NOEXIST)).is_ok()
}

/// Sends an event that stands for the frames between `told` and `total`. If the ring is full they stay untold:
/// the next event tells.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an operation is 1 or 2, or `parse` would have refused it"
)]
fn send(ctx: &XdpContext, total: *const u64, told: *mut u64, facts: &Facts<'_>, kind: EventKind, flags: u8) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return stats::count(Counter::EventsLost) };
    // SAFETY: both point into valid aligned map values. Each is read and written once; CPUs that race may tell
    // the same frames twice, the totals stay right.
    let count = unsafe {
        let total = total.read_volatile();
        let count = total.wrapping_sub(told.read_volatile());
        told.write_volatile(total);
        count
    };
    let Facts { port, frame, seen, .. } = facts;
    entry.write(Event {
        kernel_time_ns: maps::boot_ns(),
        count,
        slot: seen.entry.place.slot,
        interface: port.interface,
        vlan: frame.vlan,
        address: seen.address,
        claimant: frame.sender_mac.octets(),
        ethernet_source: frame.source.octets(),
        kind: kind as u8,
        form: frame.form() as u8,
        operation: frame.operation as u8,
        flags,
        generation: seen.entry.word.generation(),
        state: seen.entry.word.state_number(),
        pad: 0,
        pad_end: 0,
    });
    entry.submit(0);
    // As often as events, so as bounded as they are. Words of one length spare the verifier a loop.
    let what = match kind {
        EventKind::Claim => "claim",
        EventKind::Probe => "probe",
        EventKind::Flood => "flood",
        EventKind::Echo => return,
    };
    info!(
        ctx,
        target: "arpwarden",
        "{} address={:i} claimant={:mac} ethernet_source={:mac}",
        what,
        seen.address.octets(),
        frame.sender_mac.octets(),
        frame.source.octets()
    );
}
