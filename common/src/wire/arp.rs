//! ARP for IPv4 on Ethernet (RFC 826): reading a frame, writing one, turning a request into its reply.

use super::{
    Bytes, MacBytes, Wire,
    ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthernetHeader, VlanTag},
};
use crate::net::{Ipv4, MacAddr, SERVICE_TAG, Vlan};

/// ares_op$REQUEST (RFC 826).
pub const REQUEST: u16 = 1;
/// ares_op$REPLY (RFC 826).
pub const REPLY: u16 = 2;
/// ares_hrd$Ethernet (RFC 826).
pub const HARDWARE_ETHERNET: u16 = 1;
/// IEEE 802 networks (RFC 1042), which Linux takes for Ethernet too (`arp_process`).
pub const HARDWARE_IEEE802: u16 = 6;
/// The shortest Ethernet frame without its check sequence, in bytes (IEEE 802.3 §3.2.7).
pub const MIN_FRAME: usize = 60;

/// The 28 bytes of an ARP packet for IPv4 on Ethernet, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ArpPacket {
    hardware_type: [u8; 2],
    /// Protocol type and both lengths.
    protocol: [u8; 4],
    operation: [u8; 2],
    sender_mac: MacBytes,
    sender_ip: [u8; 4],
    target_mac: MacBytes,
    target_ip: [u8; 4],
}

const _: () = assert!(size_of::<ArpPacket>() == ArpPacket::LEN && align_of::<ArpPacket>() == 1);

impl ArpPacket {
    /// Length in bytes.
    pub const LEN: usize = 28;
    /// IPv4, hardware addresses of 6 bytes and protocol addresses of 4.
    const IPV4: u32 = (ETHERTYPE_IPV4 as u32) << 16 | 6 << 8 | 4;

    /// A well-formed packet.
    pub const fn new(
        operation: u16,
        sender_mac: MacAddr,
        sender_ip: Ipv4,
        target_mac: MacAddr,
        target_ip: Ipv4,
    ) -> Self {
        Self {
            hardware_type: HARDWARE_ETHERNET.to_be_bytes(),
            protocol: Self::IPV4.to_be_bytes(),
            operation: operation.to_be_bytes(),
            sender_mac: MacBytes::of(sender_mac),
            sender_ip: sender_ip.octets(),
            target_mac: MacBytes::of(target_mac),
            target_ip: target_ip.octets(),
        }
    }

    /// Ethernet or IEEE 802, IPv4, lengths 6 and 4, request or reply: what a Linux host would act on.
    #[inline(always)]
    const fn is_well_formed(&self) -> bool {
        let hardware = u16::from_be_bytes(self.hardware_type);
        let operation = u16::from_be_bytes(self.operation);
        (hardware == HARDWARE_ETHERNET || hardware == HARDWARE_IEEE802)
            && self.pairs_addresses()
            && (operation == REQUEST || operation == REPLY)
    }

    /// IPv4, lengths 6 and 4: the packet says of an address which MAC it has, whatever for.
    #[inline(always)]
    const fn pairs_addresses(&self) -> bool {
        u32::from_be_bytes(self.protocol) == Self::IPV4
    }

    /// Turns a request into the reply that says `mac` has the address asked for (RFC 826, "packet reception").
    /// The asker's hardware type is kept. The reply to a probe has target address 0.0.0.0.
    #[inline(always)]
    const fn turn_around(&mut self, mac: MacAddr, asker_mac: MacAddr, asker_ip: Ipv4, asked: Ipv4) {
        self.operation = REPLY.to_be_bytes();
        self.sender_mac = MacBytes::of(mac);
        self.sender_ip = asked.octets();
        self.target_mac = MacBytes::of(asker_mac);
        self.target_ip = asker_ip.octets();
    }
}

/// What an ARP frame is for, from its operation and addresses alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Form {
    /// Broadcast request with sender 0.0.0.0 (RFC 5227 §1.1); a unicast one is a poll, which counts as this form too.
    Probe = 1,
    /// Sender = target address: gratuitous, request or reply.
    Announcement = 2,
    /// Any other request.
    Request = 3,
    /// Any other reply.
    Reply = 4,
}

impl Form {
    /// The form with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Probe),
            2 => Some(Self::Announcement),
            3 => Some(Self::Request),
            4 => Some(Self::Reply),
            _ => None,
        }
    }

    /// The name used in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Announcement => "announcement",
            Self::Request => "request",
            Self::Reply => "reply",
        }
    }
}

