//! The maps that are mapped into memory.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
};

use arpwarden_common::{
    abi::{ASKERS, AddressCounters, AddressKey, Asker, Claims, Coarse, Control, Group, Slot},
    index::{Bucket, ENTRIES, Index},
    net::{Ipv4, Vlan},
    state::StateWord,
};
use aya::maps::MapData;

/// A value whose fields another CPU may read and write at any time: atomics only, laid out as `Plain`.
///
/// # Safety
/// Of the size and alignment of `Plain`, which is the map's value type, and every bit pattern is a value.
pub(super) unsafe trait Shared {
    /// The value type as the maps' layout has it.
    type Plain;
}

/// The values of an array map, shared with the program.
pub(super) struct Mapped<T: Shared> {
    first: NonNull<T>,
    count: usize,
}

impl<T: Shared> Mapped<T> {
    /// Maps the values of `map`, which must be a mmapable array of `count` values of type `T::Plain`
    /// ([`super::layout`] has seen to that).
    pub(super) fn of(map: &MapData, count: u32) -> io::Result<Self> {
        let count = count as usize;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use; the
        // descriptor is open, and the mapping outlives it by itself.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::bytes(count),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Self { first, count })
    }

    /// Bytes of the mapping; the kernel rounds both this and the map up to pages.
    const fn bytes(count: usize) -> usize {
        size_of::<T>() * count
    }

    /// All values.
    pub(super) fn all(&self) -> &[T] {
        // SAFETY: `first` begins a mapping of that many values, page-aligned, that lives until `self` is dropped. The
        // kernel lays the array's values end to end (their sizes are multiples of 8) and backs all of them; every
        // bit pattern is a value, and both sides touch them by atomic or single aligned accesses only.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }

    /// The value at `index`, if there is one.
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.all().get(index as usize)
    }
}

impl<T: Shared> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.first.as_ptr().cast(), Self::bytes(self.count)) };
    }
}

/// A [`Slot`].
#[repr(C)]
pub(super) struct SharedSlot {
    pub(super) word: AtomicU64,
    pub(super) lease_until_ns: AtomicU64,
    interface: AtomicU32,
    /// Both halves of a [`Vlan`], as they are in memory.
    vlan: AtomicU32,
    address: AtomicU32,
    pub(super) group: AtomicU16,
    fallen: AtomicU16,
    followed: [AtomicU32; ASKERS],
    defended_ns: AtomicU64,
    conflict: AtomicU64,
    /// Two words each.
    askers: [[AtomicU64; 2]; ASKERS],
}
const _: () = assert!(
    size_of::<SharedSlot>() == size_of::<Slot>()
        && align_of::<SharedSlot>() == align_of::<Slot>()
        && std::mem::offset_of!(SharedSlot, lease_until_ns) == std::mem::offset_of!(Slot, lease_until_ns)
        && std::mem::offset_of!(SharedSlot, interface) == std::mem::offset_of!(Slot, interface)
        && std::mem::offset_of!(SharedSlot, vlan) == std::mem::offset_of!(Slot, vlan)
        && std::mem::offset_of!(SharedSlot, address) == std::mem::offset_of!(Slot, address)
        && std::mem::offset_of!(SharedSlot, group) == std::mem::offset_of!(Slot, group)
        && std::mem::offset_of!(SharedSlot, fallen) == std::mem::offset_of!(Slot, fallen)
        && std::mem::offset_of!(SharedSlot, followed) == std::mem::offset_of!(Slot, followed)
        && std::mem::offset_of!(SharedSlot, defended_ns) == std::mem::offset_of!(Slot, defended_ns)
        && std::mem::offset_of!(SharedSlot, conflict) == std::mem::offset_of!(Slot, conflict)
        && std::mem::offset_of!(SharedSlot, askers) == std::mem::offset_of!(Slot, askers)
        && size_of::<[AtomicU64; 2]>() == size_of::<Asker>()
);
// SAFETY: asserted above; integers only.
unsafe impl Shared for SharedSlot {
    type Plain = Slot;
}

impl SharedSlot {
    /// Stores the word.
    pub(super) fn store(&self, word: StateWord) {
        self.word.store(word.bits(), Ordering::Release);
    }

    /// The word.
    pub(super) fn word(&self) -> StateWord {
        StateWord::from_bits(self.word.load(Ordering::Acquire))
    }

    /// The address, in a slot whose word is that of one.
    pub(super) fn key(&self) -> AddressKey {
        let [a, b, c, d] = self.vlan.load(Ordering::Relaxed).to_ne_bytes();
        AddressKey {
            interface: self.interface.load(Ordering::Relaxed),
            vlan: Vlan { outer: u16::from_ne_bytes([a, b]), inner: u16::from_ne_bytes([c, d]) },
            address: Ipv4::new(self.address.load(Ordering::Relaxed).to_ne_bytes()),
        }
    }

