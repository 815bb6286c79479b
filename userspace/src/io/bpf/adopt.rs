//! What an earlier run has left behind the pins, and taking it over.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arpwarden_common::{
    abi::{AddressKey, Claimant, ClaimantKey, Claims, Moves},
    index::{self, Hash, Index as _},
    state::StateWord,
};
use tracing::warn;

use super::{
    super::{link::Link, netlink::now::link_now, tc},
    Datapath, Mode,
    attach::{programs_of, tc_programs},
    error::{Chain, LoadError, TableError},
    layout,
    pins::{LinkName, Pinned, Pins, remove_file},
    sys,
    tables::Tables,
};

/// What was there before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing: this is a beginning.
    Nothing,
    /// An earlier run's program, which goes on answering.
    Adopted(Leftover),
}

/// What an earlier run has left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leftover {
    /// Its addresses, in their order.
    pub addresses: Vec<KeptAddress>,
    /// The interfaces that it carried, in the order of their indices.
    pub links: Vec<KeptLink>,
    /// CLOCK_BOOTTIME in nanoseconds at which it said last that it lived; 0: never.
    pub heartbeat_ns: u64,
}

/// An address in the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptAddress {
    /// The address.
    pub key: AddressKey,
    /// Its slot.
    pub slot: u32,
    /// Its word, as it stands.
    pub word: StateWord,
    /// The end of its own lease: CLOCK_BOOTTIME in nanoseconds; 0 for none.
    pub lease_until_ns: u64,
    /// Its group; 0 for none.
    pub group: u32,
    /// The program has given it up under that word.
    pub fallen: bool,
    /// CLOCK_BOOTTIME in nanoseconds of its latest defences, the latest first, as far as they are known; 0 for none.
    pub defended_ns: Moves,
    /// What frames have said of it.
    pub claims: Claims,
    /// Frames of claimants and probers that no event has told.
    pub untold: u64,
}

/// An interface that carried the program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptLink {
    /// Its index.
    pub index: u32,
    /// How the program is attached there; `None` if it isn't.
    pub mode: Option<Mode>,
    /// The guard is there.
    pub guard: bool,
    /// Whether the program is still there.
    pub state: LinkState,
}

/// Whether an earlier run's program is still on an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// It is, and answers.
    Live,
    /// It is not, and its pin has been removed.
    Dead(Missing),
}

/// Why an earlier run's program is on an interface no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// It was taken off, or was not yet pinned when the run ended.
    Detached,
    /// The interface has gone.
    InterfaceGone,
    /// The interface is in another network namespace.
    InterfaceMoved,
}

impl Missing {
    /// The word in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Detached => "program",
            Self::InterfaceGone => "interface_gone",
            Self::InterfaceMoved => "interface_moved",
        }
    }
}

impl Tables {
    /// The addresses in the maps. What an interrupted run has half written is not among them: it is never answered.
    pub(super) fn kept(
        &self,
        claimants: &HashMap<ClaimantKey, Claimant>,
    ) -> Result<Vec<KeptAddress>, TableError> {
        let mut untold = BTreeMap::<u32, u64>::new();
        for (key, claimant) in claimants {
            *untold.entry(key.slot).or_default() += above_zero(claimant.untold);
        }
        let mut kept = BTreeMap::new();
        for (bucket, n, slot) in self.entries() {
            let (Some(place), Some(claims)) = (self.slots.get(slot), self.claims.get(slot)) else {
                continue;
            };
            let (key, word, claims) = (place.key(), place.word(), claims.read());
            if word.state().is_none() || !self.leads(&key, bucket, n, slot) {
                continue;
            }
            let value = place.read();
            let mut defended_ns = Moves::default();
            defended_ns[0] = value.defended_ns;
            let address = KeptAddress {
                key,
                slot,
                word,
                lease_until_ns: value.lease_until_ns,
                group: value.group.into(),
                fallen: value.fallen == word.mark(),
                defended_ns: self.moves(slot).unwrap_or(defended_ns),
                claims,
                untold: untold.get(&slot).copied().unwrap_or(0) + above_zero(claims.flood_untold),
            };
            kept.insert(key, address);
        }
        Ok(kept.into_values().collect())
    }

    /// Whether the `n`th entry of a bucket leads from this key to this slot.
    fn leads(&self, key: &AddressKey, bucket: u32, n: usize, slot: u32) -> bool {
        Hash::of(key).leads(bucket, self.index.buckets(), self.index.read(bucket)[n], slot)
    }

