//! Records what a frame says of a managed address and reports as much of it as [`report`] admits.

use arpwarden_common::{
    abi::{Claimant, ClaimantKey, Claims, Coarse, Counter, Event, EventKind},
    defence::Reaction,
    net::MacAddr,
    report::{self, Admission},
    state::StateWord,
    verdict::Sighting,
    wire::arp::Frame,
};
use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST};
use aya_log_ebpf::info;

use crate::{
    atomic,
    maps::{self, CLAIMANTS, Cpu, EVENTS, Place},
    packet::{Context, Packet},
    stats,
};

/// Counts, records and reports a sighting; a claim was met by `reaction`.
#[inline(always)]
pub(crate) fn report<C: Context>(packet: &Packet<C>, sighting: &Sighting<Place>, reaction: Reaction) {
    let (counter, kind, entry, flags) = match sighting {
        Sighting::Claim(entry) => (Counter::Claims, EventKind::Claim, Some(entry), done(reaction)),
        Sighting::Allowed(entry) => (Counter::Allowed, EventKind::Claim, Some(entry), Event::ALLOWED),
        Sighting::Probe(entry) => (Counter::Probes, EventKind::Probe, Some(entry), 0),
        Sighting::Echo(entry) => (Counter::Echoes, EventKind::Echo, entry.as_ref(), 0),
        Sighting::Sibling(entry) => (Counter::Siblings, EventKind::Echo, entry.as_ref(), Event::SIBLING),
    };
    stats::count(counter);
    if let Some(entry) = entry {
        let contested = entry.contested() && flags & Event::ALLOWED == 0;
        let what = What::new(kind, flags, contested);
        report_of(packet, entry.place, entry.word, what);
    }
}

/// The flag that tells of the reaction.
const fn done(reaction: Reaction) -> u8 {
    match reaction {
        Reaction::Nothing => 0,
        Reaction::Defend => Event::DEFENDED,
        Reaction::Fall => Event::FELL,
    }
}

/// What is to be reported, in one register: kind (bits 0–7), flags of the event (8–15), whether it is a conflict (16).
#[derive(Clone, Copy)]
#[repr(transparent)]
struct What(u32);

impl What {
    #[inline(always)]
    const fn new(kind: EventKind, flags: u8, contested: bool) -> Self {
        Self(kind as u32 | (flags as u32) << 8 | (contested as u32) << 16)
    }

    /// As it was put through [`Cpu::forgotten`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it was no wider")]
    const fn of(bits: u64) -> Self {
        Self(bits as u32)
    }

    #[inline(always)]
    fn kind(self) -> EventKind {
        if self.0 & 0xff == EventKind::Claim as u32 {
            EventKind::Claim
        } else if self.0 & 0xff == EventKind::Probe as u32 {
            EventKind::Probe
        } else if self.0 & 0xff == EventKind::Flood as u32 {
            EventKind::Flood
        } else {
            EventKind::Echo
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "these eight bits are meant")]
    const fn flags(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The word for it in a message. Words of one length, found without a branch, spare the verifier a walk each.
    #[inline(always)]
    fn word(self) -> &'static str {
        const WORDS: &[u8; 9 * LEN] = b"otherclaimprobeotherfloodfightotherotheryield";
        const LEN: usize = 5;
        const _: () = assert!(Event::DEFENDED == 1 << 3 && Event::FELL == 1 << 4);
        // A claim that was met has a word of its own: 1 + 4 is "fight", 1 + 7 is "yield".
        let number = (self.0 & 7) + (self.0 >> 11 & 1) * 4 + (self.0 >> 12 & 1) * 7;
        let at = number.min(8) as usize * LEN;
        // SAFETY: any part of an ASCII text is one.
        unsafe { core::str::from_utf8_unchecked(&WORDS[at..at + LEN]) }
    }

    #[inline(always)]
    const fn contested(self) -> bool {
        self.0 >> 16 != 0
    }
}

/// Records and reports what the frame says of the address in `slot`. All arguments are in registers and the frame is read
/// once more: passed by reference its fields would lie on the caller's stack, where they are in the way of every frame,
/// and two frames have to fit.
#[inline(never)]
fn report_of<C: Context>(packet: &Packet<C>, place: Place, word: StateWord, what: What) {
    let Some(cpu) = Cpu::this() else { return };
    let what = What::of(cpu.forgotten(what.0.into()));
    let (Some(claims), slot) = (place.claims(), place.slot) else { return };
    let (Ok((frame, cpu)), Some(port)) = (packet.read(), maps::port(packet.ctx().interface())) else {
        return;
    };
    let now_ns = cpu.now_ns();
    let kind = what.kind();
    let owner_changed = write_down(claims, kind, frame.sender_mac, now_ns);
    if matches!(kind, EventKind::Claim) && !what.contested() && !owner_changed {
        return;
    }
    let flags = if owner_changed { what.flags() | Event::OWNER_CHANGED } else { what.flags() };
    let interface = port.interface;
    admit(packet.ctx(), claims, &Facts { cpu, interface, frame: &frame, slot, word, kind, flags, now_ns });
}

/// What an event is made of.
struct Facts<'a> {
    cpu: Cpu,
    interface: u32,
    frame: &'a Frame,
    slot: u32,
    word: StateWord,
    kind: EventKind,
    flags: u8,
    now_ns: u64,
}

