//! Golden frames on their way out, for the guard: kind × state × tags, with the first tag in the frame or beside it.

use super::{
    ADDRESS, ANNOUNCEMENT, ASKER, COLUMNS, Column, GATEWAY, OTHER_MAC, OUR_MAC, PLAIN, PORT_MAC, PROBE,
    REPLY, REQUEST, Recipe, SIBLING_MAC, STRANGER_MAC, Tags, World, world,
};
use crate::abi::Port;

/// Kinds of frames that leave. Where nothing else is said the sender is [`ADDRESS`] with [`OUR_MAC`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "the table says what each is")]
pub enum Kind {
    Asking,
    AskingByPortMac,
    AskingBySibling,
    AskingUnpadded,
    Announcing,
    AnnouncingByReply,
    Replying,
    OtherHardware,
    OtherOperation,
    SentByOther,
    InactivePort,
    Probing,
    AskingAsOther,
    Repairing,
    Behind,
    Truncated,
    WrongProtocol,
    WrongHardwareLength,
    WrongProtocolLength,
    UnknownPort,
    NotArp,
    BehindTwoMoreTags,
    BehindThreeMoreTags,
}

/// What is kept in: a `K` for each of [`COLUMNS`], the plain ones and those that have a name; else a dot.
const KEPT: [&str; 2] = [
    // - w   p a    o c y     s r x o+a- o- c-
    "...KK......KKKKKKKK..KKKKKK",
    // group  fallen  observed  hold  leave  once  yield
    "KK..K.KKK..K............KK..........K",
];

/// Kind, why the row is as it is, and whether the guard looks at such frames at all.
const TABLE: [(Kind, &str, bool); 23] = [
    (
        Kind::Asking,
        "who asks in the name of an address claims it (RFC 826): a kernel steals an address back that way",
        true,
    ),
    (
        Kind::AskingByPortMac,
        "the port's own MAC is ours too, whatever MAC the address is answered with",
        true,
    ),
    (Kind::AskingBySibling, "so is that of another port", true),
    (Kind::AskingUnpadded, "the shortest frame that holds a request", true),
    (Kind::Announcing, "an announcement in request form", true),
    (Kind::AnnouncingByReply, "an announcement in reply form", true),
    (Kind::Replying, "an answer, by the host's own kernel", true),
    (Kind::OtherHardware, "whatever network the packet is for, it pairs the two", true),
    (Kind::OtherOperation, "whatever it is for", true),
    (Kind::SentByOther, "whoever puts it on the wire", true),
    (
        Kind::InactivePort,
        "nor by a port that is not acted on: what comes in there is somebody else's business, what goes out is ours",
        true,
    ),
    (Kind::Probing, "a probe claims nothing", false),
    (Kind::AskingAsOther, "a request for the address in another's name claims nothing", false),
    (Kind::Repairing, "a repair names the owner's MAC", false),
    (Kind::Behind, "a host behind us speaks for itself", false),
    (Kind::Truncated, "a packet that ends before its target is nobody's claim", false),
    (Kind::WrongProtocol, "ARP for something that is not IPv4", false),
    (Kind::WrongHardwareLength, "hardware addresses of eight bytes", false),
    (Kind::WrongProtocolLength, "protocol addresses of sixteen bytes", false),
    (Kind::UnknownPort, "a port that user space has not named is not acted on", false),
    (Kind::NotArp, "other traffic", false),
    (
        Kind::BehindTwoMoreTags,
        "behind the tags of the row there are more: another VLAN, or other traffic",
        false,
    ),
    (Kind::BehindThreeMoreTags, "ARP behind more than two tags is other traffic", false),
];

