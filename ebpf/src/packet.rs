//! Bounds-checked views into the frame; all `unsafe` over packet pointers is here.

use arpwarden_common::{
    net::{Ipv4, MacAddr, Vlan},
    wire::{
        Bytes, Wire,
        arp::{self, ArpPacket, Frame, Gist, Parsed, READ_LEN},
        ethernet::{EthernetHeader, VlanTag},
    },
};
use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_redirect,
    programs::{TcContext, XdpContext},
};

use crate::{
    maps::{Cpu, Headers},
    reply::Answer,
};

/// Where a program meets a frame: how it reads it, and what it can do with it.
pub(crate) trait Context: EbpfContext + Sized {
    /// What the kernel wants to be told.
    type Verdict;

    /// Where the bytes begin that can be viewed, and where they end.
    fn bounds(&self) -> (usize, usize);
    /// Index of the interface that the frame came in on, or leaves by.
    fn interface(&self) -> u32;
    /// The tag that stands beside the frame: its control information and type, host order.
    fn tag_beside(&self) -> Option<(u16, u16)>;
    /// Writes the answer over the frame, which was read as `frame`. `None` if it could not be written, or not as a whole.
    fn rewrite(packet: &mut Packet<Self>, frame: &Frame, answer: Answer) -> Option<()>;

    /// The frame goes on as if this program were not there.
    fn pass(&self) -> Self::Verdict;
    /// The frame ends here.
    fn drop(&self) -> Self::Verdict;
    /// The frame leaves by the interface that it came in on, with the tags that it came in with.
    fn send_back(&self) -> Self::Verdict;
}

impl Context for XdpContext {
    type Verdict = u32;

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the kernel's, valid for the whole run.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// There is none that could be seen.
    #[inline(always)]
    fn tag_beside(&self) -> Option<(u16, u16)> {
        None
    }

    #[inline(always)]
    fn rewrite(packet: &mut Packet<Self>, frame: &Frame, answer: Answer) -> Option<()> {
        let (ethernet, arp) = (packet.place::<EthernetHeader>(0)?, packet.place::<ArpPacket>(frame.arp_at)?);
        // SAFETY: in bounds (`place` checked) and apart (`Packet::rewrite` checked `arp_at`); the borrow of `packet` is
        // exclusive, so no view is alive; `Wire` promises alignment 1 and no invalid bit pattern.
        unsafe { answer.write(&mut *ethernet, &mut *arp, frame) };
        Some(())
    }

    #[inline(always)]
    fn pass(&self) -> u32 {
        xdp_action::XDP_PASS
    }

    #[inline(always)]
    fn drop(&self) -> u32 {
        xdp_action::XDP_DROP
    }

    #[inline(always)]
    fn send_back(&self) -> u32 {
        xdp_action::XDP_TX
    }
}

impl Context for TcContext {
    type Verdict = i32;

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the kernel's, valid for the whole run.
        unsafe { (*self.skb.skb).ifindex }
    }

    /// Of a frame that came in the kernel has put its first tag there, of one that leaves the driver or the hardware
    /// puts it in.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps both in 16 bits")]
    fn tag_beside(&self) -> Option<(u16, u16)> {
        let skb = self.skb.skb;
        // SAFETY: the context is the kernel's, valid for the whole run.
        let (present, control, ethertype) =
            unsafe { ((*skb).vlan_present, (*skb).vlan_tci, (*skb).vlan_proto) };
        (present != 0).then_some((control as u16, u16::from_be(ethertype as u16)))
    }

    #[inline(always)]
    fn rewrite(packet: &mut Packet<Self>, frame: &Frame, answer: Answer) -> Option<()> {
        let (mac, announces) = match answer {
            Answer::Reply(mac) => (mac, false),
            Answer::Announcement(mac) => (mac, true),
        };
        rewritten(packet, frame.arp_at, mac, announces).then_some(())
    }

    #[inline(always)]
    fn pass(&self) -> i32 {
        TC_ACT_UNSPEC
    }

    #[inline(always)]
    fn drop(&self) -> i32 {
        TC_ACT_SHOT
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "TC_ACT_REDIRECT")]
    fn send_back(&self) -> i32 {
        // SAFETY: the helper takes numbers only. The tag beside the frame goes with it.
        unsafe { bpf_redirect(self.interface(), 0) as i32 }
    }
}

