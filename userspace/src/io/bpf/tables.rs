//! What the daemon writes to the program's maps, and what it reads there.

use std::{
    collections::{BTreeSet, HashMap as Hashed},
    io,
};

use arpwarden_common::{
    abi::{
        self, AddressCounters, AddressKey, AllowedKey, Claimant, ClaimantKey, Claims, Coarse, Counter, Group,
        MAX_GROUPS, Moves, Port, PortPlace,
    },
    index::{self, Hash, Index as _},
    names,
    net::{Ipv4, MacAddr, Vlan},
    state::StateWord,
    verdict::{self, Entry, Standing},
};
use aya::{
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
    sys::SyscallError,
    util::nr_cpus,
};
use tracing::{debug, warn};

use super::{
    super::{clock, link::Segment, memory},
    Datapath,
    error::{Chain, InstallError, LoadError, TableError, UnknownAddress},
    pins::Pins,
    shared::{
        Mapped, Shared, SharedBucket, SharedClaims, SharedControl, SharedCounters, SharedGroup, SharedSlot,
    },
};

/// The pinned maps, as typed handles.
pub(super) struct Tables {
    pub(super) index: Mapped<SharedBucket>,
    pub(super) slots: Mapped<SharedSlot>,
    pub(super) claims: Mapped<SharedClaims>,
    /// The places of each CPU one after the other.
    address_counters: Mapped<SharedCounters>,
    moves: HashMap<MapData, u32, Moves>,
    claimants: HashMap<MapData, ClaimantKey, Claimant>,
    ports: Array<MapData, PortPlace>,
    own_macs: HashMap<MapData, MacAddr, u8>,
    allowed: HashMap<MapData, AllowedKey, u8>,
    counters: PerCpuArray<MapData, u64>,
    groups: Mapped<SharedGroup>,
    pub(super) control: Mapped<SharedControl>,
    /// The kernel's identifier of [`names::SLOTS`]: programs that use it are this instance's.
    pub(super) identity: u32,
}

impl Tables {
    /// Opens the pinned maps, whose shapes have been compared and are those for `capacity` addresses.
    pub(super) fn open(pins: &Pins, capacity: u32) -> Result<Self, LoadError> {
        let [index, slots, claims, counters] = names::sizes(capacity, possible_cpus()?);
        let (slots, identity) = mapped(pins, slots.0, slots.1)?;
        Ok(Self {
            index: mapped(pins, index.0, index.1)?.0,
            slots,
            claims: mapped(pins, claims.0, claims.1)?.0,
            address_counters: mapped(pins, counters.0, counters.1)?.0,
            moves: typed(pins, names::MOVES)?,
            claimants: typed(pins, names::CLAIMANTS)?,
            ports: typed(pins, names::PORTS)?,
            own_macs: typed(pins, names::OWN_MACS)?,
            allowed: typed(pins, names::ALLOWED)?,
            counters: typed(pins, names::COUNTERS)?,
            groups: mapped(pins, names::GROUPS, MAX_GROUPS)?.0,
            control: mapped(pins, names::CONTROL, 1)?.0,
            identity,
        })
    }

    /// The daemon's only [`arpwarden_common::abi::Control`].
    pub(super) fn control(&self) -> Option<&SharedControl> {
        self.control.get(0)
    }

    /// The MACs that the program takes for this namespace's, and the hosts whose claims it takes for no conflict.
    pub(super) fn macs(&self) -> Result<(BTreeSet<MacAddr>, BTreeSet<AllowedKey>), TableError> {
        let own = self.own_macs.keys().collect::<Result<_, _>>();
        let allowed = self.allowed.keys().collect::<Result<_, _>>();
        Ok((
            own.map_err(|source| TableError::read(names::OWN_MACS, source))?,
            allowed.map_err(|source| TableError::read(names::ALLOWED, source))?,
        ))
    }

    /// All claimants that the program remembers.
    pub(super) fn claimants(&self) -> Result<Hashed<ClaimantKey, Claimant>, TableError> {
        // The program goes on changing the map, and a key that went begins the list anew: what was seen once is
        // taken as it was last, and the list ends.
        self.claimants
            .iter()
            .take(2 * abi::MAX_CLAIMANTS as usize)
            .collect::<Result<_, _>>()
            .map_err(|source| TableError::read(names::CLAIMANTS, source))
    }

