//! Requests that are answered there and then, without a runtime.

use std::{collections::BTreeMap, io};

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkExtentMask, LinkMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::{ATTEMPTS, Message, request_of};
use crate::io::link::Link;

/// Sends a request and gives its answers: the items of a list (NLM_F_DUMP), nothing (NLM_F_ACK), or one. An answer
/// that is not understood is `None`.
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
    let mut request = request_of(message.clone(), flags | NLM_F_REQUEST);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let one = flags & (NLM_F_DUMP | NLM_F_ACK) == 0;
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
        if one && !answers.is_empty() {
            return Ok(Some(answers));
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
