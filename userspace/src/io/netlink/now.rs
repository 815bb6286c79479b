//! Requests that are answered there and then, without a runtime.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use arpwarden_common::net::MacAddr;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkExtentMask, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::{ATTEMPTS, Message, request_of};
use crate::io::link::Link;

/// Sends a request and gives its answers: the items of a list (NLM_F_DUMP), or what comes before the acknowledgement,
/// which every other request asks for, since some have an answer only now and then. One that is not understood is `None`.
///
/// # Errors
/// The kernel's.
pub(in crate::io) fn ask(
    message: &RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Vec<Option<RouteNetlinkMessage>>> {
    for _ in 1..ATTEMPTS {
        if let Some(answers) = ask_once(message, flags)? {
            return Ok(answers);
        }
    }
    ask_once(message, flags)?.ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// `None` if the list changed while it was read.
fn ask_once(
    message: &RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Option<Vec<Option<RouteNetlinkMessage>>>> {
    // Two bits, of which NLM_F_EXCL is one.
    let end = if flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
    let mut request = request_of(message.clone(), flags | end | NLM_F_REQUEST);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Linux 4.20: the kernel itself leaves out of a list what was not asked for.
    let _ = socket.set_netlink_get_strict_chk(true);
    socket.send(&bytes, 0)?;
    let (mut answers, mut torn) = (Vec::new(), false);
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for bytes in messages(&datagram) {
            let Ok(answer) = Message::deserialize(bytes) else {
                answers.push(None);
                continue;
            };
            let NetlinkMessage { header, payload, .. } = answer;
            torn |= header.flags & NLM_F_DUMP_INTR != 0;
            #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
            match payload {
                NetlinkPayload::InnerMessage(message) => answers.push(Some(message)),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                // The end of a list, or an acknowledgement.
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => {
                    return Ok((!torn).then_some(answers));
                }
                _ => {}
            }
        }
    }
}

/// The messages of a datagram (netlink(7)): each begins with its length, and the next one at a multiple of four.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, _) = datagram.split_first_chunk()?;
        let length = u32::from_ne_bytes(*length) as usize;
        // Less than its header would never end; more than there is can't be read.
        let message = datagram.get(..length).filter(|_| length >= 16)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The link with this index; `None` if there is none.
///
/// # Errors
/// The kernel's.
pub(in crate::io) fn link_now(index: u32) -> io::Result<Option<Link>> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match ask(&RouteNetlinkMessage::GetLink(request), 0) {
        Ok(answers) => match answers.as_slice() {
            [Some(RouteNetlinkMessage::NewLink(link)), ..] => Ok(Link::decode(link)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links of this network namespace by their index.
///
/// # Errors
/// The kernel's.
pub(in crate::io) fn links_now() -> io::Result<BTreeMap<u32, Link>> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = ask(&RouteNetlinkMessage::GetLink(request), NLM_F_DUMP)?;
    let links = answers.iter().filter_map(|answer| {
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else { return None };
        Link::decode(link)
    });
    Ok(links.map(|link| (link.index, link)).collect())
}

/// A host that an interface's packets go to when no other route says where to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its MAC, if the neighbour table has it.
    pub mac: Option<MacAddr>,
}

/// The default gateway of an interface: the one of least metric in the main table. `None` if there is none, or none
/// with an IPv4 address.
///
/// # Errors
/// The kernel's.
pub fn gateway(index: u32) -> io::Result<Option<Gateway>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.kind = RouteType::Unicast;
    request.attributes.push(RouteAttribute::Table(libc::RT_TABLE_MAIN.into()));
    request.attributes.push(RouteAttribute::Oif(index));
    let routes = ask(&RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)?;
    let gateways = routes.iter().filter_map(|answer| {
        let Some(RouteNetlinkMessage::NewRoute(route)) = answer else { return None };
        let default = route.header.destination_prefix_length == 0
            && route.header.kind == RouteType::Unicast
            && route.header.table == libc::RT_TABLE_MAIN;
        let address = gateway_of(&route.attributes, index).filter(|_| default)?;
        let metric = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        Some((metric.unwrap_or(0), address))
    });
    let Some((_, address)) = gateways.min() else { return Ok(None) };
    Ok(Some(Gateway { address, mac: neighbour(index, address)? }))
}

/// The gateway of a route on an interface; of several the first.
fn gateway_of(attributes: &[RouteAttribute], index: u32) -> Option<Ipv4Addr> {
    let via = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })
    };
    if attributes.contains(&RouteAttribute::Oif(index)) {
        return via(attributes);
    }
    attributes.iter().find_map(|attribute| {
        let RouteAttribute::MultiPath(hops) = attribute else { return None };
        hops.iter().filter(|hop| hop.interface_index == index).find_map(|hop| via(&hop.attributes))
    })
}

/// The MAC of a neighbour, if the kernel has one.
fn neighbour(index: u32, address: Ipv4Addr) -> io::Result<Option<MacAddr>> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Inet;
    request.header.ifindex = index;
    request.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    match ask(&RouteNetlinkMessage::GetNeighbour(request), 0) {
        Ok(answers) => Ok(answers.into_iter().flatten().find_map(|answer| {
            let RouteNetlinkMessage::NewNeighbour(neighbour) = answer else { return None };
            neighbour.attributes.iter().find_map(|attribute| match attribute {
                // There as long as it was, or may be, true; failed and unanswered ones have none.
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    bytes.as_slice().try_into().ok().map(MacAddr::new)
                }
                _ => None,
            })
        })),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}