/// The fields of an ARP frame, read once, as integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Ethernet destination.
    pub destination: MacAddr,
    /// Ethernet source.
    pub source: MacAddr,
    /// Tags that name a VLAN.
    pub vlan: Vlan,
    /// Where the ARP packet begins, in bytes from the start of the frame: 14, 18 or 22.
    pub arp_at: usize,
    /// [`REQUEST`] or [`REPLY`]; of a frame that is about to leave any number.
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: MacAddr,
    /// Sender protocol address.
    pub sender_ip: Ipv4,
    /// Target protocol address.
    pub target_ip: Ipv4,
    /// What the addresses above and the operation say together.
    pub gist: Gist,
}

/// What a frame is for and whether anybody can have sent it, in one number. The program works it out once: each compare
/// of addresses would be one more fork on the verifier's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gist(u8);

impl Gist {
    const FORM: u8 = 7;
    const NONSENSE: u8 = 8;

    #[inline(always)]
    const fn of(frame: &Frame) -> Self {
        let form = if frame.sender_ip.is(frame.target_ip) {
            Form::Announcement
        } else if frame.operation == REPLY {
            Form::Reply
        } else if frame.sender_ip.is_unspecified() {
            Form::Probe
        } else {
            Form::Request
        };
        let nonsense = frame.sender_mac.is_zero()
            || frame.sender_mac.is_group()
            || frame.source.is_zero()
            || frame.source.is_group()
            || frame.sender_ip.is_nonsense_sender();
        Self(form as u8 | if nonsense { Self::NONSENSE } else { 0 })
    }

    /// The number.
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From its number.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether the frame has this form.
    #[inline(always)]
    pub const fn is(self, form: Form) -> bool {
        self.0 & Self::FORM == form as u8
    }

    /// The number of the form.
    #[inline(always)]
    pub const fn form_number(self) -> u8 {
        self.0 & Self::FORM
    }

    /// Whether no host can have sent the frame: its sender is no host.
    #[inline(always)]
    pub const fn is_nonsense(self) -> bool {
        self.0 & Self::NONSENSE != 0
    }
}

/// What a frame is, as far as its bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// Not ARP behind at most two tags.
    NotArp,
    /// The frame ends inside the ARP packet.
    Truncated,
    /// Hardware or protocol type, lengths or operation are not those of IPv4 on Ethernet.
    BadHeader,
    /// ARP for IPv4 on Ethernet. Its addresses may still be nonsense.
    Arp(Frame),
}

/// Adds a tag to those seen; VID 0 names no VLAN (IEEE 802.1Q §6.9).
#[inline(always)]
const fn with_tag(vlan: Vlan, id: u16, ethertype: u16) -> Vlan {
    if id == 0 {
        return vlan;
    }
    let half = if ethertype == ETHERTYPE_QINQ { id | SERVICE_TAG } else { id };
    if vlan.outer == 0 { Vlan { outer: half, inner: 0 } } else { Vlan { outer: vlan.outer, inner: half } }
}

#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

/// Bytes within which an ARP packet ends that is [read](parse) at all: behind two tags.
#[expect(clippy::cast_possible_truncation, reason = "50")]
pub const READ_LEN: u32 = (EthernetHeader::LEN + 2 * VlanTag::LEN + ArpPacket::LEN) as u32;

/// Whether ARP may follow behind an Ethernet header with this type.
#[inline(always)]
pub const fn may_lead_to_arp(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_ARP || is_tag(ethertype)
}

/// Reads a frame that came in, with all its tags in it. A frame that is not ARP costs two compares.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B) -> Parsed {
    parse_beside(bytes, None)
}

/// Reads a frame that came in, whose first tag may stand beside it: its control information and type, host order.
#[inline(always)]
pub fn parse_beside<B: Bytes + ?Sized>(bytes: &B, tag_beside: Option<(u16, u16)>) -> Parsed {
    parse_accepted(bytes, tag_beside, ArpPacket::is_well_formed)
}

/// Reads a frame that is about to leave, as above. Any packet that pairs addresses is one of [`Parsed::Arp`], whatever
/// its hardware type and operation: who might learn from it is not known here.
#[inline(always)]
pub fn parse_leaving<B: Bytes + ?Sized>(bytes: &B, tag_beside: Option<(u16, u16)>) -> Parsed {
    parse_accepted(bytes, tag_beside, ArpPacket::pairs_addresses)
}

