//! Bounds-checked views into the frame; all `unsafe` over packet pointers is here.

use arpwarden_common::wire::{Bytes, Wire};
use aya_ebpf::programs::XdpContext;

/// The frame of an XDP context.
pub(crate) struct Packet<'a>(pub(crate) &'a XdpContext);

impl Bytes for Packet<'_> {
    #[inline(always)] // check and use end up in one function, where the verifier ties them together
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        // SAFETY: in bounds (`place` checked); `Wire` promises alignment 1 and no invalid bit pattern; nobody
        // writes the frame before `view_mut` takes the context over.
        place(self.0, at).map(|place: *mut T| unsafe { &*place })
    }
}

/// The `A` at the start of the frame and the `B` that begins `at` bytes into it, to be written; `None` if the
/// frame ends before they do or they overlap.
///
/// # Safety
/// No view of the frame is alive.
#[inline(always)]
pub(crate) unsafe fn view_mut<A: Wire, B: Wire>(ctx: &XdpContext, at: usize) -> Option<(&mut A, &mut B)> {
    if at < size_of::<A>() {
        return None;
    }
    let (a, b): (*mut A, *mut B) = (place(ctx, 0)?, place(ctx, at)?);
    // SAFETY: in bounds (`place` checked) and apart (`at` checked), so the two borrows are exclusive as long as
    // there are no others, which is the caller's promise; `Wire` promises the rest.
    Some(unsafe { (&mut *a, &mut *b) })
}

/// Where the `T` is that begins `at` bytes into the frame, or `None` if the frame ends before it does.
#[inline(always)]
fn place<T>(ctx: &XdpContext, at: usize) -> Option<*mut T> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + at + size_of::<T>() > end {
        return None;
    }
    Some((start + at) as *mut T)
}
