//! What a frame is answered with, in place.

use arpwarden_common::{
    net::MacAddr,
    wire::{
        arp::{self, ArpPacket, Frame},
        ethernet::EthernetHeader,
    },
};

/// What is written over a frame.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// Over a request: the reply of this MAC.
    Reply(MacAddr),
    /// Over a claim: the announcement that this MAC has the address claimed.
    Announcement(MacAddr),
}

impl Answer {
    /// Writes it over the headers that `frame` was read from.
    #[inline(always)]
    pub(crate) fn write(self, ethernet: &mut EthernetHeader, arp: &mut ArpPacket, frame: &Frame) {
        match self {
            Self::Reply(mac) => arp::reply(ethernet, arp, frame, mac),
            Self::Announcement(mac) => arp::announce(ethernet, arp, mac, frame.sender_ip),
        }
    }
}