/// Writes the answer over a frame whose ARP packet begins at `at`; says whether that was done. It is done by a helper:
/// where a program writes to frames itself the kernel copies each one first that somebody else holds too, whatever it
/// is, and all TCP that comes out of a veth is such. On the stack the headers would have to be put together in aligned parts.
#[inline(never)]
fn rewritten(packet: &Packet<TcContext>, at: usize, mac: MacAddr, announces: bool) -> bool {
    let (Some(ethernet), Some(arp)) = (packet.view::<EthernetHeader>(0), packet.view::<ArpPacket>(at)) else {
        return false;
    };
    let Some(cpu) = Cpu::this() else { return false };
    let frame = Frame::of(ethernet, arp, Vlan::UNTAGGED, at);
    let answer = if announces { Answer::Announcement(mac) } else { Answer::Reply(mac) };
    let Headers { ethernet: to_ethernet, arp: to_arp, .. } = cpu.headers();
    (*to_ethernet, *to_arp) = (*ethernet, *arp);
    answer.write(to_ethernet, to_arp, &frame);
    packet.0.store(at, to_arp, 0).is_ok() && packet.0.store(0, to_ethernet, 0).is_ok()
}

/// Makes the beginning of a frame linear; says whether it is. A sender may decide how much of a frame is, and nothing is to
/// slip past for that. What has to be pulled and what has not are the same for the verifier behind this call.
#[inline(never)]
fn linear(ctx: &TcContext) -> bool {
    let (start, end) = ctx.bounds();
    let wanted = ctx.len().min(READ_LEN);
    end - start >= wanted as usize || ctx.pull_data(wanted).is_ok()
}

/// The frame of a context. It owns the context, so there is one for each run, and its borrows are the frame's.
pub(crate) struct Packet<C>(C);

/// What was found of a frame before it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is not ARP.
    Other,
    /// It may be ARP, and can be read.
    Readable,
    /// It may be ARP, and can't be read for want of memory.
    Unreadable,
}

impl Packet<TcContext> {
    /// Looks whether it may be ARP, and makes it readable then. All other traffic pays for no more than two compares.
    #[inline(always)]
    pub(crate) fn look(&self) -> Look {
        // The header itself may be in a fragment too.
        if self.view::<EthernetHeader>(0).is_some_and(|header| !arp::may_lead_to_arp(header.ethertype())) {
            return Look::Other;
        }
        if linear(&self.0) { Look::Readable } else { Look::Unreadable }
    }

    /// Reads a frame that is about to leave.
    #[inline(always)]
    pub(crate) fn read_leaving(&self) -> Parsed {
        arp::parse_leaving(self, self.0.tag_beside())
    }
}

impl<C: Context> Packet<C> {
    /// The frame of this run.
    pub(crate) const fn new(ctx: C) -> Self {
        Self(ctx)
    }

    /// The context, for messages and for the verdict.
    #[inline(always)]
    pub(crate) const fn ctx(&self) -> &C {
        &self.0
    }

