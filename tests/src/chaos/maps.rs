//! The maps of a node, whatever its daemon does: found by their pins.

use std::{net::Ipv4Addr, path::Path};

use arpwarden_common::{
    abi::{AddressCounters, Control, Counter, Group, MAX_GROUPS, Slot},
    names,
    net::Ipv4,
};
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};

use crate::kernel;

/// Maps of an instance.
pub(super) struct Maps {
    slots: Array<MapData, Slot>,
    groups: Array<MapData, Group>,
    control: Array<MapData, Control>,
    address_counters: Array<MapData, AddressCounters>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Those of the instance of this name.
    ///
    /// # Panics
    /// If they are not pinned.
    pub(super) fn of(instance: &str) -> Self {
        let folder = kernel::pins(instance).join("maps");
        Self {
            slots: open(&folder, names::SLOTS),
            groups: open(&folder, names::GROUPS),
            control: open(&folder, names::CONTROL),
            address_counters: open(&folder, names::ADDRESS_COUNTERS),
            counters: open(&folder, names::COUNTERS),
        }
    }

    /// Moves every deadline `ns` into the past: to the program the machine has slept for so long. The daemon must
    /// stand still, or it may write at the same moment.
    ///
    /// # Panics
    /// If the kernel does not let it.
    pub(super) fn sleep(&mut self, ns: u64) {
        let earlier = |deadline: u64| if deadline == 0 { 0 } else { deadline.saturating_sub(ns).max(1) };
        for number in 0..self.slots.len() {
            let slot = self.slots.get(&number, 0).expect("a slot");
            if slot.lease_until_ns != 0 {
                let slot = Slot { lease_until_ns: earlier(slot.lease_until_ns), ..slot };
                self.slots.set(number, slot, 0).expect("writing a slot");
            }
        }
        for number in 0..MAX_GROUPS {
            let group = self.groups.get(&number, 0).expect("a group");
            if group.lease_until_ns != 0 {
                let group = Group { lease_until_ns: earlier(group.lease_until_ns), ..group };
                self.groups.set(number, group, 0).expect("writing a group");
            }
        }
        let control = self.control.get(&0, 0).expect("what the daemon says of itself");
        let control = Control {
            heartbeat_ns: earlier(control.heartbeat_ns),
            // The machine has slept for `ns` more than this says.
            slept_ns: control.slept_ns.wrapping_sub(ns),
            ..control
        };
        self.control.set(0, control, 0).expect("writing what the daemon says of itself");
    }

    /// What the program has counted of an address; `None` if it is in no slot.
    pub(super) fn address(&self, address: Ipv4Addr) -> Option<AddressCounters> {
        let capacity = self.slots.len();
        let number = (0..capacity).find(|number| {
            let slot = self.slots.get(number, 0).expect("a slot");
            slot.word != 0 && slot.address == Ipv4::from(address)
        })?;
        let of_cpus = (0..self.address_counters.len() / capacity).map(|cpu| {
            let place = AddressCounters::place(number, cpu, capacity);
            self.address_counters.get(&place, 0).expect("counters of an address")
        });
        Some(of_cpus.fold(AddressCounters::default(), |sum, cpu| AddressCounters {
            answered: sum.answered + cpu.answered,
            shielded: sum.shielded + cpu.shielded,
        }))
    }

    /// A counter of all frames.
    ///
    /// # Panics
    /// If the kernel does not give it.
    pub(super) fn total(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).expect("a counter").iter().sum()
    }
}

fn open<T: TryFrom<Map, Error = MapError>>(folder: &Path, name: &str) -> T {
    let path = folder.join(name);
    let map = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    map.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
