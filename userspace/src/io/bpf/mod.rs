//! The program in the kernel: loading, attaching, its maps as typed handles, its events.

mod adopt;
mod attach;
mod error;
mod events;
mod lacks;
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

use arpwarden_common::{
    abi::{AddressKey, AllowedKey},
    names,
    net::MacAddr,
};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::Xdp,
};
use aya_log::EbpfLogger;
use log::Log;

use super::link::Segment;

pub use adopt::{Found, KeptAddress, KeptLink, Leftover, LinkState, Missing};
pub use attach::Presence;
use attach::TcWay;
pub use error::{
    AttachError, Attaching, DetachError, ForeignProgram, InstallError, LoadError, Place, TableError,
    UnknownAddress,
};
use events::Source;
pub use events::{EventReader, Logger, Undecodable};
pub use lacks::{Lack, kernel_release};
pub use layout::Shape;
pub use load::missing_capabilities;
pub use pins::{Pins, PinsError};
pub use tables::RecentAsker;
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
    /// The program for XDP, once it was wanted.
    xdp: Option<Responder>,
    /// The program for tc, once it was wanted.
    tc: Option<Responder>,
    /// The kernel's identifier of the guard.
    guard: u32,
    tc_way: TcWay,
    tables: Tables,
    events: Option<RingBuf<MapData>>,
    logger: Option<EbpfLogger<&'static dyn Log>>,
    /// The slots of the addresses that the program knows, by what the program sees of them on the wire.
    installed: BTreeMap<AddressKey, u32>,
    /// Where frames of VLAN devices are on the wire; those of all others are where they are.
    segments: BTreeMap<u32, Segment>,
    /// Interfaces with a budget of moves.
    budgeted: BTreeSet<u32>,
    /// Slots of which the program counts the moves.
    counted: BTreeSet<u32>,
    /// Slots from here on were never used.
    fresh: u32,
    /// Others that nothing leads to and nothing is remembered of.
    free: VecDeque<u32>,
    /// Slots that addresses have left. The program may still remember claimants of those, and a look-up that has begun
    /// may still write there: they are used again when no others are free.
    left: VecDeque<u32>,
    /// The MACs that the program takes for this namespace's.
    own: BTreeSet<MacAddr>,
    /// The hosts whose claims it takes for no conflict.
    allowed: BTreeSet<AllowedKey>,
}

/// A loaded program that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Responder {
    /// Its name in the object.
    name: &'static str,
    /// The kernel's identifier of it.
    id: u32,
}

impl Datapath {
    /// Whether the program for XDP takes frames of several buffers (Linux 5.18). Without, native mode is refused at an
    /// MTU above a page or so. One that was not wanted yet is not asked.
    pub fn multi_buffer(&self) -> bool {
        self.xdp.is_none_or(|xdp| xdp.name == names::XDP_FRAGS)
    }

    /// The program for this mode, if it is loaded.
    const fn responder(&self, mode: Mode) -> Option<Responder> {
        match mode {
            Mode::Native | Mode::Generic => self.xdp,
            Mode::Tc => self.tc,
        }
    }

    /// The program for XDP, for test runs.
    ///
    /// # Errors
    /// It can't be loaded.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        self.want(Mode::Generic)?;
        let name = self.xdp.map_or(names::XDP, |xdp| xdp.name);
        let program = self.ebpf.program_mut(name).ok_or(LoadError::Incomplete { lacks: name })?;
        program.try_into().map_err(|source| LoadError::Rejected { source })
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
