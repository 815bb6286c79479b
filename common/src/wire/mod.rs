//! Headers as byte arrays, and the one checked door to them.

use crate::net::MacAddr;

pub mod arp;
pub mod ethernet;

/// A type that may be laid over frame bytes.
///
/// # Safety
/// Alignment 1, no padding, every bit pattern a valid value.
pub unsafe trait Wire: Copy {}

/// A MAC as on the wire, in two parts that a processor loads and stores at once: six bytes one by one take the program
/// three times as many instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MacBytes {
    head: [u8; 4],
    tail: [u8; 2],
}
const _: () = assert!(size_of::<MacBytes>() == 6 && align_of::<MacBytes>() == 1);

impl MacBytes {
    /// The bytes of a MAC.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "two parts of it are wanted")]
    pub const fn of(mac: MacAddr) -> Self {
        let bits = mac.bits();
        Self { head: (bits as u32).to_le_bytes(), tail: ((bits >> 32) as u16).to_le_bytes() }
    }

    /// The MAC of the bytes.
    #[inline(always)]
    pub const fn mac(self) -> MacAddr {
        MacAddr::from_bits(
            u32::from_le_bytes(self.head) as u64 | (u16::from_le_bytes(self.tail) as u64) << 32,
        )
    }
}

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