#[inline(always)]
fn parse_accepted<B: Bytes + ?Sized>(
    bytes: &B,
    tag_beside: Option<(u16, u16)>,
    accepted: impl Fn(&ArpPacket) -> bool,
) -> Parsed {
    match tag_beside {
        None => parse_behind(bytes, Vlan::UNTAGGED, 2, accepted),
        Some((control, ethertype)) => {
            let vlan = with_tag(Vlan::UNTAGGED, control & VlanTag::ID, ethertype);
            parse_behind(bytes, vlan, 1, accepted)
        }
    }
}

/// Reads a frame behind the tags that `vlan` has seen and at most `tags` more.
#[inline(always)]
fn parse_behind<B: Bytes + ?Sized>(
    bytes: &B,
    vlan: Vlan,
    tags: u8,
    accepted: impl Fn(&ArpPacket) -> bool,
) -> Parsed {
    let Some(ethernet) = bytes.view::<EthernetHeader>(0) else { return Parsed::NotArp };
    let ethertype = ethernet.ethertype();
    let at = EthernetHeader::LEN;
    if ethertype == ETHERTYPE_ARP {
        return parse_arp(bytes, ethernet, vlan, at, accepted);
    }
    if !is_tag(ethertype) {
        return Parsed::NotArp;
    }
    let Some(tag) = bytes.view::<VlanTag>(at) else { return Parsed::NotArp };
    let vlan = with_tag(vlan, tag.id(), ethertype);
    let (at, ethertype) = (at + VlanTag::LEN, tag.ethertype());
    if ethertype == ETHERTYPE_ARP {
        return parse_arp(bytes, ethernet, vlan, at, accepted);
    }
    if !is_tag(ethertype) || tags < 2 {
        return Parsed::NotArp;
    }
    let Some(tag) = bytes.view::<VlanTag>(at) else { return Parsed::NotArp };
    let vlan = with_tag(vlan, tag.id(), ethertype);
    if tag.ethertype() == ETHERTYPE_ARP {
        return parse_arp(bytes, ethernet, vlan, at + VlanTag::LEN, accepted);
    }
    Parsed::NotArp
}

#[inline(always)]
fn parse_arp<B: Bytes + ?Sized>(
    bytes: &B,
    ethernet: &EthernetHeader,
    vlan: Vlan,
    arp_at: usize,
    accepted: impl Fn(&ArpPacket) -> bool,
) -> Parsed {
    let Some(arp) = bytes.view::<ArpPacket>(arp_at) else { return Parsed::Truncated };
    if !accepted(arp) {
        return Parsed::BadHeader;
    }
    Parsed::Arp(Frame::of(ethernet, arp, vlan, arp_at))
}

impl Frame {
    /// The frame with these headers, well formed or not.
    #[inline(always)]
    pub const fn of(ethernet: &EthernetHeader, arp: &ArpPacket, vlan: Vlan, arp_at: usize) -> Self {
        Self {
            destination: ethernet.destination(),
            source: ethernet.source(),
            vlan,
            arp_at,
            operation: u16::from_be_bytes(arp.operation),
            sender_mac: arp.sender_mac.mac(),
            sender_ip: Ipv4::new(arp.sender_ip),
            target_ip: Ipv4::new(arp.target_ip),
            gist: Gist(0),
        }
        .judged()
    }

    /// The frame, whose gist is that of its fields.
    #[inline(always)]
    pub const fn judged(self) -> Self {
        Self { gist: Gist::of(&self), ..self }
    }

    /// The address of which the frame says something: whose sender has it, or that a probe asks whether it is free.
    #[inline(always)]
    pub fn concerns(&self) -> Ipv4 {
        if self.sender_ip.is_unspecified() { self.target_ip } else { self.sender_ip }
    }

    /// What the frame is for.
    pub fn form(&self) -> Form {
        Form::from_number(self.gist.form_number()).unwrap_or(Form::Request)
    }
}

/// Rewrites the headers of the request `frame` into the reply of `mac`: to the frame's Ethernet source, and
/// inside to the ARP sender. Tags and padding are not touched.
#[inline(always)]
pub fn reply(ethernet: &mut EthernetHeader, arp: &mut ArpPacket, frame: &Frame, mac: MacAddr) {
    ethernet.readdress(frame.source, mac);
    arp.turn_around(mac, frame.sender_mac, frame.sender_ip, frame.target_ip);
}