    /// Reads a frame that came in, and looks up what this CPU has for itself; else what the frame is. What was learnt of it
    /// on the way would multiply the verifier's work, so it is forgotten here.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "five values, put together and taken apart again")]
    pub(crate) fn read(&self) -> Result<(Frame, Cpu), Parsed> {
        let frame = match arp::parse_beside(self, self.0.tag_beside()) {
            Parsed::Arp(frame) => frame,
            other @ (Parsed::NotArp | Parsed::Truncated | Parsed::BadHeader) => return Err(other),
        };
        let frame = gathered(frame);
        let Vlan { outer, inner } = frame.vlan;
        let learnt = u64::from(outer)
            | u64::from(inner) << 16
            | u64::from(frame.operation) << 32
            | (frame.arp_at as u64) << 48
            | u64::from(frame.gist.bits()) << 56;
        // On a way that went on from there nothing would be forgotten.
        let cpu = Cpu::this().ok_or(Parsed::NotArp)?;
        let learnt = cpu.forgotten(learnt);
        let vlan = Vlan { outer: learnt as u16, inner: (learnt >> 16) as u16 };
        // 14, 18 or 22; a mask is a bound that the verifier does not lose sight of.
        let arp_at = (learnt >> 48 & 0x1f) as usize;
        let gist = Gist::from_bits((learnt >> 56) as u8);
        Ok((Frame { vlan, arp_at, operation: (learnt >> 32) as u16, gist, ..frame }, cpu))
    }

    /// Writes the answer over the frame, which was read as `frame`. `None` if it could not be written, or not as a whole.
    #[inline(always)]
    pub(crate) fn rewrite(&mut self, frame: &Frame, answer: Answer) -> Option<()> {
        // Beyond two tags there is nothing; to say so bounds the offset for the verifier.
        if !(EthernetHeader::LEN..=EthernetHeader::LEN + 2 * VlanTag::LEN).contains(&frame.arp_at) {
            return None;
        }
        C::rewrite(self, frame, answer)
    }

    /// Where the `T` is that begins `at` bytes into the frame, or `None` if the frame ends before it does.
    #[inline(always)] // check and use end up in one function, where the verifier ties them together
    fn place<T: Wire>(&self, at: usize) -> Option<*mut T> {
        let (start, end) = self.0.bounds();
        let place = fixed(start + at);
        if place + size_of::<T>() > end {
            return None;
        }
        Some(place as *mut T)
    }
}

/// The same frame, its addresses put together here: the compiler would put the bytes aside one by one, eight bytes of the
/// stack each, and put them together where they are used.
#[inline(always)]
fn gathered(frame: Frame) -> Frame {
    Frame {
        destination: here_mac(frame.destination),
        source: here_mac(frame.source),
        sender_mac: here_mac(frame.sender_mac),
        sender_ip: here_ip(frame.sender_ip),
        target_ip: here_ip(frame.target_ip),
        ..frame
    }
}

/// The same MAC, as a value of its own: a message is made of what lies in memory, and what a message may be made of would
/// be kept there for every frame.
#[inline(always)]
pub(crate) fn here_mac(mac: MacAddr) -> MacAddr {
    MacAddr::from_bits(here(mac.bits()))
}

/// The same address, likewise.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it was no wider")]
pub(crate) fn here_ip(address: Ipv4) -> Ipv4 {
    Ipv4::new((here(u32::from_ne_bytes(address.octets()).into()) as u32).to_ne_bytes())
}

/// The same value, worked out here and not where it is used.
#[inline(always)]
fn here(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let value = {
        let mut value = value;
        // SAFETY: no instruction at all.
        unsafe { core::arch::asm!("/* {0} */", inout(reg) value, options(nomem, preserves_flags, nostack)) };
        value
    };
    value
}

/// The same pointer, worked out once: one that the compiler works out again for each use is another one to the verifier,
/// to which what was checked of the first does not apply (before Linux 6.15 or so, if `at` is not a constant).
#[inline(always)]
fn fixed(place: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    let place = {
        let mut place = place;
        // SAFETY: no instruction at all.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) place, options(pure, nomem, preserves_flags, nostack))
        };
        place
    };
    place
}

impl<C: Context> Bytes for Packet<C> {
    #[inline(always)]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        // SAFETY: in bounds (`place` checked); `Wire` promises alignment 1 and no invalid bit pattern; nobody writes
        // the frame while `self` is borrowed, and what is viewed before more is pulled is not used after it.
        self.place(at).map(|place: *mut T| unsafe { &*place })
    }
}
