//! What the daemon writes to the program's maps, and what it reads there.

use std::{collections::BTreeSet, io};

use arpwarden_common::{
    abi::{AddressCounters, AddressKey, Counter, Hint, Port, PortPlace, Record},
    names,
    net::MacAddr,
    state::StateWord,
};
use aya::{maps::MapError, sys::SyscallError};
use tracing::warn;

use super::{
    Datapath, Installed,
    error::{Chain, InstallError, TableError, UnknownAddress},
};

impl Datapath {
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
        self.ports.set(place, PortPlace { port, index, pad: 0 }, 0).map_err(failed)
    }

    /// Makes the program pass and count frames that come in on `index`; done already if it does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_port(&mut self, index: u32) -> Result<(), TableError> {
        let Some(place) = self.port_place(index, index)? else { return Ok(()) };
        self.ports.set(place, PortPlace::VACANT, 0).map_err(|source| TableError::write(names::PORTS, source))
    }

    /// The first of the places for the port `index` that holds the port `there`.
    fn port_place(&self, index: u32, there: u32) -> Result<Option<u32>, TableError> {
        for candidate in PortPlace::candidates(index) {
            let place =
                self.ports.get(&candidate, 0).map_err(|source| TableError::read(names::PORTS, source))?;
            if place.index == there {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    /// Tells the program which MACs are this namespace's; writes only the difference, new ones first.
    ///
    /// # Errors
    /// More than [`abi::MAX_OWN_MACS`]. What was written stays; another call goes on from there.
    pub fn set_own_macs(&mut self, macs: &BTreeSet<MacAddr>) -> Result<(), TableError> {
        let failed = |source| TableError::write(names::OWN_MACS, source);
        for &mac in macs {
            if !self.own.contains(&mac) {
                self.own_macs.insert(mac, 1, 0).map_err(failed)?;
                self.own.insert(mac);
            }
        }
        for mac in self.own.difference(macs).copied().collect::<Vec<_>>() {
            removed(self.own_macs.remove(&mac)).map_err(failed)?;
            self.own.remove(&mac);
        }
        Ok(())
    }

    /// Makes an address known to the program, with `word` from the first frame on, and gives its slot. An address
    /// that is known already only gets the new word.
    ///
    /// # Errors
    /// All [`MAX_ADDRESSES`] slots are taken, or the kernel refuses.
    pub fn install(&mut self, key: AddressKey, word: StateWord) -> Result<u32, InstallError> {
        if let Some(installed) = self.installed.get(&key) {
            self.slots.store(installed.slot, word);
            return Ok(installed.slot);
        }
        let Some(slot) = self.free.pop_front() else { return Err(InstallError::Full { key }) };
        let made = self.counted(slot).and_then(|before| {
            // Before anything leads to it, and before the word: whoever finds the word finds its address.
            self.slots.fill(slot, &key, word);
            self.addresses
                .insert(key, slot, 0)
                .map_err(|source| TableError::write(names::ADDRESSES, source))?;
            self.hint(&key, |slots| slots.push(slot))?;
            Ok(Installed { slot, before })
        });
        match made {
            Ok(installed) => {
                self.installed.insert(key, installed);
                Ok(slot)
            }
            Err(source) => {
                self.slots.store(slot, StateWord::VACANT);
                let unhinted = self.hint(&key, |slots| slots.retain(|there| *there != slot));
                // A slot that something still leads to is not free.
                if removed(self.addresses.remove(&key)).is_ok() && unhinted.is_ok() {
                    self.free.push_front(slot);
                }
                Err(InstallError::Table { key, source })
            }
        }
    }

    /// Stores the word of an address: one store, seen from the next frame on.
    ///
    /// # Errors
    /// The address is not known to the program.
    pub fn store(&mut self, key: &AddressKey, word: StateWord) -> Result<(), UnknownAddress> {
        let installed = self.installed.get(key).ok_or(UnknownAddress { key: *key })?;
        self.slots.store(installed.slot, word);
        Ok(())
    }

    /// Makes the program forget an address; done already if it doesn't know it.
    ///
    /// # Errors
    /// The kernel's; the address is treated as unmanaged all the same, and its slot is not used again.
    pub fn remove(&mut self, key: &AddressKey) -> Result<(), TableError> {
        let Some(Installed { slot, .. }) = self.installed.remove(key) else { return Ok(()) };
        let unhinted = self.hint(key, |slots| slots.retain(|there| *there != slot));
        let unlinked = removed(self.addresses.remove(key));
        self.slots.store(slot, StateWord::VACANT);
        unlinked.map_err(|source| TableError::write(names::ADDRESSES, source)).and(unhinted)?;
        self.free.push_back(slot);
        Ok(())
    }

    /// Changes which slots have the address's hint, and writes that hint.
    fn hint(&mut self, key: &AddressKey, change: impl FnOnce(&mut Vec<u32>)) -> Result<(), TableError> {
        let place = Hint::place(key.address);
        let slots = self.hinted.entry(place).or_default();
        change(slots);
        let hint = match slots[..] {
            [] => Hint::NONE,
            [slot] => Hint::slot(slot),
            [_, _, ..] => Hint::MANY,
        };
        if slots.is_empty() {
            self.hinted.remove(&place);
        }
        self.hints.set(place, hint, 0).map_err(|source| TableError::write(names::HINTS, source))
    }

    /// What the program has counted, over all CPUs, by the number of [`Counter`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<[u64; Counter::ALL.len()], TableError> {
        let mut sums = [0; Counter::ALL.len()];
        for (sum, index) in sums.iter_mut().zip(0..) {
            let values =
                self.counters.get(&index, 0).map_err(|source| TableError::read(names::COUNTERS, source))?;
            *sum = values.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value));
        }
        Ok(sums)
    }

    /// What the program knows of an address and has counted since it was installed; `None` if it doesn't know it.
    pub fn address_counters(&self, key: &AddressKey) -> Option<(Record, AddressCounters)> {
        let Installed { slot, before: (old_record, old_counters) } = self.installed.get(key)?;
        let (record, counters) = match self.counted(*slot) {
            Ok(counted) => counted,
            Err(error) => {
                warn!(address = %key.address, "{}", Chain(&error));
                return None;
            }
        };
        Some((since(record, old_record), since_counted(counters, old_counters)))
    }

    /// What the program has counted in a slot.
    fn counted(&self, slot: u32) -> Result<(Record, AddressCounters), TableError> {
        let record = self.records.get(&slot, 0).map_err(|source| TableError::read(names::RECORDS, source))?;
        let per_cpu = self
            .address_counters
            .get(&slot, 0)
            .map_err(|source| TableError::read(names::ADDRESS_COUNTERS, source))?;
        let counters = per_cpu.iter().fold(AddressCounters::default(), |sum, cpu| AddressCounters {
            answered: sum.answered.wrapping_add(cpu.answered),
            shielded: sum.shielded.wrapping_add(cpu.shielded),
        });
        Ok((record, counters))
    }
}

/// The part of a record that is younger than `before`.
pub(super) fn since(record: Record, before: &Record) -> Record {
    let unseen = record.owner_seen_ns == before.owner_seen_ns;
    Record {
        owner: if unseen { MacAddr::ZERO } else { record.owner },
        owner_seen_ns: if unseen { 0 } else { record.owner_seen_ns },
        claims: record.claims.wrapping_sub(before.claims),
        probes: record.probes.wrapping_sub(before.probes),
        echoes: record.echoes.wrapping_sub(before.echoes),
        flooded: record.flooded.wrapping_sub(before.flooded),
        ..record
    }
}

fn since_counted(counters: AddressCounters, before: &AddressCounters) -> AddressCounters {
    AddressCounters {
        answered: counters.answered.wrapping_sub(before.answered),
        shielded: counters.shielded.wrapping_sub(before.shielded),
    }
}

/// A key that wasn't there is removed.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}