/// Rewrites the headers of a claim into the announcement that answers it: broadcast, in request form (RFC 5227 §2.4;
/// Linux follows no other for the first second of a neighbour entry). Tags and padding are not touched.
#[inline(always)]
pub fn announce(ethernet: &mut EthernetHeader, arp: &mut ArpPacket, mac: MacAddr, address: Ipv4) {
    ethernet.readdress(MacAddr::BROADCAST, mac);
    *arp = ArpPacket::new(REQUEST, mac, address, MacAddr::ZERO, address);
}

/// An ARP frame to be sent. [`Outgoing::emit`] writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Ethernet destination.
    pub destination: MacAddr,
    /// Ethernet source.
    pub source: MacAddr,
    /// Tags that name a VLAN.
    pub vlan: Vlan,
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: MacAddr,
    /// Sender protocol address.
    pub sender_ip: Ipv4,
    /// Target hardware address.
    pub target_mac: MacAddr,
    /// Target protocol address.
    pub target_ip: Ipv4,
}

impl Outgoing {
    /// The longest frame that [`Outgoing::emit`] writes, in bytes: the shortest Ethernet frame and two tags.
    pub const MAX_LEN: usize = MIN_FRAME + 2 * VlanTag::LEN;

    /// A probe for `address` (RFC 5227 §1.1): broadcast, sender 0.0.0.0, target MAC zero.
    pub const fn probe(mac: MacAddr, vlan: Vlan, address: Ipv4) -> Self {
        Self {
            destination: MacAddr::BROADCAST,
            source: mac,
            vlan,
            operation: REQUEST,
            sender_mac: mac,
            sender_ip: Ipv4::UNSPECIFIED,
            target_mac: MacAddr::ZERO,
            target_ip: address,
        }
    }

    /// An announcement in request form (RFC 5227 §2.3) that `owner` has `address`, put on the wire by `source`;
    /// the two differ when a roll-back repairs what it has done.
    pub const fn announcement(source: MacAddr, owner: MacAddr, vlan: Vlan, address: Ipv4) -> Self {
        Self {
            destination: MacAddr::BROADCAST,
            source,
            vlan,
            operation: REQUEST,
            sender_mac: owner,
            sender_ip: address,
            target_mac: MacAddr::ZERO,
            target_ip: address,
        }
    }

    /// An announcement in reply form. The target MAC repeats the sender's, or Linux does not take the frame for
    /// gratuitous (`arp_is_garp`).
    pub const fn announcement_reply(mac: MacAddr, vlan: Vlan, address: Ipv4) -> Self {
        Self {
            destination: MacAddr::BROADCAST,
            source: mac,
            vlan,
            operation: REPLY,
            sender_mac: mac,
            sender_ip: address,
            target_mac: mac,
            target_ip: address,
        }
    }

    /// Writes the frame to the start of `buffer`, zero padded to the shortest Ethernet frame (tags come on top,
    /// as other senders do it), and returns its length in bytes.
    pub fn emit(&self, buffer: &mut [u8; Self::MAX_LEN]) -> usize {
        *buffer = [0; Self::MAX_LEN];
        let halves = [self.vlan.outer, self.vlan.inner];
        let tags = halves.iter().filter(|half| **half != 0).count();
        let tag_type = |half: u16| if half & SERVICE_TAG != 0 { ETHERTYPE_QINQ } else { ETHERTYPE_VLAN };
        let type_of = |n: usize| if n < tags { tag_type(halves[n]) } else { ETHERTYPE_ARP };

        put(buffer, 0, EthernetHeader::new(self.destination, self.source, type_of(0)));
        let mut at = EthernetHeader::LEN;
        for (n, half) in halves.into_iter().enumerate().take(tags) {
            put(buffer, at, VlanTag::new(half, type_of(n + 1)));
            at += VlanTag::LEN;
        }
        let arp =
            ArpPacket::new(self.operation, self.sender_mac, self.sender_ip, self.target_mac, self.target_ip);
        put(buffer, at, arp);
        MIN_FRAME + tags * VlanTag::LEN
    }
}

