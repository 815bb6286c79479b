//! Turns a request into its reply, in place.

use arpwarden_common::{
    net::MacAddr,
    wire::arp::{self, Frame},
};

use crate::packet::Packet;

/// Rewrites the request that `frame` was read from into the reply of `mac`. `None` if its headers are no longer
/// within the packet, which the verifier cannot know to be impossible.
#[inline(always)]
pub(crate) fn turn_around(packet: &mut Packet, frame: &Frame, mac: MacAddr) -> Option<()> {
    let (ethernet, arp) = packet.headers_mut(frame.arp_at)?;
    arp::reply(ethernet, arp, frame, mac);
    Some(())
}
