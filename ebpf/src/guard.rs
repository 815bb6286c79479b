//! The guard: keeps in what this host may not say.

use arpwarden_common::{
    abi::{Counter, Port, omit},
    verdict,
    wire::{
        Bytes, Wire,
        arp::{self, Parsed, READ_LEN},
        ethernet::EthernetHeader,
    },
};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use aya_log_ebpf::debug;

use crate::{
    atomic,
    maps::{self, Maps},
    omits, stats,
};

/// Drops the frame.
const KEEP_IN: i32 = TC_ACT_SHOT;
/// No opinion: the next program, or none, decides.
const LET_OUT: i32 = TC_ACT_UNSPEC;

/// Decides on a frame that leaves an interface, whoever sends it: the kernel, a packet socket, a host behind us.
#[inline(always)]
pub(crate) fn guard(ctx: &TcContext) -> i32 {
    let frame = Leaving(ctx);
    // What all other traffic pays. The header itself may be in a fragment too.
    if frame.view::<EthernetHeader>(0).is_some_and(|header| !arp::may_lead_to_arp(header.ethertype())) {
        return LET_OUT;
    }
    // A sender may decide how much of a frame is in the linear part, and nothing is to slip past for that. What can't be
    // looked at for want of memory stays here.
    let wanted = ctx.len().min(READ_LEN);
    if frame.linear_len() < wanted as usize && ctx.pull_data(wanted).is_err() {
        return KEEP_IN;
    }
    let Parsed::Arp(arp) = arp::parse_leaving(&frame, frame.tag_beside()) else { return LET_OUT };
    let Some(port) = maps::port(frame.egress()) else { return LET_OUT };
    let Some(place) = verdict::guard(&arp, &port, &Maps) else { return LET_OUT };
    stats::count(Counter::Guarded);
    // SAFETY: a counter in a valid aligned map value.
    unsafe { atomic::add_one(&raw mut (*place.record).guarded) };
    debug!(
        ctx,
        target: "arpwarden",
        "kept in address={:i} sender={:mac}",
        arp.sender_ip.octets(),
        arp.sender_mac.octets()
    );
    if port.flags & Port::OBSERVE != 0 || omits(omit::GUARD) { LET_OUT } else { KEEP_IN }
}

/// A frame on its way out.
struct Leaving<'a>(&'a TcContext);

impl Leaving<'_> {
    /// Bytes that can be viewed without pulling more.
    #[inline(always)]
    fn linear_len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    /// Index of the interface that the frame leaves by.
    #[inline(always)]
    fn egress(&self) -> u32 {
        // SAFETY: the context is the kernel's, valid for the whole run.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// The tag that stands beside the frame until the driver or the hardware puts it in: control information and type.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps both in 16 bits")]
    fn tag_beside(&self) -> Option<(u16, u16)> {
        let skb = self.0.skb.skb;
        // SAFETY: the context is the kernel's, valid for the whole run.
        let (present, control, ethertype) =
            unsafe { ((*skb).vlan_present, (*skb).vlan_tci, (*skb).vlan_proto) };
        (present != 0).then_some((control as u16, u16::from_be(ethertype as u16)))
    }
}

impl Bytes for Leaving<'_> {
    #[inline(always)] // check and use end up in one function, where the verifier ties them together
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        let (start, end) = (self.0.data(), self.0.data_end());
        if start + at + size_of::<T>() > end {
            return None;
        }
        // SAFETY: in bounds (just checked); `Wire` promises alignment 1 and no invalid bit pattern; nobody writes the
        // frame, and what is viewed before more is pulled is not used after it.
        Some(unsafe { &*((start + at) as *const T) })
    }
}
