//! Addresses as integers: a six-byte array that is copied goes through the stack byte by byte in BPF and
//! costs more than a map look-up, a `u64` stays in a register.

use core::fmt;

/// An Ethernet address. The first byte on the wire is the lowest byte of the integer; the two highest bytes are 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct MacAddr(u64);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self(0xffff_ffff_ffff);
    /// 00:00:00:00:00:00.
    pub const ZERO: Self = Self(0);

    /// From the six bytes as they are on the wire.
    #[inline(always)]
    pub const fn new(b: [u8; 6]) -> Self {
        Self(
            u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as u64
                | (u16::from_le_bytes([b[4], b[5]]) as u64) << 32,
        )
    }

    /// From the lower 48 bits of `bits`; the rest is ignored.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & 0xffff_ffff_ffff)
    }

    /// The integer: first wire byte lowest.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The six bytes as they are on the wire.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 6] {
        let b = self.0.to_le_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// Broadcast or multicast: the lowest bit of the first byte (IEEE 802.3 §3.2.3).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }

    /// All zero.
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// A virtual router's address for IPv4, 00:00:5e:00:01:xx (RFC 9568 §7.3).
    pub const fn is_virtual_router(self) -> bool {
        let b = self.octets();
        matches!(b, [0, 0, 0x5e, 0, 1, _])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.octets();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv4 address, loaded from its four wire bytes without swapping: equal to another one exactly when the
/// bytes are, of no use for arithmetic. Stored to memory it is the wire form again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Ipv4(u32);

impl Ipv4 {
    /// 0.0.0.0, the sender of a probe (RFC 5227 §1.1).
    pub const UNSPECIFIED: Self = Self(0);

    /// From the four bytes as they are on the wire.
    #[inline(always)]
    pub const fn new(b: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(b))
    }

    /// The four bytes as they are on the wire.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// Whether it is this one.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        self.0 == other.0
    }

    /// 0.0.0.0.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.0 == 0
    }

    /// What no host may send ARP from: multicast (224/4), broadcast (255.255.255.255) and 127/8. The rest of
    /// 240/4 is reserved, but some networks number their hosts from it and Linux lets them.
    #[inline(always)]
    pub const fn is_nonsense_sender(self) -> bool {
        let first = self.octets()[0];
        first & 0xf0 == 224 || first == 127 || self.0 == u32::MAX
    }
}

impl From<core::net::Ipv4Addr> for Ipv4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self::new(address.octets())
    }
}

impl From<Ipv4> for core::net::Ipv4Addr {
    fn from(address: Ipv4) -> Self {
        address.octets().into()
    }
}

impl PartialOrd for Ipv4 {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ipv4 {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl fmt::Display for Ipv4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.octets();
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

impl fmt::Debug for Ipv4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The service tag bit of a [`Vlan`] half: set where the tag's type is 0x88a8 (IEEE 802.1ad), clear for 0x8100.
pub const SERVICE_TAG: u16 = 0x8000;

/// The tags of a frame, without priority bits and without tags of VID 0: those carry a priority only, the
/// frame counts as untagged (IEEE 802.1Q §6.9). Each half is the VID in host order, with [`SERVICE_TAG`]
/// for type 0x88a8; 0 is no tag. One tag is in `outer`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Vlan {
    /// The outermost tag that names a VLAN; 0 if none does.
    pub outer: u16,
    /// The one inside it; 0 if there is none.
    pub inner: u16,
}

impl Vlan {
    /// No tag that names a VLAN.
    pub const UNTAGGED: Self = Self { outer: 0, inner: 0 };

    /// The VIDs, outermost first, 1..=4094 each; 0 where there is none.
    pub const fn ids(self) -> [u16; 2] {
        [self.outer & 0x0fff, self.inner & 0x0fff]
    }
}