    /// Says of these claimants that all their frames were told: the next event tells those that come from now on. A
    /// frame that is counted at this very moment may stay untold; the totals are elsewhere.
    pub(super) fn tell(&mut self, claimants: Hashed<ClaimantKey, Claimant>) -> Result<(), TableError> {
        for (key, claimant) in claimants.into_iter().filter(|(_, claimant)| claimant.untold != 0) {
            // The least recent claimant may have made room for another one.
            let Ok(now) = self.claimants.get(&key, 0) else { continue };
            let told = Claimant { untold: now.untold.wrapping_sub(claimant.untold), ..now };
            self.claimants
                .insert(key, told, 0)
                .map_err(|source| TableError::write(names::CLAIMANTS, source))?;
        }
        Ok(())
    }

    /// Forgets the claimants of all slots but these.
    pub(super) fn forget_claimants(&mut self, but_of: impl Fn(u32) -> bool) -> Result<(), TableError> {
        let gone: Vec<_> = self.claimants()?.into_keys().filter(|key| !but_of(key.slot)).collect();
        for key in gone {
            removed(self.claimants.remove(&key))
                .map_err(|source| TableError::write(names::CLAIMANTS, source))?;
        }
        Ok(())
    }

    /// How many addresses the maps hold.
    pub(super) fn capacity(&self) -> u32 {
        u32::try_from(self.slots.all().len()).unwrap_or(u32::MAX)
    }

    /// What each CPU has counted of the address in a slot.
    fn counters_of(&self, slot: u32) -> impl Iterator<Item = &SharedCounters> {
        self.address_counters.all().iter().skip(slot as usize).step_by(self.slots.all().len().max(1))
    }

    /// Counts from zero in a slot that nothing leads to.
    fn clear(&self, slot: u32) {
        self.counters_of(slot).for_each(SharedCounters::clear);
        if let Some(claims) = self.claims.get(slot) {
            claims.clear();
        }
    }

    /// All that leads to a slot: bucket, entry and slot number.
    pub(super) fn entries(&self) -> Vec<(u32, usize, u32)> {
        let buckets = 0..self.index.buckets();
        let of = |bucket| {
            self.index.read(bucket).into_iter().enumerate().map(move |(n, entry)| (bucket, n, entry))
        };
        let leading = |(bucket, n, entry)| Some((bucket, n, index::slot_of(entry)?));
        buckets.flat_map(of).filter_map(leading).collect()
    }

    /// The latest defences of the address in a slot, if the program counts them.
    pub(super) fn moves(&self, slot: u32) -> Option<Moves> {
        self.moves.get(&slot, 0).ok()
    }

    /// Forgets the moves of all slots but these; gives those of which the program counts them.
    pub(super) fn forget_moves(&mut self, but_of: impl Fn(u32) -> bool) -> Result<BTreeSet<u32>, TableError> {
        let slots: Result<BTreeSet<u32>, _> = self.moves.keys().collect();
        let (kept, gone): (BTreeSet<_>, BTreeSet<_>) = slots
            .map_err(|source| TableError::read(names::MOVES, source))?
            .into_iter()
            .partition(|slot| but_of(*slot));
        for slot in gone {
            removed(self.moves.remove(&slot)).map_err(|source| TableError::write(names::MOVES, source))?;
        }
        Ok(kept)
    }
}

/// How many CPUs there can be, each with counters of its own.
pub(super) fn possible_cpus() -> Result<u32, LoadError> {
    let map = names::ADDRESS_COUNTERS;
    let cpus = nr_cpus().map_err(|(_, error)| LoadError::Shape { map, source: MapError::IoError(error) })?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}

/// Makes the map, whose keys are `there`, one of the keys `wanted`: new ones first.
fn become_set<K: aya::Pod + Ord>(
    map: &mut HashMap<MapData, K, u8>,
    there: &mut BTreeSet<K>,
    wanted: &BTreeSet<K>,
) -> Result<(), MapError> {
    for key in wanted.difference(there).copied().collect::<Vec<_>>() {
        map.insert(key, 1, 0)?;
        there.insert(key);
    }
    for key in there.difference(wanted).copied().collect::<Vec<_>>() {
        removed(map.remove(&key))?;
        there.remove(&key);
    }
    Ok(())
}

fn typed<T: TryFrom<Map, Error = MapError>>(pins: &Pins, map: &'static str) -> Result<T, LoadError> {
    let shape = |source| LoadError::Shape { map, source };
    let data = MapData::from_pin(pins.map(map)).map_err(shape)?;
    T::try_from(Map::from_map_data(data).map_err(shape)?).map_err(shape)
}