    /// Gives a vacant slot, which nothing leads to, to an address: without lease, group and past, the word last.
    pub(super) fn fill(&self, key: &AddressKey, word: StateWord) {
        let AddressKey { interface, vlan: Vlan { outer, inner }, address } = *key;
        let ([a, b], [c, d]) = (outer.to_ne_bytes(), inner.to_ne_bytes());
        self.interface.store(interface, Ordering::Relaxed);
        self.vlan.store(u32::from_ne_bytes([a, b, c, d]), Ordering::Relaxed);
        self.address.store(u32::from_ne_bytes(address.octets()), Ordering::Relaxed);
        self.group.store(0, Ordering::Relaxed);
        // An earlier address's would silence this one, or forbid a defence.
        self.fallen.store(0, Ordering::Relaxed);
        self.defended_ns.store(0, Ordering::Relaxed);
        self.conflict.store(0, Ordering::Relaxed);
        for (asker, followed) in self.askers.iter().zip(&self.followed) {
            followed.store(0, Ordering::Relaxed);
            for word in asker {
                word.store(0, Ordering::Relaxed);
            }
        }
        // The program reads word, lease, key in this order, so the key has to be there before the others.
        self.lease_until_ns.store(0, Ordering::Release);
        self.store(word);
    }

    /// What the program says of it, and what user space does.
    pub(super) fn read(&self) -> Slot {
        let AddressKey { interface, vlan, address } = self.key();
        Slot {
            word: self.word().bits(),
            lease_until_ns: self.lease_until_ns.load(Ordering::Acquire),
            interface,
            vlan,
            address,
            group: self.group.load(Ordering::Relaxed),
            fallen: self.fallen(),
            followed: std::array::from_fn(|place| {
                Coarse::from_units(self.followed[place].load(Ordering::Relaxed))
            }),
            defended_ns: self.defended_ns.load(Ordering::Acquire),
            conflict: self.conflict.load(Ordering::Relaxed),
            askers: std::array::from_fn(|place| {
                let [head, tail] = &self.askers[place];
                Asker::of_words(head.load(Ordering::Relaxed), tail.load(Ordering::Relaxed))
            }),
        }
    }

    /// [`Slot::fallen`].
    pub(super) fn fallen(&self) -> u16 {
        self.fallen.load(Ordering::Acquire)
    }

    /// As the program does it.
    #[cfg(test)]
    pub(super) fn fall(&self, mark: u16) {
        self.fallen.store(mark, Ordering::Release);
    }

    /// Takes [`Slot::fallen`] back, under a word to which it does not apply.
    pub(super) fn stand_up(&self) {
        self.fallen.store(0, Ordering::Release);
    }

    /// Takes the permit to defend at `now_ns`, unless a defence is younger than `interval_ns` or another one takes it
    /// at this moment.
    pub(super) fn take_defence(&self, now_ns: u64, interval_ns: u64) -> bool {
        let seen = self.defended_ns.load(Ordering::Acquire);
        (seen == 0 || now_ns.saturating_sub(seen) >= interval_ns)
            && self.defended_ns.compare_exchange(seen, now_ns, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// The [`Claims`] of an address, in words: the program keeps its fields, and adds to some of them at any time.
#[repr(C)]
pub(super) struct SharedClaims {
    words: [AtomicU64; CLAIMS_WORDS],
}
const CLAIMS_WORDS: usize = size_of::<Claims>() / 8;
const _: () = assert!(
    size_of::<SharedClaims>() == size_of::<Claims>() && align_of::<SharedClaims>() == align_of::<Claims>()
);
// SAFETY: asserted above; integers only.
unsafe impl Shared for SharedClaims {
    type Plain = Claims;
}

impl SharedClaims {
    const FLOOD_UNTOLD: usize = std::mem::offset_of!(Claims, flood_untold) / 8;

    /// What it holds; fields that change meanwhile are of one time or another.
    pub(super) fn read(&self) -> Claims {
        let words: [u64; CLAIMS_WORDS] = std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed));
        // SAFETY: as many bytes (asserted), both plain integers, so any of them are a value.
        unsafe { std::mem::transmute::<[u64; CLAIMS_WORDS], Claims>(words) }
    }

    /// Forgets everything: only for a slot that nothing leads to.
    pub(super) fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Says that so many of the frames beyond those reported one by one were told.
    pub(super) fn tell_flood(&self, told: u64) {
        self.words[Self::FLOOD_UNTOLD].fetch_sub(told, Ordering::Relaxed);
    }
}

/// The [`AddressCounters`] that a CPU has for an address.
#[repr(C)]
pub(super) struct SharedCounters {
    answered: AtomicU64,
    shielded: AtomicU64,
}
const _: () = assert!(
    size_of::<SharedCounters>() == size_of::<AddressCounters>()
        && std::mem::offset_of!(SharedCounters, shielded) == std::mem::offset_of!(AddressCounters, shielded)
);
// SAFETY: asserted above; integers only.
unsafe impl Shared for SharedCounters {
    type Plain = AddressCounters;
}

impl SharedCounters {
    /// What it holds.
    pub(super) fn read(&self) -> AddressCounters {
        AddressCounters {
            answered: self.answered.load(Ordering::Relaxed),
            shielded: self.shielded.load(Ordering::Relaxed),
        }
    }

