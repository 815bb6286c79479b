//! Where an address is in the maps: a hash of its key leads to a bucket of eight entries, and one of them, or of the buckets
//! behind it, to its slot. User space writes it, the program reads it; both by the code here.
//!
//! A look-up in the kernel's own hash takes 25 ns, and is what most frames on a network would pay, as they are about no
//! managed address. Here such a frame finds a bucket that is not full, and no entry in it with its tag. Nothing is ever moved
//! from one place to another, so a look-up that runs meanwhile misses nothing: an address that finds all of its buckets full
//! is refused. At two entries for each address that does not happen (see the tests).

use crate::abi::{AddressKey, MAX_CAPACITY};

/// Entries of a bucket: 32 bytes, half a cache line.
pub const ENTRIES: usize = 8;
const PAIRS: usize = ENTRIES / 2;
/// Of a bucket, at the most, on average.
const ENTRIES_IN_USE: u32 = 4;
const _: () = assert!(2 * ENTRIES_IN_USE as usize == ENTRIES);
/// Buckets in which an address may be. Half of all entries are in use at most, so few buckets are full at any time; with four
/// tries some of a million neighbouring addresses find no place, with eight all that the tests know do.
const TRIES: u32 = 8;
/// Bits of an entry that name a slot, plus one; 0 for none. The others are the tag of the address's hash.
const SLOT_BITS: u32 = 20;
const SLOT: u32 = (1 << SLOT_BITS) - 1;
const _: () = assert!(MAX_CAPACITY <= SLOT);
/// An entry that was one: the bucket may have been full, so a look-up goes on behind it. What it leads to is not there.
const GONE: u32 = SLOT;

/// Value of [`crate::names::INDEX`]: entries, each written at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(8))]
pub struct Bucket(pub [u32; ENTRIES]);

/// Buckets for so many addresses, at least one: a power of two, so that at most half of the entries are in use.
pub const fn buckets(capacity: u32) -> u32 {
    capacity.div_ceil(ENTRIES_IN_USE).next_power_of_two()
}

/// The hash of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash(u64);

impl Hash {
    /// That of `key`.
    pub const fn of(key: &AddressKey) -> Self {
        let (interface_and_vlan, address) = key.words();
        Self::of_words(interface_and_vlan, address)
    }

    /// That of the key with these [words](AddressKey::words).
    #[inline(always)]
    pub const fn of_words(interface_and_vlan: u64, address: u32) -> Self {
        // Odd numbers of 64 random-looking bits: of the golden ratio (Knuth, TAOCP 3 §6.4), and of MurmurHash3's end.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        const MIX: u64 = 0xff51_afd7_ed55_8ccd;
        let product = (interface_and_vlan.wrapping_mul(SPREAD) ^ address as u64).wrapping_mul(MIX);
        // Twice: a product alone puts addresses of some distances into a few buckets.
        Self((product ^ product >> 32).wrapping_mul(SPREAD))
    }

    /// The number of the `n`th bucket in which the address may be, among `buckets`, a power of two.
    #[inline(always)]
    const fn bucket(self, n: u32, buckets: u32) -> u32 {
        // The higher a bit of a product, the more bits it depends on.
        ((self.0 >> 44) as u32).wrapping_add(n) & (buckets - 1)
    }

    /// The part of it that an entry repeats, in its place there.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "other bits than the bucket's")]
    const fn tag(self) -> u32 {
        (self.0 >> 12) as u32 & !SLOT
    }

    /// The entry for an address with this hash in `slot`, which is less than [`MAX_CAPACITY`].
    const fn entry(self, slot: u32) -> u32 {
        self.tag() | (slot + 1)
    }

    /// Whether an entry in a bucket, of so many, leads from this hash to `slot`.
    pub fn leads(self, bucket: u32, buckets: u32, entry: u32, slot: u32) -> bool {
        entry == self.entry(slot) && (0..TRIES).any(|n| self.bucket(n, buckets) == bucket)
    }
}

/// A bucket as the program reads it: two entries at a time, in any order.
pub trait Pairs: Copy {
    /// The `n`th two entries.
    fn pair(self, n: usize) -> u64;
}