fn recipe(kind: Kind) -> Recipe {
    let asking =
        Recipe { source: OUR_MAC, sender_mac: OUR_MAC, sender_ip: ADDRESS, target_ip: GATEWAY, ..REQUEST };
    match kind {
        Kind::Asking | Kind::InactivePort | Kind::UnknownPort => asking,
        Kind::AskingByPortMac => Recipe { source: PORT_MAC, sender_mac: PORT_MAC, ..asking },
        Kind::AskingBySibling => Recipe { source: SIBLING_MAC, sender_mac: SIBLING_MAC, ..asking },
        Kind::AskingUnpadded => Recipe { len: 42, ..asking },
        Kind::Announcing => Recipe { source: OUR_MAC, sender_mac: OUR_MAC, ..ANNOUNCEMENT },
        Kind::AnnouncingByReply => {
            Recipe { source: OUR_MAC, sender_mac: OUR_MAC, operation: 2, target_mac: OUR_MAC, ..ANNOUNCEMENT }
        }
        Kind::Replying => Recipe {
            destination: STRANGER_MAC,
            source: OUR_MAC,
            sender_mac: OUR_MAC,
            target_mac: STRANGER_MAC,
            ..REPLY
        },
        Kind::OtherHardware => Recipe { hardware: 32, ..asking },
        Kind::OtherOperation => Recipe { operation: 9, ..asking },
        Kind::SentByOther => Recipe { source: OTHER_MAC, ..asking },
        Kind::Probing => Recipe { source: OUR_MAC, sender_mac: OUR_MAC, ..PROBE },
        Kind::AskingAsOther => Recipe { sender_ip: ASKER, target_ip: ADDRESS, ..asking },
        Kind::Repairing => Recipe { source: OUR_MAC, sender_mac: STRANGER_MAC, ..ANNOUNCEMENT },
        Kind::Behind => Recipe { source: STRANGER_MAC, sender_mac: STRANGER_MAC, ..asking },
        Kind::Truncated => Recipe { len: 41, ..asking },
        Kind::WrongProtocol => Recipe { protocol: [0x86, 0xdd], ..asking },
        Kind::WrongHardwareLength => Recipe { hardware_len: 8, ..asking },
        Kind::WrongProtocolLength => Recipe { protocol_len: 16, ..asking },
        Kind::NotArp => Recipe { ethertype: [0x08, 0x00], ..asking },
        Kind::BehindTwoMoreTags => Recipe { more_tags: &[[0x81, 0x00, 0x00, 0x64]; 2], ..asking },
        Kind::BehindThreeMoreTags => Recipe { more_tags: &[[0x81, 0x00, 0x00, 0x64]; 3], ..asking },
    }
}

/// A frame on its way out, a world, and what has to come of the two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Kind of the frame.
    pub kind: Kind,
    /// State of the address.
    pub column: Column,
    /// Tags.
    pub tags: Tags,
    /// The first of them where it stands beside the frame: type and control information, as on the wire.
    pub beside: Option<[u8; 4]>,
    /// Why it is so.
    pub why: &'static str,
    /// The frame, without that tag.
    pub frame: Vec<u8>,
    /// What the maps hold.
    pub world: World,
    /// Whether the guard counts it, and keeps it in if the port is not only observed.
    pub kept: bool,
}

impl Row {
    /// Name for messages.
    pub fn name(&self) -> String {
        let beside = if self.beside.is_some() { ", the first beside" } else { "" };
        let Self { kind, tags, why, .. } = self;
        format!("leaving {kind:?}, {}, tags {tags:?}{beside}: {why}", self.column.title())
    }
}

/// All rows.
///
/// # Panics
/// If there is not exactly one mark for each column.
pub fn rows() -> Vec<Row> {
    let kept: Vec<bool> = KEPT.concat().bytes().map(|mark| mark == b'K').collect();
    assert_eq!(kept.len(), COLUMNS.len(), "a mark for each column");
    let mut rows = Vec::new();
    for (kind, why, looked_at) in TABLE {
        for (n, column) in COLUMNS.into_iter().enumerate() {
            let all = if n < PLAIN { &Tags::ALL[..] } else { &Tags::SOME };
            for &tags in all {
                let (wire_tags, frame_vlan, address_vlan) = tags.parts();
                let flags = if kind == Kind::InactivePort { 0 } else { Port::ACCEPT };
                let port = (kind != Kind::UnknownPort).then_some(flags);
                let row = |beside, tags_within: &[[u8; 4]]| Row {
                    kind,
                    column,
                    tags,
                    beside,
                    why,
                    frame: recipe(kind).bytes(tags_within),
                    world: world(port, column, address_vlan),
                    // In another VLAN the address is not managed.
                    kept: looked_at && kept[n] && frame_vlan == address_vlan,
                };
                rows.push(row(None, wire_tags));
                if let [first, within @ ..] = wire_tags {
                    rows.push(row(Some(*first), within));
                }
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        golden::SLOT,
        verdict,
        wire::arp::{Parsed, parse_leaving},
    };

    #[test]
    fn every_kind_has_one_row() {
        let mut kinds: Vec<Kind> = TABLE.iter().map(|(kind, ..)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), TABLE.len(), "no kind has two rows");
        assert_eq!(kinds.len(), Kind::BehindThreeMoreTags as usize + 1, "each kind has a row");
    }

    #[test]
    fn what_the_guard_keeps_in_is_what_the_table_says() {
        for row in rows() {
            let name = row.name();
            let beside = row
                .beside
                .map(|[t0, t1, c0, c1]| (u16::from_be_bytes([c0, c1]), u16::from_be_bytes([t0, t1])));
            let kept = match (parse_leaving(row.frame.as_slice(), beside), row.world.port) {
                (Parsed::Arp(frame), Some(port)) => verdict::guard(&frame, &port, &row.world),
                (Parsed::Arp(_) | Parsed::NotArp | Parsed::Truncated | Parsed::BadHeader, _) => None,
            };
            assert_eq!(kept, row.kept.then_some(SLOT), "{name}");
        }
    }
}