    /// Counts from zero: only for a slot that nothing leads to.
    pub(super) fn clear(&self) {
        self.answered.store(0, Ordering::Relaxed);
        self.shielded.store(0, Ordering::Relaxed);
    }
}

/// A [`Bucket`].
#[repr(C, align(8))]
pub(super) struct SharedBucket([AtomicU32; ENTRIES]);
const _: () = assert!(
    size_of::<SharedBucket>() == size_of::<Bucket>() && align_of::<SharedBucket>() == align_of::<Bucket>()
);
// SAFETY: asserted above; integers only.
unsafe impl Shared for SharedBucket {
    type Plain = Bucket;
}

impl Index for Mapped<SharedBucket> {
    fn buckets(&self) -> u32 {
        u32::try_from(self.count).unwrap_or(u32::MAX)
    }

    fn read(&self, bucket: u32) -> [u32; ENTRIES] {
        let Some(SharedBucket(entries)) = self.get(bucket) else { return [0; ENTRIES] };
        std::array::from_fn(|n| entries[n].load(Ordering::Relaxed))
    }

    fn write(&mut self, bucket: u32, n: usize, entry: u32) {
        if let Some(place) = self.get(bucket).and_then(|SharedBucket(entries)| entries.get(n)) {
            // The slot that it leads to is whole.
            place.store(entry, Ordering::Release);
        }
    }
}

/// A [`Group`].
#[repr(C)]
pub(super) struct SharedGroup {
    word: AtomicU64,
    lease_until_ns: AtomicU64,
}
const _: () = assert!(
    size_of::<SharedGroup>() == size_of::<Group>()
        && std::mem::offset_of!(SharedGroup, lease_until_ns) == std::mem::offset_of!(Group, lease_until_ns)
);
// SAFETY: asserted above; integers only.
unsafe impl Shared for SharedGroup {
    type Plain = Group;
}

impl SharedGroup {
    /// What it holds.
    pub(super) fn read(&self) -> Group {
        Group {
            word: self.word.load(Ordering::Acquire),
            lease_until_ns: self.lease_until_ns.load(Ordering::Acquire),
        }
    }

    /// Stores the group so that it answers at no moment when neither the old one nor the new one does.
    pub(super) fn store(&self, group: Group) {
        if group.word == Group::SILENT {
            self.word.store(group.word, Ordering::Release);
            self.lease_until_ns.store(group.lease_until_ns, Ordering::Release);
        } else {
            self.lease_until_ns.store(group.lease_until_ns, Ordering::Release);
            self.word.store(group.word, Ordering::Release);
        }
    }
}

/// The [`Control`].
#[repr(C)]
pub(super) struct SharedControl {
    pub(super) layout: AtomicU64,
    pub(super) heartbeat_ns: AtomicU64,
    slept_ns: AtomicU64,
}
const _: () = assert!(
    size_of::<SharedControl>() == size_of::<Control>()
        && std::mem::offset_of!(SharedControl, heartbeat_ns) == std::mem::offset_of!(Control, heartbeat_ns)
        && std::mem::offset_of!(SharedControl, slept_ns) == std::mem::offset_of!(Control, slept_ns)
);
// SAFETY: asserted above; integers only.
unsafe impl Shared for SharedControl {
    type Plain = Control;
}

impl SharedControl {
    /// Says that the daemon lives at `now_ns` and has looked at the world since the machine slept last.
    pub(super) fn beat(&self, now_ns: u64, slept_ns: u64) {
        // A heartbeat from before a sleep never stands beside the sum that includes it: it would arm the defence.
        if self.slept_ns.load(Ordering::Relaxed) != slept_ns {
            self.heartbeat_ns.store(0, Ordering::Release);
            self.slept_ns.store(slept_ns, Ordering::Release);
        }
        self.heartbeat_ns.store(now_ns, Ordering::Release);
    }
}
