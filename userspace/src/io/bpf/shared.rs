//! The maps that are mapped into memory.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use arpwarden_common::{
    abi::{AddressKey, MAX_ADDRESSES, Slot},
    names,
    net::Vlan,
    state::StateWord,
};
use aya::maps::{Array, Map};

use super::error::LoadError;

/// The values of [`names::SLOTS`], shared with the program.
pub(super) struct Slots {
    first: NonNull<SharedSlot>,
}

/// A [`Slot`] whose fields another CPU may read at any time.
#[repr(C)]
struct SharedSlot {
    word: AtomicU64,
    lease_until_ns: AtomicU64,
    interface: AtomicU32,
    /// Both halves of a [`Vlan`], as they are in memory.
    vlan: AtomicU32,
    address: AtomicU32,
    group: AtomicU32,
}
const _: () = assert!(
    size_of::<SharedSlot>() == size_of::<Slot>()
        && align_of::<SharedSlot>() == align_of::<Slot>()
        && std::mem::offset_of!(SharedSlot, lease_until_ns) == std::mem::offset_of!(Slot, lease_until_ns)
        && std::mem::offset_of!(SharedSlot, interface) == std::mem::offset_of!(Slot, interface)
        && std::mem::offset_of!(SharedSlot, vlan) == std::mem::offset_of!(Slot, vlan)
        && std::mem::offset_of!(SharedSlot, address) == std::mem::offset_of!(Slot, address)
        && std::mem::offset_of!(SharedSlot, group) == std::mem::offset_of!(Slot, group)
);

impl Slots {
    /// Bytes of the mapping; the kernel rounds both this and the map up to pages.
    pub(super) const LEN: usize = size_of::<SharedSlot>() * MAX_ADDRESSES as usize;

    pub(super) fn of(map: &Map) -> Result<Self, LoadError> {
        let Map::Array(data) = map else { return Err(LoadError::Incomplete { lacks: names::SLOTS }) };
        let array = Array::<_, Slot>::try_from(map)
            .map_err(|source| LoadError::Shape { map: names::SLOTS, source })?;
        if array.len() != MAX_ADDRESSES {
            return Err(LoadError::Incomplete { lacks: names::SLOTS });
        }
        Self::map(data.fd().as_fd()).map_err(|source| LoadError::Mapping { source })
    }

    fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use; the
        // descriptor is open, and the mapping outlives it by itself.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Self { first })
    }

    fn all(&self) -> &[SharedSlot] {
        // SAFETY: `first` begins a mapping of LEN bytes, page-aligned, that lives until `self` is dropped. The
        // kernel lays the array's values end to end (32 bytes, a multiple of 8) and backs all of them; every
        // bit pattern is a value, and both sides touch them by atomic or single aligned accesses only.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), MAX_ADDRESSES as usize) }
    }

    pub(super) fn store(&self, slot: u32, word: StateWord) {
        if let Some(place) = self.all().get(slot as usize) {
            place.word.store(word.bits(), Ordering::Release);
        }
    }

    /// Gives a vacant slot to an address: without lease and group, the word last.
    pub(super) fn fill(&self, slot: u32, key: &AddressKey, word: StateWord) {
        if let Some(place) = self.all().get(slot as usize) {
            let AddressKey { interface, vlan: Vlan { outer, inner }, address } = *key;
            let ([a, b], [c, d]) = (outer.to_ne_bytes(), inner.to_ne_bytes());
            place.interface.store(interface, Ordering::Relaxed);
            place.vlan.store(u32::from_ne_bytes([a, b, c, d]), Ordering::Relaxed);
            place.address.store(u32::from_ne_bytes(address.octets()), Ordering::Relaxed);
            place.group.store(0, Ordering::Relaxed);
            // The program reads word, lease, key in this order, so the key has to be there before the others.
            place.lease_until_ns.store(0, Ordering::Release);
            place.word.store(word.bits(), Ordering::Release);
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.first.as_ptr().cast(), Self::LEN) };
    }
}
