//! The maps that are mapped into memory.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use arpwarden_common::{
    abi::{AddressKey, Control, Group, MOVES, Record, Slot},
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
    pub(super) group: AtomicU32,
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

    /// Gives a vacant slot to an address: without lease and group, the word last.
    pub(super) fn fill(&self, key: &AddressKey, word: StateWord) {
        let AddressKey { interface, vlan: Vlan { outer, inner }, address } = *key;
        let ([a, b], [c, d]) = (outer.to_ne_bytes(), inner.to_ne_bytes());
        self.interface.store(interface, Ordering::Relaxed);
        self.vlan.store(u32::from_ne_bytes([a, b, c, d]), Ordering::Relaxed);
        self.address.store(u32::from_ne_bytes(address.octets()), Ordering::Relaxed);
        self.group.store(0, Ordering::Relaxed);
        // The program reads word, lease, key in this order, so the key has to be there before the others.
        self.lease_until_ns.store(0, Ordering::Release);
        self.store(word);
    }
}

/// A [`Record`], in words: the program keeps its fields, and adds to some of them at any time.
#[repr(C)]
pub(super) struct SharedRecord {
    words: [AtomicU64; RECORD_WORDS],
}
const RECORD_WORDS: usize = size_of::<Record>() / 8;
const _: () = assert!(
    size_of::<SharedRecord>() == size_of::<Record>() && align_of::<SharedRecord>() == align_of::<Record>()
);
// SAFETY: asserted above; integers only.
unsafe impl Shared for SharedRecord {
    type Plain = Record;
}

impl SharedRecord {
    const FALLEN: usize = std::mem::offset_of!(Record, fallen) / 8;
    const DEFENDED: usize = std::mem::offset_of!(Record, defended_ns) / 8;
    const MOVES: usize = std::mem::offset_of!(Record, moves_ns) / 8;
    const FLOOD_TOLD: usize = std::mem::offset_of!(Record, flood_told) / 8;

    /// What it holds; fields that change meanwhile are of one time or another.
    pub(super) fn read(&self) -> Record {
        let words: [u64; RECORD_WORDS] = std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed));
        // SAFETY: as many bytes (asserted), both plain integers, so any of them are a value.
        unsafe { std::mem::transmute::<[u64; RECORD_WORDS], Record>(words) }
    }

    /// Forgets everything: only for a slot that nothing leads to.
    pub(super) fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// [`Record::fallen`].
    pub(super) fn fallen(&self) -> u32 {
        let [a, b, c, d, ..] = self.words[Self::FALLEN].load(Ordering::Acquire).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    /// As the program does it.
    #[cfg(test)]
    pub(super) fn fall(&self, mark: u32) {
        let [a, b, c, d] = mark.to_ne_bytes();
        self.words[Self::FALLEN].store(u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), Ordering::Release);
    }

    /// Takes [`Record::fallen`] back, under a word to which it does not apply.
    pub(super) fn stand_up(&self) {
        // What shares the word is always 0.
        self.words[Self::FALLEN].store(0, Ordering::Release);
    }

    /// Says how many of the frames beyond those reported one by one were told.
    pub(super) fn tell_flood(&self, flooded: u64) {
        self.words[Self::FLOOD_TOLD].store(flooded, Ordering::Relaxed);
    }

    /// Takes the permit to defend at `now_ns`, unless a defence is younger than `interval_ns` or another one takes it
    /// at this moment.
    pub(super) fn take_defence(&self, now_ns: u64, interval_ns: u64) -> bool {
        let defended = &self.words[Self::DEFENDED];
        let seen = defended.load(Ordering::Acquire);
        if seen != 0 && now_ns.saturating_sub(seen) < interval_ns {
            return false;
        }
        if defended.compare_exchange(seen, now_ns, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // Whoever exchanged `defended_ns` is alone here until the interval is over.
        let moves = &self.words[Self::MOVES..Self::MOVES + MOVES];
        for (later, earlier) in moves.iter().zip(&moves[1..]).rev() {
            earlier.store(later.load(Ordering::Relaxed), Ordering::Release);
        }
        moves[0].store(now_ns, Ordering::Release);
        true
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