    /// Removes what leads to no address, or to another one, and silences slots that nothing leads to: an interrupted
    /// `install` or `remove` leaves such. `kept` are those that are whole.
    fn repair(&mut self, kept: &[KeptAddress]) {
        let whole: BTreeMap<AddressKey, u32> =
            kept.iter().map(|address| (address.key, address.slot)).collect();
        let mut used = BTreeSet::new();
        for (bucket, n, slot) in self.entries() {
            let key = self.slots.get(slot).map(|place| place.key());
            let leads =
                key.is_some_and(|key| whole.get(&key) == Some(&slot) && self.leads(&key, bucket, n, slot));
            // Once each: of two entries that lead to a slot one is enough.
            if !leads || !used.insert(slot) {
                let Self { index, slots, .. } = self;
                index::clear(index, bucket, n, |slot| Some(Hash::of(&slots.get(slot)?.key())));
            }
        }
        for (place, slot) in self.slots.all().iter().zip(0..) {
            if !used.contains(&slot) && place.word() != StateWord::VACANT {
                place.store(StateWord::VACANT);
            }
        }
    }
}

/// A count that two CPUs at once may have taken below zero.
fn above_zero(count: u64) -> u64 {
    count.cast_signed().max(0).cast_unsigned()
}

impl Datapath {
    /// Takes over what is behind the pins, and puts the loaded programs in the place of the earlier ones, each
    /// between two frames.
    pub(super) fn adopt(&mut self) -> Result<Leftover, LoadError> {
        let claimants = self.tables.claimants().map_err(LoadError::table)?;
        let addresses = self.tables.kept(&claimants).map_err(LoadError::table)?;
        // What this says of them is said once.
        self.tables.tell(claimants).map_err(LoadError::table)?;
        for KeptAddress { slot, claims, .. } in &addresses {
            if let Some(place) = self.tables.claims.get(*slot) {
                place.tell_flood(above_zero(claims.flood_untold));
            }
        }
        self.tables.repair(&addresses);
        self.installed = addresses.iter().map(|address| (address.key, address.slot)).collect();
        let used: BTreeSet<u32> = self.installed.values().copied().collect();
        self.fresh = used.last().map_or(0, |last| last + 1);
        self.free = (0..self.fresh).filter(|slot| !used.contains(slot)).collect();
        self.tables.forget_claimants(|slot| used.contains(&slot)).map_err(LoadError::table)?;
        self.counted = self.tables.forget_moves(|slot| used.contains(&slot)).map_err(LoadError::table)?;
        (self.own, self.allowed) = self.tables.macs().map_err(LoadError::table)?;
        let links = self.adopt_links()?;
        let heartbeat_ns = self
            .tables
            .control()
            .map_or(0, |control| control.heartbeat_ns.load(std::sync::atomic::Ordering::Acquire));
        Ok(Leftover { addresses, links, heartbeat_ns })
    }

    fn adopt_links(&mut self) -> Result<Vec<KeptLink>, LoadError> {
        let mut indices = BTreeSet::new();
        for name in self.pins.link_names().map_err(LoadError::pins)? {
            indices.insert(name.index());
        }
        let ours = programs_of(self.tables.identity);
        indices.into_iter().map(|index| self.adopt_link(index, &ours)).collect()
    }

    fn adopt_link(&mut self, index: u32, ours: &BTreeSet<u32>) -> Result<KeptLink, LoadError> {
        let failed = |source| LoadError::Adopt { index, source };
        let there = link_now(index).map_err(failed)?;
        let there = there.as_ref();
        let mut program = self.adopt_xdp(index, there)?;
        if program.is_err() && self.pins.has(LinkName::Tc(index)) {
            self.want(Mode::Tc)?;
            let in_tc = self.adopt_tc(LinkName::Tc(index), there, ours).map_err(failed)?;
            program = in_tc.map(|()| Some(Mode::Tc));
        }
        if program != Ok(Some(Mode::Tc)) {
            // Beside one in XDP it can only be what an interrupted run has left.
            self.detach_tc(LinkName::Tc(index)).map_err(failed)?;
        }
        let guard = self.adopt_tc(LinkName::Guard(index), there, ours).map_err(failed)?.is_ok();
        if !guard {
            self.detach_guard(index).map_err(failed)?;
        }
        let (mode, state) = match program {
            Ok(mode) => (mode, LinkState::Live),
            Err(reason) => {
                if there.is_none()
                    && let Err(error) = self.remove_port(index)
                {
                    warn!("{}", Chain(&error));
                }
                (None, LinkState::Dead(reason))
            }
        };
        Ok(KeptLink { index, mode, guard, state })
    }

