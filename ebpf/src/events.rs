//! Records what a frame says of a managed address and reports as much of it as [`report`] admits.

use arpwarden_common::{
    abi::{Claimant, ClaimantKey, Counter, Event, EventKind, Port, Record},
    net::MacAddr,
    report::{self, Admission},
    verdict::{Seen, Sighting},
    wire::arp::Frame,
};
use aya_ebpf::{bindings::BPF_NOEXIST, programs::XdpContext};
use aya_log_ebpf::info;

use crate::{
    maps::{self, CLAIMANTS, EVENTS},
    stats,
};

/// Counts, records and reports a sighting.
#[inline(never)]
pub(crate) fn report(ctx: &XdpContext, port: &Port, frame: &Frame, sighting: &Sighting) {
    let (counter, kind, seen, flags) = match sighting {
        Sighting::None => return,
        Sighting::Claim(seen) => (Counter::Claims, EventKind::Claim, Some(seen), 0),
        Sighting::Probe(seen) => (Counter::Probes, EventKind::Probe, Some(seen), 0),
        Sighting::Echo(seen) => (Counter::Echoes, EventKind::Echo, seen.as_ref(), 0),
        Sighting::Sibling(seen) => (Counter::Siblings, EventKind::Echo, seen.as_ref(), Event::SIBLING),
    };
    stats::count(counter);
    let Some(seen) = seen else { return };
    let Some(record) = maps::record(seen.entry.slot) else { return };
    let now_ns = maps::now_ns();
    let owner_changed = write_down(record, kind, frame.sender_mac, now_ns);
    if matches!(kind, EventKind::Claim) && !seen.contested && !owner_changed {
        return;
    }
    let flags = if owner_changed { flags | Event::OWNER_CHANGED } else { flags };
    admit(ctx, record, &Facts { port, frame, seen, kind, flags, now_ns });
}

/// What an event is made of.
struct Facts<'a> {
    port: &'a Port,
    frame: &'a Frame,
    seen: &'a Seen,
    kind: EventKind,
    flags: u8,
    now_ns: u64,
}

/// Adds the frame to the record; tells whether it is a claim by another host than the latest one was.
#[inline(always)]
fn write_down(record: *mut Record, kind: EventKind, sender: MacAddr, now_ns: u64) -> bool {
    // SAFETY: `record` is a valid aligned map value. Other CPUs write it meanwhile, so counts are atomic and
    // the other fields are read and written once each; of two claims at the same moment either may be the last.
    unsafe {
        match kind {
            EventKind::Claim => {
                stats::add_one(&raw mut (*record).claims);
                let owner = (&raw const (*record).owner).read_volatile();
                (&raw mut (*record).owner).write_volatile(sender);
                (&raw mut (*record).owner_seen_ns).write_volatile(now_ns);
                owner != sender
            }
            EventKind::Probe => {
                stats::add_one(&raw mut (*record).probes);
                false
            }
            EventKind::Echo | EventKind::Flood => {
                stats::add_one(&raw mut (*record).echoes);
                false
            }
        }
    }
}

/// Reports the frame, folds it or adds it to the flood.
#[inline(always)]
fn admit(ctx: &XdpContext, record: *mut Record, facts: &Facts<'_>) {
    let key = ClaimantKey::new(facts.seen.entry.slot, facts.frame.sender_mac, facts.kind);
    let claimant = CLAIMANTS.get_ptr_mut(key);
    // SAFETY: both pointers are valid aligned map values. They are copied and written as a whole; what CPUs that
    // race lose that way are bounds, never counts (`Windows`).
    let admission = unsafe {
        let windows = (&raw const (*record).windows).read();
        let (windows, admission) =
            report::admit(windows, claimant.map(|place| place.read()), facts.kind, facts.now_ns);
        (&raw mut (*record).windows).write(windows);
        admission
    };
    match admission {
        Admission::Report { repeat: true } => {
            let Some(claimant) = claimant else { return };
            tell_of(ctx, claimant, facts, facts.flags | Event::REPEAT);
        }
        Admission::Report { repeat: false } => match claimant {
            Some(claimant) => {
                // SAFETY: a valid aligned map value; of two CPUs that write both write the same.
                unsafe { (&raw mut (*claimant).minute).write_volatile(report::minute(facts.now_ns)) };
                tell_of(ctx, claimant, facts, facts.flags);
            }
            None => introduce(ctx, &key, facts),
        },
        Admission::Fold => {
            if let Some(claimant) = claimant {
                // SAFETY: a valid aligned map value.
                unsafe { stats::add_one(&raw mut (*claimant).frames) };
            }
        }
        Admission::Flood { due } => {
            // SAFETY: `record` is a valid aligned map value.
            unsafe { stats::add_one(&raw mut (*record).flooded) };
            if due {
                // SAFETY: as above.
                let (total, told) = unsafe { (&raw const (*record).flooded, &raw mut (*record).flood_told) };
                send(total, told, facts, EventKind::Flood, facts.flags);
            }
        }
    }
}

