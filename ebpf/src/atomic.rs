//! Atomic operations on map values. The BPF target has none that are stable; on the host, where nothing of this runs,
//! those of the standard library stand for them.

pub(crate) use imp::{add, add_one, add_one_u32, exchange, exchange_if};

#[cfg(target_arch = "bpf")]
mod imp {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

    const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;

    /// Adds 1 to `*place`.
    ///
    /// # Safety
    /// `place` is aligned and points into a map value.
    #[inline(always)]
    pub(crate) unsafe fn add_one(place: *mut u64) {
        // SAFETY: the caller's promise.
        unsafe { add(place, 1) };
    }

    /// Adds `value` to `*place`.
    ///
    /// # Safety
    /// As of [`add_one`].
    #[inline(always)]
    pub(crate) unsafe fn add(place: *mut u64, value: u64) {
        // SAFETY: the caller's promise. The result is not used, so this is the form that every kernel has, not the
        // one of Linux 5.12.
        unsafe { atomic_xadd::<u64, u64, RELAXED>(place, value) };
    }

    /// Adds 1 to `*place`.
    ///
    /// # Safety
    /// As of [`add_one`].
    #[inline(always)]
    pub(crate) unsafe fn add_one_u32(place: *mut u32) {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u32, u32, RELAXED>(place, 1) };
    }

    /// Writes `value` to `*place` and gives what was there.
    ///
    /// # Safety
    /// As of [`add_one`].
    #[inline(always)]
    pub(crate) unsafe fn exchange(place: *mut u64, value: u64) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { atomic_xchg::<u64, RELAXED>(place, value) }
    }

    /// Writes `value` to `*place` if `there` is there; tells whether it was.
    ///
    /// # Safety
    /// As of [`add_one`].
    #[inline(always)]
    pub(crate) unsafe fn exchange_if(place: *mut u64, there: u64, value: u64) -> bool {
        // SAFETY: the caller's promise.
        let (found, _) = unsafe { atomic_cxchg::<u64, RELAXED, RELAXED>(place, there, value) };
        found == there
    }
}

#[cfg(not(target_arch = "bpf"))]
mod imp {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

    /// Adds 1 to `*place`.
    ///
    /// # Safety
    /// `place` is aligned and points into a map value.
    pub(crate) unsafe fn add_one(place: *mut u64) {
        // SAFETY: the caller's promise.
        unsafe { add(place, 1) };
    }

    /// Adds `value` to `*place`.
    ///
    /// # Safety
    /// As of [`add_one`].
    pub(crate) unsafe fn add(place: *mut u64, value: u64) {
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(place) }.fetch_add(value, Relaxed);
    }

    /// Adds 1 to `*place`.
    ///
    /// # Safety
    /// As of [`add_one`].
    pub(crate) unsafe fn add_one_u32(place: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { AtomicU32::from_ptr(place) }.fetch_add(1, Relaxed);
    }

    /// Writes `value` to `*place` and gives what was there.
    ///
    /// # Safety
    /// As of [`add_one`].
    pub(crate) unsafe fn exchange(place: *mut u64, value: u64) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(place) }.swap(value, Relaxed)
    }

    /// Writes `value` to `*place` if `there` is there; tells whether it was.
    ///
    /// # Safety
    /// As of [`add_one`].
    pub(crate) unsafe fn exchange_if(place: *mut u64, there: u64, value: u64) -> bool {
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(place) }.compare_exchange(there, value, Relaxed, Relaxed).is_ok()
    }
}