impl Facts<'_> {
    /// Whether the daemon has to know: the program has done something about the claim, or leaves it all to the daemon,
    /// which gives the address up at the first one.
    #[inline(always)]
    const fn due(&self) -> bool {
        self.flags & (Event::DEFENDED | Event::FELL) != 0
            || (!matches!(self.kind, EventKind::Echo) && self.word.is_provisional())
    }
}

/// Adds the frame to the address's counts; tells whether it is a claim by another host than the latest one was.
#[inline(always)]
fn write_down(claims: *mut Claims, kind: EventKind, sender: MacAddr, now_ns: u64) -> bool {
    // SAFETY: `claims` is a valid aligned map value. Other CPUs write it meanwhile, so counts are atomic and
    // the other fields are read and written once each; of two claims at the same moment either may be the last.
    unsafe {
        match kind {
            EventKind::Claim => {
                atomic::add_one(&raw mut (*claims).claims);
                let owner = (&raw const (*claims).owner).read_volatile();
                (&raw mut (*claims).owner).write_volatile(sender);
                (&raw mut (*claims).owner_seen).write_volatile(Coarse::of(now_ns));
                owner != sender
            }
            EventKind::Probe => {
                atomic::add_one(&raw mut (*claims).probes);
                false
            }
            EventKind::Echo | EventKind::Flood => {
                atomic::add_one_u32(&raw mut (*claims).echoes);
                false
            }
        }
    }
}

/// Reports the frame, folds it or adds it to the flood.
#[inline(always)]
fn admit(ctx: &impl EbpfContext, claims: *mut Claims, facts: &Facts<'_>) {
    let key = ClaimantKey::new(facts.slot, facts.frame.sender_mac, facts.kind);
    let claimant = CLAIMANTS.get_ptr_mut(key);
    // SAFETY: both pointers are valid aligned map values. They are copied and written as a whole; what CPUs that
    // race lose that way are bounds, never counts (`Windows`).
    let admission = unsafe {
        let windows = (&raw const (*claims).windows).read();
        let claimant = claimant.map(|place| place.read());
        let (windows, admission) = report::admit(windows, claimant, facts.kind, || facts.due(), facts.now_ns);
        (&raw mut (*claims).windows).write(windows);
        admission
    };
    // Where the frame counts until an event tells of it, and the event that is due.
    let (untold, event) = match admission {
        Admission::Flood { due } => {
            // SAFETY: a field of a valid aligned map value.
            let untold = unsafe { &raw mut (*claims).flood_untold };
            (untold, due.then_some((EventKind::Flood, facts.flags)))
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
            // SAFETY: counters in a valid aligned map value.
            let untold = unsafe {
                atomic::add_one(&raw mut (*claimant).frames);
                &raw mut (*claimant).untold
            };
            (untold, event)
        }
    };
    // SAFETY: a counter in a valid aligned map value.
    unsafe { atomic::add_one(untold) };
    if let Some((kind, flags)) = event {
        let what = What::of(facts.cpu.forgotten(What::new(kind, flags, false).0.into()));
        send(ctx, untold, facts, what);
    }
}

/// Remembers a host that is reported for the first time. Where two CPUs see its first frames at the same moment
/// the map lets one of them in, and that one reports; false for the other.
#[inline(always)]
fn remember(key: &ClaimantKey, now_ns: u64) -> bool {
    let claimant = Claimant { frames: 0, minute: report::minute(now_ns), pad: 0, untold: 0 };
    CLAIMANTS.insert(key, claimant, u64::from(BPF_NOEXIST)).is_ok()
}

/// Sends an event that stands for the `untold` frames. If the ring is full they stay untold: the next event tells.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an operation is 1 or 2, or `parse` would have refused it"
)]
fn send(ctx: &impl EbpfContext, untold: *mut u64, facts: &Facts<'_>, what: What) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return stats::count(Counter::EventsLost) };
    // SAFETY: it points into a valid aligned map value. Two CPUs that race may tell the same frames twice; it is below zero
    // then until as many have come, and what is told comes to the total again.
    let count = unsafe {
        let count = untold.read_volatile().cast_signed().max(0).cast_unsigned();
        atomic::add(untold, count.wrapping_neg());
        count
    };
    let Facts { interface, frame, slot, word, .. } = *facts;
    entry.write(Event {
        kernel_time_ns: maps::boot_ns(),
        count,
        slot,
        interface,
        vlan: frame.vlan,
        address: frame.concerns(),
        claimant: frame.sender_mac.octets(),
        ethernet_source: frame.source.octets(),
        kind: what.0 as u8,
        form: frame.gist.form_number(),
        operation: frame.operation as u8,
        flags: what.flags(),
        generation: word.generation(),
        state: word.state_number(),
        pad: 0,
        pad_end: 0,
    });
    entry.submit(0);
    if what.0 & 0xff == EventKind::Echo as u32 {
        return;
    }
    // As often as events, so as bounded as they are.
    info!(
        ctx,
        target: "arpwarden",
        "{} address={:i} claimant={:mac} ethernet_source={:mac}",
        what.word(),
        frame.concerns().octets(),
        frame.sender_mac.octets(),
        frame.source.octets()
    );
}
