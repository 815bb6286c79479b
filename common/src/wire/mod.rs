//! Headers as byte arrays, and the one checked door to them.

pub mod arp;
pub mod ethernet;

/// A type that may be laid over frame bytes.
///
/// # Safety
/// Alignment 1, no padding, every bit pattern a valid value.
pub unsafe trait Wire: Copy {}

/// A frame that can be looked at: a slice on the host, the packet of an XDP context in the kernel.
pub trait Bytes {
    /// The `T` that begins `at` bytes into the frame, or `None` if the frame ends before it does.
    fn view<T: Wire>(&self, at: usize) -> Option<&T>;
}

impl Bytes for [u8] {
    #[inline(always)]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        let bytes = self.get(at..at.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` is exactly as long as a `T`; `Wire` promises alignment 1 and no invalid bit
        // pattern; the borrow of `self` keeps the bytes alive and unchanged.
        Some(unsafe { &*bytes.as_ptr().cast::<T>() })
    }
}

/// The `T` that begins `at` bytes into `frame`, to be written; `None` if the frame ends before it does.
pub fn view_mut<T: Wire>(frame: &mut [u8], at: usize) -> Option<&mut T> {
    let bytes = frame.get_mut(at..at.checked_add(size_of::<T>())?)?;
    // SAFETY: as in `Bytes for [u8]`; the borrow is exclusive.
    Some(unsafe { &mut *bytes.as_mut_ptr().cast::<T>() })
}