/// Where the address with this hash is, in an index of so many buckets: `look` gives it if it is in a slot, which may be any
/// number. Where the first bucket is full `behind` looks in those [behind it](find_behind).
#[inline(always)]
pub fn find<B: Pairs, S>(
    hash: Hash,
    buckets: u32,
    bucket: impl Fn(u32) -> Option<B>,
    look: impl Fn(u32) -> Option<S>,
    behind: impl FnOnce() -> Option<S>,
) -> Option<S> {
    match within(bucket(hash.bucket(0, buckets))?, hash.tag(), &look) {
        Found::Here(there) => Some(there),
        Found::Nowhere => None,
        Found::Behind => behind(),
    }
}

/// The same in the buckets behind the first one, which is full.
#[inline(always)]
pub fn find_behind<B: Pairs, S>(
    hash: Hash,
    buckets: u32,
    bucket: impl Fn(u32) -> Option<B>,
    look: impl Fn(u32) -> Option<S>,
) -> Option<S> {
    for n in 1..TRIES {
        match within(bucket(hash.bucket(n, buckets))?, hash.tag(), &look) {
            Found::Here(there) => return Some(there),
            Found::Nowhere => return None,
            Found::Behind => {}
        }
    }
    None
}

/// What a bucket says of an address.
enum Found<S> {
    /// It is here.
    Here(S),
    /// The bucket has room, so the address is in none behind it.
    Nowhere,
    /// It may be in the next one.
    Behind,
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the two halves are wanted")]
fn within<B: Pairs, S>(bucket: B, tag: u32, look: &impl Fn(u32) -> Option<S>) -> Found<S> {
    for n in 0..PAIRS {
        let pair = bucket.pair(n);
        for entry in [pair as u32, (pair >> 32) as u32] {
            if entry == 0 {
                return Found::Nowhere;
            }
            if (entry ^ tag) >> SLOT_BITS == 0
                && let Some(there) = look((entry & SLOT) - 1)
            {
                return Found::Here(there);
            }
        }
    }
    Found::Behind
}

/// An index as user space writes it.
pub trait Index {
    /// How many buckets there are: a power of two.
    fn buckets(&self) -> u32;
    /// The entries of a bucket that there is.
    fn read(&self, bucket: u32) -> [u32; ENTRIES];
    /// Writes one of them, at once.
    fn write(&mut self, bucket: u32, n: usize, entry: u32);
}

/// Makes the address with this hash, whose slot is whole, lead to that slot; false if there is no room for it.
pub fn insert(index: &mut impl Index, hash: Hash, slot: u32) -> bool {
    for bucket in (0..TRIES).map(|n| hash.bucket(n, index.buckets())) {
        // The first, as a look-up ends at the first that was never used.
        if let Some(n) = index.read(bucket).iter().position(|entry| matches!(*entry, 0 | GONE)) {
            index.write(bucket, n, hash.entry(slot));
            return true;
        }
    }
    false
}

/// Makes nothing with this hash lead to that slot. `hash_in` tells the hash of the address in another slot.
pub fn remove(index: &mut impl Index, hash: Hash, slot: u32, hash_in: impl Fn(u32) -> Option<Hash>) {
    for try_number in 0..TRIES {
        let bucket = hash.bucket(try_number, index.buckets());
        for (n, entry) in index.read(bucket).into_iter().enumerate() {
            if entry == hash.entry(slot) {
                clear(index, bucket, n, &hash_in);
            }
        }
    }
}

/// Makes an entry lead nowhere. `hash_in` tells the hash of the address in another slot.
pub fn clear(index: &mut impl Index, bucket: u32, n: usize, hash_in: impl Fn(u32) -> Option<Hash>) {
    index.write(bucket, n, GONE);
    let entries = index.read(bucket);
    // Where the bucket is full, a look-up has to go on behind it for as long as another address had to.
    if !entries.contains(&0) && is_passed(index, bucket, hash_in) {
        return;
    }
    // From the end, as a look-up ends at the first that was never used.
    for n in (0..ENTRIES).rev().skip_while(|n| entries[*n] == 0).take_while(|n| entries[*n] == GONE) {
        index.write(bucket, n, 0);
    }
}

/// Whether an address is behind this bucket that would be in it, or before it, had there been room.
fn is_passed(index: &impl Index, bucket: u32, hash_in: impl Fn(u32) -> Option<Hash>) -> bool {
    let mask = index.buckets() - 1;
    (1..TRIES).any(|further| {
        let behind = bucket.wrapping_add(further) & mask;
        let from_home = |hash: Hash| behind.wrapping_sub(hash.bucket(0, index.buckets())) & mask;
        let slots = index.read(behind).into_iter().filter_map(slot_of);
        slots.filter_map(&hash_in).any(|hash| from_home(hash) >= further)
    })
}

/// The slot that an entry leads to, if it leads to any.
pub const fn slot_of(entry: u32) -> Option<u32> {
    if entry == GONE { None } else { (entry & SLOT).checked_sub(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        abi::DEFAULT_CAPACITY,
        net::{Ipv4, Vlan},
    };

    struct Plain {
        buckets: Vec<[u32; ENTRIES]>,
        keys: Vec<Option<AddressKey>>,
    }

    impl Index for Plain {
        fn buckets(&self) -> u32 {
            u32::try_from(self.buckets.len()).unwrap()
        }

        fn read(&self, bucket: u32) -> [u32; ENTRIES] {
            self.buckets[bucket as usize]
        }

        fn write(&mut self, bucket: u32, n: usize, entry: u32) {
            self.buckets[bucket as usize][n] = entry;
        }
    }

    impl Pairs for &[u32; ENTRIES] {
        fn pair(self, n: usize) -> u64 {
            u64::from(self[2 * n]) | u64::from(self[2 * n + 1]) << 32
        }
    }

    impl Plain {
        fn for_addresses(capacity: u32) -> Self {
            Self {
                buckets: vec![[0; ENTRIES]; buckets(capacity) as usize],
                keys: vec![None; capacity as usize],
            }
        }

        fn put(&mut self, key: AddressKey, slot: u32) -> bool {
            self.keys[slot as usize] = Some(key);
            insert(self, Hash::of(&key), slot)
        }

        fn take(&mut self, key: &AddressKey, slot: u32) {
            let keys = self.keys.clone();
            remove(self, Hash::of(key), slot, |slot| keys[slot as usize].as_ref().map(Hash::of));
            self.keys[slot as usize] = None;
        }

        fn find(&self, key: &AddressKey) -> Option<u32> {
            let look = |slot: u32| {
                self.keys.get(slot as usize).is_some_and(|there| *there == Some(*key)).then_some(slot)
            };
            let (hash, bucket) = (Hash::of(key), |bucket: u32| self.buckets.get(bucket as usize));
            find(hash, self.buckets(), bucket, look, || find_behind(hash, self.buckets(), bucket, look))
        }

        fn used(&self) -> usize {
            self.buckets.iter().flatten().filter(|entry| slot_of(**entry).is_some()).count()
        }
    }

    fn key(interface: u32, vlan: u16, address: u32) -> AddressKey {
        AddressKey {
            interface,
            vlan: Vlan { outer: vlan, inner: 0 },
            address: Ipv4::new(address.to_be_bytes()),
        }
    }

    #[test]
    fn there_are_two_entries_for_each_address() {
        for (capacity, expected) in [(1, 1), (4, 1), (5, 2), (16_384, 4_096), (100_000, 32_768)] {
            assert_eq!(buckets(capacity), expected);
        }
        assert_eq!(buckets(MAX_CAPACITY), 1 << 18);
    }

    /// Sets of addresses as networks have them, so many of each.
    fn sets(count: u32) -> [Vec<AddressKey>; 5] {
        let of = |key: &dyn Fn(u32) -> AddressKey| (0..count).map(key).collect();
        [
            of(&|n| key(2, 0, 0x0a00_0000 + n)),
            // One in each small network.
            of(&|n| key(2, 0, 0x0a00_0001 + n * 16)),
            // The same few addresses in all VLANs of several interfaces.
            of(&|n| key(2 + n / 4_094 % 4, 1 + (n % 4_094) as u16, 0xc0a8_0001 + n / 16_376)),
            // The same address on as many interfaces.
            of(&|n| key(2 + n, 0, 0xc0a8_0001)),
            // All over the place, each once.
            of(&|n| key(2, 0, n.wrapping_mul(2_654_435_761))),
        ]
    }

    #[test]
    fn it_takes_as_many_addresses_as_it_was_made_for_and_finds_each_and_no_other() {
        for capacity in [1, 7, 64, 1_000, DEFAULT_CAPACITY, 100_000, MAX_CAPACITY] {
            for (n, keys) in sets(capacity).into_iter().enumerate() {
                let mut index = Plain::for_addresses(capacity);
                for (slot, key) in (0..).zip(&keys) {
                    assert!(index.put(*key, slot), "set {n}: {slot} of {capacity}");
                }
                for (slot, key) in (0..).zip(&keys) {
                    assert_eq!(index.find(key), Some(slot), "set {n} of {capacity}");
                    let AddressKey { interface, vlan, .. } = *key;
                    assert_eq!(index.find(&AddressKey { interface: interface ^ 1 << 31, ..*key }), None);
                    assert_eq!(index.find(&AddressKey { vlan: Vlan { inner: 7, ..vlan }, ..*key }), None);
                }
            }
        }
    }

    #[test]
    fn what_is_removed_is_found_no_more_and_its_room_is_used_again() {
        const CAPACITY: u32 = 1_000;
        let mut index = Plain::for_addresses(CAPACITY);
        let of = |n: u32| key(2, 0, 0x0a00_0000 + n);
        for n in 0..CAPACITY {
            assert!(index.put(of(n), n));
        }
        // Each round all addresses are others, and half of the slots were given up a round before.
        for n in CAPACITY..50 * CAPACITY {
            let slot = n % CAPACITY;
            index.take(&of(n - CAPACITY), slot);
            assert_eq!(index.find(&of(n - CAPACITY)), None);
            index.take(&of(n), slot);
            assert_eq!(index.used(), CAPACITY as usize - 1, "an address that was not there took none along");
            assert!(index.put(of(n), slot));
            assert_eq!(index.find(&of(n)), Some(slot));
        }
        assert_eq!(index.used(), CAPACITY as usize);
    }

    #[test]
    fn an_index_that_was_full_is_as_good_as_new_when_all_have_gone() {
        const CAPACITY: u32 = 4_096;
        let mut index = Plain::for_addresses(CAPACITY);
        let all = sets(CAPACITY).concat();
        for keys in all.chunks(CAPACITY as usize) {
            for (slot, key) in (0..).zip(keys) {
                assert!(index.put(*key, slot));
            }
            // In another order than they came.
            for (slot, key) in (0..).zip(keys).filter(|(slot, _)| slot % 2 == 0) {
                index.take(key, slot);
            }
            for (slot, key) in (0..).zip(keys).filter(|(slot, _)| slot % 2 == 1) {
                assert_eq!(index.find(key), Some(slot));
            }
            for (slot, key) in (0..).zip(keys).filter(|(slot, _)| slot % 2 == 1) {
                index.take(key, slot);
            }
            // Of the buckets that were full a few may still say so, for as long as none of them is used.
            let used = index.buckets.iter().filter(|bucket| **bucket != [0; ENTRIES]).count();
            assert!(used <= index.buckets.len() / 20, "{used} of {}", index.buckets.len());
        }
    }

    #[test]
    fn an_address_whose_buckets_are_full_is_refused_and_the_others_stay() {
        let mut index = Plain::for_addresses(4);
        let keys: Vec<AddressKey> = (0..9).map(|n| key(2, 0, n)).collect();
        index.keys = vec![None; 9];
        for (slot, key) in (0..8).zip(&keys) {
            assert!(index.put(*key, slot));
        }
        assert!(!index.put(keys[8], 8));
        for (slot, key) in (0..8).zip(&keys) {
            assert_eq!(index.find(key), Some(slot));
        }
    }

    #[test]
    fn an_entry_names_its_slot() {
        let hash = Hash::of(&key(2, 0, 1));
        for slot in [0, 1, MAX_CAPACITY - 1] {
            assert_eq!(slot_of(hash.entry(slot)), Some(slot));
        }
        assert_eq!((slot_of(0), slot_of(GONE)), (None, None));
    }
}
