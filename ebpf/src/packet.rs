//! Bounds-checked views into the frame; all `unsafe` over packet pointers is here.

use arpwarden_common::wire::{Bytes, Wire, arp::ArpPacket, ethernet::EthernetHeader};
use aya_ebpf::programs::XdpContext;

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

    /// The Ethernet header and the ARP packet that begins `at` bytes into the frame, to be written; `None` if the
    /// frame ends before they do or they overlap.
    #[inline(always)]
    pub(crate) fn headers_mut(&mut self, at: usize) -> Option<(&mut EthernetHeader, &mut ArpPacket)> {
        if at < EthernetHeader::LEN {
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
        let (start, end) = (self.0.data(), self.0.data_end());
        if start + at + size_of::<T>() > end {
            return None;
        }
        Some((start + at) as *mut T)
    }
}

impl Bytes for Packet {
    #[inline(always)]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        // SAFETY: in bounds (`place` checked); `Wire` promises alignment 1 and no invalid bit pattern; nobody writes
        // the frame while `self` is borrowed.
        self.place(at).map(|place: *mut T| unsafe { &*place })
    }
}
