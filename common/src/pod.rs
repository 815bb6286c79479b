//! The only `unsafe` of this crate: which types are plain bytes.

use crate::wire::{
    Wire,
    arp::ArpPacket,
    ethernet::{EthernetHeader, VlanTag},
};

// SAFETY: `repr(C)`, byte arrays only: alignment 1, no padding, every bit pattern is a value.
unsafe impl Wire for EthernetHeader {}
// SAFETY: as above.
unsafe impl Wire for VlanTag {}
// SAFETY: as above.
unsafe impl Wire for ArpPacket {}

#[cfg(feature = "user")]
mod user {
    use crate::{abi, net::MacAddr};

    // SAFETY: `repr(C)`; the sizes asserted in `abi` are the sums of the fields, so no padding; only integers
    // and transparent wrappers of integers, so every bit pattern is a value.
    unsafe impl aya::Pod for abi::AddressKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::AllowedKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::Claims {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::Group {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::AddressCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::ClaimantKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::Claimant {}
    // SAFETY: as above.
    unsafe impl aya::Pod for abi::PortPlace {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::index::Bucket {}
    // SAFETY: transparent over `u64`, of which every bit pattern is a value (the two highest bytes are
    // ignored by no accessor, so a stray bit makes an address that equals none: harmless).
    unsafe impl aya::Pod for MacAddr {}
}