fn mapped<T: Shared>(pins: &Pins, map: &'static str, count: u32) -> Result<(Mapped<T>, u32), LoadError>
where
    T::Plain: aya::Pod,
{
    let shape = |source| LoadError::Shape { map, source };
    let data = MapData::from_pin(pins.map(map)).map_err(shape)?;
    let info = data.info().map_err(shape)?;
    let array = Array::<_, T::Plain>::try_from(Map::from_map_data(data).map_err(shape)?).map_err(shape)?;
    if array.len() != count {
        return Err(LoadError::Incomplete { lacks: map });
    }
    // The typed handle has seen to the size of the values; the mapping wants the descriptor.
    drop(array);
    let data = MapData::from_pin(pins.map(map)).map_err(shape)?;
    let mapped = Mapped::of(&data, count).map_err(|source| LoadError::Mapping { map, source })?;
    Ok((mapped, info.id()))
}

/// The maps as the program sees them, for the verdict.
impl verdict::Tables for Datapath {
    type Place = u32;

    fn address(&self, key: &AddressKey) -> Option<Entry> {
        let slot = *self.installed.get(key)?;
        let standing = self.standing_of(slot)?;
        let may_answer = standing.may_answer(|| clock::now().0);
        Some(Entry { place: slot, word: standing.word, may_answer })
    }

    fn is_own(&self, mac: MacAddr) -> bool {
        self.own.contains(&mac)
    }

    fn is_allowed(&self, key: &AllowedKey) -> bool {
        self.allowed.contains(key)
    }

    /// It is the one that asks.
    fn daemon_lives(&self) -> bool {
        true
    }
}

/// Keys here are those of the interface that an address is on, untagged: the program's are worked out from where frames of
/// that interface are on the wire.
impl Datapath {
    /// Sets where frames of a VLAN device are on the wire; `None` for an interface that is none, or is no more. Addresses
    /// of a device that goes are removed first.
    pub fn set_segment(&mut self, device: u32, segment: Option<Segment>) {
        match segment {
            Some(segment) => _ = self.segments.insert(device, segment),
            None => _ = self.segments.remove(&device),
        }
    }

    /// Where frames of an interface are on the wire.
    pub fn segment(&self, device: u32) -> Segment {
        self.segments.get(&device).copied().unwrap_or(Segment { carrier: device, vlan: Vlan::UNTAGGED })
    }

    /// The key of an address that the program saw on `carrier` behind these tags. If no interface of this namespace has
    /// its frames there, it is the program's own.
    pub fn key_of(&self, carrier: u32, vlan: Vlan, address: Ipv4) -> AddressKey {
        let segment = Segment { carrier, vlan };
        let device = self.segments.iter().find(|(_, there)| **there == segment);
        match device {
            Some((device, _)) => AddressKey { interface: *device, vlan: Vlan::UNTAGGED, address },
            None => AddressKey { interface: carrier, vlan, address },
        }
    }

    /// The program's key.
    fn on_wire(&self, key: &AddressKey) -> AddressKey {
        match self.segments.get(&key.interface) {
            Some(Segment { carrier, vlan }) => AddressKey { interface: *carrier, vlan: *vlan, ..*key },
            None => *key,
        }
    }

    /// The slot of an address that the program knows.
    fn known(&self, key: &AddressKey) -> Option<u32> {
        self.installed.get(&self.on_wire(key)).copied()
    }

    /// Makes the program act on frames that come in on `index`, in the name of `port`.
    ///
    /// # Errors
    /// All places where this port can be are taken: four others have indices just like it.
    pub fn set_port(&mut self, index: u32, port: Port) -> Result<(), TableError> {
        let failed = |source| TableError::write(names::PORTS, source);
        let place = match self.port_place(index, index)? {
            Some(place) => place,
            None => self
                .port_place(index, PortPlace::VACANT.index)?
                // As the kernel says it of a hash.
                .ok_or_else(|| {
                    let io_error = io::Error::from_raw_os_error(libc::E2BIG);
                    failed(SyscallError { call: "bpf_map_update_elem", io_error }.into())
                })?,
        };
        // The program counts before it may defend within a budget.
        let budgeted = if port.moves == 0 {
            self.budgeted.remove(&port.interface);
            false
        } else {
            self.budgeted.insert(port.interface)
        };
        if budgeted {
            let there = self.installed.iter().filter(|(key, _)| key.interface == port.interface);
            for slot in there.map(|(_, slot)| *slot).collect::<Vec<_>>() {
                self.count_moves(slot);
            }
        }
        self.tables.ports.set(place, PortPlace { port, index, pad: 0 }, 0).map_err(failed)
    }

    /// Lets the program count the defences of the address in a slot. Where there is no room for it the program leaves
    /// the defence to user space, which counts as well.
    fn count_moves(&mut self, slot: u32) {
        if self.counted.contains(&slot) {
            return;
        }
        let defended_ns = self.tables.slots.get(slot).map_or(0, |place| place.read().defended_ns);
        let mut moves = Moves::default();
        moves[0] = defended_ns;
        match self.tables.moves.insert(slot, moves, 0) {
            Ok(()) => _ = self.counted.insert(slot),
            Err(source) => debug!("{}", Chain(&TableError::write(names::MOVES, source))),
        }
    }

    /// Makes the program pass and count frames that come in on `index`; done already if it does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_port(&mut self, index: u32) -> Result<(), TableError> {
        let Some(place) = self.port_place(index, index)? else { return Ok(()) };
        self.tables
            .ports
            .set(place, PortPlace::VACANT, 0)
            .map_err(|source| TableError::write(names::PORTS, source))
    }

    /// The first of the places for the port `index` that holds the port `there`.
    fn port_place(&self, index: u32, there: u32) -> Result<Option<u32>, TableError> {
        for candidate in PortPlace::candidates(index) {
            let place = self
                .tables
                .ports
                .get(&candidate, 0)
                .map_err(|source| TableError::read(names::PORTS, source))?;
            if place.index == there {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    /// Tells the program which MACs are this namespace's; writes only the difference, new ones first.
    ///
    /// # Errors
    /// More than [`arpwarden_common::abi::MAX_OWN_MACS`]. What was written stays; another call goes on from there.
    pub fn set_own_macs(&mut self, macs: &BTreeSet<MacAddr>) -> Result<(), TableError> {
        become_set(&mut self.tables.own_macs, &mut self.own, macs)
            .map_err(|source| TableError::write(names::OWN_MACS, source))
    }

    /// Tells the program whose claims are no conflict where; writes only the difference.
    ///
    /// # Errors
    /// More than [`arpwarden_common::abi::MAX_ALLOWED`]. What was written stays; another call goes on from there.
    pub fn set_allowed(&mut self, allowed: &BTreeSet<AllowedKey>) -> Result<(), TableError> {
        become_set(&mut self.tables.allowed, &mut self.allowed, allowed)
            .map_err(|source| TableError::write(names::ALLOWED, source))
    }

    /// Makes an address known to the program, with `word` from the first frame on, without lease and group, and gives
    /// its slot. An address that is known already only gets the new word.
    ///
    /// # Errors
    /// As many are known as there is room for, or the kernel refuses.
    pub fn install(&mut self, key: AddressKey, word: StateWord) -> Result<u32, InstallError> {
        let key = self.on_wire(&key);
        if let Some(&slot) = self.installed.get(&key) {
            self.store_in(slot, word);
            return Ok(slot);
        }
        let Some(slot) = self.vacant().map_err(|source| InstallError::Table { key, source })? else {
            return Err(InstallError::Full { key, capacity: self.capacity() });
        };
        // Before anything leads to it, and before the word: whoever finds the word finds its address.
        self.tables.clear(slot);
        if let Some(place) = self.tables.slots.get(slot) {
            place.fill(&key, word);
        }
        if self.budgeted.contains(&key.interface) {
            self.count_moves(slot);
        }
        if !index::insert(&mut self.tables.index, Hash::of(&key), slot) {
            self.store_in(slot, StateWord::VACANT);
            self.free.push_front(slot);
            return Err(InstallError::Full { key, capacity: self.capacity() });
        }
        self.installed.insert(key, slot);
        Ok(slot)
    }

    /// How many addresses there is room for.
    pub fn capacity(&self) -> u32 {
        self.tables.capacity()
    }

    /// A slot that nothing leads to and nothing is remembered of; `None` if there is none.
    fn vacant(&mut self) -> Result<Option<u32>, TableError> {
        if let Some(slot) = self.free.pop_front() {
            return Ok(Some(slot));
        }
        if self.fresh < self.capacity() {
            self.fresh += 1;
            return Ok(Some(self.fresh - 1));
        }
        self.recover_left_slots()?;
        Ok(self.free.pop_front())
    }

    /// Makes slots usable that addresses have left: the claimants of those are forgotten.
    pub(super) fn recover_left_slots(&mut self) -> Result<(), TableError> {
        if self.left.is_empty() {
            return Ok(());
        }
        let left: BTreeSet<u32> = self.left.iter().copied().collect();
        self.tables.forget_claimants(|slot| !left.contains(&slot))?;
        self.free.append(&mut self.left);
        Ok(())
    }

    /// Stores the word of an address: one store, seen from the next frame on.
    ///
    /// # Errors
    /// The address is not known to the program.
    pub fn store(&mut self, key: &AddressKey, word: StateWord) -> Result<(), UnknownAddress> {
        let slot = self.slot(key)?;
        // A generation that has come round: what the program gave up under it was another claim.
        if let Some(place) = self.tables.slots.get(slot)
            && place.word().generation() != word.generation()
            && place.fallen() == word.mark()
        {
            place.stand_up();
        }
        self.store_in(slot, word);
        Ok(())
    }

    /// Whether the program has given up an address under the word that it has now.
    pub fn has_fallen(&self, key: &AddressKey) -> bool {
        self.standing(key)
            .is_some_and(|standing| standing.word.may_answer() && standing.fallen == standing.word.mark())
    }

    fn store_in(&self, slot: u32, word: StateWord) {
        if let Some(place) = self.tables.slots.get(slot) {
            place.store(word);
        }
    }

    fn slot(&self, key: &AddressKey) -> Result<u32, UnknownAddress> {
        self.known(key).ok_or(UnknownAddress { key: *key })
    }

    /// Sets the end of an address's lease: CLOCK_BOOTTIME in nanoseconds, at most one jiffy before what it stands for
    /// (the program's clock may be that late); 0 for no lease.
    ///
    /// # Errors
    /// The address is not known to the program.
    pub fn store_lease(&mut self, key: &AddressKey, until_ns: u64) -> Result<(), UnknownAddress> {
        let slot = self.slot(key)?;
        if let Some(place) = self.tables.slots.get(slot) {
            place.lease_until_ns.store(until_ns, std::sync::atomic::Ordering::Release);
        }
        Ok(())
    }

    /// Stores a group: all its addresses flip with the next frame. `number` is 1..[`MAX_GROUPS`]; 0 stands for none and
    /// is never looked at. Says whether there is such a group.
    pub fn set_group(&mut self, number: u32, group: Group) -> bool {
        let Some(place) = self.tables.groups.get(number).filter(|_| number != 0) else { return false };
        place.store(group);
        true
    }

    /// What is stored for a group; `None` if there is no such group.
    pub fn group(&self, number: u32) -> Option<Group> {
        self.tables.groups.get(number).map(SharedGroup::read)
    }

    /// Puts an address into a group (0: into none).
    ///
    /// # Errors
    /// The address is not known to the program.
    pub fn set_slot_group(&mut self, key: &AddressKey, number: u32) -> Result<(), UnknownAddress> {
        let slot = self.slot(key)?;
        if let Some(place) = self.tables.slots.get(slot) {
            // Silent like any that is not there.
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            place.group.store(number, std::sync::atomic::Ordering::Release);
        }
        Ok(())
    }

    /// Says that the daemon lives and has looked at the world, which arms the program's defence. `now_ns` is
    /// CLOCK_BOOTTIME in nanoseconds, `slept_ns` how long the machine has slept since it booted.
    pub fn beat(&mut self, now_ns: u64, slept_ns: u64) {
        if let Some(control) = self.tables.control() {
            control.beat(now_ns, slept_ns);
        }
    }

    /// Takes the permit to defend an address at `now_ns` (CLOCK_BOOTTIME in nanoseconds). It is refused if the latest
    /// defence, whoever made it, is younger than `interval_ns`, if the program takes it at this moment, or if the
    /// address is not known.
    pub fn take_defence(&mut self, key: &AddressKey, now_ns: u64, interval_ns: u64) -> bool {
        let Some(slot) = self.known(key) else { return false };
        let taken = self.tables.slots.get(slot).is_some_and(|place| place.take_defence(now_ns, interval_ns));
        // Whoever has taken it is alone with the moves until the interval is over.
        if taken && let Some(mut moves) = self.tables.moves(slot) {
            moves.rotate_right(1);
            moves[0] = now_ns;
            if let Err(source) = self.tables.moves.insert(slot, moves, 0) {
                warn!(address = %key.address, "{}", Chain(&TableError::write(names::MOVES, source)));
            }
        }
        taken
    }

    /// The MAC of the latest claim for an address; `None` if there was none, or the program doesn't know the address.
    pub fn owner(&self, key: &AddressKey) -> Option<MacAddr> {
        let claims = self.tables.claims.get(self.known(key)?)?.read();
        Some(claims.owner).filter(|mac| !mac.is_zero())
    }

    /// The hosts that asked for an address lately, the latest first, at `now_ns` (CLOCK_BOOTTIME).
    pub fn askers(&self, key: &AddressKey, now_ns: u64) -> Vec<RecentAsker> {
        let Some(place) = self.known(key).and_then(|slot| self.tables.slots.get(slot)) else {
            return Vec::new();
        };
        let slot = place.read();
        let asker = |(asker, followed): (&abi::Asker, &Coarse)| {
            Some(RecentAsker {
                mac: asker.mac(),
                address: asker.address,
                seen_ns: asker.seen.at(now_ns)?,
                followed: asker.followed(),
                followed_ns: followed.at(now_ns).map_or(0, |at| (at + Coarse::UNIT_NS).min(now_ns)),
            })
        };
        let mut askers: Vec<_> = slot.askers.iter().zip(&slot.followed).filter_map(asker).collect();
        askers.sort_by_key(|asker| std::cmp::Reverse(asker.seen_ns));
        askers
    }

    /// Moves together what is remembered of the addresses ([`memory::close_ranks`]).
    pub fn close_ranks(&mut self, meanwhile: impl FnOnce()) {
        memory::close_ranks(&mut self.installed, meanwhile);
    }

    /// Makes the program forget an address; done already if it doesn't know it.
    ///
    /// # Errors
    /// The kernel's; the address is unmanaged all the same.
    pub fn remove(&mut self, key: &AddressKey) -> Result<(), TableError> {
        let key = self.on_wire(key);
        let Some(slot) = self.installed.remove(&key) else { return Ok(()) };
        let Tables { index, slots, .. } = &mut self.tables;
        index::remove(index, Hash::of(&key), slot, |slot| Some(Hash::of(&slots.get(slot)?.key())));
        self.store_in(slot, StateWord::VACANT);
        self.left.push_back(slot);
        if self.counted.remove(&slot) {
            removed(self.tables.moves.remove(&slot))
                .map_err(|source| TableError::write(names::MOVES, source))?;
        }
        Ok(())
    }

    /// What decides now whether the program answers for an address; `None` if it doesn't know it.
    pub fn standing(&self, key: &AddressKey) -> Option<Standing> {
        self.standing_of(self.known(key)?)
    }

    fn standing_of(&self, slot: u32) -> Option<Standing> {
        let place = self.tables.slots.get(slot)?;
        let group = place.group.load(std::sync::atomic::Ordering::Relaxed);
        Some(Standing {
            word: place.word(),
            fallen: place.fallen(),
            lease_until_ns: place.lease_until_ns.load(std::sync::atomic::Ordering::Acquire),
            group: if group == 0 { Group::NONE } else { self.group(group.into()).unwrap_or_default() },
        })
    }

    /// What the program has counted, over all CPUs, by the number of [`Counter`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<[u64; Counter::ALL.len()], TableError> {
        let mut sums = [0; Counter::ALL.len()];
        for (sum, index) in sums.iter_mut().zip(0..) {
            let values = self
                .tables
                .counters
                .get(&index, 0)
                .map_err(|source| TableError::read(names::COUNTERS, source))?;
            *sum = values.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value));
        }
        Ok(sums)
    }

    /// What the program knows of an address and has counted since it was installed; `None` if it doesn't know it.
    pub fn address_counters(&self, key: &AddressKey) -> Option<(Claims, AddressCounters)> {
        let slot = self.known(key)?;
        let sum = self.tables.counters_of(slot).map(SharedCounters::read).fold(
            AddressCounters::default(),
            |sum, cpu| AddressCounters {
                answered: sum.answered.wrapping_add(cpu.answered),
                shielded: sum.shielded.wrapping_add(cpu.shielded),
            },
        );
        Some((self.tables.claims.get(slot)?.read(), sum))
    }
}

/// A host that asked for an address lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecentAsker {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4,
    /// CLOCK_BOOTTIME in nanoseconds at which it asked last, at most 17 ms and a jiffy early.
    pub seen_ns: u64,
    /// [`StateWord::mark`] of the word under which it was found to follow us; 0 for none.
    pub followed: u16,
    /// CLOCK_BOOTTIME in nanoseconds at which it was found to follow for the first time under that word, at most 17 ms
    /// late; 0 for never.
    pub followed_ns: u64,
}

/// A key that wasn't there is removed.
pub(super) fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}
