//! The program in the kernel: loading, attaching, its maps as typed handles, its events.

mod attach;
mod error;
mod events;
mod load;
mod shared;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arpwarden_common::{
    abi::{AddressCounters, AddressKey, Hint, PortPlace, Record},
    names,
    net::MacAddr,
};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{ProgramError, Xdp, XdpMode, xdp::XdpLink},
};
use aya_log::EbpfLogger;
use log::Log;

pub use error::{
    AttachError, DetachError, ForeignProgram, InstallError, LoadError, TableError, UnknownAddress,
};
use events::Source;
pub use events::{EventReader, Logger, Undecodable};
pub use load::missing_capabilities;
use shared::Slots;

/// The compiled program, as `build.rs` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/arpwarden-ebpf"));

/// How the program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Run by the driver, before the kernel makes a packet of the frame.
    Native,
    /// Run by the kernel, whatever the driver.
    Generic,
}

impl Mode {
    /// The name used in commands and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Driver,
            Mode::Generic => Self::Skb,
        }
    }
}

/// The loaded program with its maps. Dropping it detaches and unloads everything.
pub struct Datapath {
    ebpf: Ebpf,
    /// Which of the two programs is loaded.
    program: &'static str,
    addresses: HashMap<MapData, AddressKey, u32>,
    slots: Slots,
    records: Array<MapData, Record>,
    address_counters: PerCpuArray<MapData, AddressCounters>,
    hints: Array<MapData, Hint>,
    ports: Array<MapData, PortPlace>,
    own_macs: HashMap<MapData, MacAddr, u8>,
    counters: PerCpuArray<MapData, u64>,
    events: Option<RingBuf<MapData>>,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    installed: BTreeMap<AddressKey, Installed>,
    /// The slots that share a hint's place.
    hinted: BTreeMap<u32, Vec<u32>>,
    /// Slots that nothing leads to, the one left longest ago first: what the program still remembers of an
    /// earlier address in the same slot is then as old as can be.
    free: VecDeque<u32>,
    own: BTreeSet<MacAddr>,
    links: BTreeMap<u32, XdpLink>,
}

/// An address in the maps.
struct Installed {
    slot: u32,
    /// What the program had counted in this slot for earlier addresses: only the program writes there, so
    /// counting from zero means subtracting this.
    before: (Record, AddressCounters),
}

impl Datapath {
    /// Whether the loaded program takes frames of several buffers (Linux 5.18). Without, native mode is refused
    /// at an MTU above a page or so.
    pub fn multi_buffer(&self) -> bool {
        self.program == names::XDP_FRAGS
    }

    /// The loaded program, for test runs.
    ///
    /// # Errors
    /// None once [`Datapath::load`] has succeeded; the type has room for them.
    pub fn program(&mut self) -> Result<&mut Xdp, ProgramError> {
        let program = self.ebpf.program_mut(self.program).ok_or(ProgramError::NotLoaded)?;
        program.try_into()
    }

    /// The events, once; a second reader gets none and an error when it waits.
    pub fn take_events(&mut self) -> EventReader {
        EventReader { source: self.events.take().map_or(Source::Gone, Source::Idle) }
    }

    /// The program's messages, once; `None` if they are switched off. They go to the [`log::logger`] that was
    /// installed when the program was loaded.
    pub fn take_logger(&mut self) -> Option<Logger> {
        Some(Logger { source: Source::Idle(self.logger.take()?) })
    }
}