/// Reports a host that is not remembered, and remembers it. Where two CPUs see its first frames at the same
/// moment the map lets one of them in; the other's frame is folded.
#[inline(always)]
fn introduce(ctx: &XdpContext, key: &ClaimantKey, facts: &Facts<'_>) {
    let entry = EVENTS.reserve::<Event>(0);
    let told = u64::from(entry.is_some());
    let claimant = Claimant { frames: 1, told, minute: report::minute(facts.now_ns), pad: 0 };
    let first = CLAIMANTS.insert(key, claimant, u64::from(BPF_NOEXIST)).is_ok();
    if !first {
        if let Some(claimant) = CLAIMANTS.get_ptr_mut(key) {
            // SAFETY: a valid aligned map value.
            unsafe { stats::add_one(&raw mut (*claimant).frames) };
            if let Some(entry) = entry {
                entry.discard(0);
            }
            return;
        }
        // No room at all: better told twice than never.
    }
    let Some(mut entry) = entry else { return stats::count(Counter::EventsLost) };
    entry.write(event(facts, facts.kind, facts.flags, 1));
    entry.submit(0);
    log(ctx, facts);
}

/// Reports a host that is remembered, with its frames since the last time.
#[inline(always)]
fn tell_of(ctx: &XdpContext, claimant: *mut Claimant, facts: &Facts<'_>, flags: u8) {
    // SAFETY: a valid aligned map value.
    let (total, told) = unsafe {
        stats::add_one(&raw mut (*claimant).frames);
        (&raw const (*claimant).frames, &raw mut (*claimant).told)
    };
    if send(total, told, facts, facts.kind, flags) {
        log(ctx, facts);
    }
}

/// Sends an event that stands for the frames between `told` and `total`. If the ring is full they stay untold:
/// the next event tells.
#[inline(always)]
fn send(total: *const u64, told: *mut u64, facts: &Facts<'_>, kind: EventKind, flags: u8) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        stats::count(Counter::EventsLost);
        return false;
    };
    // SAFETY: both point into valid aligned map values. Each is read and written once; CPUs that race may tell
    // the same frames twice, the totals stay right.
    let count = unsafe {
        let total = total.read_volatile();
        let count = total.wrapping_sub(told.read_volatile());
        told.write_volatile(total);
        count
    };
    entry.write(event(facts, kind, flags, count));
    entry.submit(0);
    true
}

#[inline(always)]
fn event(facts: &Facts<'_>, kind: EventKind, flags: u8, count: u64) -> Event {
    let Facts { port, frame, seen, .. } = facts;
    Event {
        kernel_time_ns: maps::boot_ns(),
        count,
        slot: seen.entry.slot,
        interface: port.interface,
        vlan: frame.vlan,
        address: seen.address,
        claimant: frame.sender_mac.octets(),
        ethernet_source: frame.source.octets(),
        kind: kind as u8,
        form: frame.form() as u8,
        // 1 or 2 (`parse`).
        operation: frame.operation as u8,
        flags,
        generation: seen.entry.word.generation(),
        state: seen.entry.word.state_number(),
        pad: [0; 6],
    }
}

/// The event in words; bounded as the events are.
#[inline(always)]
fn log(ctx: &XdpContext, facts: &Facts<'_>) {
    let Facts { frame, seen, kind, .. } = facts;
    let word = match kind {
        EventKind::Claim => "claim",
        EventKind::Probe => "probe",
        EventKind::Echo => "echo",
        EventKind::Flood => "flood",
    };
    info!(
        ctx,
        target: "arpwarden",
        "{} address={:i} claimant={:mac} ethernet_source={:mac}",
        word,
        seen.address.octets(),
        frame.sender_mac.octets(),
        frame.source.octets()
    );
}
