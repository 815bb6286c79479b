//! Turns a request into its reply, in place.

use arpwarden_common::{
    net::MacAddr,
    wire::arp::{self, Frame},
};
use aya_ebpf::programs::XdpContext;

use crate::packet;

/// Rewrites the request that `frame` was read from into the reply of `mac`. `None` if its headers are no longer
/// within the frame, which the verifier cannot know to be impossible.
#[inline(always)]
pub(crate) fn turn_around(ctx: &XdpContext, frame: &Frame, mac: MacAddr) -> Option<()> {
    // SAFETY: `frame` is a copy; the views that it was read through ended with `parse`.
    let (ethernet, packet) = unsafe { packet::view_mut(ctx, frame.arp_at) }?;
    arp::reply(ethernet, packet, frame, mac);
    Some(())
}