    /// Puts the loaded program in the place of an earlier one in an XDP mode; gives the mode, or what has become of it.
    fn adopt_xdp(
        &mut self,
        index: u32,
        there: Option<&Link>,
    ) -> Result<Result<Option<Mode>, Missing>, LoadError> {
        let failed = |source| LoadError::Adopt { index, source };
        let path = self.pins.link(LinkName::Xdp(index));
        let link = match sys::Link::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Err(Missing::Detached)),
            other => other.map_err(failed)?,
        };
        let info = link.info().map_err(failed)?;
        let xdp = there.and_then(|there| there.xdp);
        let replaced = match (info.index, xdp) {
            (0, _) if there.is_none() => Err(Missing::InterfaceGone),
            (0, _) => Err(Missing::Detached),
            // The index alone would not do: each namespace counts its own.
            (at, Some(xdp)) if at == index && xdp.id == info.program => {
                self.want(Mode::Generic)?;
                let program = self.responder_fd(Mode::Generic).map_err(failed)?;
                match link.update(program) {
                    Ok(()) => Ok(xdp.mode),
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Err(Missing::InterfaceGone),
                    Err(error) => return Err(failed(error)),
                }
            }
            _ => Err(Missing::InterfaceMoved),
        };
        if replaced.is_err() {
            // Also where we don't see it: nobody looks after what it says there.
            link.detach().map_err(failed)?;
            remove_file(&path).map_err(LoadError::pins)?;
        }
        Ok(replaced)
    }

    /// Puts the loaded tc program in the place of the earlier one that this stands for, or says what has become of it.
    fn adopt_tc(
        &mut self,
        name: LinkName,
        there: Option<&Link>,
        ours: &BTreeSet<u32>,
    ) -> std::io::Result<Result<(), Missing>> {
        let (path, index) = (self.pins.link(name), name.index());
        let off = if there.is_none() { Missing::InterfaceGone } else { Missing::Detached };
        if !self.pins.has(name) {
            return Ok(Err(off));
        }
        let (program, way, label) = self.tc_program(name)?;
        if std::fs::read_link(&path).is_ok() {
            let mut replaced = Err(off);
            for filter in tc::filters(index, way)? {
                if !filter.program.is_some_and(|id| ours.contains(&id)) {
                    continue;
                }
                if replaced.is_ok() {
                    filter.remove()?;
                } else {
                    filter.replace(program, label)?;
                    replaced = Ok(());
                }
            }
            return Ok(replaced);
        }
        let link = sys::Link::open(&path)?;
        let info = link.info()?;
        if info.index == 0 {
            return Ok(Err(off));
        }
        // The index alone would not do: each namespace counts its own.
        if info.index != index || !tc_programs(index, way)?.contains(&info.program) {
            return Ok(Err(Missing::InterfaceMoved));
        }
        match link.update(program) {
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(Err(off)),
            other => other.map(Ok),
        }
    }
}

impl Pins {
    /// What an earlier run has left in the maps, without loading anything; `None` if nothing is pinned, or only what a
    /// run made that ended before it attached anything. The links are not looked at.
    ///
    /// # Errors
    /// [`LoadError`]: the maps are of another layout, or can't be read.
    pub fn left(&self) -> Result<Option<Leftover>, LoadError> {
        layout::check(super::OBJECT)?;
        match self.pinned()? {
            Pinned::Nothing | Pinned::Part => Ok(None),
            Pinned::All => {
                let tables = Tables::open(self, self.capacity()?)?;
                let heartbeat_ns = tables
                    .control()
                    .map_or(0, |control| control.heartbeat_ns.load(std::sync::atomic::Ordering::Acquire));
                let claimants = tables.claimants().map_err(LoadError::table)?;
                let addresses = tables.kept(&claimants).map_err(LoadError::table)?;
                Ok(Some(Leftover { addresses, links: Vec::new(), heartbeat_ns }))
            }
        }
    }
}
