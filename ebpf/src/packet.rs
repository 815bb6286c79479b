//! Bounds-checked views into the frame; all `unsafe` over packet pointers is here.

use arpwarden_common::{
    net::Vlan,
    wire::{
        Bytes, Wire,
        arp::{ArpPacket, Frame, Parsed, parse},
        ethernet::{EthernetHeader, VlanTag},
    },
};
use aya_ebpf::programs::XdpContext;

use crate::maps;

/// The frame of an XDP context. It owns the context, so there is one for each run, and its borrows are the
/// frame's.
pub(crate) struct Packet(XdpContext);

impl Packet {
    /// The frame of this run.
    pub(crate) const fn new(ctx: XdpContext) -> Self {
        Self(ctx)
    }

    /// The context, for messages.
    #[inline(always)]
    pub(crate) const fn ctx(&self) -> &XdpContext {
        &self.0
    }

    /// Index of the interface that the frame came in on.
    #[inline(always)]
    pub(crate) fn ingress(&self) -> u32 {
        // SAFETY: the context is the kernel's, valid for the whole run.
        unsafe { (*self.0.ctx).ingress_ifindex }
    }

    /// Reads the frame. What was learnt of its tags on the way would multiply the verifier's work.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "three values, put together and taken apart again")]
    pub(crate) fn read(&self) -> Parsed {
        let frame = match parse(self) {
            Parsed::Arp(frame) => frame,
            other @ (Parsed::NotArp | Parsed::Truncated | Parsed::BadHeader) => return other,
        };
        let Vlan { outer, inner } = frame.vlan;
        let tags = u64::from(outer) | u64::from(inner) << 16 | (frame.arp_at as u64) << 32;
        let Some(tags) = maps::forgotten(tags) else { return Parsed::Arp(frame) };
        let vlan = Vlan { outer: tags as u16, inner: (tags >> 16) as u16 };
        // 14, 18 or 22; a mask is a bound that the verifier does not lose sight of.
        Parsed::Arp(Frame { vlan, arp_at: (tags >> 32 & 0x1f) as usize, ..frame })
    }

    /// The Ethernet header and the ARP packet that begins `at` bytes into the frame, to be written; `None` if the
    /// frame ends before they do or they overlap.
    #[inline(always)]
    pub(crate) fn headers_mut(&mut self, at: usize) -> Option<(&mut EthernetHeader, &mut ArpPacket)> {
        // Beyond two tags there is nothing; to say so bounds the offset for the verifier.
        if !(EthernetHeader::LEN..=EthernetHeader::LEN + 2 * VlanTag::LEN).contains(&at) {
            return None;
        }
        let (ethernet, arp) = (self.place::<EthernetHeader>(0)?, self.place::<ArpPacket>(at)?);
        // SAFETY: in bounds (`place` checked) and apart (`at` checked); the borrow of `self` is exclusive, so no
        // view is alive; `Wire` promises alignment 1 and no invalid bit pattern.
        Some(unsafe { (&mut *ethernet, &mut *arp) })
    }

    /// Where the `T` is that begins `at` bytes into the frame, or `None` if the frame ends before it does.
    #[inline(always)] // check and use end up in one function, where the verifier ties them together
    fn place<T: Wire>(&self, at: usize) -> Option<*mut T> {
        let place = fixed(self.0.data() + at);
        if place + size_of::<T>() > self.0.data_end() {
            return None;
        }
        Some(place as *mut T)
    }
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

impl Bytes for Packet {
    #[inline(always)]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        // SAFETY: in bounds (`place` checked); `Wire` promises alignment 1 and no invalid bit pattern; nobody writes
        // the frame while `self` is borrowed.
        self.place(at).map(|place: *mut T| unsafe { &*place })
    }
}
