//! The guard: keeps in what this host may not say.

use arpwarden_common::{
    abi::{Counter, Port, omit},
    verdict,
    wire::arp::Parsed,
};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;

use crate::{
    atomic,
    maps::{self, Cpu, Maps},
    omits,
    packet::{self, Context as _, Look, Packet},
    stats,
};

/// Decides on a frame that leaves an interface, whoever sends it: the kernel, a packet socket, a host behind us.
#[inline(always)]
pub(crate) fn guard(packet: &Packet<TcContext>) -> i32 {
    let ctx = packet.ctx();
    match packet.look() {
        Look::Other => return ctx.pass(),
        // What can't be looked at stays here.
        Look::Unreadable => return ctx.drop(),
        Look::Readable => {}
    }
    let Parsed::Arp(arp) = packet.read_leaving() else { return ctx.pass() };
    let Some(port) = maps::port(ctx.interface()) else { return ctx.pass() };
    let Some(maps) = Cpu::this().map(Maps::now) else { return ctx.pass() };
    let Some(place) = verdict::guard(&arp, &port, &maps) else { return ctx.pass() };
    stats::count(Counter::Guarded);
    if let Some(claims) = place.claims() {
        // SAFETY: a counter in a valid aligned map value.
        unsafe { atomic::add_one(&raw mut (*claims).guarded) };
    }
    debug!(
        ctx,
        target: "arpwarden",
        "kept in address={:i} sender={:mac}",
        packet::here_ip(arp.sender_ip).octets(),
        packet::here_mac(arp.sender_mac).octets()
    );
    if port.flags & Port::OBSERVE != 0 || omits(omit::GUARD) { ctx.pass() } else { ctx.drop() }
}
