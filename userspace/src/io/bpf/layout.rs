//! What the object says of itself and of its maps, and whether pinned maps are the same. The loader's crate opens
//! whatever is pinned under a map's name, and would read and write past the end of a value of another size.

use std::{fmt, path::Path};

use arpwarden_common::{abi, names};
use aya::maps::{MapError, MapInfo};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::error::LoadError;

/// The shape of a map. `Display` says it in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// `bpf_map_type`.
    pub kind: u32,
    /// Bytes.
    pub key_size: u32,
    /// Bytes, of one CPU.
    pub value_size: u32,
    /// How many values there can be; bytes of a ring buffer.
    pub max_entries: u32,
    /// BPF_F_*.
    pub flags: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key_size, value_size, max_entries, flags } = self;
        write!(
            f,
            "type {kind}, keys of {key_size} and values of {value_size} bytes, {max_entries} entries, flags {flags:#x}"
        )
    }
}

impl Shape {
    /// The shape of the map that is pinned at `path`.
    pub(super) fn of_pin(path: &Path) -> Result<Self, MapError> {
        let info = MapInfo::from_pin(path)?;
        Ok(Self {
            kind: info.map_type()? as u32,
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }
}

/// Whether the object was built for the layout that this daemon was built for.
pub(super) fn check(object: &[u8]) -> Result<(), LoadError> {
    let found = abi_version(object);
    if found == Some(abi::ABI_VERSION) { Ok(()) } else { Err(LoadError::Layout { found }) }
}

/// The layout version that the object was built for, if it says.
pub(super) fn abi_version(object: &[u8]) -> Option<u32> {
    let file = object::File::parse(object).ok()?;
    word(bytes_of(&file, names::ABI_VERSION)?, 0)
}

/// The shape of a map of the object, as its definition in the section `maps` has it: five words, then two that only
/// the loader reads.
pub(super) fn shape(object: &[u8], map: &str) -> Option<Shape> {
    let file = object::File::parse(object).ok()?;
    let definition = bytes_of(&file, map)?;
    Some(Shape {
        kind: word(definition, 0)?,
        key_size: word(definition, 1)?,
        value_size: word(definition, 2)?,
        max_entries: word(definition, 3)?,
        flags: word(definition, 4)?,
    })
}

/// The object's bytes from the symbol on.
fn bytes_of<'a>(file: &object::File<'a>, name: &str) -> Option<&'a [u8]> {
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let at = usize::try_from(symbol.address().checked_sub(section.address())?).ok()?;
    section.data().ok()?.get(at..)
}

fn word(bytes: &[u8], number: usize) -> Option<u32> {
    let (word, _) = bytes.get(number * 4..)?.split_first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}
