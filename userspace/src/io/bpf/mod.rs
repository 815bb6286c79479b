//! The program in the kernel: loading, attaching, its maps as typed handles, its events.

mod adopt;
mod attach;
mod error;
mod events;
mod layout;
mod load;
mod pins;
mod shared;
mod sys;
mod tables;
#[cfg(test)]
mod tests;
mod unload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arpwarden_common::{abi::AddressKey, names, net::MacAddr};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{ProgramError, Xdp},
};
use aya_log::EbpfLogger;
use log::Log;

use super::link::Segment;

pub use adopt::{Found, KeptAddress, KeptLink, Leftover, LinkState, Missing};
use attach::GuardWay;
pub use attach::Presence;
pub use error::{
    AttachError, Attaching, DetachError, ForeignProgram, InstallError, LoadError, TableError, UnknownAddress,
};
use events::Source;
pub use events::{EventReader, Logger, Undecodable};
pub use layout::Shape;
pub use load::missing_capabilities;
pub use pins::{Pins, PinsError};
use tables::Tables;
pub use unload::UnloadError;

/// The compiled program, as `build.rs` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/arpwarden-ebpf"));

/// How the program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Run by the driver, before the kernel makes a packet of the frame.
    Native,
    /// Run by the kernel, whatever the driver.
    Generic,
    /// Run by the kernel's traffic control, behind XDP.
    Tc,
}

impl Mode {
    /// The name used in commands and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}

/// The loaded programs with their maps, all pinned: dropping it leaves them attached and answering.
pub struct Datapath {
    pins: Pins,
    ebpf: Ebpf,
    /// Which of the two XDP programs is loaded.
    program: &'static str,
    ids: ProgramIds,
    guard_way: GuardWay,
    tables: Tables,
    events: Option<RingBuf<MapData>>,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    /// The slots of the addresses that the program knows, by what the program sees of them on the wire.
    installed: BTreeMap<AddressKey, u32>,
    /// Where frames of VLAN devices are on the wire; those of all others are where they are.
    segments: BTreeMap<u32, Segment>,
    /// The slots that share a hint's place.
    hinted: BTreeMap<u32, Vec<u32>>,
    /// Slots that nothing leads to and nothing is remembered of.
    free: VecDeque<u32>,
    /// Slots that addresses have left. The program may still remember claimants of those, and a look-up that has begun
    /// may still write there: they are used again when no others are free.
    left: VecDeque<u32>,
    /// The MACs that the program takes for this namespace's.
    own: BTreeSet<MacAddr>,
}

/// The kernel's identifiers of the loaded programs.
struct ProgramIds {
    xdp: u32,
    guard: u32,
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
    /// None once [`Datapath::open`] has succeeded; the type has room for them.
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
