//! Ethernet II header and VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use super::MacBytes;
use crate::net::MacAddr;

/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv4, the protocol type inside ARP (RFC 826).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of a customer tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a service tag (IEEE 802.1ad).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// The first 14 bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EthernetHeader {
    destination: MacBytes,
    source: MacBytes,
    ethertype: [u8; 2],
}

impl EthernetHeader {
    /// Length in bytes.
    pub const LEN: usize = 14;

    /// A header of these parts.
    pub const fn new(destination: MacAddr, source: MacAddr, ethertype: u16) -> Self {
        Self {
            destination: MacBytes::of(destination),
            source: MacBytes::of(source),
            ethertype: ethertype.to_be_bytes(),
        }
    }

    /// Where the frame goes.
    #[inline(always)]
    pub const fn destination(&self) -> MacAddr {
        self.destination.mac()
    }

    /// Who put it on the wire.
    #[inline(always)]
    pub const fn source(&self) -> MacAddr {
        self.source.mac()
    }

    /// The type of what follows, host order.
    #[inline(always)]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes(self.ethertype)
    }

    /// Addresses the frame anew; the type stays.
    #[inline(always)]
    pub const fn readdress(&mut self, destination: MacAddr, source: MacAddr) {
        self.destination = MacBytes::of(destination);
        self.source = MacBytes::of(source);
    }
}

/// A tag: control information, then the type of what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VlanTag {
    control: [u8; 2],
    ethertype: [u8; 2],
}

impl VlanTag {
    /// Length in bytes.
    pub const LEN: usize = 4;
    /// The bits of the control information that are the identifier.
    pub const ID: u16 = 0x0fff;

    /// A tag with priority 0.
    pub const fn new(id: u16, ethertype: u16) -> Self {
        Self { control: (id & Self::ID).to_be_bytes(), ethertype: ethertype.to_be_bytes() }
    }

    /// VLAN identifier, 0..=4095, without the priority bits.
    #[inline(always)]
    pub const fn id(&self) -> u16 {
        u16::from_be_bytes(self.control) & Self::ID
    }

    /// The type of what follows, host order.
    #[inline(always)]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes(self.ethertype)
    }
}

const _: () =
    assert!(size_of::<EthernetHeader>() == EthernetHeader::LEN && size_of::<VlanTag>() == VlanTag::LEN);
