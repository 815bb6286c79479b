//! The program that answers, for XDP and for tc, and the guard: a thin shell around [`arpwarden_common::verdict`].
//!
//! It runs on the BPF target only. What stands under `not(target_arch = "bpf")` lets editors and lints read it on
//! the host.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "the BPF target has no stable atomics"))]

mod askers;
mod atomic;
mod defence;
mod events;
mod guard;
mod maps;
mod packet;
mod reply;
mod stats;

use arpwarden_common::{
    abi::{self, Port, omit},
    defence::Reaction,
    index,
    net::{Ipv4, MacAddr},
    verdict::{Asking, Outcome, Sighting, Witness, verdict},
    wire::arp::{Frame, Parsed},
};
use aya_ebpf::{
    Global,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::{debug, trace};

use maps::{Maps, Place};
use packet::{Context, Look, Packet};
use reply::Answer;

/// Read back by the loader: [`arpwarden_common::names::ABI_VERSION`].
#[unsafe(no_mangle)]
static ABI_VERSION: Global<u32> = Global::new(abi::ABI_VERSION);

/// Set before loading, with the maps' sizes: [`arpwarden_common::names::CAPACITY`].
#[unsafe(no_mangle)]
static CAPACITY: Global<u32> = Global::new(abi::DEFAULT_CAPACITY);

/// Likewise: [`arpwarden_common::names::INDEX_BUCKETS`].
#[unsafe(no_mangle)]
static INDEX_BUCKETS: Global<u32> = Global::new(index::buckets(abi::DEFAULT_CAPACITY));

/// Set by tests before loading: [`arpwarden_common::names::OMIT`].
#[unsafe(no_mangle)]
static OMIT: Global<u32> = Global::new(0);

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// [`arpwarden_common::names::XDP_FRAGS`].
#[xdp(frags)]
fn arpwarden_frags(ctx: XdpContext) -> u32 {
    respond::<_, true>(Packet::new(ctx))
}

/// [`arpwarden_common::names::XDP`].
#[xdp]
fn arpwarden(ctx: XdpContext) -> u32 {
    respond::<_, true>(Packet::new(ctx))
}

/// [`arpwarden_common::names::XDP_BASIC`].
#[xdp]
fn arpwarden_basic(ctx: XdpContext) -> u32 {
    respond::<_, false>(Packet::new(ctx))
}

/// [`arpwarden_common::names::TC`].
#[classifier]
fn arpwarden_tc(ctx: TcContext) -> i32 {
    respond_in_tc::<true>(ctx)
}

/// [`arpwarden_common::names::TC_BASIC`].
#[classifier]
fn arpwarden_tc_basic(ctx: TcContext) -> i32 {
    respond_in_tc::<false>(ctx)
}

/// [`arpwarden_common::names::GUARD`].
#[classifier]
fn arpwarden_guard(ctx: TcContext) -> i32 {
    guard::guard(&Packet::new(ctx))
}

/// Whether a safety of [`omit`] is left out. The value is frozen, so what hangs on it costs nothing once loaded.
#[inline(always)]
fn omits(safety: u32) -> bool {
    OMIT.load() & safety != 0
}

#[inline(always)]
fn respond_in_tc<const EXCHANGES: bool>(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    match packet.look() {
        Look::Other => packet.ctx().pass(),
        // What can't be looked at is nothing for the kernel to answer either.
        Look::Unreadable => packet.ctx().drop(),
        Look::Readable => respond::<_, EXCHANGES>(packet),
    }
}

/// Decides on a frame that came in. `EXCHANGES` says whether the kernel has [`atomic::exchange`].
#[inline(always)]
fn respond<C: Context, const EXCHANGES: bool>(packet: Packet<C>) -> C::Verdict {
    let (frame, cpu) = match packet.read() {
        Ok(read) => read,
        Err(Parsed::Truncated) => return pass(&packet, Outcome::Truncated),
        Err(Parsed::BadHeader) => return pass(&packet, Outcome::BadHeader),
        Err(Parsed::NotArp | Parsed::Arp(_)) => return packet.ctx().pass(),
    };
    let Some(port) = maps::port(packet.ctx().interface()) else {
        return pass(&packet, Outcome::InactivePort);
    };
    let observes = port.flags & Port::OBSERVE != 0;
    let maps = Maps::now(cpu);
    let witness = Incoming::<_, EXCHANGES> {
        packet: &packet,
        sender: (frame.sender_mac, frame.sender_ip),
        observes,
        now_ns: maps.now_ns,
    };
    let outcome = verdict(&frame, &port, &maps, &witness);
    stats::count(outcome.counter());
    match outcome {
        Outcome::Answered { place, mac } => {
            stats::answered(place);
            if observes {
                return packet.ctx().pass();
            }
            trace!(
                packet.ctx(),
                target: "arpwarden",
                "answered address={:i} asker={:mac}",
                packet::here_ip(frame.target_ip).octets(),
                packet::here_mac(frame.sender_mac).octets()
            );
            answer(packet, &frame, Answer::Reply(mac))
        }
        Outcome::Defended { mac } => answer(packet, &frame, Answer::Announcement(mac)),
        Outcome::Shielded { place } => {
            stats::shielded(place);
            if observes || omits(omit::SHIELD) {
                return packet.ctx().pass();
            }
            debug!(
                packet.ctx(),
                target: "arpwarden",
                "shielded address={:i} asker={:mac}",
                packet::here_ip(frame.target_ip).octets(),
                packet::here_mac(frame.sender_mac).octets()
            );
            packet.ctx().drop()
        }
        Outcome::Withheld if !observes => packet.ctx().drop(),
        Outcome::Withheld
        | Outcome::Truncated
        | Outcome::BadHeader
        | Outcome::BadSender
        | Outcome::Gratuitous
        | Outcome::Reply
        | Outcome::OtherDestination
        | Outcome::NotAnswering
        | Outcome::Unmanaged
        | Outcome::InactivePort => packet.ctx().pass(),
    }
}

/// Sends the frame back as the answer. What could not be written as a whole goes nowhere.
#[inline(always)]
fn answer<C: Context>(mut packet: Packet<C>, frame: &Frame, answer: Answer) -> C::Verdict {
    match packet.rewrite(frame, answer) {
        Some(()) => packet.ctx().send_back(),
        None => packet.ctx().drop(),
    }
}

/// A frame that came in, of which the verdict tells what it says.
struct Incoming<'a, C, const EXCHANGES: bool> {
    packet: &'a Packet<C>,
    /// ARP sender.
    sender: (MacAddr, Ipv4),
    /// [`Port::OBSERVE`] is set.
    observes: bool,
    /// CLOCK_BOOTTIME in nanoseconds, at most one jiffy old.
    now_ns: u64,
}

impl<C: Context, const EXCHANGES: bool> Witness<Place> for Incoming<'_, C, EXCHANGES> {
    #[inline(always)]
    fn saw(&self, sighting: Sighting<Place>) -> Reaction {
        let reaction = match &sighting {
            Sighting::Claim(claimed) if claimed.may_answer && !self.observes => {
                defence::meet::<EXCHANGES>(claimed, self.packet.ctx().interface())
            }
            Sighting::Claim(_)
            | Sighting::Allowed(_)
            | Sighting::Probe(_)
            | Sighting::Echo(_)
            | Sighting::Sibling(_) => Reaction::Nothing,
        };
        events::report(self.packet, &sighting, reaction);
        reaction
    }

    #[inline(always)]
    fn asks(&self, asking: Asking<Place>) {
        askers::note::<EXCHANGES>(&asking, self.sender, self.now_ns);
    }
}

/// Counts an outcome that was clear before the verdict.
#[inline(always)]
fn pass<C: Context>(packet: &Packet<C>, outcome: Outcome<Place>) -> C::Verdict {
    stats::count(outcome.counter());
    packet.ctx().pass()
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// A panic that could be reached would be a loop without end, which the verifier refuses: it shows at load.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
