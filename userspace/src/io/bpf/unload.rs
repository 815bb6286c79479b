//! Removing everything of an instance, with and without a daemon.

use std::{collections::BTreeSet, error::Error, fmt, io};

use arpwarden_common::{
    names,
    state::{State, StateWord},
};
use aya::maps::MapInfo;

use super::{
    super::{netlink::now::links_now, tc::Way},
    Datapath,
    attach::{drop_link, drop_tc, programs_of, tc_programs},
    error::{Chain, LoadError, elsewhere},
    pins::{LinkName, Pinned, Pins, PinsError},
    tables::Tables,
};

impl Datapath {
    /// Lets go and leaves everything attached and pinned. Dropping does the same; this says that it is meant.
    pub fn keep(self) {
        drop(self);
    }

    /// Detaches everything, removes the pins and their directories, and looks whether anything of it is left on an
    /// interface of this network namespace.
    ///
    /// # Errors
    /// [`UnloadError`]; another call, or [`Pins::unload`], goes on from there.
    pub fn remove_all(self) -> Result<(), UnloadError> {
        let pins = self.pins.clone();
        // The loaded programs are found by what is pinned; the handles would keep the maps.
        drop(self);
        pins.unload()
    }
}

impl Pins {
    /// Silences all addresses of an instance that has no daemon, but for watched ones: from the next frame on the
    /// program answers for none, and drops the requests for those that are still configured. Done already if nothing
    /// is pinned.
    ///
    /// # Errors
    /// [`LoadError`]: the maps are of another layout, so what stands where is not known.
    pub fn silence(&self) -> Result<(), LoadError> {
        if self.pinned()? != Pinned::All {
            return Ok(());
        }
        for slot in Tables::open(self, self.capacity()?)?.slots.all() {
            let word = slot.word();
            match word.state() {
                None | Some(State::Watched) => {}
                Some(
                    State::Probing
                    | State::Announcing
                    | State::Online
                    | State::Contested
                    | State::Yielding
                    | State::Suspended
                    | State::Refused
                    | State::Lost,
                ) => {
                    let flags = if word.is_local() { StateWord::LOCAL } else { 0 };
                    slot.store(StateWord::new(word.mac(), State::Yielding, flags, word.generation()));
                }
            }
        }
        Ok(())
    }

    /// Removes everything of an instance that has no daemon: silences its addresses (where their layout is known),
    /// detaches the links, removes the pins and their directories, and looks whether anything of it is left on an
    /// interface of this network namespace. What it put on interfaces as addresses is not touched. Done already if
    /// nothing is pinned.
    ///
    /// # Errors
    /// [`UnloadError`]; another call goes on from there.
    pub fn unload(&self) -> Result<(), UnloadError> {
        if !self.exists() {
            return Ok(());
        }
        if let Some(inode) = self.elsewhere().map_err(UnloadError::pins)? {
            return Err(UnloadError::Elsewhere { pins: self.clone(), inode });
        }
        // Of another layout, or half made: there is nothing to be silenced that could be found.
        if let Err(error) = self.silence() {
            tracing::warn!("not silenced before it is taken off: {}", Chain(&error));
        }
        let failed = |doing: &'static str| move |source: io::Error| UnloadError::Kernel { doing, source };
        let ours = match MapInfo::from_pin(self.map(names::SLOTS)) {
            Ok(info) => programs_of(info.id()),
            Err(_) => BTreeSet::new(),
        };
        let names = self.link_names().map_err(UnloadError::pins)?;
        // The guards last: while an address is silent, its host keeps silent.
        for name in &names {
            let off = match name {
                LinkName::Xdp(_) => drop_link(&self.link(*name)),
                LinkName::Tc(_) => drop_tc(self, *name, &ours),
                LinkName::Guard(_) => Ok(()),
            };
            off.map_err(failed("taking the program off its interfaces"))?;
        }
        for name in &names {
            if let LinkName::Guard(_) = name {
                drop_tc(self, *name, &ours).map_err(failed("taking the guard off its interfaces"))?;
            }
        }
        let left = left_on(&ours).map_err(failed("looking whether anything is left"))?;
        if !left.is_empty() {
            return Err(UnloadError::Left { left });
        }
        self.clear().map_err(UnloadError::pins)
    }
}

/// Where programs of ours are still attached, in words.
fn left_on(ours: &BTreeSet<u32>) -> io::Result<Vec<String>> {
    let mut left = Vec::new();
    if ours.is_empty() {
        return Ok(left);
    }
    for (index, link) in links_now()? {
        if let Some(xdp) = link.xdp.filter(|xdp| ours.contains(&xdp.id)) {
            left.push(format!("XDP program {} on {}", xdp.id, link.name));
        }
        for id in [Way::In, Way::Out]
            .map(|way| tc_programs(index, way))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?
            .concat()
        {
            if ours.contains(&id) {
                left.push(format!("tc program {id} on {}", link.name));
            }
        }
    }
    Ok(left)
}

/// Why something of an instance could not be removed.
#[derive(Debug)]
pub enum UnloadError {
    /// The kernel refuses.
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// It is attached in another network namespace; nothing was touched.
    Elsewhere {
        /// Where it is pinned.
        pins: Pins,
        /// Inode of that namespace.
        inode: u64,
    },
    /// A pin could not be removed.
    Pins {
        /// Which, and why.
        source: PinsError,
    },
    /// It is still attached.
    Left {
        /// Where.
        left: Vec<String>,
    },
}

impl UnloadError {
    fn pins(source: PinsError) -> Self {
        Self::Pins { source }
    }

    /// Whether a missing permission is the reason, so that the command ends with 5.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Kernel { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Pins { source } => source.is_permission(),
            Self::Elsewhere { .. } | Self::Left { .. } => false,
        }
    }
}

impl fmt::Display for UnloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { doing, .. } => write!(f, "{doing} failed; run 'arpwarden unload' again"),
            Self::Elsewhere { pins, inode } => elsewhere(f, pins, *inode),
            Self::Pins { .. } => f.write_str("removing what is pinned; run 'arpwarden unload' again"),
            Self::Left { left } => write!(
                f,
                "taken off, and still there: {}; 'bpftool net detach' and 'tc filter del' take it off by hand",
                left.join(", ")
            ),
        }
    }
}

impl Error for UnloadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Kernel { source, .. } => Some(source),
            Self::Pins { source } => Some(source),
            Self::Elsewhere { .. } | Self::Left { .. } => None,
        }
    }
}