fn put<T: Wire>(buffer: &mut [u8], at: usize, value: T) {
    if let Some(place) = super::view_mut::<T>(buffer, at) {
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{AddressKey, AllowedKey, Port},
        defence::Reaction,
        golden,
        state::{State, StateWord},
        verdict::{Asking, Entry, Sighting, Tables, Witness, guard, verdict},
        wire::view_mut,
    };

    fn mac() -> impl Strategy<Value = MacAddr> {
        any::<[u8; 6]>().prop_map(MacAddr::new)
    }

    fn ip() -> impl Strategy<Value = Ipv4> {
        any::<[u8; 4]>().prop_map(Ipv4::new)
    }

    /// VLANs that a frame can be in: an inner tag only inside an outer one.
    fn vlan() -> impl Strategy<Value = Vlan> {
        let half = (1..=4094_u16, prop::sample::select(vec![0, SERVICE_TAG])).prop_map(|(id, tag)| id | tag);
        prop_oneof![
            Just(Vlan::UNTAGGED),
            half.clone().prop_map(|outer| Vlan { outer, inner: 0 }),
            (half.clone(), half).prop_map(|(outer, inner)| Vlan { outer, inner }),
        ]
    }

    /// Every address is managed and may answer.
    struct Everything;

    impl Tables for Everything {
        type Place = ();
        fn address(&self, _: &AddressKey) -> Option<Entry<()>> {
            let word = StateWord::new(MacAddr::new(golden::OUR_MAC), State::Online, StateWord::LOCAL, 0);
            Some(Entry { place: (), word, may_answer: true })
        }
        fn is_allowed(&self, _: &AllowedKey) -> bool {
            false
        }

        fn is_own(&self, _: MacAddr) -> bool {
            false
        }
        fn daemon_lives(&self) -> bool {
            true
        }
    }

    impl Witness<()> for Everything {
        fn saw(&self, _: Sighting<()>) -> Reaction {
            Reaction::Nothing
        }
        fn asks(&self, _: Asking<()>) {}
    }

    proptest! {
        #[test]
        fn a_frame_that_was_emitted_is_read_back(
            (destination, source, sender_mac, target_mac) in (mac(), mac(), mac(), mac()),
            (sender_ip, target_ip) in (ip(), ip()),
            vlan in vlan(),
            operation in REQUEST..=REPLY,
        ) {
            let outgoing =
                Outgoing { destination, source, vlan, operation, sender_mac, sender_ip, target_mac, target_ip };
            let mut buffer = [0; Outgoing::MAX_LEN];
            let len = outgoing.emit(&mut buffer);
            let Parsed::Arp(frame) = parse(&buffer[..len]) else { panic!("{outgoing:?} is ARP") };
            let arp_at = frame.arp_at;
            prop_assert_eq!(len, arp_at + 46);
            prop_assert_eq!(
                frame,
                Frame {
                    destination, source, vlan, arp_at, operation, sender_mac, sender_ip, target_ip, gist: Gist::default()
                }
                .judged()
            );
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0..100_usize) {
            parse(bytes.as_slice());
            parse_beside(bytes.as_slice(), Some((7, ETHERTYPE_QINQ)));
            parse_leaving(bytes.as_slice(), None);
            parse_leaving(bytes.as_slice(), Some((7, ETHERTYPE_VLAN)));
            let _ = bytes.as_slice().view::<ArpPacket>(at);
            let _ = view_mut::<ArpPacket>(&mut bytes.clone(), at);
        }

        #[test]
        fn no_frame_that_is_nearly_arp_panics(
            row in prop::sample::select(golden::rows()),
            flips in prop::collection::vec((0..72_usize, any::<u8>()), 0..4),
            len in 0..72_usize,
        ) {
            let mut bytes = row.frame;
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(len);
            if let Parsed::Arp(frame) = parse(bytes.as_slice()) {
                prop_assert!(frame.arp_at + ArpPacket::LEN <= bytes.len());
                let port =
                    Port::accepting(MacAddr::new(golden::PORT_MAC), 1);
                verdict(&frame, &port, &Everything, &Everything);
                verdict(&frame, &Port { flags: 0, ..port }, &Everything, &Everything);
                guard(&frame, &port, &Everything);
            }
        }
    }

    #[test]
    fn a_view_ends_where_the_frame_does() {
        let bytes = [0_u8; 30];
        assert!(bytes.as_slice().view::<ArpPacket>(2).is_some());
        assert!(bytes.as_slice().view::<ArpPacket>(3).is_none());
        assert!(bytes.as_slice().view::<ArpPacket>(usize::MAX).is_none());
    }
}
