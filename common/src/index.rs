//! Where an address is in the maps: a hash of its key leads to two buckets of eight entries, and one of the sixteen to its
//! slot. User space writes it, the program reads it; both by the code here.
//!
//! A look-up in the kernel's own hash takes 25 ns, and is what most frames on a network would pay, as they are about no
//! managed address. Here such a frame finds two empty buckets, or entries whose tags are others'. Nothing is ever moved
//! from one place to another, so a look-up that runs meanwhile misses nothing: an address that finds both of its buckets
//! full is refused. At two slots' worth of entries for each address that does not happen (see the tests).

use crate::abi::{AddressKey, MAX_CAPACITY};

/// Entries of a bucket: 32 bytes, half a cache line.
pub const ENTRIES: usize = 8;
const PAIRS: usize = ENTRIES / 2;
/// Bits of an entry that name a slot, plus one; 0 for none. The others are the tag of the address's hash.
const SLOT_BITS: u32 = 20;
const SLOT: u32 = (1 << SLOT_BITS) - 1;
const _: () = assert!(MAX_CAPACITY <= SLOT);

/// Value of [`crate::names::INDEX`]: entries, each written at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(8))]
pub struct Bucket(pub [u32; ENTRIES]);

/// Buckets for so many addresses, at least one: a power of two, so that at most half of the entries are in use.
pub const fn buckets(capacity: u32) -> u32 {
    (capacity.div_ceil(ENTRIES as u32 / 2)).next_power_of_two()
}

/// The hash of a key, for an index of some number of buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash {
    /// Numbers of the buckets.
    buckets: [u32; 2],
    /// The part of it that an entry repeats, in its place there.
    tag: u32,
}

impl Hash {
    /// That of `key` among `buckets` buckets, a power of two.
    pub const fn of(key: &AddressKey, buckets: u32) -> Self {
        let (interface_and_vlan, address) = key.words();
        Self::of_words(interface_and_vlan, address, buckets)
    }

    /// That of the key with these [words](AddressKey::words).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of it are wanted")]
    pub const fn of_words(interface_and_vlan: u64, address: u32, buckets: u32) -> Self {
        // Odd numbers of 64 random-looking bits: of the golden ratio (Knuth, TAOCP 3 §6.4), and of MurmurHash3's end.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        const MIX: u64 = 0xff51_afd7_ed55_8ccd;
        let sum = interface_and_vlan.wrapping_mul(SPREAD) ^ address as u64;
        let product = (sum ^ sum >> 32).wrapping_mul(MIX);
        // Twice, or neighbours in one bucket would be neighbours in the other as well. The higher a bit of a product, the more
        // bits it depends on.
        let product = (product ^ product >> 32).wrapping_mul(SPREAD);
        let mask = buckets - 1;
        let (high, low) = ((product >> 32) as u32, (product >> 16) as u32);
        Self { buckets: [high >> 14 & mask, (product >> 28) as u32 & mask], tag: low << SLOT_BITS }
    }

    /// Whether an entry in a bucket leads from this hash to `slot`.
    pub const fn leads(self, bucket: u32, entry: u32, slot: u32) -> bool {
        (self.buckets[0] == bucket || self.buckets[1] == bucket) && entry == self.entry(slot)
    }

    /// The entry for an address with this hash in `slot`, which is less than [`MAX_CAPACITY`].
    const fn entry(self, slot: u32) -> u32 {
        self.tag | (slot + 1)
    }
}

/// A bucket as the program reads it: two entries at a time, in any order.
pub trait Pairs: Copy {
    /// The `n`th two entries.
    fn pair(self, n: usize) -> u64;
}

/// The slot of the address with this hash: `is_it` tells whether it is the one in a slot, which may be any number.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the two halves are wanted")]
pub fn find<B: Pairs>(
    hash: Hash,
    bucket: impl Fn(u32) -> Option<B>,
    is_it: impl Fn(u32) -> bool,
) -> Option<u32> {
    for number in hash.buckets {
        let bucket = bucket(number)?;
        for n in 0..PAIRS {
            let pair = bucket.pair(n);
            if pair == 0 {
                continue;
            }
            for entry in [pair as u32, (pair >> 32) as u32] {
                if (entry ^ hash.tag) >> SLOT_BITS == 0 {
                    // No entry at all has the tag 0: its slot is one that is not there.
                    let slot = (entry & SLOT).wrapping_sub(1);
                    if is_it(slot) {
                        return Some(slot);
                    }
                }
            }
        }
    }
    None
}

/// An index as user space writes it.
pub trait Index {
    /// The entries of a bucket that there is.
    fn read(&self, bucket: u32) -> [u32; ENTRIES];
    /// Writes one of them, at once.
    fn write(&mut self, bucket: u32, n: usize, entry: u32);
}

/// Makes the address with this hash, whose slot is whole, lead to that slot; false if there is no room for it.
pub fn insert(index: &mut impl Index, hash: Hash, slot: u32) -> bool {
    let free = |bucket: u32| index.read(bucket).iter().filter(|entry| **entry == 0).count();
    let [first, second] = hash.buckets;
    // The emptier one: so no bucket overflows while half of all entries are free.
    let bucket = if free(second) > free(first) { second } else { first };
    let Some(n) = index.read(bucket).iter().position(|entry| *entry == 0) else { return false };
    index.write(bucket, n, hash.entry(slot));
    true
}

/// Makes nothing with this hash lead to that slot.
pub fn remove(index: &mut impl Index, hash: Hash, slot: u32) {
    for bucket in hash.buckets {
        for (n, entry) in index.read(bucket).into_iter().enumerate() {
            if entry == hash.entry(slot) {
                index.write(bucket, n, 0);
            }
        }
    }
}

/// The slot that an entry leads to, if it leads to any.
pub const fn slot_of(entry: u32) -> Option<u32> {
    (entry & SLOT).checked_sub(1)
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
            Self { buckets: vec![[0; ENTRIES]; buckets(capacity) as usize], keys: vec![None; capacity as usize] }
        }

        fn hash(&self, key: &AddressKey) -> Hash {
            Hash::of(key, u32::try_from(self.buckets.len()).unwrap())
        }

        fn put(&mut self, key: AddressKey, slot: u32) -> bool {
            self.keys[slot as usize] = Some(key);
            let hash = self.hash(&key);
            insert(self, hash, slot)
        }

        fn take(&mut self, key: &AddressKey, slot: u32) {
            let hash = self.hash(key);
            remove(self, hash, slot);
            self.keys[slot as usize] = None;
        }

        fn find(&self, key: &AddressKey) -> Option<u32> {
            let is_it = |slot: u32| self.keys.get(slot as usize).is_some_and(|there| *there == Some(*key));
            find(self.hash(key), |bucket| self.buckets.get(bucket as usize), is_it)
        }

        fn used(&self) -> usize {
            self.buckets.iter().flatten().filter(|entry| **entry != 0).count()
        }
    }

    fn key(interface: u32, vlan: u16, address: u32) -> AddressKey {
        AddressKey { interface, vlan: Vlan { outer: vlan, inner: 0 }, address: Ipv4::new(address.to_be_bytes()) }
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
        let hash = Hash::of(&key(2, 0, 1), 1);
        for slot in [0, 1, MAX_CAPACITY - 1] {
            assert_eq!(slot_of(hash.entry(slot)), Some(slot));
        }
        assert_eq!(slot_of(0), None);
    }
}
