//! Groups of addresses: silenced by one store, renewed by one, whatever each address's own word and lease say beside it.

use std::{collections::BTreeSet, time::Duration};

use arpwarden_common::abi::{AddressKey, Group, MAX_GROUPS};
use arpwarden_engine::MonoTime;
use tracing::warn;

use super::Daemon;
use crate::{io::clock, protocol::GroupName};

impl Daemon {
    /// The number of a group whose addresses may answer as their own words say; a new one, if there is none of this name.
    pub(super) fn group_that_answers(&mut self, name: GroupName) -> Result<u32, String> {
        let number = match self.groups.get(&name) {
            Some(number) => *number,
            None => {
                let taken: BTreeSet<u32> = self.groups.values().copied().collect();
                let free = (1..MAX_GROUPS).find(|number| !taken.contains(number));
                free.ok_or_else(|| {
                    format!("all {} groups are taken; give the addresses of one up first", MAX_GROUPS - 1)
                })?
            }
        };
        let before = self.datapath.group(number).unwrap_or_default();
        let past = before.lease_until_ns != 0 && before.lease_until_ns < clock::now().0;
        let answering =
            |key: &AddressKey| self.engine.get(key).is_some_and(|managed| managed.state().may_answer());
        if past && self.members(name).iter().any(answering) {
            return Err(format!(
                "the lease of group '{name}' is past, and somebody else may own its addresses; take it offline first"
            ));
        }
        let known = self.groups.insert(name, number).is_some();
        // One that was silenced or whose lease is past was given up by all, each by its own word: a new claim begins a new
        // life. The lease of one that answers goes on: it is the decider's word on all of them.
        if !known || past || before.word != Group::ANSWERS {
            self.datapath.set_group(number, Group { word: Group::ANSWERS, lease_until_ns: 0 });
        }
        Ok(number)
    }

    /// For how long the lease of a group stands; `None` if it has none.
    pub(super) fn group_lease_left(&self, name: GroupName) -> Option<Duration> {
        let until_ns = self.datapath.group(*self.groups.get(&name)?)?.lease_until_ns;
        (until_ns != 0).then(|| MonoTime(until_ns).since(clock::now()))
    }

    /// The group of an address, by its claim.
    pub(super) fn group_of(&self, key: &AddressKey) -> Option<GroupName> {
        self.notes.get(key).and_then(|notes| notes.how.group)
    }

    /// The addresses of a group, in the order of their keys.
    pub(super) fn members(&self, name: GroupName) -> Vec<AddressKey> {
        let members = self.notes.iter().filter(|(_, notes)| notes.how.group == Some(name));
        members.map(|(key, _)| *key).filter(|key| self.engine.get(key).is_some()).collect()
    }

    /// Puts an address that the program knows into its group.
    pub(super) fn join_group(&mut self, key: &AddressKey) {
        let number = self.group_of(key).and_then(|name| self.groups.get(&name).copied()).unwrap_or(0);
        if let Err(error) = self.datapath.set_slot_group(key, number) {
            warn!(address = %key.address, "putting the address into its group: {error}");
        }
    }

    /// Silences a group by one store. Its addresses are to be given up right behind it.
    pub(super) fn silence_group(&mut self, name: GroupName) {
        if let Some(number) = self.groups.get(&name) {
            self.datapath.set_group(*number, Group { word: Group::SILENT, lease_until_ns: 0 });
        }
    }

    /// Prolongs the lease of a group by one store; false if it is past, so that somebody else may own its addresses.
    pub(super) fn renew_group(&mut self, name: GroupName, now_ns: u64, until_ns: u64) -> bool {
        let Some(number) = self.groups.get(&name).copied() else { return true };
        let group = self.datapath.group(number).unwrap_or_default();
        let stands = group.lease_until_ns == 0 || group.lease_until_ns >= now_ns;
        if stands {
            self.datapath.set_group(number, Group { lease_until_ns: until_ns, ..group });
        }
        stands
    }

    /// Forgets a group that has lost its last address.
    pub(super) fn forget_empty_group(&mut self, name: GroupName) {
        let empty = self.notes.values().all(|notes| notes.how.group != Some(name));
        if empty && let Some(number) = self.groups.remove(&name) {
            self.datapath.set_group(number, Group::default());
        }
    }

    /// Whether a group is being given up, as an earlier run has left it.
    pub(super) fn is_silenced(&self, number: u32) -> bool {
        number != 0 && self.datapath.group(number).is_some_and(|group| group.word != Group::ANSWERS)
    }
}
