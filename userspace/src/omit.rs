//! Takes a safety away, so that tests can see what it is for: a checker that can't fail proves nothing. Compiled with
//! feature `omit` only, which no shipped daemon has.

use arpwarden_common::abi::omit;

/// What is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Omission {
    /// Bits of [`omit`] that the program leaves out.
    Program(u32),
    /// What an earlier run has left is taken for ours whatever became of it, in the maps and in events not yet told.
    Adoption,
}

/// What ARPWARDEN_OMIT names.
///
/// # Panics
/// If it names nothing that can be left out.
pub(crate) fn omission() -> Option<Omission> {
    let name = std::env::var("ARPWARDEN_OMIT").ok()?;
    Some(match name.as_str() {
        "guard" => Omission::Program(omit::GUARD),
        "shield" => Omission::Program(omit::SHIELD),
        "lease" => Omission::Program(omit::LEASE),
        "fallen" => Omission::Program(omit::FALLEN),
        "adoption" => Omission::Adoption,
        other => panic!("ARPWARDEN_OMIT={other}: guard, shield, lease, fallen or adoption"),
    })
}
