//! Turns a request into its reply, and a claim into its defence, in place.

use arpwarden_common::{
    net::{Ipv4, MacAddr},
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

/// Rewrites the claim that `frame` was read from into the announcement that `mac` has `address`. `None` as above.
#[inline(always)]
pub(crate) fn announce(packet: &mut Packet, frame: &Frame, mac: MacAddr, address: Ipv4) -> Option<()> {
    let (ethernet, arp) = packet.headers_mut(frame.arp_at)?;
    arp::announce(ethernet, arp, mac, address);
    Some(())
}
